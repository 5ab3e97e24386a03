"""RETURNN's native Baum-Welch through XLA as a peer.

`python kernel_peer_returnn.py INPUTS.npz GIBIBYTES FOLDER`; the folder holds the package `returnn`.
It compiles C++ at its first use.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from kernel_peer_loop import batch_edges, load, serve, timed


def main():
    sys.path.insert(0, sys.argv[3])
    if jax.default_backend() == "cpu":
        os.environ["DISABLE_CUDA"] = "1"  # or it builds for CUDA too where it finds a compiler
    from returnn.jax.util.native_op import fast_baum_welch

    data = load()
    edges, weights, ends = batch_edges(data)
    states = int(max(edges[:2].max(), ends.max())) + 1
    frames = np.arange(data["logits"].shape[0])[:, None]
    mask = (frames < data["lengths"]).astype(np.float32)

    @jax.jit
    def step(logits, mask, edges, weights, ends):
        log_posteriors = jax.nn.log_softmax(logits)
        costs, scores = fast_baum_welch(
            am_scores=-log_posteriors,
            seq_mask=mask,
            edges=edges,
            weights=weights,
            start_end_states=ends,
            n_states=states,
        )
        gradient = jnp.exp(log_posteriors) - jnp.exp(-costs)
        return scores[0].sum(), jnp.where(mask[:, :, None] > 0, gradient, 0.0)

    arguments = jax.device_put(
        (data["logits"], mask, edges.astype(np.int32), weights, ends.astype(np.int32))
    )
    step = step.lower(*arguments).compile()

    def once():
        milliseconds, (loss, gradient) = timed(lambda: jax.block_until_ready(step(*arguments)))
        return milliseconds, float(loss), gradient

    serve({"jax for RETURNN": jax.__version__}, once)


main()
