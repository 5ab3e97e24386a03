"""One automaton for a whole batch: the same answers as a batch of copies, and as the oracles.

Every test here runs over both forms of the same graph: `copies` takes the kernels for batches,
`shared` those for one automaton.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import one_shape
import oracles
import pytest
from jax.test_util import check_grads

from jax_sprint import Automata, forward_backward, full_sum_loss, viterbi

FORMS = ["copies", "shared"]
INF = np.float32(np.inf)


def packed(graph: oracles.EdgeList, form: str, batch: int, **options) -> Automata:
    if form == "shared":
        return Automata.from_edges(*graph, shared=True, **options)
    one = Automata.from_edges(*graph, **options)
    return Automata.concat([one] * batch, pad_to=options.get("pad_to"))


def hub(rng: np.random.Generator, count: int = 90, labels: int = 7) -> oracles.EdgeList:
    """A state that is entered from all others, and by several labels, and one that leads to all."""
    edges = {(0, 1 + s, s % labels) for s in range(count)}
    edges |= {(1 + s, count + 1, (s // 2) % labels) for s in range(count)}
    edges |= {
        (count + 1, 1 + int(s), int(s) % 3) for s in rng.choice(count, count // 2, replace=False)
    }
    edges |= {(1 + int(s), 1 + int(s), 3) for s in rng.choice(count, count // 3, replace=False)}
    edges |= {(count + 1, count + 2, v) for v in range(labels)} | {(5, count + 2, 1)}
    table = np.array(sorted(edges), np.uint32)
    table = np.column_stack([table, np.zeros(len(table), np.uint32)])[rng.permutation(len(table))]
    return oracles.EdgeList(
        np.ascontiguousarray(table.T),
        rng.exponential(size=len(table)).astype(np.float32),
        np.array([[0], [count + 2]], np.uint32),
    )


def labelled(rng: np.random.Generator) -> oracles.EdgeList:
    """Each edge with a label of its own: many nodes of few states."""
    edges = rng.integers(0, 6, (60, 2))
    table = np.column_stack([edges, rng.integers(0, 7, 60), np.zeros(60, int)]).astype(np.uint32)
    table[0, :2], table[1, :2] = (0, 3), (3, 5)
    return oracles.EdgeList(
        np.ascontiguousarray(table.T),
        rng.exponential(size=60).astype(np.float32),
        np.array([[0], [5]], np.uint32),
    )


GRAPHS = {
    "hmm": lambda rng: oracles.hmm_like(rng, 1, 4, 7),
    "hub": hub,
    "labelled": labelled,
}


@jax.jit
def value_and_gradients(x, lengths, automata):
    def total(x, weights):
        loss, valid = full_sum_loss(x, lengths, automata.with_weights(weights), return_valid=True)
        return jnp.sum(jnp.where(valid, loss, 0.0)), (loss, valid)

    run = jax.value_and_grad(total, (0, 1), has_aux=True)
    (_, (loss, valid)), gradients = run(x, automata.weights)
    return loss, valid, *gradients


def uses_of(gradient, graph: oracles.EdgeList) -> np.ndarray:
    """[E], the gradient of the weights of the one graph; those of its copies add up."""
    gradient = np.asarray(gradient)
    total = gradient if gradient.ndim == 1 else gradient.sum(axis=0)
    return total[: len(graph.weights)]


# Sizes for copies of `hub` and `labelled`, which then share their programs.
ROOF = {"edges": 384, "states": 96, "nodes": 192, "slots": 8, "band": 0, "last_arcs": 8}
ROOF |= {"in_arcs": 32, "out_arcs": 96}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", GRAPHS)
def test_loss_posteriors_edges_and_best_paths(kind: str, form: str) -> None:
    rng = np.random.default_rng(0)
    graph = GRAPHS[kind](rng)
    lengths = np.array([40, 0, 33, 21, 1])
    sizes = ROOF if form == "copies" and kind != "hmm" else None
    automata = packed(graph, form, 5, num_labels=7, pad_to=sizes)
    assert (automata.sliced is not None) == (form == "shared")
    x = np.asarray(jax.nn.log_softmax(4 * rng.normal(size=(40, 5, 7)).astype(np.float32)))
    loss, valid, gradient, uses = value_and_gradients(x, lengths, automata)
    once, posteriors = forward_backward(x, lengths, automata)
    alignment, score = viterbi(x, lengths, automata)
    wanted = np.zeros(len(graph.weights))
    for b, length in enumerate(lengths):
        scores = x[:length, b].astype(float)
        answer = oracles.by_dynamic_programming(graph, 0, scores)
        best = oracles.best_score(graph, 0, scores)
        assert bool(valid[b]) == (answer.loss < np.inf) == (best > -np.inf)
        np.testing.assert_allclose([loss[b], once[b]], answer.loss, rtol=1e-6)
        np.testing.assert_allclose(score[b], best, rtol=1e-6)
        np.testing.assert_allclose(-gradient[:length, b], answer.posteriors, atol=1e-5)
        np.testing.assert_allclose(posteriors[:length, b], answer.posteriors, atol=1e-5)
        assert not np.asarray(gradient[length:, b]).any()
        assert not np.asarray(posteriors[length:, b]).any()
        wanted += answer.edge_uses
        labels = np.asarray(alignment)[:, b]
        assert (labels[length:] == -1).all()
        if valid[b]:
            found = oracles.alignment_score(graph, 0, scores, labels[:length])
            assert found == pytest.approx(best, rel=1e-9)
    np.testing.assert_allclose(uses_of(uses, graph), wanted, atol=2e-4)


SIZES = {
    "edges": 64, "states": 8, "starts": 1, "ends": 1, "nodes": 24, "slots": 8, "band": 0,
    "in_arcs": 48, "out_arcs": 48, "last_arcs": 8,
}  # fmt: skip


@jax.jit
def all_gradients(x, lengths, automata, arguments):
    def total(x, weights, scales, prior):
        loss, valid = full_sum_loss(
            x,
            lengths,
            automata.with_weights(weights),
            am_scale=scales[0],
            tdp_scale=scales[1],
            log_prior=prior,
            prior_scale=scales[2],
            return_valid=True,
        )
        return jnp.sum(jnp.where(valid, loss, 0.0)), (loss, valid)

    return jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)(x, automata.weights, *arguments)


def small(graph: oracles.EdgeList, form: str, batch: int) -> Automata:
    """Packed so that all small graphs have the same shapes and compile once."""
    if form == "shared":
        return one_shape.shared(graph, SIZES)
    return Automata.concat([Automata.from_edges(*graph, pad_to=SIZES)] * batch, pad_to=SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_against_all_paths(form: str) -> None:
    rng = np.random.default_rng(1)
    batch, frames, labels = 4, 5, 4
    for _ in range(40):
        graph = oracles.random_automata(rng, 1, max_states=4, density=rng.choice([0.3, 0.6, 0.9]))
        spread = float(rng.choice([1.0, 30.0, 300.0]))
        x = (spread * rng.normal(size=(frames, batch, labels))).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = -np.inf
        lengths = rng.integers(0, frames + 1, batch)
        scales = rng.uniform(0.1, 2.0, 3).astype(np.float32)
        prior = rng.normal(size=labels).astype(np.float32)
        automata = small(graph, form, batch)
        (_, (loss, valid)), gradients = all_gradients(x, lengths, automata, (scales, prior))
        am, tdp, ps = scales.astype(float)
        tolerance = 2e-5 * max(1.0, spread)
        wanted = [np.zeros(x.shape), np.zeros(len(graph.weights)), np.zeros(3), np.zeros(labels)]
        for b in range(batch):
            real = x[: lengths[b], b]
            scores = oracles.frame_scores(real, am_scale=am, log_prior=prior, prior_scale=ps)
            answer = oracles.by_enumeration(graph, 0, scores, tdp)
            assert bool(valid[b]) == (answer.loss < np.inf)
            np.testing.assert_allclose(loss[b], answer.loss, rtol=2e-6, atol=2e-5)
            seen = np.where(answer.posteriors > 0, real, 0.0)
            wanted[0][: lengths[b], b] = -am * answer.posteriors
            wanted[1] += tdp * answer.edge_uses
            wanted[2] += [
                -(answer.posteriors * seen).sum(),
                (answer.edge_uses * graph.weights).sum(),
                (answer.posteriors * prior).sum(),
            ]
            wanted[3] += ps * answer.posteriors.sum(axis=0)
        uses = uses_of(gradients[1], graph)
        np.testing.assert_allclose(gradients[0], wanted[0], atol=tolerance)
        np.testing.assert_allclose(uses, wanted[1], atol=4 * tolerance)
        np.testing.assert_allclose(gradients[2], wanted[2], rtol=1e-4, atol=20 * tolerance)
        np.testing.assert_allclose(gradients[3], wanted[3], rtol=1e-4, atol=20 * tolerance)


def several_marks() -> dict[str, np.ndarray]:
    """Three start states and three end states, at a cost; state 1 is both."""
    edges = [(0, 1, 0), (0, 2, 1), (1, 2, 2), (2, 1, 0), (2, 2, 1), (2, 3, 2), (1, 3, 1), (3, 4, 0)]
    return {
        "edges": np.array([(*edge, 0) for edge in edges], np.uint32).T.copy(),
        "weights": np.linspace(0.1, 0.8, len(edges)).astype(np.float32),
        "start_states": np.array([[0, 1, 2], [0, 0, 0]], np.uint32),
        "start_weights": np.array([0.5, 1.5, 0.25], np.float32),
        "end_states": np.array([[1, 3, 4], [0, 0, 0]], np.uint32),
        "end_weights": np.array([0.75, 0.0, 2.0], np.float32),
    }


@pytest.mark.parametrize("form", FORMS)
def test_several_weighted_start_and_end_states(form: str) -> None:
    rng = np.random.default_rng(2)
    arguments = several_marks()
    x, lengths = rng.normal(size=(5, 4, 3)).astype(np.float32), np.array([5, 0, 1, 3])
    if form == "shared":
        automata = Automata.from_edges(**arguments, shared=True)
    else:
        automata = Automata.concat([Automata.from_edges(**arguments)] * 4)

    @jax.jit
    def run(x, starts, ends):
        def total(starts, ends):
            changed = dataclasses.replace(automata, start_weights=starts, end_weights=ends)
            loss = full_sum_loss(x, lengths, changed)
            return loss.sum(), loss

        return jax.value_and_grad(total, (0, 1), has_aux=True)(starts, ends)

    (_, loss), (starts, ends) = run(x, automata.start_weights, automata.end_weights)
    alignment, score = viterbi(x, lengths, automata)
    begins, finals = np.zeros(3), np.zeros(3)
    for b, length in enumerate(lengths):
        paths = []
        for a, start in enumerate(arguments["start_states"][0]):
            for z, end in enumerate(arguments["end_states"][0]):
                triple = oracles.EdgeList(
                    arguments["edges"],
                    arguments["weights"],
                    np.array([[start], [end]], np.uint32),
                )
                cost = float(arguments["start_weights"][a] + arguments["end_weights"][z])
                for labels, _, weight in oracles.enumerate_paths(triple, 0, int(length)):
                    emitted = x[np.arange(length), b, list(labels)].sum() if length else 0.0
                    paths.append((emitted - weight - cost, a, z, labels))
        scores = np.array([path[0] for path in paths])
        whole = oracles.log_sum(scores)
        np.testing.assert_allclose(loss[b], -whole, rtol=1e-6)
        best = paths[int(scores.argmax())]
        np.testing.assert_allclose(score[b], best[0], rtol=1e-6)
        assert np.asarray(alignment)[:length, b].tolist() == list(best[3])
        for value, a, z, _ in paths:
            begins[a] += np.exp(value - whole)
            finals[z] += np.exp(value - whole)
    if form == "copies":
        starts, ends = starts.sum(axis=0), ends.sum(axis=0)
    np.testing.assert_allclose(starts, begins, atol=1e-5)
    np.testing.assert_allclose(ends, finals, atol=1e-5)


@jax.jit
def pulled(x, lengths, automata):
    """Loss, valid and gradient, with a cotangent of inf for what is invalid."""
    loss, pull, valid = jax.vjp(
        lambda x: full_sum_loss(x, lengths, automata, return_valid=True), x, has_aux=True
    )
    return loss, valid, pull(jnp.where(valid, 1.0, jnp.inf))[0]


@pytest.mark.optimized
@pytest.mark.parametrize("form", FORMS)
def test_a_bad_sequence_leaves_its_neighbours_alone(form: str) -> None:
    rng = np.random.default_rng(3)
    clean, whole = rng.normal(size=(6, 3, 3)).astype(np.float32), np.array([4, 4, 4])
    automata = packed(oracles.chain(), form, 3, num_labels=3)
    wanted, _, pull = pulled(clean, whole, automata)
    cases = {
        "one frame is too short": (INF, lambda x, n: n.__setitem__(1, 1)),
        "no frame": (INF, lambda x, n: n.__setitem__(1, 0)),
        "-inf forbids all": (INF, lambda x, n: x.__setitem__((0, 1, 0), -np.inf)),
        "-inf everywhere": (INF, lambda x, n: x.__setitem__((slice(None), 1), -np.inf)),
        "NaN": (np.nan, lambda x, n: x.__setitem__((2, 1, 1), np.nan)),
        "NaN where no edge emits": (np.nan, lambda x, n: x.__setitem__((0, 1, 2), np.nan)),
        "+inf": (np.nan, lambda x, n: x.__setitem__((2, 1, 1), np.inf)),
        "too long": (np.nan, lambda x, n: n.__setitem__(1, 7)),
        "negative": (np.nan, lambda x, n: n.__setitem__(1, -1)),
    }
    for case, (loss, change) in cases.items():
        x, lengths = clean.copy(), whole.copy()
        change(x, lengths)
        got, valid, gradient = pulled(x, lengths, automata)
        np.testing.assert_array_equal(got[1], loss, err_msg=case)
        assert valid.tolist() == [True, False, True], case
        assert not np.asarray(gradient[:, 1]).any(), case
        for b in (0, 2):
            assert got[b] == wanted[b], case
            np.testing.assert_array_equal(gradient[:, b], pull[:, b], err_msg=case)
    for garbage in (np.nan, np.inf, -np.inf, 1e38):
        x = clean.copy()
        x[4:] = garbage
        for one, other in zip(pulled(x, whole, automata), (wanted, None, pull), strict=True):
            if other is not None:
                np.testing.assert_array_equal(one, other)


@pytest.mark.optimized
def test_bad_values_that_all_sequences_share() -> None:
    x, lengths = np.zeros((4, 2, 3), np.float32), np.array([4, 3])
    automata = packed(oracles.chain(), "shared", 2, num_labels=3)
    for weight, loss in ((np.nan, np.nan), (-np.inf, np.nan), (np.inf, np.inf)):
        weights = np.zeros(automata.weights.shape, np.float32)
        weights[1 if np.isfinite(weight) else 2] = weight
        got, valid, gradient = pulled(x, lengths, automata.with_weights(weights))
        np.testing.assert_array_equal(got, [loss, loss])
        assert not valid.any()
        assert not np.asarray(gradient).any()
    graph = oracles.chain()
    graph.edges[2, 1] = 3
    unchecked = packed(graph, "shared", 2)
    assert np.isnan(pulled(x, lengths, unchecked)[0]).all()
    with pytest.raises(ValueError, match="emit label 3, but .* has only 3 labels"):
        full_sum_loss(x, lengths, unchecked)


@pytest.mark.optimized
@pytest.mark.parametrize("form", FORMS)
def test_empty_batches_frames_and_automata(form: str) -> None:
    automata = packed(oracles.chain(), form, 2, num_labels=3)
    loss, posteriors = forward_backward(np.zeros((0, 2, 3), np.float32), np.zeros(2, int), automata)
    assert loss.tolist() == [np.inf, np.inf]
    assert posteriors.shape == (0, 2, 3)
    none = oracles.EdgeList(
        np.zeros((4, 0), np.uint32), np.zeros(0, np.float32), np.array([[0], [0]], np.uint32)
    )
    automata = packed(none, form, 2)
    x, lengths = np.zeros((3, 2, 3), np.float32), np.array([0, 2])
    loss, valid, gradient = pulled(x, lengths, automata)
    assert loss.tolist() == [0.0, np.inf]
    assert valid.tolist() == [True, False]
    assert not np.asarray(gradient).any()
    assert viterbi(x, lengths, automata)[1].tolist() == [0.0, -np.inf]


@pytest.mark.optimized
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("score", [-60.0, -1000.0])
def test_the_only_path_may_be_far_below_the_others(form: str, score: float) -> None:
    """As many frames as states: one path, whose frames score far below labels of dead ends."""
    rng = np.random.default_rng(4)
    count = 100
    states = np.arange(count)
    edges = np.stack([states, states + 1, 1 + states % 3, 0 * states])
    loops = np.stack([states[1:], states[1:], 0 * states[1:], 0 * states[1:]])
    edges = np.concatenate([edges, loops], axis=1).astype(np.uint32)
    graph = oracles.EdgeList(
        edges, np.zeros(edges.shape[1], np.float32), np.array([[0], [count]], np.uint32)
    )
    x = (score + rng.normal(size=(count + 7, 2, 4))).astype(np.float32)
    x[:, :, 0] = 0.0
    lengths = np.array([count, count + 7])
    loss, posteriors = forward_backward(x, lengths, packed(graph, form, 2))
    for b in range(2):
        answer = oracles.by_dynamic_programming(graph, 0, x[: lengths[b], b].astype(float))
        np.testing.assert_allclose(loss[b], answer.loss, rtol=1e-6)
        np.testing.assert_allclose(posteriors[: lengths[b], b], answer.posteriors, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_ties_go_to_the_first_edge(form: str) -> None:
    edges = np.array([[0, 0, 1, 2], [1, 2, 3, 3], [0, 1, 2, 2], [0, 0, 0, 0]], np.uint32)
    ends = np.array([[0], [3]], np.uint32)
    x = np.zeros((2, 2, 3), np.float32)
    for order, first in (([0, 1, 2, 3], 0), ([0, 1, 3, 2], 1), ([1, 0, 2, 3], 0)):
        graph = oracles.EdgeList(edges[:, order].copy(), np.zeros(4, np.float32), ends)
        alignment, _ = viterbi(x, np.array([2, 2]), packed(graph, form, 2))
        assert np.asarray(alignment)[:, 0].tolist() == [first, 2]


@pytest.mark.slow
def test_derivatives_in_float64() -> None:
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        automata = Automata.from_edges(**several_marks(), shared=True)
        x, prior = rng.normal(size=(4, 2, 3)), rng.normal(size=3)

        @jax.jit
        def loss(x, weights, marks, prior, scales):
            changed = dataclasses.replace(
                automata.with_weights(weights), start_weights=marks[0], end_weights=marks[1]
            )
            return full_sum_loss(
                x,
                np.array([4, 3]),
                changed,
                am_scale=scales[0],
                tdp_scale=scales[1],
                log_prior=prior,
                prior_scale=scales[2],
            )

        marks = rng.normal(size=(2, 3))
        weights = automata.weights.astype(np.float64)
        arguments = (x, weights, marks, prior, np.array([0.7, 1.3, 0.4]))
        assert loss(*arguments).dtype == jnp.float64
        check_grads(loss, arguments, order=2, modes=["rev"], rtol=1e-5, atol=1e-5)
        check_grads(loss, arguments, order=1, modes=["fwd"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_hessian_vector_products_agree_with_copies() -> None:
    rng = np.random.default_rng(6)
    graph, lengths = hub(rng, 6), np.array([6, 4])
    x, direction = rng.normal(size=(2, 6, 2, 7)).astype(np.float32)

    def product(form):
        automata = packed(graph, form, 2)

        def loss(x):
            return full_sum_loss(x, lengths, automata).sum()

        over = jax.jit(lambda x, d: jax.jvp(jax.grad(loss), (x,), (d,))[1])(x, direction)
        back = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), direction)))(x)
        return over, back

    wanted = product("copies")[0]
    for got in product("shared"):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_batch_major_and_half_precision() -> None:
    rng = np.random.default_rng(7)
    graph, lengths = GRAPHS["hmm"](rng), np.array([60, 50])
    automata = packed(graph, "shared", 2)
    x = jnp.asarray(rng.normal(size=(60, 2, 7)), jnp.bfloat16)

    def run(x, time_major=True):
        def total(x):
            return full_sum_loss(x, lengths, automata, time_major=time_major).sum()

        return jax.jit(jax.value_and_grad(total))(x)

    loss, gradient = run(x)
    wanted, full = run(x.astype(jnp.float32))
    assert (loss.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    assert loss == wanted
    np.testing.assert_allclose(gradient.astype(jnp.float32), full, atol=4e-3)
    major, major_gradient = run(jnp.swapaxes(x, 0, 1).astype(jnp.float32), time_major=False)
    np.testing.assert_allclose(major, wanted, rtol=1e-6)
    np.testing.assert_allclose(jnp.swapaxes(major_gradient, 0, 1), full, atol=1e-6)


@pytest.mark.optimized
def test_checkpointing_changes_memory_alone() -> None:
    rng = np.random.default_rng(10)
    graph, lengths = hub(rng, 12), np.array([23, 0, 11])
    automata = packed(graph, "shared", 3)
    x = rng.normal(size=(23, 3, 7)).astype(np.float32)

    def compiled(checkpoint):
        def total(x, weights):
            loss = full_sum_loss(
                x,
                lengths,
                automata.with_weights(weights),
                infeasible="zero",
                checkpoint=checkpoint,
            )
            return loss.sum(), loss

        run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        return run.lower(x, automata.weights).compile()

    whole, parts = compiled(False), compiled(True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6),
        parts(x, automata.weights),
        whole(x, automata.weights),
    )
    states = automata.sliced.exit_state.shape[0]
    saved = sum(
        run.memory_analysis().temp_size_in_bytes * sign for run, sign in ((whole, 1), (parts, -1))
    )
    assert saved > (23 - 2 * 6) * states * 3 * 8 / 2
