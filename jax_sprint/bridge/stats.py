"""What a pool has done so far, in numbers."""

from __future__ import annotations

import dataclasses
import threading

__all__ = ["Account", "Statistics"]

_COUNTS = (
    "requests",
    "failures",
    "masked",
    "retries",
    "starts",
    "restarts",
    "bytes_sent",
    "bytes_received",
    "automata_from_memory",
    "automata_from_disk",
    "automata_from_sprint",
    "cache_faults",
)
_SECONDS = ("queue_seconds", "child_seconds", "start_seconds")


@dataclasses.dataclass
class Account:
    """What one thread has done and not yet added, under the names of the sums."""

    requests: int = 0
    failures: int = 0
    queue_seconds: float = 0.0
    child_seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


class Statistics:
    """Sums that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {
            **dict.fromkeys(_COUNTS, 0),
            **dict.fromkeys(_SECONDS, 0.0),
        }

    def add(self, **amounts: float) -> None:
        """Adds to the sums of these names."""
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount

    def snapshot(self) -> dict[str, float]:
        """All sums, as they are at one moment."""
        with self._lock:
            return dict(self._sums)
