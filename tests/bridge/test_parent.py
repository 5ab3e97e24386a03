"""What becomes of the children when it is the parent that ends, each way it can."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import pytest
from processes import assert_gone

from jax_sprint import errors
from jax_sprint.bridge.options import default_control_module

ROOT = Path(errors.__file__).resolve().parent.parent
FAKE = Path(__file__).with_name("fake_sprint.py")
SECOND = Path(__file__).with_name("second_sprint.py")
PROLOGUE = f"""
import os, signal, sys, threading, time
import numpy as np
# A shell starts background jobs, such as a test run may be one, with SIGINT ignored; nohup, SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
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
"""
POOL = """
pool = SprintInstancePool(options)
pool.start()
"""
# Version 2 of the protocol, with shared memory; and a wrapper that stays in between.
SECOND_SPRINT = f"""
options["exec_path"] = [
    sys.executable, "-S", {str(SECOND)!r}, {default_control_module()[0]!r}
]
"""
WRAPPED = (
    SECOND_SPRINT
    + """
wrapper = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], close_fds=False))"
options["exec_path"][:0] = [sys.executable, "-S", "-c", wrapper]
"""
)


def start(code: str, before: str = "", **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + before + POOL + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,  # type: ignore[call-overload]
    )


def wait_for_line(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n", parent.communicate(timeout=20)[1]
    return psutil.Process(parent.pid).children(recursive=True)


REQUEST = """
def ask(name):
    pool.get_batch_loss_and_error_signal(np.zeros((4, 1, 3), np.float32), np.array([4]), [name])
"""
STATES = {
    "idle": "",
    "computing": """
        threading.Thread(target=ask, args=("a/hang/1",)).start()
        time.sleep(0.5)
        """,
    "stopped": """
        threading.Thread(target=ask, args=("a/stop/1",)).start()
        time.sleep(0.5)
        """,
    "with a grandchild": """
        ask("a/grandchild/1")
        """,
    "starting": """
        late = SprintInstancePool({**options, "config": "--fault=silent", "num_instances": 1})
        threading.Thread(target=late.start).start()
        time.sleep(0.5)
        """,
}
KINDS = {"version 1": "", "version 2": SECOND_SPRINT, "behind a wrapper": WRAPPED}


@pytest.mark.parametrize(
    ("state", "kind"),
    # The child of version 2 knows no faults of the start.
    [(s, k) for s in STATES for k in KINDS if k == "version 1" or s != "starting"],
)
def test_kill_9_of_the_parent(state: str, kind: str) -> None:
    code = REQUEST + textwrap.dedent(STATES[state]) + 'print("ready", flush=True)\ntime.sleep(60)\n'
    with start(code, KINDS[kind]) as parent:
        try:
            descendants = wait_for_line(parent)
            memory = shared_memory([psutil.Process(parent.pid), *descendants])
        finally:
            parent.kill()
        parent.wait(10)
    assert_gone(descendants, 2.0)
    assert not memory & shared_memory(psutil.process_iter())
    # The two Sprints, the one that watches over them; another Sprint or the grandchild; and the
    # wrappers.
    more = (state in ("with a grandchild", "starting")) + 2 * (kind == "behind a wrapper")
    assert len(descendants) == 3 + more
    assert len(memory) == 2 + (state == "starting")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGABRT])
def test_other_signals_that_end_the_parent(number: signal.Signals) -> None:
    """As batch systems and closed terminals send; sent to the whole process group."""
    code = 'print("ready", flush=True)\ntime.sleep(60)\n'
    with start(code, start_new_session=True) as parent:
        try:
            descendants = wait_for_line(parent)
        finally:
            os.killpg(parent.pid, number)
        assert parent.wait(10) == -number
    assert len(descendants) == 3
    assert_gone(descendants, 2.0)


def shared_memory(processes: Iterable[psutil.Process]) -> set[tuple[int, int]]:
    """The anonymous files of ours that any of them has open: they live as long as that is so."""
    found = set()
    for process in processes:
        folder = f"/proc/{process.pid}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    if "memfd:jax_sprint" in os.readlink(f"{folder}/{name}"):
                        status = os.stat(f"{folder}/{name}")
                        found.add((status.st_dev, status.st_ino))
    return found


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


def test_ctrl_c_in_the_middle_of_a_compiled_step() -> None:
    """Sent to the whole process group, as a terminal does; the step compiles only once."""
    code = """
    import jax, jax.numpy as jnp
    from jax_sprint import encode_tags, sprint_loss
    @jax.jit
    def step(scores, tags):
        lengths = jnp.array([3, 2])
        return jax.grad(lambda s: jnp.sum(sprint_loss(s, lengths, tags, sprint=pool)))(scores)
    def run(*names):
        return jax.block_until_ready(step(jnp.zeros((3, 2, 4)), encode_tags(names)))
    want = run("a/b/1", "a/b/2")
    print("ready", flush=True)
    try:
        run("a/slow/1", "a/hang/2")
    except BaseException as error:
        # Raised in the callback it is JAX's; between two calls it would be a KeyboardInterrupt.
        assert "KeyboardInterrupt" in repr(error), repr(error)
        print("interrupted", flush=True)
    assert (run("a/b/1", "a/b/2") == want).all()
    assert step._cache_size() == 1
    pool.close()
    print("fine", flush=True)
    """
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    with start(code, start_new_session=True, env=environment) as parent:
        descendants = wait_for_line(parent)
        time.sleep(0.5)
        os.killpg(parent.pid, signal.SIGINT)
        stdout, stderr = parent.communicate(timeout=60)
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


def test_the_workers_of_a_data_loader() -> None:
    """multiprocessing forks in the middle of the work, from a thread, and its workers stay."""
    code = """
    import multiprocessing
    def ask(count):
        for i in range(count):
            pool.get_batch_loss_and_error_signal(
                np.zeros((4, 2, 3), np.float32), np.array([4, 3]), [f"a/b/{i}", f"a/c/{i}"]
            )
    asking = threading.Thread(target=ask, args=(200,))
    asking.start()
    with multiprocessing.get_context("fork").Pool(3) as workers:
        assert workers.map(abs, range(-50, 0)) == list(range(50, 0, -1))
        asking.join()
        ask(20)
        assert pool.stats()["starts"] == 2
        assert pool.stats()["failures"] == 0
        pool.close()
        print("closed", flush=True)
    print("fine", flush=True)
    """
    with start(code) as parent:
        stdout, stderr = parent.communicate(timeout=60)
    assert stdout == "closed\nfine\n", stderr


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
