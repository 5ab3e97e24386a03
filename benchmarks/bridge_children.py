"""Plays Sprint for benchmarks/bridge.py: does the least that a Sprint must do, at a set pace.

    python bridge_children.py [--ms=20] [--frame-ms=0] [--start-ms=0] --*.pymod-path=... ...

Loads the control module that the command line names, ours or RETURNN's, as Sprint would, and
answers its callbacks: the posteriors themselves as the error signal, and always the same automaton.
numpy and the standard library only; any Python from 3.8 on.
"""

import importlib
import sys
import time

import numpy as np


def option(name, default=None):
    for word in sys.argv[1:]:
        if word.startswith(name + "="):
            return word.split("=", 1)[1]
    return default


class Callback:
    """What Sprint gives to its Python: see the control module."""

    # The log-posteriors are wanted as they are, so no exp is measured.
    offers = ("log_posteriors",)

    def __init__(self):
        self.pause = float(option("--ms", 0)) / 1e3
        self.frame_pause = float(option("--frame-ms", 0)) / 1e3
        states = np.arange(60, dtype=np.uint32)
        loops = np.stack([states, states, states % 40])
        forward = np.stack([states, states + 1, states % 40])
        self.edges = np.concatenate([loops, forward], axis=1).reshape(-1)
        self.weights = np.zeros(120, np.float32)

    def __call__(self, command, *arguments, **keywords):
        if command == "calculate_criterion":
            return self.loss(keywords["log_posteriors"])
        if command == "get_loss_and_error_signal":
            return self.loss(arguments[2])
        if command == "get_orthography_by_segment_name":
            return "one two three"
        if command == "export_allophone_state_fsa_by_segment_name":
            return 61, 120, self.edges, self.weights
        if command == "version":
            return "benchmark"
        raise ValueError(command)

    def loss(self, posteriors):
        pause = self.pause + self.frame_pause * max(posteriors.shape)
        if pause:
            time.sleep(pause)
        return 1.5, posteriors


def main():
    time.sleep(float(option("--start-ms", 0)) / 1e3)
    sys.path.insert(0, option("--*.pymod-path"))
    module = importlib.import_module(option("--*.pymod-name"))
    callback = Callback()
    control = module.init(
        name="Sprint.PythonControl",
        sprint_unit="benchmark",
        reference=None,
        callback=callback,
        version_number=5,
        config=option("--*.pymod-config"),
    )
    control.run_control_loop(callback=callback)


if __name__ == "__main__":
    main()
