"""Inputs that break audio tools, each given to the real command: what must come out, and what did.

``python tests/hard_inputs.py [--model tiny] [--keep DIR] [WORD ...]`` makes every file in a temporary folder, runs
``python -m bwe extend --force FILE -o OUT -m MODEL`` on it and prints a table; its exit status is 1 where a row went
wrong. Words choose the rows whose name, kind or container contains one of them. `ROWS` is also what
`test_hard_inputs.py` runs, and `CONTAINERS` are the valid files that `test_fuzz.py` damages.

A row goes wrong by a traceback, a signal, another exit code than the declared one, a sentence that is missing, is not one
line or does not say what it should, an output beside an error, an output that is not finite or has the wrong length, rate
or channels, and by any file left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import functools
import gc
import io
import os
import pickle
import re
import resource
import runpy
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also: a process whose OpenMP threads have run must not fork

import numpy as np
import soundfile as sf

RATE = 16_000
FRAMES = 12_000
OUT_RATE = 48_000
DAMAGED = "truncated|damaged"
TIMEOUT_S = 60


@dataclass(frozen=True)
class Finished:
    """How a command ended: exit code, or minus the signal's number; what it wrote to stdout and stderr."""

    code: int
    stdout: str
    stderr: str


def run_command(
    words: Sequence[str | os.PathLike[str]], folder: Path, stdin: bytes = b"", memory: int | None = None
) -> Finished:
    """Run ``python -m bwe WORDS`` in ``folder``, in a forked child with its own file descriptors.

    Without `warm_up` before, it starts as slowly as any command. ``memory`` limits what it may allocate, in bytes. A child
    that takes longer than a minute is ended by SIGALRM.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _be_the_command([os.fspath(word) for word in words], folder, (given.fileno(), out.fileno(), err.fileno()), memory)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "backslashreplace"))
    return Finished(code, *texts)


def warm_up(model: str | os.PathLike[str]) -> None:
    """Import, load and run once here what every command would have to import, load and run by itself."""
    import soundfile  # noqa: F401

    import bwe.cli
    import bwe.infer

    with contextlib.suppress(ImportError):
        import av  # noqa: F401
    bwe.infer.load(model)(sound(channels=2), RATE)
    gc.freeze()  # a collection in a child would copy every page of this process


def _be_the_command(words: list[str], folder: Path, descriptors: tuple[int, int, int], memory: int | None) -> NoReturn:
    code = 70
    try:
        faulthandler.disable()
        for number in (signal.SIGALRM, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(TIMEOUT_S)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            limit_memory(memory)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace")
        os.chdir(folder)
        sys.argv = ["bwe", *words]
        try:
            runpy.run_module("bwe", run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        with contextlib.suppress(Exception):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def limit_memory(more: int) -> None:
    """Let this process map at most ``more`` bytes beyond what it has mapped already."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.RLIM_INFINITY))


def sound(frames: int = FRAMES, sr: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Harmonics up to half the sample rate and a little noise: float32 ``(C, T)``."""
    t = np.arange(frames) / sr
    tone = sum((np.sin(2 * np.pi * 210 * k * t + k) / k for k in range(1, int(0.45 * sr / 210) + 1)), np.zeros(frames))
    noise = np.random.default_rng(seed).standard_normal((channels, frames))
    return (0.1 * tone + 0.01 * noise).astype(np.float32)


def by_sndfile(x: np.ndarray, sr: int, file_format: str, subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    stream.name = "x"
    with sf.SoundFile(stream, "w", sr, len(x), subtype, format=file_format) as file:
        for start in range(0, x.shape[1], sr):  # longer writes overflow the stack of libsndfile's Vorbis encoder
            file.write(x[:, start : start + sr].T)
    return stream.getvalue()


def by_ffmpeg(x: np.ndarray, sr: int, container: str, codec: str, video: bool = False, **options: str) -> bytes:
    import av

    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(x)]
    with (
        tempfile.NamedTemporaryFile() as made,  # by name: with faststart FFmpeg opens its output a second time
        av.open(made.name, "w", format=container, options=options) as file,
    ):
        track: Any = file.add_stream(codec, rate=sr, layout=layout)
        pictures: Any = None
        if video:
            pictures = file.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 16
            pictures.pix_fmt = "yuv420p"
        track.bit_rate = 64_000
        track.codec_context.open()
        context = track.codec_context
        resampler = av.AudioResampler(context.format, layout, sr, frame_size=context.frame_size or None)
        frame: Any = av.AudioFrame.from_ndarray(np.ascontiguousarray(x), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = sr, 0, Fraction(1, sr)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            file.mux(track.encode(piece))
        if video:
            for number in range(5):
                picture = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * number, np.uint8), "rgb24")
                file.mux(pictures.encode(picture.reformat(format="yuv420p")))
            file.mux(pictures.encode(None))
        file.close()
        return Path(made.name).read_bytes()


@dataclass(frozen=True)
class Container:
    """How a kind of file is made: its extension, who encodes it, and the sample rate it is made at."""

    suffix: str
    encode: Callable[..., bytes]
    arguments: tuple[str, ...]
    rate: int = RATE
    more_frames: int = 0  # what its codec may append, in input samples
    fewer_frames: int = 0  # what its encoder may lose

    def data(self, x: np.ndarray) -> bytes:
        return self.encode(x, self.rate, *self.arguments)


CONTAINERS = {
    "wav": Container("wav", by_sndfile, ("WAV", "PCM_16")),
    "wav-u8": Container("wav", by_sndfile, ("WAV", "PCM_U8")),
    "wav-24": Container("wav", by_sndfile, ("WAV", "PCM_24")),
    "wav-32": Container("wav", by_sndfile, ("WAV", "PCM_32")),
    "wav-float": Container("wav", by_sndfile, ("WAV", "FLOAT")),
    "wav-double": Container("wav", by_sndfile, ("WAV", "DOUBLE")),
    "wav-ulaw": Container("wav", by_sndfile, ("WAV", "ULAW")),
    "wav-alaw": Container("wav", by_sndfile, ("WAV", "ALAW")),
    "wav-ima": Container("wav", by_sndfile, ("WAV", "IMA_ADPCM"), more_frames=4096),
    "wav-ms": Container("wav", by_sndfile, ("WAV", "MS_ADPCM"), more_frames=4096),
    "wav-gsm": Container("wav", by_sndfile, ("WAV", "GSM610"), 8_000, 640),
    "wav-mp3": Container("wav", by_ffmpeg, ("wav", "libmp3lame"), more_frames=4608),
    "wavex": Container("wav", by_sndfile, ("WAVEX", "PCM_24")),
    "rf64": Container("rf64", by_sndfile, ("RF64", "PCM_16")),
    "w64": Container("w64", by_sndfile, ("W64", "PCM_16")),
    "aiff": Container("aiff", by_sndfile, ("AIFF", "PCM_16")),
    "aiff-s8": Container("aiff", by_sndfile, ("AIFF", "PCM_S8")),
    "aiff-float": Container("aiff", by_sndfile, ("AIFF", "FLOAT")),
    "caf": Container("caf", by_sndfile, ("CAF", "PCM_16")),
    "caf-alac": Container("caf", by_sndfile, ("CAF", "ALAC_16")),
    "au": Container("au", by_sndfile, ("AU", "PCM_16")),
    "au-g721": Container("au", by_sndfile, ("AU", "G721_32"), 8_000, 240),
    "flac": Container("flac", by_sndfile, ("FLAC", "PCM_16")),
    "flac-24": Container("flac", by_sndfile, ("FLAC", "PCM_24")),
    "ogg": Container("ogg", by_sndfile, ("OGG", "VORBIS")),
    "opus": Container("opus", by_sndfile, ("OGG", "OPUS")),
    "ogg-flac": Container("oga", by_ffmpeg, ("ogg", "flac"), more_frames=4608),
    "mp3": Container("mp3", by_sndfile, ("MP3", "MPEG_LAYER_III")),
    "mp2": Container("mp2", by_ffmpeg, ("mp2", "mp2"), more_frames=2304),
    "m4a": Container("m4a", by_ffmpeg, ("ipod", "aac"), more_frames=2048),
    "m4a-alac": Container("m4a", by_ffmpeg, ("ipod", "alac"), more_frames=4096),
    "aac": Container("aac", by_ffmpeg, ("adts", "aac"), more_frames=3072),
    "ac3": Container("ac3", by_ffmpeg, ("ac3", "ac3"), 48_000, 3072),
    "webm": Container("webm", by_ffmpeg, ("webm", "libopus"), 48_000, 2880),
    "mkv": Container("mkv", by_ffmpeg, ("matroska", "flac"), more_frames=4608),
    "wma": Container("wma", by_ffmpeg, ("asf", "wmav2"), 44_100, 4096, 2048),
    "amr": Container("amr", by_ffmpeg, ("amr", "libopencore_amrnb"), 8_000, 480),
    "3gp": Container("3gp", by_ffmpeg, ("3gp", "aac"), more_frames=3072),
    "flv": Container("flv", by_ffmpeg, ("flv", "aac"), 44_100, 3072),
    "avi": Container("avi", by_ffmpeg, ("avi", "pcm_s16le"), more_frames=1024),
}


@functools.cache
def valid(name: str, channels: int = 1, frames: int = FRAMES) -> bytes:
    """A valid file of `CONTAINERS`."""
    container = CONTAINERS[name]
    return container.data(sound(frames, container.rate, channels))


def chunk(name: bytes, body: bytes, order: str = "<", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return name + struct.pack(order + "I", size) + body + bytes(len(body) % 2)


def wav(
    *chunks: bytes,
    samples: bytes | None = None,
    tag: int = 1,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    block: int | None = None,
    data_length: int | None = None,
    riff_length: int | None = None,
) -> bytes:
    """A WAV built by hand: ``fmt``, then ``chunks``, then ``data``."""
    samples = valid_pcm() if samples is None else samples
    block = channels * bits // 8 if block is None else block
    head = chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, min(rate * block, 0xFFFFFFFF), block, bits))
    body = b"WAVE" + head + b"".join(chunks) + chunk(b"data", samples, length=data_length)
    return chunk(b"RIFF", body, length=riff_length)


@functools.cache
def valid_pcm() -> bytes:
    return np.rint(sound()[0] * 32767).astype("<i2").tobytes()


def replaced(data: bytes, old: bytes, new: bytes, offset: int = 0) -> bytes:
    """``data`` with the bytes ``offset`` behind the first ``old`` overwritten by ``new``."""
    at = data.index(old) + offset
    return data[:at] + new + data[at + len(new) :]


@dataclass(frozen=True)
class Audio:
    """An output of this many channels and of ``frames`` input samples at ``rate``, give or take what the codec appends."""

    frames: int = FRAMES
    rate: int = RATE
    channels: int = 1
    more_frames: int = 0
    fewer_frames: int = 0
    warning: str = ""
    check: Callable[[np.ndarray], bool] | None = None


@dataclass(frozen=True)
class Refused:
    """One sentence on stderr that matches ``said``, this exit code, and no output."""

    said: str
    code: int = 1
    names_file: bool = True


Make = Callable[[Path], "str | Path | Sequence[str | Path]"]


@dataclass(frozen=True)
class Row:
    """``make(folder)`` puts the input there and returns the words of the command that name it."""

    name: str
    kind: str
    container: str
    make: Make
    expected: tuple[Audio | Refused, ...]
    skip: Callable[[], str] = field(default=lambda: "")


ROWS: list[Row] = []


def place(
    name: str, kind: str, container: str, make: Make, *expected: Audio | Refused, skip: Callable[[], str] = lambda: ""
) -> None:
    """Add a row whose input ``make`` puts in a folder."""
    ROWS.append(Row(name, kind, container, make, expected, skip))


def add(
    name: str,
    kind: str,
    container: str,
    content: bytes | Callable[[], bytes],
    *expected: Audio | Refused,
    file: str = "",
    options: Sequence[str] = (),
) -> None:
    """Add a row whose input is a file of this content, given to the command after ``options``."""

    def make(folder: Path) -> Sequence[str | Path]:
        path = folder / (file or f"input.{CONTAINERS[container].suffix if container in CONTAINERS else container}")
        path.write_bytes(content if isinstance(content, bytes) else content())
        return [*options, path]

    place(name, kind, container, make, *expected)


def _no_file_at_all() -> None:
    def folder_itself(folder: Path) -> Path:
        (folder / "songs.wav").mkdir()
        return folder / "songs.wav"

    def fifo(folder: Path) -> Path:
        os.mkfifo(folder / "pipe.wav")
        return folder / "pipe.wav"

    def dangling(folder: Path) -> Path:
        (folder / "link.wav").symlink_to(folder / "gone.wav")
        return folder / "link.wav"

    def loop(folder: Path) -> Path:
        (folder / "loop.wav").symlink_to(folder / "loop.wav")
        return folder / "loop.wav"

    def link(folder: Path) -> Path:
        (folder / "real.wav").write_bytes(valid("wav"))
        (folder / "link.wav").symlink_to("real.wav")
        return folder / "link.wav"

    def unreadable(folder: Path) -> Path:
        path = folder / "secret.wav"
        path.write_bytes(valid("wav"))
        path.chmod(0)
        return path

    def root() -> str:
        return "root may read everything" if os.geteuid() == 0 else ""

    place("missing", "no file", "-", lambda folder: folder / "none.wav", Refused("no such file"))
    place("missing, in a missing folder", "no file", "-", lambda folder: folder / "a" / "none.wav", Refused("no such file"))
    place("empty name", "no file", "-", lambda _: "", Refused("is a folder|no such file|empty name", names_file=False))
    place("name too long", "no file", "-", lambda folder: folder / ("x" * 300), Refused("no such file|cannot be read"))
    place("below a file", "no file", "-", lambda folder: link(folder) / "x.wav", Refused("no such file|cannot be read"))
    place("folder", "no file", "-", folder_itself, Refused("is a folder"))
    place("FIFO", "no file", "-", fifo, Refused("not a regular file"))
    place("device", "no file", "-", lambda _: "/dev/zero", Refused("not a regular file"))
    place("socket-like device", "no file", "-", lambda _: "/dev/null", Refused("not a regular file"))
    place("dangling link", "no file", "-", dangling, Refused("no such file|dangling"))
    place("link to itself", "no file", "-", loop, Refused("no such file|cannot be read"))
    place("link to audio", "no file", "wav", link, Audio())
    place("no permission", "no file", "wav", unreadable, Refused("cannot be read"), skip=root)


def _not_audio() -> None:
    html = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>" + b"Not found. " * 400 + b"</body></html>\n"
    text = b"To whom it may concern,\nthis is a letter.\n" * 60
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"

    def zipped() -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.wav", valid("wav"))
        return stream.getvalue()

    def tarred(mode: str) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
            entry = tarfile.TarInfo("a.wav")
            entry.size = len(valid("wav"))
            archive.addfile(entry, io.BytesIO(valid("wav")))
        return stream.getvalue()

    refused = Refused("not audio|not supported|" + DAMAGED)
    not_audio = Refused("not audio")
    add("0 bytes", "not audio", "-", b"", Refused(r"empty file \(0 bytes\)"), file="a.wav")
    add("0 bytes", "not audio", "mp3", b"", Refused(r"empty file \(0 bytes\)"))
    add("one zero byte", "not audio", "-", b"\0", not_audio, file="a.wav")
    for suffix in ("wav", "mp3", "m4a"):
        add("text", "not audio", suffix, text, Refused(r"not audio \(starts with 'To whom"))
    for suffix in ("mp3", "wav", "flac", "webm"):
        add("web page", "not audio", suffix, html, Refused(r"not audio \(starts with '<!DOCTYPE"))
    add("git-LFS pointer", "not audio", "wav", pointer, Refused(r"git-LFS pointer|not audio \(starts with 'version"))
    for protocol in (0, 2, 5):
        body = pickle.dumps({"state": [1.5] * 200}, protocol)
        add(f"pickle, protocol {protocol}", "not audio", "wav", body, not_audio)
    add("zip archive", "not audio", "flac", zipped, not_audio)
    add("tar archive", "not audio", "wav", lambda: tarred("w"), not_audio)
    add("tar.gz archive", "not audio", "ogg", lambda: tarred("w:gz"), not_audio)
    add("PDF", "not audio", "wav", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + text, not_audio)
    add("PNG", "not audio", "mp3", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(300), not_audio)
    add("JPEG", "not audio", "mp3", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 40, not_audio)
    add("MIDI", "not audio", "mid", b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0", refused)
    add("random bytes", "not audio", "wav", np.random.default_rng(1).bytes(20_000), refused)
    add("random bytes", "not audio", "mp3", np.random.default_rng(2).bytes(20_000), refused)
    add("64 KiB of zeros", "not audio", "wav", bytes(1 << 16), not_audio)
    add("64 KiB of 0xFF", "not audio", "mp3", b"\xff" * (1 << 16), refused)
    add("raw PCM", "not audio", "wav", valid_pcm, refused)
    secret = "secret.wav"
    playlists = {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n",
        "m3u": f"{secret}\n",
        "pls": f"[playlist]\nFile1={secret}\nNumberOfEntries=1\n",
        "ffconcat": f"ffconcat version 1.0\nfile {secret}\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "cue": f'FILE "{secret}" WAVE\n  TRACK 01 AUDIO\n',
        "mpd": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>',
        "xspf": f'<?xml version="1.0"?><playlist><trackList><track><location>{secret}</location></track></trackList>',
    }
    for kind, body in playlists.items():
        for suffix in (kind, "wav", "m4a"):

            def playlist(folder: Path, suffix: str = suffix, body: str = body) -> Path:
                (folder / secret).write_bytes(valid("wav"))
                (folder / f"list.{suffix}").write_text(body)
                return folder / f"list.{suffix}"

            if suffix != "m4a" or kind in ("m3u8", "ffconcat", "mpd"):
                place(f"playlist {kind}", "not audio", suffix, playlist, not_audio)


def _tiny() -> None:
    for name in ("wav", "wav-24", "wav-float", "aiff", "caf", "au", "w64", "rf64", "flac", "ogg", "mp3", "m4a", "webm"):
        container = CONTAINERS[name]
        more = 4096 if name in ("m4a", "webm", "mp3") else 0
        add("1 sample", "tiny", name, lambda name=name: valid(name, 1, 1), Audio(1, container.rate, more_frames=more))
    for name in ("wav", "aiff", "caf", "au", "w64", "rf64", "ogg"):
        add("0 samples", "tiny", name, lambda name=name: valid(name, 1, 0), Audio(0))
    for name in ("flac", "mp3", "opus"):
        add("0 samples", "tiny", name, lambda name=name: valid(name, 1, 0), Audio(0), Refused("empty|" + DAMAGED))
    add("0 samples, stereo", "tiny", "wav", lambda: valid("wav", 2, 0), Audio(0, channels=2))
    add("header only", "tiny", "wav", lambda: valid("wav")[:44], Refused(DAMAGED))
    add("header only", "tiny", "flac", lambda: valid("flac")[:42], Refused(DAMAGED))
    add("header only", "tiny", "mp3", lambda: valid("mp3")[:10], Refused("not audio|" + DAMAGED))
    add("header only", "tiny", "m4a", lambda: valid("m4a")[:28], Refused(DAMAGED))
    for name in ("wav", "rf64", "w64", "aiff", "caf", "au", "flac", "ogg", "opus", "m4a", "webm", "wma", "flv", "avi"):
        add("half a header", "tiny", name, lambda name=name: valid(name)[:20], Refused(DAMAGED))
    add("4 bytes", "tiny", "wav", b"RIFF", Refused(DAMAGED))
    add("2 bytes", "tiny", "mp3", b"\xff\xfb", Refused("not audio|" + DAMAGED))


def _cut_and_damaged() -> None:
    names = ("wav", "wav-24", "wav-float", "rf64", "w64", "aiff", "caf", "caf-alac", "au", "flac", "ogg", "opus", "ogg-flac",
             "mp3", "m4a", "m4a-alac", "webm", "mkv", "wma", "3gp", "flv", "avi")  # fmt: skip

    def cut(name: str, part: float) -> bytes:
        data = valid(name, frames=3 * FRAMES)
        return data[: int(part * len(data))]

    for name in names:
        add("cut in half", "cut", name, lambda name=name: cut(name, 0.5), Refused(DAMAGED))
    for name in ("wav", "flac", "mp3", "ogg", "opus"):
        add("last tenth missing", "cut", name, lambda name=name: cut(name, 0.9), Refused(DAMAGED))
    for name in ("aac", "ac3", "amr", "mp2"):  # nothing in them says how long they are
        container = CONTAINERS[name]
        shorter = Audio(3 * FRAMES // 2, container.rate, more_frames=3072, fewer_frames=3072)
        add("cut in half", "cut", name, lambda name=name: cut(name, 0.5), shorter, Refused(DAMAGED))

    def in_front(part: float) -> bytes:
        data = by_ffmpeg(sound(3 * FRAMES), RATE, "mp4", "aac", movflags="faststart")
        return data[: int(part * len(data))]

    add("index in front", "whole", "mp4", lambda: in_front(1), Audio(3 * FRAMES, more_frames=2048))
    add("index in front, cut in half", "cut", "mp4", lambda: in_front(0.5), Refused(DAMAGED))

    def hole(name: str) -> bytes:
        data = bytearray(valid(name, frames=5 * FRAMES))
        middle = len(data) // 2
        data[middle : middle + 500] = bytes(500)
        return bytes(data)

    for name in ("wav", "wav-float", "aiff", "caf", "w64", "rf64", "au"):
        add("500 zeros in the middle", "damaged", name, lambda name=name: hole(name), Audio(5 * FRAMES))
    for name in ("flac", "opus", "ogg-flac", "mkv"):
        add("500 zeros in the middle", "damaged", name, lambda name=name: hole(name), Refused(DAMAGED))
    for name in ("mp3", "ogg", "m4a", "webm", "wma", "aac", "ac3"):
        container = CONTAINERS[name]
        whole = Audio(5 * FRAMES, container.rate, 1, max(container.more_frames, 1152), container.fewer_frames)
        add("500 zeros in the middle", "damaged", name, lambda name=name: hole(name), whole, Refused(DAMAGED))


def _salvaged() -> None:
    half, whole = Audio(FRAMES, more_frames=FRAMES, warning="kept|salvage|stops|read"), 3 * FRAMES
    for name in ("wav", "wav-float", "aiff", "caf", "w64", "flac", "ogg", "opus", "mp3", "m4a", "webm"):
        container = CONTAINERS[name]
        lost = FRAMES if name == "ogg" else 0  # all of it may lie in one page
        part = dataclasses.replace(half, rate=container.rate, fewer_frames=lost)

        def cut(name: str = name) -> bytes:
            data = valid(name, frames=whole)
            return data[: len(data) // 2]

        expected = (Refused(DAMAGED),) if name == "m4a" else (part,)  # the index of an MPEG-4 file is at its end
        add("cut in half", "salvage", name, cut, *expected, options=["--salvage"])

    def with_nan() -> bytes:
        x = sound()
        x[0, 5_000:5_010] = np.nan
        return by_sndfile(x, RATE, "WAV", "FLOAT")

    zeroed = Audio(warning="NaN|non-finite|finite")
    add("10 NaN", "salvage", "wav-float", with_nan, zeroed, options=["--nan", "zero"])


def _streams() -> None:
    for declared in (0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF):
        both = {"data_length": declared, "riff_length": declared}
        add(f"sizes 0x{declared:X}, from a pipe", "stream", "wav", lambda both=both: wav(**both), Audio())
    add("RIFF size 0 only", "stream", "wav", lambda: wav(riff_length=0), Audio())
    add("RIFF size too large", "stream", "wav", lambda: wav(riff_length=1 << 30), Audio())
    add("data 1 byte short of its size", "stream", "wav", lambda: wav(data_length=2 * FRAMES + 1), Audio(), Refused(DAMAGED))
    add("data size no multiple of a frame", "stream", "wav", lambda: wav(channels=2, samples=valid_pcm()[:-2]),
        Audio(FRAMES // 2 - 1, channels=2), Refused(DAMAGED))  # fmt: skip
    add("size 0xFFFFFFFF", "stream", "au", lambda: replaced(valid("au"), b".snd", b"\xff" * 4, 8), Audio())
    add("data size -1", "stream", "caf", lambda: replaced(valid("caf"), b"data", b"\xff" * 8, 4), Audio(), Refused(DAMAGED))
    add("length unknown", "stream", "flac", lambda: _flac_frames(0), Audio(), Refused(DAMAGED))
    add("length 2^36 - 1", "stream", "flac", lambda: _flac_frames((1 << 36) - 1), Refused(DAMAGED))
    add("length one less than it has", "stream", "flac", lambda: _flac_frames(FRAMES - 1),
        Audio(fewer_frames=1), Refused(DAMAGED))  # fmt: skip
    add("ds64 says 2^63", "stream", "rf64", lambda: _ds64(1 << 63), Refused(DAMAGED))
    add("ds64 says 2^40", "stream", "rf64", lambda: _ds64(1 << 40), Refused(DAMAGED))
    add("data size 2^62", "stream", "w64", lambda: replaced(valid("w64"), b"data\xf3", struct.pack("<Q", 1 << 62), 16),
        Refused(DAMAGED))  # fmt: skip
    add("without a length header", "stream", "mp3", _mp3_without_length, Audio(more_frames=4608, fewer_frames=1152),
        Refused(DAMAGED))  # fmt: skip


def _flac_frames(frames: int) -> bytes:
    data = bytearray(valid("flac"))
    word = int.from_bytes(data[18:26], "big")
    data[18:26] = ((word >> 36 << 36) | frames).to_bytes(8, "big")
    return bytes(data)


def _ds64(length: int) -> bytes:
    at = 8
    data = replaced(valid("rf64"), b"ds64", struct.pack("<QQQ", length + 100, length, length // 2), at)
    return replaced(data, b"data", b"\xff" * 4, 4)


def _mp3_without_length() -> bytes:
    data = valid("mp3")
    return data[data.index(data[:2], 4) :]


def _sample_formats() -> None:
    for name, container in CONTAINERS.items():
        whole = Audio(FRAMES, container.rate, 1, container.more_frames, container.fewer_frames)
        add("valid", "whole", name, lambda name=name: valid(name), whole)
    for file_format in ("NIST", "VOC", "IRCAM", "AVR", "PAF", "SVX", "PVF", "MAT4", "MAT5"):
        add(f"valid {file_format}", "whole", file_format.lower(), lambda f=file_format: by_sndfile(sound(), RATE, f), Audio())
    for name in ("wav", "wavex", "flac", "caf", "m4a", "ac3", "opus"):
        container = CONTAINERS[name]
        surround = Audio(FRAMES, container.rate, 6, max(container.more_frames, 0))
        add("5.1", "channels", name, lambda name=name: valid(name, 6), surround)
    add("32 channels", "channels", "wav", lambda: valid("wav", 32, 1_000), Audio(1_000, channels=32))
    add("header says 0 channels", "channels", "wav", lambda: wav(channels=0, block=2), Refused(DAMAGED))
    add("header says 65535 channels", "channels", "wav", lambda: wav(channels=65_535, block=65_534),
        Refused(DAMAGED + "|channels"))  # fmt: skip
    for rate in (2_000, 8_000, 11_025, 12_347, 44_100, 48_000, 96_000, 192_000, 384_000):
        content = functools.partial(by_sndfile, sound(3_000, rate), rate, "WAV")
        add(f"{rate} Hz", "rate", "wav", content, Audio(3_000, rate))
    for rate in (0, 1, 1_999, 384_001, 8_000_001, 0xFFFFFFFF):
        said = f"sample rate {rate} Hz is outside" if 0 < rate < 1 << 31 else f"sample rate|{DAMAGED}"
        add(f"{rate} Hz", "rate", "wav", lambda rate=rate: wav(rate=rate), Refused(said))
    add("0 Hz", "rate", "aiff", lambda: replaced(valid("aiff"), b"COMM", bytes(10), 16), Refused(f"sample rate|{DAMAGED}"))
    add("10^300 Hz", "rate", "aiff", lambda: replaced(valid("aiff"), b"COMM", b"\x7f\xf0", 16),
        Refused(f"sample rate|{DAMAGED}"))  # fmt: skip


def _signals() -> None:
    def floats(x: np.ndarray, subtype: str = "FLOAT") -> bytes:
        return by_sndfile(x, RATE, "WAV", subtype)

    def with_sample(value: float, subtype: str) -> bytes:
        x = sound(channels=2)
        x[1, 8_000] = value
        return floats(x, subtype)

    for value in (np.nan, np.inf, -np.inf):
        said = r"(NaN|Inf)\b.*0\.5\d* s"
        add(f"{value} at 0.5 s", "signal", "wav-float", lambda v=value: with_sample(v, "FLOAT"), Refused(said))
    add("nan at 0.5 s", "signal", "wav-double", lambda: with_sample(np.nan, "DOUBLE"), Refused(r"NaN\b.*0\.5\d* s"))
    add("beyond float32", "signal", "wav-double", lambda: floats(np.full((1, 500), 1e300), "DOUBLE"), Refused("NaN|Inf"))
    add("peak 1e30", "signal", "wav-float", lambda: floats(sound() * np.float32(1e31)), Audio(), Refused("scale", 3, False))
    add("peak 20", "signal", "wav-float", lambda: floats(sound() * 100), Audio())
    add("denormals", "signal", "wav-float", lambda: floats(sound() * np.float32(1e-39)), Audio())
    quiet = 10 ** (-90 / 20)
    for name in ("wav", "wav-float", "flac", "mp3", "m4a"):
        container = CONTAINERS[name]
        silent = Audio(FRAMES, container.rate, more_frames=container.more_frames, check=lambda y: np.abs(y).max() <= quiet)
        zeros = np.zeros((1, FRAMES), np.float32)
        add("digital silence", "signal", name, lambda c=container, z=zeros: c.data(z), silent)
    steady = np.full((1, 8_000), 0.5, np.float32)
    add("DC 0.5", "signal", "wav", lambda: CONTAINERS["wav"].data(steady),
        Audio(8_000, check=lambda y: abs(float(np.median(y)) - 0.5) < 0.01))  # fmt: skip
    square = np.sign(sound())
    add("clipped throughout", "signal", "wav", lambda: CONTAINERS["wav"].data(square), Audio())
    add("lowest 16-bit value", "signal", "wav", lambda: wav(samples=b"\x00\x80" * 4_000), Audio(4_000))
    impulse = np.eye(1, FRAMES, 5_000, dtype=np.float32)
    add("one impulse", "signal", "wav", lambda: CONTAINERS["wav"].data(impulse),
        Audio(check=lambda y: abs(int(np.abs(y).argmax()) - 15_000) <= 2))  # fmt: skip
    alternating = np.resize(np.array([0.9, -0.9], np.float32), (1, 8_000))
    add("half the sample rate", "signal", "wav", lambda: CONTAINERS["wav"].data(alternating), Audio(8_000))
    one_sided = np.concatenate([sound(), np.zeros((1, FRAMES), np.float32)])
    add("one channel silent", "signal", "wav", lambda: CONTAINERS["wav"].data(one_sided),
        Audio(channels=2, check=lambda y: bool(np.abs(y[1]).max() <= quiet < np.abs(y[0]).max())))  # fmt: skip


def _names() -> None:
    def named(name: str | bytes, *before: str) -> Make:
        def make(folder: Path) -> Sequence[str | Path]:
            text = os.fsdecode(name)
            (folder / text).write_bytes(valid("wav"))
            return [*before, text]

        return make

    odd = {
        "04 絆ふぉーえばー.wav": "not ASCII", "🎻👩‍🎤.wav": "emoji", "q'u\"o te.wav": "quotes", "$(touch canary).wav": "shell",
        "; touch canary #.wav": "shell", "| touch canary |.wav": "shell", "a*?[b].wav": "wildcards", "%s%n{0}.wav": "format",
        "\u202egnp.wav": "right to left", "...wav.wav": "dots", " .wav": "blank", "a\\b.wav": "backslash", "~.wav": "tilde",
        "é" * 125 + ".wav": "255 bytes", "https:.wav": "URL", "pipe:0.wav": "protocol", "fd:1": "protocol",
        "line\nfeed.wav": "line feed", "\x1b[31mred\x1b[0m\r.wav": "escape codes", "tab\t.wav": "tab",
    }  # fmt: skip
    for name, kind in odd.items():
        place(f"name: {kind}", "name", "wav", named(name), Audio())
    place("name: not UTF-8", "name", "wav", named(b"caf\xe9.wav"), Audio())
    place("name: leading dash, after --", "name", "wav", named("-dash.wav", "--"), Audio())
    place("name: leading dash", "name", "wav", named("-dash.wav"), Refused("argument", 2, False))
    place("name: an option", "name", "wav", named("--help.wav"), Refused("argument", 2, False))
    absent = Refused("no such file", names_file=False)
    for name, kind in (("lost\nfound", "line feed"), ("\x1b]0;title\x07", "escape codes"), ("caf\udce9", "not UTF-8")):
        place(f"missing, name: {kind}", "name", "-", lambda _, name=name: name, absent)
    add("no extension", "name", "-", lambda: valid("wav"), Audio(), file="input")
    wrong = {"wav": ("mp3", "flac", "txt"), "flac": ("wav",), "mp3": ("wav", "ogg"), "ogg": ("flac", "wav"), "opus": ("mp3",),
             "aiff": ("wav",), "w64": ("wav",), "m4a": ("wav", "mp3"), "webm": ("wav",), "aac": ("mp3",)}  # fmt: skip
    for name, suffixes in wrong.items():
        container = CONTAINERS[name]
        for suffix in suffixes:
            whole = Audio(FRAMES, container.rate, more_frames=container.more_frames)
            add(f"{name} called .{suffix}", "extension", name, lambda name=name: valid(name), whole, file=f"input.{suffix}")


def _odd_structure() -> None:
    junk = np.random.default_rng(3).bytes(3_000)
    id3 = b"ID3\x03\x00\x00" + bytes([0, 0, 2, 0]) + b"TIT2\x00\x00\x00\x06\x00\x00\x00title" + bytes(256 - 16)
    id3v1 = b"TAG" + b"title".ljust(125, b"\0")
    either = (Audio(), Refused(DAMAGED + "|not audio"))
    for name in ("wav", "flac", "aiff", "au", "mp3", "ogg", "m4a"):
        container = CONTAINERS[name]
        whole = Audio(FRAMES, container.rate, more_frames=max(container.more_frames, 2304 if name == "mp3" else 0))
        expected = (whole,) if name in ("wav", "aiff") else (whole, Refused(DAMAGED))
        add("garbage behind the sound", "structure", name, lambda name=name: valid(name) + junk, *expected)
    add("ID3v2 in front", "structure", "wav", lambda: id3 + valid("wav"), *either)
    add("ID3v2 in front", "structure", "flac", lambda: id3 + valid("flac"), *either)
    add("id3 chunk", "structure", "wav", lambda: wav(chunk(b"id3 ", id3)), Audio())
    add("ID3v2 in front", "structure", "mp3", lambda: id3 + valid("mp3"), Audio())
    add("ID3v1 behind", "structure", "mp3", lambda: valid("mp3") + id3v1, Audio(more_frames=2304))
    cover = b"ID3\x03\x00\x00\x00\x40\x00\x00APIC\x00\x0f\xff\xf6\x00\x00\x00image/jpeg\0\3\0" + bytes((1 << 20) - 24)
    add("cover of 1 MiB", "structure", "mp3", lambda: cover + valid("mp3"), Audio())
    add("ID3v2 longer than the file", "structure", "mp3", lambda: b"ID3\x03\x00\x00\x7f\x7f\x7f\x7f" + valid("mp3"), *either)
    add("1000 bytes of junk in front", "structure", "mp3", lambda: bytes(1_000) + valid("mp3"), *either)
    add("RIFF inside RIFF", "structure", "wav", lambda: chunk(b"RIFF", b"WAVE" + valid("wav")), Refused(DAMAGED))
    add("a WAV as samples of a WAV", "structure", "wav", lambda: wav(samples=valid("wav")), Audio(FRAMES + 22))
    add("two files in a row", "structure", "wav", lambda: valid("wav") * 2, *either)
    add("two files in a row", "structure", "mp3", lambda: valid("mp3") * 2, Audio(more_frames=FRAMES + 4608), Refused(DAMAGED))
    add("two files in a row", "structure", "flac", lambda: valid("flac") * 2, *either)
    add("chained", "structure", "ogg", lambda: valid("ogg") + by_sndfile(sound(seed=1), RATE, "OGG", "VORBIS"),
        Audio(more_frames=FRAMES + 1024), Refused(DAMAGED))  # fmt: skip
    add("chained, another rate", "structure", "ogg", lambda: valid("ogg") + by_sndfile(sound(seed=1), 44_100, "OGG", "VORBIS"),
        Audio(more_frames=FRAMES), Refused(DAMAGED))  # fmt: skip
    add("10000 junk chunks", "structure", "wav", lambda: wav(*[chunk(b"JUNK", b"")] * 10_000), *either)
    add("1 MiB of junk in front", "structure", "wav", lambda: wav(chunk(b"JUNK", bytes(1 << 20))), Audio())
    add("chunk says 4 GiB", "structure", "wav", lambda: wav(chunk(b"LIST", b"INFO", length=0xFFFFFFF0)), Refused(DAMAGED))
    add("no fmt chunk", "structure", "wav", lambda: chunk(b"RIFF", b"WAVE" + chunk(b"data", valid_pcm())), Refused(DAMAGED))
    add("fmt behind data", "structure", "wav", _fmt_last, *either)
    add("no data chunk", "structure", "wav", lambda: valid("wav")[:36], Refused(DAMAGED))
    add("two data chunks", "structure", "wav", lambda: wav(chunk(b"data", valid_pcm())), *either)
    add("two fmt chunks", "structure", "wav", lambda: wav(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, 8_000, 32_000, 4, 16))),
        Audio(), Audio(FRAMES // 2, 8_000, 2), Refused(DAMAGED))  # fmt: skip
    for bits in (0, 1, 12, 64, 65_535):
        add(f"{bits} bits", "structure", "wav", lambda bits=bits: wav(bits=bits, block=2),
            Audio(fewer_frames=FRAMES, more_frames=FRAMES), Refused(DAMAGED + "|bit|format"))  # fmt: skip
    add("block of 0 bytes", "structure", "wav", lambda: wav(block=0), *either)
    for tag in (0, 0x0002, 0x0011, 0x0055, 0x0160, 0x1234, 0xFFFE):
        add(f"format tag 0x{tag:04X}", "structure", "wav", lambda tag=tag: wav(tag=tag),
            Refused(DAMAGED + "|format|codec|support"))  # fmt: skip
    add("big-endian (RIFX)", "structure", "wav", _rifx, Audio())
    add("little-endian (sowt)", "structure", "aiff", lambda: by_sndfile(sound(), RATE, "AIFF", "PCM_16"), Audio())
    add("tags and cue points", "structure", "wav", _with_tags, Audio())
    add("data offset behind the end", "structure", "au", lambda: replaced(valid("au"), b".snd", b"\x7f\xff\xff\xff", 4),
        Refused(DAMAGED))  # fmt: skip
    add("with video", "structure", "mp4", lambda: by_ffmpeg(sound(), RATE, "mp4", "aac", True), Audio(more_frames=2048))
    add("with video", "structure", "mkv", lambda: by_ffmpeg(sound(), RATE, "matroska", "flac", True), Audio(more_frames=4608))
    add("video only", "structure", "mp4", _video_only, Refused("no (audio|sound)|without an audio"))
    add("two streams", "structure", "flac", lambda: replaced(valid("flac"), b"fLaC", b"\x00\x00\x00\x00", 18), *either)


def _fmt_last() -> bytes:
    head = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    return chunk(b"RIFF", b"WAVE" + chunk(b"data", valid_pcm()) + head)


def _rifx() -> bytes:
    head = chunk(b"fmt ", struct.pack(">HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16), ">")
    samples = np.frombuffer(valid_pcm(), "<i2").astype(">i2").tobytes()
    return chunk(b"RIFX", b"WAVE" + head + chunk(b"data", samples, ">"), ">")


def _with_tags() -> bytes:
    info = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"title\0") + chunk(b"IART", "Björk\0".encode()))
    cue = chunk(b"cue ", struct.pack("<I6I", 1, 1, 5, int.from_bytes(b"data", "little"), 0, 0, 5))
    return wav(info, cue, chunk(b"bext", bytes(602)))


def _video_only() -> bytes:
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as file:
        pictures: Any = file.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 16
        pictures.pix_fmt = "yuv420p"
        for number in range(5):
            picture = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * number, np.uint8), "rgb24")
            file.mux(pictures.encode(picture.reformat(format="yuv420p")))
        file.mux(pictures.encode(None))
    return stream.getvalue()


_no_file_at_all()
_not_audio()
_tiny()
_cut_and_damaged()
_salvaged()
_streams()
_sample_formats()
_signals()
_names()
_odd_structure()


@dataclass(frozen=True)
class Result:
    row: Row
    code: int
    said: str
    problems: list[str]


def run_row(row: Row, folder: Path, model: str | Path) -> Result:
    """Make the input of ``row`` in the empty ``folder``, extend it, and compare what happened with what is declared."""
    made = row.make(folder)
    words = [made] if isinstance(made, str | Path) else list(made)
    out = folder / "output"
    out.mkdir()
    before = sorted(folder.rglob("*"))
    # With --force also what is full-band already, and would be left alone, has an output to look at.
    done = run_command(["extend", "--force", "-o", out / "out.wav", "-m", model, *words], folder)
    left = [path for path in sorted(folder.rglob("*")) if path not in before]
    found = [_why_not(expected, done, out / "out.wav", left, os.path.basename(words[-1])) for expected in row.expected]
    said = (done.stderr or done.stdout).strip().replace(str(folder) + os.sep, "")
    if os.path.exists(out / "out.wav"):
        info = sf.info(out / "out.wav")
        said = f"{info.samplerate} Hz, {info.channels} ch, {info.frames} frames  {done.stderr.strip()}".rstrip()
    return Result(row, done.code, said, [] if not all(found) else min(found, key=len))


def _why_not(expected: Audio | Refused, done: Finished, out: Path, left: list[Path], name: str) -> list[str]:
    problems = []
    if done.code < 0:
        problems.append(f"ended by {signal.Signals(-done.code).name}")
    if "Traceback" in done.stderr or "unexpected" in done.stderr:
        problems.append("a traceback")
    if isinstance(expected, Refused):
        lines = done.stderr.splitlines()
        sentence = done.stderr.rstrip("\n")
        if done.code != expected.code:
            problems.append(f"exit code {done.code}, not {expected.code}")
        if len(lines) != 1 or _controls(sentence) or not done.stderr.endswith("\n") or len(sentence) > 1_200:
            problems.append(f"no one-line sentence: {done.stderr!r}")
        elif not re.search(expected.said, sentence):
            problems.append(f"the sentence does not say {expected.said!r}: {sentence!r}")
        elif not sentence.startswith("bwe: error: ") or (expected.names_file and name not in sentence):
            problems.append(f"the sentence does not name the file: {sentence!r}")
        if done.stdout:
            problems.append(f"stdout: {done.stdout!r}")
        if left:
            problems.append(f"left behind: {', '.join(path.name for path in left)}")
        return problems
    if done.code != 0:
        return [*problems, f"exit code {done.code}, not 0: {done.stderr.strip()!r}"]
    line = done.stdout.rstrip("\n")
    if _controls(line) or not done.stdout.endswith("\n"):
        problems.append(f"the closing line is not one printable line: {done.stdout!r}")
    if not re.fullmatch(f"bwe: .*({expected.warning}).*\\n" if expected.warning else "", done.stderr):
        problems.append(f"stderr: {done.stderr.strip()!r}, not {expected.warning or 'nothing'!r}")
    if left != [out]:
        problems.append(f"files made: {', '.join(path.name for path in left) or 'none'}")
    if out.is_file():
        problems += _wrong_audio(expected, out)
    return problems


def _controls(text: str) -> bool:
    """Whether ``text`` could break its line or steer a terminal."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def _wrong_audio(expected: Audio, out: Path) -> list[str]:
    y, rate = sf.read(out, dtype="float64", always_2d=True)
    y = y.T
    low, high = (
        round(Fraction((expected.frames + more) * OUT_RATE, expected.rate))
        for more in (-expected.fewer_frames, expected.more_frames)
    )
    problems = []
    if rate != OUT_RATE or len(y) != expected.channels or not low <= y.shape[1] <= high:
        problems.append(f"{rate} Hz, {len(y)} channels, {y.shape[1]} frames, not {expected.channels} and {low} to {high}")
    if not np.isfinite(y).all():
        problems.append("not finite")
    elif expected.check is not None and not expected.check(y):
        problems.append("not the expected signal")
    return problems


def tiny_model(folder: Path) -> Path:
    """A checkpoint folder with the smallest network and random weights."""
    import torch

    from bwe import generators, hub

    torch.manual_seed(0)
    return hub.save(folder, generators.SEANet(generators.SIZES["tiny"]), "# Test model\n\nRandom weights.\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Give hard inputs to the command `bwe extend`.")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only rows whose name, kind or container has one of these")
    parser.add_argument("--model", default="tiny", help="shipped name or checkpoint folder (default: tiny, random weights)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files in this folder")
    parser.add_argument("--failed", action="store_true", help="show only the rows that went wrong")
    args = parser.parse_args()
    started = time.perf_counter()
    base = args.keep or Path(tempfile.mkdtemp(prefix="bwe-hard-"))
    base.mkdir(parents=True, exist_ok=True)
    wrong = skipped = refused = 0
    try:
        model = tiny_model(base / "tiny") if args.model == "tiny" else args.model
        warm_up(model)
        rows = [row for row in ROWS if any(word in f"{row.name} {row.kind} {row.container}" for word in args.words or [""])]
        for number, row in enumerate(rows):
            title = f"{number:3d}  {row.kind:10s} {row.container:10s} {row.name:34s}"
            if reason := row.skip():
                skipped += 1
                print(f"{title}    -  skipped: {reason}")
                continue
            folder = base / f"{number:03d}"
            folder.mkdir()
            result = run_row(row, folder, model)
            wrong += bool(result.problems)
            refused += result.code != 0
            if result.problems or not args.failed:
                print(f"{title} {result.code:4d}  {result.said}", flush=True)
            for problem in result.problems:
                print(f"     WRONG: {problem}", flush=True)
    finally:
        if not args.keep:
            shutil.rmtree(base)
    done = len(rows) - skipped
    print(
        f"{len(rows)} rows: {done - refused} extended, {refused} refused, {skipped} skipped, {wrong} wrong, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
