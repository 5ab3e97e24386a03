"""From samples to normalised log-mel features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FRAMES_PER_SECOND", "NUM_MEL_BINS", "Normaliser", "common_rate", "log_mel", "resample"]

NUM_MEL_BINS = 40
FRAMES_PER_SECOND = 100
"""Before the model's subsampling."""


def resample(audio: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Changes the sample rate.

    Args:
        audio: [N] float32 samples.
        rate: samples per second of `audio`.
        new_rate: samples per second wanted.

    Returns:
        [N'] float32 samples, N' about N * new_rate / rate.
    """
    if rate == new_rate:
        return audio
    import soxr

    return np.asarray(soxr.resample(audio, rate, new_rate, quality="MQ"), np.float32)


def common_rate(rates: Sequence[int]) -> int:
    """Chooses the rate at which all recordings are compared: 16 kHz, or 8 kHz if one has less."""
    return 16000 if min(rates) >= 16000 else 8000


def log_mel(audio: np.ndarray, rate: int) -> np.ndarray:
    """Computes 40 log-mel energies per 10 ms with windows of 25 ms, without dither.

    Args:
        audio: [N] float32 samples, full scale is 1.
        rate: samples per second.

    Returns:
        [T, 40] float32, natural logarithms, T = N / (rate / 100) rounded.
    """
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = NUM_MEL_BINS
    bank = kaldi_native_fbank.OnlineFbank(options)
    # The bank's floor under the logarithm expects samples of 16 bit.
    bank.accept_waveform(rate, audio * np.float32(32768))
    bank.input_finished()
    frames = [bank.get_frame(index) for index in range(bank.num_frames_ready)]
    if not frames:
        return np.zeros((0, NUM_MEL_BINS), np.float32)
    return np.stack(frames).astype(np.float32)


@dataclass(frozen=True)
class Normaliser:
    """Takes the mean of each utterance and the deviation of the training data out of features.

    The mean of the utterance takes out the channel and the loudness; its deviation is left alone,
    since in a single short word it says more about the word than about the speaker.

    Attributes:
        scale: [40] float32, one over the standard deviation around the utterances' means.
    """

    scale: np.ndarray

    @classmethod
    def from_features(cls, features: Sequence[np.ndarray]) -> Normaliser:
        """Measures the deviation on training features, each [T, 40] float32 with T > 0."""
        total = sum(len(each) for each in features)
        squares = sum(
            np.square(each - each.mean(axis=0)).sum(axis=0, dtype=np.float64) for each in features
        )
        return cls((1.0 / np.sqrt(squares / total + 1e-5)).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Normalises [T, 40] float32; what comes back has the same shape and dtype."""
        if not len(features):
            return features
        return (features - features.mean(axis=0)) * self.scale
