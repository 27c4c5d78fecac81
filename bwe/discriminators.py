"""Discriminators: multi-period, multi-scale, multi-resolution STFT and multi-band, combined by `Ensemble`.

Every sub-discriminator maps `(B, 1, T)` to a list of feature maps, the last of which is its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from bwe import dsp
from bwe.layers import LEAK


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which sub-discriminators an `Ensemble` holds; an empty tuple or 0 switches a kind off.

    Attributes:
        periods: of the multi-period discriminator (Kong et al. 2020), one sub-discriminator each.
        scales: of the multi-scale discriminator (Kumar et al. 2019), at the full rate, half, a quarter, …
        fft_sizes: of the multi-resolution STFT discriminator on log-magnitudes.
        fine: show the STFT discriminators each bin relative to its surroundings, so that they judge fine structure and not the
            colour of a microphone.
        bands: PQMF bands of the multi-band discriminator (Hauret et al. 2023, EBEN); 0 for none.
        band_dilations: one multi-band sub-discriminator each.
        period_width, scale_width, stft_width, band_width: channels of the first layer of each kind.
        subset: sub-discriminators drawn at each step; 0 for all.
        pre_emphasis: coefficient a of (1 - a / z)^2 before the waveform discriminators, which else see little but the bass;
            0 for none.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    scales: int = 3
    fft_sizes: tuple[int, ...] = (512, 1024, 2048)
    fine: bool = False
    bands: int = 24
    band_dilations: tuple[int, ...] = (1, 2, 3)
    period_width: int = 8
    scale_width: int = 8
    stft_width: int = 12
    band_width: int = 64
    subset: int = 0
    pre_emphasis: float = 0.95


def _conv(d_in: int, d_out: int, kernel: tuple[int, int], **options: object) -> nn.Conv2d:
    layer = nn.Conv2d(d_in, d_out, kernel, **options)  # type: ignore[arg-type]
    # Variance-keeping: the default initialisation shrinks the scores to nothing over six layers, and learning starts late.
    nn.init.kaiming_normal_(layer.weight, a=LEAK)
    return weight_norm(layer)


class _Stack(nn.Module):
    """Convolutions with leaky ReLU; every activation is a feature map, the last convolution's output the score."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor) -> list[Tensor]:
        maps = []
        h = x.contiguous(memory_format=torch.channels_last)
        for layer in self.layers[:-1]:
            h = F.leaky_relu(layer(h), LEAK)
            maps.append(h)
        maps.append(self.layers[-1](h))
        return maps


class Period(_Stack):
    """HiFi-GAN's period discriminator: every `period`-th sample as one signal, the phases side by side."""

    def __init__(self, period: int, width: int) -> None:
        widths = [1, width, 2 * width, 4 * width, 8 * width]
        layers = [_conv(a, b, (1, 5), stride=(1, 3), padding=(0, 2)) for a, b in pairwise(widths)]
        layers += [_conv(8 * width, 8 * width, (1, 5), padding=(0, 2)), _conv(8 * width, 1, (1, 3), padding=(0, 1))]
        super().__init__(layers)
        self.period = period

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, 1, T)` -> maps `(B * period, D, 1, N)`: kernels never span phases, so the phases can be a batch."""
        x = F.pad(x, (0, -x.shape[-1] % self.period), mode="reflect")
        return self.features(rearrange(x, "b 1 (n p) -> (b p) 1 1 n", p=self.period))


class Scale(_Stack):
    """MelGAN's discriminator with full instead of grouped convolutions of a quarter of the width; input averaged and
    decimated by `factor`."""

    def __init__(self, factor: int, width: int) -> None:
        w = width
        super().__init__(
            [
                _conv(1, w, (1, 15), padding=(0, 7)),
                _conv(w, 2 * w, (1, 17), stride=(1, 4), padding=(0, 8)),
                _conv(2 * w, 4 * w, (1, 17), stride=(1, 4), padding=(0, 8)),
                _conv(4 * w, 8 * w, (1, 9), stride=(1, 4), padding=(0, 4)),
                _conv(8 * w, 8 * w, (1, 5), padding=(0, 2)),
                _conv(8 * w, 1, (1, 3), padding=(0, 1)),
            ]
        )
        self.factor = factor

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, 1, T)` -> maps `(B, D, 1, N)`."""
        if self.factor > 1:
            x = F.avg_pool1d(x, 2 * self.factor, stride=self.factor, padding=self.factor // 2)
        return self.features(x.unsqueeze(2))


class Spectrum(_Stack):
    """Discriminates log-magnitude spectrograms (as Jang et al. 2021, UnivNet, with logarithms so that quiet bins count).

    With `fine`, each bin is relative to its surroundings, about 1 kHz by 50 ms at 48 kHz: harmonics, onsets and grain are
    judged, the level and the colour of a microphone are not.
    """

    def __init__(self, n_fft: int, width: int, fine: bool = False) -> None:
        w = width
        layers = [_conv(1, w, (7, 5), stride=(4, 1), padding=(3, 2))]
        layers += [_conv(w, w, (5, 3), stride=(2, 1), padding=(2, 1)), _conv(w, 2 * w, (5, 3), stride=(2, 2), padding=(2, 1))]
        layers += [_conv(2 * w, 2 * w, (3, 3), padding=(1, 1)), _conv(2 * w, 1, (3, 3), padding=(1, 1))]
        super().__init__(layers)
        self.n_fft = n_fft
        self.around = (2 * (n_fft // 100) + 1, 2 * (4800 // n_fft) + 1) if fine else None

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, 1, T)` -> maps `(B, D, F', N')`."""
        level = (dsp.power_spectrogram(x.float(), self.n_fft, self.n_fft // 4) + 1e-8).log10()
        if self.around is None:
            return self.features((level + 4) / 4)  # floored like LSD; speech then lies in about [-1, 1.5]
        bins, frames = self.around
        surroundings = F.avg_pool2d(level, self.around, 1, (bins // 2, frames // 2), count_include_pad=False)
        return self.features(level - surroundings)


class Bands(_Stack):
    """EBEN's multi-band discriminator: PQMF sub-bands as channels at the sub-band rate.

    The bands are compressed by asinh, so that the quiet upper ones are seen beside the loud lower ones.
    """

    def __init__(self, bands: int, dilation: int, width: int) -> None:
        w, d = width, dilation
        super().__init__(
            [
                _conv(bands, w, (1, 3), padding=(0, d), dilation=(1, d)),
                _conv(w, w, (1, 7), stride=(1, 2), padding=(0, 3 * d), dilation=(1, d)),
                _conv(w, 2 * w, (1, 7), stride=(1, 2), padding=(0, 3 * d), dilation=(1, d)),
                _conv(2 * w, 2 * w, (1, 5), stride=(1, 2), padding=(0, 2)),
                _conv(2 * w, 1, (1, 3), padding=(0, 1)),
            ]
        )
        self.pqmf = dsp.PQMF(bands)

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, 1, T)` -> maps `(B, D, 1, N)`."""
        bands = self.pqmf.analysis(F.pad(x.float(), (0, -x.shape[-1] % self.pqmf.bands)))
        return self.features(torch.asinh(bands * 1000).unsqueeze(2) * 0.3)


class Ensemble(nn.Module):
    """Any combination of sub-discriminators.

    Attributes:
        names: of the sub-discriminators, e.g. "mpd_2", "msd_1", "mrd_512", "mbd_1".
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        members: dict[str, nn.Module] = {f"mpd_{p}": Period(p, c.period_width) for p in c.periods}
        members |= {f"msd_{2**i}": Scale(2**i, c.scale_width) for i in range(c.scales)}
        members |= {f"mrd_{n}": Spectrum(n, c.stft_width, c.fine) for n in c.fft_sizes}
        members |= {f"mbd_{d}": Bands(c.bands, d, c.band_width) for d in c.band_dilations if c.bands}
        self.names = list(members)
        self.members = nn.ModuleList(members.values())

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Indices of the members that take part in a step: all, or `subset` of them in order."""
        if not 0 < self.config.subset < len(self):
            return list(range(len(self)))
        return sorted(rng.permutation(len(self))[: self.config.subset].tolist())

    def parameters_of(self, subset: list[int]) -> list[nn.Parameter]:
        """The parameters of the members that take part."""
        return [parameter for index in subset for parameter in self.members[index].parameters()]

    def warm_start(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what has the same name and shape in the state of another ensemble; the rest stays as it is."""
        own = self.state_dict()
        fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
        self.load_state_dict(own | fitting)

    def forward(self, x: Tensor, subset: list[int] | None = None) -> list[list[Tensor]]:
        """`(B, 1, T)` -> one list of feature maps per member of `subset` (default: all); the last map is the score."""
        emphasised = x
        if self.config.pre_emphasis:
            for _ in range(2):
                emphasised = emphasised - self.config.pre_emphasis * F.pad(emphasised[..., :-1], (1, 0))
            # What is left of speech is small and spans 60 dB; compressed, its pauses count too.
            emphasised = torch.asinh(emphasised * 300) * 0.3
        outputs = []
        for index in range(len(self)) if subset is None else subset:
            member = self.members[index]
            outputs.append(member(emphasised if isinstance(member, Period | Scale) else x))
        return outputs
