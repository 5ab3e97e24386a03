"""Version 2 of the protocol: a fixed binary header, and arrays in memory that both sides map.

There is no pickle in it.  Each message is a header, the segment's name, and perhaps a payload::

    magic "JSv2" | kind u16 | flags u16 | number u64 | name bytes u32 | unused u32
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
=====================  =====================================  ==================================

A reply repeats the number and the name of its request.  All numbers are little-endian.

The shared memory is an anonymous file that the parent made, sealed against shrinking (reading
behind a file's end is a SIGBUS), and that the child inherited.  The parent alone writes a request
into it, at a page of its choice; the child writes the error signal behind that, as far on as the
request's padded size; the parent makes the file larger where needed, but not while a request is
under way.  Where there is no such memory the payload follows in the pipe.

Several requests may be under way.  The child takes them in the order in which they were sent, and
answers each before it takes the next; what waits is in the pipe and in the shared memory.

How it is agreed upon, in version 1: the child answers the handshake with a fourth element, the list
of further versions, and a fifth, how many requests may be under way (1 where it is missing); the
parent sends ``("upgrade", 2, memory)`` and gets ``("ok", 2, memory)``, where `memory` says whether
the shared memory is used; from then on both speak version 2.
"""

import os
import struct
from collections import namedtuple

import numpy as np

from .memory import Memory
from .pickle_names import FormatError

__all__ = [
    "AUTOMATON_REPLY",
    "AUTOMATON_REQUEST",
    "EXCEPTION_REPLY",
    "EXIT",
    "IN_MEMORY",
    "LOSS_REPLY",
    "LOSS_REQUEST",
    "PAGE",
    "ChildCodec",
    "Memory",
    "Message",
    "accept_upgrade",
    "make_header",
    "message_bytes",
    "offered_versions",
    "read_complete",
    "read_message",
    "reply_offset",
    "write_message",
]

LOSS_REQUEST, AUTOMATON_REQUEST, EXIT, LOSS_REPLY, AUTOMATON_REPLY, EXCEPTION_REPLY = range(1, 7)
IN_MEMORY = 1

_HEADER = struct.Struct("<4sHHQIIQQQQQd")
_MAGIC = b"JSv2"
_MAX_NAME = 1 << 16
PAGE = 4096
# As many requests as the parent likes: they wait outside of this process.
_UNDER_WAY = 1 << 16


# One message, taken apart.  `payload` is None, or the bytes [n] uint8 that followed in the pipe.
Message = namedtuple(
    "Message", "kind flags number name rows columns payload_bytes offset memory_bytes loss payload"
)


def make_header(kind, number, name, rows, columns, loss, size, memory=None):
    """Header and name of a message, bytes: all of it, if the payload lies in the memory.

    Args:
        kind, number, rows, columns, loss: as in the header.
        name: the segment's name, bytes.
        size: of the payload, in bytes.
        memory: (offset of the payload, size of the whole memory); None if it follows in the pipe.
    """
    flags, (offset, memory_bytes) = (0, (0, 0)) if memory is None else (IN_MEMORY, memory)
    return (
        _HEADER.pack(
            _MAGIC,
            kind,
            flags,
            number,
            len(name),
            0,
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
):
    """Writes one message.

    Args:
        channel: a `wire.Channel`.
        deadline: of the monotonic clock, or None.
        kind, number, rows, columns, loss: as in the header.
        name: the segment's name, bytes.
        payload: what follows in the pipe: bytes-like objects.
        memory: instead of that, (offset, size, size of the whole memory) of the payload, in bytes.
    """
    if memory is not None:
        offset, size, memory_bytes = memory
        place = (offset, memory_bytes)
        header = make_header(kind, number, name, rows, columns, loss, size, place)
        channel.write_raw([header], deadline)
        return
    pieces = [memoryview(piece).cast("B") for piece in payload if len(piece)]
    size = sum(len(piece) for piece in pieces)
    header = make_header(kind, number, name, rows, columns, loss, size)
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
        _,
        rows,
        columns,
        size,
        offset,
        memory_bytes,
        loss,
    ) = _HEADER.unpack_from(data, begin)
    if magic != _MAGIC or not LOSS_REQUEST <= kind <= EXCEPTION_REPLY or flags & ~IN_MEMORY:
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
        kind, flags, number, name, rows, columns, size, offset, memory_bytes, loss, payload
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
        magic, kind, flags, number, name_bytes, _, rows, columns, size, offset, memory, loss = (
            header
        )
        in_pipe = 0 if flags & IN_MEMORY else size
        whole = _HEADER.size + name_bytes + in_pipe
        if (
            have < whole
            or magic != _MAGIC
            or not LOSS_REQUEST <= kind <= EXCEPTION_REPLY
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
            Message(kind, flags, number, name, rows, columns, size, offset, memory, loss, payload)
        )
        channel.take(whole)
    return messages


def message_bytes(name):
    """How many bytes of the pipe a message takes at most, its payload not counted.

    Args:
        name: the segment's name, a str.
    """
    return _HEADER.size + 4 * len(name)


def reply_offset(request_bytes):
    """How far behind a request's payload, of that many bytes, its reply's payload lies."""
    return -(-request_bytes // PAGE) * PAGE


# ------------------------------------------------------------------------------ the child's side


def offered_versions(values):
    """What the child adds to its answer to the handshake.

    Args:
        values: the pairs of the parent's config string.
    """
    return ([2], _UNDER_WAY) if values.get("protocol") == "2" else ()


def accept_upgrade(channel, values, version, use_memory):
    """The child's answer to ``("upgrade", version, memory)``; takes effect once it was sent.

    Args:
        channel: the child's `wire.Channel`.
        values: the pairs of the parent's config string.
        version: the version that the parent wants.
        use_memory: whether it wants the shared memory to be used.
    """
    if version != 2 or not offered_versions(values):
        raise ValueError("cannot change to version %r of the protocol" % (version,))
    memory = None
    if use_memory and values.get("shm_fd", "").isdigit():
        try:
            fd = int(values["shm_fd"])
            os.fstat(fd)
            memory = Memory(fd)
        except OSError:
            memory = None  # a wrapper did not pass it on; the pipe will do
    channel.change_after_reply(ChildCodec(memory))
    return 2, memory is not None


class ChildCodec:
    """Makes version 2 look like version 1 to the control module: the same tuples in and out."""

    def __init__(self, memory):
        self.memory = memory
        self.request = None

    def receive(self, channel, deadline, max_bytes):
        message = read_message(channel, deadline, max_bytes)
        self.request = message
        if message.kind == EXIT:
            return ("exit",)
        name = message.name.decode("utf-8")
        if message.kind == AUTOMATON_REQUEST:
            return ("export_allophone_state_fsa_by_segment_name", name)
        if message.kind != LOSS_REQUEST:
            raise FormatError("a message of kind %d is no request" % message.kind)
        rows, columns, size = message.rows, message.columns, message.payload_bytes
        if rows * columns * 4 != size or not size:
            raise FormatError("log-posteriors [%d, %d] in %d bytes" % (rows, columns, size))
        if message.flags & IN_MEMORY:
            if self.memory is None or message.offset % PAGE:
                raise FormatError("a payload in shared memory that was not agreed upon")
            end = message.offset + reply_offset(size) + size
            self.memory.require(max(message.memory_bytes, end))
            array = self.memory.array((rows, columns), message.offset)
        else:
            array = message.payload.view(np.float32).reshape(rows, columns)
        return ("get_loss_and_error_signal", name, rows, array)

    def send(self, channel, answer, deadline):
        request, self.request = self.request, None
        if request is None:
            raise FormatError("an answer to nothing")
        number, name = request.number, request.name
        if answer[0] != "ok":
            text = str(answer[1] if len(answer) > 1 else "").encode("utf-8", "replace")
            write_message(
                channel, deadline, EXCEPTION_REPLY, number, name, payload=[text[: 1 << 16]]
            )
        elif request.kind == LOSS_REQUEST:
            loss, error_signal = answer[1:]
            shape = (request.rows, request.columns)
            if error_signal.shape != shape:
                raise FormatError("an error signal %s for %s" % (error_signal.shape, shape))
            arguments = (channel, deadline, LOSS_REPLY, number, name, shape[0], shape[1])
            if request.flags & IN_MEMORY:
                offset = request.offset + reply_offset(request.payload_bytes)
                np.copyto(self.memory.array(shape, offset), error_signal, casting="same_kind")
                place = (offset, request.payload_bytes, self.memory.size)
                write_message(*arguments, loss=float(loss), memory=place)
            else:
                data = np.ascontiguousarray(error_signal, np.float32)
                write_message(*arguments, loss=float(loss), payload=[data.reshape(-1)])
        else:
            states, arcs, edges, weights = answer[1:]
            edges = np.ascontiguousarray(edges, np.uint32).reshape(-1)
            weights = np.ascontiguousarray(weights, np.float32).reshape(-1)
            if len(edges) != 3 * arcs or len(weights) != arcs:
                raise FormatError("%d edges in %d numbers" % (arcs, len(edges)))
            write_message(
                channel,
                deadline,
                AUTOMATON_REPLY,
                number,
                name,
                int(states),
                int(arcs),
                payload=[edges, weights],
            )
