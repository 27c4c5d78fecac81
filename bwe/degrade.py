"""Turns full-band recordings into training pairs: `sample()` draws the parameters, `apply()` uses them; `degrade_file` makes
one file worse.

Everything that is random is in the parameters (noise included, by its seed), so the same parameters give the same result
on any device and for any split of a batch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from bwe import audio, codecs, dsp
from bwe._torchaudio import torchaudio
from bwe.errors import AudioError, ConfigError, nearest

Resampler = Literal["sinc6", "sinc16", "sinc64", "kaiser", "polyphase", "linear", "fft", "hold"]
RESAMPLERS: tuple[Resampler, ...] = get_args(Resampler)

# What clips are coded with: codec rate in Hz, bit rates in bit/s, those at which the encoder's low-pass does not depend on the
# clip. Opus chooses its bandwidth by bit rate and content near 9 and from 11 to 14 kbit/s, MP3 of 80 kbit/s and more empties
# bands below its low-pass.
CODEC_SETTINGS: dict[codecs.Codec, dict[int, tuple[int, ...]]] = {
    "mp3": {
        16_000: (16_000, 24_000, 32_000),
        24_000: (24_000, 32_000, 48_000),
        44_100: (32_000, 40_000, 48_000, 56_000, 64_000),
        48_000: (32_000, 40_000, 48_000, 56_000, 64_000),
    },
    "opus": {
        16_000: (8_000, 11_000, 20_000, 32_000),
        24_000: (11_000, 20_000, 32_000),
        48_000: (11_000, 20_000, 32_000, 64_000),
    },
    "vorbis": {
        16_000: (48_000,),
        24_000: (48_000, 64_000),
        44_100: (48_000, 64_000, 96_000),
        48_000: (48_000, 80_000, 96_000),
    },
    "aac": {
        16_000: (32_000,),
        24_000: (24_000, 32_000, 48_000),
        44_100: (24_000, 32_000, 48_000, 64_000, 96_000),
        48_000: (24_000, 48_000, 96_000),
    },
    "gsm": {8_000: (13_000,)},
    "amr": {8_000: (4_750, 5_150, 5_900, 6_700, 7_400, 7_950, 10_200, 12_200)},
    "ulaw": {8_000: (64_000,)},
    "alaw": {8_000: (64_000,)},
}
# Codecs start from silence; this much of the clip, mirrored, goes ahead of it and behind it.
_CODEC_MARGIN_S = 0.1
# LAME's low-pass of 16 kHz and more falls from -3 to -40 dB within 200 to 300 Hz (measured).
_SHELF_WIDTH_HZ = 250.0

# Roll-off of torchaudio's Hann-windowed sinc kernels relative to the lower Nyquist frequency.
_SINC_ROLLOFF = 0.99
# Rates of the resampler families are multiples of this, so that the polyphase kernels stay small.
_RATE_GRID = 500


@dataclass(frozen=True, kw_only=True)
class Bone:
    """Simulated body conduction: what a microphone in the ear or at the throat hears of the wearer's voice.

    Attributes:
        cutoff_hz, q: of the second-order low-pass that runs forward and backward (Hauret et al. 2023, EBEN).
        spread: range of the random factors on cut-off and Q.
        response: (Hz, dB) of a measured response, see `estimate_response`, that takes the place of the low-pass; the factor
            on the cut-off shifts it along the frequency axis.
        lowpass_share: share of bodies that get the low-pass although there is a response: other sensors than the measured one.
        deviation_db: standard deviation of the smooth random curve that is added to either.
        noise_dbfs, noise_exponent, noise_share: RMS level of the noise of the body in the input, its spectral exponent (a
            preamplifier's hiss included), share of clips that have it.
        flip_share: share of clips with inverted polarity.
        wander_db, wander_rad: ranges that each clip's standard deviations of a gain and a phase are drawn from, which wander
            over time (80 ms) and frequency (500 Hz). The way from the glottis to the skin is not the one to the lips, and
            both change with every sound: real pairs have a coherence of 0.35 to 0.5 below 700 Hz and under 0.15 above.
        unvoiced_db: range of the loss of sounds without voice, which hardly reach the skin, over that of voiced ones.
        drive: range of the share of the squared signal, which contact adds: harmonics that the air does not have.
    """

    cutoff_hz: float = 600.0
    q: float = 1.0
    spread: tuple[float, float] = (0.8, 1.2)
    response: tuple[tuple[float, float], ...] = ()
    lowpass_share: float = 0.0
    deviation_db: float = 3.0
    noise_dbfs: tuple[float, float] = (-75.0, -45.0)
    noise_exponent: tuple[float, float] = (2.0, 3.0)
    noise_share: float = 0.75
    flip_share: float = 0.5
    wander_db: tuple[float, float] = (0.0, 0.0)
    wander_rad: tuple[float, float] = (0.0, 0.0)
    unvoiced_db: tuple[float, float] = (0.0, 0.0)
    drive: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Air:
    """Noisy air microphones that are heard beside a body microphone.

    Attributes:
        microphones: how many; 0 for none. The talker reaches all at once, the noise from the side.
        snr_db: range of the signal-to-noise ratio at the first of them.
        babble_share, voices: share of clips whose noise is other recordings of the set, and how many, least and most; the
            noise of the others is stationary, its spectral exponent from `exponent`.
        spacing_s: largest delay of the noise between two microphones, in seconds (0.25 ms are 8.6 cm).
        mismatch_db: largest difference in gain between microphones.
    """

    microphones: int = 0
    snr_db: tuple[float, float] = (-3.0, 15.0)
    babble_share: float = 0.6
    voices: tuple[int, int] = (2, 6)
    exponent: tuple[float, float] = (0.0, 1.5)
    spacing_s: float = 0.00025
    mismatch_db: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `Degradation` draws from; every range is uniform.

    The band is taken away by one of: an IIR filter, a resampler, a codec, a shelf, a body. Damage, which only the input has,
    comes before that: the cut-off stays what it is, since nothing of the damage is left above it.

    Attributes:
        cutoff_hz: cut-off range in Hz of filters and resamplers.
        curriculum: number of training items over which the lower end of that range falls from its upper end, linearly: from
            little that is missing to the balanced range (AnyBand's easy-to-balanced curriculum). 0 is balanced at once.
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
        noise_heard: only where it is heard below the cut-off: above the median of the clip's own spectrum in the octave below
            it. Noise that cannot be known from the input teaches to make up noise.
        noise_from_hz: only at cut-offs from here up; of a codec, at its own.
        rumble_dbfs, rumble_share: the same of noise that falls by 6 to 12 dB an octave: handling, wind, ventilation.
        file_bits: width of PCM that target and input alike are rounded to, as most files are: the floor under every recording,
            which gain and equalisation have moved. 0: not.
        input_noise_share: share of clips with additional noise in the input only.
        cutoff_jitter: relative error (uniform, +-) of the cut-off that the generator is told.
        eq_db: standard deviation in dB of a smooth random equalisation above 1 kHz, for the clips of `equalise_share`.
        codec_share, codecs: share of clips that are coded, in place of filter or resampler, and with what; AAC and AMR need
            the extra `formats`. `CODEC_SETTINGS` has their rates.
        shelf_share, shelves_hz: share of clips with the steep low-pass of an MP3 encoder, and where LAME has it: mono and
            stereo of 64 to 320 kbit/s (measured), 16 kHz for older encoders.
        bone_share, bone: share of clips that go through a body.
        air: what is heard beside it.
        clip_share, clip_db: share of clips that are hard-clipped, and how far below their peak.
        quantise_share, quantise_bits: share of clips that are rounded to PCM of one of these widths, without dither.
        dropout_share, dropout_ms, dropout_loss: share of clips that lose packets, the packets' duration, and the probability
            of a loss. Half of these clips have silence there, the others the packet before.
    """

    cutoff_hz: tuple[float, float] = (2_000.0, 16_000.0)
    curriculum: int = 0
    families: tuple[dsp.FilterFamily, ...] = dsp.FILTER_FAMILIES
    # Without "hold", whose images are too strong to be met by default.
    resamplers: tuple[Resampler, ...] = RESAMPLERS[:-1]
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
    noise_heard: bool = False
    noise_from_hz: float = 0.0
    rumble_dbfs: tuple[float, float] = (-70.0, -30.0)
    rumble_share: float = 0.6
    file_bits: int = 0
    input_noise_share: float = 0.1
    cutoff_jitter: float = 0.03
    eq_db: float = 0.0
    codec_share: float = 0.0
    codecs: tuple[codecs.Codec, ...] = get_args(codecs.Codec)
    shelf_share: float = 0.0
    shelves_hz: tuple[float, ...] = (11_000.0, 15_200.0, 16_000.0, 16_600.0, 17_300.0, 18_700.0, 19_400.0, 20_100.0)
    bone_share: float = 0.0
    bone: Bone = Bone()
    air: Air = Air()
    clip_share: float = 0.0
    clip_db: tuple[float, float] = (1.0, 12.0)
    quantise_share: float = 0.0
    quantise_bits: tuple[int, ...] = (8, 16)
    dropout_share: float = 0.0
    dropout_ms: tuple[float, float] = (10.0, 60.0)
    dropout_loss: tuple[float, float] = (0.02, 0.15)

    def __post_init__(self) -> None:
        if (total := self.codec_share + self.shelf_share + self.bone_share) > 1:
            raise ConfigError(f"codec_share, shelf_share and bone_share add up to {total:g}; no more than 1 can be shared out")


class Body(NamedTuple):
    """One drawn body: Q of the low-pass, or the response as (Hz, dB) points that replaces it; (standard deviation in dB, seed)
    of the random curve; noise as in `Parameters`; the sign of the polarity; (dB, radian, seed) of what wanders; loss of
    unvoiced sounds in dB; share of the squared signal."""

    q: float
    response: tuple[tuple[float, float], ...]
    deviation: tuple[float, int]
    noise: tuple[float, float, int]
    polarity: float
    wander: tuple[float, float, int] = (0.0, 0.0, 0)
    unvoiced_db: float = 0.0
    drive: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """One clip's degradation, as drawn by `Degradation.sample`; units as in `Config`.

    `filter` is an IIR family, a resampler, a codec, "shelf" or "bone"; `noise`, `rumble` and `input_noise` are (level in dBFS,
    spectral exponent, seed), level `-inf` for none. `told` is the factor on the reported cut-off. `eq` is (standard deviation
    in dB, seed), `codec` (rate, bit rate), `dropout` (packet in s, probability of a loss, whether the last packet is repeated,
    seed); a `clip_db`, `bits`, `file_bits` or loss of 0 is none.
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
    eq: tuple[float, int] = (0.0, 0)
    codec: tuple[int, int] = (0, 0)
    clip_db: float = 0.0
    bits: int = 0
    dropout: tuple[float, float, bool, int] = (0.0, 0.0, False, 0)
    file_bits: int = 0
    noise_heard: bool = False
    noise_from_hz: float = 0.0
    body: Body | None = None


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


def apply_response(x: Tensor, sample_rate: int, hz: np.ndarray, gain_db: np.ndarray) -> Tensor:
    """Zero-phase filter of `(..., T)` with the gain `gain_db` at the frequencies `hz`, both `(F,)`, ascending and above 0: on
    straight lines over log frequency between them, constant below the first and above the last."""
    spectrum = torch.fft.rfft(x)
    frequency = np.linspace(0, sample_rate / 2, spectrum.shape[-1]).clip(min=1e-3)
    gain = 10 ** (np.interp(np.log(frequency), np.log(hz), gain_db) / 20)
    return torch.fft.irfft(spectrum * torch.from_numpy(gain).to(x), x.shape[-1])


def random_curve(std_db: float, seed: int, low_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random response for `apply_response`: `(hz, dB)`, every half octave from `low_hz` to above 24 kHz, normal with
    standard deviation `std_db`, the first 0 dB."""
    hz = low_hz * 2.0 ** np.arange(0, np.log2(48_000 / low_hz), 0.5)
    gain = np.random.default_rng(seed).normal(0, std_db, len(hz))
    gain[0] = 0
    return hz, gain


def hard_clip(x: Tensor, below_peak_db: float) -> Tensor:
    """Hard clipping of `(..., T)` at `below_peak_db` below the peak of the whole."""
    level = float(x.abs().max()) * 10 ** (-below_peak_db / 20)
    return x.clamp(-level, level)


def quantise(x: Tensor, bits: int) -> Tensor:
    """Rounds to the steps of linear PCM of `bits` bits (full scale ±1), without dither and without clipping."""
    return torch.round(x * 2 ** (bits - 1)) / 2 ** (bits - 1)


def drop_packets(x: Tensor, sample_rate: int, packet_s: float, loss: float, repeat: bool, seed: int) -> Tensor:
    """Loses packets of `packet_s` seconds of `(..., T)`, each with the probability `loss`: silence in their place or, with
    `repeat`, the last packet that arrived. The first one always arrives."""
    packet, sample = max(1, round(packet_s * sample_rate)), np.arange(x.shape[-1])
    number = sample // packet
    lost = np.random.default_rng(seed).random(number[-1] + 1 if len(number) else 0) < loss
    lost[:1] = False
    if not repeat:
        return x * torch.from_numpy(~lost[number]).to(x)
    arrived = np.maximum.accumulate(np.where(lost, 0, np.arange(len(lost))))
    return x[..., torch.from_numpy(arrived[number] * packet + sample % packet)]


def codec(x: Tensor, sample_rate: int, name: codecs.Codec, bitrate: int, rate: int | None = None) -> Tensor:
    """Codes and decodes `(..., T)`, each signal by itself: same shape, sample-aligned with the input.

    Args:
        x: float; what exceeds full scale is coded at a lower level instead of being clipped.
        sample_rate: Hz.
        name: a codec of `codecs.transcode`.
        bitrate: bit/s, without meaning for "gsm", "ulaw" and "alaw".
        rate: Hz at which the codec runs; by default its highest of `CODEC_SETTINGS` up to `sample_rate`.

    Raises:
        AudioError: no such codec, or it does not take this rate.
        ImportError: "aac" and "amr" without the extra `formats`.
    """
    if name not in CODEC_SETTINGS:
        raise AudioError(f"no codec {name!r}; use one of {', '.join(CODEC_SETTINGS)}")
    rate = rate or codec_rate(name, sample_rate)
    if x.numel() == 0:
        return x.clone()
    margin = round(_CODEC_MARGIN_S * sample_rate)
    mirrored = np.pad(x.reshape(-1, x.shape[-1]).float().numpy(), ((0, 0), (margin, margin)), mode="reflect")
    coded = dsp.resample(torch.from_numpy(mirrored), sample_rate, rate).numpy()
    for row in coded:
        level = max(1.0, float(np.abs(row).max()))
        row[:] = codecs.transcode(row / level, rate, name, bitrate) * level
    decoded = dsp.resample(torch.from_numpy(coded), rate, sample_rate)
    return decoded[:, margin : margin + x.shape[-1]].reshape(x.shape).to(x.dtype)


def codec_rate(name: codecs.Codec, sample_rate: int) -> int:
    """The rate in Hz that a codec runs at by default: its highest of `CODEC_SETTINGS` up to `sample_rate`, else its lowest."""
    rates = CODEC_SETTINGS[name]
    return max([rate for rate in rates if rate <= sample_rate], default=min(rates))


@lru_cache(maxsize=256)
def codec_cutoff(name: codecs.Codec, bitrate: int, rate: int, sample_rate: int) -> float:
    """Where the band that `codec` keeps ends, in Hz: the highest frequency at which white noise comes back with no less than a
    tenth of its power. At the `CODEC_SETTINGS`, encoders low-pass by bit rate and not by content: speech and music end within
    a few per cent of this."""
    noise = torch.from_numpy(coloured_noise(sample_rate, -20.0, 0.0, seed=0))
    coded = codec(noise, sample_rate, name, bitrate, rate)
    before, after = (dsp.power_spectrogram(s, 1024, 512).mean(-1) for s in (noise, coded))
    ratio = torch.nn.functional.avg_pool1d((after / before)[None], 5, 1, 2, count_include_pad=False)[0]
    return min(float(torch.nonzero(ratio > 0.1).max() + 0.5) / 1024, 0.5) * sample_rate


def bone_lowpass(x: Tensor, sample_rate: int, cutoff_hz: float, q: float) -> Tensor:
    """Second-order low-pass (R. Bristow-Johnson, Audio EQ Cookbook) of `(..., T)`, forward, then over the reversed result, and
    reversed back: no delay, twice the gain in dB, so that it is `40 * log10(q)` dB at `cutoff_hz`."""
    w = 2 * np.pi * min(cutoff_hz, 0.49 * sample_rate) / sample_rate
    alpha, cosine = np.sin(w) / (2 * q), np.cos(w)
    sos = np.array([[(1 - cosine) / 2, 1 - cosine, (1 - cosine) / 2, 1 + alpha, -2 * cosine, 1 - alpha]])
    sos /= sos[0, 3]
    extension = min(x.shape[-1] - 1, int(8 * sample_rate / cutoff_hz * max(1.0, q)))
    y = signal.sosfiltfilt(sos, x.numpy().astype(np.float64), axis=-1, padlen=extension)
    return torch.from_numpy(y.astype(np.float32))


def body_noise(length: int, sample_rate: int, level_dbfs: float, exponent: float, seed: int) -> np.ndarray:
    """What a contact microphone picks up of a resting body, `(length,)` float32 of the given RMS: rumble with power falling as
    1 / f**exponent, and heart beats, two thumps at 40 Hz each, 50 to 100 a minute."""
    rng = np.random.default_rng(seed)
    time = np.arange(length) / sample_rate
    period = 60 / rng.uniform(50, 100)
    phase = rng.uniform(0, period)
    beats = np.zeros(length)
    for offset, strength in ((0.0, 1.0), (0.3, 0.6)):
        since = (time - phase - offset + period / 2) % period - period / 2
        beats += strength * np.exp(-((since / 0.03) ** 2)) * np.sin(2 * np.pi * 40 * since)
    noise = coloured_noise(length, 0.0, exponent, seed) + rng.uniform(0, 4) * beats
    return (noise * (10 ** (level_dbfs / 20) / (np.sqrt(np.mean(noise**2)) + 1e-20))).astype(np.float32)


class Response(NamedTuple):
    """Body response over air at the frequencies `hz` `(F,)`, above 0: gain in dB and coherence (0 to 1), both `(F,)`; for each
    pair the lag of the body signal in samples and its polarity, 1 or -1."""

    hz: np.ndarray
    gain_db: np.ndarray
    coherence: np.ndarray
    lags: tuple[int, ...]
    polarities: tuple[int, ...]

    def ratio(self, per_octave: int = 3) -> tuple[tuple[float, float], ...]:
        """Ratio of body to air power as (Hz, dB), averaged over bands of 1 / `per_octave` octave, for `Bone.response`. Unlike
        `gain_db` it contains what the body signal has that does not come from the air signal."""
        ratio_db = self.gain_db - 10 * np.log10(self.coherence)
        band = np.round(np.log2(self.hz / self.hz[-1]) * per_octave)
        return tuple((float(self.hz[band == k].mean()), float(ratio_db[band == k].mean())) for k in np.unique(band))


def estimate_response(
    body: list[np.ndarray], air: list[np.ndarray], sample_rate: int, segment_s: float = 0.064, max_lag_s: float = 0.0025
) -> Response:
    """Response of a body from recordings of both microphones, `(T,)` each, pair by pair of equal length.

    Each pair is aligned, lag and polarity, at the largest magnitude of its cross-correlation between 80 and 1000 Hz, up to
    `max_lag_s`: less than a pitch period, since voice resembles itself one period on. Then comes the H1 estimator, to which
    noise in the body signal is no bias: |cross-spectrum| / air spectrum, both averaged over the segments (`segment_s`) of all
    pairs (Bendat & Piersol, Random Data, section 6.1).

    Raises:
        AudioError: no pairs, a different number of signals, a pair of different lengths or too short for a segment.
    """
    if not body or len(body) != len(air) or any(b.shape != a.shape for b, a in zip(body, air, strict=True)):
        raise AudioError(f"{len(body)} body and {len(air)} air recordings do not pair up; give as many, of equal lengths")
    limit, segment = round(max_lag_s * sample_rate), 2 * round(segment_s * sample_rate / 2)
    if (shortest := min(map(len, air))) < segment + limit:
        raise AudioError(f"a recording of {shortest} samples is too short for a response; give {segment + limit} or more")
    band = signal.butter(2, (80, 1000), "bandpass", fs=sample_rate, output="sos")
    lags, polarities, spectra = [], [], []
    for b, a in zip(body, air, strict=True):
        b, a = b.astype(np.float64), a.astype(np.float64)
        lag, correlation = dsp.best_lag(signal.sosfiltfilt(band, a)[None], signal.sosfiltfilt(band, b)[None], limit)
        lags.append(lag)
        polarities.append(int(np.sign(correlation)))
        b, a = b[max(lag, 0) : len(b) + min(lag, 0)], a[max(-lag, 0) : len(a) - max(lag, 0)]
        options = {"fs": sample_rate, "nperseg": segment, "scaling": "density"}
        pairs = ((a, polarities[-1] * b), (a, a), (b, b))
        spectra.append([len(a) * signal.csd(first, second, **options)[1] for first, second in pairs])
    cross, power_air, power_body = np.sum(spectra, axis=0)
    power_air, power_body, cross = np.abs(power_air) + 1e-30, np.abs(power_body) + 1e-30, np.abs(cross)
    gain = 20 * np.log10(cross / power_air + 1e-10)
    coherence = cross**2 / (power_air * power_body)
    hz = np.fft.rfftfreq(segment, 1 / sample_rate)
    return Response(hz[1:], gain[1:], coherence[1:], tuple(lags), tuple(polarities))


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
        # What is rounded off at the low rate would be missing at the end.
        low_rate = torch.nn.functional.pad(_taken_down(x, sample_rate, rate), (0, 1))
        return dsp.resample(low_rate, rate, sample_rate)[..., :length], nyquist * 0.945
    if resampler == "linear":
        low = _taken_down(x, sample_rate, rate).numpy()
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
    if resampler == "hold":  # of the nearest sample, so that there is no delay
        samples = _taken_down(x, sample_rate, rate)
        nearest = ((2 * np.arange(length) * rate + sample_rate) // (2 * sample_rate)).clip(max=samples.shape[-1] - 1)
        return samples[..., torch.from_numpy(nearest)], nyquist * 0.945
    width = int(resampler.removeprefix("sinc"))
    resample = torchaudio.functional.resample
    low_rate = resample(x, sample_rate, rate, lowpass_filter_width=width, rolloff=_SINC_ROLLOFF)
    y_rate: Tensor = resample(low_rate, rate, sample_rate, lowpass_filter_width=width, rolloff=_SINC_ROLLOFF)
    return y_rate[..., :length], nyquist * _SINC_ROLLOFF


def _taken_down(x: Tensor, sample_rate: int, rate: int) -> Tensor:
    """`x` `(..., T)` at a lower rate; never less than a sample of it, as a clip shorter than half a sample there would be."""
    low = dsp.resample(x, sample_rate, rate)
    return low if low.shape[-1] else x[..., :1]


class Degradation:
    """Drawn independently for each clip: what takes the band away, damage, gain, equalisation and background noise."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()

    def sample(self, rng: np.random.Generator, batch: int, item: int | None = None) -> list[Parameters]:
        """Draws the parameters of `batch` clips; the first is training item `item` of the curriculum, None has it behind."""
        return [self._sample_one(rng, None if item is None else item + i) for i in range(batch)]

    def _sample_one(self, rng: np.random.Generator, item: int | None) -> Parameters:
        c = self.config
        progress = 1.0 if item is None or not c.curriculum else min(1.0, item / c.curriculum)
        lowest, highest = c.cutoff_hz

        clean = rng.random() < c.clean_share

        def noise(
            share: float, dbfs: tuple[float, float] = c.noise_dbfs, exponents: tuple[float, float] = c.noise_exponent
        ) -> tuple[float, float, int]:
            level, exponent, seed = rng.uniform(*dbfs), rng.uniform(*exponents), int(rng.integers(2**31))
            present = rng.random() < share and not clean
            return (level if present else -np.inf, exponent, seed)

        equalised = rng.random() < c.equalise_share and not clean
        kinds: tuple[str, ...] = c.families if rng.random() < c.iir_share else c.resamplers
        p = Parameters(
            filter=str(rng.choice(kinds)),
            cutoff_hz=float(rng.uniform(highest + progress * (lowest - highest), highest)),
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
        # A stream of its own, so that the draws above do not depend on what else is switched on.
        return self._sample_more(np.random.default_rng([p.noise[2], p.rumble[2], p.input_noise[2]]), p, equalised)

    def _sample_more(self, rng: np.random.Generator, p: Parameters, equalised: bool) -> Parameters:
        c, bone = self.config, self.config.bone

        def seed() -> int:
            return int(rng.integers(2**31))

        p = replace(
            p,
            eq=(c.eq_db * equalised, seed()),
            clip_db=float(rng.uniform(*c.clip_db)) * (rng.random() < c.clip_share),
            bits=int(rng.choice(c.quantise_bits)) * (rng.random() < c.quantise_share),
            file_bits=c.file_bits,
            noise_heard=c.noise_heard,
            noise_from_hz=c.noise_from_hz,
            dropout=(
                float(rng.uniform(*c.dropout_ms)) / 1000,
                float(rng.uniform(*c.dropout_loss)) * (rng.random() < c.dropout_share),
                bool(rng.random() < 0.5),
                seed(),
            ),
        )
        way = rng.random()
        if (way := way - c.codec_share) < 0:
            name: codecs.Codec = c.codecs[rng.integers(len(c.codecs))]
            rate = int(rng.choice(list(CODEC_SETTINGS[name])))
            return replace(p, filter=name, codec=(rate, int(rng.choice(CODEC_SETTINGS[name][rate]))))
        if (way := way - c.shelf_share) < 0:
            return replace(p, filter="shelf", cutoff_hz=float(rng.choice(c.shelves_hz)))
        if way - c.bone_share < 0:
            factor, q = rng.uniform(*bone.spread), bone.q * rng.uniform(*bone.spread)
            level = rng.uniform(*bone.noise_dbfs) if rng.random() < bone.noise_share else -np.inf
            body = Body(
                q=float(q),
                response=tuple((hz * float(factor), db) for hz, db in bone.response),
                deviation=(bone.deviation_db, seed()),
                noise=(float(level), float(rng.uniform(*bone.noise_exponent)), seed()),
                polarity=-1.0 if rng.random() < bone.flip_share else 1.0,
                wander=(float(rng.uniform(*bone.wander_db)), float(rng.uniform(*bone.wander_rad)), seed()),
                unvoiced_db=float(rng.uniform(*bone.unvoiced_db)),
                drive=float(rng.uniform(*bone.drive)),
            )
            if rng.random() < bone.lowpass_share:
                body = body._replace(response=())
            return replace(p, filter="bone", cutoff_hz=float(bone.cutoff_hz * factor), body=body)
        return p

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
        if p.eq[0]:
            target = apply_response(target, sample_rate, *random_curve(*p.eq, low_hz=1000.0))
        if np.isfinite(p.noise[0]):
            noise = torch.from_numpy(coloured_noise(x.shape[-1], *p.noise))
            if _belongs(noise, target[0], sample_rate, p):
                target = target + noise
        if np.isfinite(p.rumble[0]):
            target = target + torch.from_numpy(coloured_noise(x.shape[-1], *p.rumble))
        if p.file_bits:
            target = quantise(target, p.file_bits)
        narrow = target
        if np.isfinite(p.input_noise[0]):
            narrow = narrow + torch.from_numpy(coloured_noise(x.shape[-1], *p.input_noise))
        if p.clip_db:
            narrow = hard_clip(narrow, p.clip_db)
        if p.bits:
            narrow = quantise(narrow, p.bits)
        if p.dropout[1]:
            narrow = drop_packets(narrow, sample_rate, *p.dropout)
        narrow, cutoff = _narrow(narrow, sample_rate, p)
        return narrow, target, cutoff * p.told


def _belongs(noise: Tensor, x: Tensor, sample_rate: int, p: Parameters) -> bool:
    """Whether `x` `(T,)` gets the noise `(T,)`: at this cut-off at all, and where it has to be heard, if it lies above the
    median of the spectrum of `x` in the octave below the cut-off."""
    cutoff = _cutoff(sample_rate, p)
    if cutoff < p.noise_from_hz:
        return False
    if not p.noise_heard:
        return True
    octave = slice(int(cutoff / 2 * x.shape[-1] / sample_rate), int(cutoff * x.shape[-1] / sample_rate) + 1)
    window = torch.hann_window(x.shape[-1])
    levels = [torch.fft.rfft(s * window)[octave].abs().median() for s in (noise, x)]
    return bool(levels[0] > levels[1])


def _cutoff(sample_rate: int, p: Parameters) -> float:
    """Where the known band ends in Hz, but for a resampler, which may put it lower."""
    if p.filter in CODEC_SETTINGS:
        rate, bitrate = p.codec
        return codec_cutoff(p.filter, bitrate, rate, sample_rate)
    return min(p.cutoff_hz, 0.49 * sample_rate)


def _narrow(x: Tensor, sample_rate: int, p: Parameters) -> tuple[Tensor, float]:
    """`(1, T)` without its highs, same shape, and where the known band ends in Hz."""
    cutoff = _cutoff(sample_rate, p)
    if p.body is not None:
        return _through_body(x, sample_rate, cutoff, p.body), cutoff
    if p.filter == "shelf":
        return dsp.band_limit(x, sample_rate, cutoff + _SHELF_WIDTH_HZ / 2, _SHELF_WIDTH_HZ), cutoff
    if p.filter in CODEC_SETTINGS:
        rate, bitrate = p.codec
        return codec(x, sample_rate, p.filter, bitrate, rate), cutoff
    if p.filter in dsp.FILTER_FAMILIES:
        filtered = dsp.lowpass(
            x.numpy().astype(np.float64), sample_rate, cutoff, p.filter, p.order, p.ripple_db, p.attenuation_db
        )
        return torch.from_numpy(filtered.astype(np.float32)), cutoff
    return through_resampler(x, sample_rate, p.filter, p.cutoff_hz)  # type: ignore[arg-type]


def wander(x: Tensor, sample_rate: int, std_db: float, std_rad: float, seed: int, unvoiced_db: float = 0.0) -> Tensor:
    """`(1, T)` with a gain and a phase that wander: normal with the given standard deviations every 80 ms and 500 Hz, straight
    lines between; from 1 kHz up that of the phase is twice as large. Frames lose up to `unvoiced_db` as far as their power
    lies above 1 kHz, where that of sounds without voice is."""
    n_fft = 2 * round(0.016 * sample_rate)
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True)[0]
    rows, columns = round(sample_rate / 2 / 500) + 1, x.shape[-1] // round(0.08 * sample_rate) + 2
    knots = np.random.default_rng(seed).standard_normal((1, 2, rows, columns)).astype(np.float32)
    size = tuple(spectrum.shape)
    (field,) = torch.nn.functional.interpolate(torch.from_numpy(knots), size=size, mode="bilinear", align_corners=True)
    gain_db = std_db * field[0]
    if unvoiced_db:
        power = spectrum.abs().square()
        voice = max(1, round(1000 / sample_rate * n_fft))
        above = power[voice:].sum(0) / power.sum(0).clamp(min=1e-12)
        smooth = torch.nn.functional.avg_pool1d(above[None], 5, 1, 2, count_include_pad=False)[0]
        gain_db = gain_db - unvoiced_db * smooth
    hz = torch.linspace(0, sample_rate / 2, len(spectrum))[:, None]
    spectrum = spectrum * torch.polar(10 ** (gain_db / 20), std_rad * (1 + (hz / 1000).clamp(max=1)) * field[1])
    return torch.istft(spectrum[None], n_fft, n_fft // 4, window=window, length=x.shape[-1])


def heard_in_noise(x: Tensor, noise: Tensor, sample_rate: int, air: Air, snr_db: float, rng: np.random.Generator) -> Tensor:
    """`x` and `noise`, both `(1, T)`, as `air.microphones` hear them together, `(A, T)`: the noise scaled to the ratio
    `snr_db`, and late at the second and further microphones by a random delay, the same from one to the next."""
    power = [float(s.square().mean()) for s in (x, noise)]
    if min(power) > 0:
        noise = noise * (power[0] / power[1]) ** 0.5 * 10 ** (-snr_db / 20)
    delay = rng.uniform(-air.spacing_s, air.spacing_s)
    length = x.shape[-1]
    spectrum = torch.fft.rfft(noise)
    hz = torch.arange(spectrum.shape[-1]) * (sample_rate / length)
    heard = []
    for number in range(air.microphones):
        late = torch.fft.irfft(spectrum * torch.polar(torch.ones_like(hz), -2 * torch.pi * hz * delay * number), length)
        gain = 10 ** (rng.uniform(-air.mismatch_db, air.mismatch_db) / 20) if number else 1.0
        heard.append((x + late) * gain)
    return torch.cat(heard)


def _through_body(x: Tensor, sample_rate: int, cutoff_hz: float, body: Body) -> Tensor:
    if body.drive:
        low = dsp.band_limit(x, sample_rate, 1500.0)
        x = x + body.drive * low.square() / low.square().mean().sqrt().clamp(min=1e-5)
    response = np.array(body.response).T
    y = apply_response(x, sample_rate, *response) if body.response else bone_lowpass(x, sample_rate, cutoff_hz, body.q)
    if body.deviation[0]:
        y = apply_response(y, sample_rate, *random_curve(*body.deviation, low_hz=62.5))
    if any(body.wander[:2]) or body.unvoiced_db:
        y = wander(y, sample_rate, *body.wander, body.unvoiced_db)
    y = y * body.polarity
    if np.isfinite(body.noise[0]):
        y = y + torch.from_numpy(body_noise(x.shape[-1], sample_rate, *body.noise))
    return y


def degrade_file(
    in_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    to_hz: float | None = None,
    filter: str = "cheby1",
    order: int = 8,
    codec: str | None = None,
    bone: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> str:
    """Make a file worse and keep its sample rate, length, channels and sample format; returns the closing line.

    Body, low-pass and codec are applied in this order, those that are given. The file is held in memory.

    Args:
        to_hz: cut-off of the low-pass in Hz (not a sample rate), 20 or more.
        filter: "brickwall", an IIR family of `dsp.FILTER_FAMILIES` (forward and backward), or a resampler of
            `RESAMPLERS` down to about twice `to_hz` and back.
        order: of the IIR filters.
        codec: a codec of `codecs.Codec` with its bit rate in bit/s, "mp3:32k"; telephone codecs need none, "gsm".
        bone: "throat", the mean response of throat microphones, or "ear", a low-pass at 600 Hz; noise of the body
            included.
        seed: of what is random, the body's response and noise; 0 or more.

    Raises ConfigError (a setting), AudioError (the input), OutputError (the output; nothing is left of it), ImportError
    (AAC and AMR without the extra `formats`).
    """
    steps = _degradation(to_hz, filter, order, codec, bone)
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, not {seed}")
    audio.check_output(out_path, overwrite)
    x, info = audio.read(in_path)
    rate = info.sample_rate
    if to_hz is not None and not _LOWEST_HZ <= to_hz < rate / 2:
        raise ConfigError(
            f"{in_path}: a cut-off of {to_hz:g} Hz must lie between {_LOWEST_HZ:g} and {rate / 2:g} Hz, half its sample rate"
        )
    y = torch.from_numpy(x)
    if y.shape[-1]:
        if bone is not None:
            y = _worn(y, rate, bone, seed)
        if to_hz is not None:
            y = _low_passed(y, rate, to_hz, filter, order)
        if codec is not None:
            y = _coded(y, rate, codec)
    subtype = audio.fitting_subtype(out_path, info.subtype)
    options: dict[str, Any] = {"frames": x.shape[1], "overwrite": overwrite, "tags": info.tags}
    with audio.Writer(out_path, rate, info.channels, subtype, **options) as writer:
        writer.write(y.numpy())
    clipped = f"  clipped {writer.clipped} samples" if writer.clipped else ""
    return f"{in_path} → {out_path}  {rate / 1000:g} kHz  {audio.clock(info.seconds)}  {', '.join(steps)}{clipped}"


_LOWEST_HZ = 20.0  # below what is heard; far below, the poles of a filter can no longer be told from 1
_FILTERS = ("brickwall", *dsp.FILTER_FAMILIES, *RESAMPLERS)
# Gain in dB of a microphone at the throat over one in the air, estimated from recorded pairs.
_THROAT = ((100.0, 6.0), (450.0, 0.0), (850.0, -9.0), (2000.0, -11.0), (4800.0, -20.0), (6800.0, -26.0))
_BODIES = {"throat": Bone(response=_THROAT), "ear": Bone()}


def _degradation(to_hz: float | None, filter: str, order: int, codec: str | None, bone: str | None) -> list[str]:
    """Check the settings; what will be done, in words."""
    if to_hz is None and codec is None and bone is None:
        raise ConfigError("nothing to do: give a cut-off (--to HZ), a codec or a bone sensor")
    if filter not in _FILTERS:
        raise ConfigError(f"no filter {filter!r}; did you mean {nearest(filter, _FILTERS)!r}? ({', '.join(_FILTERS)})")
    if not 1 <= order <= 20:
        raise ConfigError(f"order must be from 1 to 20, not {order}")
    if bone is not None and bone not in _BODIES:
        raise ConfigError(f"no bone sensor {bone!r}; use one of {', '.join(_BODIES)}")
    steps = [f"bone sensor ({bone})"] if bone is not None else []
    if to_hz is not None:
        steps.append(f"{filter}{f' of order {order}' if filter in dsp.FILTER_FAMILIES else ''} at {to_hz:g} Hz")
    if codec is not None:
        name, bitrate = parse_codec(codec)
        steps.append(name + (f" at {bitrate / 1000:g} kbit/s" if ":" in codec else ""))
    return steps


def parse_codec(text: str) -> tuple[codecs.Codec, int]:
    """Name and bit rate in bit/s of a codec written as "mp3:64k"; 0 for those that have one bit rate. Raises ConfigError."""
    name, _, amount = text.partition(":")
    known = get_args(codecs.Codec)
    if name not in known:
        raise ConfigError(f"no codec {name!r}; did you mean {nearest(name, known)!r}? ({', '.join(known)})")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", amount)
    if amount and not match:
        raise ConfigError(f"codec {text!r}: {amount!r} is no bit rate; write it as in {name}:32k")
    if not match:
        if name in ("mp3", "opus", "vorbis", "aac", "amr"):
            raise ConfigError(f"codec {text!r} needs a bit rate; write it as in {name}:{'12.2k' if name == 'amr' else '32k'}")
        return cast(codecs.Codec, name), 0
    bitrate = float(match[1]) * (1000 if match[2] else 1)
    if not 4_000 <= bitrate <= 512_000:
        raise ConfigError(f"codec {text!r}: {bitrate:g} bit/s is outside 4k to 512k")
    return cast(codecs.Codec, name), round(bitrate)


def _coded(x: Tensor, rate: int, text: str) -> Tensor:
    name, bitrate = parse_codec(text)
    return codec(x, rate, name, bitrate)


def _low_passed(x: Tensor, rate: int, to_hz: float, filter: str, order: int) -> Tensor:
    if filter == "brickwall":
        return dsp.band_limit(x, rate, to_hz)
    if filter in dsp.FILTER_FAMILIES:
        y = dsp.lowpass(x.double().numpy(), rate, to_hz, filter, order)
        return torch.from_numpy(y).float()
    return through_resampler(x, rate, cast(Resampler, filter), to_hz)[0]


def _worn(x: Tensor, rate: int, bone: str, seed: int) -> Tensor:
    config = Config(
        bone_share=1.0, bone=_BODIES[bone], clean_share=1.0, input_noise_share=0.0, cutoff_jitter=0.0, gain_db=(0.0, 0.0)
    )
    way = Degradation(config)
    (parameters,) = way.sample(np.random.default_rng(seed), 1)
    return way.apply(x[:, None], rate, [parameters] * len(x)).input[:, 0]
