"""What a causal model costs and waits for, live: time per block on one CPU thread, back to back and paced, and its latency.

    python benchmarks/streaming.py                       # the shipped speech-48k-stream
    python benchmarks/streaming.py --size S              # an untrained causal generator of that size
    python benchmarks/streaming.py --seconds 60 --json streaming.json

Blocks of 10 ms, as a sound card gives them (the network runs once a hop: one or two hops a block), and blocks of one hop. Back
to back everything stays in the processor's caches; paced, one block is computed when it would come in and the processor sleeps
until the next: promise from these figures. Beside PyTorch the model runs in onnxruntime (extra `onnx`), in float32 and int8.
A virtual machine stands still while its host has other work ("stolen", Linux only), which makes the longest blocks; what the
thread itself computed is in the column after the 99th percentile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bwe import audio, dsp, export, generators, infer, live, onnx_backend, stepper
from bwe.errors import BweError

MODEL = "speech-48k-stream"
TALK = Path(__file__).resolve().parent.parent / "examples" / "talk_48k.flac"
CUTOFF_HZ = 8000.0

Advance = Callable[[np.ndarray], np.ndarray]


def untrained(size: str) -> infer.Extender:
    torch.manual_seed(0)
    generator = generators.SEANet(dataclasses.replace(generators.SIZES[size], causal=True)).eval()
    return infer.Extender(generators.fold_weight_norm(generator))


def torch_stream(generator: Any) -> Advance:
    """`(1, 1, n * hop)` -> the same, in eager PyTorch."""
    stream = stepper.Stepper(generator).stream(CUTOFF_HZ)
    return lambda x: stream.advance(torch.from_numpy(x[0, 0])).numpy()[None, None]


def talk(rate: int, seconds: float) -> np.ndarray:
    """`(T,)`: the example recording without its highs, over and over."""
    x, info = audio.read(TALK)
    once = dsp.band_limit(dsp.resample(torch.from_numpy(x[0]), info.sample_rate, rate), rate, CUTOFF_HZ)
    return np.resize(once.numpy(), round(seconds * rate))


def spent(advance: Advance, x: np.ndarray, block: int, hop: int, period: float) -> Iterator[tuple[float, float]]:
    """Seconds until each block of `x` is done, and of processor time for it; with a period above 0, one block a period."""
    due = time.perf_counter()
    waiting = np.empty((1, 1, block + hop), np.float32)
    held = 0
    for start in range(0, len(x) - block + 1, block):
        due += period
        ahead = due - time.perf_counter()
        if period and ahead > 0:
            time.sleep(ahead)
        started, computed = time.perf_counter(), time.thread_time()
        waiting[0, 0, held : held + block] = x[start : start + block]
        held += block
        whole = held // hop * hop
        if whole:
            advance(waiting[:, :, :whole])
            held -= whole
            waiting[0, 0, :held] = waiting[0, 0, whole : whole + held]
        yield time.perf_counter() - started, time.thread_time() - computed


def stolen() -> float:
    """Processor seconds since the start that were taken from this virtual machine; 0 where nobody counts them."""
    try:
        return int(Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def row(runtime: str, block: int, paced: bool, rate: int, times: list[tuple[float, float]], taken: float) -> dict[str, Any]:
    milliseconds, computing = 1e3 * np.array(times).T
    return {
        "runtime": runtime,
        "block_ms": 1e3 * block / rate,
        "paced": paced,
        "blocks": len(times),
        "median_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "computing_p99_ms": float(np.percentile(computing, 99)),
        "max_ms": float(milliseconds.max()),
        "share_of_core": float(milliseconds.mean() * rate / block / 1e3),
        "late_blocks": int((milliseconds > 1e3 * block / rate).sum()),
        "stolen_s": taken,
        "load": os.getloadavg()[0],
    }


def measure(streams: dict[str, Callable[[], Advance]], rate: int, hop: int, seconds: float) -> list[dict[str, Any]]:
    x = talk(rate, seconds)
    rows = []
    for block in (rate // 100, hop):
        for paced in (False, True):
            for runtime, fresh in streams.items():
                advance = fresh()
                list(spent(advance, x[: 50 * block], block, hop, 0.0))
                before = stolen()
                times = list(spent(advance, x, block, hop, block / rate if paced else 0.0))
                rows.append(row(runtime, block, paced, rate, times, stolen() - before))
    return rows


def lags(fresh: Callable[[], Advance], hop: int, reach: int) -> tuple[int, int]:
    """By how many samples an output block's first sample that a click changes, and the strongest, follow the click.

    The click is the first sample of a hop; all of a hop's output comes at once, when the hop is full.
    """
    at = -(-reach // hop) * hop
    x = (0.05 * np.random.default_rng(0).standard_normal((1, 1, at + 4 * hop))).astype(np.float32)
    clicked = x.copy()
    clicked[..., at] += 0.5
    changed = np.abs(fresh()(clicked) - fresh()(x))[0, 0]
    return int(np.flatnonzero(changed > 1e-6)[0]) - at, int(changed.argmax()) - at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model", default=MODEL, help="shipped name or checkpoint folder of a causal model (default: %(default)s)"
    )
    which.add_argument("--size", choices=sorted(generators.SIZES), help="an untrained causal generator of this size instead")
    parser.add_argument("--seconds", type=float, default=10.0, help="audio of each row (default: 10)")
    parser.add_argument("--torch-only", action="store_true", help="leave onnxruntime out")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if args.seconds < 1:
        parser.error("a row needs at least 1 second")
    torch.set_num_threads(1)
    try:
        extender = untrained(args.size) if args.size else infer.load(args.model)
        if not extender.causal:
            parser.error(f"{args.model} is not causal; take {MODEL}, or --size")
        generator, rate = extender.generator, extender.sample_rate
        streams: dict[str, Callable[[], Advance]] = {"PyTorch": lambda: torch_stream(generator)}
        if not args.torch_only:
            exact = export.onnx_generator(generator, streaming=True)
            clip = talk(rate, 8.0)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "int8.onnx"
                clips = [clip[start : start + rate] for start in range(0, len(clip), rate)]
                export.export(generator, path, streaming=True, int8=clips)
                eight = onnx_backend.OnnxGenerator(path)
            streams["onnxruntime"] = lambda: exact.stream(CUTOFF_HZ).advance
            streams["onnxruntime int8"] = lambda: eight.stream(CUTOFF_HZ).advance
    except (BweError, ImportError) as error:
        print(f"streaming: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BweError) else 1

    first, strongest = lags(streams["PyTorch"], generator.hop, generator.receptive_field)
    rates = (48_000, 16_000, 8000)
    waits = {sr: live.measure(extender, sr, 0.9 * min(CUTOFF_HZ, sr / 2), 0.1).algorithmic_ms for sr in rates}
    name = f"size {args.size}" if args.size else str(args.model)
    print(f"{name}, 1 thread, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print(f"A click is in the output from {first} samples after it on, at its strongest {strongest} after it (delay).")
    for sr, wait in waits.items():
        declared = extender.latency_seconds(sr)
        print(f"Longest wait for a sample at {sr} Hz: {wait:.2f} ms (declared {1e3 * declared:.2f})")
    rows = measure(streams, rate, generator.hop, args.seconds)
    print(f"\n{'':<20}{'block ms':>9}{'':>14}{'median ms':>11}{'99 %':>8}{'computing':>11}{'max':>8}", end="")
    print(f"{'of a core':>11}{'late':>6}{'stolen':>9}{'load':>6}")
    for entry in rows:
        print(
            f"{entry['runtime']:<20}{entry['block_ms']:>9.3g}{'paced' if entry['paced'] else 'back to back':>14}"
            f"{entry['median_ms']:>11.3f}{entry['p99_ms']:>8.3f}{entry['computing_p99_ms']:>11.3f}{entry['max_ms']:>8.2f}"
            f"{entry['share_of_core']:>11.1%}{entry['late_blocks']:>6}{entry['stolen_s']:>7.2f} s{entry['load']:>6.1f}"
        )
    if args.json:
        latency = {"first_sample": first, "delay": strongest, "longest_wait_ms": {str(sr): wait for sr, wait in waits.items()}}
        tree = {
            "model": name,
            "threads": 1,
            "torch": torch.__version__,
            "hop": generator.hop,
            "latency": latency,
            "rows": rows,
        }
        Path(args.json).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
