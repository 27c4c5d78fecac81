"""Exported generators in onnxruntime, in place of PyTorch.

`OnnxGenerator` runs a file of `export.export` the way the module runs: `y = generator(x, cutoff_hz)` over a whole signal or,
for a causal model exported with `streaming`, `generator.stream(cutoff_hz).advance(block)`. Nothing of a file is believed or
opened that was not looked at before onnxruntime gets it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bwe import dsp, generators, hub, stepper
from bwe.errors import AudioError, BweError, ConfigError, ModelError

MAX_BYTES = 1 << 30

# Of the hops of a calibration clip that goes through as a stream, every so many.
_CALIBRATION_STEP = 8


def require_onnx() -> Any:
    """The package, where it is installed. Raises ImportError naming the extra."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files need the onnx package: pip install 'bwe[onnx]'") from error
    return onnx


def require_onnxruntime() -> Any:
    """The package, where it is installed. Raises ImportError naming the extra."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running ONNX files needs the onnxruntime package: pip install 'bwe[onnx]'") from error
    return onnxruntime


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
    onnx = require_onnx()
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
    ort = require_onnxruntime()
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
        # By number, whatever their order in the file: what is bound under a name has to have its shape.
        states = range(len(outputs) - 1)
        self._state_shapes = [inputs[name][1] for name in (f"state_{i}" for i in states) if name in inputs]
        self._table_shapes = [outputs[name][1] for name in (f"next_{i}" for i in states) if name in outputs]
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
        self.told_hz, self.inputs = config.told_hz, 1
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

    def calls(self, x: np.ndarray, cutoff_hz: float) -> Iterator[dict[str, np.ndarray]]:
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
        self._signals = (len(self._lanes), 1)

    def advance(self, x: np.ndarray) -> np.ndarray:
        """The next block, `(B, 1, n * hop)` float -> float32 of that shape, `delay` samples late.

        Raises AudioError for another shape.
        """
        if x.ndim != 3 or x.shape[:2] != self._signals or x.shape[-1] % self._hop:
            raise AudioError(f"a stream takes blocks of shape ({len(self._lanes)}, 1, n * {self._hop}), not {x.shape}")
        y = np.empty(x.shape, np.float32)
        for i, lane in enumerate(self._lanes):
            lane.advance(x[i, 0], y[i, 0])
        return y

    __call__ = advance
