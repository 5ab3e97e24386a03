"""What the parent process says on Sprint's command line: `KEY:VALUE,KEY:VALUE,...`."""

__all__ = ["Settings"]

_TRUE = ("1", "true", "yes", "on")


class Settings:
    """The config string, taken apart.

    Attributes:
        c2p_fd: number of the inherited descriptor that answers are written to.
        p2c_fd: number of the one that requests are read from.
        min_version: least version of Sprint's PythonControl that will do.
        verbose: say on standard error what happens (never on standard output, where Sprint's own
            noise is).
        output_error_type: what to ask Sprint's `calculate_criterion` for; None: by itself.
        values: all pairs, for whoever knows more keys.
    """

    def __init__(self, values):
        self.values = values
        self.c2p_fd = self._number("c2p_fd")
        self.p2c_fd = self._number("p2c_fd")
        self.min_version = self._number("minPythonControlVersion", 0)
        self.verbose = values.get("verbose", "").strip().lower() in _TRUE
        self.output_error_type = values.get("outputErrorType") or None

    @classmethod
    def parse(cls, text):
        """Reads the config string.

        Args:
            text: pairs separated by commas, key and value by the first colon; values hold no comma.

        Raises:
            ValueError: a part without a colon, a descriptor missing or no number.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        values = {}
        for part in text.split(","):
            if not part:
                continue
            key, colon, value = part.partition(":")
            if not colon:
                raise ValueError("pymod-config: %r is no KEY:VALUE pair, in %r" % (part, text))
            values[key] = value
        return cls(values)

    def _number(self, key, default=None):
        text = self.values.get(key)
        if text is None and default is not None:
            return default
        if text is None or not text.strip().isdecimal():
            raise ValueError(
                "pymod-config: %s must be a number, not %r; it is set by the parent process "
                "that starts Sprint" % (key, text)
            )
        return int(text)
