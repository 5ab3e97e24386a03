"""Several weighted starts and ends, occupancies, entropy and samples, against all paths."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jax_sprint import Automata, forward_backward, full_sum_loss, viterbi
from jax_sprint.kernels import sample_paths
from jax_sprint.losses import path_entropy

LABELS, FRAMES = 3, 4
LENGTHS = np.array([4, 3, 0, 1])


class Path(NamedTuple):
    labels: tuple[int, ...]
    edges: tuple[int, ...]
    states: tuple[int, ...]
    start: int
    end: int
    score: float


class Case(NamedTuple):
    """A batch, and what of each sequence `from_edges` got."""

    automata: Automata
    edges: list[np.ndarray]  # [4, E_b]: from, to, label (numbered across the batch), position
    weights: np.ndarray
    starts: list[list[tuple[int, float]]]
    ends: list[list[tuple[int, float]]]


# Sizes for all cases of a form, so that they share their programs.
SIZES = {
    "band": {"nodes": 12, "band": 8, "last_arcs": 4},
    "tables": {"nodes": 12, "band": 0, "in_arcs": 8, "out_arcs": 8, "last_arcs": 4},
}
FORWARD = np.array([(s, t) for s in range(5) for t in range(s, 5)])


def make(seed: int, form: str, dead_ends: bool) -> Case:
    """Random graphs with one to three starts and ends, of which some are left by nothing.

    Those of the form "band" lead forward, and all edges into a state emit its label.
    """
    rng = np.random.default_rng(seed)
    columns, starts, ends = [], [], []
    for b in range(len(LENGTHS)):
        low = 6 * b
        sources = rng.integers(0, 4 if dead_ends else 5, 10)
        targets = rng.integers(0, 5, 10)
        table = np.stack([low + sources, low + targets, rng.integers(0, LABELS, 10)])
        if form == "band":
            some = FORWARD[FORWARD[:, 0] < 4] if dead_ends else FORWARD
            some = rng.choice(some, 10, replace=False).T
            table = np.stack([*(low + some), rng.integers(0, LABELS, 5)[some[1]]])
        columns.append(np.concatenate([table, np.full((1, 10), b)]))
        chosen = rng.choice(4, rng.integers(1, 4), replace=False)
        starts.append([(low + int(s), float(rng.normal())) for s in chosen])
        # State 4 is a dead end, where these are wanted; state 0 often is start and end.
        chosen = {4, *(int(s) for s in rng.choice(4, rng.integers(0, 3), replace=False))}
        ends.append([(low + s, float(rng.normal())) for s in sorted(chosen)])
    edges = np.concatenate(columns, axis=1).astype(np.uint32)
    weights = rng.normal(size=edges.shape[1]).astype(np.float32)

    def rows(marks: list[list[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
        flat = [(state, b, cost) for b, some in enumerate(marks) for state, cost in some]
        table = np.array([mark[:2] for mark in flat], np.uint32).T
        return table, np.array([mark[2] for mark in flat], np.float32)

    start_states, start_weights = rows(starts)
    end_states, end_weights = rows(ends)
    automata = Automata.from_edges(
        edges,
        weights,
        start_states=start_states,
        start_weights=start_weights,
        end_states=end_states,
        end_weights=end_weights,
        num_labels=LABELS,
        pad_to=SIZES[form],
    )
    assert (automata.in_node is None) == (form == "band")
    mine = [
        np.concatenate([edges[:3, edges[3] == b], np.flatnonzero(edges[3] == b)[None]]).astype(int)
        for b in range(len(LENGTHS))
    ]
    return Case(automata, mine, weights, starts, ends)


def all_paths(case: Case, b: int, scores: np.ndarray, tdp_scale: float = 1.0) -> list[Path]:
    paths = [
        Path((), (), (), s, -1, -tdp_scale * np.float32(cost))
        for s, (_, cost) in enumerate(case.starts[b])
    ]
    table = case.edges[b]
    for frame in scores:
        grown = []
        for path in paths:
            at = path.states[-1] if path.states else case.starts[b][path.start][0]
            for source, target, label, edge in table.T:
                if source == at:
                    score = path.score + frame[label] - tdp_scale * case.weights[edge]
                    grown.append(
                        path._replace(
                            labels=(*path.labels, int(label)),
                            edges=(*path.edges, int(edge)),
                            states=(*path.states, int(target)),
                            score=score,
                        )
                    )
        paths = grown
    done = []
    for path in paths:
        at = path.states[-1] if path.states else case.starts[b][path.start][0]
        for e, (state, cost) in enumerate(case.ends[b]):
            if state == at:
                done.append(path._replace(end=e, score=path.score - tdp_scale * np.float32(cost)))
    return done


CASES = [(seed, form, dead) for seed in range(2) for form in ("band", "tables") for dead in (0, 1)]
X = np.random.default_rng(7).normal(size=(FRAMES, len(LENGTHS), LABELS)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "form", "dead"), CASES)
def test_starts_ends_and_occupancies(seed: int, form: str, dead: int) -> None:
    case = make(seed, form, bool(dead))
    automata = case.automata
    loss, posteriors, valid, found = forward_backward(
        X, LENGTHS, automata, tdp_scale=0.7, return_valid=True, return_occupancies=True
    )
    entropy = path_entropy(X, LENGTHS, automata, tdp_scale=0.7)
    alignment, best = viterbi(X, LENGTHS, automata, tdp_scale=0.7)
    ids, position = automata.state_ids, automata.edge_position
    for b, length in enumerate(LENGTHS):
        paths = all_paths(case, b, X[:length, b].astype(float), 0.7)
        if not paths:
            assert loss[b] == np.inf
            assert not valid[b]
            assert best[b] == -np.inf
            assert np.isnan(entropy[b])
            assert not any(
                np.asarray(leaf[:, b] if i == 0 else leaf[b]).any() for i, leaf in enumerate(found)
            )
            continue
        scores = np.array([path.score for path in paths])
        whole = np.logaddexp.reduce(scores)
        share = np.exp(scores - whole)
        np.testing.assert_allclose(loss[b], -whole, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(entropy[b], whole - share @ scores, rtol=1e-5, atol=5e-6)
        np.testing.assert_allclose(best[b], scores.max(), rtol=1e-6, atol=1e-6)
        got = alignment[:length, b].tolist()
        np.testing.assert_allclose(
            max(p.score for p in paths if list(p.labels) == got), scores.max(), atol=1e-6
        )
        wanted = [np.zeros((FRAMES, LABELS)), np.zeros((FRAMES, ids.shape[1]))]
        edges = np.zeros(automata.weights.shape[1])
        starts = np.zeros(automata.start_weights.shape[1])
        ends = np.zeros(automata.end_weights.shape[1])
        for path, p in zip(paths, share, strict=True):
            for t, (label, state, edge) in enumerate(
                zip(path.labels, path.states, path.edges, strict=True)
            ):
                wanted[0][t, label] += p
                wanted[1][t, np.flatnonzero(ids[b, : automata.num_states[b]] == state)[0]] += p
                edges[np.flatnonzero(position[b] == edge)[0]] += p
            starts[path.start] += p
            ends[path.end] += p
        for ours, exact in (
            (posteriors[:, b], wanted[0]),
            (found.states[:, b], wanted[1]),
            (found.edges[b], edges),
            (found.starts[b], starts),
            (found.ends[b], ends),
        ):
            np.testing.assert_allclose(ours, exact, atol=3e-6)


def test_samples_come_as_often_as_they_are_probable() -> None:
    case = make(1, "tables", True)
    count = 4000
    draw = jax.jit(
        lambda key: sample_paths(key, X, LENGTHS, case.automata, num_samples=count, tdp_scale=0.7)
    )
    samples = np.asarray(draw(jax.random.key(0)))
    assert samples.shape == (count, FRAMES, len(LENGTHS))
    assert samples.dtype == np.int32
    np.testing.assert_array_equal(samples, draw(jax.random.key(0)))
    assert (samples != draw(jax.random.key(1))).any()
    seen_any = False
    for b, length in enumerate(LENGTHS):
        assert (samples[:, length:, b] == -1).all()
        paths = all_paths(case, b, X[:length, b].astype(float), 0.7)
        if not paths or not length:
            assert (samples[:, :, b] == -1).all()
            continue
        seen_any = True
        scores = np.array([path.score for path in paths])
        share = np.exp(scores - np.logaddexp.reduce(scores))
        probable: dict[tuple[int, ...], float] = {}
        for path, p in zip(paths, share, strict=True):
            probable[path.labels] = probable.get(path.labels, 0.0) + p
        drawn: dict[tuple[int, ...], int] = {}
        for row in samples[:, :length, b].tolist():
            drawn[tuple(row)] = drawn.get(tuple(row), 0) + 1
        assert set(drawn) <= set(probable)
        for labels, p in probable.items():
            deviation = np.sqrt(count * p * (1 - p)) + 1
            assert abs(drawn.get(labels, 0) - count * p) < 4.5 * deviation
    assert seen_any
    major = sample_paths(
        jax.random.key(0),
        np.swapaxes(X, 0, 1),
        LENGTHS,
        case.automata,
        num_samples=2,
        time_major=False,
    )
    assert major.shape == (2, len(LENGTHS), FRAMES)
    with pytest.raises(ValueError, match=r"num_samples must be .* got 0"):
        sample_paths(jax.random.key(0), X, LENGTHS, case.automata, num_samples=0)


@jax.jit
def learnable(automata, x, weights, starts, ends, scale):
    changed = dataclasses.replace(automata, weights=weights, start_weights=starts, end_weights=ends)
    return full_sum_loss(x, LENGTHS, changed, tdp_scale=scale, infeasible="zero").sum()


@pytest.mark.slow
@pytest.mark.parametrize("dead", [False, True])
def test_starts_and_ends_can_be_learnt(dead: bool) -> None:
    automata = make(2, "tables", dead).automata
    with jax.enable_x64(True):
        leaves = (automata.weights, automata.start_weights, automata.end_weights)
        arguments = (X.astype(float), *(leaf.astype(float) for leaf in leaves), np.asarray(0.7))
        check_grads(
            partial(learnable, automata),
            arguments,
            order=1,
            modes=["rev", "fwd"],
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.slow
def test_the_entropy_has_a_gradient() -> None:
    case = make(0, "tables", True)
    with jax.enable_x64(True):

        def entropy(x):
            value = path_entropy(x, LENGTHS, case.automata)
            return jnp.where(jnp.isnan(value), 0.0, value).sum()

        check_grads(jax.jit(entropy), (X.astype(float),), order=1, modes=["rev"], rtol=1e-5)


def test_several_starts_and_ends_survive_packing() -> None:
    case = make(0, "band", True)
    arguments = case.automata.to_arguments()
    again = Automata.from_edges(**arguments, num_labels=LABELS)
    for name, value in again.to_arguments().items():
        np.testing.assert_array_equal(value, arguments[name])
    np.testing.assert_array_equal(arguments["weights"], case.weights)
    joined = Automata.concat([case.automata[:2], case.automata[2:]])
    np.testing.assert_allclose(
        full_sum_loss(X, LENGTHS, joined), full_sum_loss(X, LENGTHS, case.automata), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"sequence \d has several \w+ states.*to_arguments"):
        case.automata.to_edges()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_states": None}, "either start_end_states"),
        ({"end_states": np.zeros((2, 0), np.uint32), "end_weights": None}, "has no end state"),
        ({"start_states": np.zeros((2, 1), np.int64)}, "start_states must be uint32"),
        ({"start_weights": np.zeros(1, np.float32)}, r"start_weights must be float32 of shape"),
        ({"end_states": None}, "either start_end_states"),
    ],
)
def test_bad_starts_and_ends(change: dict, message: str) -> None:
    arguments = make(0, "band", True).automata.to_arguments() | change
    with pytest.raises(ValueError, match=message):
        Automata.from_edges(**arguments)


def test_a_start_given_twice_or_at_a_bad_cost() -> None:
    arguments = make(0, "band", True).automata.to_arguments()
    twice = np.concatenate([arguments["start_states"]] * 2, axis=1)
    costs = np.concatenate([arguments["start_weights"]] * 2)
    with pytest.raises(ValueError, match="names a state twice"):
        Automata.from_edges(**arguments | {"start_states": twice, "start_weights": costs})
    costs = np.full_like(arguments["end_weights"], np.nan)
    with pytest.raises(ValueError, match=r"end_weights\[0\] is nan"):
        Automata.from_edges(**arguments | {"end_weights": costs})


def test_infeasible() -> None:
    edges = np.array([[0, 2], [1, 3], [0, 1], [0, 1]], np.uint32)
    ends = np.array([[0, 2], [1, 3]], np.uint32)
    automata = Automata.from_edges(edges, np.zeros(2, np.float32), ends)
    x, lengths = X[:2, :2], np.array([1, 2])

    def loss(x, infeasible):
        return full_sum_loss(x, lengths, automata, infeasible=infeasible, return_valid=True)

    for kind, wanted in (("inf", np.inf), ("zero", 0.0)):
        value, valid = loss(x, kind)
        assert value[1] == wanted
        assert valid.tolist() == [True, False]
        gradient = jax.grad(lambda x, kind=kind: loss(x, kind)[0][0])(x)
        assert not gradient[:, 1].any()
        assert gradient[0, 0, 0] == -1
    assert np.isnan(loss(np.where(np.arange(2)[:, None] == 1, np.nan, x), "zero")[0][1])
    with pytest.raises(ValueError, match=r"sequences \[1\] \(of \[2\] frames\) have no path"):
        loss(x, "error")
    with pytest.raises(ValueError, match="the loss is traced"):
        jax.jit(lambda x: loss(x, "error"))(x)
    with pytest.raises(ValueError, match="infeasible must be .* got 'ignore'"):
        loss(x, "ignore")
    assert full_sum_loss(x[:, :1], lengths[:1], automata[:1], infeasible="error").shape == (1,)
