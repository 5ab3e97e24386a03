"""Every way in which talking to Sprint can fail, as one family of exceptions.

The family is small on purpose: a caller wants to know *who has to act*.  A configuration error is
the user's, a start error is the machine's, a crash is Sprint's, a protocol error is a bug (or a
foreign control module), a request error belongs to one segment, and a time-out may pass by itself.

Only the standard library is imported here: the host bridge and the command line share this module.
"""

from __future__ import annotations

import signal
import traceback

__all__ = [
    "SprintClosedError",
    "SprintCrashError",
    "SprintError",
    "SprintProtocolError",
    "SprintRequestError",
    "SprintStartError",
    "SprintTimeoutError",
    "describe_exit",
    "let_go",
]


class SprintError(Exception):
    """Base class of everything that goes wrong between us and Sprint.

    Attributes:
        message: what happened, without the particulars below.
        segment: full name of the segment that was asked for, or None where none was.
        exit_status: what `subprocess.Popen.returncode` held (negative: killed by that signal), or
            None while the child lives or where there is no child.
        stderr_tail: the last lines that the child wrote to its standard error, "" if none.
    """

    def __init__(
        self,
        message: str,
        *,
        segment: str | None = None,
        exit_status: int | None = None,
        stderr_tail: str = "",
    ) -> None:
        self.message = message
        self.segment = segment
        self.exit_status = exit_status
        self.stderr_tail = stderr_tail
        parts = [message]
        if segment is not None and segment not in message:
            parts.append(f"segment: {segment!r}")
        if exit_status is not None:
            parts.append(f"the child {describe_exit(exit_status)}")
        if stderr_tail:
            indented = "\n".join("    " + line for line in stderr_tail.rstrip().splitlines())
            parts.append(f"its last lines on stderr:\n{indented}")
        super().__init__("\n  ".join(parts))

    def extended(self, text: str = "", *, segment: str | None = None) -> SprintError:
        """The same error with something added to its message, and itself as the cause.

        Args:
            text: what to add.
            segment: the segment, where the error does not know it yet.
        """
        error = type(self)(
            f"{self.message} {text}".rstrip(),
            segment=self.segment if segment is None else segment,
            exit_status=self.exit_status,
            stderr_tail=self.stderr_tail,
        )
        error.__cause__ = self
        return error


class SprintStartError(SprintError):
    """The executable is missing, is not executable, or died before it answered the handshake."""


class SprintProtocolError(SprintError):
    """What arrived is no valid message: garbage, another version, a wrong shape or dtype."""


class SprintCrashError(SprintError):
    """The child died, or closed its pipe, while it owed us an answer."""


class SprintTimeoutError(SprintError):
    """The child is alive, as far as we can tell, but did not answer before the deadline."""


class SprintRequestError(SprintError):
    """Sprint answered that it cannot serve this request: an unknown segment, a word not in the
    lexicon.  The child survives and serves the next one."""


class SprintClosedError(SprintError):
    """The pool or the instance was closed; its `init()` opens it again."""


def describe_exit(status: int) -> str:
    """Says in words what a `Popen.returncode` means.

    Args:
        status: exit status, or minus the number of the signal that ended the process.

    Returns:
        For example ``"exited with status 1"`` or ``"was killed by signal 9 (SIGKILL)"``.
    """
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return f"was killed by signal {-status}"
    return f"was killed by signal {-status} ({name})"


def let_go(error: BaseException) -> None:
    """Empties the frames that an error came through, and those of the errors behind it.

    They hold the caller's arrays and the memory of a child that is gone, and whoever keeps the
    error would keep these; its message and the lines of its traceback stay.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]
