import math
import sys
import time

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


def reference_lsd(ref, est, n_fft, hop, convention, low=0, high=None):
    """Written anew in numpy from the formulas of AP-BWE and ssr_eval."""
    p, q = (framed_magnitude(s, n_fft, hop)[:, low:high] for s in (ref, est))
    if convention == "apbwe":
        delta = np.log10(np.maximum(q**2, 1e-8)) - np.log10(np.maximum(p**2, 1e-8))
    else:
        delta = np.log10(p**2 / (q + 1e-12) ** 2 + 1e-12)
    return np.sqrt((delta**2).mean(1)).mean()


@pytest.fixture(scope="module")
def speech(talk):
    """2.5 s of real speech at 48 kHz, (T,) float64."""
    return talk[0, SR : SR + round(2.5 * SR)].astype(np.float64)


@pytest.fixture(scope="module")
def extended(speech):
    """The same without what lies above 4 kHz, and a poor extension of it."""
    low = dsp.band_limit(torch.from_numpy(speech), SR, 4000.0).numpy()
    air = dsp.lowpass(np.random.default_rng(0).standard_normal(len(low)) * 1e-3, SR, 14_000, "butter", 2)
    return low, low + highpass(air, SR, 4000.0)


@pytest.mark.parametrize(("convention", "n_fft", "hop"), [("apbwe", 2048, 512), ("ssr_eval", 2229, 480)])
def test_lsd_of_real_speech_against_plain_numpy(speech, extended, convention, n_fft, hop):
    for est in extended:
        expected = reference_lsd(speech, est, n_fft, hop, convention)
        assert float(metrics.lsd(speech, est, SR, convention)) == pytest.approx(expected, abs=1e-6)
        for transition in (0.0, 0.03):
            low = math.ceil(4000 * (1 - transition) * n_fft / SR)
            high = math.ceil(4000 * (1 + transition) * n_fft / SR)
            below = reference_lsd(speech, est, n_fft, hop, convention, high=low)
            above = reference_lsd(speech, est, n_fft, hop, convention, low=high)
            found = [f(speech, est, SR, 4000, convention, transition=transition) for f in (metrics.lsd_lf, metrics.lsd_hf)]
            assert [float(value) for value in found] == pytest.approx([below, above], abs=1e-6)


def test_the_guard_band_takes_the_slope_of_a_filter_out(speech):
    gentle = dsp.lowpass(speech, SR, 8000, "butter", 8)
    whole, guarded = (float(metrics.lsd_lf(speech, gentle, SR, 8000, transition=share)) for share in (0.0, 0.2))
    assert guarded < whole / 3
    with pytest.raises(ValueError, match="transition=1"):
        metrics.lsd_hf(speech, speech, SR, 8000, transition=1.0)
    with pytest.raises(ValueError, match="no STFT bin"):
        metrics.lsd_hf(speech, speech, SR, 20_000, transition=0.3)


def test_lsd_per_bin_is_the_gain_of_each_frequency(speech, extended):
    p, q = (np.maximum(framed_magnitude(s, 2048, 512) ** 2, 1e-8) for s in (speech, extended[1]))
    expected = np.sqrt((np.log10(q / p) ** 2).mean(0))
    found = metrics.lsd_per_bin(speech, extended[1], SR)
    assert found.shape == (1025,)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    loud = noise()
    step = metrics.lsd_per_bin(loud, loud + highpass(loud, SR, 8000.0), SR)
    assert float(step[:330].median()) < 0.01
    assert float(step[350:].median()) == pytest.approx(2 * math.log10(2), abs=0.01)


def test_lsd80_floors_80_db_below_the_strongest_bin_of_the_reference(speech, extended):
    p, q = (framed_magnitude(s, 2048, 512) ** 2 for s in (speech, extended[0]))
    floor = p.max() * 1e-8
    expected = np.sqrt((np.log10(np.maximum(q, floor) / np.maximum(p, floor)) ** 2).mean(1)).mean()
    for gain in (1.0, 1e-3):  # follows the level, unlike lsd
        assert float(metrics.lsd80(gain * speech, gain * extended[0], SR)) == pytest.approx(expected, abs=1e-9)
    assert math.isnan(metrics.lsd80(np.zeros(SR), speech[:SR], SR))


@pytest.mark.parametrize("gain_db", [-20.0, 6.0])
def test_third_octave_error_of_a_gain_is_its_size(gain_db):
    x = noise()
    y = x + (10 ** (gain_db / 20) - 1) * highpass(x, SR, 4000.0)
    assert float(metrics.third_octave_error(x, y, SR, 4000)) == pytest.approx(abs(gain_db), abs=1e-6)


def test_third_octave_bands_are_those_of_the_standard(speech, extended):
    """IEC 61260-1: the 5 kHz band reaches from 4467 to 5623 Hz, the 20 kHz band from 17 783 to 22 387 Hz."""
    x = noise()
    for low, high, share in ((4467, 5623, 1 / 8), (17_783, 22_387, 1 / 8), (4467, 7079, 2 / 8)):
        band = highpass(x, SR, low) - highpass(x, SR, high)
        assert float(metrics.third_octave_error(x, x + band, SR, 3600)) == pytest.approx(6.0206 * share, abs=0.02)

    frequency = np.fft.rfftfreq(len(speech), 1 / SR)
    spectra = [np.abs(np.fft.rfft(s)) ** 2 for s in (speech, extended[1])]
    errors = []
    for centre in 1000 * 10 ** (np.arange(7, 14) / 10):  # 5 to 20 kHz
        inside = (frequency >= centre / 10**0.05) & (frequency < centre * 10**0.05)
        errors.append(abs(10 * math.log10(spectra[1][inside].sum() / spectra[0][inside].sum())))
    assert float(metrics.third_octave_error(speech, extended[1], SR, 4500)) == pytest.approx(np.mean(errors), abs=0.2)


def test_third_octave_error_is_finite_for_an_empty_band_and_nan_without_bands(speech, extended):
    assert 20 < float(metrics.third_octave_error(speech, extended[0], SR, 4100)) < 80
    assert math.isnan(metrics.third_octave_error(speech, speech, SR, 23_900))
    assert math.isnan(metrics.third_octave_error(np.zeros(SR), speech[:SR], SR, 4000))


def test_correlation_is_that_of_numpy(speech, extended):
    expected = np.corrcoef(speech, extended[1])[0, 1]
    assert float(metrics.correlation(speech, extended[1])) == pytest.approx(expected, abs=1e-12)
    assert float(metrics.correlation(speech, 3 - 0.1 * speech)) == pytest.approx(-1, abs=1e-12)
    assert math.isnan(metrics.correlation(speech, np.ones_like(speech)))


@pytest.mark.parametrize("gain_db", [-7.0, 3.0])
def test_log_mel_distance_of_a_gain_is_its_size_in_db(gain_db):
    x = noise()
    assert float(metrics.log_mel_distance(x, 10 ** (gain_db / 20) * x, SR)) == pytest.approx(abs(gain_db), abs=1e-6)


def test_log_mel_distance_against_plain_numpy(speech, extended):
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 24_000 / 700), 82) / 2595) - 1)
    frequency = np.arange(1025) * SR / 2048
    rise = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(rise, fall))
    logs = [10 * np.log10(np.maximum(framed_magnitude(s, 2048, 512) ** 2 @ bank.T, 1e-8)) for s in (speech, extended[1])]
    expected = np.abs(logs[0] - logs[1]).mean()
    assert float(metrics.log_mel_distance(speech, extended[1], SR)) == pytest.approx(expected, abs=1e-3)


def test_rolloff_error_of_two_bands_of_noise():
    x = noise(2.0)
    wide, narrow = x - highpass(x, SR, 16_000.0), x - highpass(x, SR, 4000.0)
    assert float(metrics.rolloff_error(wide, narrow, SR)) == pytest.approx(0.985 * 12_000, rel=0.005)
    assert float(metrics.rolloff_error(narrow, wide, SR)) == pytest.approx(0.985 * 12_000, rel=0.005)


def test_rolloff_error_looks_at_speech_only():
    x, on = bursts(1e-3)
    dull = np.where(on, x, x - highpass(x, SR, 2000.0))
    assert float(metrics.rolloff_error(x, dull, SR)) < 100
    assert float(metrics.rolloff_error(x, x - highpass(x, SR, 2000.0), SR)) > 20_000
    assert math.isnan(metrics.rolloff_error(np.zeros(SR), x[:SR], SR))


@pytest.mark.parametrize("gain_db", [-60.0, -120.0])
def test_low_band_null_is_the_level_of_what_changed_below_the_cutoff(speech, extended, gain_db):
    known, est = extended
    change = 10 ** (gain_db / 20) * known
    assert float(metrics.low_band_null(known, est + change, SR, 4000)) == pytest.approx(gain_db, abs=0.02)


def test_low_band_null_does_not_see_the_new_band(speech, extended):
    known, est = extended
    assert float(metrics.low_band_null(known, est, SR, 4000)) < -110
    assert float(metrics.low_band_null(known, known + highpass(noise(2.5), SR, 4000.0), SR, 4000)) < -90, "as loud as speech"
    assert float(metrics.low_band_null(known, known, SR, 4000)) == -200
    assert float(metrics.low_band_null(known, 0 * known, SR, 4000)) == pytest.approx(0, abs=1e-9)
    assert math.isnan(metrics.low_band_null(0 * known, known, SR, 4000))
    assert math.isnan(metrics.low_band_null(known, known, SR, 200)), "nothing lies 300 Hz below 200"


def test_f0_error_hand_values():
    ref = np.array([100.0, 100, 100, 100, np.nan, 0, 200, 200])
    est = np.array([100.0, 101, 200, np.nan, 150, 0, 202, 100])
    errors = {name: float(value) for name, value in metrics.f0_error(ref, est).items()}
    assert errors["gross"] == pytest.approx(2 / 5)
    assert errors["cents"] == pytest.approx(2 * 1200 * math.log2(1.01) / 3)
    assert errors["voicing"] == pytest.approx(2 * 5 / (6 + 6))
    nothing = metrics.f0_error(np.zeros(5), np.full(5, np.nan))
    assert all(math.isnan(value) for value in nothing.values())
    assert float(metrics.f0_error(ref, 0 * ref)["voicing"]) == 0
    both = metrics.f0_error(np.stack([ref, ref]), np.stack([est, ref]))
    assert both["gross"].tolist() == pytest.approx([0.4, 0])
    with pytest.raises(ValueError, match="same frames"):
        metrics.f0_error(ref, est[1:])


def test_a_fifth_is_where_a_pitch_error_becomes_gross():
    ref = np.full(10, 200.0)
    assert float(metrics.f0_error(ref, 1.199 * ref)["gross"]) == 0
    assert float(metrics.f0_error(ref, 1.201 * ref)["gross"]) == 1
    assert float(metrics.f0_error(ref, 0.799 * ref)["gross"]) == 1


IDEAL = {
    "snr": math.inf, "si_sdr": math.inf, "correlation": 1, "null": -200, "nsim": 1, "pesq": 4.6439, "stoi": 1, "estoi": 1,
    "f0_voicing": 1,
}  # fmt: skip
BAND_SPLIT = {"lsd_lf", "lsd_hf", "lsd_lf_guard", "lsd_hf_guard", "hf_bias", "third_octave", "null"}


def test_metrics_describe_themselves():
    for name, metric in metrics.METRICS.items():
        assert metric.name == name
        assert metric.better in ("lower", "higher", "zero")
        assert bool(metric.extra) == bool(metric.package)
        assert metric.title.isprintable()
    assert len({metric.title for metric in metrics.METRICS.values()}) == len(metrics.METRICS)


def test_equal_signals_get_the_ideal_value_of_every_metric(speech, extended):
    pytest.importorskip("pyworld")
    values = metrics.measure(speech, speech, SR, 4000, known=speech)
    assert list(values) == list(metrics.METRICS)
    for name, value in values.items():
        ideal = IDEAL.get(name, 0)
        assert value > 200 if ideal == math.inf else value == pytest.approx(ideal, abs=1e-4), name


def test_measure_agrees_with_the_single_functions(speech, extended):
    pytest.importorskip("pyworld")
    from bwe import pitch

    known, est = (np.stack([x, 0.5 * x[::-1]]) for x in extended)
    ref = np.stack([speech, 0.5 * speech[::-1]])
    found = metrics.measure(metrics.Reference(ref, SR), torch.from_numpy(est), SR, 4000, known=known)
    active = metrics.speech_frames(ref, SR)
    tracks = [pitch.estimate(dsp.resample(torch.from_numpy(x), SR, 16_000), 16_000, method="dio").hz for x in (ref, est)]
    f0 = metrics.f0_error(*tracks)
    single = {
        "lsd": metrics.lsd(ref, est, SR),
        "lsd_lf": metrics.lsd_lf(ref, est, SR, 4000),
        "lsd_hf": metrics.lsd_hf(ref, est, SR, 4000),
        "lsd_lf_guard": metrics.lsd_lf(ref, est, SR, 4000, transition=0.03),
        "lsd_hf_guard": metrics.lsd_hf(ref, est, SR, 4000, transition=0.03),
        "lsd_speech": metrics.lsd(ref, est, SR, frames=active),
        "lsd_pauses": metrics.lsd(ref, est, SR, frames=~active),
        "lsd_ssr_eval": metrics.lsd(ref, est, SR, "ssr_eval"),
        "lsd80": metrics.lsd80(ref, est, SR),
        "hf_bias": metrics.hf_bias(ref, est, SR, 4000),
        "third_octave": metrics.third_octave_error(ref, est, SR, 4000),
        "snr": metrics.snr(ref, est),
        "si_sdr": metrics.si_sdr(ref, est),
        "correlation": metrics.correlation(ref, est),
        "spectral_convergence": metrics.spectral_convergence(ref, est),
        "log_mel": metrics.log_mel_distance(ref, est, SR),
        "rolloff_error": metrics.rolloff_error(ref, est, SR),
        "null": metrics.low_band_null(known, est, SR, 4000),
        "nsim": metrics.gammatone_nsim(ref, est, SR),
        "pesq": metrics.pesq_wb(ref, est, SR),
        "stoi": metrics.stoi(ref, est, SR),
        "estoi": metrics.stoi(ref, est, SR, extended=True),
        "f0_gross": f0["gross"],
        "f0_cents": f0["cents"],
        "f0_voicing": f0["voicing"],
    }
    assert found.keys() == single.keys() == metrics.METRICS.keys()
    for name, value in single.items():
        assert value.shape == (2,), name
        assert found[name] == pytest.approx(float(value.mean()), rel=1e-6), name


def test_measure_leaves_out_what_it_was_not_told(speech, extended):
    est = extended[1]
    names = [name for name, metric in metrics.METRICS.items() if not metric.extra]
    assert metrics.measure(speech, est, SR, names=names).keys() == set(names) - BAND_SPLIT
    assert metrics.measure(speech, est, SR, 4000, names=names).keys() == set(names) - {"null"}
    assert list(metrics.measure(speech, est, SR, 4000, names=["snr", "lsd_hf"])) == ["snr", "lsd_hf"]


def test_a_reference_is_analysed_once(speech, extended):
    ref = metrics.Reference(speech, SR)
    first = metrics.measure(ref, extended[1], SR, names=["lsd", "nsim", "lsd_speech"])
    kept = ref.power, ref.gammatone, ref.speech
    assert metrics.measure(ref, extended[1], SR, names=["lsd", "nsim", "lsd_speech"]) == first
    assert all(now is before for now, before in zip((ref.power, ref.gammatone, ref.speech), kept, strict=True))


def test_measure_names_what_is_wrong(speech):
    ref = metrics.Reference(speech, SR)
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.measure(ref, speech[:-1], SR)
    with pytest.raises(ValueError, match="analysed at 48000 Hz"):
        metrics.measure(ref, speech, 44_100)
    with pytest.raises(ValueError, match="did you mean 'lsd_hf'"):
        metrics.measure(ref, speech, SR, names=["lsdhf"])
    with pytest.raises(ValueError, match="est holds samples that are not finite"):
        metrics.measure(ref, np.where(np.arange(len(speech)) == 7, np.nan, speech), SR)
    with pytest.raises(ValueError, match="cutoff_hz=24000"):
        metrics.measure(ref, speech, SR, 24_000)


@pytest.mark.parametrize("package", ["pesq", "pystoi", "pyworld"])
def test_a_missing_package_takes_its_metrics_out_and_says_which(speech, monkeypatch, package):
    mine = [name for name, metric in metrics.METRICS.items() if metric.package == package]
    extra = metrics.METRICS[mine[0]].extra
    monkeypatch.setitem(sys.modules, package, None)
    sentence = f"{package} package: pip install 'bwe[{extra}]'"
    assert [name for name, why in metrics.missing().items() if sentence in why] == mine
    assert metrics.missing(["snr"]) == {}
    assert list(metrics.measure(speech, speech, SR, names=[*mine, "correlation"])) == ["correlation"]
    if package != "pyworld":
        with pytest.raises(ImportError, match=package):
            metrics.comprehensive_metrics(speech, speech, SR)


def test_comprehensive_metrics(speech, extended):
    est = extended[1]
    values = metrics.comprehensive_metrics(speech, est, SR)
    assert values == {
        "snr": pytest.approx(float(metrics.snr(speech, est))),
        "si_sdr": pytest.approx(float(metrics.si_sdr(speech, est))),
        "correlation": pytest.approx(float(metrics.correlation(speech, est))),
        "pesq": pytest.approx(float(metrics.pesq_wb(speech, est, SR))),
        "stoi": pytest.approx(float(metrics.stoi(speech, est, SR))),
        "spectral_distance": pytest.approx(float(metrics.lsd(speech, est, SR))),
        "log_mel_distance": pytest.approx(float(metrics.log_mel_distance(speech, est, SR))),
    }


def worsens(metric, values):
    """Whether each value is worse than the one before."""
    badness = {"lower": 1.0, "higher": -1.0}.get(metric.better)
    return np.all(np.diff(np.abs(values) if badness is None else badness * np.array(values)) > 0)


def check_worsening(names, ref, estimates, known=None):
    analysed = metrics.Reference(ref, SR)
    found = [metrics.measure(analysed, est, SR, 4000, known=known, names=names) for est in estimates]
    for name in names:
        values = [row[name] for row in found]
        assert worsens(metrics.METRICS[name], values), (name, values)


def test_rising_noise_worsens(speech):
    names = [
        "lsd", "lsd_lf", "lsd_hf", "lsd_lf_guard", "lsd_hf_guard", "lsd_speech", "lsd_pauses", "lsd_ssr_eval", "lsd80",
        "hf_bias", "third_octave", "snr", "si_sdr", "correlation", "spectral_convergence", "log_mel", "rolloff_error", "null",
        "nsim", "pesq", "stoi", "estoi",
    ]  # fmt: skip
    hiss = noise(2.5, seed=5, level=1.0)
    check_worsening(names, speech, [speech + level * hiss for level in (1e-3, 1e-2, 1e-1)], known=speech)


def test_a_falling_lowpass_worsens(speech):
    names = [
        "lsd", "lsd_hf", "lsd_hf_guard", "lsd_speech", "lsd_pauses", "lsd_ssr_eval", "lsd80", "hf_bias", "third_octave", "snr",
        "si_sdr", "correlation", "spectral_convergence", "log_mel", "rolloff_error", "nsim",
    ]  # fmt: skip
    check_worsening(names, speech, [dsp.band_limit(torch.from_numpy(speech), SR, hz) for hz in (14_000.0, 8000.0, 5000.0)])


def test_wrong_pitch_worsens_each_f0_metric_by_its_own_damage(speech):
    """Real speech taken apart and put together again by WORLD with another F0."""
    pyworld = pytest.importorskip("pyworld")
    x = dsp.resample(torch.from_numpy(speech), SR, 16_000).numpy()
    hz, seconds = pyworld.harvest(x, 16_000)
    envelope, aperiodicity = pyworld.cheaptrick(x, hz, seconds, 16_000), pyworld.d4c(x, hz, seconds, 16_000)

    def spoken(f0):
        y = pyworld.synthesize(f0, envelope, aperiodicity, 16_000)
        return dsp.resample(torch.from_numpy(y), 16_000, SR)[: len(speech)]

    def in_first(share, value):
        return np.where(np.arange(len(hz)) < share * len(hz), value, hz)

    ref = spoken(hz)
    check_worsening(["f0_cents"], ref, [spoken(hz * 2 ** (cents / 1200)) for cents in (0, 20, 60, 120)])
    check_worsening(["f0_gross"], ref, [spoken(in_first(share, 1.5 * hz)) for share in (0, 0.3, 0.6, 1)])
    check_worsening(["f0_voicing"], ref, [spoken(in_first(share, 0.0)) for share in (0, 0.4, 0.7)])


def test_silence_and_single_samples_give_what_is_documented(speech):
    silent = 0 * speech
    of_silence = metrics.measure(silent, speech, SR, 4000, known=silent)
    undefined = {
        "lsd_speech", "lsd80", "third_octave", "si_sdr", "correlation", "spectral_convergence", "rolloff_error", "null",
        "nsim", "pesq", "stoi", "estoi", "f0_gross", "f0_cents",
    }  # fmt: skip
    absent = metrics.missing()
    assert {name for name, value in of_silence.items() if math.isnan(value)} == undefined - absent.keys()
    into_silence = metrics.measure(speech, silent, SR, 4000, known=speech)
    assert {name for name, value in into_silence.items() if math.isnan(value)} == (
        {"correlation", "pesq", "f0_gross", "f0_cents"} - absent.keys()
    )
    assert into_silence["si_sdr"] == -math.inf
    assert into_silence["stoi"] == into_silence["estoi"] == into_silence["snr"] == 0
    one, other = speech[5000:5001], speech[5001:5002]
    assert metrics.measure(one, other, SR, 4000, known=one).keys() == into_silence.keys()
    with pytest.raises(ValueError, match="at least one sample"):
        metrics.measure(speech[:0], speech[:0], SR)


def test_a_pair_takes_a_fraction_of_a_second(talk):
    ref, seconds = metrics.Reference(talk[:, : round(3.5 * SR)], SR), []
    est = talk[:, : round(3.5 * SR)] + noise(3.5, level=1e-3)
    for _ in range(3):
        start = time.process_time()
        metrics.measure(ref, est, SR, 4000, known=est)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.4  # 0.15 s where measured
