"""Speech from a box: eSpeak NG through ctypes, the same samples in every run."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Synthesiser", "Voice"]

# From speak_lib.h of eSpeak NG 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_ENDPAUSE = 0x1000
_POS_CHARACTER = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_EE_OK = 0
_SEED = 1
# The library copies the data path into a buffer of this many bytes, and appends to it.
_LONGEST_DATA_PATH = 150

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Voice:
    """How to speak.

    Attributes:
        name: an eSpeak voice, with a variant after `+`: "en-us+f2".
        rate: words per minute, 80 to 450.
        pitch: 0 to 99; 50 is the voice's own.
        pitch_range: 0 (monotone) to 99; 50 is the voice's own.
    """

    name: str
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50


class Synthesiser:
    """eSpeak NG with a state of its own.

    The library keeps oscillator phases and the like in global variables, from one request to the
    next and even across its own termination.  So each synthesiser loads a private copy of the
    library: the same requests in the same order then give the same samples, whatever else the
    process has said before.

    Attributes:
        rate: samples per second of what `speak` gives.
    """

    def __init__(self) -> None:
        import espeakng_loader

        data = espeakng_loader.get_data_path()
        with tempfile.TemporaryDirectory(prefix="espeak") as scratch:
            # Once loaded, the copy needs no file any more.
            library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), scratch))
        self._library = library
        self._lock = threading.Lock()
        self._chunks: list[np.ndarray] = []
        self._link: tempfile.TemporaryDirectory[str] | None = None
        path = os.path.dirname(data)
        if len(os.fsencode(path)) > _LONGEST_DATA_PATH:
            self._link = tempfile.TemporaryDirectory(prefix="espeak")
            path = self._link.name
            os.symlink(data, os.path.join(path, "espeak-ng-data"))
        self.rate: int = library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(path), _INITIALIZE_DONT_EXIT
        )
        if self.rate <= 0:
            raise RuntimeError(f"eSpeak NG does not start with its data in {path}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        # Kept, since the library holds nothing but the bare pointer.
        self._callback: Callable[..., Any] = _Callback(self._receive)
        library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, number: int, events: Any) -> int:
        if samples and number > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (number,)).copy())
        return 0

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """Speaks a text.

        Args:
            text: what to say.
            voice: how.

        Returns:
            [N] float32 samples, full scale is 1, at `rate`, without the silence at both ends.

        Raises:
            ValueError: if eSpeak has no such voice, or nothing could be said.
        """
        with self._lock:
            if self._library.espeak_SetVoiceByName(voice.name.encode()) != _EE_OK:
                raise ValueError(
                    f"eSpeak NG has no voice {voice.name!r}; `en-us`, `en-gb-scotland` or"
                    " `en-us+f2` are some"
                )
            for parameter, value in (
                (_RATE, voice.rate),
                (_PITCH, voice.pitch),
                (_RANGE, voice.pitch_range),
            ):
                self._library.espeak_SetParameter(parameter, value, 0)
            self._chunks = []
            data = text.encode() + b"\0"
            flags = _CHARS_UTF8 | _ENDPAUSE
            status = self._library.espeak_Synth(
                data, len(data), 0, _POS_CHARACTER, 0, flags, None, None
            )
            chunks, self._chunks = self._chunks, []
        if status != _EE_OK or not chunks:
            raise ValueError(f"eSpeak NG could not say {text!r} as {voice} (status {status})")
        samples = np.concatenate(chunks).astype(np.float32) / np.float32(32768)
        loud = np.flatnonzero(np.abs(samples) > 1e-3)
        if not len(loud):
            raise ValueError(f"eSpeak NG said nothing for {text!r} as {voice}")
        return samples[loud[0] : loud[-1] + 1]
