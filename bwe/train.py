"""Training: the visible loop (`Trainer`), the adversarial task it drives (`GANTask`), run folders, trackers.

A run folder holds `recipe.json`, `metrics.jsonl`, `checkpoints/step_N/` (resume state, no pickle) and `best/`, a checkpoint
folder that `bwe.load` reads.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib.util
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bwe import data as corpus
from bwe import degrade, discriminators, dsp, generators, hub, layers, losses, metrics
from bwe.errors import ConfigError, ModelError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the generator is trained on.

    Attributes:
        fft_sizes: of the multi-resolution STFT loss.
        mel: (FFT size, mel bands) of the log-mel loss.
        stft, log_mel, band_energy: weights within the reconstruction loss.
        adversarial: form of the adversarial loss.
        balancer: how reconstruction ("rec"), feature matching ("feat") and adversarial ("adv") gradients are weighed.
    """

    fft_sizes: tuple[int, ...] = (512, 1024, 2048)
    mel: tuple[tuple[int, int], ...] = ((2048, 128), (512, 40))
    stft: float = 1.0
    log_mel: float = 1.0
    band_energy: float = 1.0
    adversarial: Literal["hinge", "ls"] = "hinge"
    balancer: losses.BalancerConfig = losses.BalancerConfig(shares={"rec": 0.6, "feat": 0.1, "adv": 0.3})


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW for both networks: linear warm-up to `lr`, cosine to `lr * final`; gradients clipped by norm."""

    lr: float = 5e-4
    discriminator_lr: float = 2e-4
    betas: tuple[float, float] = (0.8, 0.99)
    weight_decay: float = 0.01
    warmup: int = 200
    final: float = 0.05
    clip: float = 5.0
    discriminator_clip: float = 10.0
    ema: float = 0.999


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training, complete. Units: seconds, Hz, steps.

    Attributes:
        name: of the run and of the model.
        data: a folder of recordings (with or without manifest.csv), or one that `bwe.data.pack` wrote with `train/` and
            `valid/` below it.
        data_class: value of the manifest's column `cls` to train on; empty for all.
        steps: optimisation steps of the generator; the first `reconstruction_steps` of them without discriminators.
        discriminator_every: generator steps per discriminator step.
        init: name or folder of a model to start from (and `discriminators.safetensors` beside it, where present).
        precision: "bf16" runs the networks under autocast, filters and losses stay in fp32.
        valid_cutoffs: brick-wall cut-offs of the validation, in Hz.
        trackers: besides metrics.jsonl: "wandb" and "tensorboard".
    """

    name: str
    data: str
    data_class: str = ""
    crops: corpus.CropConfig = corpus.CropConfig()
    degrade: degrade.Config = degrade.Config()
    generator: generators.Config = generators.Config()
    discriminators: discriminators.Config = discriminators.Config()
    losses: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    batch: int = 8
    steps: int = 100_000
    reconstruction_steps: int = 10_000
    discriminator_every: int = 1
    init: str = ""
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 0
    workers: int = 1
    log_every: int = 20
    valid_every: int = 1000
    valid_clips: int = 36
    valid_cutoffs: tuple[float, ...] = (4000.0, 8000.0)
    checkpoint_every: int = 500
    keep: int = 2
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    card: str = ""


class Task(Protocol):
    """What `Trainer` drives."""

    def step(self, batch: dict[str, Tensor]) -> dict[str, float]: ...

    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Numbers, `val/score` among them (lower is better), and clips `(T,)` to listen to by name."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def export(self, folder: Path, card: str) -> None: ...


class GANTask:
    """A generator against an ensemble of discriminators, after a warm-up on reconstruction losses alone."""

    def __init__(self, recipe: Recipe, valid: list[tuple[Tensor, float]]) -> None:
        """`valid` holds clips `(T,)` at the generator's rate with the frequency in Hz where their own content ends."""
        self.recipe, self.valid = recipe, valid
        self.device = torch.device(pick_device(recipe.device))
        torch.manual_seed(recipe.seed)
        self.generator = generators.SEANet(recipe.generator).to(self.device)
        self.discriminator = discriminators.Ensemble(recipe.discriminators).to(self.device)
        if recipe.init:
            self._warm_start(recipe.init)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        c, rate = recipe.losses, recipe.generator.sample_rate
        self.stft = losses.MultiResolutionSTFT(c.fft_sizes).to(self.device)
        self.mel = losses.LogMel(rate, c.mel).to(self.device)
        self.band_energy = losses.BandEnergy(rate).to(self.device)
        self.balancer = losses.GradBalancer(c.balancer)
        o = recipe.optim
        adam = {"betas": o.betas, "weight_decay": o.weight_decay}
        self.optimizers = {"generator": torch.optim.AdamW(self.generator.parameters(), lr=o.lr, **adam)}  # type: ignore[arg-type]
        if len(self.discriminator):
            parameters = self.discriminator.parameters()
            self.optimizers["discriminator"] = torch.optim.AdamW(parameters, lr=o.discriminator_lr, **adam)  # type: ignore[arg-type]
        self.steps_done = 0
        self.skipped = 0
        self.heard = False

    def _warm_start(self, name: str) -> None:
        source, _, _ = hub.read(name)
        try:
            layers.load_folded(self.generator, source.state_dict())
        except RuntimeError as error:
            raise ModelError(f"init={name}: its generator is not of this recipe's shape ({error})") from None
        beside = hub.find(name) / "discriminators.safetensors"
        if beside.is_file():
            self.discriminator.load_state_dict(load_file(beside))

    @property
    def adversarial(self) -> bool:
        """Whether this step faces the discriminators."""
        return len(self.discriminator) > 0 and self.steps_done >= self.recipe.reconstruction_steps

    def _rate(self, lr: float, start: int) -> float:
        o, r = self.recipe.optim, self.recipe
        done = self.steps_done - start
        warm = min(1.0, (done + 1) / max(1, o.warmup))
        progress = min(1.0, max(0, done) / max(1, r.steps - start))
        return lr * warm * (o.final + (1 - o.final) * 0.5 * (1 + math.cos(math.pi * progress)))

    def _limited(self, x: Tensor, top_hz: Tensor) -> Tensor:
        """Nothing above where a recording itself ends may teach anything: estimate and target alike are cut there.

        Recordings that end within 8 % of half the sample rate are whole: that is where converters end.
        """
        rate = self.recipe.generator.sample_rate
        whole = top_hz >= 0.46 * rate
        if bool(whole.all()):
            return x
        return dsp.band_limit(x, rate, top_hz.masked_fill(whole, float(rate))[:, None], width_hz=200.0)

    def reconstruction(self, estimate: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The weighted reconstruction loss of `(B, 1, T)` signals, and its parts."""
        c = self.recipe.losses
        parts = {
            "stft": (c.stft, self.stft),
            "log_mel": (c.log_mel, self.mel),
            "band_energy": (c.band_energy, self.band_energy),
        }
        values = {name: module(estimate, target) for name, (weight, module) in parts.items() if weight}
        total = torch.stack([parts[name][0] * value for name, value in values.items()]).sum()
        return total, {f"loss/{name}": float(value.detach()) for name, value in values.items()}

    def step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One generator step and, in the adversarial phase every `discriminator_every`-th, a discriminator step before it."""
        r, o = self.recipe, self.recipe.optim
        batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=r.precision == "bf16")
        with autocast:
            y = self.generator(batch["input"], batch["cutoff_hz"])
        fake, real = self._limited(y, batch["top_hz"]), self._limited(batch["target"], batch["top_hz"])
        rec, stats = self.reconstruction(fake, real)
        stats["loss/rec"] = float(rec.detach())

        if not self.adversarial:
            rec.backward()
        else:
            # Drawn from the step's number, so that a resumed run draws the same.
            subset = self.discriminator.draw(np.random.default_rng([r.seed, 1, self.steps_done]))
            if (self.steps_done - r.reconstruction_steps) % r.discriminator_every == 0:
                stats |= self._discriminator_step(real, fake.detach(), subset, autocast)
            self.discriminator.requires_grad_(False)
            with autocast:
                with torch.no_grad():
                    features_real = self.discriminator(real, subset)
                features_fake = self.discriminator(fake, subset)
            parts = {
                "rec": rec,
                "feat": losses.feature_matching(features_real, features_fake),
                "adv": losses.generator_adversarial(features_fake, r.losses.adversarial),
            }
            gradient, balance = self.balancer.combine(parts, y, self.generator.last_layer)
            y.backward(gradient)
            self.discriminator.requires_grad_(True)
            stats |= balance | {f"loss/{name}": float(parts[name].detach()) for name in ("feat", "adv")}

        stats |= self._update("generator", self.generator, self._rate(o.lr, 0), o.clip)
        with torch.no_grad():
            decay = min(o.ema, (1 + self.steps_done) / (10 + self.steps_done))
            for average, current in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                average.lerp_(current, 1 - decay)
        self.steps_done += 1
        return stats

    def _discriminator_step(self, real: Tensor, fake: Tensor, subset: list[int], autocast: torch.autocast) -> dict[str, float]:
        r, o = self.recipe, self.recipe.optim
        with autocast:
            scores_real, scores_fake = self.discriminator(real, subset), self.discriminator(fake, subset)
        loss = losses.discriminator_adversarial(scores_real, scores_fake, r.losses.adversarial)
        loss.backward()
        stats = {"loss/disc": float(loss.detach())}
        for index, maps_real, maps_fake in zip(subset, scores_real, scores_fake, strict=True):
            name = self.discriminator.names[index]
            stats[f"disc/{name}/real"] = float(maps_real[-1].detach().float().mean())
            stats[f"disc/{name}/fake"] = float(maps_fake[-1].detach().float().mean())
        rate = self._rate(o.discriminator_lr, r.reconstruction_steps)
        return stats | self._update("discriminator", self.discriminator, rate, o.discriminator_clip)

    def _update(self, name: str, network: nn.Module, rate: float, clip: float) -> dict[str, float]:
        optimizer = self.optimizers[name]
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), clip))
        if math.isfinite(norm):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        else:
            self.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        return {f"grad/{name}": norm, f"lr/{name}": rate, "optim/skipped": float(self.skipped)}

    @torch.inference_mode()
    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of the averaged generator on brick-wall inputs; `score` is the mean of LSD-HF plus a tenth of the
        decibels by which |HF bias| exceeds 1."""
        rate = self.recipe.generator.sample_rate
        totals: dict[str, list[float]] = {}
        listen: dict[str, Tensor] = {}
        for cutoff in self.recipe.valid_cutoffs:
            for number, (clip, _) in enumerate(self.valid):
                x = clip[None, None].to(self.device)
                low = dsp.band_limit(x, rate, cutoff)
                y = self.ema(low, torch.tensor([cutoff], device=self.device))[0, 0].cpu()
                values = {
                    "lsd": float(metrics.lsd(clip, y, rate)),
                    "lsd_hf": float(metrics.lsd_hf(clip, y, rate, cutoff)),
                    "hf_bias": float(metrics.hf_bias(clip, y, rate, cutoff)),
                }
                for name, value in values.items():
                    totals.setdefault(f"val/{cutoff:g}/{name}", []).append(value)
                if number < 4:
                    listen[f"{cutoff:g}/{number}/pred"] = y
                    if not self.heard:
                        listen[f"{cutoff:g}/{number}/ref"] = clip
                        listen[f"{cutoff:g}/{number}/low"] = low[0, 0].cpu()
        self.heard = True  # the inputs and references of the fixed clips go to the trackers once
        result = {name: float(np.mean(values)) for name, values in totals.items()}
        scores = [
            result[f"val/{c:g}/lsd_hf"] + 0.1 * max(0.0, abs(result[f"val/{c:g}/hf_bias"]) - 1)
            for c in self.recipe.valid_cutoffs
        ]
        result["val/score"] = float(np.mean(scores))
        return result, listen

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "balancer": self.balancer.state_dict(),
            "steps_done": self.steps_done,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.ema.load_state_dict(state["ema"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.balancer.load_state_dict(state["balancer"])
        self.steps_done, self.skipped = state["steps_done"], state["skipped"]

    def export(self, folder: Path, card: str) -> None:
        """Writes the averaged generator as a checkpoint folder, the discriminators beside it."""
        hub.save(folder, self.ema, card)
        if len(self.discriminator):
            tensors, _ = flatten(self.discriminator.state_dict())
            save_file(tensors, folder / "discriminators.safetensors")


def pick_device(name: str) -> str:
    """ "auto" -> "cuda" where there is one, else "cpu"; anything else as given.

    Raises ConfigError: CUDA asked for and not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: no CUDA device here; use device=cpu")
    return name


def flatten(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits nested state into tensors by path and the rest, a JSON-able mirror; `unflatten` joins them."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in state.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            rest[str(key)] = {"tensor": path}
        elif isinstance(value, Mapping):
            below, rest[str(key)] = flatten(value, path + "/")
            tensors |= below
        else:
            rest[str(key)] = value
    return tensors, rest


def unflatten(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `flatten`; keys of digits (an optimiser's parameter numbers) become integers again."""
    state: dict[Any, Any] = {}
    for key, value in rest.items():
        name: Any = int(key) if key.isdigit() else key
        if isinstance(value, Mapping):
            is_leaf = set(value) == {"tensor"} and isinstance(value["tensor"], str)
            state[name] = tensors[value["tensor"]] if is_leaf else unflatten(tensors, value)
        else:
            state[name] = value
    return state


class Checkpoints:
    """Resume states `step_N/{state.json, tensors.safetensors}`, each written beside and renamed; the last `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, max(1, keep)

    def steps(self) -> list[int]:
        """Step numbers of the complete checkpoints, in order."""
        return sorted(int(p.name[5:]) for p in self.folder.glob("step_*") if p.name[5:].isdigit())

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.tmp"):
            shutil.rmtree(stale)
        temporary, final = self.folder / f"step_{step}.tmp", self.folder / f"step_{step}"
        temporary.mkdir()
        tensors, rest = flatten(state)
        save_file(tensors, temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps(rest))
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step_{old}")

    def load(self, step: int) -> dict[Any, Any]:
        folder = self.folder / f"step_{step}"
        try:
            tensors = load_file(folder / "tensors.safetensors")
            return unflatten(tensors, json.loads((folder / "state.json").read_text()))
        except Exception as error:
            raise ModelError(f"{folder}: damaged checkpoint ({error}); delete it to resume from the one before") from error


class Tracker:
    """Writes numbers to `metrics.jsonl`, and to W&B and TensorBoard where asked; those two may fail, training goes on."""

    def __init__(self, run: Path, recipe: Recipe) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self.sample_rate = recipe.generator.sample_rate
        self.others: dict[str, Any] = {}
        if "wandb" in recipe.trackers:
            self._guard("wandb", lambda: self._start_wandb(run, recipe))
        if "tensorboard" in recipe.trackers:
            self._guard("tensorboard", lambda: self._start_tensorboard(run))

    def _start_wandb(self, run: Path, recipe: Recipe) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self.others["wandb"] = wandb.init(
            project="bwe", name=run.name, dir=str(run), mode=mode, config=dataclasses.asdict(recipe)
        )

    def _start_tensorboard(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.others["tensorboard"] = SummaryWriter(str(run / "tensorboard"))

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a tracker must never end a training
            hint = "; install bwe[train]" if isinstance(error, ImportError) else ""
            log.warning("%s is switched off for this run: %s%s", name, error, hint)
            self.others.pop(name, None)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        self.file.flush()
        if run := self.others.get("wandb"):
            self._guard("wandb", lambda: run.log(dict(values), step=step))
        if writer := self.others.get("tensorboard"):
            for name, value in values.items():
                self._guard("tensorboard", lambda name=name, value=value: writer.add_scalar(name, value, step))  # type: ignore[misc]

    def clips(self, step: int, clips: Mapping[str, Tensor]) -> None:
        """Audio and a log-power spectrogram of each clip `(T,)`."""
        if not self.others:
            return
        for name, clip in clips.items():
            power = dsp.power_spectrogram(clip, 1024, 256)
            picture = ((power + 1e-8).log10().flip(0) + 8).div(12).clamp(0, 1).numpy()
            if run := self.others.get("wandb"):
                self._guard("wandb", lambda run=run, n=name, x=clip, p=picture: self._wandb_clip(run, step, n, x, p))  # type: ignore[misc]
            if writer := self.others.get("tensorboard"):
                self._guard("tensorboard", lambda w=writer, n=name, x=clip, p=picture: self._board_clip(w, step, n, x, p))  # type: ignore[misc]

    def _wandb_clip(self, run: Any, step: int, name: str, clip: Tensor, picture: np.ndarray) -> None:
        import wandb

        audio = wandb.Audio(clip.clamp(-1, 1).numpy(), sample_rate=self.sample_rate)
        run.log({f"audio/{name}": audio, f"spec/{name}": wandb.Image(picture)}, step=step)

    def _board_clip(self, writer: Any, step: int, name: str, clip: Tensor, picture: np.ndarray) -> None:
        writer.add_audio(f"audio/{name}", clip.clamp(-1, 1), step, self.sample_rate)
        writer.add_image(f"spec/{name}", picture[None], step)

    def close(self) -> None:
        self.file.close()
        if run := self.others.get("wandb"):
            self._guard("wandb", lambda: run.finish())
        if writer := self.others.get("tensorboard"):
            self._guard("tensorboard", lambda: writer.close())


class Trainer:
    """The loop: batch, step, log, validate, checkpoint. It knows nothing of GANs."""

    def __init__(self, task: Task, recipe: Recipe, run: Path, say: Callable[[str], None]) -> None:
        self.task, self.recipe, self.run, self.say = task, recipe, run, say
        self.checkpoints = Checkpoints(run / "checkpoints", recipe.keep)
        self.tracker = Tracker(run, recipe)
        self.step, self.best = 0, math.inf

    def resume(self) -> None:
        """Continues from the last checkpoint of the run folder, or from the start where there is none."""
        steps = self.checkpoints.steps()
        if steps:
            state = self.checkpoints.load(steps[-1])
            self.task.load_state_dict(state["task"])
            self.step, self.best = state["step"], state["best"]
            self.say(f"resuming at step {self.step}")

    def fit(self, batches: Callable[[int], Iterator[dict[str, Tensor]]]) -> None:
        """Runs to `recipe.steps`; `batches(start)` yields the batches from step `start` on."""
        r = self.recipe
        window: dict[str, list[float]] = {}
        waited, audio, began = 0.0, 0.0, time.perf_counter()
        source = batches(self.step)
        try:
            while self.step < r.steps:
                asked = time.perf_counter()
                batch = next(source)
                waited += time.perf_counter() - asked
                audio += batch["input"].numel() / r.generator.sample_rate
                for name, value in self.task.step(batch).items():
                    window.setdefault(name, []).append(value)
                self.step += 1
                if self.step % r.log_every == 0 or self.step == r.steps:
                    elapsed = time.perf_counter() - began
                    numbers = {name: float(np.mean(values)) for name, values in window.items()}
                    numbers |= {"data/audio_s_per_s": audio / elapsed, "data/wait_fraction": waited / elapsed}
                    self.tracker.numbers(self.step, numbers)
                    self.say(self._line(numbers))
                    window, waited, audio, began = {}, 0.0, 0.0, time.perf_counter()
                if self.step % r.valid_every == 0 or self.step == r.steps:
                    self._validate()
                    began = time.perf_counter()
                if self.step % r.checkpoint_every == 0 or self.step == r.steps:
                    self.checkpoints.save(self.step, {"task": self.task.state_dict(), "step": self.step, "best": self.best})
        finally:
            self.tracker.close()

    def _line(self, numbers: Mapping[str, float]) -> str:
        shown = "  ".join(f"{name[5:]} {value:.3f}" for name, value in numbers.items() if name.startswith("loss/"))
        throughput, wait = numbers["data/audio_s_per_s"], numbers["data/wait_fraction"]
        return f"step {self.step}  {shown}  {throughput:.1f} audio-s/s  data wait {wait:.1%}"

    def _validate(self) -> None:
        numbers, clips = self.task.validate()
        self.tracker.numbers(self.step, numbers)
        self.tracker.clips(self.step, clips)
        better = numbers["val/score"] < self.best
        figures = "  ".join(f"{name[4:]} {value:.3f}" for name, value in numbers.items())
        self.say(f"step {self.step}  {figures}" + ("  best" if better else ""))
        card = self.recipe.card or f"# {self.recipe.name}\n\nA run in progress; no card yet."
        card += f"\n\nStep {self.step}. Validation: {figures}.\n"
        if better:
            self.best = numbers["val/score"]
            self.task.export(self.run / "best", card)
        self.task.export(self.run / "last", card)


def load_recipe(path: str | os.PathLike[str], overrides: list[str]) -> Recipe:
    """Reads the function `recipe()` of a Python file and applies `key=value` overrides (dotted keys reach inside).

    Values are JSON where they parse as JSON, else strings; a comma makes a list of a plain value.

    Raises:
        ConfigError: no such file or function, an override without `=`, an unknown key (the nearest is named), a wrong type.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file}: no such recipe")
    spec = importlib.util.spec_from_file_location("bwe_recipe", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: a recipe is a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "recipe"):
        raise ConfigError(f"{file}: defines no function recipe() that returns a bwe.train.Recipe")
    values = dataclasses.asdict(module.recipe())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: write it as key=value")
        _set(values, key, text)
    return hub.from_dict(Recipe, values, str(file))


def _set(values: dict[str, Any], key: str, text: str) -> None:
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        near = difflib.get_close_matches(key, list(_paths(values)), 1, 0.0)
        raise ConfigError(f"unknown recipe key {key!r}; did you mean {near[0]!r}?")
    try:
        place[last] = json.loads(text)
    except json.JSONDecodeError:
        place[last] = text


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def packed(recipe: Recipe, run: Path, say: Callable[[str], None]) -> Path:
    """The folder with the packed `train/` and `valid/` recordings, packed into the run folder where they are not yet."""
    folder = Path(recipe.data)
    if (folder / "train" / "index.json").is_file():
        return folder
    out = run / "data"
    for split in ("train", "valid"):
        if not (out / split / "index.json").is_file():
            found = corpus.clips(folder, recipe.data_class or None, split)
            say(f"packing {len(found)} {split} recordings")
            corpus.pack(found, out / split, recipe.generator.sample_rate)
    return out


def main(recipe_path: str, overrides: list[str], run_dir: str | None = None, resume: bool = False) -> Path:
    """Trains a recipe (`bwe train`); returns the run folder.

    Raises:
        ConfigError: recipe or override wrong, or the run folder already holds a run and `resume` was not given.
    """
    recipe = load_recipe(recipe_path, overrides)
    run = Path(run_dir or f"runs/{recipe.name}")
    if (run / "recipe.json").is_file() and not resume:
        raise ConfigError(f"{run}: holds a run already; continue it with --resume or give another --run folder")
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=1))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    folder = packed(recipe, run, say)
    crops = corpus.Crops(folder / "train", recipe.crops, degrade.Degradation(recipe.degrade))
    if crops.sample_rate != recipe.generator.sample_rate:
        rate = recipe.generator.sample_rate
        raise ConfigError(f"{folder}: packed at {crops.sample_rate} Hz, the generator works at {rate} Hz")
    say(f"{crops.seconds / 60:.1f} minutes of {len(crops.clips)} recordings")
    task = GANTask(recipe, corpus.whole(folder / "valid", recipe.valid_clips))
    trainer = Trainer(task, recipe, run, say)
    if resume:
        trainer.resume()
    trainer.fit(lambda start: corpus.batches(crops, recipe.batch, recipe.steps, start, recipe.workers))
    return run
