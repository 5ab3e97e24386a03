"""The failure taxonomy: what goes wrong where, and what the user of a jitted step gets.

==================  =======================================  ====================================
where               what                                     what arrives
==================  =======================================  ====================================
at trace time       wrong rank, dtype or batch size, a list  ValueError or TypeError, nothing was
                    of tags, a closed pool                   sent; SprintClosedError
from values,        a length out of range, an unknown        ValueError (ours), SprintError
called eagerly      segment                                  itself
from values,        a traced length or emission out of       no exception: NaN for that sequence
FSA route, traced   range                                    alone, valid False, gradient 0
in the callback     the same, seen by the pool               an exception of JAX's whose message
                                                             holds ours, type and all
in the child        death, a refusal, a time-out             likewise: exit status or signal, last
                                                             lines of stderr, segment
at the wire         garbage, a wrong shape, another version  likewise
on several devices  any of the three above                   no exception, the peers would wait: NaN
                                                             for that shard, valid False, gradient
                                                             0; `pool.check()` raises it
                                                             (`losses/test_peers.py`)
==================  =======================================  ====================================

After every one of them the same compiled step works again on good input.  What the bridge says
without JAX around it is tested in `bridge/test_faults.py`, one fault after the other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sprint import (
    Automata,
    SprintClosedError,
    SprintError,
    SprintInstancePool,
    SprintOptions,
    SprintRequestError,
    SprintStartError,
    encode_tags,
    full_sum_loss,
    sprint_loss,
)

FAKE = Path(__file__).parent / "bridge" / "fake_sprint.py"
T, B, L = 6, 2, 3
LENGTHS = np.array([6, 4], np.int32)
GOOD = ["corpus/fine/1", "corpus/fine/2"]
# What JAX raises for an exception in a callback: ValueError in place of the first from 0.12 on.
FROM_CALLBACK = (jax.errors.JaxRuntimeError, ValueError)


def fake_options(*arguments: str, **attributes) -> SprintOptions:
    return SprintOptions(
        exec_path=[sys.executable, str(FAKE)],
        config=list(arguments),
        exit_timeout=2.0,
        **{"start_timeout": 20.0, "request_timeout": 20.0, **attributes},
    )


@pytest.fixture
def pool():
    with SprintInstancePool(fake_options()) as opened:
        yield opened


@pytest.fixture
def scores():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, B, L)), jnp.float32)


@pytest.fixture
def step(pool):
    """A compiled loss and gradient, as in training."""
    return jax.jit(jax.value_and_grad(lambda s, n, t: jnp.sum(sprint_loss(s, n, t, sprint=pool))))


def run(step, scores, tags=GOOD, lengths=LENGTHS):
    return jax.block_until_ready(step(scores, jnp.asarray(lengths), encode_tags(tags, 32)))


# ------------------------------------------------------------------------------- at trace time


TRACE = {
    "rank": (lambda s, n, t: (s[0], n, t), ValueError, r"log_posteriors must be \[T, B, L\]"),
    "dtype": (lambda s, n, t: (s.astype(int), n, t), ValueError, "must be floating point"),
    "lengths rank": (lambda s, n, t: (s, n[:1], t), ValueError, r"seq_lengths must be \[B\]"),
    "lengths dtype": (
        lambda s, n, t: (s, n.astype("f4"), t),
        ValueError,
        "seq_lengths must be .*integer",
    ),
    "batch-major": (lambda s, n, t: (s.swapaxes(0, 1), n, t), ValueError, "is time_major right"),
    "tags batch": (lambda s, n, t: (s, n, t[:1]), ValueError, "tags must be the uint8 array"),
    "tags dtype": (lambda s, n, t: (s, n, t.astype(int)), ValueError, "encode_tags makes"),
    "list of tags": (lambda s, n, t: (s, n, GOOD), ValueError, r"frozen .* encode_tags\(tags\)"),
    "tuple of bytes": (lambda s, n, t: (s, n, (b"a", b"b")), ValueError, "encode_tags"),
    "array of str": (lambda s, n, t: (s, n, np.array(GOOD)), ValueError, "encode_tags"),
    "one str": (lambda s, n, t: (s, n, GOOD[0]), ValueError, "one segment name per sequence"),
}


@pytest.mark.parametrize("fault", TRACE)
def test_refused_while_tracing(pool, scores, fault):
    change, kind, text = TRACE[fault]
    step = jax.jit(lambda s, n, t: sprint_loss(*change(s, n, t), sprint=pool))
    with pytest.raises(kind, match=text):
        run(step, scores)


def test_a_list_is_welcome_outside_of_a_program(pool, scores):
    by_list = sprint_loss(scores, LENGTHS, GOOD, sprint=pool)
    by_array = sprint_loss(scores, LENGTHS, encode_tags(GOOD), sprint=pool)
    np.testing.assert_array_equal(by_list, by_array)
    assert jax.grad(lambda s: sprint_loss(s, LENGTHS, GOOD, sprint=pool)[0])(scores).shape


def test_what_is_no_sprint(scores):
    with pytest.raises(TypeError, match="must be a SprintInstancePool.*got str"):
        sprint_loss(scores, LENGTHS, GOOD, sprint="nn-trainer")
    with pytest.raises(ValueError, match="unknown key 'execPath'.*sprintExecPath"):
        sprint_loss(scores, LENGTHS, GOOD, sprint={"execPath": "nn-trainer"})


def test_a_pool_is_no_argument_of_a_jitted_function(pool, scores):
    step = jax.jit(lambda s, p: sprint_loss(s, LENGTHS, encode_tags(GOOD), sprint=p))
    with pytest.raises(TypeError, match="SprintInstancePool"):
        step(scores, pool)


def test_a_closed_pool(pool, scores, step):
    want = run(step, scores)
    pool.close()
    with pytest.raises(SprintClosedError, match=r"init\(\)"):
        sprint_loss(scores, LENGTHS, GOOD, sprint=pool)
    with pytest.raises(SprintClosedError):
        jax.jit(lambda s: sprint_loss(s, LENGTHS, encode_tags(GOOD), sprint=pool))(scores)
    with pytest.raises(FROM_CALLBACK, match="SprintClosedError"):
        run(step, scores)
    pool.init()
    np.testing.assert_array_equal(run(step, scores)[1], want[1])
    assert step._cache_size() == 1


# --------------------------------------------------------------------- from values, in the callback


@pytest.mark.parametrize(("lengths", "text"), [([7, 4], "7"), ([6, -1], "-1")])
def test_a_length_out_of_range(pool, scores, step, lengths, text):
    lengths = np.array(lengths, np.int32)
    with pytest.raises(ValueError, match=f"seq_lengths.*{text}"):
        sprint_loss(scores, lengths, GOOD, sprint=pool)
    with pytest.raises(FROM_CALLBACK, match=f"seq_lengths.*{text}"):
        run(step, scores, lengths=lengths)
    assert np.isfinite(run(step, scores)[0])


def test_a_tag_that_is_no_text(pool, scores, step):
    tags = encode_tags(GOOD, 32).copy()
    tags[1, :2] = 0xFF
    with pytest.raises(FROM_CALLBACK, match=r"tags\[1\]"):
        jax.block_until_ready(step(scores, jnp.asarray(LENGTHS), tags))
    assert np.isfinite(run(step, scores)[0])


# -------------------------------------------------------------------------------- in the child


CHILD = {
    "unknown": "SprintRequestError.*segment not in the corpus",
    "exit": "SprintCrashError.*exited with status 5.*lattice not found",
    "kill": r"SprintCrashError.*signal 9 \(SIGKILL\)",
    "segv": r"SprintCrashError.*SIGSEGV.*about to touch null",
    "half": "SprintCrashError.*exited with status 6",
    "garbage": "SprintProtocolError.*no valid message",
    "hostile": "SprintProtocolError.*not permitted",
    "shape": "SprintProtocolError.*got",
}


@pytest.mark.parametrize("fault", CHILD)
def test_a_fault_in_the_child_reaches_the_step(scores, step, fault):
    text, tags = CHILD[fault], [GOOD[0], f"corpus/{fault}/1"]
    with pytest.raises(FROM_CALLBACK, match=f"(?s){text}") as caught:
        run(step, scores, tags)
    assert tags[1] in str(caught.value)
    again = run(step, scores)
    assert step._cache_size() == 1
    other = jax.value_and_grad(lambda s: jnp.sum(sprint_loss(s, LENGTHS, GOOD, sprint=fresh)))
    with SprintInstancePool(fake_options()) as fresh:
        want = other(scores)
    np.testing.assert_array_equal(again[1], want[1])


def test_a_child_that_does_not_answer(scores):
    with SprintInstancePool(fake_options(request_timeout=1.0)) as pool:
        step = jax.jit(lambda s, n, t: sprint_loss(s, n, t, sprint=pool))
        with pytest.raises(FROM_CALLBACK, match="SprintTimeoutError.*request_timeout"):
            run(step, scores, [GOOD[0], "corpus/hang/1"])
        assert np.all(np.isfinite(run(step, scores)))


def test_called_eagerly_the_error_itself_arrives(pool, scores):
    with pytest.raises(SprintRequestError) as caught:
        sprint_loss(scores, LENGTHS, [GOOD[0], "corpus/unknown/1"], sprint=pool)
    assert caught.value.segment == "corpus/unknown/1"
    with pytest.raises(SprintError, match="lattice not found") as caught:
        jax.grad(
            lambda s: jnp.sum(sprint_loss(s, LENGTHS, [GOOD[0], "corpus/exit/1"], sprint=pool))
        )(scores)
    assert caught.value.exit_status == 5


START = {
    "dies": "SprintStartError.*exited with status 3.*cannot open my licence file",
    "nonsense": "SprintStartError.*Usage: something else entirely",
    "version": "SprintProtocolError.*version 7",
    "garbage": "SprintProtocolError.*handshake",
}


@pytest.mark.parametrize("fault", START)
def test_a_child_that_does_not_start(scores, fault):
    with SprintInstancePool(fake_options(f"--fault={fault}")) as pool:
        step = jax.jit(lambda s, n, t: sprint_loss(s, n, t, sprint=pool))
        with pytest.raises(FROM_CALLBACK, match=f"(?s){START[fault]}"):
            run(step, scores)


def test_an_executable_that_is_missing_or_not_executable(scores, tmp_path):
    plain = tmp_path / "nn-trainer"
    plain.write_text("not a program")
    for path, text in ((tmp_path / "nowhere", "nowhere"), (plain, "execut")):
        with (
            SprintInstancePool(SprintOptions(exec_path=path)) as pool,
            pytest.raises(SprintStartError, match=text),
        ):
            sprint_loss(scores, LENGTHS, GOOD, sprint=pool)


def test_one_failing_segment_does_not_disturb_the_others(pool, scores, step):
    with pytest.raises(FROM_CALLBACK, match="corpus/unknown/1"):
        run(step, scores, ["corpus/unknown/1", GOOD[0]])
    assert np.isfinite(run(step, scores)[0])


# -------------------------------------------------------------------------------- the FSA route


def chain(labels=(0, 1, 2), sequences=B):
    """Automata that emit each label at least once, in order."""
    edges, starts, ends = [], [], []
    for b in range(sequences):
        first = b * (len(labels) + 1)
        starts.append(first)
        ends.append(first + len(labels))
        for i, label in enumerate(labels):
            edges += [
                (first + i, first + i + 1, label, b),
                (first + i + 1, first + i + 1, label, b),
            ]
    edges = np.array(edges, np.uint32).T
    return edges, np.zeros(edges.shape[1], np.float32), np.array([starts, ends], np.uint32)


FSA_TRACE = {
    "rank": (lambda s, n, a: (s[0], n, a), r"log_posteriors .*\[T, B, L\]"),
    "dtype": (lambda s, n, a: (s.astype(int), n, a), "log_posteriors must be a float"),
    "lengths": (lambda s, n, a: (s, n[:1], a), "seq_lengths"),
    "labels": (lambda s, n, a: (s[..., :2], n, a), "num_labels"),
    "batch": (lambda s, n, a: (s[:, :1], n[:1], a), "batch"),
    "no automata": (lambda s, n, a: (s, n, chain()), "from_edges"),
}


@pytest.mark.parametrize("fault", FSA_TRACE)
def test_fsa_refused_while_tracing(scores, fault):
    change, text = FSA_TRACE[fault]
    automata = Automata.from_edges(*chain(), num_labels=L)
    step = jax.jit(lambda s, n, a: full_sum_loss(*change(s, n, a)))
    with pytest.raises(ValueError, match=text):
        step(scores, jnp.asarray(LENGTHS), automata)


@pytest.mark.parametrize("lengths", [[7, 4], [-1, 4]])
def test_fsa_a_length_out_of_range(scores, lengths):
    automata = Automata.from_edges(*chain(), num_labels=L)
    lengths = np.array(lengths, np.int32)
    with pytest.raises(ValueError, match=rf"seq_lengths\[0\] is {lengths[0]}"):
        full_sum_loss(scores, lengths, automata)
    traced_value_is_nan(scores, lengths, automata)


def test_fsa_an_emission_out_of_range(scores):
    edges, weights, ends = chain()
    edges[2, 0] = L
    with pytest.raises(ValueError, match=r"edges\[2, 0\] is the emission index 3"):
        Automata.from_edges(edges, weights, ends, num_labels=L)
    automata = Automata.from_edges(edges, weights, ends)
    with pytest.raises(ValueError, match="emit label 3"):
        full_sum_loss(scores, LENGTHS, automata)
    traced_value_is_nan(scores, LENGTHS, automata)


def traced_value_is_nan(scores, lengths, automata):
    """NaN, invalid and without gradient in sequence 0 alone; sequence 1 as if nothing were."""

    def total(s, n, a):
        loss, valid = full_sum_loss(s, n, a, return_valid=True)
        return jnp.sum(loss), (loss, valid)

    (_, (loss, valid)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        scores, jnp.asarray(lengths), automata
    )
    assert np.isnan(loss[0])
    assert valid.tolist() == [False, True]
    assert np.all(np.asarray(gradient)[:, 0] == 0)
    fine = Automata.from_edges(*chain(sequences=1), num_labels=L)
    want = jax.value_and_grad(lambda s: full_sum_loss(s, lengths[1:], fine)[0])(scores[:, 1:])
    np.testing.assert_allclose(loss[1], want[0], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(gradient)[:, 1:], want[1], atol=1e-6)


EDGES = {
    "sequence index": (lambda e, w, s: e.__setitem__((3, -1), 9), r"edges\[3, 7?\d*\]|sequence 9"),
    "foreign state": (lambda e, w, s: e.__setitem__((1, 0), 5), "edges"),
    "end before start": (lambda e, w, s: s.__setitem__((0, 0), 9), "end state"),
    "nan weight": (lambda e, w, s: w.__setitem__(0, np.nan), r"weights\[0\] is nan"),
}


@pytest.mark.parametrize("fault", EDGES)
def test_bad_edge_lists(fault):
    arrays = chain()
    EDGES[fault][0](*arrays)
    with pytest.raises(ValueError, match=EDGES[fault][1]):
        Automata.from_edges(*arrays, num_labels=L)
