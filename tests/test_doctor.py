"""What `doctor` finds."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from bwe import doctor, hub


def test_doctor_finds_this_installation_well() -> None:
    found = doctor.examine()
    assert found.problems == []
    assert (found.ok, found.exit_code) == (True, 0)
    assert set(found.models) == set(hub.list_models())
    assert found.versions["torch"] == torch.__version__
    assert str(found).endswith("\nok")
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True


def test_doctor_names_a_damaged_model(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good", "bad"):
        shutil.copytree(tiny_folder, tmp_path / name)
    weights = bytearray((tmp_path / "bad" / hub.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tmp_path / "bad" / hub.WEIGHTS).write_bytes(weights)
    monkeypatch.setattr(hub, "_roots", lambda: [tmp_path])
    found = doctor.examine()
    assert found.models["bad"] == "damaged"
    assert found.models["good"].startswith("ok")
    assert found.exit_code == 1
    (problem,) = found.problems
    assert "damaged" in problem
    assert "get the model again" in problem
    assert str(found).endswith("\nnot ok")


def test_doctor_says_that_there_is_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    found = doctor.examine()
    assert found.problems == ["no folder for temporary files can be written; set TMPDIR to one that can"]
    assert found.exit_code == 1
    assert "temporary  none, 0.0 GB free" in str(found)
    assert found.to_dict()["temporary"] == {"folder": None, "free_bytes": 0}


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ["numpy>=1", 'absent-package>=1; extra == "eval"', 'absent-package; extra == "all"', 'pytest; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requires)
    assert doctor._optional() == {"absent-package": "not installed: pip install 'bwe[eval]'"}
