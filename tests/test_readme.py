"""What the README shows is run: its Python, its commands on the examples, and its one line for the tests."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def beside_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Without what the first command of the README writes: both run in one clone.
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.bwe.*"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int, beside_examples: Path) -> None:
    exec(compile(blocks("python")[number], "README.md", "exec"), {"__name__": "readme"})


def test_first_command_extends_an_example(beside_examples: Path) -> None:
    line = next(block for block in blocks("sh") if "bwe extend" in block).strip()
    assert "\n" not in line, "set-up and main job are one line"
    assert "pip install -c constraints.txt" in line
    words = line.split("bin/bwe ")[-1].split()
    done = subprocess.run([sys.executable, "-m", "bwe", *words], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    shown = next(block for block in blocks("text") if "real time" in block)
    for part in ("kHz → ", "known band kept to", "null", "× real time"):
        assert part in done.stdout
        assert part in shown
    assert (beside_examples / words[-1]).with_suffix(".bwe.flac").is_file()


def test_one_line_runs_the_tests() -> None:
    section = README.split("## Tests")[1]
    block = re.search(r"^```sh\n(.*?)^```", section, re.M | re.S)
    assert block is not None
    assert block[1].count("\n") == 1
    assert "pytest" in block[1]
    assert "ruff" in block[1]
    assert "mypy" in block[1]
