"""A causal model on a live signal: raw samples through pipes, sound devices, and how late and how fast it is.

The blocks of a pipe or a device go through `Extender.stream` as they come; nothing here buffers more than one of them.
"""

from __future__ import annotations

import collections
import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch

from bwe import audio, dsp
from bwe.errors import AudioError, ConfigError
from bwe.infer import Extender

Encoding = Literal["s16le", "f32le"]
BLOCK_SECONDS = 0.01

_SAMPLE_TYPES: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
_MEASURE_SECONDS = 0.3
_KNOWN_SHARE = 0.8  # of the band below the cut-off: there the impulse is as it was, above it the network adds to it


@dataclass(frozen=True)
class Latency:
    """How late and how fast a stream is; ``str(latency)`` for the terminal.

    Attributes:
        input_rate: Hz. algorithmic_ms: longest time from an input sample to the output at its place, computing not counted,
            measured with an impulse sample by sample. offset: samples by which the impulse came out beside its place.
        median_ms, p99_ms: computing time of one block of `block_ms`, one after the other. realtime: seconds of audio per
            second of computing.
    """

    input_rate: int
    algorithmic_ms: float
    offset: int
    block_ms: float
    median_ms: float
    p99_ms: float
    realtime: float

    def __str__(self) -> str:
        return (
            f"{self.input_rate / 1000:g} kHz in: algorithmic latency {self.algorithmic_ms:.1f} ms; "
            f"each {self.block_ms:g} ms take {self.median_ms:.2f} ms (99 %: {self.p99_ms:.2f}), {self.realtime:.1f}× real time"
        )


def measure(extender: Extender, sr: int, cutoff: float | None = None, seconds: float = 3.0) -> Latency:
    """Measure the latency of a stream at ``sr`` Hz, and its speed over ``seconds`` of noise.

    Raises what `Extender.stream` raises.
    """
    if not 0.1 <= seconds < math.inf:
        raise ConfigError(f"seconds must be 0.1 or more, not {seconds:g}")
    algorithmic, offset = _impulse(extender, sr, cutoff)
    block = round(BLOCK_SECONDS * sr)
    noise = 0.05 * np.random.default_rng(0).standard_normal(round(seconds * sr)).astype(np.float32)
    spent: list[float] = []

    def blocks() -> Iterator[np.ndarray]:
        asked = 0.0
        for start in range(0, len(noise) - block + 1, block):
            if start:
                spent.append(time.perf_counter() - asked)
            asked = time.perf_counter()
            yield noise[start : start + block]

    collections.deque(extender.stream(blocks(), sr, cutoff), maxlen=0)
    times = np.sort(spent[len(spent) // 10 :])  # the first ones prepare
    return Latency(
        input_rate=sr,
        algorithmic_ms=1000 * algorithmic,
        offset=offset,
        block_ms=1000 * block / sr,
        median_ms=1000 * float(np.median(times)),
        p99_ms=1000 * float(times[int(0.99 * len(times))]),
        realtime=block / sr / float(times.mean()),
    )


def _impulse(extender: Extender, sr: int, cutoff: float | None) -> tuple[float, int]:
    """Longest wait in seconds for the output at the place of an input sample, and how far off an impulse comes out."""
    extender.latency_seconds(sr)  # refuses what is no rate
    x = np.zeros(round(_MEASURE_SECONDS * sr), np.float32)
    place = len(x) // 2
    x[place] = 1.0
    taken, ended = 0, False

    def samples() -> Iterator[np.ndarray]:
        nonlocal taken, ended
        for value in x:
            taken += 1
            yield np.array([value])
        ended = True

    out: list[np.ndarray] = []
    given, longest = 0, 0.0
    for y in extender.stream(samples(), sr, cutoff):
        if not ended:  # the end of a signal waits for nothing
            longest = max(longest, taken / sr - given / extender.sample_rate)
        given += len(y)
        out.append(y)
    rate = extender.sample_rate
    known = dsp.band_limit(torch.from_numpy(np.concatenate(out)), rate, _KNOWN_SHARE * min(cutoff or sr / 2, sr / 2))
    return longest, int(known.abs().argmax()) - round(place * rate / sr)


def pipe(
    extender: Extender,
    source: BinaryIO,
    sink: BinaryIO,
    sr: int,
    *,
    encoding: Encoding = "s16le",
    channels: int = 1,
    cutoff: float | None = None,
) -> float:
    """Raw interleaved samples from a pipe, extended, to a pipe in the same encoding; returns the seconds that went through.

    Samples are passed on as they come, at most 10 ms at a time. 16-bit output is rounded with triangular dither, but for
    digital silence. Raises ConfigError (no such encoding, a model that cannot stream), AudioError (NaN, an input that
    ends within a sample), BrokenPipeError where the reader has gone.
    """
    if encoding not in get_args(Encoding):
        raise ConfigError(f"no raw encoding {encoding!r}; use one of {', '.join(get_args(Encoding))}")
    if channels < 1:
        raise ConfigError(f"channels must be 1 or more, not {channels}")
    kind = _SAMPLE_TYPES[encoding]
    frame = kind.itemsize * channels
    size = max(1, round(BLOCK_SECONDS * sr)) * frame
    taken = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal taken
        rest = b""
        # Not `source.read`, which waits until it has as much as was asked for.
        while piece := os.read(source.fileno(), size):
            data = rest + piece
            whole = len(data) // frame * frame
            rest = data[whole:]
            taken += whole // frame
            values = np.frombuffer(data[:whole], kind).reshape(-1, channels).T.astype(np.float32)
            yield values / np.float32(32768) if encoding == "s16le" else values
        if rest:
            raise AudioError(f"<stdin>: ends {len(rest)} bytes into a frame of {frame}; check --raw and --channels")

    dither = np.random.default_rng(0)
    for y in extender.stream(blocks(), sr, cutoff):
        samples = audio.quantise(y, 16, dither) >> 16 if encoding == "s16le" else y
        sink.write(np.ascontiguousarray(samples.T).astype(kind).tobytes())
        sink.flush()
    return taken / sr


def sound_devices() -> str:
    """A table of the sound devices. Raises ImportError without the extra ``stream``, ConfigError where there are none."""
    devices = _sounddevice()
    table = str(devices.query_devices())
    if not table.strip():
        raise ConfigError("no sound devices found; use pipes instead: ... | bwe stream --sr-in 16000 --raw s16le | ...")
    return table


def devices(
    extender: Extender,
    sr: int,
    *,
    source: int | str | None = None,
    sink: int | str | None = None,
    channels: int = 1,
    cutoff: float | None = None,
    seconds: float | None = None,
) -> int:
    """From a microphone, extended, to a loudspeaker, until ``seconds`` are over or Ctrl-C; returns the number of underruns.

    The output begins three blocks late, so that a block that takes long is not heard; after an underrun the delay is one
    block more. Raises ImportError without the extra ``stream``, ConfigError where a device cannot be opened.
    """
    sound = _sounddevice()
    block = round(BLOCK_SECONDS * sr)
    arrived: queue.Queue[np.ndarray] = queue.Queue(maxsize=50)
    ready: collections.deque[np.ndarray] = collections.deque()
    lock = threading.Lock()
    state = {"underruns": 0, "waiting": 3 * round(BLOCK_SECONDS * extender.sample_rate)}

    def heard(data: np.ndarray, frames: int, when: Any, status: Any) -> None:
        try:
            arrived.put_nowait(data.T.copy())
        except queue.Full:  # slower than real time: what is dropped is heard, a delay that grows for ever would be worse
            state["underruns"] += 1

    def wanted(data: np.ndarray, frames: int, when: Any, status: Any) -> None:
        with lock:
            have = sum(piece.shape[-1] for piece in ready)
            if have < frames + state["waiting"]:
                if not state["waiting"]:
                    state["underruns"] += 1
                    state["waiting"] = frames
                data[:] = 0
                return
            state["waiting"] = 0
            joined = np.concatenate(ready, axis=-1)
            data[:] = joined[:, :frames].T
            ready.clear()
            ready.append(joined[:, frames:])

    def blocks() -> Iterator[np.ndarray]:
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            try:
                yield arrived.get(timeout=0.2)
            except queue.Empty:
                continue

    try:
        with (
            sound.InputStream(sr, block, source, channels, "float32", callback=heard),
            sound.OutputStream(
                extender.sample_rate, round(BLOCK_SECONDS * extender.sample_rate), sink, channels, "float32", callback=wanted
            ),
        ):
            for y in extender.stream(blocks(), sr, cutoff):
                with lock:
                    ready.append(y)
    except KeyboardInterrupt:
        pass
    except (sound.PortAudioError, ValueError) as error:
        raise ConfigError(f"the sound device cannot be used ({error}); see the list of `bwe stream --devices`") from None
    return state["underruns"]


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise ImportError("sound devices need the sounddevice package: pip install 'bwe[stream]'") from error
    except OSError as error:  # the package is there, the library that it calls is not
        raise ConfigError(f"sound devices need PortAudio ({error}); install libportaudio2, or use pipes") from None
    return sounddevice
