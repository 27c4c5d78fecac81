"""Arrays and files through a model: same kind out, exact length, no seams, the known band untouched."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

import bwe
from bwe import audio, dsp, generators, hub, infer
from bwe.errors import AudioError, ConfigError, ModelError, OutputError
from bwe.infer import Extender

Voice = Callable[..., np.ndarray]


@pytest.mark.parametrize("sr", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000])
def test_resampled_length_is_exact_for_every_length(sr: int) -> None:
    x = torch.zeros(5_001)
    for n in range(5_001):
        exact = round(Fraction(n * 48_000, sr))
        assert dsp.resampled_length(n, sr, 48_000) == exact
        assert dsp.resample(x[:n], sr, 48_000).shape[-1] == exact


@pytest.mark.parametrize("sr", [16_000, 44_100, 48_000])
def test_output_length_is_exact(tiny: Extender, sr: int) -> None:
    rng = np.random.default_rng(sr)
    for n in [*range(66), 127, 128, 129, 383, 384, 385, 1_000, 4_999, 5_000, *rng.integers(5_001, 60_000, 5).tolist()]:
        x = (0.1 * rng.standard_normal(n)).astype(np.float32)
        y = tiny(x, sr, cutoff=7_000)
        assert y.shape == (round(Fraction(n * 48_000, sr)),)
        assert np.isfinite(y).all()


@pytest.mark.parametrize(
    "shape", [(800,), (1, 800), (2, 800), (6, 800), (3, 1, 800), (2, 2, 800), (2, 0), (0,), (1,), (0, 800)]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_numpy_out(tiny: Extender, shape: tuple[int, ...], dtype: Any) -> None:
    x = (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    kept = x.copy()
    y = tiny(x, 16_000)
    assert isinstance(y, np.ndarray)
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], shape[-1] * 3)
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("shape", [(800,), (2, 800), (2, 2, 800), (0,), (1,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_in_torch_out(tiny: Extender, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    y = tiny(x.clone().requires_grad_(), 16_000)
    assert (y.dtype, y.device, tuple(y.shape)) == (dtype, x.device, (*shape[:-1], shape[-1] * 3))
    assert not y.requires_grad
    assert not y.is_inference()  # so that it can be used in somebody's training
    assert torch.equal(y, torch.from_numpy(tiny(x.float().numpy(), 16_000)).to(dtype))


def test_strided_and_big_endian_arrays(tiny: Extender, voice: Voice) -> None:
    x = voice(4_000, 16_000, 2)
    wanted = tiny(x, 16_000)
    assert np.array_equal(tiny(np.asfortranarray(x), 16_000), wanted)
    assert np.array_equal(tiny(x[:, ::-1][:, ::-1], 16_000), wanted)
    swapped = tiny(x.astype(">f4"), 16_000)
    assert swapped.dtype == np.dtype(">f4")
    assert np.array_equal(swapped, wanted)


def test_channels_and_signals_are_independent(tiny: Extender, voice: Voice) -> None:
    x = np.stack([voice(9_000, 16_000, 2, seed=s) for s in range(6)])
    together = tiny(x, 16_000, cutoff=7_000)
    for b in range(6):
        for c in range(2):
            alone = tiny(x[b, c], 16_000, cutoff=7_000)
            assert np.abs(together[b, c] - alone).max() < 1e-4 * np.abs(alone).max()
    mono = voice(9_000, 16_000)[0]
    left, right = tiny(np.stack([mono, mono]), 16_000)
    assert np.array_equal(left, right)


@pytest.mark.parametrize("chunk_seconds", [0.001, 0.03, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("frames", [50_000, 49_999])
def test_chunked_equals_whole(tiny: Extender, voice: Voice, chunk_seconds: float, frames: int) -> None:
    x = voice(frames, 48_000, 2)
    if chunk_seconds == 0.001:
        x = x[:, :8_000]
    whole = tiny(x, 48_000, cutoff=4_000, chunk_seconds=None)
    pieces = tiny(x, 48_000, cutoff=4_000, chunk_seconds=chunk_seconds)
    added = np.abs(whole - x).max()
    assert added > 0.01, "the test model adds nothing, so seams could not be seen"
    assert np.abs(pieces - whole).max() < 1e-5 * added + 2e-7


def test_receptive_field_is_large_enough_and_not_absurd(tiny: Extender) -> None:
    reach = tiny.receptive_field
    x = torch.zeros(2, 4 * reach)
    x[:] = 0.1 * torch.randn(4 * reach, generator=torch.Generator().manual_seed(1))
    x[1, 2 * reach] += 0.5
    a, b = tiny(x, 48_000, cutoff=4_000, chunk_seconds=None)
    changed = (a - b).abs().gt(1e-6).nonzero()
    assert changed.min() >= 2 * reach - reach
    assert changed.max() <= 2 * reach + reach
    assert reach < 48_000


@pytest.mark.parametrize("cutoff", [2_000.0, 4_000.0, 7_500.0, 12_000.0])
def test_known_band_is_kept(tiny: Extender, voice: Voice, cutoff: float) -> None:
    x = voice(48_000, 48_000, 2)
    low = dsp.band_limit(torch.from_numpy(x), 48_000, cutoff)
    y = tiny(low, 48_000, cutoff=cutoff)
    # Cutting a high band off abruptly puts power below it, so the ends are faded before looking.
    faded = (y - low) * torch.hann_window(48_000)
    change = dsp.band_limit(faded, 48_000, cutoff - 300)
    assert (y - low).square().sum() > 1e-4 * low.square().sum()
    assert 10 * math.log10(float(change.square().sum() / low.square().sum())) < -90


def test_digital_silence_stays_silent(tiny: Extender, voice: Voice) -> None:
    assert np.abs(tiny(np.zeros((2, 16_000), np.float32), 16_000)).max() < 10 ** (-90 / 20)
    x = voice(48_000, 16_000)
    x[:, 16_000:40_000] = 0
    y = tiny(x, 16_000)
    assert np.abs(y[:, 20_000 * 3 : 36_000 * 3]).max() < 10 ** (-90 / 20)


def test_cutoff_is_found_once_per_signal_over_all_channels(tiny: Extender, voice: Voice) -> None:
    wide, narrow = torch.from_numpy(voice(48_000, 48_000, 2))
    both = torch.stack([dsp.band_limit(wide, 48_000, 8_000.0), dsp.band_limit(narrow, 48_000, 4_000.0)])

    def changed(x: torch.Tensor, cutoff: float | None = None) -> float:
        """Level in dB of what is different in the narrow signal from 4.5 to 7.5 kHz, over the signal."""
        difference = (tiny(x, 48_000, cutoff) - x).reshape(-1, x.shape[-1])[-1:]
        band = dsp.band_limit(difference, 48_000, 7_500.0, 500.0) - dsp.band_limit(difference, 48_000, 5_500.0, 500.0)
        return float(10 * torch.log10(band.square().sum() / both[1].square().sum()))

    apart = changed(both[:, None])
    assert changed(both[None]) < apart - 15  # as channels of one signal: that ends at 8 kHz
    assert changed(both[None], 3_000.0) == pytest.approx(apart, abs=10)


def test_full_band_input_is_returned_as_it_is(tiny: Extender) -> None:
    x = 0.1 * torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny(x, 48_000), x)
    assert torch.equal(tiny(x, 96_000), dsp.resample(x, 96_000, 48_000))
    assert not torch.equal(tiny(x, 48_000, cutoff=10_000), x)
    low = dsp.band_limit(x[:1], 48_000, 6_000.0)
    mixed = tiny(torch.stack([x[:1], low]), 48_000)
    assert torch.equal(mixed[0], x[:1])
    assert not torch.equal(mixed[1], low)


def test_level_is_left_alone(tiny: Extender, voice: Voice) -> None:
    x = voice(16_000, 16_000)
    quiet = tiny(x * 0.01, 16_000, cutoff=7_000)
    low = dsp.band_limit(torch.from_numpy(quiet), 48_000, 6_000.0) * 100
    wanted = dsp.band_limit(dsp.resample(torch.from_numpy(x), 16_000, 48_000), 48_000, 6_000.0)
    assert float((low - wanted)[:, 5_000:-5_000].abs().max()) < 1e-4 * float(wanted.abs().max())


def test_same_input_same_output_also_from_threads(tiny: Extender, voice: Voice) -> None:
    inputs = [voice(12_000, 16_000, seed=s)[0] for s in range(4)]
    state = torch.random.get_rng_state()
    wanted = [tiny(x, 16_000) for x in inputs]
    assert all(np.array_equal(tiny(x, 16_000), y) for x, y in zip(inputs, wanted, strict=True))
    results: list[np.ndarray | None] = [None] * 4

    def work(i: int) -> None:
        results[i] = tiny(inputs[i], 16_000)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for y, result in zip(wanted, results, strict=True):
        assert result is not None
        assert np.abs(result - y).max() < 1e-6
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([0.0, 0.1], "must be a numpy array or a torch tensor, not list"),
        (np.zeros(100, np.int16), r"int16 is not float; convert it to float in \[-1, 1\] \(int16: x / 32768\)"),
        (torch.zeros(100, dtype=torch.int32), "torch.int32 is not float"),
        (np.zeros(100, complex), "complex128 is not float"),
        (np.array(0.5), r"shape \(\) must be"),
        (np.zeros((1, 1, 1, 9)), r"shape \(1, 1, 1, 9\) must be \(T,\), \(C, T\) or \(B, C, T\)"),
        (np.zeros((48_000, 2)), "48000 channels of 2 samples; transpose it"),
        (np.zeros((48_000, 1)), "transpose"),
        (torch.zeros(3, 48_000, 2), "transpose"),
        (np.array([0, 1, np.nan]), r"NaN at sample 2 \(0\.0001 s\); repair"),
        (np.array([[0, 0], [np.inf, 0]]), "Inf at sample 0 .* in channel 2"),
        (torch.full((2, 1, 4), torch.inf), "Inf at sample 0 .* in channel 1 of signal 1"),
    ],
)
def test_unusable_arrays_are_refused(tiny: Extender, x: Any, said: str) -> None:
    with pytest.raises(AudioError, match=said):
        tiny(x, 16_000)


@pytest.mark.parametrize("sr", [0, -16_000, 1_999, 384_001, 16_000.0, "16000", True, None])
def test_unusable_rates_are_refused(tiny: Extender, sr: Any) -> None:
    with pytest.raises(AudioError, match="sr must be a whole number of Hz from 2000 to 384000"):
        tiny(np.zeros(10), sr)
    assert tiny(np.zeros(10), np.int64(16_000)).shape == (30,)


@pytest.mark.parametrize(
    ("cutoff", "said"),
    [
        (0, "must lie above 0 and below 24000 Hz"),
        (-4_000, "must lie above 0"),
        (24_000, "below 24000 Hz"),
        (math.nan, "must lie above 0"),
        ("4k", "must be a frequency in Hz, not '4k'"),
        (9_000, "is above 8000 Hz, half the input's sample rate"),
    ],
)
def test_unusable_settings_are_refused(tiny: Extender, cutoff: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny(np.zeros(10), 16_000, cutoff=cutoff)
    with pytest.raises(ConfigError, match="chunk_seconds must be above 0"):
        tiny(np.zeros(10), 16_000, chunk_seconds=0)


def test_output_that_is_not_finite_is_an_error(tiny: Extender) -> None:
    with pytest.raises(ModelError, match="output is not finite; full scale is 1: scale the input down"):
        tiny(np.sin(np.arange(4_000)) * 1e38, 16_000, cutoff=7_000)


def test_load(tiny_folder: Path) -> None:
    model = bwe.load(tiny_folder)
    assert (model.sample_rate, model.meta["arch"], str(model.device)) == (48_000, "seanet", "cpu")
    assert model.card.startswith("# Test model")
    assert model.receptive_field > 0
    assert "48000 Hz" in repr(model)
    assert model.to("cpu") is model
    with pytest.raises(ConfigError, match="device 'nonsense' cannot be used"):
        bwe.load(tiny_folder, device="nonsense")
    with pytest.raises(ModelError, match="unknown model"):
        bwe.load("no-such-model")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(tiny_folder: Path, voice: Voice) -> None:
    x = voice(16_000, 16_000, 2)
    y = infer.load(tiny_folder, "cuda")(torch.from_numpy(x).cuda(), 16_000)
    assert y.device.type == "cuda"
    assert np.abs(y.cpu().numpy() - infer.load(tiny_folder)(x, 16_000)).max() < 1e-3


def test_extend_writes_beside_the_input(tiny_folder: Path, tmp_path: Path, voice: Voice) -> None:
    source = tmp_path / "talk.flac"
    x = 0.2 * voice(32_000, 16_000, 2)
    audio.write(source, x, 16_000, "PCM_24")
    report = bwe.extend(source, model=tiny_folder)
    assert report.out_path == tmp_path / "talk.bwe.flac"
    y, info = audio.read(report.out_path)
    assert (y.shape, info.sample_rate, info.subtype) == ((2, 96_000), 48_000, "PCM_24")
    assert (report.in_rate, report.out_rate, report.channels, report.seconds) == (16_000, 48_000, 2, 2.0)
    assert report.cutoff_source == "auto"
    assert report.filled
    assert 6_500 < report.cutoff_hz <= 8_000
    assert report.null_db < -90
    assert report.realtime > 0
    low = dsp.resample(torch.from_numpy(audio.read(source)[0]), 16_000, 48_000)
    change = dsp.band_limit(torch.from_numpy(y) - low, 48_000, report.cutoff_hz - 300)
    assert float(change[:, 5_000:-5_000].abs().max()) < 5e-5
    assert "talk.flac 16 kHz → " in str(report)
    assert "talk.bwe.flac 48 kHz  0:02  known band kept to 7." in str(report)
    assert "(null −" in str(report)
    assert str(report).endswith("× real time")


def test_extend_takes_a_path_a_folder_and_a_loaded_model(tiny: Extender, tmp_path: Path, voice: Voice) -> None:
    source = tmp_path / "a.wav"
    audio.write(source, voice(8_000, 8_000), 8_000)
    (tmp_path / "out").mkdir()
    assert infer.extend(source, tmp_path / "b.flac", tiny, cutoff=3_500).out_path == tmp_path / "b.flac"
    report = infer.extend(str(source), str(tmp_path / "out"), tiny, cutoff=3_500)
    assert report.out_path == tmp_path / "out" / "a.bwe.wav"
    assert (report.cutoff_hz, report.cutoff_source) == (3_500.0, "given")
    with pytest.raises(OutputError, match="exists already"):
        infer.extend(source, tmp_path / "b.flac", tiny)
    first = (tmp_path / "b.flac").read_bytes()
    infer.extend(source, tmp_path / "b.flac", tiny, cutoff=3_500, overwrite=True)
    assert (tmp_path / "b.flac").read_bytes() == first
    infer.extend(source, source, tiny, overwrite=True)
    assert sf.info(source).samplerate == 48_000


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_extend_takes_files_of_no_and_one_sample(tiny: Extender, tmp_path: Path, frames: int) -> None:
    audio.write(tmp_path / "n.wav", np.full((1, frames), 0.5, np.float32), 16_000)
    report = infer.extend(tmp_path / "n.wav", model=tiny)
    assert sf.info(report.out_path).frames == 3 * frames
    assert "real time" in str(report)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "out"),
    [
        ("a.flac", 48_000, 2, "a.bwe.flac"),
        ("a.b.MP3", 48_000, 2, "a.b.bwe.MP3"),
        ("a.mp3", 48_000, 3, "a.bwe.wav"),
        ("a.opus", 48_000, 1, "a.bwe.opus"),
        ("a.opus", 44_100, 1, "a.bwe.wav"),
        ("a.voc", 48_000, 1, "a.bwe.wav"),
        ("a", 48_000, 1, "a.bwe.wav"),
    ],
)
def test_default_output_keeps_the_format_where_it_can(name: str, rate: int, channels: int, out: str) -> None:
    assert infer.default_output(Path("folder") / name, rate, channels) == Path("folder") / out


def test_extend_says_when_there_is_nothing_to_fill_and_when_it_clipped(tiny: Extender, tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (1, 48_000)).astype(np.float32)
    audio.write(tmp_path / "full.wav", x, 48_000)
    report = infer.extend(tmp_path / "full.wav", model=tiny)
    assert (report.filled, report.out_path, report.to_dict()["status"]) == (False, None, "left alone")
    assert str(report).endswith("full-band already (24.0 kHz): left alone (--force or --cutoff extends it)")
    assert [path.name for path in tmp_path.iterdir()] == ["full.wav"]
    forced = infer.extend(tmp_path / "full.wav", model=tiny, force=True)
    assert forced.filled
    assert forced.out_path == tmp_path / "full.bwe.wav"
    audio.write(tmp_path / "loud.wav", 1.5 * x, 48_000, "FLOAT")
    assert infer.extend(tmp_path / "loud.wav", model=tiny, force=True).clipped == 0
    loud = infer.extend(tmp_path / "loud.wav", tmp_path / "loud.flac", tiny, force=True, amount=0.0)
    assert loud.clipped == int((np.abs(audio.read(tmp_path / "loud.wav")[0]) > 1).sum()) > 1_000
    assert str(loud).endswith(f"clipped {loud.clipped} samples (−3.6 dB would fit)")


def test_failed_inputs_leave_nothing(tiny: Extender, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"<html>")
    with pytest.raises(AudioError, match="not audio"):
        infer.extend(tmp_path / "bad.wav", model=tiny)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.wav"]


def test_random_weights_of_every_size_keep_the_contract(voice: Voice) -> None:
    for name in ("tiny", "S"):
        model = Extender(generators.SEANet(generators.SIZES[name]))
        x = voice(3_000, 16_000)
        assert model(x, 16_000, cutoff=7_000).shape == (1, 9_000)
        assert model.meta == {}
    assert hub.list_models() == sorted(hub.list_models())


def test_what_cannot_be_written_is_refused_before_the_input_is_decoded(tiny: Extender, tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "in.wav", voice(8_000, 16_000, 6), 16_000)
    (tmp_path / "there.wav").touch()
    (tmp_path / "folder.png").mkdir()
    seen: list[float] = []
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("there.wav", {}, "exists already"),
        ("none/out.wav", {}, "does not exist"),
        ("out.mp3", {}, "MP3 cannot hold 6 channels"),
        ("out.xyz", {}, "not an output format"),
        ("out.wav", {"spectrogram": tmp_path / "folder.png", "overwrite": True}, "is a folder"),
        ("out.wav", {"spectrogram": tmp_path / "out.jpg"}, "ends in .png"),
    ]
    for name, options, said in cases:
        with pytest.raises(OutputError, match=said):
            infer.extend(tmp_path / "in.wav", tmp_path / name, tiny, progress=lambda done, total: seen.append(done), **options)
    assert seen == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "in.wav", "there.wav"]


def test_in_place_work_reports_the_sha256_of_what_was_read(tiny: Extender, tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "a.wav", voice(4_000, 16_000), 16_000)
    before = hashlib.sha256((tmp_path / "a.wav").read_bytes()).hexdigest()
    row = infer.extend(tmp_path / "a.wav", tmp_path / "a.wav", tiny, overwrite=True).to_dict()
    assert row["input"]["sha256"] == before != row["output"]["sha256"]


def test_alike_channels_stay_alike_however_many(tiny: Extender, causal_tiny: generators.SEANet, voice: Voice) -> None:
    for model in (tiny, Extender(causal_tiny)):
        y = model(np.repeat(voice(6_000, 16_000), 5, axis=0), 16_000, chunk_seconds=0.2)
        assert (y == y[:1]).all()
        assert np.abs(y[:1] - model(voice(6_000, 16_000), 16_000)).max() < 1e-4 * np.abs(y).max()


def test_amount_mixes_the_generated_band_in(tiny: Extender, tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "a.wav", voice(16_000, 16_000), 16_000, "FLOAT")
    parts = {}
    for amount in (0.0, 0.5, 1.0):
        infer.extend(tmp_path / "a.wav", tmp_path / f"{amount}.wav", tiny, amount=amount)
        parts[amount] = audio.read(tmp_path / f"{amount}.wav")[0]
    assert np.abs(parts[0.5] - (parts[0.0] + parts[1.0]) / 2).max() < 1e-6
    assert np.abs(parts[0.0] - dsp.resample(torch.from_numpy(voice(16_000, 16_000)), 16_000, 48_000).numpy()).max() < 1e-5


def test_any_target_rate_has_the_exact_length(tiny: Extender, tmp_path: Path, voice: Voice) -> None:
    audio.write(tmp_path / "a.wav", voice(5_001, 11_025), 11_025)
    for rate in infer.TARGET_RATES:
        report = infer.extend(tmp_path / "a.wav", tmp_path / f"{rate}.wav", tiny, sample_rate=rate)
        assert sf.info(tmp_path / f"{rate}.wav").frames == report.frames_out == round(Fraction(5_001 * rate, 11_025))


def test_device_auto_is_one_that_is_there(tiny_folder: Path) -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert infer.load(tiny_folder, device="auto").device.type == expected
