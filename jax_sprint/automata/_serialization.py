"""Makes `jax.export` programs that take automata serialisable."""

from __future__ import annotations

import json
from typing import Any

from jax import export

from jax_sprint.automata._automata import Automata
from jax_sprint.automata._sliced import Slice, Sliced, Table

__all__: list[str] = []


def _write(static: Any) -> bytes:
    return json.dumps(list(static)).encode()


def _read(data: bytes) -> tuple:
    return tuple(json.loads(data))


# The names go into what users store: they stay as they are, wherever the classes may move.
export.register_pytree_node_serialization(
    Automata,
    serialized_name="jax_sprint.Automata",
    serialize_auxdata=_write,
    deserialize_auxdata=_read,
)
for _part in (Slice, Sliced, Table):
    export.register_namedtuple_serialization(
        _part, serialized_name=f"jax_sprint.automata.{_part.__name__}"
    )
