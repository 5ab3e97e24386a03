"""Messages over two pipes: length, then one pickle, each way (version 1 of the protocol).

(Version 2, in `wire_v2.py`, is agreed upon in version 1 and uses the same pipes.)

Both sides use this module: the parent imports it from the package, the child finds it beside the
control module inside Sprint's own Python.  So it needs nothing but numpy and Python >= 3.8.

A frame is `struct "<i"` (the length of what follows, > 0) and a pickle of the subset that
`pickles.py` permits.  Parent to child it holds the tuple `(command, *arguments)`, child to parent
`("ok", *results)` or `("exception", text)`.

Nothing here blocks for longer than it was told to: the descriptors are non-blocking, every wait is
a poll with a deadline, and a frame is bounded before memory is taken for it, which then grows only
with the bytes that really arrive.
"""

import os
import select
import struct
import time

from .pickles import FormatError, decode, encode

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Channel",
    "FormatError",
    "PeerClosedError",
    "WireTimeoutError",
    "decode",
    "encode",
]

DEFAULT_MAX_BYTES = 1 << 30
_LENGTH = struct.Struct("<i")
_MAX_LENGTH = (1 << 31) - 1
_FIRST_PIECE = 1 << 20
_READ_AHEAD = 1 << 14
# Linux takes at most 1024 pieces in one writev.
_MAX_PIECES = 512


class PeerClosedError(EOFError):
    """The other side closed its end, or died.  `clean` says whether that was between frames."""

    def __init__(self, message, clean=False):
        super(PeerClosedError, self).__init__(message)
        self.clean = clean


class WireTimeoutError(Exception):
    """The deadline passed.  The stream is unusable afterwards if a frame was cut."""


def _deadline(timeout):
    return None if timeout is None else time.monotonic() + timeout


class Channel:
    """One side's two pipe ends.

    Not thread-safe: one thread at a time sends or receives (a second one may `close`, see there).

    Args:
        read_fd: descriptor to read from; owned from now on, made non-blocking.
        write_fd: descriptor to write to; likewise.
        max_bytes: largest frame that is accepted, in bytes.
    """

    def __init__(self, read_fd, write_fd, max_bytes=DEFAULT_MAX_BYTES):
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.max_bytes = min(max_bytes, _MAX_LENGTH)
        self.bytes_sent = 0
        self.bytes_received = 0
        # What was read beyond the message that it was read for; only in version 2.
        self._ahead = bytearray(_READ_AHEAD)
        self._begin = self._end = 0
        # None: version 1.  Otherwise what `child_codec` put here.
        self._codec = None
        self._next_codec = None
        self._pollers = {}
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)

    @property
    def closed(self):
        return self.read_fd is None

    def close(self):
        """Closes both ends; harmless when repeated."""
        self.close_write()
        fd, self.read_fd = self.read_fd, None
        if fd is not None:
            os.close(fd)

    def close_write(self):
        """Closes the writing end only: the peer reads what is there, then sees the end."""
        fd, self.write_fd = self.write_fd, None
        if fd is not None:
            os.close(fd)

    def send(self, message, timeout=None):
        """Writes one message.

        Args:
            message: what `pickles.encode` takes, usually a tuple.
            timeout: seconds for the whole message, None for no limit.

        Raises:
            FormatError: the message cannot be sent (nothing was written), or is too long.
            PeerClosedError: nobody reads.
            WireTimeoutError: the peer did not take it all in time.
        """
        if self._codec is not None:
            self._codec.send(self, message, _deadline(timeout))
            return
        pieces = [memoryview(piece).cast("B") for piece in encode(message)]
        size = sum(len(piece) for piece in pieces)
        if size > _MAX_LENGTH:
            raise FormatError("a message of %d bytes is too long for one frame" % size)
        self.write_raw([memoryview(_LENGTH.pack(size)), *pieces], _deadline(timeout))
        if self._next_codec is not None:
            self._codec, self._next_codec = self._next_codec, None

    def receive(self, timeout=None, max_bytes=None):
        """Reads one message.

        Args:
            timeout: seconds until the whole message must be there, None for no limit.
            max_bytes: a tighter bound than the channel's for this one frame.

        Returns:
            What the peer sent; large arrays are writable views of the received frame.

        Raises:
            FormatError: it is not a valid frame; the stream is out of step from now on.
            PeerClosedError: the stream ended; `clean` is True where that was between two frames.
            WireTimeoutError: it did not come in time.
        """
        deadline = _deadline(timeout)
        limit = self.max_bytes if max_bytes is None else min(max_bytes, self.max_bytes)
        if self._codec is not None:
            return self._codec.receive(self, deadline, limit)
        head = self._read(_LENGTH.size, deadline, clean=True)
        (size,) = _LENGTH.unpack(head)
        if size <= 0 or size > limit:
            raise FormatError(
                "a frame claims %d bytes; between 1 and %d are accepted (its first bytes: %r)"
                % (size, limit, bytes(head))
            )
        return decode(self._read(size, deadline))

    def change_after_reply(self, codec):
        """Speaks another version from the next reply on: see `child_codec.ChildCodec`."""
        self._next_codec = codec

    def poll(self, timeout=0):
        """Tells whether something can be read: a message, a part of one, or the end.

        Args:
            timeout: seconds to wait for it; None waits for ever.
        """
        if self._begin != self._end or (self._codec is not None and self._codec.waiting):
            return True
        return self._wait(self.read_fd, select.POLLIN, _deadline(timeout))

    @property
    def ahead(self):
        """How many bytes were read that no message has taken yet."""
        return self._end - self._begin

    def peek(self, size, deadline):
        """Makes sure that `size` bytes are there; returns a buffer, and where in it they begin.

        Whatever else has come by then is read along, for fewer system calls; what the buffer holds
        is valid until the next call.
        """
        have = self._end - self._begin
        if have < size:
            if self._begin + size > len(self._ahead):
                self._ahead[:have] = self._ahead[self._begin : self._end]
                self._begin, self._end = 0, have
                if size > len(self._ahead):
                    self._ahead.extend(bytes(size - len(self._ahead)))
            with memoryview(self._ahead) as view, view[self._end :] as rest:
                self._end += self.read_raw(rest, size - have, deadline, clean=not have)
        return self._ahead, self._begin

    def fetch(self):
        """Reads what is there, for `peek`, without waiting; the end shows with the next `peek`."""
        have = self._end - self._begin
        if self._begin:
            self._ahead[:have] = self._ahead[self._begin : self._end]
            self._begin, self._end = 0, have
        if have < len(self._ahead) and self.read_fd is not None:
            with memoryview(self._ahead) as view, view[have:] as rest:
                try:
                    got = os.readv(self.read_fd, [rest])
                except BlockingIOError:
                    return
            self._end += got
            self.bytes_received += got

    def look(self):
        """What was read and not taken: a buffer, where in it that begins, how many bytes it is."""
        return self._ahead, self._begin, self._end - self._begin

    def take(self, size):
        """Takes `size` of the bytes that `peek` has shown, or the rest of them; says how many."""
        size = min(size, self._end - self._begin)
        self._begin += size
        if self._begin == self._end:
            self._begin = self._end = 0
        return size

    def read_raw(self, view, minimum, deadline, clean=False):
        """Fills the front of a byte view with what comes, at least `minimum` bytes.

        Returns how many there are; see `receive` for what may be raised.
        """
        have = 0
        while have < minimum:
            if self.read_fd is None:
                raise PeerClosedError("the channel is closed on this side", clean=True)
            try:
                got = os.readv(self.read_fd, [view[have:]])
            except BlockingIOError:
                if not self._wait(self.read_fd, select.POLLIN, deadline):
                    raise WireTimeoutError(
                        "no (complete) message: %d of %d bytes" % (have, minimum)
                    ) from None
                continue
            if not got:
                raise PeerClosedError(
                    "the stream ended after %d of %d bytes" % (have, minimum),
                    clean=clean and have == 0,
                )
            have += got
            self.bytes_received += got
        return have

    def write_raw(self, pieces, deadline):
        """Writes bytes-like objects one after the other; see `send` for what may be raised."""
        first = 0
        while first < len(pieces):
            if self.write_fd is None:
                raise PeerClosedError("the channel is closed on this side", clean=True)
            try:
                if len(pieces) == 1:
                    written = os.write(self.write_fd, pieces[0])
                else:
                    written = os.writev(self.write_fd, pieces[first : first + _MAX_PIECES])
            except BlockingIOError:
                if not self._wait(self.write_fd, select.POLLOUT, deadline):
                    raise WireTimeoutError("the peer does not read what was sent") from None
                continue
            except BrokenPipeError:
                raise PeerClosedError("the peer closed the pipe that it should read from") from None
            self.bytes_sent += written
            while first < len(pieces) and written >= len(pieces[first]):
                written -= len(pieces[first])
                first += 1
            if written:
                pieces[first] = memoryview(pieces[first])[written:]

    # ------------------------------------------------------------------------------------ inside

    def _wait(self, fd, events, deadline):
        if fd is None:
            raise PeerClosedError("the channel is closed on this side", clean=True)
        poller = self._pollers.get((fd, events))
        if poller is None:
            poller = self._pollers[fd, events] = select.poll()
            poller.register(fd, events)
        if deadline is None:
            return bool(poller.poll())
        # Rounded up: a wait of 0.3 ms must not become a busy loop.
        left = deadline - time.monotonic()
        return bool(poller.poll(max(0, int(left * 1000 + 0.999))))

    def _read(self, size, deadline, clean=False):
        buffer = bytearray(min(size, _FIRST_PIECE))
        have = 0
        while True:
            with memoryview(buffer) as view, view[have:] as rest:
                have += self.read_raw(rest, len(rest), deadline, clean and not have)
            if have == size:
                return buffer
            buffer.extend(bytes(min(size - have, have)))
