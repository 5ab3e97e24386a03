"""A child that speaks version 2 of the protocol, and misbehaves when a segment's name asks it to.

`python second_sprint.py SPRINT_SIDE --*.pymod-config=...`.  Its answers are those of
`fake_sprint.py`.
"""

import os
import signal
import struct
import subprocess
import sys
import time
import types

import numpy as np

package = types.ModuleType("control")
package.__path__ = [os.path.join(sys.argv[1], "jax_sprint_control")]
sys.modules["control"] = package
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from control import child_codec, wire, wire_v2  # noqa: E402
from fake_sprint import Death, expected, expected_automaton  # noqa: E402

config = dict(
    pair.split(":", 1)
    for word in sys.argv
    if word.startswith("--*.pymod-config=")
    for pair in word.split("=", 1)[1].split(",")
)
channel = wire.Channel(int(config["p2c_fd"]), int(config["c2p_fd"]))
death = Death(sys.argv, config)


def misbehave(fault, request, reply):
    """Sends something wrong; True if that was the answer."""
    number, name = request.number, request.name
    rows, columns = request.rows, request.columns
    size = 4 * rows * columns
    zeros = [np.zeros((rows, columns), np.float32).reshape(-1)]
    offset = wire_v2.reply_offset(size)

    def write(kind, number=number, name=name, rows=rows, columns=columns, **more):
        wire_v2.write_message(channel, None, kind, number, name, rows, columns, **more)

    if fault == "number":
        write(wire_v2.LOSS_REPLY, number=number + 1, payload=zeros)
    elif fault == "name":
        write(wire_v2.LOSS_REPLY, name=b"a/other/1", payload=zeros)
    elif fault == "kind":
        write(wire_v2.AUTOMATON_REPLY, columns=0)
    elif fault == "request":
        write(wire_v2.LOSS_REQUEST, payload=zeros)
    elif fault == "shape":
        write(wire_v2.LOSS_REPLY, rows=columns, columns=rows, payload=zeros)
    elif fault == "bytes":
        write(wire_v2.LOSS_REPLY, rows=rows + 1, payload=zeros)
    elif fault == "offset":
        write(wire_v2.LOSS_REPLY, memory=(offset + 4, size, 0))
    elif fault == "elsewhere":
        write(wire_v2.LOSS_REPLY, memory=(1 << 60, size, 0))
    elif fault == "twice":
        write(wire_v2.LOSS_REPLY, payload=[*zeros, np.zeros(100, np.uint8)][:1])
        write(wire_v2.LOSS_REPLY, payload=zeros)
    elif fault == "huge":
        header = struct.pack(
            "<4sHHQIIQQQQQd", b"JSv2", 4, 0, number, len(name), 0, 1, 1, 1 << 40, 0, 0, 0.0
        )
        os.write(channel.write_fd, header + name)
    elif fault == "long name":
        header = struct.pack("<4sHHQIIQQQQQd", b"JSv2", 4, 0, number, 1 << 31, 0, *[0] * 5, 0.0)
        os.write(channel.write_fd, header)
    elif fault == "magic":
        os.write(channel.write_fd, b"x" * 200)
    elif fault == "half":
        header = struct.pack(
            "<4sHHQIIQQQQQd", b"JSv2", 4, 0, number, len(name), 0, rows, columns, size, 0, 0, 0.0
        )
        os.write(channel.write_fd, header + name + b"abc")
        os._exit(6)
    elif fault == "close":
        os.close(channel.write_fd)
        time.sleep(60)
    elif fault == "close input":
        channel.send(reply)
        os.close(channel.read_fd)
        time.sleep(60)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "hang":
        time.sleep(60)
    elif fault == "grandchild":
        code = "import time; time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", code], close_fds=False)
        channel.send(reply)
    elif fault == "truncate":
        # Everything that could take the memory away from under the parent must fail.
        import fcntl

        for attempt in (
            lambda: os.ftruncate(int(config["shm_fd"]), 0),
            lambda: fcntl.fcntl(int(config["shm_fd"]), fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW),
        ):
            try:
                attempt()
            except PermissionError:
                continue
            os._exit(7)
        channel.send(reply)
    elif fault == "edges":
        write(wire_v2.AUTOMATON_REPLY, rows=2, columns=3, payload=[np.zeros(40, np.uint8)])
    elif fault == "unknown":
        channel.send(("exception", "segment ü not in the corpus"))
    else:
        return False
    return True


while True:
    if channel._codec is not None:
        channel.poll(None)
        death.come("before")
        if death.due("inside"):
            os.read(channel.read_fd, 10)
            death.die()
    command, *args = channel.receive()
    if channel._codec is not None:
        death.come("after")
    if command == "exit":
        break
    if command == "init":
        channel.send(("ok", "SprintControl", 1, *child_codec.offered_versions(config)))
        continue
    if command == "upgrade":
        channel.send(("ok", *child_codec.accept_upgrade(channel, config, *args)))
        continue
    assert channel._codec is not None or config.get("protocol") != "2"
    if command == "get_loss_and_error_signal":
        assert args[2].flags.aligned
        loss, error_signal = expected(args[0], args[2])
        reply = ("ok", loss, np.asfortranarray(error_signal))
    else:
        reply = ("ok", *expected_automaton(args[0]))
    fault = args[0].split("/")[1]
    if death.due("reply"):
        request = channel._codec.request
        size = 4 * request.rows * request.columns
        header = struct.pack(
            "<4sHHQIIQQQQQd",
            *(b"JSv2", wire_v2.LOSS_REPLY, 0, request.number, len(request.name), 0),
            *(request.rows, request.columns, size, 0, 0, 0.0),
        )
        os.write(channel.write_fd, header + request.name + bytes(size // 2))
        death.die()
    if not misbehave(fault, channel._codec.request, reply):
        channel.send(reply)
