"""Two processes under `jax.distributed`, each with its own pool: the example, run as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "two_hosts.py"


def run(*arguments: str) -> tuple[str, dict[tuple[int, int], tuple[float, list[str]]]]:
    """What it printed; and by process and step the global loss and the process's own losses."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    lines = re.findall(r"process (\d), step (\d): total ([\d.]+), own \[(.*?)\]", done.stdout)
    return done.stdout, {(int(p), int(n)): (float(t), own.split()) for p, n, t, own in lines}


@pytest.mark.parametrize("devices", ["1", "2"])
def test_the_gradient_is_that_of_one_process(devices: str) -> None:
    out, steps = run("--devices", devices)
    assert "gradient as that of one process" in out
    assert sorted(steps) == [(p, n) for p in range(2) for n in range(3)]
    for n in range(3):
        assert steps[0, n][0] == steps[1, n][0]
        own = [float(loss) for p in range(2) for loss in steps[p, n][1]]
        assert len(own) == 8
        assert sum(own) == pytest.approx(steps[0, n][0], rel=1e-5)
    assert steps[0, 2][0] < steps[0, 1][0] < steps[0, 0][0]


def test_stopped_sprints_of_one_process_leave_its_peer_alone() -> None:
    out, steps = run("--stop", "1")
    # NaN there, everything as ever here, and the next step has all of them again.
    assert steps[1, 1][1] == ["nan"] * 4
    assert "nan" not in steps[0, 1][1]
    assert sum(map(float, steps[0, 1][1])) == pytest.approx(steps[0, 1][0], rel=1e-5)
    assert "nan" not in steps[1, 2][1]
    assert re.search(r"process 1: SprintTimeoutError: Sprint, pid \d+, gave no complete", out)
    assert "process 0: Sprint" not in out
    assert "gradient as that of one process" in out
