"""RETURNN itself on either side of the pipe, where a Python that has it is known.

Set JAX_SPRINT_RETURNN_PYTHON to an interpreter that can import `returnn`, with numpy < 2.3 (newer
ones lack a function that RETURNN's pickles need) and Python >= 3.11.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE = 120.0

SCRIPT = """
import json, os, sys
import numpy as np
import returnn.sprint.error_signals as error_signals
from returnn.log import log

log.initialize(verbosity=[0])
control, loop, root, launcher = sys.argv[1:]
if control == "ours":
    class Instance(error_signals.SprintSubprocessInstance):
        _my_python_mod_path = os.path.join(root, "jax_sprint", "sprint_side")

        def _build_sprint_args(self):
            args = super()._build_sprint_args()
            return [arg.replace("returnn.sprint.control", "jax_sprint_control") for arg in args]

    error_signals.SprintSubprocessInstance = Instance
pool = error_signals.SprintInstancePool(
    dict(
        sprintExecPath=launcher,
        sprintConfigStr="--config=config/a_mono3_legacy.config "
        "--*.python-control-loop-type=" + loop,
        # RETURNN's module waits for ever when Sprint asks for the order inside its control loop.
        usePythonSegmentOrder=control == "ours",
        numInstances=2,
    )
)
golden = np.load("a_mono3_legacy.npz")
tags = [str(tag) for tag in golden["tags"]]
edges, weights, start_end_states = pool.get_automata_for_batch(tags)
same = [
    bool((edges == golden["edges"]).all()),
    bool(np.abs(weights - golden["weights"]).max() < 1e-5),
    bool((start_end_states == golden["start_end_states"]).all()),
]
scores = np.random.default_rng(0).normal(size=(60, 2, 45)).astype("float32")
scores -= np.logaddexp.reduce(scores, axis=2, keepdims=True)
lengths = np.array([60, 40], dtype="int32")
loss, error = pool.get_batch_loss_and_error_signal(scores, lengths, tags[:2])
print("RESULT", json.dumps([same, loss.tolist(), error.sum(2).T.tolist()]))
"""


@pytest.fixture(scope="module")
def returnn_python() -> str:
    python = os.environ.get("JAX_SPRINT_RETURNN_PYTHON")
    if not python:
        pytest.skip(
            "JAX_SPRINT_RETURNN_PYTHON names no Python with RETURNN and numpy < 2.3, "
            "which RETURNN's own protocol needs"
        )
    probe = subprocess.run(
        [python, "-c", "import numpy, returnn.sprint.control; print(numpy.__version__)"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert probe.returncode == 0, probe.stderr
    return python


@pytest.mark.parametrize(
    ("control", "loop"),
    [
        ("ours", "python-control-loop"),
        ("ours", "iterate-corpus"),
        ("returnn", "python-control-loop"),
    ],
)
def test_pool_of_returnn_with_the_embedded_sprint(
    returnn_python, golden_dir, tmp_path, control, loop
):
    launcher = tmp_path / "sprint.sh"
    launcher.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{ROOT}:$PYTHONPATH"\n'
        f'exec "{returnn_python}" -P -m jax_sprint.embedded "$@"\n'
    )
    launcher.chmod(0o755)
    result = subprocess.run(
        [returnn_python, "-c", SCRIPT, control, loop, str(ROOT), str(launcher)],
        cwd=golden_dir,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    same, loss, sums = json.loads(line.removeprefix("RESULT "))
    assert same == [True, True, True]
    assert all(0 < value < 1000 for value in loss)
    for length, row in zip([60, 40], sums, strict=True):
        assert row[:length] == pytest.approx([-1.0] * length, abs=1e-5)
        assert row[length:] == [0.0] * (60 - length)
