"""Training end to end on the smoke recipe, through the command line as a user runs it, and its parts."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bwe import hub, runs, train
from bwe.errors import BweError, ConfigError, ModelError

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.py"
QUICK = ["steps=6", "reconstruction_steps=3", "valid_every=6", "checkpoint_every=3", "log_every=1", "valid_clips=1"]


def start(*arguments: str, cwd: Path, processes: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "bwe", "train", str(SMOKE), *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, cwd: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, cwd=cwd, processes=processes)
    try:
        out, err = process.communicate(timeout=110)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


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
    assert {
        "loss/adv",
        "loss/feat",
        "loss/disc",
        "loss_weighted/adv",
        "balance/weight/adv",
        "balance/norm/feat",
        "grad/generator",
    } <= steps[-1].keys()
    assert any("val/4000/lsd_hf" in row for row in rows)
    assert "audio-s/s" in printed
    assert "data wait" in printed
    model, meta, _ = hub.read(folder / "best")
    assert meta["sample_rate"] == model.sample_rate == 48_000
    assert (folder / "best" / "discriminators.safetensors").is_file()


def test_a_run_folder_is_not_overwritten(smoke: tuple[Path, str]) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        train.main(str(SMOKE), [], run_dir=str(smoke[0]))


def test_resume_after_sigterm_is_bit_equal_to_the_uninterrupted_run(tmp_path: Path) -> None:
    options = ["steps=8", "reconstruction_steps=2", "valid_every=100", "checkpoint_every=100", "log_every=1", "valid_clips=1"]
    done = run(*options, "--run-dir", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options.append(f"data={tmp_path / 'whole' / 'data'}")
    process = start(*options, "--run-dir", "halves", cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 4 "):
            process.send_signal(signal.SIGTERM)
            break
    said = process.stderr.read()
    assert process.wait(60) == 143
    assert "stopped by SIGTERM after step" in said
    checkpoints = [runs.Checkpoints(tmp_path / name / "checkpoints", 2) for name in ("whole", "halves")]
    assert 4 <= checkpoints[1].steps()[-1] < 8, "it was to stop half-way"
    done = run(*options, "--run-dir", "halves", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, halves = (c.read(8) for c in checkpoints)
    for state in (whole, halves):
        state.pop("trained_s")
    tensors, rest = zip(runs.flatten(whole), runs.flatten(halves), strict=True)
    assert rest[0] == rest[1]
    assert {"task/generator/head.bias", "task/ema/head.bias", "rng"} <= tensors[0].keys()
    assert any(name.startswith("task/optimizers/discriminator/state/") for name in tensors[0])
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name


def without_texture_offsets(state: dict[str, torch.Tensor]) -> None:
    """The generator takes offsets out of its textures, so their gradient is rounding noise, which Adam blows up."""
    if "head.bias" in state:
        state["head.bias"][:24] = 0


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    options = ["steps=20", "reconstruction_steps=0", "valid_every=20", "checkpoint_every=20", "batch=4", "log_every=5"]
    # At a training's rates Adam blows a last-bit difference of the sums up to per cents within twenty steps: changing one
    # process's input by 1e-7 does more than splitting its batch. Small steps show the arithmetic itself.
    options += ["optim.lr=5e-5", "optim.discriminator_lr=5e-5", "optim.warmup=1"]
    done = run(*options, "--run-dir", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options.append(f"data={tmp_path / 'one' / 'data'}")
    done = run(*options, "--run-dir", "two", cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    states = [runs.Checkpoints(tmp_path / name / "checkpoints", 2).read(20) for name in ("one", "two")]
    for state in states:
        without_texture_offsets(state["task"]["generator"])
        without_texture_offsets(state["task"]["ema"])
    rows = [list(runs.lines(tmp_path / name)) for name in ("one", "two")]
    for part in ("generator", "discriminator", "ema"):
        start = train.GANTask(train.load_recipe(SMOKE, []), []).state_dict()["generator" if part == "ema" else part]
        without_texture_offsets(start)
        moved = torch.cat([(states[0]["task"][part][name] - start[name]).flatten() for name in start])
        apart = torch.cat([(states[0]["task"][part][name] - states[1]["task"][part][name]).flatten() for name in start])
        assert float(moved.norm()) > 0.01
        assert float(apart.abs().max()) < 5e-5, part
        assert float(apart.norm() / moved.norm()) < 1e-3, part
    for one, two in zip(*rows, strict=True):
        for name in one.keys() & {"loss/rec", "loss/disc", "balance/weight/adv", "val/4000/lsd", "val/score"}:
            assert one[name] == pytest.approx(two[name], rel=1e-3), name
    assert rows[1][-1]["val/4000/sinc/lsd"] > 2


def test_parts_of_a_batch_give_the_gradients_of_the_whole(smoke: tuple[Path, str]) -> None:
    tasks, batch = [], None
    for accumulate in (1, 2):
        recipe = train.load_recipe(SMOKE, ["reconstruction_steps=0", f"accumulate={accumulate}"])
        task = train.GANTask(recipe, [])
        crops = train.corpus.Crops(smoke[0] / "data" / "train", recipe.crops, train.degrade.Degradation(recipe.degrade))
        batch = batch or next(iter(train.corpus.batches(crops, 4, 1, 0, 0)))
        stats = [task.step(batch) for _ in range(3)]
        tasks.append((task, stats))
    for part in ("generator", "discriminator"):
        one, two = (task.networks[part].state_dict() for task, _ in tasks)
        for state in (one, two):
            without_texture_offsets(state)
        for name in one:
            assert torch.allclose(one[name], two[name], atol=1e-4), name
    for a, b in zip(tasks[0][1], tasks[1][1], strict=True):
        assert a.keys() == b.keys()
        assert a["loss/feat"] == pytest.approx(b["loss/feat"], rel=1e-3)
        assert a["grad/discriminator"] == pytest.approx(b["grad/discriminator"], rel=1e-3)


def test_a_run_stopped_in_its_last_step_is_validated_when_it_goes_on(smoke: tuple[Path, str], tmp_path: Path) -> None:
    recipe = train.load_recipe(SMOKE, [*QUICK, "steps=2", "valid_every=2"])
    crops = train.corpus.Crops(smoke[0] / "data" / "train", recipe.crops, train.degrade.Degradation(recipe.degrade))
    batches = list(train.corpus.batches(crops, 2, 2, 0, 0))
    valid = train.corpus.whole(smoke[0] / "data" / "valid", 1)

    def stopping(start: int) -> Iterator[dict[str, torch.Tensor]]:
        yield batches[0]
        os.kill(os.getpid(), signal.SIGTERM)
        yield batches[1]

    trainer = train.Trainer(train.GANTask(recipe, valid), recipe, tmp_path, lambda line: None)
    with pytest.raises(SystemExit) as stop:
        trainer.fit(stopping)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not (tmp_path / "best").exists()
    again = train.Trainer(train.GANTask(recipe, valid), recipe, tmp_path, lambda line: None)
    again.resume()
    again.fit(lambda start: iter([]))
    assert again.step == 2
    assert (tmp_path / "best" / "model.safetensors").is_file()
    assert any("val/score" in line for line in runs.lines(tmp_path))


def test_a_resumed_run_keeps_its_own_recipe(
    smoke: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(smoke[0], tmp_path / "run")
    train.main(str(SMOKE), ["steps=81", "optim.betas=[0.5,0.9]", "batch=2"], str(tmp_path / "run"), resume=True)
    told = capsys.readouterr().err
    assert "steps=81 from here on, was 80" in told
    assert "batch=2 from here on, was 4" in told
    assert "packing" not in told
    step, state = runs.Checkpoints(tmp_path / "run" / "checkpoints", 2).load() or (0, {})
    assert step == 81
    assert state["task"]["optimizers"]["generator"]["param_groups"][0]["betas"] == [0.5, 0.9]
    kept = (tmp_path / "run" / "recipe.json").read_text()
    assert '"steps": 81' in kept
    with pytest.raises(ModelError, match=r"run: its checkpoint is of another recipe .*undo the override"):
        train.main(str(SMOKE), ["generator.channels=[8,16,24]"], str(tmp_path / "run"), resume=True)
    assert (tmp_path / "run" / "recipe.json").read_text() == kept, "what cannot go on leaves no trace"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("log_every=0", "log_every=0: must be 1 or more"),
        ("valid_cutoffs=[30000]", "give at least one between 300 and 24000 Hz"),
        ('losses.balancer.shares={"rec":1}', "give rec (above 0), feat and adv"),
    ],
)
def test_values_that_cannot_work_are_refused_at_once(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        train.load_recipe(SMOKE, [override])


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_a_sentence_and_resume_goes_on(tmp_path: Path) -> None:
    options = ["steps=400", "reconstruction_steps=50", "checkpoint_every=20", "batch=4", "--run-dir", "two"]
    process = start(*options, cwd=tmp_path, processes=2)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 60 "):
            break
    children = [p for p in Path("/proc").iterdir() if p.name.isdigit() and is_rank(p, 1)]
    assert len(children) == 1
    os.kill(int(children[0].name), signal.SIGKILL)
    said = process.stderr.read()
    assert process.wait(60) != 0
    assert "process 0 of 2: another process of this training has gone" in said
    assert "--resume" in said
    reached = runs.Checkpoints(tmp_path / "two" / "checkpoints", 2).steps()[-1]
    assert reached >= 40, "the last checkpoint before the kill"
    options[0] = f"steps={reached + 5}"
    done = run(*options, "--resume", cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {reached}" in done.stderr


def is_rank(process: Path, rank: int) -> bool:
    """Whether this is the training process of that rank (its data workers have other command lines or another parent)."""
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
        command = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"RANK={rank}".encode() in variables and b"train" in command and b"torch.distributed.run" not in command


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


def poisoned(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch | {"input": torch.full_like(batch["input"], float("nan"))}


@pytest.mark.parametrize("warm_up", [0, 100])
def test_a_non_finite_step_changes_neither_network(smoke: tuple[Path, str], warm_up: int) -> None:
    task = train.GANTask(train.load_recipe(SMOKE, [f"reconstruction_steps={warm_up}"]), [])
    batch = {"input": torch.randn(2, 1, 4800) * 0.1, "target": torch.randn(2, 1, 4800) * 0.1}
    batch |= {"cutoff_hz": torch.tensor([4000.0] * 2), "top_hz": torch.tensor([24_000.0] * 2)}
    assert task.step(batch)["optim/nonfinite"] == 0
    before, norms = runs.flatten(task.state_dict())[0], dict(task.balancer.norms)
    assert task.step(poisoned(batch))["optim/nonfinite"] == 1
    after = runs.flatten(task.state_dict())[0]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert task.balancer.norms == norms
    assert task.step(batch)["optim/nonfinite"] == 0


def test_non_finite_steps_are_counted_kept_and_end_the_run_after_a_patience(smoke: tuple[Path, str], tmp_path: Path) -> None:
    recipe = train.load_recipe(SMOKE, ["patience=3", "checkpoint_every=1", "log_every=1", "valid_every=100"])
    crops = train.corpus.Crops(smoke[0] / "data" / "train", recipe.crops, train.degrade.Degradation(recipe.degrade))
    good = list(train.corpus.batches(crops, 2, 3, 0, 0))
    bad = poisoned(good[0])
    trainer = train.Trainer(train.GANTask(recipe, []), recipe, tmp_path, lambda line: None)
    with pytest.raises(BweError, match="not finite for 3 steps in a row, the last of them 7"):
        trainer.fit(lambda start: iter([*good[:2], bad, good[2], bad, bad, bad, good[0]]))
    assert trainer.skipped == 4
    kept = sorted(p.name for p in (tmp_path / "nonfinite").iterdir())
    assert kept == [f"step_{n}_process_0" for n in (3, 5, 6, 7)]
    stored = load_file(tmp_path / "nonfinite" / "step_3_process_0" / "batch.safetensors")
    assert torch.isnan(stored["input"]).all()
    assert torch.equal(stored["target"], bad["target"])
    assert "grad/generator" in json.loads((tmp_path / "nonfinite" / "step_3_process_0" / "norms.json").read_text())
    step, state = runs.Checkpoints(tmp_path / "checkpoints", 2).load() or (0, {})
    assert step == 6
    assert all(bool(torch.isfinite(t).all()) for t in runs.flatten(state)[0].values())


def test_a_run_ends_after_its_minutes(smoke: tuple[Path, str], tmp_path: Path) -> None:
    folder = train.main(
        str(SMOKE), [*QUICK, "steps=1000", "minutes=0.02", f"data={smoke[0] / 'data'}"], str(tmp_path / "timed")
    )
    step, state = runs.Checkpoints(folder / "checkpoints", 2).load() or (0, {})
    assert 1 <= step < 100
    assert state["trained_s"] >= 1.2
    assert (folder / "best" / "model.safetensors").is_file()


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


def test_every_recipe_and_every_arm_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    scripts = {name: importlib.import_module(name) for name in ("ablations", "baselines", "fusion")}
    for path in (ROOT / "recipes").glob("*.py"):
        if path.stem not in scripts:
            assert train.load_recipe(path, []).name
    baselines = scripts["baselines"]
    assert scripts["ablations"].recipe_of("rec", ["data=x"]).degrade == train.degrade.Config()
    # By name alone their inputs differ: of body and air arms; the baselines' bone arms learn from other data.
    same = {"air", *(name for name in baselines.ARMS if name.startswith("bone-"))}
    for script in scripts.values():
        found = [script.recipe_of(name, ["data=x"]) for name in script.ARMS if name not in same]
        settings = {repr(dataclasses.replace(arm, name="")) for arm in found}
        assert len(settings) == len(found), f"two arms of {script.__name__} are the same"
    for name in baselines.ARMS:
        assert baselines.recipe_of(name, ["data=x"]).generator.sample_rate == baselines.RATE


BONE = ["generator.passthrough=false", "generator.told_hz=1000", "degrade.bone_share=1", "reconstruction_steps=0"]


@pytest.mark.parametrize("microphones", [0, 1])
def test_body_models_are_validated_on_simulated_bodies_and_real_pairs(
    smoke: tuple[Path, str], tmp_path: Path, microphones: int
) -> None:
    packed = smoke[0] / "data"
    for split in ("train", "valid"):
        for side in ("body", "air"):
            shutil.copytree(packed / split, tmp_path / split / side)
    options = [*BONE, f"generator.air={microphones}", f"degrade.air.microphones={microphones}"]
    recipe = train.load_recipe(SMOKE, [*options, f"pairs={tmp_path}", "crops.pair_share=1"])
    pairs = train.corpus.Pairs(tmp_path / "valid")
    crops = train.corpus.Crops(
        packed / "train", recipe.crops, train.degrade.Degradation(recipe.degrade), train.corpus.Pairs(tmp_path / "train")
    )
    batch = next(iter(train.corpus.batches(crops, 4, 1, 0, 0)))
    assert batch["input"].shape[1] == 1 + microphones
    task = train.GANTask(recipe, train.corpus.whole(packed / "valid", 1), pairs=pairs)
    assert task.step(batch)["optim/nonfinite"] == 0
    found = task.validate()
    assert {key.split("/")[1] for key in found.numbers} == {"pairs", "score"}
    assert found.numbers["val/pairs/sinc/lsd"] < 0.01  # body and air are the same recordings here
    assert found.numbers["val/pairs/lsd"] > 0.1
    assert found.clips["pairs_0"]["low"].shape == pairs.read(0)[0].shape

    task = train.GANTask(recipe, train.corpus.whole(packed / "valid", 1))
    numbers = task.validate().numbers
    assert {key.split("/")[1] for key in numbers} == {"simulated", "score"}
    assert numbers["val/simulated/sinc/lsd"] > 0.5
    assert task.validate().numbers["val/simulated/lsd"] == numbers["val/simulated/lsd"]


def test_a_training_on_feature_matching_alone_and_one_on_nothing(smoke: tuple[Path, str]) -> None:
    nothing = [f"losses.{name}=0" for name in ("stft", "log_mel", "band_energy")]
    with pytest.raises(ConfigError, match="every reconstruction loss is 0: give one a weight"):
        train.load_recipe(SMOKE, nothing)
    recipe = train.load_recipe(SMOKE, [*nothing, "reconstruction_steps=0"])
    crops = train.corpus.Crops(smoke[0] / "data" / "train", recipe.crops, train.degrade.Degradation(recipe.degrade))
    stats = train.GANTask(recipe, []).step(next(iter(train.corpus.batches(crops, 4, 1, 0, 0))))
    assert "loss/rec" not in stats
    assert stats["balance/weight/feat"] == 1
    assert stats["grad/generator"] > 0


def test_losses_weighed_by_f0_need_its_stability(smoke: tuple[Path, str]) -> None:
    pytest.importorskip("pyworld")
    with pytest.raises(ConfigError, match=r"losses\.source=1 weighs frames by the stability of F0; set crops\.stability=true"):
        train.load_recipe(SMOKE, ["losses.source=1"])
    recipe = train.load_recipe(SMOKE, ["losses.source=1", "losses.stft=0", "crops.stability=true"])
    crops = train.corpus.Crops(smoke[0] / "data" / "train", recipe.crops, train.degrade.Degradation(recipe.degrade))
    batch = next(iter(train.corpus.batches(crops, 4, 1, 0, 0)))
    assert batch["stability"].shape == (4, 26)  # of 0.25 s
    assert 0.05 < float(batch["stability"].mean()) < 0.95
    assert train.GANTask(recipe, []).step(batch)["loss/source"] > 0


def test_recordings_that_end_early_teach_their_end_only_where_the_recipe_says_so(smoke: tuple[Path, str]) -> None:
    x = torch.randn(1, 1, 12_000)
    for whole_from, kept in ((0.46, False), (0.4, True)):
        task = train.GANTask(train.load_recipe(SMOKE, [f"whole_from={whole_from}"]), [])
        limited = task._limited(x, torch.tensor([19_500.0]))
        assert bool(torch.equal(limited, x)) is kept
