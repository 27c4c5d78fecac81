"""Fundamental frequency (F0): six estimators and their vote behind one interface, on one frame grid.

Every method gets the same signal, mean removed, scaled to peak 1 and resampled to 16 kHz, so that none depends on level or
offset and hardly on the sample rate, and answers on the same grid: frame n is centred at n · 10 ms, and T samples at sr Hz
have 1 + ⌊100 T / sr⌋ frames.

Shapes: `T` samples, `N` frames, `F` bins.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from bwe import audio, dsp
from bwe.errors import AudioError, ConfigError, nearest

Signal = Tensor | np.ndarray

FRAME_RATE = 100  # Hz
LOWEST_HZ, HIGHEST_HZ = 40.0, 1800.0
"""What `fmin` and `fmax` may be: CREPE knows 32 to 1975 Hz."""

# All methods err at the ends of the range they search: they search a semitone more, and what lies outside is dropped.
_SEARCH = 2 ** (1 / 12)
_TOLERANCE = 1.01
_LEAST_RANGE = 1.25  # fmax / fmin; pYIN's transitions are four semitones wide

_SR = 16_000
_HOP = _SR // FRAME_RATE
_SILENT_PEAK = 1e-6  # -120 dBFS, far below the last bit of 16 (-90)
_GATE_DB = -60.0  # of the 30 ms around a frame's centre, against the loudest

Track = tuple[np.ndarray, np.ndarray]  # (N,) Hz, nan where unvoiced; (N,) voicing


@dataclass(frozen=True)
class F0:
    """What `estimate` found.

    Attributes:
        hz: (…, N) float64, nan where unvoiced.
        voicing: (…, N) float64 in [0, 1], the method's own confidence that the frame is voiced: CREPE's activation, Praat's
            autocorrelation, pYIN's probability, the hybrid's share of votes; Harvest and DIO only say 0 or 1. `hz` holds
            the method's decision, which no threshold on `voicing` replaces.
    """

    hz: np.ndarray
    voicing: np.ndarray

    @property
    def voiced(self) -> np.ndarray:
        """(…, N) bool."""
        return np.isfinite(self.hz)


def frame_count(length: int, sr: int) -> int:
    """Frames of a signal of `length` samples, those centred from its start to its end: 1 + ⌊100 · length / sr⌋."""
    return 1 + length * FRAME_RATE // sr


def _pyworld() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            import pyworld
    except ImportError as error:
        raise ImportError("F0 by Harvest or DIO needs the pyworld package: pip install 'bwe[f0]'") from error
    return pyworld


def _torchcrepe() -> ModuleType:
    try:
        from bwe import _torchaudio  # noqa: F401, I001  # before torchcrepe, which imports torchaudio
        import torchcrepe
    except ImportError as error:
        raise ImportError("F0 by CREPE needs the torchcrepe package: pip install 'bwe[crepe]'") from error
    return torchcrepe


def _parselmouth() -> ModuleType:
    try:
        import parselmouth
    except ImportError as error:
        raise ImportError("F0 by Praat needs the praat-parselmouth package: pip install 'bwe[praat]'") from error
    return parselmouth


def _librosa() -> ModuleType:
    try:
        import librosa
    except ImportError as error:
        raise ImportError("F0 by pYIN needs the librosa package: pip install 'bwe[pyin]'") from error
    return librosa


# Harvest and DIO filter the whole signal: silence around it keeps their edges out of it.
_MARGIN = 10  # frames


def _with_margin(x: np.ndarray) -> np.ndarray:
    return np.pad(x, _MARGIN * _HOP)


def _from_world(hz: np.ndarray, frames: int) -> Track:
    hz = hz[_MARGIN : _MARGIN + frames]
    voiced = hz > 0
    return np.where(voiced, hz, np.nan), voiced.astype(np.float64)


def _harvest(x: np.ndarray, frames: int, fmin: float, fmax: float) -> Track:
    """Morise, Interspeech 2017. Made for voices: a tone without harmonics is unvoiced."""
    hz, _ = _pyworld().harvest(_with_margin(x), _SR, f0_floor=fmin, f0_ceil=fmax, frame_period=1e3 / FRAME_RATE)
    return _from_world(hz, frames)


def _dio(x: np.ndarray, frames: int, fmin: float, fmax: float) -> Track:
    """Morise et al., AES 35th Conference 2009, refined by StoneMask."""
    pyworld, x = _pyworld(), _with_margin(x)
    hz, seconds = pyworld.dio(x, _SR, f0_floor=fmin, f0_ceil=fmax, frame_period=1e3 / FRAME_RATE)
    return _from_world(pyworld.stonemask(x, hz, seconds, _SR), frames)


def _praat(x: np.ndarray, frames: int, fmin: float, fmax: float) -> Track:
    """Boersma, IFA Proceedings 17, 1993: autocorrelation of Hann windows of three periods of `fmin`, best path."""
    parselmouth = _parselmouth()
    # Praat puts its frames symmetrically into what is left of the signal after half a window at both ends. With these
    # margins as many fit as there are frames here, the first centred on the first sample.
    half = math.ceil(1.5 / fmin * _SR)
    whole = np.zeros(2 * half + (frames - 1) * _HOP + 1)
    kept = x[: len(whole) - half]
    whole[half : half + len(kept)] = kept
    track = parselmouth.Sound(whole, _SR).to_pitch_ac(time_step=1 / FRAME_RATE, pitch_floor=fmin, pitch_ceiling=fmax)
    chosen = track.selected_array[:frames]
    voiced = chosen["frequency"] > 0
    return np.where(voiced, chosen["frequency"], np.nan), np.clip(chosen["strength"], 0, 1)


def _pyin(x: np.ndarray, frames: int, fmin: float, fmax: float) -> Track:
    """Mauch & Dixon, ICASSP 2014."""
    length = 2 * math.ceil(2 * _SR / fmin)
    hz, _, voicing = _librosa().pyin(x, fmin=fmin, fmax=fmax, sr=_SR, frame_length=length, hop_length=_HOP)
    return hz[:frames], voicing[:frames]


_CREPE_WINDOW = 1024
_CREPE_BATCH = 64
_CREPE_CENTS = 1997.3794084376191 + 20 * np.arange(360)  # of each output, over 10 Hz
_CREPE_THRESHOLD = 0.25  # of the activation: calls a tenth of white noise voiced, and misses 4 % of a voice at an SNR of 10 dB
_CREPE_STEP = 11  # outputs that F0 may move by in a frame


def _crepe(x: np.ndarray, frames: int, fmin: float, fmax: float, capacity: str) -> Track:
    """Kim et al., ICASSP 2018: 360 activations 20 cents apart; here the best path through them, then the mean of the nine
    around it weighted by activation, as in the paper (eq. 2)."""
    torchcrepe = _torchcrepe()
    whole = np.pad(x, (_CREPE_WINDOW // 2, _CREPE_WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(whole, _CREPE_WINDOW)[::_HOP][:frames]
    parts = []
    with torch.inference_mode():
        for start in range(0, frames, _CREPE_BATCH):
            part = windows[start : start + _CREPE_BATCH]
            part = part - part.mean(1, keepdims=True)
            part /= np.maximum(part.std(1, keepdims=True), 1e-10)
            parts.append(torchcrepe.infer(torch.from_numpy(part.astype(np.float32)), capacity).numpy())
    activation = np.concatenate(parts).astype(np.float64)

    first, last = np.searchsorted(_CREPE_CENTS, 1200 * np.log2(np.array([fmin, fmax]) / 10))
    first, last = max(0, first - 1), min(360, last + 1)
    best = first + _best_path(np.log(activation[:, first:last] + 1e-4), _CREPE_STEP)
    around = best[:, None] + np.arange(-4, 5)
    weight = np.where((around >= 0) & (around < 360), np.take_along_axis(activation, around.clip(0, 359), 1), 0) + 1e-12
    cents = (weight * _CREPE_CENTS[around.clip(0, 359)]).sum(1) / weight.sum(1)
    voicing = activation[np.arange(frames), best]
    return np.where(voicing >= _CREPE_THRESHOLD, 10 * 2 ** (cents / 1200), np.nan), voicing


def _best_path(score: np.ndarray, step: int) -> np.ndarray:
    """Viterbi: one column for each row of `score` (N, K), with the greatest sum of scores and transitions.

    A transition by d columns has the triangular weight step + 1 - |d|.
    """
    moves = np.arange(-step, step + 1)
    transition = np.log((step + 1 - np.abs(moves)) / (step + 1) ** 2)
    taken = np.empty(score.shape, np.int64)
    total = score[0]
    for n in range(1, len(score)):
        padded = np.pad(total, step, constant_values=-np.inf)
        reached = np.lib.stride_tricks.sliding_window_view(padded, 2 * step + 1) + transition
        taken[n] = reached.argmax(1)
        total = reached.max(1) + score[n]
    path = np.empty(len(score), np.int64)
    path[-1] = total.argmax()
    for n in range(len(score) - 1, 0, -1):
        path[n - 1] = path[n] + moves[taken[n, path[n]]]
    return path


@dataclass(frozen=True)
class _Method:
    load: Callable[[], ModuleType]
    run: Callable[[np.ndarray, int, float, float], Track]


_METHODS = {
    "harvest": _Method(_pyworld, _harvest),
    "dio": _Method(_pyworld, _dio),
    "praat": _Method(_parselmouth, _praat),
    "pyin": _Method(_librosa, _pyin),
    "crepe": _Method(_torchcrepe, partial(_crepe, capacity="full")),
    "crepe-tiny": _Method(_torchcrepe, partial(_crepe, capacity="tiny")),
}
METHODS = (*_METHODS, "hybrid")

VOTERS = ("pyin", "praat", "crepe-tiny", "harvest")
"""Who votes in the hybrid, as far as installed, the most trusted first. DIO is left out: like Harvest it follows the
fundamental itself, and where there is none (telephone) the two outvote the others. So is full CREPE, slower than real time."""


def installed() -> list[str]:
    """The methods whose packages can be imported; the hybrid where any of `VOTERS` can."""
    found = []
    for name, method in _METHODS.items():
        try:
            method.load()
        except ImportError:
            continue
        found.append(name)
    return [*found, "hybrid"] if set(found) & set(VOTERS) else found


def estimate(
    x: Signal,
    sr: int,
    method: str = "harvest",
    fmin: float = 80.0,
    fmax: float = 800.0,
    voters: Sequence[str] | None = None,
) -> F0:
    """F0 of each signal in `x`, every 10 ms.

    Args:
        x: (…, T) real samples, numpy or torch, each signal on its own.
        sr: Hz, more than twice `fmax`.
        method: one of `METHODS`. "crepe" is the full network, "crepe-tiny" the small one. For a band without the fundamental
            (telephone) take "praat": the others, and so the hybrid, often find octaves there.
        fmin, fmax: Hz, the range searched; F0 outside is found an octave off, or not at all. Each from `LOWEST_HZ` to
            `HIGHEST_HZ`.
        voters: whose median the "hybrid" takes; by default those of `VOTERS` that are installed.

    Frames 60 dB below the loudest of their signal are unvoiced, and so is a signal whose peak is below -120 dBFS.

    Raises ConfigError (no such method, range or rate), AudioError (no samples, or some that are not finite), ImportError
    naming the extra where a package is missing.
    """
    _check_method(method, METHODS, "method")
    for voter in voters or ():
        _check_method(voter, tuple(_METHODS), "voter")
    if voters is not None and method != "hybrid":
        raise ConfigError(f"voters are for the method 'hybrid', not {method!r}")
    if not (fmin >= LOWEST_HZ and _LEAST_RANGE * fmin <= fmax <= HIGHEST_HZ):
        raise ConfigError(
            f"F0 cannot be searched from fmin={fmin:g} to fmax={fmax:g} Hz: both must be from {LOWEST_HZ:g} to "
            f"{HIGHEST_HZ:g} Hz, fmax at least {_LEAST_RANGE:g} times fmin"
        )
    if sr != int(sr):
        raise ConfigError(f"sr={sr:g} is no sample rate: it must be a whole number of Hz")
    if not sr > 2 * fmax:
        raise ConfigError(f"sr={sr:g} Hz is too low for F0 up to fmax={fmax:g} Hz: it must be more than twice fmax")
    signals = _as_signals(x)
    frames = frame_count(signals.shape[-1], sr)
    names = [method] if method != "hybrid" else list(voters or _installed_voters())
    for name in names:
        _METHODS[name].load()
    tracks = [_track(signal, sr, frames, names, fmin, fmax) for signal in signals.reshape(-1, signals.shape[-1])]
    hz, voicing = (np.array(part).reshape(*signals.shape[:-1], frames) for part in zip(*tracks, strict=True))
    return F0(hz, voicing)


def _check_method(name: str, options: Sequence[str], kind: str) -> None:
    if name not in options:
        raise ConfigError(f"no F0 {kind} {name!r}; did you mean {nearest(name, options)!r}? ({', '.join(options)})")


def _installed_voters() -> list[str]:
    voters = [name for name in VOTERS if name in installed()]
    if not voters:
        raise ImportError("the hybrid F0 needs at least one of its estimators: pip install 'bwe[f0]'")
    return voters


def _as_signals(x: Signal) -> np.ndarray:
    signals = (x.detach().cpu() if isinstance(x, Tensor) else torch.as_tensor(x)).numpy()
    if signals.ndim == 0 or signals.size == 0:
        raise AudioError(f"x has shape {signals.shape}: F0 needs (…, T) with at least one sample")
    if np.iscomplexobj(signals):
        raise AudioError("x is complex: F0 needs a real waveform")
    signals = signals.astype(np.float64)
    bad = ~np.isfinite(signals)
    if bad.any():
        first = tuple(np.argwhere(bad)[0])
        raise AudioError(f"x holds {audio.nonfinite_name(signals[first])} at sample {first[-1]}; repair the signal first")
    return signals


def _track(x: np.ndarray, sr: int, frames: int, names: list[str], fmin: float, fmax: float) -> Track:
    x = x - x.mean()
    peak = np.abs(x).max()
    if peak < _SILENT_PEAK:
        return np.full(frames, np.nan), np.zeros(frames)
    x = dsp.resample(torch.from_numpy(x / peak), sr, _SR).numpy()
    x = np.pad(x, (0, max(0, frames * _HOP - len(x))))
    silent = _silent(x, frames)
    tracks = []
    for name in names:
        hz, voicing = _METHODS[name].run(x, frames, fmin / _SEARCH, fmax * _SEARCH)
        out = silent | ~((hz >= fmin / _TOLERANCE) & (hz <= fmax * _TOLERANCE))
        tracks.append((np.where(out, np.nan, hz), np.where(silent, 0.0, voicing)))
    return tracks[0] if len(tracks) == 1 else _vote(np.array([hz for hz, _ in tracks]))


def _silent(x: np.ndarray, frames: int) -> np.ndarray:
    """(N,) bool."""
    whole = np.pad(x, (_HOP + _HOP // 2, 2 * _HOP))[: (frames + 2) * _HOP]
    energy = np.square(whole).reshape(frames + 2, _HOP).sum(1)
    energy = energy[:-2] + energy[1:-1] + energy[2:]
    return energy < energy.max() * 10 ** (_GATE_DB / 10)


_SPLIT = 1.2


def _vote(hz: np.ndarray) -> Track:
    """(voters, N) Hz -> voiced where more than half say so, then their median.

    The two middle ones of an even number of votes count together (geometric mean) where they agree within 20 %; the mean of
    two octaves would be wrong for sure, so there the one from the voter that stands first counts alone.
    """
    order = np.argsort(hz, axis=0)  # nan last
    votes = np.isfinite(hz).sum(0)
    voiced = 2 * votes > len(hz)
    middle = np.array([(votes - 1) // 2, votes // 2]).clip(0)
    voter = np.take_along_axis(order, middle, 0)
    low, high = np.take_along_axis(hz, voter, 0)
    alone = np.where(voter[0] < voter[1], low, high)
    median = np.where(high > _SPLIT * low, alone, np.sqrt(low * high))
    return np.where(voiced, median, np.nan), votes / len(hz)


_STABLE_FRAMES = 5
_STABLE_CENTS = 50.0


def stability(f0: F0 | Signal) -> np.ndarray:
    """How steady F0 is around each frame, (…, N) float64 in [0, 1], of an `F0` or its `hz`: 1 a held pitch, 0 none or a jump.

    For a voiced frame, c the F0 in cents of the v voiced frames among the w that lie within two frames (20 ms) of it,

        s = v / w · exp(-½ (σ(c) / 50)²),    σ the standard deviation;

    0 for an unvoiced one. A glide by g cents a frame has σ = √2 g, so s = exp(-(g / 50)²); an octave jump at most e^-46.
    """
    hz = _hz(f0)
    reach = _STABLE_FRAMES // 2
    voiced = np.isfinite(hz)
    cents = 1200 * np.log2(np.where(voiced, hz, 1.0))
    pad = [(0, 0)] * (hz.ndim - 1) + [(reach, reach)]

    def windows(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(np.pad(x, pad), _STABLE_FRAMES, axis=-1)

    near = windows(voiced)
    count, size = near.sum(-1), windows(np.ones_like(voiced)).sum(-1)
    mean = np.where(near, windows(cents), 0.0).sum(-1) / count.clip(1)
    variance = np.square(np.where(near, windows(cents) - mean[..., None], 0.0)).sum(-1) / count.clip(1)
    return np.where(voiced, count / size * np.exp(-0.5 * variance / _STABLE_CENTS**2), 0.0)


def _hz(f0: F0 | Signal) -> np.ndarray:
    hz = f0.hz if isinstance(f0, F0) else torch.as_tensor(f0).detach().cpu().numpy()
    if hz.ndim == 0 or hz.shape[-1] == 0:
        raise ValueError(f"F0 has shape {hz.shape}: it needs (…, N) with at least one frame, as estimate() gives")
    hz = hz.astype(np.float64)
    if not (np.isnan(hz) | ((hz > 0) & np.isfinite(hz))).all():
        raise ValueError("F0 must be above 0 Hz and finite, nan where unvoiced, as estimate() gives")
    return hz


def harmonic_template(
    f0: F0 | Signal,
    sr: int,
    n_fft: int = 2048,
    hop: int = 480,
    harmonics: int = 5,
    frames: int | None = None,
    width: float = 1.0,
) -> Tensor:
    """Where the harmonics of F0 lie in a spectrogram: (…, F, N') float32 in [0, 1], F = n_fft / 2 + 1.

    At each frame a Gaussian of height 1 and standard deviation `width` bins around every k · F0 below sr / 2, k = 1 to
    `harmonics`; where they overlap the higher counts, and unvoiced frames are 0.

    Args:
        f0: an `F0` or its `hz`, (…, N) at 10 ms.
        sr, n_fft, hop: of the spectrogram, whose frame m is centred at m · hop samples; F0 is taken from the nearest frame.
        frames: N'; by default those up to the last frame of F0. Beyond it the last one holds.
    """
    if not (sr > 0 and n_fft >= 2 and hop >= 1 and harmonics >= 1 and width > 0 and (frames is None or frames >= 0)):
        raise ValueError(
            f"no template with sr={sr}, n_fft={n_fft}, hop={hop}, harmonics={harmonics}, frames={frames}, width={width:g}: "
            "all must be positive"
        )
    hz = _hz(f0)
    last = hz.shape[-1] - 1
    if frames is None:
        frames = 1 + last * sr // (FRAME_RATE * hop)
    nearest_frame = (2 * np.arange(frames) * hop * FRAME_RATE + sr) // (2 * sr)
    at = torch.from_numpy(hz[..., np.minimum(nearest_frame, last)])[..., None, :] * (n_fft / sr)  # bins
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    template = torch.zeros(*at.shape[:-2], len(bins), frames)
    for k in range(1, harmonics + 1):
        centre = torch.where(k * at < n_fft / 2, k * at, torch.nan)
        bump = torch.exp(-0.5 * ((bins - centre) / width).square())
        template = torch.maximum(template, bump.nan_to_num(0.0).float())
    return template
