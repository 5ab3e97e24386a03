"""Automata that were exported before, so that Sprint need not be asked again.

They are kept in memory up to `SprintOptions.automata_cache_bytes`, those used last, and if
`SprintOptions.automata_cache` names a file, in it as well (see `automata_store`).  Their key is the
segment's name and a fingerprint of everything that they depend on (see `fingerprint`), taken anew
for every batch.

A Sprint that runs while its files change has read them before, after, or in the middle of it.  An
automaton is therefore kept only if the fingerprint before that Sprint was started and the one after
its answer are the same; and a Sprint that is asked for an automaton after a change is started
again first, but not for ever: a file that changes over and over, as a log does, only makes the
cache useless, with a warning.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_sprint.bridge.automata_store import AutomataStore
from jax_sprint.bridge.batches import Automaton
from jax_sprint.bridge.fingerprint import Fingerprint, Inspector
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.source_files import UncertainSources
from jax_sprint.bridge.stats import Statistics

__all__ = ["AutomataCache"]

logger = logging.getLogger("jax_sprint")

# How many changes of one file make each Sprint start again, before it counts as one that always
# changes.
_MAX_RENEWALS = 8
_ENTRY_BYTES = 500  # beside the arrays


class AutomataCache:
    """The cache of one pool; for several threads at once.

    Args:
        options: where to keep automata, how many, and what they depend on.
        stats: where to count.
    """

    def __init__(self, options: SprintOptions, stats: Statistics) -> None:
        self._options = options
        self._stats = stats
        self._inspector = Inspector(options)
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[tuple[str, str], Automaton] = collections.OrderedDict()
        self._bytes = 0
        self._store: AutomataStore | None = None
        self._renewals: collections.Counter[str] = collections.Counter()
        self._warned: set[str] = set()

    @property
    def enabled(self) -> bool:
        return self._options.automata_cache_bytes > 0

    def inspect(self) -> Fingerprint | None:
        """The fingerprint as of now; None if nothing can be kept or found under it."""
        if not self.enabled:
            return None
        try:
            return self._inspector()
        except UncertainSources as error:
            self._warn(f"automata are not cached: {error}")
        except (Exception, SystemExit) as error:
            # Whoever starts Sprint meets the same, and tells it where it belongs.
            logger.debug("no fingerprint: %s", error)
        return None

    def lookup(self, now: Fingerprint | None, segments: Sequence[str]) -> dict[str, Automaton]:
        """Those of these segments' automata that are known.

        Raises:
            ValueError: `automata_cache` names a file that is something else.
        """
        found: dict[str, Automaton] = {}
        if now is None:
            return found
        missing: list[str] = []
        with self._lock:
            for segment in dict.fromkeys(segments):
                automaton = self._kept.get((now.digest, segment))
                if automaton is None:
                    missing.append(segment)
                else:
                    self._kept.move_to_end((now.digest, segment))
                    found[segment] = automaton
            in_memory = len(found)
            if missing and self._options.automata_cache is not None:
                store = self._opened()
                before = store.faults
                for segment, automaton in store.get(now.digest, missing).items():
                    found[segment] = self._remember(now.digest, segment, automaton)
                self._stats.add(cache_faults=store.faults - before)
        self._stats.add(automata_from_memory=in_memory, automata_from_disk=len(found) - in_memory)
        return found

    def renew(self, instance: Any, now: Fingerprint | None) -> None:
        """Starts a Sprint again that was started before its files changed."""
        born = getattr(instance, "born", None)
        if now is None or born is None or born.words != now.words:
            return
        changed = born.changed(now)
        if not changed:
            return
        with self._lock:
            self._renewals.update(changed)
            worst, times = self._renewals.most_common(1)[0]
        if times > _MAX_RENEWALS * self._options.num_instances:
            self._warn(
                f"automata are not cached any more: {worst} changes again and again; if Sprint "
                "writes it, drop it from the configuration or call it *.log"
            )
            return
        logger.warning("Sprint is started again, because of changes in %s", ", ".join(changed))
        self._stats.add(starts=1, restarts=1)
        instance.init()

    def keep(self, automata: Mapping[str, tuple[Automaton, Fingerprint | None]]) -> None:
        """Stores what Sprint answered.

        Args:
            automata: by segment: the automaton, and the fingerprint from before that Sprint was
                started.
        """
        self._stats.add(automata_from_sprint=len(automata))
        now = self.inspect() if automata else None
        if now is None:
            return
        # There are as many as Sprints, and each is compared file by file.
        births = {id(born): born for _, born in automata.values()}
        current = {
            number
            for number, born in births.items()
            if born is not None and born.digest == now.digest and not born.changed(now)
        }
        fresh = {
            segment: automaton
            for segment, (automaton, born) in automata.items()
            if id(born) in current
        }
        with self._lock:
            for segment, automaton in fresh.items():
                self._remember(now.digest, segment, automaton)
            if fresh and self._options.automata_cache is not None:
                store = self._opened()
                before = store.faults
                store.put(now.digest, fresh.items())
                self._stats.add(cache_faults=store.faults - before)

    def close(self) -> None:
        """Closes the file; what is in memory stays, and the file is opened again when needed."""
        with self._lock:
            store, self._store = self._store, None
            if store is not None:
                store.close()

    # ------------------------------------------------------------------------------------ inside

    def _remember(self, digest: str, segment: str, automaton: Automaton) -> Automaton:
        states, count, edges, weights = automaton
        edges, weights = np.ascontiguousarray(edges), np.ascontiguousarray(weights)
        for array in (edges, weights):
            array.setflags(write=False)
        automaton = (states, count, edges, weights)
        key = (digest, segment)
        self._forget(key)
        self._kept[key] = automaton
        self._bytes += _size(automaton)
        while self._bytes > self._options.automata_cache_bytes:
            self._forget(next(iter(self._kept)))
        return automaton

    def _forget(self, key: tuple[str, str]) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._bytes -= _size(gone)

    def _opened(self) -> AutomataStore:
        if self._store is None:
            assert self._options.automata_cache is not None
            self._store = AutomataStore(self._options.automata_cache)
            self._stats.add(cache_faults=self._store.faults)
        return self._store

    def _warn(self, message: str) -> None:
        with self._lock:
            if message in self._warned:
                return
            self._warned.add(message)
        logger.warning("%s", message)


def _size(automaton: Automaton) -> int:
    return automaton[2].nbytes + automaton[3].nbytes + _ENTRY_BYTES
