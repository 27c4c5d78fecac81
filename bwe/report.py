"""One HTML page about a training run, rebuilt from its folder alone: figures, charts, clips to listen to, settings.

The page asks nothing of a network, works from a file, and may be sent around as it is.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bwe import audio, page, pictures, runs
from bwe.errors import BweError, ConfigError, OutputError
from bwe.page import HEIGHT, WIDTH, Line, escape, number

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

Metrics = list[dict[str, Any]]


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
    document = _document(run, recipe, environment, lines, series, others)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(document, encoding="utf-8")
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


def _series(lines: Metrics) -> tuple[dict[str, Line], dict[str, list[Any]]]:
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
    return {key: Line(list(values), list(values.values())) for key, values in numbers.items()}, others


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


def _chart(title: str, lines: Mapping[str, Line], x_range: tuple[float, float], x_unit: str = "", mark: float = 0) -> str:
    """`page.chart`; lines called `…/p10` and `…/p90` become the band around their line."""
    drawn = {}
    for name, line in lines.items():
        base = name.removesuffix("/p10").removesuffix("/p90")
        if base != name and {base, f"{base}/p10", f"{base}/p90"} <= lines.keys():
            continue
        colour = _COLOURS.get(name or title.rsplit("/", 1)[-1], "" if name else "made")
        edges = lines.get(f"{name}/p10"), lines.get(f"{name}/p90")
        band = (edges[0], edges[1]) if edges[0] and edges[1] else None
        drawn[name] = Line(line.x, line.y, colour, level=name == "sinc", band=band)
    smooth = not x_unit and not title.startswith("optim/")
    return page.chart(title, drawn, x_range, x_unit, mark, smooth)


def _histogram(counts: Sequence[float], edges: Sequence[float]) -> str:
    """Counts of cut-offs between edges in Hz."""
    axes = page.Axes((edges[0] / 1000, edges[-1] / 1000), np.array([0.0, max(counts)]), log=False)
    bars = []
    for count, (low, high) in zip(counts, itertools.pairwise(edges), strict=True):
        left, right, top = axes.x(low / 1000) + 0.5, axes.x(high / 1000) - 0.5, axes.y(count)
        bars.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.5):.1f}" '
            f'height="{HEIGHT - page.BOTTOM - top:.1f}"><title>{low:,.0f} to {high:,.0f} Hz: {number(count)}</title></rect>'
        )
    total = f"{number(sum(counts))} training crops by cut-off"
    return (
        f'<figure class="chart"><figcaption><span class="key">data/cutoff_hist</span><span class="legend"><span '
        f'style="--c:var(--made)">crops <b>{number(sum(counts))}</b></span></span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{total}">'
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
        lines = {name: Line(khz, curve[name]) for name in sorted(curve, key=lambda name: _COLOURS.get(name) == "made")}
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
    shown = [name for name in ("sinc", "pred", "ref") if name in paths]
    if "sinc" not in paths and "low" in paths:
        shown.insert(0, "low")
    try:
        picture = _picture(cutoff, {name: paths[name] for name in shown})
    except (ImportError, BweError, OSError) as error:
        picture = f"<p>No spectrogram: {escape(str(error))}</p>"
    sounds = {name: page.data_uri("audio/flac", paths[name].read_bytes()) for name in names}
    title = escape(f"{_khz(cutoff)}, clip {number}")
    return page.clip(title, sounds, sample_rate, "pred", f'<div class="wide">{picture}</div>')


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
    return page.image(rgb, words)


def _validation_table(series: Mapping[str, Line]) -> str:
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
    rows = [[escape(cell) for cell in row] for row in rows]
    return page.table(["Cut-off", "Signal", *(_METRICS[name][0] for name in metrics)], rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings(values: Mapping[str, Any]) -> str:
    rows = [[escape(key), f"<code>{escape(text)}</code>"] for key, text in _flat(values)]
    return page.table(["Setting", "Value"], rows)


def _facts(lines: Metrics, series: Mapping[str, Line], environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    def finite(key: str) -> np.ndarray:
        return series[key].finite()[1] if key in series else np.array([])

    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    facts = [
        ("Started", _date(environment.get("started") or (times[0] if times else None))),
        ("Last written", _date(times[-1] if times else None)),
    ]
    for title, key, form in (
        ("Throughput", "data/audio_s_per_s", lambda v: f"{number(float(np.median(v)))} audio-s/s"),
        ("Waiting for data", "data/wait_fraction", lambda v: f"{float(np.mean(v)):.1%}"),
        ("Steps skipped", "optim/skipped", lambda v: number(v[-1])),
    ):
        if len(found := finite(key)):
            facts.append((title, form(found)))
    if len(memory := finite("sys/rss_mb")):
        slope = rss_slope(lines)
        growth = "" if slope is None else f"{'−' if slope < 0 else '+'}{abs(slope):.1f} MB/h after warm-up, "
        facts.append(("Memory", f"{growth}{memory.max():,.0f} MB at most"))
    return facts


def _state(lines: Metrics, series: Mapping[str, Line], recipe: Mapping[str, Any]) -> str:
    step, steps, minutes = lines[-1]["step"], recipe.get("steps"), recipe.get("minutes")
    state = f"Step {step:,}"
    if isinstance(steps, int):
        state += f" of {steps:,}"
        state += ", finished" if step >= steps else f", or {minutes:g} minutes" if minutes else ", not finished"
    steps_judged, scores = series["val/score"].finite() if "val/score" in series else (np.array([]), np.array([]))
    if len(scores):
        best = int(np.argmin(scores))
        state += f". Best val/score {number(float(scores[best]))} at step {steps_judged[best]:,.0f}"
    return state + "."


def _charts(series: Mapping[str, Line], x_range: tuple[float, float], mark: float) -> dict[str, str]:
    """By section: its charts, those of a validation cut-off under a heading of their own."""
    placed: dict[str, dict[str, Line]] = {}
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
        heading: "".join((f"<h3>{escape(below)}</h3>" if below else "") + page.grid(charts) for below, charts in grid.items())
        for heading, grid in grids.items()
    }


def _document(
    run: Path,
    recipe: dict[str, Any],
    environment: dict[str, Any],
    lines: Metrics,
    series: dict[str, Line],
    others: dict[str, list[Any]],
) -> str:
    last = lines[-1]["step"]
    adversarial = recipe.get("reconstruction_steps")
    mark = float(adversarial) if isinstance(adversarial, int) else 0.0
    charts = _charts(series, (0.0, float(last)), mark)
    charts["Validation"] = _validation_table(series) + charts["Validation"] + page.grid(_curves(others))
    charts["Data"] += page.grid([_cutoff_histogram(others)])
    last_others = {key: values[-1] for key, values in sorted(others.items()) if not key.startswith("data/cutoff_")}
    if undrawn := {key: value for key, value in last_others.items() if not _is_curve(value)}:
        charts["Other"] = charts.get("Other", "") + _settings(undrawn)
    sections = {heading: content for heading, content in charts.items() if content not in ("", page.grid([]))}
    generator = recipe.get("generator")
    rate = generator.get("sample_rate") if isinstance(generator, dict) else None
    sections["Clips"] = _clips(run, rate if isinstance(rate, int) else 48_000)
    difference = environment.get("diff")
    environment = {key: value for key, value in environment.items() if key != "diff"}
    settings = page.details("Configuration", _settings(recipe) if recipe else "<p>The run folder holds no recipe.json.</p>")
    written = _settings(environment) if environment else "<p>The run folder holds no environment.json.</p>"
    if difference:
        written += f"<h3>Changes to the commit</h3><pre>{escape(str(difference))}</pre>"
    sections["Settings"] = settings + page.details("Environment", written)

    name = str(recipe.get("name") or run.resolve().name)
    adversarial_note = f"<p>The dotted line: discriminators join at step {mark:,.0f}.</p>" if 0 < mark < last else ""
    header = f"""<h1>{escape(name)}</h1>
<p class="state">{escape(_state(lines, series, recipe))}</p>
{page.facts(_facts(lines, series, environment))}{adversarial_note}"""
    return page.document(f"{name} – training report", header, sections, "from the folder of the run.", _STYLE)


_STYLE = """#validation td { white-space: nowrap; }
#validation td:nth-child(n+3), #validation thead th:nth-child(n+3) { text-align: right; }
"""
