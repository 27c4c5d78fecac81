"""Training: the visible loop (`Trainer`), the adversarial task it drives (`GANTask`), recipes and their overrides.

A run folder holds `recipe.json`, `best/` and `last/` (model folders that `bwe.load` reads) and what `bwe.runs` describes.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bwe import data as corpus
from bwe import degrade, discriminators, dsp, generators, hub, losses, metrics, runs
from bwe.distributed import Group
from bwe.errors import BweError, ConfigError, ModelError

_DISCRIMINATORS = "discriminators.safetensors"
# Parts of the reconstruction loss, each with its weight in `LossConfig`.
RECONSTRUCTION = ("stft", "log_mel", "band_energy", "source", "complex_mse", "magnitude_mse", "waveform_mse", "si_sdr", "own")
# Batches of non-finite steps that a run keeps; more would fill the disk of a run that is broken anyway.
_MOST_DUMPS = 50


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the generator is trained on.

    Attributes:
        fft_sizes: of the multi-resolution STFT loss.
        mel: (FFT size, mel bands) of the log-mel loss.
        stft, spectral_convergence, log_mel, band_energy: weights within the reconstruction loss.
        source: the same of `losses.SourceAdaptive` on `fft_sizes`; crops then need `crops.stability`.
        complex_mse, magnitude_mse, waveform_mse: the same of losses that others train on (`losses.SpectralMSE`, and the mean
            square error of samples).
        si_sdr: the same of the scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), in units of -10 dB.
        own: the same of the loss that an architecture brings along, such as `baselines.BiLSTM.distance`.
        adversarial: form of the adversarial loss.
        balancer: how reconstruction ("rec"), feature matching ("feat") and adversarial ("adv") gradients are weighed.
    """

    fft_sizes: tuple[int, ...] = (512, 1024, 2048)
    mel: tuple[tuple[int, int], ...] = ((2048, 128), (512, 40))
    stft: float = 1.0
    log_mel: float = 1.0
    band_energy: float = 1.0
    spectral_convergence: float = 0.0
    source: float = 0.0
    complex_mse: float = 0.0
    magnitude_mse: float = 0.0
    waveform_mse: float = 0.0
    si_sdr: float = 0.0
    own: float = 0.0
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
        pairs: a folder that `paired.prepare` wrote, with real pairs of a body and an air microphone below `train/` (drawn as
            `crops.pair_share` says) and `valid/` (measured instead of brick-wall inputs); empty for none.
        data_class: value of the manifest's column `cls` to train on; empty for all.
        arch, generator: architecture by its registered name, and its config.
        whole_from: share of the sample rate from which on a recording that ends there counts as whole, and its end as its
            nature; above the end of others nothing is learned, since there a converter or a codec has taken away what was.
        steps: optimisation steps of the generator; the first `reconstruction_steps` of them without discriminators.
        discriminator_every: generator steps per discriminator step.
        batch: crops per step, over all processes: the same recipe is the same training on one GPU and on eight.
        accumulate: parts that each process takes its share of a batch in, for less memory; the step stays the same.
        minutes: training time (validation not counted) after which the run ends before `steps`; 0 for no limit.
        patience: consecutive steps with non-finite gradients after which the run stops.
        init: name or folder of a model to start from (and `discriminators.safetensors` beside it, where present).
        precision: "bf16" runs the networks under autocast, filters and losses stay in fp32; "auto" does so where the device
            has bf16 arithmetic (a CPU that only emulates it is slower for it).
        valid_cutoffs: brick-wall cut-offs of the validation, in Hz.
        trackers: besides metrics.jsonl: "wandb" and "tensorboard".
    """

    name: str
    data: str
    pairs: str = ""
    data_class: str = ""
    crops: corpus.CropConfig = corpus.CropConfig()
    degrade: degrade.Config = degrade.Config()
    arch: str = "seanet"
    generator: Any = generators.Config()
    discriminators: discriminators.Config = discriminators.Config()
    losses: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    batch: int = 8
    accumulate: int = 1
    steps: int = 100_000
    whole_from: float = 0.46
    minutes: float = 0.0
    reconstruction_steps: int = 10_000
    discriminator_every: int = 1
    init: str = ""
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    threads: int = 0
    workers: int = 1
    log_every: int = 20
    valid_every: int = 1000
    valid_clips: int = 36
    valid_cutoffs: tuple[float, ...] = (4000.0, 8000.0)
    checkpoint_every: int = 500
    keep: int = 2
    patience: int = 20
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    card: str = ""

    def __post_init__(self) -> None:
        counts = ("batch", "accumulate", "steps", "log_every", "valid_every", "valid_clips", "checkpoint_every", "patience")
        for name in (*counts, "discriminator_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be 1 or more; a large number means never")
        if not isinstance(self.generator, hub.config_class(self.arch, "recipe")):
            raise ConfigError(f"arch={self.arch}: a {type(self.generator).__qualname__} is the config of another architecture")
        top = self.generator.sample_rate / 2
        if not self.valid_cutoffs or not all(300 < hz < top for hz in self.valid_cutoffs):
            raise ConfigError(f"valid_cutoffs={list(self.valid_cutoffs)}: give at least one between 300 and {top:g} Hz")
        if self.losses.spectral_convergence and not self.losses.stft:
            raise ConfigError("losses.spectral_convergence belongs to losses.stft, which is 0; give both a weight, or neither")
        balancer = self.losses.balancer
        if set(balancer.shares) != set(losses.TERMS) or (balancer.mode != "fixed" and balancer.shares["rec"] <= 0):
            raise ConfigError(f"losses.balancer.shares={balancer.shares}: give rec (above 0), feat and adv")
        if (air := self.degrade.air.microphones) != (heard := getattr(self.generator, "air", 0)):
            raise ConfigError(
                f"degrade.air.microphones={air} and generator.air={heard}: what is simulated is heard; make them equal"
            )
        if self.losses.source and not self.crops.stability:
            raise ConfigError(
                f"losses.source={self.losses.source:g} weighs frames by the stability of F0; set crops.stability=true"
            )
        if not any(getattr(self.losses, part) for part in RECONSTRUCTION) and self.reconstruction_steps:
            raise ConfigError(
                f"reconstruction_steps={self.reconstruction_steps}, and every reconstruction loss is 0: give one a weight "
                f"(losses.{', losses.'.join(RECONSTRUCTION)}), or set reconstruction_steps=0"
            )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation found.

    Attributes:
        numbers: by name; `val/score` among them, lower is better.
        curves: lines over frequency, `{"hz": [...], name: [...]}`, by name.
        clips, cutoffs: to listen to, as `runs.Tracker.clips` takes them.
    """

    numbers: dict[str, float]
    curves: dict[str, dict[str, list[float]]]
    clips: dict[str, dict[str, Tensor]]
    cutoffs: dict[str, float]


class Task(Protocol):
    """What `Trainer` drives."""

    def step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One optimisation step; what it returns is logged. `optim/nonfinite` is 1 where the step was skipped as a whole."""
        ...

    def validate(self) -> Validation:
        """Measures the averaged generator; every process takes part."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def export(self, folder: Path, card: str) -> None: ...


class GANTask:
    """A generator against an ensemble of discriminators, after a warm-up on reconstruction losses alone."""

    def __init__(
        self,
        recipe: Recipe,
        valid: list[tuple[Tensor, float]],
        group: Group | None = None,
        pairs: corpus.Pairs | None = None,
    ) -> None:
        """`valid` holds clips `(T,)` at the generator's rate with the frequency in Hz where their own content ends; `pairs`,
        where there are any, are what is measured instead."""
        self.recipe, self.valid, self.pairs, self.group = recipe, valid, pairs, group or Group()
        self.device = pick_device(recipe.device, self.group)
        torch.manual_seed(recipe.seed)
        self.generator: Any = hub.build(recipe.arch, recipe.generator).to(self.device)
        self.discriminator = discriminators.Ensemble(recipe.discriminators).to(self.device)
        if recipe.init:
            self._warm_start(recipe.init)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        c, rate = recipe.losses, recipe.generator.sample_rate
        self.parts: dict[str, tuple[float, Callable[..., Tensor]]] = {}
        possible: dict[str, Callable[[], Callable[..., Tensor]]] = {
            "stft": lambda: losses.MultiResolutionSTFT(c.fft_sizes, c.spectral_convergence / c.stft).to(self.device),
            "log_mel": lambda: losses.LogMel(rate, c.mel).to(self.device),
            "band_energy": lambda: losses.BandEnergy(rate).to(self.device),
            "source": lambda: losses.SourceAdaptive(rate, c.fft_sizes),
            "complex_mse": lambda: losses.SpectralMSE("complex").to(self.device),
            "magnitude_mse": lambda: losses.SpectralMSE("magnitude").to(self.device),
            "waveform_mse": lambda: nn.functional.mse_loss,
            "si_sdr": losses.SISDR,
            "own": lambda: self.generator.distance,
        }
        if c.own and not hasattr(self.generator, "distance"):
            raise ConfigError(f"losses.own={c.own:g}: arch={recipe.arch} brings no loss of its own along; set it to 0")
        for name, make in possible.items():
            if weight := getattr(c, name):
                self.parts[name] = weight, make()
        self.balancer = losses.GradBalancer(c.balancer)
        self.networks: dict[str, nn.Module] = {"generator": self.generator}
        if len(self.discriminator):
            self.networks["discriminator"] = self.discriminator
        o = recipe.optim
        rates = {"generator": o.lr, "discriminator": o.discriminator_lr}
        self.optimizers = {
            name: torch.optim.AdamW(
                network.parameters(), lr=rates[name], betas=o.betas, weight_decay=o.weight_decay, fused=True
            )
            for name, network in self.networks.items()
        }
        self.bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and _has_bf16(self.device))
        self.steps_done = 0
        self.input_figures: dict[str, float] = {}

    def _warm_start(self, name: str) -> None:
        source, _, _ = hub.read(name)
        self.generator.warm_start(source, f"init={name}")
        beside = hub.find(name) / _DISCRIMINATORS
        if beside.is_file():
            try:
                self.discriminator.warm_start(load_file(beside))
            except SafetensorError as error:
                raise ModelError(
                    f"{beside}: damaged ({error}); get it again, or delete it to start with new discriminators"
                ) from None

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
        """Nothing above where a recording itself ends may teach anything: estimate and target alike are cut there."""
        rate = self.recipe.generator.sample_rate
        whole = top_hz >= self.recipe.whole_from * rate
        if bool(whole.all()):
            return x
        return dsp.band_limit(x, rate, top_hz.masked_fill(whole, float(rate))[:, None], width_hz=200.0)

    def reconstruction(
        self, estimate: Tensor, target: Tensor, stability: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted reconstruction loss of `(B, 1, T)` signals, and its parts; `stability` of F0 `(B, N)` for "source"."""
        values = {
            name: loss(estimate, target, stability) if name == "source" else loss(estimate, target)
            for name, (_, loss) in self.parts.items()
        }
        total = sum((self.parts[name][0] * value for name, value in values.items()), torch.zeros(()))
        return total, {f"loss/{name}": value.detach() for name, value in values.items()}

    def step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One step of the generator and, in the adversarial phase every `discriminator_every`-th, of the discriminators.

        Both gradients are taken at the same weights and both steps made, or neither: one forward pass of the discriminators
        serves both losses, and a non-finite gradient of one network spoils nothing of the other. All losses are means over
        the items of a batch, so processes and `accumulate` split it without changing the step.
        """
        r = self.recipe
        count = len(batch["input"])
        if count % r.accumulate:
            raise ConfigError(
                f"accumulate={r.accumulate} does not divide the {count} items that each process gets of batch={r.batch}"
            )
        batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
        parts = [
            dict(zip(batch, part, strict=True)) for part in zip(*(v.chunk(r.accumulate) for v in batch.values()), strict=True)
        ]
        log = _Mean(len(parts))
        if self.adversarial:
            stepping = self._adversarial_gradients(parts, log)
        else:
            stepping = ["generator"]
            for part in parts:
                fake, real, _ = self._generate(part)
                rec, own = self.reconstruction(fake, real, part.get("stability"))
                log.add(own | {"loss/rec": rec.detach()})
                (rec / len(parts)).backward()
        values = log.values()
        values |= {
            f"loss_weighted/{n}": values[f"loss/{n}"] * w for n in losses.TERMS if (w := values.get(f"balance/weight/{n}"))
        }
        return values | self._update(stepping)

    def _generate(self, part: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate and target as the losses see them, and the generator's output itself."""
        with self._autocast():
            y = self.generator(part["input"], part["cutoff_hz"])
        return self._limited(y, part["top_hz"]), self._limited(part["target"], part["top_hz"]), y

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _adversarial_gradients(self, parts: list[dict[str, Tensor]], log: _Mean) -> list[str]:
        """Leaves the gradients of a step in both networks; returns the names of those that are to be stepped."""
        r = self.recipe
        # Drawn from the step's number, so that a resumed run draws the same.
        subset = self.discriminator.draw(np.random.default_rng([r.seed, 1, self.steps_done]))
        trains = (self.steps_done - r.reconstruction_steps) % r.discriminator_every == 0
        weights = self.discriminator.parameters_of(subset) if trains else []
        detailed = (self.steps_done + 1) % r.log_every == 0
        self.discriminator.requires_grad_(trains)
        held: list[tuple[Tensor | None, dict[str, Tensor]]] = []
        at_last: dict[str, Tensor] = {}
        for part in parts:
            fake, real, y = self._generate(part)
            with self._autocast():
                maps_real, maps_fake = self.discriminator(real, subset), self.discriminator(fake, subset)
            rec, values = self.reconstruction(fake, real, part.get("stability"))
            terms = {"rec": rec} if self.parts else {}
            terms |= {
                "feat": losses.feature_matching(maps_real, maps_fake),
                "adv": losses.generator_adversarial(maps_fake, r.losses.adversarial),
            }
            log.add(values | {f"loss/{name}": term.detach() for name, term in terms.items()})
            if detailed and not held:  # of the first part: levels and spreads, not losses
                log.plain |= self._scores(subset, maps_real, maps_fake)
            at_output, own = losses.output_gradients(terms, y, self.generator.last_layer)
            for name, gradient in own.items():
                at_last[name] = at_last.get(name, 0) + gradient / len(parts)
            # Of several parts only the gradients at the output are held, and the generator runs twice; that costs far less
            # than it saves, and the discriminators, which cost most, run once.
            held.append((y if len(parts) == 1 else None, at_output))
            if trains:
                loss = losses.discriminator_adversarial(maps_real, maps_fake, r.losses.adversarial)
                log.add({"loss/disc": loss.detach()})
                (loss / len(parts)).backward(inputs=weights)
        self.group.average_(list(at_last.values()))
        mixing, stats = self.balancer.weigh(at_last)
        log.plain |= stats
        for part, (kept, at_output) in zip(parts, held, strict=True):
            if kept is None:
                with self._autocast():
                    kept = self.generator(part["input"], part["cutoff_hz"])
            combined = torch.stack([at_output[name] * weight for name, weight in mixing.items()]).sum(0)
            kept.backward(combined / len(parts))
        return ["generator", "discriminator"] if trains else ["generator"]

    def _scores(self, subset: list[int], real: losses.Features, fake: losses.Features) -> dict[str, float]:
        """Level and spread of each discriminator's scores, and the share of them on the right side."""
        middle = 0.0 if self.recipe.losses.adversarial == "hinge" else 0.5
        stats: dict[str, float] = {}
        for index, maps_real, maps_fake in zip(subset, real, fake, strict=True):
            name = f"disc/{self.discriminator.names[index]}"
            scores = {kind: m[-1].detach().float().cpu().numpy() for kind, m in (("real", maps_real), ("fake", maps_fake))}
            for kind, score in scores.items():
                low, high = np.quantile(score, (0.1, 0.9))
                stats |= {f"{name}/{kind}/mean": float(score.mean()), f"{name}/{kind}/p10": low, f"{name}/{kind}/p90": high}
            stats[f"{name}/acc"] = float((scores["real"] > middle).mean() + (scores["fake"] < middle).mean()) / 2
        return stats

    def _update(self, stepping: list[str]) -> dict[str, float]:
        """Steps the networks named, or none where a gradient is not finite; then the average, the counters, the schedules."""
        o, start = self.recipe.optim, {"generator": 0, "discriminator": self.recipe.reconstruction_steps}
        rates = {"generator": o.lr, "discriminator": o.discriminator_lr}
        limits = {"generator": o.clip, "discriminator": o.discriminator_clip}
        stats: dict[str, float] = {}
        for name in stepping:
            parameters = [p for p in self.networks[name].parameters() if p.grad is not None]
            self.group.average_([p.grad for p in parameters if p.grad is not None])
            norm = float(nn.utils.clip_grad_norm_(parameters, limits[name]))
            stats |= {f"grad/{name}": norm, f"grad/clip_fraction/{name}": float(norm > limits[name])}
        finite = all(math.isfinite(stats[f"grad/{name}"]) for name in stepping)
        for name in stepping:
            rate = self._rate(rates[name], start[name])
            stats[f"optim/lr_{name}"] = rate
            if finite:
                for settings in self.optimizers[name].param_groups:
                    settings["lr"] = rate
                self.optimizers[name].step()
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        decay = min(o.ema, (1 + self.steps_done) / (10 + self.steps_done))
        if finite:
            with torch.no_grad():
                average: list[Tensor] = list(self.ema.parameters())
                torch._foreach_lerp_(average, list(self.generator.parameters()), 1 - decay)
                for kept, buffer in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
                    kept.copy_(buffer)  # running statistics
        self.steps_done += 1
        if self.steps_done % self.recipe.log_every == 0:
            for name, network in self.networks.items():
                stats[f"weight_norm/{name}"] = float(torch.stack([p.detach().norm() for p in network.parameters()]).norm())
        return stats | {"optim/ema_decay": decay, "optim/nonfinite": float(not finite)}

    def _cases(self) -> Iterator[tuple[str, int, Tensor, Tensor, float]]:
        """What this process validates on: name of the condition, number of the recording, reference `(T,)`, input `(1, T)`,
        and the cut-off in Hz."""
        r, rate = self.recipe, self.recipe.generator.sample_rate
        if self.pairs is not None:
            for number in range(self.group.rank, min(r.valid_clips, len(self.pairs.clips)), self.group.world):
                body, air = self.pairs.read(number)
                yield "pairs", number, air, self._with_air(body[None], air[None], number), r.degrade.bone.cutoff_hz
            return
        if r.degrade.bone_share == 1:
            way = degrade.Degradation(dataclasses.replace(r.degrade, gain_db=(0.0, 0.0), clean_share=1.0, cutoff_jitter=0.0))
            for number in range(self.group.rank, len(self.valid), self.group.world):
                ref = self.valid[number][0][None]
                pair = way.apply(ref[None], rate, way.sample(np.random.default_rng([2, number]), 1))
                heard = self._with_air(pair.input[0], ref, number)
                yield "simulated", number, ref[0], heard, r.degrade.bone.cutoff_hz
            return
        for cutoff in r.valid_cutoffs:
            for number in range(self.group.rank, len(self.valid), self.group.world):
                ref = self.valid[number][0]
                yield f"{cutoff:g}", number, ref, dsp.band_limit(ref, rate, cutoff)[None], cutoff

    def _with_air(self, body: Tensor, air: Tensor, number: int) -> Tensor:
        """`(1, T)` each -> what is heard by the body microphone and, in pink noise of 5 dB, by the air microphones."""
        c, rng = self.recipe.degrade.air, np.random.default_rng([3, number])
        if not c.microphones:
            return body
        noise = torch.from_numpy(degrade.coloured_noise(air.shape[-1], -20.0, 1.0, number))[None]
        return torch.cat([body, degrade.heard_in_noise(air, noise, self.recipe.generator.sample_rate, c, 5.0, rng)])

    @torch.inference_mode()
    def validate(self) -> Validation:
        """Metrics of the averaged generator on brick-wall inputs, on simulated bodies, or on pairs; `val/score` is the mean of
        LSD-HF plus a tenth of the decibels by which |HF bias| exceeds 1. `val/<condition>/sinc/…` are the figures of the input
        itself."""
        r, rate = self.recipe, self.recipe.generator.sample_rate
        records: list[tuple[str, float]] = []
        spectra: dict[str, list[np.ndarray]] = {}
        clips: dict[str, dict[str, Tensor]] = {}
        cutoffs: dict[str, float] = {}
        for name, number, ref, low, cutoff in self._cases():
            told = torch.tensor([cutoff], device=self.device)
            y = self.ema(low[None].to(self.device), told)[0, 0].cpu()
            low = low[0]
            measured = {"": y} if self.input_figures else {"": y, "sinc/": low}
            for kind, signal_ in measured.items():
                values = {
                    "lsd": metrics.lsd(ref, signal_, rate),
                    "lsd_hf": metrics.lsd_hf(ref, signal_, rate, cutoff),
                    "lsd_lf": metrics.lsd_lf(ref, signal_, rate, cutoff),
                    "hf_bias": metrics.hf_bias(ref, signal_, rate, cutoff),
                    "si_sdr": metrics.si_sdr(ref, signal_),
                }
                records += [(f"val/{name}/{kind}{metric}", float(value)) for metric, value in values.items()]
            change = dsp.band_limit(y - low, rate, cutoff - 300).square().sum() / low.square().sum().clamp(min=1e-20)
            records.append((f"val/{name}/leak_db", 10 * math.log10(float(change) + 1e-20)))
            for kind, x in (("pred", y), ("ref", ref), ("low", low)):
                power = dsp.power_spectrogram(x, 512, 256).mean(-1).numpy()
                spectra.setdefault(f"{name}/{kind}", []).append(power)
            if number < 4 * self.group.world:
                clip = f"{name}_{number}"
                clips[clip], cutoffs[clip] = {"pred": y}, cutoff
                if not self.input_figures:
                    narrow = dsp.resample(low, rate, round(2 * cutoff)) if getattr(r.generator, "passthrough", True) else low
                    clips[clip] |= {"ref": ref, "sinc": low, "low": narrow}
        numbers = self.input_figures | _means([pair for part in self.group.gather(records) for pair in part])
        self.input_figures = {name: value for name, value in numbers.items() if "/sinc/" in name}
        gathered = self.group.gather(spectra)
        conditions = list(dict.fromkeys(key.split("/")[1] for key in numbers if key.endswith("/lsd_hf") and "sinc" not in key))
        curves = {
            f"stft/{name}/mean_spectrum": {
                "hz": np.linspace(0, rate / 2, 257).round(1).tolist(),
                **{
                    kind: _mean_spectrum([part.get(f"{name}/{kind}", []) for part in gathered])
                    for kind in ("pred", "ref", "low")
                },
            }
            for name in conditions
        }
        scores = [
            numbers[f"val/{name}/lsd_hf"] + 0.1 * max(0.0, abs(numbers[f"val/{name}/hf_bias"]) - 1) for name in conditions
        ]
        numbers["val/score"] = float(np.mean(scores)) if scores else math.nan
        return Validation(numbers=numbers, curves=curves, clips=clips, cutoffs=cutoffs)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "balancer": self.balancer.state_dict(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.ema.load_state_dict(state["ema"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            # The fused kernel walks weights and moments alike through memory, but files hold tensors in their plain order.
            for settings in optimizer.param_groups:  # a resumed run may change them
                settings["betas"], settings["weight_decay"] = self.recipe.optim.betas, self.recipe.optim.weight_decay
            for weight, moments in optimizer.state.items():
                for moment in ("exp_avg", "exp_avg_sq"):
                    moments[moment] = torch.empty_like(weight).copy_(moments[moment])
        self.balancer.load_state_dict(state["balancer"])
        self.steps_done = state["steps_done"]

    def export(self, folder: Path, card: str) -> None:
        """Writes the averaged generator as a checkpoint folder, the discriminators beside it."""
        hub.save(folder, self.ema, card)
        if len(self.discriminator):
            tensors, _ = runs.flatten(self.discriminator.state_dict())
            runs.write_tensors(folder / _DISCRIMINATORS, tensors)


class _Mean:
    """Means over the parts of a batch; what lies on a GPU is fetched in one go."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.totals: dict[str, Tensor] = {}
        self.plain: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0) + value.float()

    def values(self) -> dict[str, float]:
        means = (torch.stack(list(self.totals.values())) / self.parts).tolist()
        return dict(zip(self.totals, means, strict=True)) | self.plain


def _means(records: list[tuple[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for name, value in records:
        values.setdefault(name, []).append(value)
    return {name: float(np.mean(found)) for name, found in values.items()}


def _mean_spectrum(parts: list[list[np.ndarray]]) -> list[float]:
    """Mean level in dB per bin of the clips' power spectra that the processes hold."""
    power = np.mean([spectrum for part in parts for spectrum in part], axis=0)
    return (10 * np.log10(power + 1e-12)).round(2).tolist()


def pick_device(name: str, group: Group | None = None) -> torch.device:
    """ "auto" -> CUDA where there is one (under torchrun each process its own), else the CPU; anything else as given.

    Raises ConfigError: CUDA asked for and not there.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: no CUDA device here; use device=cpu")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        index = group.local_rank if group else 0
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"process {index} of this machine has no GPU: it has {torch.cuda.device_count()}; start as many processes"
            )
        return torch.device("cuda", index)
    return torch.device("cpu" if name == "auto" else name)


class Trainer:
    """The loop: batch, step, log, validate, checkpoint. It knows nothing of GANs.

    SIGTERM and SIGINT end it after the step or the validation they come in, with a checkpoint, as exit codes 143 and 130.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        run: Path,
        say: Callable[[str], None],
        group: Group | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` gives the seconds that `recipe.minutes` counts."""
        self.task, self.recipe, self.run, self.say, self.clock = task, recipe, run, say, clock
        self.group = group or Group()
        self.checkpoints = runs.Checkpoints(run / "checkpoints", recipe.keep)
        self.step, self.best, self.trained_s = 0, math.inf, 0.0
        self.skipped = self.skipped_in_a_row = 0
        self.unvalidated = False
        self._signal = 0

    def resume(self) -> None:
        """Continues from the last whole checkpoint of the run folder, or from the start where there is none.

        Raises:
            ModelError: every checkpoint is damaged, or they are of another recipe.
            BweError: the processes of this training do not see the same checkpoint.
        """
        found = self.checkpoints.load()
        if len(set(self.group.gather(found[0] if found else -1))) > 1:
            raise BweError(
                f"{self.run}: the processes find different checkpoints; the run folder must be on a disk they share"
            )
        if self.group.main:
            self.checkpoints.sweep()
        if found is None:
            return
        state = found[1]
        try:
            self.task.load_state_dict(state["task"])
            self.step, self.best, self.trained_s = state["step"], state["best"], state["trained_s"]
            self.skipped, self.unvalidated = state["skipped"], state["unvalidated"]
            torch.set_rng_state(state["rng"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{self.run}: its checkpoint is of another recipe ({reason}); undo the override") from None
        self.say(f"resuming at step {self.step}")

    def fit(self, batches: Callable[[int], Iterator[dict[str, Tensor]]]) -> None:
        """Runs to `recipe.steps`; `batches(start)` yields this process's batches from step `start` on.

        Raises:
            BweError: the gradients stayed non-finite for `recipe.patience` steps, or another process has gone.
            SystemExit: 143 after SIGTERM, 130 after SIGINT; a checkpoint was written.
        """
        self.tracker = runs.Tracker(self.run, self.recipe, resumed=self.step > 0, writes=self.group.main)
        previous = self._listen()
        try:
            self._loop(batches(self.step))
        finally:
            self.tracker.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _listen(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def note(number: int, frame: FrameType | None) -> None:
            if self._signal:  # asked twice: at once
                raise SystemExit(128 + number)
            self._signal = number

        return {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _loop(self, source: Iterator[dict[str, Tensor]]) -> None:
        r = self.recipe
        window = _Window(r.generator.sample_rate)
        if self.unvalidated:  # the run ended before or while it could
            self._validate()
        ends = self.step >= r.steps or self._out_of_time()
        while not ends:
            counted, asked = self.clock(), time.perf_counter()
            batch = next(source)
            waited = time.perf_counter() - asked
            stats = self.task.step(batch)
            self.step += 1
            window.add(batch, stats, waited, time.perf_counter() - asked)
            self.trained_s += self.clock() - counted
            self._watch(batch, stats)
            ends = self.step >= r.steps or self._out_of_time()
            if self.step % r.log_every == 0 or ends:
                numbers = window.numbers(self.group) | {"optim/skipped": float(self.skipped)}
                self.tracker.numbers(self.step, numbers)
                self.say(self._line(numbers))
                window = _Window(r.generator.sample_rate)
            self.unvalidated = self.step % r.valid_every == 0 or ends
            stopped = self.group.largest(self._signal)
            if self.step % r.checkpoint_every == 0 or self.unvalidated or stopped:
                # Before the validation, which takes longer than some give a process to end; resuming here validates again,
                # with the same result.
                self._save()
            if self.unvalidated and not stopped:
                self._validate()
                stopped = self.group.largest(self._signal)
            if stopped:
                self.say(f"stopped by {signal.Signals(stopped).name} after step {self.step}; go on with --resume")
                raise SystemExit(128 + stopped)

    def _out_of_time(self) -> bool:
        limit = self.recipe.minutes * 60
        # The first process decides, so that all of them end at the same step.
        return limit > 0 and bool(self.group.largest(int(self.group.main and self.trained_s >= limit)))

    def _watch(self, batch: dict[str, Tensor], stats: Mapping[str, float]) -> None:
        """Counts the steps that were skipped and keeps what they were skipped for."""
        if not stats.get("optim/nonfinite"):
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        folder = self.run / "nonfinite" / f"step_{self.step}_process_{self.group.rank}"
        if self.skipped <= _MOST_DUMPS:
            folder.mkdir(parents=True, exist_ok=True)
            runs.write_tensors(folder / "batch.safetensors", batch)
            (folder / "norms.json").write_text(json.dumps({k: str(v) for k, v in stats.items()}, indent=1))
        if self.skipped_in_a_row >= self.recipe.patience:
            raise BweError(
                f"{self.run}: the gradients were not finite for {self.skipped_in_a_row} steps in a row, the last of them "
                f"{self.step}; batches and norms are in {folder.parent}; lower optim.lr, or use precision=fp32, and --resume"
            )

    def _save(self) -> None:
        if self.group.main:
            state = {
                "task": self.task.state_dict(),
                "step": self.step,
                "best": self.best,
                "trained_s": self.trained_s,
                "skipped": self.skipped,
                "unvalidated": self.unvalidated,
                "rng": torch.get_rng_state(),
            }
            self.checkpoints.save(self.step, state)
        self.group.barrier()

    def _line(self, numbers: Mapping[str, Any]) -> str:
        shown = "  ".join(f"{name[5:]} {value:.3f}" for name, value in numbers.items() if name.startswith("loss/"))
        throughput, wait = numbers["data/audio_s_per_s"], numbers["data/wait_fraction"]
        return f"step {self.step}  {shown}  {throughput:.1f} audio-s/s  data wait {wait:.1%}"

    def _validate(self) -> None:
        found = self.task.validate()
        self.unvalidated = False
        if not self.group.main:
            return
        numbers = found.numbers
        self.tracker.numbers(self.step, {**numbers, **found.curves})
        self.tracker.clips(self.step, found.clips, found.cutoffs)
        better = numbers["val/score"] < self.best
        shown = {n: v for n, v in numbers.items() if "sinc" not in n and n.endswith(("/lsd", "lsd_hf", "hf_bias", "score"))}
        figures = "  ".join(f"{name[4:]} {value:.3f}" for name, value in shown.items())
        self.say(f"step {self.step}  {figures}" + ("  best" if better else ""))
        card = self.recipe.card or f"# {self.recipe.name}\n\nA run in progress; no card yet."
        card += f"\n\nStep {self.step}. Validation: {figures}.\n"
        if better:
            self.best = numbers["val/score"]
            self.task.export(self.run / "best", card)
            self.tracker.best(numbers)
        self.task.export(self.run / "last", card)


class _Window:
    """What is logged of the steps since the last line."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.stats: dict[str, list[float]] = {}
        self.cutoffs: list[float] = []
        self.waited = self.spent = self.audio = self.bad = 0.0
        self.steps = 0

    def add(self, batch: dict[str, Tensor], stats: Mapping[str, float], waited: float, spent: float) -> None:
        for name, value in stats.items():
            self.stats.setdefault(name, []).append(value)
        self.cutoffs += batch["cutoff_hz"].tolist()
        self.audio += batch["input"].numel() / self.sample_rate
        self.bad += float(batch["bad"].sum()) if "bad" in batch else 0.0
        self.waited, self.spent, self.steps = self.waited + waited, self.spent + spent, self.steps + 1

    def numbers(self, group: Group) -> dict[str, Any]:
        """Means over steps and processes; sums of what is counted."""
        edges = np.linspace(0, self.sample_rate / 2, 25)
        means = [
            (name, float(np.mean(finite))) for name, v in self.stats.items() if (finite := [x for x in v if math.isfinite(x)])
        ]
        own: dict[str, Any] = {
            "means": means,
            "sums": [self.audio / self.spent, self.bad],
            "wait": self.waited / self.spent,
            "counts": np.histogram(self.cutoffs, edges)[0],
            "rss": runs.resident_mb(),
        }
        every = group.gather(own)
        numbers: dict[str, Any] = _means([pair for process in every for pair in process["means"]])
        throughput, bad = np.sum([process["sums"] for process in every], axis=0).tolist()
        numbers |= {
            "data/audio_s_per_s": throughput,
            "data/bad": bad,
            "data/wait_fraction": max(process["wait"] for process in every),
            "data/cutoff_hist": np.sum([process["counts"] for process in every], axis=0).tolist(),
            "data/cutoff_edges": edges.tolist(),
            "sys/rss_mb": max(process["rss"] for process in every),
            "sys/step_ms": 1000 * self.spent / self.steps,
        }
        if torch.cuda.is_available():
            numbers["sys/gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
        return numbers


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resumed_recipe(run: Path, overrides: list[str], say: Callable[[str], None]) -> Recipe:
    """The recipe that a run folder records, with `key=value` overrides; `say` gets what they change.

    Raises:
        ConfigError: as `load_recipe`, or the record cannot be read.
    """
    record = run / "recipe.json"
    try:
        stored = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{record}: cannot be read ({error}); start a new run folder") from None
    values = _overridden(copy.deepcopy(stored), overrides)
    before = dict(_paths(stored))
    for key, value in _paths(values):
        if not isinstance(value, Mapping) and before.get(key) != value:
            say(f"{key}={json.dumps(value)} from here on, was {json.dumps(before.get(key))}")
    return _recipe(values, str(record))


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
    return _recipe(_overridden(dataclasses.asdict(module.recipe()), overrides), str(file))


def _recipe(values: dict[str, Any], where: str) -> Recipe:
    """The recipe of plain values, its generator's config of the class that `arch` names."""
    cls = hub.config_class(str(values.get("arch", "seanet")), where)
    config = hub.from_dict(cls, values["generator"], where, "generator.")
    return hub.from_dict(Recipe, {**values, "generator": config}, where)


def _overridden(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    for override in overrides:  # before what is changed of its config
        key, equals, arch = override.partition("=")
        if key == "arch" and equals and arch != values.get("arch", "seanet"):
            config = hub.config_class(arch, f"override {override!r}")
            values["generator"] = dataclasses.asdict(config(sample_rate=values["generator"]["sample_rate"]))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: write it as key=value")
        _set(values, key, text)
    return values


def _set(values: dict[str, Any], key: str, text: str) -> None:
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        near = difflib.get_close_matches(key, [path for path, _ in _paths(values)], 1, 0.0)
        raise ConfigError(f"unknown recipe key {key!r}; did you mean {near[0]!r}?")
    try:
        place[last] = json.loads(text)
    except json.JSONDecodeError:
        place[last] = text


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield prefix + key, value
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def packed(recipe: Recipe, run: Path, say: Callable[[str], None]) -> Path:
    """The folder with the packed `train/` and `valid/` recordings, packed into the run folder where they are not yet."""
    folder = Path(recipe.data)
    if (folder / "train" / "index.json").is_file():
        return folder
    out = run / "data"
    corpus.prepare(folder, out, recipe.generator.sample_rate, recipe.data_class or None, say)
    return out


def keep_memory() -> None:
    """Lets glibc reuse the memory of a step in the next: giving it back to the system and faulting it in again, page by
    page, takes a third of the time of a CPU training."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)
    except (OSError, AttributeError):  # not glibc
        pass


def main(recipe_path: str, overrides: list[str], run_dir: str | None = None, resume: bool = False) -> Path:
    """Trains a recipe (`bwe train`), alone or as one process of torchrun; returns the run folder.

    A resumed run goes on with the recipe that its folder records; only `overrides` change it.

    Raises:
        ConfigError: recipe or override wrong, or the run folder already holds a run and `resume` was not given.
        BweError, SystemExit: as `Trainer.fit`.
    """
    group = Group()

    def say(line: str) -> None:
        if group.main:
            print(line, file=sys.stderr, flush=True)

    recipe = load_recipe(recipe_path, overrides)
    run = Path(run_dir or f"runs/{recipe.name}")
    goes_on = resume and (run / "recipe.json").is_file()
    if goes_on:
        recipe = resumed_recipe(run, overrides, say)
    elif (run / "recipe.json").is_file():
        raise ConfigError(f"{run}: holds a run already; continue it with --resume or give another --run folder")
    elif resume:
        say(f"nothing to resume in {run}: starting at step 0")
    if recipe.batch % (group.world * recipe.accumulate):
        raise ConfigError(
            f"batch={recipe.batch} cannot be split over {group.world} processes and accumulate={recipe.accumulate} parts"
        )
    device = pick_device(recipe.device, group)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_memory()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    group.open(device)
    if group.main:
        run.mkdir(parents=True, exist_ok=True)
        packed(recipe, run, say)
    group.barrier()
    folder = packed(recipe, run, say)
    pairs = {split: corpus.Pairs(Path(recipe.pairs) / split) for split in ("train", "valid")} if recipe.pairs else {}
    crops = corpus.Crops(folder / "train", recipe.crops, degrade.Degradation(recipe.degrade), pairs.get("train"))
    if crops.sample_rate != recipe.generator.sample_rate:
        rate = recipe.generator.sample_rate
        raise ConfigError(f"{folder}: packed at {crops.sample_rate} Hz, the generator works at {rate} Hz")
    say(f"{crops.seconds / 60:.1f} minutes of {len(crops.clips)} recordings")
    has_state = bool(runs.Checkpoints(run / "checkpoints", recipe.keep).steps())
    start = dataclasses.replace(recipe, init="") if goes_on and has_state else recipe
    task = GANTask(start, corpus.whole(folder / "valid", recipe.valid_clips), group, pairs.get("valid"))
    trainer = Trainer(task, recipe, run, say, group)
    if goes_on:
        trainer.resume()
    group.barrier()  # all have seen whether the folder holds a run
    if group.main:
        if not (run / "environment.json").is_file():
            origin = runs.environment(recipe, crops.manifest_sha256, group.world, str(device))
            runs.write_text(run / "environment.json", json.dumps(origin, indent=1))
        runs.write_text(run / "recipe.json", json.dumps(dataclasses.asdict(recipe), indent=1))
    trainer.fit(
        lambda start: corpus.batches(crops, recipe.batch, recipe.steps, start, recipe.workers, group.rank, group.world)
    )
    group.close()
    return run
