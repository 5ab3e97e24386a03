"""The main job in small: a speech corpus, Sprint's supervision, a Flax model, both routes.

`jax-sprint demo` and `python -m jax_sprint.demo` run `main`.  What it needs beyond the package
itself comes with the extra ``[demo]``; nothing of that is imported before it is used.
"""

from __future__ import annotations

from jax_sprint.demo._cli import main

__all__ = ["main"]
