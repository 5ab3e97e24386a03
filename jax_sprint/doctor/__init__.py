"""`jax-sprint doctor`: starts Sprint, tries everything once, and explains what does not work.

Needs numpy and the standard library only, as the bridge does: it also serves on a machine where
jax does not work.
"""

from jax_sprint.doctor._cli import main

__all__ = ["main"]
