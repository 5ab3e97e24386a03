"""A small folder of spoken digits, made once; it has the layout of the real recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

VOICES = {"anna": ("en-us+f2", 60), "ben_o": ("en-us+m3", 40)}
NUM_TAKES = 8


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers, ten digits, takes 0 to 7: five held out, three to train on."""
    soundfile = pytest.importorskip("soundfile")
    from jax_sprint.demo.espeak import Synthesiser, Voice
    from jax_sprint.demo.recordings import DIGITS

    folder = tmp_path_factory.mktemp("digits")
    synthesiser = Synthesiser()
    for speaker, (name, pitch) in VOICES.items():
        for number in range(NUM_TAKES):
            voice = Voice(name, rate=150 + 8 * number, pitch=pitch + 3 * (number % 3))
            for digit, word in enumerate(DIGITS):
                audio = synthesiser.speak(word, voice)
                path = folder / f"{digit}_{speaker}_{number}.wav"
                soundfile.write(path, audio, synthesiser.rate, subtype="PCM_16")
    return folder
