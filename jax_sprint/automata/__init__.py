"""Weighted automata as data: a padded, batched pytree and its packing on the host."""

from jax_sprint.automata import _serialization as _serialization
from jax_sprint.automata._automata import Automata

__all__ = ["Automata"]
