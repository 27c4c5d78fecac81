"""The run folder of a training: crash-safe checkpoints, the numbers and clips of the run page, what the run started from.

`checkpoints/step_N/` is resume state without pickle, `checkpoints/latest` names the newest; `metrics.jsonl` has every number,
`clips/` the validation audio, `environment.json` code and packages; `bwe report` makes a page of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import bwe
from bwe import audio, pictures
from bwe.errors import ModelError, OutputError

log = logging.getLogger(__name__)


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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a small file that is there as a whole or not at all. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); make room or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file that is there as a whole or not at all. Raises OutputError: the disk is full."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        _sync(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error}); make room and go on with --resume") from None


class Checkpoints:
    """Resume states `step_N/{state.json, tensors.safetensors}`.

    Each is written beside, flushed to disk and renamed; then `latest` is replaced to name it; then all but the newest
    `keep` (at least two) are removed. A kill at any moment leaves a state that loads.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, max(2, keep)

    def steps(self) -> list[int]:
        """Step numbers of the checkpoints, in order."""
        return sorted(int(p.name[5:]) for p in self.folder.glob("step_*") if p.name[5:].isdigit())

    def sweep(self) -> None:
        """Removes what a killed save has left."""
        for stale in self.folder.glob("*.tmp"):
            if stale.is_dir():
                shutil.rmtree(stale)
            else:
                stale.unlink()

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Raises ModelError where a tensor holds NaN or Inf, OutputError where the disk is full; neither leaves anything."""
        tensors, rest = flatten(state)
        bad = next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
        if bad is not None:
            raise ModelError(f"{self.folder}: refusing to save a model with NaN or Inf at step {step} (first in {bad})")
        final, temporary = self.folder / f"step_{step}", self.folder / f"step_{step}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
            temporary.mkdir()
            save_file(tensors, temporary / "tensors.safetensors")
            digest = _sha256(temporary / "tensors.safetensors")
            (temporary / "state.json").write_text(json.dumps({"sha256": digest, "state": rest}))
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            if final.exists():  # a run that fell back to an earlier state comes by this step again
                self._remove(step)
            temporary.rename(final)
            _sync(self.folder)
            write_text(self.folder / "latest", final.name)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OutputError(f"{final}: cannot be written ({error}); make room and go on with --resume") from None
        # States beyond the newest are of a future that a fall-back has undone.
        kept = [s for s in self.steps() if s <= step][-self.keep :]
        for old in set(self.steps()) - set(kept):
            self._remove(old)

    def _remove(self, step: int) -> None:
        # Renamed first: a kill half-way through must not leave something that looks like a checkpoint.
        doomed = (self.folder / f"step_{step}").rename(self.folder / f"removed_{step}.tmp")
        shutil.rmtree(doomed)

    def read(self, step: int) -> dict[Any, Any]:
        """One state. Raises ModelError: missing or damaged."""
        folder = self.folder / f"step_{step}"
        try:
            content = json.loads((folder / "state.json").read_text())
            if _sha256(folder / "tensors.safetensors") != content["sha256"]:
                raise ValueError("the sha256 of tensors.safetensors is not the one in state.json")
            return unflatten(load_file(folder / "tensors.safetensors"), content["state"])
        except Exception as error:
            raise ModelError(f"{folder}: damaged checkpoint ({error})") from error

    def load(self) -> tuple[int, dict[Any, Any]] | None:
        """The state that `latest` names, else the newest that is whole, with a warning; None where there is none at all.

        Raises ModelError where every checkpoint is damaged.
        """
        order = self.steps()[::-1]
        try:
            named = int((self.folder / "latest").read_text().removeprefix("step_"))
        except (OSError, ValueError):
            named = order[0] if order else 0
        order.sort(key=lambda step: step != named)
        problems: list[str] = []
        for step in order:
            try:
                state = self.read(step)
            except ModelError as error:
                problems.append(str(error))
                continue
            if problems:
                log.warning("%s; going on from %s instead", "; ".join(problems), self.folder / f"step_{step}")
            return step, state
        if problems:
            raise ModelError(f"{'; '.join(problems)}; no checkpoint is left to resume from, start a new run folder")
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment(recipe: Any, manifest_sha256: str, world: int, device: str) -> dict[str, Any]:
    """What a run is started from: version, git commit and uncommitted changes, Python, packages, data, seed, devices."""

    def git(*words: str) -> str:
        root = Path(__file__).resolve().parent.parent
        if not (root / ".git").exists():  # an installed package may lie inside a repository that is not its own
            return ""
        command = ["git", "-C", str(root), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout if done.returncode == 0 else ""

    return {
        "version": bwe.__version__,
        "commit": git("rev-parse", "HEAD").strip(),
        "diff": git("diff", "HEAD")[:200_000],
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {d.name: d.version for d in importlib.metadata.distributions()},
        "manifest_sha256": manifest_sha256,
        "seed": recipe.seed,
        "world": world,
        "device": device,
        "started": round(time.time(), 1),
    }


def resident_mb() -> float:
    """Memory of this process in MB (resident set), 0 where /proc does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


class Tracker:
    """Writes numbers to `metrics.jsonl`, clips to `clips/`, and both to W&B and TensorBoard where asked.

    Those two may fail, training goes on. Without a key W&B records offline. Processes other than the first write nothing.
    """

    def __init__(self, run: Path, recipe: Any, resumed: bool = False, writes: bool = True) -> None:
        """`recipe` is a frozen dataclass with `name`, `trackers` and `generator.sample_rate`."""
        self.run, self.sample_rate = run, recipe.generator.sample_rate
        self.writes = writes
        self.others: dict[str, Any] = {}
        self.failed: set[str] = set()
        if not writes:
            return
        run.mkdir(parents=True, exist_ok=True)
        self.file = (run / "metrics.jsonl").open("a+b")
        if self.file.tell():
            self.file.seek(-1, os.SEEK_END)
            if self.file.read(1) != b"\n":  # the half line of a killed run
                self.file.write(b"\n")
        if "wandb" in recipe.trackers:
            self._guard("wandb", lambda: self._start_wandb(recipe, resumed))
        if "tensorboard" in recipe.trackers:
            self._guard("tensorboard", self._start_tensorboard)

    def _start_wandb(self, recipe: Any, resumed: bool) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        identity = self.run / "wandb_id"
        known = identity.read_text().strip() if resumed and identity.is_file() else None
        config = dataclasses.asdict(recipe)
        started = self.run / "environment.json"
        if started.is_file():
            config["environment"] = json.loads(started.read_text())
        page = wandb.init(
            project="bwe", name=self.run.name, dir=str(self.run), mode=mode, config=config, id=known, resume="allow"
        )
        identity.write_text(page.id)
        page.define_metric("step")
        for group in ("loss", "loss_weighted", "balance", "disc", "grad", "optim", "data", "val", "sys"):
            page.define_metric(f"{group}/*", step_metric="step")
        self.others["wandb"] = page

    def _start_tensorboard(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.others["tensorboard"] = SummaryWriter(str(self.run / "tensorboard"))

    def _guard(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a tracker must never end a training
            hint = "; install bwe[train]" if isinstance(error, ImportError) else ""
            log.warning("%s is switched off for this run: %s%s", name, error, hint)
            self.others.pop(name, None)
            self.failed.add(name)

    def _each(self, name: str, action: Callable[[Any], object]) -> None:
        if name in self.others:
            self._guard(name, lambda: action(self.others[name]))

    def numbers(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars, lists (histograms, beside their edges) and curves (`{"hz": [...], name: [...]}`) by name.

        Scalars that are not finite are left out: JSON has no word for them.
        """
        if not self.writes:
            return
        values = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        line = {"step": step, "time": round(time.time(), 1), **values}
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
        self._each("wandb", lambda page: page.log({"step": step, **scalars, **self._wandb_plots(values)}))
        self._each("tensorboard", lambda board: [board.add_scalar(k, v, step) for k, v in scalars.items()])

    def _wandb_plots(self, values: Mapping[str, Any]) -> dict[str, Any]:
        import wandb

        plots: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                lines = {key: line for key, line in value.items() if key != "hz"}
                plots[name] = wandb.plot.line_series(value["hz"], list(lines.values()), list(lines), name, "Hz")
            elif name.endswith("_hist"):
                edges = values[name.removesuffix("_hist") + "_edges"]
                plots[name] = wandb.Histogram(np_histogram=(np.array(value), np.array(edges)))
        return plots

    def best(self, values: Mapping[str, float]) -> None:
        """The figures of the best validation so far, for the summary of the W&B page."""
        self._each("wandb", lambda page: page.summary.update({f"best/{k}": v for k, v in values.items()}))

    def clips(self, step: int, clips: Mapping[str, Mapping[str, Tensor]], cutoffs: Mapping[str, float]) -> None:
        """Validation audio: for each clip its signals `(T,)` by name.

        "ref" (the recording), "low" (its narrow band) and "sinc" (that at the full rate) need to be there the first time
        only; "pred" comes at each validation. `cutoffs` has each clip's cut-off in Hz.
        """
        if not self.writes:
            return
        for clip, signals in clips.items():
            if "clips" not in self.failed:
                self._guard("clips", lambda c=clip, s=signals: self._write_clip(step, c, s, cutoffs[c]))  # type: ignore[misc]
            if self.others and "pictures" not in self.failed:
                self._guard("pictures", lambda c=clip, s=signals: self._panels(step, c, s, cutoffs[c]))  # type: ignore[misc]
        for old in sorted((self.run / "clips").glob("step_*"), key=lambda p: int(p.name[5:]))[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def _write_clip(self, step: int, clip: str, signals: Mapping[str, Tensor], cutoff_hz: float) -> None:
        for name, x in signals.items():
            folder = self.run / "clips" / (f"step_{step}" if name == "pred" else ".")
            folder.mkdir(parents=True, exist_ok=True)
            rate = round(2 * cutoff_hz) if name == "low" else self.sample_rate
            path, samples = folder / f"{clip}_{name}.flac", x[None].clamp(-1, 1).numpy()
            audio.write(path, samples, rate, "PCM_16", overwrite=True)
            self._each("wandb", lambda page, p=path, n=name, s=rate: self._wandb_audio(page, step, clip, n, p, s))  # type: ignore[misc]
            if name != "low":
                tag = f"audio/{clip}/{name}"
                self._each("tensorboard", lambda board, t=tag, y=samples, s=rate: board.add_audio(t, y, step, s))  # type: ignore[misc]

    def _panels(self, step: int, clip: str, signals: Mapping[str, Tensor], cutoff_hz: float) -> None:
        shown: dict[str, np.ndarray] = {name: signals[name].numpy() for name in ("sinc", "pred", "ref") if name in signals}
        for name in {"sinc", "ref"} - shown.keys():
            stored = self.run / "clips" / f"{clip}_{name}.flac"
            if stored.is_file():
                shown[name] = audio.read(stored)[0][0]
        if not {"pred", "ref"} <= shown.keys():
            return
        order: dict[str, np.ndarray] = {name: shown[name] for name in ("sinc", "pred", "ref") if name in shown}
        picture = pictures.spectrogram_panels(order, self.sample_rate, cutoff_hz, difference=("pred", "ref"))
        self._each("wandb", lambda page: self._wandb_image(page, step, clip, picture))
        self._each("tensorboard", lambda board: board.add_image(f"spec/{clip}", picture, step, dataformats="HWC"))

    @staticmethod
    def _wandb_audio(page: Any, step: int, clip: str, name: str, path: Path, rate: int) -> None:
        import wandb

        page.log({"step": step, f"audio/{clip}/{name}": wandb.Audio(str(path), sample_rate=rate)})

    @staticmethod
    def _wandb_image(page: Any, step: int, clip: str, picture: np.ndarray) -> None:
        import wandb

        page.log({"step": step, f"spec/{clip}": wandb.Image(picture)})

    def close(self) -> None:
        if not self.writes:
            return
        with contextlib.suppress(OSError):  # a full disk has been told of already
            self.file.close()
        self._each("wandb", lambda page: page.finish())
        self._each("tensorboard", lambda board: board.close())


def lines(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl` in the order of writing; a line that a kill cut short is left out."""
    with (run / "metrics.jsonl").open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
