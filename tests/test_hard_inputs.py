"""Every row of `hard_inputs.ROWS` through the real command, and the checks of the rows themselves."""

from __future__ import annotations

import re
from pathlib import Path

import hard_inputs
import pytest
from hard_inputs import Audio, Finished, Refused, Row

from bwe import infer


def _rows() -> list[object]:
    """The default run takes every kind of hardness once and all cut files; `slow` are the same in further containers."""
    seen: set[tuple[str, str]] = set()
    rows = []
    for row in hard_inputs.ROWS:
        again = (row.kind, row.name) in seen and row.kind != "cut"
        seen.add((row.kind, row.name))
        marks = [pytest.mark.slow] if again else []
        rows.append(
            pytest.param(row, id=f"{row.kind}-{row.container}-{row.name}".encode("unicode_escape").decode(), marks=marks)
        )
    return rows


@pytest.fixture(scope="module")
def model(tiny: infer.Extender, tiny_folder: Path) -> Path:
    hard_inputs.warm_up(tiny_folder)
    return tiny_folder


@pytest.mark.parametrize("row", _rows())
def test_row(row: Row, model: Path, tmp_path: Path) -> None:
    if reason := row.skip():
        pytest.skip(reason)
    if row.container in hard_inputs.CONTAINERS and hard_inputs.CONTAINERS[row.container].encode is hard_inputs.by_ffmpeg:
        pytest.importorskip("av")
    result = hard_inputs.run_row(row, tmp_path, model)
    assert not result.problems, result.said


def valid_input(folder: Path) -> Path:
    path = folder / "a.wav"
    path.write_bytes(hard_inputs.valid("wav"))
    return path


@pytest.mark.parametrize(
    ("expected", "problems"),
    [
        ((Audio(),), []),
        ((Refused("no such file"), Audio()), []),
        ((Audio(frames=hard_inputs.FRAMES + 1),), [r"36000 frames, not 1 and 36003 to 36003"]),
        ((Audio(channels=2),), ["1 channels"]),
        ((Audio(check=lambda y: y.max() > 2),), ["not the expected signal"]),
        ((Refused("truncated"),), ["exit code 0", "no one-line sentence", "stdout", r"left behind: out\.wav"]),
    ],
)
def test_a_wrong_outcome_is_seen(
    model: Path, tmp_path: Path, expected: tuple[Audio | Refused, ...], problems: list[str]
) -> None:
    result = hard_inputs.run_row(Row("valid", "whole", "wav", valid_input, expected), tmp_path, model)
    assert result.code == 0
    assert len(result.problems) == len(problems)
    for found, pattern in zip(result.problems, problems, strict=True):
        assert re.search(pattern, found)


@pytest.mark.parametrize(
    ("stderr", "code", "problem"),
    [
        ("bwe: error: a.wav: truncated\n", 1, None),
        ("bwe: error: a.wav: truncated\n", 2, "exit code 2, not 1"),
        ("bwe: error: a.wav: truncated\n", -11, "ended by SIGSEGV"),
        ("bwe: error: a.wav: unexpected KeyError: truncated\n", 1, "a traceback"),
        ("Traceback (most recent call last):\nKeyError\n", 1, "a traceback"),
        ("", 1, "no one-line sentence"),
        ("bwe: error: a.wav: truncated\nand more\n", 1, "no one-line sentence"),
        ("bwe: error: a.wav: truncated\x1b[2J\n", 1, "no one-line sentence"),
        ("bwe: error: a.wav: too long\n", 1, "does not say"),
        ("bwe: error: truncated\n", 1, "does not name the file"),
    ],
)
def test_a_wrong_sentence_is_seen(tmp_path: Path, stderr: str, code: int, problem: str | None) -> None:
    found = hard_inputs._why_not(Refused("truncated"), Finished(code, "", stderr), tmp_path / "out.wav", [], "a.wav")
    assert (problem is None and not found) or any(str(problem) in text for text in found)


def test_the_command_runs_in_its_own_process(model: Path, tmp_path: Path) -> None:
    done = hard_inputs.run_command(["--version"], tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("bwe ")
    assert hard_inputs.run_command(["extend", "none.wav", "-m", model], tmp_path).code == 1
    assert hard_inputs.run_command(["extend", "none.wav", "-m", "nothing"], tmp_path).code == 3
