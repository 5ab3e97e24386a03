"""The sum over all paths of an automaton, and what each label takes part in it, exactly.

Everything is float64 and logarithms, so nothing underflows however unlikely a frame is: a path that
weighs e^-1000 less than another one in every frame may yet be the only one that reaches the end.

The recursion runs forward in time from the start and backward from the end at once, over twice the
nodes, and each frame is a dozen numpy calls on a table of incoming arcs, one column a node: for
segments as short as speech has them the number of calls is what costs.

A *node* is a pair (target state, emission): arcs that share both can be summed before they meet
anything else.  So scores belong to nodes and weights to arcs between nodes, and the posterior of a
label in a frame is the sum over its nodes of forward times backward.  See L. R. Rabiner, "A
tutorial on hidden Markov models", Proc. IEEE 77(2), 1989, section III, for the recursions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["NodeGraph", "full_sum"]

_BLOCK = 256
# Stands for log 0: it can be subtracted from itself, and no sum of real scores comes near it.
_NOTHING = -1e300
# e^-700 of the heaviest is nothing in float64, and below that np.exp is many times slower.
_FLOOR = -700.0


@dataclass(frozen=True)
class NodeGraph:
    """An automaton whose labels sit on nodes instead of arcs, forward and reversed.

    N nodes, sorted by label; the reversed copy of node n is N + n.  Column c < 2N of the tables
    holds the arcs into node c; a node with more than K of them has further columns at the end.

    Attributes:
        labels: [U] int, the labels that occur, ascending.
        node_label: [N] int, index into `labels`.
        label_begin: [U] int, first node of each label.
        source: [K, C] int, node that each arc comes from.
        log_weight: [K, C] float64, natural logarithm, `_NOTHING` where there is no arc.
        extra_target: [C - 2N] int, the node that each further column leads to.
        start: [2N] float64, natural logarithm or `_NOTHING`: of entering a node in the first frame,
            and of being done after the last.
        no_frames: whether no frame at all is a path (the start state is the end state).
    """

    labels: np.ndarray
    node_label: np.ndarray
    label_begin: np.ndarray
    source: np.ndarray
    log_weight: np.ndarray
    extra_target: np.ndarray
    start: np.ndarray
    no_frames: bool

    @classmethod
    def from_automaton(
        cls, num_states: int, edges: np.ndarray, weights: np.ndarray, scale: float = 1.0
    ) -> NodeGraph:
        """Compiles an automaton in RASR's form.

        Args:
            num_states: the start is state 0, the one final state is ``num_states - 1``.
            edges: [3, E] integers: from, to, emission.
            weights: [E] costs, -log; +inf is no arc.
            scale: of the weights (TDP scale).

        Raises:
            ValueError: a state number out of range.
        """
        edges = np.asarray(edges, dtype=np.int64).reshape(3, -1)
        cost = np.asarray(weights, dtype=np.float64)
        if edges.size and (edges[:2].max() >= num_states or edges.min() < 0):
            raise ValueError(f"an edge leads to a state outside 0..{num_states - 1}")
        kept = cost < np.inf
        from_state, to_state, emission = edges[:, kept]
        log_weight = -scale * cost[kept]
        labels, label_index = np.unique(emission, return_inverse=True)
        nodes, node_of_arc = np.unique(label_index * num_states + to_state, return_inverse=True)
        node_label, node_state = nodes // num_states, nodes % num_states
        count = len(nodes)

        # Arc a leaves every node whose state it starts from.
        by_state = np.argsort(node_state, kind="stable")
        first = np.searchsorted(node_state[by_state], from_state, side="left")
        last = np.searchsorted(node_state[by_state], from_state, side="right")
        copies = last - first
        arc = np.repeat(np.arange(len(from_state)), copies)
        within = np.arange(len(arc)) - np.repeat(np.cumsum(copies) - copies, copies)
        source = by_state[first[arc] + within]
        target = node_of_arc[arc]
        weight = log_weight[arc]

        start = np.full(2 * count, _NOTHING)
        begins = np.flatnonzero(from_state == 0)
        np.logaddexp.at(start, node_of_arc[begins], log_weight[begins])
        start[count:][node_state == num_states - 1] = 0.0

        source, log_weight, extra = _arc_table(
            np.concatenate([source, target + count]),
            np.concatenate([target, source + count]),
            np.concatenate([weight, weight]),
            2 * count,
        )
        return cls(
            labels=labels,
            node_label=node_label,
            label_begin=np.searchsorted(node_label, np.arange(len(labels))),
            source=source,
            log_weight=log_weight,
            extra_target=extra,
            start=start,
            no_frames=num_states == 1,
        )


def _arc_table(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, nodes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays arcs out in columns of K; see `NodeGraph`.

    Args:
        source: [A] int.
        target: [A] int.
        weight: [A] float64.
        nodes: number of nodes, and of first columns.

    Returns:
        The table of sources, that of weights, and the targets of the further columns.
    """
    order = np.argsort(target, kind="stable")
    source, target, weight = source[order], target[order], weight[order]
    degree = np.bincount(target, minlength=nodes)
    # As few cells as possible; adding a further column to its node costs as much as 8 cells.
    height, best = 1, np.inf
    for candidate in np.unique(np.maximum(degree, 1)):
        columns = np.maximum(-(-degree // candidate), 1)
        cost = candidate * columns.sum() + 8 * (columns - 1).sum()
        if cost <= best:
            height, best = int(candidate), cost
    further = np.maximum(-(-degree // height), 1) - 1
    extra_target = np.repeat(np.arange(nodes), further)
    rank = np.arange(len(target)) - np.repeat(np.cumsum(degree) - degree, degree)
    first_extra = nodes + np.cumsum(further) - further
    column = np.where(rank < height, target, first_extra[target] + rank // height - 1)
    table = np.zeros((height, nodes + len(extra_target)), dtype=np.intp)
    weights = np.full(table.shape, _NOTHING)
    table[rank % height, column] = source
    weights[rank % height, column] = weight
    return table, weights, extra_target


def full_sum(
    graph: NodeGraph,
    log_posteriors: np.ndarray,
    *,
    am_scale: float = 1.0,
    offset: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Sums over all paths of exactly T arcs from the start to the end.

    Args:
        graph: compiled automaton, with U labels.
        log_posteriors: [T, L] float, natural logarithms; -inf allowed.
        am_scale: what they are multiplied by.
        offset: [L] float64, subtracted afterwards, or None.

    Returns:
        ``(loss, occupancy)``: -log of the sum, and the posterior probability [T, U] float64 of
        each of `graph.labels` in each frame, which sums to 1 in every frame.  Without any path
        the loss is +inf and the occupancy 0.  If a score that the automaton can use is NaN or
        +inf, all of both is NaN.

    Raises:
        ValueError: the automaton uses a label that there is no log-posterior of.
    """
    frames, width = log_posteriors.shape
    labels = graph.labels
    occupancy = np.zeros((frames, len(labels)))
    if labels.size and labels[-1] >= width:
        raise ValueError(
            f"the automaton emits label {labels[-1]}, but the posteriors have only {width} "
            "labels; do lexicon, state tying and the model's output agree?"
        )
    if not frames:
        return (0.0 if graph.no_frames else np.inf), occupancy
    if not labels.size:
        return np.inf, occupancy
    used = log_posteriors[:, labels].astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0 times -inf is NaN, and that is the answer
        if am_scale != 1.0:
            used *= am_scale
        if offset is not None:
            used -= offset[labels]
    peak = used.max(axis=1, keepdims=True)  # NaN where there is one
    if not (peak < np.inf).all():
        return np.nan, np.full_like(occupancy, np.nan)
    if np.isneginf(peak).any():
        return np.inf, occupancy
    used -= peak
    np.maximum(used, _NOTHING, out=used)
    log_sum, occupancy = _recursion(graph, used)
    if log_sum < 0.5 * _NOTHING:
        return np.inf, np.zeros_like(occupancy)
    return float(-(log_sum + peak.sum())), occupancy


def _recursion(graph: NodeGraph, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Forward and backward.

    Args:
        graph: compiled automaton.
        scores: [T, U] float64, natural logarithms or `_NOTHING`, of the labels that occur.

    Returns:
        Logarithm of the sum (near `_NOTHING` without a path, and then the rest is meaningless),
        and the posteriors [T, U].
    """
    frames, count = len(scores), len(graph.node_label)
    # Row t: forward of frame t without its score, and backward of frame T-1-t without its score.
    table = np.empty((frames, 2 * count))
    table[0] = graph.start
    current = np.empty(2 * count)
    arcs = np.empty(graph.source.shape)
    columns = np.empty(graph.source.shape[1])
    peak = np.empty_like(columns)
    first_columns, first_peak = columns[: 2 * count], peak[: 2 * count]
    further, further_peak = columns[2 * count :], peak[2 * count :]
    for block in range(0, frames, _BLOCK):
        end = min(block + _BLOCK, frames)
        nodes = _node_scores(graph, scores, block, end)
        for frame in range(block, end):
            row = table[frame]
            if frame:
                current.take(graph.source, None, arcs, "clip")
                np.add(arcs, graph.log_weight, out=arcs)
                np.maximum.reduce(arcs, axis=0, out=peak)
                np.subtract(arcs, peak, out=arcs)
                np.maximum(arcs, _FLOOR, out=arcs)
                np.exp(arcs, out=arcs)
                np.add.reduce(arcs, axis=0, out=columns)
                np.log(columns, out=columns)
                np.add(first_columns, first_peak, out=row)
                if len(further):
                    np.logaddexp.at(row, graph.extra_target, further + further_peak)
            np.add(row, nodes[frame - block], out=current)
    log_sum = np.logaddexp.reduce(current[:count] + graph.start[count:])
    by_label = np.empty_like(scores)
    for block in range(0, frames, _BLOCK):
        end = min(block + _BLOCK, frames)
        # Forward without, backward without, and once the score of the frame where they meet.
        meet = scores[block:end].take(graph.node_label, 1)
        meet += table[block:end, :count]
        meet += table[frames - end : frames - block, count:][::-1]
        meet -= meet.max(axis=1, keepdims=True)
        meet[meet < _FLOOR] = -np.inf
        np.exp(meet, out=meet)
        meet /= meet.sum(axis=1, keepdims=True)
        np.add.reduceat(meet, graph.label_begin, axis=1, out=by_label[block:end])
    return float(log_sum), by_label


def _node_scores(graph: NodeGraph, scores: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Scores of the nodes in forward frames begin..end and of their copies in backward ones."""
    frames = len(scores)
    backward = scores[frames - end : frames - begin][::-1]
    return np.concatenate(
        [scores[begin:end].take(graph.node_label, 1), backward.take(graph.node_label, 1)], axis=1
    )
