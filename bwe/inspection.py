"""What is in a file: `inspect` says where its content really ends, what took the rest away, and whether extending it makes
sense."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

from bwe import audio, dsp

Shape = Literal["none (full band)", "brick wall", "MP3 shelf", "sinc / resampler", "gentle roll-off (IIR)"]
FULL_BAND, BRICK_WALL, MP3_SHELF, RESAMPLER, ROLL_OFF = SHAPES = cast(tuple[Shape, ...], get_args(Shape))

FORMER_RATES = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Sample rates in Hz that content is said to come from."""

# Scale-factor band 21 of MP3 (long blocks) begins at line 418 of 576 at 44.1 kHz and at line 384 at 48 kHz, 16.0 kHz in both.
# It has no scale factor of its own, so encoders starve it.
SHELF_HZ = 16_000.0
_SHELF_RATE = 42_200  # Hz: a shelf is told by what lies above 21 kHz, and by 400 Hz above its low-pass

_BLOCK = 1 << 16
_RUN = 1024  # samples in which silence is counted
_SAMPLE_S, _SAMPLE_LIMIT, _PIECE_S, _FADE_S = 60.0, 1 << 23, 0.5, 0.005
_CLIP_RUN, _CLIP_KINK, _CLIP_FLOOR = 3, 1e-3, 0.1
_SILENT_PEAK = 2.0**-15
_HIGHEST_PEAK = 1e6  # squares of more overflow
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
            self._on_grid = bool(size.max(initial=0) <= 1)
            if self._on_grid:
                steps = x * np.float32(2**23)
                whole = steps.astype(np.int64)
                self._on_grid = bool((whole == steps).all())
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
    if peak > _HIGHEST_PEAK:  # not audio as it should be, but its spectrum has a shape all the same
        x = x / np.float32(peak)
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
    if sr >= _SHELF_RATE and (top := _mp3_shelf(x, sr)):
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
