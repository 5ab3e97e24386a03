"""How much to send to a Sprint ahead of its answers, and how to wait for them.

While it works on one request, the next is written into the memory that both share: then neither
waits for the other.  Of short requests more may wait, as it takes longer to switch between threads
and processes for each than to compute it.  But what waits for one Sprint no other can take.
"""

from __future__ import annotations

import collections
import math
import time

from jax_sprint.bridge.forecast import Forecast
from jax_sprint.bridge.pool_instance import PoolInstance
from jax_sprint.bridge.work import SHORT, WORTH_TWO, Job

__all__ = ["Ahead"]

# While Sprint works, up to this many bytes may wait for it in the memory; one request always may.
_AHEAD_BYTES = 1 << 20
# More than one may wait for it only while all together take it less than this, in seconds.
_AHEAD_SECONDS = 0.005
# A Sprint that is about to be done gets its next request so long before, in seconds, if forecasts
# are wrong by no more than that.
_LEAD, _MOST_WRONG = 3e-3, 2e-3
# A Sprint may have so many short segments to do although another one might take some of them.
_MOST_SHORT = 11
# Requests up to this size are handled by one thread at a time.
_SHORT_BYTES = 1 << 18
# How long to wait for several short answers, in seconds; the shortest one means not at all.
_SHORTEST_NAP, _LONGEST_NAP = 20e-6, 1e-3
# How much earlier than the first one's the deadline of a later one may be, in seconds.
_DEADLINE_SLACK = 0.1


class Ahead:
    """What is sent to one Sprint, and how long it takes for it.

    Args:
        others: how many other Sprints there are.

    Attributes:
        jobs: what its thread has taken on, in the order in which it is sent.
        since: when the Sprint could begin with the first of them, of the monotonic clock.
    """

    def __init__(self, others: int) -> None:
        self.jobs: collections.deque[Job] = collections.deque()
        self.since = 0.0
        self._others = others
        # Their cost, each plus one, and what they take in the memory.
        self._load = self._load_bytes = 0
        # How many segments they are about.
        self._segments = 0
        # Seconds that the Sprint took lately per cost.
        self._pace = _AHEAD_SECONDS
        self._nap = 0.0
        self._forecast = Forecast()

    def add(self, job: Job) -> None:
        """Another one was taken on."""
        self._load += job.cost + 1
        self._load_bytes += job.data_bytes
        self._segments += job.segments
        self.jobs.append(job)

    def remove(self, job: Job) -> None:
        """One was answered, or handed back."""
        if job in self.jobs:
            self.jobs.remove(job)
            self._load -= job.cost + 1
            self._load_bytes -= job.data_bytes
            self._segments -= job.segments

    def answered(self, cost: float, seconds: float, count: int) -> None:
        """Sprint took that long for so many, each of that cost on average."""
        self._forecast.learn(cost, seconds, count)
        pace = seconds / (count * (cost + 1))
        self._pace = pace + (self._pace - pace) * 0.5**count

    def fits(self, job: Job, backlog: int, usual: float, instance: PoolInstance) -> bool:
        """Whether to take on this one, with that much waiting behind it in the queue.

        All Sprints together take that long per cost as is `usual`, in seconds.
        """
        jobs, pace = self.jobs, self._pace
        first, waiting = jobs[0], len(jobs)
        # What has failed may well fail again, and those behind it would have to be sent again.
        if first.attempts > 0 or (waiting > 1 and self._load * pace > _AHEAD_SECONDS):
            return False
        cost = job.cost + 1
        load = self._load + cost
        # No other Sprint shall be without work at the end because of what waits for this one,
        # unless one is enough anyhow (which may turn out to be wrong, so not too many).
        if (
            self._others
            and backlog < self._others * 2 * load * self._slowness(usual)
            and not (
                self._segments + job.segments <= _MOST_SHORT
                and cost * pace <= SHORT
                and (load + backlog) * pace <= WORTH_TWO
            )
            and not self._is_due()
        ):
            return False
        if waiting > 1 and self._load_bytes + job.data_bytes > _AHEAD_BYTES:
            return False
        batch, last = job.batch, jobs[-1].batch
        if batch is not last or batch is not first.batch:
            # Only the first one is watched.
            latest = max(first.batch.deadline, last.deadline)
            if batch.deadline < latest - _DEADLINE_SLACK:
                return False
        request = job.request
        return instance.has_room(request.names, job.data_bytes) and request.may_follow(instance)

    def due_in(self) -> float:
        """How long to wait for the answer before looking for the next request; inf: for ever."""
        if len(self.jobs) != 1 or self._forecast.error > _MOST_WRONG:
            return math.inf
        left = self._left()
        return left if left > 0 else math.inf

    def _is_due(self) -> bool:
        return len(self.jobs) == 1 and self._forecast.error <= _MOST_WRONG and self._left() <= 0

    def _left(self) -> float:
        forecast = self._forecast.seconds(self.jobs[0].cost)
        return self.since + forecast - _LEAD - time.monotonic()

    def _slowness(self, usual: float) -> float:
        """How much longer this Sprint takes than the others do; at least 1."""
        return max(1.0, self._pace / usual) if 0 < usual < math.inf else 1.0

    def is_short(self, job: Job, instance: PoolInstance) -> bool:
        """Whether it is better handled while no other thread handles such a one."""
        return (
            self._others > 0
            and (job.data_bytes <= _SHORT_BYTES or job.segments > 1)
            and instance.is_quick
            and job.request.may_follow(instance)
        )

    def nap(self, count: int) -> None:
        """Waits until about `count` answers may be there.

        Being woken for each one takes both sides longer than reading it.
        """
        if count > 1 and self._nap > _SHORTEST_NAP:
            time.sleep(self._nap)

    def woke(self, enough: bool) -> None:
        """Whether there were enough."""
        nap = self._nap * (0.7 if enough else 1.3)
        self._nap = min(max(nap, _SHORTEST_NAP), _LONGEST_NAP)
