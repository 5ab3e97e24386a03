"""The pool with the embedded Sprint, compared with what the real RASR answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jax_sprint.bridge import SprintInstancePool, SprintOptions
from jax_sprint.errors import SprintRequestError

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def golden(golden_dir: Path, name: str) -> tuple[SprintOptions, np.lib.npyio.NpzFile]:
    options = SprintOptions(
        config=[f"--config=config/{name}.config"],
        cwd=golden_dir,
        num_instances=1 + (name == "a_mono3_default"),
        start_timeout=30.0,
        request_timeout=30.0,
    )
    return options, np.load(golden_dir / f"{name}.npz")


NAMES = sorted(path.stem for path in (Path(__file__).parent.parent / "golden/config").iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_automata(golden_dir: Path, name: str) -> None:
    options, want = golden(golden_dir, name)
    with SprintInstancePool(options) as pool:
        edges, weights, start_end_states = pool.get_automata_for_batch(want["tags"])
    np.testing.assert_array_equal(edges, want["edges"])
    np.testing.assert_array_equal(start_end_states, want["start_end_states"])
    np.testing.assert_allclose(weights, want["weights"], rtol=0, atol=1e-5)


def test_an_unknown_segment(golden_dir: Path) -> None:
    options, want = golden(golden_dir, "a_mono3_default")
    tag = str(want["tags"][0])
    with SprintInstancePool(options) as pool:
        with pytest.raises(SprintRequestError, match="no/such/segment"):
            pool.get_automata_for_batch([tag, "no/such/segment"])
        assert pool.get_automata_for_batch([tag])[0].shape[0] == 4
