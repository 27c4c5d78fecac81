"""Adversarial, feature and spectral losses, and the balancing of their gradients.

Discriminator outputs are lists (one entry per sub-discriminator) of lists of feature maps whose last map is the score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import auraloss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bwe import dsp

Features = list[list[Tensor]]
# The three parts of a generator's loss: reconstruction, feature matching, adversarial.
TERMS = ("rec", "feat", "adv")
# The power floor of the LSD metric: a loss that stops above it never learns the noise floor that the metric sees.
POWER_FLOOR = 1e-8


def generator_adversarial(fake: Features, kind: Literal["hinge", "ls"] = "hinge") -> Tensor:
    """What the generator minimises: `-mean D(y)` (hinge, Lim & Ye 2017) or `mean (1 - D(y))^2` (Mao et al. 2017, eq. 9)."""
    if kind == "hinge":
        return torch.stack([-maps[-1].float().mean() for maps in fake]).mean()
    return torch.stack([(1 - maps[-1].float()).square().mean() for maps in fake]).mean()


def discriminator_adversarial(real: Features, fake: Features, kind: Literal["hinge", "ls"] = "hinge") -> Tensor:
    """What a discriminator minimises: `mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))` (hinge), or
    `mean (1 - D(x))^2 + mean D(y)^2` (least squares)."""
    terms = []
    for r, f in zip(real, fake, strict=True):
        score_r, score_f = r[-1].float(), f[-1].float()
        if kind == "hinge":
            terms.append(F.relu(1 - score_r).mean() + F.relu(1 + score_f).mean())
        else:
            terms.append((1 - score_r).square().mean() + score_f.square().mean())
    return torch.stack(terms).mean()


def feature_matching(real: Features, fake: Features) -> Tensor:
    """Mean absolute feature difference over that of the reference features, all layers but the score.

    Normalised by the reference (Defossez et al. 2022, EnCodec, eq. 2), so that larger generated features cannot lower it;
    item by item, so that the loss of a batch is the mean of the losses of its parts.
    """
    terms = []
    for maps_r, maps_f in zip(real, fake, strict=True):
        for r, f in zip(maps_r[:-1], maps_f[:-1], strict=True):
            reference = r.detach().float().flatten(1)
            error = (f.float().flatten(1) - reference).abs().mean(1)
            terms.append((error / reference.abs().mean(1).clamp(min=1e-6)).mean())
    return torch.stack(terms).mean()


class MultiResolutionSTFT(nn.Module):
    """auraloss' multi-resolution STFT loss (Yamamoto et al. 2020), log-magnitude and optional spectral convergence, down
    to the power floor of LSD; hops are a quarter of the windows."""

    def __init__(self, fft_sizes: tuple[int, ...], spectral_convergence: float = 0.0) -> None:
        super().__init__()
        self.loss = auraloss.freq.MultiResolutionSTFTLoss(
            fft_sizes=list(fft_sizes),
            hop_sizes=[n // 4 for n in fft_sizes],
            win_lengths=list(fft_sizes),
            w_sc=spectral_convergence,
            w_log_mag=1.0,
            w_lin_mag=0.0,
            eps=POWER_FLOOR,
        )
        for resolution in self.loss.stft_losses:
            # auraloss also computes phases that only its phase term uses, a tenth of a training step on a CPU.
            resolution.stft = partial(self._magnitude, resolution)

    @staticmethod
    def _magnitude(resolution: auraloss.freq.STFTLoss, x: Tensor) -> tuple[Tensor, None]:
        power = dsp.power_spectrogram(x, resolution.fft_size, resolution.hop_size)
        return power.clamp(min=resolution.eps).sqrt(), None

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """`(B, 1, T)`, `(B, 1, T)` -> scalar, in nepers."""
        loss: Tensor = self.loss(estimate, reference)
        return loss


class SISDR(nn.Module):
    """auraloss' negative scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, eq. 5), in units of 10 dB."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = auraloss.time.SISDRLoss()

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """`(B, 1, T)`, `(B, 1, T)` -> scalar."""
        loss: Tensor = self.loss(estimate, reference)
        return loss / 10


class SpectralMSE(nn.Module):
    """Mean square error of STFTs (periodic Hann window, a quarter of it as hop): of their real and imaginary parts
    ("complex"), or of their magnitudes ("magnitude"), as DPCRN is trained on (Le et al. 2021, eq. 5 to 7).

    The first is least for the mean of all phases that may be, which above what can be predicted is nothing.
    """

    def __init__(self, kind: Literal["complex", "magnitude"], n_fft: int = 512) -> None:
        super().__init__()
        self.kind, self.n_fft = kind, n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.window: Tensor

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """`(B, 1, T)`, `(B, 1, T)` -> scalar, in squares of un-normalised STFT bins."""
        made, wanted = (
            torch.stft(x[:, 0].float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
            for x in (estimate, reference)
        )
        if self.kind == "complex":
            return torch.view_as_real(made - wanted).square().mean()
        return (made.abs() - wanted.abs()).square().mean()


class LogMel(nn.Module):
    """L1 distance of log-mel spectrograms at several resolutions, in nepers of magnitude.

    Each mel band's power is floored at what a band full of `POWER_FLOOR` would hold.
    """

    def __init__(self, sample_rate: int, resolutions: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.resolutions = resolutions

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """`(B, 1, T)`, `(B, 1, T)` -> scalar."""
        terms = []
        for n_fft, n_mels in self.resolutions:
            bank = dsp.mel_filterbank(self.sample_rate, n_fft, n_mels).to(estimate.device)
            floor = bank.sum(0).clamp(min=1.0)[:, None] * POWER_FLOOR
            logs = [(bank.T @ dsp.power_spectrogram(x, n_fft, n_fft // 4) + floor).log() for x in (estimate, reference)]
            terms.append((logs[0] - logs[1]).abs().mean() / 2)
        return torch.stack(terms).mean()


class SourceAdaptive(nn.Module):
    """Fine structure where a pitch is held, envelope where none is: per frame, `2 s H + 2 (1 - s) E` with the stability s of
    F0 (`pitch.stability`), H the L1 distance of log-magnitude STFTs and E that of log-mel spectrograms, in nepers; the mean
    over resolutions. At s = 0.5 throughout it is the sum of the two.
    """

    def __init__(self, sample_rate: int, fft_sizes: tuple[int, ...], mels: int = 40) -> None:
        super().__init__()
        self.sample_rate, self.fft_sizes, self.mels = sample_rate, fft_sizes, mels

    def forward(self, estimate: Tensor, reference: Tensor, stability: Tensor) -> Tensor:
        """`(B, 1, T)`, `(B, 1, T)`, `(B, N)` spread evenly over T -> scalar."""
        terms = []
        for n_fft in self.fft_sizes:
            bank = dsp.mel_filterbank(self.sample_rate, n_fft, self.mels).to(estimate.device)
            floor = bank.sum(0).clamp(min=1.0)[:, None] * POWER_FLOOR
            powers = [dsp.power_spectrogram(x[:, 0], n_fft, n_fft // 4) for x in (estimate, reference)]
            fine = [power.clamp(min=POWER_FLOOR).log() for power in powers]
            envelope = [(bank.T @ power + floor).log() for power in powers]
            harmonic, noise = ((a - b).abs().mean(-2) / 2 for a, b in (fine, envelope))
            held = F.interpolate(stability[:, None], size=harmonic.shape[-1], mode="linear", align_corners=True)[:, 0]
            terms.append((2 * held * harmonic + 2 * (1 - held) * noise).mean())
        return torch.stack(terms).mean()


class BandEnergy(nn.Module):
    """Distance in level of broad bands (ERB-spaced, Glasberg & Moore 1990), as the root mean square over bands of the error
    in bels, like LSD's but of energies: it fixes the envelope and says nothing of the fine structure.

    Half of it is the mean over frames, half is that of the energy over the whole clip: frame by frame a hedged, too quiet
    guess is cheap, in the sum it is not.
    """

    def __init__(self, sample_rate: int, bands: int = 32, n_fft: int = 2048) -> None:
        super().__init__()
        self.n_fft = n_fft
        top = 21.4 * torch.log10(torch.tensor(1 + 0.00437 * sample_rate / 2))
        edges = (10 ** (torch.linspace(0, float(top), bands + 1) / 21.4) - 1) / 0.00437
        frequency = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1)
        index = (torch.bucketize(frequency, edges[1:-1], right=True)).clamp(max=bands - 1)
        members = F.one_hot(index, bands).float()
        self.register_buffer("mean", members / members.sum(0).clamp(min=1), persistent=False)
        self.mean: Tensor

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """`(B, 1, T)`, `(B, 1, T)` -> scalar."""
        power = [self.mean.T @ dsp.power_spectrogram(x, self.n_fft, self.n_fft // 4) for x in (estimate, reference)]
        terms = []
        for estimated, wanted in (power, [p.mean(dim=-1, keepdim=True) for p in power]):
            error = (estimated + POWER_FLOOR).log10() - (wanted + POWER_FLOOR).log10()
            terms.append((error.square().mean(dim=-2) + 1e-6).sqrt().mean())
        return (terms[0] + terms[1]) / 2


@dataclass(frozen=True, kw_only=True)
class BalancerConfig:
    """How the gradients of several losses are weighed against each other.

    Attributes:
        mode: "ratio": every loss but the first is weighted by its share over the first's, times ‖grad first‖ / ‖grad own‖
            of this step (Esser et al. 2021, VQGAN, eq. 7). "shares": the same with both norms averaged over time
            (Defossez et al. 2022, EnCodec, eq. 4). "fixed": the shares themselves are the weights of the losses.
        shares: relative part of each loss in the gradient at the generator's last layer, by name.
        decay: of the moving averages in "shares" mode.
        limit: largest weight.
    """

    mode: Literal["ratio", "shares", "fixed"] = "shares"
    shares: dict[str, float]
    decay: float = 0.99
    limit: float = 1e4


def output_gradients(terms: dict[str, Tensor], output: Tensor, last: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients of several losses at the generator's output and at its last layer.

    The gradient of each loss is taken once, at the output; from there to the last layer costs only that layer's own
    backward pass, so weighing the losses does not multiply the cost of the generator.

    Args:
        terms: scalars that depend on `output`.
        output: the generator's output, `(B, 1, T)`.
        last: a parameter of its last layer.

    Returns:
        by the names of the terms: gradients `(B, 1, T)`, and gradients of the shape of `last`.
    """
    at_output: dict[str, Tensor] = {}
    at_last: dict[str, Tensor] = {}
    for name, term in terms.items():
        (at_output[name],) = torch.autograd.grad(term, output, retain_graph=True)
        (own,) = torch.autograd.grad(output, last, grad_outputs=at_output[name], retain_graph=True)
        at_last[name] = own.detach()
    return at_output, at_last


class GradBalancer:
    """Weighs losses by the norms of their gradients at the generator's last layer."""

    def __init__(self, config: BalancerConfig) -> None:
        self.config = config
        self.norms: dict[str, float] = {}

    def weigh(self, at_last: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        """Weights by name, and numbers to log (`balance/norm/<loss>`, `balance/weight/<loss>`).

        Args:
            at_last: each loss' gradient at the last layer (of the whole batch); the first is the reference of the weights.
        """
        c = self.config
        norms = {name: float(gradient.norm()) for name, gradient in at_last.items()}
        if c.mode == "shares" and all(map(math.isfinite, norms.values())):  # a broken step does not count
            for name, norm in norms.items():
                # A loss seen for the first time starts from its own norm rather than from zero.
                self.norms[name] = self.norms.get(name, norm) * c.decay + norm * (1 - c.decay)
            norms = {name: self.norms[name] for name in norms}
        if c.mode == "fixed":
            weights = {name: c.shares[name] for name in norms}
        else:
            first = next(iter(norms))
            weights = {
                name: min(c.limit, c.shares[name] / c.shares[first] * norms[first] / max(norm, 1e-12))
                for name, norm in norms.items()
            }
        stats = {f"balance/norm/{name}": norm for name, norm in norms.items()}
        return weights, stats | {f"balance/weight/{name}": weight for name, weight in weights.items()}

    def state_dict(self) -> dict[str, float]:
        return dict(self.norms)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.norms = dict(state)
