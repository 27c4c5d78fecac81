"""Building blocks of the generators: same-length convolutions, residual and MRF blocks, FiLM, sub-pixel up-sampling.

All take and return `(B, D, 1, N)` in channels-last memory, which is `(B, N, D)` to the convolution kernels of a CPU and runs
1.2 to 3 times as fast there as `(B, D, N)`; stride-1 blocks keep N. The same weights are centred or, told so, causal: then
silence comes before a signal, and a frame knows nothing of what comes after it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

LEAK = 0.1


def reach(kernel: int, dilation: int, stride: int) -> int:
    """Frames that a causal convolution needs before a block: an output stands for the whole of its stride."""
    return dilation * (kernel - 1) - (stride - 1)


class Conv(nn.Conv2d):
    """A convolution along N: centred and length-keeping, or, with a stride, N -> N / stride."""

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        if not causal:
            return super().forward(x)
        before = reach(self.kernel_size[1], self.dilation[1], self.stride[1])
        return F.conv2d(F.pad(x, (before, 0)), self.weight, self.bias, self.stride, 0, self.dilation)


def conv(d_in: int, d_out: int, kernel: int, dilation: int = 1, stride: int = 1, gain: float = 1.0) -> Conv:
    """Weight-normalised `Conv`.

    The initial weights give unit-variance outputs for unit-variance inputs, times `gain`.
    """
    # A strided kernel longer than its stride covers each hop symmetrically.
    padding = dilation * (kernel - 1) // 2 if stride == 1 else (kernel - stride) // 2
    layer = Conv(d_in, d_out, (1, kernel), stride=(1, stride), dilation=(1, dilation), padding=(0, padding))
    nn.init.normal_(layer.weight, std=gain / math.sqrt(d_in * kernel))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return weight_norm(layer)


def fold_weight_norm(module: nn.Module) -> nn.Module:
    """Replaces every weight-normalised weight below `module` by its product, in place; returns the module."""
    for child in module.modules():
        if is_parametrized(child, "weight"):
            remove_parametrizations(child, "weight", leave_parametrized=True)
    return module


def load_folded(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads the state of a folded module into the same module with weight norm: exact, as a weight is its own direction
    times its own norm. Raises RuntimeError where names or shapes differ."""
    normed = {f"{name}.weight" for name, child in module.named_modules() if is_parametrized(child, "weight")}
    rest = {name: tensor for name, tensor in state.items() if name not in normed}
    result = module.load_state_dict(rest, strict=False)
    missing = [name for name in result.missing_keys if ".parametrizations.weight." not in name]
    missing += sorted(normed - state.keys())
    if missing or result.unexpected_keys:
        raise RuntimeError(f"missing {missing}, unexpected {result.unexpected_keys}")
    with torch.no_grad():
        for name, child in module.named_modules():
            if is_parametrized(child, "weight"):
                if child.weight.shape != state[f"{name}.weight"].shape:
                    raise RuntimeError(f"{name}.weight is {tuple(state[f'{name}.weight'].shape)}")
                # Not `child.weight = …`: that makes the tensor given the parameter's own storage, device and all.
                norm = child.parametrizations.weight
                magnitude, direction = norm[0].right_inverse(state[f"{name}.weight"].to(norm.original0.device))
                norm.original0.copy_(magnitude)
                # A weight of zeros has no direction: any will do, and 0 / 0 would be one.
                norm.original1.copy_(direction.masked_fill(magnitude == 0, 1.0))


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU; Snake, ELU and tanh cost 7 to 25 times as much on a CPU."""
    return F.leaky_relu(x, LEAK)


class Film(nn.Module):
    """Feature-wise affine modulation `x * (1 + a) + b` by a conditioning vector (Perez et al. 2018, eq. 1)."""

    def __init__(self, conditioning: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(conditioning, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, conditioning)` -> scale and shift for `modulate`, `(B, D, 1, 1)` each."""
        scale, shift = self.affine(condition)[:, :, None, None].chunk(2, dim=1)
        return 1 + scale, shift


def modulate(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Scaled and shifted by what a `Film` says; channels of all three where they meet."""
    return torch.addcmul(by[1], x, by[0])


class ResidualUnits(nn.Module):
    """EBEN/SEANet encoder units: for each dilation `x + conv1(act(conv_k(act(x))))` (Tagliasacchi et al. 2020)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(conv(channels, channels, kernel, d) for d in dilations)
        self.mix = nn.ModuleList(conv(channels, channels, 1, gain=0.5) for _ in dilations)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """`(B, D, 1, N)` -> `(B, D, 1, N)`."""
        for dilated, mix in zip(self.dilated, self.mix, strict=True):
            x = x + mix(activate(dilated(activate(x), causal)))
        return x


class MRF(nn.Module):
    """Multi-receptive-field fusion: the mean of residual branches, one per kernel, each running through the dilations with
    one convolution a step, `x + conv_k,d(act(x))` (Kong et al. 2020, HiFi-GAN, fig. 1, residual block of its V3)."""

    def __init__(self, channels: int, kernels: tuple[int, ...], dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(conv(channels, channels, k, d, gain=0.5) for d in dilations) for k in kernels
        )

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """`(B, D, 1, N)` -> `(B, D, 1, N)`."""
        total: Tensor | None = None
        for branch in self.branches:
            y = x
            for layer in branch:  # type: ignore[attr-defined]
                y = y + layer(activate(y), causal)
            total = y if total is None else total + y
        assert total is not None
        return total if len(self.branches) == 1 else total / len(self.branches)


class SubPixel(nn.Module):
    """Up-sampling by a convolution to `stride * d_out` channels that are interleaved in time (Shi et al. 2016, eq. 4).

    The sub-filters start equal (Aitken et al. 2017), so nothing of the checkerboard of transposed convolutions is there
    at initialisation, and there is no kernel overlap that could bring it back.
    """

    def __init__(self, d_in: int, d_out: int, stride: int, kernel: int = 3) -> None:
        super().__init__()
        self.stride = stride
        self.conv = conv(d_in, d_out * stride, kernel)
        with torch.no_grad():
            self.conv.weight = self.conv.weight[:d_out].repeat(stride, 1, 1, 1)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """`(B, d_in, 1, N)` -> `(B, d_out, 1, N * stride)`."""
        # Only strides change: in channels-last memory the phases of a frame already lie one after the other.
        return rearrange(self.conv(x, causal), "b (s d) 1 n -> b d 1 (n s)", s=self.stride)
