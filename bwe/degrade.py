"""Turns full-band recordings into training pairs: `sample()` draws the parameters, `apply()` uses them.

Everything that is random is in the parameters (noise included, by its seed), so the same parameters give the same result
on any device and for any split of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from bwe import dsp
from bwe._torchaudio import torchaudio

Resampler = Literal["sinc6", "sinc16", "sinc64", "kaiser", "polyphase", "linear", "fft"]
RESAMPLERS: tuple[Resampler, ...] = get_args(Resampler)

# Roll-off of torchaudio's Hann-windowed sinc kernels relative to the lower Nyquist frequency.
_SINC_ROLLOFF = 0.99
# Rates of the resampler families are multiples of this, so that the polyphase kernels stay small.
_RATE_GRID = 500


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `Degradation` draws from; every range is uniform.

    Attributes:
        cutoff_hz: cut-off range in Hz.
        families: IIR low-pass families (applied forward and backward).
        resamplers: down- and up-sampling pairs, drawn as often as all IIR families together when `iir_share` is 0.5.
        iir_share: share of clips degraded by an IIR filter rather than by a resampler.
        order: range of IIR orders, both ends included.
        gain_db: level change of target and input alike.
        tilt_db, slope_db: random equalisation of target and input alike, as microphones and rooms do it: a gain linear in
            frequency that reaches `tilt_db` at half the sample rate, and one of `slope_db` per octave, both from 1 kHz up.
        clean_share: share of clips that get no equalisation and no noise, so that a known source is learned as it is.
        equalise_share: share of the other clips with equalisation; the noise shares are of the other clips, too.
        noise_exponent: spectral exponent of the noise, power falling as 1 / f**exponent (0 white, 1 pink, -1 blue).
        noise_dbfs: RMS level of the background noise in dB re full scale.
        noise_share: share of clips with background noise in target and input alike.
        rumble_dbfs, rumble_share: the same of noise that falls by 6 to 12 dB an octave: handling, wind, ventilation.
        input_noise_share: share of clips with additional noise in the input only.
        cutoff_jitter: relative error (uniform, +-) of the cut-off that the generator is told.
    """

    cutoff_hz: tuple[float, float] = (2_000.0, 16_000.0)
    families: tuple[dsp.FilterFamily, ...] = dsp.FILTER_FAMILIES
    resamplers: tuple[Resampler, ...] = RESAMPLERS
    iir_share: float = 0.5
    order: tuple[int, int] = (2, 10)
    gain_db: tuple[float, float] = (-15.0, 3.0)
    clean_share: float = 0.1
    tilt_db: tuple[float, float] = (-3.0, 28.0)
    slope_db: tuple[float, float] = (-2.0, 2.0)
    equalise_share: float = 0.8
    noise_exponent: tuple[float, float] = (-1.0, 1.0)
    noise_dbfs: tuple[float, float] = (-90.0, -55.0)
    noise_share: float = 0.75
    rumble_dbfs: tuple[float, float] = (-70.0, -30.0)
    rumble_share: float = 0.6
    input_noise_share: float = 0.1
    cutoff_jitter: float = 0.03


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """One clip's degradation, as drawn by `Degradation.sample`; units as in `Config`.

    `filter` is an IIR family or a resampler; `noise`, `rumble` and `input_noise` are (level in dBFS, spectral exponent, seed),
    level `-inf` for none. `told` is the factor on the reported cut-off.
    """

    filter: str
    cutoff_hz: float
    order: int
    ripple_db: float
    attenuation_db: float
    gain_db: float
    tilt_db: float
    slope_db: float
    noise: tuple[float, float, int]
    rumble: tuple[float, float, int]
    input_noise: tuple[float, float, int]
    told: float


class Pair(NamedTuple):
    """A training pair: `input` and `target` `(B, 1, T)`, and the cut-off that the generator is told, `(B,)` in Hz."""

    input: Tensor
    target: Tensor
    cutoff_hz: Tensor


def coloured_noise(length: int, level_dbfs: float, exponent: float, seed: int) -> np.ndarray:
    """Gaussian noise `(length,)` float32 of the given RMS, its power falling as 1 / f**exponent above 20 Hz at 48 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(length))
    bins = np.arange(len(spectrum), dtype=np.float64)
    spectrum *= np.maximum(bins, max(1.0, length / 2400)) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, length)
    rms = np.sqrt(np.mean(noise**2)) + 1e-20
    return (noise * (10 ** (level_dbfs / 20) / rms)).astype(np.float32)


def equalise(x: Tensor, sample_rate: int, tilt_db: float, slope_db: float) -> Tensor:
    """Zero-phase equalisation of `(..., T)` above 1 kHz: `tilt_db` at half the sample rate, linearly, and `slope_db` an
    octave. The gain is smooth over hundreds of Hz, so its impulse response is far shorter than any crop."""
    spectrum = torch.fft.rfft(x)
    frequency = torch.linspace(0, sample_rate / 2, spectrum.shape[-1], device=x.device).clamp(min=1000.0)
    gain = tilt_db * (frequency - 1000) / (sample_rate / 2 - 1000) + slope_db * torch.log2(frequency / 1000)
    return torch.fft.irfft(spectrum * 10 ** (gain / 20), x.shape[-1])


def through_resampler(x: Tensor, sample_rate: int, resampler: Resampler, cutoff_hz: float) -> tuple[Tensor, float]:
    """Takes `(..., T)` down to a rate of about `2 * cutoff_hz` and back.

    Returns:
        the band-limited signal at `sample_rate`, same length, and the frequency in Hz where its content ends.
    """
    rate = max(_RATE_GRID, round(2 * cutoff_hz / _RATE_GRID) * _RATE_GRID)
    length, nyquist = x.shape[-1], rate / 2
    if resampler == "fft":
        return dsp.band_limit(x, sample_rate, nyquist), nyquist
    if resampler == "kaiser":
        return dsp.resample(dsp.resample(x, sample_rate, rate), rate, sample_rate)[..., :length], nyquist * 0.945
    if resampler == "linear":
        low = dsp.resample(x, sample_rate, rate).numpy()
        position = np.arange(length) * (rate / sample_rate)
        left = np.minimum(position.astype(np.int64), low.shape[-1] - 1)
        right = np.minimum(left + 1, low.shape[-1] - 1)
        y = low[..., left] + (low[..., right] - low[..., left]) * (position - left).astype(np.float32)
        return torch.from_numpy(y), nyquist * 0.97
    if resampler == "polyphase":
        gcd = np.gcd(rate, sample_rate)
        low = signal.resample_poly(x.numpy(), rate // gcd, sample_rate // gcd, axis=-1)
        y = signal.resample_poly(low, sample_rate // gcd, rate // gcd, axis=-1)[..., :length]
        return torch.from_numpy(np.ascontiguousarray(y, dtype=np.float32)), nyquist
    width = int(resampler.removeprefix("sinc"))
    resample = torchaudio.functional.resample
    low_rate = resample(x, sample_rate, rate, lowpass_filter_width=width, rolloff=_SINC_ROLLOFF)
    y_rate: Tensor = resample(low_rate, rate, sample_rate, lowpass_filter_width=width, rolloff=_SINC_ROLLOFF)
    return y_rate[..., :length], nyquist * _SINC_ROLLOFF


class Degradation:
    """Low-pass filters, resamplers, gain and background noise, drawn independently for each clip."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()

    def sample(self, rng: np.random.Generator, batch: int) -> list[Parameters]:
        """Draws the parameters of `batch` clips."""
        return [self._sample_one(rng) for _ in range(batch)]

    def _sample_one(self, rng: np.random.Generator) -> Parameters:
        c = self.config

        clean = rng.random() < c.clean_share

        def noise(
            share: float, dbfs: tuple[float, float] = c.noise_dbfs, exponents: tuple[float, float] = c.noise_exponent
        ) -> tuple[float, float, int]:
            level, exponent, seed = rng.uniform(*dbfs), rng.uniform(*exponents), int(rng.integers(2**31))
            present = rng.random() < share and not clean
            return (level if present else -np.inf, exponent, seed)

        equalised = rng.random() < c.equalise_share and not clean
        kinds: tuple[str, ...] = c.families if rng.random() < c.iir_share else c.resamplers
        return Parameters(
            filter=str(rng.choice(kinds)),
            cutoff_hz=float(rng.uniform(*c.cutoff_hz)),
            order=int(rng.integers(c.order[0], c.order[1] + 1)),
            ripple_db=float(10 ** rng.uniform(-3, 0)),
            attenuation_db=float(rng.uniform(40, 80)),
            gain_db=float(rng.uniform(*c.gain_db)),
            tilt_db=float(rng.uniform(*c.tilt_db)) * equalised,
            slope_db=float(rng.uniform(*c.slope_db)) * equalised,
            noise=noise(c.noise_share),
            rumble=noise(c.rumble_share, c.rumble_dbfs, (2.0, 4.0)),
            input_noise=noise(c.input_noise_share),
            told=float(1 + rng.uniform(-c.cutoff_jitter, c.cutoff_jitter)),
        )

    def apply(self, x: Tensor, sample_rate: int, parameters: list[Parameters]) -> Pair:
        """Makes training pairs of clean clips.

        Args:
            x: `(B, 1, T)`, not modified.
            sample_rate: Hz.
            parameters: one per clip.
        """
        pairs = [self._apply_one(clip, sample_rate, p) for clip, p in zip(x.cpu(), parameters, strict=True)]
        inputs, targets, cutoffs = zip(*pairs, strict=True)
        stack = torch.stack
        return Pair(stack(inputs).to(x.device), stack(targets).to(x.device), torch.tensor(cutoffs, device=x.device))

    @staticmethod
    def _apply_one(x: Tensor, sample_rate: int, p: Parameters) -> tuple[Tensor, Tensor, float]:
        target = x * 10 ** (p.gain_db / 20)
        if p.tilt_db or p.slope_db:
            target = equalise(target, sample_rate, p.tilt_db, p.slope_db)
        for noise in (p.noise, p.rumble):
            if np.isfinite(noise[0]):
                target = target + torch.from_numpy(coloured_noise(x.shape[-1], *noise))
        narrow = target
        if np.isfinite(p.input_noise[0]):
            narrow = narrow + torch.from_numpy(coloured_noise(x.shape[-1], *p.input_noise))
        if p.filter in dsp.FILTER_FAMILIES:
            cutoff = min(p.cutoff_hz, 0.49 * sample_rate)
            filtered = dsp.lowpass(
                narrow.numpy().astype(np.float64), sample_rate, cutoff, p.filter, p.order, p.ripple_db, p.attenuation_db
            )
            narrow = torch.from_numpy(filtered.astype(np.float32))
        else:
            narrow, cutoff = through_resampler(narrow, sample_rate, p.filter, p.cutoff_hz)  # type: ignore[arg-type]
        return narrow, target, cutoff * p.told
