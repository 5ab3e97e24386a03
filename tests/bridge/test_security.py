"""Neither side can make the other one run code, take its memory, or be read by another user."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import jax_sprint
from jax_sprint.bridge import SprintInstancePool, SprintOptions, SprintSubprocessInstance
from jax_sprint.bridge.options import default_control_module
from jax_sprint.errors import SprintError, SprintProtocolError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

PACKAGE = Path(jax_sprint.__file__).parent
SECOND = Path(__file__).with_name("second_sprint.py")
EVIL_CHILD = """
import os, pickle, struct, sys
config = dict(pair.split(":", 1) for pair in next(
    word for word in sys.argv if word.startswith("--*.pymod-config=")
).split("=", 1)[1].split(","))
inp, out = int(config["p2c_fd"]), int(config["c2p_fd"])

class Evil:
    def __reduce__(self):
        return CALLS[sys.argv[1]]

CALLS = {
    "system": (os.system, ("touch " + sys.argv[2],)),
    "eval": (eval, (f"open({sys.argv[2]!r}, 'w')",)),
    "open": (open, (sys.argv[2], "w")),
    "import": (__import__, ("antigravity",)),
    "partial": (__import__("functools").partial(os.mkdir, sys.argv[2]), ()),
}

def answer(message):
    size, = struct.unpack("<i", os.read(inp, 4))
    os.read(inp, size)
    data = pickle.dumps(message)
    os.write(out, struct.pack("<i", len(data)) + data)

stage = sys.argv[3]
answer(("ok", Evil(), 1) if stage == "handshake" else ("ok", "SprintControl", 1))
answer(("ok", 1.0, Evil()))
"""


@pytest.mark.parametrize("stage", ["handshake", "reply"])
@pytest.mark.parametrize("how", ["system", "eval", "open", "import", "partial"])
def test_a_child_cannot_run_code_here(options, tmp_path: Path, how: str, stage: str) -> None:
    script = tmp_path / "evil.py"
    script.write_text(EVIL_CHILD)
    marker = tmp_path / "was here"
    evil = options(exec_path=[sys.executable, "-S", str(script), how, str(marker), stage])
    with (
        SprintInstancePool(evil) as pool,
        pytest.raises(SprintProtocolError, match="is not permitted"),
    ):
        pool.get_batch_loss_and_error_signal(np.zeros((4, 1, 3)), [4], ["a/b/1"])
    assert not marker.exists()
    assert "antigravity" not in sys.modules


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


@pytest.fixture
def embedded(golden_dir: Path) -> SprintOptions:
    """The control module that also runs inside RASR, speaking version 1."""
    return SprintOptions(
        config="--config=config/a_mono3_default.config", cwd=golden_dir, protocol_version=1
    )


def test_we_cannot_run_code_in_a_child(embedded, tmp_path: Path) -> None:
    """Or whoever gets hold of the pipe."""
    marker = tmp_path / "was here"
    with SprintSubprocessInstance(embedded) as instance:
        data = pickle.dumps(("get_loss_and_error_signal", "tiny/rec1/seg1", Evil(marker)))
        child = instance._child
        os.set_blocking(child.channel.write_fd, True)
        os.write(child.channel.write_fd, struct.pack("<i", len(data)) + data)
        assert child.wait(10)
        # It ends, as nobody knows what would come next on the pipe.
        with pytest.raises(SprintError, match="is not permitted"):
            instance.export_allophone_state_fsa_by_segment_name("tiny/rec1/seg1")
    assert not marker.exists()


def test_a_child_does_not_take_memory_for_a_promise(embedded) -> None:
    with SprintSubprocessInstance(embedded) as instance:
        child = instance._child
        process = psutil.Process(child.pid)
        before = process.memory_info().rss
        # As large as it accepts; and the first few bytes of it.
        os.write(child.channel.write_fd, struct.pack("<i", 1 << 30) + b"\x80\x02")
        assert not child.wait(0.3)
        assert process.memory_info().rss < before + (16 << 20)
        instance.kill()
    with SprintSubprocessInstance(embedded) as instance:
        child = instance._child
        os.write(child.channel.write_fd, struct.pack("<i", (1 << 31) - 1))
        assert child.wait(10)
        assert "claims 2147483647 bytes" in child.drain.tail("stderr")


@pytest.fixture
def second() -> SprintOptions:
    return SprintOptions(exec_path=[sys.executable, str(SECOND), default_control_module()[0]])


def test_the_memory_has_no_name_and_one_owner(second) -> None:
    with SprintSubprocessInstance(second) as instance:
        fd = instance._child.memory.fd
        status = os.fstat(fd)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_uid == os.geteuid()
        assert status.st_nlink == 0
        assert "memfd:jax_sprint" in os.readlink(f"/proc/self/fd/{fd}")
        # Not for programs that are started by others meanwhile.
        assert not os.get_inheritable(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to try")
def test_another_user_cannot_reach_it(second) -> None:
    with SprintSubprocessInstance(second) as instance:
        for pid in (os.getpid(), instance.pid):
            folder = f"/proc/{pid}/fd"
            reachable = []
            for number in os.listdir(folder):
                # The listing itself was one of them.
                with contextlib.suppress(FileNotFoundError):
                    what = os.readlink(f"{folder}/{number}")
                    if "memfd:jax_sprint" in what or "pipe:" in what:
                        reachable.append(number)
            assert len(reachable) >= 3
            for number in reachable:
                tried = subprocess.run(
                    ["head", "-c", "1", f"{folder}/{number}"],
                    user=65534,
                    group=65534,
                    extra_groups=[],
                    capture_output=True,
                    text=True,
                    timeout=10,
                )
                assert tried.returncode != 0
                assert "Permission denied" in tried.stderr
                assert tried.stdout == ""


def test_no_shell_sees_the_options(options, tmp_path: Path) -> None:
    marker = tmp_path / "was here"
    words = [f"--a=$(touch {marker})", f"; touch {marker}", f"`touch {marker}`", f"|touch {marker}"]
    with SprintSubprocessInstance(options("", *words)) as instance:
        assert psutil.Process(instance.pid).cmdline()[-4:] == words
        assert instance.is_alive
    assert not marker.exists()


def test_no_shell_and_no_pickle_anywhere() -> None:
    forbidden = {
        *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
        *("os.fork", "os.forkpty", "pickle.load", "pickle.loads", "pickle.Unpickler"),
        *("marshal.loads", "shelve.open", "eval", "exec", "__import__"),
    }
    found = []
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            unsafe = any(
                keyword.arg in ("shell", "allow_pickle") and ast.unparse(keyword.value) != "False"
                for keyword in node.keywords
            )
            if name in forbidden or unsafe:
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {name}")
    assert found == []
