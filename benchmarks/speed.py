"""How fast a model is on this machine's CPU, beside two published trunk shapes timed in the same process.

    python benchmarks/speed.py                    # the shipped speech-48k
    python benchmarks/speed.py --size B           # an untrained generator of that size
    python benchmarks/speed.py --threads 2 --json speed.json

Absolute times belong to the machine; the ratios carry over. All in eager PyTorch, float32, random or trained weights alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bwe import generators, infer
from bwe.errors import BweError

RATE = 48_000


class ConvNeXtBlock(nn.Module):
    """Depthwise k 7, LayerNorm, two linear layers with GELU between, layer scale, residual; `(B, C, N)`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), 0.125))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).transpose(1, 2))
        return x + (self.scale * self.narrow(F.gelu(self.widen(h)))).transpose(1, 2)


class VocosLike(nn.Module):
    """14 M: 100 mel bands -> 8 ConvNeXt blocks 512/1536 at hop 512 -> magnitude and phase of an STFT of 2048 -> waveform.

    The shape of Vocos (Siuzdak 2023, arXiv:2306.00814) at 48 kHz, and by its parameter count of LavaSR.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(2048))
        self.register_buffer("mel", torch.rand(100, 1025) / 1025)
        self.window: Tensor
        self.mel: Tensor
        self.embed = nn.Conv1d(100, 512, 7, padding=3)
        self.norm_in, self.norm_out = nn.LayerNorm(512), nn.LayerNorm(512)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(512, 1536) for _ in range(8)))
        self.head = nn.Linear(512, 2050)

    def forward(self, x: Tensor) -> Tensor:
        power = torch.stft(x, 2048, 512, window=self.window, return_complex=True).abs()
        h = self.embed((self.mel @ power).clamp_min(1e-7).log())
        h = self.blocks(self.norm_in(h.transpose(1, 2)).transpose(1, 2))
        log_magnitude, phase = self.head(self.norm_out(h.transpose(1, 2))).transpose(1, 2).chunk(2, dim=1)
        spectrum = torch.polar(log_magnitude.exp().clamp_max(100), phase)
        return torch.istft(spectrum, 2048, 512, window=self.window, length=x.shape[-1])


class APBWELike(nn.Module):
    """30 M: log-magnitude and phase streams of 8 ConvNeXt blocks 512/1536 each at 600 frames/s, STFT 1024/320/80.

    The shape of AP-BWE at 48 kHz (Lu et al. 2024, arXiv:2401.06387): the streams exchange their activations before every
    block; the phase comes from two linear outputs by atan2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(320))
        self.window: Tensor
        self.embed = nn.ModuleList(nn.Conv1d(513, 512, 7, padding=3) for _ in range(2))
        self.norm_in = nn.ModuleList(nn.LayerNorm(512) for _ in range(2))
        self.norm_out = nn.ModuleList(nn.LayerNorm(512) for _ in range(2))
        self.magnitude_blocks = nn.ModuleList(ConvNeXtBlock(512, 1536) for _ in range(8))
        self.phase_blocks = nn.ModuleList(ConvNeXtBlock(512, 1536) for _ in range(8))
        self.to_magnitude, self.to_real, self.to_imag = (nn.Linear(512, 513) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        settings: dict[str, Any] = {"n_fft": 1024, "hop_length": 80, "win_length": 320, "window": self.window}
        spectrum = torch.stft(x, **settings, return_complex=True)
        log_magnitude = spectrum.abs().clamp_min(1e-5).log()
        m, p = (
            norm(embed(v).transpose(1, 2)).transpose(1, 2)
            for norm, embed, v in zip(self.norm_in, self.embed, (log_magnitude, spectrum.angle()), strict=True)
        )
        for magnitude_block, phase_block in zip(self.magnitude_blocks, self.phase_blocks, strict=True):
            m, p = magnitude_block(m + p), phase_block(p + m)
        m, p = (norm(v.transpose(1, 2)) for norm, v in zip(self.norm_out, (m, p), strict=True))
        magnitude = (log_magnitude + self.to_magnitude(m).transpose(1, 2)).exp().clamp_max(100)
        phase = torch.atan2(self.to_imag(p), self.to_real(p)).transpose(1, 2)
        return torch.istft(torch.polar(magnitude, phase), **settings, length=x.shape[-1])


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gmac(call: Callable[[], object], seconds: float) -> float:
    """Multiply-accumulates of convolutions and matrix products, in 10⁹ per second of audio (FFTs are not counted)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 2 / seconds / 1e9


def untrained(size: str) -> infer.Extender:
    torch.manual_seed(0)
    generator = generators.SEANet(generators.SIZES[size]).eval()
    generators.fold_weight_norm(generator)
    return infer.Extender(generator, {}, "")


def measure(extender: infer.Extender, name: str, seconds: float, block: float, repeats: int) -> list[dict[str, Any]]:
    """One row for each thing timed. The timings take turns, so that a change of load meets all of them."""
    torch.manual_seed(0)
    generator, rate = extender.generator, extender.sample_rate
    x = 0.1 * torch.randn(1, 1, round(block * rate))
    cutoff = torch.tensor([8000.0 if rate > 16_000 else 4000.0])
    file = 0.1 * torch.randn(round(seconds * rate / 3))
    vocos, apbwe = VocosLike().eval(), APBWELike().eval()
    reference = 0.1 * torch.randn(1, round(block * RATE))
    timed: list[tuple[str, nn.Module, float, Callable[[], object]]] = [
        (f"{name}, network", generator, block, lambda: generator(x, cutoff)),
        (f"{name}, whole call", generator, seconds, lambda: extender(file, sr=rate // 3)),
        ("Vocos-like 14 M", vocos, block, lambda: vocos(reference)),
        ("AP-BWE-like 30 M", apbwe, block, lambda: apbwe(reference)),
    ]
    spent: list[list[float]] = [[] for _ in timed]
    with torch.inference_mode():
        for turn in range(repeats + 2):  # the first two warm up
            for times, (_, _, _, call) in zip(spent, timed, strict=True):
                started = time.perf_counter()
                call()
                if turn >= 2:
                    times.append(time.perf_counter() - started)
    rows: list[dict[str, Any]] = []
    for times, (label, module, length, call) in zip(spent, timed, strict=True):
        median = statistics.median(times)
        rows.append(
            {
                "what": label,
                "parameters": sum(p.numel() for p in module.parameters()),
                "gmac_per_second": gmac(call, length),
                "audio_seconds": length,
                "median_s": median,
                "fastest_s": min(times),
                "realtime": length / median,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default=infer.DEFAULT_MODEL, help="shipped name or checkpoint folder (default: %(default)s)")
    which.add_argument("--size", choices=sorted(generators.SIZES), help="an untrained generator of this size instead")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="audio of the whole call (default: 10)")
    parser.add_argument("--block", type=float, default=4.0, help="audio of the networks alone (default: 4)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after two to warm up (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if args.threads < 1 or args.repeats < 1 or args.seconds <= 0 or args.block <= 0:
        parser.error("threads, repeats, seconds and block must be positive")
    torch.set_num_threads(args.threads)
    try:
        extender = untrained(args.size) if args.size else infer.load(args.model)
    except BweError as error:
        print(f"speed: error: {error}", file=sys.stderr)
        return error.exit_code
    name = f"size {args.size}" if args.size else str(args.model)
    rows = measure(extender, name, args.seconds, args.block, args.repeats)
    machine = {"cpu": cpu_name(), "threads": args.threads, "torch": torch.__version__, "runtime": "eager float32"}
    print(f"{machine['cpu']}, {args.threads} thread{'s' * (args.threads > 1)}, torch {torch.__version__}, eager float32")
    print(f"{'':<28}{'parameters':>12}{'GMAC/s':>9}{'audio s':>9}{'median s':>10}{'× real time':>13}")
    for row in rows:
        print(
            f"{row['what']:<28}{row['parameters'] / 1e6:>10.2f} M{row['gmac_per_second']:>9.2f}"
            f"{row['audio_seconds']:>9g}{row['median_s']:>10.4f}{row['realtime']:>13.1f}"
        )
    network, whole, vocos, apbwe = (float(row["realtime"]) for row in rows)
    ratios = {
        "network_over_vocos": network / vocos,
        "network_over_apbwe": network / apbwe,
        "whole_over_vocos": whole / vocos,
        "whole_over_apbwe": whole / apbwe,
    }
    for label, what in (("network alone", "network"), ("whole call", "whole")):
        over_vocos, over_apbwe = ratios[f"{what}_over_vocos"], ratios[f"{what}_over_apbwe"]
        print(f"{label}: {over_vocos:.1f} × the Vocos-like, {over_apbwe:.1f} × the AP-BWE-like")
    if args.json:
        Path(args.json).write_text(json.dumps({**machine, "rows": rows, "ratios": ratios}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
