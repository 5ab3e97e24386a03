"""The name of some segment, when the user gave none."""

from __future__ import annotations

import gzip
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

__all__ = ["first_segment"]


def first_segment(paths: Iterable[str]) -> tuple[str, str] | None:
    """Finds a Bliss corpus among some files.

    Args:
        paths: what Sprint may read, in any order.

    Returns:
        The full name of a corpus's first segment, and the file that it is in; None if there is no
        corpus with a segment.
    """
    for path in paths:
        name = _first_in(path, (), 0)
        if name is not None:
            return name, path
    return None


def _first_in(path: str, outer: tuple[str, ...], depth: int) -> str | None:
    # `outer` are the names of the sections around; an included corpus stands for the innermost.
    names: list[str] = list(outer[:-1])
    root = True
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        opener = gzip.open if packed else open
        with opener(path, "rb") as file:
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                if root and element.tag != "corpus":
                    return None
                root = False
                if element.tag == "segment":
                    return "/".join([*names, element.get("name", "1")])
                if element.tag in ("corpus", "subcorpus", "recording"):
                    if event == "start":
                        names.append(element.get("name", ""))
                    else:
                        names.pop()
                if element.tag == "include" and event == "start" and depth < 8:
                    other = os.path.join(os.path.dirname(path), element.get("file", ""))
                    name = _first_in(other, tuple(names), depth + 1)
                    if name is not None:
                        return name
                if event == "end":
                    element.clear()
    except (OSError, EOFError, ElementTree.ParseError):
        return None
    return None
