"""Reading XML files, plain or gzipped, from their first byte to their last without keeping them.

Built on expat rather than on `xml.etree`, for speed and because entity declarations, with which a
small file can be blown up to fill the memory, can be refused where they stand.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO
from xml.parsers import expat

from jax_sprint.embedded.errors import InputFileError

__all__ = ["XmlHandler", "collector_paused", "open_maybe_gzip", "parse_xml"]

_CHUNK = 1 << 18


class XmlHandler:
    """What a reader of one kind of file implements.

    Attributes:
        path: of the file being read.
        where: call it for ``"FILE line N"`` of what is being read.
    """

    error: type[InputFileError] = InputFileError
    path: str = ""
    where: Callable[[], str] = staticmethod(lambda: "")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        raise NotImplementedError

    def end(self, tag: str) -> None:
        """An element ends."""
        raise NotImplementedError

    def text(self, data: str) -> None:
        """Character data; may arrive in several pieces."""
        raise NotImplementedError

    def fail(self, problem: str) -> InputFileError:
        """An error that says where in the file the problem is; to be raised."""
        return self.error(f"{self.where()}: {problem}")


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps the garbage collector off while much is made that stays.

    It would look through all of it again and again; reading a large file takes a third longer.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def open_maybe_gzip(path: str, error: type[InputFileError], what: str) -> BinaryIO:
    """Opens a file for reading, through gunzip if its first bytes say so.

    Args:
        path: relative to the working directory.
        error: class to raise.
        what: what the file is, for the message, e.g. ``"lexicon"``.

    Raises:
        InputFileError: (of the class given) if it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if zipped else open(path, "rb")  # type: ignore[return-value]
    except OSError as problem:
        raise error(f"cannot read the {what} file {path!r}: {problem.strerror}") from None


def parse_xml(path: str, handler: XmlHandler, what: str) -> None:
    """Feeds a file to a handler.

    Args:
        path: relative to the working directory; plain or gzipped.
        handler: is told of elements and text; its `path` and `where` are set.
        what: what the file is, for messages.

    Raises:
        InputFileError: (of the handler's class) for a missing file, XML that is not well-formed,
            a truncated archive, or a declaration of entities, naming file and line.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.ordered_attributes = False
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    parser.CharacterDataHandler = handler.text
    handler.path = path
    handler.where = lambda: f"{path} line {parser.CurrentLineNumber}"

    def refuse_entity(name: str, *_: object) -> None:
        raise handler.fail(f"the declaration of entity {name!r} is refused; write the text itself")

    parser.EntityDeclHandler = refuse_entity
    try:
        with collector_paused(), open_maybe_gzip(path, handler.error, what) as file:
            while chunk := file.read(_CHUNK):
                parser.Parse(chunk, False)
            parser.Parse(b"", True)
    except expat.ExpatError as problem:
        message = expat.errors.messages.get(problem.code, str(problem))
        raise handler.error(
            f"{path} line {problem.lineno}: malformed XML in the {what} file: {message}"
        ) from None
    except (LookupError, ValueError) as problem:
        # expat's, for an encoding that nobody knows; those of a handler are not ours to explain.
        if "encoding" not in str(problem) or isinstance(problem, handler.error):
            raise
        raise handler.error(
            f"{path} line 1: the {what} file cannot be decoded ({problem}); declare the encoding "
            "that it has, UTF-8 as a rule"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise handler.error(
            f"the {what} file {path!r} is a broken gzip archive: {problem}"
        ) from None
    except OSError as problem:
        raise handler.error(f"cannot read the {what} file {path!r}: {problem.strerror}") from None
