"""Using a model: `load` gives an `Extender` for arrays and streams, `extend` takes a file of any length to a file.

What is common to every model is here, once: resampling in, finding the cut-off, channels, blocks whose joints cannot be
found, the exact length, and the account of what was done. Signals are numpy `(C, T)` here; a runner takes them to the
network, in PyTorch or in onnxruntime, and back.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

import bwe
from bwe import audio, dsp, generators, hub, pictures, runs, stepper
from bwe.errors import AudioError, ConfigError, ModelError, OutputError

DEFAULT_MODEL = "speech-48k"
SCHEMA = 1  # of the objects in a table of results
TARGET_RATES = (16_000, 24_000, 44_100, 48_000)
Bits = Literal["keep", "16", "24", "32f"]
Stereo = Literal["auto", "independent", "mid-side"]

_NULL_GUARD_HZ = 300.0
_HIGHEST_FORCED = 0.95  # of half the rate: above it the splice has no room
_NULL_SECONDS = 10
_CHUNK_SECONDS = 10.0
# Through the network: what its activations take does not grow with the number of channels.
_CHANNELS_AT_ONCE = 2
_MANY_CHANNELS = 32
_OPPOSED = -0.5  # correlation of two channels from which on one of them is taken to be inverted
_WEAK_SIDE = 10 ** (-20 / 10)  # power of the side over that of the mid, up to which they are what is extended

Audio = TypeVar("Audio", np.ndarray, Tensor)


class Runner(Protocol):
    """What takes numpy signals through a network."""

    sample_rate: int
    hop: int
    causal: bool
    streaming: bool
    delay: int
    latency: int
    receptive_field: int
    told_hz: float
    inputs: int

    def __call__(self, x: np.ndarray, cutoff_hz: np.ndarray) -> np.ndarray:
        """`(B, inputs, T)`, `(B,)` -> `(B, 1, T)`."""

    def stream(self, cutoff_hz: np.ndarray) -> Stream:
        """Where it is `streaming`, from silence on."""


class Stream(Protocol):
    """A network on its way through signals."""

    def advance(self, x: np.ndarray) -> np.ndarray:
        """The next `(B, 1, n * hop)` -> the same, `delay` samples late."""


class _Torch:
    """A generator in PyTorch as a `Runner`."""

    def __init__(self, generator: nn.Module) -> None:
        self.generator: Any = generator
        network: Any = generator
        self.sample_rate = int(network.sample_rate)
        self.hop = int(network.hop)
        self.receptive_field = int(network.receptive_field)
        self.causal = bool(getattr(generator, "causal", False))
        self.streaming = self.causal and isinstance(generator, generators.SEANet)
        self.delay, self.latency = (int(getattr(generator, name, 0)) for name in ("delay", "latency"))
        config = getattr(generator, "config", None)
        self.told_hz, self.inputs = float(getattr(config, "told_hz", 0)), 1 + int(getattr(config, "air", 0))

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.generator.parameters()), torch.device("cpu"))

    def __call__(self, x: np.ndarray, cutoff_hz: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            y = self.generator(torch.from_numpy(x).to(self.device), torch.from_numpy(cutoff_hz).to(self.device))
        return y.cpu().numpy()

    def stream(self, cutoff_hz: np.ndarray) -> Stream:
        return _TorchStream(self, cutoff_hz)


class _TorchStream:
    def __init__(self, runner: _Torch, cutoff_hz: np.ndarray) -> None:
        self._device = runner.device
        network = stepper.Stepper(runner.generator)
        self._lanes = [network.stream(float(hz)) for hz in cutoff_hz]

    def advance(self, x: np.ndarray) -> np.ndarray:
        blocks = torch.from_numpy(x).to(self._device)
        joined = torch.stack([lane.advance(block[0]) for lane, block in zip(self._lanes, blocks, strict=True)])
        return joined[:, None].cpu().numpy()


class Extender:
    """A generator with everything around it: ``model(x, sr)`` fills the missing band of any array.

    Attributes:
        sample_rate: of the output, in Hz.
        folder: name of the checkpoint folder or .onnx file it comes from.
        card: the model's card, Markdown: data, licence, training, measured metrics, limits.
        meta: contents of its config.json; empty for a generator that was not read from a folder.
        receptive_field: samples on either side, at `sample_rate`, that can change an output sample.
        causal: whether it looks only back, so that `stream` can be used.
        keeps_band: whether the known band comes out as it went in; a model for body microphones makes the whole band anew, and
            no cut-off is looked for.
        inputs: channels that it hears at once to make one: 1, or a body microphone and the air microphones beside it.
        generator: the network itself: a module in eval mode, or an `onnx_backend.OnnxGenerator`.
    """

    def __init__(self, generator: Any, meta: dict[str, Any] | None = None, card: str = "", folder: str = "") -> None:
        self.generator = generator.eval() if isinstance(generator, nn.Module) else generator
        self._runner: Runner = _Torch(generator) if isinstance(generator, nn.Module) else generator
        self.sample_rate: int = self._runner.sample_rate
        self.receptive_field: int = self._runner.receptive_field
        self.causal: bool = self._runner.causal
        self.keeps_band: bool = not self._runner.told_hz
        self.inputs: int = self._runner.inputs
        self.meta = meta or {}
        self.card = card
        self.folder = folder

    def __repr__(self) -> str:
        name = self.meta.get("arch", type(self.generator).__name__)
        if not isinstance(self.generator, nn.Module):
            return f"Extender({name} in onnxruntime, {self.sample_rate} Hz)"
        parameters = sum(p.numel() for p in self.generator.parameters())
        return f"Extender({name}, {parameters / 1e6:.2f} M parameters, {self.sample_rate} Hz)"

    @property
    def name(self) -> str:
        """Of the folder it was read from, else of its architecture."""
        return self.folder or str(self.meta.get("arch", "")) or type(self.generator).__name__

    @property
    def device(self) -> torch.device:
        return getattr(self._runner, "device", torch.device("cpu"))

    def to(self, device: str | torch.device) -> Extender:
        """Move the network; returns self. "auto" is CUDA, else MPS, else the CPU. Raises ConfigError where there is no such
        device."""
        if device == "auto":
            device = _best_device() if isinstance(self.generator, nn.Module) else "cpu"
        if not isinstance(self.generator, nn.Module):
            if str(device) != "cpu":
                raise ConfigError(f"device {str(device)!r} cannot be used: the onnx backend runs on the CPU")
            return self
        try:
            self.generator.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]})") from None
        return self

    def __call__(
        self,
        x: Audio,
        sr: int,
        cutoff: float | None = None,
        chunk_seconds: float | None = _CHUNK_SECONDS,
        stereo: Stereo = "auto",
    ) -> Audio:
        """Resample ``x`` to `sample_rate` and fill the band above its cut-off.

        Args:
            x: numpy array or torch tensor of any float type, ``(T,)``, ``(C, T)`` or ``(B, C, T)``, full scale ±1.
                A signal's cut-off is found over all of its channels.
            sr: sample rate of ``x`` in Hz.
            cutoff: where the known band ends, in Hz; None finds it in each of the B signals. A causal model, which could not
                look ahead for it in a stream, takes the end of the input's band instead: half of ``sr``, or the pass band of
                the resampling where ``sr`` is below `sample_rate`.
            chunk_seconds: length of the pieces a long signal is processed in (memory, not the result, depends on it);
                None takes it in one piece.
            stereo: how two channels are extended: "independent", each alone, as more than two always are; "mid-side", half
                their sum and half their difference; "auto" chooses for each of the B signals: mid and side where the side is
                20 dB weaker, so that the centre stays in the centre, else independently, the second inverted where they are
                mostly out of phase. A causal model, which could not know that in time, takes "auto" for "independent".

        Returns:
            The same kind, float type and device, the same leading shape (one channel where a model has more `inputs`),
            ``dsp.resampled_length(T, sr, sample_rate)``
            samples; below ``cutoff - 300`` Hz equal to the resampled input. A signal that is full-band already is only
            resampled.

        Raises AudioError (no float array, a shape that looks transposed, NaN or Inf, a sample rate outside 2 to
        384 kHz), ConfigError (a cut-off that is no frequency below half the sample rates, a chunk length ≤ 0, another
        value of ``stereo``, a causal model that is not told the cut-off of a signal at its own rate).
        """
        signals = _as_signals(x, sr)
        if chunk_seconds is not None and not 0 < chunk_seconds < math.inf:
            raise ConfigError(f"chunk_seconds must be above 0, not {chunk_seconds!r}; None takes the signal in one piece")
        _check_stereo(stereo)
        given = self._given_cutoff(cutoff, sr)
        resampled = dsp.resample(signals.to(self.device), int(sr), self.sample_rate).cpu().numpy()
        if self.inputs > 1 and signals.shape[1] != self.inputs:
            raise AudioError(
                f"audio of shape {tuple(x.shape)}: this model hears {self.inputs} microphones at once, (…, {self.inputs}, T)"
            )
        y = np.empty_like(resampled if self.inputs == 1 else resampled[:, :1])
        for signal, out in zip(resampled, y, strict=True):
            edge = given
            if edge is None:
                found = min(dsp.detect_cutoff(signal, self.sample_rate), sr / 2)
                edge = None if dsp.is_full_band(found, self.sample_rate) else found
            start, pair = 0, _Pair()
            if edge is not None:
                pair.add(signal)
            turn = pair.turn(stereo, self.causal) if len(signal) == 2 and self.inputs == 1 else None
            for block in self._filled([signal], len(signal), edge, chunk_seconds, turn):
                out[:, start : start + block.shape[-1]] = block
                start += block.shape[-1]
        return _like(x, y)

    def stream(
        self, blocks: Iterable[Audio], sr: int, cutoff: float | None = None, stereo: Stereo = "auto"
    ) -> Iterator[Audio]:
        """Extend a live signal block by block, with a causal model: what comes out, joined, is what one call gives.

        Args:
            blocks: arrays or tensors as for a call, ``(T,)`` or ``(C, T)`` of any lengths, all of one kind and with the same
                channels; they may come from a microphone: each is processed when it comes.
            sr: their sample rate in Hz.
            cutoff: where the known band ends, in Hz; by default as for a call.
            stereo: as for a call.

        Yields:
            All that a block completes, as soon as it does, and at the end the rest: `latency_seconds` later at most.

        Raises, besides what a call does, ConfigError: the model is not causal, or a block differs from the first.
        """
        if not self.causal:
            raise ConfigError("this model looks ahead and cannot stream; use speech-48k-stream, or call it on a whole signal")
        if not self._runner.streaming:
            onnx = not isinstance(self.generator, nn.Module)
            what = "ONNX file" if onnx else type(self.generator).__name__
            raise ConfigError(f"this {what} takes whole signals only" + ("; export it again with --streaming" if onnx else ""))
        if isinstance(blocks, np.ndarray | Tensor):
            raise ConfigError(
                "a stream takes blocks one after the other: give it a list or a generator of arrays, or call the model"
            )
        _check_stereo(stereo)
        given = self._given_cutoff(cutoff, sr)
        return self._streamed(iter(blocks), int(sr), given, stereo)

    def _streamed(self, blocks: Iterator[Audio], sr: int, cutoff: float | None, stereo: Stereo) -> Iterator[Audio]:
        first: Any = next(blocks, None)
        if first is None:
            return
        if getattr(first, "ndim", 1) > 2:
            raise AudioError(f"a block of shape {tuple(first.shape)} is not (T,) or (C, T), as those of a stream are")
        channels, taken = _as_signals(first, sr, 0).shape[1], 0
        if not channels:
            return
        resampler = dsp.Resampler(sr, self.sample_rate, channels)

        def resampled() -> Iterator[np.ndarray]:
            nonlocal taken
            for block in itertools.chain([first], blocks):
                if type(block) is not type(first) or block.shape[:-1] != first.shape[:-1]:
                    raise ConfigError(
                        f"a {type(block).__name__} of shape {tuple(getattr(block, 'shape', ()))} follows one of "
                        f"{tuple(first.shape)}; all blocks of a stream have the same kind and channels"
                    )
                # A copy: what is not yet a full hop waits, and the caller may fill the same buffer again.
                yield resampler.push(_as_signals(block, sr, taken)[0].cpu().numpy().copy())
                taken += block.shape[-1]
            yield resampler.flush()

        turn = _Pair().turn(stereo, causal=True) if channels == 2 else None
        for y in self._filled(resampled(), channels, cutoff, None, turn):
            if y.shape[-1]:
                yield _like(first, y)

    def latency_seconds(self, sr: int) -> float:
        """Longest time in seconds from a sample of a stream at ``sr`` until the output at its place has come out.

        That is the look-ahead of the resampler, the delay of filter bank and splice, and the wait for a full hop; computing
        time comes on top. Raises ConfigError where the model is not causal.
        """
        if not self.causal:
            raise ConfigError("this model looks ahead as far as the signal goes; only a causal one has a latency")
        _check_rate(sr)
        resampler = dsp.Resampler(int(sr), self.sample_rate, 1)
        return resampler.lookahead + (self._runner.latency + 1) / self.sample_rate

    def _given_cutoff(self, cutoff: float | None, sr: int) -> float | None:
        """The cut-off as told, or the one that a causal model assumes; None where it is to be found."""
        _check_rate(sr)
        if self._runner.told_hz:
            return self._runner.told_hz
        if cutoff is not None:
            return _check_cutoff(cutoff, sr, self.sample_rate)
        if not self.causal:
            return None
        hz = dsp.passband_end(sr, self.sample_rate)
        if dsp.is_full_band(hz, self.sample_rate):
            raise ConfigError(
                f"a causal model does not look for the cut-off, and at {sr} Hz there is nothing to go by; give it one (cutoff)"
            )
        return hz

    def _filled(
        self,
        blocks: Iterable[np.ndarray],
        channels: int,
        cutoff_hz: float | None,
        chunk_seconds: float | None,
        turn: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Blocks `(C, n)` at `sample_rate` -> blocks `(C, m)` of the same length in all; None fills nothing.

        What goes through the network is ``turn @ block`` (see `_Pair`), and what comes out is turned back.
        """
        if cutoff_hz is None or not channels:
            yield from blocks
            return
        edges = np.full(channels, cutoff_hz, np.float32)
        engine = self._causally if self._runner.streaming else self._centred
        back = None if turn is None else np.linalg.inv(turn).astype(np.float32)
        for y in engine(blocks if turn is None else (turn @ block for block in blocks), edges, chunk_seconds):
            if not np.isfinite(y).all():
                raise ModelError("the model's output is not finite; full scale is 1: scale the input down, or check the model")
            yield y if back is None else back @ y

    def _on_grid(self, seconds: float) -> int:
        """Samples, a multiple of the hop and at least one."""
        return max(1, round(seconds * self.sample_rate / self._runner.hop)) * self._runner.hop

    def _in_groups(self, x: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """`(C, 1, T)` -> `(C, T)`, a few channels at once, always as many: alike ones stay alike to the last bit. A model
        that hears all C at once makes `(1, T)`."""
        if self.inputs > 1:
            return self._runner(x.swapaxes(0, 1), edges[:1])[:, 0]
        size = min(len(x), _CHANNELS_AT_ONCE)
        out = []
        for first in range(0, len(x), size):
            first = min(first, len(x) - size)
            out.append(self._runner(x[first : first + size], edges[first : first + size])[:, 0])
        repeated = -len(x) % size
        return np.concatenate([*out[:-1], out[-1][repeated:]])

    def _centred(self, blocks: Iterable[np.ndarray], edges: np.ndarray, chunk_seconds: float | None) -> Iterator[np.ndarray]:
        """In chunks that start on the hop grid, so that every convolution sees the samples at the phase it would see them in
        one pass, and with more context than the receptive field, which is thrown away."""
        hop = self._runner.hop
        chunk = None if chunk_seconds is None else self._on_grid(chunk_seconds)
        halo = math.ceil(self.receptive_field / hop) * hop
        held, low, start = np.zeros((len(edges), 0), np.float32), 0, 0
        for block in _and_end(blocks):
            if block is not None:
                held = np.concatenate([held, block], axis=-1) if held.shape[-1] else block
            have = low + held.shape[-1]
            while start < have and (block is None or (chunk is not None and have >= start + chunk + halo)):
                stop = have if chunk is None else min(have, start + chunk)
                piece = np.ascontiguousarray(held[:, None, max(0, start - halo) - low : stop + halo - low])
                y = self._in_groups(piece, edges)
                yield y[:, start - max(0, start - halo) :][:, : stop - start]
                start = stop
                held, low = held[:, max(0, start - halo) - low :], max(0, start - halo)

    def _causally(self, blocks: Iterable[np.ndarray], edges: np.ndarray, chunk_seconds: float | None) -> Iterator[np.ndarray]:
        """As a stream: what fills whole hops goes through the network, the rest waits."""
        hop, delay = self._runner.hop, self._runner.delay
        chunk = self._on_grid((chunk_seconds or _CHUNK_SECONDS) / max(1, len(edges) / _CHANNELS_AT_ONCE))
        stream = self._runner.stream(edges)
        held, taken, given, late = np.zeros((len(edges), 0), np.float32), 0, 0, delay
        for block in _and_end(blocks):
            if block is None:
                silence = np.zeros((len(edges), delay + hop - 1), np.float32)
                held = np.concatenate([held, silence], axis=-1)
            else:
                taken += block.shape[-1]
                held = np.concatenate([held, block], axis=-1) if held.shape[-1] else block
            whole = held.shape[-1] // hop * hop
            for start in range(0, whole, chunk):
                y = stream.advance(np.ascontiguousarray(held[:, None, start : min(whole, start + chunk)]))[:, 0]
                y, late = y[:, late:], max(0, late - y.shape[-1])
                if block is None:
                    y = y[:, : taken - given]
                given += y.shape[-1]
                yield y
            held = held[:, whole:]


class _Pair:
    """What two channels have to do with one another, and what of them is extended.

    The network is not linear: a little of another sound in one channel moves all of its highs. The voice of
    examples/talk_48k.flac in the centre, amid ambience 24 dB below it, wanders by 1 to 5 dB with speech-48k where each
    channel is extended alone; as mid and side it moves by 0.7 dB at most. But the highs of x and -x are nearly the same: on
    music the difference is 3 to 6 dB below them, where that to the inverse is 5 to 6 dB above. Of a source on the far side
    of the centre, inverted in the side signal, mid + side puts the highs on the wrong side: where sources sit left and
    right, mid and side are off by 12 dB, the channels alone by 2 to 6. So mid and side are for a weak side. And of two
    channels that are each other's inverse the second goes through inverted: its highs would be the same as the first's
    otherwise.

    benchmarks/README.md has the figures of the scenes and of the threshold, `benchmarks/stereo.py` measures them.
    """

    def __init__(self) -> None:
        self._products = np.zeros((2, 2))
        self._last = np.zeros((2, 0), np.float32)

    def add(self, x: np.ndarray) -> None:
        """`(C, n)` at the model's rate, the next samples.

        Third differences weigh a signal towards the end of its band, which is where the missing one begins: bass does not say
        who makes the highs.
        """
        if len(x) == 2:
            held = np.concatenate([self._last, x], axis=-1)
            self._last = held[:, -3:]
            steps = np.diff(held, n=3)
            self._products += np.einsum("in,jn->ij", steps, steps, dtype=np.float64)

    def turn(self, stereo: Stereo, causal: bool) -> np.ndarray | None:
        """`(2, 2)`, from the channels to what is extended, in powers of two: exact but for the rounding of a sum. None leaves
        the channels as they are."""
        (left, both), (_, right) = self._products.tolist()
        if causal and stereo == "auto":
            return None
        side = -0.5 if right > left and not causal else 0.5
        mid_side = np.array([[0.5, 0.5], [side, -side]], np.float32)
        if stereo == "mid-side":
            return mid_side
        if stereo == "independent":
            return None
        if 0 < left + right - 2 * both < _WEAK_SIDE * (left + right + 2 * both):
            return mid_side
        return np.array([[1, 0], [0, -1]], np.float32) if both < _OPPOSED * math.sqrt(left * right) else None


def _check_stereo(stereo: str) -> None:
    if stereo not in get_args(Stereo):
        raise ConfigError(f"stereo must be one of {', '.join(get_args(Stereo))}, not {stereo!r}")


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _and_end(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
    yield from blocks
    yield None


def _like(x: Audio, y: np.ndarray) -> Audio:
    """`y` with the leading shape, the kind, the type and the device of `x`."""
    channels = (y.shape[-2],) if x.ndim > 1 else ()
    shaped = y.reshape(*x.shape[:-2], *channels, y.shape[-1])
    if isinstance(x, Tensor):
        return torch.from_numpy(shaped).to(device=x.device, dtype=x.dtype)
    return shaped.astype(x.dtype, copy=False)


def _check_rate(sr: int) -> None:
    if isinstance(sr, bool) or not isinstance(sr, int | np.integer) or not audio.MIN_RATE <= sr <= audio.MAX_RATE:
        raise AudioError(f"sr must be a whole number of Hz from {audio.MIN_RATE} to {audio.MAX_RATE}, not {sr!r}")


def _as_signals(x: np.ndarray | Tensor, sr: int, taken: int | None = None) -> Tensor:
    """Check what the user gave; ``(B, C, T)`` float32. Of a stream, ``taken`` samples came before it."""
    if not isinstance(x, np.ndarray | Tensor):
        raise AudioError(f"audio must be a numpy array or a torch tensor, not {type(x).__name__}")
    floating = x.is_floating_point() if isinstance(x, Tensor) else np.issubdtype(x.dtype, np.floating)
    if not floating:
        raise AudioError(f"audio of type {x.dtype} is not float; convert it to float in [-1, 1] (int16: x / 32768)")
    _check_rate(sr)
    shape = tuple(x.shape)
    if not 1 <= len(shape) <= 3:
        raise AudioError(f"audio of shape {shape} must be (T,), (C, T) or (B, C, T)")
    if taken is None and len(shape) > 1 and shape[-2] > _MANY_CHANNELS >= shape[-1]:
        raise AudioError(f"audio of shape {shape} has {shape[-2]} channels of {shape[-1]} samples; transpose it to (C, T)")
    tensor = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, dtype=np.float32, order="C"))
    signals = tensor.float().reshape((1,) * (3 - len(shape)) + shape)
    finite = torch.isfinite(signals)
    if not bool(finite.all()):
        index = (~finite).nonzero()[0].tolist()
        where = f" in channel {index[1] + 1}" if len(shape) > 1 else ""
        where += f" of signal {index[0] + 1}" if len(shape) > 2 else ""
        name = audio.nonfinite_name(float(signals[tuple(index)]))
        place = index[2] + (taken or 0)
        raise AudioError(f"{name} at sample {place} ({place / sr:.4f} s){where}; repair the signal first")
    return signals


def _check_cutoff(cutoff: float, sr: int, rate: int) -> float:
    try:
        hz = float(cutoff)
    except (TypeError, ValueError):
        raise ConfigError(f"cutoff must be a frequency in Hz, not {cutoff!r}") from None
    if not 0 < hz < rate / 2:
        raise ConfigError(f"cutoff {hz:g} Hz must lie above 0 and below {rate / 2:g} Hz, half the model's sample rate")
    if hz > sr / 2:
        raise ConfigError(f"cutoff {hz:g} Hz is above {sr / 2:g} Hz, half the input's sample rate; leave it out to find it")
    return hz


def load(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    backend: Literal["torch", "onnx"] = "torch",
    threads: int = 1,
) -> Extender:
    """Load a model by shipped name (`bwe.list_models()`), by the path of its checkpoint folder, or from an exported ``.onnx``.

    "sinc" and "sbr" (at other rates "sbr-16k", …) are the baselines that need no weights, see `bwe.baselines`.

    ``backend="onnx"`` runs the network in onnxruntime on ``threads`` threads (extra ``onnx``), in a third of PyTorch's time
    for the short blocks of a stream, in hardly less for whole files. A name or folder is exported in memory, which takes some
    seconds; a file that `bwe export` wrote is there at once, and says itself whether it streams.

    Raises ModelError (unknown, damaged or refused; see `hub.read`) and ConfigError (no such device or backend).
    """
    if backend not in ("torch", "onnx"):
        raise ConfigError(f"no backend {backend!r}; use 'torch' or 'onnx'")
    path = Path(name)
    if isinstance(name, str) and (baseline := hub.weightless(name)) is not None:
        return Extender(baseline, {"arch": name.partition("-")[0]}, str(baseline.__doc__), folder=name).to(device)
    if path.suffix.lower() == ".onnx" or backend == "onnx":
        from bwe import export, onnx_backend

        if path.suffix.lower() == ".onnx":
            onnx = onnx_backend.OnnxGenerator(path, threads=threads)
            return Extender(onnx, onnx.meta, folder=path.name).to(device)
        generator, meta, card = hub.read(name)
        onnx = export.onnx_generator(generator, streaming=bool(getattr(generator, "causal", False)), threads=threads)
        return Extender(onnx, meta, card, hub.find(name).name).to(device)
    generator, meta, card = hub.read(name)
    return Extender(generator, meta, card, hub.find(name).name).to(device)


@dataclass(frozen=True)
class Report:
    """What `extend` did; ``str(report)`` is the closing line of the command, `to_dict` the record of ``--report``.

    Attributes:
        in_path, out_path: names; "-" for the standard streams; out_path is None where the file was left alone.
        in_rate, out_rate: Hz. seconds: duration. channels: of both files. frames_in, frames_out: samples per channel.
        in_subtype, out_subtype: sample formats in libsndfile's names.
        cutoff_hz: where the known band ends; cutoff_source: "auto" (found), "given", "rate" (a causal model's assumption), or
            "model" (one that makes the whole band anew).
        filled: False where the input was full-band already.
        null_db: power of what changed below ``cutoff_hz - 300`` Hz over the power of the input, before quantisation.
        realtime: seconds of audio per second of work, reading and writing included.
        clipped: samples that full scale cut off; peak: largest absolute value before that.
        amount: share of the generated band. model, model_sha256, device, backend: what filled it.
        in_sha256: of the input where the output has taken its place; else `to_dict` reads the file.
        warnings: sentences about the input.
    """

    in_path: Path
    out_path: Path | None
    in_rate: int
    out_rate: int
    channels: int
    seconds: float
    frames_in: int
    frames_out: int
    in_subtype: str
    out_subtype: str
    cutoff_hz: float
    cutoff_source: str
    filled: bool
    null_db: float
    realtime: float
    clipped: int
    peak: float
    amount: float = 1.0
    model: str = ""
    model_sha256: str = ""
    device: str = "cpu"
    backend: str = "torch"
    in_sha256: str | None = None
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        band = f"{self.cutoff_hz / 1000:.1f} kHz"
        if self.out_path is None:
            name = f"{self.in_path} {self.in_rate / 1000:g} kHz  {audio.clock(self.seconds)}"
            return f"{name}  full-band already ({band}): left alone (--force or --cutoff extends it)"
        null = "−∞" if math.isinf(self.null_db) else f"{self.null_db:.0f}".replace("-", "−")
        known = f"known band kept to {band} (null {null} dB)"
        if self.cutoff_source == "model":
            known = "whole band made anew"
        if not self.filled:
            known = f"full-band already ({band}), nothing to fill"
        speed = f"{self.realtime:.0f}×" if self.realtime >= 9.95 else f"{self.realtime:.1f}×"
        parts = [
            f"{self.in_path} {self.in_rate / 1000:g} kHz → {self.out_path} {self.out_rate / 1000:g} kHz",
            audio.clock(self.seconds),
            known if self.seconds else "empty",
            f"{speed} real time",
        ]
        if self.clipped:
            excess = math.ceil(200 * math.log10(self.peak)) / 10  # rounded up: what is shown must fit
            parts.append(f"clipped {self.clipped} samples (−{excess:.1f} dB would fit)")
        return "  ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Enough to make the same file again, as plain values; decibels that are not finite become null."""
        written = self.out_path is not None
        return {
            "schema": SCHEMA,
            "bwe": bwe.__version__,
            "torch": torch.__version__,
            "status": "done" if written else "left alone",
            "model": {"name": self.model, "sha256": self.model_sha256},
            "input": {
                "path": str(self.in_path), "sha256": self.in_sha256 or _sha256(self.in_path), "sr": self.in_rate,
                "channels": self.channels, "frames": self.frames_in, "subtype": self.in_subtype,
            },
            "output": {
                "path": str(self.out_path), "sha256": _sha256(self.out_path), "sr": self.out_rate, "channels": self.channels,
                "frames": self.frames_out, "subtype": self.out_subtype,
            } if written else None,
            "cutoff_hz": self.cutoff_hz,
            "cutoff_source": self.cutoff_source,
            "filled": self.filled,
            "amount": self.amount,
            "seconds": self.seconds,
            "rtf": 1 / self.realtime if self.realtime else None,
            "device": self.device,
            "backend": self.backend,
            "dtype": "float32",
            "seed": 0,
            "block": _CHUNK_SECONDS,
            "clipped_out": self.clipped,
            "peak_dbfs": 20 * math.log10(self.peak) if self.peak > 0 else None,
            "null_lowband_db": self.null_db if math.isfinite(self.null_db) else None,
            "warnings": list(self.warnings),
        }  # fmt: skip


def _sha256(path: Path | None) -> str | None:
    """Of a file that is there; None for a stream."""
    if path is None or not path.is_file():
        return None
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def output_rate(model_rate: int, in_rate: int, keeps_band: bool = True) -> int:
    """Sample rate in Hz of a file that a model of ``model_rate`` makes of one of ``in_rate``: the lowest of `TARGET_RATES` and
    the model's own that is below neither; 48000 where the input's is higher than that. Where a model keeps nothing of the
    input, its own: there is nothing above."""
    if not keeps_band:
        return model_rate
    rates = sorted({*TARGET_RATES, model_rate})
    return next((rate for rate in rates if rate >= max(model_rate, in_rate)), rates[-1])


def default_output(in_path: Path, sample_rate: int, channels: int) -> Path:
    """``talk.flac`` → ``talk.bwe.flac`` beside it; ``.wav`` where that format cannot be written at this sample rate."""
    same = in_path.with_name(f"{in_path.stem}.bwe{in_path.suffix}")
    if in_path.suffix and audio.can_hold(same, sample_rate, channels):
        return same
    return in_path.with_name(f"{in_path.stem}.bwe.wav")


@dataclass(frozen=True)
class _Survey:
    """What the first pass over a file finds, before anything is written."""

    frames: int
    cutoff_hz: float
    alike: bool  # all channels are
    pair: _Pair


def extend(
    in_path: str | os.PathLike[str] | BinaryIO,
    out_path: str | os.PathLike[str] | BinaryIO | None = None,
    model: str | os.PathLike[str] | Extender = DEFAULT_MODEL,
    cutoff: float | None = None,
    overwrite: bool = False,
    *,
    sample_rate: int | None = None,
    amount: float = 1.0,
    bits: Bits = "keep",
    salvage: bool = False,
    nan: Literal["refuse", "zero"] = "refuse",
    force: bool = False,
    tags: bool = True,
    spectrogram: str | os.PathLike[str] | None = None,
    progress: Callable[[float, float], None] | None = None,
    stereo: Stereo = "auto",
) -> Report:
    """Extend an audio file of any length to a new file, in constant memory; returns the `Report` of what was done.

    The file is read twice: once to check all of it and to find the cut-off, then to extend it. Channels that are all alike
    stay alike to the last bit.

    Args:
        in_path: a file that `audio.Reader` takes, or a binary stream (`audio.stdin_source`).
        out_path: where to; its extension says the format. A folder takes the default name, ``<stem>.bwe.<ext>``; None
            puts that next to the input; a binary stream gets a WAV. Bits per sample are kept where the format allows.
        model: a shipped name, a checkpoint folder, an exported .onnx, or a loaded `Extender`.
        cutoff: where the known band ends, in Hz; None finds it (a causal model takes the end of the input's band).
        overwrite: replace existing outputs.
        sample_rate: of the output, 16000, 24000, 44100 or 48000 Hz; by default `output_rate`: the model's, or the file's where
            that is higher, up to 48000. Above the model's the generated band is added to the input at the output's rate.
        amount: 0 to 1, how much of the generated band is mixed in.
        bits: "keep", "16", "24" or "32f".
        salvage: keep the readable part of a damaged input instead of refusing it.
        nan: "zero" replaces NaN and Inf in the input instead of refusing it.
        force: extend what is full-band already, too; else no file is written for it (a stream gets it resampled).
        tags: copy title, artist and so on, and name this software.
        spectrogram: PNG to write: before, after, difference.
        progress: called with (seconds done, seconds in all).
        stereo: how two channels are extended, as for a call of the model.

    Raises AudioError (the input), OutputError (the output; checked before the work), ModelError, ConfigError. The output
    appears complete or not at all.
    """
    extender = model if isinstance(model, Extender) else load(model)
    started = time.perf_counter()
    rate = extender.sample_rate
    if sample_rate and sample_rate not in (*TARGET_RATES, rate):
        raise ConfigError(f"no output rate {sample_rate} Hz; use one of {', '.join(map(str, TARGET_RATES))}")
    if not 0 <= amount <= 1:
        raise ConfigError(f"amount must be from 0 to 1, not {amount!r}")
    if bits not in get_args(Bits):
        raise ConfigError(f"bits must be one of {', '.join(get_args(Bits))}, not {bits!r}")
    _check_stereo(stereo)
    picture = None if spectrogram is None else _writable_picture(Path(spectrogram), overwrite)
    with audio.Reader(in_path, salvage=salvage, nan=nan) as reader:
        info = reader.info
        out_rate = sample_rate or output_rate(rate, info.sample_rate, extender.keeps_band)
        target = _target(info, in_path, out_path, out_rate)
        if isinstance(target, Path):
            audio.check_output(target, overwrite)
            subtype = audio.SUBTYPES.get(bits) or audio.fitting_subtype(target, info.subtype)
        elif bits == "keep":
            subtype = {"PCM_24": "PCM_24", "PCM_32": "PCM_24", "FLOAT": "FLOAT", "DOUBLE": "FLOAT"}.get(info.subtype, "PCM_16")
        else:
            subtype = audio.SUBTYPES[bits]
        if extender.inputs > 1 and info.channels != extender.inputs:
            raise AudioError(
                f"{info.path}: has {info.channels} channel{'s' * (info.channels > 1)}; {extender.name} hears "
                f"{extender.inputs} microphones at once, the body microphone first: give it a file with a channel for each"
            )
        out_channels = 1 if extender.inputs > 1 else info.channels
        audio.Writer(target, out_rate, out_channels, subtype, overwrite=overwrite)  # not opened: refuses what cannot be held
        same = isinstance(target, Path) and os.path.exists(target) and info.path.exists() and target.samefile(info.path)
        in_sha256 = _sha256(info.path) if same else None
        given = extender._given_cutoff(cutoff, info.sample_rate)
        tell = _teller(progress, info.seconds)
        survey = _survey(reader, extender, given is None, tell)
        hz = given or min(survey.cutoff_hz, info.sample_rate / 2)
        filled = given is not None or force or not dsp.is_full_band(hz, rate)
        if filled and given is None:
            hz = min(hz, _HIGHEST_FORCED * rate / 2)
        out_info: dict[str, Any] = {"out_path": None, "frames_out": 0, "out_subtype": ""}
        null_db, clipped, peak = -math.inf, 0, 0.0
        if filled or not survey.frames or not isinstance(target, Path):
            frames_out = dsp.resampled_length(survey.frames, info.sample_rate, out_rate)
            channels = 1 if survey.alike and extender.inputs == 1 else info.channels
            made = 1 if extender.inputs > 1 else channels
            null = _Null(rate, hz)
            frames = dsp.resampled_length(survey.frames, info.sample_rate, rate)
            panels = [pictures.SpectrogramAccumulator(rate, frames) for _ in range(3 if picture else 0)]
            last = _Joined(info.sample_rate, rate, out_rate, made, extender.keeps_band)
            named = {**info.tags, "software": f"bwe {bwe.__version__}"} if tags else None
            with audio.Writer(
                target, out_rate, out_channels, subtype, frames=frames_out, overwrite=overwrite, tags=named
            ) as writer:
                edge = hz if filled else None
                turn = survey.pair.turn(stereo, extender.causal) if made == 2 else None
                for before, after in _pairs(reader, extender, edge, channels, amount, tell, turn, last.hear):
                    null.add(before, after)
                    for panel, x in zip(panels, (before, after, after - before), strict=False):
                        panel.add(x)
                    writer.write(_spread(last.push(before, after), out_channels))
                writer.write(_spread(last.flush(frames_out), out_channels))
                if picture is not None:
                    shown_hz = hz if filled and extender.keeps_band else None
                    drawn = pictures.comparison(panels[0], panels[1], panels[2], shown_hz, info.path.name)
                    runs.write_bytes(picture, drawn)
            null_db, clipped, peak = null.decibels(), writer.clipped, writer.peak
            shown = target if isinstance(target, Path) else Path("-")
            out_info = {"out_path": shown, "frames_out": frames_out, "out_subtype": subtype}
        elapsed = time.perf_counter() - started
        return Report(
            in_path=info.path,
            in_rate=info.sample_rate,
            out_rate=out_rate,
            channels=out_channels,
            seconds=float(Fraction(survey.frames, info.sample_rate)),
            frames_in=survey.frames,
            in_subtype=info.subtype,
            cutoff_hz=hz,
            cutoff_source=_source(extender, cutoff, given),
            filled=filled,
            null_db=null_db,
            realtime=survey.frames / info.sample_rate / elapsed,
            clipped=clipped,
            peak=peak,
            amount=amount,
            model=extender.name,
            model_sha256=str(extender.meta.get("sha256", "")),
            device=str(extender.device),
            backend="torch" if isinstance(extender.generator, nn.Module) else "onnx",
            in_sha256=in_sha256,
            warnings=tuple(reader.warnings),
            **out_info,
        )


def _source(extender: Extender, told: float | None, given: float | None) -> str:
    if not extender.keeps_band:
        return "model"
    return "given" if told is not None else "rate" if given is not None else "auto"


def _target(
    info: audio.Info,
    in_path: str | os.PathLike[str] | BinaryIO,
    out_path: str | os.PathLike[str] | BinaryIO | None,
    out_rate: int,
) -> Path | BinaryIO:
    if out_path is not None and not isinstance(out_path, str | os.PathLike):
        return out_path
    if not isinstance(in_path, str | os.PathLike) and (out_path is None or os.path.isdir(out_path)):
        raise OutputError(f"{info.path}: a stream has no name to derive the output's from; say where to write it")
    default = default_output(info.path, out_rate, info.channels)
    if out_path is None:
        return default
    return Path(out_path) / default.name if os.path.isdir(out_path) else Path(out_path)


def _writable_picture(path: Path, overwrite: bool) -> Path:
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: the spectrogram is a PNG; give a name that ends in .png")
    audio.check_place(path, overwrite)
    pictures.require_matplotlib()
    return path


def _teller(progress: Callable[[float, float], None] | None, seconds: float) -> Callable[[float, float], None]:
    """A function of (seconds read, share of the whole work that reading them all is)."""
    done = 0.0

    def tell(read: float, share: float) -> None:
        nonlocal done
        done += read * share
        if progress is not None:
            progress(min(done, seconds), seconds)

    return tell


_SURVEY_SHARE = 0.1


def _survey(reader: audio.Reader, extender: Extender, detect: bool, tell: Callable[[float, float], None]) -> _Survey:
    info, rate = reader.info, extender.sample_rate
    pairs = info.channels == 2 and not extender.causal
    resampler, detector = dsp.Resampler(info.sample_rate, rate, info.channels), dsp.CutoffDetector(rate)
    frames, alike, pair = 0, info.channels > 1, _Pair()

    def add(resampled: np.ndarray) -> None:
        if pairs:
            pair.add(resampled)
        if detect:
            detector.add(resampled)

    for block in reader.blocks():
        frames += block.shape[-1]
        alike = alike and bool((block[1:] == block[:1]).all())
        if detect or pairs:
            add(resampler.push(block))
        tell(block.shape[-1] / info.sample_rate, _SURVEY_SHARE)
    if (detect or pairs) and frames:
        add(resampler.flush())
    return _Survey(frames, detector.cutoff_hz(), alike, pair)


def _pairs(
    reader: audio.Reader,
    extender: Extender,
    cutoff_hz: float | None,
    channels: int,
    amount: float,
    tell: Callable[[float, float], None],
    turn: np.ndarray | None,
    hear: Callable[[np.ndarray], None],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first ``channels`` of a file at the model's rate, `(C, n)` before and after; ``hear`` is given them as read."""
    info = reader.info
    resampler = dsp.Resampler(info.sample_rate, extender.sample_rate, channels)
    waiting = np.zeros((channels, 0), np.float32)

    def resampled() -> Iterator[np.ndarray]:
        nonlocal waiting
        for block in reader.blocks():
            used = np.ascontiguousarray(block[:channels])
            hear(used if extender.inputs == 1 else used[:1])
            y = resampler.push(used)
            waiting = np.concatenate([waiting, y], axis=-1)
            yield y
            tell(block.shape[-1] / info.sample_rate, 1 - _SURVEY_SHARE)
        y = resampler.flush()
        waiting = np.concatenate([waiting, y], axis=-1)
        yield y

    for after in extender._filled(resampled(), channels, cutoff_hz, _CHUNK_SECONDS, turn):
        before, waiting = waiting[: len(after), : after.shape[-1]], waiting[:, after.shape[-1] :]
        yield before, after if amount == 1 else before + np.float32(amount) * (after - before)


class _Joined:
    """The output at its own rate, of what a model makes at its rate.

    Below the model's rate that is resampled. Above it only what the model has added is, and the rest is the input: it keeps
    what lies beyond the model's band, and at its own rate every sample. Where a model makes the whole band anew, nothing of
    the input is kept.
    """

    def __init__(self, in_rate: int, rate: int, out_rate: int, channels: int, keeps_band: bool) -> None:
        self._last = dsp.Resampler(rate, out_rate, channels)
        self._direct = dsp.Resampler(in_rate, out_rate, channels) if out_rate > rate and keeps_band else None
        self._kept = self._added = np.zeros((channels, 0), np.float32)

    def hear(self, block: np.ndarray) -> None:
        """`(C, n)` of the input."""
        if self._direct is not None:
            self._kept = np.concatenate([self._kept, self._direct.push(block)], axis=-1)

    def push(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """`(C, n)` each at the model's rate -> `(C, m)`, all that they complete."""
        if self._direct is None:
            return self._last.push(after)
        return self._sum(self._last.push(after - before))

    def flush(self, length: int) -> np.ndarray:
        """The rest of ``length`` samples."""
        if self._direct is None:
            return self._last.flush(length)
        self._kept = np.concatenate([self._kept, self._direct.flush(length)], axis=-1)
        return self._sum(self._last.flush(length))

    def _sum(self, added: np.ndarray) -> np.ndarray:
        self._added = np.concatenate([self._added, added], axis=-1)
        ready = min(self._kept.shape[-1], self._added.shape[-1])
        y = self._kept[:, :ready] + self._added[:, :ready]
        self._kept, self._added = self._kept[:, ready:], self._added[:, ready:]
        return y


def _spread(x: np.ndarray, channels: int) -> np.ndarray:
    return x if len(x) == channels else np.broadcast_to(x, (channels, x.shape[-1]))


class _Null:
    """10·log10 of the power of ``after - before`` below ``cutoff_hz - 300`` Hz over that of ``before``.

    Ten seconds at a time, each faded at its ends over 0.1 s: cutting a high band off abruptly would itself put power below.
    """

    def __init__(self, rate: int, cutoff_hz: float) -> None:
        self.rate, self.edge = rate, cutoff_hz - _NULL_GUARD_HZ
        self._held: list[np.ndarray] = []
        self._count = 0
        self._changed = self._power = 0.0

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """`(C, n)` each, the next samples."""
        self._power += float(np.square(before, dtype=np.float64).sum())
        if self.edge <= 0:
            return
        self._held.append(after - before)
        self._count += before.shape[-1]
        if self._count >= _NULL_SECONDS * self.rate:
            self._settle()

    def _settle(self) -> None:
        difference = np.concatenate(self._held, axis=-1)
        self._held, self._count = [], 0
        n = np.arange(difference.shape[-1])
        ramp = ((np.minimum(n, n[::-1]) + 0.5) / (self.rate // 10)).clip(max=1)
        faded = torch.from_numpy(difference * np.sin(ramp * math.pi / 2).astype(np.float32) ** 2)
        self._changed += float(dsp.band_limit(faded, self.rate, self.edge).double().square().sum())

    def decibels(self) -> float:
        """The figure for all that was added; -inf where nothing differs."""
        if self._count:
            self._settle()
        return 10 * math.log10(self._changed / self._power) if self._changed > 0 and self._power > 0 else -math.inf
