"""Both ends of RETURNN's side of the protocol, as far as the wire is concerned.

A model of ours, made from what is known of the behaviour: arrays are pickled, by a pickler in pure
Python and in its newest protocol, as a call by name of
`returnn.util.task_system.make_numpy_ndarray_fromstring`; reading is unrestricted; frames are read
and written through buffered files.  Run as `ancestor_model.py child ARGS` it plays the control
module, as `ancestor_model.py parent COMMAND...` it starts a child and asks it.  Needs Python 3.8.
"""

# ruff: noqa

import io
import os
import pickle
import struct
import sys
import types

import numpy as np

HIGHEST = pickle.HIGHEST_PROTOCOL


def make_numpy_ndarray_fromstring(data, dtype, shape):
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()


def install_returnn():
    """Makes `returnn.util.task_system` importable, with the one function that pickles name."""
    for name in ("returnn", "returnn.util", "returnn.util.task_system"):
        sys.modules[name] = types.ModuleType(name)
    function = make_numpy_ndarray_fromstring
    function.__module__ = "returnn.util.task_system"
    sys.modules["returnn.util.task_system"].make_numpy_ndarray_fromstring = function


class Pickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch.copy()

    def save_array(self, array):
        # By name, in the textual form, and not memoized.
        self.write(pickle.GLOBAL + b"returnn.util.task_system\nmake_numpy_ndarray_fromstring\n")
        self.save((array.tobytes(), str(array.dtype), array.shape))
        self.write(pickle.REDUCE)

    dispatch[np.ndarray] = save_array


def write(file, message):
    stream = io.BytesIO()
    Pickler(stream, protocol=HIGHEST).dump(message)
    file.write(struct.pack("<i", len(stream.getvalue())))
    file.write(stream.getvalue())
    file.flush()


def read(file):
    def exactly(size):
        data = b""
        while len(data) < size:
            piece = file.read(size - len(data))
            if not piece:
                raise EOFError("expected %d bytes, got %d" % (size, len(data)))
            data += piece
        return data

    (size,) = struct.unpack("<i", exactly(4))
    assert size > 0
    return pickle.loads(exactly(size))


def answer(command, *args):
    if command == "init":
        name, version = args
        assert version == 1
        return "SprintControl", 1
    if command == "get_loss_and_error_signal":
        name, length, log_posteriors = args
        assert isinstance(length, (int, np.int32)) and not isinstance(length, bool)
        assert length > 0
        assert log_posteriors.ndim == 2 and log_posteriors.shape[0] == length
        loss = log_posteriors.sum() if "numpy" in name else float(log_posteriors.sum())
        return loss, (-log_posteriors).astype("float32")
    if command == "export_allophone_state_fsa_by_segment_name":
        edges = np.array([0, 0, 0, 1, 3, 4], dtype="uint32")
        return 2, 2, edges, np.array([0.5, 1.5], dtype="float32")
    raise Exception("unknown command %r" % command)


def child(args):
    text = next(a for a in args if a.startswith("--*.pymod-config=")).split("=", 1)[1]
    config = dict(pair.split(":", 1) for pair in text.split(","))
    reply = os.fdopen(int(config["c2p_fd"]), "wb")
    request = os.fdopen(int(config["p2c_fd"]), "rb")
    while True:
        message = read(request)
        assert isinstance(message, tuple)
        if message == ("exit",):
            return
        try:
            result = ("ok",) + answer(*message)
        except Exception as error:
            result = ("exception", str(error))
        write(reply, result)


def parent(command):
    """Starts `command` with both descriptors, asks it everything, and prints what went well."""
    import subprocess

    reply_read, reply_write = os.pipe()
    request_read, request_write = os.pipe()
    config = "c2p_fd:%d,p2c_fd:%d,minPythonControlVersion:2" % (reply_write, request_read)
    command = [word.replace("{config}", config) for word in command]
    process = subprocess.Popen(command, pass_fds=(reply_write, request_read))
    os.close(reply_write)
    os.close(request_read)
    reply = os.fdopen(reply_read, "rb", 0)
    request = os.fdopen(request_write, "wb", 0)

    def ask(*message):
        write(request, message)
        return read(reply)

    result = ask("init", "SprintSubprocessInstance", 1)
    assert result[0] == "ok" and len(result) >= 3 and result[2] == 1, result
    log_posteriors = np.linspace(-3, 0, 5000 * 7, dtype="float32").reshape(5000, 7)
    result = ask("get_loss_and_error_signal", "corpus/a/1", 5000, log_posteriors)
    assert result[0] == "ok" and len(result) == 3, result[:2]
    assert isinstance(result[1], (float, np.floating)), type(result[1])
    assert result[2].shape == log_posteriors.shape and result[2].dtype == np.float32
    print("loss", float(result[1]), float(result[2].sum()))
    result = ask("export_allophone_state_fsa_by_segment_name", "corpus/a/1")
    assert result[0] == "ok", result
    num_states, num_edges, edges, weights = result[1:]
    assert edges.reshape((3, num_edges)).dtype == np.uint32 and weights.dtype == np.float32
    edges[0] += 1  # RETURNN adds offsets in place
    print("automaton", num_states, num_edges, edges.sum(), weights.sum())
    result = ask("export_allophone_state_fsa_by_segment_name", "corpus/nowhere/1")
    print("refused", result)
    write(request, ("exit",))
    request.close()
    print("exit", process.wait())


if __name__ == "__main__":
    install_returnn()
    {"child": child, "parent": parent}[sys.argv[1]](sys.argv[2:])
