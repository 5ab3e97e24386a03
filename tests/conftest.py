"""What every test shares: strict promotion, a fixed number of devices, the golden data.

With JAX_DISABLE_MOST_OPTIMIZATIONS=1 in the environment (jax's own variable), programs compile in
about half the time, with little optimization: all but those of tests marked `optimized` (exactness,
bad values, memory, the compiled program) or `gpu`.  CI's second run does so.
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
_quick = os.environ.get(_QUICK.upper(), "").lower() in ("1", "t", "true", "y", "yes", "on")
_asked_for = _quick


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _quick
    quick = _asked_for and not any(item.get_closest_marker(name) for name in ("optimized", "gpu"))
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
