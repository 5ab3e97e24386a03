"""One question of the parent that takes several of Sprint's calls to answer."""

import math

import numpy as np

__all__ = ["Request"]


class Request:
    """The loss of one segment, asked for and not yet answered.

    Attributes:
        segment: full name.
        log_posteriors: [T, L] float32, natural logarithm.
        done: whether the answer was sent.
    """

    def __init__(self, control, segment, log_posteriors):
        self._control = control
        self.segment = segment
        self.log_posteriors = log_posteriors
        self.done = False
        self._loss = None
        self._error_signal = None

    def set_loss(self, loss):
        """Sprint told the loss, a float; answers if the error signal is there too."""
        self._loss = float(loss)
        self._finish()

    def set_error_signal(self, error_signal):
        """Sprint told the error signal [T, L]; answers if the loss is there too."""
        error_signal = np.asarray(error_signal)
        if error_signal.shape != self.log_posteriors.shape:
            self.fail(
                "Sprint's error signal for segment %r has shape %s, but the log-posteriors have %s"
                % (self.segment, error_signal.shape, self.log_posteriors.shape)
            )
            return
        # Not copied if it need not be: it is sent before Sprint goes on.
        self._error_signal = np.asarray(error_signal, dtype=np.float32)
        self._finish()

    def skip(self):
        """Sprint did nothing with the segment: the loss is infinite, the error signal zero."""
        if not self.done:
            self.done = True
            zero = np.zeros(self.log_posteriors.shape, np.float32)
            self._control.send(("ok", math.inf, zero))

    def fail(self, reason):
        """Answers with an exception."""
        if not self.done:
            self.done = True
            self._control.send(("exception", str(reason)))

    def _finish(self):
        if self._loss is not None and self._error_signal is not None and not self.done:
            self.done = True
            self._control.send(("ok", self._loss, self._error_signal))
