"""Measures a model over a set of full-band recordings: takes the highs away, lets the model put them back, compares.

Beside the model's figures stand those of the input as it is (what doing nothing scores) and the floor of the LSD.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

import numpy as np
import torch
from torch import Tensor

from bwe import __version__, audio, data, degrade, dsp, infer, metrics
from bwe.errors import AudioError, ConfigError, nearest

FILTERS: tuple[str, ...] = ("brickwall", *dsp.FILTER_FAMILIES, "soxr", "torchaudio", *degrade.RESAMPLERS)
CutoffSource = Literal["given", "detect"]

_COLUMNS = {
    "lsd": "LSD",
    "lsd_lf": "LSD-LF",
    "lsd_hf": "LSD-HF",
    "hf_bias": "HF bias dB",
    "si_sdr": "SI-SDR dB",
    "lsd_speech": "LSD speech",
    "lsd_pauses": "LSD pauses",
}
METRICS = (*_COLUMNS, "lsd_ssr_eval")
# A reference that ends below this share of the model's band cannot tell whether the highs are right.
_REFERENCE_BAND = 0.9


class Model(Protocol):
    """What is measured; `infer.Extender` is one."""

    sample_rate: int

    def __call__(self, x: Tensor, sr: int, cutoff: float | None = None) -> Tensor:
        """`(C, T)` at `sr` -> `(C, T')` at `sample_rate`; a cut-off of None is to be found from the signal."""


@dataclass(frozen=True)
class Row:
    """One line of a `Table`: the means over n files at one cut-off, of the "input" or of the "model".

    `mean` and `ci95` (half the width of the 95 % confidence interval of the mean) are by metric name, see `METRICS`.
    """

    cutoff_hz: float
    signal: str
    n: int
    mean: dict[str, float]
    ci95: dict[str, float]


@dataclass(frozen=True)
class Table:
    """What `evaluate` found; ``str(table)`` for the terminal.

    Attributes:
        model: name. filter, cutoff_source: as given to `evaluate`. sample_rate: Hz, of the comparison.
        rows: two for each cut-off, input and model.
        floor: `metrics.lsd_floor` by cut-off in Hz.
        line: `metrics.line_height` of the mean spectra by cut-off in Hz, of reference, input and model.
        files: one record per file and cut-off: path, cutoff_hz, input and model (metric name -> value).
        skipped: what could not serve as a reference: path -> why.
    """

    model: str
    filter: str
    cutoff_source: str
    sample_rate: int
    rows: tuple[Row, ...]
    floor: dict[float, float]
    line: dict[float, dict[str, float]]
    files: tuple[dict[str, object], ...]
    skipped: dict[str, str]

    def mean(self, metric: str, cutoff_hz: float, signal: str = "model") -> float:
        """One figure; KeyError where there is none."""
        for row in self.rows:
            if row.cutoff_hz == cutoff_hz and row.signal == signal:
                return row.mean[metric]
        raise KeyError((cutoff_hz, signal))

    def to_json(self) -> str:
        """All figures, the single files' included; what is not finite becomes null."""
        return json.dumps(
            _finite(
                {
                    "model": self.model,
                    "version": __version__,
                    "filter": self.filter,
                    "cutoff_source": self.cutoff_source,
                    "sample_rate": self.sample_rate,
                    "rows": [vars(row) for row in self.rows],
                    "lsd_floor": {f"{hz:g}": value for hz, value in self.floor.items()},
                    "edge_line_db": {f"{hz:g}": value for hz, value in self.line.items()},
                    "files": list(self.files),
                    "skipped": self.skipped,
                }
            ),
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )

    def __str__(self) -> str:
        count = max((row.n for row in self.rows), default=0)
        title = f"{self.model}  {self.filter}, cut-off {self.cutoff_source}, {self.sample_rate / 1000:g} kHz, {count} files"
        lines = [title, "cut-off  signal" + "".join(f"{name:>14}" for name in _COLUMNS.values())]
        for row in self.rows:
            cells = [f"{row.mean[key]:.2f}" + _plus_minus(row.ci95[key]) for key in _COLUMNS]
            lines.append(f"{row.cutoff_hz:>7g}  {row.signal:<6}" + "".join(f"{cell:>14}" for cell in cells))
            if row.signal == "model":
                lines.append(f"{row.cutoff_hz:>7g}  floor {self.floor[row.cutoff_hz]:>14.2f}")
        for hz, heights in self.line.items():
            shown = ", ".join(f"{signal} {height:.1f}" for signal, height in heights.items())
            lines.append(f"{hz:>7g}  spectral line at the cut-off, dB: {shown}")
        lines.append("Means ± 95 % confidence. LSD: STFT 2048/512, log10 power floored at 1e-8 (apbwe).")
        if self.skipped:
            path, why = next(iter(self.skipped.items()))
            lines.append(f"Skipped {len(self.skipped)} files that are no reference, the first {path}: {why}")
        return "\n".join(lines)


def _plus_minus(half_width: float) -> str:
    return f" ± {half_width:.2f}" if math.isfinite(half_width) else ""


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def evaluate(
    model: str | os.PathLike[str] | Model,
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    cutoffs: Sequence[float] = (4000.0, 8000.0),
    filter: str = "brickwall",
    split: str | None = None,
    cls: str | None = None,
    cutoff_source: CutoffSource = "given",
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Measure a model over full-band recordings.

    Every recording is resampled to the model's rate (`dsp.resample`), low-passed at each cut-off, extended, and compared
    with what it was; channels count as signals of their own, averaged per file.

    Args:
        model: shipped name, checkpoint folder, or anything that is called like an `infer.Extender`.
        source: one file, several, or a folder: the rows of the `manifest.csv` in it or above it that lie below it, or,
            without a manifest, every file below it that turns out to be audio.
        cutoffs: Hz.
        filter: how the band is removed. "brickwall" by FFT; "cheby1" (ripple 0.05 dB), "butter", "bessel", "ellip" of
            order 8, forward and backward; "soxr" (VHQ), "torchaudio" (sinc of width 6, as in AP-BWE's protocol) or a
            family of `degrade.RESAMPLERS` down to twice the cut-off and back.
        split, cls: only these rows of the manifest.
        cutoff_source: "given" tells the model the cut-off, "detect" lets it find the cut-off in the signal.
        progress: called with (files done, files in all).

    Raises ConfigError (no such filter, cut-off, folder or split), AudioError (a named file that cannot be read, nothing
    to measure with), ModelError, ImportError where "soxr" is not installed.
    """
    if filter not in FILTERS:
        raise ConfigError(f"no filter {filter!r}; did you mean {nearest(filter, FILTERS)!r}? ({', '.join(FILTERS)})")
    if cutoff_source not in get_args(CutoffSource):
        raise ConfigError(f"cutoff_source is 'given' or 'detect', not {cutoff_source!r}")
    paths, named = _paths(source, split, cls)
    name = str(model)
    if isinstance(model, str | os.PathLike):
        model = cast(Model, infer.load(model))
    else:
        name = str(getattr(model, "name", "") or type(model).__name__)
    rate = model.sample_rate
    if not cutoffs:
        raise ConfigError("there is no cut-off to measure at; give one or more in Hz")
    for hz in cutoffs:
        if not 100 <= hz < rate / 2:
            raise ConfigError(f"cut-off {hz:g} Hz must lie from 100 Hz to below {rate / 2:g} Hz, half the model's rate")

    files: list[dict[str, object]] = []
    skipped: dict[str, str] = {}
    edges: dict[float, dict[str, list[Tensor]]] = {float(hz): {} for hz in cutoffs}
    for done, path in enumerate(paths):
        try:
            reference = _reference(path, rate)
        except AudioError as error:
            if named:
                raise
            skipped[str(path)] = str(error).removeprefix(f"{path}: ")
            continue
        for hz in cutoffs:
            narrow = _narrow(reference, rate, hz, filter)
            extended = model(narrow, rate, hz if cutoff_source == "given" else None)
            record: dict[str, object] = {"path": str(path), "cutoff_hz": float(hz)}
            record["input"] = _measure(reference, narrow, rate, hz)
            record["model"] = _measure(reference, extended, rate, hz)
            files.append(record)
            for signal, x in (("reference", reference), ("input", narrow), ("model", extended)):
                edges[float(hz)].setdefault(signal, []).append(metrics.edge_spectrum(x, rate, hz).mean(0))
        if progress is not None:
            progress(done + 1, len(paths))
    if not files:
        why = f"; the first, {next(iter(skipped))}: {next(iter(skipped.values()))}" if skipped else ""
        raise AudioError(f"none of {len(paths)} files can serve as a reference at {rate} Hz{why}")
    rows = [_row(files, float(hz), signal) for hz in cutoffs for signal in ("input", "model")]
    floor = {float(hz): metrics.lsd_floor(hz, rate) for hz in cutoffs}
    line = {
        hz: {signal: metrics.line_height(torch.stack(found).mean(0), rate, hz) for signal, found in signals.items()}
        for hz, signals in edges.items()
    }
    return Table(name, filter, cutoff_source, rate, tuple(rows), floor, line, tuple(files), skipped)


def _paths(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], split: str | None, cls: str | None
) -> tuple[list[Path], bool]:
    """The files to measure with, and whether they were named one by one."""
    if not isinstance(source, str | os.PathLike):
        return [Path(p) for p in source], True
    folder = Path(source)
    if folder.is_file():
        return [folder], True
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such file or folder; give a folder of full-band recordings")
    for root in (folder, *folder.resolve().parents[:3]):
        if (root / "manifest.csv").is_file():
            rows = data.clips(root, cls=cls, split=split)
            inside = [Path(clip.path) for clip in rows if Path(clip.path).resolve().is_relative_to(folder.resolve())]
            if not inside:
                raise ConfigError(f"{folder}: no recording of split {split!r} and class {cls!r} in {root / 'manifest.csv'}")
            return inside, False
    if split is not None or cls is not None:
        raise ConfigError(f"{folder}: a split or class needs a manifest.csv in the folder or above it; there is none")
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not found:
        raise ConfigError(f"{folder}: an empty folder; give a folder of full-band recordings")
    return found, False


def _reference(path: Path, rate: int) -> Tensor:
    """`(C, T)` at the model's rate."""
    x, info = audio.read(path)
    if info.frames == 0:
        raise AudioError(f"{path}: the file holds no samples")
    if info.sample_rate < _REFERENCE_BAND * rate:
        raise AudioError(f"{path}: a {info.sample_rate} Hz recording cannot judge a {rate} Hz model; take full-band ones")
    return dsp.resample(torch.from_numpy(x), info.sample_rate, rate)


def _narrow(x: Tensor, sr: int, cutoff_hz: float, filter: str) -> Tensor:
    """`(C, T)` without its highs, same shape."""
    if filter == "brickwall":
        return dsp.band_limit(x, sr, cutoff_hz)
    if filter in dsp.FILTER_FAMILIES:
        filtered = dsp.lowpass(x.double().numpy(), sr, cutoff_hz, filter, order=8, ripple_db=0.05)
        return torch.from_numpy(filtered.astype(np.float32))
    if filter == "soxr":
        try:
            import soxr
        except ImportError as error:
            raise ImportError("the filter 'soxr' needs the soxr package: pip install 'bwe[eval]'") from error
        low = soxr.resample(x.T.numpy(), sr, 2 * cutoff_hz, quality="VHQ")
        y = torch.from_numpy(np.ascontiguousarray(soxr.resample(low, 2 * cutoff_hz, sr, quality="VHQ").T))
        return torch.nn.functional.pad(y, (0, max(0, x.shape[-1] - y.shape[-1])))[..., : x.shape[-1]]
    resampler = cast(degrade.Resampler, "sinc6" if filter == "torchaudio" else filter)
    return degrade.through_resampler(x, sr, resampler, cutoff_hz)[0]


def _measure(ref: Tensor, est: Tensor, sr: int, cutoff_hz: float) -> dict[str, float]:
    speech = metrics.speech_frames(ref, sr)
    values = {
        "lsd": metrics.lsd(ref, est, sr),
        "lsd_lf": metrics.lsd_lf(ref, est, sr, cutoff_hz),
        "lsd_hf": metrics.lsd_hf(ref, est, sr, cutoff_hz),
        "hf_bias": metrics.hf_bias(ref, est, sr, cutoff_hz),
        "si_sdr": metrics.si_sdr(ref, est),
        "lsd_speech": metrics.lsd(ref, est, sr, frames=speech),
        "lsd_pauses": metrics.lsd(ref, est, sr, frames=~speech),
        "lsd_ssr_eval": metrics.lsd(ref, est, sr, "ssr_eval"),
    }
    return {name: float(value.nanmean()) for name, value in values.items()}


def _row(files: Sequence[dict[str, object]], cutoff_hz: float, signal: str) -> Row:
    records = [cast(dict[str, float], f[signal]) for f in files if f["cutoff_hz"] == cutoff_hz]
    mean, ci95 = {}, {}
    for metric in METRICS:
        values = np.array([r[metric] for r in records if math.isfinite(r[metric])])
        mean[metric] = float(values.mean()) if len(values) else math.nan
        ci95[metric] = float(1.96 * values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Row(cutoff_hz, signal, len(records), mean, ci95)
