"""The child's side of version 2 of the protocol (see `wire_v2`).

To the control module it looks like version 1: the same tuples in and out, one segment at a time.
"""

import os

import numpy as np

from .memory import Memory
from .pickle_names import FormatError
from .wire_v2 import (
    AUTOMATA_REPLY,
    AUTOMATA_REQUEST,
    AUTOMATON_REPLY,
    AUTOMATON_REQUEST,
    EXCEPTION_REPLY,
    EXIT,
    IN_MEMORY,
    LOSS_REPLY,
    LOSS_REQUEST,
    LOSSES_REPLY,
    LOSSES_REQUEST,
    PAGE,
    read_message,
    read_table,
    reply_offset,
    write_message,
)

__all__ = ["ChildCodec", "accept_upgrade", "offered_versions"]

# As many requests as the parent likes: they wait outside of this process.
_UNDER_WAY = 1 << 16
# About so many segments may one of them be.
_SEGMENTS = 1 << 8
_LOSS = "get_loss_and_error_signal"
_AUTOMATON = "export_allophone_state_fsa_by_segment_name"


def offered_versions(values):
    """What the child adds to its answer to the handshake.

    Args:
        values: the pairs of the parent's config string.
    """
    return ([2], _UNDER_WAY, _SEGMENTS) if values.get("protocol") == "2" else ()


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
    """Takes requests apart and puts answers together.

    Attributes:
        memory: what both sides map; None where everything goes through the pipe.
        request: the message that is being answered, or None.
    """

    def __init__(self, memory):
        self.memory = memory
        self.request = None
        # Of a request about several segments: the tuples that were not handed out yet, the last
        # one first; where the error signals go, likewise; and the answers so far.
        self._waiting = []
        self._places = []
        self._answers = []

    @property
    def waiting(self):
        """Whether `receive` has something without reading."""
        return bool(self._waiting)

    def receive(self, channel, deadline, max_bytes):
        if self._waiting:
            return self._waiting.pop()
        message = read_message(channel, deadline, max_bytes)
        self.request = message
        if message.kind == EXIT:
            return ("exit",)
        if message.kind == AUTOMATON_REQUEST:
            return (_AUTOMATON, message.name.decode("utf-8"))
        if message.kind == LOSS_REQUEST:
            array = self._posteriors(message)
            return (_LOSS, message.name.decode("utf-8"), len(array), array)
        self._answers = []
        if message.kind == AUTOMATA_REQUEST:
            names, _ = read_table(message)
            self._waiting = [(_AUTOMATON, name) for name in names]
        elif message.kind == LOSSES_REQUEST:
            self._waiting = self._losses(message)
        else:
            raise FormatError("a message of kind %d is no request" % message.kind)
        self._waiting.reverse()
        return self._waiting.pop()

    def _posteriors(self, message):
        rows, columns, size = message.rows, message.columns, message.payload_bytes
        if rows * columns * 4 != size or not size:
            raise FormatError("log-posteriors [%d, %d] in %d bytes" % (rows, columns, size))
        if not message.flags & IN_MEMORY:
            return message.payload.view(np.float32).reshape(rows, columns)
        if self.memory is None or message.offset % PAGE:
            raise FormatError("a payload in shared memory that was not agreed upon")
        end = message.offset + reply_offset(size) + size
        self.memory.require(max(message.memory_bytes, end))
        return self.memory.array((rows, columns), message.offset)

    def _losses(self, message):
        if not message.flags & IN_MEMORY:
            raise FormatError("posteriors of several segments outside of the shared memory")
        posteriors = self._posteriors(message)
        offset = message.offset + reply_offset(message.payload_bytes)
        signals = self.memory.array(posteriors.shape, offset)
        names, lengths = read_table(message)
        if sum(lengths) != len(posteriors) or not all(lengths):
            raise FormatError("%d frames in segments of %r" % (len(posteriors), lengths))
        bounds = [0, *np.cumsum(lengths).tolist()]
        parts = [slice(*bounds[i : i + 2]) for i in range(len(names))]
        self._places = [signals[part] for part in reversed(parts)]
        return [(_LOSS, name, lengths[i], posteriors[parts[i]]) for i, name in enumerate(names)]

    def send(self, channel, answer, deadline):
        request = self.request
        if request is None:
            raise FormatError("an answer to nothing")
        if answer[0] != "ok":
            self.request = None
            self._waiting = []
            text = str(answer[1] if len(answer) > 1 else "").encode("utf-8", "replace")
            write_message(
                *(channel, deadline, EXCEPTION_REPLY, request.number, request.name),
                payload=[text[: 1 << 16]],
            )
        elif request.segments:
            self._add(channel, request, answer[1:], deadline)
        elif request.kind == LOSS_REQUEST:
            self.request = None
            self._send_loss(channel, request, answer[1:], deadline)
        else:
            self.request = None
            states, arcs, edges, weights = _checked(answer[1:])
            write_message(
                *(channel, deadline, AUTOMATON_REPLY, request.number, request.name, states, arcs),
                payload=[edges.reshape(-1), weights],
            )

    def _send_loss(self, channel, request, values, deadline):
        loss, error_signal = values
        shape = (request.rows, request.columns)
        if error_signal.shape != shape:
            raise FormatError("an error signal %s for %s" % (error_signal.shape, shape))
        arguments = (channel, deadline, LOSS_REPLY, request.number, request.name, *shape)
        if request.flags & IN_MEMORY:
            offset = request.offset + reply_offset(request.payload_bytes)
            np.copyto(self.memory.array(shape, offset), error_signal, casting="same_kind")
            place = (offset, request.payload_bytes, self.memory.size)
            write_message(*arguments, loss=float(loss), memory=place)
        else:
            data = np.ascontiguousarray(error_signal, np.float32)
            write_message(*arguments, loss=float(loss), payload=[data.reshape(-1)])

    def _add(self, channel, request, values, deadline):
        """One more answer to a request about several segments; the last one has them sent."""
        if request.kind == LOSSES_REQUEST:
            loss, error_signal = values
            place = self._places.pop()
            if error_signal.shape != place.shape:
                raise FormatError("an error signal %s for %s" % (error_signal.shape, place.shape))
            np.copyto(place, error_signal, casting="same_kind")
            self._answers.append(float(loss))
        else:
            self._answers.append(_checked(values))
        if self._waiting:
            return
        self.request = None
        answers, self._answers = self._answers, []
        if request.kind == LOSSES_REQUEST:
            kind, rows, columns = LOSSES_REPLY, request.rows, request.columns
            payload = [np.array(answers, np.float64)]
        else:
            sizes = np.array([answer[:2] for answer in answers], np.uint32)
            edges = np.concatenate([answer[2] for answer in answers], axis=1)
            weights = np.concatenate([answer[3] for answer in answers])
            kind, rows, columns = AUTOMATA_REPLY, 0, len(weights)
            payload = [sizes.reshape(-1), edges.reshape(-1), weights]  # type: ignore[list-item]
        write_message(
            *(channel, deadline, kind, request.number, request.name, rows, columns),
            payload=payload,
            segments=request.segments,
        )


def _checked(values):
    """States, arcs, edges [3, arcs] u32 and weights [arcs] f32 of an automaton."""
    states, arcs, edges, weights = values
    edges = np.ascontiguousarray(edges, np.uint32).reshape(-1)
    weights = np.ascontiguousarray(weights, np.float32).reshape(-1)
    if len(edges) != 3 * arcs or len(weights) != arcs:
        raise FormatError("%d edges in %d numbers" % (arcs, len(edges)))
    return int(states), int(arcs), edges.reshape(3, -1), weights
