"""What somebody would try first, behind the protocol of the generators: `forward(x, cutoff_hz)` at one sample rate.

`Sinc` and `SpectralBandReplication` have nothing to learn. `BiLSTM`, `WaveUNet`, `DCCRN`, `DPCRN` and `AudioUNet` are the
published shapes at widths that a CPU trains; `EBEN` is the published generator, and with one band the SEANet it comes from.
None but the first two looks at the cut-off. As published they also rewrite the known band; `passthrough` keeps it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from bwe import dsp
from bwe.errors import ModelError
from bwe.layers import ResidualUnits, SubPixel, activate, conv, load_folded

# Seconds on either side that recurrent layers are given when a long signal is cut: they remember more, but weakly.
_RECURRENT_CONTEXT_S = 2.0
# Amplitude of an un-normalised STFT bin below which a log-magnitude says nothing.
_MAGNITUDE_FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What all have.

    Attributes:
        sample_rate: Hz, of input and output.
        passthrough: keep the known band and splice the generated one to it.
    """

    sample_rate: int = 16_000
    passthrough: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate < 1000:
            raise ValueError(f"sample_rate={self.sample_rate}: at least 1000 Hz")
        for name, value in vars(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and not isinstance(number, bool) and not 1 <= number <= 384_000:
                    raise ValueError(f"{name}={value}: every number from 1 to 384000")
            if isinstance(value, tuple) and not 1 <= len(value) <= 16:
                raise ValueError(f"{name}={value}: 1 to 16 entries")


class Baseline(nn.Module, ABC):
    """The protocol of the generators around `extend`.

    Attributes: config, sample_rate (Hz), hop (samples that a length is padded to), receptive_field (samples on either side;
    of recurrent networks what they are given), causal (False).
    """

    causal = False
    hop = 1

    def __init__(self, config: Any, receptive_field: int = 0) -> None:
        super().__init__()
        self.config = config
        self.sample_rate: int = config.sample_rate
        self.receptive_field = receptive_field + (dsp.splice_taps(self.sample_rate) // 2 if config.passthrough else 0)

    @abstractmethod
    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        """`(B, 1, T)`, T a multiple of `hop` -> `(B, 1, T)`."""

    def forward(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        """`(B, 1, T)` at `sample_rate`, any T >= 0, with the end of its known band `(B,)` in Hz -> `(B, 1, T)`."""
        length = x.shape[-1]
        if length == 0:
            return x
        y = self.extend(F.pad(x, (0, -length % self.hop)), cutoff_hz.to(x.device)).float()[..., :length]
        if not self.config.passthrough:
            return y
        return x + dsp.splice_highpass(y - x, self.sample_rate, cutoff_hz.to(x.device))

    @property
    def last_layer(self) -> Tensor:
        """The weight nearest to the output, where the gradients of different losses are compared."""
        last = [module for module in self.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)][-1]
        weight = last.parametrizations.weight.original1 if is_parametrized(last) else last.weight  # type: ignore[union-attr]
        assert isinstance(weight, Tensor)
        return weight

    def warm_start(self, source: nn.Module, where: str) -> None:
        """Takes over the weights of a network of the same class and config. Raises ModelError, beginning with `where`."""
        if type(source) is not type(self) or source.config != self.config:
            raise ModelError(f"{where}: a {type(source).__name__} of another config; this recipe has {self.config}")
        load_folded(self, source.state_dict())


class Sinc(Baseline):
    """Doing nothing: the band-limited signal at the target rate."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        pass

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        return x


class _Spectral(Baseline):
    """A network from STFT to STFT, with a periodic Hann window whose quarter is the hop; silence surrounds a signal."""

    def __init__(self, config: Any, receptive_field: int) -> None:
        super().__init__(config, receptive_field + config.n_fft)
        self.n_fft: int = config.n_fft
        self.hop = self.step = self.n_fft // 4
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.window: Tensor

    def spectrum(self, x: Tensor) -> Tensor:
        """`(B, 1, T)` -> `(B, F, N)` complex, N = T / step + 1."""
        x = F.pad(x[:, 0].float(), (self.n_fft // 2, self.n_fft // 2))
        return torch.stft(x, self.n_fft, self.step, window=self.window, center=False, return_complex=True)

    def waveform(self, spectrum: Tensor, length: int) -> Tensor:
        """`(B, F, N)` complex -> `(B, 1, T)`, by overlap and add (Griffin & Lim 1984, eq. 6)."""
        return torch.istft(spectrum, self.n_fft, self.step, window=self.window, length=length)[:, None]


class SpectralBandReplication(_Spectral):
    """Blind spectral band replication: the upper half of the known band is copied up, patch by patch, and its level carried
    on along the slope that it has itself (Dietz et al. 2002, "Spectral Band Replication, a Novel Approach in Audio Coding",
    whose decoder is told the envelope that is extrapolated here)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`slope_db`: range in dB per octave that the extrapolated slope is kept to. `n_fft`: samples."""

        n_fft: int = 1024
        slope_db: tuple[float, float] = (-30.0, -6.0)
        passthrough: bool = True

    def __init__(self, config: Config) -> None:
        super().__init__(config, 8 * config.n_fft)
        self.hop = self.n_fft  # the turns of a copy repeat after four steps

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        spectrum = self.spectrum(x)
        out = torch.stack([self._replicated(s, float(hz)) for s, hz in zip(spectrum, cutoff_hz, strict=True)])
        return self.waveform(out, x.shape[-1])

    def _replicated(self, spectrum: Tensor, cutoff_hz: float) -> Tensor:
        """`(F, N)` complex, filled above the cut-off."""
        bins, frames = spectrum.shape
        # 200 Hz below the cut-off a filter's skirt has not begun yet.
        top = int((cutoff_hz - 200) * self.n_fft / self.sample_rate)
        start = top // 2
        if top >= bins or top - start < 4:
            return spectrum
        octaves = torch.log2(torch.arange(start, top, device=spectrum.device) / top)
        power = spectrum[start:top].abs().square()
        # Over a third of a second: the slope of a single frame is chance.
        width = 2 * (round(self.sample_rate / 6 / self.step) // 2) + 1
        level = 10 * (F.avg_pool1d(power, width, 1, width // 2) + 1e-9).log10()
        centred = octaves - octaves.mean()
        slope = (centred[:, None] * level).sum(0) / centred.square().sum()
        low, high = self.config.slope_db
        slope = slope.clamp(low, high)
        target = torch.arange(top, bins, device=spectrum.device)
        source = start + (target - top) % (top - start)
        gain_db = slope * torch.log2(target / source)[:, None]
        # A bin that moves by m turns by m quarters more from frame to frame.
        turns = (target - source)[:, None] * torch.arange(frames, device=spectrum.device) % 4
        copied = spectrum[source] * 10 ** (gain_db / 20) * torch.exp(0.5j * math.pi * turns)
        return torch.cat([spectrum[:top], copied])


class _Statistics(nn.Module):
    """Mean and deviation per bin, averaged over all that was seen in training."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bins))
        self.register_buffer("square", torch.ones(bins))
        self.register_buffer("seen", torch.zeros(1))
        self.mean: Tensor
        self.square: Tensor
        self.seen: Tensor

    @torch.no_grad()
    def see(self, values: Tensor) -> None:
        """`(B, F, N)`."""
        self.seen += 1
        share = 1 / self.seen.clamp(max=1000)
        self.mean.lerp_(values.mean((0, 2)), share)
        self.square.lerp_(values.square().mean((0, 2)), share)

    def deviation(self) -> Tensor:
        """`(F, 1)`."""
        return (self.square - self.mean.square()).clamp(min=1e-4).sqrt()[:, None]

    def normalise(self, values: Tensor) -> Tensor:
        return (values - self.mean[:, None]) / self.deviation()

    def restore(self, values: Tensor) -> Tensor:
        return values * self.deviation() + self.mean[:, None]


class BiLSTM(_Spectral):
    """Log-magnitude spectra through a bidirectional LSTM, as practised on bone conduction (Liu, Tsao & Fuh 2018,
    "Bone-conducted speech enhancement using deep denoising autoencoder", here with an LSTM): the signal divided by its peak,
    log-magnitudes normalised by mean and variance of each bin over the body microphone's recordings, what the network says
    brought back with those of the air microphone, the phase taken from the input. Meant for one speaker and one sensor, whose
    statistics are learned along with the weights.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`n_fft`: samples. `width`: of each direction. `layers`: of the LSTM."""

        n_fft: int = 512
        width: int = 192
        layers: int = 2

    def __init__(self, config: Config) -> None:
        super().__init__(config, round(_RECURRENT_CONTEXT_S * config.sample_rate))
        bins = config.n_fft // 2 + 1
        self.microphone, self.air = _Statistics(bins), _Statistics(bins)
        self.lstm = nn.LSTM(bins, config.width, config.layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * config.width, bins)

    @staticmethod
    def _log(spectrum: Tensor) -> Tensor:
        return (spectrum.abs() + _MAGNITUDE_FLOOR).log()

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        peak = x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        spectrum = self.spectrum(x / peak)
        level = self._log(spectrum)
        if self.training:
            self.microphone.see(level)
        normal = self.microphone.normalise(level)
        made = self.head(self.lstm(normal.mT)[0]).mT
        magnitude = (self.air.restore(made.clamp(-6, 6))).exp() - _MAGNITUDE_FLOOR
        phase = spectrum / spectrum.abs().clamp(min=1e-9)
        return self.waveform(magnitude.clamp(min=0) * phase, x.shape[-1]) * peak

    def distance(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Mean square of what separates the log-magnitudes of `(B, 1, T)` signals, in deviations of the air microphone's."""
        peak = target.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        made, wanted = self._log(self.spectrum(estimate / peak)), self._log(self.spectrum(target / peak))
        if self.training:
            self.air.see(wanted)
        return ((made - wanted) / self.air.deviation()).square().mean()


class WaveUNet(Baseline):
    """Wave-U-Net (Stoller et al. 2018, fig. 1): convolutions and decimation by two on the way down, linear interpolation and
    convolutions on the way up, skips joined at every level."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`levels`: halvings of the rate. `width`: channels that each level adds."""

        levels: int = 7
        width: int = 12

    def __init__(self, config: Config) -> None:
        down, up = 15, 5
        reach = sum(2**i * (down // 2 + up // 2 + 1) for i in range(config.levels + 1))
        super().__init__(config, 2 * reach)
        self.hop = 2**config.levels
        widths = [1, *(config.width * (i + 1) for i in range(config.levels))]
        deepest = config.width * (config.levels + 1)
        self.down = nn.ModuleList(conv(a, b, down) for a, b in pairwise(widths))
        self.middle = conv(widths[-1], deepest, down)
        below = [*widths[2:], deepest]
        self.up = nn.ModuleList(conv(a + b, b, up) for a, b in zip(below, widths[1:], strict=True))
        self.head = conv(widths[1] + 1, 1, 1)

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        h = given = x[:, :, None]
        skips = []
        for layer in self.down:
            h = activate(layer(h))
            skips.append(h)
            h = h[..., ::2]
        h = activate(self.middle(h))
        for layer, skip in zip(reversed(self.up), reversed(skips), strict=True):
            h = F.interpolate(h[:, :, 0], scale_factor=2.0, mode="linear")[:, :, None]
            h = activate(layer(torch.cat([h, skip], dim=1)))
        return self.head(torch.cat([h, given], dim=1))[:, :, 0]


class AudioUNet(Baseline):
    """Audio U-Net (Kuleshov et al. 2017, "Audio super resolution using neural networks", fig. 1): strided convolutions, then
    sub-pixel up-sampling with skips, and the input added to the output."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`channels`, `kernels`: of each level, which halves the rate."""

        channels: tuple[int, ...] = (24, 48, 96, 96, 96)
        kernels: tuple[int, ...] = (64, 32, 16, 8, 8)

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.channels) != len(self.kernels) or any(k % 2 for k in self.kernels):
                raise ValueError("an AudioUNet needs as many (even) kernels as channels")

    def __init__(self, config: Config) -> None:
        depth = len(config.channels)
        super().__init__(config, sum(2 ** (i + 1) * (k + 8) for i, k in enumerate(config.kernels)))
        self.hop = 2**depth
        widths = (1, *config.channels)
        self.down = nn.ModuleList(conv(widths[i], widths[i + 1], config.kernels[i], stride=2) for i in range(depth))
        self.middle = conv(widths[-1], widths[-1], 9)
        joined = [2 * widths[i + 1] if i + 1 < depth else widths[-1] for i in range(depth)]
        self.up = nn.ModuleList(SubPixel(joined[i], max(widths[i], widths[1]), 2, kernel=9) for i in range(depth))
        self.head = conv(widths[1], 1, 9, gain=0.1)

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        h = x[:, :, None]
        skips: list[Tensor] = []
        for layer in self.down:
            h = activate(layer(h))
            skips.append(h)
        h = activate(self.middle(skips.pop()))
        for layer in reversed(self.up):
            h = activate(layer(h))
            if skips:
                h = torch.cat([h, skips.pop()], dim=1)
        return self.head(h)[:, :, 0] + x


class EBEN(Baseline):
    """The generator of EBEN as published (Hauret et al. 2023, "Configurable EBEN: extreme bandwidth extension network", fig.
    2): a few PQMF bands through a strided U-Net of dilated residual units, the bands that are known added to the output. With
    one band it is the SEANet of Tagliasacchi et al. 2020.

    `generators.SEANet` shares its residual units, not its front and head: there sub-bands are whitened and the head says gains
    of textures, here waveforms go in and come out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`bands`: of the PQMF, 1 for none. `known_bands`: of them, those that the output is added to. `channels`: of each
        level. `strides`: between the levels."""

        bands: int = 4
        known_bands: int = 1
        channels: tuple[int, ...] = (32, 64, 128, 256)
        strides: tuple[int, ...] = (2, 4, 8)

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.channels) != len(self.strides) + 1 or any(s % 2 for s in self.strides):
                raise ValueError("an EBEN needs one more entry in channels than in strides, and even strides")
            if self.known_bands > self.bands:
                raise ValueError(f"known_bands={self.known_bands}: there are {self.bands} bands")

    def __init__(self, config: Config) -> None:
        c, units = config, (1, 3, 9)
        rates = [math.prod(c.strides[:i]) for i in range(len(c.channels))]
        reach = 2 * sum(rate * (sum(units) + 2 * s) for rate, s in zip(rates, c.strides, strict=False)) + 14 * rates[-1] + 8
        super().__init__(config, 0)
        self.hop = c.bands * rates[-1]
        self.pqmf = dsp.PQMF(c.bands, 8) if c.bands > 1 else None
        self.receptive_field += reach * c.bands + (2 * self.pqmf.margin if self.pqmf else 0)
        levels = range(len(c.strides))
        self.stem = conv(c.bands, c.channels[0], 3 if c.bands > 1 else 7)
        self.encoder = nn.ModuleList(ResidualUnits(c.channels[i], 3, units) for i in levels)
        self.down = nn.ModuleList(
            conv(c.channels[i], c.channels[i + 1], 2 * c.strides[i], stride=c.strides[i]) for i in levels
        )
        self.bottleneck = nn.ModuleList(conv(c.channels[-1], c.channels[-1], 7) for _ in range(2))
        self.up = nn.ModuleList(SubPixel(c.channels[i + 1], c.channels[i], c.strides[i]) for i in levels)
        self.decoder = nn.ModuleList(ResidualUnits(c.channels[i], 3, units) for i in levels)
        self.head = conv(c.channels[0], c.bands, 3 if c.bands > 1 else 7, gain=0.1)

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        bands = self.pqmf.analysis(x) if self.pqmf else x
        h = self.stem(bands[:, :, None].contiguous(memory_format=torch.channels_last))
        skips = []
        for units, down in zip(self.encoder, self.down, strict=True):
            h = units(h)
            skips.append(h)
            h = down(activate(h))
        for layer in self.bottleneck:
            h = layer(activate(h))
        for up, units, skip in reversed(list(zip(self.up, self.decoder, skips, strict=True))):
            h = units(up(activate(h)) + skip)
        made = self.head(activate(h))[:, :, 0].float()
        known = self.config.known_bands
        made = torch.cat([made[:, :known] + bands[:, :known], made[:, known:]], dim=1)
        return self.pqmf.synthesis(made) if self.pqmf else made


class _ComplexConv(nn.Module):
    """A complex convolution over frequency and time of real and imaginary parts `(2 B, D, F, N)`, stacked (Hu et al. 2020,
    eq. 1); a stride or an up-sampling of two along frequency."""

    def __init__(self, d_in: int, d_out: int, transposed: bool = False) -> None:
        super().__init__()
        # Five bins and three frames, one of them ahead.
        if transposed:
            self.real: nn.Module = nn.ConvTranspose2d(d_in, d_out, (5, 3), (2, 1), (2, 1))
            self.imaginary: nn.Module = nn.ConvTranspose2d(d_in, d_out, (5, 3), (2, 1), (2, 1))
        else:
            self.real = nn.Conv2d(d_in, d_out, (5, 3), (2, 1), (2, 1))
            self.imaginary = nn.Conv2d(d_in, d_out, (5, 3), (2, 1), (2, 1))

    def forward(self, x: Tensor) -> Tensor:
        (rr, ir), (ri, ii) = self.real(x).chunk(2), self.imaginary(x).chunk(2)
        return torch.cat([rr - ii, ri + ir])


class DCCRN(_Spectral):
    """Deep complex convolution recurrent network (Hu et al. 2020): complex convolutions down to a complex LSTM and up again.

    It says a complex mask of the input's spectrum, as published (`output="mask"`, DCCRN-E: magnitudes by tanh), or the
    spectrum to be added to it ("map"): where there is nothing, a mask leaves nothing.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`n_fft`: samples. `channels`: of each level, complex. `width`: of the LSTM."""

        n_fft: int = 512
        channels: tuple[int, ...] = (8, 16, 32, 32, 32)
        width: int = 64
        output: Literal["map", "mask"] = "map"

    def __init__(self, config: Config) -> None:
        super().__init__(config, round(_RECURRENT_CONTEXT_S * config.sample_rate))
        c = config
        widths = (1, *c.channels)
        depth = len(c.channels)
        self.down = nn.ModuleList(_ComplexConv(widths[i], widths[i + 1]) for i in range(depth))
        self.down_norm = nn.ModuleList(nn.BatchNorm2d(widths[i + 1]) for i in range(depth))
        bins = c.n_fft // 2
        for _ in range(depth):
            bins = (bins - 1) // 2 + 1
        features = bins * widths[-1]
        self.real = nn.LSTM(features, c.width, batch_first=True)
        self.imaginary = nn.LSTM(features, c.width, batch_first=True)
        self.project = nn.Linear(c.width, features)
        self.up_norm = nn.ModuleList(nn.BatchNorm2d(widths[i]) for i in range(1, depth))
        self.up = nn.ModuleList(_ComplexConv(2 * widths[i + 1], widths[i], transposed=True) for i in reversed(range(depth)))

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        spectrum = self.spectrum(x)
        # Without the bin of the mean, so that the bins halve.
        h = torch.cat([spectrum.real, spectrum.imag])[:, None, 1:]
        sizes, skips = [], []
        for layer, norm in zip(self.down, self.down_norm, strict=True):
            sizes.append(h.shape[2])
            h = activate(norm(layer(h)))
            skips.append(h)
        both, d, f, n = h.shape
        rows = h.permute(0, 3, 1, 2).reshape(both, n, d * f)
        (rr, ir), (ri, ii) = self.real(rows)[0].chunk(2), self.imaginary(rows)[0].chunk(2)
        h = self.project(torch.cat([rr - ii, ri + ir])).reshape(both, n, d, f).permute(0, 2, 3, 1)
        for layer, i in zip(self.up, reversed(range(len(self.up))), strict=True):
            h = layer(torch.cat([h, skips[i]], dim=1))
            h = F.pad(h, (0, 0, 0, sizes[i] - h.shape[2]))
            if i:
                h = activate(self.up_norm[i - 1](h))
        made = torch.complex(*F.pad(h[:, 0], (0, 0, 1, 0)).chunk(2))
        return self.waveform(_applied(spectrum, made, self.config.output), x.shape[-1])


def _applied(spectrum: Tensor, made: Tensor, output: Literal["map", "mask"]) -> Tensor:
    if output == "map":
        return spectrum + made
    size = made.abs()
    return spectrum * made * (size.tanh() / size.clamp(min=1e-8))


class _DualPath(nn.Module):
    """One dual-path block (Le et al. 2021, fig. 2): along frequency both ways, then along time."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.along_frequency = nn.LSTM(channels, width // 2, batch_first=True, bidirectional=True)
        self.along_time = nn.LSTM(channels, width, batch_first=True)
        self.mix = nn.ModuleList(nn.Linear(width, channels) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, N, F, D)` -> the same."""
        b, n, f, d = x.shape
        y = self.mix[0](self.along_frequency(x.reshape(b * n, f, d))[0]).reshape(b, n, f, d)
        x = x + self.norms[0](y)
        y = self.mix[1](self.along_time(x.transpose(1, 2).reshape(b * f, n, d))[0]).reshape(b, f, n, d).transpose(1, 2)
        return x + self.norms[1](y)


class DPCRN(_Spectral):
    """Dual-path convolution recurrent network (Le et al. 2021): real and imaginary parts as two channels through
    convolutions, recurrent layers along frequency and along time, and up again. `output` as in `DCCRN`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Config):
        """`n_fft`: samples. `channels`: of each level, the first ones halve the bins. `blocks`, `width`: of the dual path."""

        n_fft: int = 512
        channels: tuple[int, ...] = (16, 24, 32)
        blocks: int = 2
        width: int = 48
        output: Literal["map", "mask"] = "map"

    def __init__(self, config: Config) -> None:
        super().__init__(config, round(_RECURRENT_CONTEXT_S * config.sample_rate))
        c = config
        widths, depth = (2, *c.channels), len(c.channels)
        shape: dict[str, Any] = {"kernel_size": (5, 3), "stride": (2, 1), "padding": (2, 1)}
        self.down = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], **shape) for i in range(depth))
        self.down_norm = nn.ModuleList(nn.BatchNorm2d(widths[i + 1]) for i in range(depth))
        self.middle = nn.ModuleList(_DualPath(widths[-1], c.width) for _ in range(c.blocks))
        self.up_norm = nn.ModuleList(nn.BatchNorm2d(widths[i]) for i in range(1, depth))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * widths[i + 1], widths[i], **shape) for i in reversed(range(depth)))

    def extend(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        spectrum = self.spectrum(x)
        h = torch.stack([spectrum.real, spectrum.imag], dim=1)[:, :, 1:]
        sizes, skips = [], []
        for layer, norm in zip(self.down, self.down_norm, strict=True):
            sizes.append(h.shape[2])
            h = activate(norm(layer(h)))
            skips.append(h)
        rows = h.permute(0, 3, 2, 1)
        for block in self.middle:
            rows = block(rows)
        h = rows.permute(0, 3, 2, 1)
        for layer, i in zip(self.up, reversed(range(len(self.up))), strict=True):
            h = layer(torch.cat([h, skips[i]], dim=1))
            h = F.pad(h, (0, 0, 0, sizes[i] - h.shape[2]))
            if i:
                h = activate(self.up_norm[i - 1](h))
        made = torch.complex(*F.pad(h, (0, 0, 1, 0)).unbind(1))
        return self.waveform(_applied(spectrum, made, self.config.output), x.shape[-1])


ARCHITECTURES: dict[str, type[Baseline]] = {
    "sinc": Sinc,
    "sbr": SpectralBandReplication,
    "bilstm": BiLSTM,
    "waveunet": WaveUNet,
    "audiounet": AudioUNet,
    "eben": EBEN,
    "dccrn": DCCRN,
    "dpcrn": DPCRN,
}
"""By the name of `config.json`."""
