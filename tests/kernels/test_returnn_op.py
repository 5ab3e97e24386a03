"""`fast_baum_welch` and `full_sum_loss` against RETURNN's op (C++ through XLA's FFI).

Runs where the source is at hand: JAX_SPRINT_RETURNN_PATH names the folder that holds the
package `returnn`, or it is installed.  The op compiles at its first use, by a C++ compiler.
"""

from __future__ import annotations

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jax_sprint import Automata, fast_baum_welch, full_sum_loss

B, L = 3, 6


@pytest.fixture(scope="module")
def theirs():
    """RETURNN's function, jitted, with the types that it wants."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("JAX_SPRINT_RETURNN_PATH"):
            patch.syspath_prepend(os.environ["JAX_SPRINT_RETURNN_PATH"])
        # It would build for CUDA too where it finds a compiler for that.
        patch.setenv("DISABLE_CUDA", "1")
        native_op = pytest.importorskip(
            "returnn.jax.util.native_op",
            reason="RETURNN's source; JAX_SPRINT_RETURNN_PATH may name its folder",
        )
        if shutil.which("g++") is None:
            pytest.skip("RETURNN's op needs g++ to compile itself")

        @jax.jit
        def ready(scores, mask, edges, weights, ends):
            return native_op.fast_baum_welch(
                am_scores=scores,
                seq_mask=mask,
                edges=edges,
                weights=weights,
                start_end_states=ends,
                n_states=STATES,
            )

        yield ready


STATES = 200


def inputs(kind: str, num_frames: int):
    rng = np.random.default_rng(2)
    if kind == "hmm":
        automata = oracles.hmm_like(rng, B, 8, L)
    elif kind == "ctc":
        automata = oracles.ctc_like(rng.integers(1, L, (B, 9)), np.array([9, 4, 7]))
    else:
        automata = oracles.random_automata(rng, B, max_states=7, num_labels=L, density=0.6)
    x = np.asarray(jax.nn.log_softmax(rng.normal(size=(num_frames, B, L)).astype(np.float32)))
    lengths = np.array([num_frames, num_frames - 5, num_frames - 9])
    mask = (np.arange(num_frames)[:, None] < lengths).astype(np.float32)
    return automata, x, lengths, mask


@pytest.mark.parametrize("kind", ["hmm", "ctc", "cyclic"])
def test_same_losses_and_posteriors(theirs, kind: str) -> None:
    automata, x, lengths, mask = inputs(kind, 60)
    edges, ends = automata.edges.astype(np.int32), automata.start_end_states.astype(np.int32)
    costs, scores = theirs(-x, mask, edges, automata.weights, ends)
    assert np.isfinite(scores[0]).all()

    ours = fast_baum_welch(
        am_scores=-x,
        seq_mask=mask,
        edges=edges,
        weights=automata.weights,
        start_end_states=ends,
        n_states=STATES,
    )
    packed = Automata.from_edges(*automata, num_labels=L)
    loss, gradient = jax.jit(
        lambda x: (
            full_sum_loss(x, lengths, packed),
            jax.grad(lambda x: jnp.sum(full_sum_loss(x, lengths, packed)))(x),
        )
    )(x)
    valid = mask[:, :, None] > 0
    wanted = np.where(valid, np.exp(-np.asarray(costs)), 0.0)
    np.testing.assert_allclose(loss, scores[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1][0], scores[0], rtol=1e-5)
    # Theirs, not ours, is the coarser: 4e-4 at 400 frames.
    np.testing.assert_allclose(-gradient, wanted, atol=2e-4)
    np.testing.assert_allclose(np.exp(-np.asarray(ours[0])) * valid, wanted, atol=2e-4)
