"""Pictures: what a pixel says about a known signal, and a PNG that another reader reads back."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest

from bwe import pictures

SR = 48_000
ROWS = slice(pictures._TOP, pictures._TOP + pictures._PANEL)


def panel(picture: np.ndarray, number: int, bars: int = 0) -> np.ndarray:
    """`(280, 280, 3)`: panel `number` from the left, behind `bars` colour bars."""
    left = pictures._LEFT + number * (pictures._PANEL + pictures._GAP) + bars * (pictures._BAR - pictures._GAP)
    return picture[ROWS, left : left + pictures._PANEL].astype(int)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L* of sRGB 0 to 255."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.fixture(scope="module", autouse=True)
def _needs_matplotlib() -> None:
    pytest.importorskip("matplotlib")


def test_a_tone_lies_in_its_row_at_its_level_whatever_else_is_shown() -> None:
    tone = np.sin(2 * np.pi * 6000 * np.arange(SR) / SR).astype(np.float32)
    alone = pictures.spectrogram_panels({"a": tone * 0.1}, SR)
    beside = pictures.spectrogram_panels({"a": tone * 0.1, "loud": tone}, SR)
    assert np.array_equal(panel(alone, 0), panel(beside, 0))
    column = lightness(panel(beside, 0)[:, 140])
    assert abs(np.argmax(column) - pictures._PANEL * 0.75) <= 1
    # The cell of a pixel is 3.7 bins high: up to 6 dB of the tone's own level is averaged away, at 0.94 of lightness per dB.
    assert 97 - 0.94 * 27 < column.max() < 97 - 0.94 * 19
    assert column[20] == pytest.approx(3, abs=1)


def test_scales_are_even_in_lightness() -> None:
    for colours, scale in ((pictures._LEVEL_COLOURS, (0.0, 1.0)), (pictures._DIFFERENCE_COLOURS, (0.0, 1.0))):
        shades = lightness(pictures._coloured(np.linspace(0, 1, 11)[None], scale, colours)[0].astype(int))
        assert np.abs(np.diff(shades) - 9.4).max() < 1.5


def test_difference_shows_a_gain_in_db_and_the_line_stands_at_the_cutoff() -> None:
    noise = np.random.default_rng(0).standard_normal(SR).astype(np.float32) * 0.1
    picture = pictures.spectrogram_panels({"pred": noise, "ref": noise * 10 ** (-15 / 20)}, SR, 12_000.0, ("pred", "ref"))
    difference = panel(picture, 2, bars=1)
    middle = pictures._coloured(np.array([[15.0]]), pictures.DIFFERENCE_DB, pictures._DIFFERENCE_COLOURS)[0, 0].astype(int)
    assert np.abs(difference[10:100] - middle).max() <= 2
    for number, bars in ((0, 0), (1, 0), (2, 1)):
        assert (panel(picture, number, bars)[140, :5] == 255).all()
        assert not (panel(picture, number, bars)[139, :5] == 255).all()


def test_short_unequal_and_broken_signals_still_make_a_picture(voice: Callable[..., np.ndarray]) -> None:
    x = voice(SR, SR)[0]
    broken = x.copy()
    broken[SR // 2 :] = np.nan
    picture = pictures.spectrogram_panels({"$x$": x[:10], "none": x[:0], "broken": broken}, SR, difference=("none", "broken"))
    grey = pictures._rgb(pictures._UNKNOWN)
    assert (panel(picture, 2)[:, -1] == grey).all()
    assert (panel(picture, 2)[:, 20] != grey).any(-1).all()
    assert not (panel(picture, 1) == grey).all(-1).any()


def test_four_panels_of_three_seconds_are_quick(voice: Callable[..., np.ndarray]) -> None:
    x = voice(3 * SR, SR)[0]

    def seconds() -> float:
        began = time.process_time()
        pictures.spectrogram_panels({"low": x, "pred": x, "ref": x}, SR, 8000.0, ("pred", "ref"))
        return time.process_time() - began

    seconds()
    assert min(seconds() for _ in range(3)) < 0.6


def test_another_reader_reads_the_png() -> None:
    image = pytest.importorskip("PIL.Image")
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(image.open(io.BytesIO(pictures.png(rgb)))), rgb)
