"""Measures systems over recordings: models × filters × cut-offs × files, or folders of finished estimates.

`evaluate` takes the highs of full-band recordings away, lets every system put them back and compares; `compare` is for
estimates that lie in folders already. Both give an `Evaluation`: a table for the terminal, JSON, CSV, an HTML page.

The unit of work is a file. Files are measured in processes of their own, each with one thread, and every finished one can
be kept in a cache, so that an evaluation that was killed goes on where it was. Figures depend on neither.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import safetensors
import safetensors.numpy
import torch
from scipy import stats
from torch import Tensor, nn

from bwe import __version__, audio, containers, corpora, degrade, dsp, evaluation_page, infer, perceptual, runs
from bwe import metrics as measures
from bwe.errors import AudioError, BweError, ConfigError, OutputError, nearest
from bwe.evaluation_page import Clip

FILTERS: tuple[str, ...] = ("brickwall", *dsp.FILTER_FAMILIES, "soxr", "torchaudio", *degrade.RESAMPLERS)
CutoffSource = Literal["given", "detect"]
INPUT, REFERENCE = "input", "reference"

CUTOFFS_HZ = (4000.0, 8000.0)
RESAMPLES = 2000
FEW_CLUSTERS = 10
"""With fewer speakers than this the bootstrap draws files: a percentile interval of a handful of clusters is too narrow."""
WORST = 10

CACHE_DAYS, CACHE_BYTES = 30, 1 << 30
"""Finished files that no evaluation has asked for so long, and beyond so much the oldest, leave the cache."""

# A reference that ends below this share of the model's band cannot tell whether the highs are right.
_REFERENCE_BAND = 0.9
_CLIP_SECONDS = 5.0
_LONGEST_LAG = 1.0  # seconds
_LENGTH_SLACK = 0.1  # seconds
# Below this correlation coefficient the peak says nothing of delay or polarity.
_LEAST_CORRELATION = 0.2
# Signals to measure in the time that a process takes to start.
_LEAST_SHARE = 50
_MAIN = ("lsd", "lsd_lf", "lsd_hf", "hf_bias", "si_sdr", "pesq", "stoi", "nsim")
_WIDTH = 120


class Model(Protocol):
    """What is measured; `infer.Extender` is one."""

    sample_rate: int

    def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
        """`(C, T)` at `sr` -> `(C, T')` at `sample_rate`; a cut-off of None is to be found from the signal."""


System = str | os.PathLike[str] | Model


class Condition(NamedTuple):
    """How the band was removed, and where; ("", None) where nobody knows."""

    filter: str
    cutoff_hz: float | None


@dataclass(frozen=True)
class Evaluation:
    """What was found; ``str()`` for the terminal, `to_json` has it all.

    Figures that are not finite are nan here and null in JSON. Rows are by system and condition; `system` "input" is doing
    nothing, and the first of `systems` where there is one.

    Attributes:
        version: of bwe. title: what was measured over what. sample_rate: Hz, of the comparison.
        cutoff_source: "given" or "detect". baseline: the system that the others are paired with; None for a single one.
        systems: name, arch, parameters (None where unknown).
        conditions: filter, cutoff_hz, floor (`metrics.lsd_floor`).
        metrics: name, title, unit, better, digits, as in `metrics.METRICS`.
        rows: system, filter, cutoff_hz, n (files); by metric the mean and ci95, its 95 % bootstrap interval, None of a
            single file; paired: by metric the mean difference to the baseline over the same files, its interval, how many
            files are better (wins) or worse (losses), and p of the exact two-sided sign test. Values that are not finite
            count for nothing.
        speakers: system, filter, cutoff_hz, speaker, n, mean.
        frechet: system, filter, cutoff_hz, value: `perceptual.frechet_distance` to the references.
        lines: filter, cutoff_hz, db: `metrics.line_height` of the mean spectra of reference, input and systems.
        frequency: filter, cutoff_hz, hz, and by system the LSD around each frequency (root mean square over files).
        worst: system, filter, cutoff_hz, metric, files (file, value), the worst first.
        alignment: of folders: system, file, lag_ms (positive is late), level_db over the reference, inverted.
        files: file, speaker, system, filter, cutoff_hz, values by metric.
        skipped: what could not be measured: file -> why.
        notes: sentences for the reader.
        clips: signals to listen to, for `to_html`; not in JSON.
        reused: files that were in the cache; not in JSON.
    """

    version: str
    title: str
    sample_rate: int
    cutoff_source: str
    baseline: str | None
    systems: list[dict[str, Any]]
    conditions: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    speakers: list[dict[str, Any]]
    frechet: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    frequency: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    alignment: list[dict[str, Any]]
    files: list[dict[str, Any]]
    skipped: dict[str, str]
    notes: list[str]
    clips: Sequence[Clip] = ()
    reused: int = 0

    def row(self, cutoff_hz: float | None = None, system: str | None = None, filter: str | None = None) -> dict[str, Any]:
        """One of `rows`: by default that of the first condition and of the first system beside the input.

        Raises KeyError where there is none.
        """
        if system is None:
            system = next((s["name"] for s in self.systems if s["name"] != INPUT), INPUT)
        for row in self.rows:
            wanted = (cutoff_hz in (None, row["cutoff_hz"]), system == row["system"], filter in (None, row["filter"]))
            if all(wanted):
                return row
        raise KeyError((cutoff_hz, system, filter))

    def mean(self, metric: str, cutoff_hz: float | None = None, system: str | None = None, filter: str | None = None) -> float:
        """One figure of `row`; KeyError where there is none."""
        return self.row(cutoff_hz, system, filter)["mean"][metric]

    def to_dict(self) -> dict[str, Any]:
        """The tree that `to_json` writes, as plain values."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("clips", "reused")}
        return cast(dict[str, Any], _floats(own, lambda value: value if math.isfinite(value) else None))

    def to_json(self) -> str:
        """All figures, the single files' included; what is not finite becomes null."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """A line per file, system and condition."""
        names = [metric["name"] for metric in self.metrics]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["file", "speaker", "system", "filter", "cutoff_hz", *names])
        for record in self.files:
            values = [record["values"].get(name, math.nan) for name in names]
            head = [record[key] for key in ("file", "speaker", "system", "filter")]
            hz = "" if record["cutoff_hz"] is None else f"{record['cutoff_hz']:g}"
            table.writerow([*head, hz, *(repr(float(v)) if math.isfinite(v) else "" for v in values)])
        return text.getvalue()

    def to_html(self) -> str:
        """One page that needs no network, with players for `clips`."""
        return evaluation_page.page(self.to_dict(), self.clips)

    def __str__(self) -> str:
        return "\n".join(_terminal_lines(self))


def _floats(value: Any, of: Callable[[float], Any]) -> Any:
    """A tree with a function applied to every float in it."""
    if isinstance(value, dict):
        return {str(k): _floats(v, of) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_floats(v, of) for v in value]
    return of(value) if isinstance(value, float) else value


def _rounded(value: float) -> float:
    """To nine digits: the last ones depend on where in memory NumPy finds an array, so that equal signals would not be equal,
    nor two runs."""
    return float(f"{value:.9g}")


def evaluate(
    systems: System | Sequence[System],
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    cutoffs: Sequence[float] | None = None,
    filters: str | Sequence[str] = "brickwall",
    *,
    split: str | None = None,
    cls: str | None = None,
    cutoff_source: CutoffSource = "given",
    baseline: str = INPUT,
    metrics: Sequence[str] | None = None,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    clips: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure one or several systems over full-band recordings.

    Every recording is resampled to the systems' rate (`dsp.resample`), low-passed in every way at every cut-off, extended by
    every system, and compared with what it was; channels count as signals of their own, averaged per file. A file that
    fails, in whatever way, is in `Evaluation.skipped`, and the others are done.

    Args:
        systems: shipped names, checkpoint folders, "sinc", "sbr" (`baselines`), or what is called like an
            `infer.Extender`; all of one sample rate.
        source: one file, several, or a folder: the rows of the `manifest.csv` in it or above it that lie below it, or,
            without a manifest, every file below it that is audio, the name of its folder taken as the speaker.
        cutoffs: Hz; by default 4000 and 8000, as far as the systems go beyond them.
        filters: how the band is removed, one or several. "brickwall" by FFT; "cheby1" (ripple 0.05 dB), "butter",
            "bessel", "ellip" of order 8, forward and backward; "soxr" (VHQ), "torchaudio" (sinc of width 6, as in AP-BWE's
            protocol) or a family of `degrade.RESAMPLERS` down to twice the cut-off and back; or a codec with its bit rate
            ("mp3:64k"), whose cut-off is its own (`degrade.codec_cutoff`), whatever `cutoffs` are.
        split, cls: only these rows of the manifest.
        cutoff_source: "given" tells the systems the cut-off, "detect" lets them find it in the signal.
        baseline: the system that the others are paired with.
        metrics: names of `metrics.METRICS`; by default all that are installed.
        workers: processes, by default one for each core if there is enough to do. With an object that is not known by a name
            everything is measured in this process, in as many threads as it has.
        cache: folder for what was measured, see `default_cache`; None keeps nothing. What changes a figure (files, weights,
            settings, version of the package and of the libraries that measure) is in the key.
        clips: so many files go into `Evaluation.clips`, five seconds of each, under the first condition: the worst, the
            median, the best of the first system, and others between.
        progress: called with (files done, files in all).

    Raises ConfigError (no such filter, cut-off, metric, baseline, folder or split, systems of several rates), AudioError
    (nothing to measure with), ModelError, OutputError (the cache cannot be written), ImportError where "soxr" is missing.
    """
    if cutoff_source not in get_args(CutoffSource):
        raise ConfigError(f"cutoff_source is 'given' or 'detect', not {cutoff_source!r}")
    chosen_filters = (filters,) if isinstance(filters, str) else tuple(dict.fromkeys(filters))
    for name in chosen_filters:
        if name.partition(":")[0] in degrade.CODEC_SETTINGS:
            degrade.parse_codec(name)
        elif name not in FILTERS:
            raise ConfigError(f"no filter {name!r}; did you mean {nearest(name, FILTERS)!r}? ({', '.join(FILTERS)})")
    recordings, notes = _recordings(source, split, cls)
    models, sources = _load(systems if isinstance(systems, list | tuple) else [cast(System, systems)])
    rate = next(iter(models.values())).sample_rate
    for name, model in models.items():
        if model.sample_rate != rate:
            first = next(iter(models))
            raise ConfigError(f"{first} works at {rate} Hz, {name} at {model.sample_rate} Hz; measure them one by one")
    task = _Simulation(
        systems=(INPUT, *models),
        conditions=tuple(condition for name in chosen_filters for condition in _conditions(name, cutoffs, rate)),
        sample_rate=rate,
        metrics=_metric_names(metrics, notes),
        sources=sources,
        tell=cutoff_source == "given",
    )
    if "soxr" in chosen_filters:
        _import_soxr()
    known = [_identity(sources[name], model) for name, model in models.items()]
    identities = None if None in known else [known, cutoff_source]
    where = source if isinstance(source, str | os.PathLike) else f"{len(recordings)} files"
    selection = ", ".join(f"{what} {name}" for what, name in (("class", cls), ("split", split)) if name is not None)
    return _evaluation(
        task, models, recordings, notes,
        title=f"{', '.join(models)} over {where}" + (f" ({selection})" if selection else ""),
        cutoff_source=cutoff_source, baseline=baseline, workers=workers, cache=cache, identities=identities, clips=clips,
        progress=progress,
    )  # fmt: skip


def compare(
    reference: str | os.PathLike[str],
    estimates: Mapping[str, str | os.PathLike[str]],
    *,
    cutoff_hz: float | None = None,
    input: str | os.PathLike[str] | None = None,
    align: bool = True,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    clips: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure finished estimates, folders of files, against a folder of references.

    Files belong together by their path in the folder without suffix (``talk.bwe.flac`` goes with ``talk.wav`` too). A file
    is measured where every folder has it. Each estimate is resampled to the rate of its reference, aligned, and trimmed to
    what both have; lengths that differ by more than 0.1 s are refused, since no metric is right over other words.

    Delay (the peak of the cross-correlation within ±1 s, to a sample), polarity and level (power ratio below the cut-off,
    or below the one found in the estimate) are reported in `Evaluation.alignment`.

    Args:
        reference: folder.
        estimates: folders by the names to give them.
        cutoff_hz: where the known band ends; without it the metrics that need it are left out.
        input: folder of what the estimates were made from; it stands in the table as "input".
        align: correct delay, polarity and level before measuring.
        baseline: the system that the others are paired with; by default "input" or, without, the first of several.
        metrics, workers, cache, clips, progress: as for `evaluate`.

    Raises ConfigError (no such folder, metric or baseline, a cut-off above the rate), AudioError (no pair to measure).
    """
    folders = {name: Path(folder) for name, folder in estimates.items()}
    if not folders:
        raise ConfigError("there are no estimates; give one folder or more, by name")
    for name in folders:
        if name in (INPUT, REFERENCE, ""):
            raise ConfigError(f"an estimate cannot be called {name!r}; give it another name")
    if input is not None:
        folders = {INPUT: Path(input), **folders}
    notes: list[str] = []
    recordings, rate, skipped = _pairs(Path(reference), folders)
    if cutoff_hz is not None and not 100 <= cutoff_hz < rate / 2:
        raise ConfigError(f"cut-off {cutoff_hz:g} Hz must lie from 100 Hz to below {rate / 2:g} Hz, half the references' rate")
    task = _Pairing(
        systems=tuple(folders),
        conditions=(Condition("", None if cutoff_hz is None else float(cutoff_hz)),),
        sample_rate=rate,
        metrics=_metric_names(metrics, notes),
        align=align,
    )
    if baseline is None and len(folders) > 1:
        baseline = next(iter(folders))
    shown = ", ".join(f"{name} ({folder})" for name, folder in folders.items() if name != INPUT)
    return _evaluation(
        task, {}, recordings, notes, title=f"{shown} against {reference}", cutoff_source="given", baseline=baseline,
        workers=workers, cache=cache, identities=["pairs", align], clips=clips, progress=progress, skipped=skipped,
    )  # fmt: skip


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/bwe/eval``, or ``~/.cache/bwe/eval``. What was not used for 30 days, and the oldest beyond 1 GiB, is
    removed after an evaluation; the folder can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bwe" / "eval"


class _Recording(NamedTuple):
    """A unit of work: what it is called, who is heard, the reference's file and those of the estimates, if any."""

    name: str
    speaker: str
    paths: tuple[Path, ...]


@dataclass
class _Record:
    """What one recording gives: values by (system, condition), in their order, and arrays by name; or why it gives nothing."""

    skipped: str = ""
    values: list[dict[str, float]] = field(default_factory=list)
    alignment: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class _Case(NamedTuple):
    """A recording under one condition; the signals come one by one, so that no more than one is held."""

    condition: Condition
    known: Tensor | None
    signals: Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class _Task(ABC):
    """What is done with every recording; goes to the worker processes."""

    systems: tuple[str, ...]
    conditions: tuple[Condition, ...]
    sample_rate: int
    metrics: tuple[str, ...]

    def load(self) -> Mapping[str, Model]:
        return {}

    @abstractmethod
    def open(self, recording: _Recording, models: Mapping[str, Model], record: _Record) -> tuple[Tensor, Iterator[_Case]]:
        """The reference `(C, T)`, and what is compared with it; `record` gets alignment and notes."""


@dataclass(frozen=True)
class _Simulation(_Task):
    """The highs are taken away and put back by models."""

    sources: Mapping[str, System]
    tell: bool

    def load(self) -> Mapping[str, Model]:
        return {name: _model(source) for name, source in self.sources.items()}

    def open(self, recording: _Recording, models: Mapping[str, Model], record: _Record) -> tuple[Tensor, Iterator[_Case]]:
        (path,) = recording.paths
        x, info = audio.read(path)
        if info.frames == 0:
            raise AudioError(f"{path}: the file holds no samples")
        if info.sample_rate < _REFERENCE_BAND * self.sample_rate:
            raise AudioError(
                f"{path}: a {info.sample_rate} Hz recording cannot judge a {self.sample_rate} Hz model; take full-band ones"
            )
        reference = dsp.resample(torch.from_numpy(x), info.sample_rate, self.sample_rate)
        return reference, self._cases(reference, models)

    def _cases(self, reference: Tensor, models: Mapping[str, Model]) -> Iterator[_Case]:
        rate = self.sample_rate
        for condition in self.conditions:
            hz = cast(float, condition.cutoff_hz)
            narrow = _narrow(reference, rate, hz, condition.filter)
            told = hz if self.tell else None
            made = ((name, model(narrow, rate, told)) for name, model in models.items())
            yield _Case(condition, narrow, _chained((INPUT, narrow), made))


def _chained(first: tuple[str, Tensor], rest: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    yield first
    yield from rest


@dataclass(frozen=True)
class _Pairing(_Task):
    """Estimates lie in files."""

    align: bool

    def open(self, recording: _Recording, models: Mapping[str, Model], record: _Record) -> tuple[Tensor, Iterator[_Case]]:
        reference, info = audio.read(recording.paths[0])
        if info.frames == 0:
            raise AudioError(f"{recording.paths[0]}: the file holds no samples")
        aligned = [
            self._aligned(torch.from_numpy(reference), name, path, recording.name, record)
            for name, path in zip(self.systems, recording.paths[1:], strict=True)
        ]
        first, last = max(a.first for a in aligned), min(a.last for a in aligned)
        signals = [(name, a.x[:, first - a.first : last - a.first]) for name, a in zip(self.systems, aligned, strict=True)]
        known = dict(signals).get(INPUT)
        case = _Case(self.conditions[0], known, iter(signals))
        return torch.from_numpy(reference[:, first:last].copy()), iter([case])

    def _aligned(self, reference: Tensor, system: str, path: Path, name: str, record: _Record) -> _Aligned:
        rate, hz = self.sample_rate, self.conditions[0].cutoff_hz
        estimate = self._estimate(path, len(reference), system, record)
        length, own_length = reference.shape[-1], estimate.shape[-1]
        lag, inverted, trusted = _lag(reference, estimate, rate)
        if not trusted:
            record.notes.append(f"{system}: too unlike the reference to find a delay")
        first, last = max(0, -lag), min(length, own_length - lag)
        level_db = math.nan
        if last > first:
            pair = reference[:, first:last], estimate[:, first + lag : last + lag]
            level_db = _level_db(*pair, rate, hz or min(dsp.detect_cutoff(pair[1], rate), rate / 2))
        record.alignment.append(
            {"system": system, "file": name, "lag_ms": 1e3 * lag / rate, "level_db": level_db, "inverted": inverted}
        )
        if not self.align:
            lag, inverted, level_db = 0, False, 0.0
            first, last = 0, min(length, own_length)
        # A delay may have pushed the end out of the file, or the file may have been cut where the delay was.
        missing = min(abs(own_length - length), max(first, abs(own_length - lag - length)))
        if missing > _LENGTH_SLACK * rate or last <= first:
            raise AudioError(
                f"{path}: lasts {own_length / rate:.2f} s, its reference {length / rate:.2f} s; a difference of more than "
                f"{_LENGTH_SLACK:g} s is no matter of alignment"
            )
        if own_length != length:
            record.notes.append(f"{system}: lengths differ by at most {_LENGTH_SLACK:g} s, the longer one was trimmed")
        gain = 10 ** (-level_db / 20) if math.isfinite(level_db) else 1.0
        return _Aligned(first, last, estimate[:, first + lag : last + lag] * (-gain if inverted else gain))

    def _estimate(self, path: Path, channels: int, system: str, record: _Record) -> Tensor:
        """`(C, T)` at the references' rate."""
        x, info = audio.read(path)
        if info.frames == 0:
            raise AudioError(f"{path}: the file holds no samples")
        if len(x) != channels:
            raise AudioError(f"{path}: has {len(x)} channels, its reference {channels}; mix one of them first")
        if info.sample_rate != self.sample_rate:
            band = f", empty above {info.sample_rate / 2000:g} kHz" if info.sample_rate < self.sample_rate else ""
            record.notes.append(f"{system}: resampled from {info.sample_rate} to {self.sample_rate} Hz{band}")
        return dsp.resample(torch.from_numpy(x), info.sample_rate, self.sample_rate)


class _Aligned(NamedTuple):
    """An estimate in its place: samples `first` to `last` of the reference."""

    first: int
    last: int
    x: Tensor


def _lag(reference: Tensor, estimate: Tensor, sr: int) -> tuple[int, bool, bool]:
    """Samples that `estimate` `(C, T')` comes late after `reference` `(C, T)`, whether it is inverted, and whether there is
    enough in common to say so; all channels together."""
    lag, correlation = dsp.best_lag(reference.numpy(), estimate.numpy(), int(_LONGEST_LAG * sr))
    if abs(correlation) < _LEAST_CORRELATION:
        return 0, False, False
    return lag, correlation < 0, True


def _level_db(reference: Tensor, estimate: Tensor, sr: int, edge_hz: float) -> float:
    """Power of `estimate` over `reference`, both `(C, T)`, below a frequency and clear of the slope there; nan where either is
    silent."""
    below = math.ceil(0.9 * edge_hz * reference.shape[-1] / sr) + 1
    powers = [float(torch.fft.rfft(x.double())[:, :below].abs().square().sum()) for x in (estimate, reference)]
    return 10 * math.log10(powers[0] / powers[1]) if min(powers) > 0 else math.nan


def _model(source: System) -> Model:
    return cast(Model, infer.load(source)) if isinstance(source, str | os.PathLike) else source


def _load(systems: Sequence[System]) -> tuple[dict[str, Model], dict[str, System]]:
    """Models, and where they come from, by the names that the table gives them."""
    if not systems:
        raise ConfigError("there is nothing to measure; give a shipped name, a checkpoint folder or a model")
    models: dict[str, Model] = {}
    sources: dict[str, System] = {}
    for source in systems:
        model = _model(source)
        name = str(getattr(model, "name", "") or type(model).__name__)
        if name in (*models, INPUT, REFERENCE):
            name = str(source) if isinstance(source, str | os.PathLike) else f"{name} {len(models) + 1}"
        if name in (*models, INPUT, REFERENCE):
            raise ConfigError(f"two systems would be called {name!r}; give each once, and none the name of a signal")
        models[name], sources[name] = model, source
    return models, sources


def _identity(source: System, model: Model) -> list[str] | None:
    """What makes a model the one it is: its class, its configuration and the sha256 of its weights; None where that is more
    than can be seen from outside."""
    network = getattr(model, "generator", None)
    if isinstance(network, nn.Module):
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        kind = type(network)
        return [f"{kind.__module__}.{kind.__qualname__}", repr(getattr(network, "config", "")), digest.hexdigest()]
    if isinstance(source, str | os.PathLike) and Path(source).is_file():
        return [hashlib.sha256(Path(source).read_bytes()).hexdigest()]
    return None


def _describe(name: str, model: Model | None) -> dict[str, Any]:
    network = getattr(model, "generator", None)
    arch = str(getattr(model, "meta", {}).get("arch", "")) if model is not None else ""
    parameters = sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else None
    return {"name": name, "arch": arch, "parameters": 0 if name == INPUT else parameters}


def _cutoffs(cutoffs: Sequence[float] | None, rate: int) -> list[float]:
    if cutoffs is None:
        return [hz for hz in CUTOFFS_HZ if hz < rate / 2]
    if not cutoffs:
        raise ConfigError("there is no cut-off to measure at; give one or more in Hz")
    for hz in cutoffs:
        if not 100 <= hz < rate / 2:
            raise ConfigError(f"cut-off {hz:g} Hz must lie from 100 Hz to below {rate / 2:g} Hz, half the model's rate")
    return list(dict.fromkeys(float(hz) for hz in cutoffs))


def _metric_names(names: Sequence[str] | None, notes: list[str]) -> tuple[str, ...]:
    """Those of the wanted metrics that can be had here, in the order of `metrics.METRICS`; `notes` says why others cannot."""
    wanted = list(measures.METRICS) if names is None else list(names)
    for name in wanted:
        if name not in measures.METRICS:
            hint = nearest(name, measures.METRICS)
            raise ConfigError(f"no metric {name!r}; did you mean {hint!r}? ({', '.join(measures.METRICS)})")
    missing = measures.missing(wanted)
    notes += dict.fromkeys(missing.values())
    found = tuple(name for name in measures.METRICS if name in wanted and name not in missing)
    if not found:
        raise ConfigError(f"there is no metric to measure with: {'; '.join(missing.values()) or 'none was named'}")
    return found


def _recordings(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], split: str | None, cls: str | None
) -> tuple[list[_Recording], list[str]]:
    """What to measure with, and notes on what was left out."""
    if not isinstance(source, str | os.PathLike):
        paths = dict.fromkeys(Path(p) for p in source)
        if not paths:
            raise ConfigError("there are no recordings to measure with; name files, or a folder")
        top = Path(os.path.commonpath([p.resolve().parent for p in paths]))
        return [_Recording(p.resolve().relative_to(top).as_posix(), p.parent.name, (p,)) for p in paths], []
    folder = Path(source)
    if folder.is_file():
        return [_Recording(folder.name, folder.parent.name, (folder,))], []
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such file or folder; give a folder of full-band recordings")
    top = folder.resolve()
    for root in (folder, *top.parents[:3]):
        if (root / "manifest.csv").is_file():
            inside = [
                _Recording(path.resolve().relative_to(top).as_posix(), clip.speaker, (path,))
                for clip in corpora.clips(root, cls=cls, split=split)
                if (path := Path(clip.path)).resolve().is_relative_to(top)
            ]
            if not inside:
                raise ConfigError(f"{folder}: no recording of split {split!r} and class {cls!r} in {root / 'manifest.csv'}")
            return inside, []
    if split is not None or cls is not None:
        raise ConfigError(f"{folder}: a split or class needs a manifest.csv in the folder or above it; there is none")
    found, others = _audio_files(folder)
    if not found:
        what = f"holds no audio ({_some(others)})" if others else "an empty folder"
        raise ConfigError(f"{folder}: {what}; give a folder of full-band recordings")
    notes = [f"Left out, since not audio: {_some(others)}."] if others else []
    return [_Recording(p.relative_to(folder).as_posix(), p.parent.name, (p,)) for p in found], notes


def _audio_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Files below a folder that begin like audio, and the names of the others; hidden ones are neither."""
    found, others = [], []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                known = containers.sniff(file) is not None
        except OSError:  # reading it says why
            known = True
        if known:
            found.append(path)
        else:
            others.append(path.relative_to(folder).as_posix())
    return found, others


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _by_stem(folder: Path, what: str, skipped: dict[str, str]) -> dict[str, Path]:
    """Audio below a folder by its path without suffix; two of one stem are in `skipped`."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the folder with {what}")
    groups: dict[str, list[Path]] = {}
    for path in _audio_files(folder)[0]:
        groups.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not groups:
        raise ConfigError(f"{folder}: holds no audio; give the folder with {what}")
    for group in groups.values():
        if len(group) > 1:
            names = ", ".join(path.name for path in group)
            skipped[str(group[0].with_suffix(""))] = f"several files have this name ({names}); leave one of them there"
    return {stem: group[0] for stem, group in groups.items() if len(group) == 1}


def _pairs(reference: Path, folders: Mapping[str, Path]) -> tuple[list[_Recording], int, dict[str, str]]:
    """References with all their estimates, the sample rate of most references, and what is left over."""
    skipped: dict[str, str] = {}
    references = _by_stem(reference, "the references", skipped)
    estimates = {name: _by_stem(folder, f"what {name} made", skipped) for name, folder in folders.items()}
    for found in estimates.values():
        for stem in set(found) - set(references):
            if (own := stem.removesuffix(".bwe")) in references and own not in found:
                found[own] = found.pop(stem)
        for stem in set(found) - set(references):
            skipped[str(found[stem])] = f"there is no reference of this name in {reference}"
    pairs, rates = [], {}
    for stem, path in references.items():
        without = [str(folders[name]) for name, found in estimates.items() if stem not in found]
        if without:
            skipped[str(path)] = f"there is no file of this name in {', '.join(without)}"
            continue
        try:
            with audio.Reader(path) as reader:
                rates[stem] = reader.info.sample_rate
        except (AudioError, ImportError) as error:
            skipped[str(path)] = str(error).removeprefix(f"{path}: ")
            continue
        name = path.relative_to(reference).as_posix()
        pairs.append((stem, _Recording(name, path.parent.name, (path, *(found[stem] for found in estimates.values())))))
    if not pairs:
        raise AudioError(f"{reference}: no reference has an estimate{_first_of(skipped)}")
    counts = Counter(rates.values())
    rate = max(counts, key=lambda sr: (counts[sr], sr))
    for stem, pair in pairs:
        if rates[stem] != rate:
            skipped[str(pair.paths[0])] = f"has {rates[stem]} Hz, most references {rate} Hz; compare it in a run of its own"
    return [pair for stem, pair in pairs if rates[stem] == rate], rate, dict(sorted(skipped.items()))


def _first_of(skipped: Mapping[str, str]) -> str:
    return next((f"; the first, {name}: {why}" for name, why in skipped.items()), "")


def _conditions(filter: str, cutoffs: Sequence[float] | None, sr: int) -> list[Condition]:
    if filter in FILTERS:
        return [Condition(filter, hz) for hz in _cutoffs(cutoffs, sr)]
    name, bitrate = degrade.parse_codec(filter)
    # In whole Hz: rows, which are rounded, and conditions are told apart by it.
    hz = float(round(degrade.codec_cutoff(name, bitrate, degrade.codec_rate(name, sr), sr)))
    if dsp.is_full_band(hz, sr):
        raise ConfigError(f"{filter} keeps the whole band at {sr} Hz: there is nothing to extend; give a lower bit rate")
    return [Condition(filter, hz)]


def _narrow(x: Tensor, sr: int, cutoff_hz: float, filter: str) -> Tensor:
    """`(C, T)` without its highs, same shape."""
    if filter not in FILTERS:
        return degrade.codec(x, sr, *degrade.parse_codec(filter))
    if filter == "brickwall":
        return dsp.band_limit(x, sr, cutoff_hz)
    if filter in dsp.FILTER_FAMILIES:
        filtered = dsp.lowpass(x.double().numpy(), sr, cutoff_hz, filter, order=8, ripple_db=0.05)
        return torch.from_numpy(filtered.astype(np.float32))
    if filter == "soxr":
        soxr = _import_soxr()
        low = soxr.resample(x.T.numpy(), sr, 2 * cutoff_hz, quality="VHQ")
        y = torch.from_numpy(np.ascontiguousarray(soxr.resample(low, 2 * cutoff_hz, sr, quality="VHQ").T))
        return torch.nn.functional.pad(y, (0, max(0, x.shape[-1] - y.shape[-1])))[..., : x.shape[-1]]
    resampler = cast(degrade.Resampler, "sinc6" if filter == "torchaudio" else filter)
    return degrade.through_resampler(x, sr, resampler, cutoff_hz)[0]


def _import_soxr() -> Any:
    try:
        import soxr
    except ImportError as error:
        raise ImportError("the filter 'soxr' needs the soxr package: pip install 'bwe[eval]'") from error
    return soxr


def _measure(task: _Task, models: Mapping[str, Model], recording: _Recording) -> _Record:
    """Everything about one recording; what goes wrong with it is in the record."""
    record = _Record()
    try:
        _fill(task, models, recording, record)
    except ConfigError:  # is that of every file
        raise
    except Exception as error:  # nothing that one file does may stop the others
        why = str(error) if isinstance(error, BweError | ImportError) else f"{type(error).__name__}: {error}"
        return _Record(skipped=why.removeprefix(f"{recording.paths[0]}: "))
    return record


def _fill(task: _Task, models: Mapping[str, Model], recording: _Recording, record: _Record) -> None:
    rate = task.sample_rate
    x, cases = task.open(recording, models, record)
    if not bool((x != 0).any()):
        raise AudioError(f"{recording.paths[0]}: the reference is silent; there is nothing to compare with")
    reference = measures.Reference(x, rate)
    record.arrays["embedding"] = np.asarray(perceptual.embed(x, rate))
    for number, (condition, known, signals) in enumerate(cases):
        hz = condition.cutoff_hz
        spectra, edges = [], []
        if hz is not None:
            edges.append(measures.edge_spectrum(x, rate, hz).mean(0).numpy())
        for name, y in signals:
            if y.shape != x.shape:
                raise AudioError(f"{recording.paths[0]}: {name} made {tuple(y.shape)} of {tuple(x.shape)} samples")
            values = measures.measure(reference, y, rate, hz, known=known, names=task.metrics)
            record.values.append(_floats(values, _rounded))
            spectra.append(_spectrum(x, y, rate))
            record.arrays[f"embedding {number} {name}"] = np.asarray(perceptual.embed(y, rate))
            if hz is not None:
                edges.append(measures.edge_spectrum(y, rate, hz).mean(0).numpy())
        record.arrays[f"spectrum {number}"] = np.stack(spectra)
        if edges:
            record.arrays[f"edge {number}"] = np.stack(edges)


def _spectrum(x: Tensor, y: Tensor, sr: int) -> np.ndarray:
    """Mean square of the log-spectral difference around each of `_frequencies`, over frames and channels."""
    square = np.asarray(measures.lsd_per_bin(x, y, sr)).reshape(-1, 1025).astype(float) ** 2
    return np.append(square[:, :1024].mean(0).reshape(256, 4).mean(1), square[:, 1024].mean())


def _frequencies(sr: int) -> np.ndarray:
    return np.append(np.arange(256) * 4 + 1.5, 1024) * sr / 2048


class _Cache:
    """Records on disk, one file each, written as a whole or not at all."""

    def __init__(self, folder: Path, settings: object) -> None:
        self.folder = folder
        self._settings = json.dumps(settings, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: no cache can be kept there ({error.strerror}); choose another folder") from None

    def _path(self, recording: _Recording) -> Path | None:
        """None for a file that is gone: measuring it says so."""
        try:
            about = [(str(p.resolve()), s.st_size, s.st_mtime_ns) for p in recording.paths for s in (p.stat(),)]
        except OSError:
            return None
        key = hashlib.sha256(f"{self._settings}\n{json.dumps([recording.name, about])}".encode()).hexdigest()
        return self.folder / f"{key}.safetensors"

    def get(self, recording: _Recording) -> _Record | None:
        path = self._path(recording)
        if path is None or not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, "np") as file:
                content = json.loads(file.metadata()["record"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            with contextlib.suppress(OSError):  # the folder may be another user's
                os.utime(path)
            return _Record(**content, arrays=arrays)
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError):  # damaged: measured again
            return None

    def put(self, recording: _Recording, record: _Record) -> None:
        path = self._path(recording)
        if path is None:
            return
        content = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "arrays"}
        arrays = {name: np.ascontiguousarray(x) for name, x in record.arrays.items()}
        runs.write_bytes(path, safetensors.numpy.save(arrays, {"record": json.dumps(content)}))

    def prune(self) -> None:
        """Removes what was not used for long, the oldest beyond the size allowed, and what kills left half-written."""
        now, total, aged = time.time(), 0, []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another evaluation may be at it
                status = path.stat()
                if path.suffix == ".tmp" and path.name.startswith(".") and now - status.st_mtime > 3600:
                    path.unlink()
                elif path.suffix == ".safetensors":
                    aged.append((status.st_mtime, status.st_size, path))
        for used, size, path in sorted(aged, reverse=True):
            total += size
            if now - used > CACHE_DAYS * 86_400 or total > CACHE_BYTES:
                path.unlink(missing_ok=True)


@functools.cache
def _suite() -> list[str]:
    """What the figures depend on beside their inputs: this package's code and the libraries that measure."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    found = [digest.hexdigest()]
    for name in ("numpy", "scipy", "torch", "torchaudio", "pesq", "pystoi", "soxr"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found


_worker: tuple[_Task, Mapping[str, Model]]


def _start_worker(task: _Task, lifeline: Any) -> None:
    global _worker
    # Ctrl-C and a scheduler's SIGTERM reach every process; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(1)
    _worker = (task, task.load())


def _follow(lifeline: Any) -> None:
    """Ends this process in the middle of its work as soon as the parent lets go or is no more."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _measure_in_worker(recording: _Recording) -> _Record:
    return _measure(*_worker, recording)


@contextlib.contextmanager
def _anonymous_main() -> Iterator[None]:
    """Processes started meanwhile do not run the caller's script to have its names: ours need none of them, and a script
    without ``if __name__ == "__main__"`` would start the evaluation again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _in_processes(task: _Task, todo: Mapping[int, _Recording], workers: int) -> Generator[tuple[int, _Record], None, None]:
    """Records by number as they are finished. Where a process dies, the files that are left are measured one at a time, so
    that it is clear which one it dies of."""
    context = multiprocessing.get_context("spawn")
    left = dict(todo)
    while left:
        lifeline, held = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(min(workers, len(left)), context, _start_worker, (task, lifeline))
        try:
            with _anonymous_main():
                numbers = {pool.submit(_measure_in_worker, recording): number for number, recording in left.items()}
            for future in as_completed(numbers):
                record = future.result()
                del left[numbers[future]]
                yield numbers[future], record
        except BrokenProcessPool:
            if workers == 1:
                number = next(iter(left))
                del left[number]
                yield number, _Record(skipped="the process that measured it was killed; is there enough memory?")
            workers = 1
        finally:
            # Before the pool, which waits for all of them: one that waits for a lock that a killed one held never ends.
            held.close()
            pool.shutdown(cancel_futures=True)
            lifeline.close()


@contextlib.contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _evaluation(
    task: _Task,
    models: Mapping[str, Model],
    recordings: Sequence[_Recording],
    notes: list[str],
    *,
    title: str,
    cutoff_source: str,
    baseline: str | None,
    workers: int | None,
    cache: str | os.PathLike[str] | None,
    identities: object,
    clips: int,
    progress: Callable[[int, int], None] | None,
    skipped: dict[str, str] | None = None,
) -> Evaluation:
    """`identities` is what the models are known by; None where they cannot be told from others, nor made elsewhere."""
    if baseline is not None and baseline not in task.systems:
        hint = nearest(baseline, task.systems)
        raise ConfigError(f"no system {baseline!r} to be the baseline; did you mean {hint!r}? ({', '.join(task.systems)})")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be 1 or more, not {workers}")
    records: dict[int, _Record] = {}
    store = None
    if cache is not None and identities is not None:
        settings = [task.systems, task.conditions, task.sample_rate, task.metrics, identities, _suite()]
        store = _Cache(Path(cache), settings)
        records = {n: kept for n, r in enumerate(recordings) if (kept := store.get(r)) is not None}
    reused = len(records)
    todo = {n: r for n, r in enumerate(recordings) if n not in records}
    named = not isinstance(task, _Simulation) or all(isinstance(s, str | os.PathLike) for s in task.sources.values())
    signals = len(todo) * len(task.conditions) * len(task.systems)
    processes = min(workers or min(_cores(), signals // _LEAST_SHARE), len(todo)) if named else 1

    def done() -> None:
        if progress is not None:
            progress(len(records), len(recordings))

    if records:
        done()
    with _one_thread(named), contextlib.ExitStack() as stack:
        if processes > 1:
            results = _in_processes(task, todo, processes)
        else:
            results = ((n, _measure(task, models, r)) for n, r in todo.items())
        stack.enter_context(contextlib.closing(results))
        for number, record in results:
            if store is not None and not record.skipped:
                store.put(recordings[number], record)
            records[number] = record
            done()
    if store is not None:
        store.prune()

    skipped = dict(skipped or {})
    measured = []
    for number, recording in enumerate(recordings):
        if records[number].skipped:
            skipped[recording.name] = records[number].skipped
        else:
            measured.append((recording, records[number]))
    if not measured:
        raise AudioError(f"none of {len(recordings)} files can be measured with{_first_of(skipped)}")
    found = _Findings(task, measured)
    for text, count in Counter(text for _, record in measured for text in record.notes).items():
        notes.append(f"{text} ({count} of {len(measured)} files).")
    notes += found.alignment_notes(task.align) if isinstance(task, _Pairing) else []
    notes.append(found.bootstrap_note())
    with _one_thread(named):
        heard = list(_clips(task, models, found, clips))
    return Evaluation(
        version=__version__,
        title=title,
        sample_rate=task.sample_rate,
        cutoff_source=cutoff_source,
        baseline=baseline,
        systems=[_describe(name, models.get(name)) for name in task.systems],
        conditions=[{**c._asdict(), "floor": _floor(c, task.sample_rate)} for c in task.conditions],
        metrics=[_metric(name) for name in found.metrics],
        rows=_floats(found.rows(baseline), _rounded),
        speakers=_floats(found.speaker_means(), _rounded),
        frechet=_floats(found.frechet(), _rounded),
        lines=_floats(found.lines(), _rounded),
        frequency=_floats(found.frequency(), _rounded),
        worst=found.worst(),
        alignment=_floats([entry for _, record in measured for entry in record.alignment], _rounded),
        files=found.files(),
        skipped=skipped,
        notes=notes,
        clips=heard,
        reused=reused,
    )


def _floor(condition: Condition, sr: int) -> float:
    return math.nan if condition.cutoff_hz is None else measures.lsd_floor(condition.cutoff_hz, sr)


def _metric(name: str) -> dict[str, Any]:
    metric = measures.METRICS[name]
    return {key: getattr(metric, key) for key in ("name", "title", "unit", "better", "digits")}


class _Findings:
    """Statistics over the records of one task.

    `S` systems, `K` conditions, `N` files, `M` metrics; `values` is `(K, S, N, M)`, nan where a value is not finite.
    """

    def __init__(self, task: _Task, measured: Sequence[tuple[_Recording, _Record]]) -> None:
        self.task = task
        self.recordings = [recording for recording, _ in measured]
        self.records = [record for _, record in measured]
        have = {name for record in self.records for values in record.values for name in values}
        self.metrics = [name for name in task.metrics if name in have]
        shape = (len(measured), len(task.conditions), len(task.systems), len(self.metrics))
        flat = [[values.get(m, math.nan) for m in self.metrics] for record in self.records for values in record.values]
        self.values = np.array(flat, dtype=float).reshape(shape).transpose(1, 2, 0, 3)
        self.values[~np.isfinite(self.values)] = np.nan
        names, speaker = np.unique([r.speaker for r in self.recordings], return_inverse=True)
        self.speakers: list[str] = names.tolist()
        self.speaker = speaker
        self.by_speaker = len(names) >= FEW_CLUSTERS

    def _cells(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        for k, condition in enumerate(self.task.conditions):
            for s, system in enumerate(self.task.systems):
                yield k, s, {"system": system, **condition._asdict()}

    def _named(self, values: Iterable[float]) -> dict[str, float]:
        return dict(zip(self.metrics, map(float, values), strict=True))

    def rows(self, baseline: str | None) -> list[dict[str, Any]]:
        clusters = self.speaker if self.by_speaker else np.arange(len(self.recordings))
        low, high = bootstrap(self.values, clusters)
        means = _mean(self.values, axis=2)
        base = None if baseline is None else self.task.systems.index(baseline)
        if base is not None:
            against = self.values[:, base : base + 1]
            differences = self.values - against
            gap_low, gap_high = bootstrap(differences, clusters)
            gaps = _mean(differences, axis=2)
            gains = np.stack([_gain(m, self.values[..., i], against[..., i]) for i, m in enumerate(self.metrics)], -1)
            wins, losses = (gains > 0).sum(2), (gains < 0).sum(2)
        rows = []
        for k, s, row in self._cells():
            row |= {"n": len(self.recordings), "mean": self._named(means[k, s])}
            row["ci95"] = {m: _interval(low[k, s, i], high[k, s, i]) for i, m in enumerate(self.metrics)}
            row["paired"] = None if base in (None, s) else {
                m: {
                    "difference": float(gaps[k, s, i]),
                    "ci95": _interval(gap_low[k, s, i], gap_high[k, s, i]),
                    "wins": int(wins[k, s, i]),
                    "losses": int(losses[k, s, i]),
                    "p": _sign_test(int(wins[k, s, i]), int(losses[k, s, i])),
                }
                for i, m in enumerate(self.metrics)
            }  # fmt: skip
            rows.append(row)
        return rows

    def speaker_means(self) -> list[dict[str, Any]]:
        found = []
        for k, s, row in self._cells():
            for number, speaker in enumerate(self.speakers):
                own = self.speaker == number
                means = self._named(_mean(self.values[k, s][own], axis=0))
                found.append({**row, "speaker": speaker, "n": int(own.sum()), "mean": means})
        return found

    def frechet(self) -> list[dict[str, Any]]:
        references = np.concatenate([record.arrays["embedding"] for record in self.records])
        found = []
        for k, _, row in self._cells():
            own = np.concatenate([record.arrays[f"embedding {k} {row['system']}"] for record in self.records])
            value = perceptual.frechet_distance(references, own) if len(references) > 1 else math.nan
            found.append({**row, "value": value})
        return found

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for k, condition in enumerate(self.task.conditions):
            hz = condition.cutoff_hz
            if hz is None:
                continue
            edges = np.mean([record.arrays[f"edge {k}"] for record in self.records], axis=0)
            heights = [measures.line_height(edge, self.task.sample_rate, hz) for edge in edges]
            found.append({**condition._asdict(), "db": dict(zip((REFERENCE, *self.task.systems), heights, strict=True))})
        return found

    def frequency(self) -> list[dict[str, Any]]:
        found = []
        for k, condition in enumerate(self.task.conditions):
            lsd = np.sqrt(np.mean([record.arrays[f"spectrum {k}"] for record in self.records], axis=0))
            by_system = dict(zip(self.task.systems, lsd.tolist(), strict=True))
            found.append({**condition._asdict(), "hz": _frequencies(self.task.sample_rate).tolist(), "lsd": by_system})
        return found

    def ranked(self, k: int, s: int) -> tuple[str, list[int]]:
        """The metric that says what is bad, and the files, the worst first; those without a value are left out."""
        wanted = ("lsd_hf", "lsd") if self.task.conditions[k].cutoff_hz is not None else ("lsd",)
        metric = next((name for name in (*wanted, *self.metrics) if name in self.metrics), "")
        if not metric:
            return "", list(range(len(self.recordings)))
        badness = -_gain(metric, self.values[k, s, :, self.metrics.index(metric)], 0.0)
        return metric, [int(n) for n in np.argsort(-badness, kind="stable") if math.isfinite(badness[n])]

    def worst(self) -> list[dict[str, Any]]:
        found = []
        for k, s, row in self._cells():
            metric, order = self.ranked(k, s)
            i = self.metrics.index(metric)
            files = [{"file": self.recordings[n].name, "value": float(self.values[k, s, n, i])} for n in order[:WORST]]
            found.append({**row, "metric": metric, "files": files})
        return found

    def files(self) -> list[dict[str, Any]]:
        found = []
        for recording, record in zip(self.recordings, self.records, strict=True):
            for (_, _, row), values in zip(self._cells(), record.values, strict=True):
                own = {name: values[name] for name in self.metrics if name in values}
                found.append({"file": recording.name, "speaker": recording.speaker, **row, "values": own})
        return found

    def bootstrap_note(self) -> str:
        drawn = f"{len(self.speakers)} speakers" if self.by_speaker else f"{len(self.recordings)} files"
        return f"Intervals: 95 %, percentile bootstrap that draws {drawn} ({RESAMPLES} times)."

    def alignment_notes(self, corrected: bool) -> list[str]:
        words = []
        for system in self.task.systems:
            own = [entry for record in self.records for entry in record.alignment if entry["system"] == system]
            lags, levels = (np.array([entry[key] for entry in own], dtype=float) for key in ("lag_ms", "level_db"))
            levels = levels[np.isfinite(levels)]
            inverted = sum(entry["inverted"] for entry in own)
            level = f", level {_range(levels, 'dB')}" if len(levels) else ""
            turned = f", {inverted} of {len(own)} files inverted" if inverted else ""
            did = "corrected" if corrected else "not corrected"
            words.append(f"{system}: delay {_range(lags, 'ms')}{level}{turned}; {did}.")
        return words


def _range(values: np.ndarray, unit: str) -> str:
    low, middle, high = (_minus(f"{round(v, 2) + 0.0:.2f}") for v in (values.min(), np.median(values), values.max()))
    return f"{middle} {unit}" + (f" (median; {low} to {high})" if low != high else "")


def _interval(low: float, high: float) -> list[float] | None:
    return [float(low), float(high)] if math.isfinite(low) and math.isfinite(high) else None


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Of what is finite; nan of nothing."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis) / known.sum(axis)


def bootstrap(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean over files, drawing whole clusters with replacement (Davison & Hinkley 1997, 3.8).

    Args:
        values: `(..., N, M)`, nan where there is none; every draw is the same for all of `...` and `M`.
        clusters: `(N,)`, 0 to the number of clusters − 1: the speaker of each file, or a number of its own.

    Returns:
        low and high, `(..., M)`; nan for a single cluster.
    """
    count = int(clusters.max()) + 1
    columns = np.moveaxis(values, -2, 0).reshape(len(clusters), -1)
    known = np.isfinite(columns)
    filled = np.where(known, columns, 0.0)
    shape = (*values.shape[:-2], values.shape[-1])
    if count < 2:
        return np.full(shape, math.nan), np.full(shape, math.nan)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(0, RESAMPLES, 100):  # in pieces: a weight per draw and file would fill the memory
        weights = rng.multinomial(count, np.full(count, 1 / count), size=100)[:, clusters].astype(float)
        with np.errstate(invalid="ignore"):
            means.append((weights @ filled) / (weights @ known))
    drawn = np.concatenate(means)
    drawn[:, ~known.any(0)] = 0.0
    low, high = (np.where(known.any(0), edge, math.nan) for edge in np.nanpercentile(drawn, [2.5, 97.5], axis=0))
    return low.reshape(shape), high.reshape(shape)


def _gain(metric: str, values: np.ndarray, against: np.ndarray | float) -> np.ndarray:
    """How much better `values` are, in the metric's own unit; negative is worse."""
    better = measures.METRICS[metric].better
    if better == "zero":
        return np.abs(against) - np.abs(values)
    return (values - against) * (1 if better == "higher" else -1)


def _sign_test(wins: int, losses: int) -> float:
    """p of the exact two-sided sign test; ties count for nothing, and nan is for nothing but ties."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else math.nan


def _clips(task: _Task, models: Mapping[str, Model], found: _Findings, count: int) -> Iterator[Clip]:
    if not count:
        return
    first = next((s for s, name in enumerate(task.systems) if name != INPUT), 0)
    _, order = found.ranked(0, first)
    order = order or list(range(len(found.recordings)))
    ranks = np.linspace(0, len(order) - 1, count).round().astype(int)
    ranks[len(ranks) // 2] = (len(order) - 1) // 2
    for rank in sorted(set(ranks.tolist())):
        recording = found.recordings[order[rank]]
        reference, cases = task.open(recording, models, _Record())
        condition, _, signals = next(cases)
        length = min(reference.shape[-1], int(_CLIP_SECONDS * task.sample_rate))
        start = (reference.shape[-1] - length) // 2
        shown = {name: y[:, start : start + length].clone().numpy() for name, y in (*signals, (REFERENCE, reference))}
        yield Clip(recording.name, recording.speaker, condition.filter, condition.cutoff_hz, task.sample_rate, shown)


def _terminal_lines(found: Evaluation) -> Iterator[str]:
    files, speakers = len({f["file"] for f in found.files}), len({f["speaker"] for f in found.files})
    heard = f" of {speakers} speakers" if speakers > 1 else ""
    yield found.title
    yield f"{files} files{heard}, {found.sample_rate / 1000:g} kHz, cut-off {found.cutoff_source}"
    known = {metric["name"]: metric for metric in found.metrics}
    shown = [known[name] for name in _MAIN if name in known] or found.metrics[:8]
    names = max(len("reference"), *(len(s["name"]) for s in found.systems))
    first = min(24, names) + 2
    for condition in found.conditions:
        rows = [r for r in found.rows if (r["filter"], r["cutoff_hz"]) == (condition["filter"], condition["cutoff_hz"])]
        table = [["", *(_heading(metric) for metric in shown)]]
        for row in rows:
            cells = [_cell(row["mean"][m["name"]], row["ci95"][m["name"]], m["digits"]) for m in shown]
            table.append([row["system"], *cells])
            if row["paired"]:
                table.append([f"− {found.baseline}", *(_difference(row["paired"][m["name"]], m) for m in shown)])
        if math.isfinite(condition["floor"]) and any(metric["name"] == "lsd" for metric in shown):
            floor = [f"{condition['floor']:.2f}" if metric["name"] == "lsd" else "" for metric in shown]
            table.insert(1, ["floor", *floor])
        widths = [max(len(line[c]) for line in table) + 2 for c in range(1, len(shown) + 1)]
        while first + sum(widths) > _WIDTH and len(widths) > 1:
            widths.pop()
        yield ""
        where = [f"{condition['cutoff_hz']:g} Hz" if condition["cutoff_hz"] is not None else "", condition["filter"]]
        yield ", ".join(filter(None, where)) or "As the folders are"
        for line in table:
            text = "".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths, strict=False))
            yield f"{line[0][: first - 2]:<{first}}{text}".rstrip()
        for line_at in found.lines:
            if (line_at["filter"], line_at["cutoff_hz"]) == (condition["filter"], condition["cutoff_hz"]):
                heights = ", ".join(f"{name} {_minus(f'{height:.1f}')}" for name, height in line_at["db"].items())
                yield f"spectral line at the cut-off, dB: {heights}"
    yield ""
    lsd = " LSD: STFT 2048/512, log10 power floored at 1e-8 (apbwe)." if "lsd" in known else ""
    yield f"Means ± half the 95 % interval.{lsd}"
    if found.baseline is not None and len(found.systems) > 1:
        yield f"− {found.baseline}: mean difference over the same files; * p < 0.05, ** p < 0.01, *** p < 0.001 (sign test)."
    yield from found.notes
    if found.skipped:
        path, why = next(iter(found.skipped.items()))
        yield f"Skipped {len(found.skipped)} files, the first {path}: {why}"


def _heading(metric: Mapping[str, Any]) -> str:
    return f"{metric['title']} {metric['unit']}".strip()


def _cell(value: float, ci95: Sequence[float] | None, digits: int) -> str:
    half = f" ±{(ci95[1] - ci95[0]) / 2:.{digits}f}" if ci95 else ""
    return (_minus(f"{value:.{digits}f}") if math.isfinite(value) else "–") + half


def _difference(paired: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    if not math.isfinite(paired["difference"]):
        return "–"
    stars = sum(paired["p"] < p for p in (0.05, 0.01, 0.001))
    return _minus(f"{paired['difference']:+.{metric['digits']}f}") + f"{'*' * stars:<3}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
