"""How fast a model is on this machine's CPU, beside two published trunk shapes timed in the same process.

    python benchmarks/speed.py                    # the shipped speech-48k
    python benchmarks/speed.py --size B           # an untrained generator of that size
    python benchmarks/speed.py --threads 1 2 --json speed.json
    python benchmarks/speed.py --baselines --threads 1 2       # all networks of the package, eager, with their memory

Absolute times belong to the machine; the ratios carry over, within one runtime. Random or trained weights alike. Beside eager
PyTorch the same networks run in onnxruntime (extra `onnx`) and, where it is installed, in OpenVINO; an inverse STFT cannot be
exported, so there the two references are what lies between STFT and inverse STFT alone, which favours them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bwe import audio, baselines, dsp, export, generators, infer, onnx_backend
from bwe.errors import BweError

RATE = 48_000
TALK = Path(__file__).resolve().parent.parent / "examples" / "talk_48k.flac"


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

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.stft(x, 2048, 512, window=self.window, return_complex=True)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.polar(*self.between(self.spectrum(x).abs()))
        return torch.istft(spectrum, 2048, 512, window=self.window, length=x.shape[-1])

    def between(self, power: Tensor) -> tuple[Tensor, Tensor]:
        h = self.embed((self.mel @ power).clamp_min(1e-7).log())
        h = self.blocks(self.norm_in(h.transpose(1, 2)).transpose(1, 2))
        log_magnitude, phase = self.head(self.norm_out(h.transpose(1, 2))).transpose(1, 2).chunk(2, dim=1)
        return log_magnitude.exp().clamp_max(100), phase


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

    @property
    def settings(self) -> dict[str, Any]:
        return {"n_fft": 1024, "hop_length": 80, "win_length": 320, "window": self.window}

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.stft(x, **self.settings, return_complex=True)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = self.spectrum(x)
        polar = torch.polar(*self.between(spectrum.abs(), spectrum.angle()))
        return torch.istft(polar, **self.settings, length=x.shape[-1])

    def between(self, magnitude: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        log_magnitude = magnitude.clamp_min(1e-5).log()
        m, p = (
            norm(embed(v).transpose(1, 2)).transpose(1, 2)
            for norm, embed, v in zip(self.norm_in, self.embed, (log_magnitude, angle), strict=True)
        )
        for magnitude_block, phase_block in zip(self.magnitude_blocks, self.phase_blocks, strict=True):
            m, p = magnitude_block(m + p), phase_block(p + m)
        m, p = (norm(v.transpose(1, 2)) for norm, v in zip(self.norm_out, (m, p), strict=True))
        grown = (log_magnitude + self.to_magnitude(m).transpose(1, 2)).exp().clamp_max(100)
        phase = torch.atan2(self.to_imag(p), self.to_real(p)).transpose(1, 2)
        return grown, phase


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gmac(call: Callable[[], object], seconds: float, module: nn.Module) -> float:
    """Multiply-accumulates of convolutions, matrix products and LSTMs, in 10⁹ per second of audio (FFTs are not counted)."""
    recurrent = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:  # the counter does not know them
        nonlocal recurrent
        steps = inputs[0].shape[0] * inputs[0].shape[1]
        recurrent += steps * sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, nn.LSTM)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return (counter.get_total_flops() / 2 + recurrent) / seconds / 1e9


def untrained(size: str) -> infer.Extender:
    torch.manual_seed(0)
    generator = generators.SEANet(generators.SIZES[size]).eval()
    generators.fold_weight_norm(generator)
    return infer.Extender(generator, {}, "")


def networks() -> dict[str, Callable[[], nn.Module]]:
    """By label: the baselines in their default shapes at 16 kHz, our generator there and at 48 kHz, and the references."""
    published = {"bands": 1, "channels": (32, 64, 128, 256, 512), "strides": (2, 4, 4, 8)}
    made: dict[str, Callable[[], nn.Module]] = {
        name: partial(cls, cls.Config())  # type: ignore[attr-defined]
        for name, cls in baselines.ARCHITECTURES.items()
    }
    made["eben, 1 band (SEANet)"] = partial(baselines.EBEN, baselines.EBEN.Config(**published))  # type: ignore[arg-type]
    narrow = dataclasses.replace(generators.SIZES["S"], sample_rate=16_000, bands=8)
    made["size S, 16 kHz"] = partial(generators.SEANet, narrow)
    for name in ("speech-48k", "speech-48k-stream"):
        made[name] = partial(lambda name: infer.load(name).generator, name)
    return made | {"Vocos-like 14 M": VocosLike, "AP-BWE-like 30 M": APBWELike}


def applied(network: nn.Module, seconds: float) -> Callable[[], object]:
    """A call of the network on noise of its rate."""
    rate = getattr(network, "sample_rate", RATE)
    x = 0.1 * torch.randn(1, 1, round(seconds * rate))
    if isinstance(network, VocosLike | APBWELike):
        return lambda: network(x[0])
    return lambda: network(x, torch.tensor([4000.0]))


def peak_mb(label: str, seconds: float) -> float:
    """What a call adds to the most memory that a process of its own had held before, in MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", label, "--block", str(seconds)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def grown_mb(label: str, seconds: float) -> float:
    network = networks()[label]().eval()
    generators.fold_weight_norm(network)
    call = applied(network, seconds)
    before = most_mb()
    with torch.inference_mode():
        call()
    return most_mb() - before


def most_mb() -> float:
    """The most memory that this process has held. Not by getrusage, where a child begins with what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def of_all(seconds: float, threads: list[int]) -> list[Timed]:
    timed = []
    for label, make in networks().items():
        network = make().eval()
        generators.fold_weight_norm(network)
        timed += [Timed(label, "eager float32", n, network, seconds, applied(network, seconds)) for n in threads]
    return sorted(timed, key=lambda item: item.threads)


class Between(nn.Module):
    """A reference without STFT and inverse STFT."""

    def __init__(self, network: VocosLike | APBWELike) -> None:
        super().__init__()
        self.network = network

    def forward(self, *spectrum: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.between(*spectrum)


@dataclass
class Timed:
    """Something to time: under which label, in which runtime, on how many threads, over how many seconds of audio."""

    label: str
    runtime: str
    threads: int
    module: nn.Module
    seconds: float
    call: Callable[[], object]


def onnx_file(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Path:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, path, dynamo=True, external_data=False, verbose=False)
    return path


def onnxruntime_call(path: Path, inputs: tuple[Tensor, ...], threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    feeds = {node.name: x.numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feeds)


def openvino_precision() -> str:
    """ "bf16" where the processor has it, as it is imitated elsewhere at a fiftieth of the speed; else "f32"."""
    import openvino

    return "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def openvino_call(path: Path, inputs: list[np.ndarray], threads: int) -> Callable[[], object]:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": openvino_precision(),
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(path, "CPU", settings)
    return lambda: model(inputs)


def in_other_runtimes(
    extender: infer.Extender, name: str, seconds: float, block: float, threads: list[int], folder: Path
) -> list[Timed]:
    """The networks, and the whole call, in onnxruntime and OpenVINO."""
    generator, rate = extender.generator, extender.sample_rate
    x = 0.1 * torch.randn(1, 1, round(block * rate) // generator.hop * generator.hop)
    cutoff = np.array([8000.0 if rate > 16_000 else 4000.0], np.float32)
    file = (0.1 * torch.randn(round(seconds * rate / 3))).numpy()
    exact = export.export(generator, folder / "exact.onnx").path
    talk, info = audio.read(TALK)
    clips = [talk[0, start : start + info.sample_rate] for start in range(0, talk.shape[-1], info.sample_rate)]
    eight = export.export(generator, folder / "int8.onnx", int8=clips).path
    vocos, apbwe = VocosLike().eval(), APBWELike().eval()
    reference = 0.1 * torch.randn(1, round(block * RATE))
    spectra = apbwe.spectrum(reference)
    references: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [
        ("Vocos-like 14 M without STFTs", Between(vocos), (vocos.spectrum(reference).abs(),)),
        ("AP-BWE-like 30 M without STFTs", Between(apbwe), (spectra.abs(), spectra.angle())),
    ]
    files = [onnx_file(module, inputs, folder / f"{i}.onnx") for i, (_, module, inputs) in enumerate(references)]
    timed = []
    for count in threads:
        for path, runtime in ((exact, "onnxruntime"), (eight, "onnxruntime int8")):
            runner = onnx_backend.OnnxGenerator(path, threads=count)
            whole = infer.Extender(runner, runner.meta)

            def network(runner: onnx_backend.OnnxGenerator = runner) -> object:
                return runner(x.numpy(), cutoff)

            def call(whole: infer.Extender = whole) -> object:
                return whole(file, sr=rate // 3)

            timed.append(Timed(f"{name}, network", runtime, count, generator, x.shape[-1] / rate, network))
            timed.append(Timed(f"{name}, whole call", runtime, count, generator, seconds, call))
        for path, (label, module, inputs) in zip(files, references, strict=True):
            call_reference = onnxruntime_call(path, inputs, count)
            timed.append(Timed(label, "onnxruntime", count, module, block, call_reference))
        if importlib.util.find_spec("openvino"):
            runtime = f"OpenVINO {openvino_precision()}"
            third: np.ndarray = np.array([x.shape[-1]])
            if generator.causal:
                third = dsp.causal_splice_weights(rate, cutoff, generator.delay, generator.config.bands)
            own = openvino_call(exact, [x.numpy(), cutoff, third], count)
            timed.append(Timed(f"{name}, network", runtime, count, generator, x.shape[-1] / rate, own))
            for path, (label, module, inputs) in zip(files, references, strict=True):
                call_reference = openvino_call(path, [i.numpy() for i in inputs], count)
                timed.append(Timed(label, runtime, count, module, block, call_reference))
    return timed


def in_torch(extender: infer.Extender, name: str, seconds: float, block: float, threads: list[int]) -> list[Timed]:
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
    return [
        Timed(label, "eager float32", count, module, length, call)
        for count in threads
        for label, module, length, call in timed
    ]


def measure(timed: list[Timed], repeats: int) -> list[dict[str, Any]]:
    """One row for each thing timed. The timings take turns, so that a change of load meets all of them."""
    spent: list[list[float]] = [[] for _ in timed]
    with torch.inference_mode():
        for turn in range(repeats + 2):  # the first two warm up
            for times, item in zip(spent, timed, strict=True):
                torch.set_num_threads(item.threads)
                started = time.perf_counter()
                item.call()
                if turn >= 2:
                    times.append(time.perf_counter() - started)
    macs = {item.label: gmac(item.call, item.seconds, item.module) for item in timed if item.runtime == "eager float32"}
    rows: list[dict[str, Any]] = []
    for times, item in zip(spent, timed, strict=True):
        median = statistics.median(times)
        rows.append(
            {
                "what": item.label,
                "runtime": item.runtime,
                "threads": item.threads,
                "parameters": sum(p.numel() for p in item.module.parameters()),
                "gmac_per_second": macs[item.label.removesuffix(" without STFTs")],
                "audio_seconds": item.seconds,
                "median_s": median,
                "fastest_s": min(times),
                "realtime": item.seconds / median,
            }
        )
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast the model is as the references, of the rows of one runtime."""
    speed = {row["what"]: float(row["realtime"]) for row in rows}
    found = {}
    wholes = [what for what in speed if what.endswith((", network", ", whole call"))]
    for part, own in ((what.rsplit(", ", 1)[1].split()[0], what) for what in wholes):
        for short, reference in (("vocos", "Vocos-like"), ("apbwe", "AP-BWE-like")):
            other = next((value for what, value in speed.items() if what.startswith(reference)), None)
            if other is not None:
                found[f"{part}_over_{short}"] = speed[own] / other
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default=infer.DEFAULT_MODEL, help="shipped name or checkpoint folder (default: %(default)s)")
    which.add_argument("--baselines", action="store_true", help="all networks of the package, in PyTorch alone")
    which.add_argument("--peak", choices=networks(), help=argparse.SUPPRESS)
    which.add_argument("--size", choices=sorted(generators.SIZES), help="an untrained generator of this size instead")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="CPU threads, one or more numbers (default: 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="audio of the whole call (default: 10)")
    parser.add_argument("--block", type=float, default=4.0, help="audio of the networks alone (default: 4)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after two to warm up (default: 5)")
    parser.add_argument("--torch-only", action="store_true", help="leave the other runtimes out")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if min(args.threads) < 1 or args.repeats < 1 or args.seconds <= 0 or args.block <= 0:
        parser.error("threads, repeats, seconds and block must be positive")
    torch.manual_seed(0)
    if args.peak:
        torch.set_num_threads(1)
        print(grown_mb(args.peak, args.block))
        return 0
    name = f"size {args.size}" if args.size else str(args.model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if args.baselines:
                timed = of_all(args.block, args.threads)
            else:
                extender = untrained(args.size) if args.size else infer.load(args.model)
                timed = in_torch(extender, name, args.seconds, args.block, args.threads)
            if not (args.torch_only or args.baselines):
                timed += in_other_runtimes(extender, name, args.seconds, args.block, args.threads, Path(folder))
        except (BweError, ImportError) as error:
            print(f"speed: error: {error}", file=sys.stderr)
            return error.exit_code if isinstance(error, BweError) else 1
        rows = measure(timed, args.repeats)
    if args.baselines:
        peaks = {label: peak_mb(label, args.block) for label in networks()}
        rows = [{**row, "peak_mb": peaks[row["what"]]} for row in rows]
    threads = args.threads[0] if len(args.threads) == 1 else args.threads
    machine = {"cpu": cpu_name(), "threads": threads, "torch": torch.__version__, "load": os.getloadavg()[0]}
    machine["runtime"] = rows[0]["runtime"]
    counts = " and ".join(map(str, args.threads))
    plural = "" if args.threads == [1] else "s"
    print(f"{machine['cpu']}, {counts} thread{plural}, torch {torch.__version__}, load {machine['load']:.1f}")
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["threads"], row["runtime"]), []).append(row)
    table: list[dict[str, Any]] = []
    for (count, runtime), group in groups.items():
        print(f"\n{f'{runtime}, {count} thread' + 's' * (count > 1):<34}", end="")
        print(f"{'parameters':>12}{'GMAC/s':>9}{'audio s':>9}{'median s':>10}{'× real time':>13}", end="")
        print(f"{'MB':>8}" if args.baselines else "")
        for row in group:
            memory = f"{row['peak_mb']:>8.0f}" if args.baselines else ""
            print(
                f"{row['what']:<34}{row['parameters'] / 1e6:>10.2f} M{row['gmac_per_second']:>9.2f}"
                f"{row['audio_seconds']:>9g}{row['median_s']:>10.4f}{row['realtime']:>13.1f}{memory}"
            )
        found = ratios(group)
        table.append({"runtime": runtime, "threads": count, **found})
        for label, what in (("network alone", "network"), ("whole call", "whole")):
            if f"{what}_over_vocos" in found:
                over_vocos, over_apbwe = found[f"{what}_over_vocos"], found[f"{what}_over_apbwe"]
                print(f"{label}: {over_vocos:.1f} × the Vocos-like, {over_apbwe:.1f} × the AP-BWE-like")
    if args.json:
        tree = {**machine, "rows": rows, "ratios": ratios(rows[:4]), "ratios_by_runtime": table}
        Path(args.json).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
