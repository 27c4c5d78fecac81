"""The page about a run: what counts of its metrics, what stands on the page, and that the page stands alone."""

from __future__ import annotations

import base64
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bwe import audio, cli, report, train
from bwe.errors import ConfigError, OutputError
from bwe.page import HEIGHT

ROOT = Path(__file__).parent.parent
SR = 48_000
EVIL = "</script><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "img", "input", "path", "rect", "circle", "polyline", "polygon", "line"}


class Page(html.parser.HTMLParser):
    """Elements and text of a page; fails where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += " " + data

    def chart(self, title: str) -> dict[str, Any]:
        """What the chart of that title shows when hovered: `{"lines": [[xs, ys], ...], ...}`."""
        labels = [a["aria-label"] or "" for tag, a in self.elements if tag == "svg" and "aria-label" in a]
        data = [json.loads(a["data-chart"] or "") for _, a in self.elements if "data-chart" in a]
        charts = [label for label in labels if "training crops" not in label]
        return data[next(i for i, label in enumerate(charts) if label.startswith(f"{title}: "))]


def write(run: Path, lines: list[dict[str, Any]], **recipe: Any) -> Path:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if recipe:
        (run / "recipe.json").write_text(json.dumps(recipe))
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quick = ["steps=4", "reconstruction_steps=2", "valid_every=2", "checkpoint_every=4", "log_every=1", "valid_clips=1"]
    return train.main(str(ROOT / "recipes" / "smoke.py"), quick, run_dir=str(tmp_path_factory.mktemp("runs") / "smoke"))


def test_a_real_run_becomes_a_page_that_stands_alone(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(trained)]) == 0
    assert capsys.readouterr().out.strip() == str(trained / "report.html")
    page = Page(trained / "report.html")
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    source = (trained / "report.html").read_text()
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import|\bfetch\(|XMLHttpRequest", source)
    assert "default-src 'none'" in source
    assert "Step 4 of 4, finished." in page.text
    for heading in ("Validation", "Losses", "Discriminators", "Optimisation", "Data", "System", "Clips", "Configuration"):
        assert heading in page.text
    assert "generator.sample_rate" in page.text
    assert len(page.chart("loss/stft")["lines"][0][0]) == 4
    assert len(page.chart("val/4000/lsd_hf")["lines"]) == 2  # pred and sinc
    assert page.chart("stft/4000/mean_spectrum in dB")["unit"] == "kHz"
    sounds = [a for tag, a in page.elements if tag == "audio"]
    pictures = [a for tag, a in page.elements if tag == "img"]
    assert {a["data-name"] for a in sounds} == {"low", "sinc", "pred", "ref"}
    assert len(sounds) == 4 * len(pictures) > 0
    assert all("sinc, pred, ref and |pred − ref|" in (a["alt"] or "") for a in pictures)


def test_steps_undone_by_a_fall_back_and_cut_lines_do_not_count(tmp_path: Path) -> None:
    lines = [{"step": step, "time": step, "loss/rec": 1.0} for step in range(1, 11)]
    again = [{"step": step, "time": 20 + step, "loss/rec": 2.0} for step in (6, 7, 8)]
    run = write(tmp_path / "run", [*lines, *again, {"step": 8, "time": 29, "val/score": 3.0}, {"step": 8, "loss/rec": 4.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "time": 30, "loss/r')
    assert [line["step"] for line in report.read_metrics(run)] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    page = Page(report.report(run, tmp_path / "page.html"))
    assert page.chart("loss/rec")["lines"] == [[[1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 1, 1, 2, 2, 4]]]
    assert "Best val/score 3 at step 8" in page.text


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1}\n[1]\n3\nhalf a li'])
def test_a_folder_without_a_run_gets_a_sentence(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=f"{tmp_path}.*`bwe train`"):
        report.report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_written_gets_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [{"step": 1, "time": 1.0, "loss/rec": 1.0}])
    for out in (tmp_path, tmp_path / "none" / "page.html", run / "metrics.jsonl" / "page.html"):
        with pytest.raises(OutputError, match="existing folder"):
            report.report(run, out)
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl"]
    assert cli.main(["report", str(run), "-o", str(tmp_path)]) == OutputError.exit_code
    assert cli.main(["report", str(tmp_path / "none")]) == ConfigError.exit_code


def test_no_string_of_a_run_becomes_markup(tmp_path: Path, voice: Callable[..., np.ndarray]) -> None:
    line = {
        "step": 1,
        "time": 1.0,
        f"loss/{EVIL}": 1.0,
        EVIL: 2.0,
        f"disc/{EVIL}/acc": 0.5,
        "word": EVIL,
        f"val/{EVIL}/lsd": 1,
    }
    run = write(tmp_path / "run", [line], name=EVIL, **{EVIL: {"x": EVIL}})
    (run / "environment.json").write_text(json.dumps({"diff": EVIL, "packages": {EVIL: EVIL}, "started": EVIL}))
    (run / "clips").mkdir()
    audio.write(run / "clips" / "<b>_<i>_ref.flac", voice(SR // 4, SR) * 0.5, SR, "PCM_16")
    page = Page(report.report(run))
    assert all(a["src"].startswith("data:") for tag, a in page.elements if tag == "img" and a["src"])
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert [tag for tag, _ in page.elements if tag in ("b", "i", "script")].count("script") == 1
    assert "i" not in {tag for tag, _ in page.elements}
    assert page.text.count(EVIL) >= 9


def test_long_series_are_thinned_without_losing_a_spike(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(1, 0.01, 20_000)
    noise[12_345] = 9.0
    lines = [{"step": step, "time": step, "loss/rec": value} for step, value in enumerate(noise.tolist())]
    page = Page(report.report(write(tmp_path / "run", lines)))
    (steps, values), *more = page.chart("loss/rec")["lines"]
    assert not more
    assert len(steps) <= 500
    assert values[steps.index(12_345)] == 9.0
    drawn = [attributes for tag, attributes in page.elements if tag == "polyline"]
    assert [attributes["class"] for attributes in drawn] == ["raw", "line"]
    heights = [float(point.split(",")[1]) for point in (drawn[1]["points"] or "").split()]
    assert len(heights) <= 500
    assert max(heights) - min(heights) < 0.5 * HEIGHT


def test_the_validation_table_has_input_last_and_best(tmp_path: Path) -> None:
    lines = [
        {"step": step, "time": step, "val/8000/lsd_hf": value, "val/8000/hf_bias": -step, "val/4000/lsd_hf": 2.5 - step / 1000}
        for step, value in ((500, 1.5), (1000, 1.25), (1500, 1.4))
    ]
    lines[0] |= {"val/8000/sinc/lsd_hf": 3.75, "val/8000/sinc/hf_bias": -40.0}
    page = Page(report.report(write(tmp_path / "run", lines)))
    table = " ".join(page.text[page.text.index("Cut-off") :].split())
    assert "4 kHz input as it is (sinc) – – last, step 1,500 1.000 – best, step 1,500 1.000 –" in table
    assert "8 kHz input as it is (sinc) 3.750 −40.00 last, step 1,500 1.400 −1500.00 best, step 1,000 1.250 −1000.00" in table
    assert page.chart("val/8000/lsd_hf")["lines"][1] == [[500.0], [3.75]]
    dashed = [a for tag, a in page.elements if tag == "path" and a.get("class") == "line dashed"]
    assert len(dashed) == 2
    assert all(re.search(r"H390$", a["d"] or "") for a in dashed)  # across the whole chart


def test_cutoffs_are_counted_over_all_lines_and_odd_values_are_shown(tmp_path: Path) -> None:
    edges = [0, 8000, 16_000, 24_000]
    lines = [{"step": s, "time": s, "data/cutoff_hist": [s, 2, 0], "data/cutoff_edges": edges} for s in (1, 3)]
    lines[1] |= {"phase": "adversarial", "loss/rec": float("nan"), "new/figure": 7, "balance/norm/adv": 1.0}
    text = (report.report(write(tmp_path / "run", lines))).read_text()
    assert "0 to 8,000 Hz: 4<" in text
    assert "8,000 to 16,000 Hz: 4<" in text
    assert "No finite value." in text
    assert "adversarial" in text
    assert Page(tmp_path / "run" / "report.html").chart("new/figure")["lines"] == [[[3.0], [7.0]]]


def test_the_newest_predictions_are_heard_and_a_damaged_clip_does_not_stop_the_page(
    tmp_path: Path, voice: Callable[..., np.ndarray]
) -> None:
    run = write(tmp_path / "run", [{"step": 100, "time": 1.0, "loss/rec": 1.0}])
    files = ["4000_0_ref", "4000_0_low", "step_20/4000_0_pred", "step_100/4000_0_pred", "8000_10_ref", "8000_2_ref"]
    for seed, name in enumerate(files):
        (run / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        rate = 8000 if name.endswith("low") else SR
        audio.write(run / "clips" / f"{name}.flac", 0.5 * voice(rate // 4, rate, seed=seed), rate, "PCM_16")
    (run / "clips" / "8000_2_ref.flac").write_bytes(b"fLaC and then nothing")
    page = Page(report.report(run))
    heard = [base64.b64decode((a["src"] or "").partition(",")[2]) for tag, a in page.elements if tag == "audio"]
    assert (run / "clips" / "step_100" / "4000_0_pred.flac").read_bytes() in heard
    assert (run / "clips" / "step_20" / "4000_0_pred.flac").read_bytes() not in heard
    assert "Predictions of step 100" in page.text
    assert page.text.index("8 kHz, clip 2") < page.text.index("8 kHz, clip 10")
    assert "No spectrogram:" in page.text
    assert [a["alt"] for tag, a in page.elements if tag == "img"] == [
        "Spectrograms of pred, ref and |pred − ref|",  # the narrow band at its own rate is heard, not shown
        "Spectrograms of ref",
    ]


def test_memory_growth_is_that_after_the_warm_up() -> None:
    def line(seconds: float) -> dict[str, float]:
        warm = 500 * max(0.0, 1 - seconds / 600)
        return {"step": int(seconds), "time": 1e9 + seconds, "sys/rss_mb": 2000 - warm + 36 * seconds / 3600}

    assert report.rss_slope([line(s) for s in np.arange(0, 36_000, 60.0)]) == pytest.approx(36, abs=1e-6)
    assert report.rss_slope([line(s) | {"sys/rss_mb": 900.0} for s in range(0, 400, 10)]) == pytest.approx(0, abs=1e-6)
    assert report.rss_slope([line(s) for s in range(0, 50, 10)]) is None
    assert report.rss_slope([{"step": 1, "time": 1.0, "loss/rec": 1.0}] * 9) is None
