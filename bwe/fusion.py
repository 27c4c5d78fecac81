"""What a body and one or more air microphones say frame by frame, as conditioning of a generator that hears them all."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Feature = Literal["f0", "bank", "direction"]

_BANDS = 20
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 400.0
_OCTAVE_COST = 0.03
_FLOOR = 1e-8


class FrameFeatures(nn.Module):
    """Features of every `hop` samples, from signals `(B, 1 + A, T)`: a body microphone and A air microphones.

    * "f0": of the body signal, which noise in the air hardly reaches: log2 of the frequency over 150 Hz at the largest peak of
      the normalised autocorrelation (Boersma 1993, eq. 9 and its octave cost, without interpolation), and that peak's height;
    * "bank": log-energies of each signal in ERB-spaced bands (Glasberg & Moore 1990);
    * "direction", for two air microphones: cosine and sine of their phase difference in each of these bands, and their level
      difference. A talker straight ahead reaches both at once; noise comes from elsewhere.

    Attributes:
        size: features per frame.
    """

    def __init__(self, sample_rate: int, hop: int, air: int, features: tuple[Feature, ...]) -> None:
        super().__init__()
        self.sample_rate, self.hop, self.features = sample_rate, hop, features
        # Two periods of the lowest voice, and a power of two.
        self.n_fft = 2 ** math.ceil(math.log2(2.5 * sample_rate / _LOWEST_HZ))
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.window: Tensor
        top = 21.4 * math.log10(1 + 0.00437 * sample_rate / 2)
        edges = (10 ** (torch.linspace(0, top, _BANDS + 1) / 21.4) - 1) / 0.00437
        frequency = torch.linspace(0, sample_rate / 2, self.n_fft // 2 + 1)
        member = F.one_hot(torch.bucketize(frequency, edges[1:-1], right=True), _BANDS).float()
        self.register_buffer("member", member / member.sum(0).clamp(min=1), persistent=False)
        self.member: Tensor
        # The autocorrelation of the window, by which that of a windowed frame is too low at long lags.
        own = torch.fft.irfft(torch.fft.rfft(self.window, 2 * self.n_fft).abs().square())[: self.n_fft]
        self.register_buffer("of_window", own / own[0], persistent=False)
        self.of_window: Tensor
        sizes = {"f0": 2, "bank": _BANDS * (1 + air), "direction": 3 * _BANDS}
        self.size = sum(sizes[name] for name in features)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """`(B, 1 + A, T)`, T a multiple of `hop` -> `(B, size, T / hop)`, frame n around the middle of its hop."""
        frames = x.shape[-1] // self.hop
        around = (self.n_fft - self.hop) // 2
        padded = F.pad(x.float(), (around, self.n_fft - self.hop - around))
        blocks = padded.unfold(-1, self.n_fft, self.hop)[..., :frames, :] * self.window
        spectrum = torch.fft.rfft(blocks)
        found = []
        for name in self.features:
            if name == "f0":
                found.append(self._f0(blocks[:, 0]))
            elif name == "bank":
                level = (spectrum.abs().square() @ self.member + _FLOOR).log()
                found.append((0.1 * level).permute(0, 1, 3, 2).flatten(1, 2))
            else:
                cross = spectrum[:, 1] * spectrum[:, 2].conj()
                parts = torch.view_as_real(cross).transpose(-1, -2) @ self.member
                phase = parts / parts.square().sum(-2, keepdim=True).sqrt().clamp(min=_FLOOR)
                power = spectrum[:, 1:3].abs().square() @ self.member + _FLOOR
                level = 0.5 * (power[:, 0] / power[:, 1]).log()
                found.append(torch.cat([phase[..., 0, :], phase[..., 1, :], level], dim=-1).transpose(1, 2))
        return torch.cat(found, dim=1)

    def _f0(self, blocks: Tensor) -> Tensor:
        """`(B, N, n_fft)` windowed frames -> `(B, 2, N)`."""
        power = torch.fft.rfft(blocks, 2 * self.n_fft).abs().square()
        own = torch.fft.irfft(power)[..., : self.n_fft]
        shortest, longest = (math.ceil(self.sample_rate / hz) for hz in (_HIGHEST_HZ, _LOWEST_HZ))
        lags = slice(shortest, longest + 1)
        normal = own[..., lags] / own[..., :1].clamp(min=_FLOOR) / self.of_window[lags]
        # Of peaks as high, the shortest: multiples of a period are periods, too.
        octaves = torch.log2(torch.arange(shortest, longest + 1, device=own.device) / shortest)
        place = (normal - _OCTAVE_COST * octaves).argmax(-1)
        height = normal.gather(-1, place[..., None])[..., 0]
        hz = self.sample_rate / (place + shortest)
        return torch.stack([torch.log2(hz / 150) * height.clamp(0, 1), height.clamp(-1, 1)], dim=1)


class FrameFilm(nn.Module):
    """Scale and shift of a level of the network by features of every frame (Perez et al. 2018, eq. 1, in time)."""

    def __init__(self, size: int, channels: int, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(size, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, 2 * channels, 1))
        last = self.net[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, size, N)` -> scale and shift for `layers.modulate`, `(B, channels, 1, N)` each."""
        scale, shift = self.net(features).unsqueeze(2).chunk(2, dim=1)
        return 1 + scale, shift
