"""Filters, resampling, filter bank and splice against what physics and scipy say."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import signal

from bwe import dsp

SR = 48_000


def gain_db(y: np.ndarray, x: np.ndarray, low: float, high: float, sr: int = SR) -> float:
    """Level of y over x between two frequencies in Hz."""
    band = (np.fft.rfftfreq(len(x), 1 / sr) >= low) & (np.fft.rfftfreq(len(x), 1 / sr) < high)
    power = [np.sum(np.abs(np.fft.rfft(s))[band] ** 2) + 1e-30 for s in (y, x)]
    return float(10 * np.log10(power[0] / power[1]))


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(2 * SR) * 0.1


@pytest.mark.parametrize("family", dsp.FILTER_FAMILIES)
@pytest.mark.parametrize("order", [2, 8, 10])
def test_lowpass_keeps_below_and_removes_above(family: dsp.FilterFamily, order: int, noise: np.ndarray) -> None:
    y = dsp.lowpass(noise, SR, 4000, family, order)
    assert abs(gain_db(y, noise, 100, 1000)) < 0.7
    assert gain_db(y, noise, 16_000, 24_000) < -40
    peak = np.argmax(np.correlate(y[1000:3000], noise[1000:3000], "full")) - 1999
    assert peak == 0, "a zero-phase filter must not delay"


@pytest.mark.parametrize("family", ["butter", "bessel"])
def test_lowpass_is_3_db_down_at_its_cutoff_in_one_pass(family: dsp.FilterFamily) -> None:
    _, h = signal.sosfreqz(dsp.lowpass_sos(family, 6, 4000, SR), worN=[4000], fs=SR)
    assert 20 * np.log10(abs(h[0])) == pytest.approx(-3.01, abs=0.05)


def test_lowpass_refuses_impossible_cutoffs() -> None:
    with pytest.raises(ValueError, match="between 0 and 24000"):
        dsp.lowpass_sos("butter", 4, 24_000, SR)


@pytest.mark.parametrize("length", [0, 1, 7, 100])
def test_short_signals_pass_every_filter(length: int) -> None:
    x = np.ones(length, dtype=np.float32)
    assert dsp.lowpass(x, SR, 4000).shape == x.shape
    assert dsp.band_limit(torch.from_numpy(x), SR, 4000.0).shape == x.shape


def test_band_limit_is_a_brick_wall_per_signal(noise: np.ndarray) -> None:
    x = torch.from_numpy(noise).float().repeat(2, 1)
    y = dsp.band_limit(x, SR, torch.tensor([4000.0, 9000.0])).numpy()
    assert gain_db(y[0], noise, 4100, 24_000) < -40
    assert abs(gain_db(y[0], noise, 0, 3900)) < 0.05
    assert abs(gain_db(y[1], noise, 4100, 8900)) < 0.05


@pytest.mark.parametrize(("sr_in", "sr_out"), [(16_000, 48_000), (44_100, 48_000), (48_000, 16_000), (8_001, 48_000)])
def test_resampled_length_is_exact(sr_in: int, sr_out: int) -> None:
    lengths = range(0, 400, 7) if sr_in != 8_001 else (0, 1, 2, 999)
    for n in lengths:
        y = dsp.resample(torch.zeros(n), sr_in, sr_out)
        assert y.shape[-1] == round(Fraction(n * sr_out, sr_in)) == dsp.resampled_length(n, sr_in, sr_out)


@pytest.mark.parametrize(("sr_in", "sr_out"), [(16_000, 48_000), (44_100, 48_000), (48_001, 48_000)])
def test_resample_keeps_a_tone_and_its_phase(sr_in: int, sr_out: int) -> None:
    t_in, t_out = np.arange(sr_in) / sr_in, np.arange(sr_out) / sr_out
    y = dsp.resample(torch.from_numpy(np.sin(2 * np.pi * 1234 * t_in)), sr_in, sr_out).numpy()
    inner = slice(sr_out // 10, -sr_out // 10)
    assert np.max(np.abs(y - np.sin(2 * np.pi * 1234 * t_out))[inner]) < 1e-3


def test_resample_agrees_with_scipy_on_band_limited_noise(noise: np.ndarray) -> None:
    low = dsp.lowpass(noise, SR, 5000, "cheby1", 10)[:SR]
    ours = dsp.resample(torch.from_numpy(low), SR, 16_000).numpy()
    theirs = signal.resample_poly(low, 1, 3, window=("kaiser", 12.0))
    inner = slice(1000, -1000)
    assert np.sqrt(np.mean((ours - theirs)[inner] ** 2) / np.mean(theirs[inner] ** 2)) < 2e-3


@pytest.mark.parametrize("bands", [8, 12, 22, 24])
def test_pqmf_reconstructs_to_60_db(bands: int) -> None:
    torch.manual_seed(0)
    bank, x = dsp.PQMF(bands), torch.randn(1, 1, bands * 600)
    y = bank.synthesis(bank.analysis(x))
    assert y.shape == x.shape
    inner = slice(bands * 40, -bands * 40)
    error = (y - x)[..., inner]
    assert 10 * torch.log10(x[..., inner].var() / error.var()) > 60


def test_pqmf_band_holds_its_own_frequencies() -> None:
    bank = dsp.PQMF(24)
    t = torch.arange(SR) / SR
    bands = bank.analysis(torch.sin(2 * torch.pi * 5500 * t)[None, None])[0, :, 50:-50]
    power = bands.square().mean(-1)
    assert int(power.argmax()) == 5
    others = torch.cat([power[:4], power[7:]])
    assert 10 * torch.log10(others.max() / power[5]) < -60


def test_splice_highpass_nulls_the_known_band_and_keeps_the_rest() -> None:
    impulse = torch.zeros(2, 1, 20_000)
    impulse[..., 10_000] = 1
    cutoff = torch.tensor([4000.0, 9000.0])
    h = dsp.splice_highpass(impulse, SR, cutoff)[:, 0]
    response = 20 * torch.log10(torch.fft.rfft(h).abs() + 1e-12)
    frequency = torch.linspace(0, SR / 2, response.shape[-1])
    for row, edge in zip(response, cutoff, strict=True):
        assert row[frequency < edge - 50].max() < -95
        assert row[frequency > edge + 250].abs().max() < 0.01
    assert h.argmax(-1).tolist() == [10_000, 10_000]


@pytest.mark.parametrize("length", [1, 100, 7000, 50_001])
def test_splice_highpass_equals_direct_convolution(length: int) -> None:
    torch.manual_seed(0)
    x, cutoff, half = torch.randn(1, 1, length), torch.tensor([6000.0]), dsp.splice_taps(SR) // 2
    impulse = torch.zeros(1, 1, 4 * half + 1)
    impulse[..., 2 * half] = 1
    taps = dsp.splice_highpass(impulse, SR, cutoff)[..., half : 3 * half + 1]
    direct = torch.nn.functional.conv1d(x, taps.flip(-1), padding=half)
    assert torch.allclose(dsp.splice_highpass(x, SR, cutoff), direct, atol=2e-5)


@pytest.mark.parametrize(
    ("sr_in", "sr_out"),
    [(16_000, 48_000), (8_000, 48_000), (11_025, 48_000), (44_100, 48_000), (48_000, 44_100), (96_000, 48_000),
     (384_000, 48_000), (48_001, 48_000), (7_999, 48_000), (48_000, 48_000)],
)  # fmt: skip
def test_resampler_in_blocks_is_resample(sr_in: int, sr_out: int) -> None:
    rng = np.random.default_rng(sr_in)
    x = 0.1 * rng.standard_normal((2, 7_001)).astype(np.float32)
    whole = dsp.resample(torch.from_numpy(x), sr_in, sr_out).numpy()
    for sizes in ([1, 37, 500], [0, 3_000], [7_001]):
        resampler, parts, start, number = dsp.Resampler(sr_in, sr_out, 2), [], 0, 0
        while start < x.shape[-1]:
            size = sizes[number % len(sizes)]
            parts.append(resampler.push(x[:, start : start + size]))
            start, number = start + size, number + 1
        joined = np.concatenate([*parts, resampler.flush()], axis=-1)
        assert joined.shape == whole.shape
        assert np.abs(joined - whole).max() < 1e-6


def test_resampler_waits_for_its_lookahead_and_no_longer() -> None:
    resampler = dsp.Resampler(8_000, 48_000, 1)
    given = 0
    for taken in range(1, 400):
        given += resampler.push(np.zeros((1, 1), np.float32)).shape[-1]
        wait = taken / 8_000 - given / 48_000
        assert wait <= resampler.lookahead + 1e-9 or taken / 8_000 <= resampler.lookahead
    assert resampler.flush(given + 5).shape == (1, 5)


def test_interpolated_kernel_is_the_polyphase_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4_000)
    exact = dsp.resample(x, 44_100, 48_000)
    monkeypatch.setattr(dsp, "_MAX_POLYPHASE", 0)
    assert 20 * torch.log10((dsp.resample(x, 44_100, 48_000) - exact).abs().max() / x.abs().max()) < -90


def test_cutoff_detector_in_blocks_is_detect_cutoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dsp, "_MOST_FRAMES", 60)  # three minutes would do the same
    x = dsp.band_limit(0.1 * torch.randn(2, 48_000 * 4), 48_000, 6_500.0)
    whole = dsp.detect_cutoff(x, 48_000)
    assert whole == pytest.approx(6_500, rel=0.02)
    for size in (333, 5_000, 100_000):
        detector = dsp.CutoffDetector(48_000)
        for start in range(0, x.shape[-1], size):
            detector.add(x[:, start : start + size])
        assert detector.cutoff_hz() == whole
