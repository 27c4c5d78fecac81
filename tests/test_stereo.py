"""Two channels: each source stays where it was, and a file of a higher rate than the model's loses nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from bwe import audio, cli, dsp, generators, hub, infer
from bwe.errors import ConfigError
from bwe.infer import Extender

Voice = Callable[..., np.ndarray]
RATE, CUTOFF_HZ = 48_000, 6_000.0


@pytest.fixture(scope="module")
def speech() -> Extender:
    return infer.load("speech-48k")


def panned(x: np.ndarray, left: float, right: float) -> np.ndarray:
    """`(1, T)` -> `(2, T)` without its highs."""
    low = dsp.band_limit(torch.from_numpy(x), RATE, CUTOFF_HZ).numpy()
    return np.concatenate([left * low, right * low]).astype(np.float32)


def high_db(x: np.ndarray) -> np.ndarray:
    """Level in dB of each channel above the cut-off."""
    signal = torch.from_numpy(x) * torch.hann_window(x.shape[-1])
    highs = signal - dsp.band_limit(signal, RATE, CUTOFF_HZ + 500.0)
    return (10 * highs.double().square().mean(-1).clamp_min(1e-30).log10()).numpy()


def null_db(before: np.ndarray, after: np.ndarray, edge_hz: float) -> float:
    faded = torch.from_numpy(after - before) * torch.hann_window(before.shape[-1])
    changed = dsp.band_limit(faded, RATE, edge_hz).double().square().sum()
    return 10 * math.log10(float(changed) / float(np.square(before, dtype=np.float64).sum()))


@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (1.0, 0.4), (0.4, 1.0), (0.1, 1.0), (1.0, -1.0), (-0.4, 1.0)])
def test_one_source_stays_where_it_is(speech: Extender, talk: np.ndarray, left: float, right: float) -> None:
    x = panned(talk[:, 24_000:96_000], left, right)
    y = speech(x, RATE, CUTOFF_HZ)
    levels = high_db(y)
    assert levels.max() > high_db(x).max() + 20, "the model adds nothing, so nothing could move"
    assert levels[0] - levels[1] == pytest.approx(20 * math.log10(abs(left / right)), abs=2)
    highs = y - x
    together = float((highs[0] * highs[1]).sum() / np.sqrt(np.square(highs).sum(-1).prod()))
    assert together * np.sign(left * right) > 0.7  # in phase where the source is, and out of phase where it is not
    assert null_db(x, y, CUTOFF_HZ - 300) < -90


def test_a_centre_amid_weak_ambience_stays_in_the_centre(speech: Extender, talk: np.ndarray, tmp_path: Path) -> None:
    ambience = 0.02 * np.stack([talk[0, 40_000:112_000], talk[0, 100_000:172_000]])
    x = panned(0.3 * talk[:, 60_000:132_000], 1.0, 1.0) + dsp.band_limit(torch.from_numpy(ambience), RATE, CUTOFF_HZ).numpy()
    apart = high_db(speech(x, RATE, CUTOFF_HZ, stereo="independent"))
    assert abs(apart[0] - apart[1]) > 2, "the centre would stay anyway"
    y = speech(x, RATE, CUTOFF_HZ)
    assert abs(high_db(y)[0] - high_db(y)[1]) < 0.5
    assert null_db(x, y, CUTOFF_HZ - 300) < -90
    assert np.abs(y - speech(x, RATE, CUTOFF_HZ, chunk_seconds=0.3)).max() < 1e-5
    assert np.abs(y - speech(x, RATE, CUTOFF_HZ, stereo="mid-side")).max() < 1e-6
    audio.write(tmp_path / "x.wav", x, RATE, "FLOAT")
    infer.extend(tmp_path / "x.wav", tmp_path / "y.wav", speech, CUTOFF_HZ)
    assert np.abs(audio.read(tmp_path / "y.wav")[0] - y).max() < 1e-5
    infer.extend(tmp_path / "x.wav", tmp_path / "z.wav", speech, CUTOFF_HZ, stereo="independent")
    assert np.abs(high_db(audio.read(tmp_path / "z.wav")[0]) - apart).max() < 0.01


def test_sides_as_strong_as_the_centre_are_extended_apart(tiny: Extender, voice: Voice) -> None:
    x = panned(voice(48_000, RATE), 1.0, 1.0)
    x += panned(voice(48_000, RATE, seed=1)[:, ::-1].copy(), 1.0, 0.1) + panned(voice(48_000, RATE, seed=2), 0.1, 1.0)
    assert np.array_equal(tiny(x, RATE, CUTOFF_HZ), tiny(x, RATE, CUTOFF_HZ, stereo="independent"))
    assert not np.allclose(tiny(x, RATE, CUTOFF_HZ), tiny(x, RATE, CUTOFF_HZ, stereo="mid-side"), atol=1e-3)


def test_what_is_no_way_to_take_two_channels_is_refused(tiny: Extender, tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "x.wav", voice(800, 16_000, 2), 16_000)
    for call in (
        lambda: tiny(np.zeros((2, 800)), 16_000, stereo="left"),  # type: ignore[call-overload]
        lambda: infer.extend(tmp_path / "x.wav", model=tiny, stereo="left"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match="stereo must be one of auto, independent, mid-side, not 'left'"):
            call()


@pytest.mark.parametrize("loud", [0, 1])
def test_what_is_hard_panned_leaves_the_other_channel_silent(
    speech: Extender, tiny: Extender, talk: np.ndarray, tmp_path: Path, loud: int
) -> None:
    x = panned(talk[:, 24_000:72_000], 1.0 - loud, float(loud))
    for model in (speech, tiny):
        y = model(x, RATE, CUTOFF_HZ)
        assert high_db(y)[loud] > high_db(x)[loud] + 20
        assert not y[1 - loud].any()
    audio.write(tmp_path / "x.wav", x, RATE, "FLOAT")
    infer.extend(tmp_path / "x.wav", tmp_path / "y.wav", tiny, CUTOFF_HZ)
    assert not audio.read(tmp_path / "y.wav")[0][1 - loud].any()


def test_alike_and_inverted_channels_are_alike_and_inverted_to_the_last_bit(
    speech: Extender, talk: np.ndarray, tmp_path: Path
) -> None:
    for sign in (1, -1):
        x = panned(talk[:, 24_000:72_000], 1.0, sign)
        y = speech(x, RATE, CUTOFF_HZ)
        assert np.array_equal(y[0], sign * y[1])
        assert np.abs(y - speech(x, RATE, CUTOFF_HZ, chunk_seconds=0.3)).max() < 1e-5
        alone = speech(x[:1], RATE, CUTOFF_HZ)
        assert np.abs(y[:1] - alone).max() < 1e-4 * np.abs(alone).max()
        audio.write(tmp_path / "x.wav", x, RATE, "FLOAT", overwrite=True)
        infer.extend(tmp_path / "x.wav", tmp_path / "y.wav", speech, CUTOFF_HZ, overwrite=True)
        written = audio.read(tmp_path / "y.wav")[0]
        assert np.array_equal(written[0], sign * written[1])
        assert np.abs(written - y).max() < 1e-5


def test_bass_out_of_phase_does_not_turn_a_channel_over(speech: Extender, talk: np.ndarray) -> None:
    bass = 0.4 * np.sin(2 * np.pi * 40 * np.arange(72_000) / RATE)
    x = panned(talk[:, 24_000:96_000], 1.0, 1.0) + np.stack([bass, -bass]).astype(np.float32)
    assert float((x[0] * x[1]).sum() / np.sqrt(np.square(x).sum(-1).prod())) < -0.5
    highs = speech(x, RATE, CUTOFF_HZ) - x
    assert float((highs[0] * highs[1]).sum() / np.sqrt(np.square(highs).sum(-1).prod())) > 0.7


@pytest.mark.parametrize("stereo", ["auto", "independent", "mid-side"])
@pytest.mark.parametrize(("left", "right"), [(0.4, 1.0), (1.0, -1.0)])
def test_a_stereo_stream_is_the_whole_signal(
    causal_tiny: generators.SEANet, talk: np.ndarray, left: float, right: float, stereo: infer.Stereo
) -> None:
    model = Extender(causal_tiny)
    x = panned(talk[:, 24_000:60_000], left, right)
    x[:, 9_000:] += 0.2 * panned(talk[:, 69_000:96_000], right, left)
    whole = model(x, RATE, CUTOFF_HZ, stereo=stereo)
    blocks = np.split(x, [1_000, 1_001, 17_000], axis=-1)
    pieces = np.concatenate(list(model.stream(blocks, RATE, CUTOFF_HZ, stereo)), axis=-1)
    assert np.abs(whole - x).max() > 0.01
    assert np.abs(pieces - whole).max() < 1e-5
    assert np.allclose(whole, model(x, RATE, CUTOFF_HZ), atol=1e-5) == (stereo != "mid-side")


@pytest.mark.parametrize(
    ("model", "file", "out"),
    [
        (48_000, 8_000, 48_000), (48_000, 44_100, 48_000), (48_000, 48_000, 48_000), (48_000, 96_000, 48_000),
        (44_100, 22_050, 44_100), (44_100, 44_100, 44_100), (44_100, 48_000, 48_000), (44_100, 192_000, 48_000),
        (16_000, 8_000, 16_000), (16_000, 22_050, 24_000), (16_000, 32_000, 44_100), (96_000, 48_000, 96_000),
    ],
)  # fmt: skip
def test_a_file_comes_out_at_no_lower_rate_than_it_went_in(model: int, file: int, out: int) -> None:
    assert infer.output_rate(model, file) == out


def test_a_48_khz_file_keeps_its_rate_and_every_known_sample_with_a_44_khz_model(tmp_path: Path, voice: Voice) -> None:
    model = infer.load("sbr-44k")
    shelf = dsp.band_limit(torch.from_numpy(voice(96_000, RATE, 2)), RATE, 15_500.0).numpy()
    tone = 1e-3 * np.sin(2 * np.pi * 22_800 * np.arange(96_000) / RATE).astype(np.float32)  # beyond what the model hears
    x = shelf + tone
    audio.write(tmp_path / "x.wav", x, RATE, "FLOAT")
    report = infer.extend(tmp_path / "x.wav", tmp_path / "y.wav", model)
    assert (report.in_rate, report.out_rate, report.frames_out, report.filled) == (RATE, RATE, 96_000, True)
    assert 15_000 < report.cutoff_hz < 16_500
    y = audio.read(tmp_path / "y.wav")[0]
    assert null_db(x, y, report.cutoff_hz - 300) < -90
    added = np.abs(np.fft.rfft((y - x) * np.hanning(96_000))).sum(0)
    hz = np.fft.rfftfreq(96_000, 1 / RATE)
    assert added[hz > 22_500].max() < 1e-3 * added[(hz > 17_000) & (hz < 20_000)].max()
    with open(tmp_path / "full.wav", "wb") as pipe:  # a stream gets also what is not filled, as it was
        infer.extend(tmp_path / "x.wav", pipe, model, amount=0.0, bits="32f")
    assert np.array_equal(audio.read(tmp_path / "full.wav")[0], x)
    assert infer.extend(tmp_path / "x.wav", tmp_path / "z.wav", model, sample_rate=44_100).out_rate == 44_100


def test_the_output_at_another_rate_is_the_models_where_it_hears_all(tmp_path: Path, voice: Voice) -> None:
    model = infer.load("sbr-44k")
    for frames in (1, 700, 60_001):
        audio.write(tmp_path / "x.wav", voice(frames, 16_000), 16_000, "FLOAT", overwrite=True)
        for rate in (44_100, 48_000):
            infer.extend(tmp_path / "x.wav", tmp_path / f"{rate}.wav", model, 7_000, True, sample_rate=rate)
        made, kept = (audio.read(tmp_path / f"{rate}.wav")[0] for rate in (44_100, 48_000))
        again = dsp.resample(torch.from_numpy(made), 44_100, 48_000).numpy()
        assert kept.shape[-1] == 3 * frames
    assert null_db(again[:, : 3 * frames], kept, 19_000.0) < -60


def test_the_command_plans_the_rate_that_it_writes(tmp_path: Path, voice: Voice, capsys: pytest.CaptureFixture[str]) -> None:
    x = dsp.band_limit(torch.from_numpy(voice(48_000, RATE)), RATE, 9_000.0).numpy()
    audio.write(tmp_path / "a.wav", x, RATE)
    generator = generators.SEANet(dataclasses.replace(generators.SIZES["tiny"], sample_rate=44_100)).eval()
    model = hub.save(tmp_path / "model", generator, "# Test model\n\nRandom weights, for tests.\n")
    command = ["extend", str(tmp_path / "a.wav"), "-m", str(model)]
    assert cli.main([*command, "--dry-run"]) == 0
    assert "a.bwe.wav 48 kHz" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert sf.info(tmp_path / "a.bwe.wav").samplerate == RATE
    assert cli.main([*command, "--skip-existing"]) == 0
    assert "skipped" in capsys.readouterr().out
    assert cli.main([*command, "--sr", "44100", "--overwrite"]) == 0
    assert sf.info(tmp_path / "a.bwe.wav").samplerate == 44_100
