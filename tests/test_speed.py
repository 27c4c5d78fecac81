"""The benchmark runs, and its references have the published shapes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "speed.py"


def test_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    figures = tmp_path / "speed.json"
    options = ["--size", "tiny", "--seconds", "0.6", "--block", "0.4", "--repeats", "1", "--json", str(figures)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *options])
    assert speed.main() == 0
    tree = json.loads(figures.read_text())
    network, whole, vocos, apbwe = tree["rows"]
    assert vocos["parameters"] == pytest.approx(14.1e6, rel=0.01)
    assert apbwe["parameters"] == pytest.approx(29.76e6, rel=0.005)
    assert apbwe["gmac_per_second"] == pytest.approx(17.8, rel=0.01)  # 600 frames/s and one more at the edge
    assert vocos["gmac_per_second"] == pytest.approx(1.32, rel=0.05)
    assert network["parameters"] == whole["parameters"] < 100_000
    assert tree["ratios"]["network_over_apbwe"] == pytest.approx(network["realtime"] / apbwe["realtime"])
    out = capsys.readouterr().out
    assert "1 thread, torch" in out
    assert f"{apbwe['realtime']:.1f}" in out
