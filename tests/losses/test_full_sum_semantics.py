"""What `full_sum_loss` says of paths that do not exist, of bad values and of padding; exactness."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata, forward_backward, full_sum_loss

pytestmark = pytest.mark.optimized
INF = np.float32(np.inf)


def chain(batch: int = 3) -> oracles.EdgeList:
    """0 -a-> 1 -b-> 2 with a loop on 1, for each sequence."""
    edges, ends = [], []
    for b in range(batch):
        s = 3 * b
        edges += [(s, s + 1, 0, b), (s + 1, s + 1, 1, b), (s + 1, s + 2, 2, b)]
        ends.append((s, s + 2))
    return oracles.EdgeList(
        np.array(edges, np.uint32).reshape(-1, 4).T.copy(),
        np.zeros(len(edges), np.float32),
        np.array(ends, np.uint32).reshape(-1, 2).T.copy(),
    )


@jax.jit
def run(x, lengths, automata):
    """Loss, valid and gradient, with a cotangent of inf for what is invalid."""
    loss, pull, valid = jax.vjp(
        lambda x: full_sum_loss(x, lengths, automata, return_valid=True), x, has_aux=True
    )
    return loss, valid, pull(jnp.where(valid, 1.0, jnp.inf))[0]


PACKED = Automata.from_edges(*chain(), num_labels=3)
LENGTHS = np.array([4, 4, 4])


def scores(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(6, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("form", ["band", "tables"])
@pytest.mark.parametrize(
    ("case", "loss"),
    [
        ("one frame is too short", INF),
        ("no frame", INF),
        ("-inf score forbids all", INF),
        ("-inf everywhere", INF),
        ("+inf weight forbids all", INF),
        ("NaN", np.nan),
        ("NaN in a label that no edge emits now", np.nan),
        ("+inf", np.nan),
        ("NaN weight", np.nan),
        ("traced length too long", np.nan),
        ("traced length negative", np.nan),
        ("traced emission too large", np.nan),
    ],
)
def test_a_bad_sequence_leaves_its_neighbours_alone(form: str, case: str, loss: float) -> None:
    x, lengths, weights = scores(), LENGTHS.copy(), np.zeros(9, np.float32)
    triple = chain()
    clean = x.copy()
    if case == "one frame is too short":
        lengths[1] = 1
    elif case == "no frame":
        lengths[1] = 0
    elif case == "-inf score forbids all":
        x[0, 1, 0] = -np.inf
    elif case == "-inf everywhere":
        x[:, 1] = -np.inf
    elif case == "+inf weight forbids all":
        weights[5] = np.inf
    elif case == "NaN":
        x[2, 1, 1] = np.nan
    elif case == "NaN in a label that no edge emits now":
        x[0, 1, 2] = np.nan
    elif case == "+inf":
        x[2, 1, 1] = np.inf
    elif case == "NaN weight":
        weights[4] = np.nan
    elif case == "traced length too long":
        lengths[1] = 7
    elif case == "traced length negative":
        lengths[1] = -1
    pad_to = None if form == "band" else {"band": 0}
    if case == "traced emission too large":
        triple.edges[2, 4] = 3
        packed = Automata.from_edges(*triple, pad_to=pad_to)
    else:
        packed = Automata.from_edges(*triple, num_labels=3, pad_to=pad_to)
    got, valid, gradient = run(x, lengths, packed.with_weights(weights))
    wanted, _, pull = run(
        clean,
        LENGTHS,
        Automata.from_edges(*chain(), num_labels=3, pad_to=pad_to).with_weights(
            np.zeros(9, np.float32)
        ),
    )
    np.testing.assert_array_equal(got[1], loss)
    assert valid.tolist() == [True, False, True]
    assert not np.asarray(gradient[:, 1]).any()
    for b in (0, 2):
        assert got[b] == wanted[b]
        np.testing.assert_array_equal(gradient[:, b], pull[:, b])


def test_padding_may_hold_anything_and_gets_exactly_zero() -> None:
    x = scores()
    for garbage in (np.nan, np.inf, -np.inf, 1e38):
        dirty = x.copy()
        dirty[4:] = garbage
        for one, other in zip(run(x, LENGTHS, PACKED), run(dirty, LENGTHS, PACKED), strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.asarray(run(x, LENGTHS, PACKED)[2][4:]).any()


def test_a_path_without_edges() -> None:
    """One state that is start and end: the empty path has loss 0; loops add longer ones."""
    looped = (
        np.array([[0, 1], [0, 2], [0, 0], [0, 1]], np.uint32),
        np.zeros(2, np.float32),
        np.array([[0, 1, 3], [0, 2, 3]], np.uint32),
    )
    packed = Automata.from_edges(*looped)
    x = scores()
    loss, valid = full_sum_loss(x, np.zeros(3, np.int32), packed, return_valid=True)
    assert loss.tolist() == [0.0, np.inf, 0.0]
    assert valid.tolist() == [True, False, True]
    loss = full_sum_loss(x, np.ones(3, np.int32), packed)
    np.testing.assert_allclose(loss, [-x[0, 0, 0], -x[0, 1, 0], np.inf], rtol=1e-6)


def test_no_frames_no_sequences_one_frame() -> None:
    loss, posteriors, valid = forward_backward(
        np.zeros((0, 3, 3), np.float32), np.zeros(3, np.int32), PACKED, return_valid=True
    )
    assert loss.tolist() == [np.inf] * 3
    assert posteriors.shape == (0, 3, 3)
    assert not valid.any()
    empty = Automata.from_edges(*chain(0))
    loss, posteriors = forward_backward(np.zeros((4, 0, 3), np.float32), np.zeros(0, int), empty)
    assert (loss.shape, posteriors.shape) == ((0,), (4, 0, 3))
    one = Automata.from_edges(
        np.array([[0, 0], [1, 1], [0, 2], [0, 0]], np.uint32),
        np.array([0.0, 1.0], np.float32),
        np.array([[0], [1]], np.uint32),
    )
    x = scores()[:1, :1]
    loss, posteriors = forward_backward(x, np.array([1]), one)
    parts = np.exp(x[0, 0, [0, 2]] - np.array([0, 1]))
    np.testing.assert_allclose(loss[0], -np.log(parts.sum()), rtol=1e-6)
    np.testing.assert_allclose(posteriors[0, 0, [0, 2]], parts / parts.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_posteriors": np.zeros((6, 3), np.float32)}, r"float array \[T, B, L\].*\(6, 3\)"),
        ({"log_posteriors": np.zeros((6, 3, 3), np.int32)}, r"float array \[T, B, L\], got int32"),
        ({"log_posteriors": np.zeros((6, 2, 3), np.float32)}, r"seq_lengths must be .* \[2\]"),
        ({"log_posteriors": np.zeros((6, 3, 4), np.float32)}, "num_labels=3.* has 4 labels"),
        ({"seq_lengths": np.array([4, 7, 4])}, r"seq_lengths\[1\] is 7, but must lie in 0..6"),
        ({"seq_lengths": np.array([4, 4, -1])}, r"seq_lengths\[2\] is -1"),
        ({"seq_lengths": np.array([4.0, 4.0, 4.0])}, "seq_lengths must be an integer array"),
        ({"seq_lengths": np.array([[4, 4, 4]])}, "seq_lengths must be an integer array"),
        ({"automata": PACKED[:2]}, "automata holds 2 sequences, but .* a batch of 3"),
        ({"automata": chain()}, "automata must be an Automata, got EdgeList.*from_edges"),
        ({"automata": Automata.from_edges(*chain()), "log_posteriors": np.zeros((6, 3, 2), "f")},
         "emit label 2, but .* has only 2 labels"),
        ({"log_prior": np.zeros(4, np.float32)}, r"log_prior must have shape \[3\]"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"log_posteriors": scores(), "seq_lengths": LENGTHS, "automata": PACKED} | change
    positional = [arguments.pop(n) for n in ("log_posteriors", "seq_lengths", "automata")]
    with pytest.raises(ValueError, match=message):
        full_sum_loss(*positional, **arguments)


def check_against_float64(automata, x, lengths, packed, rtol=1e-6, atol=1e-5) -> None:
    """The loss may be a small difference of large scores: its error is held against those."""
    loss, posteriors = forward_backward(x, lengths, packed)
    size = np.abs(x[np.isfinite(x)]).max(initial=1.0)
    for b in range(x.shape[1]):
        answer = oracles.by_dynamic_programming(automata, b, x[: lengths[b], b].astype(float))
        np.testing.assert_allclose(loss[b], answer.loss, rtol=rtol, atol=rtol * size)
        np.testing.assert_allclose(posteriors[: lengths[b], b], answer.posteriors, atol=atol)


@pytest.mark.parametrize("num_frames", [400, 4000, 20000])
def test_long_sequences_are_as_exact_as_short_ones(num_frames: int) -> None:
    rng = np.random.default_rng(num_frames)
    automata = oracles.hmm_like(rng, 1, 8, 20)
    x = np.asarray(jax.nn.log_softmax(3 * rng.normal(size=(num_frames, 1, 20)).astype(np.float32)))
    check_against_float64(automata, x, np.array([num_frames]), Automata.from_edges(*automata))


@pytest.mark.parametrize("form", ["band", "tables"])
@pytest.mark.parametrize("score", [-60.0, -1000.0])
def test_the_only_path_may_be_far_below_the_others(form: str, score: float) -> None:
    """As many frames as states: one path, whose frames score far below labels of dead ends."""
    rng = np.random.default_rng(0)
    count = 300
    states = np.arange(count)
    edges = np.stack([states, states + 1, 1 + states % 3, 0 * states])
    loops = np.stack([states[1:], states[1:], 0 * states[1:], 0 * states[1:]])
    edges = np.concatenate([edges, loops], axis=1).astype(np.uint32)
    automata = oracles.EdgeList(
        edges, np.zeros(edges.shape[1], np.float32), np.array([[0], [count]], np.uint32)
    )
    x = (score + rng.normal(size=(count, 1, 4))).astype(np.float32)
    x[:, :, 0] = 0.0
    packed = Automata.from_edges(*automata, pad_to=None if form == "band" else {"band": 0})
    check_against_float64(automata, x, np.array([count]), packed)
    x = np.concatenate([x, x[:7]])
    check_against_float64(automata, x, np.array([count + 7]), packed)


SIZES = {
    "edges": 64, "states": 8, "nodes": 24, "slots": 4, "band": 0, "in_arcs": 48, "out_arcs": 48
}  # fmt: skip


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 50.0, 300.0, 3000.0]))
@settings(max_examples=60, deadline=None)
def test_any_dynamic_range(seed: int, spread: float) -> None:
    """Scores that are multiples of 1/8, so that float64 and float32 see the same numbers."""
    rng = np.random.default_rng(seed)
    automata = oracles.random_automata(rng, 2, density=0.7)
    automata.weights[:] = np.round(automata.weights * 8 * rng.choice([1, 50])) / 8
    x = (np.round(rng.uniform(-spread, spread, (16, 2, 4)) * 8) / 8).astype(np.float32)
    packed = Automata.from_edges(*automata, pad_to=SIZES)
    check_against_float64(automata, x, rng.integers(0, 17, 2), packed)


def test_runs_are_bit_for_bit_the_same() -> None:
    first = run(scores(), LENGTHS, PACKED)
    for _ in range(3):
        for one, other in zip(first, run(scores(), LENGTHS, PACKED), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
