"""What each way of taking two channels through a mono network does to the stereo image, on scenes with known panning.

    python benchmarks/stereo.py speech-48k ../shared/data --split test --class music44
    python benchmarks/stereo.py music-44k FOLDER --takes 3 --seconds 3

FOLDER holds mono full-band recordings (of others, the first channel is taken), with or without a manifest.csv. Each take makes
stereo scenes from three of them. A scene is the reference, `dsp.band_limit` of it the input, and all figures are of the band
above the cut-off:

    ILD     error of the level difference between the channels, dB: third octaves and frames of 46 ms, weighted by the
            reference's energy; levels 40 dB below the louder channel count as that
    coh.    coherence of the two channels over 16 frames, the same weights; in brackets the reference's own
    corr.   its real part: 1 in phase, -1 out of phase; in brackets the reference's own
    leak    power in the channel that is silent over that in the other, dB (one hard-panned source; -inf is silence)
    LSD     log-spectral distance (apbwe) over the bins above the cut-off, mean of the channels that are not silent
    bias    level of the band over the reference's, dB, mean of the same channels
    mono    LSD of the downmix (L + R) / 2
    x RT    seconds of stereo per second of work, on one thread

"independent" takes each channel as a signal of its own, "mid-side" (L + R) / 2 and (L - R) / 2, "signed" the louder channel
less the other, "principal axis" the strongest direction of the pair and what is at right angles to it; "default" is a call
of the model. With --side, instead of the scenes: two sources left and right of one in the centre, or ambience around it,
weaker and weaker; for thresholds on the power of the side over that of the mid (third differences), the mean errors of mid-
side below it and independent above.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bwe import audio, corpora, dsp, infer, metrics
from bwe.errors import BweError, ConfigError

CUTOFFS_HZ = (4000.0, 8000.0)
WINDOW, HOP, TOGETHER = 2048, 1024, 16
LOWEST_DB = 40.0  # of a channel below the louder one
SPREAD_SECONDS = 0.3e-3
# Of a top octave less than this nothing is known of the panning: half the recordings are empty above 15 to 18 kHz.
HIGHEST_HZ = 15_000.0

Scene = Callable[[list[Tensor]], Tensor]
Policy = Callable[[infer.Extender, np.ndarray, float], np.ndarray]


def panned(x: Tensor, left: float, right: float) -> Tensor:
    """`(T,)` -> `(2, T)`."""
    return torch.stack([left * x, right * x])


def delayed(x: Tensor, samples: float) -> Tensor:
    """`(T,)` later by a part of a sample, too, around its end."""
    shift = torch.exp(-2j * math.pi * torch.fft.rfftfreq(x.shape[-1]) * samples)
    return torch.fft.irfft(torch.fft.rfft(x) * shift, x.shape[-1])


def tilted(x: Tensor, decibels: float) -> Tensor:
    """`(T,)` with so much more level at the top than at 0 Hz, the same in the middle."""
    gain = torch.linspace(-decibels / 2, decibels / 2, x.shape[-1] // 2 + 1)
    return torch.fft.irfft(torch.fft.rfft(x) * 10 ** (gain / 20), x.shape[-1])


def scenes(rate: int) -> dict[str, Scene]:
    """Each takes three recordings of one length and level."""
    return {
        "centre": lambda s: panned(s[0], 1.0, 1.0),
        "half left": lambda s: panned(s[0], 1.0, 0.4),
        "half right": lambda s: panned(s[0], 0.4, 1.0),
        "hard left": lambda s: panned(s[0], 1.0, 0.0),
        "hard right": lambda s: panned(s[0], 0.0, 1.0),
        "three sources": lambda s: panned(s[0], 1.0, 1.0) + panned(s[1], 1.0, 0.2) + panned(s[2], 0.2, 1.0),
        "centre + ambience": lambda s: panned(s[0], 1.0, 1.0) + 0.15 * torch.stack([s[1], s[2]]),
        "same, 20 dB less": lambda s: panned(s[0], 1.0, 1.0) + 0.015 * torch.stack([s[1], s[2]]),
        "0.5 dB per side": lambda s: torch.stack([tilted(s[0], 0.5) * 10**0.0125, tilted(s[0], -0.5) * 10**-0.0125]),
        "0.3 ms apart": lambda s: torch.stack([s[0], delayed(s[0], SPREAD_SECONDS * rate)]),
        "out of phase": lambda s: panned(s[0], 1.0, -1.0),
    }


def each(model: infer.Extender, x: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """Every channel as a signal of its own."""
    return model(x[:, None], model.sample_rate, cutoff_hz)[:, 0]


def mid_side(model: infer.Extender, x: np.ndarray, cutoff_hz: float) -> np.ndarray:
    mid, side = each(model, np.stack([(x[0] + x[1]) / 2, (x[0] - x[1]) / 2]), cutoff_hz)
    return np.stack([mid + side, mid - side])


def principal(model: infer.Extender, x: np.ndarray, cutoff_hz: float) -> np.ndarray:
    (a, c), (_, b) = np.cov(x.astype(np.float64))
    angle = 0.5 * math.atan2(2 * c, a - b)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float32)
    return turn.T @ each(model, turn @ x, cutoff_hz)


POLICIES: dict[str, Policy] = {
    "independent": each,
    "mid-side": mid_side,
    "mid-side, signed": lambda model, x, hz: model(x, model.sample_rate, hz, stereo="mid-side"),
    "principal axis": principal,
    "default": lambda model, x, hz: model(x, model.sample_rate, hz),
}
LEVELS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015)
THRESHOLDS_DB = (-math.inf, -25, -20, -15, -12, -10, -6, math.inf)


class Image:
    """Powers and cross-power of the two channels by third octave and frame, each `(bands, N)`."""

    def __init__(self, x: Tensor, rate: int, low_hz: float) -> None:
        spectrum = torch.stft(x.double(), WINDOW, HOP, window=torch.hann_window(WINDOW).double(), return_complex=True)
        edges = [low_hz * 1.05]
        while edges[-1] * 2 ** (1 / 3) < HIGHEST_HZ:
            edges.append(edges[-1] * 2 ** (1 / 3))
        bins = [round(hz * WINDOW / rate) for hz in edges]

        def summed(values: Tensor) -> Tensor:
            return torch.stack([values[..., a:b, :].sum(-2) for a, b in itertools.pairwise(bins)], dim=-2)

        self.left, self.right = summed(spectrum.abs().square())
        self.cross = summed(spectrum[0] * spectrum[1].conj())

    @property
    def power(self) -> Tensor:
        return self.left + self.right

    def level_difference(self) -> Tensor:
        floor = torch.maximum(self.left, self.right) * 10 ** (-LOWEST_DB / 10) + 1e-20
        return 10 * (torch.maximum(self.left, floor) / torch.maximum(self.right, floor)).log10()

    def coherence(self) -> tuple[Tensor, Tensor]:
        """`(bands, N / 16)`, complex, and the power there."""
        count = self.left.shape[-1] // TOGETHER * TOGETHER
        left, right, cross, power = (
            part[..., :count].unflatten(-1, (-1, TOGETHER)).sum(-1) for part in (self.left, self.right, self.cross, self.power)
        )
        return cross / (left * right).sqrt().clamp_min(1e-20), power


def figures(reference: Tensor, y: Tensor, rate: int, cutoff_hz: float) -> dict[str, float]:
    ref, est = Image(reference, rate, cutoff_hz), Image(y, rate, cutoff_hz)
    error = (est.level_difference() - ref.level_difference()).abs()
    wanted, weight = ref.coherence()
    heard = [channel for channel in (0, 1) if reference[channel].any()]
    found = {
        "ILD": float((error * ref.power).sum() / ref.power.sum()),
        "LSD": float(metrics.lsd_hf(reference[heard], y[heard], rate, cutoff_hz).mean()),
        "bias": float(metrics.hf_bias(reference[heard], y[heard], rate, cutoff_hz).mean()),
    }
    if len(heard) == 2:
        made = est.coherence()[0]
        for name, values in {
            "coh.": made.abs(),
            "corr.": made.real,
            "coh. ref": wanted.abs(),
            "corr. ref": wanted.real,
        }.items():
            found[name] = float((values * weight).sum() / weight.sum())
        leak = math.nan
    else:
        silent, loud = (est.right, est.left) if heard == [0] else (est.left, est.right)
        leak = 10 * math.log10(float(silent.sum() / loud.sum())) if silent.any() else -math.inf
    found["leak"] = leak
    if reference.mean(0).abs().max() > 1e-6:
        found["mono"] = float(metrics.lsd_hf(reference.mean(0), y.mean(0), rate, cutoff_hz))
    return found


def recordings(folder: str, cls: str | None, split: str | None, rate: int, seconds: float) -> list[Tensor]:
    """`(T,)` each, at one level, of all that are long enough, in an order that puts different files side by side."""
    found = []
    for clip in corpora.clips(folder, cls, split):
        x, info = audio.read(clip.path)
        if info.seconds >= seconds and (clip.cutoff_hz or math.inf) >= HIGHEST_HZ:
            cut = dsp.resample(torch.from_numpy(x[0, : round(seconds * info.sample_rate)]), info.sample_rate, rate)
            level = float(cut.square().mean().sqrt())
            if level > 1e-4:
                found.append(0.1 * cut / level)
    if len(found) < 3:
        raise ConfigError(f"{folder}: {len(found)} recordings of {seconds:g} s that reach 15 kHz; the scenes need three")
    stride = max(1, len(found) // 3)
    return [x for start in range(stride) for x in found[start::stride][:3]]


def measure(model: infer.Extender, sources: list[Tensor], takes: int) -> list[tuple[float, str, str, dict[str, float]]]:
    """Means over the takes: cut-off, scene, policy, figures."""
    rate, rows = model.sample_rate, []
    for cutoff_hz in CUTOFFS_HZ:
        for scene, make in scenes(rate).items():
            for policy, extend in POLICIES.items():
                runs = []
                for take in range(min(takes, len(sources) // 3)):
                    reference = make(sources[3 * take : 3 * take + 3])
                    low = dsp.band_limit(reference, rate, cutoff_hz).numpy()
                    started = time.perf_counter()
                    y = torch.from_numpy(extend(model, low, cutoff_hz))
                    spent = time.perf_counter() - started
                    runs.append(figures(reference, y, rate, cutoff_hz) | {"× RT": low.shape[-1] / rate / spent})
                means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
                rows.append((cutoff_hz, scene, policy, means))
    return rows


def thresholds(model: infer.Extender, sources: list[Tensor], takes: int) -> str:
    """Of what share of the scenes the side is below each threshold, and the mean errors that it would give."""
    rows, rate, count = [], model.sample_rate, len(sources)
    for cutoff_hz in CUTOFFS_HZ:
        for level in LEVELS:
            for take in range(takes):
                s = [sources[(3 * take + i * (count // 3 + 1)) % count] for i in range(3)]
                around = torch.stack([s[1], s[2]]), panned(s[1], 1.0, 0.2) + panned(s[2], 0.2, 1.0)
                for reference in (panned(s[0], 1.0, 1.0) + level * part for part in around):
                    low = dsp.band_limit(reference, rate, cutoff_hz).numpy()
                    steps = np.diff(low, n=3)
                    ratio = np.square(steps[0] - steps[1]).sum() / np.square(steps[0] + steps[1]).sum()
                    errors = []
                    for policy in ("independent", "mid-side, signed"):
                        y = torch.from_numpy(POLICIES[policy](model, low, cutoff_hz))
                        found = figures(reference, y, rate, cutoff_hz)
                        errors += [found["ILD"], abs(found["coh."] - found["coh. ref"])]
                    rows.append([10 * math.log10(ratio), *errors])
    table = np.array(rows)
    lines = ["| mid-side below | of the scenes | ILD | error of coh. |", "|---|---|---|---|"]
    for threshold in THRESHOLDS_DB:
        below = table[:, 0] < threshold
        ild, coherence = (float(np.where(below, table[:, i + 2], table[:, i]).mean()) for i in (1, 2))
        name = f"{threshold:g} dB" if math.isfinite(threshold) else "never" if threshold < 0 else "always"
        lines.append(f"| {name} | {below.mean():.0%} | {ild:.2f} | {coherence:.2f} |".replace("-", "−"))
    return "\n".join(lines)


COLUMNS = {"ILD": 2, "coh.": 2, "corr.": 2, "leak": 0, "LSD": 2, "bias": 1, "mono": 2, "× RT": 0}


def cell(means: dict[str, float], name: str) -> str:
    if math.isnan(value := means.get(name, math.nan)):
        return ""
    text = f"{value:.{COLUMNS[name]}f}"
    if f"{name} ref" in means:
        text += f" ({means[f'{name} ref']:.2f})"
    return text.replace("-", "−").replace("inf", "∞")


def table(rows: list[tuple[float, str, str, dict[str, float]]]) -> str:
    lines = ["| cut-off | scene | policy | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for cutoff_hz, scene, policy, means in rows:
        cells = [f"{cutoff_hz / 1000:g} kHz", scene, policy, *(cell(means, name) for name in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="shipped name or checkpoint folder")
    parser.add_argument("folder", metavar="FOLDER", help="mono full-band recordings")
    parser.add_argument("--split", metavar="NAME", help="only this split of the folder's manifest.csv")
    parser.add_argument("--class", metavar="NAME", dest="cls", help="only this class of the folder's manifest.csv")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each scene (default: 3)")
    parser.add_argument("--takes", type=int, default=3, help="scenes of each kind (default: 3)")
    parser.add_argument("--side", action="store_true", help="what the weakness of the side decides")
    args = parser.parse_args()
    if args.seconds < 1 or args.takes < 1:
        parser.error("a scene takes at least 1 second, and there is at least one take")
    torch.set_num_threads(1)
    try:
        model = infer.load(args.model)
        sources = recordings(args.folder, args.cls, args.split, model.sample_rate, args.seconds)
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
        print(f"{args.model}, {len(sources)} recordings, 1 thread, torch {torch.__version__}, {load}\n")
        print(thresholds(model, sources, args.takes) if args.side else table(measure(model, sources, args.takes)))
    except BweError as error:
        print(f"stereo: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
