"""Training end to end on the smoke recipe, through the command line as a user runs it, and its parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bwe import hub, train
from bwe.errors import ConfigError, ModelError

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.py"
QUICK = ["steps=6", "reconstruction_steps=3", "valid_every=6", "checkpoint_every=3", "log_every=1", "valid_clips=1"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bwe", "train", str(SMOKE), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    done = run(cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "runs/smoke"
    return folder / "runs" / "smoke", done.stderr


def test_smoke_recipe_learns_faces_discriminators_and_exports(smoke: tuple[Path, str]) -> None:
    folder, printed = smoke
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/rec" in row]
    assert steps[2]["loss/rec"] < 0.9 * steps[0]["loss/rec"]
    assert "loss/adv" not in steps[0]
    assert {"loss/adv", "loss/feat", "loss/disc", "weight/adv", "norm/feat", "grad/generator"} <= steps[-1].keys()
    assert any("val/4000/lsd_hf" in row for row in rows)
    assert "audio-s/s" in printed
    assert "data wait" in printed
    model, meta, _ = hub.read(folder / "best")
    assert meta["sample_rate"] == model.sample_rate == 48_000
    assert (folder / "best" / "discriminators.safetensors").is_file()


def test_a_run_folder_is_not_overwritten(smoke: tuple[Path, str]) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        train.main(str(SMOKE), [], run_dir=str(smoke[0]))


def test_resume_gives_the_weights_of_the_uninterrupted_run(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train.main(str(SMOKE), QUICK, run_dir=str(tmp_path / "whole"))
        # The schedules see the same number of steps: the first half stops because its batches end.
        recipe = train.load_recipe(SMOKE, [*QUICK, f"data={tmp_path / 'whole' / 'data'}"])
        crops = train.corpus.Crops(Path(recipe.data) / "train", recipe.crops, train.degrade.Degradation(recipe.degrade))
        trainer = train.Trainer(train.GANTask(recipe, []), recipe, tmp_path / "half", lambda line: None)
        with pytest.raises(StopIteration):
            trainer.fit(lambda start: train.corpus.batches(crops, recipe.batch, 3, start, 0))
        (tmp_path / "half" / "recipe.json").write_text("{}")
        half = train.main(str(SMOKE), [*QUICK, f"data={recipe.data}"], run_dir=str(tmp_path / "half"), resume=True)
    finally:
        torch.set_num_threads(threads)
    states = [train.Checkpoints(folder / "checkpoints", 2).load(6)["task"] for folder in (whole, half)]
    for part in ("generator", "discriminator", "ema"):
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), f"{part} {name}"
    assert states[0]["balancer"] == states[1]["balancer"]


def test_warm_start_takes_generator_and_discriminators(smoke: tuple[Path, str]) -> None:
    recipe = train.load_recipe(SMOKE, [f"init={smoke[0] / 'best'}"])
    task = train.GANTask(recipe, [])
    source, _, _ = hub.read(smoke[0] / "best")
    x = torch.randn(1, 1, 9600) * 0.1
    with torch.inference_mode():
        difference = task.generator.eval()(x, torch.tensor([4000.0])) - source(x, torch.tensor([4000.0]))
    assert difference.abs().max() < 1e-5
    fresh = train.GANTask(train.load_recipe(SMOKE, []), [])
    name = next(iter(fresh.discriminator.state_dict()))
    assert not torch.equal(task.discriminator.state_dict()[name], fresh.discriminator.state_dict()[name])
    other = train.load_recipe(SMOKE, [f"init={smoke[0] / 'best'}", "generator.channels=[8,16,24]"])
    with pytest.raises(ModelError, match="init="):
        train.GANTask(other, [])


def test_discriminator_gradients_stay_out_of_the_generator_step_and_back(smoke: tuple[Path, str]) -> None:
    recipe = train.load_recipe(SMOKE, ["reconstruction_steps=0", "discriminators.subset=0", "discriminator_every=2"])
    task = train.GANTask(recipe, [])
    crops = train.corpus.Crops(smoke[0] / "data" / "train", recipe.crops, train.degrade.Degradation(recipe.degrade))
    batch = next(iter(train.corpus.batches(crops, 2, 1, 0, 0)))
    weights = [p.clone() for p in task.discriminator.parameters()]
    first = task.step(batch)
    after = [p.clone() for p in task.discriminator.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    second = task.step(batch)
    assert "loss/disc" in first
    assert "loss/disc" not in second
    assert all(torch.equal(a, b) for a, b in zip(after, task.discriminator.parameters(), strict=True))
    assert all(p.grad is None for p in task.discriminator.parameters())


def test_nothing_above_a_recordings_own_end_is_learned() -> None:
    task = train.GANTask(train.load_recipe(SMOKE, []), [])
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 12_000) * 0.1, torch.randn(2, 1, 12_000) * 0.1
    low = train.dsp.band_limit(a, 48_000, 12_000.0)
    top = torch.tensor([12_000.0, 12_000.0])
    high = b - train.dsp.band_limit(b, 48_000, 13_000.0)
    masked, _ = task.reconstruction(task._limited(low + high, top), task._limited(low, top))
    plain, _ = task.reconstruction(low + high, low)
    assert float(masked) < 0.02 * float(plain)
    full = torch.tensor([24_000.0, 22_900.0])
    assert torch.equal(task._limited(a, full), a)


def test_non_finite_gradients_are_skipped_and_counted(smoke: tuple[Path, str]) -> None:
    task = train.GANTask(train.load_recipe(SMOKE, []), [])
    weights = [p.clone() for p in task.generator.parameters()]
    batch = {"input": torch.full((1, 1, 4800), float("nan")), "target": torch.zeros(1, 1, 4800)}
    stats = task.step(batch | {"cutoff_hz": torch.tensor([4000.0]), "top_hz": torch.tensor([24_000.0])})
    assert stats["optim/skipped"] == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, task.generator.parameters(), strict=True))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("bach=4", "unknown recipe key 'bach'; did you mean 'batch'"),
        ("crops.second=1", "did you mean 'crops.seconds'"),
        ("batch=many", "batch must be int"),
        ("steps", "write it as key=value"),
        ("losses.adversarial=wgan", "losses.adversarial"),
    ],
)
def test_wrong_overrides_get_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        train.load_recipe(SMOKE, [override])


def test_command_line_shows_a_sentence_and_no_traceback(tmp_path: Path) -> None:
    done = run("bach=4", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'batch'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints = train.Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"task": {"w": torch.ones(3) * step, "rate": 0.1, "state": {0: torch.zeros(1)}}, "step": step})
    assert checkpoints.steps() == [2, 3]
    state = checkpoints.load(3)
    assert torch.equal(state["task"]["w"], torch.full((3,), 3.0))
    assert set(state["task"]["state"]) == {0}
    (tmp_path / "step_3" / "tensors.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match="step_3: damaged checkpoint"):
        checkpoints.load(3)


def test_failing_trackers_do_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "no-such-mode")
    recipe = train.load_recipe(SMOKE, ['trackers=["wandb"]'])
    tracker = train.Tracker(tmp_path / "run", recipe)
    tracker.numbers(1, {"loss/rec": 1.0})
    tracker.clips(1, {"clip": torch.zeros(4800)})
    tracker.close()
    assert "wandb is switched off" in caplog.text
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["loss/rec"] == 1.0


def test_trackers_take_numbers_audio_and_spectrograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = train.load_recipe(SMOKE, ['trackers=["wandb","tensorboard"]'])
    tracker = train.Tracker(tmp_path / "run", recipe)
    tracker.numbers(1, {"loss/rec": 1.0})
    tracker.clips(1, {"4000/0/pred": torch.from_numpy(np.sin(np.arange(9600) / 10)).float() * 0.1})
    assert set(tracker.others) == {"wandb", "tensorboard"}
    tracker.close()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert list((tmp_path / "run" / "wandb").rglob("*.wav"))
    assert list((tmp_path / "run" / "wandb").rglob("*.png"))
