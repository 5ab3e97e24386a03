"""Short requests that a Sprint is asked for several at a time.

A message, the waking of a process and the bookkeeping take longer than a short request itself, so
those of which Sprint answers several within a few milliseconds share them.  Whose fault it was if
such a group fails nobody knows: its segments are then asked for one by one, as if they had not been
asked for before.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jax_sprint.bridge.jobs import Batch, Job
from jax_sprint.bridge.requests import AutomatonRequest, LossRequest
from jax_sprint.errors import (
    SprintCrashError,
    SprintError,
    SprintProtocolError,
    SprintRequestError,
    SprintTimeoutError,
)

if TYPE_CHECKING:
    from jax_sprint.bridge.crew import Crew

__all__ = ["Question", "ask", "split"]

logger = logging.getLogger("jax_sprint")

# Only what takes a Sprint no longer than that is asked for together, and so long together.
_EACH_SECONDS, _GROUP_SECONDS = 0.5e-3, 2e-3
# Most segments of a group, the bytes of their posteriors, and of their names (they have to fit into
# a pipe, with room for the next group).
_MOST, _MOST_BYTES, _MOST_NAME_BYTES = 16, 1 << 19, 1500
# What the segments of a group may not be to blame for, each by itself.
_SOMEBODYS_FAULT = (SprintCrashError, SprintProtocolError, SprintRequestError, SprintTimeoutError)


class Question(NamedTuple):
    """What is asked about one segment, at its place in the batch: the arguments of a `Job`."""

    place: int
    segment: str
    cost: int
    request: AutomatonRequest | LossRequest


def ask(
    crew: Crew,
    batch: Batch,
    questions: Sequence[Question],
    *,
    cancelled: threading.Event | None = None,
    limit: str = "",
) -> None:
    """Has requests answered, short ones several at a time.

    Args:
        crew: asks Sprint.
        batch: holds the errors afterwards, by index.
        questions: all of one kind.
        cancelled, limit: as for `Crew.run`.

    Raises:
        SprintClosedError: as `Crew.run`.
    """
    batch.size = len(questions)
    groups = split(questions, crew.pace(questions), crew.num_instances, crew.most_segments)
    if len(groups) == len(questions):
        crew.run(batch, [Job(batch, *each) for each in questions], cancelled=cancelled, limit=limit)
        return
    together = Batch(batch.deadline)
    jobs = [_job(together, number, group) for number, group in enumerate(groups)]
    crew.run(together, jobs, cancelled=cancelled, limit=limit)
    batch.unserved = together.unserved
    batch.unasked |= {each.place for number in together.unasked for each in groups[number]}
    errors: dict[int, BaseException] = {}
    again: list[Question] = []
    for number, error in together.errors.items():
        group = groups[number]
        if len(group) == 1:
            errors[group[0].place] = error
        elif isinstance(error, _SOMEBODYS_FAULT) and time.monotonic() < batch.deadline:
            logger.info("asking one by one for %d segments: %s", len(group), error)
            again += group
        else:
            crew.count(failures=len(group))
            errors |= {each.place: _about(error, each.segment) for each in group}
    if again:
        crew.count(retries=len(again))
        crew.run(batch, [Job(batch, *each) for each in again], cancelled=cancelled, limit=limit)
    batch.errors |= errors


def split(
    questions: Sequence[Question], pace: float, num_instances: int, most: int = _MOST
) -> list[list[Question]]:
    """Puts short ones together, such that each Sprint gets at least two groups.

    Args:
        questions: what is asked.
        pace: seconds that Sprint takes per cost, each plus one; inf if that is not known.
        num_instances: how many Sprints there are.
        most: about how many segments they permit one request to be.
    """
    most = min(_MOST, most, math.ceil(len(questions) / (2 * num_instances)))
    if most < 2 or pace == math.inf:
        return [[each] for each in questions]
    groups: list[list[Question]] = []
    group: list[Question] = []
    seconds = data_bytes = name_bytes = 0.0
    for each in sorted(questions, key=lambda question: -question.cost):
        took = pace * (each.cost + 1)
        size, name_size = each.request.data_bytes, 4 * len(each.segment) + 5
        if (
            not group
            or len(group) == most
            or took > _EACH_SECONDS
            or seconds + took > _GROUP_SECONDS
            or data_bytes + size > _MOST_BYTES
            or name_bytes + name_size > _MOST_NAME_BYTES
        ):
            group = []
            groups.append(group)
            seconds = data_bytes = name_bytes = 0.0
        group.append(each)
        seconds += took
        data_bytes += size
        name_bytes += name_size
    return groups


def _job(batch: Batch, number: int, group: list[Question]) -> Job:
    first = group[0]
    if len(group) == 1:
        return Job(batch, number, *first[1:])
    cost = sum([each.cost + 1 for each in group]) - 1
    request = type(first.request).together([each.request for each in group])  # type: ignore[misc]
    return Job(batch, number, first.segment, cost, request, len(group))


def _about(error: BaseException, segment: str) -> BaseException:
    return error.extended(segment=segment) if isinstance(error, SprintError) else error
