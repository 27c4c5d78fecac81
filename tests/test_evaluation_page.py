"""The page about an evaluation: its figures are those of the tree, it stands alone, and a browser shows and plays it."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from bwe import dsp, metrics
from bwe.evaluation_page import Clip, page

SR = 48_000
SYSTEMS = ("input", "envelope", "noise", "bright")
METRICS = (
    {"name": "lsd", "title": "LSD", "unit": "", "better": "lower", "digits": 3},
    {"name": "lsd_lf", "title": "LSD-LF", "unit": "", "better": "lower", "digits": 3},
    {"name": "lsd_hf", "title": "LSD-HF", "unit": "", "better": "lower", "digits": 3},
    {"name": "hf_bias", "title": "HF bias", "unit": "dB", "better": "zero", "digits": 2},
    {"name": "si_sdr", "title": "SI-SDR", "unit": "dB", "better": "higher", "digits": 2},
)
EVIL = "</script><img src=x onerror=alert(1)>\"'&.wav"
VOID = {"meta", "img", "input", "path", "circle", "polyline", "polygon", "rect", "line"}
Tree = dict[str, Any]




def extended(ref: np.ndarray, low: np.ndarray, cutoff: float, seed: int) -> dict[str, np.ndarray]:
    """By system, what it makes of a low band `(1, T)`: nothing, noise under the reference's own envelope, noise of one level,
    and the reference's highs 4 dB too loud."""
    high = torch.from_numpy(ref - low)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(ref.shape).astype(np.float32))
    noise = torch.from_numpy(ref - low).std() * noise
    frames = torch.nn.functional.avg_pool1d(high.square()[None], 480, 240, 240)[0].sqrt()
    level = torch.nn.functional.interpolate(frames[None], ref.shape[-1], mode="linear")[0]
    shaped = level * noise / noise.std()
    made = {
        "input": 0 * high,
        "envelope": shaped - dsp.band_limit(shaped, SR, cutoff),
        "noise": 0.3 * (noise - dsp.band_limit(noise, SR, cutoff)),
        "bright": 10 ** (4 / 20) * high,
    }
    return {name: low + y.numpy() for name, y in made.items()}


def interval(values: np.ndarray) -> list[float]:
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    return [values.mean() - half, values.mean() + half]


def measured(files: dict[str, np.ndarray], conditions: list[tuple[str, float]]) -> tuple[Tree, list[Clip]]:
    """The tree of an evaluation of recordings `(1, T)` at 48 kHz by name, ``speaker/file.wav``, and all of its clips."""
    scores: dict[tuple[str, float], np.ndarray] = {}
    clips, curves, heights = [], [], []
    for filter, cutoff in conditions:
        values = np.zeros((len(files), len(SYSTEMS), len(METRICS)))
        spectra: dict[str, list[torch.Tensor]] = {}
        bins: dict[str, list[np.ndarray]] = {}
        for n, (file, ref) in enumerate(files.items()):
            brickwall = dsp.band_limit(torch.from_numpy(ref), SR, cutoff).numpy()
            low = brickwall if filter == "brickwall" else dsp.lowpass(ref, SR, cutoff, "butter")
            signals = {**extended(ref, low, cutoff, n), "reference": ref}
            clips.append(Clip(file, file.split("/")[0], filter, cutoff, SR, signals))
            for name, y in signals.items():
                spectra.setdefault(name, []).append(metrics.edge_spectrum(y, SR, cutoff)[0])
            for s, name in enumerate(SYSTEMS):
                y = signals[name]
                values[n, s] = [
                    float(metrics.lsd(ref, y, SR)),
                    float(metrics.lsd_lf(ref, y, SR, cutoff)),
                    float(metrics.lsd_hf(ref, y, SR, cutoff)),
                    float(metrics.hf_bias(ref, y, SR, cutoff)),
                    float(metrics.si_sdr(ref, y)),
                ]
                a, b = (dsp.power_spectrogram(torch.from_numpy(z[0]), 2048, 512).clamp_min(1e-8) for z in (ref, y))
                bins.setdefault(name, []).append((b / a).log10().square().mean(-1)[:1024].reshape(64, 16).mean(-1).numpy())
        scores[filter, cutoff] = values
        curves.append({name: np.sqrt(np.mean(found, axis=0)).tolist() for name, found in bins.items()})
        heights.append({name: metrics.line_height(torch.stack(found).mean(0), SR, cutoff) for name, found in spectra.items()})

    def cells() -> Iterator[tuple[Tree, np.ndarray, np.ndarray]]:
        for (filter, cutoff), values in scores.items():
            for s, system in enumerate(SYSTEMS):
                yield {"system": system, "filter": filter, "cutoff_hz": cutoff}, values[:, s], values[:, 1]

    def named(values: Any) -> Tree:
        return {metric["name"]: value for metric, value in zip(METRICS, values, strict=True)}

    def paired(own: np.ndarray, base: np.ndarray) -> Tree:
        gaps, found = own - base, {}
        for m, metric in enumerate(METRICS):
            bad = {"lower": 1, "higher": -1}.get(metric["better"], 0)
            worse = bad * gaps[:, m] if bad else abs(own[:, m]) - abs(base[:, m])
            wins, losses = int((worse < 0).sum()), int((worse > 0).sum())
            tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
            p = min(1.0, 2 * tail)
            ci95 = interval(gaps[:, m])
            found[metric["name"]] = {"difference": gaps[:, m].mean(), "ci95": ci95, "wins": wins, "losses": losses, "p": p}
        return found

    names = list(files)
    speakers = sorted({name.split("/")[0] for name in names})
    own_files = {speaker: [n for n, name in enumerate(names) if name.startswith(speaker)] for speaker in speakers}
    where = [{"filter": filter, "cutoff_hz": cutoff} for filter, cutoff in conditions]
    tree = {
        "version": "1.2.3",
        "title": "three ways to fill a band",
        "sample_rate": SR,
        "cutoff_source": "given",
        "baseline": "envelope",
        "systems": [
            {"name": name, "arch": None if name == "input" else "by hand", "parameters": 0 if name == "noise" else None}
            for name in SYSTEMS
        ],
        "conditions": [{**w, "floor": metrics.lsd_floor(w["cutoff_hz"], SR)} for w in where],
        "metrics": list(METRICS),
        "rows": [
            {
                **row, "n": len(files), "mean": named(own.mean(0)), "ci95": named(map(interval, own.T)),
                "paired": None if row["system"] == "envelope" else paired(own, base),
            }
            for row, own, base in cells()
        ],
        "speakers": [
            {**row, "speaker": speaker, "n": len(own_files[speaker]), "mean": named(own[own_files[speaker]].mean(0))}
            for row, own, _ in cells()
            for speaker in speakers
        ],
        "frechet": [{**row, "value": abs(own[:, 0].mean()) / 3} for row, own, _ in cells()],
        "lines": [{**w, "db": db} for w, db in zip(where, heights, strict=True)],
        "frequency": [
            {**w, "hz": [(k + 0.5) * SR / 128 for k in range(64)], "lsd": lsd} for w, lsd in zip(where, curves, strict=True)
        ],
        "worst": [
            {**row, "metric": "lsd_hf", "files": [{"file": names[n], "value": own[n, 2]} for n in np.argsort(-own[:, 2])[:10]]}
            for row, own, _ in cells()
        ],
        "alignment": [],
        "files": [
            {"file": name, "speaker": name.split("/")[0], **row, "values": named(own[n])}
            for row, own, _ in cells()
            for n, name in enumerate(names)
        ],
        "skipped": {},
        "notes": ["The files are parts of one sentence."],
    }  # fmt: skip
    return json.loads(json.dumps(tree)), clips


def parts(talk: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Parts of 0.6 s of a recording, as if of four speakers."""
    starts = np.linspace(0, talk.shape[1] - 28_800, count).astype(int)
    return {f"s{n % 4 + 1}/part_{n + 1}.wav": talk[:, start : start + 28_800] for n, start in enumerate(starts)}


@pytest.fixture(scope="module")
def found(talk: np.ndarray) -> tuple[Tree, list[Clip]]:
    return measured(parts(talk, 8), [("brickwall", 4000.0), ("butter", 8000.0)])


class Page(html.parser.HTMLParser):
    """A page's elements, its words by section, and its tables as rows of words; fails where tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, str] = {"": ""}
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self._section = self._table = ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = found["id"] or ""
            self.words[self._section] = ""
        if found.get("class") == "wide":
            self._table = found.get("aria-label") or ""
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("th", "td"):
            self.tables[self._table][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["style"], ["script"]):
            return
        self.words[self._section] += data
        if {"th", "td"} & set(self.open):
            self.tables[self._table][-1][-1] += data

    def breakdowns(self) -> list[Tree]:
        return [json.loads(found["data-breakdown"] or "") for _, found in self.elements if "data-breakdown" in found]


def shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


@pytest.fixture(scope="module")
def parsed(found: tuple[Tree, list[Clip]]) -> Page:
    tree, clips = found
    return Page(page(tree, clips[:2]))


def test_the_headline_says_what_was_measured(parsed: Page) -> None:
    words = parsed.words[""]
    assert "three ways to fill a band" in words
    assert "envelope, noise and bright over 8 files of 4 speakers whose band ends at 4 and 8 kHz." in words
    assert "brickwall and butter" in words
    assert "The files are parts of one sentence." in words
    assert "log-spectral distance" in words
    assert parsed.tables["Systems"][3] == ["noise", "by hand", "0"]
    assert parsed.tables["Systems"][1] == ["input", "–", "–"]


def test_every_mean_stands_in_its_table_with_its_interval(found: tuple[Tree, list[Clip]], parsed: Page) -> None:
    tree, _ = found
    for condition, name in zip(tree["conditions"], ("brickwall, 4 kHz", "butter, 8 kHz"), strict=True):
        head, *rows, floor = parsed.tables[f"Means: {name}"]
        assert head == ["System", "LSD ↓", "LSD-LF ↓", "LSD-HF ↓", "HF bias dB →0", "SI-SDR dB ↑"]
        own = [row for row in tree["rows"] if row["cutoff_hz"] == condition["cutoff_hz"]]
        for cells, row in zip(rows, own, strict=True):
            assert cells[0] == row["system"]
            for cell, metric in zip(cells[1:], METRICS, strict=True):
                low, high = (shown(edge, metric["digits"]) for edge in row["ci95"][metric["name"]])
                mean = shown(row["mean"][metric["name"]], metric["digits"])
                assert re.fullmatch(rf"{mean}( \((among the )?best\))?\[{low}, {high}\]", cell), cell
        assert floor == ["floor", shown(condition["floor"], 3), "", "0.788", "", ""]
    assert [row[0] for row in parsed.tables["By condition"]] == ["System", *SYSTEMS]


def one(values: dict[str, tuple[float, list[float] | None]], better: str) -> Tree:
    """A tree of one metric and no condition to speak of, from the mean and interval of each system."""
    rows = [
        {"system": s, "filter": "", "cutoff_hz": None, "n": 9, "mean": {"m": v}, "ci95": {"m": ci}, "paired": None}
        for s, (v, ci) in values.items()
    ]
    return {
        "version": "1", "title": "t", "sample_rate": SR, "cutoff_source": "given", "baseline": None,
        "systems": [{"name": s, "arch": None, "parameters": None} for s in values],
        "conditions": [{"filter": "", "cutoff_hz": None, "floor": None}],
        "metrics": [{"name": "m", "title": "M", "unit": "", "better": better, "digits": 2}],
        "rows": rows, "speakers": [], "frechet": [], "lines": [], "frequency": [], "worst": [], "alignment": [], "files": [],
        "skipped": {}, "notes": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("better", "values", "best", "tied"),
    [
        ("lower", {"a": (1.0, [0.9, 1.1]), "b": (1.2, [1.15, 1.3])}, "a", set()),
        ("higher", {"a": (1.0, [0.9, 1.1]), "b": (1.2, [1.15, 1.3])}, "b", set()),
        ("lower", {"a": (1.0, [0.8, 1.25]), "b": (1.2, [1.15, 1.3]), "c": (1.9, [1.8, 2.0])}, "", {"a", "b"}),
        ("lower", {"a": (1.0, [0.95, 1.05]), "b": (1.2, [0.9, 1.5])}, "", {"a", "b"}),
        ("zero", {"a": (-0.1, [-0.2, -0.05]), "b": (1.0, [0.9, 1.1])}, "a", set()),
        ("zero", {"a": (-0.5, [-0.6, -0.4]), "b": (0.5, [0.4, 0.6])}, "", {"a", "b"}),
        ("zero", {"a": (0.1, [-0.9, 1.1]), "b": (-0.8, [-0.85, -0.7])}, "", {"a", "b"}),
        ("lower", {"a": (1.0, None), "b": (1.2, None)}, "", set()),
    ],
)
def test_only_what_can_be_told_apart_is_called_best(
    better: str, values: dict[str, tuple[float, list[float] | None]], best: str, tied: set[str]
) -> None:
    table = Page(page(one(values, better))).tables["Means: as given"]
    cells = {row[0]: row[1] for row in table[1:]}
    assert {name for name, cell in cells.items() if "(best)" in cell} == ({best} if best else set())
    assert {name for name, cell in cells.items() if "(among the best)" in cell} == tied


def test_paired_differences_say_how_many_files_and_how_sure(found: tuple[Tree, list[Clip]], parsed: Page) -> None:
    tree, _ = found
    rows = [row for row in tree["rows"] if row["paired"] and row["filter"] == "butter"]
    table = parsed.tables["Paired differences"]  # the last of that name
    assert [row[0] for row in table[1:]] == [row["system"] for row in rows] == ["input", "noise", "bright"]
    for cells, row in zip(table[1:], rows, strict=True):
        for cell, metric in zip(cells[1:], METRICS, strict=True):
            paired = row["paired"][metric["name"]]
            sign = "+" if paired["difference"] > 0 else ""
            assert cell.startswith(sign + shown(paired["difference"], metric["digits"]) + "[")
            assert f"]{paired['wins']} : {paired['losses']}, p = {paired['p']:.3f}" in cell
    marked = [found["class"] for tag, found in parsed.elements if tag == "span" and found.get("class") in ("gain", "loss")]
    sure = [p["wins"] > p["losses"] for row in tree["rows"] for p in (row["paired"] or {}).values() if p["p"] < 0.05]
    assert sorted(marked) == sorted("gain" if gain else "loss" for gain in sure)
    assert {"gain", "loss"} <= set(marked)


def test_interval_plots_show_the_metrics_that_matter_and_the_floor(found: tuple[Tree, list[Clip]], parsed: Page) -> None:
    tree, _ = found
    labels = [found["aria-label"] or "" for tag, found in parsed.elements if tag == "svg" and "aria-label" in found]
    row = next(row for row in tree["rows"] if row["system"] == "noise")
    for metric in ("lsd", "lsd_hf", "hf_bias"):
        title, digits = next((m["title"], m["digits"]) for m in METRICS if m["name"] == metric)
        plots = [label for label in labels if label.startswith(f"{title}: ")]
        assert len(plots) == 2
        assert f"noise {shown(row['mean'][metric], digits)}" in plots[0]
    assert not [label for label in labels if label.startswith("SI-SDR")]
    assert parsed.words["results"].count("floor 0.72") == 1  # LSD below 4 kHz
    assert parsed.words["results"].count("floor 0.64") == 1  # below 8 kHz
    assert parsed.words["results"].count("floor 0.79") == 2  # LSD-HF


def test_curves_over_frequency_are_those_of_the_tree(found: tuple[Tree, list[Clip]], parsed: Page) -> None:
    tree, _ = found
    charts = [json.loads(found["data-chart"] or "") for _, found in parsed.elements if "data-chart" in found]
    assert len(charts) == 2
    for chart, entry in zip(charts, tree["frequency"], strict=True):
        assert chart["unit"] == "kHz"
        for (khz, lsd), name in zip(chart["lines"], SYSTEMS, strict=True):
            assert khz == pytest.approx(np.array(entry["hz"]) / 1000, rel=1e-5)
            assert lsd == pytest.approx(entry["lsd"][name], rel=1e-5)


def test_tables_by_speaker_and_file_hold_every_value(found: tuple[Tree, list[Clip]], parsed: Page) -> None:
    tree, _ = found
    speakers, files = parsed.breakdowns()
    assert speakers["names"] == ["s1", "s2", "s3", "s4"]
    assert speakers["notes"] == ["2"] * 4
    assert files["conditions"] == ["brickwall, 4 kHz", "butter, 8 kHz"]
    assert [metric["title"] for metric in files["metrics"]][files["first"]] == "LSD-HF"
    both = (speakers, tree["speakers"], "speaker", "mean"), (files, tree["files"], "file", "values")
    for data, records, key, values in both:
        assert len(records) == 2 * len(data["names"]) * len(SYSTEMS)
        for record in records:
            k = ["brickwall", "butter"].index(record["filter"])
            n, s = data["names"].index(record[key]), SYSTEMS.index(record["system"])
            for m, metric in enumerate(METRICS):
                value = data["values"][k][m][n][s]
                assert value == pytest.approx(record[values][metric["name"]], abs=0.51 * 10 ** -metric["digits"])


def test_worst_files_lines_and_distances(found: tuple[Tree, list[Clip]], parsed: Page) -> None:
    tree, _ = found
    words = parsed.words["worst-files"]
    for entry in tree["worst"]:
        for record in entry["files"]:
            assert f"{record['file']} {shown(record['value'], 3)}" in words
    links = {found["href"] for tag, found in parsed.elements if tag == "a" and found.get("class") == "file"}
    ids = {found["id"] for _, found in parsed.elements if "id" in found}
    assert links == {"#clip-0", "#clip-1"}
    assert {link[1:] for link in links} <= ids
    heights = [entry["db"] for entry in tree["lines"]]
    table = parsed.tables["Line at the cut-off"]
    assert table[1:] == [[name, *(shown(db[name], 1) for db in heights)] for name in ("reference", *SYSTEMS)]
    assert float(parsed.tables["Fréchet distance"][1][1]) == pytest.approx(tree["frechet"][0]["value"], rel=1e-3)
    assert "embedding" in parsed.words["whole-sets"]


def test_clips_are_the_signals_as_they_are(found: tuple[Tree, list[Clip]], parsed: Page) -> None:
    _, clips = found
    names = [*SYSTEMS, "reference"]
    sounds = [found for tag, found in parsed.elements if tag == "audio"]
    assert [sound["data-name"] for sound in sounds] == names * 2
    for sound, (name, x) in zip(sounds, [item for clip in clips[:2] for item in clip.signals.items()], strict=True):
        kind, _, data = (sound["src"] or "").partition(",")
        assert kind == "data:audio/flac;base64"
        heard, rate = sf.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
        assert rate == SR
        assert np.abs(heard - x[0]).max() < 2e-4 if np.abs(x).max() < 1 else np.abs(heard).max() > 0.999, name
    pictures = [found for tag, found in parsed.elements if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [f"Spectrogram of {name}" for name in names] * 2
    assert all((picture["src"] or "").startswith("data:image/png;base64,") for picture in pictures)


def test_a_clip_beyond_full_scale_says_so(found: tuple[Tree, list[Clip]]) -> None:
    tree, (clip, *_) = found
    loud = {**clip.signals, "bright": clip.signals["bright"] * 1.5 / np.abs(clip.signals["bright"]).max()}
    words = Page(page(tree, [dataclasses.replace(clip, signals=loud)])).words["clips"]
    assert "clipped: bright" in words
    quiet = {name: x / 4 for name, x in loud.items()}
    assert "clipped" not in Page(page(tree, [dataclasses.replace(clip, signals=quiet)])).words["clips"]


def test_the_page_stands_alone_and_no_name_becomes_markup(found: tuple[Tree, list[Clip]]) -> None:
    tree, (clip, *_) = found
    evil = json.loads(json.dumps(tree).replace("s1/part_1.wav", json.dumps(EVIL)[1:-1]).replace('"noise"', json.dumps(EVIL)))
    evil |= {"title": EVIL, "notes": [EVIL], "skipped": {EVIL: EVIL}, "baseline": EVIL}
    evil["speakers"] = [{**entry, "speaker": entry["speaker"] + EVIL} for entry in evil["speakers"]]
    evil["alignment"] = [{"system": EVIL, "file": EVIL, "lag_ms": 1.25, "level_db": None, "inverted": True}]
    signals = {name if name != "noise" else EVIL: x for name, x in clip.signals.items()}
    source = page(evil, [dataclasses.replace(clip, file=EVIL, speaker=EVIL, signals=signals)])
    parsed = Page(source)
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    for _, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import|\bfetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", source)
    policy = next(found["content"] for tag, found in parsed.elements if found.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none';")
    assert "".join(parsed.words.values()).count(EVIL) > 30
    assert parsed.tables["Alignment of every file"][1] == [EVIL, EVIL, "1.25", "–", "yes"]


def test_what_is_missing_is_a_dash_and_what_is_empty_is_left_out(found: tuple[Tree, list[Clip]]) -> None:
    tree = json.loads(json.dumps(found[0]))
    row = next(row for row in tree["rows"] if row["system"] == "noise" and row["filter"] == "brickwall")
    row["mean"]["lsd_hf"], row["ci95"]["lsd_hf"], row["ci95"]["lsd"] = None, None, None
    row["paired"]["hf_bias"] = None
    for record in tree["files"]:
        record["values"]["si_sdr"] = None
    tree["speakers"] = [{**entry, "speaker": None} for entry in tree["speakers"]]
    tree["frequency"][0]["lsd"]["noise"] = [None] * 64
    tree["worst"][0]["files"][0]["value"] = None
    tree |= {"frechet": [], "alignment": []}
    parsed = Page(page(tree))
    cells = next(row for row in parsed.tables["Means: brickwall, 4 kHz"] if row[0] == "noise")
    assert cells[3] == "–"
    assert "[" not in cells[1]
    assert f"{tree['worst'][0]['files'][0]['file']} –" in parsed.words["worst-files"]
    (files,) = parsed.breakdowns()
    assert set(np.ravel(files["values"][0][4])) == {None}
    sections = set(parsed.words) - {""}
    assert sections == {"overview", "results", "lsd-over-frequency", "worst-files", "whole-sets", "files"}


def test_a_comparison_of_two_folders_needs_no_condition() -> None:
    tree = one({"left": (1.0, [0.9, 1.1]), "right": (1.5, [1.4, 1.6])}, "lower")
    tree["alignment"] = [
        {"system": "right", "file": f"{n}.wav", "lag_ms": lag, "level_db": -1.0, "inverted": n == 2}
        for n, lag in enumerate((2.0, -5.0, 1.0))
    ]
    parsed = Page(page(tree))
    assert "left and right over 9 files." in parsed.words[""]
    assert parsed.tables["Alignment"][1] == ["right", "3", "1.00", "5.00", "−1.00", "1"]
    assert set(parsed.words) == {"", "results", "alignment"}
    assert "input" not in "".join(parsed.words.values())


def test_a_large_evaluation_is_quickly_written_and_small(found: tuple[Tree, list[Clip]]) -> None:
    """70 files, 5 systems, 8 conditions, 20 metrics."""
    rng = np.random.default_rng(0)
    systems = ["input", *(f"model-{k}" for k in range(4))]
    where = [{"filter": f, "cutoff_hz": hz} for f in ("brickwall", "cheby1", "butter", "soxr") for hz in (4000.0, 8000.0)]
    metrics = [{**METRICS[k % 5], "name": METRICS[k]["name"] if k < 5 else f"m{k}"} for k in range(20)]
    names = [f"p{n % 9 + 360}/p{n % 9 + 360}_{n:03}_mic1.flac" for n in range(70)]

    def values() -> Tree:
        return {metric["name"]: float(rng.normal()) for metric in metrics}

    pair = {"difference": -0.1, "ci95": [-0.2, 0.0], "wins": 40, "losses": 30, "p": 0.2}
    ci95, paired = {m["name"]: [-1.0, 1.0] for m in metrics}, {m["name"]: pair for m in metrics}
    cells = [{"system": system, **w} for w in where for system in systems]
    tree = {
        **found[0],
        "systems": [{"name": name, "arch": None, "parameters": None} for name in systems],
        "conditions": [{**w, "floor": 0.7} for w in where],
        "metrics": metrics,
        "rows": [{**cell, "n": 70, "mean": values(), "ci95": ci95, "paired": paired} for cell in cells],
        "speakers": [{**cell, "speaker": f"p{n + 360}", "n": 8, "mean": values()} for cell in cells for n in range(9)],
        "frechet": [{**cell, "value": 1.0} for cell in cells],
        "lines": [{**w, "db": dict.fromkeys(["reference", *systems], 1.0)} for w in where],
        "frequency": [
            {**w, "hz": np.linspace(0, 24_000, 512).tolist(), "lsd": {s: rng.random(512).tolist() for s in systems}}
            for w in where
        ],
        "worst": [{**c, "metric": "lsd_hf", "files": [{"file": n, "value": 1.0} for n in names[:10]]} for c in cells],
        "files": [{**cell, "file": name, "speaker": name[:4], "values": values()} for cell in cells for name in names],
    }
    began = time.process_time()
    source = page(tree)
    assert time.process_time() - began < 3
    assert len(source) < 3_000_000
    assert Page(source).breakdowns()[1]["names"] == sorted(names)


FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
# Counts what the page starts and stops, keeps its gains, and listens in at every way into the loudspeaker.
LISTEN = """
window.heard = {starts: 0, stops: 0, gains: []};
for (const name of ['start', 'stop']) {
  const original = AudioBufferSourceNode.prototype[name];
  AudioBufferSourceNode.prototype[name] = function (...rest) { heard[name + 's']++; return original.apply(this, rest); };
}
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to instanceof AudioDestinationNode) {
    heard.context = to.context;
    heard.tap ??= new AnalyserNode(to.context, {fftSize: 16384, smoothingTimeConstant: 0});
    heard.gains.push(this);
    connect.call(this, heard.tap);
  }
  return connect.call(this, to, ...rest);
};
heard.level = (low, high) => {
  const bins = new Float32Array(heard.tap.frequencyBinCount), hz = heard.context.sampleRate / 2 / bins.length;
  heard.tap.getFloatFrequencyData(bins);
  return Math.max(...bins.slice(low / hz, high / hz));
};
"""


class Browser:
    """Pages of a real Chromium, and whatever they asked for or complained about."""

    def __init__(self, chromium: Any, folder: Path) -> None:
        self.chromium, self.folder = chromium, folder
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def open(self, source: str, width: int = 1280, scheme: str = "light") -> Any:
        path = self.folder / "page.html"
        path.write_text(source, encoding="utf-8")
        opened = self.chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.on("request", lambda request: self.requests.append(request.url))
        opened.on("console", lambda message: self.complaints.append(message.text))
        opened.on("pageerror", lambda error: self.complaints.append(str(error)))
        opened.add_init_script(LISTEN)
        opened.goto(path.as_uri())
        return opened


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield Browser(chromium, tmp_path_factory.mktemp("browser"))
        chromium.close()


@pytest.fixture(scope="module")
def source(found: tuple[Tree, list[Clip]], talk: np.ndarray) -> str:
    """The page with one clip of 5.6 s, noise under the reference's envelope, and one of 0.6 s."""
    tree, clips = found
    low = dsp.band_limit(torch.from_numpy(talk), SR, 4000.0).numpy()
    signals = {**extended(talk, low, 4000.0, 0), "reference": talk}
    return page(tree, [Clip("s1/talk.flac", "s1", "brickwall", 4000.0, SR, signals), clips[0]])


def until(opened: Any, condition: str) -> None:
    """`wait_for_function` would need the page's leave to evaluate strings."""
    end = time.monotonic() + 10
    while not opened.evaluate(condition):
        assert time.monotonic() < end, condition
        opened.wait_for_timeout(20)


@pytest.mark.slow
def test_nothing_leaves_the_page_and_nothing_goes_wrong_in_it(browser: Browser, source: str) -> None:
    browser.requests.clear()
    opened = browser.open(source)
    opened.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for button in opened.locator(".clip button").all():
        button.click()
    for _ in range(3):
        opened.locator(".breakdown th button").first.click()
    opened.wait_for_timeout(300)
    assert browser.requests
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
    assert [url for url in browser.requests if url.startswith("file:")] == [(browser.folder / "page.html").as_uri()]
    assert browser.complaints == []
    # The policy, not good luck: what a page with such a policy asks for is refused.
    opened.evaluate("fetch('https://example.org/').catch(() => {})")
    opened.wait_for_timeout(100)
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)
    browser.complaints.clear()
    opened.close()


@pytest.mark.slow
def test_players_play_and_switch_without_a_gap(browser: Browser, source: str) -> None:
    opened = browser.open(source)
    clip = opened.locator(".clip").first
    assert clip.locator("button").all_inner_texts() == ["Play", *SYSTEMS, "reference"]
    assert clip.locator("[aria-pressed=true]").all_inner_texts() == ["envelope"]
    clip.get_by_role("button", name="Play").click()
    until(opened, "window.heard.context && heard.context.currentTime > 0.5")
    assert opened.evaluate("heard.starts") == 5
    until(opened, "heard.level(100, 3000) > -60")
    gains = "heard.gains.map(gain => gain.gain.value)"
    assert opened.evaluate(gains) == [0, 1, 0, 0, 0]
    position = "+document.querySelector('.clip input[type=range]').value * 5.61"
    highs = {}
    for key, name in ((1, "input"), (5, "reference"), (1, "input"), (3, "noise")):
        before = opened.evaluate(f"[heard.context.currentTime, {position}]")
        if name == "reference":
            clip.get_by_role("button", name=name).click()
        else:
            opened.keyboard.press(str(key))
        assert clip.locator("[aria-pressed=true]").all_inner_texts() == [name]
        assert opened.locator(".clip").first.locator(".heard").get_attribute("data-panel") == name
        opened.wait_for_timeout(500)  # longer than the analyser's window
        after = opened.evaluate(f"[heard.context.currentTime, {position}]")
        assert after[1] - before[1] == pytest.approx(after[0] - before[0], abs=0.1)
        assert opened.evaluate(gains) == pytest.approx([float(k == key - 1) for k in range(5)], abs=1e-3)
        highs[name] = opened.evaluate("heard.level(5000, 20000)")
    # The input has nothing above 4 kHz but the rounding to 16 bit; noise of one level is there at any time.
    assert highs["input"] < -100
    assert highs["noise"] > -85
    assert opened.evaluate("[heard.starts, heard.stops]") == [5, 0]
    assert opened.evaluate("+document.querySelector('.clip').style.getPropertyValue('--at')") > 0.2
    clip.get_by_role("button", name="Pause").click()
    assert opened.evaluate("heard.stops") == 5
    assert browser.complaints == []
    opened.close()


@pytest.mark.slow
def test_a_click_into_a_spectrogram_goes_there_and_another_clip_silences_the_first(browser: Browser, source: str) -> None:
    opened = browser.open(source)
    first, second = opened.locator(".clip").all()
    view = first.locator(".view").nth(2)
    view.click(position={"x": 0.75 * view.bounding_box()["width"], "y": 10})
    at = "[...document.querySelectorAll('.clip input[type=range]')].map(seek => +seek.value)"
    assert opened.evaluate(at) == pytest.approx([0.75, 0], abs=0.01)
    assert first.locator("[aria-pressed=true]").all_inner_texts() == ["noise"]
    first.get_by_role("button", name="Play").click()
    until(opened, "heard.starts === 5")
    opened.wait_for_timeout(300)
    assert 0.75 < opened.evaluate(at)[0] < 0.9
    second.get_by_role("button", name="Play").click()
    until(opened, "heard.starts === 10")
    assert opened.evaluate("heard.stops") == 5
    assert first.locator("button").first.inner_text() == "Play"
    assert second.locator("button").first.inner_text() == "Pause"
    opened.close()


@pytest.mark.slow
def test_pictures_show_the_missing_band(browser: Browser, source: str) -> None:
    opened = browser.open(source)
    pictures = opened.evaluate("""() => [...document.querySelectorAll('.clip img')].map(image => {
        const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        context.drawImage(image, 0, 0);
        const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
        const red = Array.from({length: data.length / 4}, (_, k) => data[4 * k]);
        const spread = part => { const mean = part.reduce((a, b) => a + b) / part.length;
          return Math.sqrt(part.reduce((sum, v) => sum + (v - mean) ** 2, 0) / part.length); };
        return [canvas.width, canvas.height, spread(red), spread(red.slice(0, red.length / 2))];
    })""")
    assert len(pictures) == 10
    for k, (width, height, whole, highs) in enumerate(pictures):
        assert (width, height) == (400, 280)
        assert whole > 20
        assert highs < 1 if k % 5 == 0 else highs > 3  # above 12 kHz the input has nothing
    opened.close()


@pytest.mark.slow
def test_tables_by_file_sort_and_show_any_metric(browser: Browser, source: str, found: tuple[Tree, list[Clip]]) -> None:
    tree, _ = found
    opened = browser.open(source)
    files = opened.locator("#files .breakdown")
    assert files.locator("table").count() == 0  # made when it is first seen
    opened.locator("#files summary").last.click()
    files.locator("table").wait_for()
    files.get_by_label("Condition").select_option("butter, 8 kHz")
    files.get_by_label("Metric").select_option("HF bias")
    own = {r["file"]: r["values"]["hf_bias"] for r in tree["files"] if (r["system"], r["filter"]) == ("noise", "butter")}
    column = 2 + SYSTEMS.index("noise")
    for down in (False, True):
        files.locator("thead button").nth(column).click()
        rows = [row.split("\t") for row in files.locator("tbody").inner_text().splitlines()]
        assert [row[0] for row in rows] == sorted(own, key=own.__getitem__, reverse=down)
        assert [row[column] for row in rows] == [shown(own[row[0]], 2) for row in rows]
        sort = files.locator("thead th").nth(column).get_attribute("aria-sort")
        assert sort == ("descending" if down else "ascending")
    assert files.locator("svg circle").count() >= 3 * len(own)
    opened.close()


@pytest.mark.slow
def test_a_narrow_screen_shows_everything_in_letters_that_can_be_read(browser: Browser, source: str) -> None:
    opened = browser.open(source, width=360)
    for expand in (False, True):
        opened.evaluate(f"document.querySelectorAll('details').forEach(d => {{ d.open = {str(expand).lower()}; }})")
        opened.wait_for_timeout(200)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    smallest = opened.evaluate("""() => {
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
        while (walker.nextNode()) {
          const parent = walker.currentNode.parentElement;
          if (!walker.currentNode.data.trim() || !parent.getClientRects().length || parent.matches('script, title')) continue;
          const svg = parent.closest('svg'), scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
          found.push([parseFloat(getComputedStyle(parent).fontSize) * scale, walker.currentNode.data]);
        }
        return found.sort((a, b) => a[0] - b[0])[0];
    }""")
    assert smallest[0] >= 10, smallest
    opened.close()


@pytest.mark.slow
def test_light_and_dark_are_those_of_the_reader(browser: Browser, source: str) -> None:
    brightness = "getComputedStyle(document.body)[%r].match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b) / 3"
    for scheme in ("light", "dark"):
        opened = browser.open(source, scheme=scheme)
        ground, text = (opened.evaluate(brightness % name) for name in ("backgroundColor", "color"))
        assert (ground > 220 and text < 60) if scheme == "light" else (ground < 40 and text > 200)
        opened.close()
