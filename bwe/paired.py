"""Paired recordings, of a body-conduction and an air microphone worn at once: alignment, rejection, packing.

What sensors and recorders do to a pair is undone before it may teach anything: a delay, an inverted polarity, a level. What
has too little in common, or is broken, is left out, with a reason in the report.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from scipy import signal

from bwe import audio, corpora, data, dsp, runs
from bwe.errors import AudioError, ConfigError, OutputError

# What both microphones hear well.
_SHARED_HZ = (80.0, 900.0)
# Speech resembles itself one pitch period on: within this the peak is the right one, beyond it the envelope has to say so.
_PITCH_SAFE_S = 0.0025
_ENVELOPE_HZ = 200
# Of the envelopes' correlation, above that without a delay, before a longer one is believed.
_ENVELOPE_GAIN = 0.1
# Of the largest correlation, from which on none of a delay is taken for the truth.
_PREFERENCE = 0.85
_VALID_EVERY = 6
_COLUMNS = (
    "body", "air", "speaker", "sensor", "split", "seconds", "lag_ms", "inverted", "level_db", "correlation", "rejected",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a pair must be to be kept.

    Attributes:
        longest_lag_s: delay between the recordings, either way.
        correlation: least magnitude of the correlation coefficient of the aligned pair, from 80 to 900 Hz.
        seconds: least duration of what both have.
        clipped: largest share of samples at full scale, in either.
        level_db: largest difference in level from 80 to 900 Hz, beyond which one is nearly off.
    """

    longest_lag_s: float = 0.5
    correlation: float = 0.15
    seconds: float = 0.5
    clipped: float = 0.01
    level_db: float = 50.0


class Alignment(NamedTuple):
    """How a body signal lies to its air signal: it comes `lag` samples late, is `inverted`, and `level_db` louder from 80 to
    900 Hz, where the two have the correlation coefficient `correlation` (magnitude)."""

    lag: int
    inverted: bool
    level_db: float
    correlation: float


def alignment(body: np.ndarray, air: np.ndarray, sample_rate: int, longest_lag_s: float = 0.5) -> Alignment:
    """Finds how `body` lies to `air`, both `(T,)` and not silent.

    Up to 2.5 ms, less than a pitch period, the peak of the cross-correlation from 80 to 900 Hz decides, inverted or not; a
    longer delay must first show in the envelopes, since a voice resembles itself one pitch period on.
    """
    band = signal.butter(2, _SHARED_HZ, "bandpass", fs=sample_rate, output="sos")
    low = [signal.sosfiltfilt(band, x.astype(np.float64)) for x in (air, body)]
    safe = round(_PITCH_SAFE_S * sample_rate)
    step = sample_rate // _ENVELOPE_HZ
    coarse = 0
    if longest_lag_s > _PITCH_SAFE_S and min(map(len, low)) > 4 * step:
        envelopes = [np.sqrt(np.square(x[: len(x) // step * step]).reshape(-1, step).mean(-1)) for x in low]
        loud, late = (e[None] - e.mean() for e in envelopes)
        lag, likeness = dsp.best_lag(loud, late, math.ceil(longest_lag_s * _ENVELOPE_HZ))
        _, at_once = dsp.best_lag(loud, late, 1)
        if likeness > at_once + _ENVELOPE_GAIN:
            coarse, safe = lag * step, safe + 2 * step
    first, second = (x[max(0, shift) :] for x, shift in zip(low, (-coarse, coarse), strict=True))
    fine, correlation = dsp.best_lag(first[None], second[None], safe)
    none, at_once = dsp.best_lag(first[None], second[None], 1)
    if abs(at_once) > _PREFERENCE * abs(correlation):  # half a period away, upside down, a vowel looks the same
        fine, correlation = none, at_once
    lag = coarse + fine
    a, b = common(low[1], low[0], lag)
    level_db = 20 * math.log10(max(1e-9, float(np.std(a))) / max(1e-9, float(np.std(b))))
    return Alignment(lag, correlation < 0, level_db, abs(correlation))


def common(body: np.ndarray, air: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """What both `(T,)` and `(T',)` have once `body` comes `lag` samples earlier, equally long."""
    body, air = body[max(0, lag) :], air[max(0, -lag) :]
    length = min(len(body), len(air))
    return body[:length], air[:length]


def aligned(
    body: np.ndarray, air: np.ndarray, sample_rate: int, limits: Limits | None = None
) -> tuple[np.ndarray, np.ndarray, Alignment]:
    """A pair `(T,)`, `(T',)` at `sample_rate` as it may teach: in time, upright, the body at the level of the air signal from
    80 to 900 Hz, both lowered alike where that exceeds full scale.

    Raises:
        AudioError: the reason why the pair cannot be used.
    """
    limits = limits or Limits()
    for name, x in (("body", body), ("air", air)):
        if not np.isfinite(x).all():
            raise AudioError(f"the {name} signal has NaN or Inf")
        if not np.any(x):
            raise AudioError(f"the {name} signal is silent")
        if (share := float((np.abs(x) >= 0.999).mean())) > limits.clipped:
            raise AudioError(f"{share:.1%} of the {name} signal is at full scale")
    if min(len(body), len(air)) < limits.seconds * sample_rate:
        raise AudioError(f"{min(len(body), len(air)) / sample_rate:.2f} s, less than {limits.seconds:g} s")
    found = alignment(body, air, sample_rate, limits.longest_lag_s)
    if found.correlation < limits.correlation:
        raise AudioError(
            f"a correlation of {found.correlation:.2f} from 80 to 900 Hz, less than {limits.correlation:g}: not the same "
            "speech, or delayed by more than can be found"
        )
    if abs(found.level_db) > limits.level_db:
        raise AudioError(f"{abs(found.level_db):.0f} dB apart from 80 to 900 Hz, more than {limits.level_db:g} dB")
    body, air = common(body, air, found.lag)
    if len(body) < limits.seconds * sample_rate:
        raise AudioError(f"{len(body) / sample_rate:.2f} s in common, less than {limits.seconds:g} s")
    body = body * (10 ** (-found.level_db / 20) * (-1 if found.inverted else 1))
    peak = max(1.0, float(np.abs(body).max()), float(np.abs(air).max()))
    return (body / peak).astype(np.float32), (air / peak).astype(np.float32), found


def prepare(
    pairs: Sequence[corpora.PairClip],
    out: str | Path,
    sample_rate: int,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda line: None,
    hold_out: bool = True,
) -> None:
    """Aligns pairs and writes them below `out`.

    `aligned/SPLIT/{body,air}/NNNN.flac` are to listen to and to measure with (`bwe eval --ref …/air --est …/body`);
    `train/{body,air}` and `valid/{body,air}` are packed for `data.PairCrops`; `pairs.csv` has a row for every pair: lag,
    polarity, level, correlation, and why it was rejected, where it was. Where no pair is of the split "valid", every sixth
    speaker of "train" (in the order of the names, from the third) is; without `hold_out` these teach as well, for a last
    training whose settings are known.

    Raises:
        ConfigError: no pair of the split "train" is left.
        OutputError: `out` cannot be written.
    """
    root = Path(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: cannot be written ({error.strerror}); choose another folder") from None
    rows: list[dict[str, object]] = []
    kept: dict[str, list[tuple[corpora.Clip, corpora.Clip]]] = {}
    held_out: set[str] = set()
    if not any(pair.split == "valid" for pair in pairs):
        held_out = set(sorted({pair.speaker for pair in pairs if pair.split == "train"})[2::_VALID_EVERY])
    for number, pair in enumerate(pairs):
        if pair.split == "train" and pair.speaker in held_out:
            pair = replace(pair, split="valid")
        row: dict[str, object] = {
            "body": pair.body, "air": pair.air, "speaker": pair.speaker, "sensor": pair.sensor, "split": pair.split,
        }  # fmt: skip
        rows.append(row)
        try:
            body, air = (
                _channel(path, channel, sample_rate)
                for path, channel in ((pair.body, pair.body_channel), (pair.air, pair.air_channel))
            )
            body, air, found = aligned(body, air, sample_rate, limits)
        except AudioError as error:
            row["rejected"] = str(error)
            continue
        row |= {
            "seconds": round(len(body) / sample_rate, 3),
            "lag_ms": round(1e3 * found.lag / sample_rate, 3),
            "inverted": int(found.inverted),
            "level_db": round(found.level_db, 1),
            "correlation": round(found.correlation, 3),
        }
        files = []
        for side, x in (("body", body), ("air", air)):
            file = root / "aligned" / pair.split / side / f"{number:04d}.flac"
            file.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            soundfile.write(buffer, x, sample_rate, subtype="PCM_24", format="FLAC")
            runs.write_bytes(file, buffer.getvalue())
            files.append(corpora.Clip(path=str(file), speaker=pair.speaker, split=pair.split))
        kept.setdefault(pair.split, []).append((files[0], files[1]))
        if pair.speaker in held_out and not hold_out:
            kept.setdefault("train", []).append((files[0], files[1]))
    table = io.StringIO()
    writer = csv.DictWriter(table, _COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    runs.write_text(root / "pairs.csv", table.getvalue())
    rejected = [row for row in rows if row.get("rejected")]
    inverted = sum(int(str(row.get("inverted") or 0)) for row in rows)
    say(f"{len(rows)} pairs, {inverted} inverted, {len(rejected)} rejected; see {root / 'pairs.csv'}")
    if not kept.get("train"):
        first = f"; the first: {rejected[0]['body']}: {rejected[0]['rejected']}" if rejected else ""
        raise ConfigError(f"{root / 'pairs.csv'}: no pair of the split 'train' is left{first}")
    for split, found_pairs in kept.items():
        for place, side in enumerate(("body", "air")):
            clips = [both[place] for both in found_pairs]
            data.pack(clips, root / split / side, sample_rate, root / "aligned")


def _channel(path: str, channel: int, sample_rate: int) -> np.ndarray:
    """One channel `(T,)` of a file at `sample_rate`."""
    x, info = audio.read(path)
    if channel >= len(x):
        raise AudioError(f"{path}: has {len(x)} channels, no channel {channel}")
    return dsp.resample(torch.from_numpy(x[channel]), info.sample_rate, sample_rate).numpy()
