"""Training data: folders and manifests, speaker splits, packed shards, and crops that depend on their index alone."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bwe import degrade, dsp
from bwe.errors import BweError, ConfigError

_SHARD_SAMPLES = 64 * 2**20
# Where the Kaiser resampler starts to roll off: content of a 44.1 kHz recording ends here, not at 22.05 kHz.
_RESAMPLER_EDGE = 0.94


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording: `path`, its `speaker` (or track, or instrument), `split`, and where its own content ends in Hz
    (0: unknown, taken as half its sample rate). `seconds` is 0 where it is unknown."""

    path: str
    speaker: str
    split: str = "train"
    cutoff_hz: float = 0.0
    seconds: float = 0.0


def clips(root: str | os.PathLike[str], cls: str | None = None, split: str | None = None) -> list[Clip]:
    """Lists the recordings below a folder.

    With a `manifest.csv` in `root` (columns path, and if known cls, split, speaker, cutoff_hz, seconds) its rows, filtered
    by `cls` and `split`; without, every audio file, the name of its folder taken as the speaker.

    Raises:
        ConfigError: no such folder, or nothing in it after filtering.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such data folder; give one with data=FOLDER")
    manifest = folder / "manifest.csv"
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and "path" not in rows[0]:
            raise ConfigError(f"{manifest}: no column 'path'; its columns are {', '.join(rows[0])}")
        found = [
            Clip(
                path=str(folder / row["path"]),
                speaker=row.get("speaker") or Path(row["path"]).parent.name,
                split=row.get("split") or "train",
                cutoff_hz=float(row.get("cutoff_hz") or 0),
                seconds=float(row.get("seconds") or 0),
            )
            for row in rows
            if (cls is None or row.get("cls", cls) == cls) and (split is None or (row.get("split") or "train") == split)
        ]
    else:
        suffixes = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".caf", ".w64"}
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
        found = [Clip(path=str(p), speaker=p.parent.name) for p in files]
        if split is not None:
            found = [c for c in speaker_split(found) if c.split == split]
    if not found:
        raise ConfigError(f"{folder}: no recordings" + (f" of split {split!r}" if split else "") + "; is it the right folder?")
    return found


def speaker_split(all_clips: Sequence[Clip], valid: float = 0.05, test: float = 0.05, seed: int = 0) -> list[Clip]:
    """Assigns "train", "valid" and "test" by speaker: nobody is heard in two of them. Shares count speakers."""
    speakers = sorted({c.speaker for c in all_clips})
    order = np.random.default_rng(seed).permutation(len(speakers))
    n_valid, n_test = round(valid * len(speakers)), round(test * len(speakers))
    names = ["valid"] * n_valid + ["test"] * n_test + ["train"] * (len(speakers) - n_valid - n_test)
    split = {speakers[i]: name for i, name in zip(order, names, strict=True)}
    return [Clip(**{**asdict(c), "split": split[c.speaker]}) for c in all_clips]


def pack(all_clips: Sequence[Clip], folder: str | os.PathLike[str], sample_rate: int) -> None:
    """Writes recordings as int16 shards that numpy alone can read: `shard_000.npy` …, and `index.json`.

    Each recording is mixed down to mono and resampled to `sample_rate`. The index is written last, so a folder with an
    index is complete.
    """
    from bwe import audio

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    shard: list[np.ndarray] = []
    number = size = 0

    def flush() -> None:
        nonlocal shard, number, size
        if shard:
            np.save(out / f"shard_{number:03d}.npy", np.concatenate(shard))
            shard, number, size = [], number + 1, 0

    for clip in all_clips:
        x, info = audio.read(clip.path)
        y = dsp.resample(torch.from_numpy(x).mean(0), info.sample_rate, sample_rate).numpy()
        top = min(clip.cutoff_hz or np.inf, info.sample_rate / 2 if info.sample_rate >= sample_rate else np.inf)
        if info.sample_rate < sample_rate:
            top = min(top, _RESAMPLER_EDGE * info.sample_rate / 2)
        if size and size + len(y) > _SHARD_SAMPLES:
            flush()
        top = min(top, sample_rate / 2)
        entries.append({"shard": number, "start": size, "length": len(y), "speaker": clip.speaker, "top_hz": top})
        shard.append(np.clip(np.round(y * 32767), -32768, 32767).astype(np.int16))
        size += len(y)
    flush()
    temporary = out / "index.json.tmp"
    temporary.write_text(json.dumps({"format": 1, "sample_rate": sample_rate, "clips": entries}))
    temporary.replace(out / "index.json")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are drawn.

    Attributes:
        seconds: length of a crop.
        speaker_power: speakers are drawn in proportion to (their minutes)**power; 0 treats all alike, 1 follows the minutes.
        seed: of everything that is random here.
    """

    seconds: float = 0.5
    speaker_power: float = 1.0
    seed: int = 0


class Crops(Dataset[dict[str, Tensor]]):
    """Degraded crops of packed recordings. Item `i` depends on `i` and the seed alone, so that a resumed run, whatever its
    workers, sees what the uninterrupted one would have seen.

    Items: `input`, `target` `(1, T)`, `cutoff_hz` and `top_hz` `()` (where the known band, and the recording, end).
    """

    def __init__(self, folder: str | os.PathLike[str], config: CropConfig, degradation: degrade.Degradation) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / "index.json").read_text())
        except FileNotFoundError:
            raise ConfigError(f"{folder}: no index.json; pack the recordings first (bwe.data.pack)") from None
        self.sample_rate: int = index["sample_rate"]
        self.config, self.degradation = config, degradation
        self.clips = index["clips"]
        shards = sorted({clip["shard"] for clip in self.clips})
        self.shards = {n: np.load(self.folder / f"shard_{n:03d}.npy", mmap_mode="r") for n in shards}
        length = np.array([clip["length"] for clip in self.clips], dtype=np.float64)
        names, speaker = np.unique([clip["speaker"] for clip in self.clips], return_inverse=True)
        spoken = np.bincount(speaker, weights=length, minlength=len(names))
        probability = length / spoken[speaker] * spoken[speaker] ** config.speaker_power
        self.probability = probability / probability.sum()

    @property
    def seconds(self) -> float:
        """Total duration of the recordings."""
        return float(sum(clip["length"] for clip in self.clips)) / self.sample_rate

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.config.seed, index])
        clip = self.clips[rng.choice(len(self.clips), p=self.probability)]
        wanted = round(self.config.seconds * self.sample_rate)
        start = int(rng.integers(0, max(1, clip["length"] - wanted + 1)))
        samples = self.shards[clip["shard"]][clip["start"] + start : clip["start"] + min(start + wanted, clip["length"])]
        x = np.zeros(wanted, dtype=np.float32)
        x[: len(samples)] = samples.astype(np.float32) / 32767
        parameters = self.degradation.sample(rng, 1)
        pair = self.degradation.apply(torch.from_numpy(x)[None, None], self.sample_rate, parameters)
        return {
            "input": pair.input[0],
            "target": pair.target[0],
            "cutoff_hz": pair.cutoff_hz[0],
            "top_hz": torch.tensor(clip["top_hz"], dtype=torch.float32),
        }


def whole(folder: str | os.PathLike[str], limit: int) -> list[tuple[Tensor, float]]:
    """Up to `limit` packed recordings in full, spread over the index: (samples `(T,)`, where its content ends in Hz)."""
    root = Path(folder)
    entries = json.loads((root / "index.json").read_text())["clips"]
    chosen = [entries[i] for i in np.unique(np.linspace(0, len(entries) - 1, min(limit, len(entries))).astype(int))]
    shards = {n: np.load(root / f"shard_{n:03d}.npy", mmap_mode="r") for n in {e["shard"] for e in chosen}}
    return [
        (torch.from_numpy(shards[e["shard"]][e["start"] : e["start"] + e["length"]].astype(np.float32) / 32767), e["top_hz"])
        for e in chosen
    ]


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def batches(crops: Crops, batch: int, steps: int, start: int = 0, workers: int = 1) -> Iterator[dict[str, Tensor]]:
    """Batches of steps `start` to `steps - 1`, in order; step `s` holds items `s * batch` to `(s + 1) * batch - 1`."""
    if steps <= start:
        return
    loader = DataLoader(
        crops,
        batch_size=batch,
        sampler=range(start * batch, steps * batch),
        num_workers=workers,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise BweError(f"{crops.folder}: a data worker died ({error}); resume the run with --resume") from error
        raise
