"""Audio files in and out: any length, any format libsndfile knows. The only module that touches soundfile.

Public audio is ``(C, T)`` float32, full scale ±1. A file is trusted only as far as it was checked: one that was cut,
damaged or mislabelled raises AudioError in one sentence instead of reading shorter than it says. A file that this
module wrote is complete: it appears under its name by a rename, after everything has reached the disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import soundfile as sf

from bwe.errors import AudioError, OutputError

MIN_RATE, MAX_RATE = 2_000, 384_000
Codec = Literal["mp3", "opus", "vorbis", "aac", "gsm", "amr", "ulaw", "alaw"]

_BLOCK = 1 << 16
_UNKNOWN_FRAMES = 1 << 48  # libsndfile reports 2**63 - 1 for streams that do not say how long they are

_FORMATS = {
    ".wav": "WAV", ".wave": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3",
    ".aiff": "AIFF", ".aif": "AIFF", ".caf": "CAF", ".w64": "W64", ".rf64": "RF64", ".au": "AU",
}  # fmt: skip
_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_DEFAULT_SUBTYPES = {"OGG": ("VORBIS", "OPUS"), "MP3": ("MPEG_LAYER_III",)}
_PCM_DEFAULTS = ("PCM_16", "PCM_24", "PCM_32", "FLOAT")
_LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_III"}
# Below what each encoder can do, some of them crash instead of refusing (Vorbis above 192 kHz).
_RATES = {
    "OPUS": (8_000, 12_000, 16_000, 24_000, 48_000),
    "MPEG_LAYER_III": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
}
# Codecs for `transcode`: container and sample format in libsndfile's names; encoder, decoder, sample format and delay in
# samples in FFmpeg's. Delays are measured: AAC's first frame is priming, AMR looks 5 ms ahead.
_SNDFILE_CODECS = {
    "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS"), "gsm": ("WAV", "GSM610"),
    "ulaw": ("AU", "ULAW"), "alaw": ("AU", "ALAW"),
}  # fmt: skip
_FFMPEG_CODECS = {"aac": ("aac", "aac", "fltp", 1024), "amr": ("libopencore_amrnb", "amrnb", "s16", 40)}
_TELEPHONE = (8_000,)
_CODEC_RATES = {
    "mp3": _RATES["MPEG_LAYER_III"], "opus": _RATES["OPUS"], "vorbis": _RATES["MPEG_LAYER_III"],
    "aac": _RATES["MPEG_LAYER_III"], "gsm": _TELEPHONE, "amr": _TELEPHONE, "ulaw": _TELEPHONE, "alaw": _TELEPHONE,
}  # fmt: skip
# Encoder (576) and decoder (529) delay of LAME, left in the sound where a frame is too short to hold the header that says so.
_LAME_DELAY = 1105
# Bit rates per channel in bit/s of Vorbis at 44.1 and 48 kHz, qualities -0.1 to 1 (libvorbis, rate_mapping_44_un).
_VORBIS_RATES = (32e3, 48e3, 60e3, 70e3, 80e3, 86e3, 96e3, 110e3, 120e3, 140e3, 160e3, 240e3)
_MAX_RATES = {"VORBIS": 192_000, "FLAC": 655_350}
_MAX_CHANNELS = {"MP3": 2, "FLAC": 8, "OGG": 255}

_DITHER_RUN = 1024
_SILENCE = 1e-6  # -120 dBFS, 1/30 of a 16-bit step: what is left of digital silence after resampling and filtering

_CONTAINERS = {
    b"RIFF": "WAV", b"RIFX": "WAV", b"RF64": "RF64", b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF", b"caff": "CAF",
    b".snd": "AU", b"riff": "W64", b"ID3\x02": "MP3", b"ID3\x03": "MP3", b"ID3\x04": "MP3",
}  # fmt: skip
_UNSUPPORTED = {
    b"\x30\x26\xb2\x75": "WMA (ASF)", b"\x1a\x45\xdf\xa3": "Matroska or WebM", b"\x0b\x77": "AC-3", b"#!AM": "AMR",
    b"MAC ": "Monkey's Audio", b"wvpk": "WavPack", b"TTA1": "TTA", b"DSD ": "DSD", b"FRM8": "DSD", b"MThd": "MIDI",
    b"FLV\x01": "FLV",
}  # fmt: skip

_stderr_lock = threading.Lock()


@dataclass(frozen=True)
class Info:
    """What was read: sample rate in Hz, channels, frames decoded, container and sample format in libsndfile's names."""

    path: Path
    sample_rate: int
    channels: int
    frames: int
    format: str
    subtype: str

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


def read(path: str | os.PathLike[str]) -> tuple[np.ndarray, Info]:
    """Read a whole file: ``(x, info)`` with ``x`` float32 ``(C, T)``; a file of 0 frames gives ``(C, 0)``.

    Raises AudioError, one sentence naming the file, the place and what to do: missing, a folder, empty, not audio, a
    format libsndfile has no decoder for, truncated or damaged (fewer frames than declared), NaN or Inf, a sample rate
    outside 2 to 384 kHz.
    """
    path = Path(path)
    head, size = _look(path)
    kind = _container(head)
    if kind is None:
        _refuse_unsupported(path, head)
    blocks: list[np.ndarray] = []
    failure = ""
    with open(path, "rb", buffering=0) as stream, _quiet_decoder(kind in (None, "MP3")):
        layout = _layout(stream, kind, size)
        source: Any = _with_data_size(stream, layout) if layout and layout.streaming else stream.fileno()
        stream.seek(0)  # libsndfile takes the position of a descriptor for the start of the file
        try:
            file = sf.SoundFile(source, "r", closefd=False) if isinstance(source, int) else sf.SoundFile(source, "r")
        except (sf.LibsndfileError, TypeError) as error:
            if kind is None or (kind == "MP3" and not head.startswith(b"ID3")):
                raise AudioError(f"{path}: not audio (starts with {_excerpt(head)})") from None
            raise AudioError(f"{path}: damaged or truncated {kind} file ({_reason(error)}); get the file again") from None
        with file:
            rate, channels, declared = file.samplerate, file.channels, file.frames
            file_format, subtype = file.format, file.subtype
            if not MIN_RATE <= rate <= MAX_RATE:
                raise AudioError(f"{path}: sample rate {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz; check its header")
            frames = 0
            try:
                while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                    _check_finite(path, block, frames, rate)
                    blocks.append(block.T)
                    frames += len(block)
            except sf.LibsndfileError as error:
                failure = _reason(error)
        if not failure:
            declared, failure = _missing_part(stream, kind, size, layout, frames, declared)
    if failure:
        says = f"the header says {clock(declared / rate, 1)}, " if frames < declared < _UNKNOWN_FRAMES else ""
        raise AudioError(
            f"{path}: truncated or damaged {kind or file_format} file ({failure}): {says}"
            f"the sound stops at {clock(frames / rate, 1)}; get the file again"
        )
    x = np.concatenate(blocks, axis=1) if blocks else np.zeros((channels, 0), np.float32)
    return np.ascontiguousarray(x), Info(path, rate, channels, frames, file_format, subtype)


def _look(path: Path) -> tuple[bytes, int]:
    """First bytes and size of a regular file."""
    try:
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if path.is_dir():
            raise AudioError(f"{path}: is a folder; give an audio file")
        if not path.is_file():
            raise AudioError(f"{path}: not a regular file; save it to a file first")
        size = path.stat().st_size
        with open(path, "rb") as stream:
            head = stream.read(64)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")
    return head, size


def _container(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and not b"WAVE".startswith(head[8:12]):
        return None
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "MP3"
    return _CONTAINERS.get(head[:4])


def _refuse_unsupported(path: Path, head: bytes) -> None:
    name = next((name for magic, name in _UNSUPPORTED.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        name = "MPEG-4 (m4a, mp4)"
    elif head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        name = "AAC"
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        name = "AVI"
    if name:
        raise AudioError(f"{path}: {name} is not supported; convert it to WAV or FLAC first")


def _excerpt(head: bytes) -> str:
    text = head[:16].split(b"\n")[0].decode("latin-1").strip() or head[:16].decode("latin-1")
    return repr(text) if text.isprintable() else repr(head[:8])


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", error)).removeprefix("Error :").removeprefix("Error in").strip(" .:")
    return text if text.isascii() and text else "libsndfile gives no reason"


def _check_finite(path: Path, block: np.ndarray, start: int, rate: int) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        frame, channel = np.argwhere(~finite)[0]
        raise AudioError(
            f"{path}: {nonfinite_name(block[frame, channel])} at {(start + frame) / rate:.4f} s in channel {channel + 1}; "
            "repair or export the file again"
        )


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


@dataclass(frozen=True)
class _Layout:
    """Where the samples of an uncompressed container are: offset, declared and available bytes."""

    offset: int
    declared: int
    available: int
    streaming: bool = False  # written into a pipe: the declared size was never filled in


def _layout(stream: BinaryIO, kind: str | None, size: int) -> _Layout | None:
    """Find the sample data of RIFF, RF64, AIFF, W64 and AU; None for other containers and where no data is found."""
    stream.seek(0)
    head = stream.read(40)
    if kind == "AU" and len(head) >= 12:
        offset, declared = struct.unpack(">II", head[4:12])
        return None if declared == 0xFFFFFFFF else _Layout(offset, declared, size - offset)
    if kind in ("WAV", "RF64", "AIFF"):
        order, id_size, position, pad = (">" if head[:4] in (b"FORM", b"RIFX") else "<"), 4, 12, 2
        length_code = "I"
    elif kind == "W64":
        order, id_size, position, pad = "<", 16, 40, 8
        length_code = "Q"
    else:
        return None
    header = id_size + struct.calcsize(length_code)
    long_size: int | None = None
    while position + header <= size:
        stream.seek(position)
        chunk = stream.read(header)
        name, (length,) = chunk[:4], struct.unpack(order + length_code, chunk[id_size:])
        if kind == "W64":  # sizes of W64 include the chunk header
            length = max(length - header, 0)
        if name == b"ds64":
            long_size = struct.unpack("<Q", stream.read(16)[8:])[0]
        offset = position + header
        if name in (b"data", b"SSND"):
            available = size - offset
            if name == b"data" and kind == "RF64" and length == 0xFFFFFFFF and long_size is not None:
                length = long_size
            elif kind == "WAV" and length >= 0x7FFF0000 > available:
                return None
            streaming = kind == "WAV" and length == 0 and available > 0 and not _is_chunk(stream, offset, order, size)
            return _Layout(offset, length, available, streaming)
        position = offset + length + (-length) % pad
    return None


def _is_chunk(stream: BinaryIO, offset: int, order: str, size: int) -> bool:
    stream.seek(offset)
    chunk = stream.read(8)
    if len(chunk) < 8:
        return False
    name, length = chunk[:4], struct.unpack(order + "I", chunk[4:])[0]
    return name.isascii() and name.decode("ascii").isprintable() and offset + 8 + length <= size + 1


def _with_data_size(stream: BinaryIO, layout: _Layout) -> io.BytesIO:
    """A WAV from a pipe that says its data has 0 bytes, with the size it really has."""
    stream.seek(0)
    data = bytearray(stream.read())
    order = ">" if data[:4] == b"RIFX" else "<"
    data[layout.offset - 4 : layout.offset] = struct.pack(order + "I", min(layout.available, 0xFFFFFFFF))
    data[4:8] = struct.pack(order + "I", min(len(data) - 8, 0xFFFFFFFF))
    return io.BytesIO(bytes(data))


def _missing_part(
    stream: BinaryIO, kind: str | None, size: int, layout: _Layout | None, frames: int, declared: int
) -> tuple[int, str]:
    """``(frames declared, what is wrong)``; an empty text where nothing is missing."""
    if layout and not layout.streaming and layout.declared > layout.available:
        return round(frames * layout.declared / max(layout.available, 1)), "the file ends before its data does"
    if kind == "Ogg" and not _ogg_ends(stream, size):
        return declared, "no end-of-stream page"
    if kind == "MP3" and not _mp3_has_length(stream):
        # libsndfile guesses the length from the first frames and reads no further, even where the guess is short.
        real = _mp3_samples(stream)
        return real, "variable bit rate without a length header" if real - frames > 4 * 1152 else ""
    if declared < _UNKNOWN_FRAMES and frames < declared:
        return declared, "fewer samples than declared"
    return declared, ""


def _ogg_ends(stream: BinaryIO, size: int) -> bool:
    stream.seek(max(0, size - (1 << 17)))
    tail = stream.read()
    page = tail.rfind(b"OggS")
    if page < 0 or page + 27 > len(tail):
        return False
    segments = tail[page + 26]
    body = sum(tail[page + 27 : page + 27 + segments])
    return bool(tail[page + 5] & 0x04) and page + 27 + segments + body <= len(tail)


def _mp3_start(stream: BinaryIO) -> int:
    stream.seek(0)
    head = stream.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))


def _mp3_has_length(stream: BinaryIO) -> bool:
    stream.seek(_mp3_start(stream))
    first = stream.read(4096)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _mp3_samples(stream: BinaryIO) -> int:
    """Samples per channel of an MPEG layer III stream, by walking its frame headers (ISO 11172-3, 2.4.2.3); 0 for others."""
    position = _mp3_start(stream)
    stream.seek(0)
    data = stream.read()
    total = 0
    while position + 4 <= len(data):
        b0, b1, b2 = data[position], data[position + 1], data[position + 2]
        version, layer, rate_index, bit_rate_index = (b1 >> 3) & 3, (b1 >> 1) & 3, (b2 >> 2) & 3, b2 >> 4
        if b0 != 0xFF or b1 & 0xE0 != 0xE0 or version == 1 or layer != 1 or rate_index == 3 or bit_rate_index in (0, 15):
            position += 1
            continue
        full = version == 3
        rates = (44_100, 48_000, 32_000)
        rate = rates[rate_index] // {3: 1, 2: 2, 0: 4}[version]
        table = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320) if full else (
            8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160
        )  # fmt: skip
        position += (144 if full else 72) * table[bit_rate_index - 1] * 1000 // rate + ((b2 >> 1) & 1)
        total += 1152 if full else 576
    return total


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
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give a file name")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: exists and is not a regular file; choose another name")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it (--overwrite)")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: the folder {path.parent} is not writable")


def write(path: str | os.PathLike[str], x: np.ndarray, sr: int, subtype: str | None = None, overwrite: bool = False) -> int:
    """Write ``x``, float ``(C, T)``, to ``path`` in the format of its extension; returns how many samples were clipped.

    ``subtype`` is libsndfile's name of the sample format (``PCM_16``, ``PCM_24``, ``FLOAT``, ``VORBIS`` …), by default
    16-bit PCM or what the container has. PCM is clipped at full scale, and 16 bits and fewer are dithered (triangular,
    two steps wide, the same sequence on every run and in every channel), except where the signal is silent: digital
    silence stays digital silence. FLOAT and DOUBLE are never clipped.

    The file appears complete or not at all. Raises OutputError: it exists and ``overwrite`` is false, the folder is
    missing or read-only, no space is left, the format cannot hold this sample rate, sample format or channel count;
    AudioError for NaN or Inf in ``x``.
    """
    path = Path(path)
    if x.ndim != 2 or x.shape[0] < 1 or not np.issubdtype(x.dtype, np.floating):
        raise AudioError(f"{path}: write takes float audio of shape (C, T), not {x.dtype} {x.shape}")
    subtype = subtype or fitting_subtype(path, None)
    check_output(path, overwrite)
    _check_capacity(path, subtype, sr, x.shape[0])
    file_format = output_format(path)
    needed = _predicted_bytes(x.shape, sr, subtype)
    if file_format == "WAV" and needed > (4 << 30) - (1 << 20):
        file_format = "RF64"
    if x.shape[1] == 0 and (file_format in ("FLAC", "MP3") or subtype == "OPUS"):
        raise OutputError(f"{path}: {file_format} cannot hold a signal of 0 samples; write .wav instead")
    target = Path(os.path.realpath(path))
    _check_space(path, target.parent, needed)
    temporary = target.parent / f".bwe-{secrets.token_hex(6)}.tmp"
    try:
        try:
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            clipped = _encode(handle, path, x, sr, file_format, subtype)
            os.fsync(handle)
        finally:
            os.close(handle)
        if not overwrite and target.exists():
            raise OutputError(f"{path}: exists already; choose another name or overwrite it (--overwrite)")
        os.replace(temporary, target)
    except (sf.LibsndfileError, OSError) as error:
        free = shutil.disk_usage(target.parent).free
        why = _reason(error) if isinstance(error, sf.LibsndfileError) else error.strerror
        raise OutputError(f"{path}: writing failed ({why}; {_megabytes(free)} free); nothing was written") from None
    finally:
        temporary.unlink(missing_ok=True)
    return clipped


def _predicted_bytes(shape: tuple[int, ...], sr: int, subtype: str) -> int:
    channels, frames = shape
    if subtype in _LOSSY:  # 320 kbit/s and a header
        return round(frames / sr * 40_000 * max(1, channels / 2)) + 8192
    return channels * frames * {"FLOAT": 32, "DOUBLE": 64}.get(subtype, _PCM_BITS.get(subtype, 16)) // 8 + 8192


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _check_space(path: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{path}: no space left in {folder} (needs {_megabytes(needed)}, {_megabytes(free)} free)")


def _encode(handle: int, path: Path, x: np.ndarray, sr: int, file_format: str, subtype: str) -> int:
    channels, frames = x.shape
    block = max(1, min(_BLOCK, sr))  # longer writes overflow the stack of libsndfile's Vorbis encoder
    quality = {"compression_level": 0.0} if subtype in _LOSSY else {}
    dither = np.random.default_rng(0)
    clipped = 0
    with sf.SoundFile(handle, "w", sr, channels, subtype, format=file_format, closefd=False, **quality) as file:
        for start in range(0, frames, block):
            part = x[:, start : start + block]
            finite = np.isfinite(part)
            if not finite.all():
                channel, frame = np.argwhere(~finite)[0]
                name = nonfinite_name(part[channel, frame])
                raise AudioError(f"{path}: {name} at {(start + frame) / sr:.4f} s in channel {channel + 1}; not written")
            if subtype in ("FLOAT", "DOUBLE"):
                file.write(part.T)
                continue
            clipped += int((np.abs(part) > 1).sum())
            bits = _PCM_BITS.get(subtype)
            file.write((part.clip(-1, 1) if bits is None else _quantise(part, bits, dither)).T)
    return clipped


def transcode(x: np.ndarray, sr: int, codec: Codec, bitrate: int) -> np.ndarray:
    """Encode ``x``, float32 ``(T,)`` within ±1, at about ``bitrate`` bit/s and decode it again: ``(T,)``, without the delay.

    MP3, Opus, Vorbis, GSM 6.10, µ-law and A-law are libsndfile's, AAC and AMR-NB need the extra ``formats``. GSM and the
    laws have one bit rate and take no notice of ``bitrate``; AMR has eight, of 4750 to 12200. Raises AudioError where the
    codec is unknown or does not take the sample rate: 8 kHz for the telephone codecs, up to 48 kHz for the others.
    """
    if codec not in get_args(Codec):
        raise AudioError(f"no codec {codec!r}; use one of {', '.join(get_args(Codec))}")
    if sr not in _CODEC_RATES[codec]:
        raise AudioError(f"{codec} cannot encode {sr} Hz; resample to one of {', '.join(map(str, _CODEC_RATES[codec]))} Hz")
    y = _ffmpeg_round_trip(x, sr, codec, bitrate) if codec in _FFMPEG_CODECS else _sndfile_round_trip(x, sr, codec, bitrate)
    return np.pad(y[: len(x)], (0, max(0, len(x) - len(y))))


def _sndfile_round_trip(x: np.ndarray, sr: int, codec: Codec, bitrate: int) -> np.ndarray:
    file_format, subtype = _SNDFILE_CODECS[codec]
    quality: dict[str, Any] = {}
    if codec == "mp3":  # levels 0 to 1 are the bit rates of the MPEG version, from the highest down
        low, high = (32e3, 320e3) if sr >= 32_000 else (8e3, 160e3) if sr >= 16_000 else (8e3, 64e3)
        quality = {"compression_level": (high - bitrate) / (high - low), "bitrate_mode": "CONSTANT"}
    elif codec == "opus":
        quality = {"compression_level": 1 - (bitrate - 6e3) / 250e3}
    elif codec == "vorbis":
        quality = {"compression_level": 1 - float(np.interp(bitrate, _VORBIS_RATES, np.arange(-1, 11) / 10))}
    if quality:  # at exactly 1 libsndfile refuses
        quality["compression_level"] = min(max(quality["compression_level"], 0.0), 0.999)
    stream = io.BytesIO()
    with sf.SoundFile(stream, "w", sr, 1, subtype, format=file_format, **quality) as file:
        for start in range(0, len(x), sr):  # longer writes overflow the stack of libsndfile's Vorbis encoder
            file.write(x[start : start + sr])
    stream.seek(0)
    y, _ = sf.read(stream, dtype="float32")
    return y[_LAME_DELAY:] if codec == "mp3" and len(y) > len(x) else y


def _ffmpeg_round_trip(x: np.ndarray, sr: int, codec: Codec, bitrate: int) -> np.ndarray:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"the codec {codec!r} needs PyAV: pip install 'bwe[formats]'") from error
    encoder_name, decoder_name, sample_format, delay = _FFMPEG_CODECS[codec]
    encoder: Any = av.CodecContext.create(encoder_name, "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = sr, "mono", sample_format, bitrate
    encoder.time_base = Fraction(1, sr)
    if codec == "aac":  # the default search takes several times as long
        encoder.options = {"aac_coder": "fast"}
    encoder.open()
    size = encoder.frame_size
    padded = np.pad(x, (0, delay + -(len(x) + delay) % size))
    frames = (np.rint(padded.clip(-1, 1) * 32767).astype(np.int16) if sample_format == "s16" else padded).reshape(-1, 1, size)
    decoder: Any = av.CodecContext.create(decoder_name, "r")
    decoder.sample_rate, decoder.layout, decoder.extradata = sr, "mono", encoder.extradata
    packets = []
    for index, samples in enumerate(frames):
        frame = av.AudioFrame.from_ndarray(samples, format=sample_format, layout="mono")
        frame.sample_rate, frame.pts = sr, index * size
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoded = [frame.to_ndarray()[0] for packet in [*packets, None] for frame in decoder.decode(packet)]
    return np.concatenate(decoded)[delay:]


def _quantise(x: np.ndarray, bits: int, dither: np.random.Generator) -> np.ndarray:
    """Float ``(C, T)`` to ``bits`` most significant bits of int32, with triangular dither for 16 bits and fewer."""
    scaled = x.astype(np.float64) * 2.0 ** (bits - 1)
    if bits <= 16:
        frames = x.shape[1]
        noise = dither.random(frames) - dither.random(frames)
        starts = np.arange(0, frames, _DITHER_RUN)
        sounding = np.maximum.reduceat(np.abs(x), starts, axis=1) > _SILENCE
        mask = np.repeat(sounding, _DITHER_RUN, axis=1)[:, :frames]
        scaled = np.where(mask, scaled + noise, 0.0)
    limit = 2.0 ** (bits - 1)
    return (np.clip(np.rint(scaled), -limit, limit - 1).astype(np.int64) << (32 - bits)).astype(np.int32)
