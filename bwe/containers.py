"""What the bytes of an audio file say before anything decodes them: its container, where its samples lie, whether it is whole.

Everything works on an open, seekable binary stream, in constant memory and without audio libraries. No size that a header
states is believed before it was compared with the size of the file.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal, cast

Part = bytes | tuple[int, int]

# A header of more chunks than this is an attack or damage; walking it on would take minutes.
_MAX_CHUNKS = 100_000
_UNKNOWN_32 = 0xFFFFFFFF
_MP3_IN_WAV = 0x0055
# Format tags that libsndfile calls a malformed header.
_FOREIGN_IN_WAV = {
    0x0050: "MPEG layer 2", 0x00FF: "AAC", 0x0160: "WMA", 0x0161: "WMA", 0x0162: "WMA", 0x1600: "AAC", 0x2000: "AC-3",
    0x2001: "DTS", 0xF1AC: "FLAC",
}  # fmt: skip
_PAGE = "a page is missing or damaged"
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OGG_FLAC_HEADER = 9  # bytes before the FLAC file in the first packet
_NIST_FIELD = re.compile(rb"^(sample_count|channel_count|sample_n_bytes) -i ([0-9]{1,12})\s*$", re.MULTILINE)
_CAF_TABLE_HEADER = 24
_MAX_CAF_TABLE = 1 << 24  # a thousand hours
_CAF_PACKETS = re.compile(rb"(?:[\x80-\xff]{0,4}+[\x00-\x7f])*+")

_BIT_RATES = {  # kbit/s by (MPEG-1, layer): ISO 11172-3, 2.4.2.3, and ISO 13818-3, 2.4.2.3
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class Container:
    """A kind of file: the name its users know, the library that decodes it ("" for none) and FFmpeg's name of its demuxer."""

    name: str
    library: Literal["soundfile", "pyav", ""] = "soundfile"
    demuxer: str = ""

    @property
    def short_magic(self) -> bool:
        """Whether so few bits tell it that a file which cannot be decoded is rather something else."""
        return self.name in ("MP3", "AAC", "AC-3")


MP3 = Container("MP3")
OGG = Container("Ogg")
CHAINED_OGG = Container("chained Ogg", "pyav", "ogg")
OGG_FLAC = Container("Ogg FLAC")
_AAC = Container("AAC", "pyav", "aac")
_MPEG4 = Container("MPEG-4 (m4a, mp4)", "pyav", "mov")
_AVI = Container("AVI", "pyav", "avi")
_WAV = Container("WAV")
_BY_MAGIC = {
    b"RIFX": _WAV, b"RF64": Container("RF64"), b"fLaC": Container("FLAC"), b"OggS": OGG, b"FORM": Container("AIFF"),
    b"caff": Container("CAF"), b".snd": Container("AU"), b"riff": Container("W64"), b"NIST_1A": Container("NIST"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": Container("WMA (ASF)", "pyav", "asf"),
    b"\x1a\x45\xdf\xa3": Container("Matroska or WebM", "pyav", "matroska"),
    b"#!AMR": Container("AMR", "pyav", "amr"), b"FLV\x01": Container("FLV", "pyav", "flv"),
    b"wvpk": Container("WavPack", "pyav", "wv"), b"TTA1": Container("TTA", "pyav", "tta"),
    b"MAC ": Container("Monkey's Audio", "pyav", "ape"),
    b"DSD ": Container("DSD", ""), b"FRM8": Container("DSD", ""), b"MThd": Container("MIDI", ""),
    b"\xf0\x7e": Container("SDS", ""),  # libsndfile prints to stdout of what it does not understand
}  # fmt: skip


def sniff(stream: BinaryIO) -> Container | None:
    """The container that the content of ``stream`` begins with, an ID3v2 tag before it left out; None for a stranger."""
    tag = id3_size(stream)
    stream.seek(tag)
    head = stream.read(16)
    if head[:4] == b"RIFF":
        kind = head[8:12]
        return _AVI if kind == b"AVI " else _WAV if b"WAVE".startswith(kind) else None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return _MPEG4
    if head[:2] == b"\x0b\x77" and len(head) > 5:
        return Container("AC-3", "pyav", "eac3" if head[5] >> 3 > 10 else "ac3")
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return _AAC
    if _begins_mpeg_audio(stream, tag):
        return MP3
    found = next((kind for magic, kind in _BY_MAGIC.items() if head.startswith(magic)), None)
    if found is None and tag:
        return MP3
    if found is OGG:
        return CHAINED_OGG if _is_chained(stream) else OGG_FLAC if _holds_flac(stream) else OGG
    return found


def id3_size(stream: BinaryIO) -> int:
    """Bytes of the ID3v2 tag that the stream begins with, 0 for none."""
    stream.seek(0)
    head = stream.read(10)
    if head[:3] != b"ID3" or len(head) < 10 or head[3] not in (2, 3, 4):
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))


def excerpt(head: bytes) -> str:
    """The first line of ``head``, or its first bytes, quoted for a message."""
    text = head[:16].split(b"\n")[0].decode("latin-1").strip() or head[:16].decode("latin-1")
    return repr(text) if text.isprintable() else repr(head[:8])


class Spliced(io.RawIOBase):
    """A read-only stream put together from byte strings and ``(start, stop)`` ranges of another stream.

    It has its own position, so that several of them can share the stream below. C decoders call `readinto` and `seek`, and
    no exception passes through C: a failure of the stream below reads as its end and is kept in ``error``, and `seek` takes
    any offset that a damaged file may ask for.
    """

    def __init__(self, stream: BinaryIO, parts: Sequence[Part]) -> None:
        super().__init__()
        self.error: OSError | ValueError | None = None
        self._stream = stream
        self._parts = [part for part in parts if _length(part)]
        self._starts = [0]
        for part in self._parts:
            self._starts.append(self._starts[-1] + _length(part))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}.get(whence, 0)
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        filled = 0
        try:
            while filled < len(view) and self._position < self._starts[-1]:
                data = self._chunk(len(view) - filled)
                if not data:
                    break
                view[filled : filled + len(data)] = data
                filled += len(data)
                self._position += len(data)
        except (OSError, ValueError) as error:
            self.error = error
        return filled

    def _chunk(self, count: int) -> bytes:
        index = bisect_right(self._starts, self._position) - 1
        part, inside = self._parts[index], self._position - self._starts[index]
        if isinstance(part, bytes):
            return part[inside : inside + count]
        self._stream.seek(part[0] + inside)
        return self._stream.read(min(count, part[1] - part[0] - inside))


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else max(0, part[1] - part[0])


@dataclass(frozen=True)
class Layout:
    """Where the samples of an uncompressed container are: offset, declared and available bytes.

    ``parts`` makes, with `Spliced`, a file whose header says what is there; it is empty where the header is good enough.
    ``mp3`` tells that the samples of a WAV are an MP3 (format tag 0x0055), ``foreign`` which other codec it holds, not
    decoded, ``damage`` what beside a cut is wrong, in words.
    """

    offset: int
    declared: int
    available: int
    parts: tuple[Part, ...] = ()
    mp3: bool = False
    foreign: str = ""
    damage: str = ""


def layout(stream: BinaryIO, kind: Container, size: int) -> Layout | None:
    """Find the sample data of WAV, RF64, AIFF, CAF, W64, AU and NIST; None for other containers and where there is no data.

    A WAV out of a pipe (its data has 0 or 2**32 - 1 bytes, it says), one that outgrew its 32-bit sizes, and a file whose
    sizes were never filled in are whole: they declare what is available.
    """
    if kind.name == "AU":
        return _au_layout(stream, size)
    if kind.name == "NIST":
        return _nist_layout(stream, size)
    if kind.name == "CAF":
        return _caf_layout(stream, size)
    if kind.name not in ("WAV", "RF64", "AIFF", "W64"):
        return None
    stream.seek(0)
    magic = stream.read(4)
    order, code, id_size, position, pad = (">" if magic in (b"FORM", b"RIFX") else "<"), "I", 4, 12, 2
    if kind.name == "W64":
        code, id_size, position, pad = "Q", 16, 40, 8
    header = id_size + struct.calcsize(code)
    long_size, long_at, tag = 0, 0, 0
    for _ in range(_MAX_CHUNKS):
        if position + header > size:
            return None
        stream.seek(position)
        chunk = stream.read(header + 16)
        name, (length,) = chunk[:4], struct.unpack(order + code, chunk[id_size:header])
        offset = position + header
        if name == b"ds64" and len(chunk) == header + 16:
            long_size, long_at = struct.unpack("<Q", chunk[-8:])[0], offset
        if name == b"fmt " and kind.name == "WAV":
            (tag,) = struct.unpack(order + "H", chunk[header : header + 2].ljust(2, b"\0"))
        if kind.name == "W64":  # sizes of W64 include the chunk header
            length = max(length - header, 0)
        if name in (b"data", b"SSND"):
            found = Layout(offset, length, size - offset, mp3=tag == _MP3_IN_WAV, foreign=_FOREIGN_IN_WAV.get(tag, ""))
            if kind.name == "WAV":
                return _wav_layout(stream, found, order, size)
            if kind.name == "AIFF":
                return _aiff_layout(stream, found, size)
            if kind.name == "RF64" and length == _UNKNOWN_32:
                found = replace(found, declared=long_size)
                if long_at and long_size == 0 and found.available and not _is_chunk(stream, offset, "<I", size):
                    sizes = struct.pack("<QQ", size - 8, found.available)
                    found = _filled(found, ((0, long_at), sizes, (long_at + 16, size)))
            return found
        position = offset + length + (-length) % pad
    return None


def _wav_layout(stream: BinaryIO, found: Layout, order: str, size: int) -> Layout:
    offset, declared, available = found.offset, found.declared, found.available
    unknown = _is_unknown(declared) and (available < declared or declared == _UNKNOWN_32)
    unfilled = declared == 0 and available > 0 and not _is_chunk(stream, offset, order + "I", size)
    outgrown = available - declared >= 1 << 32
    if not (unknown or unfilled or outgrown):
        return found
    found = replace(found, declared=available)
    if unknown and available < 0x7FFF0000:  # libsndfile knows these two sizes
        return found
    if available < _UNKNOWN_32 - offset:
        sizes = struct.pack(order + "I", size - 8), struct.pack(order + "I", available)
        return replace(found, parts=((0, 4), sizes[0], (8, offset - 4), sizes[1], (offset, size)))
    if order == ">":  # RF64 has no big-endian form
        return replace(found, declared=declared)
    head = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<IQQQI", 28, size + 28, available, 0, 0)
    return replace(found, parts=(head, (12, offset - 4), b"\xff\xff\xff\xff", (offset, size)))


def _is_unknown(declared: int) -> bool:
    """Whether a 32-bit size is one of those, next to 2**31 and 2**32, that programs write before they know it."""
    return 0x7FFF0000 <= declared <= 0x80000000 or declared >= 0xFFFF0000


def _filled(found: Layout, parts: tuple[Part, ...]) -> Layout:
    """The layout of a file whose writer died before it filled in the sizes: everything that is there is sound."""
    return replace(found, declared=found.available, parts=parts)


def _is_chunk(stream: BinaryIO, offset: int, code: str, size: int) -> bool:
    stream.seek(offset)
    header = 4 + struct.calcsize(code)
    chunk = stream.read(header)
    if len(chunk) < header:
        return False
    name, length = chunk[:4], struct.unpack(code, chunk[4:])[0]
    return name.isascii() and name.decode("ascii").isprintable() and 0 <= length <= size + 1 - offset - header


def _aiff_layout(stream: BinaryIO, found: Layout, size: int) -> Layout:
    offset, declared, available = found.offset, found.declared, found.available
    if declared > 8 or available <= 8 or _is_chunk(stream, offset + declared, ">I", size):  # offset and block size: 8 bytes
        return found
    return _filled(found, ((0, offset - 4), struct.pack(">I", min(available, _UNKNOWN_32)), (offset, size)))


def _au_layout(stream: BinaryIO, size: int) -> Layout | None:
    stream.seek(0)
    head = stream.read(12)
    if len(head) < 12:
        return None
    offset, declared = struct.unpack(">II", head[4:12])
    found = Layout(offset, declared, size - offset)
    if declared == 0 and found.available > 0:
        return _filled(found, ((0, 8), b"\xff\xff\xff\xff", (12, size)))
    return None if declared == _UNKNOWN_32 else found


def _nist_layout(stream: BinaryIO, size: int) -> Layout | None:
    stream.seek(0)
    head = stream.read(1024)
    fields = {name: int(value) for name, value in _NIST_FIELD.findall(head)}
    if fields.keys() != {b"sample_count", b"channel_count", b"sample_n_bytes"} or not head[8:16].strip().isdigit():
        return None
    offset = int(head[8:16])
    return Layout(offset, math.prod(fields.values()), size - offset) if offset < size else None


def _caf_layout(stream: BinaryIO, size: int) -> Layout | None:
    found, damage = None, ""
    patches: list[tuple[int, bytes]] = []
    position = 8
    for _ in range(_MAX_CHUNKS):
        if position + 12 > size:
            break
        stream.seek(position)
        chunk = stream.read(12)
        name, length = chunk[:4], struct.unpack(">q", chunk[4:])[0]
        offset = position + 12
        if name == b"data" and found is None:
            available = size - offset
            if 0 <= length <= 4 < available and not _is_chunk(stream, offset + length, ">q", size):
                length = -1  # four bytes are before the sound
            found = Layout(offset, available if length == -1 else length, available)
            if not 0 <= length <= available:  # libsndfile opens neither a CAF whose data is cut nor one of unknown length
                patches.append((offset - 8, struct.pack(">q", available)))
                break
        elif name == b"pakt":
            broken = _broken_packet(stream, offset, min(length, size - offset))
            if broken is not None:
                # A zero ends the table for libsndfile, which would print to stdout of what it does not understand.
                patches.append((broken, b"\0"))
                damage = "its packet table is damaged"
        if length < 0:
            break
        position = offset + length
    if found is None or not patches:
        return found
    parts: list[Part] = []
    position = 0
    for start, data in patches:
        parts += [(position, start), data]
        position = start + len(data)
    return replace(found, parts=(*parts, (position, size)), damage=damage)


def _broken_packet(stream: BinaryIO, offset: int, length: int) -> int | None:
    """Where the packet table of a CAF stops being one: sizes of packets, seven bits a byte, in at most five bytes each."""
    if length <= _CAF_TABLE_HEADER:
        return None
    stream.seek(offset + _CAF_TABLE_HEADER)
    table = stream.read(min(length - _CAF_TABLE_HEADER, _MAX_CAF_TABLE))
    match = _CAF_PACKETS.match(table)
    end = match.end() if match else 0
    return None if _CAF_TABLE_HEADER + end == length else offset + _CAF_TABLE_HEADER + end


def fault(stream: BinaryIO, kind: Container | None, size: int) -> tuple[str, int]:
    """``(what is missing, bytes before it)`` by the bytes of a container other than those of `layout`.

    The first is in words, "" where nothing is missing; the second is ``size`` where there is nothing behind the gap.
    """
    if kind in (OGG, CHAINED_OGG):
        return _ogg_whole(stream, size)
    if kind is None or not kind.demuxer:
        return "", size
    end = {"mov": _boxes_end, "matroska": _segment_end, "avi": _riff_end, "asf": _asf_end}.get(kind.demuxer)
    return ("the file ends before its data does" if end and end(stream, size) > size else ""), size


def _boxes_end(stream: BinaryIO, size: int) -> int:
    position = 0
    for _ in range(_MAX_CHUNKS):
        if position + 8 > size:
            break
        stream.seek(position)
        box = stream.read(16)
        length = struct.unpack(">I", box[:4])[0]
        if length == 1 and len(box) == 16:
            length = struct.unpack(">Q", box[8:])[0]
        elif length == 0:
            return size
        if length < 8:
            break
        position += length
    return position


def _segment_end(stream: BinaryIO, size: int) -> int:
    position = 0
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if position > size:
            break
        stream.seek(position)
        element = stream.read(12)
        if element[:4] != name or len(element) < 5:
            return 0
        width = 9 - element[4].bit_length()
        value = int.from_bytes(element[4 : 4 + width]) & ((1 << 7 * width) - 1)
        if not element[4] or value == (1 << 7 * width) - 1:  # a size of ones: written live, until the end
            return 0
        position += 4 + width + value
    return position


def _riff_end(stream: BinaryIO, size: int) -> int:
    stream.seek(4)
    length = int.from_bytes(stream.read(4), "little")
    return 0 if _is_unknown(length) else length + 8


def _asf_end(stream: BinaryIO, size: int) -> int:
    position = 0
    for _ in range(_MAX_CHUNKS):
        if position + 24 > size:
            break
        stream.seek(position)
        length = int.from_bytes(stream.read(24)[16:], "little")
        if length < 24:
            break
        position += length
    return position


def _ogg_whole(stream: BinaryIO, size: int) -> tuple[str, int]:
    """What `fault` says of an Ogg file: every page is there and undamaged, and every stream has its last one."""
    expected: dict[int, int] = {}  # number of the next page of every stream that has not ended
    position = id3_size(stream)
    headers = True
    for page, _, stop in _ogg_pages(stream):
        serial, number = struct.unpack("<II", page[14:22])
        begins, ends = bool(page[5] & 0x02), bool(page[5] & 0x04)
        if stop > size:
            return "no end-of-stream page", size
        if begins and not headers:
            if expected:
                return "no end-of-stream page", position
        elif not begins and expected.get(serial) != number:
            return _PAGE, position
        stream.seek(position)
        if not _ogg_checksum_fits(stream.read(stop - position)) or len(expected) > _MAX_CHUNKS:
            return _PAGE, position
        headers, position = begins, stop
        expected[serial] = (number + 1) & _UNKNOWN_32
        if ends:
            del expected[serial]
    stream.seek(position)
    if b"OggS" in stream.read(1 << 17):  # longer than any page
        return _PAGE, position
    return ("no end-of-stream page" if expected or position == id3_size(stream) else ""), size


def _ogg_checksum_fits(page: bytes) -> bool:
    """Compare the checksum of a page (RFC 3533, 6). It is that of zlib on bytes whose bits are in the opposite order."""
    crc = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_MIRRORED), _UNKNOWN_32) ^ _UNKNOWN_32
    return crc.to_bytes(4, "big").translate(_MIRRORED) == page[22:26]


def _ogg_pages(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Header (at least 27 bytes), start of the body and end of every page from the start on, up to what is none."""
    position = id3_size(stream)
    while True:
        stream.seek(position)
        page = stream.read(27 + 255)
        if len(page) < 27 or page[:4] != b"OggS":
            return
        segments = page[26]
        body = position + 27 + segments
        position = body + sum(page[27 : 27 + segments])
        yield page, body, position


def _is_chained(stream: BinaryIO) -> bool:
    """Whether a second logical stream begins where the first has ended: libsndfile would stop there without a word."""
    inside = False
    for page, _, _ in _ogg_pages(stream):
        begins = bool(page[5] & 0x02)
        if begins and inside:
            return True
        inside = inside or not begins
    return False


def _holds_flac(stream: BinaryIO) -> bool:
    stream.seek(id3_size(stream))
    page = stream.read(27 + 255 + 5)
    return len(page) > 26 and page[27 + page[26] :].startswith(b"\x7fFLAC")


def unwrapped_flac(stream: BinaryIO, size: int) -> tuple[tuple[Part, ...], str]:
    """``(parts, fault)`` of FLAC in Ogg: ``parts`` makes, with `Spliced`, the FLAC file inside, up to the first page that is
    missing or cannot be found, and ``fault`` says that in words. The libFLAC inside libsndfile is built without Ogg."""
    parts: list[Part] = []
    serial, last = b"", False
    for page, body, stop in _ogg_pages(stream):
        if stop > size:
            break
        serial = serial or page[14:18]
        if page[14:18] != serial:  # another stream beside it
            continue
        if int.from_bytes(page[18:22], "little") != len(parts):
            break
        parts.append((body if parts else body + _OGG_FLAC_HEADER, stop))
        last = bool(page[5] & 0x04)
        if last:
            break
    return tuple(parts), "" if last else _PAGE


def _begins_mpeg_audio(stream: BinaryIO, start: int) -> bool:
    """Whether there is an MPEG audio frame at ``start``, and another like it where that or a later frame ends.

    A frame begins with so few fixed bits that one alone is found in any noise; it is enough only where the file ends in it.
    A later pair is enough because the second frame may be damaged.
    """
    stream.seek(start)
    window = stream.read(1 << 16)
    kind, length, _ = _mpeg_frame(window[:4])
    if not length or len(window) < length + 4:
        return length > 0
    at = 0
    while at >= 0:
        found, length, _ = _mpeg_frame(window[at : at + 4])
        if length and found == kind == _mpeg_frame(window[at + length : at + length + 4])[0]:
            return True
        at = window.find(b"\xff", at + 1)
    return False


def mp3_has_length(stream: BinaryIO) -> bool:
    """Whether an MP3 says in its first 4096 bytes how many frames there are."""
    stream.seek(id3_size(stream))
    first = stream.read(4096)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def mp3_with_length(stream: BinaryIO, size: int) -> tuple[int, tuple[Part, ...]]:
    """``(samples per channel, parts)`` of an MPEG layer III stream without a length header.

    ``parts`` makes, with `Spliced`, the same file with one. Without it libsndfile guesses the length from the first frames
    and reads no further, even where the guess is short. Samples are 0 and ``parts`` empty where no frames are found.
    """
    frames = samples = 0
    position = first = id3_size(stream)
    header = b""
    window, base = b"", 0
    while position + 4 <= size:
        if position + 4 > base + len(window) or position < base:
            stream.seek(position)
            window, base = stream.read(1 << 16), position
            if len(window) < 4:
                break
        inside = position - base
        length, count = _mp3_frame(window[inside : inside + 4])
        if not length:
            sync = window.find(b"\xff", inside + 1)
            position = base + (sync if sync >= 0 else len(window))
            continue
        if not frames:
            header, first = window[inside : inside + 4], position
        frames += 1
        samples += count
        position += length
    if not frames:
        return 0, ()
    return samples, ((0, first), _xing_frame(header, frames), (first, size))


def unwrapped_mp3(stream: BinaryIO, found: Layout) -> tuple[int, tuple[Part, ...]]:
    """What `mp3_with_length` says of the MP3 inside a WAV; samples are 0 where it has a length of its own."""
    start, size = found.offset, min(found.declared, found.available)
    mp3 = cast(BinaryIO, Spliced(stream, [(start, start + size)]))
    samples, parts = (0, ()) if mp3_has_length(mp3) else mp3_with_length(mp3, size)
    shifted = [part if isinstance(part, bytes) else (start + part[0], start + part[1]) for part in parts]
    return samples, tuple(shifted) or ((start, start + size),)


def _mp3_frame(header: bytes) -> tuple[int, int]:
    """Bytes and samples per channel of an MPEG layer III frame; ``(0, 0)`` where none begins."""
    kind, length, samples = _mpeg_frame(header)
    return (length, samples) if kind[1] == 3 else (0, 0)


def _mpeg_frame(header: bytes) -> tuple[tuple[int, int, int], int, int]:
    """``((version, layer, sample rate in Hz), bytes, samples per channel)`` of an MPEG audio frame (ISO 11172-3, 2.4.2.3).

    All are 0 where no frame begins, and for the free format, whose frames do not say how long they are.
    """
    none = (0, 0, 0), 0, 0
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return none
    _, b1, b2, _ = header
    version, layer, bit_rate_index, rate_index = (b1 >> 3) & 3, 4 - ((b1 >> 1) & 3), b2 >> 4, (b2 >> 2) & 3
    if version == 1 or layer == 4 or bit_rate_index in (0, 15) or rate_index == 3:
        return none
    full = version == 3
    rate = (44_100, 48_000, 32_000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    bit_rate = _BIT_RATES[full, layer][bit_rate_index - 1] * 1000
    samples = 384 if layer == 1 else 576 if layer == 3 and not full else 1152
    slot = 4 if layer == 1 else 1
    return (version, layer, rate), (samples // 8 // slot * bit_rate // rate + ((b2 >> 1) & 1)) * slot, samples


def _xing_frame(header: bytes, frames: int) -> bytes:
    """A silent frame of the same kind as ``header`` that says how many follow."""
    full, mono = header[1] & 0x08, header[3] >> 6 == 3
    side = (17 if mono else 32) if full else (9 if mono else 17)
    start = bytes([0xFF, header[1] | 0x01, header[2] & 0x0C | 0x80, header[3]])
    length, _ = _mp3_frame(start)
    body = bytes(side) + b"Xing" + struct.pack(">II", 1, min(frames, _UNKNOWN_32))
    return (start + body).ljust(length, b"\0")
