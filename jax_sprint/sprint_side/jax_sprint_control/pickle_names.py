"""What a message may be made of; the only names that a pickle can reach: see `pickles.py`."""

import re

import numpy as np

MAX_DEPTH = 32
ARRAY_KINDS = "biufcSU"

_DTYPE = re.compile(
    r"[<>=|]?(?:[biufcSU][0-9]{0,4}|bool|u?int(?:8|16|32|64)|float(?:16|32|64)|complex(?:64|128))"
)


class FormatError(ValueError):
    """The bytes are no pickle of the permitted kind, or hold something that is not permitted."""


class DTypeState:
    """A dtype under construction: `numpy.dtype(spec, False, True)`, then its byte order."""

    def __init__(self, spec, *flags):
        if not isinstance(spec, str) or not _DTYPE.fullmatch(spec):
            raise FormatError("dtype %s is not permitted" % short(spec))
        self.dtype = np.dtype(spec)

    def build(self, state):
        if (
            type(state) is not tuple
            or len(state) not in (8, 9)
            or state[1] not in ("<", ">", "|", "=")
            or any(field is not None for field in state[2:5])
            or (len(state) == 9 and state[8] is not None)
        ):
            raise FormatError("only plain dtypes are permitted, not %s" % short(state))
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class ArrayState:
    """An array under construction: `_reconstruct(...)`, then its state."""

    def __init__(self, kind, shape, code):
        if kind is not _NDARRAY:
            raise FormatError("only numpy.ndarray can be rebuilt, not %s" % short(kind))
        self.array = None

    def build(self, state):
        if type(state) is not tuple or len(state) != 5 or self.array is not None:
            raise FormatError("malformed state of an array")
        self.array = _make_array(state[4], state[2], state[1], "F" if state[3] else "C")


class GlobalName:
    """A name that the stream mentioned; `make` is our function for it."""

    def __init__(self, name, make=None):
        self.name = name
        self.make = make


def _make_array(data, dtype, shape, order="C"):
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise FormatError("the data of an array must be bytes, not %s" % short(data))
    if isinstance(dtype, str):
        dtype = DTypeState(dtype)
    if not isinstance(dtype, DTypeState):
        raise FormatError("the dtype of an array is %s" % short(dtype))
    dtype = dtype.dtype
    if isinstance(shape, int) and not isinstance(shape, bool):
        shape = (shape,)
    if (
        type(shape) is not tuple
        or len(shape) > 8
        or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
        or order not in ("C", "F")
    ):
        raise FormatError("the shape of an array is %s, its order %s" % (short(shape), order))
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != len(data) or (dtype.itemsize == 0 and count):
        raise FormatError(
            "an array of shape %s and dtype %s needs %d bytes, %d came"
            % (shape, dtype, count * dtype.itemsize, len(data))
        )
    if not count:
        return np.zeros(shape, dtype)
    if isinstance(data, bytes):
        data = bytearray(data)  # so that the result can be written to
    array = np.frombuffer(data, dtype)
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape, order=order)


def _make_scalar(dtype, data):
    if not isinstance(dtype, DTypeState) or dtype.dtype.kind not in "biuf":
        raise FormatError("a numpy scalar of dtype %s is not permitted" % short(dtype))
    return _make_array(data, dtype, (1,))[0]


def _make_encoded(text, encoding="latin1"):
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise FormatError("_codecs.encode is permitted for latin1 only")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise FormatError("not latin1: %s" % error) from None


def _make_bytes(*args):
    if args:
        raise FormatError("bytes(...) with arguments is not permitted")
    return b""


_NDARRAY = GlobalName("numpy.ndarray")
GLOBALS = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": GlobalName("numpy.dtype", DTypeState),
    "_codecs.encode": GlobalName("_codecs.encode", _make_encoded),
    "builtins.bytes": GlobalName("builtins.bytes", _make_bytes),
    "__builtin__.bytes": GlobalName("builtins.bytes", _make_bytes),
    "returnn.util.task_system.make_numpy_ndarray_fromstring": GlobalName("array", _make_array),
    # Older RETURNN had the function at this place.
    "TaskSystem.make_numpy_ndarray_fromstring": GlobalName("array", _make_array),
}
for _core in ("numpy.core", "numpy._core"):
    GLOBALS[_core + ".multiarray._reconstruct"] = GlobalName("_reconstruct", ArrayState)
    GLOBALS[_core + ".multiarray.scalar"] = GlobalName("scalar", _make_scalar)
    GLOBALS[_core + ".numeric._frombuffer"] = GlobalName("_frombuffer", _make_array)


def short(value):
    """Describes what came from the peer without trusting its size."""
    if isinstance(value, (str, bytes, int, float)) and not isinstance(value, bool):
        text = repr(value[:60]) if isinstance(value, (str, bytes)) else repr(value)
        return text[:80]
    if isinstance(value, GlobalName):
        return value.name
    if isinstance(value, tuple):
        return "a tuple of %d" % len(value)
    return type(value).__name__
