"""The `<orth>` of a segment, while its elements come in.

RASR's plain text of `<alternatives>`, which holds several `<orth>`, is that of the first; that of
`<optional>`, which stands for itself or nothing, is itself.  Other elements count as what they
contain.
"""

from __future__ import annotations

from jax_sprint.embedded.lexicon import normalize_blanks

__all__ = ["Transcription"]


class Transcription:
    """Fed with what is inside an `<orth>`, until its end."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._alternatives: list[int] = []
        self._skipping = 0

    def start(self, tag: str) -> None:
        """An element begins."""
        if self._skipping:
            self._skipping += 1
        elif tag == "alternatives":
            self._alternatives.append(0)
        elif tag == "orth" and self._alternatives:
            self._alternatives[-1] += 1
            if self._alternatives[-1] > 1:
                self._skipping = 1

    def text(self, data: str) -> None:
        """Characters."""
        if not self._skipping:
            self._pieces.append(data)

    def end(self, tag: str) -> str | None:
        """An element ends.

        Returns:
            The whole text, blanks normalised, if that was the outer `<orth>`; None otherwise.

        Raises:
            ValueError: `<alternatives>` of nothing.
        """
        if self._skipping:
            self._skipping -= 1
        elif tag == "alternatives":
            if not self._alternatives.pop():
                raise ValueError("<alternatives> must hold at least one <orth>")
            self._pieces.append(" ")
        elif tag == "orth" and not self._alternatives:
            return normalize_blanks("".join(self._pieces))
        return None
