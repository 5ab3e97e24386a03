"""Talking to one Sprint process: handshake, requests, replies."""

from __future__ import annotations

import math
import time
import weakref
from typing import Any

import numpy as np

from jax_sprint.bridge import replies
from jax_sprint.bridge.conversation import Conversation
from jax_sprint.bridge.handshake import shake_hands
from jax_sprint.bridge.options import OptionsLike, SprintOptions
from jax_sprint.bridge.process import ChildProcess
from jax_sprint.errors import SprintError, SprintProtocolError
from jax_sprint.sprint_side.jax_sprint_control.wire import FormatError

__all__ = ["SprintSubprocessInstance"]


class SprintSubprocessInstance(Conversation):
    """One Sprint process and the conversation with it.

    Send, optionally ask whether an answer is there, read.  With a control module that permits it,
    further requests may be sent before the first answer is read, while there `has_room`; answers
    come in the order of the requests.  Whatever goes wrong apart from an answer "I cannot" ends the
    process, because nobody could tell any more which answer belongs to which request; `init` starts
    a new one.  Requests under way are lost then.

    Not for several threads at once; `SprintInstancePool` is.

    Args:
        options: what to start; also the ancestor's dict.
        start: False leaves starting the child to `init`.

    Raises:
        SprintStartError: the executable cannot be started, or dies before it answers the handshake.
        SprintTimeoutError: it does not answer the handshake within `start_timeout`.
        SprintProtocolError: it answers something else than the handshake.
        ValueError: the options are not usable.
    """

    # A pool ends its instances itself, each in the thread that uses it.
    _end_at_exit = True

    def __init__(self, options: OptionsLike, *, start: bool = True) -> None:
        super().__init__(SprintOptions.coerce(options))
        if start:
            self.init()

    # --------------------------------------------------------------------------------- life time

    def init(self) -> None:
        """Starts the child; ends the previous one first if there is one."""
        self._check_process()
        self.exit_handler()
        child = ChildProcess(self.options)
        self._child = child
        self._finalizer = weakref.finalize(self, child.stop)
        self._finalizer.atexit = self._end_at_exit
        self._deadline = time.monotonic() + self.options.start_timeout
        try:
            shake_hands(child, self._deadline)
        except BaseException:
            self._drop(child)
            raise

    def exit_handler(self) -> None:
        """Ends the child: politely, after `exit_timeout` by force.  Harmless when repeated."""
        child, self._child = self._child, None
        self._pending.clear()
        if child is not None:
            child.stop()
            self._forget()

    def kill(self) -> None:
        """Kills the child; the only method that another thread may call.

        Whoever waits for its answer gets a `SprintCrashError`.
        """
        child = self._child
        if child is not None:
            child.kill()

    def __enter__(self) -> SprintSubprocessInstance:
        if self._child is None:
            self.init()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.exit_handler()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return None if self._child is None else self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether there is a child to send requests to, as far as we know."""
        return self._child is not None

    @property
    def is_calculating(self) -> bool:
        """Whether a request was sent whose answer was not read yet."""
        return bool(self._pending)

    def has_room(self, seg_name: str, data_bytes: int = 0) -> bool:
        """Whether a request may be sent although others are under way.

        Args:
            seg_name: the full segment name.
            data_bytes: of its posteriors as float32; 0 for an automaton.
        """
        child = self._child
        return child is not None and (
            not self._pending or child.protocol.has_room(seg_name, data_bytes)
        )

    @property
    def is_quick(self) -> bool:
        """Whether neither sending waits for the child, nor reading where it `has_answer`."""
        return self._child is not None and self._child.protocol.quick

    def has_answer(self) -> bool:
        """Whether a whole answer has come that was not read yet; False where that is not known."""
        child = self._child
        return child is not None and bool(self._pending) and child.protocol.has_answer()

    def count_answers(self) -> int:
        """How many whole answers have come that were not read yet; 0 where that is not known."""
        child = self._child
        return 0 if child is None or not self._pending else child.protocol.count_answers()

    def await_answer(self, patience: float = math.inf) -> bool:
        """Waits until a part of an answer is there; False if it takes too long.

        Args:
            patience: seconds; it is never longer than the request's own time.
        """
        child, _ = self._first()
        child.protocol.flush()
        return child.protocol.is_ready or child.channel.poll(min(patience, self._left()))

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent to and received from the current child, shared memory included."""
        return (0, 0) if self._child is None else self._child.protocol.traffic

    @property
    def protocol(self) -> str:
        """What is spoken with the current child, in words; "" while there is none."""
        return "" if self._child is None else self._child.protocol.description

    # ---------------------------------------------------------------------------------- requests

    def get_loss_and_error_signal__send(
        self,
        seg_name: str,
        seg_len: int,
        log_posteriors: np.ndarray,
        *,
        refuse_nan: bool = False,
        keep_back: bool = False,
    ) -> bool:
        """Sends one segment's posteriors.

        Args:
            seg_name: the full segment name, ``corpus/recording/segment``.
            seg_len: T, the number of frames, at least 1.
            log_posteriors: [T, L] floating point (sent as float32), natural-log probabilities.
            refuse_nan: do not send them if there is NaN among them.
            keep_back: they may be sent only with the next `flush`, together with others, or when
                an answer is waited for.

        Returns:
            Whether they were sent, or will be.

        Raises:
            ValueError: an argument is not as described; nothing was sent.
            SprintError: see the class; a `SprintClosedError` if the child is gone already.
        """
        posteriors = log_posteriors
        if self._checks:
            posteriors = replies.check_request(seg_name, seg_len, log_posteriors)
        rows, columns = posteriors.shape

        def ask(child: ChildProcess, timeout: float) -> bool:
            arguments = (seg_name, posteriors, timeout, refuse_nan, self._copier, keep_back)
            if posteriors.dtype == np.float32:
                return child.protocol.ask_loss(*arguments)
            with np.errstate(over="ignore"):
                return child.protocol.ask_loss(*arguments)

        return self._send(seg_name, ask, 4 * rows * columns, (rows, columns))

    def get_loss_and_error_signal__have_data(self) -> bool:
        """Whether reading would find something at once: an answer, or the end of the child."""
        child, _ = self._first()
        return child.protocol.is_ready or child.channel.poll(0)

    def get_loss_and_error_signal__read(
        self, out: np.ndarray | None = None
    ) -> tuple[str, float, np.ndarray]:
        """Waits for the answer to the first request that was not answered yet.

        Args:
            out: [T, L] float32, where to put the error signal; None makes a new array.

        Returns:
            The segment's name; the loss, which may be +inf (no path, or skipped) or NaN; and the
            error signal [T, L] float32.  Where the loss is not finite the error signal is zero.

        Raises:
            SprintRequestError: Sprint cannot compute this one; the next request may be sent.
            SprintTimeoutError: no complete answer within `request_timeout`.
            SprintCrashError: the child died.
            SprintProtocolError: the answer is not what it should be.
        """
        _, (segment, shape, _) = self._first()
        if shape is None:
            raise SprintError(f"for {segment!r} the automaton was asked for", segment=segment)
        # Twice the data: also a float64 error signal is accepted.
        result = self._read(replies.SLACK_BYTES + 8 * shape[0] * shape[1])
        try:
            loss, error_signal = replies.parse_loss(result, shape, out, self._copier)
        except FormatError as error:
            self._fail(SprintProtocolError, str(error), segment)
        return segment, loss, error_signal

    def export_allophone_state_fsa_by_segment_name(
        self, segment_name: str
    ) -> tuple[int, int, np.ndarray, np.ndarray]:
        """Asks for the automaton of all state sequences that the segment's transcription permits.

        Args:
            segment_name: the full segment name.

        Returns:
            The number of states (the first is the start, the last the end); the number of edges E;
            edges [3, E] uint32: from, to, emission index; weights [E] float32: costs, -log.

        Raises:
            SprintError: as `get_loss_and_error_signal__read`.
        """
        self.export_allophone_state_fsa_by_segment_name__send(segment_name)
        return self.export_allophone_state_fsa_by_segment_name__read()

    def export_allophone_state_fsa_by_segment_name__send(
        self, segment_name: str, *, keep_back: bool = False
    ) -> None:
        """The first half of `export_allophone_state_fsa_by_segment_name`.

        With `keep_back` it may be sent only with the next `flush`.
        """
        replies.check_name(segment_name)

        def ask(child: ChildProcess, timeout: float) -> bool:
            child.protocol.ask_automaton(segment_name, timeout, keep_back)
            return True

        self._send(segment_name, ask)

    def export_allophone_state_fsa_by_segment_name__read(
        self,
    ) -> tuple[int, int, np.ndarray, np.ndarray]:
        """Its second half."""
        _, (segment, shape, _) = self._first()
        if shape is not None:
            raise SprintError(f"for {segment!r} the loss was asked for", segment=segment)
        result = self._read(None)
        try:
            return replies.parse_automaton(result)
        except FormatError as error:
            self._fail(SprintProtocolError, str(error), segment)

    def __repr__(self) -> str:
        state: Any = "no child" if self._child is None else f"pid {self._child.pid}"
        return f"<{type(self).__name__} {state}>"
