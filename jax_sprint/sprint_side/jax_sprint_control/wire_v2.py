"""Version 2 of the protocol: a fixed binary header, and arrays in memory that both sides map.

There is no pickle in it.  Each message is a header, the segment's name, and perhaps a payload::

    magic "JSv2" | kind u16 | flags u16 | number u64 | name bytes u32 | segments u32
    rows u64 | columns u64 | payload bytes u64 | offset u64 | memory bytes u64 | loss f64
    name (UTF-8)
    payload, unless flag 1 says that it lies at `offset` of the shared memory

=====================  =====================================  ==================================
kind                   rows, columns                          payload
=====================  =====================================  ==================================
1 loss, request        T frames, L labels                     log-posteriors [T, L] f32
2 automaton, request                                          none
3 exit                                                        none
4 loss, reply          T, L; and `loss`                       error signal [T, L] f32
5 automaton, reply     states, E edges                        edges [3, E] u32, weights [E] f32
6 exception, reply                                            text (UTF-8)
7 losses, request      sum of all T, L                        log-posteriors [sum T, L] f32
8 automata, request                                           none
9 losses, reply        sum of all T, L                        losses [segments] f64
10 automata, reply     0, sum of all E                        states and edges [segments, 2] u32,
                                                              edges [3, sum E] u32, weights f32
=====================  =====================================  ==================================

A reply repeats the number and the name of its request.  All numbers are little-endian.

Kinds 7 to 10 are about several segments, whose number only they give (0 elsewhere).  The name is
then a table: the frames of each [segments] u32, 0 for automata, and the names, with a zero byte
between two.  Posteriors of losses always lie in the shared memory, and their error signals, one
behind the other, where a single one would.  An exception is about all of them: the parent asks
again for one after the other, to learn which it was.

The shared memory is an anonymous file that the parent made, sealed against shrinking (reading
behind a file's end is a SIGBUS), and that the child inherited.  The parent alone writes a request
into it, at a page of its choice; the child writes the error signal behind that, as far on as the
request's padded size; the parent makes the file larger where needed, but not while a request is
under way.  Where there is no such memory the payload follows in the pipe.

Several requests may be under way.  The child takes them in the order in which they were sent, and
answers each before it takes the next; what waits is in the pipe and in the shared memory.

How it is agreed upon, in version 1: the child answers the handshake with a fourth element, the list
of further versions, a fifth, how many requests may be under way, and a sixth, about how many
segments one of them may be (each 1 where it is missing); the parent sends
``("upgrade", 2, memory)`` and gets ``("ok", 2, memory)``, where `memory` says whether the shared
memory is used; from then on both speak version 2, the child through `child_codec`.
"""

import struct
from collections import namedtuple

import numpy as np

from .memory import Memory
from .pickle_names import FormatError

__all__ = [
    "AUTOMATA_REPLY",
    "AUTOMATA_REQUEST",
    "AUTOMATON_REPLY",
    "AUTOMATON_REQUEST",
    "EXCEPTION_REPLY",
    "EXIT",
    "IN_MEMORY",
    "LOSSES_REPLY",
    "LOSSES_REQUEST",
    "LOSS_REPLY",
    "LOSS_REQUEST",
    "PAGE",
    "Memory",
    "Message",
    "make_header",
    "make_table",
    "message_bytes",
    "read_complete",
    "read_message",
    "read_table",
    "reply_offset",
    "write_message",
]

LOSS_REQUEST, AUTOMATON_REQUEST, EXIT, LOSS_REPLY, AUTOMATON_REPLY, EXCEPTION_REPLY = range(1, 7)
LOSSES_REQUEST, AUTOMATA_REQUEST, LOSSES_REPLY, AUTOMATA_REPLY = range(7, 11)
IN_MEMORY = 1

_HEADER = struct.Struct("<4sHHQIIQQQQQd")
_MAGIC = b"JSv2"
_MAX_NAME = 1 << 16
PAGE = 4096


# One message, taken apart.  `payload` is None, or the bytes [n] uint8 that followed in the pipe.
Message = namedtuple(
    "Message",
    "kind flags number name segments rows columns payload_bytes offset memory_bytes loss payload",
)


def make_header(kind, number, name, rows, columns, loss, size, memory=None, segments=0):
    """Header and name of a message, bytes: all of it, if the payload lies in the memory.

    Args:
        kind, number, rows, columns, loss: as in the header.
        name: the segment's name, bytes.
        size: of the payload, in bytes.
        memory: (offset of the payload, size of the whole memory); None if it follows in the pipe.
        segments: as in the header.
    """
    flags, (offset, memory_bytes) = (0, (0, 0)) if memory is None else (IN_MEMORY, memory)
    return (
        _HEADER.pack(
            _MAGIC,
            kind,
            flags,
            number,
            len(name),
            segments,
            rows,
            columns,
            size,
            offset,
            memory_bytes,
            loss,
        )
        + name
    )


def write_message(
    channel,
    deadline,
    kind,
    number,
    name,
    rows=0,
    columns=0,
    loss=0.0,
    payload=(),
    memory=None,
    segments=0,
):
    """Writes one message.

    Args:
        channel: a `wire.Channel`.
        deadline: of the monotonic clock, or None.
        kind, number, rows, columns, loss, segments: as in the header.
        name: the segment's name, bytes.
        payload: what follows in the pipe: bytes-like objects.
        memory: instead of that, (offset, size, size of the whole memory) of the payload, in bytes.
    """
    if memory is not None:
        offset, size, memory_bytes = memory
        place = (offset, memory_bytes)
        header = make_header(kind, number, name, rows, columns, loss, size, place, segments)
        channel.write_raw([header], deadline)
        return
    pieces = [memoryview(piece).cast("B") for piece in payload if len(piece)]
    size = sum(len(piece) for piece in pieces)
    header = make_header(kind, number, name, rows, columns, loss, size, None, segments)
    channel.write_raw([header, *pieces], deadline)


def read_message(channel, deadline, max_bytes):
    """Reads one message; see `wire.Channel.receive` for what may be raised."""
    data, begin = channel.peek(_HEADER.size, deadline)
    (
        magic,
        kind,
        flags,
        number,
        name_bytes,
        segments,
        rows,
        columns,
        size,
        offset,
        memory_bytes,
        loss,
    ) = _HEADER.unpack_from(data, begin)
    if magic != _MAGIC or not LOSS_REQUEST <= kind <= AUTOMATA_REPLY or flags & ~IN_MEMORY:
        raise FormatError("no message of version 2: %r" % bytes(data[begin : begin + 16]))
    if name_bytes > _MAX_NAME:
        raise FormatError("a message claims a name of %d bytes" % name_bytes)
    in_pipe = 0 if flags & IN_MEMORY else size
    if in_pipe > max_bytes:
        raise FormatError(
            "a message claims a payload of %d bytes; up to %d are accepted" % (in_pipe, max_bytes)
        )
    whole = _HEADER.size + name_bytes
    if channel.ahead < whole:
        data, begin = channel.peek(whole, deadline)
    name = bytes(data[begin + _HEADER.size : begin + whole])
    payload = None
    if in_pipe:
        payload = np.empty(in_pipe, np.uint8)
        there = min(in_pipe, channel.ahead - whole)
        payload[:there] = np.frombuffer(data, np.uint8, there, begin + whole)
        channel.take(whole + there)
        if there < in_pipe:
            channel.read_raw(payload.data[there:], in_pipe - there, deadline)
    else:
        channel.take(whole)
    return Message(
        *(kind, flags, number, name, segments, rows, columns),
        *(size, offset, memory_bytes, loss, payload),
    )


def read_complete(channel):
    """The messages that have come as a whole, in a list, without waiting.

    It ends before one that is no valid message: `read_message` raises what is wrong with it.
    """
    messages = []
    channel.fetch()
    data, begin, have = channel.look()
    while have >= _HEADER.size:
        header = _HEADER.unpack_from(data, begin)
        magic, kind, flags, number, name_bytes, segments = header[:6]
        rows, columns, size, offset, memory, loss = header[6:]
        in_pipe = 0 if flags & IN_MEMORY else size
        whole = _HEADER.size + name_bytes + in_pipe
        if (
            have < whole
            or magic != _MAGIC
            or not LOSS_REQUEST <= kind <= AUTOMATA_REPLY
            or flags & ~IN_MEMORY
            or name_bytes > _MAX_NAME
        ):
            break
        first = begin + _HEADER.size
        begin += whole
        have -= whole
        name = bytes(data[first : begin - in_pipe])
        payload = (
            np.frombuffer(data, np.uint8, in_pipe, begin - in_pipe).copy() if in_pipe else None
        )
        messages.append(
            Message(
                *(kind, flags, number, name, segments, rows, columns),
                *(size, offset, memory, loss, payload),
            )
        )
        channel.take(whole)
    return messages


def message_bytes(name):
    """How many bytes of the pipe a message takes, its payload not counted.

    Args:
        name: the segment's name, a str.
    """
    return _HEADER.size + len(name.encode("utf-8"))


def make_table(names, lengths=None):
    """The name of a message about several segments: bytes.

    Args:
        names: theirs, str without zero bytes.
        lengths: the frames of each; None for automata.
    """
    counts = [0] * len(names) if lengths is None else lengths
    return struct.pack("<%dI" % len(names), *counts) + "\0".join(names).encode("utf-8")


def read_table(message):
    """The names and lengths that `make_table` was given, two lists.

    Raises:
        FormatError: it is no such table, or not of so many segments.
    """
    count, table = message.segments, message.name
    if not 0 < 4 * count < len(table):
        raise FormatError("%d segments in %d bytes" % (count, len(table)))
    names = table[4 * count :].decode("utf-8").split("\0")
    if len(names) != count or not all(names):
        raise FormatError("%d names for %d segments" % (len(names), count))
    return names, list(struct.unpack_from("<%dI" % count, table))


def reply_offset(request_bytes):
    """How far behind a request's payload, of that many bytes, its reply's payload lies."""
    return -(-request_bytes // PAGE) * PAGE
