"""One Sprint process: started, watched, and gone when it is no longer wanted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from pathlib import Path
from typing import BinaryIO

from jax_sprint.bridge import guardian
from jax_sprint.bridge.command import build_command, build_environment
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.output import OutputDrain
from jax_sprint.bridge.protocols import VersionOne, VersionTwo, make_memory
from jax_sprint.errors import SprintError, SprintStartError
from jax_sprint.sprint_side.jax_sprint_control.wire import (
    Channel,
    PeerClosedError,
    WireTimeoutError,
)

__all__ = ["ChildProcess"]

logger = logging.getLogger("jax_sprint")

_PIPE_BYTES = 1 << 20
# How long the system may take to remove a process that was killed.
_KILL_PATIENCE = 10.0
_numbers = itertools.count(1)
_alive: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


class ChildProcess:
    """Starts Sprint with two pipes whose descriptors are named on its command line.

    The process leads a session and process group of its own: a Ctrl-C on the terminal does not
    reach it, and whatever it starts is found again and killed with it.

    `kill` may be called from any thread, the rest from one thread at a time.

    Args:
        options: what to start.

    Attributes:
        channel: our ends of the two pipes.
        memory: the shared memory that was offered to the child, or None.
        protocol: how requests are put; version 1 until `change_protocol`.
        pid: process id, and number of the process group.

    Raises:
        SprintStartError: it cannot be started.
        ValueError: the options cannot be expressed on a command line.
    """

    def __init__(self, options: SprintOptions) -> None:
        self.options = options
        self.owner_pid = os.getpid()
        self.exit_status: int | None = None
        self._lock = threading.Lock()
        self._reaped = False
        number = next(_numbers)
        try:
            with contextlib.ExitStack() as cleanup:
                self._start(number, cleanup)
                cleanup.pop_all()
        except OSError as error:
            raise SprintStartError(_explain(error, options)) from error
        _alive.add(self)
        logger.debug("started Sprint: pid %d, %s", self.pid, self.command)

    def _start(self, number: int, cleanup: contextlib.ExitStack) -> None:
        options = self.options
        if options.cwd is not None and not os.path.isdir(options.cwd):
            raise SprintStartError(f"cwd {os.fspath(options.cwd)!r} is not a directory")
        ours: list[int] = []
        theirs = contextlib.ExitStack()
        cleanup.push(theirs)

        def pipe(their_end: int) -> tuple[int, int]:
            ends = os.pipe()
            theirs.callback(os.close, ends[their_end])
            ours.append(ends[1 - their_end])
            cleanup.callback(os.close, ours[-1])
            with contextlib.suppress(OSError, AttributeError):
                # Less switching to and fro; there is a limit per user, beyond which it must do.
                fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            return ends

        reply_write = pipe(1)[1]
        request_read = pipe(0)[0]
        out_write = pipe(1)[1]
        err_write = pipe(1)[1]
        inherited = [reply_write, request_read]
        extra = {} if options.protocol_version < 2 else {"protocol": options.protocol_version}
        self.memory = None
        if options.protocol_version >= 2 and options.shared_memory:
            self.memory = make_memory()
        if self.memory is not None:
            cleanup.callback(self.memory.close)
            inherited.append(self.memory.fd)
            extra["shm_fd"] = self.memory.fd
        environment = build_environment(options)
        self.command = build_command(
            options,
            environment,
            child_to_parent_fd=reply_write,
            parent_to_child_fd=request_read,
            extra=extra,
        )
        files = _open_logs(options, number, self.command)
        for file in files.values():
            cleanup.callback(file.close)
        wake = os.pipe()
        for end in wake:
            cleanup.callback(os.close, end)
        self.drain = OutputDrain(
            {"stdout": ours[2], "stderr": ours[3]}, files, wake, f"jax_sprint output {number}"
        )
        self._popen = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            pass_fds=inherited,
            env=environment,
            cwd=options.cwd,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        cleanup.callback(self._abort)
        theirs.close()
        guardian.watch(self.pid)
        self.channel = Channel(ours[0], ours[1], options.max_message_bytes)
        self.protocol: VersionOne | VersionTwo = VersionOne(self.channel)
        self.drain.start()

    def _abort(self) -> None:
        self.kill()
        guardian.release(self.pid)
        self._popen.wait()

    def change_protocol(self, with_memory: bool, under_way: int, segments: int) -> None:
        """Speaks version 2 from now on, with that many requests, of so many segments, at a time."""
        memory = self.memory if with_memory else None
        self.protocol = VersionTwo(self.channel, memory, under_way, segments)

    # ---------------------------------------------------------------------------------- its end

    def wait(self, timeout: float) -> bool:
        """Waits until the process itself has ended (it is not reaped by that)."""
        deadline = time.monotonic() + timeout
        while not self._has_ended():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            _sleep_until_exit(self.pid, left)
        return True

    def kill(self) -> None:
        """Kills the process and all of its group at once; `finish` cleans up after it."""
        with self._lock:
            if not self._reaped and os.getpid() == self.owner_pid:
                # Not reaped: its number, and so the group's, still belong to it.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Tells an idle child to exit, waits for that, and kills what is still there."""
        if self._reaped or os.getpid() != self.owner_pid:
            return
        if not self._has_ended():
            with contextlib.suppress(PeerClosedError, WireTimeoutError, OSError):
                self.protocol.say_exit(1.0)
        self.channel.close_write()
        self.finish(self.options.exit_timeout)

    def finish(self, patience: float = 0.0) -> None:
        """Waits `patience` seconds for the end, kills whatever is left, and releases everything.

        Afterwards `exit_status` holds what the process ended with.
        """
        if self._reaped or os.getpid() != self.owner_pid:
            return
        self.wait(patience)
        self.kill()
        ended = self.wait(_KILL_PATIENCE)
        if not ended:
            logger.warning("Sprint, pid %d, does not go away even by SIGKILL", self.pid)
        guardian.release(self.pid)
        with self._lock:
            self._reaped = True
            if ended:
                self.exit_status = self._popen.wait()
        self.channel.close()
        if self.memory is not None:
            self.memory.close()
        self.drain.stop(2.0)
        _alive.discard(self)

    def error(self, kind: type[SprintError], message: str, segment: str | None) -> SprintError:
        """An error that tells what is known about this process, after `finish`."""
        stderr = self.drain.tail("stderr")
        stdout = "" if stderr else self.drain.tail("stdout")
        if stdout:
            indented = "\n".join("    " + line for line in stdout.splitlines())
            message += f"\n  its last lines on stdout:\n{indented}"
        return kind(message, segment=segment, exit_status=self.exit_status, stderr_tail=stderr)

    def _has_ended(self) -> bool:
        if self._reaped:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            # Somebody else waits for all children of this process, or SIGCHLD is ignored.
            return True


def _sleep_until_exit(pid: int, timeout: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):
        time.sleep(min(timeout, 0.01))
        return
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll(int(timeout * 1000) + 1)
    finally:
        os.close(fd)


def _open_logs(options: SprintOptions, number: int, command: list[str]) -> dict[str, BinaryIO]:
    if options.log_dir is None:
        return {}
    directory = Path(options.log_dir)
    stem = f"sprint-{os.getpid()}-{number}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{stem}.command").write_text("\n".join(command) + "\n", "utf-8")
        return {
            stream: (directory / f"{stem}.{stream}").open("wb") for stream in ("stdout", "stderr")
        }
    except OSError as error:
        raise SprintStartError(
            f"cannot write Sprint's output to log_dir {str(directory)!r}: {error}"
        ) from error


def _explain(error: OSError, options: SprintOptions) -> str:
    program = "the embedded Sprint" if options.exec_path is None else f"{options.exec_path!r}"
    reason = f"cannot start {program}: {error}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{reason}; each Sprint takes about 8 file descriptors here: raise `ulimit -n`"
    if error.errno == errno.ENOEXEC:
        return f"{reason}; is it built for this machine, or a script without its #! line?"
    if error.errno == errno.E2BIG:
        return f"{reason}; move arguments from config= into a file and pass --config=FILE"
    return reason


def _after_fork_in_child() -> None:
    # A copy of our pipe ends in a forked process would hide our death from the children.
    for child in list(_alive):
        child.channel.close()
        if child.memory is not None:
            child.memory.close()
    _alive.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
