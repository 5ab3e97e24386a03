"""A child dies before, inside and after reading a request, and in the middle of its reply.

Each by an exit code, SIGKILL and SIGSEGV; with a request that fits into the pipe, one that is still
being written when the child dies, and one in shared memory.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, SprintOptions, SprintSubprocessInstance
from jax_sprint.bridge.options import default_control_module
from jax_sprint.errors import SprintClosedError, SprintCrashError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SECOND = Path(__file__).with_name("second_sprint.py")
STAGES = ["before", "inside", "after", "reply"]
STATUS = {"exit": 5, "SIGKILL": -signal.SIGKILL, "SIGSEGV": -signal.SIGSEGV}
# Frames, and whether the protocol is version 2, with memory.
KINDS = {
    "small": (4, False, False),
    "larger than the pipe": (600_000, False, False),
    "version 2": (4, True, True),
    "version 2 without memory": (600_000, True, False),
}


@pytest.fixture
def dying(options):
    def make(kind: str, stage: str, how: str, **attributes: object) -> SprintOptions:
        _, second, memory = KINDS[kind]
        if second:
            attributes["exec_path"] = [sys.executable, str(SECOND), default_control_module()[0]]
            attributes["shared_memory"] = memory
        return options("", f"--death={stage} {how}", **attributes)

    return make


@pytest.mark.parametrize(
    ("kind", "stage", "how"),
    [
        (kind, stage, how)
        for kind in KINDS
        for stage in STAGES
        for how in STATUS
        # How it dies makes no difference to what is in the pipe.
        if kind in ("small", "version 2") or how == "SIGKILL"
    ],
)
def test_death(dying, kind: str, stage: str, how: str) -> None:
    length = KINDS[kind][0]
    posteriors = np.zeros((length, 3), np.float32)
    with SprintSubprocessInstance(dying(kind, stage, how)) as instance:

        def ask() -> None:
            # Whether sending fails already depends on who is faster.
            instance.get_loss_and_error_signal__send("corpus/fine/1", length, posteriors)
            instance.get_loss_and_error_signal__read()

        with pytest.raises(SprintCrashError) as caught:
            ask()
        error = caught.value
        assert error.exit_status == STATUS[how]
        assert error.segment == "corpus/fine/1"
        assert error.stderr_tail == "dying as told"
        assert how in str(error) or "exited with status 5" in str(error)
        with pytest.raises(SprintClosedError):
            instance.get_loss_and_error_signal__read()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["small", "version 2"])
def test_the_segment_is_asked_again(dying, fake, tmp_path, kind: str, stage: str) -> None:
    """One child dies, the other one's work is not disturbed, and nothing is lost."""
    lengths = np.array([9, 8, 7, 6, 0])
    posteriors = np.random.default_rng(0).normal(size=(9, 5, 3)).astype(np.float32)
    names = [f"corpus/fine/{b}" for b in range(5)]
    options = dying(
        kind,
        stage,
        "SIGKILL",
        num_instances=2,
        max_retries=1,
        control_config={"marker": tmp_path / "dead"},
    )
    with SprintInstancePool(options) as pool:
        loss, error_signal = pool.get_batch_loss_and_error_signal(posteriors, lengths, names)
        for b, length in enumerate(lengths[:4]):
            want = fake.expected(names[b], posteriors[:length, b])
            assert loss[b] == want[0]
            np.testing.assert_array_equal(error_signal[:length, b], want[1])
        assert loss[4] == np.inf
        assert (tmp_path / "dead").exists()
        assert pool.last_error is None
        assert pool.stats()["restarts"] == 1
        assert pool.stats()["failures"] == 0
