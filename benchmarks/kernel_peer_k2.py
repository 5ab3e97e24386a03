"""k2 as a peer: `python kernel_peer_k2.py INPUTS.npz GIBIBYTES [BEAM]`.

Its intersection with the posteriors is exact only with a beam that cuts nothing: the default.
"""

import sys
from importlib.metadata import version

import k2
import numpy as np
import torch
from kernel_peer_loop import batch_edges, load, serve, timed


def graph(edges, weights, start, end):
    """One k2 graph; the end state gets an arc with label -1 to a last state, as k2 wants it."""
    states = np.unique(np.concatenate([edges[0], edges[1], [start, end]]))
    first, final = np.searchsorted(states, start), len(states)
    place = np.arange(final)
    place[:first] += 1
    place[first] = 0  # k2 starts in state 0
    number = place[np.searchsorted(states, edges[:2])]
    scores = np.concatenate([-weights, [0.0]]).astype(np.float32)
    arcs = np.stack(
        [
            np.append(number[0], place[np.searchsorted(states, end)]),
            np.append(number[1], final),
            np.append(edges[2], -1),
            scores.view(np.int32),
        ],
        axis=1,
    )
    arcs = arcs[np.argsort(arcs[:, 0], kind="stable")].astype(np.int32)
    return k2.Fsa(torch.from_numpy(np.ascontiguousarray(arcs)))


def main():
    torch.set_num_threads(2)
    data = load()
    beam = float(sys.argv[3]) if len(sys.argv) > 3 else 1e10
    lengths = data["lengths"]
    order = np.argsort(-lengths, kind="stable")  # k2 wants the longest first
    logits = torch.tensor(np.ascontiguousarray(data["logits"].swapaxes(0, 1)), requires_grad=True)
    edges, weights, ends = batch_edges(data)
    graphs = []
    for b in order:
        mine = edges[3] == b
        graphs.append(graph(edges[:3, mine], weights[mine], *ends[:, b]))
    graphs = k2.arc_sort(k2.create_fsa_vec(graphs))
    segments = np.stack([order, np.zeros_like(order), lengths[order]], axis=1)
    segments = torch.tensor(segments, dtype=torch.int32)

    def step():
        logits.grad = None
        dense = k2.DenseFsaVec(logits.log_softmax(2), segments)
        lattice = k2.intersect_dense(graphs, dense, beam)
        loss = -lattice.get_tot_scores(log_semiring=True, use_double_scores=True).sum()
        loss.backward()
        return loss

    def once():
        milliseconds, loss = timed(step)
        return milliseconds, float(loss.detach()), logits.grad.numpy()

    serve({"k2": version("k2"), "torch for k2": torch.__version__}, once)


main()
