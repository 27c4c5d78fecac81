"""The measuring instrument: figures that can be worked out by hand, every way to run it, and what goes wrong."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import soundfile as sf
import torch
from torch import Tensor

import bwe.evaluate  # noqa: F401  # the module, which `bwe.evaluate` is not
from bwe import audio, dsp, generators, hub, infer, metrics
from bwe.errors import AudioError, ConfigError, OutputError
from bwe.evaluate import CACHE_BYTES, CACHE_DAYS, FILTERS, _narrow, bootstrap, compare, evaluate

SR = 48_000
LEVEL = 0.05
QUICK = ("lsd", "lsd_lf", "lsd_hf", "hf_bias", "si_sdr")
Voice = Callable[..., np.ndarray]


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
    folder = tmp_path / "recordings"
    (folder / "a").mkdir(parents=True)
    sf.write(folder / "a" / "one.flac", white(1.0), SR, subtype="PCM_24")
    sf.write(folder / "two.wav", white(1.5, channels=2, seed=1), SR, subtype="FLOAT")
    return folder


quickly = functools.partial(evaluate, metrics=QUICK)


def test_doing_nothing_scores_like_the_input(recordings: Path) -> None:
    found = evaluate(Untouched(), recordings)
    assert [(row["cutoff_hz"], row["system"], row["n"]) for row in found.rows] == [
        (4000, "input", 2), (4000, "Untouched", 2), (8000, "input", 2), (8000, "Untouched", 2),
    ]  # fmt: skip
    assert {metric["name"] for metric in found.metrics} == metrics.METRICS.keys() - metrics.missing().keys()
    for hz in (4000, 8000):
        paired = found.row(hz)["paired"]
        for metric in found.metrics:
            name = metric["name"]
            assert found.mean(name, hz) == pytest.approx(found.mean(name, hz, "input"), nan_ok=True)
            assert (paired[name]["wins"], paired[name]["losses"]) == (0, 0)
            assert math.isnan(paired[name]["p"])
        assert found.mean("lsd", hz) > 3
        assert found.mean("lsd_lf", hz) < 0.05
        assert found.mean("hf_bias", hz) < -35
        # what is missing is the noise of the share above the cut-off
        assert found.mean("si_sdr", hz) == pytest.approx(10 * math.log10(hz / (24_000 - hz)), abs=0.1)


def test_noise_of_the_right_level_scores_the_floor(recordings: Path) -> None:
    found = quickly(WhiteHighs(), recordings)
    for hz, condition in zip((4000, 8000), found.conditions, strict=True):
        assert found.mean("lsd", hz) == pytest.approx(metrics.lsd_floor(hz, SR), rel=0.02)
        assert condition == {"filter": "brickwall", "cutoff_hz": hz, "floor": metrics.lsd_floor(hz, SR)}
        assert abs(found.mean("hf_bias", hz)) < 0.2


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
    quickly(model, recordings, cutoffs=[5000])
    assert model.told == 5000
    found = quickly(model, recordings, cutoffs=[5000], cutoff_source="detect")
    assert model.told is None
    assert "cut-off detect" in str(found)


def test_a_real_extender(recordings: Path, tiny: infer.Extender) -> None:
    seen: list[tuple[int, int]] = []
    found = quickly(
        tiny, recordings, cutoffs=(8000,), filters="cheby1", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    # its known band is the input's but for the last 300 Hz, its highs are its own
    assert found.mean("lsd_lf", 8000) == pytest.approx(found.mean("lsd_lf", 8000, "input"), abs=0.1)
    assert found.mean("lsd_hf", 8000) != pytest.approx(found.mean("lsd_hf", 8000, "input"), abs=0.1)
    assert found.systems[1] == {
        "name": "tiny-test", "arch": "seanet", "parameters": sum(p.numel() for p in tiny.generator.parameters()),
    }  # fmt: skip


def test_a_model_by_its_folder(recordings: Path, tiny_folder: Path) -> None:
    found = quickly(tiny_folder, recordings / "two.wav", cutoffs=(8000,))
    assert found.systems[1]["name"] == tiny_folder.name
    row = found.row(8000)
    assert (row["n"], row["ci95"]["lsd"], row["paired"]["lsd"]["ci95"]) == (1, None, None)


def test_systems_by_filters_by_cutoffs(recordings: Path) -> None:
    found = quickly([Untouched(), WhiteHighs()], recordings, [3000, 6000], ["brickwall", "cheby1"], baseline="Untouched")
    conditions = [("brickwall", 3000), ("brickwall", 6000), ("cheby1", 3000), ("cheby1", 6000)]
    assert [(c["filter"], c["cutoff_hz"]) for c in found.conditions] == conditions
    systems = ["input", "Untouched", "WhiteHighs"]
    assert [s["name"] for s in found.systems] == systems
    cells = [(name, *condition) for condition in conditions for name in systems]
    for part in (found.rows, found.worst, found.frechet, found.files[: len(cells)]):
        assert [(p["system"], p["filter"], p["cutoff_hz"]) for p in part] == cells
    assert found.mean("hf_bias", 3000, "input", "brickwall") < found.mean("hf_bias", 3000, "input", "cheby1")
    for row in found.rows:
        if row["system"] == "Untouched":
            assert row["paired"] is None
            continue
        wins, losses = (2, 0) if row["system"] == "WhiteHighs" else (0, 0)
        paired = row["paired"]["lsd_hf"]
        assert (paired["wins"], paired["losses"]) == (wins, losses)
        own = [f["values"]["lsd_hf"] for f in found.files if all(f[k] == row[k] for k in ("system", "filter", "cutoff_hz"))]
        assert row["mean"]["lsd_hf"] == pytest.approx(np.mean(own))
    values = {row["system"]: row["value"] for row in found.frechet if row["cutoff_hz"] == 3000 and row["filter"] == "cheby1"}
    assert values["WhiteHighs"] < 0.1 * values["input"]
    line = found.lines[0]
    assert list(line["db"]) == ["reference", *systems]
    assert abs(line["db"]["reference"]) < 3
    hz, lsd = np.array(found.frequency[0]["hz"]), found.frequency[0]["lsd"]
    assert len(hz) == 257
    assert max(np.array(lsd["input"])[hz < 2900]) < 0.2
    assert min(np.array(lsd["input"])[hz > 3100]) > 3
    assert np.array(lsd["WhiteHighs"])[hz > 3500].mean() == pytest.approx(metrics.FLOOR_PER_ROOT_FRACTION, rel=0.02)


def test_a_codec_is_a_filter_with_a_cutoff_of_its_own(recordings: Path) -> None:
    found = quickly([Untouched()], recordings, [3000], ["brickwall", "mp3:32k"])
    first, second = ((c["filter"], c["cutoff_hz"]) for c in found.conditions)
    assert first == ("brickwall", 3000)
    assert second[0] == "mp3:32k"
    assert 7500 < second[1] < 9000  # LAME's low-pass for 32 kbit/s mono
    assert found.mean("lsd_lf", second[1], "input", "mp3:32k") > 0.05  # lossy below it, too
    assert found.mean("hf_bias", second[1], "input", "mp3:32k") < -15
    assert str(found).count("\ninput ") == 2  # a table each
    with pytest.raises(ConfigError, match="codec 'mp3' needs a bit rate"):
        quickly([Untouched()], recordings, [3000], ["mp3"])
    with pytest.raises(ConfigError, match="mp3:320k keeps the whole band at 48000 Hz"):
        quickly([Untouched()], recordings, [3000], ["mp3:320k"])


def test_the_worst_files_come_first(tmp_path: Path) -> None:
    for n, level in enumerate((0.02, 0.1, 0.05, 0.2)):
        sf.write(tmp_path / f"{n}.wav", white(0.5, seed=n) * level / LEVEL, SR, subtype="FLOAT")
    found = evaluate(WhiteHighs(), tmp_path, [4000], metrics=["lsd", "lsd_hf", "hf_bias"])
    worst = found.worst[1]
    assert worst["metric"] == "lsd_hf"
    assert [w["file"] for w in worst["files"][-2:]] == ["1.wav", "2.wav"]  # 2.wav has the level that is filled in
    values = [w["value"] for w in worst["files"]]
    assert values == sorted(values, reverse=True)
    only = evaluate(WhiteHighs(), tmp_path, [4000], metrics=["hf_bias"]).worst[1]
    assert (only["metric"], only["files"][-1]["file"]) == ("hf_bias", "2.wav"), "the least bias is the best"


def test_terminal_json_and_csv_say_the_same(recordings: Path) -> None:
    found = quickly(WhiteHighs(), recordings)
    text = str(found)
    low, high = found.row(8000)["ci95"]["lsd"]
    assert f"{found.mean('lsd', 8000):.2f} ±{(high - low) / 2:.2f}" in text
    assert f"{metrics.lsd_floor(4000, SR):.2f}" in text
    assert max(map(len, text.splitlines()[1:-4])) <= 120
    tree = json.loads(found.to_json())
    assert list(tree) == [
        "version", "title", "sample_rate", "cutoff_source", "baseline", "systems", "conditions", "metrics", "rows", "speakers",
        "frechet", "lines", "frequency", "worst", "alignment", "files", "skipped", "notes",
    ]  # fmt: skip
    assert tree["rows"][3]["mean"]["lsd"] == found.mean("lsd", 8000)
    assert set(tree["rows"][3]["paired"]["lsd"]) == {"difference", "ci95", "wins", "losses", "p"}
    assert len(tree["files"]) == 8
    table = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(table) == 8
    for line, record in zip(table, tree["files"], strict=True):
        assert (line["file"], line["system"], float(line["cutoff_hz"])) == (
            record["file"], record["system"], record["cutoff_hz"],
        )  # fmt: skip
        assert float(line["hf_bias"]) == record["values"]["hf_bias"]


def test_means_intervals_and_speakers_by_hand(recordings: Path) -> None:
    found = quickly(WhiteHighs(), recordings, cutoffs=(4000,))
    values = [f["values"]["si_sdr"] for f in found.files if f["system"] == "WhiteHighs"]
    row = found.row()
    assert row["mean"]["si_sdr"] == pytest.approx(np.mean(values))
    # a quarter of the draws has twice the one, a quarter twice the other
    assert row["ci95"]["si_sdr"] == pytest.approx(sorted(values))
    own = {s["speaker"]: s["mean"]["si_sdr"] for s in found.speakers if s["system"] == "WhiteHighs"}
    assert own == pytest.approx({"a": values[0], "recordings": values[1]})


def test_bootstrap_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(5)
    values = rng.gamma(2.0, 1.0, (500, 40, 1))  # skewed, mean 2
    low, high = bootstrap(values, np.arange(40))
    assert 0.91 < np.mean((low < 2) & (high > 2)) < 0.97
    # files of one speaker are alike: the interval is that of the speakers, three times wider than of as many files
    speakers = np.repeat(np.arange(20), 9)
    alike = rng.standard_normal((50, 20, 1)).repeat(9, axis=1)
    widths = [np.subtract(*bootstrap(alike, clusters)[::-1]).mean() for clusters in (speakers, np.arange(180))]
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.1)
    alike[:, ::4] = np.nan
    assert np.isfinite(bootstrap(alike, speakers)).all()
    assert np.isnan(bootstrap(np.full((3, 2), np.nan), np.arange(3))).all()


def test_speakers_are_drawn_where_there_are_enough(tmp_path: Path) -> None:
    for n in range(20):
        folder = tmp_path / f"speaker{n % 10}"
        folder.mkdir(exist_ok=True)
        sf.write(folder / f"{n}.wav", white(0.2, seed=n % 10), SR, subtype="FLOAT")
    found = evaluate(Untouched(), tmp_path, [4000], metrics=["hf_bias"])
    assert any("draws 10 speakers" in note for note in found.notes)
    others = [path for path in tmp_path.rglob("*.wav") if path.parent.name != "speaker0"]
    few = evaluate(Untouched(), others, [4000], metrics=["hf_bias"])
    assert any("draws 18 files" in note for note in few.notes)
    assert {s["n"] for s in found.speakers} == {2}


def test_wins_are_counted_in_the_direction_that_is_better(recordings: Path) -> None:
    class Louder(Untouched):
        def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
            return WhiteHighs()(x, sr, cutoff) * 1.2

    for n in range(6):
        sf.write(recordings / f"more{n}.wav", white(0.3, seed=9 + n), SR, subtype="FLOAT")
    paired = quickly([Louder(), WhiteHighs()], recordings, [4000], baseline="WhiteHighs").row(4000, "Louder")["paired"]
    assert (paired["hf_bias"]["wins"], paired["hf_bias"]["losses"]) == (0, 8), "above zero is as bad as below"
    assert paired["hf_bias"]["difference"] == pytest.approx(20 * math.log10(1.2), abs=1e-3)
    assert paired["hf_bias"]["p"] == pytest.approx(2 * 0.5**8)
    paired = quickly(WhiteHighs(), recordings, [4000]).row()["paired"]
    assert (paired["hf_bias"]["wins"], paired["lsd"]["wins"], paired["si_sdr"]["losses"]) == (8, 8, 8)


def test_speech_and_pauses_apart(tmp_path: Path, voice: Voice) -> None:
    sf.write(tmp_path / "voice.wav", voice(3 * SR, SR).T, SR, subtype="FLOAT")
    found = evaluate(Untouched(), tmp_path, cutoffs=(4000,), metrics=["lsd", "lsd_speech", "lsd_pauses"])
    mean = found.row()["mean"]
    assert min(mean["lsd_speech"], mean["lsd_pauses"]) <= mean["lsd"] <= max(mean["lsd_speech"], mean["lsd_pauses"])


def test_what_is_no_reference_is_skipped_and_told(recordings: Path) -> None:
    (recordings / "notes.txt").write_text("not audio")
    sf.write(recordings / "phone.wav", white(0.5)[::3], 16_000)
    sf.write(recordings / "void.wav", np.zeros((0, 1)), SR)
    sf.write(recordings / "silence.wav", np.zeros(SR), SR)
    whole = (recordings / "a" / "one.flac").read_bytes()
    (recordings / "cut.flac").write_bytes(whole[: len(whole) // 2])
    found = quickly(Untouched(), recordings, cutoffs=(4000,))
    assert found.rows[0]["n"] == 2
    assert set(found.skipped) == {"phone.wav", "void.wav", "silence.wav", "cut.flac"}
    assert "16000 Hz recording" in found.skipped["phone.wav"]
    assert "silent" in found.skipped["silence.wav"]
    assert "Skipped 4 files" in str(found)
    assert any("notes.txt" in note for note in found.notes)
    with pytest.raises(AudioError, match="16000 Hz recording"):
        quickly(Untouched(), [recordings / "phone.wav"])
    with pytest.raises(AudioError, match=r"none of 2 files.*no such file"):
        quickly(Untouched(), [recordings / "missing.wav", recordings / "phone.wav"])


def test_a_model_that_fails_on_a_file_does_not_stop_the_others(recordings: Path) -> None:
    class Brittle(Untouched):
        def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
            if len(x) == 2:
                raise RuntimeError("two channels are too many")
            return x

    class Short(Untouched):
        def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
            return x[:, :-1] if len(x) == 2 else x

    assert quickly(Brittle(), recordings).skipped == {"two.wav": "RuntimeError: two channels are too many"}
    assert "(2, 71999)" in quickly(Short(), recordings).skipped["two.wav"]

    class Misused(Untouched):
        def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
            raise ConfigError("it wants to be told the cut-off")

    with pytest.raises(ConfigError, match="wants to be told"):  # of no file in particular
        quickly(Misused(), recordings)


def test_figures_that_do_not_exist_are_null(tmp_path: Path) -> None:
    x = np.zeros(SR)
    x[100] = 0.5  # a click has no pitch
    sf.write(tmp_path / "click.wav", x, SR, subtype="FLOAT")

    class Mute(Untouched):
        def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
            return 0 * x

    found = evaluate(Mute(), tmp_path, cutoffs=(4000,), metrics=QUICK)
    assert json.loads(found.to_json())["rows"][1]["mean"]["si_sdr"] is None
    assert "–" in str(found)
    assert "Mute" in found.to_html()


def test_a_missing_package_leaves_the_other_metrics(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pystoi", None)  # as Python marks what cannot be imported
    found = evaluate(Untouched(), recordings / "two.wav", [4000], metrics=["lsd", "stoi", "estoi"])
    assert [metric["name"] for metric in found.metrics] == ["lsd"]
    assert sum("pystoi" in note for note in found.notes) == 1
    with pytest.raises(ConfigError, match="pip install"):
        evaluate(Untouched(), recordings / "two.wav", [4000], metrics=["stoi"])


def test_manifest_above_the_folder_selects(recordings: Path) -> None:
    rows = ["path,cls,split,speaker", "a/one.flac,speech48,test,Anna", "two.wav,music44,train,Ben"]
    (recordings / "manifest.csv").write_text("\n".join(rows) + "\n")

    def names(**kwargs: Any) -> dict[str, str]:
        found = quickly(Untouched(), kwargs.pop("folder", recordings), cutoffs=(4000,), **kwargs)
        return {f["file"]: f["speaker"] for f in found.files}

    assert names() == {"a/one.flac": "Anna", "two.wav": "Ben"}
    assert names(split="test") == {"a/one.flac": "Anna"}
    assert names(cls="music44") == {"two.wav": "Ben"}
    assert names(folder=recordings / "a", split="test") == {"one.flac": "Anna"}
    with pytest.raises(ConfigError, match="split 'train'"):
        names(folder=recordings / "a", split="train")


def test_wrong_arguments_are_named(recordings: Path, tmp_path: Path, tiny: infer.Extender) -> None:
    class Narrow(Untouched):
        sample_rate = 16_000

    def refused(match: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            quickly(*(arguments or (Untouched(), recordings)), **options)

    refused("did you mean 'cheby1'", filters=["brickwall", "cheby"])
    refused("24000 Hz, half", cutoffs=(30_000,))
    refused("no cut-off", cutoffs=())
    refused("no such file or folder", Untouched(), recordings / "nowhere")
    refused("an empty folder", Untouched(), tmp_path_made(tmp_path / "empty"))
    refused(r"needs a manifest\.csv", split="test")
    refused("'given' or 'detect'", cutoff_source="guess")
    refused("did you mean 'lsd_hf'", metrics=["lsd-hf"])
    refused("did you mean 'Untouched'", baseline="untouched")
    refused("workers must be 1", workers=0)
    refused("Narrow at 16000 Hz", [Untouched(), Narrow()], recordings)
    refused("nothing to measure", [], recordings)
    assert [c["cutoff_hz"] for c in quickly(Narrow(), recordings).conditions] == [4000], "by default what the model can fill"


def tmp_path_made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_two_models_of_one_name_are_told_apart(recordings: Path, tiny_folder: Path, tiny: infer.Extender) -> None:
    found = quickly([tiny_folder, tiny], recordings / "two.wav", [8000])
    assert [s["name"] for s in found.systems] == ["input", "tiny-test", "tiny-test 2"]
    assert found.mean("lsd", 8000, "tiny-test") == found.mean("lsd", 8000, "tiny-test 2")
    with pytest.raises(ConfigError, match="two systems would be called"):
        quickly([tiny_folder, tiny_folder, tiny_folder], recordings)


# Processes and the cache. The set is real speech; a run of the command measures it with a small model.


@pytest.fixture
def speech(tmp_path: Path, voice: Voice) -> Path:
    folder = tmp_path / "speech"
    folder.mkdir()
    for n in range(6):
        audio.write(folder / f"{n}.flac", voice(SR // 2 + 4800 * n, SR, seed=n), SR)
    return folder


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether none of these processes is at work any more; one that nobody has waited for is a zombie."""
    return not any(Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in pids)


def inodes(cache: Path) -> dict[str, int]:
    """A file that is written again is another one."""
    return {path.name: path.stat().st_ino for path in cache.glob("*.safetensors")}


def wait_until(ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("blow", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_script_stopped_half_way_goes_on_where_it_was(
    tmp_path: Path, speech: Path, tiny_folder: Path, blow: signal.Signals
) -> None:
    """The script has no ``if __name__ == "__main__"``; its files are measured in two processes, the others here."""
    cache, script = tmp_path / "cache", tmp_path / "script.py"
    script.write_text(
        f"import bwe\nbwe.evaluate({str(tiny_folder)!r}, {str(speech)!r}, [4000], workers=2, cache={str(cache)!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, script], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, start_new_session=True
    )
    wait_until(lambda: len(inodes(cache)) >= 2 or process.poll() is not None)
    workers = children(process.pid)
    os.killpg(process.pid, blow) if blow == signal.SIGINT else process.send_signal(blow)
    wait_until(lambda: gone(workers), 10)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -blow, said
    kept = inodes(cache)
    assert 2 <= len(kept) < 6, "the process was to be stopped in the middle"
    found = evaluate(tiny_folder, speech, [4000], workers=1, cache=cache)
    after = inodes(cache)
    assert found.reused == len(kept)
    assert len(after) == 6
    assert kept.items() <= after.items(), "finished files were measured again"
    assert found.to_json() == evaluate(tiny_folder, speech, [4000], workers=1).to_json()


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("after", [1, 5])
def test_a_worker_that_dies_takes_nothing_with_it(speech: Path, tiny_folder: Path, after: int, which: int) -> None:
    struck: list[int] = []

    def strike(done: int, total: int) -> None:
        # With one file to go one of the two waits for more, and holds the lock of the queue.
        if done == after and not struck:
            victim = multiprocessing.active_children()[which]
            struck.append(int(victim.pid or 0))
            victim.kill()

    found = evaluate(tiny_folder, speech, [4000], metrics=["lsd"], workers=2, progress=strike)
    assert struck
    assert found.rows[0]["n"] == 6
    assert not found.skipped
    assert found.to_json() == evaluate(tiny_folder, speech, [4000], metrics=["lsd"], workers=1).to_json()


def test_the_cache_knows_what_changes_a_figure(
    tmp_path: Path, recordings: Path, tiny_folder: Path, loud_tiny: generators.SEANet
) -> None:
    def reused(model: Path = tiny_folder, cutoffs: tuple[float, ...] = (4000,), metrics: tuple[str, ...] = QUICK) -> int:
        found = evaluate(model, recordings, cutoffs, metrics=metrics, cache=tmp_path / "cache", workers=1)
        assert found.rows[0]["n"] == 2
        return found.reused

    assert [reused(), reused()] == [0, 2]
    assert reused(metrics=("lsd",)) == 0
    assert reused(cutoffs=(4000, 6000)) == 0
    os.utime(recordings / "two.wav")
    assert reused() == 1
    for path in (tmp_path / "cache").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    assert [reused(), reused()] == [0, 2], "damaged entries are measured again"
    other = hub.save(tmp_path / "other" / tiny_folder.name, loud_tiny, "# Same name, same weights\n")
    assert reused(other) == 2
    state = loud_tiny.state_dict()
    changed = generators.SEANet(loud_tiny.config)
    changed.load_state_dict(state)
    with torch.no_grad():
        changed.head.bias.add_(1e-3)
    assert reused(hub.save(tmp_path / "third" / tiny_folder.name, changed, "# Same name, other weights\n")) == 0
    before = sorted((tmp_path / "cache").iterdir())
    assert evaluate(Untouched(), recordings, [4000], metrics=["lsd"], cache=tmp_path / "cache").reused == 0
    assert sorted((tmp_path / "cache").iterdir()) == before, "what has no name is not kept"


def test_the_cache_is_pruned_and_pickle_free(tmp_path: Path, recordings: Path, tiny: infer.Extender) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    old = time.time() - (CACHE_DAYS + 1) * 86_400
    for name, when in (("aged.safetensors", old), (".left.1.tmp", old), (".busy.2.tmp", time.time()), ("notes.txt", old)):
        (cache / name).write_bytes(b"x")
        os.utime(cache / name, (when, when))
    with (cache / "huge.safetensors").open("wb") as file:  # sparse
        file.truncate(CACHE_BYTES)
    os.utime(cache / "huge.safetensors", (time.time() - 60,) * 2)
    quickly(tiny, recordings, [4000], cache=cache)
    left = {path.name for path in cache.iterdir()}
    assert {".busy.2.tmp", "notes.txt"} <= left
    assert not left & {"aged.safetensors", ".left.1.tmp", "huge.safetensors"}
    (entry, *_) = cache.glob("*.safetensors")
    with safetensors.safe_open(entry, "np") as file:
        assert json.loads(file.metadata()["record"])["values"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="no cache can be kept"):
        quickly(tiny, recordings, [4000], cache=tmp_path / "file")


def test_clips_are_the_worst_the_median_and_the_best(tmp_path: Path) -> None:
    for n in range(9):
        sf.write(tmp_path / f"{n}.wav", white(6 if n == 8 else 0.3, seed=n) * (1 + n), SR, subtype="FLOAT")
    found = evaluate(WhiteHighs(), tmp_path, [4000, 8000], metrics=["lsd_hf"], clips=4)
    assert [clip.file for clip in found.clips] == ["8.wav", "5.wav", "4.wav", "0.wav"]
    clip = found.clips[0]
    assert list(clip.signals) == ["input", "WhiteHighs", "reference"]
    assert (clip.cutoff_hz, clip.filter, clip.sample_rate) == (4000, "brickwall", SR)
    assert {y.shape for y in clip.signals.values()} == {(1, 5 * SR)}
    whole = sf.read(tmp_path / "8.wav", dtype="float32")[0]
    np.testing.assert_array_equal(clip.signals["reference"][0], whole[SR // 2 : SR // 2 + 5 * SR])
    page = found.to_html()
    assert "8.wav" in page
    assert "WhiteHighs" in page


# Folders of finished estimates.


@pytest.fixture
def folders(tmp_path: Path, voice: Voice) -> Callable[..., Path]:
    """Writes `(C, T)` signals of voices, changed by a function, to a folder."""

    def make(name: str, change: Callable[[np.ndarray], np.ndarray] = lambda x: x, sr: int = SR, suffix: str = ".wav") -> Path:
        for n in range(3):
            path = tmp_path / name / f"speaker{n}" / f"talk{suffix}"
            path.parent.mkdir(parents=True)
            sf.write(path, change(voice(SR + 9600 * n, SR, seed=n)).T, sr, subtype="FLOAT")
        return tmp_path / name

    return make


def limited(x: np.ndarray, hz: float = 4000) -> np.ndarray:
    return dsp.lowpass(x, SR, hz)


def test_folders_are_paired_and_measured(folders: Callable[..., Path]) -> None:
    reference = folders("ref")
    low = folders("low", limited)
    equal = folders("equal", suffix=".bwe.wav")
    found = compare(reference, {"equal": equal, "low": low}, cutoff_hz=4000, input=low, metrics=QUICK)
    assert [s["name"] for s in found.systems] == ["input", "equal", "low"]
    assert found.conditions == [{"filter": "", "cutoff_hz": 4000, "floor": metrics.lsd_floor(4000, SR)}]
    assert found.mean("lsd", 4000, "equal") < 1e-3
    assert found.mean("lsd_hf", 4000, "low") == found.mean("lsd_hf", 4000, "input") > 2
    assert found.row(4000, "low")["paired"]["lsd"]["difference"] == 0
    assert (found.rows[0]["n"], found.baseline, found.skipped) == (3, "input", {})
    assert {f["file"] for f in found.files} == {f"speaker{n}/talk.wav" for n in range(3)}
    single = compare(reference, {"low": low}, metrics=QUICK)
    assert [metric["name"] for metric in single.metrics] == ["lsd", "si_sdr"], "without a cut-off only what needs none"
    assert single.baseline is None
    assert json.loads(single.to_json())["conditions"] == [{"filter": "", "cutoff_hz": None, "floor": None}]
    assert "low" in str(single)
    assert "low" in single.to_html()
    assert compare(reference, {"low": low, "equal": equal}, metrics=["lsd"]).baseline == "low"


def test_delay_level_and_polarity_are_found_and_corrected(folders: Callable[..., Path]) -> None:
    reference = folders("ref")

    def changed(x: np.ndarray) -> np.ndarray:
        return -0.5 * np.pad(limited(x), ((0, 0), (240, 0)))[:, : x.shape[-1]]

    late = folders("late", changed)
    early = folders("early", lambda x: 2 * limited(x)[:, 1200:])
    plain = folders("plain", limited)
    found = compare(reference, {"late": late, "early": early, "plain": plain}, cutoff_hz=4000, metrics=QUICK)
    told = {(a["system"], round(a["lag_ms"], 6), a["inverted"]) for a in found.alignment}
    assert told == {("late", 5, True), ("early", -25, False), ("plain", 0, False)}
    levels = {a["system"]: a["level_db"] for a in found.alignment}
    assert levels["late"] == pytest.approx(20 * math.log10(0.5), abs=0.12)
    assert levels["early"] == pytest.approx(20 * math.log10(2), abs=0.12)
    assert levels["plain"] == pytest.approx(0, abs=0.12)  # the ripple of the filter, twice
    for system in ("late", "early"):  # as if nothing had been done to them
        for metric in QUICK:
            assert found.mean(metric, 4000, system) == pytest.approx(found.mean(metric, 4000, "plain"), abs=0.25)
    notes = " ".join(found.notes)
    assert "late: delay 5.00 ms" in notes
    assert "3 of 3 files inverted" in notes
    raw = compare(reference, {"late": late, "plain": plain}, cutoff_hz=4000, metrics=QUICK, align=False)
    assert raw.mean("si_sdr", 4000, "late") < 0 < raw.mean("si_sdr", 4000, "plain")
    assert [a["inverted"] for a in raw.alignment] == [True, False] * 3, "told all the same"
    assert "not corrected" in " ".join(raw.notes)


def test_what_does_not_pair_is_told_and_the_rest_measured(folders: Callable[..., Path], tmp_path: Path, voice: Voice) -> None:
    reference, estimate = folders("ref"), folders("est", limited)

    def put(folder: Path, name: str, x: np.ndarray, sr: int = SR) -> None:
        sf.write(folder / name, x.T, sr, subtype="PCM_24" if name.endswith("flac") else "FLOAT")

    x = voice(SR, SR, seed=7)
    for name in ("only_ref.wav", "stereo.wav", "short.wav", "nearly.wav", "twice.wav", "low_rate.wav", "damaged.wav"):
        put(reference, name, x)
    put(reference, "old.wav", x[:, ::3], SR // 3)
    put(estimate, "old.wav", x[:, ::3], SR // 3)
    put(estimate, "only_est.wav", x)
    put(estimate, "stereo.wav", np.concatenate([x, x]))
    put(estimate, "short.wav", x[:, : SR // 2])
    put(estimate, "nearly.wav", x[:, : SR - 2400])
    put(estimate, "twice.wav", x)
    put(estimate, "twice.flac", x)
    put(estimate, "low_rate.wav", dsp.resample(torch.from_numpy(x), SR, 16_000).numpy(), 16_000)
    (estimate / "damaged.wav").write_bytes((estimate / "stereo.wav").read_bytes()[:5000])
    found = compare(reference, {"est": estimate}, metrics=["lsd", "si_sdr"])
    why = {name.rsplit("/", 1)[-1]: reason for name, reason in found.skipped.items()}
    assert "no file of this name" in why["only_ref.wav"]
    assert "no reference of this name" in why["only_est.wav"]
    assert "2 channels" in why["stereo.wav"]
    assert "lasts 0.50 s" in why["short.wav"]
    assert "twice.flac, twice.wav" in why["twice"]
    assert "most references 48000 Hz" in why["old.wav"]
    assert "ends before its data does" in why["damaged.wav"]
    expected = ("only_ref.wav", "only_est.wav", "stereo.wav", "short.wav", "twice", "twice.wav", "old.wav", "damaged.wav")
    assert set(why) == set(expected)
    assert {f["file"] for f in found.files} >= {"nearly.wav", "low_rate.wav"}
    assert found.rows[0]["n"] == 5
    notes = " ".join(found.notes)
    assert "resampled from 16000 to 48000 Hz, empty above 8 kHz (1 of 5 files)" in notes
    assert "the longer one was trimmed (1 of 5 files)" in notes
    values = {f["file"]: f["values"] for f in found.files}
    assert values["nearly.wav"]["lsd"] < 0.01
    assert values["low_rate.wav"]["lsd"] > 1

    with pytest.raises(ConfigError, match="no such folder"):
        compare(reference, {"est": tmp_path / "nowhere"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no audio"):
        compare(reference, {"est": tmp_path / "empty"})
    with pytest.raises(ConfigError, match="cannot be called 'input'"):
        compare(reference, {"input": estimate})
    with pytest.raises(ConfigError, match="half the references' rate"):
        compare(reference, {"est": estimate}, cutoff_hz=24_000)
    put(tmp_path / "empty", "other.wav", x)
    with pytest.raises(AudioError, match="no reference has an estimate"):
        compare(reference, {"est": tmp_path / "empty"})


def test_what_has_nothing_in_common_is_not_shifted(folders: Callable[..., Path]) -> None:
    rng = np.random.default_rng(3)
    noise = folders("noise", lambda x: 0.1 * rng.standard_normal(x.shape))
    found = compare(folders("ref"), {"noise": noise}, metrics=["si_sdr"])
    assert {(a["lag_ms"], a["inverted"]) for a in found.alignment} == {(0.0, False)}
    assert "too unlike the reference" in " ".join(found.notes)
    assert found.mean("si_sdr") < -10
