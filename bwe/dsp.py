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
from einops import rearrange
from scipy import optimize, signal
from scipy.fft import irfft, next_fast_len, rfft
from torch import Tensor, nn

from bwe._torchaudio import torchaudio

FilterFamily = Literal["cheby1", "butter", "bessel", "ellip"]
FILTER_FAMILIES: tuple[FilterFamily, ...] = get_args(FilterFamily)

# Kernel elements above which the polyphase bank of an awkward rate pair (48001 -> 48000) gives way to interpolation.
_MAX_POLYPHASE = 4_000_000
_BANK_PHASES = 1024
_FEW_PERIODS = 1000
_ZERO_CROSSINGS = 64
_KAISER_ROLLOFF = 0.9475937167399596
_KAISER_BETA = 14.769656459379492


def resampled_length(length: int, sr_in: int, sr_out: int) -> int:
    """Number of samples after resampling: `length * sr_out / sr_in` as an exact rational, rounded half to even."""
    return round(Fraction(length * sr_out, sr_in))


@lru_cache(maxsize=64)
def _polyphase(sr_in: int, sr_out: int, device: torch.device) -> torch.nn.Module:
    resampler: torch.nn.Module = torchaudio.transforms.Resample(
        sr_in,
        sr_out,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=_ZERO_CROSSINGS,
        rolloff=_KAISER_ROLLOFF,
        beta=_KAISER_BETA,
    )
    return resampler.to(device)


@lru_cache(maxsize=16)
def _kernel_bank(sr_in: int, sr_out: int) -> np.ndarray:
    """The resampling kernel at `_BANK_PHASES + 1` shifts from none to one input sample, `(phases + 1, taps)`."""
    base = min(sr_in, sr_out) * _KAISER_ROLLOFF / sr_in
    reach = _reach(sr_in, sr_out)
    t = (np.arange(-reach, reach + 1) - np.arange(_BANK_PHASES + 1)[:, None] / _BANK_PHASES) * base
    inside = np.sqrt(np.maximum(1 - (t / _ZERO_CROSSINGS) ** 2, 0))
    window = np.where(np.abs(t) < _ZERO_CROSSINGS, np.i0(_KAISER_BETA * inside) / np.i0(_KAISER_BETA), 0.0)
    return (np.sinc(t) * window * base).astype(np.float32)


def _reach(sr_in: int, sr_out: int) -> int:
    """Input samples on either side that an output sample depends on."""
    return math.ceil(_ZERO_CROSSINGS * sr_in / (min(sr_in, sr_out) * _KAISER_ROLLOFF))


def _is_awkward(sr_in: int, sr_out: int) -> bool:
    gcd = math.gcd(sr_in, sr_out)
    return (sr_in // gcd) * (sr_out // gcd) > _MAX_POLYPHASE


class Resampler:
    """`resample` for a signal that comes in blocks: the same kernel, to float rounding the same samples.

    Attributes:
        lookahead: seconds of input that an output sample waits for.
    """

    def __init__(self, sr_in: int, sr_out: int, channels: int) -> None:
        self.sr_in, self.sr_out = sr_in, sr_out
        gcd = math.gcd(sr_in, sr_out)
        self._up, self._down = sr_out // gcd, sr_in // gcd
        self._reach = 0 if sr_in == sr_out else _reach(sr_in, sr_out)
        self.lookahead = self._reach / sr_in
        self._kernel: Tensor | None = None
        if sr_in != sr_out and not _is_awkward(sr_in, sr_out):
            polyphase = _polyphase(sr_in, sr_out, torch.device("cpu"))
            self._kernel = polyphase.kernel  # type: ignore[assignment]  # (phases, 1, reach + period + reach)
        # Input from `_first` on; silence stands before the signal.
        self._held = np.zeros((channels, self._reach), np.float32)
        self._first = -self._reach
        self._taken = self._given = 0

    def push(self, x: np.ndarray) -> np.ndarray:
        """`(C, n)` float32, the next samples -> `(C, m)`, all that they complete; m may be 0."""
        if self.sr_in == self.sr_out:
            return x
        self._taken += x.shape[-1]
        self._held = np.concatenate([self._held, x], axis=-1)
        return self._until(max(self._given, -(-(self._taken - self._reach) * self._up // self._down)))

    def flush(self, length: int | None = None) -> np.ndarray:
        """The end of the signal: what is missing of `length` output samples, by default `resampled_length` of all input."""
        if self.sr_in == self.sr_out:
            return self._held[:, :0]
        end = resampled_length(self._taken, self.sr_in, self.sr_out) if length is None else length
        silence = np.zeros((len(self._held), self._reach + 2 * self._down), np.float32)
        self._held = np.concatenate([self._held, silence], axis=-1)
        return self._until(end)

    def _until(self, end: int) -> np.ndarray:
        start, self._given = self._given, end
        out = np.empty((len(self._held), max(0, end - start)), np.float32)
        if self._kernel is None:
            for low in range(start, end, 1 << 14):  # in pieces that stay in cache
                out[:, low - start : low - start + (1 << 14)] = self._by_bank(low, min(end, low + (1 << 14)))
        elif end > start:
            # Whole periods of the rate ratio; the first may have been given in part, of the last a part may be still to come.
            first, last = start // self._up, -(-end // self._up)
            offset, size = first * self._down - self._reach - self._first, self._kernel.shape[-1]
            missing = offset + (last - first - 1) * self._down + size - self._held.shape[-1]
            held = np.pad(self._held[:, offset:], ((0, 0), (0, max(0, missing))))
            if last - first > _FEW_PERIODS:
                periods = F.conv1d(torch.from_numpy(held)[:, None], self._kernel, stride=self._down).transpose(1, 2).numpy()
            else:  # PyTorch takes milliseconds to prepare for each new length
                windows = np.lib.stride_tricks.sliding_window_view(held, size, axis=-1)[:, :: self._down]
                periods = np.ascontiguousarray(windows[:, : last - first]) @ self._kernel[:, 0].numpy().T
            flat = periods[:, : last - first].reshape(len(out), -1)
            out[:] = flat[:, start - first * self._up : end - first * self._up]
        drop = end // self._up * self._down - self._reach - self._first
        if drop > 0:
            self._held, self._first = self._held[:, drop:].copy(), self._first + drop
        return out

    def _by_bank(self, start: int, end: int) -> np.ndarray:
        bank = _kernel_bank(self.sr_in, self.sr_out)
        position = np.arange(start, end) * self._down
        whole = position // self._up - self._reach - self._first
        phase = position % self._up * _BANK_PHASES / self._up
        row = phase.astype(np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(self._held, bank.shape[1], axis=-1)[:, whole]
        before, after = (np.einsum("cnk,nk->cn", windows, bank[r]) for r in (row, row + 1))
        return before + (after - before) * (phase - row).astype(np.float32)


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
    if _is_awkward(sr_in, sr_out):
        flat = x.detach().reshape(-1, x.shape[-1]).cpu().float().numpy()
        resampler = Resampler(sr_in, sr_out, len(flat))
        whole = np.concatenate([resampler.push(flat), resampler.flush()], axis=-1)
        return torch.from_numpy(whole).to(x).reshape(*x.shape[:-1], length)
    y = _polyphase(sr_in, sr_out, x.device)(x.float()).to(x.dtype)
    return y[..., :length] if y.shape[-1] >= length else F.pad(y, (0, length - y.shape[-1]))


def passband_end(sr_in: int, sr_out: int) -> float:
    """Where the content of a signal ends, in Hz, after `resample`: its -6 dB point, or half the input's rate unchanged."""
    return sr_in / 2 * (_KAISER_ROLLOFF if sr_in < sr_out else 1.0)


def is_full_band(cutoff_hz: float, sr: int) -> bool:
    """Whether what lies between a cut-off and half the sample rate is not worth filling: it is the transition of a converter,
    or nobody hears it."""
    return cutoff_hz >= min(0.95 * sr / 2, 20_000.0)


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
    # A copy in any case: the view of a single sample that comes back here passes for contiguous with its negative stride.
    return np.array(signal.sosfiltfilt(sos, x, axis=-1, padlen=extension), dtype=x.dtype, order="C")


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


# Where the generated band fades in, relative to the cut-off: hardly below it, so that the known band keeps its own level to
# the last bin, and soon after, so that no gap shows in a spectrogram.
SPLICE_HZ = (-50.0, 250.0)
_SPLICE_ATTENUATION_DB = 100.0


def best_lag(reference: np.ndarray, other: np.ndarray, longest: int) -> tuple[int, float]:
    """Samples, up to `longest` either way, that `other` `(C, T')` comes late after `reference` `(C, T)`, and the correlation
    coefficient there, -1 to 1, negative for an inverted signal: the largest magnitude of the cross-correlation, summed over
    channels. Silence has a lag and a coefficient of 0."""
    size = next_fast_len(max(reference.shape[-1], other.shape[-1]) + longest, real=True)
    spectra = [rfft(x.astype(np.float64), size) for x in (reference, other)]
    correlation = irfft((np.conj(spectra[0]) * spectra[1]).sum(0), size)
    lags = np.concatenate([np.arange(longest + 1), np.arange(-longest, 0)])
    near = correlation[lags]
    best = int(np.abs(near).argmax())
    energy = math.sqrt(float(np.square(reference, dtype=np.float64).sum()) * float(np.square(other, dtype=np.float64).sum()))
    return (int(lags[best]), float(near[best] / energy)) if energy else (0, 0.0)


def splice_taps(sr: int) -> int:
    """Odd number of taps of the Kaiser-windowed FIR that `splice_highpass` needs (Kaiser 1974, eq. for N)."""
    width = 2 * math.pi * (SPLICE_HZ[1] - SPLICE_HZ[0]) / sr
    return 2 * math.ceil((_SPLICE_ATTENUATION_DB - 8) / (2.285 * width) / 2) + 1


def splice_highpass(x: Tensor, sr: int, cutoff_hz: Tensor) -> Tensor:
    """Linear-phase high-pass without delay: below -95 dB up to `cutoff_hz - 50`, gain 1 from `cutoff_hz + 250` Hz.

    Args:
        x: `(B, 1, T)`.
        sr: sample rate in Hz.
        cutoff_hz: `(B,)` cut-off of each item in Hz.

    Returns:
        `(B, 1, T)`.
    """
    length, taps = x.shape[-1], splice_taps(sr)
    half = taps // 2
    middle = cutoff_hz.to(x.device, torch.float32) + sum(SPLICE_HZ) / 2
    centre = middle.clamp(min=0.0)[:, None] * (2 / sr)
    n = torch.arange(-half, half + 1, device=x.device, dtype=torch.float32)
    window = torch.kaiser_window(taps, periodic=False, beta=0.1102 * (_SPLICE_ATTENUATION_DB - 8.7), device=x.device)
    kernel = -centre * torch.sinc(centre * n) * window
    kernel[:, half] += 1.0
    # Overlap-save in blocks that stay in cache; a single long FFT costs four times as much.
    size = 8192 if taps < 4096 else 4 * next_fast_len(taps, real=True)
    step = size - taps + 1
    blocks = -(-length // step)
    padded = F.pad(x, (half, blocks * step - length + taps - 1 - half))
    spectrum = torch.fft.rfft(padded.unfold(-1, size, step)) * torch.fft.rfft(kernel, size)[:, None, None]
    return torch.fft.irfft(spectrum, size)[..., taps - 1 :].reshape(*x.shape[:-1], -1)[..., :length]


_CAUSAL_SPLICE_ATTENUATION_DB = 62.0
_CAUSAL_SPLICE_HZ = (-200.0, 310.0)


@lru_cache(maxsize=256)
def _causal_splice_kernels(sr: int, cutoff_hz: float, delay: int) -> np.ndarray:
    """`(2, 2 * delay + 1)`: a linear-phase low-pass for the input, a minimum-phase high-pass for the generated band.

    The input waits `delay` samples for the filter bank anyway, so its linear phase costs nothing; the generated band cannot
    wait, and its phase is nobody's business. Minimum phase by the folded cepstrum (Oppenheim & Schafer, sec. 13.5).
    """
    low_hz, high_hz = (cutoff_hz + edge for edge in _CAUSAL_SPLICE_HZ)
    n = np.arange(-delay, delay + 1)
    centre = max(0.0, low_hz + high_hz) / sr
    window = np.kaiser(2 * delay + 1, signal.kaiser_beta(_CAUSAL_SPLICE_ATTENUATION_DB))
    low = centre * np.sinc(centre * n) * window
    size = 16 * next_fast_len(2 * delay + 1, real=True)
    high = np.fft.fft(np.pad(np.where(n == 0, 1.0, 0.0) - low, (0, size - 2 * delay - 1)))
    log_gain = np.log(np.maximum(np.abs(high), 10 ** (-(_CAUSAL_SPLICE_ATTENUATION_DB + 6) / 20)))
    cepstrum = np.fft.ifft(log_gain).real
    fold = np.concatenate([[1.0], np.full(size // 2 - 1, 2.0), [1.0], np.zeros(size - size // 2 - 1)])
    minimum = np.fft.ifft(np.exp(np.fft.fft(cepstrum * fold))).real[: 2 * delay + 1]
    fade = np.clip((2 * delay + 1 - np.arange(2 * delay + 1)) / (delay / 2), 0, 1)
    return np.stack([low, minimum * (0.5 - 0.5 * np.cos(np.pi * fade))]).astype(np.float32)


def causal_splice_weights(sr: int, cutoff_hz: np.ndarray, delay: int, phases: int) -> np.ndarray:
    """The splice of a causal model as one convolution over `phases` interleaved samples at a time.

    Args:
        sr: sample rate in Hz.
        cutoff_hz: `(B,)`.
        delay: of the generated band behind the input, in samples, which the input is delayed by.
        phases: samples a frame.

    Returns:
        `(B, phases, 2 * phases, taps)`, float32, for `causal_splice`.
    """
    kernels = np.stack([_causal_splice_kernels(sr, float(hz), delay) for hz in cutoff_hz])
    length = kernels.shape[-1]
    taps = -(-(length + phases - 1) // phases)
    m, p, j = np.ogrid[:phases, :phases, :taps]
    index = (taps - 1 - j) * phases + m - p
    padded = np.pad(kernels, ((0, 0), (0, 0), (0, 1)))
    weights = padded[:, :, np.where((index >= 0) & (index < length), index, length)]  # (B, 2, m, p, j)
    return np.ascontiguousarray(weights.transpose(0, 2, 1, 3, 4)).reshape(len(cutoff_hz), phases, 2 * phases, taps)


def causal_splice(x: Tensor, generated: Tensor, weights: Tensor) -> Tensor:
    """The input below the cut-off, `delay` samples late, plus the generated band above it: `lowpass(x) + highpass(generated)`.

    Args:
        x, generated: `(B, 1, T)`, T a multiple of the phases of `weights`.
        weights: of `causal_splice_weights`, on the device of `x`.

    Returns:
        `(B, 1, T)`.
    """
    items, phases, _, taps = weights.shape
    frames = rearrange(torch.cat([x, generated], dim=1), "b c (n p) -> 1 (b c p) n", p=phases)
    with torch.autocast(x.device.type, enabled=False):
        mixed = F.conv1d(F.pad(frames, (taps - 1, 0)), weights.flatten(0, 1), groups=items)
    return rearrange(mixed, "1 (b p) n -> b 1 (n p)", b=items)


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
        self.margin = taps // 2
        reach = -(-self.margin // bands)
        prototype = _pqmf_prototype(bands, taps, attenuation_db)
        n = np.arange(taps) - (taps - 1) / 2
        k = np.arange(bands)[:, None]
        phase = (-1.0) ** k * math.pi / 4
        angle = (2 * k + 1) * math.pi / (2 * bands) * n
        # Synthesis is the transpose of analysis; white noise keeps its standard deviation in every band.
        filters = 2 * math.sqrt(bands) * prototype * np.cos(angle + phase)
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32)[:, None], persistent=False)
        self.filters: Tensor
        # Synthesis, a transposed convolution, in polyphase form: an ordinary one to K phases that are then interleaved.
        centred = F.pad(self.filters[:, 0], (reach * bands - self.margin, (reach + 1) * bands - self.margin - 1))
        late = F.pad(self.filters[:, 0], (0, -taps % bands))
        for name, padded in (("centred", centred), ("late", late)):
            phases = rearrange(padded, "k (n m) -> m k n", m=bands).flip(-1).contiguous()
            self.register_buffer(name, phases, persistent=False)
        self.centred: Tensor
        self.late: Tensor

    def analysis(self, x: Tensor, late: bool = False) -> Tensor:
        """`(B, 1, T)` with T a multiple of `bands` -> `(B, K, T / K)`; causal where it may be `late`, by `margin` samples."""
        with torch.autocast(x.device.type, enabled=False):
            padding = (2 * self.margin, 0) if late else (self.margin, self.margin)
            bands = F.conv1d(F.pad(x, padding), self.filters, stride=self.bands)
        return bands[..., : x.shape[-1] // self.bands]

    def synthesis(self, bands: Tensor, late: bool = False) -> Tensor:
        """`(B, K, N)` -> `(B, 1, N * K)`; causal where it may be `late`, by `margin` samples."""
        with torch.autocast(bands.device.type, enabled=False):
            if late:
                phases = F.conv1d(F.pad(bands, (self.late.shape[-1] - 1, 0)), self.late)
            else:
                phases = F.conv1d(bands, self.centred, padding=self.centred.shape[-1] // 2)
        return rearrange(phases, "b m n -> b 1 (n m)")


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


_GRID = 48  # points per octave of the logarithmic frequency grid
_ORDERS = np.array([2, 3, 4, 6, 8, 11, 16, 24, 40, 100, 400.0])

# Least drop in dB that is called an edge. No natural recording of the development set (924 clips of speech and music
# that reach 19 kHz) has these drops inside its band, but for one in a hundred; low-pass filters of order 8 have them.
_STEEP_DROP, _SHARP_DROP = 22.0, 9.0
_OCTAVE_DROP = ((6000.0, 8000.0, 9500.0, 11000.0), (36.0, 30.0, 30.0, 42.0))  # over Hz
_OCTAVE_DROP_BELOW_HZ = 11000  # higher up natural spectra fall as fast as gentle filters
_SHARP_DROP_ABOVE_HZ = 7000  # lower down a formant or a harmonic is as sharp
_LOWEST_CUTOFF_HZ = 1500
_MOST_FRAMES = 1000
_LOUDEST = 1e30  # of a power: more is no audio, and would overflow
_DYNAMIC_RANGE_DB = 90.0  # below the loudest band; deeper levels are dither and rounding


class CutoffDetector:
    """`detect_cutoff` of a signal of any length that comes in blocks, in bounded memory.

    It keeps the power spectra of a bounded number of frames: of every one, or every second, fourth, …, of the whole.
    """

    def __init__(self, sr: int) -> None:
        self.sr = sr
        self.n_fft = 2 ** round(math.log2(sr / 23.4375))
        self._held = torch.zeros(1, 0)
        self._frame = 0  # number of the frame that the held samples begin with
        self._every = 1
        self._powers = torch.zeros(0, self.n_fft // 2 + 1)

    def add(self, x: Tensor | np.ndarray) -> None:
        """`(C, n)`, the next samples."""
        for block in torch.as_tensor(x).detach().to("cpu", torch.float32).split(1 << 20, dim=-1):
            self._held = torch.cat([self._held.expand(len(block), -1), block], dim=-1)
            hop = self.n_fft // 2
            count = (self._held.shape[-1] - self.n_fft) // hop + 1
            if count <= 0:
                continue
            first = -self._frame % self._every
            if first < count:
                frames = self._held.unfold(-1, self.n_fft, hop)[:, first :: self._every]
                self._powers = torch.cat([self._powers, self._power(frames)])
            while len(self._powers) > _MOST_FRAMES:
                self._powers, self._every = self._powers[::2].clone(), 2 * self._every
            self._frame += count
            self._held = self._held[:, count * hop :].clone()

    def _power(self, frames: Tensor) -> Tensor:
        """`(C, n, T)` -> `(n, F)`, of the loudest channel in each bin."""
        spectrum = torch.fft.rfft(frames * torch.hann_window(frames.shape[-1]), self.n_fft)
        return (spectrum.real.square() + spectrum.imag.square()).amax(0).nan_to_num(_LOUDEST, _LOUDEST).clamp(max=_LOUDEST)

    def cutoff_hz(self) -> float:
        """What `detect_cutoff` says of all that was added."""
        spectrum = self._loud_spectrum()
        return self.sr / 2 if spectrum is None else _find_edge(spectrum, self.sr)

    def _loud_spectrum(self) -> np.ndarray | None:
        """Level in dB (arbitrary reference) that 3 % of the frames exceed, per bin of about 23 Hz, lines removed; `(F,)`."""
        power = self._powers
        if not len(power) and self._held.shape[-1] >= self.n_fft // 4:
            power = self._power(self._held[:, None])
        if not len(power):
            return None
        loud = power.topk(max(1, round(0.03 * len(power))), dim=0).values[-1].double().numpy()
        if not loud.max() > 0:
            return None
        level = 10 * np.log10(loud + 1e-30)
        return np.median(np.lib.stride_tricks.sliding_window_view(np.pad(level, 3, mode="edge"), 7), axis=-1)


def _running_means(level: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of the `width` points before each point, and of the `width` points from it on (fewer at the ends)."""
    total = np.concatenate([[0.0], np.cumsum(level)])
    i = np.arange(len(level))
    first, last = np.maximum(i - width, 0), np.minimum(i + width, len(level))
    return (total[i] - total[first]) / np.maximum(i - first, 1), (total[last] - total[i]) / (last - i)


def _drop(level: np.ndarray, width: int, gap: int, reach: int, context: int = 0) -> np.ndarray:
    """Mean of `width` points below each point over the loudest run of `reach` points anywhere from `gap` above it on.

    With `context`, a peak counts for no more than 3 dB above the mean of that many points below.
    """
    before = _running_means(level, width)[0]
    if context:
        before = np.minimum(before, _running_means(level, context)[0] + 3)
    loudest_above = np.maximum.accumulate(_running_means(level, reach)[1][::-1])[::-1]
    drop = before - loudest_above[np.minimum(np.arange(len(level)) + gap, len(level) - 1)]
    drop[len(level) - gap - 2 :] = 0
    return drop


def _fit_edge(level: np.ndarray, candidates: np.ndarray, edge: int, floor: float) -> tuple[int, float, float]:
    """Best (grid index of the -6 dB point, order, level of the pass band) of a low-pass over a straight line over a floor.

    The model is max(a + b·u - 20·log10(1 + 2^(2·order·u)), floor), u in octaves from the candidate: Butterworth,
    forward and backward. a and b by least squares, candidate and order by search over the mean absolute error.
    """
    below_floor = np.flatnonzero(level[edge:] <= floor + 3)
    stop = min(edge + (int(below_floor[0]) if len(below_floor) else len(level)) + 3, len(level))
    points = np.arange(max(0, edge - _GRID), stop)
    y = level[points]
    u = ((points - candidates[:, None]) / _GRID)[:, None]  # (candidates, 1, points)
    attenuation = 20 * np.log10(1 + np.minimum(2.0 ** (2 * _ORDERS[:, None] * u), 1e12))
    near = u > -0.6
    weight = ((attenuation < 60) & (y > floor + 3) & near).astype(float)
    total = weight.sum(-1) + 1e-9
    mean_u = (weight * u).sum(-1) / total
    mean_y = (weight * (y + attenuation)).sum(-1) / total
    du = u - mean_u[..., None]
    slope = (weight * du * (y + attenuation - mean_y[..., None])).sum(-1) / ((weight * du**2).sum(-1) + 1e-9)
    slope = np.clip(slope, -30, 10)  # dB per octave, what natural spectra do
    passband = mean_y - slope * mean_u
    model = np.maximum(passband[..., None] + slope[..., None] * u - attenuation, floor)
    error = (np.abs(y - model) * near).sum(-1) / near.sum(-1)
    distance = np.maximum((edge - candidates) / _GRID - 0.15, 0)[:, None]
    error += 5 * distance + 0.05 * np.abs(slope + 6)
    c, o = np.unravel_index(np.argmin(error), error.shape)
    return int(candidates[c]), float(_ORDERS[o]), float(passband[c, o])


def detect_cutoff(x: Tensor | np.ndarray, sr: int) -> float:
    """Frequency in Hz where the content of a signal ends; `sr / 2` for full band, silence, or too short a clip.

    Looks for the steepest drop of the spectrum after which nothing comes back, over three widths (an octave, a sixth
    of an octave, a few hundred Hz), and places the cut-off at the -6 dB point of the low-pass that fits it best.
    Levels do not matter, only the shape: hum, offset, gain and a noise floor under the edge are all alike.

    Args:
        x: `(T,)` or `(C, T)`; the channels' union is taken.
        sr: sample rate in Hz.
    """
    signals = torch.as_tensor(np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x).detach()
    detector = CutoffDetector(sr)
    if signals.numel():
        detector.add(signals.reshape(-1, signals.shape[-1]))
    return detector.cutoff_hz()


def _find_edge(spectrum: np.ndarray, sr: int) -> float:
    """Frequency in Hz of the edge in a `CutoffDetector._loud_spectrum`; `sr / 2` where there is none."""
    nyquist = sr / 2
    if nyquist < 2 * _LOWEST_CUTOFF_HZ:
        return nyquist
    bin_hz = nyquist / (len(spectrum) - 1)

    def bins(hz: float) -> int:
        return max(1, round(hz / bin_hz))

    spectrum = np.maximum(spectrum, spectrum[bins(100) :].max() - _DYNAMIC_RANGE_DB)
    bin_index = np.arange(len(spectrum))
    hz = _LOWEST_CUTOFF_HZ / 2 * 2 ** np.arange(0, math.log2(2 * nyquist / _LOWEST_CUTOFF_HZ), 1 / _GRID)

    def on_grid(values: np.ndarray) -> np.ndarray:
        return np.interp(hz / bin_hz, bin_index, values)

    level = on_grid(spectrum)
    octave = np.where(hz < _OCTAVE_DROP_BELOW_HZ, _drop(level, 48, 24, 12) / np.interp(hz, *_OCTAVE_DROP), 0)
    steep = _drop(level, 4, 4, 4, context=24) / _STEEP_DROP
    sharp = on_grid(_drop(spectrum, bins(400), bins(200), bins(300), context=bins(3000))) / _SHARP_DROP
    score = np.maximum(np.maximum(octave, steep), np.where(hz > _SHARP_DROP_ABOVE_HZ, sharp, 0))
    score[hz < _LOWEST_CUTOFF_HZ] = 0
    edge = int(np.argmax(score))
    if score[edge] < 1:
        return nyquist
    nearby = slice(edge, edge + _GRID // 2)
    if steep[nearby].max() >= 1:  # the octave sees an edge coming before it is there
        edge += int(np.argmax(steep[nearby]))

    floor = float(_running_means(level, 12)[1][min(edge + 12, len(level) - 2) :].max())
    depth = level[max(edge - 6, 0) : edge + 1].max() - floor
    wall = on_grid(_drop(spectrum, bins(150), bins(150), bins(200)))[max(edge - 4, 0) : edge + 5].max() > 0.6 * depth
    octaves_back = 0.7  # how far before the drop the pass band may end
    if wall or max(octave[edge], steep[edge]) < 1:
        octaves_back = 0.1
    elif steep[edge] >= 1:
        octaves_back = 0.35
    first = max(edge - _GRID + 12, 12, edge - int(octaves_back * _GRID))
    last = max(first + 1, min(edge + _GRID // 6, len(level) - 2))
    index, order, passband = _fit_edge(level, np.arange(first, last), edge, floor)
    cutoff = float(hz[index])
    if wall or order >= 24:  # sharper than the grid: read it off the linear spectrum
        low, high = bins(0.93 * cutoff), min(bins(1.08 * cutoff) + 1, len(spectrum) - 1)
        above = np.flatnonzero(spectrum[low:high] >= passband - min(10.0, (passband - floor) / 2))
        if len(above):
            cutoff = float(low + above[-1] + 0.5) * bin_hz
    return nyquist if cutoff > 0.97 * nyquist else cutoff
