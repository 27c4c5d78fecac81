"""Many files: what becomes what, bad files among good ones, runs that are killed and taken up again, Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from bwe import audio, batch, cli
from bwe.batch import Outcome, Plan, Settings
from bwe.errors import AudioError, BweError, ConfigError, ModelError, OutputError

Voice = Callable[..., np.ndarray]


@pytest.fixture
def write(voice: Voice) -> Callable[..., Path]:
    """``write(path, frames=1600, channels=1)``: a recording at 16 kHz; returns its path."""

    def make(path: Path, frames: int = 1_600, channels: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, voice(frames, 16_000, channels, seed=frames), 16_000)
        return path

    return make


@pytest.fixture
def tree(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """A folder with three recordings in two folders, one of them without its extension, and other things."""
    root = tmp_path / "in"
    write(root / "b.flac", 1_000)
    write(root / "a.wav", 1_200)
    (write(root / "deep" / "deeper" / "c.wav", 800)).rename(root / "deep" / "deeper" / "c")
    (root / "notes.txt").write_text("takes of Monday")
    (root / "deep" / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    write(root / ".hidden" / "x.wav")
    write(root / "._a.wav")
    return root


@pytest.fixture
def settings(tiny_folder: Path) -> Settings:
    return Settings(model=str(tiny_folder))


def pairs(plan: Plan) -> list[tuple[str, str]]:
    return [(str(job.source), str(job.target)) for job in plan.jobs]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_a_tree_is_mirrored_and_read_by_content(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = batch.plan([tree], out, sample_rate=48_000, recursive=True)
    assert pairs(plan) == [
        (str(tree / "a.wav"), str(out / "a.bwe.wav")),
        (str(tree / "b.flac"), str(out / "b.bwe.flac")),
        (str(tree / "deep/deeper/c"), str(out / "deep/deeper/c.bwe.wav")),
    ]
    assert [path.name for path, _ in plan.ignored] == ["cover.jpg", "notes.txt"]
    assert plan.ignored[1][1] == "not audio (starts with 'takes of Monday')"
    assert [round(job.seconds * 16_000) for job in plan.jobs] == [1_200, 1_000, 800]
    assert plan.refused == ()
    assert not out.exists()
    beside = batch.plan([tree], sample_rate=48_000, recursive=True, format="mp3", name="wide {stem}.{ext}")
    assert [job.target for job in beside.jobs] == [
        tree / "wide a.mp3", tree / "wide b.mp3", tree / "deep/deeper/wide c.mp3",
    ]  # fmt: skip
    assert batch.plan([tree], out, sample_rate=48_000, recursive=True) == plan


def test_what_bwe_made_is_no_input_again(tree: Path, write: Callable[..., Path]) -> None:
    first = batch.plan([tree], sample_rate=48_000, recursive=True)
    for job in first.jobs:
        write(job.target)
    write(tree / "old.bwe.mp3.wav").rename(tree / "old.bwe.mp3")
    (tree / ".bwe-1-00000000.1-0123456789ab.tmp").write_bytes(b"RIFF")
    again = batch.plan([tree], sample_rate=48_000, recursive=True)
    assert pairs(again) == pairs(first)
    assert sum(why == "made by bwe" for _, why in again.ignored) == 4
    named = batch.plan([tree], sample_rate=48_000, recursive=True, name="{stem}_wide.{ext}")
    for job in named.jobs:
        write(job.target)
    assert pairs(batch.plan([tree], sample_rate=48_000, recursive=True, name="{stem}_wide.{ext}")) == pairs(named)
    explicit = batch.plan([tree / "a.bwe.wav"], sample_rate=48_000)
    assert explicit.jobs[0].target == tree / "a.bwe.bwe.wav"


def test_the_output_folder_inside_the_input_folder_is_not_read(tree: Path, write: Callable[..., Path]) -> None:
    write(tree / "out" / "a.wav")
    plan = batch.plan([tree], tree / "out", sample_rate=48_000, recursive=True, name="{stem}.{ext}")
    assert [job.target.relative_to(tree / "out").as_posix() for job in plan.jobs] == ["a.wav", "b.flac", "deep/deeper/c.wav"]


def test_links_are_followed_once(tree: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    (tree / "a-loop").symlink_to(tree)
    (tree / "deep" / "up").symlink_to("..")
    (tree / "a-second-way").symlink_to(tree / "deep")
    write(tmp_path / "elsewhere" / "d.wav")
    (tree / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (tree / "gone.wav").symlink_to(tmp_path / "nothing.wav")
    os.mkfifo(tree / "pipe")
    plan = batch.plan([tree], sample_rate=48_000, recursive=True)
    found = [job.source.relative_to(tree).as_posix() for job in plan.jobs]
    assert found == ["a.wav", "b.flac", "deep/deeper/c", "elsewhere/d.wav", "gone.wav"]
    assert (tree / "pipe", "not a regular file") in plan.ignored


def test_an_unreadable_folder_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(path: str | Path) -> object:  # root reads folders whatever their permissions say
        if Path(path).name == "deeper":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    plan = batch.plan([tree], sample_rate=48_000, recursive=True)
    assert len(plan.jobs) == 2
    ((path, error),) = plan.refused
    assert path == tree / "deep" / "deeper"
    assert str(error) == f"{path}: the folder cannot be read (Permission denied); check its permissions"


@pytest.mark.parametrize(
    ("inputs", "options", "error", "said"),
    [
        (["x/t.wav", "y/t.wav"], {"output": "out"}, ConfigError, "two inputs are called t.wav: in out one would replace"),
        (["x/t.wav", "x/t.flac"], {"format": "wav"}, ConfigError, "x/t.wav and x/t.flac would both become x/t.bwe.wav"),
        (["x", "y"], {"output": "new", "recursive": True}, ConfigError, "two inputs are called t.wav: in new one would"),
        (["x/t.wav", "y/t.wav"], {"name": "{stem}.{ext}"}, ConfigError, "x/t.wav would be written over it"),
        (["x/t.wav", "y/t.wav"], {"output": "x/t.wav"}, ConfigError, "with several inputs -o must be an existing folder"),
        (["x"], {"output": "x/t.wav", "recursive": True}, ConfigError, "x/t.wav: is no folder; with folders"),
        (["x/t.wav"], {"output": "none/"}, OutputError, "none/: the folder does not exist; make it first"),
        (["x/t.wav"], {"output": "o.wav", "format": "flac"}, ConfigError, "another format than --format flac"),
        (["x/t.wav"], {"format": "m4a"}, ConfigError, "'m4a' is not an output format; use one of wav, flac"),
        (["x/t.wav"], {"name": "{stem.__class__}"}, ConfigError, "only {stem} and {ext} mean something"),
        (["x/t.wav"], {"name": "{"}, ConfigError, "use a pattern such as '{stem}.bwe.{ext}'"),
        (["x/t.wav"], {"name": "../{stem}.wav"}, ConfigError, "is no file name"),
        (["out"], {"recursive": True}, AudioError, "out: no audio files to extend (0 files ignored)"),
        ([], {}, ConfigError, "lists no files"),
    ],
)
def test_plans_that_cannot_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[..., Path],
    inputs: list[str],
    options: dict[str, object],
    error: type[BweError],
    said: str,
) -> None:
    for name in ("x/t.wav", "x/t.flac", "y/t.wav"):
        write(tmp_path / name, 100)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        batch.plan(inputs, sample_rate=48_000, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_one_file_twice_is_one_job(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert len(batch.plan(["a.wav", tree / "a.wav", tree], sample_rate=48_000, recursive=True).jobs) == 3


def test_targets_of_formats_that_cannot_hold_the_sound(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(tmp_path / "six.flac", 200, 6)
    write(tmp_path / "stereo.mp3", 4_000, 2)
    jobs = batch.plan([tmp_path], sample_rate=96_000, recursive=True).jobs
    assert [job.target.name for job in jobs] == ["six.bwe.flac", "stereo.bwe.wav"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_manifests(tmp_path: Path, write: Callable[..., Path], kind: str) -> None:
    write(tmp_path / "set" / "s1" / "a.wav")
    write(tmp_path / "set" / "b.wav")
    manifest = tmp_path / "set" / f"list.{kind}"
    if kind == "csv":
        manifest.write_text("\ufeffpath,speaker,cutoff,output\ns1/a.wav,é,auto,\nb.wav,,4000,B/wide.flac\n", encoding="utf-8")
    else:
        manifest.write_text('{"path": "s1/a.wav"}\n\n{"path": "b.wav", "cutoff": 4000, "output": "B/wide.flac"}\n')
    plan = batch.plan([], tmp_path / "out", sample_rate=48_000, manifest=manifest)
    assert [(job.target.relative_to(tmp_path).as_posix(), job.cutoff) for job in plan.jobs] == [
        ("out/s1/a.bwe.wav", None), ("out/B/wide.flac", 4_000.0),
    ]  # fmt: skip
    beside = batch.plan([], sample_rate=48_000, manifest=manifest)
    assert [job.target.relative_to(tmp_path).as_posix() for job in beside.jobs] == ["set/s1/a.bwe.wav", "set/B/wide.flac"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\na.wav\n", "no column 'path'; its columns are name"),
        ("", "no column 'path'; its columns are missing"),
        ('{"path": "a.wav"}\n{"path": \n', "line 2: is not JSON"),
        ('{"file": "a.wav"}\n', "line 1: no path"),
        ('{"path": "a.wav", "cutoff": true}\n', "line 1: cutoff True is not a frequency in Hz"),
        ("path,cutoff\na.wav,4k\n", "line 2: cutoff '4k' is not a frequency in Hz"),
        ('{"path": "a.wav", "output": 3}\n', "line 1: output 3 is no file name"),
        ('{"path": "a\\u0000/b.wav"}\n', "line 1: a file name cannot hold a NUL"),
        (f"path\n{'x' * 200_000}\n", "line 2: is not CSV"),
        ("path\n", "lists no files"),
        (f'{{"path": "a.wav", "cutoff": {"9" * 400}}}\n', "line 1: cutoff 999"),
        (f'{{"path": "a.wav", "cutoff": {"9" * 5_000}}}\n', "line 1: is not JSON (too deep or too long)"),
        (f'{{"path": {"[" * 200_000}\n', "line 1: is not JSON (too deep or too long)"),
        ('{"path": "\\ud800/x.wav"}\n', "line 1: a file name cannot hold the character '\\ud800'"),
        (
            '{"path": "a.wav", "cutoff": 3000}\n{"path": "a.wav"}\n',
            "a.wav: is an input twice, with 3000 Hz and with no cut-off",
        ),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    manifest = tmp_path / "list"
    manifest.write_text(text)
    with pytest.raises(ConfigError) as caught:
        batch.plan([], sample_rate=48_000, manifest=manifest)
    assert str(caught.value).startswith(str(manifest.parent))
    assert said in str(caught.value)


def test_manifests_hold_any_name_and_only_formats_that_can_be_written(
    tmp_path: Path, write: Callable[..., Path], settings: Settings
) -> None:
    write(tmp_path / "a\u2028b.wav")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"path": "a\u2028b.wav", "output": "x.m4a"}\r\n', encoding="utf-8", newline="")
    plan = batch.plan([], tmp_path / "out", sample_rate=48_000, manifest=manifest)
    assert plan.jobs[0].info is not None
    (outcome,) = batch.run(plan, settings, dry_run=True).outcomes
    assert (outcome.status, outcome.code) == ("failed", 4)
    assert "'.m4a' is not an output format" in str(outcome)


def test_outputs_that_are_links_are_where_they_lead(tmp_path: Path, write: Callable[..., Path]) -> None:
    for name in ("a.wav", "b.wav"):
        write(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "a.bwe.wav"
    link.symlink_to(tmp_path / "in" / "b.wav")
    with pytest.raises(ConfigError, match=r"in/b\.wav: is an input, and .*in/a\.wav would be written over it"):
        batch.plan([tmp_path / "in"], tmp_path / "out", sample_rate=48_000, recursive=True)
    link.unlink()
    link.symlink_to("b.bwe.wav")
    with pytest.raises(ConfigError, match=r"a\.wav and .*b\.wav would both become"):
        batch.plan([tmp_path / "in"], tmp_path / "out", sample_rate=48_000, recursive=True)


def test_manifest_paths_do_not_lead_out_of_the_output_folder(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(tmp_path / "a.wav")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "list.csv").write_text("path\n../a.wav\n")
    plan = batch.plan([], tmp_path / "out", sample_rate=48_000, manifest=tmp_path / "set" / "list.csv")
    assert plan.jobs[0].target == tmp_path / "out" / "a.bwe.wav"


def test_bad_files_are_told_and_the_rest_is_done(tree: Path, tmp_path: Path, settings: Settings) -> None:
    (tree / "page.wav").write_text("<html>not found</html>")
    whole = (tree / "a.wav").read_bytes()
    (tree / "cut.wav").write_bytes(whole[: len(whole) // 2])
    out, told = tmp_path / "out", list[Outcome]()
    plan = batch.plan([tree, tree / "gone.wav"], out, sample_rate=48_000, recursive=True)
    ends: list[tuple[float, float]] = []
    summary = batch.run(
        plan, settings, report=tmp_path / "r.jsonl", tell=told.append, progress=lambda done, total: ends.append((done, total))
    )
    assert [(outcome.source.name, outcome.status) for outcome in told] == [
        ("a.wav", "done"), ("b.flac", "done"), ("cut.wav", "failed"), ("c", "done"), ("page.wav", "failed"),
        ("gone.wav", "failed"),
    ]  # fmt: skip
    assert set(contents(out)) == {"a.bwe.wav", "b.bwe.flac", "deep/deeper/c.bwe.wav"}
    assert (summary.count("done"), len(summary.failures), summary.exit_code) == (3, 3, 1)
    assert "the sound stops at" in str(told[2]) or "truncated" in str(told[2])
    assert str(told[5]) == f"{tree / 'gone.wav'}: no such file"
    assert "3 of 6 inputs failed: " in str(summary)
    assert "3 done (0:00 of audio in" in str(summary)
    assert "2 ignored" in str(summary)
    assert ends[-1][0] == pytest.approx(ends[-1][1])
    assert [done for done, _ in ends] == sorted(done for done, _ in ends)
    table = rows(tmp_path / "r.jsonl")
    assert [row["status"] for row in table] == ["done", "done", "failed", "done", "failed", "failed"]
    assert table[0]["output"]["path"] == str(out / "a.bwe.wav")  # type: ignore[index]
    assert table[2]["error"] == str(told[2])


def test_one_output_equals_that_of_extend(tree: Path, tmp_path: Path, settings: Settings) -> None:
    from bwe import infer

    infer.extend(tree / "a.wav", tmp_path / "alone.wav", settings.model)
    batch.run(batch.plan([tree / "a.wav"], tmp_path / "many.wav", sample_rate=48_000), settings)
    assert (tmp_path / "many.wav").read_bytes() == (tmp_path / "alone.wav").read_bytes()


def test_existing_outputs(tree: Path, tmp_path: Path, settings: Settings) -> None:
    plan = batch.plan([tree], tmp_path / "out", sample_rate=48_000, recursive=True)
    batch.run(plan, settings)
    first = contents(tmp_path / "out")
    refused = batch.run(plan, settings)
    assert (len(refused.failures), refused.exit_code) == (3, 4)
    assert "a.bwe.wav: exists already; choose another name or overwrite it (--overwrite)" in str(refused.outcomes[0])
    skipped = batch.run(plan, dataclasses.replace(settings, device="no such device"), skip_existing=True)
    assert (skipped.count("skipped"), skipped.exit_code) == (3, 0)
    assert "0 done, 3 skipped, 2 ignored" in str(skipped)
    short = tmp_path / "out" / "a.bwe.wav"
    short.unlink()
    audio.write(short, np.zeros((1, 100), np.float32), 48_000)
    torn = tmp_path / "out" / "b.bwe.flac"
    torn.write_bytes(b"fLaC")
    wrong = batch.run(plan, settings, skip_existing=True)
    assert [outcome.status for outcome in wrong.outcomes] == ["failed", "failed", "skipped"]
    assert "exists already but has 100 samples instead of 3600; check it" in str(wrong.outcomes[0])
    assert "exists already but cannot be read" in str(wrong.outcomes[1])
    assert wrong.exit_code == 4
    redone = batch.run(plan, settings, skip_existing=True, overwrite=True)
    assert [outcome.status for outcome in redone.outcomes] == ["done", "done", "skipped"]
    assert contents(tmp_path / "out") == first
    assert batch.run(plan, settings, overwrite=True).count("done") == 3


def test_outputs_that_are_not_whole_are_not_trusted(tree: Path, tmp_path: Path, settings: Settings) -> None:
    plan = batch.plan([tree / "a.wav"], tmp_path / "a.bwe.wav", sample_rate=48_000)
    batch.run(plan, settings)
    whole = plan.jobs[0].target.read_bytes()
    plan.jobs[0].target.write_bytes(whole[:-1_000])
    (cut,) = batch.run(plan, settings, skip_existing=True).outcomes
    assert cut.status == "failed"
    assert "a.bwe.wav: exists already but cannot be read (truncated or damaged WAV file" in str(cut)
    audio.write(plan.jobs[0].target, np.zeros((2, 3_600), np.float32), 48_000, overwrite=True)
    for salvage in (False, True):
        (other,) = batch.run(plan, dataclasses.replace(settings, salvage=salvage), skip_existing=True).outcomes
        assert "exists already but has 2 channels instead of 1; check it" in str(other)
    assert batch.run(plan, settings, skip_existing=True, overwrite=True).count("done") == 1
    assert plan.jobs[0].target.read_bytes() == whole


@pytest.mark.parametrize("format", batch.FORMATS)
def test_finished_outputs_of_every_format_are_skipped(
    tmp_path: Path, write: Callable[..., Path], settings: Settings, format: str
) -> None:
    for frames in (1, 999, 16_000):
        write(tmp_path / f"{frames}.wav", frames)
    plan = batch.plan([tmp_path], tmp_path / "out", sample_rate=48_000, recursive=True, format=format)
    assert batch.run(plan, settings).count("done") == 3
    assert batch.run(plan, settings, skip_existing=True).count("skipped") == 3


def test_fail_fast(tree: Path, tmp_path: Path, settings: Settings) -> None:
    (tree / "a.wav").write_bytes((tree / "a.wav").read_bytes()[:-200])
    plan = batch.plan([tree], tmp_path / "out", sample_rate=48_000, recursive=True)
    summary = batch.run(plan, settings, fail_fast=True, report=tmp_path / "r.jsonl")
    assert (len(summary.failures), summary.not_started, summary.count("done")) == (1, 2, 0)
    assert "2 not started" in str(summary)
    assert len(rows(tmp_path / "r.jsonl")) == 1
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_what_is_full_band_already_is_left_alone(tmp_path: Path, voice: Voice, settings: Settings) -> None:
    (tmp_path / "in").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 48_000)).astype(np.float32)
    audio.write(tmp_path / "in" / "wide.wav", noise, 48_000)
    audio.write(tmp_path / "in" / "z.wav", voice(1_600, 16_000), 16_000)
    plan = batch.plan([tmp_path / "in"], tmp_path / "out", sample_rate=48_000, recursive=True)
    for _ in range(2):
        summary = batch.run(plan, settings, skip_existing=True, report=tmp_path / "r.jsonl")
        assert summary.outcomes[0].status == "left alone"
        assert summary.exit_code == 0
        assert [row["status"] for row in rows(tmp_path / "r.jsonl")] == ["left alone", "done"]
    assert str(summary) == "0 done, 1 left alone, 1 skipped"
    assert list(contents(tmp_path / "out")) == ["z.bwe.wav"]
    forced = batch.run(plan, dataclasses.replace(settings, force=True), skip_existing=True, report=tmp_path / "r.jsonl")
    assert [outcome.status for outcome in forced.outcomes] == ["done", "skipped"]
    assert [row["status"] for row in rows(tmp_path / "r.jsonl")] == ["done", "done"]


def test_a_folder_without_r_is_told_and_the_rest_is_done(tree: Path, tmp_path: Path, settings: Settings) -> None:
    plan = batch.plan([tree / "a.wav", tree], sample_rate=48_000)
    summary = batch.run(plan, settings, report=tmp_path / "r.jsonl")
    assert (summary.count("done"), summary.exit_code) == (1, 1)
    assert str(summary.failures[0]) == f"{tree}: is a folder; give an audio file, or -r for every one in it"
    assert [row["status"] for row in rows(tmp_path / "r.jsonl")] == ["failed", "done"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    tree: Path, tmp_path: Path, settings: Settings, write: Callable[..., Path]
) -> None:
    write(tmp_path / "out" / "b.bwe.flac")
    before = contents(tmp_path)
    plan = batch.plan([tree], tmp_path / "out", sample_rate=48_000, recursive=True)
    summary = batch.run(plan, settings, dry_run=True, report=tmp_path / "r.jsonl")
    assert contents(tmp_path) == before
    assert not (tmp_path / "out" / "deep").exists()
    assert [outcome.status for outcome in summary.outcomes] == ["planned", "failed", "planned"]
    said = str(summary.outcomes[0])
    assert said.startswith(f"{tree / 'a.wav'} 16 kHz → {tmp_path / 'out' / 'a.bwe.wav'} 48 kHz  0:00  cut-off found when")
    assert summary.outcomes[0].row["bytes"] == 3 * 1_200 * 2
    assert str(summary).startswith("2 to do, 1 failed, 2 ignored")
    given = batch.run(plan, dataclasses.replace(settings, cutoff=4_000.0, bits="24"), dry_run=True)
    assert "cut-off 4 kHz as given" in str(given.outcomes[0])
    assert given.outcomes[0].row["bytes"] == 3 * 1_200 * 3


def test_outputs_that_do_not_fit_are_refused_before_the_start(
    tree: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = batch.plan([tree], tmp_path / "out" / "deep", sample_rate=48_000, recursive=True)
    needed = sum(batch.run(plan, settings, dry_run=True).outcomes[i].row["bytes"] for i in range(3))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(OutputError, match="no space left for all outputs") as caught:
        batch.run(plan, settings)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_ends_the_run_before_any_file(tree: Path, tmp_path: Path) -> None:
    plan = batch.plan([tree], tmp_path / "out", sample_rate=48_000, recursive=True)
    with pytest.raises(ModelError, match="unknown model 'nonesuch'"):
        Settings(model="nonesuch").output_rate()
    with pytest.raises(ModelError, match="unknown model 'nonesuch'"):
        batch.run(plan, Settings(model="nonesuch"))
    assert not any((tmp_path / "out").rglob("*"))


def test_a_table_is_continued(tree: Path, tmp_path: Path, settings: Settings) -> None:
    out, table = tmp_path / "out", tmp_path / "r.jsonl"
    plan = batch.plan([tree], out, sample_rate=48_000, recursive=True)
    batch.run(plan, settings, report=table)
    whole = rows(table)
    with pytest.raises(OutputError, match="exists already"):
        batch.run(plan, settings, report=table)
    other = {"status": "done", "input": {"path": "x"}, "output": {"path": "y"}}
    torn = json.dumps(whole[2])[:50]
    table.write_text("".join(json.dumps(row) + "\n" for row in [other, whole[1], whole[0]]) + torn)
    (out / "deep" / "deeper" / "c.bwe.wav").unlink()
    batch.run(plan, settings, report=table, skip_existing=True)
    after = rows(table)
    assert after[:3] == [other, whole[0], whole[1]]
    assert (after[3]["status"], after[3]["output"]) == ("done", whole[2]["output"])
    table.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(OutputError, match="line 1: is no result of bwe"):
        batch.run(plan, settings, report=table, skip_existing=True)
    assert table.read_text() == '{"a": 1}\n{"b": 2}\n'
    with pytest.raises(OutputError, match="none does not exist; make it first"):
        batch.run(plan, settings, report=tmp_path / "none" / "r.jsonl", skip_existing=True)


def test_a_table_takes_the_place_of_nothing_else(tree: Path, tmp_path: Path, settings: Settings) -> None:
    plan = batch.plan([tree], tmp_path / "out", sample_rate=48_000, recursive=True)
    before = contents(tree)
    (tmp_path / "link.jsonl").symlink_to(tree / "a.wav")
    for report in (tree / "a.wav", tmp_path / "link.jsonl", tmp_path / "out" / "a.bwe.wav"):
        with pytest.raises(ConfigError, match=r"the report would be written over .*a.*wav; give it a name of its own"):
            batch.run(plan, settings, report=report, overwrite=True)
    assert contents(tree) == before
    assert not (tmp_path / "out").exists()
    os.mkfifo(tmp_path / "pipe")
    for options in ({"overwrite": True}, {"skip_existing": True}):
        with pytest.raises(OutputError, match="pipe: exists and is not a regular file"):
            batch.run(plan, settings, report=tmp_path / "pipe", **options)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "real.jsonl").touch()
    (tmp_path / "link.jsonl").unlink()
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    batch.run(plan, settings, report=tmp_path / "link.jsonl", overwrite=True)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len(rows(tmp_path / "real.jsonl")) == 3


def test_every_result_is_in_the_table_at_once(tree: Path, tmp_path: Path, settings: Settings) -> None:
    table = tmp_path / "r.jsonl"
    plan = batch.plan([tree], tmp_path / "out", sample_rate=48_000, recursive=True)
    seen: list[int] = []
    batch.run(plan, settings, report=table, tell=lambda outcome: seen.append(len(rows(table))))
    assert seen == [1, 2, 3]


def test_out_of_memory_has_its_own_exit_code() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    outcome = batch._failure(Path("a.wav"), None, caught.value)
    assert (outcome.code, outcome.text) == (5, "a.wav: out of memory; free some, or use fewer workers")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_for_terminals_only() -> None:
    quiet = io.StringIO()
    bar = batch.Bar(quiet)
    bar(1, 2)
    bar.line("done")
    bar.close()
    assert quiet.getvalue() == "done\n"
    terminal = Terminal()
    bar = batch.Bar(terminal)
    bar(0, 0)
    assert terminal.getvalue() == ""
    bar(30, 120)
    assert terminal.getvalue().endswith("█░░░░░░░░░░░░░░░░░░░░░░░ 0:30 of 2:00, 0:00 to go")
    out = io.StringIO()
    bar.line("done", out)
    assert out.getvalue() == "done\n"
    assert terminal.getvalue().endswith("\r\033[K" + terminal.getvalue().split("\033[K")[-1])
    bar(120, 120)
    bar.close()
    assert terminal.getvalue().endswith("█ 2:00 of 2:00, 0:00 to go\r\033[K")


def folder_run(inputs: Path, output: Path, model: str) -> None:
    """What is killed below: the command, in a process of its own."""
    table = output.with_suffix(".jsonl")
    words = ["extend", "-r", inputs, "-o", output, "-m", model, "--skip-existing", "--report", table]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = cli.main([str(word) for word in words])
    raise SystemExit(code)


def stable(pipe: Connection, warm: Path, model: str) -> None:
    """Forks a `folder_run` for each arguments it gets, from a process that has torch and the model's code already."""
    torch.set_num_threads(1)  # threads do not survive a fork
    with contextlib.suppress(SystemExit):
        folder_run(warm, warm.with_name("warmed"), model)
    with contextlib.suppress(EOFError):
        while True:
            process = multiprocessing.get_context("fork").Process(target=folder_run, args=pipe.recv())
            process.start()
            pipe.send(process.pid)
            process.join()
            pipe.send(process.exitcode)


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1_200)])])
def test_killed_at_random_moments(tmp_path: Path, write: Callable[..., Path], tiny_folder: Path, kills: int) -> None:
    names = [f"{'deep/' if i % 3 == 0 else ''}{i:02d}.{'flac' if i % 2 else 'wav'}" for i in range(12)]
    for i, name in enumerate(names):
        write(tmp_path / "in" / name, 1_600 + 800 * i, 1 + i % 2)
    write(tmp_path / "warm" / "a.wav")
    pipe, other = multiprocessing.Pipe()
    processes = multiprocessing.get_context("spawn")
    processes.Process(target=stable, args=(other, tmp_path / "warm", str(tiny_folder)), daemon=False).start()
    other.close()

    def run(output: Path, kill_after: float | None = None) -> int:
        """The exit code of a run, or minus the number of the signal that ended it."""
        pipe.send((tmp_path / "in", output, str(tiny_folder)))
        pid = pipe.recv()
        if kill_after is not None and not pipe.poll(kill_after):
            os.kill(pid, signal.SIGKILL)
        return pipe.recv()

    def temporaries(folder: Path) -> list[Path]:
        return [path for path in folder.rglob("*") if path.name.startswith(".")]

    assert run(tmp_path / "whole") == 0
    wanted = contents(tmp_path / "whole")
    assert len(wanted) == len(names)
    began = time.monotonic()
    assert run(tmp_path / "again") == 0
    length = time.monotonic() - began
    assert contents(tmp_path / "again") == wanted

    rng = random.Random(kills)
    out, killed, with_temporary, rounds = tmp_path / "out", 0, 0, 0
    while killed < kills:
        code = run(out, kill_after=rng.uniform(0, length))
        if code == 0:  # all was done before the kill: from the beginning
            rounds += 1
            assert contents(out) == wanted
            shutil.rmtree(out)
            out.with_suffix(".jsonl").unlink()
            continue
        assert code == -signal.SIGKILL
        killed += 1
        left = temporaries(out)
        with_temporary += bool(left)
        assert all(path.name.startswith(".bwe-") and path.suffix == ".tmp" for path in left)
        finished = {name: data for name, data in contents(out).items() if not Path(name).name.startswith(".")}
        assert finished.items() <= wanted.items()
    print(f"{killed} kills, {with_temporary} of them while a file was written, {rounds} runs came to their end between them")
    assert run(out) == 0
    pipe.close()
    assert contents(out) == wanted
    assert not temporaries(tmp_path)
    table = rows(tmp_path / "out.jsonl")
    assert [row["output"]["path"] for row in table] == [  # type: ignore[index]
        row["output"]["path"].replace("/whole/", "/out/") for row in rows(tmp_path / "whole.jsonl")  # type: ignore[index]
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_with_a_killed_worker(tmp_path: Path, write: Callable[..., Path], settings: Settings) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    for i in range(10):
        write(tmp_path / "in" / f"{i}.wav", 80_000 + i)
    (tmp_path / "in" / "bad.wav").write_text("<html>")
    plan = batch.plan([tmp_path / "in"], tmp_path / "ray", sample_rate=48_000, recursive=True)
    killed: list[int] = []

    def kill_once(outcome: Outcome) -> None:
        if not killed and outcome.status == "done":
            killed.append(int(outcome.row["worker"].split(":")[1]))
            os.kill(killed[0], signal.SIGKILL)

    summary = batch.run(plan, settings, ray_workers=2, report=tmp_path / "ray.jsonl", tell=kill_once)
    assert killed
    assert (summary.count("done"), len(summary.failures), summary.exit_code) == (10, 1, 1)
    batch.run(batch.plan([tmp_path / "in"], tmp_path / "here", sample_rate=48_000, recursive=True), settings)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    table = rows(tmp_path / "ray.jsonl")
    assert [row["output"]["path"] for row in table] == [str(job.target) for job in plan.jobs]  # type: ignore[index]
    again = batch.run(plan, settings, ray_workers=2, report=tmp_path / "ray.jsonl", skip_existing=True)
    assert (again.count("skipped"), len(again.failures)) == (10, 1)
    assert [row["status"] for row in rows(tmp_path / "ray.jsonl")] == [row["status"] for row in table]


def test_ray_is_named_where_it_is_missing(
    tree: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    plan = batch.plan([tree], tmp_path / "out", sample_rate=48_000, recursive=True)
    with pytest.raises(ImportError, match=r"pip install 'bwe\[ray\]'"):
        batch.run(plan, settings, ray_workers=2)
