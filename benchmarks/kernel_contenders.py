"""What is measured: ours, the floor, optax, and the peers in interpreters of their own."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import kernel_workloads
import numpy as np
from kernel_peers import Peer, PeerFailed

__all__ = ["Contender", "automata_of", "compiled", "contenders", "full_sum_step", "packing"]


class Contender:
    """Something that takes the logits to losses and gradient.

    Attributes:
        loss, gradient: sum of the losses, and Euclidean norm of the gradient; None where what it
            computes is not a loss.
        compile_s: seconds to trace and compile, None for what is not ours to compile.
        temp_bytes: XLA's figure for temporary memory, or None.
        call: runs it once and returns milliseconds.
    """

    def __init__(self, call: Callable[[], float], **known: Any) -> None:
        self.call = call
        self.loss: float | None = known.get("loss")
        self.gradient: float | None = known.get("gradient")
        self.compile_s: float | None = known.get("compile_s")
        self.temp_bytes: int | None = known.get("temp_bytes")
        self.close: Callable[[], None] = known.get("close", lambda: None)


def compiled(function: Callable, *arguments: Any, is_loss: bool = True) -> Contender:
    """A contender from a function that returns (losses, gradient)."""
    import jax

    start = time.perf_counter()
    run = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    arguments = jax.block_until_ready(jax.device_put(arguments))

    def call() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        return 1e3 * (time.perf_counter() - begin)

    known: dict[str, Any] = {"compile_s": seconds}
    analysis = run.memory_analysis()
    if analysis is not None:
        known["temp_bytes"] = analysis.temp_size_in_bytes
    if is_loss:
        loss, gradient = run(*arguments)
        known["loss"] = float(np.sum(np.asarray(loss, np.float64)))
        known["gradient"] = float(np.linalg.norm(np.asarray(gradient, np.float64).ravel()))
    call()
    return Contender(call, **known)


def automata_of(work: kernel_workloads.Workload) -> Any:
    from jax_sprint import Automata

    return Automata.from_edges(*work[2:5], num_labels=work.logits.shape[2], shared=work.shared)


def packing(work: kernel_workloads.Workload, rounds: int) -> list[float]:
    """Milliseconds of `Automata.from_edges`, the first call apart."""
    times = []
    automata_of(work)
    for _ in range(rounds):
        begin = time.perf_counter()
        automata_of(work)
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def full_sum_step(
    logits: Any, lengths: Any, automata: Any, from_logits: bool = True, **options: Any
) -> Any:
    """Sum of the losses and its gradient with respect to the logits."""
    import jax

    from jax_sprint import full_sum_loss

    options["from_logits"] = from_logits

    def total(logits: Any) -> Any:
        scores = logits if from_logits else jax.nn.log_softmax(logits)
        return full_sum_loss(scores, lengths, automata, **options).sum()

    return jax.value_and_grad(total)(logits)


def _floor(logits: Any) -> Any:
    import jax
    import jax.numpy as jnp

    log_posteriors = jax.nn.log_softmax(logits)
    return log_posteriors, jnp.exp(log_posteriors)


def _softmax(logits: Any) -> Any:
    import jax

    return jax.nn.softmax(logits), ()


def _ctc(work: kernel_workloads.Workload) -> dict[str, Contender]:
    import jax
    import optax

    from jax_sprint import ctc_loss

    frames = np.arange(work.logits.shape[0])
    rest = (
        (frames >= work.lengths[:, None]).astype(np.float32),
        work.labels.astype(np.int32),
        np.zeros(work.labels.shape, np.float32),
    )
    major = np.ascontiguousarray(np.swapaxes(work.logits, 0, 1))

    def step(function: Callable) -> Callable:
        return lambda logits, *rest: jax.value_and_grad(lambda x: function(x, *rest).sum())(logits)

    functions = {"ctc_loss": ctc_loss, "optax": optax.ctc_loss}
    return {name: compiled(step(f), major, *rest) for name, f in functions.items()}


def contenders(
    name: str, work: kernel_workloads.Workload, options: argparse.Namespace, versions: dict
) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that can be measured on `work`, and why the others cannot; adds to `versions`."""
    given = work.logits, work.lengths, automata_of(work)
    found = {
        "full_sum_loss": compiled(full_sum_step, *given),
        "full_sum_loss after log_softmax": compiled(
            partial(full_sum_step, from_logits=False), *given
        ),
        "floor": compiled(_floor, work.logits, is_loss=False),
        "softmax": compiled(_softmax, work.logits, is_loss=False),
    }
    if work.labels is not None:
        found |= _ctc(work)
    absent: dict[str, str] = {}
    for label, script, python, more in _peers(options, work.labels is not None, work.shared):
        if not python:
            absent[label] = "no interpreter named"
            continue
        try:
            peer = Peer(script, python, work, options.peer_memory, options.deadline, *more)
        except PeerFailed as error:
            absent[label] = str(error)
            continue
        versions |= peer.versions
        found[label] = Contender(peer, loss=peer.loss, gradient=peer.gradient, close=peer.close)
    return found, absent


def _peers(options: argparse.Namespace, ctc: bool, shared: bool) -> list[tuple]:
    peers = [("torch", "kernel_peer_torch.py", options.torch_python, ())] if ctc else []
    peers.append(("k2", "kernel_peer_k2.py", options.k2_python, ()))
    if shared:
        # What LF-MMI recipes do: paths far from the best one are dropped, the loss is inexact.
        peers.append(("k2, beam 10", "kernel_peer_k2.py", options.k2_python, ("10",)))
    python = options.returnn_python if options.returnn_path else None
    peers.append(("RETURNN", "kernel_peer_returnn.py", python, (str(options.returnn_path),)))
    return peers
