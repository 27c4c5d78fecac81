"""`dsp.detect_cutoff` on generated signals always, on recordings where the data folder is there."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from bwe import dsp
from bwe._torchaudio import torchaudio

SR = 48_000


def talk(seconds: float = 2.0, sr: int = SR, tilt_db: float = 40.0, seed: int = 0) -> np.ndarray:
    """Voiced stretches (harmonics to 4 kHz) and hisses that reach sr / 2, `tilt_db` lower there than at 1 kHz; (T,)."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * sr)) / sr
    hz = np.fft.rfftfreq(len(t), 1 / sr)
    shape = 10 ** (-tilt_db / 20 * np.log2(np.maximum(hz, 1000) / 1000) / np.log2(sr / 2 / 1000))
    hiss = np.fft.irfft(np.fft.rfft(rng.normal(0, 0.05, len(t))) * shape, len(t))
    pitch = np.cumsum(110 + 20 * np.sin(2 * np.pi * t)) / sr
    voice = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 33))
    hissing = (t % 0.3) > 0.2
    return np.where(hissing, hiss, 0.1 * voice + 0.03 * hiss)


def brickwall(x: np.ndarray, cutoff: float, sr: int = SR) -> np.ndarray:
    spectrum = np.fft.rfft(x)
    spectrum[np.fft.rfftfreq(len(x), 1 / sr) >= cutoff] = 0
    return np.fft.irfft(spectrum, len(x))


def dithered(x: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    scale = 2.0 ** (bits - 1)
    rng = np.random.default_rng(seed)
    return np.round(x * scale + rng.random(x.shape) - rng.random(x.shape)) / scale


@pytest.mark.parametrize("cutoff", [2000, 3000, 4000, 6000, 8000, 12000, 16000])
@pytest.mark.parametrize("bits", [16, 24, 53])
def test_brick_wall(cutoff: int, bits: int) -> None:
    x = brickwall(talk(), cutoff)
    assert dsp.detect_cutoff(dithered(x, bits) if bits < 53 else x, SR) == pytest.approx(cutoff, abs=100)


@pytest.mark.parametrize("cutoff", [2500, 4000, 8000, 12000])
def test_resampled_up_by_windowed_sinc(cutoff: int) -> None:
    x = torch.from_numpy(talk()).float()
    low = torchaudio.functional.resample(x, SR, 2 * cutoff, lowpass_filter_width=64)
    steep = torchaudio.functional.resample(low, 2 * cutoff, SR, lowpass_filter_width=64)
    assert dsp.detect_cutoff(steep, SR) == pytest.approx(0.99 * cutoff, rel=0.025)
    own = dsp.resample(dsp.resample(x, SR, 2 * cutoff), 2 * cutoff, SR)  # rolls off from 0.948 of the cut-off
    assert 0.91 * cutoff < dsp.detect_cutoff(own, SR) < cutoff


@pytest.mark.parametrize("cutoff", [2000, 4000, 8000, 12000])
@pytest.mark.parametrize("family", ["butter", "cheby1", "ellip"])
def test_iir_of_order_eight(family: dsp.FilterFamily, cutoff: int) -> None:
    x = np.ascontiguousarray(dsp.lowpass(talk(), SR, cutoff, family, 8))
    assert dsp.detect_cutoff(dithered(x, 16), SR) == pytest.approx(cutoff, rel=0.08)


@pytest.mark.parametrize("cutoff", [2000, 4000, 8000])
@pytest.mark.parametrize(("family", "order"), [("butter", 4), ("cheby1", 4), ("bessel", 8)])
def test_gentle_iir_ends_where_the_filter_is_between_half_and_30_db_down(
    family: dsp.FilterFamily, order: int, cutoff: int
) -> None:
    from scipy import signal

    x = np.ascontiguousarray(dsp.lowpass(talk(tilt_db=20), SR, cutoff, family, order))
    found = dsp.detect_cutoff(dithered(x, 16), SR)
    sos = dsp.lowpass_sos(family, order, cutoff, SR)
    loss_db = -40 * np.log10(np.abs(signal.sosfreqz(sos, [found], fs=SR)[1][0]))  # forward and backward
    assert 0.5 < loss_db < 30


@pytest.mark.parametrize("tilt_db", [0.0, 20.0, 40.0, 60.0])
@pytest.mark.parametrize("bits", [16, 24])
def test_full_band_with_natural_tilt(tilt_db: float, bits: int) -> None:
    assert dsp.detect_cutoff(dithered(talk(tilt_db=tilt_db), bits), SR) >= 20_000


def test_voiced_only_is_not_a_low_pass() -> None:
    t = np.arange(2 * SR) / SR
    pitch = np.cumsum(110 + 20 * np.sin(2 * np.pi * t)) / SR
    voice = 0.1 * sum(np.sin(2 * np.pi * k * pitch) / k**1.5 for k in range(1, 170))
    assert dsp.detect_cutoff(dithered(voice + 1e-4 * np.random.default_rng(0).normal(size=len(t)), 16), SR) >= 20_000


@pytest.mark.parametrize("cutoff", [4000, 11000])
def test_hum_offset_and_level_do_not_matter(cutoff: int) -> None:
    x = brickwall(talk(), cutoff)
    t = np.arange(len(x)) / SR
    hum = 0.2 * np.sin(2 * np.pi * 50 * t) + 0.05 * np.sin(2 * np.pi * 150 * t)
    for y in (0.3 * x + hum + 0.2, 1e-3 * x / np.abs(x).max(), 1e-3 * x + 1e-4 * hum, -x, 0.001 * x + 0.3):
        assert dsp.detect_cutoff(dithered(y, 24), SR) == pytest.approx(cutoff, abs=100)


def test_a_whistle_above_the_cutoff_is_no_content() -> None:
    x = brickwall(talk(), 4000)
    whistle = 1e-3 * np.sin(2 * np.pi * 15_625 * np.arange(len(x)) / SR)
    assert dsp.detect_cutoff(x + whistle, SR) == pytest.approx(4000, abs=100)


def test_hiss_below_the_edge() -> None:
    x = brickwall(talk(tilt_db=10), 4000) + 1e-5 * np.random.default_rng(1).normal(size=2 * SR)
    assert dsp.detect_cutoff(x, SR) == pytest.approx(4000, abs=100)


def test_44100_hz_material_inside_48000_hz() -> None:
    x = torch.from_numpy(talk(sr=44_100, tilt_db=20)).float()
    y = dsp.resample(x, 44_100, SR).numpy()
    assert dsp.detect_cutoff(dithered(y, 16), SR) == pytest.approx(0.975 * 22_050, rel=0.025)
    assert dsp.detect_cutoff(x, 44_100) == 22_050


@pytest.mark.parametrize(("compression", "low", "high"), [(0.99, 8000, 8700), (0.9, 15500, 16900), (0.6, 20000, 20800)])
def test_mp3_shelf(compression: float, low: float, high: float) -> None:
    buffer = io.BytesIO()
    x = talk(4.0, tilt_db=20)
    sf.write(buffer, x, SR, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=compression)
    buffer.seek(0)
    y, sr = sf.read(buffer)
    found = dsp.detect_cutoff(y, sr)
    assert low < found < high
    power = np.abs(np.fft.rfft(y)) ** 2
    hz = np.fft.rfftfreq(len(y), 1 / sr)
    inside = power[(hz > 0.8 * found) & (hz < found)].mean()
    assert 10 * np.log10(inside / power[hz > found + 1000].mean()) > 15


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1.0])
def test_short_clips(seconds: float) -> None:
    assert dsp.detect_cutoff(brickwall(talk(seconds + 0.2)[-round(seconds * SR) :], 4000), SR) == pytest.approx(4000, abs=150)
    assert dsp.detect_cutoff(talk(seconds + 0.2)[-round(seconds * SR) :], SR) >= 20_000


@pytest.mark.parametrize("sr", [8000, 16_000, 44_100, 96_000, 192_000])
def test_any_sample_rate(sr: int) -> None:
    assert dsp.detect_cutoff(brickwall(talk(sr=sr), 2500, sr), sr) == pytest.approx(2500, abs=100)
    assert dsp.detect_cutoff(talk(sr=sr, tilt_db=10), sr) == sr / 2


@pytest.mark.parametrize("shape", [(0,), (1,), (100,), (2, 0), (SR,), (2, SR)])
def test_nothing_to_find_is_full_band(shape: tuple[int, ...]) -> None:
    assert dsp.detect_cutoff(np.zeros(shape), SR) == 24_000
    assert dsp.detect_cutoff(torch.zeros(shape), SR) == 24_000


def test_channels_are_taken_together() -> None:
    x, y = brickwall(talk(seed=1), 4000), brickwall(talk(seed=2), 8000)
    for stereo in (np.stack([x, y]), np.stack([y, x]), torch.from_numpy(np.stack([x, y]))):
        assert dsp.detect_cutoff(stereo, SR) == pytest.approx(8000, abs=100)
    assert dsp.detect_cutoff(np.stack([x, np.zeros_like(x)]), SR) == pytest.approx(4000, abs=100)


def test_ten_minutes_cost_little_more_than_one() -> None:
    minute = torch.from_numpy(np.tile(brickwall(talk(6.0), 8000), 10)).float()
    started = time.perf_counter()
    assert dsp.detect_cutoff(minute.tile(10), SR) == pytest.approx(8000, abs=100)
    assert time.perf_counter() - started < 600 * 0.0015


def recordings(folder: Path, **wanted: str) -> list[Path]:
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if all(row[k] == v for k, v in wanted.items())]
    return [folder / row["path"] for row in rows]


def test_recorded_speech_is_full_band(shared_data: Path) -> None:
    found = []
    for path in recordings(shared_data, cls="speech48", split="valid", bw_class="full"):
        x, sr = sf.read(path, dtype="float32", always_2d=True)
        found.append(dsp.detect_cutoff(x.T, sr))
    assert np.mean(np.array(found) > 20_000) >= 0.95


@pytest.mark.parametrize("cutoff", [3000, 4000, 8000, 12000])
def test_recorded_speech_after_a_brick_wall(shared_data: Path, cutoff: int) -> None:
    for path in recordings(shared_data, cls="speech48", split="valid", bw_class="full", sr="48000")[::3]:
        x, sr = sf.read(path, dtype="float32")
        y = dsp.band_limit(torch.from_numpy(x), sr, cutoff)
        assert dsp.detect_cutoff(dithered(y.numpy(), 16), sr) == pytest.approx(cutoff, abs=100), path.name
