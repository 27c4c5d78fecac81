"""Recordings to crops: listing, splits, packing, and crops that depend on their index alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bwe import data, degrade
from bwe.errors import ConfigError

SR = 48_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for speaker, (rate, seconds) in {"anna": (48_000, 3.0), "bert": (44_100, 1.0), "carl": (48_000, 0.2)}.items():
        (tmp_path / speaker).mkdir()
        for take in range(2):
            x = rng.standard_normal((round(rate * seconds), 2)) * 0.1
            soundfile.write(tmp_path / speaker / f"{take}.flac", x, rate)
    return tmp_path


def crops(folder: Path, **config: object) -> data.Crops:
    return data.Crops(folder, data.CropConfig(seconds=0.25, **config), degrade.Degradation())  # type: ignore[arg-type]


def test_folders_are_speakers_and_splits_never_share_one(folder: Path) -> None:
    found = data.clips(folder)
    assert [c.speaker for c in found] == ["anna", "anna", "bert", "bert", "carl", "carl"]
    many = [data.Clip(path=f"{i}.wav", speaker=f"s{i % 50}") for i in range(200)]
    split = data.speaker_split(many, valid=0.1, test=0.1, seed=1)
    by_split = {name: {c.speaker for c in split if c.split == name} for name in ("train", "valid", "test")}
    assert [len(by_split[name]) for name in ("train", "valid", "test")] == [40, 5, 5]
    assert sum(len(s) for s in by_split.values()) == len(set.union(*by_split.values()))
    assert split == data.speaker_split(many, valid=0.1, test=0.1, seed=1)


def test_manifest_is_filtered(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "path,cls,split,speaker,cutoff_hz\nanna/0.flac,speech,train,anna,20000\nbert/0.flac,music,train,x,\nanna/1.flac,speech,test,anna,\n"
    )
    found = data.clips(folder, "speech", "train")
    assert [(Path(c.path).name, c.cutoff_hz) for c in found] == [("0.flac", 20_000.0)]
    with pytest.raises(ConfigError, match="no recordings of split 'valid'"):
        data.clips(folder, "speech", "valid")
    (folder / "manifest.csv").write_text("file\nx.flac\n")
    with pytest.raises(ConfigError, match="no column 'path'"):
        data.clips(folder)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such data folder"):
        data.clips(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no recordings"):
        data.clips(tmp_path)
    with pytest.raises(ConfigError, match=r"no index\.json"):
        crops(tmp_path)


def test_shards_hold_the_recordings_and_need_only_numpy(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    data.pack(data.clips(folder), out, SR)
    index = json.loads((out / "index.json").read_text())
    assert [c["length"] for c in index["clips"]] == [144_000] * 2 + [48_000] * 2 + [9_600] * 2
    assert [c["top_hz"] for c in index["clips"]][::2] == [24_000, pytest.approx(20_727), 24_000]
    shard = np.load(out / "shard_000.npy")
    assert shard.dtype == np.int16
    original = soundfile.read(folder / "anna" / "1.flac")[0].mean(1)
    entry = index["clips"][1]
    assert np.abs(shard[entry["start"] :][: entry["length"]] / 32767 - original).max() < 2 / 32767


def test_a_crop_depends_on_its_index_alone(folder: Path, tmp_path: Path) -> None:
    data.pack(data.clips(folder), tmp_path / "packed", SR)
    one, two = crops(tmp_path / "packed"), crops(tmp_path / "packed")
    two[3]
    for key, value in one[12345].items():
        assert torch.equal(value, two[12345][key])
    assert one[12345]["input"].shape == (1, 12_000)
    assert not torch.equal(one[0]["target"], one[1]["target"])
    assert not torch.equal(one[0]["target"], crops(tmp_path / "packed", seed=9)[0]["target"])


def test_batches_continue_where_they_stopped_whatever_the_workers(folder: Path, tmp_path: Path) -> None:
    data.pack(data.clips(folder), tmp_path / "packed", SR)
    source = crops(tmp_path / "packed")
    through = list(data.batches(source, batch=2, steps=4, workers=0))
    assert len(through) == 4
    resumed = list(data.batches(source, batch=2, steps=4, start=2, workers=1))
    for a, b in zip(through[2:], resumed, strict=True):
        assert torch.equal(a["input"], b["input"])
        assert torch.equal(a["cutoff_hz"], b["cutoff_hz"])


@pytest.mark.parametrize(("power", "expected"), [(0.0, [1 / 3, 1 / 3, 1 / 3]), (1.0, [3 / 4.2, 1 / 4.2, 0.2 / 4.2])])
def test_speakers_are_balanced(folder: Path, tmp_path: Path, power: float, expected: list[float]) -> None:
    data.pack(data.clips(folder), tmp_path / "packed", SR)
    source = crops(tmp_path / "packed", speaker_power=power)
    assert source.probability.reshape(3, 2).sum(1) == pytest.approx(expected)
