"""Degradations: reproducible, independent of the batch, and doing what their parameters say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bwe import degrade, dsp

SR = 48_000


def clips(count: int, length: int = 24_000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 1, length)).astype(np.float32)) * 0.05


def test_same_seed_same_pairs_for_any_batch_split() -> None:
    x, d = clips(6), degrade.Degradation()
    p = d.sample(np.random.default_rng(3), 6)
    assert p == d.sample(np.random.default_rng(3), 6)
    before = x.clone()
    together = d.apply(x, SR, p)
    assert torch.equal(x, before), "apply must not change its input"
    for i in range(6):
        alone = d.apply(x[i : i + 1], SR, p[i : i + 1])
        assert torch.equal(alone.input[0], together.input[i])
        assert torch.equal(alone.target[0], together.target[i])
        assert alone.cutoff_hz[0] == together.cutoff_hz[i]


@pytest.mark.parametrize("kind", [*dsp.FILTER_FAMILIES, *degrade.RESAMPLERS])
def test_input_ends_at_the_cutoff_that_is_reported(kind: str) -> None:
    d = degrade.Degradation()
    p = d.sample(np.random.default_rng(0), 1)[0]
    silent = (-np.inf, 0.0, 0)
    p = replace(
        p,
        filter=kind,
        cutoff_hz=6000.0,
        order=8,
        gain_db=0.0,
        tilt_db=0.0,
        slope_db=0.0,
        noise=silent,
        rumble=silent,
        input_noise=silent,
        told=1.0,
    )
    x = clips(1, SR)
    pair = d.apply(x, SR, [p])
    assert torch.equal(pair.target, x)
    assert float(pair.cutoff_hz) == pytest.approx(6000, rel=0.06)
    spectrum = [dsp.power_spectrogram(s[0, 0], 2048, 512).mean(-1) for s in (pair.input, pair.target)]
    gain = 10 * torch.log10(spectrum[0] / spectrum[1] + 1e-12)
    frequency = torch.linspace(0, SR / 2, 1025)
    assert gain[(frequency > 100) & (frequency < 3000)].abs().max() < 2
    # Linear interpolation leaves images of the low band, 15 to 30 dB down; everything else is gone above.
    assert gain[(frequency > 9000) & (frequency < 10_500)].max() < (-8 if kind in ("linear", "bessel") else -25)


def test_noise_is_in_both_and_sometimes_more_in_the_input() -> None:
    d = degrade.Degradation(
        degrade.Config(clean_share=0.0, noise_share=1.0, input_noise_share=1.0, noise_dbfs=(-60, -60), rumble_share=0.0)
    )
    p = d.sample(np.random.default_rng(0), 1)
    x = torch.zeros(1, 1, SR)
    pair = d.apply(x, SR, p)
    assert 20 * np.log10(float(pair.target.square().mean().sqrt())) == pytest.approx(-60, abs=0.1)
    low = dsp.band_limit(pair.input - pair.target, SR, 1500.0)
    assert float(low.square().mean()) > 0, "the input-only noise is missing"


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_coloured_noise_has_its_level_and_slope(exponent: float) -> None:
    x = degrade.coloured_noise(4 * SR, -40, exponent, seed=1)
    assert 20 * np.log10(np.sqrt(np.mean(x**2))) == pytest.approx(-40, abs=0.01)
    power = np.abs(np.fft.rfft(x)) ** 2
    octaves = [power[int(f * 4) : int(2 * f * 4)].mean() for f in (500, 1000, 2000, 4000, 8000)]
    slope = np.diff(10 * np.log10(octaves)).mean()
    assert slope == pytest.approx(-3.01 * exponent, abs=0.3)


def test_cutoffs_cover_the_range_uniformly() -> None:
    p = degrade.Degradation().sample(np.random.default_rng(0), 2000)
    cutoffs = np.array([q.cutoff_hz for q in p])
    assert cutoffs.min() > 2000
    assert cutoffs.max() < 16_000
    assert np.all(np.abs(np.histogram(cutoffs, 7, (2000, 16_000))[0] - 2000 / 7) < 70)
    assert {q.filter for q in p} == set(dsp.FILTER_FAMILIES) | set(degrade.RESAMPLERS)


def test_equalisation_tilts_by_what_it_says() -> None:
    x = clips(1, SR)
    y = degrade.equalise(x, SR, tilt_db=20.0, slope_db=0.0)
    spectrum = [torch.fft.rfft(s[0, 0]).abs() for s in (y, x)]
    gain = 20 * torch.log10(spectrum[0] / spectrum[1])
    frequency = torch.linspace(0, SR / 2, len(gain))
    assert gain[frequency < 900].abs().max() < 0.01
    assert float(gain[frequency > 23_900].mean()) == pytest.approx(20, abs=0.1)
    octave = degrade.equalise(x, SR, tilt_db=0.0, slope_db=-2.0)
    at_8k = 20 * torch.log10(torch.fft.rfft(octave[0, 0]).abs() / spectrum[1])[8000]
    assert float(at_8k) == pytest.approx(-6, abs=0.05)


def test_clean_clips_are_left_as_they_are() -> None:
    d, x = degrade.Degradation(degrade.Config(clean_share=1.0, gain_db=(0.0, 0.0))), clips(4)
    assert torch.equal(d.apply(x, SR, d.sample(np.random.default_rng(0), 4)).target, x)


def test_rumble_is_low() -> None:
    d = degrade.Degradation(degrade.Config(clean_share=0.0, noise_share=0.0, input_noise_share=0.0, rumble_share=1.0))
    pair = d.apply(torch.zeros(1, 1, SR), SR, d.sample(np.random.default_rng(0), 1))
    power = torch.fft.rfft(pair.target[0, 0]).abs().square()
    assert -71 < 10 * np.log10(float(pair.target.square().mean())) < -29
    assert float(power[:200].sum() / power.sum()) > 0.95
