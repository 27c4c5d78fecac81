"""What the tests share: real signals, a small generator with loud random weights, and the data beside the checkout."""

from __future__ import annotations

import dataclasses
import functools
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# Signals here are short: a second thread gains nothing, and on a busy machine threads that wait for one another cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bwe import audio, generators, hub, infer

ROOT = Path(__file__).resolve().parent.parent
NO_NETWORK = Path(__file__).resolve().parent / "no_network"
# Processes that tests start in other folders find the package also where it is not installed, and reach no network either.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(NO_NETWORK), str(ROOT), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))
CARD = "# Test model\n\nRandom weights, for tests.\n"


@pytest.fixture(scope="session", autouse=True)
def network_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing in the whole run may even try to reach another machine; attempts are listed in this file."""
    log = tmp_path_factory.mktemp("network") / "attempts.txt"
    log.touch()
    os.environ["BWE_NETWORK_LOG"] = str(log)
    yield log
    attempts = log.read_text(encoding="utf-8")
    assert not attempts, f"connections were tried:\n{attempts}"


@pytest.fixture(scope="session")
def voice() -> Callable[..., np.ndarray]:
    """``voice(frames, sr, channels=1, seed=0)``: float32 ``(C, T)``, harmonics of a gliding pitch, breath and pauses.

    Each is made once: the harmonics would take half the time of some tests.
    """

    @functools.lru_cache(maxsize=64)
    def make(frames: int, sr: int, channels: int = 1, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        t = np.arange(frames) / sr
        phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 1.3 * t)) / sr
        harmonics = [k for k in range(1, 200) if 150 * k < 0.47 * sr]
        tone = sum((np.sin(k * phase + k) / k for k in harmonics), np.zeros(frames))
        pauses = (np.sin(2 * np.pi * 0.9 * t + 0.4) > -0.6) * 1.0
        x = 0.15 * tone * pauses + 0.01 * rng.standard_normal((channels, frames))
        return x.astype(np.float32)

    return lambda frames, sr, channels=1, seed=0: make(frames, sr, channels, seed).copy()


@pytest.fixture(scope="session")
def loud_tiny() -> generators.SEANet:
    """A SEANet of the smallest size whose untrained head is as loud as a trained one, so that seams would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = generators.SEANet(generators.SIZES["tiny"])
    with torch.no_grad():
        generator.head.bias.zero_()
    return generator.eval()


@pytest.fixture(scope="session")
def causal_tiny(loud_tiny: generators.SEANet) -> generators.SEANet:
    """`loud_tiny`, looking only back."""
    causal = generators.SEANet(dataclasses.replace(loud_tiny.config, causal=True))
    causal.load_state_dict(loud_tiny.state_dict())
    return causal.eval()


@pytest.fixture(scope="session")
def tiny_folder(loud_tiny: generators.SEANet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.save(tmp_path_factory.mktemp("models") / "tiny-test", loud_tiny, CARD)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> infer.Extender:
    return infer.load(tiny_folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder beside the checkout; tests that need it skip where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "manifest.csv").is_file():
        pytest.skip(f"no data in {folder}")
    return folder


@pytest.fixture(scope="session")
def talk() -> np.ndarray:
    """Speech that reaches 22 kHz, `(1, T)` at 48 kHz."""
    return audio.read(ROOT / "examples" / "talk_48k.flac")[0]
