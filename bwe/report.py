"""One HTML page about a training run, rebuilt from its folder alone: figures, charts, clips to listen to, settings.

The page asks nothing of a network, works from a file, and may be sent around as it is.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bwe import __version__, audio, pictures, runs
from bwe.errors import BweError, ConfigError, OutputError

_MOST_POINTS = 500  # of a line in a chart
_SMOOTHED_ABOVE = 200  # points in a chart
_WARM_UP_S = 600.0

# Sections by the first element of a key, in the order of the page; other keys follow under their own first element.
_SECTIONS = {
    "val": "Validation",
    "loss": "Losses",
    "loss_weighted": "Losses",
    "balance": "Gradient balance",
    "disc": "Discriminators",
    "grad": "Optimisation",
    "weight_norm": "Optimisation",
    "optim": "Optimisation",
    "data": "Data",
    "sys": "System",
}
# Column of the validation table, and digits after the point.
_METRICS = {
    "lsd_hf": ("LSD-HF", 3),
    "lsd": ("LSD", 3),
    "lsd_lf": ("LSD-LF", 3),
    "hf_bias": ("HF bias dB", 2),
    "si_sdr": ("SI-SDR dB", 2),
    "leak_db": ("Leak dB", 1),
}
# A thing has one colour on the whole page; what is not listed takes the next of c0, c1, …
_COLOURS = {
    "": "made", "pred": "made", "fake": "made", "generator": "made", "discriminator": "judge", "disc": "judge",
    "ref": "true", "real": "true", "sinc": "given", "low": "given",
}  # fmt: skip
_OTHER_COLOURS = 6

Metrics = list[dict[str, Any]]


@dataclass
class _Line:
    x: list[float]
    y: list[float]

    def finite(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.array(self.x, float), np.array(self.y, float)
        known = np.isfinite(y)
        return x[known], y[known]


def read_metrics(run: Path) -> Metrics:
    """The lines of `metrics.jsonl` that count, in the order written.

    A run that fell back to an earlier checkpoint wrote some steps twice: what was written of them before is dropped. Lines
    that a kill cut short are left out.

    Raises:
        ConfigError: there is no such file in `run`, or no line in it.
    """
    lines: Metrics = []
    if (run / "metrics.jsonl").is_file():
        for line in runs.lines(run):
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                continue
            if lines and lines[-1]["step"] > line["step"]:
                lines = [earlier for earlier in lines if earlier["step"] < line["step"]]
            lines.append(line)
    if not lines:
        raise ConfigError(f"{run}: no metrics.jsonl of a training run in it; give a folder that `bwe train` wrote")
    return lines


def rss_slope(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Growth of `sys/rss_mb` in MB per hour by least squares, after a warm-up of 20 % of the run, 10 minutes at most.

    None with fewer than three readings or less than a minute after the warm-up.
    """
    readings = [(line["time"], line["sys/rss_mb"]) for line in lines if "time" in line and "sys/rss_mb" in line]
    if len(readings) < 3:
        return None
    seconds, megabytes = np.array(readings, float).T
    began = seconds[0] + min(0.2 * (seconds[-1] - seconds[0]), _WARM_UP_S)
    seconds, megabytes = seconds[seconds >= began], megabytes[seconds >= began]
    if len(seconds) < 3 or seconds[-1] - seconds[0] < 60:
        return None
    return float(np.polyfit((seconds - seconds[0]) / 3600, megabytes, 1)[0])


def report(run: Path, out: Path | None = None) -> Path:
    """Writes the page about the training run in the folder `run` to `out` (default: `report.html` in it); returns its path.

    Raises:
        ConfigError: `run` holds no metrics.
        OutputError: `out` cannot be written.
    """
    out = run / "report.html" if out is None else out
    lines = read_metrics(run)
    if out.is_dir() or not out.parent.is_dir():
        raise OutputError(f"{out}: is a folder or lies in none; give a file name in an existing folder")
    recipe, environment = _read_object(run / "recipe.json"), _read_object(run / "environment.json")
    series, others = _series(lines)
    page = _page(run, recipe, environment, lines, series, others)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another place with -o") from None
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _series(lines: Metrics) -> tuple[dict[str, _Line], dict[str, list[Any]]]:
    """By key: the numbers over steps (the last of each step), and everything that is not a number."""
    numbers: dict[str, dict[int, float]] = {}
    others: dict[str, list[Any]] = {}
    for line in lines:
        for key, value in line.items():
            if key in ("step", "time"):
                continue
            if isinstance(value, int | float):
                numbers.setdefault(key, {})[line["step"]] = float(value)
            else:
                others.setdefault(key, []).append(value)
    return {key: _Line(list(values), list(values.values())) for key, values in numbers.items()}, others


def _place(key: str) -> tuple[str, str]:
    """The chart a key belongs to, and its line there."""
    match key.split("/"):
        case ["val", *rest] if "sinc" in rest:
            return "/".join(["val", *(part for part in rest if part != "sinc")]), "sinc"
        case ["val", _, *_]:
            return key, "pred"
        case ["disc", name, "real" | "fake" as side, *statistic]:
            return f"disc/{name}", "/".join([side, *statistic]).removesuffix("/mean")
        case ["disc", name, "acc"]:
            return "disc/acc", name
        case ["loss_weighted" | "grad" | "weight_norm" as chart, name]:
            return chart, name
        case ["balance" | "grad" as group, kind, *rest] if rest:
            return f"{group}/{kind}", "/".join(rest)
        case ["optim", name] if name.startswith("lr_"):
            return "optim/lr", name.removeprefix("lr_")
    return key, ""


def _natural(key: str) -> list[tuple[int, float, str]]:
    """Sort key of a path: the score, then numbers by value, then metrics as in the table, then the alphabet."""
    places = {name: place for place, name in enumerate(_METRICS)}
    return [
        (1, float(part), "") if part.isdecimal() else (0 if part == "score" else 2, places.get(part, len(places)), part)
        for part in key.split("/")
    ]


def _number(value: object) -> str:
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{value:{',.0f' if 1e4 <= abs(value) < 1e7 else '.4g'}}".replace("-", "−")
    return "–"


def _hz(cutoff: str) -> float | None:
    try:
        return float(cutoff)
    except ValueError:
        return None


def _khz(cutoff: str) -> str:
    return cutoff if (hz := _hz(cutoff)) is None else f"{hz / 1000:g} kHz"


def _date(value: object) -> str:
    if isinstance(value, int | float) and math.isfinite(value):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return str(value) if value else "–"


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points, the highest and the lowest of each stretch, so that no spike gets lost."""
    if len(x) <= _MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), _MOST_POINTS // 2 + 1).astype(int)
    kept = {a + int(pick(y[a:b])) for a, b in itertools.pairwise(edges) for pick in (np.argmin, np.argmax)}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving average over 4 % of the points, over fewer at the ends."""
    window = np.ones(2 * (len(y) // 50) + 1)
    return np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 190, 46, 10, 8, 22
_LOG_ABOVE = 50.0  # spread of a positive quantity from which its axis is logarithmic


class _Axes:
    """The drawing area of a chart: data to SVG coordinates, and the axes themselves."""

    def __init__(self, x_range: tuple[float, float], values: np.ndarray, log: bool | None = None) -> None:
        low, high = (float(v) for v in np.percentile(values, (1, 99) if len(values) > _SMOOTHED_ABOVE else (0, 100)))
        self.log = low > 0 and high / low > _LOG_ABOVE if log is None else log
        if self.log:
            low, high = math.log10(low), math.log10(high)
        elif 0 <= low <= 0.4 * high:
            low = 0.0
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        self.x0, self.x1 = x_range if x_range[1] > x_range[0] else (x_range[0] - 1, x_range[0] + 1)
        self.y0, self.y1 = low - margin if low else low, high + margin

    def x(self, x: np.ndarray | float) -> Any:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (np.asarray(x, float) - self.x0) / (self.x1 - self.x0)

    def y(self, y: np.ndarray | float) -> Any:
        y = np.log10(np.maximum(y, 1e-300)) if self.log else np.asarray(y, float)
        share = ((y - self.y0) / (self.y1 - self.y0)).clip(-1, 2)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)

    def points(self, x: np.ndarray, y: np.ndarray) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(self.x(x), self.y(y), strict=True))

    def frame(self, x_unit: str) -> str:
        parts = []
        if self.log:
            decades = 10.0 ** np.arange(math.floor(self.y0), math.ceil(self.y1) + 1)
            y_ticks = np.array([m * d for d in decades for m in ((1, 2, 5) if self.y1 - self.y0 < 2 else (1,))])
            y_ticks = y_ticks[(np.log10(y_ticks) >= self.y0) & (np.log10(y_ticks) <= self.y1)]
            y_ticks = y_ticks[:: -(-len(y_ticks) // 6)]
        else:
            y_ticks = pictures.ticks(self.y0, self.y1, 6)
        for value in y_ticks:
            at = float(self.y(value))
            parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{_tick(value)}</text>')
        for value in pictures.ticks(self.x0, self.x1, 6):
            at = float(self.x(value))
            anchor = "end" if at > _WIDTH - 25 else "middle"
            label = _tick(value) + (f" {x_unit}" if value == 0 and x_unit else "")
            parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{label}</text>')
        return "".join(parts)


def _tick(value: float) -> str:
    value = 0.0 if abs(value) < 1e-12 else value
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def _chart(title: str, lines: Mapping[str, _Line], x_range: tuple[float, float], x_unit: str = "", mark: float = 0) -> str:
    """A figure with its legend; lines called `…/p10` and `…/p90` become the band around their line."""
    finite = {name: line.finite() for name, line in lines.items()}
    finite = {name: (x, y) for name, (x, y) in finite.items() if len(x)}
    if not finite:
        return f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption><p>No finite value.</p></figure>'
    axes = _Axes(x_range, np.concatenate([y for _, y in finite.values()]), log=False if x_unit else None)
    drawn, legend, hover = [axes.frame(x_unit)], [], []
    if axes.x0 < mark < axes.x1:
        drawn.append(f'<path class="mark" d="M{axes.x(mark):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    smoothed = sum(len(x) for x, _ in finite.values()) > _SMOOTHED_ABOVE and not (x_unit or title.startswith("optim/"))
    used = 0
    for name, (x, y) in finite.items():
        if name.endswith(("/p10", "/p90")):
            continue
        colour = _COLOURS.get(name or title.rsplit("/", 1)[-1], "made" if not name else "")
        if not colour:
            colour, used = f"c{used % _OTHER_COLOURS}", used + 1
        dash = ";stroke-dasharray:4 2" if used > _OTHER_COLOURS else ""
        style = f'style="--c:var(--{colour}){dash}"'
        if {f"{name}/p10", f"{name}/p90"} <= finite.keys():
            low, high = (_thin(*finite[f"{name}/{edge}"]) for edge in ("p10", "p90"))
            ring = f"{axes.points(*low)} {axes.points(high[0][::-1], high[1][::-1])}"
            drawn.append(f'<polygon class="band" {style} points="{ring}"/>')
        thin = _thin(x, y)
        if name == "sinc":
            drawn.append(f'<path class="line dashed" {style} d="M{_LEFT} {axes.y(y[-1]):.1f}H{_WIDTH - _RIGHT}"/>')
            thin = x[-1:], y[-1:]
        elif smoothed:
            every = slice(None, None, -(-len(x) // _MOST_POINTS))
            drawn.append(f'<polyline class="raw" {style} points="{axes.points(*thin)}"/>')
            drawn.append(f'<polyline class="line" {style} points="{axes.points(x[every], _smooth(y)[every])}"/>')
        else:
            drawn.append(f'<polyline class="line" {style} points="{axes.points(*thin)}"/>')
            if len(x) <= 30:
                drawn += [
                    f'<circle {style} cx="{a:.1f}" cy="{b:.1f}" r="2"/>' for a, b in zip(axes.x(x), axes.y(y), strict=True)
                ]
        legend.append(f"<span {style}>{html.escape(name)} <b>{'' if x_unit else _number(y[-1])}</b></span>")
        hover.append([[float(f"{v:.6g}") for v in values] for values in thin])
    data = {"x0": axes.x0, "x1": axes.x1, "unit": x_unit or "step", "lines": hover}
    last = ", ".join(f"{name} {_number(y[-1])}".strip() for name, (_, y) in finite.items())
    return (
        f'<figure class="chart" tabindex="0" data-chart="{html.escape(json.dumps(data, separators=(",", ":")))}">'
        f'<figcaption><span class="key">{html.escape(title)}</span><output></output>'
        f'<span class="legend">{"".join(legend)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(f"{title}: last {last}")}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _histogram(counts: Sequence[float], edges: Sequence[float]) -> str:
    """Counts of cut-offs between edges in Hz."""
    axes = _Axes((edges[0] / 1000, edges[-1] / 1000), np.array([0.0, max(counts)]), log=False)
    bars = []
    for count, (low, high) in zip(counts, itertools.pairwise(edges), strict=True):
        left, right, top = axes.x(low / 1000) + 0.5, axes.x(high / 1000) - 0.5, axes.y(count)
        bars.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.5):.1f}" '
            f'height="{_HEIGHT - _BOTTOM - top:.1f}"><title>{low:,.0f} to {high:,.0f} Hz: {_number(count)}</title></rect>'
        )
    total = f"{_number(sum(counts))} training crops by cut-off"
    return (
        f'<figure class="chart"><figcaption><span class="key">data/cutoff_hist</span><span class="legend"><span '
        f'style="--c:var(--made)">crops <b>{_number(sum(counts))}</b></span></span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{total}">'
        f"{axes.frame('kHz')}{''.join(bars)}</svg></figure>"
    )


def _cutoff_histogram(others: Mapping[str, list[Any]]) -> str:
    """Of all lines together that have the edges of the last one: each counts its own crops."""
    counts, edges = others.get("data/cutoff_hist", []), others.get("data/cutoff_edges", [[]])[-1]
    fitting = [c for c in counts if isinstance(c, list) and isinstance(edges, list) and len(c) == len(edges) - 1 > 0]
    return _histogram(np.sum(fitting, axis=0).tolist(), edges) if fitting else ""


def _is_curve(value: object) -> bool:
    return isinstance(value, dict) and "hz" in value


def _curves(others: Mapping[str, list[Any]]) -> list[str]:
    """Charts of levels in dB over frequency, such as `stft/<cut-off>/mean_spectrum`, as last written."""
    charts = []
    for key in sorted((key for key, values in others.items() if _is_curve(values[-1])), key=_natural):
        curve = {name: values for name, values in others[key][-1].items() if name != "hz"}
        khz = [hz / 1000 for hz in others[key][-1]["hz"]]
        marks = [hz / 1000 for part in key.split("/") if (hz := _hz(part)) is not None]
        # What was made is drawn last, over what it should be.
        lines = {name: _Line(khz, curve[name]) for name in sorted(curve, key=lambda name: _COLOURS.get(name) == "made")}
        charts.append(_chart(f"{key} in dB", lines, (khz[0], khz[-1]), "kHz", marks[0] if marks else 0.0))
    return charts


def _clips(run: Path, sample_rate: int) -> str:
    """Players and spectrograms of the validation clips, the predictions those of the newest step."""
    folder = run / "clips"
    steps = [int(path.name[5:]) for path in folder.glob("step_*") if path.name[5:].isdecimal()]
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted([*folder.glob("*.flac"), *(folder / f"step_{max(steps, default=0)}").glob("*.flac")]):
        if parts := re.fullmatch(r"(.+)_(.+)_(low|sinc|pred|ref)\.flac", path.name):
            found.setdefault((parts[1], parts[2]), {})[parts[3]] = path
    if not found:
        return "<p>The run folder holds no clips.</p>"
    heard = f"Predictions of step {max(steps):,}" if steps else "No predictions yet"
    words = f"<p>{heard}. All versions of a clip play at once; the buttons, or the keys 1 to 4, choose the one heard.</p>"
    order = sorted(found, key=lambda place: [_natural(part) for part in place])
    return words + "".join(_clip(*place, found[place], sample_rate) for place in order)


def _clip(cutoff: str, number: str, paths: Mapping[str, Path], sample_rate: int) -> str:
    names = [name for name in ("low", "sinc", "pred", "ref") if name in paths]
    title = html.escape(f"{_khz(cutoff)}, clip {number}")
    players = "".join(
        f'<label>{name} <audio controls preload="none" data-name="{name}" '
        f'src="data:audio/flac;base64,{base64.b64encode(paths[name].read_bytes()).decode()}"></audio></label>'
        for name in names
    )
    shown = [name for name in ("sinc", "pred", "ref") if name in paths]
    if "sinc" not in paths and "low" in paths:
        shown.insert(0, "low")
    try:
        picture = _picture(cutoff, {name: paths[name] for name in shown})
    except (ImportError, BweError, OSError) as error:
        picture = f"<p>No spectrogram: {html.escape(str(error))}</p>"
    return (
        f'<figure class="clip" data-rate="{sample_rate}"><figcaption>{title}</figcaption>'
        f'<div class="players">{players}</div><div class="wide">{picture}</div></figure>'
    )


def _picture(cutoff: str, paths: Mapping[str, Path]) -> str:
    signals, rates = {}, {}
    for name, path in paths.items():
        x, info = audio.read(path)
        signals[name], rates[name] = x.mean(0), info.sample_rate
    rate = max(rates.values())
    signals = {name: x for name, x in signals.items() if rates[name] == rate}
    difference = ("pred", "ref") if {"pred", "ref"} <= signals.keys() else None
    rgb = pictures.spectrogram_panels(signals, rate, _hz(cutoff), difference)
    words = f"Spectrograms of {', '.join(signals)}{' and |pred − ref|' if difference else ''}"
    data = base64.b64encode(pictures.png(rgb)).decode()
    return f'<img alt="{words}" width="{rgb.shape[1]}" height="{rgb.shape[0]}" src="data:image/png;base64,{data}">'


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells of HTML; the first of a row is its head."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _validation_table(series: Mapping[str, _Line]) -> str:
    """Per cut-off: the input as it is, the last validation and the one with the least LSD-HF."""
    values = {key: dict(zip(line.x, line.y, strict=True)) for key, line in series.items()}
    keys = [key.split("/") for key in values if key.startswith("val/")]
    metrics = [name for name in _METRICS if any(key[-1] == name for key in keys)]
    cutoffs = sorted({key[1] for key in keys if len(key) == 3 and key[2] in metrics}, key=_natural)
    rows = []
    for cutoff in cutoffs:
        below = {name: values.get(f"val/{cutoff}/{name}", {}) for name in metrics}
        steps = sorted({step for curve in below.values() for step in curve})
        judged = {step: value for step, value in below.get("lsd_hf", {}).items() if math.isfinite(value)}
        untouched = {name: list(values.get(f"val/{cutoff}/sinc/{name}", {0: math.nan}).values())[-1] for name in metrics}
        shown = [("input as it is (sinc)", untouched)]
        for word, step in (("last", steps[-1]), ("best", min(judged, key=judged.__getitem__, default=None))):
            if step is not None:
                shown.append((f"{word}, step {step:,.0f}", {name: below[name].get(step, math.nan) for name in metrics}))
        for title, found in shown:
            figures = [f"{found[name]:.{_METRICS[name][1]}f}".replace("-", "−").replace("nan", "–") for name in metrics]
            rows.append([_khz(cutoff) if found is untouched else "", title, *figures])
    if not rows:
        return "<p>No validation yet.</p>"
    rows = [[html.escape(cell) for cell in row] for row in rows]
    return _table(["Cut-off", "Signal", *(_METRICS[name][0] for name in metrics)], rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings(values: Mapping[str, Any]) -> str:
    rows = [[html.escape(key), f"<code>{html.escape(text)}</code>"] for key, text in _flat(values)]
    return _table(["Setting", "Value"], rows)


def _details(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _facts(lines: Metrics, series: Mapping[str, _Line], environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    def finite(key: str) -> np.ndarray:
        return series[key].finite()[1] if key in series else np.array([])

    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    facts = [
        ("Started", _date(environment.get("started") or (times[0] if times else None))),
        ("Last written", _date(times[-1] if times else None)),
    ]
    for title, key, form in (
        ("Throughput", "data/audio_s_per_s", lambda v: f"{_number(float(np.median(v)))} audio-s/s"),
        ("Waiting for data", "data/wait_fraction", lambda v: f"{float(np.mean(v)):.1%}"),
        ("Steps skipped", "optim/skipped", lambda v: _number(v[-1])),
    ):
        if len(found := finite(key)):
            facts.append((title, form(found)))
    if len(memory := finite("sys/rss_mb")):
        slope = rss_slope(lines)
        growth = "" if slope is None else f"{'−' if slope < 0 else '+'}{abs(slope):.1f} MB/h after warm-up, "
        facts.append(("Memory", f"{growth}{memory.max():,.0f} MB at most"))
    return facts


def _state(lines: Metrics, series: Mapping[str, _Line], recipe: Mapping[str, Any]) -> str:
    step, steps, minutes = lines[-1]["step"], recipe.get("steps"), recipe.get("minutes")
    state = f"Step {step:,}"
    if isinstance(steps, int):
        state += f" of {steps:,}"
        state += ", finished" if step >= steps else f", or {minutes:g} minutes" if minutes else ", not finished"
    steps_judged, scores = series["val/score"].finite() if "val/score" in series else (np.array([]), np.array([]))
    if len(scores):
        best = int(np.argmin(scores))
        state += f". Best val/score {_number(float(scores[best]))} at step {steps_judged[best]:,.0f}"
    return state + "."


def _charts(series: Mapping[str, _Line], x_range: tuple[float, float], mark: float) -> dict[str, str]:
    """By section: its charts, those of a validation cut-off under a heading of their own."""
    placed: dict[str, dict[str, _Line]] = {}
    for key in sorted(series, key=_natural):
        chart, line = _place(key)
        placed.setdefault(chart, {})[line] = series[key]
    grids: dict[str, dict[str, list[str]]] = {heading: {} for heading in _SECTIONS.values()}
    for title, lines in placed.items():
        first, *rest = title.split("/")
        heading = _SECTIONS.get(first, first if rest else "Other")
        below = _khz(rest[0]) if first == "val" and len(rest) > 1 else ""
        grids.setdefault(heading, {}).setdefault(below, []).append(_chart(title, lines, x_range, mark=mark))
    return {
        heading: "".join((f"<h3>{html.escape(below)}</h3>" if below else "") + _grid(charts) for below, charts in grid.items())
        for heading, grid in grids.items()
    }


def _grid(charts: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(charts)}</div>'


def _page(
    run: Path,
    recipe: dict[str, Any],
    environment: dict[str, Any],
    lines: Metrics,
    series: dict[str, _Line],
    others: dict[str, list[Any]],
) -> str:
    last = lines[-1]["step"]
    adversarial = recipe.get("reconstruction_steps")
    mark = float(adversarial) if isinstance(adversarial, int) else 0.0
    charts = _charts(series, (0.0, float(last)), mark)
    charts["Validation"] = _validation_table(series) + charts["Validation"] + _grid(_curves(others))
    charts["Data"] += _grid([_cutoff_histogram(others)])
    last_others = {key: values[-1] for key, values in sorted(others.items()) if not key.startswith("data/cutoff_")}
    if undrawn := {key: value for key, value in last_others.items() if not _is_curve(value)}:
        charts["Other"] = charts.get("Other", "") + _settings(undrawn)
    sections = {heading: content for heading, content in charts.items() if content not in ("", _grid([]))}
    generator = recipe.get("generator")
    rate = generator.get("sample_rate") if isinstance(generator, dict) else None
    sections["Clips"] = _clips(run, rate if isinstance(rate, int) else 48_000)
    difference = environment.get("diff")
    environment = {key: value for key, value in environment.items() if key != "diff"}
    settings = _details("Configuration", _settings(recipe) if recipe else "<p>The run folder holds no recipe.json.</p>")
    written = _settings(environment) if environment else "<p>The run folder holds no environment.json.</p>"
    if difference:
        written += f"<h3>Changes to the commit</h3><pre>{html.escape(str(difference))}</pre>"
    sections["Settings"] = settings + _details("Environment", written)

    name = html.escape(str(recipe.get("name") or run.resolve().name))
    ids = {heading: re.sub(r"\W+", "-", heading.lower()) for heading in sections}
    links = "".join(f'<a href="#{ids[heading]}">{html.escape(heading)}</a>' for heading in sections)
    facts = "".join(
        f"<div><dt>{title}</dt><dd>{html.escape(value)}</dd></div>" for title, value in _facts(lines, series, environment)
    )
    adversarial_note = f"<p>The dotted line: discriminators join at step {mark:,.0f}.</p>" if 0 < mark < last else ""
    body = "".join(f'<section id="{ids[h]}"><h2>{html.escape(h)}</h2>{content}</section>' for h, content in sections.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{name} – training report</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{name}</h1>
<p class="state">{html.escape(_state(lines, series, recipe))}</p>
<dl>{facts}</dl>{adversarial_note}</header>
<nav aria-label="Sections">{links}</nav>
<main>{body}</main>
<footer>Written by bwe {__version__} from the folder of the run.</footer>
<svg width="0" height="0"><clipPath id="plot">
<rect x="{_LEFT}" y="0" width="{_WIDTH - _LEFT}" height="{_HEIGHT - _BOTTOM + 2}"/></clipPath></svg>
<script>const LEFT = {_LEFT}, RIGHT = {_RIGHT}, WIDTH = {_WIDTH}, TOP = {_TOP}, BASE = {_HEIGHT - _BOTTOM};{_SCRIPT}</script>
</body>
</html>
"""


_STYLE = """
:root { --ground: #fbfbfa; --card: #fff; --text: #1c1f24; --soft: #646b76; --rule: #e3e5e8; --grid: #eceef0;
  --made: #2563c9; --judge: #d9660a; --true: #12875a; --given: #868d98;
  --c0: #8b4fc4; --c1: #0a8f96; --c2: #c8386f; --c3: #a47a0c; --c4: #5d6b1f; --c5: #8a5a44; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #101215; --card: #181b20; --text: #e4e7ec; --soft: #98a0ac; --rule: #2a2f37; --grid: #262a31;
    --made: #6aa5ff; --judge: #ff9d4d; --true: #45c48f; --given: #8b93a0;
    --c0: #c29af0; --c1: #45c8cf; --c2: #f57fa9; --c3: #dfb84a; --c4: #b3c468; --c5: #cf9f88; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 clamp(12px, 3vw, 36px) 40px; max-width: 1400px; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
header { padding-top: 28px; }
h1 { margin: 0; font-size: 28px; font-weight: 650; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 19px; font-weight: 650; }
h3 { margin: 22px 0 8px; font-size: 14px; font-weight: 600; color: var(--soft); }
p { max-width: 75ch; margin: 8px 0; }
header p, .clip + p, section > p { color: var(--soft); }
.state { font-size: 17px; color: var(--text) !important; }
dl { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 16px 0; }
dt { font-size: 12px; color: var(--soft); }
dd { margin: 0; }
nav { position: sticky; top: 0; z-index: 1; display: flex; gap: 4px 18px; overflow-x: auto; padding: 10px 0;
  background: var(--ground); border-bottom: 1px solid var(--rule); white-space: nowrap; }
a { color: var(--made); text-decoration: none; }
a:hover { text-decoration: underline; }
section { scroll-margin-top: 44px; }
:focus-visible { outline: 2px solid var(--made); outline-offset: 2px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 14px; }
.grid + .grid { margin-top: 14px; }
figure { margin: 0; }
.chart, .clip, details { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 12px 6px; }
.chart figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 12px; font-size: 12.5px; min-height: 38px;
  align-content: flex-start; }
.chart .key { font-weight: 600; }
.chart output { color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 0 12px; margin-left: auto; color: var(--soft); }
.legend span::before { content: ""; display: inline-block; width: 9px; height: 3px; margin-right: 5px; vertical-align: 3px;
  border-radius: 1px; background: var(--c); }
.legend b { font-weight: 600; color: var(--text); }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { font-size: 10.5px; fill: var(--soft); }
path.grid { stroke: var(--grid); }
svg path.line, polyline { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; clip-path: url(#plot); }
svg path.dashed { stroke-width: 1.4; stroke-dasharray: 5 4; }
.raw { stroke-width: 1; opacity: 0.3; }
.band { fill: var(--c); opacity: 0.15; clip-path: url(#plot); }
circle { fill: var(--c); }
.bar { fill: var(--made); }
svg path.mark { stroke: var(--soft); stroke-dasharray: 1.5 3; }
svg path.cursor { stroke: var(--soft); }
.wide { overflow-x: auto; }
.wide + .grid { margin-top: 18px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 5px 22px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; white-space: nowrap; }
thead th { font-size: 12.5px; color: var(--soft); }
#validation td { white-space: nowrap; }
#validation td:nth-child(n+3), #validation thead th:nth-child(n+3) { text-align: right; }
.clip { margin: 12px 0; }
.clip figcaption { font-weight: 600; }
.players { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; margin: 8px 0; }
.players label { display: grid; }
.clip img { display: block; height: auto; min-width: 760px; width: 100%; max-width: 1334px; border-radius: 4px; }
button { font: inherit; font-size: 14px; padding: 4px 14px; color: var(--text); background: var(--ground);
  border: 1px solid var(--rule); border-radius: 6px; cursor: pointer; }
button[aria-pressed=true] { color: var(--card); background: var(--made); border-color: var(--made); }
.players .play { min-width: 76px; }
.players input { flex: 1 1 140px; min-width: 120px; max-width: 420px; accent-color: var(--made); }
details { margin: 10px 0; padding: 10px 14px; }
summary { cursor: pointer; font-weight: 600; }
code, pre { font: 12.5px/1.5 ui-monospace, monospace; }
td code { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { overflow-x: auto; }
footer { margin-top: 40px; font-size: 12.5px; color: var(--soft); }
"""

_SCRIPT = """
'use strict';
const number = v => Math.abs(v) >= 1e4 && Math.abs(v) < 1e7 ? Math.round(v).toLocaleString('en') :
  String(+v.toPrecision(4)).replace('-', '\\u2212');
for (const chart of document.querySelectorAll('[data-chart]')) {
  const data = JSON.parse(chart.dataset.chart), svg = chart.querySelector('svg'), output = chart.querySelector('output');
  const values = [...chart.querySelectorAll('.legend b')], last = values.map(b => b.textContent);
  const steps = [...new Set(data.lines.flatMap(line => line[0]))].sort((a, b) => a - b);
  const cursor = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  cursor.setAttribute('class', 'cursor');
  const nearest = (list, x) => {
    let low = 0, high = list.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (list[middle] < x) low = middle; else high = middle; }
    return x - list[low] < list[high] - x ? low : high;
  };
  let at = steps.length - 1;
  const show = index => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const x = steps[at];
    data.lines.forEach((line, k) => { values[k].textContent = number(line[1][nearest(line[0], x)]); });
    output.textContent = data.unit === 'step' ? 'step ' + number(x) : number(x) + ' ' + data.unit;
    const left = LEFT + (WIDTH - LEFT - RIGHT) * (x - data.x0) / (data.x1 - data.x0);
    cursor.setAttribute('d', `M${left} ${TOP}V${BASE}`);
    svg.append(cursor);
  };
  const hide = () => { cursor.remove(); output.textContent = ''; values.forEach((b, k) => { b.textContent = last[k]; }); };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * WIDTH;
    const share = (x - LEFT) / (WIDTH - LEFT - RIGHT);
    show(nearest(steps, data.x0 + share * (data.x1 - data.x0)));
  });
  svg.addEventListener('pointerleave', hide);
  chart.addEventListener('blur', hide);
  chart.addEventListener('keydown', event => {
    const by = {ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9}[event.key];
    if (by) { event.preventDefault(); show(at + by); }
  });
}

let context, turn = 0, silence = () => {};
for (const clip of document.querySelectorAll('.clip')) {
  const players = clip.querySelector('.players'), audios = [...players.querySelectorAll('audio')];
  const names = audios.map(audio => audio.dataset.name);
  const add = (name, properties) => Object.assign(document.createElement(name), properties);
  const play = add('button', {className: 'play', textContent: 'Play'});
  const choices = names.map(name => add('button', {textContent: name}));
  const seek = add('input', {type: 'range', min: 0, max: 1, step: 'any', value: 0, ariaLabel: 'Position'});
  let buffers, sources = [], gains = [], chosen = Math.max(0, names.indexOf('pred')), began = 0, at = 0;
  const length = () => buffers[0].duration;
  const position = () => sources.length ? Math.max(0, context.currentTime - began) % length() : at;
  const choose = index => {
    chosen = index;
    choices.forEach((button, k) => button.setAttribute('aria-pressed', k === index));
    gains.forEach((gain, k) => gain.gain.setTargetAtTime(k === index ? 1 : 0, context.currentTime, 0.003));
  };
  const stop = () => {
    at = buffers ? position() : 0;
    sources.forEach(source => source.stop());
    sources = []; gains = []; play.textContent = 'Play';
  };
  const load = async audio => {
    const text = atob(audio.src.slice(audio.src.indexOf(',') + 1));
    return context.decodeAudioData(Uint8Array.from(text, c => c.charCodeAt(0)).buffer);
  };
  const start = async () => {
    const mine = ++turn;
    silence();
    silence = stop;
    context ??= new AudioContext({sampleRate: +clip.dataset.rate});
    await context.resume();
    if (!buffers) {
      const decoded = await Promise.all(audios.map(load)), frames = Math.max(...decoded.map(buffer => buffer.length));
      buffers = decoded.map(buffer => {
        const padded = context.createBuffer(buffer.numberOfChannels, frames, context.sampleRate);
        for (let c = 0; c < buffer.numberOfChannels; c++) padded.copyToChannel(buffer.getChannelData(c), c);
        return padded;
      });
    }
    if (mine !== turn) return;  // another clip was started while this one was decoded
    began = context.currentTime + 0.05 - at;
    gains = buffers.map((_, k) => new GainNode(context, {gain: k === chosen ? 1 : 0}));
    sources = buffers.map((buffer, k) => {
      const source = new AudioBufferSourceNode(context, {buffer, loop: true});
      source.connect(gains[k]).connect(context.destination);
      source.start(began + at, at);
      return source;
    });
    play.textContent = 'Pause';
    const follow = () => { if (sources.length) { seek.value = position() / length(); requestAnimationFrame(follow); } };
    follow();
  };
  const fail = () => { players.replaceChildren(...audios.map(audio => add('label', {textContent: audio.dataset.name})));
    audios.forEach((audio, k) => players.children[k].append(audio)); };
  play.onclick = () => sources.length ? stop() : start().catch(fail);
  seek.oninput = () => {
    const playing = sources.length > 0;
    if (playing) stop();
    if (buffers) at = seek.value * length();
    if (playing) start().catch(fail);
  };
  choices.forEach((button, k) => { button.onclick = () => choose(k); });
  clip.addEventListener('keydown', event => { if (choices[event.key - 1]) choose(event.key - 1); });
  players.replaceChildren(play, ...choices, seek);
  choose(chosen);
}
"""
