"""The memory that the control module uses again, inside Sprint."""

from __future__ import annotations

import numpy as np

from jax_sprint.sprint_side.jax_sprint_control.scratch import Scratch


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_it_is_used_again_if_nobody_holds_it() -> None:
    scratch = Scratch()
    first = scratch.like(np.zeros((30, 40)))
    assert first.shape == (30, 40)
    assert first.dtype == np.float32
    where = address(first)
    del first
    assert address(scratch.like(np.zeros((40, 20)))) == where
    assert scratch.like(np.zeros((50, 60))).shape == (50, 60)


def test_what_somebody_holds_stays() -> None:
    scratch = Scratch()
    first = scratch.like(np.zeros((3, 4))).T
    first[...] = 7
    part = first[1:]
    del first
    second = scratch.like(np.zeros((3, 4)))
    second[...] = 8
    assert (part == 7).all()
