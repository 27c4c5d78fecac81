import math

import numpy as np
import pytest
import torch

from bwe import dsp, metrics

SR = 48_000


def noise(seconds=1.0, sr=SR, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0, level, round(seconds * sr))


def highpass(x, sr, cutoff_hz):
    spectrum = np.fft.rfft(x)
    spectrum[np.fft.rfftfreq(len(x), 1 / sr) < cutoff_hz] = 0
    return np.fft.irfft(spectrum, len(x))


def framed_magnitude(x, n_fft, hop):
    """Plain numpy STFT: periodic Hann, reflected edges, (N, F)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(x, n_fft // 2, mode="reflect")
    starts = range(0, len(padded) - n_fft + 1, hop)
    return np.stack([np.abs(np.fft.rfft(window * padded[s : s + n_fft])) for s in starts])


@pytest.mark.parametrize("gain_db", [-12.0, -3.0, 3.0, 20.0])
@pytest.mark.parametrize("convention", ["apbwe", "ssr_eval"])
def test_lsd_of_a_gain_is_a_tenth_of_its_decibels(gain_db, convention):
    x = noise()
    value = metrics.lsd(x, x * 10 ** (gain_db / 20), SR, convention)
    assert float(value) == pytest.approx(abs(gain_db) / 10, abs=1e-6)


@pytest.mark.parametrize("convention", ["apbwe", "ssr_eval"])
def test_lsd_is_zero_for_identical_signals(convention):
    x = noise()
    assert float(metrics.lsd(x, x, SR, convention)) == pytest.approx(0, abs=1e-9)


def test_lsd_apbwe_against_plain_numpy():
    x, y = noise(0.5, seed=1), noise(0.5, seed=2, level=1e-6)
    p, q = (np.maximum(framed_magnitude(s, 2048, 512) ** 2, 1e-8) for s in (x, y))
    expected = np.sqrt(((np.log10(q) - np.log10(p)) ** 2).mean(1)).mean()
    assert float(metrics.lsd(x, y, SR)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sr", [16_000, 44_100, 48_000])
def test_lsd_ssr_eval_against_plain_numpy(sr):
    x, y = noise(0.5, sr, seed=1), noise(0.5, sr, seed=2, level=1e-6)
    n_fft, hop = int(2048 * sr / 44100), sr // 100
    p, q = (framed_magnitude(s, n_fft, hop) for s in (x, y))
    delta = np.log10(p**2 / (q + 1e-12) ** 2 + 1e-12)
    expected = np.sqrt((delta**2).mean(1)).mean()
    assert float(metrics.lsd(x, y, sr, "ssr_eval")) == pytest.approx(expected, rel=1e-9)


def test_the_conventions_differ_in_their_floor():
    x, nothing = noise(), np.zeros(SR)
    apbwe, ssr_eval = metrics.lsd(x, nothing, SR), metrics.lsd(x, nothing, SR, "ssr_eval")
    # noise of power P per bin: mean log10 P is that of an exponential variable, log10(mean P) - γ/ln 10
    mean_log_power = math.log10(0.01 * 2048 * 3 / 8) - np.euler_gamma / math.log(10)
    assert float(apbwe) == pytest.approx(mean_log_power + 8, abs=0.05)
    assert float(ssr_eval - apbwe) == pytest.approx(24 - 8, abs=0.1)


def test_lsd_does_not_see_below_the_floor():
    x = noise(level=1e-9)
    assert float(metrics.lsd(x, 3 * x, SR)) == 0
    assert float(metrics.lsd(x, 3 * x, SR, "ssr_eval")) > 0.9


def test_lsd_bands_split_at_the_cutoff():
    x = noise(2.0)
    y = x + highpass(x, SR, 8000.0)  # +6.02 dB above 8 kHz
    step = 20 * math.log10(2) / 10
    assert float(metrics.lsd_hf(x, y, SR, 8000)) == pytest.approx(step, abs=0.01)
    assert float(metrics.lsd_lf(x, y, SR, 8000)) == pytest.approx(0, abs=0.03)  # the window leaks at the edge
    assert float(metrics.lsd(x, y, SR)) == pytest.approx(step * math.sqrt(2 / 3), abs=0.01)


def test_lsd_bands_cover_every_bin_once():
    x, y = noise(seed=1), noise(seed=2)
    one_frame = np.zeros(SR // 512 + 1, dtype=bool)
    one_frame[20] = True
    full = float(metrics.lsd(x, y, SR, frames=one_frame))
    low = float(metrics.lsd_lf(x, y, SR, 4000, frames=one_frame))
    high = float(metrics.lsd_hf(x, y, SR, 4000, frames=one_frame))
    below = math.ceil(4000 * 2048 / SR)
    assert full**2 * 1025 == pytest.approx(low**2 * below + high**2 * (1025 - below), rel=1e-9)


@pytest.mark.parametrize(("cutoff", "rounded"), [(4000, 0.719), (6000, 0.682), (8000, 0.643), (12000, 0.557)])
def test_lsd_floor_holds_by_simulation(cutoff, rounded):
    x = noise(8.0, seed=1)
    fresh = highpass(noise(8.0, seed=2), SR, cutoff)
    y = x - highpass(x, SR, cutoff) + fresh
    assert metrics.lsd_floor(cutoff, SR) == pytest.approx(rounded, abs=1e-3)
    assert float(metrics.lsd(x, y, SR)) == pytest.approx(metrics.lsd_floor(cutoff, SR), rel=0.01)


def test_floor_constant():
    assert pytest.approx(0.788, abs=5e-4) == metrics.FLOOR_PER_ROOT_FRACTION


@pytest.mark.parametrize("gain_db", [-20.0, 6.0])
def test_hf_bias_is_the_signed_gain_of_the_high_band_alone(gain_db):
    x = noise()
    y = x + (10 ** (gain_db / 20) - 1) * highpass(x, SR, 4000.0)
    assert float(metrics.hf_bias(x, y, SR, 4000)) == pytest.approx(gain_db, abs=1e-6)


def test_hf_bias_stays_finite():
    x = noise()
    low = x - highpass(x, SR, 4000.0)
    assert -200 < float(metrics.hf_bias(x, low, SR, 4000)) < -100
    assert float(metrics.hf_bias(np.zeros(99), np.zeros(99), SR, 4000)) == 0


def test_si_sdr_hand_value_and_scale_invariance():
    ref, error = np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.0, -1.0, 1.0, -1.0])  # orthogonal
    est = ref + 0.1 * error
    assert float(metrics.si_sdr(ref, est)) == pytest.approx(20.0, abs=1e-9)
    assert float(metrics.si_sdr(ref, -7 * est)) == pytest.approx(20.0, abs=1e-9)
    assert float(metrics.si_sdr(3 * ref, est)) == pytest.approx(20.0, abs=1e-9)


def test_si_sdr_of_silence():
    x = noise(0.1)
    assert float(metrics.si_sdr(x, 0 * x)) == -math.inf
    assert math.isnan(float(metrics.si_sdr(0 * x, x)))


def test_snr_hand_values():
    ref = np.array([3.0, 4.0])
    assert float(metrics.snr(ref, 0.9 * ref)) == pytest.approx(20.0)
    assert float(metrics.snr(ref, 2 * ref)) == pytest.approx(0.0)
    assert float(metrics.snr(ref, ref)) == math.inf


def test_spectral_convergence_of_a_gain_and_of_a_sign():
    x = noise()
    assert float(metrics.spectral_convergence(x, 0.75 * x)) == pytest.approx(0.25, rel=1e-9)
    assert float(metrics.spectral_convergence(x, -x)) == pytest.approx(0.0, abs=1e-12)


def bursts(floor_level, hum=0.0):
    """Noise bursts at -20 dBFS, 0.25 s on, 0.25 s off, over a floor."""
    t = np.arange(4 * SR) / SR
    on = (t % 0.5) < 0.25
    x = noise(4.0, seed=3) * on + noise(4.0, seed=4, level=floor_level) + hum * np.sin(2 * np.pi * 50 * t)
    return x, on


@pytest.mark.parametrize("gain", [1.0, 1e-3])
@pytest.mark.parametrize(("floor_level", "hum"), [(0.0, 0.0), (1e-5, 0.0), (5e-3, 0.0), (1e-4, 0.3)])
def test_speech_frames_follow_the_bursts(floor_level, hum, gain):
    x, on = bursts(floor_level, hum)
    mask = metrics.speech_frames(gain * x, SR).numpy()
    centres = np.minimum(np.arange(len(mask)) * 512, len(x) - 1)
    # frames that straddle an edge may count either way
    spans = [on[max(c - 1024, 0) : c + 1024] for c in centres]
    well_inside = np.array([span.min() == span.max() for span in spans])
    assert well_inside.mean() > 0.6
    assert (mask == on[centres])[well_inside].mean() > 0.98


def test_speech_frames_without_pauses_and_without_sound():
    assert metrics.speech_frames(noise(), SR).all()
    assert not metrics.speech_frames(np.zeros(SR), SR).any()


@pytest.mark.parametrize("convention", ["apbwe", "ssr_eval"])
def test_lsd_of_speech_and_of_silence_apart(convention):
    x, on = bursts(1e-3)
    y = np.where(on, x, 2 * x)  # only the pauses are 6 dB too loud
    mask = metrics.speech_frames(x, SR, convention)
    assert float(metrics.lsd(x, y, SR, convention, frames=~mask)) == pytest.approx(0.6, abs=0.05)
    assert float(metrics.lsd(x, y, SR, convention, frames=mask)) < 0.05
    assert torch.isnan(metrics.lsd(x, y, SR, convention, frames=torch.zeros_like(mask)))


@pytest.mark.parametrize("length", [1, 2, 500, 1024, 1025, 2047, 5000])
def test_any_length_gives_a_finite_value(length):
    x, y = noise(seed=1)[:length], noise(seed=2)[:length]
    assert torch.isfinite(metrics.lsd(x, y, SR))
    assert torch.isfinite(metrics.lsd(x, y, SR, "ssr_eval"))
    assert torch.isfinite(metrics.spectral_convergence(x, y))


def test_batch_equals_one_by_one_for_numpy_and_torch():
    ref = torch.from_numpy(np.stack([noise(0.2, seed=i) for i in range(6)])).reshape(2, 3, -1)
    est = ref.flip(0)
    calls = [
        lambda r, e: metrics.lsd(r, e, SR),
        lambda r, e: metrics.lsd_hf(r, e, SR, 8000),
        lambda r, e: metrics.hf_bias(r, e, SR, 8000),
        metrics.si_sdr,
        metrics.snr,
        metrics.spectral_convergence,
    ]
    for call in calls:
        together = call(ref, est)
        assert together.shape == (2, 3)
        assert together.dtype == torch.float64
        torch.testing.assert_close(together[1, 2], call(ref[1, 2].numpy(), est[1, 2].numpy()))


def test_wrong_arguments_are_named():
    x = noise(0.1)
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.lsd(x, x[:-1], SR)
    with pytest.raises(ValueError, match="at least one sample"):
        metrics.snr(x[:0], x[:0])
    with pytest.raises(ValueError, match="'mel' is unknown"):
        metrics.lsd(x, x, SR, "mel")
    with pytest.raises(ValueError, match="cutoff_hz=30000"):
        metrics.hf_bias(x, x, SR, 30_000)
    with pytest.raises(ValueError, match=r"must be bool \(94,\)"):
        metrics.lsd(noise(), noise(), SR, frames=np.ones(3, dtype=bool))


def test_a_line_at_the_cutoff_is_measured_and_a_slope_or_step_is_none() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, 48_000 * 4)) * 0.05

    def height(x: np.ndarray | torch.Tensor) -> float:
        return metrics.line_height(metrics.edge_spectrum(x, 48_000, 4000.0).mean(0), 48_000, 4000.0)

    assert 0 < height(noise) < 0.6
    assert height(dsp.band_limit(torch.from_numpy(noise), 48_000, 4000.0) + 0.01 * noise) < 0.6
    assert height(dsp.lowpass(noise, 48_000, 2000.0, "butter", 2)) < 3.5, "the band itself falls by 6 dB within the window"
    both = dsp.band_limit(torch.from_numpy(noise), 48_000, 4100.0) - dsp.band_limit(torch.from_numpy(noise), 48_000, 3900.0)
    assert height(noise + both.numpy()) == pytest.approx(6, abs=0.8)
    tone = 0.005 * np.sin(2 * np.pi * 4100 * np.arange(noise.shape[1]) / 48_000)
    assert height(noise + tone) > 1.5
