"""Writing the permitted subset of pickle: see `pickles.py`."""

import struct

import numpy as np

from .pickle_names import ARRAY_KINDS, MAX_DEPTH, FormatError

_ALIGNMENT = 16
# Pieces from this size on are handed out as they are instead of being copied.
_OWN_PIECE = 1 << 15


class _Writer:
    """Collects the pieces of one pickle; large arrays are not copied if they are contiguous."""

    def __init__(self):
        self.pieces = []
        self.small = bytearray(b"\x80\x04")
        self.flushed = 0

    def flush(self):
        if self.small:
            self.pieces.append(self.small)
            self.flushed += len(self.small)
            self.small = bytearray()

    def put_bytes(self, data):
        size = memoryview(data).nbytes
        if size < 256:
            self.small += b"C" + bytes((size,))
        elif size < 1 << 32:
            self.small += b"B" + struct.pack("<I", size)
        else:
            self.small += b"\x8e" + struct.pack("<Q", size)
        if size < _OWN_PIECE:
            self.small += data
        else:
            self.flush()
            self.pieces.append(data)
            self.flushed += size

    def put_str(self, text):
        data = text.encode("utf-8", "surrogatepass")
        self.small += b"X" + struct.pack("<I", len(data)) + data

    def put_int(self, number):
        if 0 <= number < 256:
            self.small += b"K" + bytes((number,))
        elif -(1 << 31) <= number < 1 << 31:
            self.small += b"J" + struct.pack("<i", number)
        elif number.bit_length() < 256:
            size = number.bit_length() // 8 + 1
            self.small += b"\x8a" + bytes((size,)) + number.to_bytes(size, "little", signed=True)
        else:
            raise FormatError("cannot send an integer of %d bits" % number.bit_length())

    def put_array(self, array):
        if array.dtype.kind not in ARRAY_KINDS:
            raise FormatError(
                "cannot send an array of dtype %s; only numbers and strings" % array.dtype
            )
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        # The name that every numpy knows: numpy 2 keeps it for the sake of old pickles.
        self.small += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        self.small += b"(K\x01("
        for size in array.shape:
            self.put_int(size)
        self.small += b"t"
        spec = array.dtype.str
        order, code = (spec[0], spec[1:]) if spec[0] in "<>|" else ("|", spec)
        self.small += b"cnumpy\ndtype\n"
        self.put_str(code)
        self.small += b"\x89\x88\x87R(K\x03"
        self.put_str(order)
        width = array.dtype.itemsize if array.dtype.kind in "SU" else -1
        align = {"S": 1, "U": 4}.get(array.dtype.kind, -1)
        self.small += b"NNN"
        self.put_int(width)
        self.put_int(align)
        self.small += b"K\x00tb\x89"
        if array.nbytes >= _OWN_PIECE:
            # A dummy that is pushed and popped, so that the data starts at an aligned offset of the
            # frame and the receiver need not copy it to use it.
            behind = self.flushed + len(self.small) + 3 + 5
            pad = -behind % _ALIGNMENT
            self.small += b"C" + bytes((pad,)) + b"\0" * pad + b"0"
        self.put_bytes(memoryview(array.reshape(-1).view(np.uint8)) if array.size else b"")
        self.small += b"tb"

    def put(self, value, depth=0):
        if depth > MAX_DEPTH:
            raise FormatError("cannot send anything nested deeper than %d levels" % MAX_DEPTH)
        if value is None:
            self.small += b"N"
        elif value is True or value is False:
            self.small += b"\x88" if value else b"\x89"
        elif isinstance(value, np.ndarray):
            self.put_array(value)
        elif isinstance(value, (np.bool_, np.integer, np.floating)):
            self.put(value.item(), depth)  # RETURNN's child insists on a plain int
        elif isinstance(value, int):
            self.put_int(int(value))
        elif isinstance(value, float):
            self.small += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            self.put_str(value)
        elif isinstance(value, (bytes, bytearray)):
            self.put_bytes(bytes(value))
        elif isinstance(value, tuple):
            self.small += b"("
            for item in value:
                self.put(item, depth + 1)
            self.small += b"t"
        elif isinstance(value, list):
            self.small += b"]("
            for item in value:
                self.put(item, depth + 1)
            self.small += b"e"
        elif isinstance(value, dict):
            self.small += b"}("
            for key, item in value.items():
                self.put(key, depth + 1)
                self.put(item, depth + 1)
            self.small += b"u"
        else:
            raise FormatError("cannot send an object of type %s" % type(value).__name__)


def encode(message):
    """Pickles a message.

    Args:
        message: tuples, lists, dicts, str, bytes, int, float, bool, None, numpy scalars (sent as
            plain Python numbers) and numpy arrays of numbers or fixed-width strings (sent in C
            order, any strides).

    Returns:
        A list of bytes-like pieces whose concatenation is the pickle.  Large contiguous arrays are
        among them as views, so they must not change before the pieces are written.

    Raises:
        FormatError: something else is in the message.
    """
    writer = _Writer()
    writer.put(message)
    writer.small += b"."
    writer.flush()
    return writer.pieces
