"""Ten details by which an audio engineer tells real software; one test each, through the command or the public API."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import nn

import bwe
from bwe import audio, cli, dsp, hub, infer, inspection

Voice = Callable[..., np.ndarray]
ROOT = Path(__file__).resolve().parent.parent
TALK = ROOT / "examples" / "talk_16k.flac"


def run(*arguments: object, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "bwe", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, timeout=110, check=False)


class Nothing(nn.Module):
    """A generator that generates nothing: what is left is all that surrounds one."""

    sample_rate, hop, receptive_field = 48_000, 1, 0

    def forward(self, x: torch.Tensor, cutoff_hz: torch.Tensor) -> torch.Tensor:
        return x


def test_1_the_band_you_had_nulls_and_the_impulse_stays_on_its_sample(tmp_path: Path) -> None:
    report = infer.extend(TALK, tmp_path / "out.wav", bits="32f")
    assert report.null_db < -90
    before = dsp.resample(torch.from_numpy(audio.read(TALK)[0]), 16_000, 48_000)
    after = torch.from_numpy(audio.read(tmp_path / "out.wav")[0])
    difference = dsp.band_limit((after - before) * torch.hann_window(after.shape[-1]), 48_000, report.cutoff_hz - 300)
    assert 10 * torch.log10(difference.square().sum() / before.square().sum()) < -90
    impulse = np.zeros((1, 16_000), np.float32)
    impulse[0, 5_000] = 0.5
    y = bwe.load("speech-48k")(impulse, 16_000)
    assert np.abs(y).argmax() == 15_000


def test_2_output_length_is_exactly_round_n_times_the_ratio_for_every_n() -> None:
    extender = infer.Extender(Nothing())
    rng = np.random.default_rng(0)
    lengths = [*range(5_001), *rng.integers(0, 9_000, 10_000)]
    rates = rng.choice([8_000, 11_025, 16_000, 22_050, 44_100, 96_000], len(lengths))
    for number, (n, rate) in enumerate(zip(map(int, lengths), map(int, rates), strict=True)):
        expected = round(Fraction(n * 48_000, rate))
        resampler = dsp.Resampler(rate, 48_000, 1)  # what files and streams go through
        given = sum(resampler.push(np.zeros((1, min(900, n - at)), np.float32)).shape[-1] for at in range(0, n, 900))
        assert given + resampler.flush().shape[-1] == expected
        if number % 50 == 0:
            assert extender(np.zeros(n, np.float32), rate, 3_000.0).shape == (expected,)


def peak_rss(arguments: list[str]) -> int:
    """Most bytes that a command held."""
    code = "import sys, resource; from bwe import cli; code = cli.main(sys.argv[1:]); " \
           "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) * 1024


def long_recording(path: Path, seconds: int, channels: int) -> None:
    """The example again and again, a little different each time, in blocks."""
    talk = np.tile(audio.read(TALK)[0], (channels, 1))
    rng = np.random.default_rng(0)
    with sf.SoundFile(path, "w", 16_000, channels, "PCM_16", format="RF64") as file:
        written = 0
        while written < seconds * 16_000:
            block = (talk * rng.uniform(0.3, 1.0, (channels, 1))).T[: seconds * 16_000 - written]
            file.write(block)
            written += len(block)


@pytest.mark.parametrize(
    ("long_s", "channels"),
    [(240, 1), pytest.param(3_600, 1, marks=pytest.mark.slow), pytest.param(10_800, 2, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(3_600)
def test_3_three_hours_and_three_seconds_use_the_same_memory_and_chunks_are_one_pass(
    tmp_path: Path, long_s: int, channels: int, tiny: infer.Extender, voice: Voice
) -> None:
    long_recording(tmp_path / "long.wav", long_s, channels)
    long_recording(tmp_path / "short.wav", 60 if long_s > 600 else 20, channels)
    used = {name: peak_rss(["extend", str(tmp_path / f"{name}.wav"), "-m", "tiny"]) for name in ("short", "long")}
    print(f"peak RSS: {used['short'] / 1e6:.0f} MB for the short file, {used['long'] / 1e6:.0f} MB for {long_s} s")
    assert used["long"] - used["short"] < 60e6
    with sf.SoundFile(tmp_path / "long.bwe.wav") as file:
        assert file.frames == long_s * 48_000
        middle = long_s * 48_000 // 2
        file.seek(middle)
        cut = file.read(48_000, dtype="float32", always_2d=True).T
    with sf.SoundFile(tmp_path / "long.wav") as file:  # the same stretch alone, with ten seconds around it
        file.seek(middle // 3 - 10 * 16_000)
        around = file.read(21 * 16_000, dtype="float32", always_2d=True).T
    report = infer.extend(tmp_path / "short.wav", tmp_path / "again.wav", "tiny")
    alone = bwe.load("tiny")(around, 16_000, _cutoff_of(tmp_path / "long.wav"))[:, 480_000:528_000]
    assert np.abs(cut - alone).max() < 4 / 32_768  # 16 bits and their dither
    assert report.filled
    x = voice(60_000, 16_000)
    assert np.abs(tiny(x, 16_000, chunk_seconds=None) - tiny(x, 16_000, chunk_seconds=0.4)).max() < 1e-6


def _cutoff_of(path: Path) -> float:
    """As `bwe extend` finds it."""
    detector = dsp.CutoffDetector(48_000)
    with audio.Reader(path) as reader:
        resampler = dsp.Resampler(reader.info.sample_rate, 48_000, reader.info.channels)
        for block in reader.blocks():
            detector.add(resampler.push(block))
    detector.add(resampler.flush())
    return min(detector.cutoff_hz(), 8_000.0)


def test_4_24_bit_stays_24_bit_16_bit_is_dithered_and_float_is_never_clipped(
    tmp_path: Path, voice: Voice, tiny_folder: Path
) -> None:
    x = voice(16_000, 16_000)
    for subtype in ("PCM_24", "PCM_16", "FLOAT"):
        audio.write(tmp_path / f"{subtype}.wav", x, 16_000, subtype)
        infer.extend(tmp_path / f"{subtype}.wav", model=tiny_folder)
        assert sf.info(tmp_path / f"{subtype}.bwe.wav").subtype == subtype
    infer.extend(tmp_path / "PCM_24.wav", tmp_path / "rounded.wav", tiny_folder, bits="16")
    exact = audio.read(tmp_path / "PCM_24.bwe.wav")[0]
    error = (audio.read(tmp_path / "rounded.wav")[0] - exact) * 32_768
    assert np.sqrt(np.mean(error[np.abs(exact) < 0.9] ** 2)) == pytest.approx(0.5, abs=0.02)  # rounding and dither: 1/12 + 1/6
    assert abs(np.corrcoef(error.ravel(), exact.ravel())[0, 1]) < 0.05
    audio.write(tmp_path / "hot.wav", 8 * x, 16_000, "FLOAT")
    assert infer.extend(tmp_path / "hot.wav", model=tiny_folder).clipped == 0
    assert np.abs(audio.read(tmp_path / "hot.bwe.wav")[0]).max() > 1.2
    clipped = infer.extend(tmp_path / "hot.wav", tmp_path / "hot16.wav", tiny_folder, bits="16")
    assert clipped.clipped > 0
    assert "dB would fit" in str(clipped)


def test_5_full_band_is_left_alone_and_inspect_says_why_48_khz_may_be_16_khz_wide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = 0.1 * torch.from_numpy(rng.standard_normal((1, 96_000)).astype(np.float32))
    audio.write(tmp_path / "wide.wav", wide.numpy(), 48_000)
    audio.write(tmp_path / "narrow.wav", dsp.band_limit(wide, 48_000, 15_900.0).numpy(), 48_000)
    done = run("extend", "wide.wav", "-m", "tiny", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "left alone" in done.stdout.decode()
    assert not (tmp_path / "wide.bwe.wav").exists()
    assert "leave alone" in inspection.inspect(tmp_path / "wide.wav").verdict
    verdict = inspection.inspect(tmp_path / "narrow.wav").verdict
    assert "15.9 kHz in a 48 kHz file" in verdict
    assert "extend" in verdict


def test_6_surround_and_192_khz_go_in_and_come_out_and_dual_mono_stays_dual_mono(
    tmp_path: Path, voice: Voice, tiny_folder: Path
) -> None:
    audio.write(tmp_path / "surround.wav", voice(8_000, 16_000, 6), 16_000)
    assert infer.extend(tmp_path / "surround.wav", model=tiny_folder).channels == 6
    assert sf.info(tmp_path / "surround.bwe.wav").channels == 6
    high = dsp.resample(torch.from_numpy(voice(16_000, 16_000)), 16_000, 192_000).numpy()
    audio.write(tmp_path / "high.wav", high, 192_000)
    report = infer.extend(tmp_path / "high.wav", model=tiny_folder)
    assert (report.filled, report.out_rate, report.frames_out) == (True, 48_000, 48_000)
    mono = voice(8_000, 16_000)
    for subtype in ("PCM_16", "FLOAT"):
        audio.write(tmp_path / "dual.wav", np.repeat(mono, 2, axis=0), 16_000, subtype, overwrite=True)
        infer.extend(tmp_path / "dual.wav", model=tiny_folder, overwrite=True)
        left, right = audio.read(tmp_path / "dual.bwe.wav")[0]
        assert np.array_equal(left, right)


def test_7_no_kill_leaves_a_file_that_looks_finished_and_skip_existing_may_be_trusted(
    tmp_path: Path, voice: Voice, tiny_folder: Path
) -> None:
    audio.write(tmp_path / "a.wav", np.tile(voice(80_000, 16_000), (1, 8)), 16_000)
    command = [sys.executable, "-m", "bwe", "extend", "a.wav", "-m", str(tiny_folder), "--skip-existing"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob(".bwe-*.tmp")):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "a.bwe.wav").exists()
    done = run(*command[3:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bwe.wav", "a.wav"]  # what was killed is swept
    made = (tmp_path / "a.bwe.wav").read_bytes()
    done = run(*command[3:], cwd=tmp_path)
    assert (done.returncode, b"skipped" in done.stdout + done.stderr) == (0, True)
    assert (tmp_path / "a.bwe.wav").read_bytes() == made
    a, model = str(tmp_path / "a.wav"), str(tiny_folder)
    assert cli.main(["extend", a, "-m", model]) == 4
    assert cli.main(["extend", str(tmp_path / "b.wav"), "-m", model]) == 1
    assert cli.main(["extend", a, "-m", "nosuch"]) == 3
    assert cli.main(["extend", a, "--amount", "2"]) == 2


def test_8_same_input_same_sha256_and_the_report_names_model_hash_and_cutoff(tmp_path: Path, tiny_folder: Path) -> None:
    hashes = set()
    for name in ("one", "two"):
        target = tmp_path / f"{name}.flac"
        done = run("extend", TALK, "-o", target, "-m", tiny_folder, "--report", tmp_path / f"{name}.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        hashes.add(hashlib.sha256(target.read_bytes()).hexdigest())
        row = json.loads((tmp_path / f"{name}.json").read_text())
        assert row["output"]["sha256"] in hashes
        assert row["model"]["sha256"] == hub.describe(tiny_folder)["sha256"]
        assert row["input"]["sha256"] == hashlib.sha256(TALK.read_bytes()).hexdigest()
        assert 7_000 < row["cutoff_hz"] < 8_000
        assert row["cutoff_source"] == "auto"
    assert len(hashes) == 1


def test_9_silence_stays_silent() -> None:
    model = bwe.load("speech-48k")
    assert np.abs(model(np.zeros((1, 16_000), np.float32), 16_000)).max() < 10 ** (-90 / 20)
    talk = audio.read(TALK)[0][:, :32_000].copy()
    talk[:, 12_000:24_000] = 0
    between = model(talk, 16_000)[:, 3 * 14_000 : 3 * 22_000]
    assert np.abs(between).max() < 10 ** (-90 / 20)


def test_10_pipes_work_stderr_is_quiet_and_stream_prints_its_latency(tmp_path: Path, tiny_folder: Path) -> None:
    piped = run("extend", "-", "-o", "-", "-m", tiny_folder, cwd=tmp_path, stdin=TALK.read_bytes())
    assert (piped.returncode, piped.stderr) == (0, b"")
    y, rate = sf.read(io.BytesIO(piped.stdout), dtype="float32")
    infer.extend(TALK, tmp_path / "file.wav", tiny_folder)
    assert rate == 48_000
    assert np.array_equal(y, audio.read(tmp_path / "file.wav")[0][0])
    assert os.listdir(tmp_path) == ["file.wav"]
    done = run("stream", "--latency", "--sr-in", 16_000, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = done.stdout.decode()
    assert words.startswith("16 kHz in: algorithmic latency 15.")
    assert words.rstrip().endswith("× real time")
