"""What bytes say before they are decoded, and the containers that PyAV decodes."""

from __future__ import annotations

import contextlib
import io
import itertools
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import soundfile as sf

from bwe import audio, containers
from bwe.errors import AudioError

Voice = Callable[..., np.ndarray]


# suffix, FFmpeg's encoder and muxer, its sample format, and the delay in samples that the container cannot take back
FFMPEG = [
    ("m4a", "aac", "ipod", "fltp", 0),
    ("mp4", "aac", "mp4", "fltp", 0),
    ("3gp", "aac", "3gp", "fltp", 0),
    ("m4a", "alac", "ipod", "s16p", 0),
    ("mov", "pcm_s24le", "mov", "s32", 0),
    ("webm", "libopus", "webm", "flt", 0),
    ("mkv", "aac", "matroska", "fltp", 0),
    ("mka", "flac", "matroska", "s16", 0),
    ("avi", "pcm_u8", "avi", "u8", 0),
    ("flv", "aac", "flv", "fltp", 1024),
    ("aac", "aac", "adts", "fltp", 1024),
    ("ac3", "ac3", "ac3", "fltp", 256),
    ("oga", "flac", "ogg", "s16", 0),
    ("wv", "wavpack", "wv", "fltp", 0),
    ("tta", "tta", "tta", "s16", 0),
]


def encode(
    path: Path, x: np.ndarray, codec: str, muxer: str, sample_format: str, sr: int = 48_000, movflags: str = ""
) -> Path:
    """Write float32 ``(C, T)`` with FFmpeg."""
    av: Any = pytest.importorskip("av")
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(x)]
    scale, dtype = {"u8": (127, np.uint8), "s16": (32767, np.int16), "s32": (2**31 - 129, np.int32)}.get(
        sample_format.removesuffix("p"), (1, np.float32)
    )
    with av.open(str(path), "w", format=muxer, options={"movflags": movflags} if movflags else {}) as container:
        try:
            stream = container.add_stream(codec, rate=sr, layout=layout)
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this PyAV has no encoder {codec}")
        stream.bit_rate = 64_000 * len(x)
        stream.codec_context.format = sample_format
        if codec == "aac":  # the default search takes several times as long
            stream.codec_context.options = {"aac_coder": "fast"}
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        for start in range(0, x.shape[1], size):
            part = x[:, start : start + size] * scale
            part = (np.rint(part + 128 * (sample_format == "u8")) if scale > 1 else part).astype(dtype)
            part = part if sample_format.endswith("p") else part.T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=sample_format, layout=layout)
            frame.sample_rate, frame.pts = sr, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def lag(y: np.ndarray, x: np.ndarray) -> int:
    size = 1 << (max(len(x), len(y)) * 2 - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(y, size) * np.conj(np.fft.rfft(x, size)))
    best = int(np.argmax(product))
    return best if best < size // 2 else best - size


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "codec", "muxer", "sample_format", "delay"), FFMPEG)
def test_what_ffmpeg_wrote_comes_back_aligned(
    tmp_path: Path, voice: Voice, suffix: str, codec: str, muxer: str, sample_format: str, delay: int, channels: int
) -> None:
    x = voice(60_000, 48_000, channels) * 0.8
    x[:, 20_000] = 0.9
    path = encode(tmp_path / f"a.{suffix}", x, codec, muxer, sample_format)
    y, info = audio.read(path)
    assert (info.sample_rate, info.channels, info.frames) == (48_000, channels, y.shape[1])
    assert y.dtype == np.float32
    assert 60_000 <= info.frames <= 60_000 + 2 * 2048
    assert lag(y[0], x[0]) == delay
    error = y[:, delay : delay + 60_000] - x[:, : y.shape[1] - delay]
    lossless = {"pcm_s24le": 1e-6, "alac": 5e-5, "flac": 5e-5, "tta": 5e-5, "pcm_u8": 0.01, "wavpack": 1e-6}.get(codec)
    if lossless:
        assert np.abs(error).max() < lossless
    else:
        assert np.sqrt(np.mean(error**2) / np.mean(x**2)) < 0.5
    subtype = {"pcm_s24le": "PCM_24", "alac": "ALAC_16", "flac": "PCM_16", "pcm_u8": "PCM_U8", "wavpack": "FLOAT"}.get(codec)
    if subtype:
        assert info.subtype == subtype


def test_telephone_recordings(tmp_path: Path, voice: Voice) -> None:
    x = voice(16_000, 8_000)
    y, info = audio.read(encode(tmp_path / "a.amr", x, "libopencore_amrnb", "amr", "s16", 8_000))
    assert (info.sample_rate, info.format) == (8_000, "AMR")
    assert abs(y.shape[1] - 16_000) <= 320


def test_windows_media(tmp_path: Path, voice: Voice) -> None:
    x = voice(60_000, 48_000, 2)
    y, info = audio.read(encode(tmp_path / "a.wma", x, "wmav2", "asf", "fltp"))
    assert (info.sample_rate, info.channels, info.subtype) == (48_000, 2, "WMAV2")
    # FFmpeg's decoder takes away the two blocks of delay of Microsoft's encoder, FFmpeg's encoder adds one.
    assert lag(y[0], x[0]) == -2048
    assert abs(y.shape[1] - 60_000) < 2048


def test_six_channels_keep_their_order(tmp_path: Path) -> None:
    t = np.arange(48_000) / 48_000
    x = np.stack([0.3 * np.sin(2 * np.pi * 300 * (c + 1) * t) for c in range(6)]).astype(np.float32)
    y = audio.read(encode(tmp_path / "a.mov", x, "pcm_s16le", "mov", "s16"))[0]
    assert np.abs(y - x).max() < 1e-4


def test_blocks_of_ffmpeg_are_the_file(tmp_path: Path, voice: Voice) -> None:
    path = encode(tmp_path / "a.m4a", voice(60_000, 48_000, 2), "aac", "ipod", "fltp")
    x, info = audio.read(path)
    for source in (path, io.BytesIO(path.read_bytes())):
        with audio.Reader(source) as reader:
            assert reader.info.frames == info.frames
            for frames in (1_000, 1 << 20):
                assert np.array_equal(np.concatenate(list(reader.blocks(frames)), axis=1), x)


@pytest.mark.parametrize(
    ("suffix", "codec", "muxer", "sample_format"),
    [*(f[:4] for f in FFMPEG if f[0] not in ("tta", "wv")), ("wma", "wmav2", "asf", "fltp")],
)
def test_cut_files_are_refused_or_salvaged(
    tmp_path: Path, voice: Voice, suffix: str, codec: str, muxer: str, sample_format: str
) -> None:
    movflags = "faststart" if muxer in ("ipod", "mp4", "mov", "3gp") else ""
    path = encode(tmp_path / f"a.{suffix}", voice(96_000, 48_000), codec, muxer, sample_format, movflags=movflags)
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * 0.6)])
    with audio.Reader(path, salvage=True) as reader:
        kept = sum(block.shape[1] for block in reader.blocks())
        assert kept == reader.info.frames
        assert 0.3 * 96_000 < kept < 0.9 * 96_000
    if suffix in ("aac", "ac3"):  # without a length: a cut between two frames cannot be seen
        return
    assert "kept the first 0:0" in reader.warnings[0]
    with audio.Reader(path) as reader, pytest.raises(AudioError, match=r"truncated or damaged .* stops at 0:0[01]\.\d"):
        next(reader.blocks())


def test_an_index_at_the_end_that_is_missing(tmp_path: Path, voice: Voice) -> None:
    path = encode(tmp_path / "a.m4a", voice(60_000, 48_000), "aac", "ipod", "fltp")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(AudioError, match=r"a\.m4a: damaged or truncated MPEG-4 \(m4a, mp4\) file"):
        audio.Reader(path)


def test_tags_of_ffmpeg(tmp_path: Path, voice: Voice) -> None:
    av: Any = pytest.importorskip("av")
    path = encode(tmp_path / "a.m4a", voice(9_000, 48_000), "aac", "ipod", "fltp")
    tagged = tmp_path / "b.m4a"
    with av.open(str(path)) as source, av.open(str(tagged), "w", format="ipod") as target:
        target.metadata.update({"title": "Tïtle", "artist": "A", "track": "3"})
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    tags = audio.read(tagged)[1].tags
    assert (tags["title"], tags["artist"], tags["tracknumber"]) == ("Tïtle", "A", "3")


def test_without_pyav_it_says_what_to_install(tmp_path: Path, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.m4a", voice(9_000, 48_000), "aac", "ipod", "fltp")
    flac = encode(tmp_path / "a.oga", voice(9_000, 48_000), "flac", "ogg", "s16")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"a\.m4a: MPEG-4 \(m4a, mp4\) needs PyAV \(pip install 'bwe\[formats\]'\)"):
        audio.Reader(path)
    assert audio.read(flac)[0].shape == (1, 9_000)


@pytest.mark.parametrize("damage", ["bit", "page", "zeros", "cut"])
@pytest.mark.parametrize("muxer", ["ogg", "matroska"])
def test_damaged_flac_in_another_container(tmp_path: Path, voice: Voice, muxer: str, damage: str) -> None:
    path = encode(tmp_path / "a.bin", voice(192_000, 48_000, 2)[:, :96_000], "flac", muxer, "s16")
    x, _ = audio.read(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "bit":
        data[middle] ^= 1
    elif damage == "zeros":
        data[middle : middle + 500] = bytes(500)
    elif damage == "cut":
        del data[middle:]
    elif muxer == "ogg":
        page = data.index(b"OggS", middle)
        del data[page : data.index(b"OggS", page + 4)]
    else:
        del data[middle : middle + 5_000]
    path.write_bytes(data)
    with audio.Reader(path) as reader, pytest.raises(AudioError, match=r"truncated or damaged .* the sound stops at 0:0"):
        list(reader.blocks())
    with audio.Reader(path, salvage=True) as reader:
        y = np.concatenate(list(reader.blocks()), axis=1)
    assert 0.3 * 96_000 < y.shape[1] < 0.8 * 96_000
    assert np.array_equal(y, x[:, : y.shape[1]])


@pytest.mark.parametrize(("sr", "channels"), [(48_000, 2), (16_000, 1)])
def test_mp3_inside_wav(tmp_path: Path, voice: Voice, capfd: pytest.CaptureFixture[str], sr: int, channels: int) -> None:
    x = voice(2 * sr, sr, channels)
    path = encode(tmp_path / "a.wav", x, "libmp3lame", "wav", "fltp", sr)
    y, info = audio.read(path)
    assert (info.format, info.subtype, info.sample_rate, info.channels) == ("WAV", "MPEG_LAYER_III", sr, channels)
    assert info.tags["software"].startswith("Lavf")
    assert 0 <= y.shape[1] - x.shape[1] <= 3 * 1152
    assert 0 <= lag(y[0], x[0]) <= 1105  # the delay of encoder and decoder, which a WAV cannot say
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with audio.Reader(path) as reader, pytest.raises(AudioError, match=r"truncated or damaged WAV .* stops at 0:0[01]\.\d"):
        next(reader.blocks())
    with audio.Reader(path, salvage=True) as reader:
        assert 0.4 * x.shape[1] < sum(block.shape[1] for block in reader.blocks()) < 0.6 * x.shape[1]
    data[len(data) // 2 : len(data) // 2 + 900] = b"\x55" * 900
    path.write_bytes(data)
    with contextlib.suppress(AudioError):
        audio.read(path)
    path.write_bytes(data.replace(b"\xff", b"\0"))
    with pytest.raises(AudioError, match="damaged or truncated WAV"):
        audio.read(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("at", "fill"), [(-1, b"\xff"), (-2, b"\x7f\xff"), (-4, b"\xff\xff\xff\xff")])
def test_a_damaged_packet_table_of_alac_in_caf(tmp_path: Path, voice: Voice, at: int, fill: bytes) -> None:
    path = tmp_path / "a.caf"
    sf.write(path, voice(10_000, 16_000).T, 16_000, "ALAC_16")
    data = bytearray(path.read_bytes())
    end = data.index(b"data")  # the table is the chunk before
    data[end + at : end + at + len(fill)] = fill
    path.write_bytes(data)
    with audio.Reader(path) as reader, pytest.raises(AudioError, match=r"CAF file \(its packet table is damaged\)"):
        next(reader.blocks())
    # What C has printed reaches a pipe only when the process ends.
    code = (
        "import sys; from bwe.audio import Reader; print(sum(b.shape[1] for b in Reader(sys.argv[1], salvage=True).blocks()))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) <= 10_000
    assert done.stderr == ""


def test_a_packet_table_behind_the_data(tmp_path: Path, voice: Voice) -> None:
    path = tmp_path / "a.caf"
    sf.write(path, voice(10_000, 16_000).T, 16_000, "ALAC_16")
    x, _ = audio.read(path)
    data = path.read_bytes()
    table, samples = data.index(b"pakt"), data.index(b"data")
    path.write_bytes(data[:table] + data[samples:] + data[table:samples])
    assert np.array_equal(audio.read(path)[0], x)


def test_a_file_that_sends_its_reader_far_away_is_refused_in_silence(
    tmp_path: Path, voice: Voice, capfd: pytest.CaptureFixture[str]
) -> None:
    path = encode(tmp_path / "a.wma", voice(9_000, 48_000), "wmav2", "asf", "fltp")
    data = bytearray(path.read_bytes())
    data[39:47] = b"\xff" * 8  # among them the size of the first object in the header
    path.write_bytes(data)
    with pytest.raises(AudioError, match="damaged or truncated WMA"):
        audio.read(path)
    assert capfd.readouterr() == ("", "")


def test_a_film_without_sound(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    path = tmp_path / "silent.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        for packet in stream.encode(av.VideoFrame(32, 32, "yuv420p")) + stream.encode(None):
            container.mux(packet)
    with pytest.raises(AudioError, match="file without an audio track"):
        audio.Reader(path)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{file}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{file}'\n",
        "[playlist]\nFile1={file}\nNumberOfEntries=1\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        "<?xml version='1.0'?><MPD><BaseURL>{file}</BaseURL></MPD>",
        "concat:{file}|{file}",
        "{file}",
    ],
)
@pytest.mark.parametrize("suffix", ["m3u8", "wav", "m4a", "aac"])
def test_lists_of_other_files_are_not_audio(tmp_path: Path, voice: Voice, text: str, suffix: str) -> None:
    sf.write(tmp_path / "secret.wav", voice(1_000, 48_000).T, 48_000)
    path = tmp_path / f"list.{suffix}"
    path.write_text(text.format(file=tmp_path / "secret.wav"), encoding="ascii")
    with pytest.raises(AudioError, match=r"not audio \(starts with "):
        audio.Reader(path)


def pages(data: bytes) -> list[bytes]:
    starts = [0, *(stop for _, _, stop in containers._ogg_pages(io.BytesIO(data)))]
    return [data[start:stop] for start, stop in itertools.pairwise(starts)]


@pytest.mark.parametrize("damage", ["bit", "gone", "swapped", "mark"])
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_a_page_of_ogg_that_is_damaged_or_missing(
    tmp_path: Path, voice: Voice, suffix: str, chained: bool, damage: str
) -> None:
    if chained:
        pytest.importorskip("av")
    path = tmp_path / f"a.{suffix}"
    audio.write(path, voice(192_000, 48_000, 2), 48_000)
    whole = path.read_bytes()
    parts = pages(whole)
    assert b"".join(parts) == whole
    middle = len(parts) // 2
    page = bytearray(parts[middle])
    if damage == "gone":
        page.clear()
    elif damage == "swapped":
        parts[middle + 1 : middle + 1], page[:] = [bytes(page)], parts.pop(middle + 1)
    else:
        page[0 if damage == "mark" else len(page) // 2] ^= 1
    parts[middle] = bytes(page)
    path.write_bytes(b"".join(parts) + (whole if chained else b""))
    with audio.Reader(path) as reader, pytest.raises(AudioError, match=r"a page is missing or damaged\)") as caught:
        next(reader.blocks())
    stops = float(str(caught.value).split("stops at 0:0")[1].split(";")[0])
    before = audio.read(_ended(tmp_path / f"before.{suffix}", parts[:middle]))[1].seconds
    assert stops == pytest.approx(before, abs=0.15)
    with audio.Reader(path, salvage=True) as reader:
        kept = sum(block.shape[1] for block in reader.blocks()) / 48_000
    assert before + 0.1 < kept < (8.01 if chained else 4.01)
    assert f"): kept {audio.clock(kept, 1)}" in reader.warnings[0]


def _ended(path: Path, parts: list[bytes]) -> Path:
    """Pages of an Ogg file, the last of them made its end."""
    last = bytearray(parts[-1])
    last[5] |= 4
    last[22:26] = bytes(4)
    crc = 0
    for byte in last:  # RFC 3533, bit by bit
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc >> 31 else 0)
    last[22:26] = struct.pack("<I", crc)
    path.write_bytes(b"".join(parts[:-1]) + last)
    return path


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_a_damaged_first_page_of_sound(tmp_path: Path, voice: Voice, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    audio.write(path, voice(144_000, 48_000), 48_000)
    parts = pages(path.read_bytes())
    parts[2] = parts[2][:-5] + bytes(5)
    path.write_bytes(b"".join(parts))
    with pytest.raises(AudioError, match=r"damaged .* or keep what there is \(--salvage\)"):
        audio.read(path)
    with audio.Reader(path, salvage=True) as reader:
        assert 1.9 < reader.info.seconds < 3
        assert "a page is missing or damaged" in reader.warnings[0]


def test_ogg_whose_first_stream_has_no_end(tmp_path: Path, voice: Voice) -> None:
    pytest.importorskip("av")
    audio.write(tmp_path / "a.ogg", voice(96_000, 48_000), 48_000)
    whole = (tmp_path / "a.ogg").read_bytes()
    (tmp_path / "b.ogg").write_bytes(b"".join(pages(whole)[:-1]) + whole)
    with pytest.raises(AudioError, match=r"chained Ogg file \(no end-of-stream page\)"):
        audio.read(tmp_path / "b.ogg")


def test_bytes_behind_the_last_page_of_ogg_are_no_damage(tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "a.ogg", voice(9_000, 48_000), 48_000)
    with (tmp_path / "a.ogg").open("ab") as stream:
        stream.write(b"TAG" + bytes(125))
    assert audio.read(tmp_path / "a.ogg")[0].shape == (1, 9_000)


@pytest.mark.parametrize("second", ["same", "other"])
def test_ogg_streams_one_after_another_are_read_to_the_end(tmp_path: Path, voice: Voice, second: str) -> None:
    pytest.importorskip("av")
    for name, frames in (("same", 48_000), ("other", 90_000)):
        audio.write(tmp_path / f"{name}.ogg", voice(frames, 48_000), 48_000)
    path = tmp_path / "chained.ogg"
    path.write_bytes((tmp_path / "same.ogg").read_bytes() + (tmp_path / f"{second}.ogg").read_bytes())
    x, info = audio.read(path)
    total = 48_000 + audio.read(tmp_path / f"{second}.ogg")[1].frames
    assert info.format == "chained Ogg"
    assert abs(x.shape[1] - total) <= 512
    assert np.allclose(x[:, :47_000], audio.read(tmp_path / "same.ogg")[0][:, :47_000], atol=1e-4)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"RIFF\0\0\0\0WAVE", "WAV"),
        (b"RIFF\0\0\0\0AVI ", "AVI"),
        (b"RIFF\0\0\0\0WEBP", None),
        (b"\0\0\0\x20ftypM4A ", "MPEG-4 (m4a, mp4)"),
        (b"\xff\xf1\x50\x80", "AAC"),
        (b"\xff\xfb\x90\x00", "MP3"),
        (b"\x0b\x77\0\0\0\x80", "AC-3"),
        (b"ID3\x04\0\0\0\0\0\x02..\xff\xf1\x50\x80", "AAC"),
        (b"ID3\x04\0\0\0\0\0\x02..fLaC", "FLAC"),
        (b"ID3\x04\0\0\0\0\0\x02..", "MP3"),
        (b"#EXTM3U", None),
        (b"", None),
    ],
)
def test_sniff(head: bytes, name: str | None) -> None:
    kind = containers.sniff(io.BytesIO(head))
    assert (kind.name if kind else None) == name


@pytest.mark.parametrize(
    ("header", "size", "samples"),
    [
        ("fffb9000", 417, 1152),  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz
        ("fffb9200", 418, 1152),
        ("fff38410", 192, 576),  # MPEG-2 layer III, 64 kbit/s, 24 kHz
        ("ffe31800", 72, 576),  # MPEG-2.5 layer III, 8 kbit/s, 8 kHz
        ("fffda400", 576, 1152),  # MPEG-1 layer II, 192 kbit/s, 48 kHz
        ("fff58400", 384, 1152),  # MPEG-2 layer II, 64 kbit/s, 24 kHz
        ("ffffc200", 420, 384),  # MPEG-1 layer I, 384 kbit/s, 44.1 kHz, padded
    ],
)
def test_a_second_frame_tells_an_mpeg_stream_from_noise(header: str, size: int, samples: int) -> None:
    first = bytes.fromhex(header)
    assert containers._mpeg_frame(first)[1:] == (size, samples)
    frame = first + bytes(size - 4)
    assert containers.sniff(io.BytesIO(frame * 2)) is containers.MP3
    assert containers.sniff(io.BytesIO(frame)) is containers.MP3
    assert containers.sniff(io.BytesIO(b"ID3\x04\0\0\0\0\0\x02.." + frame * 2)) is containers.MP3
    assert containers.sniff(io.BytesIO(frame + b"\0" + frame)) is None
    assert containers.sniff(io.BytesIO(frame + b"\0" + frame * 2)) is containers.MP3
    other = bytes([first[0], first[1], first[2] ^ 0x0C if first[2] & 0x0C == 4 else first[2] ^ 0x04, first[3]])
    assert containers.sniff(io.BytesIO(frame + other + bytes(5_000))) is None


def test_spliced_reads_like_its_parts_joined() -> None:
    rng = np.random.default_rng(0)
    below = rng.bytes(5_000)
    parts: list[containers.Part] = [b"head", (10, 2_000), b"", (4_000, 4_000), b"middle" * 50, (3_000, 5_000)]
    whole = b"".join(part if isinstance(part, bytes) else below[slice(*part)] for part in parts)
    stream = io.BytesIO(below)
    spliced = containers.Spliced(stream, parts)
    assert spliced.read() == whole
    for _ in range(200):
        at, count = int(rng.integers(len(whole) + 50)), int(rng.integers(3_000))
        stream.seek(int(rng.integers(5_000)))
        spliced.seek(at)
        assert spliced.read(count) == whole[at : at + count]
    for whence in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END, 0x10000):
        assert spliced.seek(1 << 62, whence) >= 1 << 62
        assert spliced.read(1) == b""
        assert spliced.seek(-(1 << 63), whence) == 0
    assert spliced.seek(-3, io.SEEK_END) == len(whole) - 3
    stream.close()
    assert spliced.read(2) == b""
    assert isinstance(spliced.error, ValueError)


def sparse(path: Path, head: bytes, size: int, tail: bytes) -> Path:
    """A file of ``size`` bytes that takes hardly any."""
    with path.open("wb") as stream:
        stream.write(head)
        stream.seek(size - len(tail))
        stream.write(tail)
    return path


@pytest.mark.parametrize("declared", [0xFFFFFFFF, 0, (9 << 29) % (1 << 32)])
def test_wav_beyond_4_gib_has_all_its_samples(tmp_path: Path, declared: int) -> None:
    data = 9 << 29
    form = struct.pack("<HHIIHH", 1, 2, 48_000, 192_000, 4, 16)
    head = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", declared)
    path = sparse(tmp_path / "big.wav", head, len(head) + data, b"\0\x40" * 2)
    with path.open("rb") as stream:
        layout = containers.layout(stream, containers.Container("WAV"), path.stat().st_size)
        assert layout is not None
        assert (layout.declared, layout.available) == (data, data)
        with sf.SoundFile(containers.Spliced(stream, layout.parts)) as file:
            file.seek(-1, io.SEEK_END)
            assert file.read(2).tolist() == [[0.5, 0.5]]
    with audio.Reader(path) as reader:
        assert reader.info.frames == data // 4


def test_wav_above_2_gib_that_was_cut_below_it(tmp_path: Path) -> None:
    form = struct.pack("<HHIIHH", 1, 2, 48_000, 192_000, 4, 16)
    head = b"RIFF\x24\0\0\xa0WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", 0xA0000000)
    path = sparse(tmp_path / "cut.wav", head, 1_000_000, b"\0")
    with audio.Reader(path) as reader, pytest.raises(AudioError, match=r"the file ends before .* stops at 0:05\.2"):
        next(reader.blocks())


def unfilled(data: bytearray) -> bytearray:
    """Sizes as they are in a file whose recorder was killed."""
    if data[:4] == b"RF64":
        at = data.index(b"ds64") + 8
        data[at : at + 24] = bytes(24)
    elif data[:4] == b".snd":
        data[8:12] = bytes(4)
    elif data[:4] == b"FORM":
        frames, size = data.index(b"COMM") + 10, data.index(b"SSND") + 4
        data[frames : frames + 4], data[size : size + 4] = bytes(4), struct.pack(">I", 8)
    else:
        at = data.index(b"data") + 4
        data[at : at + 8] = struct.pack(">q", 4)
    return data


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("suffix", ["rf64", "au", "aiff", "caf"])
def test_what_a_killed_recorder_left_is_read_whole(tmp_path: Path, voice: Voice, suffix: str, subtype: str) -> None:
    path = tmp_path / f"a.{suffix}"
    sf.write(path, voice(5_000, 48_000, 2).T, 48_000, subtype)
    x, info = audio.read(path)
    path.write_bytes(unfilled(bytearray(path.read_bytes())))
    y, again = audio.read(path)
    assert np.array_equal(x, y)
    assert again == info


@pytest.mark.parametrize("suffix", ["rf64", "au", "aiff", "caf"])
def test_an_empty_file_stays_empty(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    sf.write(path, np.zeros((0, 2)), 48_000, "PCM_16")
    tails = {
        "rf64": b"LIST" + struct.pack("<I", 10) + b"INFOabcdef",
        "aiff": b"ANNO" + struct.pack(">I", 4) + b"note",
        "caf": b"info" + struct.pack(">q", 4) + bytes(4),
    }
    path.write_bytes(path.read_bytes() + tails.get(suffix, b""))
    assert audio.read(path)[0].shape == (2, 0)


def test_a_cut_nist_file_is_refused(tmp_path: Path, voice: Voice) -> None:
    path = tmp_path / "a.nist"
    sf.write(path, voice(96_000, 48_000, 2).T, 48_000, "PCM_16", format="NIST")
    assert audio.read(path)[1].frames == 96_000
    path.write_bytes(path.read_bytes()[:193_024])
    with pytest.raises(AudioError, match=r"NIST file \(.*the header says 0:02\.0, the sound stops at 0:01\.0"):
        audio.read(path)


def test_an_unknown_codec_is_no_damage(tmp_path: Path, voice: Voice) -> None:
    path = encode(tmp_path / "a.mka", voice(9_000, 48_000), "aac", "matroska", "fltp")
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_XYZ"))
    with pytest.raises(AudioError, match="Matroska or WebM file with a codec that is not supported; convert it"):
        audio.read(path)


def test_an_interrupt_inside_pyav_is_neither_lost_nor_damage(tmp_path: Path, voice: Voice) -> None:
    class Interrupting(io.BytesIO):
        reads, last = 0, 0

        def read(self, count: int | None = -1, /) -> bytes:
            self.reads += 1
            if self.reads == self.last:
                signal.raise_signal(signal.SIGINT)
            return super().read(count)

    def read_all(last: int) -> int:
        stream = Interrupting(path.read_bytes())
        stream.last = last
        with audio.Reader(stream) as reader:
            for _ in reader.blocks():
                pass
        return stream.reads

    path = encode(tmp_path / "a.m4a", voice(60_000, 48_000), "aac", "ipod", "fltp")
    for number in range(1, read_all(0) + 1):
        with pytest.raises(KeyboardInterrupt):
            read_all(number)


def chunk(name: bytes, size: int, code: str = "<I") -> bytes:
    return name + struct.pack(code, size)


FMT = chunk(b"fmt ", 16) + struct.pack("<HHIIHH", 1, 1, 48_000, 96_000, 2, 16)


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\0\0\0\0WAVE" + bytes(1_000_000),
        b"RIFF\0\0\0\0WAVE" + FMT + chunk(b"data", 0x7FFFFFFE) + bytes(50),
        b"RIFF\0\0\0\0WAVE" + FMT + chunk(b"LIST", 0xFFFFFFF0) + bytes(50),
        b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", 28) + struct.pack("<QQQI", 2**63, 2**63, 2**63, 0) + FMT
        + chunk(b"data", 0xFFFFFFFF) + bytes(50),
        b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", 28) + b"\xff" * 5,
        b"riff" + bytes(36) + (b"x" * 16 + struct.pack("<Q", 2**64 - 1)) * 2,
        b"FORM\0\0\0\0AIFF" + chunk(b"COMM", 0x7FFFFFFF, ">I"),
        b"caff\0\1\0\0" + b"desc" + struct.pack(">q", 2**62) + bytes(40),
        b"caff\0\1\0\0" + b"desc" + struct.pack(">q", -5) + bytes(40),
        b".snd" + b"\xff" * 30,
        b".snd" + b"\0\0\0\x18\xff\xff\xff\xfe" + b"\0\0\0\3\0\0\xbb\x80\0\0\0\1" + bytes(9),
        b"OggS" + b"\xff" * 400,
        b"\0\0\0\x01ftyp" + b"\xff" * 8 + bytes(90),
        b"\0\0\0\x09moov\0" * 1000,
        b"\x1a\x45\xdf\xa3" + b"\x01" + b"\xff" * 40,
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\0" * 30,
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + b"\xff" * 60,
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(90),
        b"\xff\xfb\x90\x00" + b"\xff" * 200_000,
        b"\xff\xfb\xf0\x00" + bytes(200_000),
    ],
)  # fmt: skip
def test_headers_that_lie_cost_neither_time_nor_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lie.bin"
    path.write_bytes(content)
    start = time.monotonic()
    for salvage in (False, True):
        with contextlib.suppress(AudioError), audio.Reader(path, salvage=salvage) as reader:
            assert sum(block.nbytes for block in reader.blocks()) < 64 * len(content) + 100_000
    assert time.monotonic() - start < 20


def walked(stream: BinaryIO) -> tuple[int, int]:
    """MP3 samples and the length of the spliced stream."""
    size = stream.seek(0, io.SEEK_END)
    samples, parts = containers.mp3_with_length(stream, size)
    return samples, len(containers.Spliced(stream, parts).read())


def test_mp3_frames_are_counted_through_garbage(tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "a.mp3", voice(96_000, 48_000, 2), 48_000)
    data = (tmp_path / "a.mp3").read_bytes()
    frames = -(-(96_000 + 1105) // 1152) + 1  # and the one that says how many follow
    samples, length = walked(io.BytesIO(data))
    assert samples == frames * 1152
    assert length > len(data)
    tag = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
    assert walked(io.BytesIO(tag + bytes(70_000) + data + b"TAG" + bytes(125)))[0] == samples
    assert containers.mp3_with_length(io.BytesIO(bytes(300_000)), 300_000) == (0, ())
    assert containers.mp3_has_length(io.BytesIO(tag + data))
    assert not containers.mp3_has_length(io.BytesIO(tag + data[data.index(data[:2], 4) :]))


@pytest.mark.parametrize(("sr", "channels"), [(48_000, 1), (44_100, 2), (22_050, 1), (24_000, 2), (8_000, 1)])
def test_the_length_that_is_added_to_an_mp3_is_understood(tmp_path: Path, voice: Voice, sr: int, channels: int) -> None:
    audio.write(tmp_path / "a.mp3", voice(2 * sr, sr, channels), sr)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "b.mp3").write_bytes(data[data.index(data[:2], 4) :])
    with audio.Reader(tmp_path / "b.mp3") as reader:
        assert reader.info.frames == sum(block.shape[1] for block in reader.blocks())
        assert 0 <= reader.info.frames - 2 * sr <= 3 * 1152
