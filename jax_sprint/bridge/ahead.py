"""How much to send to a Sprint ahead of its answers, and how to wait for them.

While it works on one request, the next is written into the memory that both share: then neither
waits for the other.  Of short requests more may wait, as it takes longer to switch between threads
and processes for each than to compute it.  But what waits for one Sprint no other can take.
"""

from __future__ import annotations

import collections
import time

from jax_sprint.bridge.pool_instance import PoolInstance
from jax_sprint.bridge.work import SHORT, WORTH_TWO, Job

__all__ = ["Ahead"]

# While Sprint works, up to this many bytes may wait for it in the memory; one request always may.
_AHEAD_BYTES = 1 << 20
# More than one may wait for it only while all together take it less than this, in seconds.
_AHEAD_SECONDS = 0.005
# That many short ones may wait although another Sprint might take them.
_MOST_SHORT = 8
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
    """

    def __init__(self, others: int) -> None:
        self.jobs: collections.deque[Job] = collections.deque()
        self._others = others
        # Their cost, each plus one, and what they take in the memory.
        self._load = self._load_bytes = 0
        # Seconds that the Sprint took lately per cost.
        self._pace = _AHEAD_SECONDS
        self._nap = 0.0

    def add(self, job: Job) -> None:
        """Another one was taken on."""
        self._load += job.cost + 1
        self._load_bytes += job.data_bytes
        self.jobs.append(job)

    def remove(self, job: Job) -> None:
        """One was answered, or handed back."""
        self._load -= job.cost + 1
        self._load_bytes -= job.data_bytes
        self.jobs.remove(job)

    def answered(self, cost: int, seconds: float) -> None:
        """Sprint took that long for one of that cost."""
        self._pace = (self._pace + seconds / (cost + 1)) / 2

    def is_enough(self) -> bool:
        """Whether to look for no more, whatever there is."""
        # What has failed may well fail again, and those behind it would have to be sent again.
        return self.jobs[0].attempts > 0 or (
            len(self.jobs) > 1 and self._load * self._pace > _AHEAD_SECONDS
        )

    def fits(self, job: Job, backlog: int, instance: PoolInstance) -> bool:
        """Whether to take on this one, with that much waiting behind it in the queue."""
        jobs, pace = self.jobs, self._pace
        load = self._load + job.cost + 1
        return (
            # No other Sprint shall be without work at the end because of what waits for this one,
            # unless one is enough anyhow (which may turn out to be wrong, so not too many).
            (
                backlog >= self._others * 2 * load
                or (
                    len(jobs) < _MOST_SHORT
                    and (job.cost + 1) * pace <= SHORT
                    and (load + backlog) * pace <= WORTH_TWO
                )
            )
            and (len(jobs) == 1 or self._load_bytes + job.data_bytes <= _AHEAD_BYTES)
            # Only the first one is watched.
            and job.batch.deadline >= jobs[0].batch.deadline - _DEADLINE_SLACK
            and job.batch.deadline >= jobs[-1].batch.deadline - _DEADLINE_SLACK
            and instance.has_room(job.segment, job.data_bytes)
            and job.request.may_follow(instance)
        )

    def is_short(self, job: Job, instance: PoolInstance) -> bool:
        """Whether it is better handled while no other thread handles such a one."""
        return (
            self._others > 0
            and job.data_bytes <= _SHORT_BYTES
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
