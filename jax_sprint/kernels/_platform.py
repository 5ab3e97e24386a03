"""What costs time depends on the platform, and so does the form of the loops over frames.

On a CPU it is arithmetic and the first touch of memory.  Elsewhere it is that each operation in the
body of a loop is a kernel to be launched, some microseconds each, however small; and that the host
waits for the device wherever it has to look at a value: at a branch, and at the end of each round
of a loop whose length is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

__all__ = ["if_any", "launches", "unroll"]

Array = Any


def launches() -> bool:
    """Whether loops should launch few kernels, branch nowhere and have a length that is known.

    Both forms compute the same and run on every platform.  As the tracing of a program decides,
    one exported for another platform has the form of the exporting one's.
    """
    return jax.default_backend() != "cpu"


def unroll(steps: int) -> int:
    """Steps that a scan should take in a round: the given number where launches cost, else 1."""
    return steps if launches() else 1


def if_any(
    wanted: Array, compute: Callable[..., Array], absent: Callable[..., Array], *arguments: Any
) -> Array:
    """compute(*arguments); or absent(*arguments), where `wanted`, a scalar, says that it will do.

    Besides leaving out work, the branch keeps XLA from fusing what is computed into what uses it,
    where it would be computed once for each use, or gathered number by number, with divisions for
    each place.  Where the host would wait for the device to know which branch to take, all is
    computed always.
    """
    if launches():
        return compute(*arguments)
    return lax.cond(wanted, compute, absent, *arguments)
