"""A Sprint with the package's own control module, which tells what waits for it and misbehaves.

`python queue_sprint.py [--old] [--served=FILE] --*.pymod-path=... --*.pymod-name=... ...`.  Its
answers are those of `fake_sprint.py`.  A segment named `a/FAULT/...` has it fail:

* `wait`: answers only once another request waits, and refuses if none comes within five seconds;
* `kill`, `once`: kills itself, always or only the first time;
* `stop`: stops itself; `slow`: takes 0.4 seconds; `hang`: takes a minute;
* `refuse`: raises; `nan`: an error signal with NaN.

With `--posteriors` it wants probabilities, like RASR, and keeps those of each second segment.

With `--old` it is a control module from before several requests could be under way: it does not
offer that, and ends if a second one comes before the first was answered, or anything but at the
front of the memory.
"""

import importlib
import os
import signal
import sys
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fake_sprint import expected, expected_automaton


def option(name):
    return next((a.split("=", 1)[1] for a in sys.argv if a.startswith(name + "=")), None)


class Callback:
    offers = () if "--posteriors" in sys.argv else ("log_posteriors",)
    control = None
    kept = []  # noqa: RUF012

    def __call__(self, command, *arguments, **keywords):
        if command == "get_orthography_by_segment_name":
            return "one"
        name = keywords["segment_name"] if keywords else arguments[0]
        if option("--served"):
            with open(option("--served"), "a") as file:
                file.write(f"{os.getpid()} {name}\n")
        self.misbehave(name.split("/")[1])
        if command == "export_allophone_state_fsa_by_segment_name":
            return expected_automaton(name)
        log_posteriors = self.log_posteriors(**keywords)
        loss, error_signal = expected(name, log_posteriors)
        if name.split("/")[1] == "nan":
            error_signal = error_signal * np.float32("nan")
        return loss, error_signal.T

    def log_posteriors(self, log_posteriors=None, posteriors=None, **_ignored):
        if posteriors is None:
            return log_posteriors.T
        if not all((held == copy).all() for held, copy in self.kept):
            raise RuntimeError("what we held was changed")
        if len(self.kept) % 2 == 0:
            self.kept.append((posteriors[1:], posteriors[1:].copy()))
        else:
            self.kept.append((posteriors[1:].copy(),) * 2)
        return np.log(posteriors.T)

    def misbehave(self, fault):
        if fault == "wait" and not self.control._channel.poll(5):
            raise RuntimeError("nothing waits")
        if fault == "once":
            try:
                os.close(os.open(option("--marker"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            fault = "kill"
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "slow":
            time.sleep(0.4)
        if fault == "hang":
            time.sleep(60)
        if fault == "refuse":
            raise ValueError("not this one")


def make_old(package):
    child_codec = importlib.import_module(package + ".child_codec")
    receive = child_codec.ChildCodec.receive

    def lockstep(self, channel, deadline, max_bytes):
        message = receive(self, channel, deadline, max_bytes)
        if channel.ahead or self.request.offset:
            os._exit(9)
        return message

    child_codec.ChildCodec.receive = lockstep
    control = importlib.import_module(package + ".control")
    control.offered_versions = lambda values: ([2],)


sys.path.insert(0, option("--*.pymod-path"))
if "--old" in sys.argv:
    make_old(option("--*.pymod-name"))
module = importlib.import_module(option("--*.pymod-name"))
callback = Callback()
callback.control = module.init(
    name="Sprint.PythonControl",
    sprint_unit="test",
    reference=None,
    callback=callback,
    version_number=5,
    config=option("--*.pymod-config"),
)
callback.control.run_control_loop(callback=callback)
