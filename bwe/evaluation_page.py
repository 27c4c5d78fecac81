"""One HTML page about an evaluation: means with their intervals, charts, clips to compare by ear and eye, every file.

The page asks nothing of a network, works from a file, and may be sent around as it is.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bwe import audio, metrics, pictures
from bwe.page import Line, chart, data_uri, details, document, escape, facts, fixed, grid, image, khz, number, table, tick
from bwe.page import clip as player

Tree = Mapping[str, Any]
Condition = tuple[str, float | None]  # filter, cut-off in Hz

# A system has one colour on the whole page.
_COLOURS = ("made", "judge", "c0", "c1", "c2", "c3", "c4", "c5")
# Metrics drawn with their intervals; those that a table of single files or speakers shows first.
_PLOTTED = re.compile("lsd|lsd_hf|hf_bias|(pesq|stoi|nsim).*")
_FIRST = ("lsd_hf", "lsd")
_DIRECTION = {"lower": ("↓", "lower is better"), "higher": ("↑", "higher is better"), "zero": ("→0", "zero is best")}
# By metric, or by what its name begins with.
_GLOSSARY = {
    "lsd": "log-spectral distance to the reference: STFT 2048/512, log10 of power floored at 1e-8, so that 0.1 is 1 dB",
    "lsd_lf": "LSD below the cut-off: how far the known band was changed",
    "lsd_hf": "LSD above the cut-off: how well the missing band was filled",
    "lsd_speech": "LSD of the frames with speech",
    "lsd_pauses": "LSD of the frames without speech",
    "lsd_ssr_eval": "LSD as ssr_eval counts it, almost without a floor: an empty band costs far more",
    "hf_bias": "level of the missing band over that of the reference: negative is dull, positive is sharp",
    "si_sdr": "scale-invariant signal-to-distortion ratio: highs that are plausible but not the true ones lower it",
    "snr": "signal-to-noise ratio: highs that are plausible but not the true ones lower it",
    "pesq": "a model of perceived speech quality that hears nothing above 8 kHz, as narrow band nothing above 4 kHz",
    "stoi": "a model of intelligibility that hears nothing above 5 kHz",
    "estoi": "a model of intelligibility that hears nothing above 5 kHz",
    "nsim": "similarity of spectrograms as in ViSQOL, 1 where they are equal",
}


@dataclass(frozen=True)
class Clip:
    """One recording of an evaluation, to be heard and seen.

    Attributes:
        file, speaker, filter, cutoff_hz: as in the records of the evaluation's files.
        sample_rate: Hz, of all signals.
        signals: `(C, T)`, full scale ±1, by name: input, systems, reference. They are heard as they are, but clipped.
    """

    file: str
    speaker: str | None
    filter: str
    cutoff_hz: float | None
    sample_rate: int
    signals: Mapping[str, np.ndarray]


def page(evaluation: Tree, clips: Sequence[Clip] = ()) -> str:
    """The HTML page about an evaluation, the tree that `bwe eval --json` writes, with players and pictures of `clips`."""
    tables = _Tables(evaluation)
    links = {(clip.file, (clip.filter, clip.cutoff_hz)): f"clip-{place}" for place, clip in enumerate(clips)}
    sections = {
        "Overview": _overview(tables),
        "Results": "".join(_condition(tables, condition) for condition in tables.conditions),
        "LSD over frequency": _frequency(tables),
        "Clips": _clips(tables, clips, links),
        "Speakers": _breakdown(tables, evaluation.get("speakers") or (), "speaker", "mean", "n", "One dot per speaker."),
        "Worst files": _worst(tables, links),
        "Whole sets": _sets(tables),
        "Alignment": _alignment(tables),
        "Files": _files(tables),
    }
    return document(
        f"{evaluation['title']} – evaluation",
        _headline(tables),
        {heading: content for heading, content in sections.items() if content},
        f"from the figures of an evaluation by version {evaluation.get('version')}.",
        _STYLE,
        _SCRIPT,
    )


class _Tables:
    """An evaluation by system, condition and metric."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.systems: list[str] = [system["name"] for system in tree["systems"]]
        self.metrics: dict[str, Tree] = {metric["name"]: metric for metric in tree["metrics"]}
        self.conditions = {_key(condition): condition for condition in tree["conditions"]}
        self.rows = {(row["system"], _key(row)): row for row in tree["rows"]}
        others = [name for name in self.systems if name != "input"]
        self.colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(others)}
        self.colours |= {"input": "given", "reference": "true"}
        self.first_metric = next((name for name in (*_FIRST, *self.metrics) if name in self.metrics), "")

    def of(self, kind: str, condition: Condition) -> list[Tree]:
        return [entry for entry in self.tree.get(kind) or () if _key(entry) == condition]

    def label(self, system: str) -> str:
        colour = self.colours.get(system, "soft")
        return f'<span class="system" style="--c:var(--{colour})">{escape(system)}</span>'

    def title(self, metric: str) -> str:
        """With its unit and the direction that is better."""
        about = self.metrics[metric]
        sign, words = _DIRECTION[about["better"]]
        unit = f' <span class="unit">{escape(about["unit"])}</span>' if about.get("unit") else ""
        return f'{escape(about["title"])}{unit} <abbr title="{words}" aria-label="{words}">{sign}</abbr>'

    def interval(self, system: str, condition: Condition, metric: str) -> tuple[float | None, Sequence[float] | None]:
        """Mean and 95 % confidence interval."""
        row = self.rows.get((system, condition), {})
        return (row.get("mean") or {}).get(metric), (row.get("ci95") or {}).get(metric)

    def floor(self, condition: Condition, metric: str) -> float | None:
        """Of LSD where only the missing band differs, see `metrics.lsd_floor`."""
        floor: float | None = self.conditions[condition].get("floor")
        return {"lsd": floor, "lsd_hf": floor and metrics.FLOOR_PER_ROOT_FRACTION}.get(metric)

    def leaders(self, condition: Condition, metric: str) -> set[str]:
        """The system with the best mean, and those that it cannot be told from: one's mean lies in the other's interval."""
        better = self.metrics[metric]["better"]

        def loss(value: float) -> float:
            return abs(value) if better == "zero" else value if better == "lower" else -value

        found: dict[str, tuple[float, float, float]] = {}
        for system in self.systems:
            mean, ci95 = self.interval(system, condition, metric)
            if mean is None or ci95 is None:
                continue
            edges = sorted(map(loss, ci95))
            found[system] = (loss(mean), 0.0 if better == "zero" and ci95[0] <= 0 <= ci95[1] else edges[0], edges[1])
        if not found:
            return set()
        first, low, high = min(found.values())
        return {name for name, (mean, a, b) in found.items() if low <= mean <= high or a <= first <= b}


def _key(entry: Tree) -> Condition:
    return entry.get("filter") or "", entry.get("cutoff_hz")


def _name(condition: Condition) -> str:
    filter, cutoff_hz = condition
    return ", ".join([*([filter] if filter else []), *([khz(cutoff_hz)] if cutoff_hz is not None else [])]) or "as given"


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _count(amount: int, word: str) -> str:
    return f"{amount:,} {word}{'' if amount == 1 else 's'}"


def _headline(tables: _Tables) -> str:
    tree = tables.tree
    others = [name for name in tables.systems if name != "input"]
    files = len({record["file"] for record in tree["files"]}) or max((row["n"] for row in tree["rows"]), default=0)
    speakers = {entry["speaker"] for entry in tree.get("speakers") or () if entry["speaker"] is not None}
    filters = list(dict.fromkeys(filter for filter, _ in tables.conditions if filter))
    cutoffs = sorted({hz for _, hz in tables.conditions if hz is not None})
    measured = f"{_and(others) if 0 < len(others) < 4 else _count(len(others), 'system')}"
    measured += f" over {_count(files, 'file')}" + (f" of {len(speakers)} speakers" if len(speakers) > 1 else "")
    if cutoffs:
        measured += f" whose band ends at {_and(f'{hz / 1000:g}' for hz in cutoffs)} kHz"
    about = [("Filters", _and(filters))] if filters else []
    if cutoffs and tree.get("cutoff_source"):
        about.append(("Cut-off", str(tree["cutoff_source"])))
    about.append(("Compared at", khz(tree["sample_rate"])))
    if tree.get("baseline"):
        about.append(("Baseline", str(tree["baseline"])))
    notes = "".join(f"<li>{escape(note)}</li>" for note in tree.get("notes") or ())
    return (
        f'<h1>{escape(tree["title"])}</h1><p class="state">{escape(measured)}.</p>{facts(about)}'
        + (f'<ul class="notes" aria-label="Notes">{notes}</ul>' if notes else "")
        + _systems(tables)
        + _how_to_read(tables)
    )


def _systems(tables: _Tables) -> str:
    described = [system for system in tables.tree["systems"] if system.get("arch") or system.get("parameters") is not None]
    if not described:
        return ""
    rows = [
        [tables.label(system["name"]), escape(str(system.get("arch") or "–")), _parameters(system.get("parameters"))]
        for system in tables.tree["systems"]
    ]
    return details("Systems", _figures("Systems", ["System", "Architecture", "Parameters"], rows))


def _parameters(count: int | None) -> str:
    return "–" if count is None else f'<abbr title="{count:,}">{tick(float(f"{count:.3g}"))}</abbr>'


def _how_to_read(tables: _Tables) -> str:
    rules = [
        "Figures are means over the files; in brackets is the 95 % confidence interval of the mean.",
        "A tinted figure is the best of its column. Where a mean lies in the interval of the best, or the best in its own, "
        "those that cannot be told apart are underlined and none is called best.",
        "The arrow beside a metric says which way is better.",
    ]
    if "input" in tables.systems:
        rules.append(
            "The input is what doing nothing scores. A metric by which it leads does not see or not reward what was added."
        )
    if any(condition.get("floor") for condition in tables.conditions.values()):
        rules.append(
            "The floor is the LSD of highs whose envelope is perfect and whose fine structure is noise of its own. Below it "
            "a system follows the true fine structure, or its highs are smoother than natural ones."
        )
    terms = ""
    for name, about in tables.metrics.items():
        if fitting := [key for key in _GLOSSARY if name == key or name.startswith(f"{key}_")]:
            terms += f"<dt>{escape(about['title'])}</dt><dd>{escape(_GLOSSARY[max(fitting, key=len)])}.</dd>"
    return details(
        "How to read this page",
        f"<ul>{''.join(f'<li>{rule}</li>' for rule in rules)}</ul>" + (f'<dl class="glossary">{terms}</dl>' if terms else ""),
    )


def _figures(label: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    return f'<div class="figures">{table(head, rows, label)}</div>'


def _mean(tables: _Tables, system: str, condition: Condition, metric: str) -> str:
    mean, ci95 = tables.interval(system, condition, metric)
    digits, leaders = tables.metrics[metric]["digits"], tables.leaders(condition, metric)
    text = fixed(mean, digits)
    if system in leaders:
        kind, words = ("best", "best") if len(leaders) == 1 else ("tied", "among the best")
        text = f'<span class="{kind}" title="{words}">{text}<span class="unseen"> ({words})</span></span>'
    return text + (f'<span class="ci">[{fixed(ci95[0], digits)}, {fixed(ci95[1], digits)}]</span>' if ci95 else "")


def _overview(tables: _Tables) -> str:
    """One metric over all conditions."""
    if len(tables.conditions) < 2 or not tables.first_metric:
        return ""
    rows = [
        [tables.label(system), *(_mean(tables, system, condition, tables.first_metric) for condition in tables.conditions)]
        for system in tables.systems
    ]
    head = ["System", *(escape(_name(condition)) for condition in tables.conditions)]
    return f"<p>{tables.title(tables.first_metric)} by condition.</p>" + _figures("By condition", head, rows)


def _condition(tables: _Tables, condition: Condition) -> str:
    counts = {row["n"] for (_, where), row in tables.rows.items() if where == condition}
    files = _count(max(counts, default=0), "file") if len(counts) < 2 else f"{min(counts)} to {max(counts)} files"
    rows = [
        [tables.label(system), *(_mean(tables, system, condition, metric) for metric in tables.metrics)]
        for system in tables.systems
    ]
    floors = {metric: tables.floor(condition, metric) for metric in tables.metrics}
    if any(floors.values()):
        shown = (fixed(floor, tables.metrics[metric]["digits"]) if floor else "" for metric, floor in floors.items())
        rows.append(['<span class="floor">floor</span>', *shown])
    head = ["System", *map(tables.title, tables.metrics)]
    plots = [_intervals(tables, condition, metric) for metric in tables.metrics if _PLOTTED.fullmatch(metric)]
    return (
        f'<h3>{escape(_name(condition))} <span class="unit">{files}</span></h3>'
        + _figures(f"Means: {_name(condition)}", head, rows)
        + _paired(tables, condition)
        + grid(plots)
    )


_ROW, _VALUE = 22, 56  # of an interval plot whose SVG is 400 wide: height of a row, width of its last text


def _intervals(tables: _Tables, condition: Condition, metric: str) -> str:
    """Mean and interval of each system on one axis, the floor across. An input far off stands at the edge as an arrow."""
    about = tables.metrics[metric]
    shown = {system: tables.interval(system, condition, metric) for system in tables.systems}
    spans = {name: (mean, *(ci95 or (mean, mean))) for name, (mean, ci95) in shown.items() if mean is not None}
    if not spans:
        return ""
    floor = tables.floor(condition, metric)
    marks = [*([floor] if floor else []), *([0.0] if about["better"] == "zero" else [])]
    judged = [value for name, span in spans.items() if name != "input" for value in span] or [*spans["input"]]
    low, high = min(judged + marks), max(judged + marks)
    if "input" in spans and min(spans["input"]) > low - (reach := 1.5 * (high - low)) and max(spans["input"]) < high + reach:
        low, high = min(low, *spans["input"]), max(high, *spans["input"])
    margin = max(0.06 * (high - low), 2 * 10.0 ** -about["digits"])
    low, high = low - margin, high + margin
    most = min(max(map(len, tables.systems)), 18)
    left, right, top = 14 + 8 * most, 400 - _VALUE, 16 if floor else 6
    bottom = top + _ROW * len(tables.systems)

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    drawn = []
    for value in pictures.ticks(low, high, 5):
        drawn.append(f'<path class="grid" d="M{x(value):.1f} {top}V{bottom}"/>')
        drawn.append(f'<text x="{x(value):.1f}" y="{bottom + 14}" text-anchor="middle">{tick(value)}</text>')
    for value in marks:
        drawn.append(f'<path class="{"floor" if value == floor else "zero"}" d="M{x(value):.1f} {top}V{bottom}"/>')
    if floor:
        drawn.append(f'<text class="floor" x="{x(floor):.1f}" y="11" text-anchor="middle">floor {fixed(floor, 2)}</text>')
    for place, (system, (mean, ci95)) in enumerate(shown.items()):
        y, style = top + _ROW * (place + 0.5), f'style="--c:var(--{tables.colours[system]})"'
        short = system if len(system) <= most else f"{system[: most - 1]}…"
        drawn.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        drawn.append(f'<text class="name" x="{left - 8}" y="{y + 3.5}" text-anchor="end">{escape(short)}</text>')
        drawn.append(f'<text class="name" x="400" y="{y + 3.5}" text-anchor="end">{fixed(mean, about["digits"])}</text>')
        if mean is None:
            continue
        if not low <= mean <= high:
            tip, back = (left + 1, 7) if mean < low else (right - 1, -7)
            drawn.append(f'<path class="off" {style} d="M{tip} {y}l{back} -5v10z"/>')
            continue
        if ci95:
            drawn.append(f'<path class="whisker" {style} d="M{x(ci95[0]):.1f} {y}H{x(ci95[1]):.1f}"/>')
        drawn.append(f'<circle {style} cx="{x(mean):.1f}" cy="{y}" r="4"/>')
    words = ", ".join(f"{system} {fixed(mean, about['digits'])}" for system, (mean, _) in shown.items())
    return (
        f'<figure class="chart intervals"><figcaption><span class="key">{tables.title(metric)}</span></figcaption>'
        f'<svg viewBox="0 0 400 {bottom + 20}" role="img" aria-label="{escape(about["title"])}: {escape(words)}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _frequency(tables: _Tables) -> str:
    charts = []
    for entry in tables.tree.get("frequency") or ():
        condition = _key(entry)
        axis = [hz / 1000 for hz in entry["hz"]]
        lines = {
            name: Line(axis, [math.nan if v is None else v for v in values], tables.colours[name], aside=name == "input")
            for name in tables.systems
            if (values := entry["lsd"].get(name))
        }
        charts.append(chart(_name(condition), lines, (0.0, axis[-1]), "kHz", mark=(condition[1] or 0.0) / 1000))
    words = "<p>Dotted: the cut-off. The axis is made for the systems; the input may leave it.</p>"
    return words + grid(charts) if charts else ""


def _paired(tables: _Tables, condition: Condition) -> str:
    """What each system does to each file, compared with what the baseline does to it."""
    rows = []
    for system in tables.systems:
        paired = tables.rows.get((system, condition), {}).get("paired")
        if paired:
            figures = (_difference(paired.get(name), about) for name, about in tables.metrics.items())
            rows.append([tables.label(system), *figures])
    if not rows:
        return ""
    words = (
        "Mean difference to the baseline over the same files, its 95 % interval, files that are better : worse, and p of the "
        "two-sided sign test, not corrected for the number of comparisons. Green is better, orange worse with p &lt; 0.05."
    )
    content = f"<p>{words}</p>" + _figures("Paired differences", ["System", *map(tables.title, tables.metrics)], rows)
    return details(f"Paired differences to {tables.tree['baseline']}", content)


def _difference(paired: Tree | None, metric: Tree) -> str:
    if not paired or paired["difference"] is None:
        return "–"
    p, wins, losses = paired["p"], paired["wins"], paired["losses"]
    text = ("+" if paired["difference"] > 0 else "") + fixed(paired["difference"], metric["digits"])
    if p is not None and p < 0.05:
        text = f'<span class="{"gain" if wins > losses else "loss"}">{text}</span>'
    edges = [fixed(edge, metric["digits"]) for edge in paired["ci95"] or ()]
    text += f'<span class="ci">[{", ".join(edges)}]</span>' if edges else ""
    chance = "–" if p is None else "p &lt; 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f'{text}<span class="ci">{wins} : {losses}, {chance}</span>'


def _clips(tables: _Tables, clips: Sequence[Clip], links: Mapping[tuple[str, Condition], str]) -> str:
    if not clips:
        return ""
    words = (
        "All versions of a clip play at once, each at its own level; the buttons, or the keys 1 to 9, choose the one heard "
        "without a gap. A click into a spectrogram chooses it and goes there."
    )
    scale = ", ".join(pictures.LEVEL_COLOURS)
    bar = (
        f'<p class="scale">−100 dBFS <span class="bar" style="background:linear-gradient(90deg, {scale})" role="img" '
        f'aria-label="Colour scale of the spectrograms"></span> 0 dBFS, the same for all. Dashed: the cut-off.</p>'
    )
    shown = (f'<div id="{links[clip.file, (clip.filter, clip.cutoff_hz)]}">{_clip(tables, clip)}</div>' for clip in clips)
    return f"<p>{words}</p>{bar}{''.join(shown)}"


def _clip(tables: _Tables, clip: Clip) -> str:
    sounds, panels = {}, []
    length = max(x.shape[-1] for x in clip.signals.values())
    nyquist = clip.sample_rate / 2
    free = 0.05 * nyquist  # around a label
    marks = [hz for hz in pictures.ticks(0, nyquist, 6) if 0 < hz < nyquist - free and abs(hz - (clip.cutoff_hz or 0)) > free]
    axis = "".join(f'<i class="khz" style="bottom:{100 * hz / nyquist:.2f}%">{hz / 1000:g}</i>' for hz in marks)
    if clip.cutoff_hz is not None and clip.cutoff_hz < nyquist:
        axis += f'<i class="cutoff" style="bottom:{100 * clip.cutoff_hz / nyquist:.2f}%"></i>'
    for name, x in clip.signals.items():
        sounds[name] = data_uri("audio/flac", _flac(x, clip.sample_rate))
        picture = image(pictures.spectrogram(x, length), f"Spectrogram of {name}")
        panels.append(
            f'<div class="panel">{tables.label(name)}<div class="view" data-panel="{escape(name)}">{picture}{axis}'
            '<i class="head"></i></div></div>'
        )
    about = [escape(clip.speaker)] if clip.speaker else []
    about += [escape(_name((clip.filter, clip.cutoff_hz))), f"{length / clip.sample_rate:.1f} s", f"0 to {khz(nyquist)}"]
    loud = [name for name, x in clip.signals.items() if np.abs(x).max(initial=0) > 1]
    about += [f"clipped: {escape(_and(loud))}"] if loud else []
    first = next((name for name in tables.systems if name != "input" and name in clip.signals), "")
    columns = len(panels) if len(panels) <= 5 else math.ceil(len(panels) / 2)
    return player(
        f'{escape(clip.file)} <span class="unit">{" · ".join(about)}</span>',
        sounds,
        clip.sample_rate,
        first,
        f'<div class="panels" style="--columns:{columns}">{"".join(panels)}</div>',
    )


def _flac(x: np.ndarray, sample_rate: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.flac"
        audio.write(path, x.clip(-1, 1), sample_rate, "PCM_16")
        return path.read_bytes()


def _breakdown(tables: _Tables, records: Sequence[Tree], key: str, values_key: str, note_key: str, words: str) -> str:
    """A chart and a sortable table by speaker or file, for any condition and metric; made by the page's script."""
    names = sorted({record[key] for record in records if record[key] is not None})
    if len(names) < 2:
        return ""
    found = {(record[key], record["system"], _key(record)): record[values_key] for record in records}
    notes = {record[key]: record[note_key] for record in records}

    def value(name: str, system: str, condition: Condition, metric: str) -> float | None:
        number: float | None = found.get((name, system, condition), {}).get(metric)
        return None if number is None else round(number, tables.metrics[metric]["digits"])

    data = {
        "key": key.capitalize(),
        "note": {"n": "Files"}.get(note_key, note_key.capitalize()),
        "names": names,
        "notes": ["–" if notes[name] is None else str(notes[name]) for name in names],
        "systems": tables.systems,
        "colours": [tables.colours[system] for system in tables.systems],
        "metrics": [
            {name: about.get(name) for name in ("title", "unit", "better", "digits")} for about in tables.metrics.values()
        ],
        "first": list(tables.metrics).index(tables.first_metric),
        "conditions": [_name(condition) for condition in tables.conditions],
        "values": [
            [[[value(n, s, condition, metric) for s in tables.systems] for n in names] for metric in tables.metrics]
            for condition in tables.conditions
        ],
    }
    packed = escape(json.dumps(data, separators=(",", ":"), allow_nan=False))
    return (
        f'<p>{words}</p><div class="breakdown" data-breakdown="{packed}"></div>'
        "<noscript><p>This table needs scripts.</p></noscript>"
    )


def _worst(tables: _Tables, links: Mapping[tuple[str, Condition], str]) -> str:
    parts = []
    for condition in tables.conditions:
        cards = []
        for entry in tables.of("worst", condition):
            about = tables.metrics[entry["metric"]]
            lines = []
            for record in entry["files"]:
                name = f'<span class="file">{escape(record["file"])}</span>'
                if link := links.get((record["file"], condition)):
                    name = f'<a class="file" href="#{link}">{escape(record["file"])}</a>'
                lines.append(f"<li>{name} <b>{fixed(record['value'], about['digits'])}</b></li>")
            title = f'{tables.label(entry["system"])} <span class="unit">{escape(about["title"])}</span>'
            cards.append(f'<div class="card"><h4>{title}</h4><ol>{"".join(lines)}</ol></div>')
        if cards:
            parts.append(details(_name(condition), grid(cards)))
    if len(parts) == 1:
        parts[0] = parts[0].replace("<details>", "<details open>", 1)
    return "".join(parts)


def _sets(tables: _Tables) -> str:
    """What is known of all files together only: Fréchet distances and spectral lines."""
    content = ""
    head = ["System", *(escape(_name(condition)) for condition in tables.conditions)]
    distances = {(entry["system"], _key(entry)): entry["value"] for entry in tables.tree.get("frechet") or ()}
    if distances:
        rows = [
            [tables.label(system), *(number(distances.get((system, condition))) for condition in tables.conditions)]
            for system in tables.systems
        ]
        words = (
            "Between the embeddings of the references and those of a system's output, all files together. It depends on the "
            "number of files, so compare it over the same files only; it has no interval here, says nothing about single "
            "files, and knows only what its embedding keeps."
        )
        content += f"<h3>Fréchet distance ↓</h3>{_figures('Fréchet distance', head, rows)}<p>{words}</p>"
    heights = {_key(entry): entry["db"] for entry in tables.tree.get("lines") or ()}
    if heights:
        rows = [
            [tables.label(name), *(fixed(heights.get(condition, {}).get(name), 1) for condition in tables.conditions)]
            for name in ("reference", *tables.systems)
        ]
        words = (
            "How far the mean spectrum of all files stands out within 200 Hz of the cut-off. A seam that doubles a band shows "
            "as several dB more than the reference has; a slope, a step or a gap does not show."
        )
        content += f"<h3>Line at the cut-off, dB</h3>{_figures('Line at the cut-off', head, rows)}<p>{words}</p>"
    return content


def _alignment(tables: _Tables) -> str:
    entries = tables.tree.get("alignment") or ()
    if not entries:
        return ""
    summary = []
    for system in dict.fromkeys(entry["system"] for entry in entries):
        own = [entry for entry in entries if entry["system"] == system]
        lags = [entry["lag_ms"] for entry in own if entry["lag_ms"] is not None]
        gains = [entry["level_db"] for entry in own if entry["level_db"] is not None]
        summary.append([
            tables.label(system), f"{len(own)}", fixed(statistics.median(lags) if lags else None, 2),
            fixed(max(map(abs, lags), default=None), 2), fixed(statistics.median(gains) if gains else None, 2),
            f"{sum(bool(entry['inverted']) for entry in own)}",
        ])  # fmt: skip
    rows = [
        [
            escape(entry["file"]), tables.label(entry["system"]), fixed(entry["lag_ms"], 2), fixed(entry["level_db"], 2),
            "yes" if entry["inverted"] else "no",
        ]
        for entry in entries
    ]  # fmt: skip
    head = ["System", "Files", "Median lag ms", "Largest lag ms", "Median level dB", "Inverted"]
    all_files = _figures("Alignment of every file", ["File", "System", "Lag ms", "Level dB", "Inverted"], rows)
    return (
        "<p>What was found between each file and its reference before they were compared.</p>"
        + _figures("Alignment", head, summary)
        + details("Every file", f'<div class="tall">{all_files}</div>')
    )


def _files(tables: _Tables) -> str:
    content = ""
    if skipped := tables.tree.get("skipped") or {}:
        rows = [[escape(path), escape(why)] for path, why in skipped.items()]
        content += details(f"Skipped: {_count(len(rows), 'file')}", table(["File", "Why"], rows))
    every = _breakdown(tables, tables.tree.get("files") or (), "file", "values", "speaker", "One dot per file.")
    if every:
        content += details(f"All {_count(len({record['file'] for record in tables.tree['files']}), 'file')}", every)
    return content


_STYLE = """
abbr { text-decoration: none; }
h3 .unit, h4 .unit, figcaption .unit, th .unit { font-weight: 400; color: var(--soft); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.notes { margin: 14px 0; padding: 8px 14px; max-width: 90ch; list-style: none;
  border-left: 3px solid var(--judge); background: var(--card); }
details > ul { margin: 8px 0; padding-left: 20px; max-width: 90ch; }
.glossary { display: grid; grid-template-columns: max-content minmax(0, 72ch); gap: 4px 18px; }
.glossary dt { font-size: inherit; font-weight: 600; color: inherit; }
.system { white-space: nowrap; }
.system::before { content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 7px; border-radius: 50%;
  background: var(--c); }
.figures { margin: 10px 0; }
.figures .wide { position: relative; width: fit-content; max-width: 100%;
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.figures table { border-collapse: separate; border-spacing: 0; }
.figures th, .figures td { min-width: 92px; padding: 7px 12px; text-align: right; white-space: nowrap; }
.figures th:first-child { position: sticky; left: 0; text-align: left; background: var(--card); }
.figures tbody tr:last-child > * { border-bottom: 0; }
.ci { display: block; font-size: 12px; color: var(--soft); }
.best { padding: 1px 6px; margin: 0 -6px; border-radius: 5px; font-weight: 650;
  background: color-mix(in srgb, var(--true) 18%, transparent); }
.tied { text-decoration: underline 2px color-mix(in srgb, var(--true) 60%, transparent); text-underline-offset: 3px; }
.gain { color: var(--true); font-weight: 600; }
.loss { color: var(--judge); font-weight: 600; }
.floor { color: var(--soft); font-weight: 400; }
#results h3 { margin-top: 32px; font-size: 16px; color: var(--text); }
#results .grid { margin-top: 14px; }
.grid svg text { font-size: 11.5px; }
.intervals figcaption { min-height: 24px; }
svg text.name { fill: var(--text); }
path.whisker { stroke: var(--c); stroke-width: 2; }
path.off { fill: var(--c); }
svg path.floor { stroke: var(--true); stroke-dasharray: 4 3; }
svg text.floor { fill: var(--true); }
svg path.zero { stroke: var(--soft); }
.panels { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 10px; padding-bottom: 6px; }
.panel { font-size: 13px; font-weight: 400; }
.view { position: relative; margin-top: 4px; overflow: hidden; border-radius: 4px; cursor: crosshair; }
.view.heard { outline: 2px solid var(--made); outline-offset: 1px; }
.view img { min-width: 0; max-width: none; aspect-ratio: 10 / 7; border-radius: 0; }
.view i { position: absolute; pointer-events: none; }
.khz { left: 4px; translate: 0 50%; font: 11px/1 system-ui, sans-serif; color: #fffc;
  text-shadow: 0 0 3px #000, 0 0 3px #000; }
.cutoff { left: 0; right: 0; border-top: 1px dashed #fffc; }
.head { top: 0; bottom: 0; left: calc(100% * var(--at, -1)); border-left: 1px solid #fff; }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; font-size: 12.5px; }
.scale .bar { display: inline-block; width: 140px; height: 10px; border-radius: 2px; }
.breakdown { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px; }
details .breakdown { padding: 4px 0; border: 0; }
.breakdown .wide { width: auto; }
.breakdown table { width: 100%; }
.choices { display: flex; flex-wrap: wrap; gap: 8px 18px; margin-bottom: 8px; font-size: 14px; }
select { max-width: 100%; font: inherit; color: var(--text); background: var(--ground); padding: 3px 6px;
  border: 1px solid var(--rule); border-radius: 6px; }
.dot { fill: var(--c); opacity: 0.55; }
.dot.lit { opacity: 1; stroke: var(--text); stroke-width: 2; }
.median { stroke: var(--c); stroke-width: 3; }
.breakdown svg text { font-size: 12px; }
.breakdown thead th { padding: 0; }
.breakdown th button { width: 100%; padding: 7px 14px; border: 0; border-radius: 0; background: none; text-align: inherit;
  font-size: 12.5px; font-weight: 600; color: var(--soft); }
.breakdown [aria-sort] button { color: var(--text); }
.breakdown tbody tr:hover > * { background: var(--ground); }
.breakdown th .file { white-space: normal; overflow-wrap: anywhere; }
.tall .wide, .breakdown .wide { max-height: 70vh; overflow: auto; }
.tall thead th, .breakdown thead th { position: sticky; top: 0; z-index: 1; background: var(--card); }
.card { min-width: 0; padding-right: 24px; }
.card h4 { margin: 6px 0; font-size: 14px; }
.card ol { margin: 0 0 10px; padding-left: 26px; font-size: 13.5px; }
.card li { padding: 1px 0; }
.card b { float: right; padding-left: 12px; font-weight: 600; }
.file { overflow-wrap: anywhere; }
@media (max-width: 700px) {
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .glossary { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .glossary dd { margin-bottom: 8px; }
  .grid svg text { font-size: 13.5px; }
  .figures th, .figures td { min-width: 88px; padding: 6px 10px; }
  .card { padding-right: 0; }
}
"""

_SCRIPT = r"""
const make = (name, properties, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const draw = (name, attributes, text = '') => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
};
const fixed = (value, digits) => value === null ? '\u2013' : value.toFixed(digits).replace('-', '\u2212');
const known = values => values.filter(value => value !== null);
const byName = new Intl.Collator('en', {numeric: true}).compare;
for (const box of document.querySelectorAll('[data-breakdown]')) {
  const data = JSON.parse(box.dataset.breakdown);
  const choice = (names, first) => {
    const select = make('select', {onchange: () => render()}, ...names.map(name => make('option', {textContent: name})));
    select.selectedIndex = first;
    return select;
  };
  const condition = choice(data.conditions, 0), metric = choice(data.metrics.map(m => m.title), data.first);
  const content = make('div', {});
  let sorted = 0, down = false, width = 0;
  const label = k => Object.assign(make('span', {className: 'system', textContent: data.systems[k]}),
    {style: `--c:var(--${data.colours[k]})`});

  const strip = (values, digits, dots) => {
    const input = data.systems.indexOf('input'), left = Math.min(150, 0.3 * width), right = width - 62;
    const column = k => known(values.map(row => row[k]));
    const judged = data.systems.flatMap((_, k) => k === input ? [] : column(k)), untouched = input < 0 ? [] : column(input);
    const all = judged.length ? judged : untouched;
    let low = Math.min(...all), high = Math.max(...all);
    const reach = 1.5 * (high - low);
    if (untouched.length && Math.min(...untouched) > low - reach && Math.max(...untouched) < high + reach) {
      low = Math.min(low, ...untouched); high = Math.max(high, ...untouched);
    }
    const margin = Math.max(0.04 * (high - low), 2 * 10 ** -digits);
    low -= margin; high += margin;
    const x = value => left + (right - left) * (value - low) / (high - low), row = 30, bottom = row * data.systems.length;
    const exact = (high - low) / (width < 500 ? 3 : 6), power = 10 ** Math.floor(Math.log10(exact));
    const step = power * [1, 2, 5, 10].find(m => m * power >= exact * (1 - 1e-9));
    const svg = draw('svg', {viewBox: `0 0 ${width} ${bottom + 22}`, role: 'img'});
    for (let n = Math.ceil(low / step); n <= high / step; n++) {
      const value = +(n * step).toPrecision(9);
      svg.append(draw('path', {class: 'grid', d: `M${x(value)} 0V${bottom}`}));
      svg.append(draw('text', {x: x(value), y: bottom + 15, 'text-anchor': 'middle'}, String(value).replace('-', '\u2212')));
    }
    const medians = data.systems.map((name, k) => {
      const style = `--c:var(--${data.colours[k]})`, y = row * (k + 0.5), list = column(k).sort((a, b) => a - b);
      const median = list.length ? (list[(list.length - 1) >> 1] + list[list.length >> 1]) / 2 : null;
      const most = Math.floor((left - 10) / 7), short = name.length > most ? name.slice(0, most - 1) + '\u2026' : name;
      svg.append(draw('text', {class: 'name', x: left - 10, y: y + 4, 'text-anchor': 'end'}, short));
      svg.append(draw('text', {class: 'name', x: width - 2, y: y + 4, 'text-anchor': 'end'}, fixed(median, digits)));
      if (median !== null && (median < low || median > high)) {
        const [tip, back] = median < low ? [left, 8] : [right, -8];
        svg.append(draw('path', {class: 'off', style, d: `M${tip} ${y}l${back} -6v12z`}));
      }
      values.forEach((cells, r) => {
        if (cells[k] === null || cells[k] < low || cells[k] > high) return;
        const jitter = ((r * 0.618034) % 1 - 0.5) * 14;
        const dot = draw('circle', {class: 'dot', style, cx: x(cells[k]), cy: y + jitter, r: 3.5});
        dot.append(draw('title', {}, `${data.names[r]}: ${fixed(cells[k], digits)}`));
        dots[r].push(dot);
        svg.append(dot);
      });
      if (median !== null && median >= low && median <= high) {
        svg.append(draw('path', {class: 'median', style, d: `M${x(median)} ${y - 10}V${y + 10}`}));
      }
      return `${name} ${fixed(median, digits)}`;
    });
    svg.setAttribute('aria-label', 'Medians: ' + medians.join(', '));
    return svg;
  };

  const render = () => {
    const {better, digits} = data.metrics[metric.selectedIndex];
    const values = data.values[condition.selectedIndex][metric.selectedIndex], dots = data.names.map(() => []);
    const loss = v => better === 'zero' ? Math.abs(v) : better === 'lower' ? v : -v;
    const cell = r => sorted === 0 ? data.names[r] : sorted === 1 ? data.notes[r] : values[r][sorted - 2];
    const order = data.names.map((_, r) => r).sort((a, b) => {
      const [p, q] = [cell(a), cell(b)];
      if (p === null || q === null) return (p === null) - (q === null);
      return (down ? -1 : 1) * (sorted < 2 ? byName(p, q) : p - q);
    });
    const head = [data.key, data.note, ...data.systems.map((_, k) => label(k))].map((title, k) => {
      const button = make('button', {onclick: () => {
        [sorted, down] = [k, sorted === k && !down];
        render();
        content.querySelectorAll('th button')[k].focus();
      }}, title, sorted === k ? (down ? ' \u25be' : ' \u25b4') : '');
      const th = make('th', {scope: 'col'}, button);
      if (sorted === k) th.ariaSort = down ? 'descending' : 'ascending';
      return th;
    });
    const rows = order.map(r => {
      const least = Math.min(...known(values[r]).map(loss));
      const light = on => dots[r].forEach(dot => dot.classList.toggle('lit', on));
      const best = v => v !== null && loss(v) === least;
      const figures = values[r].map(v => make('td', {}, make(best(v) ? 'b' : 'span', {}, fixed(v, digits))));
      return make('tr', {onmouseenter: () => light(true), onmouseleave: () => light(false)},
        make('th', {scope: 'row'}, make('span', {className: 'file', textContent: data.names[r]})),
        make('td', {}, data.notes[r]), ...figures);
    });
    const table = make('table', {}, make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...rows));
    const scroll = content.querySelector('.wide')?.scrollTop ?? 0;
    const wide = make('div', {className: 'wide', tabIndex: 0, role: 'region', ariaLabel: `${data.key} by system`}, table);
    content.replaceChildren(strip(values, digits, dots), make('div', {className: 'figures'}, wide));
    wide.scrollTop = scroll;
  };
  const controls = [make('label', {}, 'Metric ', metric)];
  if (data.conditions.length > 1) controls.unshift(make('label', {}, 'Condition ', condition));
  box.append(make('div', {className: 'choices'}, ...controls), content);
  // Only what is seen is made: in closed details the width is 0.
  new ResizeObserver(() => {
    if (!content.clientWidth || content.clientWidth === width) return;
    width = content.clientWidth;
    render();
  }).observe(box);
}
"""
