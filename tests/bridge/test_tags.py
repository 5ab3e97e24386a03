"""Segment names as arrays and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_sprint.bridge import decode_tags, encode_tags

names = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))


@given(names)
def test_round_trip(tags: list[str]) -> None:
    array = encode_tags(tags)
    assert array.dtype == np.uint8
    assert array.shape[0] == len(tags)
    assert array.shape[1] % 32 == 0
    assert array.shape[1] >= 32
    for form in (array, tags, tuple(tags), [tag.encode() for tag in tags]):
        assert decode_tags(form) == tags
    np.testing.assert_array_equal(encode_tags(array), array)


def test_forms() -> None:
    tags = ["corpus/rec/1", "corpus/äöü/2"]
    want = encode_tags(tags)
    for form in (
        np.array(tags),
        np.array(tags, dtype=object),
        np.array([tag.encode() for tag in tags]),
        jnp.asarray(want),
        want.view(np.int8),
        want.view("S1"),
        np.asfortranarray(want),
    ):
        assert decode_tags(form) == tags
        np.testing.assert_array_equal(encode_tags(form), want)


def test_width() -> None:
    assert encode_tags(["a" * 32]).shape == (1, 32)
    assert encode_tags(["a" * 33]).shape == (1, 64)
    assert encode_tags(["a"], max_len=100).shape == (1, 100)
    assert encode_tags([]).shape == (0, 32)
    with pytest.raises(ValueError, match=r"tags\[1\] = 'abc' takes 3 bytes.*at least 3"):
        encode_tags(["a", "abc"], max_len=2)
    with pytest.raises(ValueError, match="max_len must be at least 1"):
        encode_tags([], max_len=0)


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ("a/b/c", "single name 'a/b/c'"),
        (b"a/b/c", "single name"),
        (["a", 7], r"tags\[1\] must be str or bytes, got int"),
        (["a\0b"], r"tags\[0\].*zero character"),
        ([b"\xff"], r"tags\[0\].*not UTF-8"),
        (["\ud800"], r"tags\[0\].*not UTF-8"),
        (np.zeros((2, 2), np.float32), r"dtype float32 and shape \(2, 2\)"),
        (np.zeros(3, np.uint8), r"dtype uint8 and shape \(3,\)"),
        (np.array([[97, 0, 98]], np.uint8), r"tags\[0\] holds bytes behind its first zero"),
        (np.array([[255, 0, 0]], np.uint8), r"tags\[0\].*not UTF-8"),
        (7, "tags must be"),
    ],
)
def test_bad_tags(tags, text: str) -> None:
    for function in (decode_tags, encode_tags):
        with pytest.raises(ValueError, match=text):
            function(tags)
