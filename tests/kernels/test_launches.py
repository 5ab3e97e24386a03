"""The loops as they run where launching a kernel costs (`_platform.launches`), on a CPU.

They say what the CPU's own loops say, of good and of bad sequences; and their programs make the
host wait for nothing: no branch, and no loop whose length is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jax_sprint import Automata, ctc_loss, forward_backward, full_sum_loss, viterbi
from jax_sprint.kernels import _platform, sample_paths

pytestmark = pytest.mark.optimized
T, L = 21, 9
CASES = {
    "all frames": np.isfinite,
    "NaN in a valid frame": np.isnan,
    "NaN, inf and -inf in padding": np.isfinite,
    "+inf": np.isnan,
    "-inf everywhere": np.isposinf,
    "no frame": np.isposinf,
    "one frame": np.isposinf,
    "traced length too long": np.isnan,
    "the frames of a round": np.isfinite,
}
FORMS = ["band", "tables", "shared"]


@functools.cache
def automata(form: str) -> Automata:
    rng = np.random.default_rng(0)
    if form == "shared":
        return Automata.from_edges(*oracles.hmm_like(rng, 1, 1, L), num_labels=L).shared()
    edges = oracles.hmm_like(rng, len(CASES), 1, L)
    sizes = {"band": 0} if form == "tables" else None
    packed = Automata.from_edges(*edges, num_labels=L, pad_to=sizes)
    assert (packed.in_node is None) == (form == "band")
    return packed


def frames() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(T, len(CASES), L)).astype(np.float32)
    lengths = np.full(len(CASES), 16)
    for b, case in enumerate(CASES):
        if case == "all frames":
            lengths[b] = T
        elif case == "NaN in a valid frame":
            x[9, b, 4] = np.nan
        elif case == "NaN, inf and -inf in padding":
            x[16, b], x[17, b], x[20, b] = np.nan, np.inf, -np.inf
        elif case == "+inf":
            x[3, b, 1] = np.inf
        elif case == "-inf everywhere":
            x[:, b] = -np.inf
        elif case == "no frame":
            lengths[b] = 0
        elif case == "one frame":
            lengths[b] = 1
        elif case == "traced length too long":
            lengths[b] = T + 1
    return x, lengths


def gradients(x: jax.Array, lengths: jax.Array, graph: Automata, **options: bool) -> dict:
    def losses(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return full_sum_loss(x, lengths, graph.with_weights(weights), return_valid=True, **options)

    loss, pull, valid = jax.vjp(losses, x, graph.weights, has_aux=True)
    d_x, d_weights = pull(jnp.where(valid, 1.0, jnp.inf))
    return {"loss": loss, "d_x": d_x, "d_weights": d_weights}


def curvature(x: jax.Array, lengths: jax.Array, graph: Automata) -> dict:
    def total(x: jax.Array) -> jax.Array:
        loss, valid = full_sum_loss(x, lengths, graph, return_valid=True)
        return jnp.where(valid, loss, 0.0).sum()

    clean = jnp.where(jnp.isfinite(x), x, 0.0)
    return {"hvp": jax.jvp(jax.grad(total), (clean,), (jnp.cos(clean),))[1]}


def ctc(x: jax.Array, lengths: jax.Array, graph: Automata) -> dict:
    logits = jnp.swapaxes(x, 0, 1)
    padding = (jnp.arange(T)[None] >= lengths[:, None]).astype(jnp.float32)
    labels = jnp.broadcast_to(jnp.array([[3, 3, 5, 1]]), (logits.shape[0], 4))
    loss, pull = jax.vjp(lambda x: ctc_loss(x, padding, labels, jnp.zeros((x.shape[0], 4))), logits)
    return {"loss": loss, "d_x": pull(jnp.ones_like(loss))[0]}


RUNS: dict[str, tuple[Callable[..., dict], list[str]]] = {
    "gradients": (gradients, FORMS),
    "from logits": (functools.partial(gradients, from_logits=True), ["band"]),
    "checkpointed": (functools.partial(gradients, checkpoint=True), ["tables", "shared"]),
    "loss alone": (lambda *a: {"loss": full_sum_loss(*a)}, ["band", "shared"]),
    "curvature": (curvature, ["band", "shared"]),
    "occupancies": (lambda *a: {"all": forward_backward(*a, return_occupancies=True)}, ["tables"]),
    "viterbi": (lambda *a: {"all": viterbi(*a)}, FORMS),
    "samples": (
        lambda *a: {"all": sample_paths(jax.random.key(0), *a, num_samples=3)},
        ["tables"],
    ),
    "ctc": (ctc, ["band"]),
}
TABLE = [(name, form) for name, (_, forms) in RUNS.items() for form in forms]


@pytest.fixture
def launching(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    def set_to(launches: bool) -> None:
        jax.clear_caches()  # traced programs are of the form in which they were traced
        monkeypatch.setattr(_platform, "launches", lambda: launches)

    yield set_to
    jax.clear_caches()


# Second derivatives come from plain scans, the same everywhere.
COMPARED = [(name, form) for name, form in TABLE if name != "curvature"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), COMPARED)
def test_the_same_as_on_a_cpu(name: str, form: str, launching: Callable[[bool], None]) -> None:
    run, found = RUNS[name][0], []
    for launches in (True, False):
        launching(launches)
        found.append(jax.jit(run)(*frames(), automata(form)))
    if name in ("gradients", "checkpointed"):
        for b, (case, is_so) in enumerate(CASES.items()):
            assert is_so(found[0]["loss"][b]), case
            some = np.asarray(found[0]["d_x"][:, b]).any(axis=1)
            assert some[:16].all() if is_so is np.isfinite else not some.any(), case
            assert not some[16:].any() or case == "all frames", case
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), *found)


def primitives(jaxpr) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)
                elif hasattr(inner, "jaxpr"):
                    yield from primitives(inner.jaxpr)


@pytest.mark.parametrize(("name", "form"), TABLE)
def test_the_host_waits_for_nothing(name: str, form: str, launching: Callable) -> None:
    launching(True)
    used = set(primitives(jax.make_jaxpr(RUNS[name][0])(*frames(), automata(form)).jaxpr))
    assert "scan" in used  # the loops are seen
    assert not used & {"cond", "while", "pure_callback", "io_callback", "debug_callback"}


def test_on_a_cpu_loops_end_with_the_longest_sequence(launching: Callable) -> None:
    """What the test above would find, if it were there."""
    launching(False)
    arguments = *frames(), automata("band")
    assert "while" in set(primitives(jax.make_jaxpr(gradients)(*arguments).jaxpr))
    arguments = *frames(), automata("shared")
    assert "cond" in set(primitives(jax.make_jaxpr(gradients)(*arguments).jaxpr))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 17])
def test_frames_that_fill_no_round(length: int, launching: Callable[[bool], None]) -> None:
    launching(True)
    rng = np.random.default_rng(length)
    edges = oracles.hmm_like(rng, 4, 1, L) if length == 17 else oracles.random_automata(rng, 4)
    x = np.log(rng.dirichlet(np.ones(L), size=(length, 4))).astype(np.float32)
    lengths = np.array([length, length - 1, length, length // 2])
    graph = Automata.from_edges(*edges, num_labels=L)
    loss, posteriors = jax.jit(forward_backward)(x, lengths, graph)
    for b, n in enumerate(lengths):
        wanted = oracles.by_dynamic_programming(edges, b, x[:n, b].astype(np.float64))
        np.testing.assert_allclose(loss[b], wanted.loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(posteriors[:n, b], wanted.posteriors, atol=1e-5)


@pytest.mark.slow
def test_frames_that_nobody_counted(launching: Callable[[bool], None]) -> None:
    """A program exported for any T and B."""
    launching(True)
    t, b = jax.export.symbolic_shape("t, b")

    def losses(logits: jax.Array, padding: jax.Array, labels: jax.Array) -> jax.Array:
        return ctc_loss(logits, padding, labels, jnp.zeros(labels.shape))

    program = jax.export.export(jax.jit(losses))(
        jax.ShapeDtypeStruct((b, t, L), np.float32),
        jax.ShapeDtypeStruct((b, t), np.float32),
        jax.ShapeDtypeStruct((b, 3), np.int32),
    )
    logits = np.random.default_rng(2).normal(size=(2, T, L)).astype(np.float32)
    labels = np.array([[1, 2, 2], [3, 4, 5]], np.int32)
    padding = np.zeros((2, T), np.float32)
    found = program.call(logits, padding, labels)
    np.testing.assert_allclose(found, losses(logits, padding, labels), rtol=1e-6)
