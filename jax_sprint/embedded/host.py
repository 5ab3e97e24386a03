"""Takes RASR's place around a control module: loads it, and calls it as RASR would.

Parameters of the application, named as RASR's:

===============================  ==================================================================
``action``                       ``python-control`` (default), or
                                 ``supervised-segmentwise-training``: see `embedded.trainer`
``python-control-enabled``       whether a trainer has a control module (default: no)
``pymod-path``                   folder that is put on Python's path
``pymod-name``                   module to import from there
``pymod-config``                 string that is passed on to its ``init``
``python-control-loop-type``     ``python-control-loop`` (default) or ``iterate-corpus``
``extract-features``             for ``iterate-corpus``: must be off, we read no audio
``corpus.python-segment-order``  and its ``-pymod-path``, ``-pymod-name``, ``-config``,
                                 ``-with-segment-info``: ask ``getSegmentList`` for the order
                                 (``iterate-corpus`` and training)
``report-unused``                ours: list resources that nothing asked for, on standard error
``load-at-start``                ours: ``yes``: read corpus and lexicon before the control module
                                 is called, so that mistakes show at once; ``no``: at first use,
                                 as RASR does; ``auto`` (default): yes if both are small files
===============================  ==================================================================

The criterion is described in `jax_sprint.embedded.criterion`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from jax_sprint.embedded.callback import VERSION_NUMBER, SprintCallback
from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.corpus import Segment
from jax_sprint.embedded.errors import ConfigurationError, ControlModuleError

__all__ = ["Host", "check_arguments"]


# Bytes that are read in about a tenth of a second.
_SMALL = 1 << 20


class Host:
    """One run of the embedded Sprint.

    Args:
        config: of the application.
    """

    def __init__(self, config: Configuration) -> None:
        self.config = config
        self.callback = SprintCallback(config)
        self._check()

    def _check(self) -> None:
        config = self.config
        actions = ["python-control", "supervised-segmentwise-training"]
        self._train = config.get_choice("action", actions, actions[0]) == actions[1]
        # As in RASR only a trainer can do without.
        self._controlled = not self._train or config.get_bool("python-control-enabled", False)
        self._loop_type = config.get_choice(
            "python-control-loop-type",
            ["python-control-loop", "iterate-corpus"],
            "python-control-loop",
        )
        features = config.get_bool("extract-features", self._loop_type == "iterate-corpus")
        if self._loop_type == "iterate-corpus" and features and not self._train:
            raise config.error(
                "extract-features", "it is on by default, but we read no audio; set it to 'no'"
            )

    def run(self) -> None:
        """Loads the control module and leaves control to it, until it is done.

        Raises:
            EmbeddedError: the configuration, or a file that it names, is wrong, or the module
                cannot be loaded.
            SystemExit: the control module raised it.
            Exception: whatever else the control module raised.
        """
        control = self._make_control() if self._controlled else None
        if self._train:
            from jax_sprint.embedded.trainer import SegmentwiseTrainer

            trainer = SegmentwiseTrainer(
                self.config,
                self.callback,
                lambda config: self._load(config, "pymod-path", "pymod-name"),
            )
            trainer.run(self._segments(), control)
        elif self._loop_type == "iterate-corpus":
            self._iterate_corpus(control)
        else:
            assert control is not None
            control.run_control_loop(callback=self.callback)
        if control is not None:
            control.exit()

    def _make_control(self) -> Any:
        config = self.config
        module = self._load(config, "pymod-path", "pymod-name")
        init = getattr(module, "init", None)
        if not callable(init):
            raise ControlModuleError(
                f"the control module {module.__name__!r} ({module.__file__}) has no function 'init'"
            )
        self._load_files()
        control = init(
            name="Sprint.PythonControl",
            sprint_unit="SegmentwiseNnTrainer" if self._train else "NnTrainer.pythonControl",
            reference=self,
            callback=self.callback,
            version_number=VERSION_NUMBER,
            config=config.get_str("pymod-config", ""),
        )
        if control is None:
            raise ControlModuleError(f"init() of control module {module.__name__!r} gave None")
        return control

    def _load(self, config: Configuration, path_name: str, module_name: str) -> ModuleType:
        path = config.get_path(path_name)
        name = config.get_str(module_name, "").strip()
        if not name:
            raise config.error(module_name, "no control module is named")
        if path and path not in sys.path:
            # In front: a control module must not be hidden by an installed package of its name.
            sys.path.insert(0, path)
        try:
            return importlib.import_module(name)
        except ImportError as error:
            where = f" from {path!r}" if path else ""
            raise ControlModuleError(
                f"cannot import the control module {name!r}{where}: {error} "
                f"(parameters {config.full_name(path_name)} and {config.full_name(module_name)})"
            ) from error

    def _load_files(self) -> None:
        when = self.config.get_choice("load-at-start", ["yes", "no", "auto"], "auto")
        files = [
            component.get_path("file")
            for component in self.callback.file_components()
            if component.get_path("file")
        ]
        if when == "auto":
            try:
                size = sum(os.stat(file).st_size for file in files)
            except OSError:
                size = 0  # loading it says better what is wrong
            when = "yes" if size <= _SMALL else "no"
        if when == "yes":
            self.callback.load()

    # -- iterate-corpus -------------------------------------------------------------------------

    def _iterate_corpus(self, control: Any) -> None:
        first = True
        for segment in self._segments():
            if first:
                control.init_processing(input_dim=-1, output_dim=-1)
                first = False
            control.process_segment(
                name=segment.full_name,
                orthography=segment.orth.encode("utf-8"),
                speaker_name=segment.speaker.name if segment.speaker is not None else None,
                features=None,
                alignment=None,
                soft_alignment=None,
            )

    def _segments(self) -> Iterator[Segment]:
        """The segments in the order that the configuration asks for."""
        corpus = self.callback.corpus
        config = self.config.select("corpus")
        if not config.get_bool("python-segment-order", False):
            yield from corpus
            return
        prefix = "python-segment-order"
        module = self._load(config, f"{prefix}-pymod-path", f"{prefix}-pymod-name")
        if not callable(getattr(module, "getSegmentList", None)):
            raise ControlModuleError(
                f"the module {module.__name__!r} has no function 'getSegmentList'"
            )
        info = None
        if config.get_bool(f"{prefix}-with-segment-info", False):
            info = {s.full_name: {"time": s.end - s.start} for s in corpus}
        names = module.getSegmentList(
            corpusName=corpus.name,
            segmentList=[segment.full_name for segment in corpus],
            segmentsInfo=info,
            config=config.get_str(f"{prefix}-config", ""),
        )
        for name in names:
            if not isinstance(name, str):
                raise ControlModuleError(
                    f"getSegmentList gave a {type(name).__name__} instead of a segment name"
                )
            yield corpus.segment(name)

    def report_unused(self) -> list[str]:
        """Lines about the resources that nothing has asked for so far."""
        return [
            f"configuration: nothing asked for {resource.name} = {resource.value} "
            f"({resource.source})"
            for resource in self.config.unused()
        ]


def check_arguments(arguments: list[str]) -> None:
    """Refuses a command line without any option, where RASR would look for a default file.

    Raises:
        ConfigurationError: there is nothing to do.
    """
    if not any(argument.startswith("--") for argument in arguments):
        raise ConfigurationError(
            "no options given; --config=FILE or --*.pymod-name=MODULE is needed (--help says more)"
        )
