"""Generators as ONNX files.

`export` writes one graph with everything in it: filter bank, network, cut-off embedding, splice. `onnx_backend` runs it. What
a file needs to be used without this package is in its `metadata_props`, a text on how to run it included.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import inspect
import itertools
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bwe
from bwe import audio, dsp, generators, hub, stepper
from bwe.errors import AudioError, ConfigError, ModelError, OutputError
from bwe.onnx_backend import OnnxGenerator, require_onnx, require_onnxruntime

if TYPE_CHECKING:
    import onnx

MAX_DIFFERENCE = 1e-4
"""Largest difference from PyTorch, full scale 1, that `export` accepts of a float graph."""
OPSET = 18

# The splice runs over frames of so many to a hop: products of matrices that are small enough to build for every cut-off and
# large enough to run at full speed.
_FRAMES_PER_HOP = 4
_CALIBRATION_CLIPS, _CALIBRATION_SECONDS = 32, 3.0
_SILENCE = 10 ** (-90 / 20)


@dataclass(frozen=True)
class Exported:
    """What `export` wrote; ``str(exported)`` for the terminal.

    Attributes:
        path: the file. bytes: its size. sha256: of the file. opset: of the ONNX operators in it.
        max_difference: largest difference between onnxruntime's output and PyTorch's on speech-like input, full scale 1.
    """

    path: Path
    max_difference: float
    bytes: int
    opset: int
    sha256: str

    def __str__(self) -> str:
        size = f"{self.path}  {self.bytes / 1e6:.1f} MB  opset {self.opset}"
        return f"{size}  largest difference from PyTorch {self.max_difference:.1e} of full scale"


def _convolve(x: Tensor, kernel: Tensor, ahead: int, frame: int) -> Tensor:
    """`(B, 1, T)` with a kernel `(L,)`, advanced by `ahead` samples; T a multiple of `frame`.

    As products of matrices: onnxruntime takes so long a kernel that is no constant in five times as long.
    """
    length = len(kernel)
    count = -(-(length + frame - 1) // frame)
    # Row m is the reversed kernel, m places to the right: rows are one shorter than the period of what is written in them.
    width = count * frame
    period = F.pad(kernel.flip(0), (width - frame - length + 1, frame))
    rows = period.expand(frame, -1).reshape(-1)[: frame * width].view(frame, count, frame)
    weights = rows.permute(1, 2, 0)
    padded = F.pad(x[:, 0], (width - frame - ahead, ahead)).unflatten(-1, (-1, frame))
    frames = x.shape[-1] // frame
    mixed = padded[:, :frames] @ weights[0]
    for k in range(1, count):
        mixed = mixed + padded[:, k : k + frames] @ weights[k]
    return mixed.flatten(1).unsqueeze(1)


class _Centred(nn.Module):
    """`SEANet.forward` of a centred generator, with `dsp.splice_highpass` as a convolution."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__()
        self.net = net
        half = dsp.splice_taps(net.sample_rate) // 2
        n = torch.arange(-half, half + 1)
        beta = 0.1102 * (dsp._SPLICE_ATTENUATION_DB - 8.7)
        window = torch.kaiser_window(2 * half + 1, periodic=False, beta=beta, dtype=torch.float64)
        self.register_buffer("angle", (math.pi * n.double()).float())
        self.register_buffer("decay", torch.where(n == 0, 0.0, window / (math.pi * n.double())).float())
        self.register_buffer("impulse", (n == 0).float())
        self.angle: Tensor
        self.decay: Tensor
        self.impulse: Tensor

    def forward(self, x: Tensor, cutoff_hz: Tensor, samples: Tensor) -> Tensor:
        generated = self.net.missing_band(x, generators.Told(self.net.modulation(cutoff_hz), cutoff_hz))
        if not self.net.config.passthrough:
            return generated
        middle = cutoff_hz + sum(dsp.SPLICE_HZ) / 2
        centre = middle.clamp(min=0.0) * (2 / self.net.sample_rate)
        kernel = (1 - centre) * self.impulse - (centre * self.angle).sin() * self.decay
        # As in `forward`, nothing of what the network says about the padding reaches the signal.
        inside = torch.arange(x.shape[-1]) < samples
        return x + _convolve((generated - x) * inside, kernel, len(self.angle) // 2, self.net.hop // _FRAMES_PER_HOP)


class _Causal(nn.Module):
    """`SEANet.forward` of a causal generator; the splice is an input, its minimum phase has no closed form."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, cutoff_hz: Tensor, splice: Tensor) -> Tensor:
        net = self.net
        padded = F.pad(x, (0, -(-net.delay // net.hop) * net.hop))
        y = net.missing_band(padded, generators.Told(net.modulation(cutoff_hz), splice))
        if net.config.passthrough:
            y = dsp.causal_splice(padded, y, splice)
        return y[..., net.delay : net.delay + x.shape[-1]]


class _Telling(nn.Module):
    """What a stream is told of its cut-off `(1,)` in Hz, which it needs once: scales and shifts `(D,)` in turn."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__()
        self.net = net

    def forward(self, cutoff_hz: Tensor) -> list[Tensor]:
        return [part.view(-1) for pair in self.net.modulation(cutoff_hz) for part in pair]


class _Streaming(nn.Module):
    """`stepper.Stepper` over one hop `(hop / bands, bands)`, what it is told and what it remembers handed in."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__()
        self.stepper = stepper.Stepper(net)

    def forward(self, x: Tensor, told: list[Tensor], splice: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        memory = stepper.Memory(states)
        modulation = list(zip(told[::2], told[1::2], strict=True))
        return self.stepper(x, stepper.Told(modulation, splice), memory), memory.tables


_HOW_TO_RUN = """\
# What the network was trained on and where it fails is in the card of its model.
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
# x: float32, full scale 1, at {sample_rate} Hz, band-limited to cutoff_hz (Hz).
"""
_RUN_WHOLE = """\
def run(x, cutoff_hz):
    # (1, 1, T) and (1,) -> (1, 1, T), aligned with the input
    padded = np.pad(x, ((0, 0), (0, 0), (0, -x.shape[-1] % {hop})))
    feeds = {{"x": padded, "cutoff_hz": cutoff_hz.astype(np.float32), {more}}}
    return session.run(["y"], feeds)[0][..., : x.shape[-1]]
"""
_RUN_STREAM = """\
telling = onnxruntime.InferenceSession(base64.b64decode(session.get_modelmeta().custom_metadata_map["telling"]))


def run(blocks, cutoff_hz):
    # blocks ({rows}, {bands}), {hop} samples in their order -> the same of the output, {delay} samples late
    told = telling.run(None, {{"cutoff_hz": np.array([cutoff_hz], np.float32)}})
    splice = causal_splice_weights({arguments})[0].transpose(2, 1, 0).reshape(-1, {bands})
    feeds = {{"splice": splice, **{{o.name: value for o, value in zip(telling.get_outputs(), told)}}}}
    states = {{i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name.startswith("state_")}}
    for x in blocks:
        y, *tables = session.run(None, feeds | states | {{"x": x}})
        # A table is the state that was given and what this block adds to it.
        states = {{name: table[-len(states[name]) :] for name, table in zip(states, tables)}}
        yield y
"""


def _how_to_run(net: generators.SEANet, streaming: bool) -> str:
    """A Python text that defines `run` with numpy, scipy and onnxruntime alone."""
    cutoffs = "np.array([cutoff_hz])" if streaming else "cutoff_hz"
    values = {
        "sample_rate": net.sample_rate,
        "hop": net.hop,
        "delay": net.delay,
        "bands": net.config.bands,
        "rows": net.hop // net.config.bands,
        "arguments": f"{net.sample_rate}, {cutoffs}, {net.delay}, {net.config.bands}",
    }
    more = '"splice": causal_splice_weights({arguments})' if net.causal else '"samples": np.array([x.shape[-1]])'
    text = ("import base64\n\n" if streaming else "") + _HOW_TO_RUN + "\n\n" + (_RUN_STREAM if streaming else _RUN_WHOLE)
    text = text.format(**values, more=more.format(**values))
    if net.causal:
        constants = ("_CAUSAL_SPLICE_ATTENUATION_DB", "_CAUSAL_SPLICE_HZ")
        imports = "from functools import lru_cache\nfrom scipy import signal\nfrom scipy.fft import next_fast_len\n\n"
        imports += "".join(f"{name} = {getattr(dsp, name)}\n" for name in constants)
        functions = (dsp._causal_splice_kernels, dsp.causal_splice_weights)
        text += "\n\n" + imports + "\n\n" + "\n\n".join(inspect.getsource(function) for function in functions)
    return text


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter says of packages that are not installed and of names it does not change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _source(model: str | os.PathLike[str] | nn.Module) -> tuple[generators.SEANet, dict[str, Any]]:
    """The generator with its norms folded, on the CPU, and its meta."""
    if isinstance(model, nn.Module):
        with tempfile.TemporaryDirectory() as folder:
            net, meta, _ = hub.read(hub.save(Path(folder) / "model", model, "# For export only"))
    else:
        net, meta, _ = hub.read(model)
    if not isinstance(net, generators.SEANet):
        raise ModelError(f"{model}: a {meta['arch']} cannot be exported to ONNX; only a seanet can")
    if net.config.air or net.config.features:
        raise ModelError(f"{model}: hears several microphones or has features of frames; it runs in PyTorch, not in ONNX")
    return net, meta


def _traced(
    graph: nn.Module, inputs: Sequence[Any], shapes: Sequence[Any], names: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """`graph` in ONNX operators, with inputs and outputs of those names."""
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.eval(),
                tuple(inputs),
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=OPSET,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=tuple(shapes),
            )
        except ImportError as error:
            raise ImportError("exporting needs the onnxscript package: pip install 'bwe[onnx]'") from error
        from onnxscript import optimizer

        assert program is not None
        # Not the exporter's own simplification: it takes every addend below 1e-8 for zero, and so the floor of the levels
        # out of the graph, without which silence is 0 / 0.
        for simplify in (optimizer.inline, optimizer.fold_constants, optimizer.remove_unused_nodes):
            simplify(program.model)
        proto: onnx.ModelProto = program.model_proto
    proto.producer_name, proto.producer_version = "bwe", bwe.__version__
    return proto


def _streaming_graphs(net: generators.SEANet, cutoff_hz: Tensor) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph of one hop, and the one that tells it what it takes a cut-off for."""
    telling, graph, memory = _Telling(net), _Streaming(net), stepper.Memory()
    x = torch.zeros(net.hop // net.config.bands, net.config.bands)
    with torch.no_grad():
        told, known = telling(cutoff_hz), graph.stepper.tell(float(cutoff_hz))
        graph.stepper(x, known, memory)
    states = [torch.zeros_like(kept) for kept in memory.kept()]
    told_names = [f"told_{i}" for i in range(len(told))]
    names = ["x", *told_names, "splice", *(f"state_{i}" for i in range(len(states)))]
    shapes = [None, [None] * len(told), None, [None] * len(states)]
    outputs = ["y", *(f"next_{i}" for i in range(len(states)))]
    hop = _traced(graph, [x, told, known.splice, states], shapes, names, outputs)
    return hop, _traced(telling, [cutoff_hz], [None], ["cutoff_hz"], told_names)


def _float_graph(net: generators.SEANet, meta: dict[str, Any], streaming: bool) -> onnx.ModelProto:
    """The graph with its metadata, not compared with anything yet."""
    require_onnx()
    cutoff_hz = torch.full((1,), net.sample_rate / 12)
    more: dict[str, Any] = {}
    if streaming:
        proto, telling = _streaming_graphs(net, cutoff_hz)
        more["telling"] = base64.b64encode(telling.SerializeToString()).decode("ascii")
    else:
        samples = 3 * net.hop
        third = net.tell(cutoff_hz).splice if net.causal else torch.tensor([samples])
        proto = _traced(
            _Causal(net) if net.causal else _Centred(net),
            [torch.zeros(1, 1, samples), cutoff_hz, third],
            [{2: net.hop * torch.export.Dim("frames", min=1, max=1 << 20)}, None, None],
            ["x", "cutoff_hz", "splice" if net.causal else "samples"],
            ["y"],
        )
    properties = {
        "bwe_version": bwe.__version__,
        "arch": meta["arch"],
        "config": json.dumps(dataclasses.asdict(net.config)),
        "sample_rate": net.sample_rate,
        "hop": net.hop,
        "delay": net.delay,
        "latency": net.latency,
        "receptive_field": net.receptive_field,
        "causal": int(net.causal),
        "streaming": int(streaming),
        "precision": "float32",
        "weights_sha256": meta["sha256"],
        "how_to_run": _how_to_run(net, streaming),
    } | more
    require_onnx().helper.set_model_props(proto, {key: str(value) for key, value in properties.items()})
    return proto


def _speechlike(frames: int, rate: int) -> np.ndarray:
    """`(1, 1, frames)`, float32: harmonics of a gliding pitch, breath, and pauses of digital silence."""
    t = np.arange(frames) / rate
    phase = 2 * np.pi * np.cumsum(130 + 40 * np.sin(2 * np.pi * 1.7 * t)) / rate
    harmonics = [k for k in range(1, 30) if 170 * k < rate / 6]
    tone = sum((np.sin(k * phase + k * k) / k for k in harmonics), np.zeros(frames))
    breath = np.random.default_rng(0).standard_normal(frames)
    voiced = np.clip(4 * np.sin(2 * np.pi * 3 * t - 0.4), 0, 1)
    return ((0.15 * tone + 0.01 * breath) * voiced)[None, None].astype(np.float32)


def _difference(runner: OnnxGenerator, net: generators.SEANet) -> float:
    """Largest difference of the file's output from the module's, over two lengths."""
    rate, hop = net.sample_rate, net.hop
    differences = []
    for frames, cutoff_hz in ((3 * hop + 17, rate / 12), (40 * hop, rate / 5)):
        x = _speechlike(frames, rate)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x), torch.tensor([cutoff_hz])).numpy()
        differences.append(np.abs(runner(x, np.array([cutoff_hz])) - expected).max())
    worst = float(np.max(differences))
    return worst if math.isfinite(worst) else math.inf


def _calibration_clips(source: str | os.PathLike[str] | Sequence[np.ndarray], rate: int) -> list[np.ndarray]:
    """Full-band clips `(T,)` at the model's rate."""
    length = round(_CALIBRATION_SECONDS * rate)
    if not isinstance(source, str | os.PathLike):
        return [np.asarray(clip, dtype=np.float32).reshape(-1)[:length] for clip in source]
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; calibration needs a folder of full-band recordings")
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    clips: list[np.ndarray] = []
    for path in found[:: max(1, len(found) // _CALIBRATION_CLIPS)]:
        with contextlib.suppress(AudioError):
            x, info = audio.read(path)
            clips.append(dsp.resample(torch.from_numpy(x[0]), info.sample_rate, rate)[:length].numpy())
    return clips[:_CALIBRATION_CLIPS]


def _narrow(clips: Sequence[np.ndarray], net: generators.SEANet) -> Iterator[tuple[np.ndarray, float]]:
    """Inputs `(1, 1, n * hop)` as the network meets them: of many cut-offs and levels."""
    rng = np.random.default_rng(0)
    for clip in clips:
        length = len(clip) // net.hop * net.hop
        if length == 0:
            continue
        cutoff_hz = float(np.exp(rng.uniform(np.log(net.sample_rate / 24), np.log(0.42 * net.sample_rate))))
        x = dsp.band_limit(torch.from_numpy(clip[:length].copy()), net.sample_rate, cutoff_hz)
        yield (x * 10 ** rng.uniform(-1.5, 0)).numpy()[None, None], cutoff_hz


def _quantised(
    proto: onnx.ModelProto, net: generators.SEANet, calibration: str | os.PathLike[str] | Sequence[np.ndarray]
) -> onnx.ModelProto:
    """The graph with the convolutions of its trunk in 8 bits, their ranges from the calibration clips.

    Filter bank, levels, splice, stem and head stay in float: what they pass on is the sound itself.
    """
    require_onnxruntime()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
            self.feeds = feeds

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    clips = _calibration_clips(calibration, net.sample_rate)
    if not any(len(clip) >= net.hop for clip in clips):
        raise AudioError(f"{calibration if clips == [] else 'calibration'}: no audio to calibrate the 8-bit ranges with")
    runner = OnnxGenerator(proto.SerializeToString())
    feeds = itertools.chain.from_iterable(runner.calls(x, cutoff_hz) for x, cutoff_hz in _narrow(clips, net))
    operator = "Gemm" if runner.streaming else "Conv"
    where = "stepper" if runner.streaming else "net"
    trunk = tuple(f"{where}.{part}." for part in ("encoder", "down", "bottleneck", "up", "decoder"))
    nodes = [node.name for node in proto.graph.node if node.op_type == operator and node.input[1].startswith(trunk)]
    assert len(nodes) == sum(isinstance(module, nn.Conv2d) for module in net.modules()) - 2
    properties = {prop.key: prop.value for prop in proto.metadata_props}
    # Constants are folded and shapes known, which is all that the preparation that onnxruntime asks for would do.
    require_onnx().helper.set_model_props(proto, properties | {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            proto,
            target,
            Reader(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=[operator],
            nodes_to_quantize=nodes,
        )
        quantised: onnx.ModelProto = require_onnx().load(target)
    require_onnx().helper.set_model_props(quantised, properties | {"precision": "int8"})
    return quantised


def _built(
    model: str | os.PathLike[str] | nn.Module,
    streaming: bool,
    int8: str | os.PathLike[str] | Sequence[np.ndarray] | None,
) -> tuple[bytes, float]:
    """A graph that has been run and compared, and its largest difference from the module."""
    net, meta = _source(model)
    name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    if streaming and not net.causal:
        raise ConfigError(f"{name}: needs the whole signal and cannot stream; take a causal model, or leave streaming out")
    proto = _float_graph(net, meta, streaming)
    if int8 is not None:
        proto = _quantised(proto, net, int8)
    data: bytes = proto.SerializeToString()
    runner = OnnxGenerator(data)
    difference = _difference(runner, net)
    if not difference <= (MAX_DIFFERENCE if int8 is None else 1.0):
        raise ModelError(f"{name}: onnxruntime's output differs from PyTorch's by {difference:.2g}; the graph was not kept")
    silence = runner(np.zeros((1, 1, 40 * net.hop), np.float32), np.array([net.sample_rate / 12]))
    if not float(np.abs(silence).max()) < _SILENCE:
        raise ModelError(f"{name}: silence does not stay silent in the exported graph; it was not kept")
    return data, difference


def export(
    model: str | os.PathLike[str] | nn.Module,
    path: str | os.PathLike[str],
    *,
    streaming: bool = False,
    int8: str | os.PathLike[str] | Sequence[np.ndarray] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a model as an ONNX file, having run it in onnxruntime and compared it with PyTorch.

    Inputs and outputs, all float32 and of one signal at the model's sample rate:

    * `x` (1, 1, T), T a multiple of `hop`; `cutoff_hz` (1,) in Hz; `y` (1, 1, T), aligned with `x`;
    * of a centred model also `samples` (1,), int64: how many of T are the signal, the others being padding;
    * of a causal model also `splice`, which is `dsp.causal_splice_weights`;
    * with `streaming` `x` and `y` are one `hop`, sample after sample in rows (hop / bands, bands), and `y` is late by `delay`
      samples; `splice` is `stepper.side_by_side` of those weights; in place of `cutoff_hz` come `told_0`, `told_1`, …, the
      outputs of a graph of its own, which is in the metadata, base64, as `telling`; `state_0`, `state_1`, … are zeros at the
      start of a stream, then the last rows of the last call's `next_0`, `next_1`, ….

    Args:
        model: shipped name, checkpoint folder, or a generator, which is left as it is.
        path: of the file; it appears complete or not at all.
        streaming: for a causal model, the graph that takes a signal block by block.
        int8: a folder of full-band recordings, or such clips `(T,)` at the model's rate: the convolutions of the trunk run in
            8 bits, ranged over these. None: everything in float.
        overwrite: replace a file that exists.

    Raises OutputError (exists, no such folder, cannot be written), ModelError (no such model, or its graph says something
    else than the module), ConfigError (streaming of a model that is not causal), AudioError (nothing to calibrate with),
    ImportError (naming the extra `onnx`).
    """
    target = Path(path)
    _check_target(target, overwrite)
    data, difference = _built(model, streaming, int8)
    _write(target, data, overwrite)
    return Exported(target, difference, len(data), OPSET, hashlib.sha256(data).hexdigest())


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give a file name")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it (--overwrite)")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; make it first")


def _write(path: Path, data: bytes, overwrite: bool) -> None:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(handle)
            os.chmod(name, 0o644)
            _check_target(path, overwrite)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None


def onnx_generator(model: str | os.PathLike[str] | nn.Module, *, streaming: bool = False, threads: int = 1) -> OnnxGenerator:
    """A model in onnxruntime without a file in between; raises as `export` does. Takes some seconds."""
    return OnnxGenerator(_built(model, streaming, None)[0], threads)
