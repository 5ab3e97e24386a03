"""Segment names as arrays, so that they can travel through a jitted program.

A row holds one name in UTF-8, filled up with zeros::

    encode_tags(["a/b/1", "a/b/27"])   ->   61 2f 62 2f 31 00 00 ...
                                            61 2f 62 2f 32 37 00 ...   uint8 [2, 32]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["decode_tags", "encode_tags"]

# A program is compiled anew for each width, so widths come in steps.
_BUCKET = 32


def encode_tags(tags: Sequence[str | bytes] | np.ndarray, max_len: int | None = None) -> np.ndarray:
    """Writes segment names into one array.

    Args:
        tags: the names, as a sequence of str or bytes or a 1-d array of them (a 2-d uint8 array is
            decoded first).  An empty name is permitted for sequences that only fill up a batch;
            they must have length 0.
        max_len: the width W to use, in bytes.  None takes the longest name, rounded up to a
            multiple of 32 (at least 32), so that batches rarely differ in width.  Give it where
            several hosts must agree.

    Returns:
        [B, W] uint8, UTF-8 filled up with zeros.

    Raises:
        ValueError: a name holds a zero byte, is longer than `max_len`, or is neither str nor
            bytes; or `tags` is a single string.
    """
    names = [name.encode("utf-8") for name in decode_tags(tags)]
    longest = max(map(len, names), default=0)
    if max_len is None:
        width = max(_BUCKET, -(-longest // _BUCKET) * _BUCKET)
    else:
        width = int(max_len)
        if width < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        if longest > width:
            index = next(i for i, name in enumerate(names) if len(name) > width)
            raise ValueError(
                f"tags[{index}] = {names[index].decode()!r} takes {len(names[index])} bytes, more "
                f"than max_len = {width}; raise max_len to at least {longest}"
            )
    encoded = np.zeros((len(names), width), np.uint8)
    for row, name in zip(encoded, names, strict=True):
        row[: len(name)] = np.frombuffer(name, np.uint8)
    return encoded


def decode_tags(tags: Any) -> list[str]:
    """Reads segment names from any of the forms in which they are given.

    Args:
        tags: a sequence of str or bytes (UTF-8), a 1-d array of them, or the [B, W] uint8 array of
            `encode_tags` (also as a jax array).

    Returns:
        One str per sequence.

    Raises:
        ValueError: `tags` is none of these, a name is not valid UTF-8, or a row holds something
            behind its first zero.
    """
    if isinstance(tags, str | bytes):
        raise ValueError(
            f"tags must hold one segment name per sequence, got the single name {tags!r}; "
            f"pass [{tags!r}]"
        )
    if isinstance(tags, list | tuple):
        return [_decode_one(index, tag) for index, tag in enumerate(tags)]
    array = np.asarray(tags)
    if array.ndim == 1 and array.dtype.kind in "OSUT":
        return [_decode_one(index, tag) for index, tag in enumerate(array.tolist())]
    if array.ndim == 2 and (array.dtype in (np.uint8, np.int8) or array.dtype == np.dtype("S1")):
        return _decode_rows(np.ascontiguousarray(array).view(np.uint8))
    raise ValueError(
        "tags must be a sequence of str or bytes, or the uint8 array [B, W] of encode_tags, got "
        f"dtype {array.dtype} and shape {array.shape}"
    )


def _decode_one(index: int, tag: Any) -> str:
    if isinstance(tag, bytes | np.bytes_):
        try:
            tag = bytes(tag).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"tags[{index}] = {bytes(tag)!r} is not UTF-8: {error}") from None
    if not isinstance(tag, str):
        raise ValueError(
            f"tags[{index}] must be str or bytes, got {type(tag).__name__}; an array of names is "
            "made by encode_tags"
        )
    if "\0" in tag:
        raise ValueError(f"tags[{index}] = {str(tag)!r} holds a zero character; no name may")
    try:
        tag.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"tags[{index}] = {str(tag)!r} is not UTF-8: {error}") from None
    return str(tag)


def _decode_rows(rows: np.ndarray) -> list[str]:
    names = []
    for index, row in enumerate(rows):
        data = row.tobytes()
        name = data.rstrip(b"\0")
        if b"\0" in name:
            raise ValueError(
                f"tags[{index}] holds bytes behind its first zero: {data[:80]!r}; rows must be "
                "filled up with zeros, as encode_tags does"
            )
        names.append(_decode_one(index, name))
    return names
