"""RASR's `callback`: what a control module can ask the embedded Sprint for.

Calling conventions are RASR's (`PythonControl`, version 5): the command is positional, the rest
positional or by keyword, strings are `str`.  Two things are more than RASR has, and `offers` says
so (RASR's callback, a plain function, lacks that attribute):

* ``"log_posteriors"``: `calculate_criterion` takes ``log_posteriors=`` [L, T] in place of
  ``posteriors=``.  Posteriors below e^-87 are 0 in float32, log-posteriors lose nothing.
* ``"get_loss_and_error_signal"``: the command that RETURNN's control module sends when it runs in
  the control loop: ``(segment_name, segment_length, log_posteriors [T, L])`` gives
  ``(loss, error_signal [T, L])``.

With ``*.input-in-log-space = true`` the criterion takes what is passed as ``posteriors=`` for
log-posteriors, which is what RETURNN's control module passes in ``iterate-corpus``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.corpus import Corpus
from jax_sprint.embedded.criterion import Criterion, cross_entropy, refuse_error_signal
from jax_sprint.embedded.errors import ConfigurationError, NotOfferedError
from jax_sprint.embedded.exporter import AutomatonExporter

__all__ = ["VERSION_NUMBER", "SprintCallback"]

VERSION_NUMBER = 5
_ERROR_TYPES = ("none", "error-signal", "error-signal-before-softmax", "pseudo-targets")
_HELP = (
    "Usage: callback(command, ...). The commands are RASR's: version, version_number, help, "
    "init_criterion, calculate_criterion, export_allophone_state_fsa_by_segment_name, "
    "export_allophone_state_fsa_by_orthography, get_orthography_by_segment_name.\n"
    "This is the embedded Sprint of jax_sprint; callback.offers names what it has beyond RASR.\n"
)


class SprintCallback:
    """The callable that is handed to the control module.

    Args:
        config: of the application.
    """

    offers = frozenset({"log_posteriors", "get_loss_and_error_signal"})

    def __init__(self, config: Configuration) -> None:
        self._config = config
        self._exporter = AutomatonExporter(
            config.select("alignment-fsa-exporter"), lambda: self.criterion.tdp_scale
        )
        self._in_log_space = config.get_bool("input-in-log-space", False)
        self._corpus: Corpus | None = None
        self._criterion: Criterion | None = None
        self._commands: dict[str, Callable[..., Any]] = {
            "version": self._version,
            "version_number": self._version_number,
            "help": self._help,
            "init_criterion": self._init_criterion,
            "calculate_criterion": self._calculate_criterion,
            "export_allophone_state_fsa_by_segment_name": self._export_by_segment_name,
            "export_allophone_state_fsa_by_orthography": self._export_by_orthography,
            "get_orthography_by_segment_name": self._orthography_by_segment_name,
            "get_alignment_from_cache": self._from_cache,
            "analyze_alignment_from_cache": self._from_cache,
            "get_loss_and_error_signal": self._loss_and_error_signal,
        }

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Carries out one command.

        Raises:
            TypeError: no command, or one that is no `str`.
            ValueError: an unknown command, or arguments that make no sense.
            KeyError: an unknown segment.
        """
        if not arguments:
            raise TypeError("callback() needs a command; callback('help') lists them")
        command, *rest = arguments
        _need_str("the command", command)
        handler = self._commands.get(command)
        if handler is None:
            raise ValueError(f"unknown command {command!r}; callback('help') lists them")
        return handler(*rest, **keywords)

    @property
    def corpus(self) -> Corpus:
        """The corpus; read at first use."""
        if self._corpus is None:
            self._corpus = Corpus.from_configuration(self._config.select("corpus"))
        return self._corpus

    @property
    def criterion(self) -> Criterion:
        """The criterion; made at first use."""
        if self._criterion is None:
            self._criterion = Criterion.from_configuration(self._config)
        return self._criterion

    def file_components(self) -> tuple[Configuration, Configuration]:
        """The components whose ``file`` names the corpus and the lexicon."""
        return self._config.select("corpus"), self._exporter.lexicon_config

    def load(self) -> None:
        """Reads everything that the configuration names, so that mistakes show at once.

        Raises:
            EmbeddedError: a file is missing or wrong, a parameter makes no sense.
        """
        corpus, lexicon = self.file_components()
        if corpus.get_path("file"):
            _ = self.corpus
        if lexicon.get_path("file"):
            _ = self._exporter.builder
        _ = self.criterion

    # -- about Sprint ---------------------------------------------------------------------------

    def _version(self) -> str:
        return (
            "<version><application>jax_sprint.embedded</application>"
            f"<python-control>{VERSION_NUMBER}</python-control></version>"
        )

    def _version_number(self) -> int:
        return VERSION_NUMBER

    def _help(self) -> str:
        return _HELP

    # -- automata -------------------------------------------------------------------------------

    def _export_by_segment_name(self, segment_name: str) -> tuple[int, int, np.ndarray, np.ndarray]:
        _need_str("segment_name", segment_name)
        return self._export(self.corpus.segment(segment_name).orth)

    def _export_by_orthography(self, orthography: str) -> tuple[int, int, np.ndarray, np.ndarray]:
        _need_str("orthography", orthography)
        return self._export(orthography)

    def _export(self, orthography: str) -> tuple[int, int, np.ndarray, np.ndarray]:
        automaton = self._exporter.export(orthography)
        edges = np.ascontiguousarray(automaton.edges, dtype=np.uint32).reshape(-1)
        weights = np.ascontiguousarray(automaton.weights, dtype=np.float32)
        # Copies: what the caller does to them must not reach the cache.
        return int(automaton.num_states), len(weights), edges.copy(), weights.copy()

    def _orthography_by_segment_name(self, segment_name: str) -> str:
        _need_str("segment_name", segment_name)
        return self.corpus.segment(segment_name).orth

    def _from_cache(self, *_arguments: Any, **_keywords: Any) -> None:
        raise NotOfferedError(
            "alignments in RASR's caches can be read by RASR only; "
            "the embedded Sprint computes losses from automata (training-criterion = full-sum)"
        )

    # -- criteria -------------------------------------------------------------------------------

    def _init_criterion(self) -> None:
        _ = self.criterion

    def _calculate_criterion(
        self,
        posteriors: np.ndarray | None = None,
        orthography: str | None = None,
        alignment: np.ndarray | None = None,
        output_error_type: str | None = None,
        segment_name: str | None = None,
        *,
        log_posteriors: np.ndarray | None = None,
    ) -> tuple[float | None, np.ndarray | None]:
        error_type = "none" if output_error_type is None else output_error_type
        _need_str("output_error_type", error_type)
        if error_type not in _ERROR_TYPES:
            raise ValueError(
                f"unknown output_error_type {error_type!r}; it must be one of "
                + ", ".join(_ERROR_TYPES)
            )
        if (posteriors is None) == (log_posteriors is None):
            raise ValueError("calculate_criterion needs either posteriors or log_posteriors")
        if alignment is not None and orthography is not None:
            raise ValueError("calculate_criterion needs an alignment or an orthography, not both")
        if posteriors is not None and self._in_log_space:
            posteriors, log_posteriors = None, posteriors
        if log_posteriors is not None:
            scores = _matrix("log_posteriors", log_posteriors)
        else:
            scores = _matrix("posteriors", posteriors)
            with np.errstate(divide="ignore", invalid="ignore"):
                scores = np.log(scores.astype(np.float64))
        criterion = self.criterion
        if criterion.name == "none":
            return 0.0, (None if error_type == "none" else np.zeros(scores.T.shape, np.float32))
        if criterion.name == "cross-entropy":
            return _calculate_cross_entropy(scores, alignment, error_type)
        if orthography is None:
            if segment_name is None:
                raise ValueError("the criterion 'full-sum' needs an orthography")
            _need_str("segment_name", segment_name)
            orthography = self.corpus.segment(segment_name).orth
        _need_str("orthography", orthography)
        loss, gradient = criterion.full_sum(scores, self._exporter.graph(orthography))
        if error_type in ("none", "pseudo-targets"):
            return loss, None
        if error_type == "error-signal-before-softmax":
            # Through the softmax: d/dz = g - y * sum(g), exact for posteriors that sum to 1.
            with np.errstate(invalid="ignore"):
                gradient = gradient - np.exp(scores).astype(np.float32) * gradient.sum(
                    axis=1, keepdims=True
                )
        elif posteriors is not None:
            # With respect to the posteriors themselves, as RASR means it.
            with np.errstate(divide="ignore", invalid="ignore"):
                gradient = np.where(gradient == 0.0, gradient, gradient * np.exp(-scores))
        return loss, np.asarray(gradient, dtype=np.float32).T

    def _loss_and_error_signal(
        self, segment_name: str, segment_length: int, log_posteriors: np.ndarray
    ) -> tuple[float, np.ndarray]:
        scores = _matrix("log_posteriors", np.asarray(log_posteriors).T)
        if segment_length != len(scores):
            raise ValueError(
                f"segment {segment_name!r}: the length {segment_length} disagrees with "
                f"the {len(scores)} frames of log_posteriors"
            )
        loss, error = self._calculate_criterion(
            log_posteriors=scores.T,
            segment_name=segment_name,
            output_error_type="error-signal",
        )
        assert loss is not None
        assert error is not None
        return loss, np.ascontiguousarray(error.T)


def _calculate_cross_entropy(
    scores: np.ndarray, alignment: np.ndarray | None, error_type: str
) -> tuple[float, np.ndarray | None]:
    if error_type == "error-signal":
        raise refuse_error_signal("cross-entropy")
    if alignment is None:
        raise ConfigurationError(
            "the criterion 'cross-entropy' needs an alignment; without one use "
            "training-criterion = full-sum"
        )
    loss, error = cross_entropy(np.exp(scores), alignment)
    return loss, (error.T if error_type == "error-signal-before-softmax" else None)


def _matrix(name: str, value: Any) -> np.ndarray:
    """Checks [L, T] and gives [T, L]."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "f":
        found = (
            f"shape {value.shape}, dtype {value.dtype}"
            if isinstance(value, np.ndarray)
            else type(value).__name__
        )
        raise ValueError(f"{name} must be a float array of shape (labels, frames), not {found}")
    return value.T


def _need_str(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}: {value!r:.60}")
