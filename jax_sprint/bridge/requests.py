"""What a pool asks its Sprints: for a loss, for an automaton, or just to be there."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from jax_sprint.bridge.automata_cache import AutomataCache
from jax_sprint.bridge.batches import Automaton
from jax_sprint.bridge.fingerprint import Fingerprint

__all__ = ["AutomataFetch", "AutomatonRequest", "LossRequest", "Request", "StartRequest"]


class Request(Protocol):
    """What a `Job` has a Sprint do, in two halves, perhaps with other requests in between.

    A request may be sent again, to another Sprint, if no answer was read.
    """

    data_bytes: int

    def may_follow(self, instance: Any) -> bool:
        """Whether it may be sent to this Sprint while that works on others."""

    def send(self, instance: Any) -> bool:
        """Sends it, at the latest with the instance's next `flush`.

        Returns False if there is nothing to wait for, as the result is known already.
        """

    def read(self, instance: Any) -> None:
        """Reads the answer, and stores the result."""


class StartRequest:
    """Asks nothing: the child has been started by then."""

    data_bytes = 0

    def may_follow(self, instance: Any) -> bool:
        return True

    def send(self, instance: Any) -> bool:
        return False

    def read(self, instance: Any) -> None:
        raise AssertionError("nothing was sent")


class LossRequest:
    """Asks for loss and error signal of one segment.

    Args:
        name: the segment's full name.
        frames: [T, L] floating point, natural-log probabilities, without padding.
        index: where the loss goes.
        loss: [B] float32; becomes NaN, and nothing is sent, if there is NaN in the frames.
        error_signal: [T, L] float32, where the error signal goes.
    """

    __slots__ = ("_error_signal", "_frames", "_index", "_loss", "_name", "data_bytes")

    def __init__(
        self,
        name: str,
        frames: np.ndarray,
        index: int,
        loss: np.ndarray,
        error_signal: np.ndarray,
    ) -> None:
        self._name = name
        self._frames = frames
        self._index = index
        self._loss = loss
        self._error_signal = error_signal
        self.data_bytes = 4 * frames.size

    def may_follow(self, instance: Any) -> bool:
        return True

    def send(self, instance: Any) -> bool:
        frames = self._frames
        if instance.get_loss_and_error_signal__send(
            self._name, len(frames), frames, refuse_nan=True, keep_back=True
        ):
            return True
        self._loss[self._index] = np.nan
        self._error_signal.fill(0)
        return False

    def read(self, instance: Any) -> None:
        name, loss, _ = instance.get_loss_and_error_signal__read(self._error_signal)
        assert name == self._name, f"{name!r} was answered, {self._name!r} was asked for"
        self._loss[self._index] = loss


class AutomataFetch:
    """What the requests for the automata of one batch have in common.

    Args:
        cache: knows which Sprints were started too long ago.
        now: the fingerprint of what Sprint would read if it were started now.

    Attributes:
        answers: by segment: the automaton, and the fingerprint from before its Sprint was started.
    """

    def __init__(self, cache: AutomataCache, now: Fingerprint | None) -> None:
        self.answers: dict[str, tuple[Automaton, Fingerprint | None]] = {}
        self._cache = cache
        self._now = now
        # By Sprint: the fingerprint that was found to be good enough.
        self._checked: dict[int, Fingerprint | None] = {}

    def is_current(self, instance: Any) -> bool:
        """Whether this Sprint need not be started again, as far as is known without looking."""
        if self._now is None:
            return True
        born = getattr(instance, "born", None)
        return born is not None and self._checked.get(id(instance)) is born

    def make_current(self, instance: Any) -> None:
        """Starts it again if its files have changed."""
        if not self.is_current(instance):
            self._cache.renew(instance, self._now)
            self._checked[id(instance)] = getattr(instance, "born", None)


class AutomatonRequest:
    """Asks for the automaton of one segment.

    Args:
        name: the segment's full name.
        fetch: what it is asked for.
    """

    __slots__ = ("_fetch", "_name")

    data_bytes = 0

    def __init__(self, name: str, fetch: AutomataFetch) -> None:
        self._name = name
        self._fetch = fetch

    def may_follow(self, instance: Any) -> bool:
        # Otherwise it may have to be started again, which those under way would not survive.
        return self._fetch.is_current(instance)

    def send(self, instance: Any) -> bool:
        self._fetch.make_current(instance)
        instance.export_allophone_state_fsa_by_segment_name__send(self._name, keep_back=True)
        return True

    def read(self, instance: Any) -> None:
        born = getattr(instance, "born", None)
        automaton = instance.export_allophone_state_fsa_by_segment_name__read()
        self._fetch.answers[self._name] = automaton, born
