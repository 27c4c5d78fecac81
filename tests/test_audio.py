"""Files in and out: every format, every bad input, and no half-written file."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from bwe import audio
from bwe.errors import AudioError, ConfigError, OutputError

Voice = Callable[..., np.ndarray]

CONTAINERS = [
    ("wav", "WAV", "PCM_16"), ("wav", "WAV", "PCM_U8"), ("wav", "WAV", "PCM_24"), ("wav", "WAV", "PCM_32"),
    ("wav", "WAV", "FLOAT"), ("wav", "WAV", "DOUBLE"), ("wav", "WAV", "ULAW"), ("wav", "WAV", "ALAW"),
    ("wav", "WAV", "IMA_ADPCM"), ("wav", "WAV", "MS_ADPCM"), ("wav", "WAVEX", "PCM_24"), ("rf64", "RF64", "PCM_16"),
    ("aiff", "AIFF", "PCM_24"), ("w64", "W64", "PCM_16"), ("caf", "CAF", "PCM_16"), ("au", "AU", "PCM_16"),
    ("flac", "FLAC", "PCM_16"), ("flac", "FLAC", "PCM_24"), ("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def store(path: Path, x: np.ndarray, sr: int = 48_000, subtype: str | None = None, file_format: str | None = None) -> Path:
    with sf.SoundFile(path, "w", sr, len(x), subtype, format=file_format) as file:
        for start in range(0, x.shape[1], 24_000):
            file.write(x[:, start : start + 24_000].T)
    return path


def outcome(path: Path) -> int | str:
    """Frames read, or the sentence that refused them."""
    try:
        return audio.read(path)[1].frames
    except AudioError as error:
        return str(error)


@pytest.mark.parametrize(("suffix", "file_format", "subtype"), CONTAINERS)
def test_reads_every_container(tmp_path: Path, voice: Voice, suffix: str, file_format: str, subtype: str) -> None:
    given = voice(30_000, 48_000, channels=2)
    path = store(tmp_path / f"a.{suffix}", given, subtype=subtype, file_format=file_format)
    x, info = audio.read(path)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert x.shape == (2, info.frames)
    assert (info.sample_rate, info.channels, info.subtype) == (48_000, 2, subtype)
    assert info.frames >= 30_000 if "ADPCM" in subtype else info.frames == 30_000
    error = np.sqrt(np.mean((x[:, :30_000] - given) ** 2) / np.mean(given**2))
    assert error < {"OPUS": 0.5, "MPEG_LAYER_III": 0.5, "VORBIS": 0.5, "IMA_ADPCM": 0.3, "MS_ADPCM": 0.3}.get(subtype, 0.06)
    assert info.seconds == pytest.approx(info.frames / 48_000)


@pytest.mark.parametrize(("sr", "channels"), [(8_000, 1), (11_025, 1), (44_100, 2), (192_000, 1), (48_000, 6)])
def test_reads_any_rate_and_channel_count(tmp_path: Path, voice: Voice, sr: int, channels: int) -> None:
    given = voice(5_000, sr, channels)
    x, info = audio.read(store(tmp_path / "x.wav", given, sr, "FLOAT"))
    assert (info.sample_rate, info.channels) == (sr, channels)
    assert np.array_equal(x, given)


@pytest.mark.parametrize("frames", [0, 1])
@pytest.mark.parametrize("suffix", ["wav", "aiff", "ogg"])
def test_no_sample_and_one_sample_are_audio(tmp_path: Path, voice: Voice, frames: int, suffix: str) -> None:
    x, info = audio.read(store(tmp_path / f"s.{suffix}", voice(frames, 48_000)))
    assert x.shape == (1, frames)
    assert info.frames == frames


@pytest.mark.parametrize("name", ["04 絆ふぉーえばー.wav", "-dash.wav", "q'u\"o te\n.wav", "🎻.flac"])
def test_reads_and_writes_odd_names(tmp_path: Path, voice: Voice, name: str) -> None:
    audio.write(tmp_path / name, voice(100, 48_000), 48_000)
    assert audio.read(tmp_path / name)[0].shape == (1, 100)


def test_extension_is_not_believed(tmp_path: Path, voice: Voice) -> None:
    store(tmp_path / "really.flac", voice(3_000, 48_000)).rename(tmp_path / "really.wav")
    x, info = audio.read(tmp_path / "really.wav")
    assert info.format == "FLAC"
    assert x.shape == (1, 3_000)


def test_missing_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    for name, said in (("no.wav", "no such file"), (".", "is a folder"), ("empty.wav", r"empty file \(0 bytes\)")):
        with pytest.raises(AudioError, match=said) as caught:
            audio.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a regular file"):
        audio.read(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="no such file"):
        audio.read("nul\0.wav")
    with pytest.raises(AudioError, match=r"xx\.wav: cannot be read \(File name too long\)"):
        audio.read(tmp_path / f"{'x' * 300}.wav")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>" * 40, r"not audio \(starts with '<!DOCTYPE html><'\)"),
        (b"hello, this is a text\nof two lines" * 30, r"not audio \(starts with 'hello, this is a'\)"),
        (bytes(range(200, 256)) * 50, "not audio"),
        (b"\x00", "not audio"),
        (b"\x80\x04\x95" + bytes(500), "not audio"),
        (b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n" * 20, r"not audio \(starts with '#EXTM3U'\); give an audio file"),
        (b"\xff\xf1\x50\x80" + bytes(500), "not audio"),
        (b"\xff\xe4" + np.random.default_rng(2).bytes(20_000), "not audio"),
        (b"\xff\xfb\x90\x00" + np.random.default_rng(0).bytes(20_000), "not audio"),
        (b"DSD " + bytes(500), "DSD is not supported; convert it to WAV or FLAC"),
        (b"\xf0\x7e\x00\x01" + bytes(500), "SDS is not supported; convert it to WAV or FLAC"),
        (
            b"RIFF\x24\x02\0\0WAVEfmt \x10\0\0\0"
            + struct.pack("<HHIIHH", 0x2000, 2, 48_000, 24_000, 1, 16)
            + b"data\0\x02\0\0"
            + bytes(512),
            r"WAV file with a codec that is not supported \(AC-3\); convert it to plain WAV or FLAC first",
        ),
        (b"RIFF\x24\x00\x00\x00WA", "damaged or truncated WAV"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00", "damaged or truncated WAV"),
        (b"fLaC\x00\x00\x00\x22" + bytes(10), "damaged or truncated FLAC"),
        (b"OggS" + bytes(100), "damaged or truncated Ogg"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(300), "damaged or truncated MP3"),
    ],
)
@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_what_is_not_audio_is_said_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, said: str, suffix: str
) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=said) as caught:
        audio.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("suffix", "file_format", "subtype"),
    [c for c in CONTAINERS if c[2] not in ("ULAW", "ALAW", "DOUBLE", "PCM_U8") and c[0] != "caf"],
)
def test_truncated_files_are_refused(
    tmp_path: Path, voice: Voice, capfd: pytest.CaptureFixture[str], suffix: str, file_format: str, subtype: str
) -> None:
    whole = store(tmp_path / f"whole.{suffix}", voice(144_000, 48_000, 2), subtype=subtype, file_format=file_format)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"truncated or damaged .* (stops at|there are) 0:01\.\d") as caught:
        audio.read(cut)
    if file_format != "OGG":  # an Ogg file does not say at its beginning how long it is
        assert "the header says 0:03." in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_truncated_caf_is_refused(tmp_path: Path, voice: Voice) -> None:
    path = store(tmp_path / "cut.caf", voice(48_000, 48_000))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(AudioError, match=r"truncated or damaged CAF .* stops at 0:00\.3"):
        audio.read(path)


@pytest.mark.parametrize(("suffix", "subtype"), [("flac", None), ("mp3", None), ("ogg", "VORBIS"), ("opus", "OPUS")])
@pytest.mark.parametrize("seed", range(3))
def test_damage_in_the_middle_is_not_a_shorter_file(
    tmp_path: Path, voice: Voice, capfd: pytest.CaptureFixture[str], suffix: str, subtype: str | None, seed: int
) -> None:
    x = voice(144_000, 48_000, 2, seed)
    path = store(tmp_path / f"d.{suffix}", x, 48_000, subtype, "OGG" if subtype else None)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    path.write_bytes(data)
    if suffix == "mp3" and outcome(path) == 144_000:  # an MP3 decoder may find its way through the gap
        return
    place = r"there are 0:02\.9" if suffix == "mp3" else r"the sound stops at 0:01\.[0-6]"
    assert re.search(rf"truncated or damaged .*{place}", str(outcome(path)))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("declared", [0, 0xFFFFFFFF, 0xFFFF0000, 0x80000000, 0x7FFFF000])
def test_wav_from_a_pipe_has_the_length_of_the_file(tmp_path: Path, voice: Voice, declared: int) -> None:
    given = voice(5_000, 16_000)
    path = store(tmp_path / "piped.wav", given, 16_000, "FLOAT")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = data[4:8] = struct.pack("<I", declared)
    path.write_bytes(data)
    assert np.array_equal(audio.read(path)[0], given)


def test_empty_wav_with_a_chunk_behind_its_data_stays_empty(tmp_path: Path) -> None:
    path = store(tmp_path / "e.wav", np.zeros((1, 0), np.float32), 16_000, "PCM_16")
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 10) + b"INFOabcdef")
    assert audio.read(path)[0].shape == (1, 0)


def test_variable_bit_rate_mp3_without_a_length_is_read_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = (0.2 * rng.standard_normal((1, 200_000)) * (np.arange(200_000) > 100_000)).astype(np.float32)
    path = tmp_path / "vbr.mp3"
    with sf.SoundFile(path, "w", 48_000, 1, bitrate_mode="VARIABLE", compression_level=0.5) as file:
        file.write(x.T)
    assert audio.read(path)[0].shape == (1, 200_000)
    data = path.read_bytes()
    path.write_bytes(data[data.index(data[:2], 4) :])  # the first frame only says how many follow
    y, info = audio.read(path)
    assert 200_000 <= y.shape[1] == info.frames < 206_000
    quiet, loud = np.sqrt(np.mean(y[0, :98_000] ** 2)), np.sqrt(np.mean(y[0, 104_000:200_000] ** 2))
    assert loud == pytest.approx(0.2, rel=0.2)  # the encoder has a low-pass
    assert quiet < 0.02


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_its_position(tmp_path: Path, voice: Voice, bad: float) -> None:
    x = voice(100_000, 48_000, 2)
    x[1, 96_000] = bad
    path = store(tmp_path / "nan.wav", x, 48_000, "FLOAT")
    with pytest.raises(AudioError, match=r"(NaN|Inf) at 2\.0000 s in channel 2"):
        audio.read(path)


@pytest.mark.parametrize("sr", [1, 1_999, 384_001, 8_000_001])
def test_impossible_sample_rates_are_refused(tmp_path: Path, voice: Voice, sr: int) -> None:
    path = store(tmp_path / "r.wav", voice(100, 48_000), sr)
    with pytest.raises(AudioError, match=f"sample rate {sr} Hz is outside 2000 to 384000 Hz"):
        audio.read(path)


def test_random_bytes_and_flipped_bytes_give_audio_or_one_sentence(tmp_path: Path, voice: Voice) -> None:
    rng = np.random.default_rng(0)
    sources = [
        store(tmp_path / f"f.{s}", voice(9_000, 16_000), 16_000, t, f).read_bytes()
        for s, f, t in CONTAINERS
        if t in ("PCM_16", "VORBIS", "OPUS", "MPEG_LAYER_III", "IMA_ADPCM")
    ]
    path = tmp_path / "fuzz.bin"
    refused = 0
    for round_ in range(150):
        if round_ % 5 == 0:
            data = bytearray(rng.bytes(int(rng.integers(1, 5_000))))
        else:
            data = bytearray(sources[round_ % len(sources)])
            for _ in range(int(rng.integers(1, 8))):
                data[int(rng.integers(0, min(len(data), 200 if round_ % 2 else len(data))))] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            x, _ = audio.read(path)
        except AudioError:
            refused += 1
        else:
            assert np.isfinite(x).all()
    assert refused >= 30


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_float_to_pcm_is_within_its_steps(tmp_path: Path, voice: Voice, bits: int, suffix: str) -> None:
    subtype = f"PCM_{bits}"
    if suffix == "flac" and bits == 32:
        with pytest.raises(OutputError, match=r"FLAC cannot hold PCM_32 samples; write \.wav"):
            audio.write(tmp_path / "x.flac", voice(10, 48_000), 48_000, subtype)
        return
    x = voice(50_000, 48_000, 2)
    assert audio.write(tmp_path / f"x.{suffix}", x, 48_000, subtype) == 0
    y = sf.read(tmp_path / f"x.{suffix}", dtype="float64", always_2d=True)[0].T
    assert sf.info(tmp_path / f"x.{suffix}").subtype == subtype
    steps = np.abs(y - x).max() * 2 ** (bits - 1)
    assert 1.0 < steps <= 1.5 if bits == 16 else steps <= 0.5


def test_pcm_16_is_dithered_the_same_each_time_and_in_each_channel(tmp_path: Path) -> None:
    x = np.tile((0.3 / 32768 * np.sin(np.arange(96_000) * 0.05)).astype(np.float32), (2, 1))
    for name in ("a.wav", "b.wav"):
        audio.write(tmp_path / name, x, 48_000, "PCM_16")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    y = audio.read(tmp_path / "a.wav")[0]
    assert np.array_equal(y[0], y[1])
    # A third of a step survives on average, which rounding alone would have erased.
    assert np.corrcoef(y[0], x[0])[0, 1] > 0.2
    error = (y[0] - x[0]) * 32768
    assert abs(error.mean()) < 0.02
    assert error.std() == pytest.approx(0.5, abs=0.03)


def test_digital_silence_stays_digital_silence(tmp_path: Path, voice: Voice) -> None:
    x = voice(96_000, 48_000, 2)
    x[:, 30_000:60_000] = 0
    x[1] = 3e-8
    audio.write(tmp_path / "s.wav", x, 48_000, "PCM_16")
    y = audio.read(tmp_path / "s.wav")[0]
    assert not y[0, 31_000:59_000].any()
    assert not y[1].any()
    assert y[0, :30_000].any()


def test_clipping_is_counted_and_float_is_never_clipped(tmp_path: Path) -> None:
    x = np.array([[0.5, 1.0, 1.2, -1.0, -1.7, 0.0]], np.float32)
    assert audio.write(tmp_path / "c.wav", x, 48_000, "PCM_24") == 2
    y = sf.read(tmp_path / "c.wav", dtype="int32")[0] >> 8
    assert y.tolist() == [2**22, 2**23 - 1, 2**23 - 1, -(2**23), -(2**23), 0]
    assert audio.write(tmp_path / "f.wav", x, 48_000, "FLOAT") == 0
    assert np.array_equal(audio.read(tmp_path / "f.wav")[0], x)


@pytest.mark.parametrize(
    ("name", "subtype", "times"), [("a.ogg", "VORBIS", 9), ("a.opus", "OPUS", 1), ("a.mp3", "MPEG_LAYER_III", 1)]
)
def test_long_lossy_files_are_written_whole(tmp_path: Path, voice: Voice, name: str, subtype: str, times: int) -> None:
    x = np.tile(voice(240_000, 48_000), (2, times))  # in one call, a minute crashes libsndfile's Vorbis encoder
    audio.write(tmp_path / name, x, 48_000, subtype)
    y, info = audio.read(tmp_path / name)
    assert (y.shape, info.subtype) == (x.shape, subtype)
    assert np.sqrt(np.mean((x - y) ** 2) / np.mean(x**2)) < 0.3


def test_writing_refuses_what_cannot_be(tmp_path: Path, voice: Voice) -> None:
    x = voice(100, 48_000)
    kept = store(tmp_path / "there.wav", x)
    before = kept.read_bytes()
    (tmp_path / "folder.wav").mkdir()
    cases: list[tuple[str, np.ndarray, int, str | None, str]] = [
        ("there.wav", x, 48_000, None, "exists already"),
        ("folder.wav", x, 48_000, None, "is a folder"),
        ("no/such/out.wav", x, 48_000, None, "does not exist; make it first"),
        ("out.m4a", x, 48_000, None, "'.m4a' is not an output format; use one of .aiff"),
        ("out", x, 48_000, None, "needs an extension"),
        ("out.mp3", x, 96_000, None, "MP3 cannot hold 96000 Hz; write .wav or .flac"),
        ("out.opus", x, 44_100, None, "Opus cannot hold 44100 Hz"),
        ("out.ogg", x, 384_000, None, "Ogg Vorbis cannot hold 384000 Hz"),
        ("out.mp3", np.repeat(x, 3, 0), 48_000, None, "MP3 cannot hold 3 channels; write .wav"),
        ("out.flac", x, 48_000, "FLOAT", "FLAC cannot hold FLOAT samples"),
        ("out.flac", x[:, :0], 48_000, None, "FLAC cannot hold a signal of 0 samples"),
        (f"{'x' * 300}.wav", x, 48_000, None, r"cannot be written \(File name too long\); choose another name"),
    ]
    for name, given, sr, subtype, said in cases:
        with pytest.raises(OutputError, match=said) as caught:
            audio.write(tmp_path / name, given, sr, subtype)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(AudioError, match=r"NaN at 0\.0010 s in channel 1"):
        audio.write(tmp_path / "out.wav", np.where(np.arange(100) == 48, np.nan, x), 48_000)
    with pytest.raises(AudioError, match=r"shape \(C, T\)"):
        audio.write(tmp_path / "out.wav", x[0], 48_000)
    with pytest.raises(AudioError, match="float audio"):
        audio.write(tmp_path / "out.wav", np.zeros((1, 5), np.int16), 48_000)
    assert kept.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.wav", "there.wav"]


def test_a_folder_whose_name_leaves_no_room_for_a_temporary(tmp_path: Path, voice: Voice) -> None:
    room = os.pathconf(tmp_path, "PC_PATH_MAX") - len(os.fsencode(tmp_path)) - len("/x.wav") - 10
    folder = tmp_path.joinpath(*["d" * 199] * (room // 200))
    folder = folder / ("d" * (room % 200 - 1)) if room % 200 > 1 else folder
    folder.mkdir(parents=True)
    with pytest.raises(OutputError, match=r"x\.wav: cannot be written \(File name too long\); choose another folder"):
        audio.write(folder / "x.wav", voice(10, 48_000), 48_000)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(tmp_path: Path, voice: Voice) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        audio.write(tmp_path / "x.wav", voice(10, 48_000), 48_000)
    tmp_path.chmod(0o700)


def test_overwriting_replaces_and_follows_links(tmp_path: Path, voice: Voice) -> None:
    real = store(tmp_path / "real.wav", voice(50, 48_000))
    (tmp_path / "link.wav").symlink_to(real)
    audio.write(tmp_path / "link.wav", voice(70, 48_000), 48_000, overwrite=True)
    assert (tmp_path / "link.wav").is_symlink()
    assert audio.read(real)[1].frames == 70


def test_a_link_into_a_missing_folder_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone" / "real.wav")
    with pytest.raises(OutputError, match=r"link\.wav: the folder .*gone does not exist; make it first"):
        audio.check_output(tmp_path / "link.wav")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_what_is_replaced_keeps_who_may_read_it(tmp_path: Path, voice: Voice) -> None:
    path = store(tmp_path / "private.wav", voice(50, 48_000))
    path.chmod(0o600)
    audio.write(path, voice(70, 48_000), 48_000, overwrite=True)
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_float_cannot_hold_is_not_written_as_infinite(tmp_path: Path) -> None:
    x = np.array([[0.0, 1e39]])
    with pytest.raises(AudioError, match=r"Inf at 0\.0000 s in channel 1; not written"):
        audio.write(tmp_path / "x.wav", x, 48_000, "FLOAT")
    audio.write(tmp_path / "x.w64", x, 48_000, "DOUBLE")
    assert sf.read(tmp_path / "x.w64")[0][1] == 1e39


WRITER = """
import sys, numpy as np
from bwe import audio
x = np.random.default_rng(0).standard_normal((2, 1_000_000)).astype('float32') * 0.1
x = np.tile(x, (1, 9))
print('ready', flush=True)
audio.write(sys.argv[1], x, 48_000, overwrite=True)
"""
LIMITED = """
import os, resource, sys, numpy as np
from bwe import audio, errors
x = np.random.default_rng(0).standard_normal((2, 96_000)).astype('float32') * 0.1
audio.write(sys.argv[1], x, 48_000)
full = os.path.getsize(sys.argv[1])
os.unlink(sys.argv[1])
for limit in (full - 1, full - 100, full - 4_000, full // 2, 10):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        audio.write(sys.argv[1], x, 48_000)
    except errors.OutputError as error:
        assert 'writing failed (File too large' in str(error), error
    else:
        sys.exit(f'{limit} of {full} bytes were enough')
    assert os.listdir() == []
"""


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
def test_a_disk_that_takes_no_more_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    """Neither where it is full in the middle nor where only the last bytes, written at the close, find no place."""
    command = [sys.executable, "-c", LIMITED, f"big.{suffix}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, voice: Voice, number: signal.Signals) -> None:
    path = store(tmp_path / "out.flac", voice(100, 48_000))
    before = path.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not list(tmp_path.glob(".bwe-*.tmp")):
            assert process.poll() is None
            time.sleep(0.002)
        assert audio.sweep(tmp_path) == 0, "that of a live process"
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == -number
    assert path.read_bytes() == before
    left = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(left) == (number != signal.SIGINT)
    assert audio.sweep(tmp_path) == len(left)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "given", "chosen"),
    [
        ("x.wav", "PCM_24", "PCM_24"),
        ("x.wav", "FLOAT", "FLOAT"),
        ("x.wav", "ULAW", "PCM_16"),
        ("x.wav", "PCM_U8", "PCM_16"),
        ("x.wav", "VORBIS", "PCM_16"),
        ("x.flac", "FLOAT", "PCM_24"),
        ("x.flac", "PCM_32", "PCM_24"),
        ("x.flac", "PCM_16", "PCM_16"),
        ("x.ogg", "PCM_24", "VORBIS"),
        ("x.ogg", "OPUS", "OPUS"),
        ("x.opus", None, "OPUS"),
        ("x.mp3", "PCM_16", "MPEG_LAYER_III"),
    ],
)
def test_sample_format_is_kept_where_it_can_be(name: str, given: str | None, chosen: str) -> None:
    assert audio.fitting_subtype(name, given) == chosen


def test_clock() -> None:
    assert [audio.clock(s) for s in (0, 7.4, 59.6, 754, 3723)] == ["0:00", "0:07", "1:00", "12:34", "1:02:03"]
    assert audio.clock(100.04, 1) == "1:40.0"
    assert audio.clock(59.96, 1) == "1:00.0"


@pytest.mark.parametrize("frames", [1, 777, 4096, 65_536, 10**9])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_blocks_are_the_file_whatever_their_size(tmp_path: Path, voice: Voice, suffix: str, frames: int) -> None:
    path = store(tmp_path / f"b.{suffix}", voice(3_000 if frames == 1 else 70_000, 16_000, 2), 16_000)
    x, info = audio.read(path)
    with audio.Reader(path) as reader:
        assert reader.info == info
        for _ in range(2):
            blocks = list(reader.blocks(frames))
            assert all(b.shape == (2, frames) and b.flags.c_contiguous and b.dtype == np.float32 for b in blocks[:-1])
            assert np.array_equal(np.concatenate(blocks, axis=1), x)
        pairs = list(zip(reader.blocks(frames), reader.blocks(frames), strict=True))
        assert all(np.array_equal(a, b) for a, b in pairs), "two passes at once disturb one another"
        assert reader.warnings == []


def test_a_stream_is_read_like_a_file(tmp_path: Path, voice: Voice) -> None:
    class Pipe(io.BytesIO):
        name = "talk"

        def seekable(self) -> bool:
            return False

    path = store(tmp_path / "s.flac", voice(20_000, 16_000), 16_000)
    x, _ = audio.read(path)
    for source in (io.BytesIO(path.read_bytes()), Pipe(path.read_bytes()), path.open("rb")):
        with source, audio.Reader(source) as reader:
            assert np.array_equal(np.concatenate(list(reader.blocks()), axis=1), x)
    with pytest.raises(AudioError, match=r"^talk: not audio \(starts with 'hello'\)"):
        audio.Reader(Pipe(b"hello\n" * 9))
    with pytest.raises(AudioError, match=r"^<stream>: empty file"):
        audio.Reader(io.BytesIO())


STDIN = """
import sys
from bwe import audio, errors
audio._SPOOL_BYTES = int(sys.argv[1])
try:
    with audio.stdin_source() as source, audio.Reader(source) as reader:
        print(reader.info.path, sum(block.shape[1] for block in reader.blocks()))
except errors.BweError as error:
    print(error)
"""


@pytest.mark.parametrize("spool", [1_000, 1 << 28])
@pytest.mark.parametrize("piped", [True, False])
def test_standard_input(tmp_path: Path, voice: Voice, spool: int, piped: bool) -> None:
    path = store(tmp_path / "in.flac", voice(20_000, 16_000), 16_000)
    command = [sys.executable, "-c", STDIN, str(spool)]
    with path.open("rb") as stream:
        given: dict[str, Any] = {"input": path.read_bytes()} if piped else {"stdin": stream}
        done = subprocess.run(command, capture_output=True, timeout=60, check=False, **given)
    assert (done.stdout, done.stderr) == (b"<stdin> 20000\n", b"")


def test_standard_input_without_sound() -> None:
    for given, said in ((b"", b"<stdin>: empty file"), (b"{}\n" * 9, b"<stdin>: not audio (starts with '{}')")):
        done = subprocess.run([sys.executable, "-c", STDIN, "9"], input=given, capture_output=True, timeout=60, check=False)
        assert said in done.stdout
        assert done.stderr == b""


def test_a_long_file_takes_no_more_memory(tmp_path: Path) -> None:
    minute = 0.1 * np.random.default_rng(0).standard_normal((1, 480_000))
    with audio.Writer(tmp_path / "long.flac", 8_000, 1, "PCM_16") as writer:  # four minutes, 8 MB as floats
        for _ in range(4):
            writer.write(minute)
    tracemalloc.start()
    try:
        with audio.Reader(tmp_path / "long.flac") as reader, audio.Writer(tmp_path / "copy.wav", 8_000, 1) as writer:
            for block in reader.blocks(8_192):
                writer.write(block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert audio.read(tmp_path / "copy.wav")[0].shape == (1, 1_920_000)
    assert peak < 3e6


@pytest.mark.parametrize("seconds", [0.5, 1.7, 2.8])
def test_damage_in_flac_is_named_to_a_tenth_of_a_second(tmp_path: Path, voice: Voice, seconds: float) -> None:
    path = store(tmp_path / "d.flac", voice(144_000, 48_000))
    x, _ = audio.read(path)
    data = bytearray(path.read_bytes())
    start = len(store(tmp_path / "part.flac", x[:, : round(seconds * 48_000)]).read_bytes())
    data[start : start + 300] = bytes(300)
    path.write_bytes(data)
    kept: list[np.ndarray] = []
    with audio.Reader(path) as reader, pytest.raises(AudioError, match=r"keep what there is \(--salvage\)") as caught:
        kept.extend(reader.blocks())
    stops = float(str(caught.value).split("stops at 0:0")[1].split(";")[0])
    assert abs(stops - seconds) <= 0.2
    kept_frames = sum(block.shape[1] for block in kept)
    assert abs(kept_frames / 48_000 - seconds) <= 0.15
    assert np.array_equal(np.concatenate(kept, axis=1), x[:, :kept_frames])
    with audio.Reader(path, salvage=True) as reader:
        assert reader.info.frames == kept_frames
        assert [len(w) > 0 for w in reader.warnings] == [True]
        assert f"kept the first 0:0{stops}" in reader.warnings[0]
        assert "of 0:03.0" in reader.warnings[0]
        assert np.array_equal(np.concatenate(list(reader.blocks()), axis=1), x[:, :kept_frames])


@pytest.mark.parametrize("suffix", ["wav", "aiff", "caf", "w64", "rf64", "au", "flac", "ogg", "mp3"])
def test_salvage_keeps_the_readable_part(tmp_path: Path, voice: Voice, suffix: str) -> None:
    path = store(tmp_path / f"cut.{suffix}", voice(96_000, 48_000, 2))
    x, _ = audio.read(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with audio.Reader(path) as reader, pytest.raises(AudioError, match="truncated or damaged"):
        list(reader.blocks())
    with audio.Reader(path, salvage=True) as reader:
        y = np.concatenate(list(reader.blocks()), axis=1)
        assert y.shape == (2, reader.info.frames)
        assert 0.2 * 96_000 < y.shape[1] < 0.8 * 96_000
        assert np.abs(y - x[:, : y.shape[1]])[:, : y.shape[1] - 4_000].max() < 1e-4
        assert len(reader.warnings) == 1
        assert ("kept 0:01.0 of 0:02.0" if suffix == "mp3" else "kept the first 0:0") in reader.warnings[0]


def test_salvage_of_a_whole_file_changes_nothing(tmp_path: Path, voice: Voice) -> None:
    path = store(tmp_path / "w.flac", voice(9_000, 16_000), 16_000)
    with audio.Reader(path, salvage=True) as reader:
        assert (reader.info, reader.warnings) == (audio.read(path)[1], [])


def test_not_finite_becomes_zero_on_request(tmp_path: Path, voice: Voice) -> None:
    x = voice(100_000, 48_000, 2)
    x[1, 96_000:96_003] = np.nan, np.inf, -np.inf
    path = store(tmp_path / "n.wav", x, 48_000, "FLOAT")
    with audio.Reader(path, nan="zero") as reader:
        for _ in range(2):
            assert np.array_equal(np.concatenate(list(reader.blocks(999)), axis=1), np.where(np.isfinite(x), x, 0))
        assert len(reader.warnings) == 1
        assert "3 samples that were NaN or Inf were replaced by zero, the first at 2.0000 s in channel 2" in reader.warnings[0]
    with pytest.raises(ConfigError, match="nan must be 'refuse' or 'zero'"):
        audio.Reader(path, nan="keep")  # type: ignore[arg-type]
    with audio.Reader(path) as reader, pytest.raises(ConfigError, match="frames must be 1 or more"):
        next(reader.blocks(0))


@pytest.mark.parametrize(("total", "refused"), [(0, False), (2**36 - 1, True)])
def test_flac_of_unknown_or_impossible_length(tmp_path: Path, voice: Voice, total: int, refused: bool) -> None:
    path = store(tmp_path / "f.flac", voice(50_000, 48_000))
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | total >> 32
    data[22:26] = struct.pack(">I", total & 0xFFFFFFFF)
    path.write_bytes(data)
    with audio.Reader(path) as reader:
        assert reader.info.frames == 50_000
        if refused:
            with pytest.raises(AudioError, match="declares more than the file can hold"):
                next(reader.blocks())
        else:
            assert sum(block.shape[1] for block in reader.blocks()) == 50_000
    with audio.Reader(path, salvage=True) as reader:
        assert sum(block.shape[1] for block in reader.blocks()) == 50_000


TAGS = {"title": "Tïtle 絆", "artist": "A", "album": "Al", "comment": "c", "date": "2020", "genre": "Jazz", "tracknumber": "3",
        "copyright": "c", "license": "MIT", "software": "bwe"}  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "lost"),
    [
        ("wav", {"license"}),
        ("rf64", {"license"}),
        ("flac", set()),
        ("ogg", set()),
        ("opus", set()),
        ("caf", set()),
        ("aiff", {"album", "date", "genre", "tracknumber", "license"}),
        ("mp3", {"copyright", "license", "software"}),
        ("w64", set(TAGS)),
        ("au", set(TAGS)),
    ],
)
def test_tags_are_kept_where_the_container_has_them(tmp_path: Path, voice: Voice, suffix: str, lost: set[str]) -> None:
    path = tmp_path / f"t.{suffix}"
    with audio.Writer(path, 48_000, 1, tags={**TAGS, "title": TAGS["title"] + "\0\n", "unknown": "x"}) as writer:
        writer.write(voice(5_000, 48_000))
    tags = audio.read(path)[1].tags
    assert set(tags) == set(TAGS) - lost
    assert {name: text for name, text in tags.items() if name != "software"} == {
        name: text for name, text in TAGS.items() if name not in lost | {"software"}
    }
    assert tags.get("software", "bwe").startswith("bwe")


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        ("wav", "PCM_U8"),
        ("wav", "PCM_16"),
        ("wav", "PCM_24"),
        ("wav", "FLOAT"),
        ("flac", "PCM_16"),
        ("mp3", None),
        ("ogg", None),
        ("opus", None),
    ],
)
def test_the_result_does_not_depend_on_the_blocks(tmp_path: Path, voice: Voice, suffix: str, subtype: str | None) -> None:
    x = voice(43_001, 16_000, 2)
    x[:, 13_000:20_000] = 0
    results = []
    for name, sizes in (("a", [43_001]), ("b", [1, 1_023, 1_025, 16_000, 200]), ("c", [997]), ("d", [15_360, 10])):
        path = tmp_path / f"{name}.{suffix}"
        with audio.Writer(path, 16_000, 2, subtype, frames=43_001) as writer:
            at = turn = 0
            while at < x.shape[1]:
                writer.write(x[:, at : at + sizes[turn % len(sizes)]])
                at, turn = at + sizes[turn % len(sizes)], turn + 1
        assert writer.peak == np.abs(x).max()
        results.append((writer.clipped, audio.read(path)[0]))
        if suffix != "ogg" and suffix != "opus":  # libsndfile numbers Ogg streams at random
            assert path.read_bytes() == (tmp_path / f"a.{suffix}").read_bytes()
    assert all(clipped == results[0][0] and np.array_equal(y, results[0][1]) for clipped, y in results)
    assert results[0][0] == (0 if subtype == "FLOAT" else int((np.abs(x) > 1).sum()))


def test_the_same_floats_are_the_same_file(tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "f.wav", voice(100, 48_000), 48_000, "FLOAT")
    assert b"PEAK" not in (tmp_path / "f.wav").read_bytes(), "that chunk holds the time of day"


@pytest.mark.slow
def test_ten_minutes_of_ogg(tmp_path: Path, voice: Voice) -> None:
    x = np.tile(voice(80_000, 8_000), (1, 10))
    with audio.Writer(tmp_path / "long.ogg", 8_000, 1) as writer:
        for _ in range(6):
            writer.write(x)
    with audio.Reader(tmp_path / "long.ogg") as reader:
        assert reader.info.frames == sum(block.shape[1] for block in reader.blocks()) == 4_800_000


def test_wav_becomes_rf64_where_it_must(tmp_path: Path, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    x = voice(100_000, 48_000)
    assert sf.info(stored(tmp_path / "small.wav", x, None)).format.startswith("WAV")
    monkeypatch.setattr(audio, "_MAX_RIFF_BYTES", 100_000)
    for frames, magic in ((100_000, b"RF64"), (None, b"RIFF")):  # libsndfile turns one that stays below 4 GiB back into WAV
        path = stored(tmp_path / f"{frames}.wav", x, frames)
        assert path.read_bytes()[:4] == magic
        assert np.abs(audio.read(path)[0] - x).max() < 2e-4
    with pytest.raises(OutputError, match=r"WAV cannot hold more than 4 GiB; write \.w64"):
        stored(tmp_path / "more.wav", x, 1_000)
    with pytest.raises(OutputError, match=r"AIFF cannot hold 0\.2 MB; write \.wav"):
        stored(tmp_path / "long.aiff", x, 100_000)
    assert not list(tmp_path.glob("more*")) + list(tmp_path.glob(".bwe*"))


def stored(path: Path, x: np.ndarray, frames: int | None) -> Path:
    subtype = None if path.suffix == ".ogg" else "PCM_16"
    with audio.Writer(path, 48_000, len(x), subtype, frames=frames) as writer:
        writer.write(x)
    return path


def test_rf64_decision_at_its_real_size(monkeypatch: pytest.MonkeyPatch) -> None:
    hour = 3600 * 48_000
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 50))
        for frames, chosen in ((6 * hour, "WAV"), (7 * hour, "RF64"), (None, "RF64")):
            assert audio.Writer("x.wav", 48_000, 2, "PCM_16", frames=frames)._format == chosen
    with pytest.raises(OutputError, match="no space left in"):
        audio.Writer("x.flac", 48_000, 2, "PCM_16", frames=10**14)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_in_the_middle_leaves_nothing(tmp_path: Path, voice: Voice, error: type[BaseException]) -> None:
    def fail() -> Iterator[None]:
        with audio.Writer(tmp_path / "x.flac", 48_000, 1) as writer:
            writer.write(voice(100_000, 48_000))
            assert len(list(tmp_path.iterdir())) == 1
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_appeared_meanwhile_is_not_overwritten(tmp_path: Path, voice: Voice) -> None:
    writer = audio.Writer(tmp_path / "x.wav", 48_000, 1)
    writer.__enter__()
    writer.write(voice(100, 48_000))
    (tmp_path / "x.wav").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        writer.__exit__(None, None, None)
    assert (tmp_path / "x.wav").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_writer_refuses_misuse(tmp_path: Path, voice: Voice) -> None:
    writer = audio.Writer(tmp_path / "x.wav", 48_000, 2)
    with pytest.raises(OutputError, match="use it in a with statement"):
        writer.write(voice(10, 48_000, 2))
    with writer, pytest.raises(AudioError, match=r"shape \(C, n\) with C = 2"):
        writer.write(voice(10, 48_000))
    with pytest.raises(OutputError, match="cannot hold a signal of 0 samples"), audio.Writer(tmp_path / "x.mp3", 48_000, 1):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.wav"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        x = np.random.default_rng(0).uniform(-1, 1, (2, 400_000)).astype(np.float32)
        for suffix in ("wav", "flac", "ogg"):
            with pytest.raises(OutputError, match=r"no space left in .*small \(needs \d\.\d MB, 1\.0 MB free\)"):
                stored(folder / f"x.{suffix}", np.tile(x, (1, 4)), None)
            assert list(folder.iterdir()) == []
        with pytest.raises(OutputError, match=r"no space left in .*small \(needs 1\.6 MB, 1\.0 MB free\)"):
            audio.write(folder / "x.wav", x, 48_000)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Pipe(io.RawIOBase):
    """Takes a few bytes at a time and cannot seek, as a pipe may."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self.data += bytes(data[:10_007])
        return min(len(data), 10_007)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(("subtype", "step"), [("PCM_16", 3e-5), ("PCM_24", 1e-7), ("FLOAT", 1e-12)])
def test_a_pipe_gets_a_wav_that_others_read(tmp_path: Path, voice: Voice, subtype: str, step: float, channels: int) -> None:
    x = voice(50_000, 48_000, channels)
    pipe = Pipe()
    with audio.Writer(pipe, 48_000, channels, subtype, tags={"title": "odd"}) as writer:  # type: ignore[arg-type]
        writer.write(x)
    path = tmp_path / "piped.wav"
    path.write_bytes(pipe.data)
    for y in (audio.read(path)[0], sf.read(path, dtype="float32", always_2d=True)[0].T):
        assert y.shape == x.shape
        assert np.abs(y - np.clip(x, -1, 1)).max() <= 2 * step
    info = audio.read(path)[1]
    assert (info.subtype, info.tags) == (subtype, {"title": "odd"})
    av = pytest.importorskip("av")
    with av.open(str(path), format="wav") as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 50_000
        assert container.streams.audio[0].codec_context.channels == channels


def test_a_pipe_that_breaks_is_one_sentence() -> None:
    read, write = os.pipe()
    os.close(read)
    with (
        os.fdopen(write, "wb", buffering=0) as pipe,
        pytest.raises(OutputError, match=r"<stream>: writing failed \(Broken pipe\)"),
        audio.Writer(pipe, 48_000, 1),
    ):
        pass
    with pytest.raises(OutputError, match="a stream takes PCM_16, PCM_24 or FLOAT samples, not VORBIS"):
        audio.Writer(io.BytesIO(), 48_000, 1, "VORBIS")


def test_a_pipe_that_would_have_to_wait_is_not_taken_to_have_everything(voice: Voice) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object) -> None:  # type: ignore[override]
            return None

    with (
        pytest.raises(OutputError, match=r"<stream>: writing failed \(it takes no more without waiting\)"),
        audio.Writer(Full(), 48_000, 1) as writer,  # type: ignore[arg-type]
    ):
        writer.write(voice(100, 48_000))


def test_sweep_takes_only_what_nobody_writes(tmp_path: Path) -> None:
    name, day = audio._temporary_name(), 86_400
    pid, machine = name.split("-")[1], name.split("-")[2].split(".")[0]
    other = "00000000" if machine != "00000000" else "11111111"
    kept = [name, name.replace(machine, other), ".bwe-x.tmp", "bwe.tmp", "song.wav"]
    gone = [f".bwe-{pid}-{machine}.1-{'a' * 12}.tmp", f".bwe-4194305-{machine}.5-{'b' * 12}.tmp"]
    old = f".bwe-1-{other}.7-{'c' * 12}.tmp"
    for each in (*kept, *gone, old):
        (tmp_path / each).write_bytes(b"")
    os.utime(tmp_path / old, (time.time() - 2 * day,) * 2)
    if not Path("/proc/self/stat").exists():
        kept, gone = kept + gone, []
    assert audio.sweep(tmp_path) == len(gone) + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    assert audio.sweep(tmp_path / "no such folder") == 0


def test_an_interrupt_inside_a_decoder_is_neither_lost_nor_damage(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.flac", 0.1 * np.random.default_rng(0).standard_normal((1, 400_000)).astype(np.float32), 48_000)
    stream = io.BytesIO((tmp_path / "a.flac").read_bytes())

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def read_for_ever(timer: threading.Timer) -> None:
        timer.start()
        with audio.Reader(stream) as reader:
            while True:
                for _ in reader.blocks(4_096):
                    pass

    before, terminate = signal.signal(signal.SIGINT, interrupt), signal.getsignal(signal.SIGTERM)
    rng = np.random.default_rng(1)
    try:
        for _ in range(40):
            timer = threading.Timer(rng.uniform(0, 0.01), signal.raise_signal, [signal.SIGINT])
            with pytest.raises(KeyboardInterrupt):
                read_for_ever(timer)
            assert signal.getsignal(signal.SIGINT) is interrupt
            assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGINT, before)
