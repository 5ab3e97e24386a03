"""A Sprint that does what the tests need, and a watch over everything that could be left behind."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from jax_sprint.bridge import SprintOptions

FAKE = Path(__file__).with_name("fake_sprint.py")


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_sprint", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def old_python() -> str:
    """A Python 3.8 with numpy, as may lie inside RASR."""
    for python in (os.environ.get("JAX_SPRINT_OLD_PYTHON"), shutil.which("python3.8")):
        if python and not subprocess.run([python, "-c", "import numpy"], timeout=60).returncode:
            return python
    pytest.skip("no Python 3.8 with numpy found; JAX_SPRINT_OLD_PYTHON may name one")


@pytest.fixture
def options() -> Callable[..., SprintOptions]:
    """Options for the scripted Sprint: `options(fault, *arguments, **attributes)`."""

    def make(fault: str = "", *arguments: str, **attributes: object) -> SprintOptions:
        config = [f"--fault={fault}", *arguments] if fault else list(arguments)
        settings = {
            "exec_path": [sys.executable, "-S", str(FAKE)],
            "env": {"PYTHONPATH": SITE},
            "config": config,
            "start_timeout": 20.0,
            "request_timeout": 20.0,
            "exit_timeout": 2.0,
        }
        settings.update(attributes)
        return SprintOptions(**settings)  # type: ignore[arg-type]

    return make


# Without site packages the interpreter starts faster; numpy is then found by this.
SITE = str(Path(__import__("numpy").__file__).parent.parent)


def left_behind() -> tuple[int, int, int]:
    process = psutil.Process()
    return process.num_fds(), threading.active_count(), len(process.children(recursive=True))


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """No file descriptor, thread or child process outlives a test."""
    before = left_behind()
    yield
    deadline = time.monotonic() + 5
    while True:
        after = left_behind()
        if all(a <= b for a, b in zip(after, before, strict=True)):
            return
        gc.collect()
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    names = [thread.name for thread in threading.enumerate()]
    pytest.fail(f"(fds, threads, children) were {before}, are {after}; threads: {names}")
