"""Using a model: `load` gives an `Extender` for arrays, `extend` takes a file to a file.

What is common to every model is here, once: resampling in, finding the cut-off, channels, chunks whose joints cannot
be found, the exact length, and the account of what was done.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bwe import audio, dsp, hub
from bwe.errors import AudioError, ConfigError, ModelError

DEFAULT_MODEL = "speech-48k"
FULL_BAND = 0.95
"""A cut-off at or above this part of the target's Nyquist frequency leaves nothing to fill."""

_NULL_GUARD_HZ = 300.0
_SIGNALS_AT_ONCE = 8
_MANY_CHANNELS = 32

Audio = TypeVar("Audio", np.ndarray, Tensor)


class Extender:
    """A generator with everything around it: ``model(x, sr)`` fills the missing band of any array.

    Attributes:
        sample_rate: of the output, in Hz.
        card: the model's card, Markdown: data, licence, training, measured metrics, limits.
        meta: contents of its config.json; empty for a generator that was not read from a folder.
        receptive_field: samples on either side, at `sample_rate`, that can change an output sample.
        generator: the network itself, in eval mode.
    """

    def __init__(self, generator: nn.Module, meta: dict[str, Any] | None = None, card: str = "") -> None:
        self.generator = generator.eval()
        self.sample_rate: int = generator.sample_rate  # type: ignore[assignment]
        self.receptive_field: int = generator.receptive_field  # type: ignore[assignment]
        self.meta = meta or {}
        self.card = card

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.generator.parameters())
        name = self.meta.get("arch", type(self.generator).__name__)
        return f"Extender({name}, {parameters / 1e6:.2f} M parameters, {self.sample_rate} Hz)"

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.generator.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Extender:
        """Move the network; returns self. Raises ConfigError where the device does not exist."""
        try:
            self.generator.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]})") from None
        return self

    def __call__(self, x: Audio, sr: int, cutoff: float | None = None, chunk_seconds: float | None = 10.0) -> Audio:
        """Resample ``x`` to `sample_rate` and fill the band above its cut-off.

        Args:
            x: numpy array or torch tensor of any float type, ``(T,)``, ``(C, T)`` or ``(B, C, T)``, full scale ±1.
                Channels are extended independently; a signal's cut-off is found over all of its channels.
            sr: sample rate of ``x`` in Hz.
            cutoff: where the known band ends, in Hz; None finds it in each of the B signals.
            chunk_seconds: length of the pieces a long signal is processed in (memory, not the result, depends on it);
                None takes it in one piece.

        Returns:
            The same kind, float type and device, the same leading shape, ``dsp.resampled_length(T, sr, sample_rate)``
            samples; below ``cutoff - 300`` Hz equal to the resampled input. A signal that is full-band already is only
            resampled.

        Raises AudioError (no float array, a shape that looks transposed, NaN or Inf, a sample rate outside 2 to
        384 kHz), ConfigError (a cut-off that is no frequency below half the sample rates, a chunk length ≤ 0).
        """
        signals = _as_signals(x, sr)
        y, _, _ = self._run(signals, int(sr), cutoff, chunk_seconds)
        if isinstance(x, Tensor):
            return y.reshape(*x.shape[:-1], y.shape[-1]).to(device=x.device, dtype=x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1]).cpu().numpy().astype(x.dtype, copy=False)

    def _run(
        self, x: Tensor, sr: int, cutoff: float | None, chunk_seconds: float | None = 10.0
    ) -> tuple[Tensor, Tensor, list[float]]:
        """``(B, C, T)`` float32 → extended ``(B, C, T')``, resampled ``(B, C, T')``, the cut-off of each of the B."""
        rate = self.sample_rate
        if cutoff is not None:
            cutoff = _check_cutoff(cutoff, sr, rate)
        if chunk_seconds is not None and not chunk_seconds > 0:
            raise ConfigError(f"chunk_seconds must be above 0, not {chunk_seconds!r}; None takes the signal in one piece")
        channels = x.shape[1]
        resampled = dsp.resample(x.to(self.device), sr, rate)
        y = resampled.clone()
        cutoffs = [cutoff or min(dsp.detect_cutoff(signal, rate), sr / 2) for signal in resampled]
        chosen = [i for i, hz in enumerate(cutoffs) if cutoff or hz < FULL_BAND * rate / 2]
        if not chosen or not channels or not y.shape[-1]:
            return y, resampled, cutoffs
        flat = resampled[chosen].reshape(len(chosen) * channels, 1, -1)
        edges = torch.tensor(cutoffs, dtype=torch.float32, device=flat.device)[chosen].repeat_interleave(channels)
        out = torch.empty_like(flat)
        with torch.inference_mode():
            for first in range(0, len(flat), _SIGNALS_AT_ONCE):
                group = slice(first, first + _SIGNALS_AT_ONCE)
                self._chunks(flat[group], edges[group], out[group], chunk_seconds)
        if not bool(torch.isfinite(out).all()):
            peak = float(flat.abs().max())
            raise ModelError(f"the model's output is not finite; full scale is 1, the input peaks at {peak:.3g}: scale it")
        y[chosen] = out.reshape(len(chosen), channels, -1)
        return y, resampled, cutoffs

    def _chunks(self, x: Tensor, cutoff_hz: Tensor, out: Tensor, chunk_seconds: float | None) -> None:
        """``out = generator(x, cutoff_hz)`` in pieces: they start on the hop grid, so that every convolution sees the
        samples at the phase it would see them in one pass, and bring more context than the receptive field, which is
        thrown away."""
        length, hop = x.shape[-1], int(self.generator.hop)  # type: ignore[arg-type]
        chunk = length if chunk_seconds is None else max(1, round(chunk_seconds * self.sample_rate / hop)) * hop
        halo = math.ceil(self.receptive_field / hop) * hop
        for start in range(0, length, chunk):
            low, stop = max(0, start - halo), min(length, start + chunk)
            piece = self.generator(x[..., low : stop + halo], cutoff_hz)
            out[..., start:stop] = piece[..., start - low : stop - low]


def _as_signals(x: np.ndarray | Tensor, sr: int) -> Tensor:
    """Check what the user gave; ``(B, C, T)`` float32."""
    if not isinstance(x, np.ndarray | Tensor):
        raise AudioError(f"audio must be a numpy array or a torch tensor, not {type(x).__name__}")
    floating = x.is_floating_point() if isinstance(x, Tensor) else np.issubdtype(x.dtype, np.floating)
    if not floating:
        raise AudioError(f"audio of type {x.dtype} is not float; convert it to float in [-1, 1] (int16: x / 32768)")
    if isinstance(sr, bool) or not isinstance(sr, int | np.integer) or not audio.MIN_RATE <= sr <= audio.MAX_RATE:
        raise AudioError(f"sr must be a whole number of Hz from {audio.MIN_RATE} to {audio.MAX_RATE}, not {sr!r}")
    shape = tuple(x.shape)
    if not 1 <= len(shape) <= 3:
        raise AudioError(f"audio of shape {shape} must be (T,), (C, T) or (B, C, T)")
    if len(shape) > 1 and shape[-2] > _MANY_CHANNELS >= shape[-1]:
        raise AudioError(f"audio of shape {shape} has {shape[-2]} channels of {shape[-1]} samples; transpose it to (C, T)")
    tensor = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, dtype=np.float32, order="C"))
    signals = tensor.float().reshape((1,) * (3 - len(shape)) + shape)
    finite = torch.isfinite(signals)
    if not bool(finite.all()):
        index = (~finite).nonzero()[0].tolist()
        where = f" in channel {index[1] + 1}" if len(shape) > 1 else ""
        where += f" of signal {index[0] + 1}" if len(shape) > 2 else ""
        name = audio.nonfinite_name(float(signals[tuple(index)]))
        raise AudioError(f"{name} at sample {index[2]} ({index[2] / sr:.4f} s){where}; repair the signal first")
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


def load(name: str | os.PathLike[str] = DEFAULT_MODEL, device: str | torch.device = "cpu") -> Extender:
    """Load a model by shipped name (`bwe.list_models()`) or by the path of its checkpoint folder.

    Raises ModelError (unknown, damaged or refused; see `hub.read`) and ConfigError (no such device).
    """
    generator, meta, card = hub.read(name)
    return Extender(generator, meta, card).to(device)


@dataclass(frozen=True)
class Report:
    """What `extend` did; ``str(report)`` is the closing line of the command.

    Attributes:
        in_rate, out_rate: Hz. seconds: duration. channels: of both files.
        cutoff_hz: where the known band ends; cutoff_source: "auto" (found) or "given".
        filled: False where the input was full-band already, and only resampled.
        null_db: power of what changed below ``cutoff_hz - 300`` Hz over the power of the input, before quantisation.
        realtime: seconds of audio per second of work, reading and writing included.
        clipped: samples that full scale cut off; peak: largest absolute value before that.
    """

    in_path: Path
    out_path: Path
    in_rate: int
    out_rate: int
    channels: int
    seconds: float
    cutoff_hz: float
    cutoff_source: str
    filled: bool
    null_db: float
    realtime: float
    clipped: int
    peak: float

    def __str__(self) -> str:
        band = f"{self.cutoff_hz / 1000:.1f} kHz"
        null = "−∞" if math.isinf(self.null_db) else f"{self.null_db:.0f}".replace("-", "−")
        known = f"known band kept to {band} (null {null} dB)"
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


def default_output(in_path: Path, sample_rate: int, channels: int) -> Path:
    """``talk.flac`` → ``talk.bwe.flac`` beside it; ``.wav`` where that format cannot be written at this sample rate."""
    same = in_path.with_name(f"{in_path.stem}.bwe{in_path.suffix}")
    if in_path.suffix and audio.can_hold(same, sample_rate, channels):
        return same
    return in_path.with_name(f"{in_path.stem}.bwe.wav")


def extend(
    in_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | Extender = DEFAULT_MODEL,
    cutoff: float | None = None,
    overwrite: bool = False,
) -> Report:
    """Extend an audio file to a new file; returns the `Report` of what was done.

    Args:
        in_path: a file that `audio.read` takes.
        out_path: where to; its extension says the format. A folder takes the default name, ``<stem>.bwe.<ext>``; None
            puts that next to the input. 24-bit and float inputs stay so where the format allows.
        model: a shipped name, a checkpoint folder, or a loaded `Extender`.
        cutoff: where the known band ends, in Hz; None finds it.
        overwrite: replace an existing output.

    Raises AudioError (the input), OutputError (the output; checked before the work), ModelError, ConfigError. The output
    appears complete or not at all.
    """
    in_path = Path(in_path)
    started = time.perf_counter()
    x, info = audio.read(in_path)
    started_model = time.perf_counter()
    extender = model if isinstance(model, Extender) else load(model)
    started += time.perf_counter() - started_model
    target = default_output(in_path, extender.sample_rate, info.channels)
    if out_path is not None:
        target = Path(out_path) / target.name if os.path.isdir(out_path) else Path(out_path)
    audio.check_output(target, overwrite)
    y, resampled, (cutoff_hz,) = extender._run(torch.from_numpy(x)[None], info.sample_rate, cutoff)
    null_db = _null_db(y[0], resampled[0], extender.sample_rate, cutoff_hz)
    samples = y[0].cpu().numpy()
    subtype = audio.fitting_subtype(target, info.subtype)
    clipped = audio.write(target, samples, extender.sample_rate, subtype, overwrite)
    elapsed = time.perf_counter() - started
    return Report(
        in_path=in_path,
        out_path=target,
        in_rate=info.sample_rate,
        out_rate=extender.sample_rate,
        channels=info.channels,
        seconds=float(Fraction(info.frames, info.sample_rate)),
        cutoff_hz=cutoff_hz,
        cutoff_source="auto" if cutoff is None else "given",
        filled=cutoff is not None or cutoff_hz < FULL_BAND * extender.sample_rate / 2,
        null_db=null_db,
        realtime=info.seconds / elapsed,
        clipped=clipped,
        peak=float(np.abs(samples).max(initial=0.0)),
    )


def _null_db(y: Tensor, x: Tensor, rate: int, cutoff_hz: float) -> float:
    """10·log10 of the power of ``y - x`` below ``cutoff_hz - 300`` Hz over that of ``x``; -inf where nothing differs.

    A minute at a time, each faded at its ends over 0.1 s: cutting a high band off abruptly would itself put power below.
    """
    edge = cutoff_hz - _NULL_GUARD_HZ
    if edge <= 0 or y.numel() == 0:
        return -math.inf
    changed, minute, fade = 0.0, 60 * rate, rate // 10
    for start in range(0, y.shape[-1], minute):
        difference = y[..., start : start + minute] - x[..., start : start + minute]
        length = difference.shape[-1]
        n = torch.arange(length, device=y.device, dtype=torch.float32)
        ramp = ((torch.minimum(n, length - 1 - n) + 0.5) / fade).clamp(max=1)
        faded = difference * torch.sin(ramp * math.pi / 2).square()
        changed += float(dsp.band_limit(faded, rate, edge).double().square().sum())
    power = float(x.double().square().sum())
    return 10 * math.log10(changed / power) if changed > 0 and power > 0 else -math.inf
