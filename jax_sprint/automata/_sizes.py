"""Sizes of the padded tables, and places within groups (numpy only)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["SIZES", "bucket", "degree_bucket", "fix", "ranks"]

SIZES = (
    "edges",
    "states",
    "starts",
    "ends",
    "nodes",
    "slots",
    "band",
    "in_arcs",
    "out_arcs",
    "last_arcs",
)
"""Names of the padded sizes, as in `Automata.sizes`."""


def bucket(size: int, minimum: int = 8) -> int:
    """Rounds up to 2^k or 1.5 * 2^k, so that ragged batches share few shapes."""
    if size <= minimum:
        return minimum
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def degree_bucket(size: int) -> int:
    return max(size, 1) if size <= 6 else bucket(size, 6)


def fix(sizes: Mapping[str, int], name: str, needed: int, default: int) -> int:
    """The padded size: what `pad_to` demands, checked, or the bucket."""
    if name not in sizes:
        return default
    if sizes[name] < needed:
        raise ValueError(
            f"pad_to[{name!r}] is {sizes[name]}, but this batch needs {needed}; take the maximum "
            "over all hosts of Automata.sizes"
        )
    return int(sizes[name])


def ranks(groups: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Place of each entry within its group (`groups` is sorted), and the sizes of the groups."""
    counts = np.bincount(groups, minlength=num_groups)
    first = np.cumsum(counts) - counts
    return np.arange(len(groups)) - first[groups], counts
