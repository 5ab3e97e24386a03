"""What becomes of the children when it is the parent that ends, each way it can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from jax_sprint import errors

ROOT = Path(errors.__file__).resolve().parent.parent
FAKE = Path(__file__).with_name("fake_sprint.py")
PROLOGUE = f"""
import os, signal, sys, threading, time
import numpy as np
# A shell starts background jobs, such as a test run may be one, with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(ROOT)!r})
from jax_sprint.bridge import SprintInstancePool, SprintSubprocessInstance
from jax_sprint.errors import SprintError
options = {{
    "exec_path": [sys.executable, "-S", {str(FAKE)!r}],
    "env": {{"PYTHONPATH": {str(Path(np.__file__).parent.parent)!r}}},
    "num_instances": 2,
    "start_timeout": 20.0,
    "request_timeout": 30.0,
}}
pool = SprintInstancePool(options)
pool.get_automata_for_batch(["a/b/1", "a/b/2"])
"""


def start(code: str, **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,  # type: ignore[call-overload]
    )


def wait_for_line(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n", parent.communicate(timeout=20)[1]
    return psutil.Process(parent.pid).children(recursive=True)


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


STATES = {
    "idle": "",
    "computing": """
        threading.Thread(target=pool.get_automata_for_batch, args=(["a/hang/1"],)).start()
        time.sleep(0.5)
        """,
    "stopped": """
        threading.Thread(target=pool.get_automata_for_batch, args=(["a/stop/1"],)).start()
        time.sleep(0.5)
        """,
    "with a grandchild": """
        pool.get_automata_for_batch(["a/grandchild/1"])
        """,
}


@pytest.mark.parametrize("state", STATES)
def test_kill_9_of_the_parent(state: str) -> None:
    code = textwrap.dedent(STATES[state]) + 'print("ready", flush=True)\ntime.sleep(60)\n'
    with start(code) as parent:
        descendants = wait_for_line(parent)
        # The two Sprints, the one that watches over them, and the grandchild.
        assert len(descendants) == (4 if state == "with a grandchild" else 3)
        parent.kill()
        parent.wait(10)
        assert_gone(descendants, 2.0)


ENDS = {
    "without close": "",
    "by sys.exit": "sys.exit(0)",
    "by os._exit": "os._exit(0)",
    "with a single instance": "one = SprintSubprocessInstance(options)",
    "with a request under way": """
        threading.Thread(
            target=pool.get_automata_for_batch, args=(["a/hang/1"],), daemon=True
        ).start()
        time.sleep(0.3)
        """,
}


@pytest.mark.parametrize("end", ENDS)
def test_interpreter_exit(end: str) -> None:
    with start('print("ready", flush=True)\n' + textwrap.dedent(ENDS[end])) as parent:
        descendants = wait_for_line(parent)
        _, stderr = parent.communicate(timeout=20)
        assert parent.returncode == 0, stderr
        # The waiting thread may report its request's end; nothing else is said.
        assert "Traceback" not in stderr or "the pool was closed" in stderr, stderr
        assert_gone(descendants, 2.0)


def test_ctrl_c_on_the_terminal_leaves_the_pool_usable() -> None:
    code = """
    def ask():
        pool.get_batch_loss_and_error_signal(
            np.zeros((3, 2, 4), np.float32), np.array([3, 2]), ["a/slow/1", "a/hang/2"]
        )
    try:
        print("ready", flush=True)
        ask()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    pool.get_automata_for_batch(["a/b/1", "a/b/2"])
    pool.close()
    print("fine", flush=True)
    """
    with start(code, start_new_session=True) as parent:
        descendants = wait_for_line(parent)
        time.sleep(0.3)
        os.killpg(parent.pid, signal.SIGINT)
        stdout, stderr = parent.communicate(timeout=30)
        assert stdout == "interrupted\nfine\n", stderr
        assert_gone(descendants, 2.0)


def test_os_fork_by_others() -> None:
    code = """
    pid = os.fork()
    if pid == 0:
        try:
            pool.get_automata_for_batch(["a/b/1"])
            print("answered", flush=True)
        except SprintError as error:
            print(error, flush=True)
        # A pool of its own is fine, and its end does not touch the parent's.
        own = SprintInstancePool.get_global_instance(options)
        own.get_automata_for_batch(["a/b/1"])
        own.close()
        sys.exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
    pool.get_automata_for_batch(["a/b/1"])
    pool.close()
    print("fine", flush=True)
    """
    with start(code) as parent:
        stdout, stderr = parent.communicate(timeout=60)
    assert "made by os.fork" in stdout, stderr
    assert "answered" not in stdout
    assert stdout.endswith("0\nfine\n"), stderr


def test_a_fork_that_lives_on_does_not_keep_the_children() -> None:
    code = """
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    print(pid, flush=True)
    print("ready", flush=True)
    time.sleep(60)
    """
    with start(code) as parent:
        assert parent.stdout is not None
        fork = psutil.Process(int(parent.stdout.readline()))
        descendants = [p for p in wait_for_line(parent) if p != fork]
        try:
            parent.kill()
            parent.wait(10)
            assert_gone(descendants, 2.0)
            assert fork.is_running()
        finally:
            fork.kill()


def test_a_killed_guardian_is_replaced() -> None:
    code = """
    print("ready", flush=True)
    sys.stdin.readline()
    pool.close()
    pool.init()
    pool.get_automata_for_batch(["a/b/1", "a/b/2"])
    print("ready", flush=True)
    time.sleep(60)
    """
    with start(code, stdin=subprocess.PIPE) as parent:
        for process in wait_for_line(parent):
            if "_guardian_main.py" in " ".join(process.cmdline()):
                process.kill()
        assert parent.stdin is not None
        parent.stdin.write("\n")
        parent.stdin.flush()
        descendants = wait_for_line(parent)
        parent.kill()
        parent.wait(10)
        assert_gone(descendants, 2.0)
