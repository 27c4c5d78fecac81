"""Checkpoint folders: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
from torch import nn

import bwe
from bwe import generators, hub
from bwe.errors import ConfigError, ModelError, OutputError

CARD = "# Card\n\nNoise in, noise out. Trained on nothing.\n"


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    width: int
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "x")
    nested: tuple[tuple[int, ...], ...] = ()
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    folder: Path = Path(".")
    on: bool = True

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width must be positive")


def test_from_dict_builds_nested_dataclasses() -> None:
    values: dict[str, Any] = {
        "width": 3, "inner": {"rate": 1, "kind": "b"}, "sizes": [4, 5, 6], "pair": [2, "y"], "nested": [[1], [2, 3]],
        "names": ["n"], "weights": {"w": 2}, "limit": 7, "folder": "/data", "on": False,
    }  # fmt: skip
    built = hub.from_dict(Outer, values, "here")
    assert built == Outer(
        width=3, inner=Inner(rate=1.0, kind="b"), sizes=(4, 5, 6), pair=(2, "y"), nested=((1,), (2, 3)), names=["n"],
        weights={"w": 2.0}, limit=7.0, folder=Path("/data"), on=False,
    )  # fmt: skip
    assert isinstance(built.inner.rate, float)
    assert hub.from_dict(Outer, {"width": 1, "limit": None}, "here").limit is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "here: key 'width' is missing"),
        ({"width": 1, "with": 2}, "here: unknown key 'with'; did you mean 'width'?"),
        ({"width": 1, "inner": {"rat": 2}}, "here: unknown key 'inner.rat'; did you mean 'inner.rate'?"),
        ({"width": "1"}, "here: width must be int, not '1'"),
        ({"width": True}, "here: width must be int, not True"),
        ({"width": 1.0}, "here: width must be int, not 1.0"),
        ({"width": 1, "inner": {"kind": "c"}}, "here: inner.kind must be Literal['a', 'b'], not 'c'"),
        ({"width": 1, "inner": 5}, "here: inner must be a mapping, not 5"),
        ({"width": 1, "sizes": [1, "2"]}, "here: sizes[1] must be int, not '2'"),
        ({"width": 1, "pair": [1]}, "here: pair must be tuple[int, str], not [1]"),
        ({"width": 1, "limit": "x"}, "here: limit must be float | None, not 'x'"),
        ({"width": 1, "on": 1}, "here: on must be bool, not 1"),
        ({"width": 1, "weights": {"w": "x"}}, "here: weights.w must be float, not 'x'"),
        ({"width": 0}, "here: width must be positive"),
    ],
)
def test_from_dict_names_the_key(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hub.from_dict(Outer, values, "here")
    assert str(caught.value) == said


def weights(generator: nn.Module, folder: Path) -> torch.Tensor:
    x = torch.randn(1, 1, 3_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        out: torch.Tensor = generator(x, torch.tensor([4_000.0]))
    return out


@pytest.mark.parametrize("half", [False, True])
def test_save_and_read_give_the_same_network(loud_tiny: generators.SEANet, tmp_path: Path, half: bool) -> None:
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in loud_tiny.state_dict().items()}
    folder = hub.save(tmp_path / "model", loud_tiny, CARD, half=half)
    generator, meta, card = hub.read(folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loud_tiny.state_dict().keys() == before.keys(), "the generator that was saved lost its weight norm"
    assert all(torch.equal(value, before[name]) for name, value in loud_tiny.state_dict().items())
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())
    assert {p.dtype for p in generator.parameters()} == {torch.float32}
    assert not any("parametrizations" in name for name in generator.state_dict())
    assert torch.allclose(weights(generator, folder), weights(loud_tiny, folder), atol=2e-3 if half else 1e-6)
    assert card.strip() == CARD.strip()
    assert generator.config == loud_tiny.config
    assert set(meta) == {"format", "arch", "config", "sample_rate", "version", "commit", "sha256"}
    assert (meta["arch"], meta["sample_rate"], meta["version"]) == ("seanet", 48_000, bwe.__version__)
    assert meta["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16 if half else torch.float32}
    again = hub.save(tmp_path / "again", generator, card)
    assert torch.equal(weights(hub.read(again)[0], again), weights(generator, folder))


def test_commit_is_the_head_of_the_checkout(tiny_folder: Path) -> None:
    root = Path(hub.__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert hub.read(tiny_folder)[1]["commit"] == (head if (root / ".git").exists() else "")


def test_saving_replaces_a_model_and_keeps_what_lies_beside_it(loud_tiny: generators.SEANet, tmp_path: Path) -> None:
    folder = hub.save(tmp_path / "m", loud_tiny, CARD)
    (folder / "spectrogram.png").write_bytes(b"picture")
    hub.save(folder, loud_tiny, "# New card")
    assert hub.read(folder)[2] == "# New card"
    assert (folder / "spectrogram.png").read_bytes() == b"picture"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_saving_recovers_from_a_kill_between_its_renames(loud_tiny: generators.SEANet, tmp_path: Path) -> None:
    folder = hub.save(tmp_path / "m", loud_tiny, CARD)
    folder.rename(tmp_path / ".m.old")
    with pytest.raises(ModelError, match="the previous model is in"):
        hub.read(folder)
    hub.save(folder, loud_tiny, "# Second")
    assert hub.read(folder)[2] == "# Second"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_saving_refuses_what_it_should_not_replace(loud_tiny: generators.SEANet, tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a model folder"):
        hub.save(tmp_path / "music", loud_tiny, CARD)
    with pytest.raises(OutputError, match="is not a model folder"):
        hub.save(tmp_path / "music" / "song.txt", loud_tiny, CARD)
    with pytest.raises(OutputError, match="cannot be written"):
        hub.save(tmp_path / "music" / "song.txt" / "m", loud_tiny, CARD)
    with pytest.raises(ConfigError, match="needs a card"):
        hub.save(tmp_path / "m", loud_tiny, "  \n")
    with pytest.raises(ConfigError, match="Linear is not registered"):
        hub.save(tmp_path / "m", nn.Linear(1, 1), CARD)
    broken = generators.SEANet(loud_tiny.config)
    with torch.no_grad():
        broken.head.bias[3] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or Inf \(first in head.bias\)"):
        hub.save(tmp_path / "m", broken, CARD)
    assert [p.name for p in tmp_path.rglob("*")] == ["music", "song.txt"]


@pytest.fixture
def model(loud_tiny: generators.SEANet, tmp_path: Path) -> Path:
    return hub.save(tmp_path / "model", loud_tiny, CARD)


def edit(folder: Path, **changes: Any) -> None:
    meta = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is ...:
            del meta[key]
        elif isinstance(value, dict):
            meta[key] |= value
        else:
            meta[key] = value
    (folder / "config.json").write_text(json.dumps(meta))


def replace_weights(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, sha256=hashlib.sha256(data).hexdigest())


def test_every_flipped_byte_is_noticed(model: Path) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    for position in (0, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(ModelError, match="damaged") as caught:
            hub.read(model)
        assert str(path) in str(caught.value)
    path.write_bytes(data)
    hub.read(model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format 2 is newer than this bwe"),
        ({"format": "1"}, "'format' must be a number"),
        ({"format": ...}, "'format' must be a number"),
        ({"arch": "seanet2"}, "unknown arch 'seanet2'; did you mean 'seanet'"),
        ({"arch": "os.system"}, "unknown arch 'os.system'"),
        ({"arch": ...}, "key 'arch' is missing"),
        ({"extra": 1}, "unknown key 'extra'; did you mean"),
        ({"config": {"chanels": [1, 2, 3]}}, "unknown key 'chanels'; did you mean 'channels'"),
        ({"config": {"bands": "24"}}, "bands must be int, not '24'"),
        ({"config": {"channels": [12, 16]}}, "one more entry in channels"),
        ({"config": {"channels": [4096, 4096, 4096]}}, "the tensors do not fit the config: wrong shape: "),
        ({"config": {"blocks": 2}}, "the tensors do not fit the config: missing bottleneck"),
        ({"config": {"blocks": 0}}, "the tensors do not fit the config: unexpected bottleneck"),
        ({"sample_rate": 44_100}, "sample_rate says 44100 Hz, its config builds 48000 Hz"),
        ({"sha256": "0" * 64}, "its sha256 is not the one in config.json"),
    ],
)
def test_bad_configs_are_refused_in_one_sentence(model: Path, changes: dict[str, Any], said: str) -> None:
    edit(model, **changes)
    with pytest.raises(ModelError) as caught:
        hub.read(model)
    assert said in str(caught.value)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": NaN}', "[" * 100_000, "\xff"])
def test_broken_json_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json: (not valid JSON|must hold one JSON object|'format' must be)"):
        hub.read(model)


def test_oversized_config_is_refused_unread(model: Path) -> None:
    (model / "config.json").write_text(" " * (hub.MAX_CONFIG_BYTES + 1))
    with pytest.raises(ModelError, match="not a model config"):
        hub.read(model)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "not a safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "do not fit the config: missing"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{nonsens", "not a readable safetensors file"),
    ],
)
def test_foreign_files_are_named(model: Path, data: bytes, said: str) -> None:
    replace_weights(model, data)
    with pytest.raises(ModelError, match=said) as caught:
        hub.read(model)
    assert "\n" not in str(caught.value)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_is_refused_and_never_run(model: Path, tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "executed"
    replace_weights(model, pickle.dumps(Bomb(canary), protocol))
    with pytest.raises(ModelError) as caught:
        hub.read(model)
    assert not canary.exists()
    for hint in ("weights_only", "force", "unsafe", "torch.load"):
        assert hint not in str(caught.value)
    if protocol:
        assert "a Python pickle, which can run code when opened; bwe reads safetensors only" in str(caught.value)


def test_a_torch_checkpoint_is_refused_and_never_run(model: Path, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    torch.save({"state": Bomb(canary)}, tmp_path / "model.pt")
    replace_weights(model, (tmp_path / "model.pt").read_bytes())
    with pytest.raises(ModelError, match="a Python pickle"):
        hub.read(model)
    with pytest.raises(ModelError, match="this is a single file"):
        hub.read(tmp_path / "model.pt")
    assert not canary.exists()


def test_extra_and_missing_tensors_are_named(model: Path) -> None:
    state = safetensors.torch.load_file(model / "model.safetensors")
    state["stowaway"] = torch.zeros(3)
    del state["head.bias"]
    replace_weights(model, safetensors.torch.save(state))
    with pytest.raises(ModelError, match=r"missing head\.bias; unexpected stowaway"):
        hub.read(model)


def test_a_model_without_a_card_is_refused(model: Path) -> None:
    (model / "README.md").write_text(" \n")
    with pytest.raises(ModelError, match="has no card"):
        hub.read(model)
    (model / "README.md").unlink()
    with pytest.raises(ModelError, match="has no card"):
        hub.read(model)


def test_unknown_names_and_paths(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown model 'no-such-model'"):
        hub.read("no-such-model")
    with pytest.raises(ModelError, match="no such model folder"):
        hub.read(tmp_path / "none")
    with pytest.raises(ModelError, match="unknown model ''"):
        hub.read("")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ModelError, match=r"not a model folder \(config.json is missing\)"):
        hub.read(tmp_path / "bare")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model folder is incomplete"):
        hub.read(str(model))


def test_a_misspelt_shipped_name_is_corrected() -> None:
    names = hub.list_models()
    if not names:
        pytest.skip("no shipped model")
    with pytest.raises(ModelError, match=f"did you mean '{names[0]}'") as caught:
        hub.read(names[0] + "x")
    assert all(name in str(caught.value) for name in names)


def test_shipped_models_load_and_have_a_card() -> None:
    root = Path(hub.__file__).resolve().parent.parent / "pretrained"
    folders = sorted(p.name for p in root.iterdir() if (p / "config.json").is_file()) if root.is_dir() else []
    assert hub.list_models() == folders, "a model in pretrained/ without a card"
    for name in folders:
        generator, meta, card = hub.read(name)
        assert len(card) > 200
        assert meta["sample_rate"] == generator.sample_rate
        if name == "tiny":
            assert (root / name / "model.safetensors").stat().st_size < 200_000


@dataclass(frozen=True)
class Gain:
    gain: float = 1.0
    sample_rate: int = 24_000


class Amplifier(nn.Module):
    def __init__(self, config: Gain) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.gain = nn.Parameter(torch.tensor(config.gain))

    def forward(self, x: torch.Tensor, cutoff_hz: torch.Tensor) -> torch.Tensor:
        return x * self.gain


def test_registering(tmp_path: Path) -> None:
    bwe.register("test-amplifier")(Amplifier)
    folder = hub.save(tmp_path / "amp", Amplifier(Gain(gain=3.0)), CARD)
    generator, meta, _ = hub.read(folder)
    assert isinstance(generator, Amplifier)
    assert float(generator.gain) == 3.0
    assert meta["sample_rate"] == 24_000
    with pytest.raises(ConfigError, match=r"the name 'seanet' is taken by bwe\.generators\.SEANet"):
        bwe.register("seanet")(Amplifier)
    with pytest.raises(ConfigError, match="has no Config dataclass"):
        bwe.register("test-linear")(nn.Linear)


KILLED = """
import sys, torch
from bwe import generators, hub
generator = generators.SEANet(generators.SIZES['tiny'])
print('ready', flush=True)
for i in range(10_000):
    hub.save(sys.argv[1], generator, f'# Card {i}')
"""


def test_a_kill_while_saving_never_loses_the_model(loud_tiny: generators.SEANet, tmp_path: Path) -> None:
    folder = hub.save(tmp_path / "m", loud_tiny, CARD)
    for delay in (0.3, 0.41):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay)
            process.kill()
        survivor = folder if folder.is_dir() else tmp_path / ".m.old"
        assert hub.read(survivor)[2].startswith("# Card")
    hub.save(folder, loud_tiny, "# Last")
    assert hub.read(folder)[2] == "# Last"
