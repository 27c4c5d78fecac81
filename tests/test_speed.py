"""The benchmarks run, and the references have the published shapes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bwe import generators

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def run(name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, figures: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options, "--json", str(figures)])
    try:
        assert script(name).main() == 0
    finally:
        torch.set_num_threads(threads)
    tree: dict[str, Any] = json.loads(figures.read_text())
    return tree


def test_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "tiny", "--seconds", "0.6", "--block", "0.4", "--repeats", "1", "--torch-only"]
    tree = run("speed", options, monkeypatch, tmp_path / "speed.json")
    network, whole, vocos, apbwe = tree["rows"]
    assert vocos["parameters"] == pytest.approx(14.1e6, rel=0.01)
    assert apbwe["parameters"] == pytest.approx(29.76e6, rel=0.005)
    assert apbwe["gmac_per_second"] == pytest.approx(17.8, rel=0.01)  # 600 frames/s and one more at the edge
    assert vocos["gmac_per_second"] == pytest.approx(1.32, rel=0.05)
    assert network["parameters"] == whole["parameters"] < 100_000
    assert tree["ratios"]["network_over_apbwe"] == pytest.approx(network["realtime"] / apbwe["realtime"])
    assert tree["ratios"]["whole_over_vocos"] == pytest.approx(whole["realtime"] / vocos["realtime"])
    out = capsys.readouterr().out
    assert "1 thread, torch" in out
    assert f"{apbwe['realtime']:.1f}" in out


def test_speed_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("speed")
    chosen = {label: make for label, make in speed.networks().items() if label in ("sbr", "eben", "bilstm")}
    monkeypatch.setattr(speed, "networks", lambda: chosen)
    rows = speed.measure(speed.of_all(0.3, [1]), 1)
    assert [row["what"] for row in rows] == list(chosen)
    assert rows[0]["parameters"] == 0
    assert rows[1]["parameters"] == pytest.approx(1.68e6, rel=0.01)
    # 1.58 M weights of the LSTM and 0.1 M of its head, 125 frames a second and one more
    assert rows[1]["gmac_per_second"] == pytest.approx(1.68e6 * (0.3 * 125 + 1) / 0.3 / 1e9, rel=0.02)
    assert rows[2]["gmac_per_second"] > 0.3


@pytest.mark.slow
def test_memory_of_a_call() -> None:
    speed = script("speed")
    assert speed.peak_mb("eben", 4.0) > speed.peak_mb("sinc", 4.0) + 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_speed_in_other_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    options = ["--size", "tiny", "--seconds", "0.6", "--block", "0.4", "--repeats", "1", "--threads", "1", "2"]
    tree = run("speed", options, monkeypatch, tmp_path / "speed.json")
    found = {(row["what"], row["runtime"], row["threads"]): row for row in tree["rows"]}
    for count in (1, 2):
        for runtime in ("eager float32", "onnxruntime", "onnxruntime int8"):
            assert found["size tiny, network", runtime, count]["realtime"] > 0
        assert found["AP-BWE-like 30 M without STFTs", "onnxruntime", count]["parameters"] == pytest.approx(29.76e6, rel=0.005)
    by_runtime = {(entry["runtime"], entry["threads"]): entry for entry in tree["ratios_by_runtime"]}
    assert by_runtime["onnxruntime", 2]["network_over_vocos"] == pytest.approx(
        found["size tiny, network", "onnxruntime", 2]["realtime"]
        / found["Vocos-like 14 M without STFTs", "onnxruntime", 2]["realtime"]
    )
    assert "onnxruntime int8, 2 threads" in capsys.readouterr().out


@pytest.mark.timeout(400)
def test_streaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "tiny", "--seconds", "1", "--torch-only"]
    tree = run("streaming", options, monkeypatch, tmp_path / "streaming.json")
    assert {(round(row["block_ms"]), row["paced"]) for row in tree["rows"]} == {(10, False), (10, True), (8, False), (8, True)}
    assert all(0 < row["median_ms"] <= row["p99_ms"] <= row["max_ms"] for row in tree["rows"])
    assert all(row["computing_p99_ms"] > 0 and row["stolen_s"] >= 0 for row in tree["rows"])
    generator = generators.SEANet(dataclasses.replace(generators.SIZES["tiny"], causal=True))
    assert tree["latency"]["delay"] == generator.delay
    assert 0 <= tree["latency"]["first_sample"] <= generator.delay
    waits = tree["latency"]["longest_wait_ms"]
    assert waits["48000"] == pytest.approx((generator.latency + 1) / 48, abs=2 / 48)
    assert waits["16000"] > waits["48000"]
    assert "1 thread" in capsys.readouterr().out
