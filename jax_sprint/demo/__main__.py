"""`python -m jax_sprint.demo`."""

from __future__ import annotations

import sys

from jax_sprint.demo import main

if __name__ == "__main__":
    sys.exit(main())
