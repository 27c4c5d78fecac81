"""A causal generator on its way through a live signal, in as few operations as it takes.

A block of 8 ms gives a convolution 1 to 16 frames to work on: less than it costs to call it, to rearrange memory for it, and
to join and cut what it remembers. So the network is written here a second time, frames by channels, `(N, D)`: the taps of a
convolution are rows of one table, laid side by side, and one matrix product takes them all; what is linear over time (local
means, straight lines between them) is a product with a constant; what has to be remembered is the end of a table that is
there anyway. The same operations run in PyTorch and, exported, in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bwe.errors import AudioError
from bwe.generators import EDGE_STEP, LEVEL_FLOOR, LOG_GAIN_MAX, LOG_LEVEL_SCALE, LOG_LEVEL_SHIFT, SEANet
from bwe.layers import Conv, activate, modulate, reach

# Hops that are taken at once, where they have no more than so many rows: more gain nothing, as the tables leave the cache, and
# few sizes need few constants.
_HOPS_AT_ONCE = (64, 32, 16, 8, 4, 2, 1)
_MOST_ROWS = 1024


class Told(NamedTuple):
    """`generators.Told` for one signal: scale and shift `(D,)` of every level, the splice `(taps * 2 * bands, bands)`."""

    modulation: list[tuple[Tensor, Tensor]]
    splice: Tensor


class Memory:
    """What the places that look back have seen, in the order in which they ask.

    With `held` of the last block, that is what came before this one; without, silence did. `tables` are what the places work
    on; of them the last `counts` rows are to be held for the next block.
    """

    def __init__(self, held: Sequence[Tensor] | None = None) -> None:
        self._held = held
        self.tables: list[Tensor] = []
        self.counts: list[int] = []

    def before(self, x: Tensor, count: int) -> Tensor:
        """`(N, D)` -> `(count + N, D)`."""
        earlier = x.new_zeros(count, x.shape[1]) if self._held is None else self._held[len(self.tables)]
        table = torch.cat([earlier, x])
        self.tables.append(table)
        self.counts.append(count)
        return table

    def kept(self) -> list[Tensor]:
        """What the next block holds."""
        return [table[len(table) - count :] for table, count in zip(self.tables, self.counts, strict=True)]


class _Windows(nn.Module):
    """Windows of `kernel` rows, `dilation` apart, one for each `stride` rows, whose last row is its last."""

    def __init__(self, kernel: int, dilation: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.dilation, self.stride = kernel, dilation, stride
        self.count = reach(kernel, dilation, stride)
        self._rows: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """`(N, D)` -> `(N / stride, kernel * D)`."""
        table = memory.before(x, self.count)
        number = len(x) // self.stride
        if number == 1 and self.dilation == 1:
            return table.view(1, -1)
        key = number, x.device
        if key not in self._rows:
            rows = self.stride * np.arange(number)[:, None] + self.dilation * np.arange(self.kernel)
            self._rows[key] = torch.from_numpy(rows.reshape(-1)).to(x.device)
        return table.index_select(0, self._rows[key]).view(number, -1)


class _Product(nn.Module):
    """A causal convolution, `(N, d_in)` -> `(N / stride, d_out)`.

    Its input channels come in the order `inputs`; with `outputs`, only the first so many output channels are computed.
    """

    def __init__(self, conv: nn.Module, inputs: Tensor | None = None, outputs: int | None = None) -> None:
        super().__init__()
        assert isinstance(conv, Conv)
        assert conv.bias is not None
        kernel = conv.kernel_size[1]
        self.windows = _Windows(kernel, conv.dilation[1], conv.stride[1]) if kernel > 1 else None
        weight = conv.weight[:outputs, :, 0]
        self.register_buffer("weight", side_by_side(weight if inputs is None else weight[:, inputs]))
        self.register_buffer("bias", conv.bias[:outputs].clone())
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return torch.addmm(self.bias, x if self.windows is None else self.windows(x, memory), self.weight)


def side_by_side(weight: Tensor) -> Tensor:
    """The weight `(d_out, d_in, kernel)` of a convolution as a matrix `(kernel * d_in, d_out)`."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0]).contiguous()


class _Means(nn.Module):
    """Means of `step` rows each, and straight lines between the running means of four of those, as matrices."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self._matrices: dict[tuple[int, torch.device], tuple[Tensor, ...]] = {}

    def matrices(self, x: Tensor) -> tuple[Tensor, ...]:
        """For `(N, D)`: to M = N / step means, from 4 + M of them to M + 1 knots, from those to N rows, and the last two in
        one."""
        key = len(x), x.device
        if key not in self._matrices:
            count = len(x) // self.step
            means = np.kron(np.eye(count), np.full((1, self.step), 1 / self.step))
            knots = sum(np.eye(count + 1, count + 4, k) for k in range(4)) / 4
            ahead = (np.arange(self.step) + 0.5)[:, None] / self.step
            lines = np.kron(np.eye(count, count + 1), 1 - ahead) + np.kron(np.eye(count, count + 1, 1), ahead)
            all_four = (means, knots, lines, lines @ knots)
            self._matrices[key] = tuple(torch.tensor(m, dtype=torch.float32, device=x.device) for m in all_four)
        return self._matrices[key]


class Stepper(nn.Module):
    """A causal `SEANet` in blocks of whole hops: joined, what it says is what the network says of the whole signal."""

    def __init__(self, net: SEANet) -> None:
        """With the weights of the convolutions as they are now; what a cut-off does the network is asked for every stream."""
        super().__init__()
        assert net.causal
        self.config = c = net.config
        self.hop = net.hop
        self._tell = net.tell
        with torch.no_grad():
            filters = net.pqmf.filters[:, 0]
            padded = nn.functional.pad(filters, (0, -filters.shape[-1] % c.bands))
            self.register_buffer("analysis", padded.t().contiguous())
            self.register_buffer("synthesis", side_by_side(net.pqmf.late))
            self.register_buffer("texture_mix", net.texture_mix.t().clone())
            self.analysis: Tensor
            self.synthesis: Tensor
            self.texture_mix: Tensor
            self.analysis_windows = _Windows(padded.shape[-1] // c.bands)
            self.synthesis_windows = _Windows(net.pqmf.late.shape[-1])
            self.splice_windows = _Windows(net.tell(torch.tensor([1000.0], device=filters.device)).splice.shape[-1])
            # What is whitened comes in one piece here, the levels after it.
            order = torch.arange(net.stem.in_channels).view(-1, c.bands)
            self.stem = _Product(net.stem, inputs=(order[[0, 2, 1]] if c.excitation else order).reshape(-1))
            self.encoder = nn.ModuleList(_pairs(units) for units in net.encoder)
            self.down = nn.ModuleList(_Product(conv) for conv in net.down)
            self.bottleneck = nn.ModuleList(_branches(block) for block in net.bottleneck)
            self.up = nn.ModuleList(_Product(up.conv) for up in net.up)  # type: ignore[arg-type]
            self.decoder = nn.ModuleList(_branches(block) for block in net.decoder)
            assert net.head.bias is not None
            own = net.head.weight[2 * c.bands :], net.head.bias[2 * c.bands :]
            self.owns = any(bool(part.any()) for part in own)  # shipped ones say nothing there
            self.head = _Product(net.head, outputs=(2 + self.owns) * c.bands)
        self.level_means, self.edge_means = _Means(c.level_frames // 4), _Means(EDGE_STEP)

    def tell(self, cutoff_hz: float) -> Told:
        """What the network makes of a cut-off in Hz."""
        told = self._tell(torch.tensor([cutoff_hz], device=self.analysis.device))
        modulation = [(scale.view(-1), shift.view(-1)) for scale, shift in told.modulation]
        return Told(modulation, side_by_side(told.splice[0]))

    def stream(self, cutoff_hz: float) -> Stream:
        """A signal that begins."""
        return Stream(self, cutoff_hz)

    def forward(self, rows: Tensor, told: Told, memory: Memory) -> Tensor:
        """`SEANet.missing_band` and the splice of a block, whose samples are the rows `(n * hop / bands, bands)`."""
        c = self.config
        modulation = iter(told.modulation)
        bands, white, level = self._whitened(self.analysis_windows(rows, memory), memory)
        excitation = white[:, c.bands :]
        h = self.stem(torch.cat([white, level.log() * LOG_LEVEL_SCALE + LOG_LEVEL_SHIFT], dim=1), memory)
        skips = []
        for units, down in zip(self.encoder, self.down, strict=True):
            h = modulate(h, next(modulation))
            for dilated, mix in units:  # type: ignore[attr-defined]
                h = h + mix(activate(dilated(activate(h), memory)), memory)
            skips.append(h)
            h = down(activate(h), memory)
        for block in self.bottleneck:
            h = _fused(block, modulate(h, next(modulation)), memory)
        for up, block, skip in reversed(list(zip(self.up, self.decoder, skips, strict=True))):
            h = up(activate(h), memory).view(-1, skip.shape[1]) + skip
            h = _fused(block, modulate(h, next(modulation)), memory)
        texture, log_gain, *own = self.head(activate(h), memory).split(c.bands, dim=1)
        texture = self._without_edges(texture, memory)
        if c.excitation:
            texture = texture + self.texture_mix * excitation
        reference = ((level * level).mean(dim=1, keepdim=True) - LEVEL_FLOOR**2).relu().sqrt()
        generated = texture * (log_gain.clamp(max=LOG_GAIN_MAX).exp() * reference)
        if self.owns:
            generated = generated + own[0] * bands
        y = self.synthesis_windows(generated, memory) @ self.synthesis
        if c.passthrough:
            y = self.splice_windows(torch.cat([rows, y], dim=1), memory) @ told.splice
        return y

    def _whitened(self, taps: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Sub-bands `(N, K)`, those and the excitation's at unit local level `(N, 2 K)`, the local level of the former."""
        bands = taps @ self.analysis
        both = torch.cat([bands, taps.abs() @ self.analysis], dim=1) if self.config.excitation else bands
        means, knots, lines, _ = self.level_means.matrices(both)
        power = knots @ memory.before(means @ (both * both), 4)
        levels = lines @ (power + LEVEL_FLOOR**2).sqrt()
        return bands, both / levels, levels[:, : self.config.bands]

    def _without_edges(self, texture: Tensor, memory: Memory) -> Tensor:
        phases = texture.reshape(-1, 2 * self.config.bands)
        means, _, _, straight = self.edge_means.matrices(phases)
        return torch.addmm(phases, straight, memory.before(means @ phases, 4), alpha=-1).view(texture.shape)


class Stream:
    """One signal on its way through a `Stepper`."""

    def __init__(self, network: Stepper, cutoff_hz: float) -> None:
        self._network = network
        self._held: list[Tensor] | None = None
        with torch.inference_mode(), torch.autocast(network.analysis.device.type, enabled=False):
            self._told = network.tell(cutoff_hz)

    @torch.inference_mode()
    def advance(self, x: Tensor) -> Tensor:
        """The next block, `(n * hop,)` -> the same of the output, `SEANet.delay` samples late.

        Raises AudioError for another length.
        """
        hop, bands = self._network.hop, self._network.config.bands
        if x.dim() != 1 or len(x) % hop:
            raise AudioError(f"a stream takes blocks of n * {hop} samples, not of shape {tuple(x.shape)}")
        out = []
        with torch.autocast(x.device.type, enabled=False):
            for count in _HOPS_AT_ONCE:
                while len(x) >= count * hop and (count == 1 or count * hop <= _MOST_ROWS * bands):
                    memory = Memory(self._held)
                    out.append(self._network(x[: count * hop].view(-1, bands), self._told, memory).view(-1))
                    # A view of a long table would keep it in memory until the next block has gone through.
                    self._held = [rows.clone() if count > 1 else rows for rows in memory.kept()]
                    x = x[count * hop :]
        return out[0] if len(out) == 1 else torch.cat(out) if out else x


def _pairs(units: Any) -> nn.ModuleList:
    both = zip(units.dilated, units.mix, strict=True)
    return nn.ModuleList(nn.ModuleList(_Product(conv) for conv in pair) for pair in both)


def _branches(block: Any) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleList(_Product(conv) for conv in branch) for branch in block.branches)


def _fused(branches: Any, x: Tensor, memory: Memory) -> Tensor:
    """`layers.MRF`."""
    ends = []
    for branch in branches:
        y = x
        for product in branch:
            y = y + product(activate(y), memory)
        ends.append(y)
    return ends[0] if len(ends) == 1 else sum(ends[1:], ends[0]) / len(ends)
