"""A small, closed subset of pickle: what version 1 of the protocol needs, and nothing that can act.

`pickle.loads` runs whatever callable the sender names.  Here a pickle is only *read*: the opcodes
are interpreted by the machine below, which knows tuples, lists, dicts, strings, bytes, numbers and
arrays.  A name in the stream selects one of our own functions from a table, or is refused; nothing
is ever imported or called because the peer said so.  Sizes are checked against the bytes that are
really there before anything is allocated, and arrays stay views of the received buffer.

Names of numpy 1 and numpy 2 are understood, and the one of RETURNN's own array function (RETURNN
need not be installed).  What we write can be read by `pickle.loads` on Python >= 3.4 with numpy 1
or 2, hence also by RETURNN's side of the protocol.
"""

from .pickle_names import FormatError
from .pickle_reader import decode
from .pickle_writer import encode

__all__ = ["FormatError", "decode", "encode"]
