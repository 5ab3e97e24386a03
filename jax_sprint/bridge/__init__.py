"""The host's side of the conversation with Sprint; numpy and the standard library only."""

import logging

from jax_sprint.bridge.instance import SprintSubprocessInstance
from jax_sprint.bridge.options import SprintOptions
from jax_sprint.bridge.pool import SprintInstancePool
from jax_sprint.bridge.reader import ReaderThread
from jax_sprint.bridge.tags import decode_tags, encode_tags

__all__ = [
    "ReaderThread",
    "SprintInstancePool",
    "SprintOptions",
    "SprintSubprocessInstance",
    "decode_tags",
    "encode_tags",
]

# Quiet, unless the program that uses us configures logging.
logging.getLogger("jax_sprint").addHandler(logging.NullHandler())
