"""Runs as a process of its own: kills the children of a process that died without doing so.

Standard input brings lines, ``+GROUP`` and ``-GROUP`` (numbers of process groups).  When it ends,
the groups that are left are killed.  A stopped or computing child does not notice that its parent
is gone, and the parent cannot act any more when it was killed by signal 9; this process can.

It is started as a script, without site packages, so it must import next to nothing.
"""

import os
import signal


def main() -> None:
    # A terminal's or a batch system's signals to everybody are no reason to leave the post early.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    groups = set()
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line[:1] == b"+":
                groups.add(int(line[1:]))
            elif line[:1] == b"-":
                groups.discard(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
