"""Objective measures of an extended signal against its reference.

Every function takes signals of shape (…, T), numpy or torch, and returns a float64 tensor of shape (…): one
value per signal, a 0-d tensor for (T,). Nothing is normalised or aligned beforehand. Mismatched shapes, empty
signals and arguments out of range raise ValueError. Published LSD figures differ by what they floor and how
long the window is, so the convention is always named: see `lsd`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bwe import dsp

Convention = Literal["apbwe", "ssr_eval"]
Signal = Tensor | np.ndarray

LOG_POWER_FLOOR = 1e-8
"""Power |X|² (un-normalised STFT of a signal in [-1, 1]) below which apbwe sees no difference."""

FLOOR_PER_ROOT_FRACTION = math.pi / math.sqrt(6) * math.sqrt(2) / math.log(10)
"""LSD of a band whose envelope is perfect and whose fine structure is independent noise, 0.788: the power of
a Gaussian bin is exponentially distributed, its natural log has standard deviation π/√6, and two independent
ones differ by √2 of it."""

_HF_POWER_FLOOR = 1e-16  # mean square, -160 dBFS: keeps a band-limited estimate's bias finite


def _as_signal(x: Signal, name: str) -> Tensor:
    t = torch.as_tensor(x)
    if t.dim() == 0 or t.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(t.shape)}: a metric needs (…, T) with at least one sample")
    if t.is_complex():
        raise ValueError(f"{name} is complex: a metric needs a real waveform")
    if t.device.type == "mps":  # no float64 there
        t = t.cpu()
    return t.detach().to(torch.float64)


def _as_pair(ref: Signal, est: Signal) -> tuple[Tensor, Tensor]:
    r, e = _as_signal(ref, "ref"), _as_signal(est, "est")
    if r.shape != e.shape:
        raise ValueError(f"ref {tuple(r.shape)} and est {tuple(e.shape)} differ in shape: trim or pad one")
    return r, e.to(r.device)


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


def _mean_lsd(
    ref: Signal,
    est: Signal,
    sr: int,
    convention: Convention,
    frames: Signal | None,
    low_hz: float,
    high_hz: float,
) -> Tensor:
    """LSD over the bins with low_hz ≤ f < high_hz and the frames of the mask."""
    r, e = _as_pair(ref, est)
    n_fft, hop = _frame_sizes(sr, convention)
    low, high = math.ceil(low_hz * n_fft / sr), min(math.ceil(high_hz * n_fft / sr), n_fft // 2 + 1)
    if low >= high:
        raise ValueError(f"no STFT bin lies between {low_hz:g} and {high_hz:g} Hz: choose another cut-off")
    p_ref = dsp.power_spectrogram(r, n_fft, hop)[..., low:high, :]
    p_est = dsp.power_spectrogram(e, n_fft, hop)[..., low:high, :]
    if convention == "apbwe":
        delta = (p_est.clamp_min(LOG_POWER_FLOOR) / p_ref.clamp_min(LOG_POWER_FLOOR)).log10()
    else:
        delta = (p_ref / (p_est.sqrt() + 1e-12).square() + 1e-12).log10()
    per_frame = delta.square().mean(-2).sqrt()
    if frames is None:
        return per_frame.mean(-1)
    mask = torch.as_tensor(frames, device=per_frame.device)
    if mask.dtype != torch.bool or mask.shape != per_frame.shape:
        raise ValueError(
            f"frames is {mask.dtype} {tuple(mask.shape)}: must be bool {tuple(per_frame.shape)}, one per "
            f"STFT frame, as speech_frames(ref, sr, {convention!r}) gives"
        )
    return torch.where(mask, per_frame, 0.0).sum(-1) / mask.sum(-1)


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
    return _mean_lsd(ref, est, sr, convention, frames, 0.0, float(sr))


def lsd_lf(
    ref: Signal,
    est: Signal,
    sr: int,
    cutoff_hz: float,
    convention: Convention = "apbwe",
    frames: Signal | None = None,
) -> Tensor:
    """`lsd` over the bins below `cutoff_hz`: how far the known band was damaged."""
    _check_cutoff(cutoff_hz, sr)
    return _mean_lsd(ref, est, sr, convention, frames, 0.0, cutoff_hz)


def lsd_hf(
    ref: Signal,
    est: Signal,
    sr: int,
    cutoff_hz: float,
    convention: Convention = "apbwe",
    frames: Signal | None = None,
) -> Tensor:
    """`lsd` over the bins at and above `cutoff_hz`: how well the missing band was filled."""
    _check_cutoff(cutoff_hz, sr)
    return _mean_lsd(ref, est, sr, convention, frames, cutoff_hz, float(sr))


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
    r, e = _as_pair(ref, est)
    _check_cutoff(cutoff_hz, sr)
    first = math.ceil(cutoff_hz * r.shape[-1] / sr)

    def power(x: Tensor) -> Tensor:
        total: Tensor = torch.fft.rfft(x)[..., first:].abs().square().sum(-1)
        return (2 * total / x.shape[-1] ** 2).clamp_min(_HF_POWER_FLOOR)

    bias: Tensor = 10 * (power(e) / power(r)).log10()
    return bias


def edge_spectrum(x: Signal, sr: int, cutoff_hz: float) -> Tensor:
    """Mean spectrum (…, F) in dB of the bins within 600 Hz of `cutoff_hz` (STFT 2048/512), for `line_height`; mean it over
    recordings before, since the harmonics of a single one are lines of their own."""
    t = _as_signal(x, "x")
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
    r, e = _as_pair(ref, est)
    decibels: Tensor = 10 * (r.square().sum(-1) / (r - e).square().sum(-1)).log10()
    return decibels


def si_sdr(ref: Signal, est: Signal) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., arXiv:1811.02508, eq. 3), means kept.

    nan for a silent reference, -inf for a silent estimate.
    """
    r, e = _as_pair(ref, est)
    target = (r * e).sum(-1, keepdim=True) / r.square().sum(-1, keepdim=True) * r
    value = 10 * (target.square().sum(-1) / (e - target).square().sum(-1)).log10()
    silent = (e == 0).all(-1) & (r != 0).any(-1)
    return torch.where(silent, -torch.inf, value)


def spectral_convergence(ref: Signal, est: Signal) -> Tensor:
    """‖|X| − |X̂|‖_F / ‖|X|‖_F over STFT magnitudes 2048/512; 0 for equal magnitudes, nan for a silent
    ref."""
    r, e = _as_pair(ref, est)
    mag_r, mag_e = dsp.power_spectrogram(r, 2048, 512).sqrt(), dsp.power_spectrogram(e, 2048, 512).sqrt()
    return (mag_r - mag_e).square().sum((-2, -1)).sqrt() / mag_r.square().sum((-2, -1)).sqrt()


def speech_frames(ref: Signal, sr: int, convention: Convention = "apbwe") -> Tensor:
    """Bool mask (…, N) of the active frames of `ref`, on the frame grid of `lsd` with the same convention.

    The threshold follows the file: 9 dB above its noise floor (the 10th percentile of frame levels), but
    never less than 20 nor more than 40 dB below its loud frames (the 95th percentile). Digital silence, as
    gated recordings have between words, counts for neither percentile, energy below 100 Hz (hum, offset) for
    no level.
    """
    r = _as_signal(ref, "ref")
    n_fft, hop = _frame_sizes(sr, convention)
    power = dsp.power_spectrogram(r, n_fft, hop)[..., math.ceil(100 * n_fft / sr) :, :].sum(-2)
    sounding = power > power.amax(-1, keepdim=True) * 1e-8
    level = torch.where(sounding, 10 * power.log10(), torch.nan)
    loud = level.nanquantile(0.95, dim=-1, keepdim=True)
    floor = level.nanquantile(0.10, dim=-1, keepdim=True)
    return level > torch.maximum(torch.minimum(floor + 9, loud - 20), loud - 40)
