"""The run folder: checkpoints that survive kills and damage, and trackers that never end a training."""

import json
import logging
import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bwe import audio, runs, train
from bwe.errors import ModelError, OutputError

SMOKE = Path(__file__).parent.parent / "recipes" / "smoke.py"


def state(step: int, size: int = 3) -> dict[str, object]:
    return {"task": {"w": torch.full((size,), float(step)), "rate": 0.1, "state": {0: torch.zeros(1)}}, "step": step}


def test_states_come_back_and_only_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [2, 3]
    assert (tmp_path / "latest").read_text() == "step_3"
    found = checkpoints.load()
    assert found is not None
    assert found[0] == 3
    assert torch.equal(found[1]["task"]["w"], torch.full((3,), 3.0))
    assert set(found[1]["task"]["state"]) == {0}
    assert runs.Checkpoints(tmp_path / "empty", keep=2).load() is None


@pytest.mark.parametrize("damage", ["bytes", "truncated", "missing", "json"])
def test_a_damaged_latest_falls_back_and_names_both(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state(step, size=1000))
    tensors = tmp_path / "step_2" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    if damage == "bytes":
        content[-100] ^= 1  # one bit of a weight: only the hash can tell
        tensors.write_bytes(content)
    elif damage == "truncated":
        tensors.write_bytes(content[:-10])
    elif damage == "missing":
        tensors.unlink()
    else:
        (tmp_path / "step_2" / "state.json").write_text("{")
    found = checkpoints.load()
    assert found is not None
    assert found[0] == 1
    assert f"{tmp_path / 'step_2'}: damaged checkpoint" in caplog.text
    assert f"going on from {tmp_path / 'step_1'}" in caplog.text
    checkpoints.save(2, state(2))  # the run comes by the damaged step again
    assert checkpoints.load() is not None
    assert checkpoints.read(2)["step"] == 2
    for step in (1, 2):
        (tmp_path / f"step_{step}" / "state.json").unlink()
    with pytest.raises(ModelError, match="no checkpoint is left"):
        checkpoints.load()


def test_stale_temporaries_are_swept(tmp_path: Path) -> None:
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1))
    (tmp_path / "step_9.tmp").mkdir()
    (tmp_path / "step_9.tmp" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "latest.tmp").write_text("step_9")
    checkpoints.save(2, state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_1", "step_2"]


def test_a_non_finite_state_is_never_saved(tmp_path: Path) -> None:
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    with pytest.raises(ModelError, match=r"NaN or Inf at step 4 \(first in task/w\)"):
        checkpoints.save(4, state(4) | {"task": {"w": torch.tensor([1.0, math.nan])}})
    assert checkpoints.load() is None


def test_a_full_disk_is_told_and_takes_nothing_with_it(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    checkpoints = runs.Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"step_2: cannot be written .*make room"):
            checkpoints.save(2, state(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_1"]
    assert (checkpoints.load() or (0,))[0] == 1


def _save_for_ever(folder: str, start: int) -> None:
    torch.set_num_threads(1)
    checkpoints = runs.Checkpoints(Path(folder) / "checkpoints", keep=2)
    (Path(folder) / "ready").touch()
    with (Path(folder) / "saved").open("ab", buffering=0) as saved:
        for step in range(start, start + 10**6):
            checkpoints.save(step, state(step, size=200_000))
            saved.write(f"{step}\n".encode())


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_during_saving_leave_a_state_that_loads(tmp_path: Path, kills: int) -> None:
    # A fork server that has torch loaded starts a victim in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bwe.train"])
    folder, ready = tmp_path / "checkpoints", tmp_path / "ready"
    checkpoints, rng, saved, reached, caught = runs.Checkpoints(folder, keep=2), random.Random(0), 0, 0, 0
    for kill in range(kills):
        victim = context.Process(target=_save_for_ever, args=(str(tmp_path), reached + 1))
        victim.start()
        end = time.monotonic() + 60
        while not ready.exists() and victim.is_alive() and time.monotonic() < end:
            time.sleep(0.001)
        ready.unlink()
        time.sleep(rng.uniform(0, 0.05))
        assert victim.pid is not None
        assert victim.is_alive(), f"the victim ended by itself before kill {kill}"
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        caught += bool(list(folder.glob("*.tmp")))
        found = checkpoints.load()
        if found is None:
            assert not checkpoints.steps()
            continue
        step, loaded = found
        returned = [int(line) for line in (tmp_path / "saved").read_text().split()]
        assert step >= max(saved, *returned, 0), "a kill took back what was saved"
        assert torch.equal(loaded["task"]["w"], torch.full((200_000,), float(step)))
        # A step that was being saved may be whole and not yet the latest.
        saved, reached = step, max(step, *checkpoints.steps())
    assert reached > kills / 4
    assert caught > kills / 8, "the kills missed the saving"


def test_numbers_are_json_and_a_half_line_is_closed(tmp_path: Path) -> None:
    recipe = train.load_recipe(SMOKE, [])
    tracker = runs.Tracker(tmp_path, recipe)
    tracker.numbers(1, {"loss/rec": 1.0, "loss/adv": math.nan, "data/cutoff_hist": [1, 2]})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    tracker = runs.Tracker(tmp_path, recipe, resumed=True)
    tracker.numbers(2, {"loss/rec": 0.5})
    tracker.close()
    found = list(runs.lines(tmp_path))
    assert [(line["step"], line["loss/rec"]) for line in found] == [(1, 1.0), (2, 0.5)]
    assert "loss/adv" not in found[0]
    assert found[0]["data/cutoff_hist"] == [1, 2]


def test_clips_are_audio_files_of_which_the_last_two_steps_stay(tmp_path: Path) -> None:
    tracker = runs.Tracker(tmp_path, train.load_recipe(SMOKE, []))
    clip = torch.from_numpy(np.sin(np.arange(9600) / 10)).float() * 0.1
    for step in (10, 20, 30):
        fixed = {"ref": clip, "sinc": clip, "low": clip[::6]} if step == 10 else {}
        tracker.clips(step, {"4000_0": {"pred": clip, **fixed}}, {"4000_0": 4000.0})
    tracker.close()
    assert sorted(p.name for p in (tmp_path / "clips").iterdir()) == [
        "4000_0_low.flac", "4000_0_ref.flac", "4000_0_sinc.flac", "step_20", "step_30"
    ]  # fmt: skip
    low, info = audio.read(tmp_path / "clips" / "4000_0_low.flac")
    assert info.sample_rate == 8000
    assert low.shape == (1, 1600)


def test_failing_trackers_do_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "no-such-mode")
    tracker = runs.Tracker(tmp_path / "run", train.load_recipe(SMOKE, ['trackers=["wandb"]']))
    tracker.numbers(1, {"loss/rec": 1.0})
    tracker.clips(1, {"4000_0": {"pred": torch.zeros(4800)}}, {"4000_0": 4000.0})
    tracker.close()
    assert "wandb is switched off" in caplog.text
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["loss/rec"] == 1.0


def test_a_damaged_clip_does_not_stop_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    tracker = runs.Tracker(tmp_path, train.load_recipe(SMOKE, ['trackers=["tensorboard"]']))
    clip = torch.from_numpy(np.sin(np.arange(9600) / 10)).float() * 0.1
    tracker.clips(1, {"4000_0": {"pred": clip, "ref": clip, "sinc": clip}}, {"4000_0": 4000.0})
    (tmp_path / "clips" / "4000_0_ref.flac").write_bytes(b"fLaC")
    tracker.clips(2, {"4000_0": {"pred": clip}}, {"4000_0": 4000.0})
    tracker.close()
    assert "pictures is switched off for this run" in caplog.text
    assert (tmp_path / "clips" / "step_2" / "4000_0_pred.flac").is_file()


def test_trackers_take_numbers_curves_audio_and_spectrograms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = train.load_recipe(SMOKE, ['trackers=["wandb","tensorboard"]'])
    tracker = runs.Tracker(tmp_path / "run", recipe)
    curve = {"hz": [0.0, 100.0], "pred": [-10.0, -20.0], "ref": [-10.0, -21.0]}
    histogram = {"data/cutoff_hist": [3, 4], "data/cutoff_edges": [0.0, 1.0, 2.0]}
    tracker.numbers(1, {"loss/rec": 1.0, "stft/4000/mean_spectrum": curve, **histogram})
    tracker.best({"val/score": 1.0})
    x = torch.from_numpy(np.sin(np.arange(9600) / 10)).float() * 0.1
    tracker.clips(1, {"4000_0": {"pred": x, "ref": x, "sinc": x, "low": x[::6]}}, {"4000_0": 4000.0})
    assert set(tracker.others) == {"wandb", "tensorboard"}, caplog.text
    tracker.close()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    for kind in ("flac", "png", "table.json"):
        assert list((tmp_path / "run" / "wandb").rglob(f"*.{kind}")), kind
    identity = (tmp_path / "run" / "wandb_id").read_text()
    again = runs.Tracker(tmp_path / "run", recipe, resumed=True)
    assert again.others["wandb"].id == identity, "a resumed run goes on on its own page"
    again.close()
    logging.getLogger().handlers = [h for h in logging.getLogger().handlers if "wandb" not in type(h).__module__]
