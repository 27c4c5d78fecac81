"""Generators as ONNX files, and onnxruntime in place of PyTorch.

`export` writes one graph with everything in it: filter bank, network, cut-off embedding, splice. `OnnxGenerator` runs such a
file the way the module runs: `y = generator(x, cutoff_hz)` over a whole signal or, for a causal model exported with
`streaming`, `generator.stream(cutoff_hz).advance(block)`.

What a file needs to be used without this package is in its `metadata_props`, a text on how to run it included.
"""

from __future__ import annotations

import base64
import binascii
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
from bwe.errors import AudioError, BweError, ConfigError, ModelError, OutputError

if TYPE_CHECKING:
    import onnx

MAX_DIFFERENCE = 1e-4
"""Largest difference from PyTorch, full scale 1, that `export` accepts of a float graph."""
OPSET = 18
MAX_BYTES = 1 << 30

# The splice runs over frames of so many to a hop: products of matrices that are small enough to build for every cut-off and
# large enough to run at full speed.
_FRAMES_PER_HOP = 4
_CALIBRATION_CLIPS, _CALIBRATION_SECONDS = 32, 3.0
_SILENCE = 10 ** (-90 / 20)
# Of the hops of a calibration clip that goes through as a stream, every so many.
_CALIBRATION_STEP = 8


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


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files need the onnx package: pip install 'bwe[onnx]'") from error
    return onnx


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running ONNX files needs the onnxruntime package: pip install 'bwe[onnx]'") from error
    return onnxruntime


class _Graph(nn.Module):
    """A `SEANet` whose modulations are one matrix product: a block of 8 ms should not spend its time on a dozen of them."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__()
        self.embedding = net.embedding
        films = [film.affine for film in (*net.encoder_film, *net.bottleneck_film, *reversed(net.decoder_film))]
        self.widths = [film.out_features // 2 for film in films for _ in ("scale", "shift")]
        one = [torch.full((width,), float(i % 2 == 0)) for i, width in enumerate(self.widths)]
        self.register_buffer("weight", torch.cat([film.weight for film in films]))
        self.register_buffer("bias", torch.cat([film.bias for film in films]) + torch.cat(one))
        self.weight: Tensor
        self.bias: Tensor

    def modulation(self, cutoff_hz: Tensor, dims: int) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift of every level, `(1, D)` or, in four dimensions, `(1, D, 1, 1)`."""
        condition = self.embedding(cutoff_hz) if self.embedding else torch.zeros_like(cutoff_hz)[:, None]
        values = F.linear(condition, self.weight, self.bias)
        parts = (values if dims == 2 else values[:, :, None, None]).split(self.widths, dim=1)
        return _in_pairs(parts)


def _in_pairs(parts: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parts[::2], parts[1::2], strict=True))


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


class _Centred(_Graph):
    """`SEANet.forward` of a centred generator, with `dsp.splice_highpass` as a convolution."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__(net)
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
        generated = self.net.missing_band(x, generators.Told(self.modulation(cutoff_hz, 4), cutoff_hz))
        if not self.net.config.passthrough:
            return generated
        middle = cutoff_hz + sum(dsp.SPLICE_HZ) / 2
        centre = middle.clamp(min=0.0) * (2 / self.net.sample_rate)
        kernel = (1 - centre) * self.impulse - (centre * self.angle).sin() * self.decay
        # As in `forward`, nothing of what the network says about the padding reaches the signal.
        inside = torch.arange(x.shape[-1]) < samples
        return x + _convolve((generated - x) * inside, kernel, len(self.angle) // 2, self.net.hop // _FRAMES_PER_HOP)


class _Causal(_Graph):
    """`SEANet.forward` of a causal generator; the splice is an input, its minimum phase has no closed form."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__(net)
        self.net = net

    def forward(self, x: Tensor, cutoff_hz: Tensor, splice: Tensor) -> Tensor:
        net = self.net
        padded = F.pad(x, (0, -(-net.delay // net.hop) * net.hop))
        y = net.missing_band(padded, generators.Told(self.modulation(cutoff_hz, 4), splice))
        if net.config.passthrough:
            y = dsp.causal_splice(padded, y, splice)
        return y[..., net.delay : net.delay + x.shape[-1]]


class _Telling(_Graph):
    """What a stream is told of its cut-off, which it needs once: scales and shifts in turn."""

    def forward(self, cutoff_hz: Tensor) -> list[Tensor]:
        return [part for pair in self.modulation(cutoff_hz, 2) for part in pair]


class _Streaming(nn.Module):
    """`stepper.Stepper` over one hop, what it is told and what it remembers handed in."""

    def __init__(self, net: generators.SEANet) -> None:
        super().__init__()
        self.stepper = stepper.Stepper(net)

    def forward(self, x: Tensor, told: list[Tensor], splice: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        memory = stepper.Memory(states)
        return self.stepper(x, stepper.Told(_in_pairs(told), splice), memory), memory.tables


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
        told, splice = telling(cutoff_hz), graph.stepper.tell(float(cutoff_hz)).splice
        graph.stepper(x, stepper.Told(_in_pairs(told), splice), memory)
    states = [torch.zeros_like(kept) for kept in memory.kept()]
    told_names = [f"told_{i}" for i in range(len(told))]
    names = ["x", *told_names, "splice", *(f"state_{i}" for i in range(len(states)))]
    shapes = [None, [None] * len(told), None, [None] * len(states)]
    outputs = ["y", *(f"next_{i}" for i in range(len(states)))]
    hop = _traced(graph, [x, told, splice, states], shapes, names, outputs)
    return hop, _traced(telling, [cutoff_hz], [None], ["cutoff_hz"], told_names)


def _float_graph(net: generators.SEANet, meta: dict[str, Any], streaming: bool) -> onnx.ModelProto:
    """The graph with its metadata, not compared with anything yet."""
    _onnx()
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
    _onnx().helper.set_model_props(proto, {key: str(value) for key, value in properties.items()})
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
    _onnxruntime()
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
    feeds = itertools.chain.from_iterable(runner._calls(x, cutoff_hz) for x, cutoff_hz in _narrow(clips, net))
    operator = "Gemm" if runner.streaming else "Conv"
    where = "stepper" if runner.streaming else "net"
    trunk = tuple(f"{where}.{part}." for part in ("encoder", "down", "bottleneck", "up", "decoder"))
    nodes = [node.name for node in proto.graph.node if node.op_type == operator and node.input[1].startswith(trunk)]
    assert len(nodes) == sum(isinstance(module, nn.Conv2d) for module in net.modules()) - 2
    properties = {prop.key: prop.value for prop in proto.metadata_props}
    # Constants are folded and shapes known, which is all that the preparation that onnxruntime asks for would do.
    _onnx().helper.set_model_props(proto, properties | {"onnx.quant.pre_process": "onnxruntime.quant"})
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
        quantised: onnx.ModelProto = _onnx().load(target)
    _onnx().helper.set_model_props(quantised, properties | {"precision": "int8"})
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


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that it holds."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if hasattr(value, "__len__") else (value,):
                yield from _messages(child)


def _checked(data: bytes, where: str) -> tuple[bytes, dict[str, str]]:
    """The model without anything that onnxruntime could read and this check has not, and its metadata.

    Raises ModelError: no ONNX model, weights in other files (whose paths would be opened), operators of other libraries.
    """
    onnx = _onnx()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise ModelError(f"{where}: damaged or not an ONNX file; export the model again") from None
    if not proto.graph.node:
        raise ModelError(f"{where}: damaged or not an ONNX file; export the model again")
    # A field that this version of onnx does not know is one that was not looked at.
    proto.DiscardUnknownFields()
    for message in _messages(proto):
        if isinstance(message, onnx.TensorProto):
            if message.external_data or message.data_location != onnx.TensorProto.DEFAULT:
                raise ModelError(f"{where}: its weights are in another file, which is not opened; export into one file")
        elif isinstance(message, onnx.NodeProto) and message.domain not in ("", "ai.onnx"):
            raise ModelError(f"{where}: uses the foreign operator {message.domain}.{message.op_type}, which is not run")
    if proto.functions:
        raise ModelError(f"{where}: defines operators of its own, which are not run")
    return proto.SerializeToString(), {prop.key: prop.value for prop in proto.metadata_props}


def _read(source: str | os.PathLike[str]) -> bytes:
    path = Path(source)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{path}: {size / 2**30:.1f} GiB, above the cap of {MAX_BYTES / 2**30:.0f} GiB")
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; write one with `bwe export`") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def _embedded(properties: dict[str, str], where: str) -> bytes:
    """The graph that is told of a stream's cut-off, checked like the one that it came in."""
    try:
        data = base64.b64decode(properties["telling"], validate=True)
    except (KeyError, binascii.Error):
        raise ModelError(f"{where}: not a streaming file that this version of bwe wrote; export the model again") from None
    return _checked(data, where)[0]


def _session(data: bytes, threads: int, where: str) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin while they wait take whole cores from everything else on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(data, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no base class for what it raises
        raise ModelError(f"{where}: onnxruntime refuses it ({str(error).splitlines()[0]})") from None


def _ports(nodes: Sequence[Any]) -> dict[str, tuple[str, list[Any]]]:
    """Type and shape by name."""
    return {node.name: (node.type, node.shape) for node in nodes}


def _is_end(state: list[Any], table: list[Any]) -> bool:
    """Whether a state of that shape is the last rows of such a table."""
    numbers = all(isinstance(n, int) and n > 0 for n in (*state, *table))
    return numbers and len(state) == len(table) == 2 and state[0] <= table[0] and state[1] == table[1]


class OnnxGenerator:
    """An exported generator in onnxruntime on the CPU: `y = generator(x, cutoff_hz)` as of the module, arrays for tensors.

    Attributes:
        sample_rate (Hz), hop, causal, delay, latency, receptive_field, config: as of the `SEANet`.
        streaming: has `stream`. precision: "float32" or "int8". meta: of the model, as `hub.read` gives it.
        how_to_run: the text in the file. threads: CPU threads.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, threads: int = 1) -> None:
        """Load a file, or its contents.

        Raises ModelError (no such file, damaged, not written by `export`, larger than `MAX_BYTES`, weights in other files),
        ConfigError (no thread), ImportError (naming the extra `onnx`).
        """
        if not isinstance(threads, int) or threads < 1:
            raise ConfigError(f"threads must be a number from 1 on, not {threads!r}")
        where = "ONNX model" if isinstance(source, bytes) else str(source)
        data, properties = _checked(source if isinstance(source, bytes) else _read(source), where)
        self._properties(properties, where)
        self.threads = threads
        self._session = _session(data, threads, where)
        inputs, outputs = _ports(self._session.get_inputs()), _ports(self._session.get_outputs())
        told = {name: port for name, port in inputs.items() if name.startswith("told_")}
        self._state_shapes = [shape for name, (_, shape) in inputs.items() if name.startswith("state_")]
        self._table_shapes = [shape for name, (_, shape) in outputs.items() if name.startswith("next_")]
        states = range(len(self._state_shapes))
        expected = {"x", "splice" if self.causal else "samples", *(f"state_{i}" for i in states)}
        expected |= told.keys() if self.streaming else {"cutoff_hz"}
        known = inputs.keys() == expected and list(outputs) == ["y", *(f"next_{i}" for i in states)]
        known = known and self.streaming == bool(states)
        if known and self.streaming:
            self._telling = _session(_embedded(properties, where), threads, where)
            given, tells = _ports(self._telling.get_inputs()), _ports(self._telling.get_outputs())
            block = "tensor(float)", [self.hop // self.config.bands, self.config.bands]
            known = inputs["x"] == outputs["y"] == block and all(map(_is_end, self._state_shapes, self._table_shapes))
            known = known and given == {"cutoff_hz": ("tensor(float)", [1])} and tells == told
        kinds = {kind for name, (kind, _) in (*inputs.items(), *outputs.items()) if name != "samples"}
        known = known and kinds == {"tensor(float)"}
        known = known and (not self.causal or inputs["splice"][1] == list(self._splice(1000.0).shape))
        if not known:
            raise ModelError(f"{where}: its inputs and outputs are not those of its metadata; export the model again")

    def _properties(self, properties: dict[str, str], where: str) -> None:
        try:
            config = hub.from_dict(generators.Config, json.loads(properties["config"]), where)
            numbers = {key: int(properties[key]) for key in ("sample_rate", "hop", "delay", "latency", "receptive_field")}
            flags = {key: properties[key] == "1" for key in ("causal", "streaming")}
            text = {key: properties[key] for key in ("arch", "bwe_version", "weights_sha256", "precision", "how_to_run")}
        except (KeyError, ValueError, RecursionError, BweError) as error:
            raise ModelError(f"{where}: not an ONNX file that bwe wrote (metadata: {error}); use `bwe export`") from None
        with torch.device("meta"):
            net = generators.SEANet(config)
        numbers_of = {key: getattr(net, key) for key in numbers}
        if numbers != numbers_of or flags["causal"] != config.causal or flags["streaming"] > config.causal:
            raise ModelError(f"{where}: its metadata contradict one another; export the model again")
        self.config = config
        self.sample_rate, self.hop, self.delay, self.latency, self.receptive_field = numbers.values()
        self.causal, self.streaming = flags.values()
        self.precision, self.how_to_run = text["precision"], text["how_to_run"]
        self.meta: dict[str, Any] = {
            "arch": text["arch"],
            "config": dataclasses.asdict(config),
            "sample_rate": self.sample_rate,
            "version": text["bwe_version"],
            "sha256": text["weights_sha256"],
        }

    def __repr__(self) -> str:
        return f"OnnxGenerator({self.meta['arch']}, {self.sample_rate} Hz, {self.precision}, {self.threads} threads)"

    def _feeds(self, cutoff_hz: float, samples: int) -> dict[str, np.ndarray]:
        """What the session takes beside the signal, of which so many samples are not padding."""
        feeds = {"cutoff_hz": np.array([cutoff_hz], np.float32)}
        if self.streaming:
            names = [node.name for node in self._telling.get_outputs()]
            feeds = dict(zip(names, self._telling.run(names, feeds), strict=True))
        return feeds | ({"splice": self._splice(cutoff_hz)} if self.causal else {"samples": np.array([samples])})

    def _splice(self, cutoff_hz: float) -> np.ndarray:
        splice = dsp.causal_splice_weights(self.sample_rate, np.array([cutoff_hz]), self.delay, self.config.bands)
        return stepper.side_by_side(torch.from_numpy(splice[0])).numpy() if self.streaming else splice

    def _calls(self, x: np.ndarray, cutoff_hz: float) -> Iterator[dict[str, np.ndarray]]:
        """All that the session is given for a signal `(1, 1, n * hop)`; of a stream, some of its hops."""
        if not self.streaming:
            yield {"x": x} | self._feeds(cutoff_hz, x.shape[-1])
            return
        lane = _Lane(self, cutoff_hz)
        for number, start in enumerate(range(0, x.shape[-1], self.hop)):
            block = x[0, 0, start : start + self.hop]
            if number % _CALIBRATION_STEP == _CALIBRATION_STEP - 1:
                yield {"x": block.reshape(-1, self.config.bands)} | lane.feeds()
            lane.advance(block, np.empty_like(block))

    def __call__(self, x: np.ndarray, cutoff_hz: np.ndarray | float) -> np.ndarray:
        """Fills the band above the cut-off, as `SEANet.forward`.

        Args:
            x: `(B, 1, T)` float at `sample_rate`, any T >= 0, empty above the cut-off.
            cutoff_hz: where the known band ends, in Hz; one for all, or `(B,)`.

        Returns:
            `(B, 1, T)` float32.
        """
        length = x.shape[-1]
        if np.size(cutoff_hz) not in (1, len(x)):
            raise ConfigError(f"{np.size(cutoff_hz)} cut-offs for {len(x)} signals; give one, or one for each")
        cutoff_hz = np.broadcast_to(np.reshape(cutoff_hz, -1), len(x))
        late = self.delay if self.streaming else 0
        y = np.empty(x.shape, np.float32)
        if length == 0:
            return y
        padding = (0, late + -(length + late) % self.hop)
        for i, (signal, hz) in enumerate(zip(x, cutoff_hz, strict=True)):
            padded = np.pad(signal.astype(np.float32, copy=False), ((0, 0), padding))
            if self.streaming:
                whole = np.empty_like(padded)
                _Lane(self, float(hz)).advance(padded[0], whole[0])
            else:
                whole = self._session.run(["y"], {"x": padded[None]} | self._feeds(float(hz), length))[0][0]
            y[i] = whole[:, late : late + length]
        return y

    def stream(self, cutoff_hz: np.ndarray | float) -> OnnxStream:
        """A new stream of as many signals as cut-offs `(B,)` in Hz. Raises ConfigError where the file has no states."""
        if not self.streaming:
            raise ConfigError("this ONNX file takes whole signals only; export a causal model with streaming")
        return OnnxStream(self, np.atleast_1d(cutoff_hz))


class _Lane:
    """One signal of a stream: its states, in buffers that are bound to the graph once."""

    def __init__(self, generator: OnnxGenerator, cutoff_hz: float) -> None:
        self._run, self._hop = generator._session.run_with_iobinding, generator.hop
        self._told = generator._feeds(cutoff_hz, 0)
        bands = generator.config.bands
        self._x, self._y = (np.zeros((self._hop // bands, bands), np.float32) for _ in range(2))
        self._samples_in, self._samples_out = self._x.reshape(-1), self._y.reshape(-1)
        # The graph reads the ends of one set of tables and writes the other, and then they change places.
        self._tables = [[np.zeros(shape, np.float32) for shape in generator._table_shapes] for _ in range(2)]
        self._counts = [shape[0] for shape in generator._state_shapes]
        self._bindings = []
        for turn in range(2):
            binding = generator._session.io_binding()
            self._turn = turn
            for name, array in {"x": self._x, **self._states(), **self._told}.items():
                binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            for name, array in {"y": self._y, **{f"next_{i}": t for i, t in enumerate(self._tables[1 - turn])}}.items():
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            self._bindings.append(binding)
        self._turn = 0

    def _states(self) -> dict[str, np.ndarray]:
        """Views of the tables that are read next."""
        ends = zip(self._tables[self._turn], self._counts, strict=True)
        return {f"state_{i}": table[len(table) - count :] for i, (table, count) in enumerate(ends)}

    def feeds(self) -> dict[str, np.ndarray]:
        """All that the next hop goes through with, but the signal; copies."""
        return {name: array.copy() for name, array in (self._told | self._states()).items()}

    def advance(self, x: np.ndarray, y: np.ndarray) -> None:
        """`(n * hop,)` -> the same of the output, written to `y`."""
        for start in range(0, len(x), self._hop):
            self._samples_in[:] = x[start : start + self._hop]
            self._run(self._bindings[self._turn])
            self._turn = 1 - self._turn
            y[start : start + self._hop] = self._samples_out


class OnnxStream:
    """Signals through a streaming graph, block by block."""

    def __init__(self, generator: OnnxGenerator, cutoff_hz: np.ndarray) -> None:
        self._hop = generator.hop
        self._lanes = [_Lane(generator, float(hz)) for hz in cutoff_hz]

    def advance(self, x: np.ndarray) -> np.ndarray:
        """The next block, `(B, 1, n * hop)` float -> float32 of that shape, `delay` samples late.

        Raises AudioError for another shape.
        """
        if x.ndim != 3 or x.shape[:2] != (len(self._lanes), 1) or x.shape[-1] % self._hop:
            raise AudioError(f"a stream takes blocks of shape ({len(self._lanes)}, 1, n * {self._hop}), not {x.shape}")
        y = np.empty(x.shape, np.float32)
        for lane, before, after in zip(self._lanes, x, y, strict=True):
            lane.advance(before[0], after[0])
        return y

    __call__ = advance


def onnx_generator(model: str | os.PathLike[str] | nn.Module, *, streaming: bool = False, threads: int = 1) -> OnnxGenerator:
    """A model in onnxruntime without a file in between; raises as `export` does. Takes some seconds."""
    return OnnxGenerator(_built(model, streaming, None)[0], threads)
