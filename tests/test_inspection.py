"""What `inspect` says of files whose history is known."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from bwe import audio, degrade, dsp, inspection
from bwe.errors import AudioError

SR = 48_000
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def look(folder: Path, x: np.ndarray, sr: int = SR, subtype: str = "PCM_16") -> inspection.Inspection:
    path = folder / "x.wav"
    audio.write(path, x, sr, subtype, overwrite=True)
    return inspection.inspect(path)


def test_examples() -> None:
    full = inspection.inspect(EXAMPLES / "talk_48k.flac")
    assert full.shape == inspection.FULL_BAND
    assert full.extend_from_hz is None
    assert full.verdict.startswith("full-band already")
    narrow = inspection.inspect(EXAMPLES / "talk_8k.wav")
    assert narrow.shape == inspection.FULL_BAND
    assert narrow.extend_from_hz == narrow.cutoff_hz > 3500
    assert narrow.verdict == f"content fills its whole band, {narrow.cutoff_hz / 1000:.1f} kHz in an 8 kHz file: extend"


@pytest.mark.parametrize("cutoff", [4000, 8000, 12_500])
def test_brick_wall(talk: np.ndarray, tmp_path: Path, cutoff: int) -> None:
    found = look(tmp_path, dsp.band_limit(torch.from_numpy(talk), SR, cutoff).numpy())
    assert found.shape == inspection.BRICK_WALL
    assert found.cutoff_hz == pytest.approx(cutoff, abs=100)
    assert found.verdict == f"content ends at {found.cutoff_hz / 1000:.1f} kHz in a 48 kHz file (brick wall" + (
        f", probably once {2 * cutoff / 1000:g} kHz): extend" if cutoff != 12_500 else "): extend"
    )


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 24_000])
@pytest.mark.parametrize("resampler", ["kaiser", "soxr", "sinc64"])
def test_resampled_files_name_their_former_rate(talk: np.ndarray, tmp_path: Path, rate: int, resampler: str) -> None:
    x = torch.from_numpy(talk)
    if resampler == "kaiser":
        y = dsp.resample(dsp.resample(x, SR, rate), rate, SR).numpy()
    elif resampler == "soxr":
        soxr = pytest.importorskip("soxr")
        y = soxr.resample(soxr.resample(talk[0], SR, rate, "HQ"), rate, SR, "HQ")[None]
    else:
        y = degrade.through_resampler(x, SR, "sinc64", rate / 2)[0].numpy()
        rate = 500 * round(rate / 500)  # the grid of that function
    found = look(tmp_path, y)
    assert found.shape == inspection.RESAMPLER
    assert found.former_rate is not None
    assert found.former_rate == pytest.approx(rate, rel=0.003)
    assert "probably once" in str(found)


@pytest.mark.parametrize(("family", "order"), [("butter", 4), ("cheby1", 8), ("ellip", 6)])
@pytest.mark.parametrize("cutoff", [4000, 7000])
def test_gentle_filters(talk: np.ndarray, tmp_path: Path, family: dsp.FilterFamily, order: int, cutoff: int) -> None:
    found = look(tmp_path, dsp.lowpass(talk, SR, cutoff, family, order))
    assert found.shape == inspection.ROLL_OFF
    assert found.former_rate is None


def test_encoders_low_pass_is_no_resampler(talk: np.ndarray, tmp_path: Path) -> None:
    found = look(tmp_path, degrade.codec(torch.from_numpy(talk), SR, "mp3", 32_000, SR).numpy())
    assert found.shape == inspection.BRICK_WALL
    assert found.former_rate is None


def test_mp3_shelf(tmp_path: Path) -> None:
    rng, frame = np.random.default_rng(0), 1152
    t = np.arange(6 * SR) / SR
    noise = torch.from_numpy(rng.standard_normal((1, len(t))) * 0.05 * (0.2 + np.sin(2 * np.pi * 1.5 * t) ** 2)).float()
    dense, whole = (dsp.band_limit(noise, SR, hz).numpy() for hz in (16_000.0, 19_500.0))
    # An encoder short of bits: the band above 16 kHz is there in one frame of five.
    kept = (rng.random(len(t) // frame + 1) < 0.2).repeat(frame)[: len(t)]
    window = np.hanning(frame)
    starved = dense + (whole - dense) * np.convolve(kept, window / window.sum(), "same").astype(np.float32)
    found = look(tmp_path, starved)
    assert found.shape == inspection.MP3_SHELF
    assert found.extend_from_hz == 16_000
    assert found.verdict.startswith("ends at 16.0 kHz with an MP3 shelf, sparse content to 19.")
    assert found.verdict.endswith(": extend, cut-off 16000")
    assert look(tmp_path, whole).shape == look(tmp_path, dense).shape == inspection.BRICK_WALL


def test_music_from_mp3_shows_its_shelf(shared_data: Path, tmp_path: Path) -> None:
    x, info = audio.read(shared_data / "music44/train/weresax_006.flac")
    coded = degrade.codec(torch.from_numpy(x), info.sample_rate, "mp3", 96_000, info.sample_rate).numpy()
    assert look(tmp_path, coded, info.sample_rate).shape == inspection.MP3_SHELF
    assert look(tmp_path, x, info.sample_rate).shape == inspection.FULL_BAND


def test_silence_nothing_and_almost_nothing(tmp_path: Path) -> None:
    silent = look(tmp_path, np.zeros((1, SR), np.float32))
    assert (silent.verdict, silent.extend_from_hz, silent.silence) == ("silent: nothing to extend", None, 1.0)
    assert silent.to_dict()["peak_dbfs"] is None
    assert look(tmp_path, np.zeros((2, 0), np.float32)).verdict == "empty: nothing to extend"
    one = look(tmp_path, np.full((1, 1), 0.5, np.float32))
    assert one.verdict.startswith("too short")
    for found in (silent, one):
        assert "bandwidth" not in str(found)


def test_bits_in_use(talk: np.ndarray, tmp_path: Path) -> None:
    sixteen = (np.rint(talk * 32768) / 32768).clip(-1, 1 - 2**-15).astype(np.float32)
    found = look(tmp_path, sixteen, subtype="PCM_24")
    assert found.bits == 16
    assert "only 16 of 24 bits in use" in str(found)
    found = look(tmp_path, sixteen, subtype="FLOAT")
    assert found.bits == 16
    assert "holding 16-bit samples" in str(found)
    assert look(tmp_path, talk * np.float32(0.7), subtype="PCM_24").bits == 24
    assert look(tmp_path, talk * np.float32(0.7), subtype="FLOAT").bits is None
    plain = look(tmp_path, sixteen)
    assert plain.bits == 16
    assert "in use" not in str(plain)


def test_channels(talk: np.ndarray, tmp_path: Path) -> None:
    same = look(tmp_path, np.repeat(talk, 2, axis=0))
    assert same.dual_mono
    assert "2; dual mono: all channels identical" in str(same)
    other = look(tmp_path, np.concatenate([talk, np.zeros_like(talk), talk * 0.9]))
    assert not other.dual_mono
    assert other.silent_channels == (2,)
    assert "silent channel 2" in str(other)


def test_level_offset_and_silence(tmp_path: Path) -> None:
    t = np.arange(2 * SR) / SR
    x = np.stack([0.5 * np.sin(2 * np.pi * 100 * t) + 0.1, np.zeros(len(t))])
    x[:, SR:] = 0
    found = look(tmp_path, x.astype(np.float32), subtype="FLOAT")
    assert found.peak_dbfs == pytest.approx(20 * np.log10(0.6), abs=0.01)
    assert found.rms_dbfs == pytest.approx(10 * np.log10((0.125 + 0.01) / 4), abs=0.01)
    assert found.dc == pytest.approx((0.05, 0), abs=1e-4)
    assert found.silence == pytest.approx(0.5, abs=0.02)
    assert "DC offset +0.0500, +0.0000" in str(found)


def test_clipping_is_counted_to_the_sample(tmp_path: Path) -> None:
    t = np.arange(3 * SR) / SR
    tone = np.sin(2 * np.pi * 440.3 * t) * np.where(t < 1, 0.5, 1.2)
    clipped = tone.clip(-0.9, 0.9).astype(np.float32)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], np.abs(tone) >= 0.9, [0]]).astype(int)))
    lengths = runs[1::2] - runs[::2]
    for tail in (0, 1, 12_345):  # runs lie across the ends of blocks
        found = look(tmp_path, np.concatenate([np.zeros(tail), clipped])[None].astype(np.float32), subtype="FLOAT").clipping
        assert found.samples == lengths[lengths >= 3].sum()
        assert found.first_s == pytest.approx((tail + runs[0]) / SR, abs=1e-6)
        assert found.share == pytest.approx(found.samples / (tail + len(t)))


@pytest.mark.parametrize("hz", [20, 50, 1000])
@pytest.mark.parametrize("level", [1e-4, 0.2, 0.999])
def test_crests_of_tones_are_not_clipped(tmp_path: Path, hz: int, level: float) -> None:
    x = (level * np.sin(2 * np.pi * hz * np.arange(2 * SR) / SR)).astype(np.float32)
    sf.write(tmp_path / "x.wav", x, SR, "PCM_16")
    found = inspection.inspect(tmp_path / "x.wav").clipping
    assert (found.samples, found.first_s) == (0, None)


def test_nan_and_damage_are_told_and_do_not_stop_it(talk: np.ndarray, tmp_path: Path) -> None:
    broken = talk.copy()
    broken[0, 4800:4803] = [np.nan, np.inf, -np.inf]
    sf.write(tmp_path / "x.wav", broken.T, SR, "FLOAT")
    found = inspection.inspect(tmp_path / "x.wav")
    assert any("3 samples" in sentence and "0.1000 s" in sentence for sentence in found.warnings)
    assert found.shape == inspection.FULL_BAND
    whole = (EXAMPLES / "talk_48k.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    cut = inspection.inspect(tmp_path / "cut.flac")
    assert 0 < cut.seconds < 4
    assert "warning   truncated or damaged FLAC" in str(cut)
    with pytest.raises(AudioError, match="no such file"):
        inspection.inspect(tmp_path / "none.wav")


def test_json_is_json(tmp_path: Path, talk: np.ndarray) -> None:
    for x in (talk, talk * 0):
        values = json.loads(json.dumps(look(tmp_path, x).to_dict(), allow_nan=False))
        assert values["path"].endswith("x.wav")
        assert values["seconds"] == pytest.approx(5.61)
        assert values["clipping"]["samples"] == 0


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    x, info = audio.read(EXAMPLES / "talk_8k.wav")
    peaks = []
    for minutes in (2, 6):
        path = tmp_path / f"{minutes}.wav"
        with audio.Writer(path, info.sample_rate, 1, "PCM_16") as writer:
            for _ in range(round(minutes * 60 / info.seconds)):
                writer.write(x)
        tracemalloc.start()
        found = inspection.inspect(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.seconds == pytest.approx(60 * minutes, abs=5)
    assert peaks[1] < 1.05 * peaks[0]


def test_sample_is_spread_over_the_file_whatever_the_blocks() -> None:
    frames, rate = 2_000_000, 8000
    x = np.stack([np.arange(frames), -np.arange(frames)]).astype(np.float32)
    found = []
    for size in (777_777, 65_536):
        sample = inspection._Sample(rate, 2, frames)
        for start in range(0, frames, size):
            sample.add(x[:, start : start + size], start)
        found.append(sample.signal())
    assert np.array_equal(*found)
    assert found[0].shape == (2, 60 * rate)
    assert found[0][0].max() > 0.98 * frames
    assert np.median(found[0][0]) == pytest.approx(frames / 2, rel=0.02)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e10, 1e20, 3e38])
def test_absurd_levels_are_told_without_a_warning(tmp_path: Path, talk: np.ndarray, scale: float) -> None:
    found = look(tmp_path, (talk / np.abs(talk).max()).clip(-1, 1) * np.float32(scale), subtype="FLOAT")
    assert found.peak_dbfs == pytest.approx(20 * np.log10(scale), abs=0.1)
    assert found.bits is None
    assert found.rolloff99_hz is not None


@pytest.mark.parametrize("rate", [40_000, 42_000, 42_100, 42_199, 42_200, 43_000])
def test_rates_around_the_lowest_that_shows_a_shelf(tmp_path: Path, rate: int) -> None:
    x = 0.1 * np.random.default_rng(0).standard_normal((1, rate)).astype(np.float32)
    x = dsp.band_limit(torch.from_numpy(x), rate, 20_690.0).numpy() if rate > 41_400 else x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look(tmp_path, x, rate).verdict
