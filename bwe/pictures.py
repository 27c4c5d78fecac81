"""Pictures of signals: spectrograms side by side on fixed colour scales, so that pictures of different steps compare."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from bwe import dsp

LEVEL_DBFS = (-100.0, 0.0)
DIFFERENCE_DB = (0.0, 30.0)

# Anchors at equal steps of CIE lightness, 3 to 97, with a hue that turns one way (Oklch); linear in between.
LEVEL_COLOURS = (
    "#070820", "#24105a", "#4d0b83", "#7d1689", "#ac257d", "#d63c64", "#f25e51", "#fe884e", "#feb170", "#ffd597", "#fff7d6",
)  # fmt: skip
_DIFFERENCE_COLOURS = (
    "#030c17", "#002337", "#003a49", "#00525b", "#006b6b", "#008678", "#00a27f", "#51bc7d", "#8bd37b", "#c0e989", "#f1fe9f",
)  # fmt: skip
_GROUND, _TEXT, _UNKNOWN = "#16181d", "#c9ced8", "#6b7280"

_N_FFT = 2048
_PANEL, _GAP, _LEFT, _BAR, _TOP, _BOTTOM = 280, 14, 46, 70, 30, 36  # pixels
_COLUMNS, _ROWS, _HEADER = 400, 320, 30  # pixels of a panel of `comparison`, and of the line above it
_TITLE = 100  # characters


def ticks(low: float, high: float, most: int = 9) -> np.ndarray:
    """Between 2 and `most` (at least 4) round numbers from `low` to `high` > `low`, where an axis is to be labelled."""
    exact = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= exact * (1 - 1e-9))
    return np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step


def _rgb(colour: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def _coloured(values: np.ndarray, scale: tuple[float, float], colours: tuple[str, ...]) -> np.ndarray:
    """`(H, W)` -> `(H, W, 3)` uint8; grey where not finite."""
    anchors = np.stack([_rgb(colour) for colour in colours])
    table = np.stack([np.interp(np.linspace(0, len(colours) - 1, 256), range(len(colours)), c) for c in anchors.T], axis=-1)
    known = np.isfinite(values)
    share = (np.where(known, values, scale[0]) - scale[0]) / (scale[1] - scale[0])
    return np.where(known[..., None], table[(255 * share.clip(0, 1)).round().astype(int)], _rgb(_UNKNOWN)).astype(np.uint8)


def _levels(x: np.ndarray, length: int, columns: int = _PANEL) -> np.ndarray:
    """`(T,)` or `(C, T)` -> one panel, low frequencies last: mean power of each pixel's cell in dBFS over all channels (a
    full-scale sine reaches 0)."""
    hop = min(max(length // (2 * columns), 64), _N_FFT // 2)
    padded = F.pad(torch.from_numpy(np.atleast_2d(x).astype(np.float32)), (0, length - x.shape[-1]))
    power = dsp.power_spectrogram(padded, _N_FFT, hop).mean(0, keepdim=True) * (4 / _N_FFT) ** 2
    cells = F.adaptive_avg_pool2d(power, (_PANEL, columns))[0].flip(0).numpy()
    return 10 * np.log10(np.maximum(cells, 10 ** (LEVEL_DBFS[0] / 10)))


def spectrogram(x: np.ndarray, length: int = 0) -> np.ndarray:
    """The log-power spectrogram alone, without axes, from -100 to 0 dBFS and up to half the sample rate.

    Args:
        x: `(C, T)`, full scale +-1; powers are averaged over channels.
        length: samples that the picture spans; what is missing of them is silence.

    Returns:
        `(280, 400, 3)` uint8 RGB, low frequencies last. Non-finite stretches of a signal are grey.
    """
    return _coloured(_levels(x, max(1, length, x.shape[-1]), _COLUMNS), LEVEL_DBFS, LEVEL_COLOURS)


def spectrogram_panels(
    signals: Mapping[str, np.ndarray],
    sample_rate: int,
    cutoff_hz: float | None = None,
    difference: tuple[str, str] | None = None,
) -> np.ndarray:
    """Log-power spectrograms side by side (2048-point Hann) from -100 to 0 dBFS, and |difference| of two of them, 0 to 30 dB.

    Args:
        signals: at least one `(T,)` at `sample_rate`, full scale +-1, by title; shorter ones are followed by silence.
        sample_rate: in Hz.
        cutoff_hz: where to draw the line above which the band was missing.
        difference: titles of the two signals to compare; what lies below -100 dBFS in both counts as equal.

    Returns:
        `(H, W, 3)` uint8 RGB. Non-finite stretches of a signal are grey.

    Raises:
        ImportError: without matplotlib (`bwe[train]`), which writes the text.
    """
    length = max(1, *(len(x) for x in signals.values()))
    levels = {title: _levels(x, length) for title, x in signals.items()}
    groups = [_Group(levels, LEVEL_DBFS, LEVEL_COLOURS, "dBFS", 20)]
    if difference is not None:
        a, b = difference
        between = {f"|{a} − {b}|": np.abs(levels[a] - levels[b])}
        groups.append(_Group(between, DIFFERENCE_DB, _DIFFERENCE_COLOURS, "dB", 10))
    return _draw(groups, sample_rate, length / sample_rate, cutoff_hz)


class _Group(NamedTuple):
    """Panels `(H, W)`, low frequencies last, by title, that share a colour bar with a label every `step` units."""

    panels: Mapping[str, np.ndarray]
    scale: tuple[float, float]
    colours: tuple[str, ...]
    unit: str
    step: float


def require_matplotlib() -> None:
    """Raises ImportError, naming the extra, where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("spectrograms need the matplotlib package: pip install 'bwe[train]'") from error


def _draw(
    groups: Sequence[_Group], sample_rate: int, seconds: float, cutoff_hz: float | None, header: tuple[str, str] | None = None
) -> np.ndarray:
    """Panels of one size in a row, with axes, colour bars, the line at the cut-off and words at the left and right above."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall, wide = next(iter(groups[0].panels.values())).shape
    top = _TOP + (_HEADER if header else 0)
    count = sum(len(panels) for panels, *_ in groups)
    height, width = top + tall + _BOTTOM, _LEFT + count * (wide + _GAP) + len(groups) * (_BAR - _GAP)
    picture = np.tile(_rgb(_GROUND), (height, width, 1))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    rows = slice(top, top + tall)

    def text(words: str, x: float, y: float, align: str = "center", size: int = 8) -> None:
        figure.text(x / width, 1 - y / height, words, ha=align, va="center", color=_TEXT, fontsize=size, parse_math=False)

    def across(share: float) -> float:
        """Row of a share of the panel's height."""
        return top + tall * (1 - share)

    if header:
        text(header[0], _LEFT, top - 40, "left", 11)
        text(header[1], width - _BAR, top - 40, "right", 9)
    nyquist_khz = sample_rate / 2000
    for khz in ticks(0, nyquist_khz):
        text(f"{khz:g}", _LEFT - 6, across(khz / nyquist_khz), "right")
    text("kHz", _LEFT - 6, top - 12, "right")
    unit_s, time_unit = (3600, "h") if seconds > 3 * 3600 else (60, "min") if seconds > 3 * 60 else (1, "s")
    left = _LEFT
    for panels, scale, colours, unit, step in groups:
        for title, values in panels.items():
            picture[rows, left : left + wide] = _coloured(values, scale, colours)
            if cutoff_hz is not None and cutoff_hz < sample_rate / 2:
                dashes = left + np.flatnonzero(np.arange(wide) % 8 < 5)
                picture[round(across(cutoff_hz / 1000 / nyquist_khz)), dashes] = 255
            text(title, left + wide / 2, top - 14, size=9)
            for tick in ticks(0, seconds / unit_s):
                share = tick * unit_s / seconds
                if share < 1 - (0.01 + 0.02 * len(time_unit)):  # the unit and the next panel's 0 stand there
                    text(f"{tick:g}", left + wide * share, top + tall + 10)
            text(time_unit, left + wide - 1 - 3 * len(time_unit), top + tall + 10)
            left += wide + _GAP
        bar = np.linspace(scale[1], scale[0], tall)[:, None]
        picture[rows, left - 4 : left + 6] = _coloured(bar, scale, colours)
        text(unit, left - 4, top - 14, "left")
        for value in np.arange(scale[0], scale[1] + 1, step):
            text(f"{value:g}".replace("-", "−"), left + 12, across((value - scale[0]) / (scale[1] - scale[0])), "left")
        left += _BAR - _GAP
    figure.figimage(picture, zorder=-1)
    with warnings.catch_warnings():  # a title in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class SpectrogramAccumulator:
    """The spectrogram of a signal of any length, of fixed size, from its blocks: mean power of each pixel's cell over all
    channels (2048-point Hann).

    Args:
        sample_rate: Hz.
        total_frames: how many samples will come; what exceeds them counts for the last column.

    Raises:
        ValueError: a sample rate below 1 Hz, or fewer than 0 frames.
    """

    def __init__(self, sample_rate: int, total_frames: int) -> None:
        if sample_rate < 1 or total_frames < 0:
            raise ValueError(f"no spectrogram of {total_frames} frames at {sample_rate} Hz")
        self.sample_rate, self.total_frames = sample_rate, total_frames
        self._hop = min(max(total_frames // (2 * _COLUMNS), 64), _N_FFT // 2)
        self._power = torch.zeros(_COLUMNS, _ROWS, dtype=torch.float64)
        self._counts = torch.zeros(_COLUMNS, dtype=torch.float64)
        self._window = torch.hann_window(_N_FFT)
        self._rest: torch.Tensor | None = None
        self._frame = 0

    def add(self, block: np.ndarray | torch.Tensor) -> None:
        """The next samples, float `(C, n)`, full scale ±1, C the same in every block."""
        x = torch.as_tensor(block).detach().to("cpu", torch.float32)
        rest = x.new_zeros(len(x), _N_FFT // 2) if self._rest is None else self._rest
        frames, self._rest = self._take(torch.cat([rest, x], dim=-1), self._power, self._counts)
        self._frame += frames

    def _take(self, x: torch.Tensor, power: torch.Tensor, counts: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Adds the whole frames of `(C, n)`; returns their number and the samples that the next frames need."""
        count = max(0, (x.shape[-1] - _N_FFT) // self._hop + 1)
        group = 256  # frames at once: bounded memory for a block of any length
        for first in range(0, count, group):
            last = min(first + group, count)
            part = x[:, first * self._hop : (last - 1) * self._hop + _N_FFT].unfold(-1, _N_FFT, self._hop)
            spectrum = torch.fft.rfft(part * self._window).mul_(4 / _N_FFT)
            cells = F.adaptive_avg_pool1d((spectrum.real.square() + spectrum.imag.square()).mean(0), _ROWS)
            middle = (self._frame + torch.arange(first, last)) * self._hop
            column = (middle * _COLUMNS // max(self.total_frames, 1)).clamp(max=_COLUMNS - 1)
            power.index_add_(0, column, cells.double())
            counts.index_add_(0, column, torch.ones(last - first, dtype=torch.float64))
        return count, x[:, count * self._hop :].clone()

    def levels(self) -> np.ndarray:
        """`(320, 400)` in dBFS (a full-scale sine reaches 0) of what has come so far, low frequencies last."""
        power, counts = self._power.clone(), self._counts.clone()
        if self._rest is not None:
            self._take(F.pad(self._rest, (0, _N_FFT // 2 + self._hop - 1)), power, counts)
        filled = np.flatnonzero(counts.numpy())
        if not len(filled):
            return np.full((_ROWS, _COLUMNS), LEVEL_DBFS[0])
        means = (power / counts.clamp(min=1)[:, None]).numpy()
        # Short signals have fewer frames than columns.
        nearest = filled[np.abs(np.arange(_COLUMNS)[:, None] - filled).argmin(1)]
        return 10 * np.log10(np.maximum(means[nearest].T[::-1], 10 ** (LEVEL_DBFS[0] / 10)))


def comparison(
    before: SpectrogramAccumulator,
    after: SpectrogramAccumulator,
    difference: SpectrogramAccumulator,
    cutoff_hz: float | None = None,
    title: str = "",
) -> bytes:
    """A PNG of three spectrograms on one scale from -100 to 0 dBFS: before, after, and of the signal after − before.

    Args:
        before, after, difference: of signals of one sample rate and length; the last was fed with `after - before`, so
            that what was kept is black however loud it is.
        cutoff_hz: where to draw the dashed line above which the band was missing.
        title: such as the name of the file.

    Raises:
        ImportError: without matplotlib (`bwe[train]`), which writes the text.
        ValueError: sample rates or lengths differ.
    """
    if len({(a.sample_rate, a.total_frames) for a in (before, after, difference)}) > 1:
        raise ValueError("before, after and difference must have one sample rate and length")
    panels = {"before": before.levels(), "after": after.levels(), "|after − before|": difference.levels()}
    group = _Group(panels, LEVEL_DBFS, LEVEL_COLOURS, "dBFS", 20)
    line = "" if cutoff_hz is None else f"dashed: known band ends at {cutoff_hz / 1000:.1f} kHz"
    seconds = max(before.total_frames, 1) / before.sample_rate
    title = "".join(c if c.isprintable() else " " for c in title)
    title = title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"
    return png(_draw([group], before.sample_rate, seconds, cutoff_hz, (title, line)))


def png(rgb: np.ndarray) -> bytes:
    """`(H, W, 3)` uint8 -> a PNG file (ISO/IEC 15948)."""
    height, width, _ = rgb.shape
    # Each row filtered by Up (type 2): differences to the row above compress better than the pixels.
    rows = np.diff(rgb.reshape(height, -1), axis=0, prepend=np.uint8(0))
    data = np.concatenate([np.full((height, 1), 2, np.uint8), rows], axis=1).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data, 6)) + chunk(b"IEND", b"")
