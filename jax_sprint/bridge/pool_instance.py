"""A Sprint of a pool: it knows what it was started from."""

from __future__ import annotations

import logging
from collections.abc import Callable

from jax_sprint.bridge.copier import Copier
from jax_sprint.bridge.fingerprint import Fingerprint
from jax_sprint.bridge.instance import SprintSubprocessInstance
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.errors import SprintCrashError

__all__ = ["Inspect", "PoolInstance"]

Inspect = Callable[[], Fingerprint | None]

logger = logging.getLogger("jax_sprint")


class PoolInstance(SprintSubprocessInstance):
    """Used by one thread of a pool.

    Args:
        options: what to start.
        inspect: takes the fingerprint of what is about to be started.
        copier: helps with large copies.

    Attributes:
        born: the fingerprint it was started from; None if that is not certain.
    """

    _end_at_exit = False
    _checks = False

    def __init__(
        self, options: SprintOptions, inspect: Inspect | None, copier: Copier | None
    ) -> None:
        self._inspect = inspect
        self._copier = copier
        self.born: Fingerprint | None = None
        super().__init__(options, start=False)

    def limit(self, latest: float) -> None:
        """Sets until when requests may last, of the monotonic clock."""
        self._latest = latest

    @property
    def is_late(self) -> bool:
        """Whether the deadline of the first request under way has passed."""
        return self._left() <= 0.0

    def bury(self) -> None:
        """Lets go of a child that has ended by itself since its last answer."""
        child = self._child
        if child is not None and child.wait(0):
            self.exit_handler()
            reason = "a Sprint ended while it had nothing to do; another one takes its place"
            logger.warning("%s", child.error(SprintCrashError, reason, None))

    def init(self) -> None:
        self.born = None
        born = None if self._inspect is None else self._inspect()
        super().init()
        assert self._child is not None
        # A callable in the options may have said something else the second time.
        command = self._child.command
        if born and tuple(command[len(command) - len(born.words) :]) == born.words:
            self.born = born
