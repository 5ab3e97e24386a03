"""Time distortion penalties (TDPs): what it costs to stay in a state, to go on, to skip, to leave.

Facts from RASR's sources (`Am::TransitionModel`): the defaults are loop 3, forward 0, skip 3,
exit 0; each set is scaled by ``tdp.scale`` times the scales of the acoustic model and of the model
combination; infinite ones become the largest float.  Of the sets ``entry-m1``, ``entry-m2``,
``silence``, ``state-0`` and ``state-1`` the graphs use ``entry-m1`` (in front of a word),
``silence`` and ``state-0`` (every other state).  With ``tying-type = cart`` each emission n has a
set of its own, ``state-n-0``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jax_sprint.embedded.allophones import AllophoneAlphabet
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.errors import AutomatonError
from jax_sprint.embedded.hmm_topology import HmmTopology
from jax_sprint.embedded.state_tying import StateTying

__all__ = ["ENTRY", "FORBIDDEN", "NO_PENALTIES", "Penalties", "TransitionModel", "is_forbidden"]

FORBIDDEN = 3.4028234663852886e38
"""The largest single precision number, RASR's stand-in for infinity."""

ENTRY = 0
_SILENCE = 2
_SPEECH = 3
"""Numbers of sets of penalties: in front of a word, of silence, of other states."""

NO_PENALTIES = -1
"""The number of the set of which everything is free."""


class Penalties(NamedTuple):
    """One set of penalties, -log probabilities, natural logarithm."""

    loop: float
    forward: float
    skip: float
    exit: float


_DEFAULTS = Penalties(3.0, 0.0, 3.0, 0.0)
_FREE = Penalties(0.0, 0.0, 0.0, 0.0)


def is_forbidden(cost: float) -> bool:
    """Whether a cost is infinite in single precision."""
    return cost >= FORBIDDEN * (1 - 1e-9)


class TransitionModel:
    """All sets of penalties, scaled.

    Args:
        config: of the ``acoustic-model``; read are ``scale`` and everything in ``tdp``.
        scale: of the model combination.
        alphabet: the allophones.
        topology: states per phone.
        silence_label: label of the allophone state of silence, or None.

    Raises:
        ConfigurationError: a scale of 0 and an infinite penalty, or a negative scale of one.
    """

    def __init__(
        self,
        config: Configuration,
        scale: float,
        alphabet: AllophoneAlphabet,
        topology: HmmTopology,
        silence_label: int | None,
    ) -> None:
        tdp = config.select("tdp")
        scale *= config.get_float("scale", 1.0) * tdp.get_float("scale", 1.0)
        self._config = tdp
        self._silence_label = silence_label
        tying = tdp.get_choice("tying-type", ("global", "global-and-nonword", "cart"), "global")
        kind = tdp.get_choice("applicator-type", ("legacy", "corrected"), "legacy")
        self.corrected = kind == "corrected"
        if tdp.get_path("file"):
            raise tdp.error("file", "files of TDPs are not offered (nor are they by RASR's build)")
        names = ["entry-m1", "entry-m2", "silence", "state-0", "state-1"]
        self._tying: StateTying | None = None
        if tying == "cart":
            self._tying = StateTying(tdp.select("state-tying"), alphabet, topology)
            names[3:] = [f"state-{n}-0" for n in range(1, self._tying.num_classes)]
        self._names = names
        self.sets = [_read(tdp.select(name), scale) for name in names]
        self._by_number = [*self.sets, _FREE]  # NO_PENALTIES counts from the back
        self._types: dict[int, int] = {}

    def penalties(self, number: int) -> Penalties:
        """A set by its number."""
        return self._by_number[number]

    def type_of(self, label: int) -> int:
        """The number of the set that an allophone state has.

        Args:
            label: of the state; `EPSILON` where no state has been seen yet.
        """
        if label == self._silence_label:
            return _SILENCE
        if self._tying is None:
            return _SPEECH
        if label < 0:
            raise AutomatonError(
                f"{self._config.full_name('tying-type')} = cart does not go with skips from the "
                "start under applicator-type = corrected; choose the legacy one"
            )
        found = self._types.get(label)
        if found is None:
            found = self._types[label] = _SILENCE + self._tying.emission(label)
        return found

    def check_plain_loops(self) -> None:
        """Checks that the penalties let the CTC and RNA topologies do their own counting.

        Raises:
            ConfigurationError: a penalty that is neither what it must be.
        """
        for number, (name, penalties) in enumerate(zip(self._names, self.sets, strict=True)):
            loop_fits = is_forbidden(penalties.loop) if number < 2 else penalties.loop == 0.0
            fits = penalties.forward == 0.0 and penalties.exit == 0.0 and loop_fits
            if not fits or not is_forbidden(penalties.skip):
                raise self._config.select(name).error(
                    "loop",
                    "the CTC topology has no penalties: forward and exit must be 0, skip infinity, "
                    "loop 0 (for entry-m1 and entry-m2 infinity), but this set has "
                    + ", ".join(f"{k} {v:g}" for k, v in penalties._asdict().items()),
                )


def _read(config: Configuration, scale: float) -> Penalties:
    values = []
    for name, default in zip(Penalties._fields, _DEFAULTS, strict=True):
        value = config.get_float(name, default) * scale
        if math.isnan(value):
            raise config.error(name, "infinity times a scale of 0 is no number; change one")
        values.append(min(max(value, -FORBIDDEN), FORBIDDEN))
    return Penalties(*values)
