"""How right and how fast the F0 methods of `bwe.pitch` are, as Markdown tables.

    python benchmarks/f0.py                              # every installed method but the slow full CREPE
    python benchmarks/f0.py --methods crepe hybrid       # these alone
    python benchmarks/f0.py --speech FOLDER --files 20   # real recordings as well

Synthetic voices with a known F0: low, middle and high (90 to 500 Hz), gliding up and down, with vibrato, and intoned like
speech with jitter; harmonics shaped by the moving formants of a, i and u, and between them pauses and fricatives; at 8, 16 and
48 kHz and 0 to -40 dBFS. Clean, with white noise (SNR of the voiced parts), and limited to 300 to 3400 Hz, which takes the
fundamental away.

gross: share of the frames voiced in truth and estimate that are more than 20 % off. fine: mean deviation of the others, in
cents. F1: of the voicing decision. speed: seconds of audio per second of processor time, median over the signals, one thread.

Nobody knows the truth of real recordings: there each method is compared with the median of the others (voiced where more than
half of them say so), the hybrid with those that have no vote in it; at least two, or there is no row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bwe import audio, dsp, pitch
from bwe.errors import BweError

SECONDS = 1.5
RANGES = {"low": (90.0, 180.0), "middle": (160.0, 330.0), "high": (250.0, 500.0)}  # Hz
CONTOURS = ("up", "down", "vibrato", "intoned")
RATES = (8_000, 16_000, 48_000)
LEVELS = (0.0, -20.0, -40.0)  # dBFS, of the peak
CONDITIONS = ("clean", "20 dB", "10 dB", "0 dB", "300-3400 Hz")
VOICED = ((0.12, 0.55), (0.68, 1.05), (1.12, 1.42))  # seconds
FRICATIVE = (0.57, 0.66)
VOWELS = ((730.0, 1090.0, 2440.0, 3400.0), (270.0, 2290.0, 3010.0, 3500.0), (300.0, 870.0, 2240.0, 3300.0))  # Hz, of a man
SCALE = {"low": 1.0, "middle": 1.17, "high": 1.35}  # of the formants
BANDWIDTHS = (80.0, 90.0, 130.0, 200.0)  # Hz


@dataclass(frozen=True)
class Voice:
    """x (T,) at sr; hz (N,) on the grid of `pitch`, nan where unvoiced."""

    name: str
    x: np.ndarray
    sr: int
    hz: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.x) / self.sr


def contour(kind: str, low: float, high: float, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """F0 in Hz at the times t in seconds."""
    octaves, part = np.log2(high / low), t / SECONDS
    if kind == "up":
        return low * 2 ** (octaves * part)
    if kind == "down":
        return high * 2 ** (-octaves * part)
    if kind == "vibrato":
        return np.sqrt(low * high) * 2 ** (70 / 1200 * np.sin(2 * np.pi * 5.5 * t))
    accents = 0.25 * np.sin(2 * np.pi * 1.9 * t) + 0.1 * np.sin(2 * np.pi * 3.3 * t + 1)
    knots = np.arange(0, SECONDS + 0.02, 0.01)
    jitter = np.interp(t, knots, rng.normal(0, 8 / 1200, len(knots)))
    return low * 2 ** (octaves * (0.55 - 0.3 * part + accents) + jitter)


def formant_gain(hz: np.ndarray, formants: Sequence[float]) -> np.ndarray:
    """Magnitude of a cascade of two-pole resonators with gain 1 at 0 Hz."""
    gain = np.ones_like(hz)
    for centre, width in zip(formants, BANDWIDTHS, strict=True):
        gain = gain * centre**2 / np.hypot(centre**2 - hz**2, width * hz)
    return gain


def voice(register: str, kind: str, vowel: Sequence[float], sr: int, level_db: float, seed: int) -> Voice:
    rng = np.random.default_rng(seed)
    t = np.arange(round(SECONDS * sr)) / sr
    f0 = contour(kind, *RANGES[register], t, rng)
    phase = 2 * np.pi * np.cumsum(f0) / sr
    sway = 1 + 0.15 * np.sin(2 * np.pi * 1.5 * t)
    formants = [SCALE[register] * centre * (sway if n < 2 else 1.0) for n, centre in enumerate(vowel)]
    x = np.zeros_like(t)
    for k in range(1, int(0.45 * min(sr, 24_000) / f0.min()) + 1):
        gain = formant_gain(k * f0, formants) / k * (k * f0 < 0.45 * sr)  # source -12, radiation +6 dB per octave
        x += gain * np.sin(k * phase + 0.3 * k**0.5)
    ramp = np.zeros_like(t)
    for start, end in VOICED:
        ramp += np.clip(np.minimum(t - start, end - t) / 0.02, 0, 1) * ((t >= start) & (t <= end))
    x *= ramp
    hiss = rng.standard_normal(len(t))
    hiss -= dsp.band_limit(torch.from_numpy(hiss), sr, 2500.0).numpy()
    x += 0.3 * np.sqrt(np.mean(x**2)) * hiss * ((t >= FRICATIVE[0]) & (t <= FRICATIVE[1]))
    x *= 10 ** (level_db / 20) / np.abs(x).max()
    centres = np.arange(pitch.frame_count(len(x), sr)) / pitch.FRAME_RATE
    voiced = np.any([(centres >= start) & (centres <= end) for start, end in VOICED], axis=0)
    name = f"{register} {kind}, {sr} Hz, {level_db:g} dBFS"
    return Voice(name, x, sr, np.where(voiced, np.interp(centres, t, f0), np.nan))


def voices(take: int = 0) -> list[Voice]:
    """One for each range and contour; another take deals vowels, rates, levels and random numbers to them anew."""
    made = []
    for row, register in enumerate(RANGES):
        for column, kind in enumerate(CONTOURS):
            number = row * len(CONTOURS) + column
            vowel, sr = VOWELS[(2 * row + column + take) % 3], RATES[(row + column + take // 3) % 3]
            made.append(voice(register, kind, vowel, sr, LEVELS[(number // 2 + take) % 3], number + 100 * take))
    return made


def under(condition: str, clean: Voice, seed: int) -> Voice:
    x = clean.x
    if condition == "300-3400 Hz":
        whole = torch.from_numpy(x)
        x = (dsp.band_limit(whole, clean.sr, 3400.0) - dsp.band_limit(whole, clean.sr, 300.0)).numpy()
    elif condition != "clean":
        t = np.arange(len(x)) / clean.sr
        sounding = np.any([(t >= start) & (t <= end) for start, end in VOICED], axis=0)
        power = np.mean(x[sounding] ** 2) / 10 ** (float(condition.split()[0]) / 10)
        x = x + np.sqrt(power) * np.random.default_rng(seed).standard_normal(len(x))
    return Voice(clean.name, x, clean.sr, clean.hz)


def score(estimates: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    hz, truth = np.concatenate(estimates), np.concatenate(truths)
    both = np.isfinite(hz) & np.isfinite(truth)
    ratio = hz[both] / truth[both]
    gross = np.abs(ratio - 1) > 0.2
    voiced = np.isfinite(hz).sum() + np.isfinite(truth).sum()
    return {
        "gross": float(gross.mean()) if len(gross) else float("nan"),
        "fine_cents": float(np.abs(1200 * np.log2(ratio[~gross])).mean()) if (~gross).any() else float("nan"),
        "f1": float(2 * both.sum() / voiced) if voiced else float("nan"),
    }


def consensus(tracks: Sequence[np.ndarray]) -> np.ndarray:
    together = np.array(tracks)
    voiced = np.isfinite(together).mean(0) > 0.5
    median = np.full(together.shape[1], np.nan)
    median[voiced] = np.nanmedian(together[:, voiced], axis=0)
    return median


def timed(signals: Sequence[Voice], method: str) -> tuple[list[np.ndarray], float]:
    """Each signal's track, and the median speed."""
    pitch.estimate(signals[0].x[:4000], signals[0].sr, method)
    tracks, speeds = [], []
    for signal in signals:
        started = time.process_time()
        tracks.append(pitch.estimate(signal.x, signal.sr, method).hz)
        speeds.append(signal.seconds / (time.process_time() - started))
    return tracks, float(np.median(speeds))


def synthetic(methods: Sequence[str], conditions: Sequence[str], take: int) -> list[dict[str, Any]]:
    clean = voices(take)
    rows = []
    for condition in conditions:
        signals = [under(condition, signal, 100 * take + seed) for seed, signal in enumerate(clean)]
        for method in methods:
            tracks, speed = timed(signals, method)
            rows.append({"signals": condition, "method": method, **score(tracks, [s.hz for s in signals]), "speed": speed})
    return rows


def recordings(folder: Path, count: int) -> Iterator[Voice]:
    """The first channel's first four seconds of `count` files, evenly chosen."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".flac", ".wav", ".ogg"})
    for index in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)):
        x, info = audio.read(paths[index])
        x = x[0, : 4 * info.sample_rate].astype(np.float64)
        yield Voice(paths[index].name, x, info.sample_rate, np.full(pitch.frame_count(len(x), info.sample_rate), np.nan))


def real(methods: Sequence[str], folder: Path, count: int) -> list[dict[str, Any]]:
    signals = list(recordings(folder, count))
    if not signals:
        raise BweError(f"{folder}: no FLAC, WAV or Ogg file in it")
    found = {method: timed(signals, method) for method in methods}
    rows = []
    for method in methods:
        known = {method, "hybrid", *(pitch.VOTERS if method == "hybrid" else ())}
        others = [found[other][0] for other in methods if other not in known]
        if len(others) >= 2:
            truths = [consensus(tracks) for tracks in zip(*others, strict=True)]
            rows.append({"signals": "speech", "method": method, **score(found[method][0], truths), "speed": found[method][1]})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| signals | method | gross % | fine, cents | voicing F1 | speed, × real time |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = f"{100 * row['gross']:.2f} | {row['fine_cents']:.1f} | {row['f1']:.3f} | {row['speed']:.3g}"
        lines.append(f"| {row['signals']} | {row['method']} | {figures} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=pitch.METHODS, help="default: all installed but the full CREPE")
    parser.add_argument("--conditions", nargs="*", choices=CONDITIONS, default=CONDITIONS, help="of the synthetic voices")
    parser.add_argument("--take", type=int, default=0, help="other voices; defaults of bwe.pitch were chosen on take 0")
    parser.add_argument("--speech", type=Path, metavar="FOLDER", help="recordings to compare the methods on")
    parser.add_argument("--files", type=int, default=20, help="how many of them (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        methods = args.methods or [name for name in pitch.installed() if name != "crepe"]
        rows = synthetic(methods, args.conditions, args.take)
        if args.speech is not None:
            rows += real(methods, args.speech, args.files)
    except (BweError, ImportError) as error:
        print(f"f0: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BweError) else 1
    print(table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
