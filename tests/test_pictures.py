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


def test_a_spectrogram_alone_averages_power_over_channels_and_follows_with_silence() -> None:
    tone = np.sin(2 * np.pi * 6000 * np.arange(SR) / SR).astype(np.float32)
    alone, opposed = pictures.spectrogram(tone[None]), pictures.spectrogram(np.stack([tone, -tone]))
    assert alone.shape == (280, 400, 3)
    assert np.array_equal(alone, opposed)
    shades = lightness(pictures.spectrogram(tone[None], 2 * SR).astype(int))
    assert abs(np.argmax(shades[:, 100]) - 0.75 * 280) <= 1
    assert shades[:, 210:].max() == pytest.approx(3, abs=1)


def test_scales_are_even_in_lightness() -> None:
    for colours, scale in ((pictures.LEVEL_COLOURS, (0.0, 1.0)), (pictures._DIFFERENCE_COLOURS, (0.0, 1.0))):
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


def accumulated(x: np.ndarray, block: int, total: int | None = None) -> pictures.SpectrogramAccumulator:
    accumulator = pictures.SpectrogramAccumulator(SR, x.shape[1] if total is None else total)
    for start in range(0, x.shape[1], block):
        accumulator.add(x[:, start : start + block])
    return accumulator


@pytest.mark.parametrize("frames", [0, 1, 1000, 100_000, 1_200_000])
def test_accumulated_levels_do_not_depend_on_the_blocks(frames: int) -> None:
    x = 0.1 * np.random.default_rng(0).standard_normal((2, frames)).astype(np.float32)
    levels = accumulated(x, 65_536).levels()
    assert levels.shape == (pictures._ROWS, pictures._COLUMNS)
    assert np.abs(levels - accumulated(x, 9999).levels()).max() < 1e-3


def test_accumulated_tone_and_burst_lie_where_they_are() -> None:
    x = np.zeros((1, 10 * SR), np.float32)
    x[0, 5 * SR : 6 * SR] = np.sin(2 * np.pi * 6000 * np.arange(SR) / SR)
    levels = accumulated(x, 10_000).levels()
    row, column = np.unravel_index(levels.argmax(), levels.shape)
    assert abs(row - 0.75 * pictures._ROWS) <= 1
    assert 0.5 <= column / pictures._COLUMNS < 0.6
    # A row is 3.2 bins high, and a Hann window spreads a tone over 1.5, here over two rows.
    assert -6 < levels.max() < 0
    assert levels[:, : round(0.49 * pictures._COLUMNS)].max() == pictures.LEVEL_DBFS[0]


def test_comparison_is_black_where_the_band_was_kept(voice: Callable[..., np.ndarray]) -> None:
    image = pytest.importorskip("PIL.Image")
    x = voice(2 * SR, SR, 2)
    added = 0.05 * np.sin(2 * np.pi * 18_000 * np.arange(2 * SR) / SR).astype(np.float32)[None].repeat(2, 0)
    panels = [accumulated(s, 65_536) for s in (x, x + added, added)]
    rgb = np.asarray(image.open(io.BytesIO(pictures.comparison(*panels, 12_000.0, "a $file$.wav")))).astype(int)
    top = pictures._TOP + pictures._HEADER
    left = pictures._LEFT + 2 * (pictures._COLUMNS + pictures._GAP)
    third = lightness(rgb[top : top + pictures._ROWS, left : left + pictures._COLUMNS])
    line = pictures._ROWS // 2
    assert third[line + 1 :, 20:-20].max() < 4  # at its ends the tone is switched, in all bands
    assert third[:line].max() > 60
    assert (third[line, :5] > 99).all()


def test_comparison_refuses_what_does_not_compare() -> None:
    a, b = pictures.SpectrogramAccumulator(SR, 100), pictures.SpectrogramAccumulator(SR, 200)
    with pytest.raises(ValueError, match="one sample rate and length"):
        pictures.comparison(a, b, a)


@pytest.mark.parametrize("title", ["長い名前.wav", "$x^{.wav", "a\nb\0c.wav", 300 * "w"])
def test_any_file_name_can_be_a_title(title: str, recwarn: pytest.WarningsRecorder) -> None:
    hours = pictures.SpectrogramAccumulator(SR, 4 * 3600 * SR)
    assert pictures.comparison(hours, hours, hours, 8000.0, title).startswith(b"\x89PNG")
    assert not len(recwarn)
