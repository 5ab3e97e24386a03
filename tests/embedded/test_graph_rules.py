"""What must hold of every automaton, and what must be refused, with which words."""

from __future__ import annotations

import gc
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint.embedded.allophones import FINAL, INITIAL, Allophone, AllophoneAlphabet, _PhonemeSet
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import (
    AutomatonError,
    ConfigurationError,
    InputFileError,
    LexiconError,
    OutOfVocabularyError,
)
from jax_sprint.embedded.fsa import EPSILON, Fsa, MatchSide, compose, trim
from jax_sprint.embedded.graph_builder import AllophoneStateGraphBuilder
from jax_sprint.embedded.lexicon import Lemma, Lexicon, Phoneme, Pronunciation
from jax_sprint.embedded.std_sort import unstable_order

NO_SKIPS = {
    "*.tdp.*.skip": "infinity",
    "*.tdp.entry-m1.loop": "infinity",
    "*.tdp.entry-m2.loop": "infinity",
}


def make_lexicon(words: dict[str, list], *, first: str = "silence", blank: bool = False, **special):
    """A lexicon of words given as lists of pronunciations ("A B" or ("A B", score)).

    `first` is "silence" (optional, before the words), "last", or "none".
    """
    symbols = sorted({s for prons in words.values() for p in prons for s in _text(p).split()})
    symbols = sorted({*symbols, *(s for p in special.values() for s in (p or "").split())})
    phonemes = [Phoneme(i + 1, symbol) for i, symbol in enumerate(symbols)]
    if first != "none":
        phonemes.append(Phoneme(len(phonemes) + 1, "[s]", False))
    if blank:
        phonemes.append(Phoneme(len(phonemes) + 1, "[b]", False))
    numbers = {phoneme.symbol: phoneme.id for phoneme in phonemes}

    def spoken(text: str, score: float = 0.0) -> Pronunciation:
        return Pronunciation(tuple(numbers[s] for s in text.split()), score)

    entries: list[tuple] = []
    silence = None if first == "none" else (("[s]", ""), (spoken("[s]"),), "silence")
    if first == "silence":
        entries.append(silence)
    if blank:
        entries.append((("[b]",), (spoken("[b]"),), "blank"))
    for word, prons in words.items():
        listed = tuple(spoken(*((p,) if isinstance(p, str) else p)) for p in prons)
        entries.append(((word,), listed, None))
    for name, pron in special.items():
        entries.append(((f"[{name}]",), () if pron is None else (spoken(pron),), name))
    if first == "last":
        entries.append(silence)
    return Lexicon(phonemes, [Lemma(i, *entry) for i, entry in enumerate(entries)])


def _text(pron) -> str:
    return pron if isinstance(pron, str) else pron[0]


def make_builder(lexicon: Lexicon, **values) -> AllophoneStateGraphBuilder:
    """A builder; in names of parameters "__" stands for "." and "_" for "-"."""
    settings: dict[str, object] = {
        "*.state-tying.type": "monophone",
        "*.hmm.state-repetitions": 1,
        "*.allow-for-silence-repetitions": False,
        "*.tdp.entry-m1.loop": "infinity",
        "*.tdp.entry-m2.loop": "infinity",
    }
    for name, value in values.items():
        settings["*." + name.replace("__", ".").replace("_", "-")] = value
    return AllophoneStateGraphBuilder(Configuration.from_dict(settings), lexicon)


WORDS = {
    "one": ["W A N"],
    "two": ["T U", ("T A", 0.5)],
    "oh": ["O"],
    "new york": ["N U O K"],
    "new": ["N U"],
}


# -- what must hold -------------------------------------------------------------------------------


@st.composite
def setups(draw):
    values = {
        "hmm__states_per_phone": draw(st.integers(1, 3)),
        "hmm__state_repetitions": draw(st.integers(1, 2)),
        "hmm__across_word_model": draw(st.booleans()),
        "fix_allophone_context_at_word_boundaries": draw(st.booleans()),
        "state_tying__type": draw(
            st.sampled_from(["monophone", "monophone-eow", "diphone-dense", "no-tying-dense"])
        ),
        "tdp__applicator_type": draw(st.sampled_from(["legacy", "corrected"])),
        "tdp__*__skip": draw(st.sampled_from(["infinity", "2"])),
        "tdp__*__exit": 0.5,
    }
    values["allow_for_silence_repetitions"] = draw(st.booleans())
    if not values["allow_for_silence_repetitions"]:
        values["normalize_lemma_sequence_scores"] = draw(st.booleans())
    words = draw(st.lists(st.sampled_from(list(WORDS)), max_size=6))
    return values, " ".join(words)


@settings(max_examples=80, deadline=None)
@given(setups())
def test_conventions_of_every_automaton(setup):
    values, text = setup
    built = make_builder(make_lexicon(WORDS), **values).build(text)
    source, target, emission = built.edges.astype(np.int64)
    last = built.num_states - 1
    assert built.edges.dtype == np.uint32
    assert built.weights.dtype == np.float32
    assert built.num_edges == len(built.weights)
    assert np.isfinite(built.weights).all()
    assert (source <= target).all()
    assert not (source == last).any() or (target[source == last] == last).all()
    # Sorted by distance, but for the arcs repeated into a new final state.
    head = target - source
    head = head[: len(head) - int((target == last).sum())]
    assert (np.diff(head) >= 0).all()
    reached, leading = {0}, {last}
    for s, t in sorted(zip(source.tolist(), target.tolist(), strict=True)):
        if s in reached:
            reached.add(t)
    for s, t in sorted(zip(source.tolist(), target.tolist(), strict=True), reverse=True):
        if t in leading:
            leading.add(s)
    assert reached == leading == set(range(built.num_states))
    assert emission.max() < make_builder(make_lexicon(WORDS), **values).num_emissions


def test_a_word_of_one_state_by_hand():
    # 0 -O-> 1, 1 loops; the last arcs are repeated into the final state with the cost of exit.
    builder = make_builder(
        make_lexicon({"oh": ["O"]}, first="none"),
        hmm__states_per_phone=1,
        tdp__state_0__loop=2,
        tdp__state_0__exit=0.25,
        **{"tdp__*__skip": "infinity"},
    )
    built = builder.build("oh")
    assert built.num_states == 3
    np.testing.assert_array_equal(built.edges, [[1, 0, 1, 0], [1, 1, 2, 2], [0, 0, 0, 0]])
    np.testing.assert_allclose(built.weights, [2.0, 0.0, 2.25, 0.25])


def test_blanks_in_the_spelling_do_not_matter():
    builder = make_builder(make_lexicon(WORDS))
    plain = builder.build("one two")
    for text in ("one two ", "  one\ttwo\n"):
        np.testing.assert_array_equal(builder.build(text).edges, plain.edges)


def test_a_spelling_of_several_words_goes_beside_its_parts():
    builder = make_builder(make_lexicon(WORDS | {"york": ["O K"]}, first="none"))
    both = builder.build("new york")
    # N U O K as one word, or as two: the two-word path pays exit, so arcs differ, labels do not.
    alone = make_builder(make_lexicon(WORDS, first="none")).build("new york")
    assert alone.num_edges < both.num_edges
    assert set(alone.edges[2]) <= set(both.edges[2])


def test_without_any_context_words_have_a_way_on_where_rasr_crashes():
    # RASR: a pronunciation of one phoneme first in the lexicon, and nothing leads on from any word.
    values = {"phonology__history_length": 0, "phonology__future_length": 0}
    bad = make_builder(make_lexicon(WORDS), **values).build("one two oh")
    good = make_builder(make_lexicon(WORDS, first="last"), **values).build("one two oh")
    assert bad.num_states == good.num_states
    assert bad.num_edges == good.num_edges
    np.testing.assert_allclose(np.sort(bad.weights), np.sort(good.weights))


def test_silence_first_without_context_but_with_the_fix_is_lost_as_in_rasr():
    values = {
        "phonology__history_length": 0,
        "phonology__future_length": 0,
        "fix_allophone_context_at_word_boundaries": True,
    }
    lexicon = make_lexicon(WORDS)
    built = make_builder(lexicon, **values).build("one two")
    silence = 3 * lexicon.phoneme("[s]").id - 3
    assert silence not in built.edges[2]


def test_a_second_builder_gives_the_same():
    lexicon = make_lexicon(WORDS)
    first, second = make_builder(lexicon), make_builder(lexicon)
    first.build("oh")
    for text in ("one two", "new york", ""):
        a, b = first.build(text), second.build(text)
        np.testing.assert_array_equal(a.edges, b.edges)
        np.testing.assert_array_equal(a.weights, b.weights)


def test_building_leaves_the_garbage_collector_as_it_was():
    builder = make_builder(make_lexicon(WORDS))
    assert gc.isenabled()
    builder.build("one")
    assert gc.isenabled()
    with pytest.raises(OutOfVocabularyError):
        builder.build("three")
    assert gc.isenabled()


def test_time_is_linear_in_the_number_of_words():
    # Counted in calls, not in seconds.
    builder = make_builder(make_lexicon(WORDS), state_tying__type="no-tying-dense")

    def calls(words: int) -> int:
        count = 0

        def profile(frame, event, argument):
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            builder.build("one two oh new york " * (words // 5))
        finally:
            sys.setprofile(None)
        return count

    assert calls(400) < 4.5 * calls(100)


# -- what must be refused -------------------------------------------------------------------------


def test_out_of_vocabulary_word():
    with pytest.raises(OutOfVocabularyError, match=r"'three'.*'one three'.*no special lemma") as e:
        make_builder(make_lexicon(WORDS)).build("one three")
    assert e.value.word == "three"
    with pytest.raises(OutOfVocabularyError, match=r"'three'.*has no pronunciation.*<phon>"):
        make_builder(make_lexicon(WORDS, unknown=None)).build("one three")


def test_out_of_vocabulary_word_is_replaced_by_the_unknown_lemma():
    builder = make_builder(make_lexicon(WORDS, unknown="Q"))
    np.testing.assert_array_equal(builder.build("one three").edges, builder.build("one four").edges)


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        ({}, "", "empty orthography without optional silence"),
        ({"fix_allophone_context_at_word_boundaries": True}, "one two", "silence between them"),
        ({"tdp__*__forward": "infinity"}, "one", "forbid every path"),
        ({"phonology__history_length": 0}, "one two", "contexts of different lengths"),
    ],
)
def test_no_automaton(values, text, message):
    builder = make_builder(make_lexicon(WORDS, first="none"), **values)
    with pytest.raises(AutomatonError, match=message):
        builder.build(text)


def test_word_without_pronunciation():
    with pytest.raises(AutomatonError, match=r"'mute'.*has no pronunciation.*<phon>"):
        make_builder(make_lexicon(WORDS | {"mute": []})).build("one mute")


def test_second_lemma_with_an_empty_spelling_makes_a_cycle():
    lexicon = make_lexicon(WORDS)
    phonemes = [*lexicon.phonemes, Phoneme(len(lexicon.phonemes) + 1, "[n]", False)]
    noise = Lemma(len(lexicon.lemmas), ("[n]", ""), (Pronunciation((len(phonemes),)),))
    with pytest.raises(AutomatonError, match="empty orthography"):
        make_builder(Lexicon(phonemes, [*lexicon.lemmas, noise])).build("one")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state_tying__type": "cart"}, "decision trees"),
        ({"state_tying__type": "nonsense"}, "one of none|one of monophone"),
        ({"state_tying__type": "lookup"}, "no look-up table is named"),
        ({"state_tying__type": "diphone-dense", "phonology__history_length": 2}, "length 1"),
        ({"hmm__states_per_phone": 0}, "states-per-phone"),
        ({"hmm__states_per_phone": 17}, "states-per-phone"),
        ({"topology": "transducer"}, "hmm, ctc, rna"),
        ({"tdp__scale": 0, "tdp__*__skip": "infinity"}, "infinity times a scale of 0"),
        ({"tdp__applicator_type": "new"}, "legacy, corrected"),
        ({"label_min_duration": 2}, "no longer offered"),
        (
            {"normalize_lemma_sequence_scores": True, "allow_for_silence_repetitions": True},
            "allow-for-silence-repetitions = no",
        ),
        (
            {"state_tying__type": "no-tying-dense", "state_tying__use_word_end_classes": True},
            "excludes use-boundary-classes",
        ),
        (
            {"state_tying__type": "no-tying-dense", "phonology__history_length": 5},
            "more than 32 bits",
        ),
    ],
)
def test_parameters_that_make_no_sense(values, message):
    with pytest.raises(ConfigurationError, match=message):
        make_builder(make_lexicon(WORDS), **values)


def test_ctc_needs_a_blank_and_plain_penalties():
    with pytest.raises(LexiconError, match='special="blank"'):
        make_builder(make_lexicon(WORDS), topology="ctc")
    with pytest.raises(ConfigurationError, match="forward and exit must be 0, skip infinity"):
        make_builder(make_lexicon(WORDS, blank=True), topology="ctc")


def test_silence_of_two_phonemes():
    lexicon = make_lexicon(WORDS, first="none")
    silence = Lemma(len(lexicon.lemmas), ("",), (Pronunciation((1, 2)),), special="silence")
    with pytest.raises(LexiconError, match="exactly one phoneme"):
        make_builder(Lexicon(lexicon.phonemes, [*lexicon.lemmas, silence]))


def test_look_up_table(tmp_path):
    table = tmp_path / "tying.lut"
    values = {"state_tying__type": "lookup", "state_tying__file": table}
    values["hmm__states_per_phone"] = 1
    lexicon = make_lexicon({"oh": ["O"], "two": ["T U"]}, first="none")
    table.write_text("# a comment\nO{#+#}@i@f.0 7\n\nT{#+U}@i.0 8\n")
    builder = make_builder(lexicon, **values)
    assert set(builder.build("oh").edges[2]) == {7}
    assert builder.num_emissions == 9
    with pytest.raises(AutomatonError, match=r"no line for U\{T\+#\}@f\.0"):
        builder.build("two")
    for line, message in (
        ("O{#+#}@i@f.0", "line 1"),
        ("X{#+#}@i@f.0 1", "'X'.*not in the lexicon"),
        ("O[#+#].0 1", "is no allophone"),
        ("O{#+#}@i@f.0 -1", "negative"),
    ):
        table.write_text(line)
        with pytest.raises(InputFileError, match=message):
            make_builder(lexicon, **values)
    with pytest.raises(InputFileError):
        make_builder(lexicon, **(values | {"state_tying__file": tmp_path / "missing"}))


def test_phoneme_names_that_break_allophone_names():
    with pytest.raises(ConfigurationError, match=r"A\.B"):
        make_builder(make_lexicon({"x": ["A.B"]}))


# -- parts ----------------------------------------------------------------------------------------


def test_names_of_allophones():
    lexicon = make_lexicon(WORDS)
    alphabet = AllophoneAlphabet(Configuration.from_dict({}), lexicon, across_words=True)
    for allophone in alphabet.allophones:
        assert alphabet.parse(alphabet.format(allophone)) == allophone
    one = [lexicon.phoneme(s).id for s in "WAN"]
    assert alphabet.format(Allophone(one[1], (one[0],), (one[2],))) == "A{W+N}"
    edge = Allophone(one[0], (), (one[1],), INITIAL)
    assert alphabet.format(edge) == "W{#+A}@i"
    assert edge.phoneme(-1) == 0
    assert alphabet.format(edge._replace(boundary=INITIAL | FINAL)) == "W{#+A}@i@f"


def test_order_of_a_hash_set():
    # As g++ 12 prints {1, ..., 14} and a few sets of its own, from std::unordered_set<uint16_t>.
    few = _PhonemeSet()
    for phoneme in (3, 16, 29, 1):
        few.add(phoneme)
    assert list(few.in_order()) == [1, 29, 16, 3]
    many = _PhonemeSet()
    for phoneme in range(1, 15):
        many.add(phoneme)
    assert list(many.in_order()) == [14, *range(1, 14)]


def test_order_of_an_unstable_sort():
    # As g++ 12's std::sort leaves them.
    assert unstable_order([3, 1, 2, 1]) == [1, 3, 2, 0]
    assert unstable_order([0] * 17) == [8, *range(16, 8, -1), 0, *range(7, 0, -1)]
    keys = [i % 3 for i in range(20)]
    assert unstable_order(keys) == (
        [18, 3, 15, 6, 12, 9, 0, 10, 19, 16, 13, 7, 4, 1, 11, 8, 14, 5, 17, 2]
    )
    rng = np.random.default_rng(0)
    for size in (16, 17, 50, 1000):
        keys = rng.integers(0, max(2, size // 4), size).tolist()
        order = unstable_order(keys)
        assert sorted(order) == list(range(size))
        assert [keys[i] for i in order] == sorted(keys)


def test_composition_by_hand():
    # Left: reads 5 and then nothing, writes 1. Right: reads 1, or 2 on a way that dies.
    left = Fsa([[(1, 5, 1, 0.5), (2, 6, 2, 0.0)], [(3, 7, EPSILON, 0.25)], [], []], {3: 0.0})
    right = Fsa([[(1, 1, 9, 1.0), (1, 2, 8, 0.0)], []], {1: 2.0})
    both = compose(MatchSide.by_output(left), MatchSide.by_input(right))
    assert [arcs for arcs in both.arcs if arcs] == [
        [(1, 5, 9, 1.5)],
        [(both.arcs[1][0][0], 7, EPSILON, 0.25)],
    ]
    assert list(both.finals.values()) == [2.0]


def test_trimming_keeps_numbers():
    fsa = trim(Fsa([[(1, 1, 1, 0.0), (2, 1, 1, 0.0)], [(1, 1, 1, 0.0)], []], {2: 0.0}))
    assert fsa.arcs == [[(2, 1, 1, 0.0)], None, []]
    assert trim(Fsa([[(0, 1, 1, math.inf)]], {})).arcs == []


def test_needs_no_jax():
    code = "import sys, jax_sprint.embedded.graph_builder; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
