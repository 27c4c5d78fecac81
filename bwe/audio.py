"""Audio files in and out: any length, block by block, whatever libsndfile or, with the extra ``formats``, PyAV decodes.

Public audio is ``(C, T)`` float32, full scale ±1. A file is trusted only as far as it was checked: one that was cut,
damaged or mislabelled raises AudioError in one sentence instead of reading shorter than it says. A file that this
module wrote is complete: it appears under its name by a rename, after everything has reached the disk.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import re
import secrets
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, cast

import numpy as np
import soundfile as sf

from bwe import containers
from bwe.codecs import MPEG_RATES, OPUS_RATES
from bwe.containers import Container, Spliced
from bwe.errors import AudioError, BweError, ConfigError, OutputError

MIN_RATE, MAX_RATE = 2_000, 384_000

_BLOCK = 1 << 16
_UNKNOWN_FRAMES = 1 << 48  # libsndfile reports 2**63 - 1 for streams that do not say how long they are
# No codec packs more: FLAC holds 65 535 equal samples in 12 bytes. A header that says more lies.
_FRAMES_PER_BYTE = 8192
_SPOOL_BYTES = 256 << 20
_NO_DECODER = "Decoder not found"  # FFmpeg's words
_SHORT = "fewer samples than declared"  # does not tell where they are missing

_FORMATS = {
    ".wav": "WAV", ".wave": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3",
    ".aiff": "AIFF", ".aif": "AIFF", ".caf": "CAF", ".w64": "W64", ".rf64": "RF64", ".au": "AU",
}  # fmt: skip
SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"}
"""Sample formats by the names that users give them."""
_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_DEFAULT_SUBTYPES = {"OGG": ("VORBIS", "OPUS"), "MP3": ("MPEG_LAYER_III",)}
_LOSSLESS = {"ALAC_16": "PCM_16", "ALAC_20": "PCM_24", "ALAC_24": "PCM_24", "ALAC_32": "PCM_32"}
_LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_III"}
# Below what each encoder can do, some of them crash instead of refusing (Vorbis above 192 kHz).
_RATES = {"OPUS": OPUS_RATES, "MPEG_LAYER_III": MPEG_RATES}
_MAX_RATES = {"VORBIS": 192_000, "FLAC": 655_350}
_MAX_CHANNELS = {"MP3": 2, "FLAC": 8, "OGG": 255}
# What 32-bit sizes can say, with a margin for the chunks around the samples.
_MAX_RIFF_BYTES = (4 << 30) - (1 << 20)

_DITHER_RUN = 1024
_SILENCE = 1e-6  # -120 dBFS, 1/30 of a 16-bit step: what is left of digital silence after resampling and filtering

_TAGS = (
    "title", "artist", "album", "comment", "date", "genre", "tracknumber", "copyright", "license", "software",
)  # fmt: skip
_FFMPEG_TAGS = {"track": "tracknumber", "encoder": "software", "year": "date"}
_RIFF_TAGS = {
    "title": b"INAM", "artist": b"IART", "album": b"IPRD", "comment": b"ICMT", "date": b"ICRD", "genre": b"IGNR",
    "tracknumber": b"ITRK", "copyright": b"ICOP", "software": b"ISFT",
}  # fmt: skip
# libsndfile's commands (sndfile.h) that soundfile has no name for.
_SET_ADD_PEAK_CHUNK, _RF64_AUTO_DOWNGRADE = 0x1050, 0x1210
# What libraries raise on hostile bytes beside their own errors.
_HOSTILE = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, MemoryError, OSError)

_TEMPORARY = re.compile(r"\.bwe-(\d+)-([0-9a-f]{8})\.(\d+)-[0-9a-f]{12}\.tmp")
_STALE_S = 86_400

_stderr_lock = threading.Lock()


@dataclass(frozen=True)
class Info:
    """What a file holds: sample rate in Hz, channels, frames, container and sample format in libsndfile's names, tags.

    ``frames`` are those declared, or counted where nothing believable is declared. ``tags`` has libsndfile's names: title,
    artist, album, comment, date, genre, tracknumber, copyright, license, software.
    """

    path: Path
    sample_rate: int
    channels: int
    frames: int
    format: str
    subtype: str
    tags: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def clock(seconds: float, digits: int = 0) -> str:
    """``0:07``, ``12:34``, ``1:02:03``; with ``digits`` decimals of the seconds."""
    ticks = round(seconds * 10**digits)
    whole, fraction = divmod(ticks, 10**digits)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else str(minutes)
    return f"{head}:{rest:02d}" + (f".{fraction:0{digits}d}" if digits else "")


class _DamageError(Exception):
    """A decoder cannot go on; the text is its reason."""


@dataclass(frozen=True)
class _Header:
    """What a decoder says before it decodes; ``declared`` frames are None where the file does not say."""

    sample_rate: int
    channels: int
    declared: int | None
    format: str
    subtype: str
    tags: dict[str, str]
    tracks: int = 1


class Reader:
    """Reads an audio file of any length in blocks, in constant memory.

    Args:
        source: a path, or a binary stream such as that of `stdin_source`; one that cannot seek is spooled first.
        salvage: keep what can be read of a cut or damaged file, and say so in ``warnings``, instead of refusing it. The
            file is then decoded once in advance, so that ``info.frames`` is what there is.
        nan: what to do with NaN and Inf: "refuse" raises AudioError, "zero" replaces them and says so in ``warnings``.

    Attributes:
        info: what the file holds.
        warnings: sentences for the user; those about replaced samples are there after a pass.

    Raises:
        AudioError: one sentence naming the file, the place and what to do: missing, a folder, empty, not audio, a format
            without a decoder, a sample rate outside 2 to 384 kHz.
        ConfigError: another word for ``nan``.
        OutputError: no space is left to spool a stream that cannot seek.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        salvage: bool = False,
        nan: Literal["refuse", "zero"] = "refuse",
    ) -> None:
        if nan not in ("refuse", "zero"):
            raise ConfigError(f"nan must be 'refuse' or 'zero', not {nan!r}")
        self.warnings: list[str] = []
        self._salvage, self._nan = salvage, nan
        self._noisy = True  # what the file will turn out to hold is not known before it is open
        self._owned = contextlib.ExitStack()
        self._stream: BinaryIO | None = None
        if isinstance(source, str | os.PathLike):
            self._path = Path(source)
        else:
            name = getattr(source, "name", None)
            self._path = Path(name if isinstance(name, str) else "<stream>")
            self._stream = source if _can_seek(source) else self._owned.enter_context(_spooled(source, str(self._path)))
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the reader itself has opened; a stream that was passed in stays open."""
        self._owned.close()

    def _look(self) -> None:
        if self._stream is None:
            _check_regular(self._path)
        with self._opened() as stream:
            self._size = stream.seek(0, io.SEEK_END)
            if self._size == 0:
                raise AudioError(f"{self._path}: empty file (0 bytes)")
            stream.seek(0)
            self._start = stream.read(16)
            self._kind = containers.sniff(stream)
            if self._kind and not self._kind.library:
                raise AudioError(f"{self._path}: {self._kind.name} is not supported; convert it to WAV or FLAC first")
            fault, whole = containers.fault(stream, self._kind, self._size)
            # A decoder jumps over a gap: only what is before it tells its place. Salvaging wants what is behind it too.
            self._gap = whole < self._size
            layout = containers.layout(stream, self._kind, self._size) if self._kind else None
            if layout and layout.foreign:
                raise AudioError(
                    f"{self._path}: WAV file with a codec that is not supported ({layout.foreign}); "
                    "convert it to plain WAV or FLAC first"
                )
            self._parts = layout.parts if layout else ()
            self._wrapped_mp3 = layout is not None and layout.mp3
            spliced = 0
            if layout and layout.mp3:
                spliced, self._parts = containers.unwrapped_mp3(stream, layout)
            elif self._kind is containers.MP3 and not containers.mp3_has_length(stream):
                spliced, self._parts = containers.mp3_with_length(stream, self._size)
            elif self._kind is containers.OGG_FLAC:
                self._parts, fault = containers.unwrapped_flac(stream, self._size)
            elif self._uses_pyav or self._gap:  # the seek of a plain file raises where a damaged one sends it
                self._parts = ((0, self._size if self._salvage else whole),)
        self._spliced_mp3 = spliced > 0
        header = self._open_decoder()
        self._noisy = header.subtype.startswith("MPEG")
        if not MIN_RATE <= header.sample_rate <= MAX_RATE:
            raise AudioError(
                f"{self._path}: sample rate {header.sample_rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz; check its header"
            )
        if header.tracks > 1:
            self.warnings.append(f"{self._path}: holds {header.tracks} audio tracks; the first was read")
        self._tolerance = self._shortage_allowed(header)
        self.info = Info(self._path, header.sample_rate, header.channels, 0, header.format, header.subtype, header.tags)
        self._measure(header, layout, fault)

    def _measure(self, header: _Header, layout: containers.Layout | None, fault: str) -> None:
        """Settle the number of frames and what is known to be wrong before the first pass."""
        declared = header.declared
        if declared is not None and declared > self._size * _FRAMES_PER_BYTE:
            declared, fault = None, fault or "its header declares more than the file can hold"
        if layout and layout.damage:
            fault = layout.damage
        readable = declared
        if layout and layout.declared > layout.available:
            fault = "the file ends before its data does"
            declared = round((readable or 0) * layout.declared / max(layout.available, 1))
            if declared > self._size * _FRAMES_PER_BYTE:
                declared = None
        self._declared, self._fault = declared, fault
        vague = self._uses_pyav or self._spliced_mp3
        if self._salvage or readable is None or vague:
            readable, reason = self._survey()
            self._fault = fault or reason
        self._readable = readable
        exact = self._salvage or (vague and not self._fault)
        self.info = replace(self.info, frames=readable if exact or declared is None else declared)
        if self._salvage and self._fault:
            of = f" of {clock(declared / self.info.sample_rate, 1)}" if declared and declared > readable else ""
            first = "" if self._gap or self._fault == _SHORT else "the first "
            self.warnings.append(
                f"{self._path}: truncated or damaged {self._kind_name} file ({self._fault}): "
                f"kept {first}{clock(readable / self.info.sample_rate, 1)}{of}"
            )

    @property
    def _uses_pyav(self) -> bool:
        return self._kind is not None and self._kind.library == "pyav"

    @property
    def _kind_name(self) -> str:
        return self._kind.name if self._kind else self.info.format

    def _shortage_allowed(self, header: _Header) -> int:
        """Frames that may be missing without damage: containers of PyAV round durations, a cut MP3 lacks what its first frames
        refer to."""
        if self._uses_pyav:
            return round(0.25 * header.sample_rate)
        return 4 * 1152 if self._spliced_mp3 else 0

    def _survey(self) -> tuple[int, str]:
        """``(frames readable, what is wrong)`` by decoding everything once."""
        frames, reason = 0, ""
        try:
            for piece in self._decode():
                frames += len(piece)
        except _DamageError as error:
            reason = str(error)
        return frames, reason or self._shortage(frames)

    def _shortage(self, frames: int) -> str:
        short = self._declared is not None and frames + self._tolerance < self._declared
        return _SHORT if short else ""

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The bytes, from their beginning, with a position of their own."""
        try:
            if self._stream is not None:
                size = self._stream.seek(0, io.SEEK_END)
                yield cast(BinaryIO, Spliced(self._stream, [(0, size)]))
                return
            with open(self._path, "rb") as stream:
                yield stream
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or a closed stream
            raise AudioError(f"{self._path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None

    def _open_decoder(self) -> _Header:
        with self._opened() as stream:
            media = self._media(stream)
            try:
                if self._uses_pyav:
                    return _pyav_header(self._path, cast(Container, self._kind), media)
                header = self._sndfile_header(media)
                if self._wrapped_mp3:
                    header = replace(header, format="WAV", tags=self._tags_around(stream))
                return header
            except _DamageError as error:
                kind = self._kind
                if kind is None or (kind.short_magic and not self._start.startswith(b"ID3")):
                    said = containers.excerpt(self._start)
                    raise AudioError(f"{self._path}: not audio (starts with {said}); give an audio file") from None
                if str(error) == _NO_DECODER:
                    raise AudioError(
                        f"{self._path}: {kind.name} file with a codec that is not supported; convert it to WAV or FLAC first"
                    ) from None
                instead = ", or keep what there is (--salvage)" if self._gap and not self._salvage else ""
                raise AudioError(
                    f"{self._path}: damaged or truncated {kind.name} file ({error}); get the file again{instead}"
                ) from None

    def _tags_around(self, stream: BinaryIO) -> dict[str, str]:
        """The tags of a WAV whose samples are an MP3."""
        try:
            return self._sndfile_header(cast(BinaryIO, Spliced(stream, [(0, self._size)]))).tags
        except _DamageError:
            return {}

    def _sndfile_header(self, media: BinaryIO) -> _Header:
        with _quiet_decoder(self._noisy), _sndfile(media) as file:
            return _sndfile_header(file)

    def _media(self, stream: BinaryIO) -> BinaryIO:
        return cast(BinaryIO, Spliced(stream, self._parts)) if self._parts else stream

    def _decode(self) -> Iterator[np.ndarray]:
        """Pieces float32 ``(n, C)`` of one pass; _DamageError where the decoder cannot go on."""
        with self._opened() as stream:
            media = self._media(stream)
            if self._uses_pyav:
                pieces = _pyav_pieces(cast(Container, self._kind), media, self.info.sample_rate, self.info.channels)
            else:
                # Short enough to say to a tenth of a second where damage begins, and to keep what is before it.
                step = min(4096, max(64, self.info.sample_rate // 20), max(1, (1 << 20) // self.info.channels))
                pieces = _sndfile_pieces(media, step, self._noisy)
            yield from pieces
            for level in (media, stream):
                if isinstance(level, Spliced) and level.error:
                    raise level.error

    def blocks(self, frames: int = _BLOCK) -> Iterator[np.ndarray]:
        """Yield float32 ``(C, n)``, ``n`` = ``frames`` except in the last block, from the start at every call.

        Raises AudioError where the damage is: before the first block for a file that was seen to be cut, else after the
        last sound sample; and for NaN or Inf, unless the reader was told to replace them.
        """
        if frames < 1:
            raise ConfigError(f"frames must be 1 or more, not {frames}")
        if self._fault and not self._salvage:
            raise self._damage(self._fault, self._readable)
        waiting: list[np.ndarray] = []
        held = done = 0
        reason = ""
        pieces = self._finite_pieces()
        while True:
            try:
                piece = next(pieces, None)
            except _DamageError as error:
                piece, reason = None, str(error)
            if piece is not None:
                waiting.append(piece)
                held += len(piece)
                if held < frames:
                    continue
            whole = np.concatenate(waiting) if len(waiting) > 1 else waiting[0] if waiting else np.zeros((0, 0), np.float32)
            complete = held - held % frames if piece is not None else held
            for start in range(0, complete, frames):
                block = whole[start : min(start + frames, complete)]
                done += len(block)
                yield np.ascontiguousarray(block.T)
            waiting, held = [whole[complete:]], held - complete
            if piece is None:
                break
        reason = reason or self._shortage(done)
        if reason and not self._salvage:
            raise self._damage(reason, done)

    def _finite_pieces(self) -> Iterator[np.ndarray]:
        rate = self.info.sample_rate
        done = replaced = 0
        place = ""
        for piece in self._decode():
            finite = np.isfinite(piece)
            if not finite.all():
                frame, channel = np.argwhere(~finite)[0]
                at = f"at {(done + frame) / rate:.4f} s in channel {channel + 1}"
                if self._nan == "refuse":
                    name = nonfinite_name(piece[frame, channel])
                    raise AudioError(
                        f"{self._path}: {name} {at}; repair or export the file again, or read it as zero (--nan zero)"
                    )
                place = place or at
                replaced += int((~finite).sum())
                piece[~finite] = 0
            done += len(piece)
            yield piece
        if replaced:
            sentence = f"{self._path}: {replaced} samples that were NaN or Inf were replaced by zero, the first {place}"
            if sentence not in self.warnings:
                self.warnings.append(sentence)

    def _damage(self, reason: str, frames: int) -> AudioError:
        rate, declared = self.info.sample_rate, self._declared
        says = f"the header says {clock(declared / rate, 1)}, " if declared is not None and declared > frames else ""
        there = f"there are {clock(frames / rate, 1)}" if reason == _SHORT else f"the sound stops at {clock(frames / rate, 1)}"
        instead = ", or keep what there is (--salvage)" if frames or self._gap else ""
        return AudioError(
            f"{self._path}: truncated or damaged {self._kind_name} file ({reason}): {says}{there}; get the file again{instead}"
        )


def read(path: str | os.PathLike[str]) -> tuple[np.ndarray, Info]:
    """Read a whole file: ``(x, info)`` with ``x`` float32 ``(C, T)``; a file of 0 frames gives ``(C, 0)``.

    Raises AudioError, one sentence naming the file, the place and what to do: missing, a folder, empty, not audio, a
    format without a decoder, truncated or damaged (fewer frames than declared), NaN or Inf, a sample rate outside 2 to
    384 kHz.
    """
    with Reader(path) as reader:
        blocks = list(reader.blocks())
        x = np.concatenate(blocks, axis=1) if blocks else np.zeros((reader.info.channels, 0), np.float32)
        return x, replace(reader.info, frames=x.shape[1])


def _check_regular(path: Path) -> None:
    try:
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if path.is_dir():
            raise AudioError(f"{path}: is a folder; give an audio file")
        if not path.is_file():
            raise AudioError(f"{path}: not a regular file; save it to a file first")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """Bytes in memory up to a size, beyond it in an unnamed temporary file."""

    name = ""


def _can_seek(stream: BinaryIO) -> bool:
    try:
        return stream.seekable()
    except (AttributeError, ValueError):
        return False


@contextlib.contextmanager
def _spooled(stream: BinaryIO, name: str) -> Iterator[BinaryIO]:
    with _Spool(max_size=_SPOOL_BYTES) as spool:
        spool.name = name
        try:
            shutil.copyfileobj(stream, spool, 1 << 20)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                folder = tempfile.gettempdir()
                raise OutputError(f"{name}: no space left in {folder} to hold it; set TMPDIR to a folder with more") from None
            raise AudioError(f"{name}: cannot be read ({error.strerror or error})") from None
        spool.seek(0)
        yield cast(BinaryIO, spool)


@contextlib.contextmanager
def stdin_source() -> Iterator[BinaryIO]:
    """Standard input as a stream for `Reader`: itself where it is a file, else spooled, in memory up to 256 MB and beyond
    that in an unnamed temporary file. Raises AudioError for a terminal, OutputError where the spool finds no space."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise AudioError("<stdin>: is closed; give a file or pipe audio into it")
    if stream.isatty():
        raise AudioError("<stdin>: is a terminal; give a file or pipe audio into it")
    if _can_seek(stream):
        yield stream
        return
    with _spooled(stream, "<stdin>") as spool:
        yield spool


@contextlib.contextmanager
def _signals_wait(needed: bool) -> Iterator[None]:
    """Ctrl-C and SIGTERM, raised in a Python callback, would be lost in C or pass for damage: they wait for the call's end."""
    if not needed or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        try:  # as either may raise as soon as it is in place again
            signal.signal(signal.SIGTERM, signal.SIG_DFL if terminate is None else terminate)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL if interrupt is None else interrupt)
        for late in came:
            signal.raise_signal(late)


@contextlib.contextmanager
def _sndfile(media: BinaryIO) -> Iterator[sf.SoundFile]:
    # A real file is handed over by its descriptor: Ctrl-C raised inside a Python callback would be lost in C.
    source: Any = media if isinstance(media, Spliced) else media.fileno()
    try:
        with _signals_wait(not isinstance(source, int)):
            file = sf.SoundFile(source, "r", closefd=False) if isinstance(source, int) else sf.SoundFile(source, "r")
    except _HOSTILE as error:
        raise _DamageError(_reason(error)) from None
    try:
        yield file
    finally:
        with contextlib.suppress(*_HOSTILE):
            file.close()


def _sndfile_header(file: sf.SoundFile) -> _Header:
    try:
        tags = {name: text for name, text in file.copy_metadata().items() if name in _TAGS and text}
        declared = file.frames if 0 <= file.frames < _UNKNOWN_FRAMES else None
        return _Header(file.samplerate, file.channels, declared, file.format, file.subtype, tags)
    except _HOSTILE as error:
        raise _DamageError(_reason(error)) from None


def _sndfile_pieces(media: BinaryIO, step: int, noisy: bool) -> Iterator[np.ndarray]:
    with contextlib.ExitStack() as stack:
        with _quiet_decoder(noisy):
            file = stack.enter_context(_sndfile(media))
        while True:
            piece = np.empty((step, file.channels), np.float32)
            with _quiet_decoder(noisy), _signals_wait(isinstance(media, Spliced)):
                # soundfile's own read seeks after every block, which fails at the end of a stream of unknown length, and
                # drops what was decoded before an error.
                count = sf._snd.sf_readf_float(file._file, sf._ffi.cast("float *", piece.ctypes.data), step)
            code = sf._snd.sf_error(file._file)
            if count > 0:
                yield piece[:count]
            if code:
                raise _DamageError(_reason(sf.LibsndfileError(code)))
            if count <= 0:
                return


def _import_av(path: Path, kind: Container) -> Any:
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{path}: {kind.name} needs PyAV (pip install 'bwe[formats]'); install it, or convert the file to WAV or FLAC"
        ) from None
    return av


def _refuse_other_file(url: str, *_: object) -> BinaryIO:
    raise PermissionError(errno.EACCES, "a container may not open another file", url)


@contextlib.contextmanager
def _pyav(kind: Container, media: BinaryIO) -> Iterator[Any]:
    """The opened container. The demuxer is forced and works on an open file: no playlist, no other file and no address."""
    import av

    try:
        with _signals_wait(True):
            container: Any = av.open(media, "r", format=kind.demuxer, metadata_errors="replace", io_open=_refuse_other_file)
    except (av.error.FFmpegError, *_HOSTILE) as error:
        raise _DamageError(_reason(error)) from None
    with container:
        yield container


def _pyav_header(path: Path, kind: Container, media: BinaryIO) -> _Header:
    av = _import_av(path, kind)
    with _pyav(kind, media) as container:
        if not container.streams.audio:
            raise AudioError(f"{path}: {kind.name} file without an audio track; give one that has sound")
        stream = container.streams.audio[0]
        tags = {}
        for key, text in {**stream.metadata, **container.metadata}.items():
            name = _FFMPEG_TAGS.get(key.lower(), key.lower())
            if name in _TAGS and text:
                tags[name] = text
        try:
            # Only a decoded frame tells the rate of HE-AAC: its header has that of the lower half of the band.
            with _signals_wait(True):
                frame = next(container.decode(stream), None)
        except (av.error.FFmpegError, *_HOSTILE) as error:
            raise _DamageError(_reason(error)) from None
        context = stream.codec_context
        rate, channels = (frame.sample_rate, frame.layout.nb_channels) if frame else (context.sample_rate, context.channels)
        if not rate or not channels:
            raise _DamageError("no sample rate")
        seconds = _pyav_seconds(container, stream, kind)
        declared = None if seconds is None else round(seconds * rate)
        name = kind.name.split(" (")[0]
        subtype = _pyav_subtype(context.name, frame.format.name if frame else "")
        return _Header(rate, channels, declared, name, subtype, tags, len(container.streams.audio))


def _pyav_seconds(container: Any, stream: Any, kind: Container) -> float | None:
    """Duration in s that the container declares for a stream; None where FFmpeg could only guess."""
    if kind.demuxer in ("aac", "ac3", "eac3", "amr", "ogg"):
        return None
    if stream.duration and stream.time_base:
        return max(0.0, float(stream.duration * stream.time_base))
    only = len(container.streams) == 1
    return max(0.0, container.duration / 1e6) if only and container.duration else None


def _pyav_subtype(codec: str, sample_format: str) -> str:
    """libsndfile's name of the nearest sample format of an FFmpeg codec; the codec's own name for lossy ones."""
    pcm = re.match(r"pcm_([suf])(8|16|24|32|64)", codec)
    if pcm:
        return {"f32": "FLOAT", "f64": "DOUBLE", "u8": "PCM_U8", "s8": "PCM_S8"}.get(pcm[1] + pcm[2], f"PCM_{pcm[2]}")
    bits = {"u8": 16, "s16": 16, "s32": 24}.get(sample_format.removesuffix("p"))
    if codec == "alac" and bits:
        return f"ALAC_{bits}"
    if codec in ("flac", "wavpack", "ape", "tta"):
        return f"PCM_{bits}" if bits else "FLOAT"
    return "MPEG_LAYER_III" if codec.startswith("mp3") else codec.upper()


def _pyav_pieces(kind: Container, media: BinaryIO, rate: int, channels: int) -> Iterator[np.ndarray]:
    import av

    with _pyav(kind, media) as container:
        if not container.streams.audio:
            raise _DamageError("its audio track is gone")
        stream = container.streams.audio[0]
        if stream.codec_context.name == "flac":  # its frames carry checksums, which FFmpeg otherwise ignores
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        frames = container.decode(stream)
        while True:
            try:
                with _signals_wait(True):
                    frame = next(frames, None)
                if frame is None:
                    return
                same = (frame.sample_rate, frame.layout.nb_channels) == (rate, channels)
                piece = _frame_samples(frame, channels) if same else None
            except (av.error.FFmpegError, *_HOSTILE) as error:
                # Some decoders return a bare -1, which reads as EPERM.
                unsaid = getattr(error, "errno", None) == errno.EPERM
                raise _DamageError("invalid data" if unsaid else _reason(error)) from None
            if piece is None:
                raise _DamageError(
                    f"it changes from {rate} Hz and {channels} channels to "
                    f"{frame.sample_rate} Hz and {frame.layout.nb_channels} channels"
                )
            yield piece


def _frame_samples(frame: Any, channels: int) -> np.ndarray:
    """Samples of a decoded frame, float32 ``(n, C)``, full scale ±1."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return (samples / 2.0 ** (8 * samples.itemsize - 1)).astype(np.float32)
    return samples.astype(np.float32)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error)
    text = text.removeprefix("Error :").removeprefix("Error in").strip(" .:\n")
    return text if text.isascii() and text.isprintable() and text else "the decoder gives no reason"


def nonfinite_name(value: float) -> str:
    """``NaN`` or ``Inf``."""
    return "NaN" if np.isnan(value) else "Inf"


@contextlib.contextmanager
def _quiet_decoder(needed: bool) -> Iterator[None]:
    """Keep what mpg123, inside libsndfile, prints from C on file descriptor 2 away from the user."""
    if not needed:
        yield
        return
    with _stderr_lock:
        try:
            saved = os.dup(2)
        except OSError:  # no stderr at all
            yield
            return
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def output_format(path: str | os.PathLike[str]) -> str:
    """libsndfile's name of the container that the extension of ``path`` stands for; OutputError where there is none."""
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        known = ", ".join(sorted(set(_FORMATS) - {".wave", ".oga", ".aif"}))
        said = f"{suffix!r} is not an output format" if suffix else "an output needs an extension that says its format"
        raise OutputError(f"{path}: {said}; use one of {known}")
    return _FORMATS[suffix]


def fitting_subtype(path: str | os.PathLike[str], subtype: str | None) -> str:
    """The sample format to write to ``path``: that of the input where the container has it and it has 16 bits or more.

    Otherwise the nearest: FLOAT becomes PCM_24 in FLAC, 8-bit and telephone codecs PCM_16, everything Vorbis in .ogg.
    """
    file_format = output_format(path)
    if Path(path).suffix.lower() == ".opus":
        return "OPUS"
    if file_format in _DEFAULT_SUBTYPES:
        options = _DEFAULT_SUBTYPES[file_format]
        return subtype if subtype in options else options[0]
    subtype = _LOSSLESS.get(subtype or "", subtype)
    wanted = subtype if subtype in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE") else "PCM_16"
    return wanted if sf.check_format(file_format, wanted) else "PCM_24"


def can_hold(path: str | os.PathLike[str], sample_rate: int, channels: int) -> bool:
    """Whether the format that the extension of ``path`` stands for takes this sample rate and number of channels."""
    try:
        _check_capacity(Path(path), fitting_subtype(path, None), sample_rate, channels)
    except OutputError:
        return False
    return True


def _check_capacity(path: Path, subtype: str, sample_rate: int, channels: int) -> None:
    file_format = output_format(path)
    name = {"MPEG_LAYER_III": "MP3", "OPUS": "Opus", "VORBIS": "Ogg Vorbis"}.get(subtype, file_format)
    instead = "; write .wav or .flac instead"
    if not sf.check_format(file_format, subtype):
        raise OutputError(f"{path}: {file_format} cannot hold {subtype} samples{instead}")
    top = _MAX_RATES.get(subtype, _MAX_RATES.get(file_format, MAX_RATE))
    if sample_rate not in _RATES.get(subtype, (sample_rate,)) or sample_rate > top:
        raise OutputError(f"{path}: {name} cannot hold {sample_rate} Hz{instead}")
    if channels > _MAX_CHANNELS.get(file_format, 1024):
        raise OutputError(f"{path}: {name} cannot hold {channels} channels; write .wav instead")


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise OutputError, before any work is done, where `write` to ``path`` could only fail."""
    path = Path(path)
    output_format(path)
    check_place(path, overwrite)


def check_place(path: Path, overwrite: bool = False) -> None:
    """Raise OutputError where no file of any kind can be put at ``path``."""
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; give a file name")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: exists and is not a regular file; choose another name")
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; choose another name or overwrite it (--overwrite)")
        folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise OutputError(f"{path}: the folder {folder} does not exist; make it first")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{path}: the folder {folder} is not writable")
    except OSError as error:  # a name that is too long, a loop of links
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another name") from None


class Writer:
    """Writes an audio file of any length block by block; use it in a ``with`` statement.

    A file appears under its name, complete, at a clean exit of the ``with`` statement, or not at all. PCM is clipped at full
    scale, and 16 bits and fewer are dithered (triangular, two steps wide, the same sequence on every run and in every
    channel), except where the signal is silent: digital silence stays digital silence. FLOAT and DOUBLE are never clipped.
    The result does not depend on how the signal is split into blocks.

    Args:
        target: a path, whose extension says the format, or a binary stream such as ``sys.stdout.buffer``, which gets a WAV
            without sizes in its header and need not be able to seek.
        sample_rate: Hz.
        channels: their number; they are kept in order.
        subtype: libsndfile's name of the sample format (``PCM_16``, ``PCM_24``, ``FLOAT``, ``VORBIS`` …), by default 16-bit
            PCM or what the container has. A stream takes PCM_16, PCM_24 and FLOAT.
        frames: how many will be written, where that is known: used to check the free space before, and to choose RF64.
        overwrite: replace a file that exists.
        tags: by libsndfile's names (see `Info`); what the container cannot hold is left out.

    Attributes:
        clipped: samples that exceeded full scale and were clipped.
        peak: largest magnitude that was given.

    Raises:
        OutputError: it exists and ``overwrite`` is false, the folder is missing or read-only, no space is left, the format
            cannot hold this sample rate, sample format, channel count or length.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        sample_rate: int,
        channels: int,
        subtype: str | None = None,
        *,
        frames: int | None = None,
        overwrite: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.clipped, self.peak = 0, 0.0
        self._rate, self._channels, self._frames = sample_rate, channels, frames
        self._overwrite = overwrite
        self._tags = {name: _printable(text) for name, text in (tags or {}).items() if name in _TAGS and _printable(text)}
        self._written = 0
        self._encoder: _SndfileEncoder | _StreamEncoder | None = None
        # Runs of dither and blocks of a lossy encoder begin at multiples of this, at most a second apart: longer writes
        # overflow the stack of libsndfile's Vorbis encoder.
        length = max(1, min(_BLOCK, sample_rate) // _DITHER_RUN) * _DITHER_RUN
        self._block, self._filled = np.empty((channels, length)), 0
        self._dither = np.random.default_rng(0)
        if isinstance(target, str | os.PathLike):
            self._path, self._stream = Path(target), None
            self._subtype = subtype or fitting_subtype(self._path, None)
            check_output(self._path, overwrite)
            _check_capacity(self._path, self._subtype, sample_rate, channels)
            self._format = self._container()
            if frames == 0:
                self._refuse_nothing()
            self._file = Path(os.path.realpath(self._path))
            if frames is not None:
                self._check_space()
        else:
            name = getattr(target, "name", None)
            self._path, self._stream = Path(name if isinstance(name, str) else "<stream>"), target
            self._subtype, self._format = subtype or "PCM_16", "WAV"
            _check_stream(self._path, self._subtype, sample_rate, channels)

    def _container(self) -> str:
        name = output_format(self._path)
        predicted = None if self._frames is None else self._predicted()
        if predicted is not None and predicted > _MAX_RIFF_BYTES and name in ("AIFF", "AU"):
            raise OutputError(f"{self._path}: {name} cannot hold {megabytes(predicted)}; write .wav or .flac instead")
        # A length that nobody knows may pass 4 GiB: such a file starts as RF64 and becomes WAV if it stays below.
        large = predicted is None or predicted > _MAX_RIFF_BYTES
        return "RF64" if name == "WAV" and large and sf.check_format("RF64", self._subtype) else name

    def _predicted(self) -> int:
        return _predicted_bytes((self._channels, max(self._frames or 0, self._written)), self._rate, self._subtype)

    def _refuse_nothing(self) -> None:
        if self._format in ("FLAC", "MP3") or self._subtype == "OPUS":
            raise OutputError(f"{self._path}: {self._format} cannot hold a signal of 0 samples; write .wav instead")

    def _check_space(self) -> None:
        needed, free = self._predicted(), shutil.disk_usage(self._file.parent).free
        if free < needed:
            raise self._no_space(needed, free)

    def _no_space(self, needed: int, free: int) -> OutputError:
        return OutputError(
            f"{self._path}: no space left in {self._file.parent} (needs {megabytes(needed)}, {megabytes(free)} free); "
            "make room or choose another folder"
        )

    def __enter__(self) -> Self:
        if self._stream is not None:
            with self._failures():
                self._encoder = _StreamEncoder(self._stream, self._rate, self._channels, self._subtype, self._tags)
            return self
        self._temporary, self._handle = self._file.parent / _temporary_name(), -1
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
            with _signals_wait(True):  # one between the file and its descriptor would leave it behind
                self._handle = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror}); choose another folder") from None
        except BaseException:
            self._discard()
            raise
        try:
            if os.name == "posix" and self._file.exists():  # what nobody else may read stays so
                os.fchmod(self._handle, self._file.stat().st_mode & 0o777)
            with self._failures():
                may_shrink = self._format == "RF64" and output_format(self._path) == "WAV" and self._frames is None
                self._encoder = _SndfileEncoder(
                    self._handle, self._rate, self._channels, self._subtype, self._format, self._tags, may_shrink
                )
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def write(self, x: np.ndarray) -> None:
        """Append ``x``, float ``(C, n)``. Raises AudioError for another shape or type, NaN or Inf; OutputError where the
        file cannot take it."""
        if self._encoder is None:
            raise OutputError(f"{self._path}: the writer is not open; use it in a with statement")
        if x.ndim != 2 or x.shape[0] != self._channels or not np.issubdtype(x.dtype, np.floating):
            raise AudioError(
                f"{self._path}: write takes float audio of shape (C, n) with C = {self._channels}, not {x.dtype} {x.shape}"
            )
        for start in range(0, x.shape[1], self._block.shape[1]):
            self._take(x[:, start : start + self._block.shape[1]])

    def _take(self, part: np.ndarray) -> None:
        if self._subtype == "FLOAT":  # in which 1e39 is infinite
            with np.errstate(over="ignore"):
                part = part.astype(np.float32)
        finite = np.isfinite(part)
        if not finite.all():
            channel, frame = np.argwhere(~finite)[0]
            name = nonfinite_name(part[channel, frame])
            at = (self._written + frame) / self._rate
            raise AudioError(f"{self._path}: {name} at {at:.4f} s in channel {channel + 1}; not written")
        size = np.abs(part)
        self.peak = max(self.peak, float(size.max(initial=0)))
        if self._subtype not in ("FLOAT", "DOUBLE"):
            self.clipped += int((size > 1).sum())
        self._written += part.shape[1]
        self._check_riff_size()
        length = self._block.shape[1]
        first = min(part.shape[1], length - self._filled)
        self._block[:, self._filled : self._filled + first] = part[:, :first]
        self._filled += first
        if self._filled == length:
            self._flush()
            self._filled = part.shape[1] - first
            self._block[:, : self._filled] = part[:, first:]

    def _check_riff_size(self) -> None:
        if self._stream is None and self._format in ("WAV", "AIFF", "AU") and self._subtype not in _LOSSY:
            size = _predicted_bytes((self._channels, self._written), self._rate, self._subtype)
            if size > _MAX_RIFF_BYTES:
                raise OutputError(
                    f"{self._path}: {self._format} cannot hold more than 4 GiB; write .w64 or .flac, or say the length before"
                )

    def _flush(self) -> None:
        part, self._filled = self._block[:, : self._filled], 0
        bits = _PCM_BITS.get(self._subtype)
        if bits is not None:
            part = quantise(part, bits, self._dither)
        elif self._subtype not in ("FLOAT", "DOUBLE"):
            part = part.clip(-1, 1)
        with self._failures():
            cast(Any, self._encoder).write(np.ascontiguousarray(part.T))

    def _finish(self) -> None:
        if self._filled:
            self._flush()
        if self._written == 0:
            self._refuse_nothing()
        encoder, self._encoder = self._encoder, None
        with self._failures():
            cast(Any, encoder).close()
            if self._stream is not None:
                return
            os.fsync(self._handle)
            if not self._overwrite and self._file.exists():
                raise OutputError(f"{self._path}: exists already; choose another name or overwrite it (--overwrite)")
            if os.name == "nt":  # Windows renames no open file
                self._close_handle()
            os.replace(self._temporary, self._file)
            _sync_folder(self._file.parent)

    def _discard(self) -> None:
        """Close what is open and remove the temporary file, if it is still there."""
        encoder, self._encoder = self._encoder, None
        if self._stream is not None:
            return
        if encoder is not None:
            with contextlib.suppress(*_HOSTILE):
                encoder.close()
        self._close_handle()
        self._temporary.unlink(missing_ok=True)

    def _close_handle(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except BweError:
            raise
        except (sf.SoundFileError, OSError, RuntimeError, ValueError, AssertionError) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> OutputError:
        if self._stream is not None:
            return OutputError(f"{self._path}: writing failed ({_reason(error)}); what was sent so far is incomplete")
        used = os.fstat(self._handle).st_size if self._handle >= 0 else 0
        free = shutil.disk_usage(self._file.parent).free + used
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._no_space(max(self._predicted(), used + 1), free)
        return OutputError(f"{self._path}: writing failed ({_reason(error)}; {megabytes(free)} free); nothing was written")


def write(path: str | os.PathLike[str], x: np.ndarray, sr: int, subtype: str | None = None, overwrite: bool = False) -> int:
    """Write ``x``, float ``(C, T)``, to ``path`` in the format of its extension; returns how many samples were clipped.

    The rules are those of `Writer`. The file appears complete or not at all. Raises OutputError where it cannot be written
    and AudioError for another shape or type, NaN or Inf in ``x``.
    """
    if x.ndim != 2 or x.shape[0] < 1 or not np.issubdtype(x.dtype, np.floating):
        raise AudioError(f"{path}: write takes float audio of shape (C, T), not {x.dtype} {x.shape}")
    with Writer(path, sr, x.shape[0], subtype, frames=x.shape[1], overwrite=overwrite) as writer:
        writer.write(x)
    return writer.clipped


class _Sink:
    """A file descriptor as libsndfile's callbacks use it, through which no exception passes: ``error`` keeps the first."""

    def __init__(self, handle: int) -> None:
        self.error: OSError | None = None
        self._handle = handle

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while self.error is None and len(rest):
                rest = rest[os.write(self._handle, rest) :]
        except OSError as error:
            self.error = error
        return len(data) - len(rest)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return os.lseek(self._handle, offset, whence)
        except OSError as error:
            self.error = self.error or error
            return -1

    def tell(self) -> int:
        return self.seek(0, os.SEEK_CUR)


class _SndfileEncoder:
    """libsndfile on a file descriptor, which stays open. OSError says what the disk refused."""

    def __init__(
        self, handle: int, sr: int, channels: int, subtype: str, file_format: str, tags: Mapping[str, str], may_shrink: bool
    ) -> None:
        quality = {"compression_level": 0.0} if subtype in _LOSSY else {}
        self._sink = _Sink(handle)
        with self._failures():
            self._file = sf.SoundFile(self._sink, "w", sr, channels, subtype, format=file_format, **quality)
            # The PEAK chunk holds the time of day: the same sound would not be the same file twice.
            self._command(_SET_ADD_PEAK_CHUNK, 0)
            if may_shrink:
                self._command(_RF64_AUTO_DOWNGRADE, 1)
            for name, text in tags.items():
                with contextlib.suppress(sf.LibsndfileError):  # a container without room for this tag
                    setattr(self._file, name, text)

    def _command(self, number: int, value: int) -> None:
        sf._snd.sf_command(self._file._file, number, sf._ffi.NULL, value)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """libsndfile says of a disk that takes no more only that there was an error, and inside its close not even that."""
        try:
            with _signals_wait(True):
                yield
        except Exception:
            if self._sink.error is not None:
                raise self._sink.error from None
            raise
        if self._sink.error is not None:
            raise self._sink.error

    def write(self, block: np.ndarray) -> None:
        with self._failures():
            self._file.write(block)

    def close(self) -> None:
        with self._failures():
            self._file.close()


class _StreamEncoder:
    """A WAV for a pipe: its header says that the sizes are not known (2**32 - 1)."""

    def __init__(self, stream: BinaryIO, sr: int, channels: int, subtype: str, tags: Mapping[str, str]) -> None:
        self._stream, self._subtype = stream, subtype
        size = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}[subtype]
        code = 3 if subtype == "FLOAT" else 1
        shape = struct.pack("<HIIHH", channels, sr, sr * channels * size, channels * size, 8 * size)
        if channels > 2:  # WAVE_FORMAT_EXTENSIBLE, no loudspeakers assigned
            guid = struct.pack("<H", code) + bytes.fromhex("000000001000800000aa00389b71")
            form = struct.pack("<H", 0xFFFE) + shape + struct.pack("<HHI", 22, 8 * size, 0) + guid
        else:
            form = struct.pack("<H", code) + shape
        entries = [(_RIFF_TAGS[tag], text.encode() + b"\0") for tag, text in tags.items() if tag in _RIFF_TAGS]
        info = b"".join(key + struct.pack("<I", len(text)) + text + bytes(len(text) % 2) for key, text in entries)
        chunks = b"fmt " + struct.pack("<I", len(form)) + form
        if info:
            chunks += b"LIST" + struct.pack("<I", 4 + len(info)) + b"INFO" + info
        self._send(b"RIFF\xff\xff\xff\xffWAVE" + chunks + b"data\xff\xff\xff\xff")

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while len(rest):  # an unbuffered pipe takes a part at a time
            count = cast(int | None, self._stream.write(rest))
            if count is None and isinstance(cast(object, self._stream), io.RawIOBase):
                raise BlockingIOError(errno.EAGAIN, "it takes no more without waiting")
            rest = rest[len(rest) if count is None else count :]

    def write(self, block: np.ndarray) -> None:
        if self._subtype == "FLOAT":
            self._send(block.astype("<f4").tobytes())
        elif self._subtype == "PCM_16":
            self._send((block >> 16).astype("<i2").tobytes())
        else:
            self._send(block.astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes())

    def close(self) -> None:
        self._stream.flush()


def _check_stream(path: Path, subtype: str, sample_rate: int, channels: int) -> None:
    if subtype not in ("PCM_16", "PCM_24", "FLOAT"):
        raise OutputError(f"{path}: a stream takes PCM_16, PCM_24 or FLOAT samples, not {subtype}; choose one of them")
    if not 1 <= channels <= 1024 or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise OutputError(f"{path}: WAV cannot hold {channels} channels at {sample_rate} Hz; use up to 1024 and {MAX_RATE} Hz")


def _printable(text: str) -> str:
    """``text`` as UTF-8 and C strings can hold it."""
    return text.split("\0")[0].encode("utf-8", "replace").decode("utf-8").strip()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@functools.cache
def _machine() -> str:
    """Eight hex digits for this boot of this machine and, in a container, this set of process numbers."""
    parts = [os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _start_time(pid: int) -> int | None:
    """When a process started, in ticks since boot: with its number, its name for good. None where there is none such."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        return int(text[text.rindex(b")") + 1 :].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _temporary_name() -> str:
    pid = os.getpid()
    return f".bwe-{pid}-{_machine()}.{_start_time(pid) or 0}-{secrets.token_hex(6)}.tmp"


def sweep(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files in ``folder`` whose process is gone; returns how many.

    Those of another machine or container, and all where there is no /proc, go after a day without a change.
    """
    removed = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            pid, machine, started = int(match[1]), match[2], int(match[3])
            if machine == _machine() and started:
                stale = _start_time(pid) != started
            else:
                stale = time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S
            if stale:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    removed += 1
    return removed


def _predicted_bytes(shape: tuple[int, ...], sr: int, subtype: str) -> int:
    channels, frames = shape
    if subtype in _LOSSY:  # 320 kbit/s and a header
        return round(frames / sr * 40_000 * max(1, channels / 2)) + 8192
    return channels * frames * {"FLOAT": 32, "DOUBLE": 64}.get(subtype, _PCM_BITS.get(subtype, 16)) // 8 + 8192


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def quantise(x: np.ndarray, bits: int, dither: np.random.Generator) -> np.ndarray:
    """Float ``(C, T)`` to the ``bits`` most significant bits of int32, with triangular dither for 16 bits and fewer."""
    scaled = x.astype(np.float64) * 2.0 ** (bits - 1)
    if bits <= 16:
        frames = x.shape[1]
        runs = dither.random((-(-frames // _DITHER_RUN), 2, _DITHER_RUN))
        noise = (runs[:, 0] - runs[:, 1]).reshape(-1)[:frames]
        starts = np.arange(0, frames, _DITHER_RUN)
        sounding = np.maximum.reduceat(np.abs(x), starts, axis=1) > _SILENCE
        mask = np.repeat(sounding, _DITHER_RUN, axis=1)[:, :frames]
        scaled = np.where(mask, scaled + noise, 0.0)
    limit = 2.0 ** (bits - 1)
    return (np.clip(np.rint(scaled), -limit, limit - 1).astype(np.int64) << (32 - bits)).astype(np.int32)
