"""The losses: `sprint_loss` asks Sprint by callback, `full_sum_loss` sums over automata."""

from jax_sprint.losses._callback import sprint_loss
from jax_sprint.losses._entropy import path_entropy
from jax_sprint.losses._full_sum import full_sum_loss
from jax_sprint.losses._lf_mmi import lf_mmi_loss
from jax_sprint.losses._mesh import sharded_sprint_loss

__all__ = ["full_sum_loss", "lf_mmi_loss", "path_entropy", "sharded_sprint_loss", "sprint_loss"]
