"""Long work that is better done before the training than in its first steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from jax_sprint.bridge.progress import ProgressBar
from jax_sprint.errors import SprintError, SprintRequestError

__all__ = ["fill_cache"]

logger = logging.getLogger("jax_sprint")


def fill_cache(
    fetch: Callable[[Sequence[str]], Any], names: Sequence[str], at_once: int, show: bool | None
) -> None:
    """Fetches automata some at a time, so that an interruption loses little.

    Args:
        fetch: gets the automata of some segments, and has them kept.
        names: full segment names.
        at_once: how many to fetch in one call.
        show: whether to show a progress bar; None where somebody is watching.

    Raises:
        SprintRequestError: Sprint has no automaton for some segments; all others were fetched.
        SprintError: anything else, at once.
    """
    first: SprintError | None = None
    failed = 0
    with ProgressBar(len(names), "fetching automata", show) as bar:
        for start in range(0, len(names), at_once):
            part = names[start : start + at_once]
            try:
                fetch(part)
            except SprintRequestError:
                # One by one, to know which; those that were answered come from the cache.
                for name in part:
                    try:
                        fetch([name])
                    except SprintRequestError as error:
                        logger.warning("%s", error)
                        first, failed = first or error, failed + 1
            bar.update(start + len(part))
    if first is not None:
        if failed > 1:
            first = first.extended(f"({failed - 1} more of the {len(names)} segments failed)")
        raise first
