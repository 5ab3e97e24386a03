"""The text formats of OpenFst and k2, line by line."""

from __future__ import annotations

from typing import Any

import numpy as np

from jax_sprint.automata._interchange import Part, assemble

__all__ = ["number_text", "read_k2", "read_openfst"]


def number_text(value: Any) -> str:
    """Shortest text that reads back as the same float32."""
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return str(np.float32(value))


def read_openfst(text: str, b: int) -> Part:
    """One acceptor; `b` is its number, for messages.  See `from_openfst`."""
    arcs: list[tuple[int, int, int, float]] = []
    finals: dict[int, float] = {}
    start = None
    for at, line in enumerate(text.splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        where = f"texts[{b}] line {at}: {line!r}"
        try:
            if len(columns) <= 2:
                finals[int(columns[0])] = float(columns[1]) if len(columns) == 2 else 0.0
            elif len(columns) <= 4:
                label = int(columns[2])
                if label < 1:
                    raise ValueError(
                        f"{where} has the label {label}, which emits nothing; remove epsilons "
                        "first (fstrmepsilon)"
                    )
                cost = float(columns[3]) if len(columns) == 4 else 0.0
                arcs.append((int(columns[0]), int(columns[1]), label - 1, cost))
            else:
                raise ValueError(
                    f"{where} has {len(columns)} columns, as a transducer has; only acceptors can "
                    "be read (fstproject, then fstprint --acceptor)"
                )
        except ValueError as error:
            if where in str(error):
                raise
            raise ValueError(
                f"{where} is neither 'from to label [cost]' nor 'state [cost]' with integer states "
                "and labels"
            ) from error
        if start is None:
            start = int(columns[0])
    finals = {state: cost for state, cost in finals.items() if cost < np.inf}
    if start is None or (not finals and arcs):
        raise ValueError(f"texts[{b}] has no {'end state' if arcs else 'line'}")
    return assemble(arcs, start, finals)


def read_k2(text: str, b: int) -> Part:
    """One acceptor; `b` is its number, for messages.  See `from_k2`."""
    lines = [(at, line.split()) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines or len(lines[-1][1]) != 1:
        raise ValueError(f"texts[{b}] does not end with a line that holds the final state alone")
    arcs: list[tuple[int, int, int, float]] = []
    finals: dict[int, float] = {}
    at, columns = lines[-1]
    try:
        final = int(columns[0])
        for at, columns in lines[:-1]:
            source, target, label = (int(c) for c in columns[:3])
            cost = 0.0 - float(columns[3])
            if len(columns) != 4 or (label == -1) != (target == final) or label < -1:
                raise ValueError(at)
            if label >= 0:
                arcs.append((source, target, label, cost))
            else:
                finals[source] = -np.logaddexp(-finals.get(source, np.inf), -cost)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"texts[{b}] line {at}: {' '.join(columns)!r} is no 'from to label score' with label "
            "-1 on exactly those arcs that lead into the final state"
        ) from error
    return assemble(arcs, 0, finals)
