"""A Sprint of a pool: it knows what it was started from, and takes several segments at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from jax_sprint.bridge import replies
from jax_sprint.bridge.batches import Automaton
from jax_sprint.bridge.copier import Copier
from jax_sprint.bridge.fingerprint import Fingerprint
from jax_sprint.bridge.instance import SprintSubprocessInstance
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.process import ChildProcess
from jax_sprint.bridge.protocols import VersionTwo
from jax_sprint.errors import SprintCrashError, SprintProtocolError
from jax_sprint.sprint_side.jax_sprint_control.wire import FormatError

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

    @property
    def segments(self) -> int:
        """About how many segments one request may be; 1 while there is no child."""
        return 1 if self._child is None else self._child.protocol.segments

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

    # ------------------------------------------------------------------- several segments at once

    def losses__send(self, names: Sequence[str], frames: Sequence[np.ndarray]) -> list[bool]:
        """Asks for the losses of several segments, at the latest with the next `flush`.

        Args:
            names: full segment names.
            frames: [T, L] floating point of each, natural-log probabilities.

        Returns:
            Which of them are asked for: those that hold NaN are not.

        Raises:
            SprintError: as `get_loss_and_error_signal__send`.
        """
        taken: list[bool] = []

        def ask(child: ChildProcess, _timeout: float) -> bool:
            assert isinstance(child.protocol, VersionTwo)
            with np.errstate(over="ignore"):
                taken.extend(child.protocol.ask_losses(names, frames))
            return any(taken)

        self._send(names[0], ask, shape=(1, 1))
        return taken

    def losses__read(self, outs: Sequence[np.ndarray]) -> list[float]:
        """Waits for the losses of those segments that were asked for.

        Args:
            outs: [T, L] float32 of each, where to put the error signal, which is zero where the
                loss is not finite.

        Raises:
            SprintError: as `get_loss_and_error_signal__read`.
        """
        segment = self._pending[0].segment
        losses, signals = self._read(replies.SLACK_BYTES)
        found = []
        begin = 0
        try:
            for loss, out in zip(losses.tolist(), outs, strict=True):
                end = begin + len(out)
                replies.parse_loss((loss, signals[begin:end]), out.shape, out)
                found.append(loss)
                begin = end
        except FormatError as error:
            self._fail(SprintProtocolError, str(error), segment)
        return found

    def automata__send(self, names: Sequence[str]) -> None:
        """Asks for the automata of several segments, at the latest with the next `flush`."""

        def ask(child: ChildProcess, _timeout: float) -> bool:
            assert isinstance(child.protocol, VersionTwo)
            child.protocol.ask_automata(names)
            return True

        self._send(names[0], ask)

    def automata__read(self) -> list[Automaton]:
        """Waits for them.

        Raises:
            SprintError: as `export_allophone_state_fsa_by_segment_name__read`.
        """
        segment = self._pending[0].segment
        sizes, edges, weights = self._read(None)
        try:
            return replies.parse_automata(sizes, edges, weights)
        except FormatError as error:
            self._fail(SprintProtocolError, str(error), segment)
