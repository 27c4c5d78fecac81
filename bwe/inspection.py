"""What is in a file, what is installed, and files made worse: `inspect`, `doctor`, `degrade_file`.

`inspect` says where the content of a file really ends, what took the rest away, and whether extending it makes sense.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

import bwe
from bwe import audio, codecs, degrade, dsp, hub
from bwe.errors import ConfigError, ModelError

Shape = Literal["none (full band)", "brick wall", "MP3 shelf", "sinc / resampler", "gentle roll-off (IIR)"]
FULL_BAND, BRICK_WALL, MP3_SHELF, RESAMPLER, ROLL_OFF = SHAPES = cast(tuple[Shape, ...], get_args(Shape))

FORMER_RATES = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Content that reaches this far has nothing audible missing."""

# Scale-factor band 21 of MP3 (long blocks) begins at line 418 of 576 at 44.1 kHz and at line 384 at 48 kHz, 16.0 kHz in both.
# It has no scale factor of its own, so encoders starve it.
SHELF_HZ = 16_000.0

_BLOCK = 1 << 16
_RUN = 1024  # samples in which silence is counted
_SAMPLE_S, _SAMPLE_LIMIT, _PIECE_S, _FADE_S = 60.0, 1 << 23, 0.5, 0.005
_CLIP_RUN, _CLIP_KINK, _CLIP_FLOOR = 3, 1e-3, 0.1
_SILENT_PEAK = 2.0**-15
_OWN_FILTER = 0.94  # of half the sample rate: an edge above it is that of the converter which made the file


@dataclass(frozen=True)
class Clipping:
    """Samples in runs of three or more at the largest value of their channel, entered or left with a kink.

    ``share`` is of all samples; ``first_s`` is None where nothing is clipped.
    """

    samples: int
    share: float
    first_s: float | None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; ``str(inspection)`` is for the terminal.

    Attributes:
        sample_rate: Hz. frames, seconds: length. channels: their number.
        container, subtype: in libsndfile's names.
        bits: significant bits per sample in use, at most 24 of a 32-bit file; None where samples are not on such a grid
            (lossy codecs, float).
        dual_mono: more than one channel, all identical. silent_channels: from 1, those that are zero beside others that
            are not.
        cutoff_hz: where the content ends (`dsp.detect_cutoff`); half the sample rate for full band.
        shape: how it ends, one of `SHAPES`; None where there is nothing to judge (silence, under 10 ms).
        former_rate: the sample rate that the content seems to come from, in Hz.
        extend_from_hz: the cut-off to extend from: `cutoff_hz`, or below an MP3 shelf; None where there is nothing to fill.
        rolloff95_hz, rolloff99_hz: below which 95 and 99 % of the energy lie (without 0 to 20 Hz); None for silence.
        peak_dbfs, rms_dbfs: over all channels, -inf for silence. dc: mean of each channel, full scale 1.
        silence: share of the time, in runs of 1024 samples, that all channels are exactly 0.
        warnings: sentences about damage, samples that are NaN or Inf (read as 0, counted, the first located), and such.
        verdict: what to do, in one line.
    """

    path: Path
    sample_rate: int
    channels: int
    frames: int
    container: str
    subtype: str
    bits: int | None
    dual_mono: bool
    silent_channels: tuple[int, ...]
    cutoff_hz: float
    shape: Shape | None
    former_rate: int | None
    extend_from_hz: float | None
    rolloff95_hz: float | None
    rolloff99_hz: float | None
    clipping: Clipping
    dc: tuple[float, ...]
    peak_dbfs: float
    rms_dbfs: float
    silence: float
    warnings: tuple[str, ...]
    verdict: str

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate

    def to_dict(self) -> dict[str, Any]:
        """For JSON: no infinities (silence has level None), the path as text."""
        values = dataclasses.asdict(self) | {"path": str(self.path), "seconds": self.seconds}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    def __str__(self) -> str:
        lines = [
            ("format", f"{self.container} {self.subtype}, {_rate(self.sample_rate)}{self._bits_text()}"),
            ("length", f"{audio.clock(self.seconds, 1)} ({self.frames} samples)"),
            ("channels", self._channels_text()),
        ]
        if self.shape is not None:
            lines.append(("bandwidth", f"to {_khz(self.cutoff_hz)}: {self.shape}{_once(self.former_rate)}"))
        if self.rolloff95_hz is not None and self.rolloff99_hz is not None:
            lines.append(("energy", f"95 % below {_khz(self.rolloff95_hz)}, 99 % below {_khz(self.rolloff99_hz)}"))
        if math.isfinite(self.peak_dbfs):
            lines.append(("level", f"peak {_db(self.peak_dbfs)}, RMS {_db(self.rms_dbfs)}"))
        if any(abs(mean) >= 1e-4 for mean in self.dc):
            lines.append(("DC offset", ", ".join(f"{mean:+.4f}" for mean in self.dc).replace("-", "−")))
        if self.silence >= 0.0005:
            lines.append(("silence", f"{100 * self.silence:.1f} % digital zero"))
        if self.clipping.first_s is not None:
            share = f"{100 * self.clipping.share:.2g} %"
            first = audio.clock(self.clipping.first_s, 2)
            lines.append(("clipping", f"{self.clipping.samples} samples ({share}), the first at {first}"))
        lines += [("warning", sentence.removeprefix(f"{self.path}: ")) for sentence in self.warnings]
        lines.append(("verdict", self.verdict))
        return "\n".join([str(self.path), *(f"  {name:<10}{text}" for name, text in lines)])

    def _bits_text(self) -> str:
        if self.bits is None:
            return ""
        if self.subtype in ("FLOAT", "DOUBLE"):
            return f", holding {self.bits}-bit samples"
        held = re.search(r"\d+$", self.subtype)
        # Beyond 24 bits nothing is looked at.
        width = min(int(held[0]), 24) if held else self.bits
        return f", only {self.bits} of {held[0]} bits in use" if held and self.bits < width else ""

    def _channels_text(self) -> str:
        extra = ["dual mono: all channels identical"] if self.dual_mono else []
        extra += [f"silent channel {number}" for number in self.silent_channels]
        return "; ".join([str(self.channels), *extra])


def _rate(hz: int) -> str:
    return f"{hz / 1000:g} kHz"


def _khz(hz: float) -> str:
    return f"{hz / 1000:.1f} kHz"


def _once(former_rate: int | None) -> str:
    if former_rate is None:
        return ""
    # Encoders of MP3 have low-passes between 15 and 16 kHz.
    return f", probably once {_rate(former_rate)}{' or MP3' if former_rate == 32_000 else ''}"


def _db(level: float) -> str:
    return f"{level:.1f} dBFS".replace("-", "−")


class _Peaks:
    """Clipped samples of one channel and polarity: runs at the largest value so far."""

    def __init__(self) -> None:
        self.extreme = -math.inf
        self.count = 0
        self.first: int | None = None
        self._open = 0  # length of the run that the last block ended in
        self._before = -math.inf  # the sample before that run
        self._last = -math.inf

    def add(self, x: np.ndarray, position: int) -> None:
        highest = float(x.max())
        if highest > self.extreme:
            self.extreme, self.count, self.first, self._open = highest, 0, None, 0
        if highest == self.extreme or self._open:
            self._runs(x, position)
        self._last = float(x[-1])

    def _runs(self, x: np.ndarray, position: int) -> None:
        at = np.concatenate([[False], x == self.extreme, [False]])
        edges = np.flatnonzero(at[1:] != at[:-1])
        starts, stops = edges[::2], edges[1::2]
        padded = np.concatenate([[self._last], x, [self.extreme]])
        before, after = padded[starts], padded[stops + 1]
        lengths = stops - starts
        if self._open:
            if len(starts) and starts[0] == 0:
                starts, lengths, before = starts.copy(), lengths.copy(), before.copy()
                starts[0], lengths[0], before[0] = -self._open, lengths[0] + self._open, self._before
            else:
                starts, lengths = np.insert(starts, 0, -self._open), np.insert(lengths, 0, self._open)
                before, after = np.insert(before, 0, self._before), np.insert(after, 0, x[0])
        self._open = 0
        if at[-2]:
            self._open, self._before = int(lengths[-1]), float(before[-1])
            starts, lengths, before, after = starts[:-1], lengths[:-1], before[:-1], after[:-1]
        self._count(starts + position, lengths, before, after)

    def _count(self, starts: np.ndarray, lengths: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        # The crest of a low tone is flat as well, but one quantisation step is all it takes to leave it.
        kink = self.extreme - np.minimum(before, after) > _CLIP_KINK * self.extreme
        clipped = (lengths >= _CLIP_RUN) & kink
        self.count += int(lengths[clipped].sum())
        if self.first is None and clipped.any():
            self.first = int(starts[clipped][0])

    def close(self) -> None:
        if self._open:
            one = np.array([self._before])
            self._count(np.array([0]), np.array([self._open]), one, one)
        if self.extreme < _CLIP_FLOOR:  # so low that quantisation alone makes runs
            self.count, self.first = 0, None


class _Sample:
    """Up to a minute of a signal of any length, `(C, n)`: all of it, or half-second pieces at equal distances."""

    def __init__(self, sample_rate: int, channels: int, frames: int) -> None:
        room = max(1, min(round(_SAMPLE_S * sample_rate), _SAMPLE_LIMIT // channels))
        self._piece = min(frames, room)
        self._starts = np.zeros(1, np.int64)
        if frames > room:
            self._piece = min(round(_PIECE_S * sample_rate), room)
            self._starts = np.linspace(0, frames - self._piece, max(1, room // self._piece)).round().astype(np.int64)
        self._data = np.zeros((len(self._starts), channels, self._piece), np.float32)
        self._filled = np.zeros(len(self._starts), np.int64)
        self._fade = round(_FADE_S * sample_rate)

    def add(self, x: np.ndarray, position: int) -> None:
        stop = position + x.shape[1]
        first = int(np.searchsorted(self._starts, position - self._piece, "right"))
        for index in range(first, int(np.searchsorted(self._starts, stop, "left"))):
            start = int(self._starts[index])
            a, b = max(start, position), min(start + self._piece, stop)
            self._data[index, :, a - start : b - start] = x[:, a - position : b - position]
            self._filled[index] = max(self._filled[index], b - start)

    def signal(self) -> np.ndarray:
        pieces = [piece[:, :filled] for piece, filled in zip(self._data, self._filled, strict=True) if filled]
        if len(pieces) > 1:  # a jump from piece to piece would have content in all bands
            for piece in pieces:
                ramp = np.sin(np.linspace(0, math.pi / 2, min(self._fade, piece.shape[1]), dtype=np.float32)) ** 2
                piece[:, : len(ramp)] *= ramp
                piece[:, piece.shape[1] - len(ramp) :] *= ramp[::-1]
        return np.concatenate(pieces, axis=1) if pieces else self._data[0][:, :0]


class _Tally:
    """What a pass over all samples counts."""

    def __init__(self, channels: int) -> None:
        self.frames, self.zero = 0, 0
        self.sum, self.energy, self.peak = np.zeros(channels), np.zeros(channels), np.zeros(channels)
        self.identical = channels > 1
        self.peaks = [(_Peaks(), _Peaks()) for _ in range(channels)]
        self._bits = np.int64(0)  # OR of all samples in steps of 2**-23
        self._on_grid = True

    def add(self, x: np.ndarray) -> None:
        size = np.abs(x)
        self.sum += x.sum(axis=1, dtype=np.float64)
        self.energy += np.square(x, dtype=np.float64).sum(axis=1)
        self.peak = np.maximum(self.peak, size.max(axis=1))
        self.identical = self.identical and bool((x[1:] == x[:1]).all())
        starts = np.arange(0, x.shape[1], _RUN)
        lengths = np.minimum(_RUN, x.shape[1] - starts)
        self.zero += int(lengths[np.maximum.reduceat(size.max(axis=0), starts) == 0].sum())
        for row, (above, below) in zip(x, self.peaks, strict=True):
            above.add(row, self.frames)
            below.add(-row, self.frames)
        if self._on_grid:
            steps = x * np.float32(2**23)
            whole = steps.astype(np.int64)
            self._on_grid = bool((np.abs(steps) < 2.0**62).all() and (whole == steps).all())
            self._bits |= np.bitwise_or.reduce(whole, axis=None)
        self.frames += x.shape[1]

    def bits(self) -> int | None:
        value = int(self._bits)
        return 24 - ((value & -value).bit_length() - 1) if self._on_grid and value else None

    def clipping(self, sample_rate: int) -> Clipping:
        tallies = [peaks for pair in self.peaks for peaks in pair]
        for peaks in tallies:
            peaks.close()
        count = sum(peaks.count for peaks in tallies)
        first = min((peaks.first for peaks in tallies if peaks.first is not None), default=None)
        share = count / max(1, self.frames * len(self.peaks))
        return Clipping(count, share, None if first is None else first / sample_rate)


def inspect(path: str | os.PathLike[str], target_rate: int = 48_000) -> Inspection:
    """Look a file over, of any length in constant memory. It is read to its end even where it is damaged or has NaN in it.

    Levels, clipping, offset and bits are of all samples, and so is the cut-off; its shape and the energy are of up to a
    minute of them, evenly spread.

    Args:
        path: an audio file that `audio.Reader` takes.
        target_rate: Hz, of the model that would extend it.

    Raises AudioError: missing, not audio, nothing of it can be read.
    """
    with audio.Reader(path, salvage=True, nan="zero") as reader:
        info = reader.info
        tally = _Tally(info.channels)
        sample = _Sample(info.sample_rate, info.channels, info.frames)
        detector = dsp.CutoffDetector(info.sample_rate)
        for block in reader.blocks(_BLOCK):
            detector.add(block)
            sample.add(block, tally.frames)
            tally.add(block)
        warnings = tuple(reader.warnings)
    rate, frames, peak = info.sample_rate, tally.frames, float(tally.peak.max(initial=0))
    x = sample.signal()
    silent = peak < _SILENT_PEAK
    judged = not silent and x.shape[1] >= rate // 100
    content = _content(x, rate, detector.cutoff_hz()) if judged else _Content(rate / 2, None, None)
    extend_from, verdict = _verdict(content, rate, frames, silent, target_rate)
    rolloff95, rolloff99 = _rolloffs(x, rate) if judged else (None, None)
    rms = math.sqrt(float(tally.energy.sum()) / max(1, frames * info.channels))
    silent_channels = tuple(int(i) + 1 for i in np.flatnonzero(tally.peak == 0)) if peak else ()
    return Inspection(
        path=Path(path),
        sample_rate=rate,
        channels=info.channels,
        frames=frames,
        container=info.format,
        subtype=info.subtype,
        bits=tally.bits() if re.match(r"PCM|ALAC|FLOAT|DOUBLE", info.subtype) else None,
        dual_mono=tally.identical and frames > 0 and peak > 0,
        silent_channels=silent_channels,
        cutoff_hz=content.cutoff_hz,
        shape=content.shape,
        former_rate=content.former_rate,
        extend_from_hz=extend_from,
        rolloff95_hz=rolloff95,
        rolloff99_hz=rolloff99,
        clipping=tally.clipping(rate),
        dc=tuple(float(mean) for mean in tally.sum / max(1, frames)),
        peak_dbfs=20 * math.log10(peak) if peak else -math.inf,
        rms_dbfs=20 * math.log10(rms) if rms else -math.inf,
        silence=tally.zero / max(1, frames),
        warnings=warnings,
        verdict=verdict,
    )


@dataclass(frozen=True)
class _Content:
    """Where content ends and how; `top_hz` is where the sparse content above an MP3 shelf ends."""

    cutoff_hz: float
    shape: Shape | None
    former_rate: int | None
    top_hz: float | None = None


def _verdict(content: _Content, rate: int, frames: int, silent: bool, target_rate: int) -> tuple[float | None, str]:
    cutoff = content.cutoff_hz
    if frames == 0:
        return None, "empty: nothing to extend"
    if silent:
        return None, "silent: nothing to extend"
    if content.shape is None:
        return None, "too short to tell where its content ends; give --cutoff to extend it"
    if content.shape == MP3_SHELF:
        top = f", sparse content to {_khz(content.top_hz)}" if content.top_hz else ""
        return SHELF_HZ, f"ends at {_khz(cutoff)} with an MP3 shelf{top}: extend, cut-off {SHELF_HZ:.0f}"
    # An edge nearer to half the model's rate is that of a converter, and what lies above it is not heard.
    if dsp.is_full_band(cutoff, target_rate):
        return None, f"full-band already (content to {_khz(cutoff)}): leave alone"
    file = f"{'an' if _rate(rate).startswith(('8', '11', '18')) else 'a'} {_rate(rate)} file"
    if content.shape == FULL_BAND:
        return cutoff, f"content fills its whole band, {_khz(cutoff)} in {file}: extend"
    return cutoff, f"content ends at {_khz(cutoff)} in {file} ({content.shape}{_once(content.former_rate)}): extend"


def _spectra(x: np.ndarray, sr: int, bin_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """Bin frequencies in Hz `(F,)` and power of `(C, T)` `(C, F, N)`; frames overlap by half."""
    n_fft = 2 ** max(6, round(math.log2(sr / bin_hz)))
    power = dsp.power_spectrogram(torch.from_numpy(x), n_fft, n_fft // 2).numpy()
    return np.linspace(0, sr / 2, power.shape[1]), power


def _rolloffs(x: np.ndarray, sr: int) -> tuple[float, float]:
    hz, power = _spectra(x, sr, 23.4)
    energy = np.where(hz >= 20, power.mean(axis=(0, 2), dtype=np.float64), 0)
    share = np.cumsum(energy) / max(float(energy.sum()), 1e-300)
    low, high = (float(hz[min(int(np.searchsorted(share, part)), len(hz) - 1)]) for part in (0.95, 0.99))
    return low, high


def _content(x: np.ndarray, sr: int, cutoff: float) -> _Content:
    if sr >= 40_000 and (top := _mp3_shelf(x, sr)):
        return _Content(SHELF_HZ, MP3_SHELF, None, top)
    if cutoff >= _OWN_FILTER * sr / 2:
        return _Content(cutoff, FULL_BAND, None)
    return _Content(cutoff, *_edge_shape(x, sr, cutoff))


def _mp3_shelf(x: np.ndarray, sr: int) -> float | None:
    """Where the sparse content above a shelf at 16 kHz ends, in Hz; None without such a shelf.

    The shelf is a step in the level of single frames, beyond what the slope just below it foretells, under a low-pass near
    20 kHz. Natural sounds have such steps as well, but not with that low-pass above.
    """
    hz, power = _spectra(x, sr, 23.4)
    level = 10 * np.log10(power.max(axis=0) + 1e-12)
    loud = np.percentile(level, 97, axis=1)
    floor = float(np.median(loud[hz > 21_000]))
    above = np.flatnonzero(loud >= floor + 4)
    top = float(hz[above[-1]]) if len(above) else 0.0
    if not SHELF_HZ + 1800 < top < 20_700:
        return None

    def height(low: float, high: float) -> float:
        return float(loud[(hz > top + low) & (hz < top + high)].mean()) - floor

    # Level up to the encoder's low-pass and nothing beyond it; other filters fade out there.
    plateau = height(-500, -150)
    if plateau < 7.5 or height(-1500, -1000) - plateau > 12 or height(100, 400) > 1:
        return None

    def band(low: float, high: float) -> np.ndarray:
        return level[(hz >= low) & (hz < high)].mean(axis=0)

    below, under, over = band(14_400, 15_150), band(15_150, 15_900), band(16_150, 16_900)
    quiet = float(np.median(level[hz > 21_000]))
    frames = under > max(float(np.median(under)), quiet + 10)
    step = (under - over) - (below - under)
    return top if frames.sum() >= 8 and float(np.median(step[frames])) > 5.5 else None


def _edge_shape(x: np.ndarray, sr: int, cutoff: float) -> tuple[Shape, int | None]:
    """The kind of an edge from its steepness, in dB per per cent of its frequency, and from where it is."""
    hz, power = _spectra(x, sr, 11.7)
    loud = np.percentile(10 * np.log10(power.max(axis=0) + 1e-12), 97, axis=1)
    loud = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(loud, 4, mode="edge"), 9), axis=-1)
    passband = float(np.median(loud[(hz > 0.75 * cutoff) & (hz < 0.92 * cutoff)]))
    floor = float(np.median(loud[hz > min(1.3 * cutoff, (cutoff + sr / 2) / 2)]))
    depth = passband - floor
    zone = (hz > 0.6 * cutoff) & (hz < 1.6 * cutoff)

    def last(level: float) -> float:
        above = np.flatnonzero(zone & (loud >= level))
        return float(hz[above[-1]]) if len(above) else cutoff

    begin, end = last(passband - min(6.0, depth / 4)), last(floor + max(0.12 * depth, 4.0))
    width = max(end - begin, 10.0)
    steepness = 0.6 * depth / width * cutoff / 100
    candidates = [rate for rate in FORMER_RATES if rate < sr and cutoff > 0.463 * rate and 0.955 <= end / (rate / 2) <= 1.05]
    former = min(candidates, key=lambda rate: abs(cutoff / (rate / 2) - 0.96), default=None)
    if steepness >= 3 and former is not None:
        # A resampler is down where its Nyquist frequency is; an encoder's low-pass as near to it is several times as steep.
        if end / (former / 2) < 0.985 or steepness < 12:
            return RESAMPLER, former
        exact = abs(cutoff / (former / 2) - 1) < 0.008 and abs(cutoff - SHELF_HZ) > 200
        return BRICK_WALL, former if exact else None
    return (BRICK_WALL if steepness > 4.5 or width < 160 else ROLL_OFF), None


def degrade_file(
    in_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    to_hz: float | None = None,
    filter: str = "cheby1",
    order: int = 8,
    codec: str | None = None,
    bone: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> str:
    """Make a file worse and keep its sample rate, length, channels and sample format; returns the closing line.

    Body, low-pass and codec are applied in this order, those that are given. The file is held in memory.

    Args:
        to_hz: cut-off of the low-pass in Hz (not a sample rate).
        filter: "brickwall", an IIR family of `dsp.FILTER_FAMILIES` (forward and backward), or a resampler of
            `degrade.RESAMPLERS` down to about twice `to_hz` and back.
        order: of the IIR filters.
        codec: a codec of `codecs.Codec` with its bit rate in bit/s, "mp3:32k"; telephone codecs need none, "gsm".
        bone: "throat", the mean response of throat microphones, or "ear", a low-pass at 600 Hz; noise of the body
            included.
        seed: of what is random, the body's response and noise.

    Raises ConfigError (a setting), AudioError (the input), OutputError (the output; nothing is left of it), ImportError
    (AAC and AMR without the extra `formats`).
    """
    steps = _degradation(to_hz, filter, order, codec, bone)
    audio.check_output(out_path, overwrite)
    x, info = audio.read(in_path)
    rate = info.sample_rate
    if to_hz is not None and not 0 < to_hz < rate / 2:
        raise ConfigError(f"{in_path}: a cut-off of {to_hz:g} Hz must lie between 0 and {rate / 2:g} Hz, half its sample rate")
    y = torch.from_numpy(x)
    if y.shape[-1]:
        if bone is not None:
            y = _through_body(y, rate, bone, seed)
        if to_hz is not None:
            y = _low_passed(y, rate, to_hz, filter, order)
        if codec is not None:
            name, bitrate = _parse_codec(codec)
            y = degrade.codec(y, rate, name, bitrate)
    subtype = audio.fitting_subtype(out_path, info.subtype)
    options: dict[str, Any] = {"frames": x.shape[1], "overwrite": overwrite, "tags": info.tags}
    with audio.Writer(out_path, rate, info.channels, subtype, **options) as writer:
        writer.write(y.numpy())
    clipped = f"  clipped {writer.clipped} samples" if writer.clipped else ""
    return f"{in_path} → {out_path}  {_rate(rate)}  {audio.clock(info.seconds)}  {', '.join(steps)}{clipped}"


_FILTERS = ("brickwall", *dsp.FILTER_FAMILIES, *degrade.RESAMPLERS)
# Gain in dB of a microphone at the throat over one in the air, estimated from recorded pairs.
_THROAT = ((100.0, 6.0), (450.0, 0.0), (850.0, -9.0), (2000.0, -11.0), (4800.0, -20.0), (6800.0, -26.0))
_BODIES = {"throat": degrade.Bone(response=_THROAT), "ear": degrade.Bone()}


def _degradation(to_hz: float | None, filter: str, order: int, codec: str | None, bone: str | None) -> list[str]:
    """Check the settings; what will be done, in words."""
    if to_hz is None and codec is None and bone is None:
        raise ConfigError("nothing to do: give a cut-off (--to HZ), a codec or a bone sensor")
    if filter not in _FILTERS:
        raise ConfigError(f"no filter {filter!r}; did you mean {hub.nearest(filter, _FILTERS)!r}? ({', '.join(_FILTERS)})")
    if not 1 <= order <= 20:
        raise ConfigError(f"order must be from 1 to 20, not {order}")
    if bone is not None and bone not in _BODIES:
        raise ConfigError(f"no bone sensor {bone!r}; use one of {', '.join(_BODIES)}")
    steps = [f"bone sensor ({bone})"] if bone is not None else []
    if to_hz is not None:
        steps.append(f"{filter}{f' of order {order}' if filter in dsp.FILTER_FAMILIES else ''} at {to_hz:g} Hz")
    if codec is not None:
        name, bitrate = _parse_codec(codec)
        steps.append(name + (f" at {bitrate / 1000:g} kbit/s" if ":" in codec else ""))
    return steps


def _parse_codec(text: str) -> tuple[codecs.Codec, int]:
    name, _, amount = text.partition(":")
    known = get_args(codecs.Codec)
    if name not in known:
        raise ConfigError(f"no codec {name!r}; did you mean {hub.nearest(name, known)!r}? ({', '.join(known)})")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", amount)
    if amount and not match:
        raise ConfigError(f"codec {text!r}: {amount!r} is no bit rate; write it as in {name}:32k")
    if not match:
        if name in ("mp3", "opus", "vorbis", "aac", "amr"):
            raise ConfigError(f"codec {text!r} needs a bit rate; write it as in {name}:{'12.2k' if name == 'amr' else '32k'}")
        return cast(codecs.Codec, name), 0
    bitrate = round(float(match[1]) * (1000 if match[2] else 1))
    if not 4_000 <= bitrate <= 512_000:
        raise ConfigError(f"codec {text!r}: {bitrate} bit/s is outside 4k to 512k")
    return cast(codecs.Codec, name), bitrate


def _low_passed(x: torch.Tensor, rate: int, to_hz: float, filter: str, order: int) -> torch.Tensor:
    if filter == "brickwall":
        return dsp.band_limit(x, rate, to_hz)
    if filter in dsp.FILTER_FAMILIES:
        y = dsp.lowpass(x.double().numpy(), rate, to_hz, filter, order)
        return torch.from_numpy(y).float()
    return degrade.through_resampler(x, rate, cast(degrade.Resampler, filter), to_hz)[0]


def _through_body(x: torch.Tensor, rate: int, bone: str, seed: int) -> torch.Tensor:
    config = degrade.Config(
        bone_share=1.0, bone=_BODIES[bone], clean_share=1.0, input_noise_share=0.0, cutoff_jitter=0.0, gain_db=(0.0, 0.0)
    )
    way = degrade.Degradation(config)
    (parameters,) = way.sample(np.random.default_rng(seed), 1)
    return way.apply(x[:, None], rate, [parameters] * len(x)).input[:, 0]


@dataclass(frozen=True)
class Doctor:
    """What `doctor` found; ``str(doctor)`` is for the terminal, ``exit_code`` is 0, or 1 where ``problems`` has sentences."""

    versions: dict[str, str]
    optional: dict[str, str]
    cpu: dict[str, Any]
    devices: list[str]
    codecs: dict[str, Any]
    sound: str
    temporary: dict[str, Any]
    models: dict[str, str]
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        cpu = self.cpu
        threads = f"{cpu['threads']} threads on {cpu['cores']} cores"
        lines = [
            ("versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
            *(("optional" if not i else "", f"{name} {said}") for i, (name, said) in enumerate(self.optional.items())),
            ("CPU", ", ".join([cpu["name"], threads, *cpu["features"]])),
            ("devices", ", ".join(self.devices)),
            ("formats", ", ".join(self.codecs["libsndfile"])),
            ("", self.codecs["pyav"]),
            ("sound", self.sound),
            ("temporary", f"{self.temporary['folder']}, {self.temporary['free_bytes'] / 1e9:.1f} GB free"),
            *(("models" if not i else "", f"{name}: {said}") for i, (name, said) in enumerate(self.models.items())),
        ]
        lines += [("problem", sentence) for sentence in self.problems]
        return "\n".join([*(f"{name:<11}{text}" for name, text in lines), "ok" if self.ok else "not ok"])


_NEEDED = ("torch", "torchaudio", "numpy", "scipy", "soundfile", "einops", "safetensors")
_CPU_FLAGS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "bf16 (AMX)", "amx_tile": "AMX", "bf16": "bf16",
    "asimd": "NEON",
}  # fmt: skip
_LEAST_FREE_BYTES = 300_000_000  # what a piped input may need in the temporary folder, and some more


def doctor() -> Doctor:
    """Look over the installation: versions, processor, devices, formats, sound, space, and every shipped model against its
    sha256."""
    import soundfile as sf

    problems: list[str] = []
    versions = {"python": platform.python_version(), "bwe": bwe.__version__}
    versions |= {name: _version(name) or "not installed" for name in _NEEDED}
    versions["libsndfile"] = sf.__libsndfile_version__
    models = {}
    for name in hub.list_models():
        try:
            meta = hub.read(name)[1]
            models[name] = f"ok (sha256 {meta['sha256'][:12]})"
        except ModelError as error:
            models[name] = "damaged"
            problems.append(f"{error}")
    if not models:
        problems.append("no models in this installation; install bwe again, with its pretrained folder")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE_BYTES:
        problems.append(f"{folder}: {free / 1e6:.0f} MB free for temporary files; make room or set TMPDIR to another folder")
    return Doctor(
        versions=versions,
        optional=_optional(),
        cpu=_cpu(),
        devices=_devices(),
        codecs={"libsndfile": sorted(sf.available_formats()), "pyav": _pyav()},
        sound=_sound(),
        temporary={"folder": folder, "free_bytes": free},
        models=models,
        problems=problems,
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _optional() -> dict[str, str]:
    """Packages of the extras: version, or how to get it."""
    try:
        requirements = importlib.metadata.requires("bwe") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] not in ("dev", "all") and match[1] not in found:
            found[match[1]] = _version(match[1]) or f"not installed: pip install 'bwe[{match[2]}]'"
    return dict(sorted(found.items()))


def _cpu() -> dict[str, Any]:
    name: str = platform.processor() or platform.machine()
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
        entries: dict[str, str] = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", stream.read(), re.M))
        name = entries.get("model name", name)
        flags = entries.get("flags", entries.get("Features", ""))
    features = list(dict.fromkeys(text for flag, text in _CPU_FLAGS.items() if flag in flags.split()))
    if not features:
        features = [torch.backends.cpu.get_cpu_capability()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"name": name, "cores": cores, "threads": torch.get_num_threads(), "features": features}


def _devices() -> list[str]:
    found = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ["cpu", *found, *(["mps"] if torch.backends.mps.is_available() else [])]


def _pyav() -> str:
    try:
        import av
    except ImportError:
        return "no PyAV for m4a, aac, wma, webm and video: pip install 'bwe[formats]'"
    except OSError as error:
        return f"PyAV cannot be loaded ({error})"
    return f"PyAV {av.__version__} for m4a, aac, wma, webm and video"


def _sound() -> str:
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except ImportError:
        return "no audio devices: the package sounddevice is not installed (pip install sounddevice)"
    except OSError as error:
        return f"no audio devices: sounddevice cannot be loaded ({error})"
    try:
        names = [device["name"] for device in sounddevice.query_devices()]
    except sounddevice.PortAudioError as error:
        return f"no audio devices: {error}"
    return ", ".join(names) or "no audio devices: the system has none"
