"""Files in and out: every format, every bad input, and no half-written file."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from bwe import audio
from bwe.errors import AudioError, OutputError

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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>" * 40, r"not audio \(starts with '<!DOCTYPE html><'\)"),
        (b"hello, this is a text\nof two lines" * 30, r"not audio \(starts with 'hello, this is a'\)"),
        (bytes(range(200, 256)) * 50, "not audio"),
        (b"\x00", "not audio"),
        (b"\x80\x04\x95" + bytes(500), "not audio"),
        (b"\x00\x00\x00\x20ftypM4A " + bytes(500), r"MPEG-4 \(m4a, mp4\) is not supported; convert it to WAV or FLAC"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(500), "WMA .* is not supported"),
        (b"\xff\xf1\x50\x80" + bytes(500), "AAC is not supported"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "WebM is not supported"),
        (b"RIFF\x00\x01\x00\x00AVI LIST" + bytes(500), "AVI is not supported"),
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
    with pytest.raises(AudioError, match=r"truncated or damaged .* stops at 0:01\.\d") as caught:
        audio.read(cut)
    if file_format != "OGG":  # an Ogg file does not say at its beginning how long it is
        assert "the header says 0:03." in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_truncated_caf_is_refused(tmp_path: Path, voice: Voice) -> None:
    path = store(tmp_path / "cut.caf", voice(48_000, 48_000))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(AudioError, match="damaged or truncated CAF"):
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
    assert "truncated or damaged" in str(outcome(path))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("declared", [0, 0xFFFFFFFF, 0x7FFFF000])
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


def test_variable_bit_rate_mp3_without_a_length_is_not_read_short(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = (0.2 * rng.standard_normal((1, 200_000)) * (np.arange(200_000) > 100_000)).astype(np.float32)
    path = tmp_path / "vbr.mp3"
    with sf.SoundFile(path, "w", 48_000, 1, bitrate_mode="VARIABLE", compression_level=0.5) as file:
        file.write(x.T)
    assert audio.read(path)[0].shape == (1, 200_000)
    data = path.read_bytes()
    second_frame = data.index(data[:2], 4)
    path.write_bytes(data[second_frame:])  # the first frame only says how many follow
    result = outcome(path)
    assert "without a length header" in result if isinstance(result, str) else result >= 200_000


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


@pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.opus", "OPUS"), ("a.mp3", "MPEG_LAYER_III")])
def test_long_lossy_files_are_written_whole(tmp_path: Path, voice: Voice, name: str, subtype: str) -> None:
    x = np.tile(voice(240_000, 48_000), (2, 9))  # in one call, a minute crashes libsndfile's Vorbis encoder
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
    ]
    for name, signal, sr, subtype, said in cases:
        with pytest.raises(OutputError, match=said) as caught:
            audio.write(tmp_path / name, signal, sr, subtype)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(AudioError, match=r"NaN at 0\.0010 s in channel 1"):
        audio.write(tmp_path / "out.wav", np.where(np.arange(100) == 48, np.nan, x), 48_000)
    with pytest.raises(AudioError, match=r"shape \(C, T\)"):
        audio.write(tmp_path / "out.wav", x[0], 48_000)
    with pytest.raises(AudioError, match="float audio"):
        audio.write(tmp_path / "out.wav", np.zeros((1, 5), np.int16), 48_000)
    assert kept.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.wav", "there.wav"]


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


WRITER = """
import os, signal, sys, numpy as np
from bwe import audio, errors
if sys.argv[2] == 'limit':
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
x = np.random.default_rng(0).standard_normal((2, 9_000_000 if sys.argv[2] == 'signal' else 1_000_000)).astype('float32') * 0.1
print('ready', flush=True)
try:
    audio.write(sys.argv[1], x, 48_000, overwrite=True)
except errors.OutputError as error:
    print(error)
    sys.exit(4)
"""


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_disk_that_takes_no_more_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / f"big.{suffix}"), "limit"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert "writing failed" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [2, 9], ids=["ctrl-c", "kill"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, voice: Voice, number: int) -> None:
    path = store(tmp_path / "out.flac", voice(100, 48_000))
    before = path.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "signal"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not list(tmp_path.glob(".bwe-*.tmp")):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == -number
    assert path.read_bytes() == before
    if number == 2:
        assert [p.name for p in tmp_path.iterdir()] == ["out.flac"]


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
