"""What every test shares: strict promotion, a fixed number of devices, the golden data.

And how programs are compiled: nearly all time of the kernels' tests goes into that, and nearly half
of it into optimizing machine code, which a loop over twenty frames does not need.  So this is off,
but for tests marked `optimized` (exactness, bad values, memory, the compiled program) or `gpu`, and
for what runs in processes of its own: demo, notebooks, examples, devices that wait for each other.
With JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment it is on for all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before jax is imported by any test: four devices for shard_map, on one CPU.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"


def pytest_configure(config: pytest.Config) -> None:
    import jax

    # The package must work for users who forbid every implicit promotion.
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


_QUICK = "jax_disable_most_optimizations"
_quick = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _quick
    if _QUICK.upper() in os.environ:
        return
    quick = not any(item.get_closest_marker(name) for name in ("optimized", "gpu"))
    if quick == _quick:
        return
    import jax

    jax.config.update(_QUICK, quick)
    if _quick:
        jax.clear_caches()  # no program from before is taken for an optimized one
    _quick = quick


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import jax

    if any(device.platform == "gpu" for device in jax.devices()):
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a GPU; jax sees none here"))


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Automata and losses that the real RASR answered, with the configurations that gave them."""
    return GOLDEN


@pytest.fixture(scope="session")
def fsdd_dir() -> Path:
    """The folder of Free Spoken Digit Dataset recordings, which the project does not contain."""
    path = Path(os.environ.get("JAX_SPRINT_FSDD", ROOT.parent / "shared" / "data" / "fsdd"))
    if not path.is_dir():
        pytest.skip(f"no recordings at {path}; JAX_SPRINT_FSDD may name another folder")
    return path
