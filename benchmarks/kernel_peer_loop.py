"""What the peers share: each runs in an interpreter of its own and answers one line per call.

numpy and the standard library only, from Python 3.8 on.
"""

import json
import os
import resource
import sys
import time

import numpy as np

# What libraries print must not end up among the answers.
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def load():
    """The inputs named on the command line: logits [T, B, V], lengths, automata, maybe labels.

    An automaton that all sequences share comes once; `batch_edges` repeats it.
    """
    limit = int(float(sys.argv[2]) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with np.load(sys.argv[1]) as data:
        return {name: data[name] for name in data.files}


def batch_edges(data):
    """Edges [4, E], weights [E] and start and end states [2, B], one automaton per sequence."""
    edges, weights, ends = (data[k].astype(np.int64) for k in ("edges", "weights", "ends"))
    weights, batch = data["weights"], data["logits"].shape[1]
    if ends.shape[1] == batch:
        return edges, weights, ends
    states = int(max(edges[:2].max(), ends.max())) + 1
    copies = np.repeat(np.arange(batch), edges.shape[1])
    edges = np.tile(edges, batch)
    edges[:2] += states * copies
    edges[3] = copies
    return edges, np.tile(weights, batch), ends + states * np.arange(batch)


def timed(function):
    """Milliseconds and result."""
    start = time.perf_counter()
    result = function()
    return 1e3 * (time.perf_counter() - start), result


def serve(version, once):
    """Answers until the input ends; `once` returns milliseconds, sum of losses and gradient."""
    milliseconds, loss, gradient = once()
    if milliseconds < 5000:  # warm up again, where that is cheap
        _, loss, gradient = once()
    norm = float(np.linalg.norm(np.asarray(gradient, np.float64).ravel()))
    first = {"version": version, "loss": loss, "gradient": norm}
    print(json.dumps(first), file=_answers, flush=True)
    del gradient
    for _ in sys.stdin:
        print(json.dumps(once()[:2]), file=_answers, flush=True)
