"""The automata of a batch of segments: from the cache, and the others from Sprint."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from jax_sprint.bridge.automata_cache import AutomataCache
from jax_sprint.bridge.batches import Automaton
from jax_sprint.bridge.crew import Crew
from jax_sprint.bridge.groups import Question, ask
from jax_sprint.bridge.jobs import Batch
from jax_sprint.bridge.requests import AutomataFetch, AutomatonRequest

__all__ = ["fetch_automata"]


def fetch_automata(
    crew: Crew,
    cache: AutomataCache,
    names: Sequence[str],
    batch: Batch,
    cancelled: threading.Event | None,
) -> dict[str, Automaton]:
    """Looks automata up, or has Sprint export them; what it answered is kept in the cache.

    Args:
        crew: asks Sprint.
        cache: knows automata of before.
        names: full segment names; they may occur more than once.
        batch: holds the errors afterwards.
        cancelled: to be set from another thread, which ends this call soon.

    Returns:
        By segment; those that failed are missing.

    Raises:
        SprintClosedError: the call was cancelled, or the pool is closed.
    """
    now = cache.inspect()
    known = cache.lookup(now, names)
    fetch = AutomataFetch(cache, now)
    questions = [
        Question(b, name, 0, AutomatonRequest(name, fetch))
        for b, name in enumerate(dict.fromkeys(names))
        if name not in known
    ]
    ask(crew, batch, questions, cancelled=cancelled)
    cache.keep(fetch.answers)
    known.update((name, automaton) for name, (automaton, _) in fetch.answers.items())
    return known
