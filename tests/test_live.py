"""Streams: equal to the call on the whole signal, as late as promised, through real pipes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bwe import generators, hub, infer, live
from bwe.errors import AudioError, ConfigError

Voice = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def causal(causal_tiny: generators.SEANet) -> infer.Extender:
    return infer.Extender(causal_tiny)


@pytest.fixture(scope="module")
def folder(causal_tiny: generators.SEANet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.save(tmp_path_factory.mktemp("models") / "live", causal_tiny, "# Test model\n\nRandom weights.\n")


def in_blocks(x: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    start = number = 0
    while start < x.shape[-1]:
        size = sizes[number % len(sizes)]
        yield x[..., start : start + size]
        start, number = start + size, number + 1


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(0, 6_000),
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000]),
    sizes=st.lists(st.integers(0, 1_500), min_size=1, max_size=5).filter(any),
    channels=st.integers(1, 3),
)
def test_stream_equals_one_call(causal: infer.Extender, length: int, rate: int, sizes: list[int], channels: int) -> None:
    x = 0.1 * np.random.default_rng(length).standard_normal((channels, length)).astype(np.float32)
    cutoff = None if rate < 40_000 else 7_000.0
    whole = causal(x, rate, cutoff)
    parts = list(causal.stream(in_blocks(x, sizes), rate, cutoff))
    joined = np.concatenate(parts, axis=-1) if parts else np.zeros((channels, 0), np.float32)
    assert joined.shape == whole.shape == (channels, round(length * 48_000 / rate))
    assert np.abs(joined - whole).max(initial=0) < 1e-4 * max(1.0, np.abs(whole).max(initial=0))


def test_stream_keeps_kind_and_type(causal: infer.Extender) -> None:
    x = torch.zeros(2, 4_000, dtype=torch.float64)
    parts = list(causal.stream([x[:, :1_000], x[:, 1_000:]], 16_000))
    assert all(part.dtype == torch.float64 and part.shape[0] == 2 for part in parts)
    assert sum(part.shape[-1] for part in parts) == 12_000
    flat = np.concatenate(list(causal.stream([np.zeros(2_000, np.float32)], 16_000)))
    assert flat.shape == (6_000,)
    assert list(causal.stream([], 16_000)) == []


def test_a_stream_gives_what_is_ready(causal: infer.Extender) -> None:
    """Nothing waits longer than the latency says, however long the stream has run."""
    taken = given = 0
    lags = []

    def blocks() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(300):
            taken += 160
            yield np.zeros(160, np.float32)
            lags.append(taken / 16_000 - given / 48_000)

    for y in causal.stream(blocks(), 16_000):
        given += len(y)
    assert max(lags) <= causal.latency_seconds(16_000) + 0.01
    assert given == 300 * 160 * 3


def test_stream_refuses_what_it_cannot_do(tiny: infer.Extender, causal: infer.Extender) -> None:
    with pytest.raises(ConfigError, match="cannot stream"):
        tiny.stream([np.zeros(10, np.float32)], 16_000)
    with pytest.raises(ConfigError, match="give it one"):
        causal.stream([np.zeros(10, np.float32)], 48_000)
    with pytest.raises(ConfigError, match="give it one"):
        causal(np.zeros(10, np.float32), 48_000)
    with pytest.raises(ConfigError, match="same kind and channels"):
        list(causal.stream([np.zeros((2, 400), np.float32), np.zeros((1, 400), np.float32)], 16_000))
    with pytest.raises(AudioError, match="NaN"):
        list(causal.stream([np.full(400, np.nan, np.float32)], 16_000))


def test_a_causal_model_takes_the_end_of_the_band_for_the_cutoff(causal: infer.Extender, voice: Voice) -> None:
    x = voice(8_000, 16_000)
    edge = 8_000 * 0.9475937167399596
    assert np.array_equal(causal(x, 16_000), causal(x, 16_000, edge))


@pytest.mark.parametrize(("rate", "most_ms"), [(48_000, 11.6), (16_000, 15.8), (8_000, 20.01)])
def test_latency_is_what_is_promised_and_the_impulse_stays_in_place(causal: infer.Extender, rate: int, most_ms: float) -> None:
    measured = live.measure(causal, rate, 7_000.0 if rate == 48_000 else None, seconds=0.5)
    assert measured.offset == 0
    assert 5 < measured.algorithmic_ms <= most_ms
    assert measured.algorithmic_ms == pytest.approx(1000 * causal.latency_seconds(rate), abs=0.1)
    assert 0 < measured.median_ms <= measured.p99_ms
    assert str(measured).startswith(f"{rate / 1000:g} kHz in: algorithmic latency {measured.algorithmic_ms:.1f} ms; each ")


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "bwe", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=100, check=False)


def test_pipes_give_what_a_call_gives(folder: Path, causal: infer.Extender, voice: Voice) -> None:
    x = voice(8_000, 16_000, 2)
    raw = np.ascontiguousarray(x.T).astype("<f4").tobytes()
    done = run("stream", "-m", folder, "--sr-in", 16_000, "--raw", "f32le", "--channels", 2, stdin=raw)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    y = np.frombuffer(done.stdout, "<f4").reshape(-1, 2).T
    whole = causal(x, 16_000)
    assert y.shape == whole.shape
    assert np.abs(y - whole).max() < 1e-4 * np.abs(whole).max()


def test_16_bit_pipes_are_dithered_and_silence_stays_silent(folder: Path, causal: infer.Extender, voice: Voice) -> None:
    x = np.rint(np.concatenate([voice(6_000, 16_000)[0], np.zeros(6_000)]) * 3_000).astype("<i2")
    done = run("stream", "-m", folder, "--sr-in", 16_000, stdin=x.tobytes())
    assert done.returncode == 0, done.stderr
    y = np.frombuffer(done.stdout, "<i2")
    whole = causal(x.astype(np.float32) / 32_768, 16_000)
    assert len(y) == len(whole)
    assert np.abs(y - whole * 32_768).max() < 3
    assert not y[-12_000:].any()


def test_pipe_says_what_is_wrong(folder: Path) -> None:
    done = run("stream", "-m", folder, "--sr-in", 16_000, stdin=b"\0\0\0")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"1 bytes into a frame of 2; check --raw" in done.stderr
    done = run("stream", "-m", "tiny", stdin=b"\0\0")
    assert done.returncode == 2
    assert b"cannot stream" in done.stderr


def test_a_pipe_whose_reader_has_gone_ends_quietly(folder: Path) -> None:
    code = f"{sys.executable} -m bwe stream -m {folder} --sr-in 16000 < /dev/zero | head -c 20000 | wc -c"
    done = subprocess.run(["bash", "-c", code], capture_output=True, timeout=100, check=False)
    assert (done.stdout.strip(), done.stderr) == (b"20000", b"")


@pytest.mark.parametrize("like", [np.asarray, torch.from_numpy])
def test_a_caller_may_fill_one_buffer_again_and_again(causal: infer.Extender, like: Callable[..., Any]) -> None:
    x = 0.1 * np.random.default_rng(0).standard_normal(9_600).astype(np.float32)
    buffer = np.empty(500, np.float32)

    def blocks() -> Iterator[Any]:
        for start in range(0, len(x) - 499, 500):
            buffer[:] = x[start : start + 500]
            yield like(buffer)

    joined = np.concatenate([np.asarray(y) for y in causal.stream(blocks(), 48_000, 7_000.0)])
    whole = causal(x[: len(joined)], 48_000, 7_000.0)
    assert np.abs(joined - whole).max() < 1e-4


def test_a_call_says_what_the_network_says(causal: infer.Extender, causal_tiny: generators.SEANet) -> None:
    x = 0.1 * torch.randn(2, 1, 20_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = causal_tiny(x, torch.tensor([6_000.0, 6_000.0]))[:, 0]
    assert torch.allclose(causal(x[:, 0], 48_000, 6_000.0), expected, atol=1e-5)


def test_another_causal_generator_is_called_and_not_streamed() -> None:
    class Delay(torch.nn.Module):
        sample_rate, hop, receptive_field, causal, delay, latency = 16_000, 160, 160, True, 0, 159

        def forward(self, x: torch.Tensor, cutoff_hz: torch.Tensor) -> torch.Tensor:
            return x + torch.nn.functional.pad(x, (160, 0))[..., :-160]

    model, x = infer.Extender(Delay()), np.ones(16_000, np.float32)
    assert np.abs(model(x, 16_000, 4_000.0)[160:] - 2).max() < 1e-6
    with pytest.raises(ConfigError, match="this Delay takes whole signals only"):
        model.stream([x], 16_000, 4_000.0)


def test_a_stream_says_where_it_was_broken(causal: infer.Extender) -> None:
    good, bad = np.zeros(160, np.float32), np.zeros(160, np.float32)
    bad[3] = np.nan
    with pytest.raises(AudioError, match=r"NaN at sample 163 \(0\.0102 s\)"):
        list(causal.stream([good, bad], 16_000))
    with pytest.raises(ConfigError, match="one after the other"):
        causal.stream(np.zeros((2, 1_600), np.float32), 16_000)
    many = list(causal.stream([np.zeros((33, 20), np.float32)], 16_000))
    assert sum(y.shape[-1] for y in many) == 60
    assert list(causal.stream([np.zeros((0, 160), np.float32)], 16_000)) == []
    for rate in (0, "a", 16_000.0, None):
        with pytest.raises(AudioError, match="whole number of Hz"):
            causal.latency_seconds(rate)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="whole number of Hz"):
        live.measure(causal, 0)
    with pytest.raises(ConfigError, match=r"0\.1 or more"):
        live.measure(causal, 16_000, seconds=float("nan"))
