"""Objective measures of an extended signal against its reference.

Every function takes signals of shape (…, T), numpy or torch, and returns a float64 tensor of shape (…): one
value per signal, a 0-d tensor for (T,). Nothing is normalised or aligned beforehand. Mismatched shapes, empty
signals and arguments out of range raise ValueError. Published LSD figures differ by what they floor and how
long the window is, so the convention is always named: see `lsd`. `measure` computes all `METRICS` of a pair at
once; the perceptual ones are at home in `bwe.perceptual`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal.windows import tukey
from torch import Tensor

from bwe import dsp, perceptual
from bwe.errors import nearest
from bwe.perceptual import Signal, as_pair, as_signal, check_same_shape
from bwe.perceptual import dnsmos as dnsmos
from bwe.perceptual import embed as embed
from bwe.perceptual import frechet_distance as frechet_distance
from bwe.perceptual import gammatone_nsim as gammatone_nsim
from bwe.perceptual import nisqa as nisqa
from bwe.perceptual import pesq_wb as pesq_wb
from bwe.perceptual import squim as squim
from bwe.perceptual import stoi as stoi
from bwe.perceptual import visqol as visqol

Convention = Literal["apbwe", "ssr_eval"]

LOG_POWER_FLOOR = 1e-8
"""Power |X|² (un-normalised STFT of a signal in [-1, 1]) below which apbwe sees no difference."""

FLOOR_PER_ROOT_FRACTION = math.pi / math.sqrt(6) * math.sqrt(2) / math.log(10)
"""LSD of a band whose envelope is perfect and whose fine structure is independent noise, 0.788: the power of
a Gaussian bin is exponentially distributed, its natural log has standard deviation π/√6, and two independent
ones differ by √2 of it."""

_HF_POWER_FLOOR = 1e-16  # mean square, -160 dBFS: keeps a band-limited estimate's bias finite
_MEL_BANDS = 80
_ROLLOFF = 0.985
_BELOW_CUTOFF_HZ = 300.0
_LEAST_NULL = 1e-20


def _check_cutoff(cutoff_hz: float, sr: int) -> None:
    if not 0 < cutoff_hz < sr / 2:
        raise ValueError(f"cutoff_hz={cutoff_hz:g} is not between 0 and half the sample rate ({sr / 2:g} Hz)")


def _frame_sizes(sr: int, convention: str) -> tuple[int, int]:
    """(n_fft, hop) in samples."""
    if sr <= 0:
        raise ValueError(f"sr={sr} is not a sample rate in Hz")
    if convention == "apbwe":
        return 2048, 512  # at every rate, as AP-BWE and its predecessors do
    if convention == "ssr_eval":
        return int(2048 * sr / 44100), sr // 100
    raise ValueError(f"convention {convention!r} is unknown: use 'apbwe' or 'ssr_eval'")


class _Analysis:
    """A signal (…, T) and what metrics take from it, each computed when first asked for and kept."""

    def __init__(self, x: Tensor, sr: int) -> None:
        self.signal = x
        self.sr = sr

    @cached_property
    def power(self) -> Tensor:
        """(…, F, N), STFT 2048/512."""
        return dsp.power_spectrogram(self.signal, *_frame_sizes(self.sr, "apbwe"))

    @cached_property
    def power_ssr_eval(self) -> Tensor:
        return dsp.power_spectrogram(self.signal, *_frame_sizes(self.sr, "ssr_eval"))

    def frames(self, convention: str) -> int:
        return (self.power if convention == "apbwe" else self.power_ssr_eval).shape[-1]

    @cached_property
    def magnitude(self) -> Tensor:
        return self.power.sqrt()

    @cached_property
    def log_power(self) -> Tensor:
        return self.power.clamp_min(LOG_POWER_FLOOR).log10()

    @cached_property
    def log_mel(self) -> Tensor:
        """(…, bands, N) in dB."""
        bank = dsp.mel_filterbank(self.sr, 2048, _MEL_BANDS).to(self.power)
        return 10 * (bank.T @ self.power).clamp_min(LOG_POWER_FLOOR).log10()

    @cached_property
    def rolloff(self) -> Tensor:
        """(…, N) in Hz."""
        total = self.power.cumsum(-2)
        return (total < _ROLLOFF * total[..., -1:, :]).sum(-2) * (self.sr / 2048)

    @cached_property
    def spectrum(self) -> Tensor:
        """Mean square (…, F) by frequency, of the signal as a whole."""
        spectrum = torch.fft.rfft(self.signal)
        return (spectrum.real.square() + spectrum.imag.square()) * (2 / self.signal.shape[-1] ** 2)

    def band_power(self, low_hz: float, high_hz: float = math.inf) -> Tensor:
        """Mean square (…) of what lies at low_hz ≤ f < high_hz."""
        bins_per_hz = self.signal.shape[-1] / self.sr
        first, last = math.ceil(low_hz * bins_per_hz), max(0, math.ceil(min(high_hz, self.sr) * bins_per_hz))
        return self.spectrum[..., first:last].sum(-1)

    @cached_property
    def at_16khz(self) -> Tensor:
        return dsp.resample(self.signal, self.sr, 16_000)

    @cached_property
    def at_10khz(self) -> Tensor:
        return perceptual.to_10khz(self.signal, self.sr)

    @cached_property
    def gammatone(self) -> perceptual.Gammatone:
        return perceptual.gammatone(self.signal, self.sr)

    @cached_property
    def f0(self) -> np.ndarray:
        """(…, N) in Hz, nan where unvoiced."""
        from bwe import pitch

        x = F.pad(self.at_16khz, (0, 0 if self.at_16khz.shape[-1] else 1))
        return pitch.estimate(x, 16_000, method="dio").hz


class Reference(_Analysis):
    """A reference for `measure`, with its spectra, speech frames, F0 and copies at other rates kept for the next estimate.

    Args:
        ref: (…, T) at `sr`.
    """

    def __init__(self, ref: Signal, sr: int) -> None:
        super().__init__(as_signal(ref, "ref"), sr)

    @cached_property
    def speech(self) -> Tensor:
        """`speech_frames`."""
        return _speech_frames(self.power[..., math.ceil(100 * 2048 / self.sr) :, :].sum(-2))


def _analyses(ref: Signal, est: Signal, sr: int) -> tuple[_Analysis, _Analysis]:
    r, e = as_pair(ref, est)
    return _Analysis(r, sr), _Analysis(e, sr)


def _mean_lsd(
    ref: _Analysis,
    est: _Analysis,
    convention: str = "apbwe",
    frames: Tensor | None = None,
    low_hz: float = 0.0,
    high_hz: float = math.inf,
) -> Tensor:
    """LSD over the bins with low_hz ≤ f < high_hz and the frames of the mask; nan where there are none."""
    n_fft, _ = _frame_sizes(ref.sr, convention)
    low, high = math.ceil(low_hz * n_fft / ref.sr), math.ceil(min(high_hz, ref.sr) * n_fft / ref.sr)
    if convention == "apbwe":
        delta = est.log_power[..., low:high, :] - ref.log_power[..., low:high, :]
    else:
        p_ref, p_est = (x.power_ssr_eval[..., low:high, :] for x in (ref, est))
        delta = (p_ref / (p_est.sqrt() + 1e-12).square() + 1e-12).log10()
    per_frame = delta.square().mean(-2).sqrt()
    if frames is None:
        return per_frame.mean(-1)
    return torch.where(frames, per_frame, 0.0).sum(-1) / frames.sum(-1)


def _checked_lsd(
    ref: Signal,
    est: Signal,
    sr: int,
    convention: Convention,
    frames: Signal | None,
    low_hz: float = 0.0,
    high_hz: float = math.inf,
) -> Tensor:
    r, e = _analyses(ref, est, sr)
    n_fft, _ = _frame_sizes(sr, convention)
    if math.ceil(low_hz * n_fft / sr) >= min(math.ceil(min(high_hz, sr) * n_fft / sr), n_fft // 2 + 1):
        raise ValueError(f"no STFT bin lies between {low_hz:g} and {high_hz:g} Hz: choose another cut-off")
    mask = None if frames is None else torch.as_tensor(frames, device=r.signal.device)
    if mask is not None:
        shape = (*r.signal.shape[:-1], r.frames(convention))
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(
                f"frames is {mask.dtype} {tuple(mask.shape)}: must be bool {shape}, one per "
                f"STFT frame, as speech_frames(ref, sr, {convention!r}) gives"
            )
    return _mean_lsd(r, e, convention, mask, low_hz, high_hz)


def _or_nan(power: Tensor) -> Tensor:
    """nan for silence, to divide by."""
    return torch.where(power > 0, power, torch.nan)


def _check_transition(transition: float) -> None:
    if not 0 <= transition < 1:
        raise ValueError(f"transition={transition:g} is not a share of the cut-off from 0 to below 1")


def lsd(ref: Signal, est: Signal, sr: int, convention: Convention = "apbwe", frames: Signal | None = None) -> Tensor:
    """Log-spectral distance: mean over frames of √(mean over bins of Δ²), in log10 of power (0.1 is 1 dB).

    - ``"apbwe"`` (AP-BWE, arXiv:2401.06387, and before it NU-Wave 2): STFT 2048/512 at every rate,
      Δ = log10 max(P̂, 1e-8) − log10 max(P, 1e-8).
    - ``"ssr_eval"`` (ssr_eval, NVSR, arXiv:2203.14941, and the AudioSR line): STFT int(2048·sr/44100) /
      (sr/100), Δ = log10(|X|² / (|X̂| + 1e-12)² + 1e-12). Almost no floor: an empty band costs far more than
      in apbwe.

    Both with a periodic Hann window and reflected edges. `frames` is a bool mask (…, N) of the frames to
    average, such as `speech_frames(ref, sr, convention)` or its negation; a signal with no frame in the mask
    gives nan.
    """
    return _checked_lsd(ref, est, sr, convention, frames)


def lsd_lf(
    ref: Signal,
    est: Signal,
    sr: int,
    cutoff_hz: float,
    convention: Convention = "apbwe",
    frames: Signal | None = None,
    transition: float = 0.0,
) -> Tensor:
    """`lsd` over the bins below `cutoff_hz`: how far the known band was damaged.

    `transition` is a guard band, a share of the cut-off: 0.03 leaves out what is within 3 % below it, where the slope of the
    low-pass lies.
    """
    _check_cutoff(cutoff_hz, sr)
    _check_transition(transition)
    return _checked_lsd(ref, est, sr, convention, frames, high_hz=cutoff_hz * (1 - transition))


def lsd_hf(
    ref: Signal,
    est: Signal,
    sr: int,
    cutoff_hz: float,
    convention: Convention = "apbwe",
    frames: Signal | None = None,
    transition: float = 0.0,
) -> Tensor:
    """`lsd` over the bins at and above `cutoff_hz`: how well the missing band was filled.

    `transition` is a guard band as in `lsd_lf`, above the cut-off.
    """
    _check_cutoff(cutoff_hz, sr)
    _check_transition(transition)
    return _checked_lsd(ref, est, sr, convention, frames, low_hz=cutoff_hz * (1 + transition))


def lsd80(ref: Signal, est: Signal, sr: int) -> Tensor:
    """`lsd` (STFT 2048/512) with both spectra floored 80 dB below the reference's strongest bin.

    Unlike the absolute floor of apbwe this one follows the level of the recording and hides what 16 bits add. nan for a silent
    reference.
    """
    return _lsd80(*_analyses(ref, est, sr))


def _lsd80(ref: _Analysis, est: _Analysis) -> Tensor:
    floor = _or_nan(ref.power.amax((-2, -1), keepdim=True)) * 1e-8
    delta = (torch.maximum(est.power, floor) / torch.maximum(ref.power, floor)).log10()
    return delta.square().mean(-2).sqrt().mean(-1)


def lsd_per_bin(ref: Signal, est: Signal, sr: int) -> Tensor:
    """Root mean square over frames of the log10-power difference of `lsd` (apbwe), by frequency: (…, F) with F = 1025 bins
    from 0 Hz to half the sample rate."""
    r, e = _analyses(ref, est, sr)
    return (e.log_power - r.log_power).square().mean(-1).sqrt()


def lsd_floor(cutoff_hz: float, sr: int) -> float:
    """LSD (apbwe) of a perfect envelope with noise-like fine structure: √(missing fraction) · 0.788.

    Below it an estimate either follows the reference's true fine structure or is smoother than natural
    signals.
    """
    _check_cutoff(cutoff_hz, sr)
    return math.sqrt(1 - cutoff_hz / (sr / 2)) * FLOOR_PER_ROOT_FRACTION


def hf_bias(ref: Signal, est: Signal, sr: int, cutoff_hz: float) -> Tensor:
    """Level of the band at and above `cutoff_hz`, estimate over reference, in dB; negative is dull.

    Powers are summed over the spectrum of the whole signal and floored at -160 dBFS, so silence over silence
    is 0.
    """
    _check_cutoff(cutoff_hz, sr)
    return _hf_bias(*_analyses(ref, est, sr), cutoff_hz)


def _hf_bias(ref: _Analysis, est: _Analysis, cutoff_hz: float) -> Tensor:
    power_ref, power_est = (x.band_power(cutoff_hz).clamp_min(_HF_POWER_FLOOR) for x in (ref, est))
    return 10 * (power_est / power_ref).log10()


def third_octave_error(ref: Signal, est: Signal, sr: int, low_hz: float) -> Tensor:
    """Mean absolute level error in dB of the third-octave bands of IEC 61260-1 (base ten) from `low_hz` up.

    Levels are those of the spectrum of the whole signal, floored 80 dB below the reference's power. A band that reaches below
    `low_hz` or beyond half the sample rate is cut there, and left out where less than a third of it is inside. nan for a
    silent reference and where no band is left.
    """
    _check_cutoff(low_hz, sr)
    return _third_octave_error(*_analyses(ref, est, sr), low_hz)


def _third_octaves(low_hz: float, high_hz: float) -> list[tuple[float, float]]:
    """Edges in Hz, clipped."""
    bands = []
    for number in range(math.floor(10 * math.log10(low_hz / 1000)), math.ceil(10 * math.log10(high_hz / 1000)) + 1):
        low, high = (1000 * 10 ** ((number + half) / 10) for half in (-0.5, 0.5))
        low, high = max(low, low_hz), min(high, high_hz)
        if 10 * math.log10(high / low) >= 1 / 3:
            bands.append((low, high))
    return bands


def _third_octave_error(ref: _Analysis, est: _Analysis, low_hz: float) -> Tensor:
    floor = _or_nan(ref.band_power(0)) * 1e-8
    errors = []
    bands = _third_octaves(low_hz, ref.sr / 2)
    if not bands:
        return torch.full_like(floor, torch.nan)
    for band in bands:
        p_ref, p_est = (torch.maximum(x.band_power(*band), floor) for x in (ref, est))
        errors.append((p_est / p_ref).log10().abs())
    return 10 * torch.stack(errors).mean(0)


def edge_spectrum(x: Signal, sr: int, cutoff_hz: float) -> Tensor:
    """Mean spectrum (…, F) in dB of the bins within 600 Hz of `cutoff_hz` (STFT 2048/512), for `line_height`; mean it over
    recordings before, since the harmonics of a single one are lines of their own."""
    t = as_signal(x, "x")
    _check_cutoff(cutoff_hz, sr)
    power = dsp.power_spectrogram(t, 2048, 512).mean(-1)
    near = (torch.linspace(0, sr / 2, 1025, dtype=torch.float64) - cutoff_hz).abs() <= 600
    return 10 * (power[..., near] + LOG_POWER_FLOOR).log10()


def line_height(edge_db: Signal, sr: int, cutoff_hz: float) -> float:
    """How far the highest bin within 200 Hz of the cut-off stands above both its neighbours, the mean levels from 600 to
    200 Hz below and from 200 to 600 Hz above, in dB. A splice that doubles a band shows as several dB; a slope or a step has
    no line.

    Args:
        edge_db: `edge_spectrum`, averaged over recordings, (F,).
    """
    level = torch.as_tensor(edge_db, dtype=torch.float64)
    hz = torch.linspace(0, sr / 2, 1025, dtype=torch.float64) - cutoff_hz
    hz = hz[hz.abs() <= 600]
    neighbours = max(float(level[hz < -200].mean()), float(level[hz > 200].mean()))
    return float(level[hz.abs() <= 200].max()) - neighbours


def snr(ref: Signal, est: Signal) -> Tensor:
    """Signal-to-noise ratio ‖ref‖² / ‖ref − est‖² in dB; inf where they are equal."""
    r, e = as_pair(ref, est)
    decibels: Tensor = 10 * (r.square().sum(-1) / (r - e).square().sum(-1)).log10()
    return decibels


def si_sdr(ref: Signal, est: Signal) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., arXiv:1811.02508, eq. 3), means kept.

    nan for a silent reference, -inf for a silent estimate.
    """
    r, e = as_pair(ref, est)
    target = (r * e).sum(-1, keepdim=True) / r.square().sum(-1, keepdim=True) * r
    value = 10 * (target.square().sum(-1) / (e - target).square().sum(-1)).log10()
    silent = (e == 0).all(-1) & (r != 0).any(-1)
    return torch.where(silent, -torch.inf, value)


def correlation(ref: Signal, est: Signal) -> Tensor:
    """Pearson's correlation of the waveforms, -1 to 1; nan where either is constant."""
    r, e = (x - x.mean(-1, keepdim=True) for x in as_pair(ref, est))
    return (r * e).sum(-1) / (r.square().sum(-1) * e.square().sum(-1)).sqrt()


def spectral_convergence(ref: Signal, est: Signal) -> Tensor:
    """‖|X| − |X̂|‖_F / ‖|X|‖_F over STFT magnitudes 2048/512; 0 for equal magnitudes, nan for a silent
    ref."""
    return _spectral_convergence(*_analyses(ref, est, 1))


def _spectral_convergence(ref: _Analysis, est: _Analysis) -> Tensor:
    return (ref.magnitude - est.magnitude).square().sum((-2, -1)).sqrt() / _or_nan(ref.power.sum((-2, -1))).sqrt()


def log_mel_distance(ref: Signal, est: Signal, sr: int) -> Tensor:
    """Mean absolute difference in dB of the log-mel spectrograms: 80 HTK bands to half the sample rate, STFT 2048/512, power
    floored at 1e-8 as in `lsd`."""
    return _log_mel_distance(*_analyses(ref, est, sr))


def _log_mel_distance(ref: _Analysis, est: _Analysis) -> Tensor:
    return (ref.log_mel - est.log_mel).abs().mean((-2, -1))


def rolloff_error(ref: Signal, est: Signal, sr: int) -> Tensor:
    """Mean absolute difference in Hz of the 98.5 % spectral roll-off, below which 98.5 % of a frame's power lie, over the
    `speech_frames` of the reference (STFT 2048/512); nan where there are none."""
    r, e = as_pair(ref, est)
    return _rolloff_error(Reference(r, sr), _Analysis(e, sr))


def _rolloff_error(ref: Reference, est: _Analysis) -> Tensor:
    return torch.where(ref.speech, (est.rolloff - ref.rolloff).abs(), 0.0).sum(-1) / ref.speech.sum(-1)


def low_band_null(known: Signal, est: Signal, sr: int, cutoff_hz: float) -> Tensor:
    """Level in dB of `est` minus the band-limited input `known` from 300 Hz below the cut-off downwards, against that of the
    input there.

    An extender that keeps the known band stays at or below -90 dB. Not below -200; nan where the input is silent there. Both
    ends fade over 10 ms, so that the band above does not leak down from where the signal is cut off.
    """
    k, e = as_pair(known, est)
    _check_cutoff(cutoff_hz, sr)
    fade = torch.from_numpy(tukey(k.shape[-1], min(1.0, 0.02 * sr / k.shape[-1]))).to(k.device)
    high_hz = cutoff_hz - _BELOW_CUTOFF_HZ
    changed, kept = (_Analysis(x * fade, sr).band_power(0, high_hz) for x in (e - k, k))
    null: Tensor = 10 * (changed / _or_nan(kept)).clamp_min(_LEAST_NULL).log10()
    return null


def f0_error(ref_f0: Signal, est_f0: Signal) -> dict[str, Tensor]:
    """How two F0 tracks (…, N) on one frame grid differ, in Hz with nan or 0 where unvoiced; each value (…).

    Returns:
        "gross": share of the frames voiced in both that are off by more than 20 % of the reference (Rabiner et al., IEEE TASSP
        24, 1976). "cents": mean absolute difference of the others. "voicing": F1 score of the estimate's voiced frames. nan
        where there is nothing to count.
    """
    r, e = (torch.as_tensor(track).detach().to("cpu", torch.float64).nan_to_num(0.0) for track in (ref_f0, est_f0))
    if r.dim() == 0 or r.shape != e.shape:
        raise ValueError(f"ref_f0 {tuple(r.shape)} and est_f0 {tuple(e.shape)} must be tracks (…, N) of the same frames")
    both = (r > 0) & (e > 0)
    ratio = torch.where(both, e / r, 1.0)
    gross = both & ((ratio - 1).abs() > 0.2)
    fine = both & ~gross
    cents = torch.where(fine, 1200 * ratio.log2().abs(), 0.0)
    return {
        "gross": gross.sum(-1) / both.sum(-1),
        "cents": cents.sum(-1) / fine.sum(-1),
        "voicing": 2 * both.sum(-1) / ((r > 0).sum(-1) + (e > 0).sum(-1)),
    }


def speech_frames(ref: Signal, sr: int, convention: Convention = "apbwe") -> Tensor:
    """Bool mask (…, N) of the active frames of `ref`, on the frame grid of `lsd` with the same convention.

    The threshold follows the file: 9 dB above its noise floor (the 10th percentile of frame levels), but
    never less than 20 nor more than 40 dB below its loud frames (the 95th percentile). Digital silence, as
    gated recordings have between words, counts for neither percentile, energy below 100 Hz (hum, offset) for
    no level.
    """
    r = as_signal(ref, "ref")
    n_fft, hop = _frame_sizes(sr, convention)
    return _speech_frames(dsp.power_spectrogram(r, n_fft, hop)[..., math.ceil(100 * n_fft / sr) :, :].sum(-2))


def _speech_frames(power: Tensor) -> Tensor:
    """From the power above 100 Hz of each frame."""
    sounding = power > power.amax(-1, keepdim=True) * 1e-8
    level = torch.where(sounding, 10 * power.log10(), torch.nan)
    loud = level.nanquantile(0.95, dim=-1, keepdim=True)
    floor = level.nanquantile(0.10, dim=-1, keepdim=True)
    return level > torch.maximum(torch.minimum(floor + 9, loud - 20), loud - 40)


class _Pair:
    """What a `Metric` is computed from."""

    def __init__(self, ref: Reference, est: _Analysis, cutoff_hz: float | None, known: Tensor | None) -> None:
        self.ref, self.est = ref, est
        self._cutoff_hz, self._known = cutoff_hz, known

    @property
    def cutoff_hz(self) -> float:
        if self._cutoff_hz is None:
            raise _NotGivenError
        return self._cutoff_hz

    @property
    def known(self) -> Tensor:
        if self._known is None:
            raise _NotGivenError
        return self._known

    @cached_property
    def f0(self) -> dict[str, Tensor]:
        return f0_error(self.ref.f0, self.est.f0)


class _NotGivenError(Exception):
    """A metric needs the cut-off or the input, and `measure` was not told."""


@dataclass(frozen=True)
class Metric:
    """One figure of the evaluation suite.

    Attributes:
        name: key in the dict of `measure`.
        title: head of its column in a table.
        unit: of its values, or "".
        better: which way is good; "zero" for a signed error.
        digits: worth showing after the decimal point.
        extra: of the package that must be installed beside bwe, or "".
        package: the name of that package.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher", "zero"]
    digits: int
    of: Callable[[_Pair], Tensor] = field(repr=False, compare=False)
    extra: str = ""
    package: str = ""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("lsd", "LSD", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est)),
        Metric("lsd_lf", "LSD-LF", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est, high_hz=p.cutoff_hz)),
        Metric("lsd_hf", "LSD-HF", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est, low_hz=p.cutoff_hz)),
        Metric("lsd_lf_guard", "LSD-LF −3 %", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est, high_hz=0.97 * p.cutoff_hz)),
        Metric("lsd_hf_guard", "LSD-HF +3 %", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est, low_hz=1.03 * p.cutoff_hz)),
        Metric("lsd_speech", "LSD speech", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est, frames=p.ref.speech)),
        Metric("lsd_pauses", "LSD pauses", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est, frames=~p.ref.speech)),
        Metric("lsd_ssr_eval", "LSD ssr_eval", "", "lower", 2, lambda p: _mean_lsd(p.ref, p.est, "ssr_eval")),
        Metric("lsd80", "LSD-80", "", "lower", 2, lambda p: _lsd80(p.ref, p.est)),
        Metric("hf_bias", "HF bias", "dB", "zero", 1, lambda p: _hf_bias(p.ref, p.est, p.cutoff_hz)),
        Metric("third_octave", "⅓-octave", "dB", "lower", 1, lambda p: _third_octave_error(p.ref, p.est, p.cutoff_hz)),
        Metric("snr", "SNR", "dB", "higher", 1, lambda p: snr(p.ref.signal, p.est.signal)),
        Metric("si_sdr", "SI-SDR", "dB", "higher", 1, lambda p: si_sdr(p.ref.signal, p.est.signal)),
        Metric("correlation", "Correlation", "", "higher", 3, lambda p: correlation(p.ref.signal, p.est.signal)),
        Metric("spectral_convergence", "Sp. conv.", "", "lower", 3, lambda p: _spectral_convergence(p.ref, p.est)),
        Metric("log_mel", "Log-mel", "dB", "lower", 2, lambda p: _log_mel_distance(p.ref, p.est)),
        Metric("rolloff_error", "Roll-off", "Hz", "lower", 0, lambda p: _rolloff_error(p.ref, p.est)),
        Metric("null", "Null", "dB", "lower", 0, lambda p: low_band_null(p.known, p.est.signal, p.ref.sr, p.cutoff_hz)),
        Metric("nsim", "NSIM", "", "higher", 3, lambda p: perceptual.nsim(p.ref.gammatone, p.est.gammatone)),
        Metric(
            "pesq", "PESQ", "", "higher", 2, lambda p: perceptual.pesq_16khz(p.ref.at_16khz, p.est.at_16khz), "eval", "pesq"
        ),
        Metric(
            "stoi", "STOI", "", "higher", 3, lambda p: perceptual.stoi_10khz(p.ref.at_10khz, p.est.at_10khz, False), "eval",
            "pystoi",
        ),
        Metric(
            "estoi", "ESTOI", "", "higher", 3, lambda p: perceptual.stoi_10khz(p.ref.at_10khz, p.est.at_10khz, True), "eval",
            "pystoi",
        ),
        Metric("f0_gross", "F0 gross", "", "lower", 3, lambda p: p.f0["gross"], "f0", "pyworld"),
        Metric("f0_cents", "F0 error", "cents", "lower", 1, lambda p: p.f0["cents"], "f0", "pyworld"),
        Metric("f0_voicing", "F0 voicing", "", "higher", 3, lambda p: p.f0["voicing"], "f0", "pyworld"),
    )
}  # fmt: skip
"""The evaluation suite by name, in the order of a table. `lsd_lf_guard` and `lsd_hf_guard` leave out what is within 3 % of the
cut-off; F0 is that of DIO."""


def _load_dio() -> None:
    from bwe import pitch

    pitch.estimate(np.zeros(160), 16_000, method="dio")


_LOADERS: dict[str, Callable[[], object]] = {
    "pesq": perceptual.load_pesq,
    "pystoi": perceptual.load_pystoi,
    "pyworld": _load_dio,
}


def _chosen(names: Iterable[str] | None) -> list[Metric]:
    chosen = list(METRICS if names is None else names)
    for name in chosen:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}; did you mean {nearest(name, METRICS)!r}? ({', '.join(METRICS)})")
    return [METRICS[name] for name in chosen]


def missing(names: Iterable[str] | None = None) -> dict[str, str]:
    """The metrics, by default among all `METRICS`, whose package is not installed, each with a sentence that says which."""
    chosen = [metric for metric in _chosen(names) if metric.package]
    reasons = {}
    for package in {metric.package for metric in chosen}:
        try:
            _LOADERS[package]()
        except ImportError as error:
            reasons[package] = str(error)
    return {metric.name: reasons[metric.package] for metric in chosen if metric.package in reasons}


def measure(
    ref: Signal | Reference,
    est: Signal,
    sr: int,
    cutoff_hz: float | None = None,
    *,
    known: Signal | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Many `METRICS` of one pair of signals, (T,) or (C, T), from shared spectra; the mean over channels of each.

    Args:
        ref: the reference; a `Reference` where several estimates are compared with it.
        est: of the same shape, at the same rate.
        cutoff_hz: where the known band ends. None leaves out what splits the bands: `lsd_lf`, `lsd_hf`, both with their guard
            band, `hf_bias`, `third_octave` and `null`.
        known: the band-limited input, of the same shape; without it there is no `null`.
        names: which metrics; by default all.

    What cannot be computed on this pair is nan: see the single functions for what silence gives. A metric whose package is not
    installed is left out, see `missing`. ValueError for different shapes or rates, samples that are not finite, an unknown
    name and a cut-off out of range.
    """
    reference = ref if isinstance(ref, Reference) else Reference(ref, sr)
    estimate = as_signal(est, "est").to(reference.signal.device)
    if reference.sr != sr:
        raise ValueError(f"ref was analysed at {reference.sr} Hz, est is at {sr} Hz: resample one")
    check_same_shape(reference.signal, estimate)
    for x, name in ((reference.signal, "ref"), (estimate, "est")):
        if not x.isfinite().all():
            raise ValueError(f"{name} holds samples that are not finite: repair the signal first")
    if cutoff_hz is not None:
        _check_cutoff(cutoff_hz, sr)
    pair = _Pair(reference, _Analysis(estimate, sr), cutoff_hz, None if known is None else as_signal(known, "known"))
    absent = missing(names)
    values = {}
    for metric in _chosen(names):
        if metric.name not in absent:
            try:
                values[metric.name] = float(metric.of(pair).nanmean())
            except _NotGivenError:
                continue
    return values


def comprehensive_metrics(original: Signal, reconstructed: Signal, sr: int) -> dict[str, float]:
    """The common figures of one pair of signals, (T,) or (C, T), in one call; the mean over channels of each.

    Returns "snr", "si_sdr", "correlation", "pesq", "stoi", "spectral_distance" (`lsd`, apbwe) and "log_mel_distance" (dB).
    Raises ImportError where the packages of PESQ and STOI are not installed, ValueError as `measure`.
    """
    names = {"spectral_distance": "lsd", "log_mel_distance": "log_mel"}
    keys = ("snr", "si_sdr", "correlation", "pesq", "stoi", *names)
    wanted = [names.get(key, key) for key in keys]
    for sentence in missing(wanted).values():
        raise ImportError(sentence)
    values = measure(original, reconstructed, sr, names=wanted)
    return {key: values[name] for key, name in zip(keys, wanted, strict=True)}
