"""Pictures of signals: spectrograms side by side on fixed colour scales, so that pictures of different steps compare."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from bwe import dsp

LEVEL_DBFS = (-100.0, 0.0)
DIFFERENCE_DB = (0.0, 30.0)

# Anchors at equal steps of CIE lightness, 3 to 97, with a hue that turns one way (Oklch); linear in between.
_LEVEL_COLOURS = (
    "#070820", "#24105a", "#4d0b83", "#7d1689", "#ac257d", "#d63c64", "#f25e51", "#fe884e", "#feb170", "#ffd597", "#fff7d6",
)  # fmt: skip
_DIFFERENCE_COLOURS = (
    "#030c17", "#002337", "#003a49", "#00525b", "#006b6b", "#008678", "#00a27f", "#51bc7d", "#8bd37b", "#c0e989", "#f1fe9f",
)  # fmt: skip
_GROUND, _TEXT, _UNKNOWN = "#16181d", "#c9ced8", "#6b7280"

_N_FFT = 2048
_PANEL, _GAP, _LEFT, _BAR, _TOP, _BOTTOM = 280, 14, 46, 70, 30, 36  # pixels


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


def _levels(x: np.ndarray, length: int) -> np.ndarray:
    """`(T,)` -> one panel, low frequencies last: mean power of each pixel's cell in dBFS (a full-scale sine reaches 0)."""
    hop = min(max(length // (2 * _PANEL), 64), _N_FFT // 2)
    padded = F.pad(torch.from_numpy(np.array(x, dtype=np.float32)), (0, length - len(x)))
    power = dsp.power_spectrogram(padded, _N_FFT, hop) * (4 / _N_FFT) ** 2
    cells = F.adaptive_avg_pool2d(power[None], (_PANEL, _PANEL))[0].flip(0).numpy()
    return 10 * np.log10(np.maximum(cells, 10 ** (LEVEL_DBFS[0] / 10)))


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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("spectrograms need the matplotlib package: pip install 'bwe[train]'") from error

    length = max(1, *(len(x) for x in signals.values()))
    levels = {title: _levels(x, length) for title, x in signals.items()}
    groups = [(levels, LEVEL_DBFS, _LEVEL_COLOURS, "dBFS", 20)]
    if difference is not None:
        a, b = difference
        between = {f"|{a} − {b}|": np.abs(levels[a] - levels[b])}
        groups.append((between, DIFFERENCE_DB, _DIFFERENCE_COLOURS, "dB", 10))

    count = sum(len(panels) for panels, *_ in groups)
    height, width = _TOP + _PANEL + _BOTTOM, _LEFT + count * (_PANEL + _GAP) + len(groups) * (_BAR - _GAP)
    picture = np.tile(_rgb(_GROUND), (height, width, 1))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    rows = slice(_TOP, _TOP + _PANEL)

    def text(words: str, x: float, y: float, align: str = "center", size: int = 8) -> None:
        figure.text(x / width, 1 - y / height, words, ha=align, va="center", color=_TEXT, fontsize=size, parse_math=False)

    def across(share: float) -> float:
        """Row of a share of the panel's height."""
        return _TOP + _PANEL * (1 - share)

    nyquist_khz, seconds = sample_rate / 2000, length / sample_rate
    for khz in ticks(0, nyquist_khz):
        text(f"{khz:g}", _LEFT - 6, across(khz / nyquist_khz), "right")
    text("kHz", _LEFT - 6, _TOP - 12, "right")
    left = _LEFT
    for panels, scale, colours, unit, step in groups:
        for title, values in panels.items():
            picture[rows, left : left + _PANEL] = _coloured(values, scale, colours)
            if cutoff_hz is not None and cutoff_hz < sample_rate / 2:
                dashes = left + np.flatnonzero(np.arange(_PANEL) % 8 < 5)
                picture[round(across(cutoff_hz / 1000 / nyquist_khz)), dashes] = 255
            text(title, left + _PANEL / 2, _TOP - 14, size=9)
            for second in ticks(0, seconds):
                if second < 0.97 * seconds:  # the next panel's 0 stands there
                    text(f"{second:g}", left + _PANEL * second / seconds, _TOP + _PANEL + 10)
            text("s", left + _PANEL - 4, _TOP + _PANEL + 10)
            left += _PANEL + _GAP
        bar = np.linspace(scale[1], scale[0], _PANEL)[:, None]
        picture[rows, left - 4 : left + 6] = _coloured(bar, scale, colours)
        text(unit, left - 4, _TOP - 14, "left")
        for value in np.arange(scale[0], scale[1] + 1, step):
            text(f"{value:g}".replace("-", "−"), left + 12, across((value - scale[0]) / (scale[1] - scale[0])), "left")
        left += _BAR - _GAP
    figure.figimage(picture, zorder=-1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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
