from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from bwe import dsp, infer, metrics
from bwe.errors import AudioError, ConfigError
from bwe.evaluate import FILTERS, METRICS, _narrow, evaluate

SR = 48_000
LEVEL = 0.05


class Untouched:
    """Doing nothing, the first baseline."""

    sample_rate = SR
    told: float | None = -1.0

    def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
        assert sr == self.sample_rate
        self.told = cutoff
        return x


class WhiteHighs:
    """Fills the missing band with white noise of the level that the recordings of this test have."""

    sample_rate = SR

    def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
        assert cutoff is not None
        noise = torch.from_numpy(np.random.default_rng(99).normal(0, LEVEL, x.shape)).float()
        return x + noise - dsp.band_limit(noise, sr, cutoff)


def white(seconds: float = 1.0, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, LEVEL, (round(seconds * SR), channels))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    sf.write(tmp_path / "a" / "one.flac", white(1.0), SR, subtype="PCM_24")
    sf.write(tmp_path / "two.wav", white(1.5, channels=2, seed=1), SR, subtype="FLOAT")
    return tmp_path


def test_doing_nothing_scores_like_the_input(recordings: Path) -> None:
    table = evaluate(Untouched(), recordings)
    assert [(row.cutoff_hz, row.signal, row.n) for row in table.rows] == [
        (4000, "input", 2), (4000, "model", 2), (8000, "input", 2), (8000, "model", 2),
    ]  # fmt: skip
    for hz in (4000, 8000):
        for metric in METRICS:
            assert table.mean(metric, hz, "model") == pytest.approx(table.mean(metric, hz, "input"), nan_ok=True)
        assert table.mean("lsd", hz) > 3
        assert table.mean("lsd_lf", hz) < 0.05
        assert table.mean("hf_bias", hz) < -35
        # what is missing is the noise of the share above the cut-off
        assert table.mean("si_sdr", hz) == pytest.approx(10 * math.log10(hz / (24_000 - hz)), abs=0.1)


def test_noise_of_the_right_level_scores_the_floor(recordings: Path) -> None:
    table = evaluate(WhiteHighs(), recordings)
    for hz in (4000, 8000):
        assert table.mean("lsd", hz) == pytest.approx(metrics.lsd_floor(hz, SR), rel=0.02)
        assert table.floor[hz] == metrics.lsd_floor(hz, SR)
        assert abs(table.mean("hf_bias", hz)) < 0.2


@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_takes_the_highs_and_keeps_the_lows(recordings: Path, filter: str) -> None:
    if filter == "soxr":
        pytest.importorskip("soxr")
    x = torch.from_numpy(sf.read(recordings / "two.wav", dtype="float32", always_2d=True)[0].T.copy())
    y = _narrow(x, SR, 4000, filter)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert metrics.hf_bias(x, y, SR, 6000).max() < (-8 if filter == "hold" else -15)  # holding leaves images
    low = [dsp.band_limit(s, SR, 2500) for s in (x, y)]  # also: not delayed, not turned, not scaled
    assert metrics.snr(*low).min() > (10 if filter in ("linear", "bessel", "hold") else 25)


def test_the_cutoff_is_told_or_left_to_find(recordings: Path) -> None:
    model = Untouched()
    evaluate(model, recordings, cutoffs=[5000])
    assert model.told == 5000
    table = evaluate(model, recordings, cutoffs=[5000], cutoff_source="detect")
    assert model.told is None
    assert "cut-off detect" in str(table)


def test_a_real_extender(recordings: Path, tiny: infer.Extender) -> None:
    seen: list[tuple[int, int]] = []
    table = evaluate(
        tiny, recordings, cutoffs=(8000,), filter="cheby1", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    # its known band is the input's but for the last 300 Hz, its highs are its own
    assert table.mean("lsd_lf", 8000) == pytest.approx(table.mean("lsd_lf", 8000, "input"), abs=0.1)
    assert table.mean("lsd_hf", 8000) != pytest.approx(table.mean("lsd_hf", 8000, "input"), abs=0.1)


def test_a_model_by_its_folder(recordings: Path, tiny_folder: Path) -> None:
    table = evaluate(tiny_folder, recordings / "two.wav", cutoffs=(8000,))
    assert table.model == str(tiny_folder)
    assert table.rows[1].n == 1
    assert math.isnan(table.rows[1].ci95["lsd"])


def test_terminal_and_json_say_the_same(recordings: Path) -> None:
    table = evaluate(WhiteHighs(), recordings)
    text = str(table)
    assert f"{table.mean('lsd', 8000):.2f} ± {table.rows[3].ci95['lsd']:.2f}" in text
    assert f"{metrics.lsd_floor(4000, SR):.2f}" in text
    tree = json.loads(table.to_json())
    assert tree["rows"][3]["mean"]["lsd"] == table.mean("lsd", 8000)
    assert len(tree["files"]) == 4
    assert tree["files"][0]["model"]["hf_bias"] == table.files[0]["model"]["hf_bias"]
    assert tree["lsd_floor"]["4000"] == metrics.lsd_floor(4000, SR)


def test_means_and_confidence_by_hand(recordings: Path) -> None:
    table = evaluate(WhiteHighs(), recordings, cutoffs=(4000,))
    first, second = (f["model"]["si_sdr"] for f in table.files)  # type: ignore[index]
    row = table.rows[1]
    assert row.mean["si_sdr"] == pytest.approx((first + second) / 2)
    assert row.ci95["si_sdr"] == pytest.approx(1.96 * abs(first - second) / 2)


def test_speech_and_pauses_apart(tmp_path: Path, voice: Callable[..., np.ndarray]) -> None:
    sf.write(tmp_path / "voice.wav", voice(3 * SR, SR).T, SR, subtype="FLOAT")
    table = evaluate(Untouched(), tmp_path, cutoffs=(4000,))
    row = table.rows[0]
    assert min(row.mean["lsd_speech"], row.mean["lsd_pauses"]) <= row.mean["lsd"]
    assert max(row.mean["lsd_speech"], row.mean["lsd_pauses"]) >= row.mean["lsd"]


def test_what_is_no_reference_is_skipped_and_told(recordings: Path) -> None:
    (recordings / "notes.txt").write_text("not audio")
    sf.write(recordings / "phone.wav", white(0.5)[::3], 16_000)
    sf.write(recordings / "void.wav", np.zeros((0, 1)), SR)
    table = evaluate(Untouched(), recordings, cutoffs=(4000,))
    assert table.rows[0].n == 2
    assert {Path(p).name for p in table.skipped} == {"notes.txt", "phone.wav", "void.wav"}
    assert "16000 Hz recording" in table.skipped[str(recordings / "phone.wav")]
    assert "Skipped 3 files" in str(table)
    with pytest.raises(AudioError, match="16000 Hz recording"):
        evaluate(Untouched(), [recordings / "phone.wav"])
    (recordings / "two.wav").unlink()
    (recordings / "a" / "one.flac").unlink()
    with pytest.raises(AudioError, match="none of 3 files"):
        evaluate(Untouched(), recordings)


def test_silence_gives_figures_and_valid_json(tmp_path: Path) -> None:
    sf.write(tmp_path / "silence.wav", np.zeros(SR), SR)
    table = evaluate(Untouched(), tmp_path, cutoffs=(4000,))
    assert table.mean("lsd", 4000) == 0
    assert json.loads(table.to_json())["rows"][0]["mean"]["si_sdr"] is None
    assert "nan" in str(table)


def test_manifest_above_the_folder_selects(recordings: Path) -> None:
    rows = ["path,cls,split", "a/one.flac,speech48,test", "two.wav,music44,train"]
    (recordings / "manifest.csv").write_text("\n".join(rows) + "\n")

    def names(**kwargs: str) -> set[str]:
        table = evaluate(Untouched(), kwargs.pop("folder", recordings), cutoffs=(4000,), **kwargs)
        return {Path(str(f["path"])).name for f in table.files}

    assert names() == {"one.flac", "two.wav"}
    assert names(split="test") == {"one.flac"}
    assert names(cls="music44") == {"two.wav"}
    assert names(folder=recordings / "a", split="test") == {"one.flac"}
    with pytest.raises(ConfigError, match="split 'train'"):
        names(folder=recordings / "a", split="train")


def test_wrong_arguments_are_named(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'cheby1'"):
        evaluate(Untouched(), recordings, filter="cheby")
    with pytest.raises(ConfigError, match="24000 Hz, half"):
        evaluate(Untouched(), recordings, cutoffs=(30_000,))
    with pytest.raises(ConfigError, match="no cut-off"):
        evaluate(Untouched(), recordings, cutoffs=())
    with pytest.raises(ConfigError, match="no such file or folder"):
        evaluate(Untouched(), recordings / "nowhere")
    with pytest.raises(ConfigError, match=r"needs a manifest\.csv"):
        evaluate(Untouched(), recordings, split="test")
    with pytest.raises(ConfigError, match="'given' or 'detect'"):
        evaluate(Untouched(), recordings, cutoff_source="guess")  # type: ignore[arg-type]
