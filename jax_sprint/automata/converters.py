"""`Automata` from and to the formats of others: RETURNN, RASR, OpenFst, k2.

| format | labels | weights | end |
|---|---|---|---|
| RETURNN | as here | costs | one end state per sequence |
| RASR | as here | costs | the last state |
| OpenFst text | + 1, since 0 is epsilon there | costs | any states, with final costs |
| k2 text | as here | scores, that is minus the costs | arcs with label -1 into the last state |

The two text formats know several end states with costs of their own.  Where a text has exactly one
end state, at no cost, it becomes the end state here.  Otherwise a new one is made, in RASR's way:
every arc into an end state is there a second time, into the new state, and costs the final cost
more; the one path that this loses is that of no frame, where the start state itself may end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jax_sprint.automata._automata import Automata
from jax_sprint.automata._interchange import Part, join, ordered, split
from jax_sprint.automata._text import number_text, read_k2, read_openfst

__all__ = [
    "from_k2",
    "from_openfst",
    "from_rasr",
    "from_returnn",
    "to_k2",
    "to_openfst",
    "to_rasr",
    "to_returnn",
]


def from_returnn(
    edges: Any,
    weights: Any,
    start_end_states: Any,
    *,
    num_labels: int | None = None,
    pad_to: Any = None,
) -> Automata:
    """Reads what RETURNN's Sprint pool and its Baum-Welch op use.

    Args:
        edges: `[4, E]` integers of any width: from, to, emission, sequence.
        weights: `[E]` floats, costs.
        start_end_states: `[2, B]` integers.
        num_labels: as in `Automata.from_edges`.
        pad_to: as in `Automata.from_edges`.

    Returns:
        The automata; `to_returnn` gives the same back, as uint32 and float32.

    Raises:
        ValueError: as `Automata.from_edges`, and for negative numbers.
    """
    return Automata.from_edges(
        _unsigned(edges, "edges"),
        np.asarray(weights, np.float32),
        _unsigned(start_end_states, "start_end_states"),
        num_labels=num_labels,
        pad_to=pad_to,
    )


def to_returnn(automata: Automata) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `from_returnn`.

    Returns:
        `edges` `[4, E] uint32`, `weights` `[E] float32`, `start_end_states` `[2, B] uint32`.

    Raises:
        ValueError: traced automata.
    """
    return automata.to_edges()


def from_rasr(
    exported: Sequence[Any],
    *,
    num_labels: int | None = None,
    pad_to: Any = None,
) -> Automata:
    """Reads what RASR's `export_allophone_state_fsa_by_segment_name` answers.

    Args:
        exported: `(num_states, num_edges, edges, weights)` of one segment, or a list of those, one
            per sequence; `edges` is `[3 * num_edges] uint32` (all from-states, then all to-states,
            then all emissions), `weights` `[num_edges] float32` costs.  State 0 is the start, state
            `num_states - 1` the end.
        num_labels: as in `Automata.from_edges`.
        pad_to: as in `Automata.from_edges`.

    Returns:
        A batch of one automaton per segment, its states numbered one after the other.

    Raises:
        ValueError: arrays that do not have the size that the numbers say, a state out of range, and
            as `Automata.from_edges`.
    """
    if len(exported) == 4 and np.ndim(exported[0]) == 0:
        exported = [exported]
    parts = []
    for b, (num_states, num_edges, edges, weights) in enumerate(exported):
        edges = _unsigned(edges, f"exported[{b}] edges").astype(np.int64)
        weights = np.asarray(weights, np.float32)
        if edges.shape != (3 * num_edges,) or weights.shape != (num_edges,):
            raise ValueError(
                f"exported[{b}] says {num_edges} edges, but edges has shape {edges.shape} instead "
                f"of ({3 * num_edges},) or weights has shape {weights.shape}"
            )
        table = edges.reshape(3, num_edges)
        if num_states < 1 or table[:2].max(initial=0) >= num_states:
            raise ValueError(
                f"exported[{b}] says {num_states} states, but its edges name state "
                f"{table[:2].max(initial=0)}"
            )
        parts.append(Part(table, weights, 0, int(num_states) - 1, int(num_states)))
    return join(parts, num_labels, pad_to)


def to_rasr(automata: Automata) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """The inverse of `from_rasr`.

    Returns:
        One `(num_states, num_edges, edges, weights)` per sequence, its edges in their order.  The
        start state becomes 0 and the end state the last; the others keep their order.

    Raises:
        ValueError: traced automata, or one that starts in the state in which it ends and has other
            states besides: RASR's format cannot say so.
    """
    result = []
    for b, part in enumerate(split(automata)):
        if part.start == part.end and part.num_states > 1:
            raise ValueError(
                f"automaton {b} starts and ends in one state and has {part.num_states} states; in "
                "RASR's format the start is the first state and the end the last"
            )
        part = ordered(part)
        result.append(
            (
                part.num_states,
                part.weights.size,
                part.table.astype(np.uint32).reshape(-1),
                part.weights,
            )
        )
    return result


def from_openfst(
    texts: str | Iterable[str], *, num_labels: int | None = None, pad_to: Any = None
) -> Automata:
    """Reads acceptors in the text form of OpenFst (AT&T's), as `fstprint --acceptor` writes it.

    A line is ``from to label [cost]``, or ``state [cost]`` for an end state; the first line begins
    with the start state.  Label 0 is epsilon, so that emission i is label i + 1.

    Args:
        texts: one automaton, or one per sequence.
        num_labels: as in `Automata.from_edges`.
        pad_to: as in `Automata.from_edges`.

    Returns:
        A batch of one automaton per text.

    Raises:
        ValueError: a line of another form (a transducer's, say), an epsilon arc, no end state; and
            as `Automata.from_edges`.
    """
    return join([read_openfst(text, b) for b, text in _numbered(texts)], num_labels, pad_to)


def to_openfst(automata: Automata) -> list[str]:
    """Writes each automaton as an acceptor in the text form of OpenFst.

    Returns:
        One text per sequence, for ``fstcompile --acceptor``, with any arc type whose weights are
        costs (``--arc_type=log64``).  The arcs keep their order, but for those of the start state,
        which must lead where it is not the first to have an arc.

    Raises:
        ValueError: traced automata.
    """
    texts = []
    for part in split(automata):
        source, target, label = part.table
        order = np.arange(source.size)
        if source.size and source[0] != part.start:
            order = np.argsort(source != part.start, kind="stable")
        lines = [
            f"{source[i]}\t{target[i]}\t{label[i] + 1}\t{number_text(part.weights[i])}"
            for i in order
        ]
        ending = f"{part.end}\t0.0"
        if (source == part.start).any():
            lines.append(ending)
        else:  # the first line has to name the start, which leads nowhere
            lines.insert(0, ending)
            if part.start != part.end:
                lines.insert(0, f"{part.start}\tInfinity")
        texts.append("\n".join(lines) + "\n")
    return texts


def from_k2(
    texts: str | Iterable[str], *, num_labels: int | None = None, pad_to: Any = None
) -> Automata:
    """Reads acceptors in the text form of k2 (`k2.Fsa.from_str`, `k2.to_str_simple`).

    A line is ``from to label score``; arcs with label -1 lead into the final state and take no
    frame; the last line holds the final state.  State 0 is the start.

    Args:
        texts: one automaton, or one per sequence.
        num_labels: as in `Automata.from_edges`.
        pad_to: as in `Automata.from_edges`.

    Returns:
        A batch of one automaton per text.  Label i is emission i, also 0, which k2's intersection
        with dense posteriors takes for the first column and not for epsilon.

    Raises:
        ValueError: a line of another form, an arc into the final state without label -1 or the
            other way round; and as `Automata.from_edges`.
    """
    return join([read_k2(text, b) for b, text in _numbered(texts)], num_labels, pad_to)


def to_k2(automata: Automata) -> list[str]:
    """Writes each automaton in the text form of k2.

    Returns:
        One text per sequence, for `k2.Fsa.from_str`: arcs sorted by their from-state as k2 demands
        (else in their order), the start state 0, and one state more than here, the final one, into
        which the end state has an arc with label -1.

    Raises:
        ValueError: traced automata.
    """
    texts = []
    for part in split(automata):
        if part.start != 0:
            part = ordered(part)
        source, target, label = part.table
        final = part.num_states
        lines = [
            (
                int(source[i]),
                f"{source[i]} {target[i]} {label[i]} {number_text(0.0 - part.weights[i])}",
            )
            for i in range(source.size)
        ]
        lines.append((part.end, f"{part.end} {final} -1 0.0"))
        lines.sort(key=lambda line: line[0])
        texts.append("\n".join([*(text for _, text in lines), str(final)]) + "\n")
    return texts


def _unsigned(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size and (not np.issubdtype(array.dtype, np.integer) or array.min() < 0):
        raise ValueError(f"{name} must hold integers that are not negative, got {array.dtype}")
    return array.astype(np.uint32)


def _numbered(texts: str | Iterable[str]) -> list[tuple[int, str]]:
    return list(enumerate([texts] if isinstance(texts, str) else texts))
