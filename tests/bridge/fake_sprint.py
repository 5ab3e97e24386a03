"""Plays Sprint for the tests of the bridge, and fails in whatever way it is told to.

Started as a real process: `python fake_sprint.py [--fault=NAME] --*.pymod-config=... ...`.  The
`--fault` concerns the start and the handshake; while running, a segment named `corpus/FAULT/...`
has it fail with that request.  `--death=STAGE HOW` has it die by HOW (exit, SIGKILL, SIGSEGV) at
the first request: before, inside or after reading it, or in the middle of its reply.  Everything
else gets a loss and an error signal that depend on the name and the posteriors, so that answers
cannot be confused unnoticed.

Written with the standard library's pickle, so that our wire is tested against another
implementation.
"""

import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time

import numpy as np


def expected(name, log_posteriors):
    """Loss and error signal that this Sprint gives."""
    key = sum(name.encode()) % 1000
    loss = np.float32(np.where(np.isfinite(log_posteriors), log_posteriors, 0).sum() + key)
    return loss, np.where(np.isfinite(log_posteriors), log_posteriors * 2 + key, 0).astype("f4")


def expected_automaton(name):
    """(num_states, num_edges, edges, weights) that this Sprint gives: a chain with loops."""
    states = 2 + sum(name.encode()) % 5
    ids = np.arange(states - 1, dtype="u4")
    source = np.concatenate([ids, ids])
    target = np.concatenate([ids, ids + 1])
    edges = np.stack([source, target, target * 3]).astype("u4").reshape(-1)
    return states, len(source), edges, np.linspace(0, 1, len(source)).astype("f4")


class Death:
    """How and when to die, from the command line.  With a marker file in the configuration only
    the first process dies, which leaves it behind."""

    STAGES = ("before", "inside", "after", "reply")
    WAYS = ("exit", "SIGKILL", "SIGSEGV")

    def __init__(self, args, config):
        text = next((a[8:] for a in args if a.startswith("--death=")), " ")
        self.stage, self.how = text.split(" ")
        self.marker = config.get("marker")

    def due(self, stage):
        """Whether this is the stage, and this the process."""
        if stage != self.stage:
            return False
        if self.marker:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
        return True

    def die(self):
        os.write(2, b"dying as told\n")
        if self.how == "exit":
            os._exit(5)
        os.kill(os.getpid(), getattr(signal, self.how))

    def come(self, stage):
        if self.due(stage):
            self.die()


class Fake:
    def __init__(self, args):
        self.fault = next((a[8:] for a in args if a.startswith("--fault=")), "")
        self.patience = float(next((a[8:] for a in args if a.startswith("--sleep=")), "0.5"))
        text = next(a for a in args if a.startswith("--*.pymod-config=")).split("=", 1)[1]
        self.config = dict(pair.split(":", 1) for pair in text.split(","))
        self.out = int(self.config["c2p_fd"])
        self.inp = int(self.config["p2c_fd"])
        self.marker = self.config.get("marker")
        self.death = Death(args, self.config)

    def read_bytes(self, size):
        data = b""
        while len(data) < size:
            piece = os.read(self.inp, size - len(data))
            if not piece:
                sys.exit(0)
            data += piece
        return data

    def read(self):
        return pickle.loads(self.read_bytes(struct.unpack("<i", self.read_bytes(4))[0]))

    def read_request(self):
        select.select([self.inp], [], [])
        self.death.come("before")
        (size,) = struct.unpack("<i", self.read_bytes(4))
        data = self.read_bytes(size // 2)
        self.death.come("inside")
        data += self.read_bytes(size - len(data))
        self.death.come("after")
        return pickle.loads(data)

    def write_bytes(self, data):
        while data:
            data = data[os.write(self.out, data) :]

    def write(self, message, protocol=4):
        data = pickle.dumps(message, protocol)
        self.write_bytes(struct.pack("<i", len(data)) + data)

    def start(self):
        fault = self.fault
        if "starts" in self.config:
            with open(self.config["starts"], "a") as file:
                file.write("started\n")
        if fault == "meet":
            self.meet()
        if fault == "dies":
            print("cannot open my licence file", file=sys.stderr)
            sys.exit(3)
        if fault == "nonsense":
            print("Usage: something else entirely")
            sys.exit(0)
        if fault == "silent":
            time.sleep(60)
        if fault == "once" and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "only first":
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                print("no licence left", file=sys.stderr)
                sys.exit(3)
        if fault == "noisy start":
            sys.stdout.write("<xml>noise</xml>\n" * 100000)
            sys.stdout.flush()
        if fault == "garbage":
            self.write_bytes(b"HTTP/1.1 200 OK\r\n\r\n")
        if fault == "closes pipes":
            os.close(self.out)
            os.close(self.inp)
            time.sleep(60)
        if fault == "slow start":
            time.sleep(self.patience)
        message = self.read()
        assert message == ("init", "SprintSubprocessInstance", 1), message
        if fault == "exits in handshake":
            os._exit(4)
        answers = {
            "version": ("ok", "SprintControl", 7),
            "refuses": ("exception", "need new Sprint"),
            "wrong answer": ["ok"],
            "hostile": print,
        }
        self.write(answers.get(fault, ("ok", "SprintControl", 1)))

    def run(self):
        self.start()
        while True:
            command, *args = self.read_request()
            if command == "exit":
                if self.fault == "will not exit":
                    time.sleep(60)
                return
            name = args[0]
            parts = name.split("/")
            fault = parts[1] if len(parts) > 1 else ""
            if fault == "once" and not os.path.exists(self.marker):
                open(self.marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            reply = getattr(self, "do_" + command)(*args)
            if self.death.stage == "reply":
                data = pickle.dumps(reply, 4)
                data = struct.pack("<i", len(data)) + data
                self.write_bytes(data[: len(data) // 2])
                self.death.come("reply")
                self.write_bytes(data[len(data) // 2 :])
                continue
            reply = self.misbehave(fault, reply)
            if reply is not None:
                self.write(reply)

    def do_get_loss_and_error_signal(self, name, length, log_posteriors):
        assert type(length) is int, type(length)
        assert log_posteriors.dtype == np.float32
        assert log_posteriors.shape[0] == length
        assert not np.isnan(log_posteriors).any()
        return ("ok", *expected(name, log_posteriors))

    def do_export_allophone_state_fsa_by_segment_name(self, name):
        return ("ok", *expected_automaton(name))

    def meet(self):
        """Waits until as many processes as expected have come here; alone, that is for ever."""
        folder = self.config["meet"]
        self.meetings = getattr(self, "meetings", 0) + 1
        open(os.path.join(folder, f"{self.meetings}-{os.getpid()}"), "w").close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            here = [n for n in os.listdir(folder) if n.startswith(f"{self.meetings}-")]
            if len(here) >= int(self.config["number"]):
                return
            time.sleep(0.01)
        sys.exit(9)

    def misbehave(self, fault, reply):
        whole = pickle.dumps(reply, 4)
        frame = struct.pack("<i", len(whole)) + whole
        if fault == "unknown":
            return ("exception", "segment not in the corpus: " + fault)
        if fault == "no reason":
            return ("exception", "")
        if fault == "exit":
            print("lattice not found", file=sys.stderr)
            sys.stderr.flush()
            os._exit(5)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "segv":
            print("about to touch null", file=sys.stderr)
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "half":
            self.write_bytes(frame[: len(frame) // 2])
            os._exit(6)
        if fault == "garbage":
            self.write_bytes(b"\x10\0\0\0" + b"not a pickle....")
            return None
        if fault == "huge":
            self.write_bytes(struct.pack("<i", 0x7FFFFFFF) + b"x" * 100)
            return None
        if fault == "negative":
            self.write_bytes(struct.pack("<i", -1))
            return None
        if fault == "hostile":
            return ("ok", os.system, 1)
        if fault == "hang":
            time.sleep(60)
        if fault == "meet":
            self.meet()
        if fault == "slow":
            time.sleep(self.patience)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "twice":
            self.write(reply)
        if fault == "shape":
            return ("ok", 1.0, np.zeros((3, 3), "f4"))
        if fault == "transposed":
            return ("ok", 1.0, np.ascontiguousarray(reply[2].T))
        if fault == "dtype":
            return ("ok", 1.0, reply[2].astype("i4"))
        if fault == "text":
            return ("ok", "1.0", reply[2])
        if fault == "short":
            return ("ok", 1.0)
        if fault == "status":
            return ("maybe", 1.0)
        if fault == "nan":
            return ("ok", float("nan"), reply[2] * np.float32("nan"))
        if fault == "inf":
            return ("ok", float("inf"), reply[2])
        if fault == "nan error":
            return ("ok", 1.0, reply[2] * np.float32("nan"))
        if fault == "float64":
            return ("ok", float(reply[1]), reply[2].astype("f8"))
        if fault == "flood":
            block = b"E" * 999 + b"\n"
            for _ in range(20000):
                os.write(2, block)
                os.write(1, block)
            os.write(2, b"the last line\n")
        if fault in ("gigabyte on stdout", "gigabyte on stderr"):
            block = b"F" * ((1 << 20) - 1) + b"\n"
            for _ in range(1000):
                rest = block
                while rest:
                    rest = rest[os.write(1 if "stdout" in fault else 2, rest) :]
            os.write(2, b"the last line\n")
        if fault == "close":
            os.close(self.out)
            time.sleep(60)
        if fault == "close input":
            os.close(self.inp)
            self.write(reply)
            time.sleep(60)
        if fault == "states":
            return ("ok", 1, *reply[2:])
        if fault == "edges":
            return ("ok", reply[1], reply[2] + 1, *reply[3:])
        if fault == "grandchild":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return reply


if __name__ == "__main__":
    Fake(sys.argv[1:]).run()
