"""Training data: packed shards, and crops that depend on their index alone. What there is to pack, `corpora` says."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bwe import corpora, degrade, dsp, pitch
from bwe.errors import AudioError, BweError, ConfigError, OutputError

_FORMAT = 2
_SHARD_SAMPLES = 64 * 2**20
_BLOCK_SAMPLES = 2 * 2**20
# Where the Kaiser resampler starts to roll off: content of a 44.1 kHz recording ends here, not at 22.05 kHz.
_RESAMPLER_EDGE = 0.94
_BAD_SHARE = 0.01
_BAD_WINDOW = 1000
_ATTEMPTS = 10
_PACK_AGAIN = "delete the folder and pack the recordings again (bwe prepare)"


def prepare(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    sample_rate: int,
    cls: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Packs the splits "train" and "valid" of a folder of recordings (see `corpora.clips`) into `out/train` and `out/valid`.

    A split that is complete already is left as it is (`verify` checks it to the last bit). `say` gets a line per split.

    Raises:
        ConfigError: no recordings, too many broken ones (see `pack`), or `out` holds another sample rate.
        OutputError: no space left, or `out` cannot be written.
    """
    for split in ("train", "valid"):
        target = Path(out) / split
        if (target / "index.json").is_file():
            index, _ = _open(target)
            if index["sample_rate"] != sample_rate:
                raise ConfigError(
                    f"{target}: packed at {index['sample_rate']} Hz, not {sample_rate} Hz; choose another folder"
                )
            say(f"{split}: {len(index['clips'])} recordings in {target} already; delete that folder to pack them again")
            continue
        found = corpora.clips(folder, cls, split)
        say(f"{split}: packing {len(found)} recordings")
        quarantined = pack(found, target, sample_rate, folder)
        if quarantined:
            say(f"{split}: {len(quarantined)} broken recordings left out, see {target / 'quarantine.json'}")


def pack(
    all_clips: Sequence[corpora.Clip],
    folder: str | os.PathLike[str],
    sample_rate: int,
    root: str | os.PathLike[str] | None = None,
) -> list[dict[str, str]]:
    """Writes recordings as int16 shards that numpy alone can read: `shard_000.npy` …, and `index.json`.

    Each recording is mixed down to mono and resampled to `sample_rate`. The index names recordings relative to `root`
    (None: as given), holds size and CRC-32 of every shard, and `manifest_sha256`: of `root`'s manifest.csv, else of the
    sorted paths and sizes. It is written last, so a folder with an index is complete.

    Recordings that cannot be read in full, hold no samples, NaN, Inf, or nothing but digital silence are left out.

    Returns:
        what was left out, as in `quarantine.json`: path and reason of each.

    Raises:
        ConfigError: more than 1 % of the recordings (one is always allowed), or all of them, are broken.
        OutputError: no space left, or the folder cannot be written.
    """
    from bwe import audio

    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in (out / "index.json", *out.glob("shard_*.npy")):
            stale.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    entries: list[dict[str, object]] = []
    shards: list[dict[str, int]] = []
    quarantined: list[dict[str, str]] = []
    shard: list[np.ndarray] = []
    size = 0

    def flush() -> None:
        nonlocal shard, size
        if shard:
            path = out / f"shard_{len(shards):03d}.npy"
            with _replacing(path) as file:
                np.save(file, np.concatenate(shard))
            shards.append({"samples": size, "bytes": path.stat().st_size, "crc32": _crc32(path)})
            shard, size = [], 0

    for clip in all_clips:
        name = clip.path if root is None else os.path.relpath(clip.path, root)
        try:
            x, info = audio.read(clip.path)
        except (AudioError, OSError) as error:
            quarantined.append({"path": name, "reason": str(error).removeprefix(f"{clip.path}: ")})
            continue
        y = dsp.resample(torch.from_numpy(x).mean(0), info.sample_rate, sample_rate).numpy()
        samples = np.clip(np.round(y * 32767), -32768, 32767).astype(np.int16)
        if not samples.any():
            reason = "digital silence throughout" if len(samples) else "no samples"
            quarantined.append({"path": name, "reason": reason})
            continue
        top = min(clip.cutoff_hz or np.inf, info.sample_rate / 2 if info.sample_rate >= sample_rate else np.inf)
        if info.sample_rate < sample_rate:
            top = min(top, _RESAMPLER_EDGE * info.sample_rate / 2)
        if size and size + len(samples) > _SHARD_SAMPLES:
            flush()
        top = min(top, sample_rate / 2)
        place = {"shard": len(shards), "start": size, "length": len(samples)}
        entries.append({"path": name, **place, "speaker": clip.speaker, "top_hz": top})
        shard.append(samples)
        size += len(samples)
    flush()
    with _replacing(out / "quarantine.json") as file:
        file.write(json.dumps(quarantined, indent=1).encode())
    broken, total = len(quarantined), len(all_clips)
    if broken > max(1, _BAD_SHARE * total) or broken == total:
        first = "; ".join(f"{q['path']}: {q['reason']}" for q in quarantined[:3])
        raise ConfigError(
            f"{broken} of {total} recordings ({broken / total:.1%}) are broken: {first}; repair or remove what "
            f"{out / 'quarantine.json'} lists and prepare the data again"
        )
    index = {
        "format": _FORMAT,
        "sample_rate": sample_rate,
        "manifest_sha256": _manifest_sha256(all_clips, root),
        "shards": shards,
        "clips": entries,
    }
    with _replacing(out / "index.json") as file:
        file.write(json.dumps(index).encode())
    return quarantined


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            value = zlib.crc32(part, value)
    return value


def _manifest_sha256(all_clips: Sequence[corpora.Clip], root: str | os.PathLike[str] | None) -> str:
    manifest = Path(root) / "manifest.csv" if root is not None else None
    if manifest is not None and manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    names = [clip.path if root is None else os.path.relpath(clip.path, root) for clip in all_clips]
    sizes = [os.path.getsize(clip.path) if os.path.exists(clip.path) else 0 for clip in all_clips]
    lines = "".join(f"{name}\t{size}\n" for name, size in sorted(zip(names, sizes, strict=True)))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


class _Shard(NamedTuple):
    path: Path
    header: int
    samples: int

    def read(self, first: int, count: int) -> np.ndarray:
        """`count` int16 samples from `first` on. Read plainly: where a map of the file would end the process with a bus
        error, a bad disk or a file cut meanwhile is an OSError here."""
        x = np.fromfile(self.path, np.dtype("<i2"), count, offset=self.header + 2 * first)
        if len(x) < count:
            raise OSError(f"{self.path.name} ends {count - len(x)} samples early")
        return x


def _open(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[_Shard]]:
    """Index and shards of a packed folder, the sizes checked."""
    file = Path(folder) / "index.json"
    try:
        index = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no index.json; pack the recordings first (bwe prepare)") from None
    except ValueError:
        raise ConfigError(f"{file}: damaged; {_PACK_AGAIN}") from None
    if index.get("format") != _FORMAT:
        raise ConfigError(f"{file}: not of this version; {_PACK_AGAIN}")
    shards = []
    for number, shard in enumerate(index["shards"]):
        path = file.with_name(f"shard_{number:03d}.npy")
        size = path.stat().st_size if path.is_file() else 0
        if size != shard["bytes"]:
            raise ConfigError(f"{path}: {size} bytes, where the index says {shard['bytes']}; {_PACK_AGAIN}")
        shards.append(_Shard(path, size - 2 * shard["samples"], shard["samples"]))
    return index, shards


def verify(folder: str | os.PathLike[str]) -> None:
    """Reads every shard of a packed folder and compares it with the checksum in the index.

    Raises:
        ConfigError: the shard that is damaged.
    """
    index, shards = _open(folder)
    for shard, entry in zip(shards, index["shards"], strict=True):
        if _crc32(shard.path) != entry["crc32"]:
            raise ConfigError(f"{shard.path}: damaged, its checksum is not the index's; {_PACK_AGAIN}")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are drawn.

    Attributes:
        seconds: length of a crop.
        speaker_power: speakers are drawn in proportion to (their minutes)**power; 0 treats all alike, 1 follows the minutes.
        seed: of everything that is random here.
        speed: range of the speed perturbation, pitch and formants alike, drawn from a grid of 0.01 (Ko et al. 2015, "Audio
            augmentation for speech recognition"). At a speed s a band that ends at f ends at s·f, or where the resampler
            does, at 0.47 of the sample rate (times s below 1): from 1 upwards crops keep (nearly) the full band.
        order: "random" draws every crop from the whole set. Each is a read of its own from a random place, which is right
            while the set stays in the page cache, and hopeless on a disk beyond it. "stream" is for that: shards are cut
            into blocks of 4 MiB, of which the places of a batch ("lanes") hold one each; an epoch is a permutation of all
            blocks, dealt out to the lanes. A block is read once in an epoch, in one piece, by one process, and serves
            `crops_per_block` crops in a row of its lane. Memory is 4 MiB a lane, whatever the size of the set. In exchange,
            crops of successive batches come from the same minute of sound, drawn by duration (`speaker_power` must be 1):
            the more crops per block, the less is read (4 MiB / `crops_per_block` a crop), and the more alike batches are.
        crops_per_block: of "stream".
        mix_share: share of crops that are mixed with others: music is many instruments at once.
        mix_of: how many recordings a mix holds, least and most.
        mix_db: level (RMS) of the recordings that are added, in dB relative to the first.
        mix_top_hz: range in Hz where mixes end, target and input alike, as released music does; (0, 0): where they do.
        stability: items also have `stability` `(N,)`, of the target's F0 on `pitch.frame_count` frames; needs the extra `f0`.
        pair_share: share of items that are crops of real pairs, of a body and an air microphone, where there are any.
        pair_deviation_db: standard deviation of the smooth random curve that the body signal of a pair gets: a few pairs are a
            few sensors.
        pair_mix_share: share of these that have a second pair in them, up to 12 dB lower; bodies and air add alike.
        pair_noise_share: share of these to whose body signal noise is added, as `degrade.Bone` draws it.
        pause_share: share of the other crops in which the voice falls by 20 to 40 dB for 0.1 s to half of the crop: recordings
            of words have no pauses, in which a body microphone is noisier than the air.
    """

    seconds: float = 0.5
    speaker_power: float = 1.0
    seed: int = 0
    speed: tuple[float, float] = (1.0, 1.0)
    order: Literal["random", "stream"] = "random"
    crops_per_block: int = 32
    mix_share: float = 0.0
    mix_of: tuple[int, int] = (2, 3)
    mix_db: tuple[float, float] = (-12.0, 6.0)
    mix_top_hz: tuple[float, float] = (0.0, 0.0)
    stability: bool = False
    pair_share: float = 0.0
    pair_deviation_db: float = 2.0
    pair_mix_share: float = 0.0
    pair_noise_share: float = 0.0
    pause_share: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.speed
        if not 0 <= self.mix_share <= 1 or not 2 <= self.mix_of[0] <= self.mix_of[1] <= 16:
            raise ConfigError(
                f"mix_share={self.mix_share:g}, mix_of={list(self.mix_of)}: a share from 0 to 1, of 2 to 16 recordings"
            )
        if not 0.5 <= low <= high <= 2:
            raise ConfigError(f"speed={self.speed}: two factors from 0.5 to 2, the lower one first")
        if self.order == "stream" and self.speaker_power != 1:
            raise ConfigError(f"order=stream draws by duration; set speaker_power=1 instead of {self.speaker_power:g}")
        if self.crops_per_block < 1:
            raise ConfigError(f"crops_per_block={self.crops_per_block}: at least 1")


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    # The last number sets this stream apart from those of the items.
    return np.random.default_rng([seed, epoch, 0, 1]).permutation(count)


class Pairs:
    """Recordings of a body and an air microphone, aligned and packed side by side by `paired.prepare`: `folder/body` and
    `folder/air`.

    Attributes: `sample_rate` in Hz, `clips` as of the packed index.

    Raises:
        ConfigError: not a folder of packed pairs, or one side is not the other's.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / "body" / "index.json").is_file():
            raise ConfigError(f"{folder}: no packed pairs; align and pack them first (python recipes/bone.py DATA PAIRS)")
        (index, self._body), (other, self._air) = _open(self.folder / "body"), _open(self.folder / "air")
        places = [[(c["shard"], c["start"], c["length"]) for c in i["clips"]] for i in (index, other)]
        if places[0] != places[1] or index["sample_rate"] != other["sample_rate"]:
            raise ConfigError(f"{self.folder}: body and air are not packed alike; {_PACK_AGAIN}")
        self.sample_rate: int = index["sample_rate"]
        self.clips: list[dict[str, Any]] = index["clips"]
        self._cumulative = np.cumsum([clip["length"] for clip in self.clips])

    def read(self, number: int, first: int = 0, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Body and air signal `(T,)` of a pair, or `count` samples of them from `first` on. Raises OSError, naming it."""
        clip = self.clips[number]
        count = clip["length"] if count is None else count
        try:
            body, air = (side[clip["shard"]].read(clip["start"] + first, count) for side in (self._body, self._air))
        except OSError as error:
            raise OSError(f"{clip['path']} ({error})") from error
        return torch.from_numpy(body.astype(np.float32) / 32767), torch.from_numpy(air.astype(np.float32) / 32767)

    def crop(self, rng: np.random.Generator, length: int) -> tuple[Tensor, Tensor]:
        """`length` samples of both from a random place; of shorter pairs all, and silence."""
        number = int(self._cumulative.searchsorted(rng.integers(self._cumulative[-1]), side="right"))
        have = int(self.clips[number]["length"])
        first = int(rng.integers(max(0, have - length) + 1))
        body, air = self.read(number, first, min(length, have))
        missing = length - len(body)
        return torch.nn.functional.pad(body, (0, missing)), torch.nn.functional.pad(air, (0, missing))


class Crops(Dataset[dict[str, Tensor]]):
    """Degraded crops of packed recordings. Item `i` depends on `i` and the seed alone (in stream order also on the number
    of lanes, the batch), so that a resumed run, whatever its workers, sees what the uninterrupted one would have seen.

    Items: `input` `(1, T)`, or `(1 + A, T)` with `degrade.Air` microphones, `target` `(1, T)`, `cutoff_hz` and `top_hz` `()`
    (where the known band, and the recording, end), and `bad` `()`: 1 where the recording drawn could not be read and the
    item's next draw stands in for it, else 0.

    Attributes: `sample_rate` in Hz, `clips` (a structured array: shard, start, length in samples, top_hz), their `paths`,
    `probability` of each, `manifest_sha256` of what was packed, and `lanes`, which `batches` sets to its batch.

    Raises:
        ConfigError: not a packed folder, or a shard of it is missing or cut.
        AudioError (of an item): ten draws in a row cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: CropConfig,
        degradation: degrade.Degradation,
        pairs: Pairs | None = None,
    ) -> None:
        if config.pair_share and pairs is None:
            raise ConfigError(f"pair_share={config.pair_share:g}, but there are no pairs; give pairs=FOLDER")
        self.folder, self.pairs = Path(folder), pairs
        index, self.shards = _open(folder)
        self.sample_rate: int = index["sample_rate"]
        self.manifest_sha256: str = index["manifest_sha256"]
        self.config, self.degradation = config, degradation
        # Arrays: reading Python objects counts references, and so copies them, page by page, into every worker.
        fields = [("shard", np.int32), ("start", np.int64), ("length", np.int64), ("top_hz", np.float64)]
        self.clips = np.array([tuple(clip[name] for name, _ in fields) for clip in index["clips"]], dtype=fields)
        self.paths: list[str] = [clip["path"] for clip in index["clips"]]
        length = self.clips["length"].astype(np.float64)
        names, speaker = np.unique([clip["speaker"] for clip in index["clips"]], return_inverse=True)
        spoken = np.bincount(speaker, weights=length, minlength=len(names))
        probability = length / spoken[speaker] * spoken[speaker] ** config.speaker_power
        self.probability = probability / probability.sum()
        self._cumulative = self.probability.cumsum()
        self._cumulative /= self._cumulative[-1]
        self._wanted = round(config.seconds * self.sample_rate)
        self._percent = round(100 * config.speed[0]), round(100 * config.speed[1])

        # Positions over all shards, end to end, and (shard, first, last) of the blocks.
        ends = np.cumsum([shard.samples for shard in self.shards])
        self._base = np.concatenate([[0], ends[:-1]])
        self._begin = self._base[self.clips["shard"]] + self.clips["start"]
        cuts = [np.linspace(0, s.samples, -(-s.samples // _BLOCK_SAMPLES) + 1).astype(np.int64) for s in self.shards]
        self._blocks = np.array([(n, *ends) for n, edges in enumerate(cuts) for ends in pairwise(edges)])
        self.lanes = 1
        self._held: dict[int, tuple[tuple[int, int, int], int, np.ndarray]] = {}
        # Which recording each worker is at, for the message when one of them dies.
        self._reading: Any = None

    @property
    def seconds(self) -> float:
        """Total duration of the recordings."""
        return float(self.clips["length"].sum()) / self.sample_rate

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.config.seed, index, attempt])
            try:
                item = self._item(rng, index, attempt)
                if self.config.stability:
                    f0 = pitch.estimate(item["target"][0], self.sample_rate, method="dio")
                    item["stability"] = torch.from_numpy(pitch.stability(f0)).float()
                return {**item, "bad": torch.tensor(float(attempt > 0))}
            except OSError as error:
                last = str(error)
        raise AudioError(f"{self.folder}: {_ATTEMPTS} recordings in a row cannot be read, the last {last}; check the disk")

    def _item(self, rng: np.random.Generator, index: int, attempt: int) -> dict[str, Tensor]:
        """All of an item but `bad`. Raises OSError, naming the recording."""
        c = self.config
        if c.pair_share and rng.random() < c.pair_share:
            return self._real_pair(rng, index)
        x, top_hz = self._draw(rng, index, attempt)
        if c.mix_share and rng.random() < c.mix_share:
            x, top_hz = self._mixed(x, top_hz, rng, index)
        if c.pause_share and rng.random() < c.pause_share:
            x = self._paused(x, rng)
        parameters = self.degradation.sample(rng, 1, item=index)
        pair = self.degradation.apply(x[None, None], self.sample_rate, parameters)
        return {
            "input": self._with_air(pair.input[0], pair.target[0], rng, index),
            "target": pair.target[0],
            "cutoff_hz": pair.cutoff_hz[0],
            "top_hz": torch.tensor(top_hz, dtype=torch.float32),
        }

    def _with_air(self, body: Tensor, air: Tensor, rng: np.random.Generator, index: int) -> Tensor:
        """`body` `(1, T)`, and what the air microphones hear of `air` `(1, T)` in noise, `(1 + A, T)`."""
        c = self.degradation.config.air
        if not c.microphones:
            return body
        if rng.random() < c.babble_share:
            noise = torch.zeros_like(air)
            for _ in range(int(rng.integers(c.voices[0], c.voices[1] + 1))):
                voice, _ = self._draw(rng, index, 1)
                noise += voice / voice.square().mean().sqrt().clamp(min=1e-4)
        else:
            seed = int(rng.integers(2**31))
            noise = torch.from_numpy(degrade.coloured_noise(air.shape[-1], -20.0, rng.uniform(*c.exponent), seed))[None]
        snr_db = rng.uniform(*c.snr_db)
        return torch.cat([body, degrade.heard_in_noise(air, noise, self.sample_rate, c, snr_db, rng)])

    def _pair_crop(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Body and air `(T,)` of a crop, at a random speed."""
        assert self.pairs is not None
        percent = int(rng.integers(self._percent[0], self._percent[1] + 1))
        body, air = self.pairs.crop(rng, -(-self._wanted * percent // 100))
        if percent == 100:
            return body, air
        return tuple(dsp.resample(x, percent, 100)[: self._wanted] for x in (body, air))  # type: ignore[return-value]

    def _real_pair(self, rng: np.random.Generator, index: int) -> dict[str, Tensor]:
        """An item from a pair of recordings, at a random level, the body signal a little differently coloured each time."""
        assert self.pairs is not None
        gain = 10 ** (rng.uniform(*self.degradation.config.gain_db) / 20)
        body, air = (x[None] * gain for x in self._pair_crop(rng))
        if rng.random() < self.config.pair_mix_share:
            second = 10 ** (rng.uniform(-12, 0) / 20)
            body, air = (x + second * gain * y for x, y in zip((body, air), self._pair_crop(rng), strict=True))
        curve = degrade.random_curve(self.config.pair_deviation_db, int(rng.integers(2**31)), low_hz=62.5)
        body = degrade.apply_response(body, self.sample_rate, *curve)
        bone = self.degradation.config.bone
        if rng.random() < self.config.pair_noise_share:
            how = float(rng.uniform(*bone.noise_dbfs)), float(rng.uniform(*bone.noise_exponent)), int(rng.integers(2**31))
            body = body + torch.from_numpy(degrade.body_noise(self._wanted, self.sample_rate, *how))
        if rng.random() < bone.flip_share:
            body = -body
        return {
            "input": self._with_air(body, air, rng, index),
            "target": air,
            "cutoff_hz": torch.tensor(bone.cutoff_hz, dtype=torch.float32),
            "top_hz": torch.tensor(self.sample_rate / 2, dtype=torch.float32),
        }

    def _paused(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """`(T,)` with a pause in it, faded over 20 ms."""
        length = round(rng.uniform(0.1 * self.sample_rate, max(0.1 * self.sample_rate, len(x) / 2)))
        centre = rng.uniform(0, len(x))
        inside = (length / 2 - (torch.arange(len(x)) - centre).abs()) / (0.02 * self.sample_rate)
        return x * 10 ** (-rng.uniform(20, 40) / 20 * inside.clamp(0, 1))

    def _mixed(self, x: Tensor, top_hz: float, rng: np.random.Generator, index: int) -> tuple[Tensor, float]:
        """The crop with others added to it, within full scale, and where the first of them ends in Hz."""
        level = float(x.square().mean().sqrt())
        for _ in range(int(rng.integers(self.config.mix_of[0], self.config.mix_of[1] + 1)) - 1):
            for _ in range(_ATTEMPTS):
                # From anywhere: within the block of a lane in stream order the others would often be the same recording.
                other, other_hz = self._draw(rng, index, 1)
                if other_hz >= 0.95 * top_hz:  # else the mix would be of use only as far up as the other one reaches
                    break
            own = float(other.square().mean().sqrt())
            gain = 10 ** (rng.uniform(*self.config.mix_db) / 20)
            # Of silence there is nothing to hear, and nothing to be raised to its level.
            x = x + other * (gain * level / own if level and own > 1e-4 else 1.0)
            top_hz = min(top_hz, other_hz)
        x = x / max(1.0, float(x.abs().max()))
        release_hz = rng.uniform(*self.config.mix_top_hz)
        if not 0 < release_hz < top_hz:
            return x, top_hz
        # Rounded to 16 bits like the recordings, or an end of perfect silence would give the mixes away.
        return degrade.quantise(dsp.band_limit(x, self.sample_rate, release_hz, 250.0), 16), release_hz

    def _draw(self, rng: np.random.Generator, index: int, attempt: int) -> tuple[Tensor, float]:
        """A crop `(T,)` and where its content ends in Hz. Raises OSError, naming the recording."""
        block = self._block(index) if self.config.order == "stream" and attempt == 0 else None
        if block is None:
            number = int(self._cumulative.searchsorted(rng.random(), side="right"))
        else:
            number = int(self._begin.searchsorted(self._base[block[0]] + rng.integers(*block[1:]), side="right")) - 1
        if self._reading is not None and (worker := get_worker_info()) is not None:
            self._reading[worker.id] = number
        shard, start, length, top_hz = self.clips[number].item()
        percent = int(rng.integers(self._percent[0], self._percent[1] + 1))
        needed = -(-self._wanted * percent // 100)
        final = start + max(0, length - needed)
        low, high = start, final
        if block is not None:
            low = min(max(start, block[1]), final)
            high = max(low, min(final, block[2] - 1))
        # The resampler gets to see what comes before and after; a whole period of it keeps the samples aligned.
        margin = percent if percent != 100 else 0
        at = int(rng.integers(low, high + 1)) - margin
        first, last = max(start, at), min(start + length, at + needed + 2 * margin)
        try:
            if block is None:
                samples = self.shards[shard].read(first, last - first)
            else:
                samples = self._read_held(index % self.lanes, block, first, last)
        except OSError as error:
            raise OSError(f"{self.paths[number]} ({error})") from error
        x = np.zeros(needed + 2 * margin, dtype=np.float32)
        x[first - at : last - at] = samples.astype(np.float32) / 32767
        if percent == 100:
            return torch.from_numpy(x), top_hz
        speed = percent / 100
        top_hz = min(top_hz * speed, _RESAMPLER_EDGE * min(1.0, speed) * self.sample_rate / 2)
        return dsp.resample(torch.from_numpy(x), percent, 100)[100 : 100 + self._wanted], top_hz

    def _block(self, index: int) -> tuple[int, int, int]:
        """Shard, first sample and end of the block that item `index` is drawn from."""
        lane, each = index % self.lanes, self.config.crops_per_block
        # Lanes change their blocks one after the other, not all in the same step.
        turn = (index // self.lanes + lane * each // self.lanes) // each
        epoch, place = divmod(turn * self.lanes + lane, len(self._blocks))
        shard, first, last = self._blocks[_permutation(self.config.seed, epoch, len(self._blocks))[place]].tolist()
        return shard, first, last

    def _read_held(self, lane: int, block: tuple[int, int, int], first: int, last: int) -> np.ndarray:
        """Samples `first` to `last` of a shard, out of the block that the lane holds, or of the next one, read now."""
        if lane not in self._held or self._held[lane][0] != block:
            self._held.pop(lane, None)  # before the next one is there: a lane never holds two
            number, begin, end = block
            # Crops may begin up to the last sample of a block, and the last crop of a recording some way before it.
            reach = (self._wanted * self._percent[1]) // 100 + 1 + self._percent[1]
            begin, end = max(0, begin - reach), min(self.shards[number].samples, end + reach)
            self._held[lane] = block, begin, self.shards[number].read(begin, end - begin)
        _, begin, samples = self._held[lane]
        return samples[first - begin : last - begin]


def whole(folder: str | os.PathLike[str], limit: int) -> list[tuple[Tensor, float]]:
    """Up to `limit` packed recordings in full, spread over the index: (samples `(T,)`, where its content ends in Hz)."""
    index, shards = _open(folder)
    entries = index["clips"]
    chosen = [entries[i] for i in np.unique(np.linspace(0, len(entries) - 1, min(limit, len(entries))).astype(int))]
    samples = (shards[entry["shard"]].read(entry["start"], entry["length"]) for entry in chosen)
    return [
        (torch.from_numpy(x.astype(np.float32) / 32767), entry["top_hz"]) for x, entry in zip(samples, chosen, strict=True)
    ]


def batches(
    crops: Crops, batch: int, steps: int, start: int = 0, workers: int = 1, rank: int = 0, world: int = 1
) -> Iterator[dict[str, Tensor]]:
    """Batches of steps `start` to `steps - 1`, in order.

    `batch` counts all processes: step `s` holds items `s * batch` to `(s + 1) * batch - 1`, of which process `rank` of
    `world` gets the `rank`-th part.

    Raises:
        ConfigError: `batch` cannot be divided by `world`.
        BweError (of a step): a worker process died, or more than 1 % of the last 1000 items could not be read; both named.
    """
    if batch % world:
        raise ConfigError(f"batch={batch} cannot be divided among {world} processes; give a multiple of {world}")
    return _batches(crops, batch, range(start, steps), workers, range(batch * rank // world, batch * (rank + 1) // world))


def _batches(crops: Crops, batch: int, steps: range, workers: int, places: range) -> Iterator[dict[str, Tensor]]:
    if not steps:
        return
    crops = copy.copy(crops)
    crops.lanes, crops._held = batch, {}
    # Workers take turns. In stream order the n-th gets the n-th part of every batch, so that each has lanes of its own.
    parts = 1
    if crops.config.order == "stream":
        workers = min(workers, len(places))
        parts = max(1, workers)
    crops._reading = RawArray("q", [-1] * max(1, workers))
    cuts = [places.start + len(places) * n // parts for n in range(parts + 1)]
    loader = DataLoader(
        crops,
        batch_sampler=([*range(step * batch + a, step * batch + b)] for step in steps for a, b in pairwise(cuts)),
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the global one stays as it is
    )
    unread: deque[int] = deque()
    source: Any = _start(loader)
    try:
        for step in steps:
            try:
                taken = [next(source) for _ in range(parts)]
            except Exception as error:
                if workers and (dead := _deaths(source._workers, crops)):
                    raise BweError(f"{crops.folder}: {dead}; continue with --resume") from error
                if workers and isinstance(error, BweError | ImportError):  # a traceback whose last line is `Type: sentence`
                    raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None
                raise
            items = {name: torch.cat([part[name] for part in taken]) if parts > 1 else taken[0][name] for name in taken[0]}
            unread.extend(step * batch + places[i] for i in items["bad"].nonzero().flatten().tolist())
            while unread and unread[0] < (step + 1) * batch - _BAD_WINDOW * batch // len(places):
                unread.popleft()
            if len(unread) > _BAD_SHARE * _BAD_WINDOW:
                raise BweError(
                    f"{crops.folder}: {len(unread)} of the last {_BAD_WINDOW} crops could not be read: "
                    f"{_reasons(crops, unread)}; check the disk and the data (bwe prepare), then continue with --resume"
                )
            yield items
    finally:
        if workers:  # now, not when the garbage collector finds the iterator in the frames of an error
            source._shutdown_workers()


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach every process of a training; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _start(loader: DataLoader[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Starts the workers. PyTorch then has SIGCHLD raise an error wherever the main thread happens to be, in the middle of a
    training step; without that the loader itself notices a dead worker, within five seconds of waiting for it."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    previous = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)


_HINTS = {"SIGKILL": " (out of memory? try fewer workers)", "SIGBUS": " (is /dev/shm full?)"}


def _deaths(processes: Sequence[BaseProcess], crops: Crops) -> str:
    """The workers that have died and what they were at; empty where none has."""
    told = []
    for number, process in enumerate(processes):
        if process.exitcode is not None:
            killed = signal.Signals(-process.exitcode).name if process.exitcode < 0 else ""
            how = f"killed by {killed}{_HINTS.get(killed, '')}" if killed else f"gone with exit code {process.exitcode}"
            at = crops._reading[number]
            place = f" at {crops.paths[at]}" if at >= 0 else ""
            told.append(f"data worker {number} (pid {process.pid}) was {how}{place}")
    return ", ".join(told)


def _reasons(crops: Crops, items: Iterable[int]) -> str:
    """What keeps the first draws of items from being read, up to three of them."""
    reasons: list[str] = []
    for item in items:
        try:
            crops._draw(np.random.default_rng([crops.config.seed, item, 0]), item, 0)
        except OSError as error:
            if str(error) not in reasons:
                reasons.append(str(error))
    return "; ".join(reasons[:3]) or "all can be read again now"
