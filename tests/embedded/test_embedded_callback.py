"""RASR's callback as the embedded Sprint answers it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jax_sprint.embedded.callback import SprintCallback
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import (
    EmbeddedError,
    NotOfferedError,
    OutOfVocabularyError,
    UnknownSegmentError,
)

SEGMENT = "tiny/rec1/seg1"
LABELS = 45


@pytest.fixture
def make(golden_dir, monkeypatch):
    monkeypatch.chdir(golden_dir)

    def make(*arguments: str, name: str = "a_mono3_legacy") -> SprintCallback:
        argv = [f"--config=config/{name}.config", *arguments]
        return SprintCallback(Configuration.from_argv(argv, environment={}))

    return make


def log_posteriors(seed: int, frames: int = 50) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(frames, LABELS)).astype(np.float32)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def test_about_itself(make):
    callback = make()
    assert callback("version_number") == 5
    assert "jax_sprint" in callback("version")
    assert "calculate_criterion" in callback("help")
    assert callback("init_criterion") is None


def test_automata_have_the_form_of_rasr(make, golden_dir):
    callback = make()
    golden = np.load(golden_dir / "a_mono3_legacy.npz")
    for b, tag in enumerate(golden["tags"]):
        states, arcs, edges, weights = callback(
            "export_allophone_state_fsa_by_segment_name", segment_name=str(tag)
        )
        mask = golden["edges"][3] == b
        first, last = golden["start_end_states"][:, b]
        assert (states, arcs) == (int(last) - int(first) + 1, mask.sum())
        assert (edges.dtype, edges.shape) == (np.uint32, (3 * arcs,))
        assert (weights.dtype, weights.shape) == (np.float32, (arcs,))
        assert weights.sum() == pytest.approx(golden["weights"][mask].sum(), rel=1e-5)


def test_orthographies(make):
    callback = make()
    orthography = callback("get_orthography_by_segment_name", SEGMENT)
    assert orthography == "hello world "
    by_name = callback("export_allophone_state_fsa_by_segment_name", SEGMENT)
    by_orthography = callback("export_allophone_state_fsa_by_orthography", orthography=orthography)
    for one, other in zip(by_name, by_orthography, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_the_caller_does_to_an_automaton_stays_with_the_caller(make):
    callback = make()
    first = callback("export_allophone_state_fsa_by_segment_name", SEGMENT)
    first[2][:] = 7
    first[3][:] = 7.0
    second = callback("export_allophone_state_fsa_by_segment_name", SEGMENT)
    assert not (second[2] == 7).all()
    assert not (second[3] == 7.0).all()


@pytest.mark.parametrize("capacity", [0, 200])
def test_a_small_cache_changes_nothing(make, capacity):
    callback, small = make(), make(f"--*.cache-arcs={capacity}")
    for _ in range(2):
        for segment in callback.corpus:
            command = "export_allophone_state_fsa_by_segment_name"
            for one, other in zip(
                callback(command, segment.full_name), small(command, segment.full_name), strict=True
            ):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((), {}, TypeError, "needs a command"),
        ((b"version",), {}, TypeError, "the command must be a str, not bytes"),
        (("fly",), {}, ValueError, "unknown command 'fly'"),
        (
            ("get_orthography_by_segment_name", "a/b/c"),
            {},
            KeyError,
            "unknown segment name 'a/b/c'",
        ),
        (
            ("export_allophone_state_fsa_by_segment_name", SEGMENT.encode()),
            {},
            TypeError,
            "segment_name must be a str, not bytes",
        ),
        (
            ("export_allophone_state_fsa_by_orthography", b"hello"),
            {},
            TypeError,
            "orthography must be a str",
        ),
        (("export_allophone_state_fsa_by_segment_name",), {}, TypeError, "segment_name"),
        (("version",), {"segment_name": "x"}, TypeError, "segment_name"),
        (
            ("get_alignment_from_cache",),
            {"cache_filename": "x", "segment_name": "y"},
            NotOfferedError,
            "can be read by RASR only",
        ),
        (("analyze_alignment_from_cache", "x"), {}, NotOfferedError, "can be read by RASR only"),
    ],
)
def test_errors_leave_it_alive(make, arguments, keywords, error, message):
    callback = make()
    with pytest.raises(error, match=message):
        callback(*arguments, **keywords)
    assert callback("get_orthography_by_segment_name", SEGMENT) == "hello world "


def test_out_of_vocabulary(make):
    callback = make("--*.corpus.file=corpus_oov.xml", name="e_nosil")
    with pytest.raises(ValueError, match="zzz") as caught:
        callback("export_allophone_state_fsa_by_segment_name", "tiny/rec4/oov")
    assert isinstance(caught.value, OutOfVocabularyError)


def test_full_sum_by_all_its_doors(make):
    callback = make("--*.criterion.am-scale=0.8", "--*.criterion.tdp-scale=0.5")
    scores = log_posteriors(0)
    loss, error = callback(
        "calculate_criterion",
        log_posteriors=scores.T,
        orthography="hello world ",
        output_error_type="error-signal",
    )
    assert error.shape == (LABELS, 50)
    assert error.dtype == np.float32
    np.testing.assert_allclose(error.sum(axis=0), -0.8, atol=1e-5)

    by_name = callback(
        "calculate_criterion",
        log_posteriors=scores.T,
        segment_name=SEGMENT,
        output_error_type="error-signal",
    )
    assert by_name[0] == loss
    np.testing.assert_array_equal(by_name[1], error)

    posteriors = np.exp(scores).T
    plain_loss, plain_error = callback(
        "calculate_criterion",
        posteriors,
        orthography="hello world ",
        output_error_type="error-signal",
    )
    assert plain_loss == pytest.approx(loss, rel=1e-6)
    # d/d posterior = d/d log-posterior divided by the posterior
    np.testing.assert_allclose(plain_error * posteriors, error, atol=1e-5)

    _, before = callback(
        "calculate_criterion",
        posteriors=posteriors,
        orthography="hello world ",
        output_error_type="error-signal-before-softmax",
    )
    np.testing.assert_allclose(before, error + 0.8 * posteriors, atol=1e-5)
    np.testing.assert_allclose(before.sum(axis=0), 0.0, atol=1e-5)

    for kind in ("none", "pseudo-targets", None):
        result = callback(
            "calculate_criterion", posteriors, orthography="hello world ", output_error_type=kind
        )
        assert result == (plain_loss, None)

    ancestor = callback("get_loss_and_error_signal", SEGMENT, 50, scores)
    assert ancestor[0] == loss
    np.testing.assert_array_equal(ancestor[1], error.T)


def test_log_posteriors_say_more_than_posteriors(make):
    """In float32 e^-200 is 0, so from posteriors there is no path any more."""
    callback = make()
    assert "log_posteriors" in callback.offers
    scores = np.full((50, LABELS), -200.0, np.float32)
    scores[:, LABELS - 1] = 0.0  # a label of no state of the automaton
    common = {"orthography": "hello world ", "output_error_type": "error-signal"}
    loss, _ = callback("calculate_criterion", log_posteriors=scores.T, **common)
    assert 50 * 200 - 50 < loss < 50 * 200 + 300
    loss, error = callback("calculate_criterion", posteriors=np.exp(scores).T, **common)
    assert loss == math.inf
    assert not error.any()


def test_input_in_log_space_is_the_way_of_older_control_modules(make):
    callback = make("--*.input-in-log-space=true")
    scores = log_posteriors(1)
    common = {"orthography": "hello world ", "output_error_type": "error-signal"}
    expected = callback("calculate_criterion", log_posteriors=scores.T, **common)
    found = callback("calculate_criterion", posteriors=scores.T, **common)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"output_error_type": "gradient"}, "unknown output_error_type 'gradient'"),
        ({"alignment": np.zeros(50)}, "not both"),
        ({"log_posteriors": np.zeros((LABELS, 50))}, "either posteriors or log_posteriors"),
        ({"posteriors": None}, "either posteriors or log_posteriors"),
        ({"posteriors": [[0.5]]}, "not list"),
        ({"posteriors": np.zeros(50, np.float32)}, r"shape \(50,\)"),
        ({"posteriors": np.zeros((LABELS, 50), np.int32)}, "dtype int32"),
        ({"posteriors": np.zeros((3, 50), np.float32)}, "have only 3 labels"),
        ({"orthography": None}, "needs an orthography"),
    ],
)
def test_bad_input_of_the_criterion(make, keywords, message):
    arguments = {
        "posteriors": np.exp(log_posteriors(0)).T,
        "orthography": "hello world ",
        "output_error_type": "error-signal",
        **keywords,
    }
    with pytest.raises(ValueError, match=message):
        make()("calculate_criterion", **arguments)


def test_length_must_agree(make):
    with pytest.raises(ValueError, match="the length 49 disagrees with the 50 frames"):
        make()("get_loss_and_error_signal", SEGMENT, 49, log_posteriors(0))


def test_no_path_and_not_a_number(make):
    callback = make()
    common = {"orthography": "hello world ", "output_error_type": "error-signal"}
    loss, error = callback("calculate_criterion", log_posteriors=log_posteriors(0, 2).T, **common)
    assert loss == math.inf
    assert not error.any()
    scores = log_posteriors(0)
    scores[3] = np.nan
    for kind in ("error-signal", "error-signal-before-softmax"):
        common["output_error_type"] = kind
        loss, error = callback("calculate_criterion", log_posteriors=scores.T, **common)
        assert math.isnan(loss)
        assert np.isnan(error).all()


def test_cross_entropy_as_rasr_gives_it(make):
    callback = make("--*.training-criterion=cross-entropy")
    posteriors = np.exp(log_posteriors(2, 4)).T
    alignment = np.array([3, 3, 0, 44], np.float32)
    common = {"posteriors": posteriors, "alignment": alignment}
    loss, error = callback(
        "calculate_criterion", output_error_type="error-signal-before-softmax", **common
    )
    frames = np.arange(4)
    assert loss == pytest.approx(-np.log(posteriors[alignment.astype(int), frames]).sum(), rel=1e-5)
    target = np.zeros_like(posteriors)
    target[alignment.astype(int), frames] = 1.0
    np.testing.assert_allclose(error, posteriors - target, atol=1e-6)
    assert callback("calculate_criterion", **common)[1] is None
    with pytest.raises(NotOfferedError, match="error-signal-before-softmax"):
        callback("calculate_criterion", output_error_type="error-signal", **common)
    with pytest.raises(ValueError, match="needs an alignment"):
        callback("calculate_criterion", posteriors=posteriors, orthography="hello ")


def test_criterion_none_gives_zeros(make):
    callback = make("--*.training-criterion=none")
    loss, error = callback(
        "calculate_criterion",
        posteriors=np.ones((3, 2), np.float32),
        output_error_type="error-signal",
    )
    assert loss == 0.0
    assert error.shape == (3, 2)
    assert not error.any()


def test_loading_everything_finds_mistakes(make, golden_dir, tmp_path):
    make().load()
    broken = tmp_path / "lexicon.xml"
    broken.write_text((golden_dir / "lexicon.xml").read_text().replace("</phoneme>", "", 1))
    with pytest.raises(EmbeddedError, match=r"lexicon.xml line \d+: malformed XML"):
        make(f"--*.model-combination.lexicon.file={broken}").load()
    with pytest.raises(UnknownSegmentError):
        make()("get_orthography_by_segment_name", "tiny")
