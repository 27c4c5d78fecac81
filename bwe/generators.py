"""The SEANet/EBEN generator of this package: a PQMF U-Net that fills the band above a given cut-off.

`SEANet` (Tagliasacchi et al. 2020, "SEANet: A multi-modal speech enhancement network"; Hauret et al. 2023, "EBEN: Extreme
bandwidth extension network") with three things of its own:

* every sub-band is divided by its own local level before the network and the levels are handed over as logarithms, so a
  noise floor at -90 dBFS is as visible as a vowel at -20 dBFS;
* the head predicts a texture and a log-gain for each sub-band, relative to the local level of the whole input: the output
  spans 100 dB without the network having to, follows the input's level, and is silent where the input is; a third output
  per sub-band scales the input's own content there (to lift a filter's skirt, or to cancel images and noise);
* what the rectified input has in each sub-band (harmonics of the same pitch, or noise of the same envelope), whitened, is
  offered as a texture;
* with `trend`, two guesses at the levels above the cut-off are made by rule, that their slope goes on and that they stay, and
  the head says how far each is to be believed.

The known band is not the network's business: `y = x + highpass(G(x) - x)`, or live, where both sides of the cut-off have
filters of their own, `y = lowpass(x) + highpass(G(x))`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from bwe import dsp, fusion
from bwe.errors import ModelError
from bwe.layers import MRF, Film, ResidualUnits, SubPixel, activate, conv, fold_weight_norm, load_folded, modulate

__all__ = ["SIZES", "SEANet", "fold_weight_norm"]

# -100 dBFS: below any PCM-16 floor, so that filter residue and rounding noise are not blown up to full level.
LEVEL_FLOOR = 1e-5
# What the log-level is brought to a network's own size with.
LOG_LEVEL_SCALE, LOG_LEVEL_SHIFT = 0.2, 1.6
LOG_GAIN_MAX = 3.0
# Pairs of sub-band samples between the means that `_without_edges` takes, each over four times as many.
EDGE_STEP = 8
# Sub-band samples between the spectra that `_Trend` is taken from, each over four times as many (32 ms of 1 kHz wide bands),
# and spectra on either side over which its slope is averaged, since the slope of a single one is chance.
TREND_STEP, TREND_AROUND = 16, 20
# -120 dBFS.
TREND_FLOOR = 1e-6
# Taps per band and attenuation in dB of the filter bank of a causal generator: 3.5 ms instead of 6 there and back.
_CAUSAL_PQMF = (7, 60.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of a `SEANet`.

    Attributes:
        sample_rate: Hz, of input and output.
        bands: sub-bands of the PQMF; `sample_rate / bands` is the trunk's rate.
        channels: width of each level, first at the sub-band rate, last at the bottleneck.
        strides: down-sampling between the levels, one fewer than `channels`.
        blocks: residual convolutions in the bottleneck; their dilations cycle through `dilations`.
        kernels: MRF kernels of each decoder level, top (sub-band rate) first.
        dilations: dilations of MRF branches and, cycled, of the bottleneck.
        encoder_dilations: dilations of the residual units of each encoder level.
        level_frames: sub-band samples over which the local level is taken, every quarter of them.
        excitation: offer the rectified input as additional bands.
        conditioning: width of the cut-off embedding; 0: the network is not told the cut-off.
        passthrough: keep the known band, and splice the generated one to it; off where the known band is damaged itself.
        told_hz: without `passthrough`, what the network is told in place of a cut-off, where there is none to tell; 0: it is
            told the cut-off.
        air: microphones in the air that are heard beside the signal itself (a body microphone's, then), which add a keeping of
            their own content to each sub-band; only without `passthrough` and `causal`.
        features: of every frame, that scale and shift the bottleneck, see `fusion.FrameFeatures`.
        trend: offer what the level above the cut-off may be by the slope and the level below it, see `_Trend`; only with
            `passthrough`, and not `causal`.
        causal: look only back, but for a short filter bank (`SEANet.latency`), so that a live signal can be extended.
    """

    sample_rate: int = 48_000
    bands: int = 24
    channels: tuple[int, ...] = (48, 112, 224)
    strides: tuple[int, ...] = (4, 4)
    blocks: int = 6
    kernels: tuple[tuple[int, ...], ...] = ((3,), (3,))
    dilations: tuple[int, ...] = (1, 3, 9)
    encoder_dilations: tuple[int, ...] = (1, 3)
    level_frames: int = 32
    excitation: bool = True
    conditioning: int = 64
    passthrough: bool = True
    told_hz: float = 0.0
    air: int = 0
    features: tuple[fusion.Feature, ...] = ()
    trend: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        lists = (self.channels, self.strides, self.kernels, self.dilations, self.encoder_dilations, *self.kernels)
        if any(len(values) > 16 for values in lists) or not self.dilations:
            raise ValueError("a SEANet is limited to 16 entries in each of its lists, and needs a dilation")
        if not all(1 <= d <= 4096 for d in (*self.dilations, *self.encoder_dilations)) or self.level_frames < 8:
            raise ValueError("a SEANet needs dilations from 1 to 4096 and level_frames of at least 8")
        if len(self.channels) != len(self.strides) + 1 or len(self.kernels) != len(self.strides):
            raise ValueError("a SEANet needs one more entry in channels than in strides, and as many kernels as strides")
        if not all(1 <= c <= 4096 for c in self.channels) or not 1 <= self.bands <= 256 or not 0 <= self.blocks <= 64:
            raise ValueError("a SEANet is limited to 4096 channels, 256 bands and 64 bottleneck blocks")
        if self.sample_rate < 1000 or min(self.strides, default=1) < 2 or any(s % 2 for s in self.strides):
            raise ValueError("a SEANet needs a sample rate of at least 1000 Hz and even strides")
        if self.causal and self.bands % 2:
            raise ValueError("a causal SEANet has an even number of bands")
        if (self.air or self.features) and (self.passthrough or self.causal or not 0 <= self.air <= 8):
            raise ValueError("a SEANet hears up to 8 air microphones, and has features, without passthrough and not causal")
        if "direction" in self.features and self.air != 2:
            raise ValueError("a SEANet has the feature 'direction' of two air microphones, not more and not fewer")
        if self.told_hz and self.passthrough:
            raise ValueError("a SEANet that keeps the known band has to be told where it ends: told_hz is 0 with passthrough")
        if self.trend and (self.causal or not self.passthrough or math.prod(self.strides) % TREND_STEP):
            raise ValueError(
                f"a SEANet has a trend with passthrough, not causal, at strides whose product {TREND_STEP} divides"
            )
        if any(k % 2 == 0 for ks in self.kernels for k in ks):
            raise ValueError("the kernels of a SEANet are odd")
        if self.level_frames % 8 or math.prod(self.strides) % (self.level_frames // 4):
            raise ValueError("level_frames of a SEANet is a multiple of 8 whose quarter divides the product of the strides")
        if math.prod(self.strides) % (2 * EDGE_STEP):
            raise ValueError(f"the product of the strides of a SEANet is a multiple of {2 * EDGE_STEP}")


SIZES: dict[str, Config] = {
    "S": Config(),
    "B": Config(channels=(80, 192, 384), blocks=9, kernels=((3, 7), (3, 7)), encoder_dilations=(1, 3, 9)),
    # For streams: few layers, since for 8 ms at a time a layer costs its call and not its width.
    "live": Config(channels=(32, 48, 64), blocks=1, dilations=(1,), encoder_dilations=(), causal=True),
    "tiny": Config(channels=(12, 16, 24), blocks=1, dilations=(1,), encoder_dilations=(1,), conditioning=8),
}


def _means_at_steps(x: Tensor, step: int) -> Tensor:
    """`(..., N)` -> `(..., N / step + 1)`: at the start and after every step, the mean of the last four steps."""
    means = F.avg_pool1d(x, step)
    # Joined, not padded: onnxruntime makes padding part of the pooling, and refuses it for being as long as the window.
    return F.avg_pool1d(torch.cat([means.new_zeros(*means.shape[:-1], 4), means], dim=-1), 4, stride=1)


def _between(knots: Tensor, step: int) -> Tensor:
    """`(B, K, M + 1)` -> `(B, K, M * step)`: straight lines between the knots."""
    ahead = (torch.arange(step, device=knots.device, dtype=knots.dtype) + 0.5) / step
    if torch.compiler.is_exporting():  # onnxruntime takes far longer to spread each knot over its step
        return (torch.stack([knots[..., :-1], knots[..., 1:]], dim=-1) @ torch.stack([1 - ahead, ahead])).flatten(-2)
    # Not as a product, whose last bits would depend on how a batch is split.
    return torch.lerp(knots[..., :-1, None], knots[..., 1:, None], ahead).flatten(-2)


def _around(means: Tensor, step: int) -> Tensor:
    """`(B, K, M)` -> `(B, K, M * step)`: straight lines between means that stand in the middle of their steps."""
    return _between(F.pad(means, (1, 1), mode="replicate"), step)[..., step // 2 : -(step // 2)]


class _CutoffEmbedding(nn.Module):
    """Fourier features of the cut-off over 24 kHz through a two-layer network, `(B,)` -> `(B, width)`.

    In Hz rather than relative to the sample rate: a trunk that is moved to another rate keeps its meaning.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor([math.pi * 2.0**k for k in range(6)]), persistent=False)
        self.frequencies: Tensor
        self.net = nn.Sequential(nn.Linear(12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, cutoff_hz: Tensor) -> Tensor:
        angle = (cutoff_hz / 24_000).float().unsqueeze(-1) * self.frequencies
        out: Tensor = self.net(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return out


class _Trend(nn.Module):
    """Two guesses at the level above the cut-off that need no learning: where the slope leads, and that it stays as it is.

    The slope is that of a least-squares line through the log-power of narrow bins over the octave that ends 200 Hz below the
    cut-off, by octaves, as `baselines.SpectralBandReplication` has it; what may stay is the mean over the last third of it.

    Bins rather than sub-bands, and logarithms before the mean: between partials the noise floor counts, as in LSD. They are
    those of a short Fourier transform of each sub-band, which costs next to nothing at its rate.
    """

    def __init__(self, sample_rate: int, bands: int) -> None:
        super().__init__()
        width = sample_rate / (2 * bands)
        size = 4 * TREND_STEP
        bin = torch.arange(1, size // 2)
        angle = 2 * math.pi / size * bin[:, None] * torch.arange(size)
        window = torch.hann_window(size)
        window = window / window.square().sum().sqrt()
        self.register_buffer("waves", torch.cat([angle.cos(), angle.sin()])[:, None] * window, persistent=False)
        self.waves: Tensor
        # Every other sub-band has its lowest frequency at the top.
        inside, band = bin / (size // 2), torch.arange(bands)[:, None]
        hz = width * (band + torch.where(band % 2 == 0, inside, 1 - inside))
        self.register_buffer("hz", hz.flatten(), persistent=False)
        self.hz: Tensor
        # However low the cut-off, some bins have to be left.
        self.lowest_hz = max(400.0, 8 * width / (size // 2))
        self.register_buffer("ends", width * (torch.arange(bands) + 1), persistent=False)
        self.ends: Tensor
        self.register_buffer("centre", (width * (torch.arange(bands) + 0.5)).log2(), persistent=False)
        self.centre: Tensor

    def forward(self, bands: Tensor, cutoff_hz: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, K, N)`, N a multiple of `TREND_STEP`, and the cut-offs `(B,)` in Hz -> the logarithm of the amplitude that each
        sub-band would have on the line, and of the one that it has or, from the cut-off on, would have if the level stayed,
        `(B, K, N)` each."""
        count, step = len(bands), TREND_STEP
        parts = F.conv1d(bands.flatten(0, 1)[:, None], self.waves, stride=step, padding=(4 * step - step) // 2)
        power = parts.square().unflatten(1, (2, -1)).sum(1)
        level = (power + TREND_FLOOR**2).log().unflatten(0, (count, -1))
        own, level = level.mean(2), level.flatten(1, 2)
        top = (cutoff_hz.float()[:, None] - 200.0).clamp(min=self.lowest_hz)
        below = self.hz <= top
        octave, third = (self._shares(below & (self.hz >= top / 2**part)) for part in (1.0, 1 / 3))
        place = self.hz.log2()
        middle = (octave * place).sum(1, keepdim=True)
        ahead = octave * (place - middle)
        ahead = ahead / (ahead * (place - middle)).sum(1, keepdim=True)
        mean, edge, slope = (torch.stack([octave, third, ahead], dim=1) @ level).split(1, dim=1)
        slope = F.avg_pool1d(slope, 2 * TREND_AROUND + 1, 1, TREND_AROUND, count_include_pad=False)
        line = mean + slope * (self.centre - middle)[:, :, None]
        stays = torch.where((self.ends <= top)[:, :, None], own, edge)
        guesses = F.avg_pool1d(torch.cat([line, stays], dim=1), 5, 1, 2, count_include_pad=False) / 2  # power to amplitude
        line, stays = _around(guesses.clamp(min=math.log(TREND_FLOOR)), step).chunk(2, dim=1)
        return line, stays

    def _shares(self, chosen: Tensor) -> Tensor:
        """Weights that add up to 1 of the chosen bins `(B, F)`."""
        chosen = chosen.to(self.hz)
        return chosen / chosen.sum(1, keepdim=True)


class Told(NamedTuple):
    """What a `SEANet` makes of its cut-offs: scale and shift of every level, and what splices the bands, which is the cut-offs
    `(B,)` themselves or, for a causal one, `dsp.causal_splice_weights`."""

    modulation: list[tuple[Tensor, Tensor]]
    splice: Tensor


def _folded(module: nn.Module) -> dict[str, Tensor]:
    """The state that the module would have with its weight norm folded."""
    state = {name: tensor for name, tensor in module.state_dict().items() if ".parametrizations." not in name}
    normed = {f"{name}.weight": child.weight for name, child in module.named_modules() if is_parametrized(child, "weight")}
    return state | {name: weight.detach() for name, weight in normed.items() if isinstance(weight, Tensor)}


class SEANet(nn.Module):
    """PQMF -> U-Net -> PQMF, then the splice.

    Centred and causal ones have the same weights. A causal one knows nothing of what is to come but for its filter bank; a
    `stepper.Stepper` takes it through a stream block by block.

    Attributes:
        config, sample_rate (Hz), hop (samples between bottleneck frames), receptive_field (samples on either side that can
        change an output sample), causal, delay (samples by which the output of a stream is late), latency (samples until all
        that an output sample needs has come in: the delay and a full hop; 0 where it is centred, as it needs the whole signal
        anyway).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        self.sample_rate = c.sample_rate
        self.causal = c.causal
        self.hop: int = c.bands * math.prod(c.strides)

        self.pqmf = dsp.PQMF(c.bands, *_CAUSAL_PQMF) if c.causal else dsp.PQMF(c.bands)
        self.delay = 2 * self.pqmf.margin if c.causal else 0
        self.latency = self.delay + self.hop - 1 if c.causal else 0
        self.embedding = _CutoffEmbedding(c.conditioning) if c.conditioning else None
        told = max(1, c.conditioning)
        inputs = c.bands * (2 * (1 + c.air) + c.excitation + 2 * c.trend)
        self.stem = conv(inputs, c.channels[0], 3)
        self.trend = _Trend(c.sample_rate, c.bands) if c.trend else None
        levels = range(len(c.strides))
        self.encoder = nn.ModuleList(ResidualUnits(c.channels[i], 3, c.encoder_dilations) for i in levels)
        self.encoder_film = nn.ModuleList(Film(told, c.channels[i]) for i in levels)
        self.down = nn.ModuleList(
            conv(c.channels[i], c.channels[i + 1], 2 * c.strides[i], stride=c.strides[i]) for i in levels
        )
        width = c.channels[-1]
        cycle = [c.dilations[i % len(c.dilations)] for i in range(c.blocks)]
        self.bottleneck = nn.ModuleList(MRF(width, (3,), (d,)) for d in cycle)
        self.bottleneck_film = nn.ModuleList(Film(told, width) for _ in cycle)
        self.up = nn.ModuleList(SubPixel(c.channels[i + 1], c.channels[i], c.strides[i]) for i in levels)
        self.decoder = nn.ModuleList(MRF(c.channels[i], c.kernels[i], c.dilations) for i in levels)
        self.decoder_film = nn.ModuleList(Film(told, c.channels[i]) for i in levels)
        if c.features:
            self.frames = fusion.FrameFeatures(c.sample_rate, self.hop, c.air, c.features)
            self.frame_film = fusion.FrameFilm(self.frames.size, width)
        self.head = conv(c.channels[0], (3 + c.air + 2 * c.trend) * c.bands, 3, gain=0.1)
        with torch.no_grad():
            if c.trend:  # A warm start without one begins as it was, all but exactly: weights of 0 have no direction to learn.
                self.stem.parametrizations.weight.original1[:, -2 * c.bands :].mul_(1e-3)  # type: ignore[index,union-attr]
                self.head.parametrizations.weight.original0[-2 * c.bands :].mul_(1e-3)  # type: ignore[index,union-attr]
            assert self.head.bias is not None
            self.head.bias[c.bands : 2 * c.bands] = -4.0
        self.texture_mix = nn.Parameter(torch.full((c.bands, 1), 1.0 if c.excitation else 0.0))

        reach, rate = 2.0 + c.level_frames, 1
        for i, stride in enumerate(c.strides):
            in_units = sum(c.encoder_dilations)
            in_mrf = max(sum(c.dilations) * (k // 2) for k in c.kernels[i])
            reach += rate * (in_units + in_mrf + 1.5 * stride)
            rate *= stride
            reach += rate
        reach += rate * sum(cycle) + 3 + 2 * 3 * EDGE_STEP
        if c.trend:
            reach += TREND_STEP * (TREND_AROUND + 4)
        self.receptive_field = math.ceil(reach) * c.bands + 2 * self.pqmf.margin
        if c.causal:
            self.receptive_field = 2 * self.receptive_field + self.hop + self.delay
        elif c.passthrough:
            self.receptive_field += dsp.splice_taps(c.sample_rate) // 2
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def warm_start(self, source: nn.Module, where: str) -> None:
        """Takes over the weights of a generator, with or without weight norm, of the same trunk.

        The PQMF may have another size: at the sample rates 16, 24, 44.1 and 48 kHz, 8, 12, 22 and 24 bands are all 1 kHz wide
        and the trunk runs at 2 kHz. Then the bands that both have are taken over in stem and head, the others start anew.

        What hears air microphones that the other has not, the trend and the features start anew.

        Raises ModelError, beginning with `where`: the trunk has other widths, strides or blocks.
        """
        if not isinstance(source, SEANet):
            raise ModelError(f"{where}: a {type(source).__name__} is no SEANet")
        own, other = self.config, source.config
        trunk = ("channels", "strides", "blocks", "kernels", "dilations", "encoder_dilations", "excitation", "conditioning")
        for name in trunk:
            if getattr(own, name) != getattr(other, name):
                raise ModelError(
                    f"{where}: its generator has {name}={getattr(other, name)}, this recipe {getattr(own, name)}; "
                    f"start from one of the same trunk, or set generator.{name}"
                )
        weights = _folded(source)
        for name, before in _folded(self).items():
            if name not in weights:
                weights[name] = before
            elif weights[name].shape != before.shape:
                axis = 1 if name == "stem.weight" else 0
                mixed = before.unflatten(axis, (-1, own.bands)).clone()
                theirs = weights[name].unflatten(axis, (-1, other.bands))
                place = [slice(None)] * axis + [
                    slice(min(a, b)) for a, b in zip(mixed.shape[axis:][:2], theirs.shape[axis:], strict=False)
                ]
                mixed[tuple(place)] = theirs[tuple(place)]
                weights[name] = mixed.reshape(before.shape)
        load_folded(self, weights)

    def _whiten(self, bands: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, K, N)` -> the bands at unit local level, and that level in full scale, both `(B, K, N)`."""
        window = self.config.level_frames
        step = window // 4
        if self.causal:
            level = _between((_means_at_steps(bands.square(), step) + LEVEL_FLOOR**2).sqrt(), step)
        else:
            # count_include_pad: beyond a clip's edge is silence, as in the zero padding of every convolution.
            power = F.avg_pool1d(bands.square(), window, stride=step, padding=(window - step) // 2)
            level = _around((power + LEVEL_FLOOR**2).sqrt(), step)
        return bands / level, level

    def _without_edges(self, texture: Tensor) -> Tensor:
        """`(B, K, N)` without its local mean and without its local alternating mean, over 64 sub-band samples.

        These are the two edges of each sub-band: an offset of the network's output would be a whistle there, at the multiples
        of the band width, for as long as the gain lasts. Even and odd samples, each without its own mean, have neither.
        """
        phases = rearrange(texture, "b k (n p) -> b (k p) n", p=2)
        if self.causal:
            local = _between(_means_at_steps(phases, EDGE_STEP), EDGE_STEP)
        else:
            width, padding = 4 * EDGE_STEP, 3 * EDGE_STEP // 2
            mean = F.avg_pool1d(phases, width, stride=EDGE_STEP, padding=padding, count_include_pad=False)
            local = _around(mean, EDGE_STEP)
        return texture - rearrange(local, "b (k p) n -> b k (n p)", p=2)

    def modulation(self, cutoff_hz: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift of every level, `(B, D, 1, 1)` each, in the order of their use, of the cut-offs `(B,)` in Hz."""
        if self.config.told_hz:
            cutoff_hz = torch.full_like(cutoff_hz, self.config.told_hz)
        condition = self.embedding(cutoff_hz) if self.embedding else torch.zeros_like(cutoff_hz)[:, None]
        return [film(condition) for film in (*self.encoder_film, *self.bottleneck_film, *reversed(self.decoder_film))]

    def tell(self, cutoff_hz: Tensor) -> Told:
        """What the network makes of the cut-offs `(B,)` in Hz; a stream needs it once."""
        cutoff_hz = cutoff_hz.to(dtype=torch.float32)
        splice = cutoff_hz
        if self.causal:
            weights = dsp.causal_splice_weights(self.sample_rate, cutoff_hz.cpu().numpy(), self.delay, self.config.bands)
            splice = torch.from_numpy(weights).to(cutoff_hz.device)
        return Told(self.modulation(cutoff_hz), splice)

    def missing_band(self, x: Tensor, told: Told) -> Tensor:
        """`(B, 1 + air, T)`, T a multiple of `hop` -> what the network says before the splice, `(B, 1, T)`, `delay` samples
        late."""
        c, causal = self.config, self.causal
        modulation = iter(told.modulation)
        count, own_x = len(x), x[:, :1]
        signals = [own_x, own_x.abs()] if c.excitation else [own_x]
        bands = self.pqmf.analysis(torch.cat([*signals, *(x[:, i : i + 1] for i in range(1, 1 + c.air))]), causal)
        # Of the signal, of its rectified self, of every air microphone.
        white, level, content = (part.split(count) for part in (*self._whiten(bands), bands))
        heard = [0, *range(len(signals), len(content))]
        features = [part for i in heard for part in (white[i], level[i].log() * LOG_LEVEL_SCALE + LOG_LEVEL_SHIFT)]
        excitation: Tensor | float = 0.0
        if c.excitation:
            excitation = white[1]
            features.insert(2, excitation)
        guesses: list[Tensor] = []
        reference = (level[0].square().mean(dim=1, keepdim=True) - LEVEL_FLOOR**2).clamp(min=0).sqrt()
        if self.trend:
            guesses += self.trend(content[0], told.splice)
            features += [guess * LOG_LEVEL_SCALE + LOG_LEVEL_SHIFT for guess in guesses]
        h = torch.cat(features, dim=1).unsqueeze(2).contiguous(memory_format=torch.channels_last)
        h = self.stem(h, causal)
        skips = []
        for units, down in zip(self.encoder, self.down, strict=True):
            h = units(modulate(h, next(modulation)), causal)
            skips.append(h)
            h = down(activate(h), causal)
        if c.features:
            h = modulate(h, self.frame_film(self.frames(x)))
        for block in self.bottleneck:
            h = block(modulate(h, next(modulation)), causal)
        for up, decoder, skip in reversed(list(zip(self.up, self.decoder, skips, strict=True))):
            h = up(activate(h), causal) + skip
            h = decoder(modulate(h, next(modulation)), causal)
        out = self.head(activate(h), causal).squeeze(2).float()
        texture, log_gain, *kept = out.chunk(3 + c.air + 2 * c.trend, dim=1)
        texture = self._without_edges(texture)
        for guess in reversed(guesses):
            log_gain = log_gain + kept.pop() * (guess - (reference + LEVEL_FLOOR).log())
        gain = log_gain.clamp(max=LOG_GAIN_MAX).exp() * reference
        made = (texture + self.texture_mix * excitation) * gain
        for share, i in zip(kept, heard, strict=True):
            made = made + share * content[i]
        return self.pqmf.synthesis(made, causal)

    @property
    def last_layer(self) -> Tensor:
        """The head's weight, where the gradients of different losses are compared."""
        weight = self.head.parametrizations.weight.original1 if is_parametrized(self.head) else self.head.weight  # type: ignore[union-attr]
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor, cutoff_hz: Tensor) -> Tensor:
        """Fills the band above the cut-off.

        Args:
            x: `(B, 1, T)` at `sample_rate`, any T >= 0, empty above the cut-off; `(B, 1 + air, T)` with air microphones.
            cutoff_hz: `(B,)` where the known band ends, in Hz.

        Returns:
            `(B, 1, T)`.
        """
        length = x.shape[-1]
        if length == 0:
            return x[:, :1]
        told = self.tell(cutoff_hz.to(x.device))
        x = F.pad(x, (0, self.delay + -(length + self.delay) % self.hop))
        generated = self.missing_band(x, told).float()
        inside = slice(self.delay, self.delay + length)
        if not self.config.passthrough:
            return generated[..., inside]
        if self.causal:
            return dsp.causal_splice(x, generated, told.splice)[..., inside]
        x, generated = x[..., inside], generated[..., inside]
        # What a filter's skirt has left above the cut-off is taken out, not added to: within a sub-band the network cannot
        # fill the gap beside the skirt without doubling the skirt. Where it is worth keeping, `own` keeps it.
        return x + dsp.splice_highpass(generated - x, self.sample_rate, told.splice)
