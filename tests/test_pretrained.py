"""Every shipped model: loads, has a card, and does what a bandwidth extender is for."""

from pathlib import Path

import numpy as np
import pytest
import torch

import bwe
from bwe import audio, dsp, hub, infer, metrics

ROOT = Path(__file__).resolve().parent.parent
SR = 48_000
# LSD of the example at 4 and 8 kHz, brick wall, with a margin of about 10 % over what was measured.
LSD_LIMIT = {"tiny": (1.55, 1.35), "speech-48k": (1.33, 1.25), "speech-48k-stream": (1.33, 1.25)}


@pytest.fixture(scope="module")
def talk() -> torch.Tensor:
    x, info = audio.read(ROOT / "examples" / "talk_48k.flac")
    assert info.sample_rate == SR
    return torch.from_numpy(x[0])


@pytest.fixture(params=hub.list_models())
def model(request: pytest.FixtureRequest) -> infer.Extender:
    return bwe.load(request.param)


def null_limit(model: infer.Extender) -> float:
    """A live model has no time for a longer splice."""
    return -60.0 if model.causal else -90.0


def test_the_models_we_promise_are_here() -> None:
    assert {"speech-48k", "speech-48k-stream", "tiny"} <= set(hub.list_models())
    assert hub.find("tiny").joinpath("model.safetensors").stat().st_size < 200_000


def test_cards_say_data_licence_training_metrics_and_limits(model: infer.Extender) -> None:
    for word in ("## Data", "CC BY-SA", "## Training", "steps", "## Metrics", "LSD", "## Limits"):
        assert word in model.card, f"the card does not mention {word}"


def test_missing_band_comes_back(model: infer.Extender, talk: torch.Tensor) -> None:
    for cutoff, limit in zip((4000.0, 8000.0), LSD_LIMIT[model.name], strict=True):
        low = dsp.band_limit(talk, SR, cutoff)
        y = model(low, SR, cutoff=cutoff)
        assert float(metrics.lsd(talk, low, SR)) > 2.5
        assert float(metrics.lsd(talk, y, SR)) < limit
        # What was there is not worse than in the input, whose own figure is rounding noise around the cut-off bin.
        untouched = float(metrics.lsd_lf(talk, low, SR, cutoff))
        assert float(metrics.lsd_lf(talk, y, SR, cutoff)) < untouched + (0.03 if model.causal else 0.01)


def test_known_band_nulls_and_silence_is_silent(model: infer.Extender, talk: torch.Tensor) -> None:
    low = dsp.band_limit(talk, SR, 4000.0)
    window = torch.hann_window(len(low))
    spectra = [torch.fft.rfft(s * window).abs().square() for s in (model(low, SR, cutoff=4000.0) - low, low)]
    below = torch.linspace(0, SR / 2, len(spectra[0])) < 3700
    assert 10 * torch.log10(spectra[0][below].sum() / spectra[1].sum()) < null_limit(model)
    silence = model(np.zeros(16_000, dtype=np.float32), 16_000, cutoff=7000.0)
    assert np.abs(silence).max() < 10 ** (-90 / 20)


def test_narrow_file_to_full_band_file(model: infer.Extender, tmp_path: Path) -> None:
    report = infer.extend(ROOT / "examples" / "talk_8k.wav", tmp_path / "out.wav", model)
    y, info = audio.read(tmp_path / "out.wav")
    assert info.sample_rate == SR
    assert 3300 < report.cutoff_hz < 4000
    assert report.null_db < null_limit(model)
    power = np.abs(np.fft.rfft(y[0])) ** 2
    frequency = np.fft.rfftfreq(y.shape[-1], 1 / SR)
    high = 10 * np.log10(power[frequency > 5000].sum() / power.sum())
    assert -60 < high < -5
