"""What a pool asks its Sprints: for a loss, for an automaton, or just to be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jax_sprint.bridge.automata_cache import AutomataCache
from jax_sprint.bridge.batches import Automaton
from jax_sprint.bridge.fingerprint import Fingerprint
from jax_sprint.errors import SprintRequestError

__all__ = [
    "AutomataFetch",
    "AutomataRequest",
    "AutomatonRequest",
    "LossRequest",
    "LossesRequest",
    "Request",
    "StartRequest",
]


class Request(Protocol):
    """What a `Job` has a Sprint do, in two halves, perhaps with other requests in between.

    A request may be sent again, to another Sprint, if no answer was read.

    Attributes:
        kind: requests of one kind take a Sprint about as long for the same cost.
        data_bytes: what it takes in the memory that both share, and its answer once more.
        names: what stands in the message, for its size.
    """

    kind: str
    data_bytes: int
    names: str

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

    kind = "start"
    data_bytes = 0
    names = ""

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

    __slots__ = ("_error_signal", "_frames", "_index", "_loss", "data_bytes", "names")

    kind = "loss"

    def __init__(
        self,
        name: str,
        frames: np.ndarray,
        index: int,
        loss: np.ndarray,
        error_signal: np.ndarray,
    ) -> None:
        self.names = name
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
            self.names, len(frames), frames, refuse_nan=True, keep_back=True
        ):
            return True
        self._refuse()
        return False

    def read(self, instance: Any) -> None:
        name, loss, _ = instance.get_loss_and_error_signal__read(self._error_signal)
        assert name == self.names, f"{name!r} was answered, {self.names!r} was asked for"
        self._loss[self._index] = loss

    def _refuse(self) -> None:
        self._loss[self._index] = np.nan
        self._error_signal.fill(0)

    @staticmethod
    def together(requests: Sequence[LossRequest]) -> LossesRequest:
        """All of them as one."""
        return LossesRequest(requests)


class LossesRequest:
    """Asks for loss and error signal of several segments.

    Args:
        requests: that of each.
    """

    __slots__ = ("_requests", "_taken", "data_bytes", "names")

    kind = "loss"

    def __init__(self, requests: Sequence[LossRequest]) -> None:
        self._requests = requests
        self._taken: list[LossRequest] = []
        self.data_bytes = sum([each.data_bytes for each in requests])
        self.names = _table([each.names for each in requests])

    def may_follow(self, instance: Any) -> bool:
        return True

    def send(self, instance: Any) -> bool:
        requests = self._requests
        _check_number(instance, len(requests))
        taken = instance.losses__send(
            [each.names for each in requests], [each._frames for each in requests]
        )
        self._taken = [each for each, fine in zip(requests, taken, strict=True) if fine]
        for each, fine in zip(requests, taken, strict=True):
            if not fine:
                each._refuse()
        return bool(self._taken)

    def read(self, instance: Any) -> None:
        losses = instance.losses__read([each._error_signal for each in self._taken])
        for each, loss in zip(self._taken, losses, strict=True):
            each._loss[each._index] = loss


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

    __slots__ = ("_fetch", "names")

    kind = "automaton"
    data_bytes = 0

    def __init__(self, name: str, fetch: AutomataFetch) -> None:
        self.names = name
        self._fetch = fetch

    def may_follow(self, instance: Any) -> bool:
        # Otherwise it may have to be started again, which those under way would not survive.
        return self._fetch.is_current(instance)

    def send(self, instance: Any) -> bool:
        self._fetch.make_current(instance)
        instance.export_allophone_state_fsa_by_segment_name__send(self.names, keep_back=True)
        return True

    def read(self, instance: Any) -> None:
        born = getattr(instance, "born", None)
        automaton = instance.export_allophone_state_fsa_by_segment_name__read()
        self._fetch.answers[self.names] = automaton, born

    @staticmethod
    def together(requests: Sequence[AutomatonRequest]) -> AutomataRequest:
        """All of them as one; they are part of the same fetch."""
        return AutomataRequest([each.names for each in requests], requests[0]._fetch)


class AutomataRequest:
    """Asks for the automata of several segments.

    Args:
        segments: full names.
        fetch: what they are asked for.
    """

    __slots__ = ("_fetch", "_segments", "names")

    kind = "automaton"
    data_bytes = 0

    def __init__(self, segments: Sequence[str], fetch: AutomataFetch) -> None:
        self._segments = segments
        self._fetch = fetch
        self.names = _table(segments)

    def may_follow(self, instance: Any) -> bool:
        return self._fetch.is_current(instance)

    def send(self, instance: Any) -> bool:
        self._fetch.make_current(instance)
        _check_number(instance, len(self._segments))
        instance.automata__send(self._segments)
        return True

    def read(self, instance: Any) -> None:
        born = getattr(instance, "born", None)
        for name, automaton in zip(self._segments, instance.automata__read(), strict=True):
            self._fetch.answers[name] = automaton, born


def _table(names: Sequence[str]) -> str:
    """As long as what stands in the message."""
    return "\0".join(names) + "\0" * (4 * len(names))


def _check_number(instance: Any, count: int) -> None:
    if instance.segments < count:
        raise SprintRequestError(f"this Sprint cannot be asked for {count} segments at once")
