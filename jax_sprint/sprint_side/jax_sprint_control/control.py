"""Answers the parent's requests inside Sprint's Python.

Everything happens in Sprint's own thread.  Three ways lead a request for a loss through Sprint:

* the control loop: Sprint leaves control to `run_control_loop`, and its `callback` is asked;
* `iterate-corpus`: Sprint walks through the corpus, if possible in the order of `getSegmentList`
  (which waits for requests and hands out their names), and calls `process_segment` for each;
* a trainer with a layer of type python: likewise, but the layer takes the log-posteriors and
  brings the error signal, and `notify_segment_loss` brings the loss.

Other requests are answered as soon as they are read.
"""

import os
import sys

import numpy as np

from .child_codec import accept_upgrade, offered_versions
from .request import Request
from .scratch import Scratch
from .wire import Channel, FormatError, PeerClosedError

__all__ = ["PROTOCOL_VERSION", "PythonControl"]

PROTOCOL_VERSION = 1
_NAME = "SprintControl"
# How often to look whether the parent still lives, in seconds.  Its death is seen at once as the
# end of the pipe, unless some other process inherited the other end.
_PARENT_CHECK = 5.0


class PythonControl:
    """The object that Sprint holds; its public methods are those that Sprint calls.

    Attributes:
        callback: Sprint's function, or None while Sprint gave none.
        asking: whether we wait for the answer of Sprint's callback.
        current: the request that Sprint is working on, or None.
    """

    _instance = None

    def __init__(self, settings):
        self.settings = settings
        self.callback = None
        self.version_number = None
        self.asking = False
        self.current = None
        self._ended = False
        self._scratch = Scratch()
        self._parent = os.getppid()
        self._channel = Channel(settings.p2c_fd, settings.c2p_fd)

    @classmethod
    def shared(cls, settings):
        """The one instance of this process."""
        if cls._instance is None:
            cls._instance = cls(settings)
        known = cls._instance.settings
        if (known.c2p_fd, known.p2c_fd) != (settings.c2p_fd, settings.p2c_fd):
            raise ValueError("pymod-config: the parts of Sprint were given different pipes")
        return cls._instance

    def attach(self, callback, version_number):
        """Remembers what Sprint's PythonControl gave to `init`."""
        if callback is not None:
            self.callback = callback
        if version_number is not None:
            self.version_number = version_number
        self.log("attached to Sprint, PythonControl version %s" % version_number)

    def log(self, text):
        """Says something on standard error, if asked to."""
        if self.settings.verbose:
            sys.stderr.write("jax_sprint_control[%d]: %s\n" % (os.getpid(), text))
            sys.stderr.flush()

    # ------------------------------------------------------------------------- called by Sprint

    def run_control_loop(self, callback=None, **_ignored):
        """Answers requests until the parent says exit or is gone."""
        if callback is not None:
            self.callback = callback
        for request in self._requests():
            self._answer_by_callback(request, None, None)

    def segment_names(self, segment_list):
        """Names of the segments that the parent asks for, one after the other.

        Args:
            segment_list: the names that Sprint knows; asking Sprint for any other would end it.
        """
        known = frozenset(segment_list or ())
        for request in self._requests():
            if known and request.segment not in known:
                request.fail(
                    "unknown segment %r: not among the %d segments of Sprint's corpus"
                    % (request.segment, len(known))
                )
                continue
            self.current = request
            yield request.segment
            # Sprint comes back for the next segment, so it has done with this one.
            self.current = None
            if not request.done:
                self.log("Sprint skipped segment %r" % request.segment)
            request.skip()

    def init_processing(self, input_dim=-1, output_dim=-1, **_ignored):
        """Begin of iterate-corpus."""
        self.log("iterate-corpus begins, dimensions %s and %s" % (input_dim, output_dim))

    def process_segment(
        self,
        name,
        orthography=None,
        speaker_name=None,
        features=None,
        alignment=None,
        soft_alignment=None,
        **_ignored,
    ):
        """One segment of iterate-corpus.

        Without python segment order Sprint walks through the corpus by itself; then segments that
        are not asked for are passed over, and a request waits until Sprint comes to its segment.

        Raises:
            SystemExit: the parent said exit or is gone.
        """
        if self.current is None:
            self.current = next(self._requests(), None)
            if self.current is None:
                raise SystemExit(0)
        if self.current.segment != name:
            return
        if isinstance(orthography, bytes):
            orthography = orthography.decode("utf-8")
        request, self.current = self.current, None
        self._answer_by_callback(request, orthography, alignment)

    def init_segment(self, segment_name, **_ignored):
        """A trainer begins with a segment."""
        if self.current is not None and self.current.segment != segment_name:
            self.current.fail(
                "Sprint works on segment %r, but %r was asked for; is python-segment-order on?"
                % (segment_name, self.current.segment)
            )

    def notify_segment_loss(self, segment_name, loss, **_ignored):
        """A trainer tells the loss of a segment."""
        if self.current is not None and self.current.segment == segment_name:
            self.current.set_loss(loss)

    def exit(self, **_ignored):
        """Sprint ends."""
        if self.current is not None:
            self.current.fail(
                "Sprint came to the end of its corpus without meeting segment %r; is it in the "
                "corpus? Without python-segment-order segments must come in the corpus's order"
                % self.current.segment
            )
            self.current = None
        self._end()

    # -------------------------------------------------------------------------------- the pipes

    def send(self, message):
        """Sends an answer; if nobody reads it any more, that is the end."""
        if self._ended:
            return
        try:
            self._channel.send(message)
        except PeerClosedError:
            self._end()

    def _end(self):
        self._ended = True
        self._channel.close()

    def _receive(self):
        """The next message, or None if there will be none."""
        try:
            while not self._channel.poll(_PARENT_CHECK):
                if os.getppid() != self._parent:
                    self.log("the parent process is gone")
                    return None
            return self._channel.receive()
        except PeerClosedError:
            return None
        except FormatError as error:
            # What follows in the pipe may be anything.
            self.send(("exception", "not a valid request: %s" % error))
            self._end()
            raise

    def _requests(self):
        """Yields requests for losses; answers all others itself; ends with the parent."""
        while not self._ended:
            message = self._receive()
            if message is None:
                self._end()
                return
            try:
                if not isinstance(message, tuple) or not message or not isinstance(message[0], str):
                    raise TypeError("a request must be a tuple (command, ...)")
                if message[0] == "exit":
                    self._end()
                    return
                if message[0] == "get_loss_and_error_signal":
                    request = self._read_request(*message[1:])
                else:
                    request = None
                    answer = ("ok", *self._answer(message[0], message[1:]))
            except Exception as error:
                self.log("request failed: %s" % describe(error))
                self.send(("exception", describe(error)))
                continue
            if request is None:
                self.send(answer)
            else:
                yield request

    # ------------------------------------------------------------------------------ the answers

    def _answer(self, command, arguments):
        if command == "init":
            return self._handshake(*arguments)
        if command == "upgrade":
            return accept_upgrade(self._channel, self.settings.values, *arguments)
        if command == "export_allophone_state_fsa_by_segment_name":
            return self._export(*arguments)
        raise ValueError(
            "unknown command %r; known are init, get_loss_and_error_signal, "
            "export_allophone_state_fsa_by_segment_name and exit" % (command,)
        )

    def _handshake(self, name, version):
        if version != PROTOCOL_VERSION:
            raise ValueError(
                "%s speaks version %r of the protocol, this control module speaks version %d; "
                "use a control module that belongs to the parent"
                % (name, version, PROTOCOL_VERSION)
            )
        if self.version_number is not None and self.version_number < self.settings.min_version:
            raise ValueError(
                "this Sprint's PythonControl has version %s, but at least %d is needed "
                "(minPythonControlVersion); use a newer Sprint"
                % (self.version_number, self.settings.min_version)
            )
        return (_NAME, PROTOCOL_VERSION, *offered_versions(self.settings.values))

    def _export(self, segment_name):
        states, arcs, edges, weights = self._ask(
            "export_allophone_state_fsa_by_segment_name", as_str(segment_name)
        )
        return int(states), int(arcs), edges, weights

    def _read_request(self, segment_name, segment_length, log_posteriors):
        name = as_str(segment_name)
        if (
            not isinstance(log_posteriors, np.ndarray)
            or log_posteriors.ndim != 2
            or log_posteriors.dtype.kind != "f"
        ):
            raise ValueError("segment %r: log_posteriors must be a float array [T, L]" % name)
        if int(segment_length) != len(log_posteriors):
            raise ValueError(
                "segment %r: the length %d disagrees with the %d frames of log_posteriors"
                % (name, segment_length, len(log_posteriors))
            )
        return Request(self, name, log_posteriors.astype(np.float32, copy=False))

    def _ask(self, command, *arguments, **keywords):
        """Asks Sprint."""
        if self.callback is None:
            raise RuntimeError(
                "Sprint gave no callback; enable its PythonControl (action = python-control)"
            )
        self.asking = True
        try:
            return self.callback(command, *arguments, **keywords)
        finally:
            self.asking = False

    def _answer_by_callback(self, request, orthography, alignment):
        try:
            loss, error_signal = self._calculate(request, orthography, alignment)
            if loss is None:
                request.skip()
                return
            request.set_error_signal(error_signal)
            request.set_loss(loss)
        except Exception as error:
            self.log("segment %r failed: %s" % (request.segment, describe(error)))
            request.fail(describe(error))

    def _calculate(self, request, orthography, alignment):
        arguments = {"segment_name": request.segment}
        if alignment is not None:
            arguments["alignment"] = np.asarray(alignment, dtype=np.float32)
        else:
            if orthography is None:
                orthography = self._ask("get_orthography_by_segment_name", request.segment)
            arguments["orthography"] = orthography
        # Sprint's matrices are (labels, frames).
        if alignment is None and "log_posteriors" in getattr(self.callback, "offers", ()):
            arguments["log_posteriors"] = request.log_posteriors.T
            error_type = "error-signal"
        else:
            scratch = self._scratch.like(request.log_posteriors)
            arguments["posteriors"] = np.exp(request.log_posteriors, out=scratch).T
            del scratch
            error_type = "error-signal-before-softmax"
        arguments["output_error_type"] = self.settings.output_error_type or error_type
        loss, error_signal = self._ask("calculate_criterion", **arguments)
        if loss is None:
            return None, None
        if error_signal is None:
            raise ValueError(
                "Sprint's criterion gives no error signal for segment %r" % request.segment
            )
        return loss, error_signal.T


def as_str(value):
    """A name as str; some parents send bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise TypeError("a segment name must be a string, not %s" % type(value).__name__)
    return value


def describe(error):
    """An exception in one line: its class, and what it says."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return "%s: %s" % (type(error).__name__, text) if text else type(error).__name__
