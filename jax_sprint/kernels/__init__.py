"""Dynamic programming over weighted automata in pure JAX; knows nothing of Sprint."""

from jax_sprint.kernels._baum_welch import fast_baum_welch
from jax_sprint.kernels._ctc import ctc_loss
from jax_sprint.kernels._expected import Occupancies
from jax_sprint.kernels._forward_backward import forward_backward
from jax_sprint.kernels._sampling import sample_paths
from jax_sprint.kernels._viterbi import viterbi

__all__ = [
    "Occupancies",
    "ctc_loss",
    "fast_baum_welch",
    "forward_backward",
    "sample_paths",
    "viterbi",
]
