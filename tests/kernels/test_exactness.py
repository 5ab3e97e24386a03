"""Every way to the same sums, against dynamic programming in float64: long, peaked, far below 1.

The ways that take any automaton are in `WAYS`, one table for all tests; `ctc_loss`, which builds
its own graph, follows below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import one_shape
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sprint import Automata, ctc_loss, fast_baum_welch, forward_backward, full_sum_loss

pytestmark = pytest.mark.optimized
MOST = 4  # states of a random automaton: no row of a shared table has more than 8 entries
LENGTHS = np.array([20000, 4000, 400])


@partial(jax.jit, static_argnames="checkpoint")
def _loss_and_posteriors(x, lengths, automata, checkpoint=False):
    def total(x):
        loss = full_sum_loss(x, lengths, automata, checkpoint=checkpoint)
        return jnp.sum(jnp.where(jnp.isfinite(loss), loss, 0.0)), loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return loss, -gradient


def repeated(one: oracles.EdgeList, batch: int) -> oracles.EdgeList:
    """`batch` copies of one automaton."""
    count = int(max(one.edges[:2].max(initial=0), one.start_end_states.max())) + 1
    copy = np.arange(batch).repeat(one.edges.shape[1])
    edges = np.tile(one.edges.astype(int), batch)
    edges[:2] += count * copy
    edges[3] = copy
    ends = one.start_end_states.astype(int) + count * np.arange(batch)
    return oracles.EdgeList(
        edges.astype(np.uint32), np.tile(one.weights, batch), ends.astype(np.uint32)
    )


def _packed(checkpoint=False, **more) -> Callable:
    def way(one, x, lengths, roof):
        options = more | ({} if roof is None else {"pad_to": roof})
        packed = Automata.from_edges(*repeated(one, x.shape[1]), **options)
        return _loss_and_posteriors(x, lengths, packed, checkpoint)

    return way


def _alone(one, roof) -> Automata:
    return Automata.from_edges(*one).shared() if roof is None else one_shape.shared(one, roof)


def _shared(one, x, lengths, roof):
    return _loss_and_posteriors(x, lengths, _alone(one, roof))


def _forward_backward(one, x, lengths, roof):
    return forward_backward(x, lengths, _alone(one, roof))


@partial(jax.jit, static_argnames="n_states")
def _traced_edges(x, mask, edges, weights, ends, n_states):
    return fast_baum_welch(
        am_scores=-x,
        seq_mask=mask,
        edges=edges,
        weights=weights,
        start_end_states=ends,
        n_states=n_states,
    )


def _fast_baum_welch(one, x, lengths, roof):
    edges, weights, ends = repeated(one, x.shape[1])
    n_states = int(max(edges[:2].max(initial=0), ends.max())) + 1
    if roof is not None:  # dead edges up to a size, so that all automata share one program
        n_states = MOST * x.shape[1]
        dead = 2 * MOST * n_states - edges.shape[1]
        edges = np.concatenate([edges, np.zeros((4, dead), np.uint32)], axis=1)
        weights = np.concatenate([weights, np.full(dead, np.inf, np.float32)])
    mask = (np.arange(x.shape[0])[:, None] < lengths).astype(np.float32)
    costs, loss = _traced_edges(x, mask, edges, weights, ends, n_states)
    return np.where(lengths > 0, loss[0], np.nan), np.exp(-np.asarray(costs))


WAYS = {
    "full_sum_loss": _packed(),
    "full_sum_loss, tables": _packed(pad_to={"band": 0}),
    "full_sum_loss, checkpoint": _packed(checkpoint=True),
    "full_sum_loss, checkpoint, tables": _packed(checkpoint=True, pad_to={"band": 0}),
    "full_sum_loss, shared": _shared,
    "forward_backward": _forward_backward,
    "fast_baum_welch": _fast_baum_welch,
}


def check(way: str, one, x, lengths, roof=None, rtol: float = 1e-6, atol: float = 1e-5) -> None:
    """The loss's error counts relative to the largest score, where the loss itself is smaller."""
    loss, posteriors = WAYS[way](one, x, lengths, roof)
    size = np.abs(x[np.isfinite(x)]).max(initial=1.0)
    for b, length in enumerate(lengths):
        answer = oracles.by_dynamic_programming(one, 0, x[:length, b].astype(float))
        np.testing.assert_allclose(loss[b], answer.loss, rtol=rtol, atol=rtol * size)
        got = np.asarray(posteriors[:length, b])
        np.testing.assert_allclose(got, answer.posteriors, atol=atol)


def scores(rng, num_frames: int, batch: int, labels: int, scale: float) -> np.ndarray:
    raw = scale * rng.normal(size=(num_frames, batch, labels))
    return np.asarray(jax.nn.log_softmax(raw.astype(np.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_long_sequences_through_a_graph_with_cycles(way: str) -> None:
    """Nearly any state may follow any other, as in a denominator; 20,000, 4,000, 400 frames."""
    rng = np.random.default_rng(0)
    automata = oracles.random_automata(rng, 20, max_states=9, num_labels=12)
    largest = int(np.argmax(np.diff(automata.start_end_states.astype(int), axis=0)))
    mine = automata.edges[3] == largest
    edges = automata.edges[:, mine] * np.array([[1], [1], [1], [0]], np.uint32)
    one = oracles.EdgeList(
        edges, automata.weights[mine], automata.start_end_states[:, [largest]].copy()
    )
    check(way, one, scores(rng, LENGTHS.max(), 3, 12, 3.0), LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full_sum_loss", "full_sum_loss, tables"])
def test_long_and_peaked_sequences(way: str) -> None:
    """150 states and posteriors near 0 and 1; 20,000, 4,000 and 400 frames."""
    rng = np.random.default_rng(1)
    one = oracles.hmm_like(rng, 1, 48, 30)
    check(way, one, scores(rng, LENGTHS.max(), 3, 30, 20.0), LENGTHS)


def ladder(rungs: int) -> oracles.EdgeList:
    """0 -> 1 -> ... -> rungs by labels 1, 2, 3, with loops of label 0 after the start."""
    states = np.arange(rungs)
    onward = np.stack([states, states + 1, 1 + states % 3, 0 * states])
    loops = np.stack([states[1:], states[1:], 0 * states[1:], 0 * states[1:]])
    edges = np.concatenate([onward, loops], axis=1).astype(np.uint32)
    ends = np.array([[0], [rungs]], np.uint32)
    return oracles.EdgeList(edges, np.zeros(edges.shape[1], np.float32), ends)


@pytest.mark.parametrize("way", WAYS)
def test_the_only_paths_are_far_below_the_others(way: str) -> None:
    """Loops at score 0 keep nearly all mass in dead ends until no frame is left for them."""
    rng = np.random.default_rng(2)
    rungs, spare = 200, np.array([0, 0, 5, 5])
    below = np.array([-60.0, -1000.0, -60.0, -1000.0])[:, None]
    x = (below + rng.normal(size=(rungs + 5, 4, 4))).astype(np.float32)
    x[:, :, 0] = 0.0
    check(way, ladder(rungs), x, rungs + spare)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_weights_alone_may_underflow(way: str) -> None:
    """Costs of 100 to 300 nats on every arc, scores near 0."""
    rng = np.random.default_rng(3)
    one = oracles.hmm_like(rng, 1, 8, 10)
    one.weights[:] = rng.uniform(100, 300, one.weights.shape).astype(np.float32)
    check(way, one, scores(rng, 90, 2, 10, 1.0), np.array([90, 70]))


def ranging(rng: np.random.Generator, shape: tuple[int, ...], span: float, pattern: str):
    """Scores within +-span in multiples of 1/8: float32 and float64 see the same numbers."""
    if pattern == "uniform":
        x = rng.uniform(-span, span, shape)
    elif pattern == "extremes":
        x = span * rng.choice([-1.0, 1.0], shape)
    elif pattern == "drift":
        x = np.linspace(-span, span, shape[0])[:, None] + rng.normal(size=shape)
    else:
        x = rng.normal(size=shape)
        x[:, rng.integers(shape[1])] -= span
    return (np.round(8 * x) / 8).astype(np.float32)


PATTERNS = ["uniform", "extremes", "drift", "one label"]
# 88 and 104 nats are where float32 overflows, and where its smallest subnormal lies.
SPANS = st.sampled_from([30.0, 88.0, 104.0, 300.0])


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if "tables" not in way])
@given(
    seed=st.integers(0, 10**6), lengths=st.tuples(*[st.integers(1, 24)] * len(PATTERNS)), span=SPANS
)
@settings(max_examples=30, deadline=None)
def test_any_dynamic_range_per_frame(way: str, seed: int, lengths, span: float) -> None:
    """Up to e^+-300 within one frame, of all patterns, through one random automaton."""
    rng = np.random.default_rng(seed)
    one = oracles.random_automata(rng, 1, density=0.6, max_states=MOST)
    one.weights[:] = np.round(8 * one.weights) / 8
    x = np.stack([ranging(rng, (24, 4), span, pattern) for pattern in PATTERNS], axis=1)
    alone = "shared" in way or way == "forward_backward"
    check(way, one, x, np.array(lengths), ROOF[0 if alone else 1])


def _roofs() -> tuple[dict[str, int], dict[str, int]]:
    """The largest random automaton there is, alone and four times: sizes for all others.

    Its end is left by edges; where that of another is not, a node has up to 16 edges there.
    """
    arcs = [(s, t, label, 0) for s in range(MOST) for t in range(MOST) for label in range(4)] * 2
    one = oracles.EdgeList(
        np.array(arcs, np.uint32).T.copy(),
        np.zeros(len(arcs), np.float32),
        np.array([[0], [MOST - 1]], np.uint32),
    )
    roofs = Automata.from_edges(*one), Automata.from_edges(*repeated(one, len(PATTERNS)))
    return tuple(roof.sizes | {"last_arcs": 16} for roof in roofs)


ROOF = _roofs()


# `ctc_loss`


@jax.jit
def _ctc(logits, logit_paddings, labels, label_paddings):
    def total(logits):
        loss = ctc_loss(logits, logit_paddings, labels, label_paddings)
        return loss.sum(), loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return loss, gradient


def check_ctc(logits, lengths, labels, sizes, rtol=1e-6, atol=1e-5) -> None:
    """Loss and gradient against float64; `logits` [B, T, K] float32.

    The loss's error counts relative to the largest logit, where the loss itself is smaller.
    """
    size = np.abs(logits).max(initial=1.0)
    frames, width = np.arange(logits.shape[1]), np.arange(labels.shape[1])
    loss, gradient = _ctc(
        logits,
        (frames >= lengths[:, None]).astype(np.float32),
        labels,
        (width >= sizes[:, None]).astype(np.float32),
    )
    automata = oracles.ctc_like(labels, sizes)
    for b, length in enumerate(lengths):
        real = logits[b, :length].astype(float)
        top = real.max(axis=1, keepdims=True)
        real = real - top - np.log(np.exp(real - top).sum(axis=1, keepdims=True))
        answer = oracles.by_dynamic_programming(automata, b, real)
        assert answer.loss < np.inf
        np.testing.assert_allclose(loss[b], answer.loss, rtol=rtol, atol=rtol * size)
        wanted = np.exp(real) - answer.posteriors
        np.testing.assert_allclose(gradient[b, :length], wanted, atol=atol)
        assert not np.asarray(gradient[b, length:]).any()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_ctc_of_long_sequences(scale: float) -> None:
    rng = np.random.default_rng(4)
    logits = (scale * rng.normal(size=(3, LENGTHS.max(), 20))).astype(np.float32)
    labels = rng.integers(1, 20, (3, 60))
    check_ctc(logits, LENGTHS, labels, np.array([60, 41, 57]))


def test_ctc_where_blanks_have_all_the_mass_and_no_room() -> None:
    """As many labels as frames, or nearly: the paths are made of labels far below the blank."""
    rng = np.random.default_rng(5)
    size, spare = 200, np.array([0, 0, 3, 3])
    labels = np.tile(1 + np.arange(size) % 3, (4, 1))  # no two in a row are equal
    below = np.array([-60.0, -1000.0, -60.0, -1000.0])[:, None, None]
    logits = (below + rng.normal(size=(4, size + 3, 4))).astype(np.float32)
    logits[:, :, 0] = 0.0
    check_ctc(logits, size + spare, labels, np.full(4, size))


@given(
    seed=st.integers(0, 10**6),
    lengths=st.tuples(*[st.integers(5, 24)] * len(PATTERNS)),
    sizes=st.tuples(*[st.integers(0, 5)] * len(PATTERNS)),
    span=SPANS,
)
@settings(max_examples=40, deadline=None)
def test_ctc_of_any_dynamic_range(seed: int, lengths, sizes, span: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.cumsum(rng.integers(1, 3, (4, 5)), axis=1) % 3 + 1  # no two in a row are equal
    logits = np.stack([ranging(rng, (24, 4), span, pattern) for pattern in PATTERNS])
    check_ctc(logits, np.array(lengths), labels, np.array(sizes))
