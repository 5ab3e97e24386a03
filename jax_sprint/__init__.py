"""Sprint's (RASR's) supervision for acoustic models in JAX.

Two routes lead from a segment of speech to a loss inside `jax.jit`: `sprint_loss` asks Sprint for
loss and error signal through a callback, and `full_sum_loss` computes both on the accelerator from
the automata that Sprint exported.  See the README for a first example.

The names below are imported on first use, so that `import jax_sprint` costs nothing and
`python -m jax_sprint.embedded` (which plays RASR's part and needs no jax) starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_sprint import topologies as topologies
    from jax_sprint.automata import Automata as Automata
    from jax_sprint.automata.prefetching import prefetch as prefetch
    from jax_sprint.bridge import ReaderThread as ReaderThread
    from jax_sprint.bridge import SprintInstancePool as SprintInstancePool
    from jax_sprint.bridge import SprintOptions as SprintOptions
    from jax_sprint.bridge import SprintSubprocessInstance as SprintSubprocessInstance
    from jax_sprint.bridge import decode_tags as decode_tags
    from jax_sprint.bridge import encode_tags as encode_tags
    from jax_sprint.errors import SprintClosedError as SprintClosedError
    from jax_sprint.errors import SprintCrashError as SprintCrashError
    from jax_sprint.errors import SprintError as SprintError
    from jax_sprint.errors import SprintProtocolError as SprintProtocolError
    from jax_sprint.errors import SprintRequestError as SprintRequestError
    from jax_sprint.errors import SprintStartError as SprintStartError
    from jax_sprint.errors import SprintTimeoutError as SprintTimeoutError
    from jax_sprint.kernels import ctc_loss as ctc_loss
    from jax_sprint.kernels import fast_baum_welch as fast_baum_welch
    from jax_sprint.kernels import forward_backward as forward_backward
    from jax_sprint.kernels import viterbi as viterbi
    from jax_sprint.losses import full_sum_loss as full_sum_loss
    from jax_sprint.losses import lf_mmi_loss as lf_mmi_loss
    from jax_sprint.losses import sharded_sprint_loss as sharded_sprint_loss
    from jax_sprint.losses import sprint_loss as sprint_loss

_HOME = {
    "Automata": "automata",
    "ReaderThread": "bridge",
    "SprintInstancePool": "bridge",
    "SprintOptions": "bridge",
    "SprintSubprocessInstance": "bridge",
    "decode_tags": "bridge",
    "encode_tags": "bridge",
    "SprintClosedError": "errors",
    "SprintCrashError": "errors",
    "SprintError": "errors",
    "SprintProtocolError": "errors",
    "SprintRequestError": "errors",
    "SprintStartError": "errors",
    "SprintTimeoutError": "errors",
    "ctc_loss": "kernels",
    "fast_baum_welch": "kernels",
    "forward_backward": "kernels",
    "viterbi": "kernels",
    "full_sum_loss": "losses",
    "lf_mmi_loss": "losses",
    "prefetch": "automata.prefetching",
    "sharded_sprint_loss": "losses",
    "sprint_loss": "losses",
}

__all__ = sorted([*_HOME, "topologies"])


def __getattr__(name: str) -> Any:
    if name == "topologies":
        return importlib.import_module("jax_sprint.topologies")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jax_sprint.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
