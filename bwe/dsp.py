"""Signal processing shared by training, evaluation and inference: resampling, low-pass families, PQMF, STFT, band splice.

Shapes: `B` batch, `C` channels, `T` samples, `N` frames, `F` bins, `K` bands. Audio is float in [-1, 1].
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy import optimize, signal
from scipy.fft import next_fast_len
from torch import Tensor, nn

from bwe._torchaudio import torchaudio

FilterFamily = Literal["cheby1", "butter", "bessel", "ellip"]
FILTER_FAMILIES: tuple[FilterFamily, ...] = get_args(FilterFamily)

# Kernel elements above which the polyphase bank of an awkward rate pair (48001 -> 48000) costs more than FFTs.
_MAX_POLYPHASE = 4_000_000
_KAISER_ROLLOFF = 0.9475937167399596
_KAISER_BETA = 14.769656459379492


def resampled_length(length: int, sr_in: int, sr_out: int) -> int:
    """Number of samples after resampling: `length * sr_out / sr_in` as an exact rational, rounded half to even."""
    return round(Fraction(length * sr_out, sr_in))


@lru_cache(maxsize=64)
def _polyphase(sr_in: int, sr_out: int) -> torch.nn.Module:
    resampler: torch.nn.Module = torchaudio.transforms.Resample(
        sr_in,
        sr_out,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=64,
        rolloff=_KAISER_ROLLOFF,
        beta=_KAISER_BETA,
    )
    return resampler


def _fft_resample(x: Tensor, sr_in: int, sr_out: int) -> Tensor:
    gcd = math.gcd(sr_in, sr_out)
    step_in, step_out = sr_in // gcd, sr_out // gcd
    # Padding in whole periods of the rate ratio keeps both sample grids aligned, and one period ahead keeps
    # the circular wrap of the FFT away from the first sample.
    periods = -(-x.shape[-1] // step_in) + 2
    n_in, n_out = periods * step_in, periods * step_out
    spectrum = torch.fft.rfft(F.pad(x, (step_in, n_in - step_in - x.shape[-1])).double())
    bins = min(n_in, n_out) // 2 + 1
    ramp = torch.linspace(0, 1, bins, dtype=torch.float64, device=x.device)
    taper = 0.5 + 0.5 * torch.cos(math.pi * ((ramp - _KAISER_ROLLOFF) / (1 - _KAISER_ROLLOFF)).clamp(0, 1))
    resampled = torch.fft.irfft(spectrum[..., :bins] * taper, n_out) * (n_out / n_in)
    return resampled[..., step_out:].to(x.dtype)


def resample(x: Tensor, sr_in: int, sr_out: int) -> Tensor:
    """Kaiser-windowed sinc resampling (64 zero crossings, roll-off 0.948), the one used everywhere in this package.

    Args:
        x: `(..., T)` floating-point samples at `sr_in`.
        sr_in, sr_out: sample rates in Hz.

    Returns:
        `(..., T')` with `T' = resampled_length(T, sr_in, sr_out)`, aligned with the input (no delay).
    """
    if sr_in == sr_out:
        return x
    length = resampled_length(x.shape[-1], sr_in, sr_out)
    if x.numel() == 0 or length == 0:
        return x.new_zeros(*x.shape[:-1], length)
    gcd = math.gcd(sr_in, sr_out)
    if (sr_in // gcd) * (sr_out // gcd) > _MAX_POLYPHASE:
        y = _fft_resample(x, sr_in, sr_out)
    else:
        resampler = _polyphase(sr_in, sr_out)
        y = resampler.to(device=x.device, dtype=x.dtype)(x) if x.device.type != "cpu" else resampler(x.float()).to(x.dtype)
    return y[..., :length] if y.shape[-1] >= length else F.pad(y, (0, length - y.shape[-1]))


def lowpass_sos(
    family: FilterFamily, order: int, cutoff_hz: float, sr: int, ripple_db: float = 0.05, attenuation_db: float = 60.0
) -> np.ndarray:
    """Second-order sections of an IIR low-pass, `(sections, 6)`, gain -3 dB at `cutoff_hz` for Butterworth and Bessel,
    `-ripple_db` for Chebyshev I and elliptic.

    Args:
        family: "cheby1", "butter", "bessel" or "ellip".
        order: filter order (of one pass; `lowpass` runs it twice).
        cutoff_hz: edge of the pass band in Hz, below `sr / 2`.
        ripple_db: pass-band ripple of Chebyshev I and elliptic filters in dB.
        attenuation_db: stop-band attenuation of elliptic filters in dB.

    Raises:
        ValueError: unknown family, or cut-off outside (0, sr / 2).
    """
    if not 0 < cutoff_hz < sr / 2:
        raise ValueError(f"low-pass cut-off {cutoff_hz:g} Hz must lie between 0 and {sr / 2:g} Hz")
    if family == "cheby1":
        return signal.cheby1(order, ripple_db, cutoff_hz, fs=sr, output="sos")
    if family == "butter":
        return signal.butter(order, cutoff_hz, fs=sr, output="sos")
    if family == "bessel":
        return signal.bessel(order, cutoff_hz, fs=sr, output="sos", norm="mag")
    if family == "ellip":
        return signal.ellip(order, ripple_db, attenuation_db, cutoff_hz, fs=sr, output="sos")
    raise ValueError(f"unknown filter family {family!r}: one of {', '.join(FILTER_FAMILIES)}")


def lowpass(
    x: np.ndarray,
    sr: int,
    cutoff_hz: float,
    family: FilterFamily = "cheby1",
    order: int = 8,
    ripple_db: float = 0.05,
    attenuation_db: float = 60.0,
) -> np.ndarray:
    """Zero-phase IIR low-pass of `(..., T)` (forward and backward, so the attenuation in dB doubles); same dtype out.

    Signals shorter than the usual edge extension are filtered with a shorter one instead of failing.
    """
    if x.shape[-1] == 0:
        return x.copy()
    sos = lowpass_sos(family, order, cutoff_hz, sr, ripple_db, attenuation_db)
    # The slowest pole decides how long the start-up transient is; scipy's default extension ignores it.
    extension = min(x.shape[-1] - 1, max(64, int(8 * sr / cutoff_hz) * order))
    return signal.sosfiltfilt(sos, x, axis=-1, padlen=extension).astype(x.dtype, copy=False)


def band_limit(x: Tensor, sr: int, cutoff_hz: Tensor | float, width_hz: float = 0.0) -> Tensor:
    """Zero-phase FFT low-pass of `(..., T)`: gain 1 below `cutoff_hz - width_hz`, 0 above `cutoff_hz`, cosine between.

    `width_hz=0` is a brick wall. A tensor of cut-offs must broadcast against `(...)`, one per signal.
    """
    length = x.shape[-1]
    if length == 0:
        return x
    padded = next_fast_len(length + min(length, sr // 20), real=True)
    # Half a reflection keeps the wrap-around of the FFT from smearing one end of the clip into the other.
    margin = min(length - 1, (padded - length) // 2)
    extended = torch.cat([x[..., 1 : margin + 1].flip(-1), x, x[..., length - 1 - margin : length - 1].flip(-1)], dim=-1)
    size = next_fast_len(extended.shape[-1], real=True)
    spectrum = torch.fft.rfft(extended, size)
    frequency = torch.linspace(0, sr / 2, spectrum.shape[-1], device=x.device)
    edge = torch.as_tensor(cutoff_hz, dtype=torch.float32, device=x.device).unsqueeze(-1)
    if width_hz > 0:
        gain = 0.5 + 0.5 * torch.cos(math.pi * ((frequency - edge + width_hz) / width_hz).clamp(0, 1))
    else:
        gain = (frequency < edge).to(x.dtype)
    return torch.fft.irfft(spectrum * gain.to(x.dtype), size)[..., margin : margin + length]


def splice_taps(sr: int, transition_hz: float = 300.0, attenuation_db: float = 100.0) -> int:
    """Odd number of taps of the Kaiser-windowed FIR that `splice_highpass` needs (Kaiser 1974, eq. for N)."""
    half = (attenuation_db - 8) / (2.285 * 2 * math.pi * transition_hz / sr) / 2
    return 2 * math.ceil(half) + 1


def splice_highpass(x: Tensor, sr: int, cutoff_hz: Tensor, transition_hz: float = 300.0) -> Tensor:
    """Linear-phase high-pass without delay: gain 1 above the cut-off, below -100 dB under `cutoff_hz - transition_hz`.

    Args:
        x: `(B, 1, T)`.
        sr: sample rate in Hz.
        cutoff_hz: `(B,)` cut-off of each item in Hz.

    Returns:
        `(B, 1, T)`.
    """
    length, taps = x.shape[-1], splice_taps(sr, transition_hz)
    half = taps // 2
    centre = (cutoff_hz.to(x.device, torch.float32) - transition_hz / 2).clamp(min=0.0)[:, None] * (2 / sr)
    n = torch.arange(-half, half + 1, device=x.device, dtype=torch.float32)
    window = torch.kaiser_window(taps, periodic=False, beta=0.1102 * (100 - 8.7), device=x.device)
    kernel = -centre * torch.sinc(centre * n) * window
    kernel[:, half] += 1.0
    # Overlap-save in blocks that stay in cache; a single long FFT costs four times as much.
    size = 8192 if taps < 4096 else 4 * next_fast_len(taps, real=True)
    step = size - taps + 1
    blocks = -(-length // step)
    padded = F.pad(x, (half, blocks * step - length + taps - 1 - half))
    spectrum = torch.fft.rfft(padded.unfold(-1, size, step)) * torch.fft.rfft(kernel, size)[:, None, None]
    return torch.fft.irfft(spectrum, size)[..., taps - 1 :].reshape(*x.shape[:-1], -1)[..., :length]


@lru_cache(maxsize=16)
def _pqmf_prototype(bands: int, taps: int, attenuation_db: float) -> np.ndarray:
    beta = signal.kaiser_beta(attenuation_db)
    window = signal.windows.kaiser(taps, beta)
    n = np.arange(taps) - (taps - 1) / 2

    def prototype(cutoff: float) -> np.ndarray:
        h = cutoff * np.sinc(cutoff * n) * window
        return h / np.sqrt(2 * bands * np.sum(h**2)) if cutoff > 0 else h

    def distortion(cutoff: float) -> float:
        h = prototype(cutoff)
        correlation = np.correlate(h, h, "full")[taps - 1 :: 2 * bands]
        return float(np.max(np.abs(correlation[1:])))

    grid = np.linspace(0.5, 1.0, 101) / bands
    best = grid[int(np.argmin([distortion(c) for c in grid]))]
    step = grid[1] - grid[0]
    result = optimize.minimize_scalar(distortion, bounds=(best - step, best + step), method="bounded", options={"xatol": 1e-9})
    return prototype(float(result.x))


class PQMF(nn.Module):
    """Near-perfect-reconstruction cosine-modulated filter bank with `bands` sub-bands at `sr / bands`, zero delay.

    Kaiser-window prototype whose cut-off minimises the autocorrelation at multiples of 2K, cosine modulation with
    alternating phase +-pi/4 (Nguyen 1994, "Near-perfect-reconstruction pseudo-QMF banks"; Lin & Vaidyanathan 1998).
    Both directions are centred, so band frame n sits at sample `n * bands` and `synthesis(analysis(x))` matches x.
    """

    def __init__(self, bands: int, taps_per_band: int = 12, attenuation_db: float = 80.0) -> None:
        super().__init__()
        self.bands = bands
        taps = taps_per_band * bands + 1
        self.half = taps // 2
        prototype = _pqmf_prototype(bands, taps, attenuation_db)
        n = np.arange(taps) - (taps - 1) / 2
        k = np.arange(bands)[:, None]
        phase = (-1.0) ** k * math.pi / 4
        angle = (2 * k + 1) * math.pi / (2 * bands) * n
        # Synthesis is the transpose of analysis; white noise keeps its standard deviation in every band.
        filters = 2 * math.sqrt(bands) * prototype * np.cos(angle + phase)
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32)[:, None], persistent=False)
        self.filters: Tensor

    def analysis(self, x: Tensor) -> Tensor:
        """`(B, 1, T)` with T a multiple of `bands` -> `(B, K, T / K)`."""
        with torch.autocast(x.device.type, enabled=False):
            bands = F.conv1d(F.pad(x, (self.half, self.half)), self.filters, stride=self.bands)
        return bands[..., : x.shape[-1] // self.bands]

    def synthesis(self, bands: Tensor) -> Tensor:
        """`(B, K, N)` -> `(B, 1, N * K)`."""
        # The transposed convolution in polyphase form: an ordinary convolution to K phases that are then interleaved.
        reach = -(-self.half // self.bands)
        taps = F.pad(self.filters[:, 0], (reach * self.bands - self.half, (reach + 1) * self.bands - self.half - 1))
        kernel = taps.view(self.bands, 2 * reach + 1, self.bands).permute(2, 0, 1).flip(-1)
        with torch.autocast(bands.device.type, enabled=False):
            phases = F.conv1d(bands, kernel, padding=reach)
        return phases.transpose(1, 2).reshape(bands.shape[0], 1, -1)


@lru_cache(maxsize=32)
def mel_filterbank(sr: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular HTK mel filters `(n_fft // 2 + 1, n_mels)` from 0 Hz to `sr / 2`."""
    bank: Tensor = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, sr / 2, n_mels, sr)
    return bank


def power_spectrogram(x: Tensor, n_fft: int, hop: int) -> Tensor:
    """Centred periodic-Hann power spectrogram of `(..., T)` -> `(..., F, N)`; short signals are zero-padded to a frame."""
    if x.shape[-1] <= n_fft // 2:
        x = F.pad(x, (0, n_fft // 2 + 1 - x.shape[-1]))
    window = torch.hann_window(n_fft, device=x.device, dtype=x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    spectrum = torch.stft(flat, n_fft, hop, window=window, center=True, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return power.reshape(*x.shape[:-1], *power.shape[-2:])
