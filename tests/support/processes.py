"""Whether processes have ended."""

from __future__ import annotations

import time

import psutil

__all__ = ["assert_gone"]


def ended(process: psutil.Process) -> bool:
    """Gone, or a zombie that only the system's first process could remove."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_gone(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not all(map(ended, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [process for process in processes if not ended(process)]
    for process in left:
        process.kill()
    assert not left, left
