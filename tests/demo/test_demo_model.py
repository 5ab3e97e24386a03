"""Features and model: shapes, padding that has no influence, parameters that repeat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sprint.demo.features import Normaliser, common_rate, log_mel, resample
from jax_sprint.demo.model import SUBSAMPLING, AcousticModel, output_lengths
from jax_sprint.demo.training import initial_parameters


def test_log_mel():
    rate = 8000
    time = np.arange(rate) / rate
    low, high = (
        log_mel((0.1 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)
        for hertz in (300, 2500)
    )
    assert low.shape == (100, 40)
    assert low.dtype == np.float32
    assert low.mean(axis=0).argmax() < high.mean(axis=0).argmax()
    assert log_mel(np.zeros((0,), np.float32), rate).shape == (0, 40)
    assert np.isfinite(log_mel(np.zeros((4000,), np.float32), rate)).all()


def test_louder_is_the_same_after_normalisation():
    audio = np.random.default_rng(0).normal(0, 0.05, 8000).astype(np.float32)
    quiet, loud = log_mel(audio, 8000), log_mel(np.float32(4) * audio, 8000)
    normalise = Normaliser.from_features([quiet])
    np.testing.assert_allclose(normalise(quiet), normalise(loud), atol=1e-3)
    np.testing.assert_allclose(normalise(quiet).std(axis=0), 1.0, atol=1e-3)
    np.testing.assert_allclose(normalise(quiet).mean(axis=0), 0.0, atol=1e-4)


def test_sample_rates():
    assert common_rate([22050, 16000]) == 16000
    assert common_rate([44100, 8000]) == 8000
    audio = np.zeros(22050, np.float32)
    assert resample(audio, 22050, 22050) is audio
    assert len(resample(audio, 22050, 16000)) == pytest.approx(16000, abs=2)


@pytest.fixture(scope="module")
def model_and_parameters():
    model = AcousticModel(7, width=16)
    return model, initial_parameters(model, seed=0)


def test_padding_has_no_influence(model_and_parameters):
    model, parameters = model_and_parameters
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 36, 40)).astype(np.float32)
    lengths = np.array([36, 19], np.int32)
    expected = model.apply(parameters, features, lengths, train=False)
    features[1, 19:] = np.nan
    longer = np.pad(features, ((0, 0), (0, 24), (0, 0)), constant_values=np.inf)
    for padded in (features, longer):
        logits = model.apply(parameters, padded, lengths, train=False)
        assert logits.shape == (2, padded.shape[1] // SUBSAMPLING, 7)
        for row, frames in enumerate(output_lengths(lengths)):
            np.testing.assert_allclose(logits[row, :frames], expected[row, :frames], atol=1e-5)


def test_parameters_depend_on_the_seed_alone(model_and_parameters):
    model, parameters = model_and_parameters
    again, other = initial_parameters(model, seed=0), initial_parameters(model, seed=1)
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), parameters, again)
    assert all(jax.tree.leaves(same))
    different = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), parameters, other)
    assert not all(jax.tree.leaves(different))


def test_output_lengths():
    assert [output_lengths(n) for n in range(5)] == [0, 1, 1, 1, 2]
