"""Every shipped model: loads, has a card, and does what a bandwidth extender is for."""

from pathlib import Path

import numpy as np
import pytest
import torch

import bwe
from bwe import audio, degrade, dsp, hub, infer, metrics

ROOT = Path(__file__).resolve().parent.parent
# LSD of the example at 4 and 8 kHz, brick wall, with a margin of about 10 % over what was measured.
LSD_LIMIT = {"tiny": (1.55, 1.35), "speech-48k": (1.33, 1.25), "speech-48k-stream": (1.33, 1.25), "music-44k": (1.75, 1.55)}


@pytest.fixture(params=hub.list_models())
def any_model(request: pytest.FixtureRequest) -> infer.Extender:
    return bwe.load(request.param)


@pytest.fixture(params=[name for name in hub.list_models() if name in LSD_LIMIT])
def model(request: pytest.FixtureRequest) -> infer.Extender:
    return bwe.load(request.param)


@pytest.fixture
def talk(model: infer.Extender) -> torch.Tensor:
    """The example `(T,)` at the model's rate."""
    x, info = audio.read(ROOT / "examples" / "talk_48k.flac")
    return dsp.resample(torch.from_numpy(x[0]), info.sample_rate, model.sample_rate)


def null_limit(model: infer.Extender) -> float:
    """A live model has no time for a longer splice."""
    return -60.0 if model.causal else -90.0


def test_the_models_we_promise_are_here() -> None:
    assert {"speech-48k", "speech-48k-stream", "music-44k", "bone-16k", "tiny"} == set(hub.list_models())
    assert hub.find("tiny").joinpath("model.safetensors").stat().st_size < 200_000


def test_cards_say_data_licence_training_metrics_and_limits(any_model: infer.Extender) -> None:
    for word in ("## Data", "CC BY-SA", "## Training", "steps", "## Metrics", "LSD", "## Limits"):
        assert word in any_model.card, f"the card does not mention {word}"


def test_missing_band_comes_back(model: infer.Extender, talk: torch.Tensor) -> None:
    for cutoff, limit in zip((4000.0, 8000.0), LSD_LIMIT[model.name], strict=True):
        low = dsp.band_limit(talk, model.sample_rate, cutoff)
        y = model(low, model.sample_rate, cutoff=cutoff)
        assert float(metrics.lsd(talk, low, model.sample_rate)) > 2.5
        assert float(metrics.lsd(talk, y, model.sample_rate)) < limit
        # What was there is not worse than in the input, whose own figure is rounding noise around the cut-off bin.
        untouched = float(metrics.lsd_lf(talk, low, model.sample_rate, cutoff))
        assert float(metrics.lsd_lf(talk, y, model.sample_rate, cutoff)) < untouched + (0.03 if model.causal else 0.01)


def test_known_band_nulls_and_silence_is_silent(model: infer.Extender, talk: torch.Tensor) -> None:
    low = dsp.band_limit(talk, model.sample_rate, 4000.0)
    window = torch.hann_window(len(low))
    spectra = [torch.fft.rfft(s * window).abs().square() for s in (model(low, model.sample_rate, cutoff=4000.0) - low, low)]
    below = torch.linspace(0, model.sample_rate / 2, len(spectra[0])) < 3700
    assert 10 * torch.log10(spectra[0][below].sum() / spectra[1].sum()) < null_limit(model)
    silence = model(np.zeros(16_000, dtype=np.float32), 16_000, cutoff=7000.0)
    assert np.abs(silence).max() < 10 ** (-90 / 20)


def test_narrow_file_to_full_band_file(model: infer.Extender, tmp_path: Path) -> None:
    report = infer.extend(ROOT / "examples" / "talk_8k.wav", tmp_path / "out.wav", model)
    y, info = audio.read(tmp_path / "out.wav")
    assert info.sample_rate == model.sample_rate
    assert 3300 < report.cutoff_hz < 4000
    assert report.null_db < null_limit(model)
    power = np.abs(np.fft.rfft(y[0])) ** 2
    frequency = np.fft.rfftfreq(y.shape[-1], 1 / model.sample_rate)
    high = 10 * np.log10(power[frequency > 5000].sum() / power.sum())
    assert -60 < high < -5


def test_a_throat_microphone_comes_nearer_to_the_air(tmp_path: Path) -> None:
    model = bwe.load("bone-16k")
    assert (model.sample_rate, model.keeps_band) == (16_000, False)
    x, info = audio.read(ROOT / "examples" / "talk_16k.flac")
    air = torch.from_numpy(x[0])
    degrade.degrade_file(ROOT / "examples" / "talk_16k.flac", tmp_path / "throat.flac", bone="throat", seed=1)
    body = torch.from_numpy(audio.read(tmp_path / "throat.flac")[0][0])
    y = model(body, info.sample_rate)
    before, after = (float(metrics.lsd(air, s, info.sample_rate)) for s in (body, y))
    assert after < before - 0.3
    assert np.abs(model(np.zeros(16_000, dtype=np.float32), 16_000)).max() < 10 ** (-80 / 20)
    report = infer.extend(tmp_path / "throat.flac", tmp_path / "out.flac", model)
    assert "whole band made anew" in str(report)
