"""Each measure against its package, a closed form or a second implementation; weights are written by the tests."""

from __future__ import annotations

import math
import os
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch

from bwe import dsp, perceptual
from bwe.errors import BweError, ModelError

SR = 48_000


@pytest.fixture(scope="module")
def speech(talk: np.ndarray) -> np.ndarray:
    """4 s of real speech at 48 kHz, (T,) float64."""
    return talk[0, : 4 * SR].astype(np.float64)


def noisy(x: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    return x + level * np.random.default_rng(seed).standard_normal(x.shape)


def at_16khz(x: np.ndarray) -> np.ndarray:
    return dsp.resample(torch.from_numpy(x), SR, 16_000).numpy()


def test_pesq_is_that_of_the_package(speech: np.ndarray) -> None:
    pesq = pytest.importorskip("pesq")
    ref, est = at_16khz(speech), at_16khz(noisy(speech, 3e-3))
    expected = pesq.pesq(16_000, ref, est, "wb")
    assert 1.5 < expected < 4
    assert float(perceptual.pesq_wb(ref, est, 16_000)) == expected
    assert float(perceptual.pesq_wb(speech, noisy(speech, 3e-3), SR)) == pytest.approx(expected, abs=1e-6)
    assert float(perceptual.pesq_wb(speech, speech, SR)) == pytest.approx(4.6439, abs=1e-3)
    both = perceptual.pesq_wb(np.stack([ref, ref])[None], np.stack([est, ref])[None], 16_000)
    assert both.shape == (1, 2)
    assert float(both[0, 0]) == expected


def test_pesq_of_a_long_recording_is_the_mean_over_pieces(speech: np.ndarray) -> None:
    """The package alone crashes the process on more than 50 utterances."""
    pytest.importorskip("pesq")
    word = at_16khz(speech)[16_000 : 16_000 + 3600]
    words = np.tile(np.r_[word, np.zeros(3600)], 110)
    assert len(words) > 45 * 16_000
    long = float(perceptual.pesq_wb(words, noisy(words, 1e-3), 16_000))
    pieces = zip(np.array_split(words, 5), np.array_split(noisy(words, 1e-3), 5), strict=True)
    assert long == pytest.approx(np.mean([float(perceptual.pesq_wb(*piece, 16_000)) for piece in pieces]), abs=1e-9)


def test_stoi_is_that_of_the_package(speech: np.ndarray) -> None:
    pystoi = pytest.importorskip("pystoi")
    est = noisy(speech, 0.1)
    for extended in (False, True):
        expected = pystoi.stoi(speech, est, SR, extended=extended)
        assert 0.4 < expected < 0.95
        assert float(perceptual.stoi(speech, est, SR, extended)) == pytest.approx(expected, abs=1e-9)
    pair = perceptual.stoi(np.stack([speech, speech]), torch.from_numpy(np.stack([speech, est])), SR)
    assert pair.tolist() == pytest.approx([1.0, pystoi.stoi(speech, est, SR)], abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_what_pesq_and_stoi_cannot_judge_is_nan(speech: np.ndarray) -> None:
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    silent = 0 * speech
    for ref, est in ((silent, speech), (silent, silent), (speech[:1], speech[:1]), (speech[:6000], speech[:6000])):
        assert math.isnan(perceptual.pesq_wb(ref, est, SR))
        assert math.isnan(perceptual.stoi(ref, est, SR))
        assert math.isnan(perceptual.stoi(ref, est, SR, extended=True))
    assert math.isnan(perceptual.pesq_wb(speech, silent, SR))
    assert float(perceptual.stoi(speech, silent, SR)) == float(perceptual.stoi(speech, silent, SR, extended=True)) == 0
    broken = np.where(np.arange(len(speech)) == 9, np.nan, speech)
    assert math.isnan(perceptual.pesq_wb(speech, broken, SR))


@pytest.mark.parametrize(("package", "call"), [("pesq", perceptual.pesq_wb), ("pystoi", perceptual.stoi)])
def test_a_missing_package_is_named(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, package: str, call: object) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} package: pip install 'bwe\[eval\]'"):
        call(speech, speech, SR)


def gammatone_in_time(x: np.ndarray) -> np.ndarray:
    """RMS (32, N) of each windowed frame after convolution with gammatone impulse responses, gain 1 at their centres."""
    size, hop = 3840, 960
    top, bottom = math.log(24_000 + 228.83), math.log(50 + 228.83)
    centres = np.exp(bottom + (top - bottom) * np.arange(32) / 32) - 228.83
    t = np.arange(size) / SR
    window = np.hanning(size)
    frames = np.stack([window * x[start : start + size] for start in range(0, len(x) - size + 1, hop)])
    rows = []
    for centre in centres:
        width = 1.019 * (24.7 + centre / 9.26449)
        response = t**3 * np.exp(-2 * np.pi * width * t) * np.cos(2 * np.pi * centre * t)
        response /= abs(np.exp(-2j * np.pi * centre * t) @ response)
        filtered = scipy.signal.fftconvolve(frames, response[None], axes=1)[:, :size]
        rows.append(np.sqrt((filtered**2).mean(1)))
    return np.stack(rows)


def plain_nsim(ref: np.ndarray, est: np.ndarray) -> float:
    """NSIM of two RMS spectrograms, patch by patch, as the papers and ViSQOL's reference code have it."""
    r, e = (np.maximum(10 * np.log10(np.maximum(x, 1e-16)), -45) for x in (ref, est))
    floor = np.maximum(r.max(0), e.max(0)) - 45
    r, e = np.maximum(r, floor), np.maximum(e, floor)
    lowest = min(r.min(), e.min())
    window = np.outer([0.10650698, 0.78698604, 0.10650698], [0.10650698, 0.78698604, 0.10650698])

    def blur(x: np.ndarray) -> np.ndarray:
        return scipy.signal.convolve2d(np.pad(x, 1, mode="edge"), window, mode="valid")

    scores = []
    for start in range(14, r.shape[1] - 30, 30):
        a, b = (x[:, start : start + 30] - lowest for x in (r, e))
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        cross = blur(a * b) - mean_a * mean_b
        light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        shape = (cross + 4.5e-4) / (np.sqrt(np.maximum(var_a * var_b, 0)) + 4.5e-4)
        scores.append((light * shape).mean())
    return float(np.mean(scores))


def test_nsim_is_that_of_gammatone_filters_run_in_time(speech: np.ndarray) -> None:
    ref = speech[SR : round(2.5 * SR)]
    expected_ref = gammatone_in_time(ref)
    for est in (noisy(ref, 3e-3), dsp.band_limit(torch.from_numpy(ref), SR, 8000.0).numpy()):
        gain = math.sqrt((ref**2).mean() / (est**2).mean())
        expected = plain_nsim(expected_ref, gammatone_in_time(gain * est))
        assert 0.4 < expected < 0.95
        assert float(perceptual.gammatone_nsim(ref, est, SR)) == pytest.approx(expected, abs=0.01)


def test_nsim_bands_are_gammatone_filters() -> None:
    t = np.arange(SR) / SR
    for hz in (200.0, 3000.0, 15_000.0):
        tone = 0.3 * np.sin(2 * np.pi * hz * t)
        found = perceptual.gammatone(torch.from_numpy(tone), SR).power[:, 10].sqrt().numpy()
        expected = gammatone_in_time(tone)[:, 10]
        near = expected > expected.max() / 30
        np.testing.assert_allclose(found[near], expected[near], rtol=0.12)


def test_nsim_of_equal_signals_gains_silence_and_short_clips(speech: np.ndarray) -> None:
    def nsim(ref: np.ndarray, est: np.ndarray) -> float:
        return float(perceptual.gammatone_nsim(ref, est, SR))

    assert nsim(speech, speech) == pytest.approx(1, abs=1e-12)
    assert nsim(speech, -0.1 * speech) == pytest.approx(1, abs=1e-9), "the estimate is brought to the reference's level"
    assert nsim(speech, 0 * speech) < 0.01
    assert math.isnan(nsim(0 * speech, speech))
    for length in (1, 100, 3840, 10_000, 43 * 960 + 3840):
        piece = speech[20_000 : 20_000 + length]
        assert nsim(piece, piece) == pytest.approx(1, abs=1e-9)
    assert nsim(speech[:10_000], noisy(speech, 0.1)[:10_000]) < 0.6
    pair = perceptual.gammatone_nsim(np.stack([speech, speech]), np.stack([noisy(speech, 1e-2), speech]), SR)
    assert pair.tolist() == pytest.approx([nsim(speech, noisy(speech, 1e-2)), 1.0], abs=1e-12)


def test_nsim_is_quick(speech: np.ndarray) -> None:
    est, seconds = noisy(speech, 1e-3), []
    for _ in range(3):
        start = time.process_time()
        perceptual.gammatone_nsim(speech, est, SR)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.06


VISQOL = """#!{python}
import sys, wave
from pathlib import Path

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert set(flags) <= {{"--reference_file", "--degraded_file", "--results_csv", "--similarity_to_quality_model"}}, flags
if "libsvm" not in flags.get("--similarity_to_quality_model", ""):
    print("[main.cc : 31] RAW: Failed to load the default SVR model", file=sys.stderr)
    sys.exit(255)
samples = []
for flag in ("--reference_file", "--degraded_file"):
    with wave.open(flags[flag]) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (48000, 1, 2)
        samples.append(file.readframes(file.getnframes()))
print("ViSQOL conformance version: 310\\nAudio mode")
if len(samples[0]) < 2 * 43200:
    print("[visqol_manager.cc : 116] RAW: Error executing ViSQOL: INVALID_ARGUMENT: too few samples.", file=sys.stderr)
    sys.exit(0)
first = memoryview(samples[0]).cast("h"), memoryview(samples[1]).cast("h")
peaks = [max(max(x), -min(x)) for x in first]
score = 4.75 * peaks[1] / peaks[0]
print(f"MOS-LQO:\\t\\t{{score:.6g}}")
with Path(flags["--results_csv"]).open("a") as file:
    file.write("reference,degraded,moslqo\\n")
    file.write(f"{{flags['--reference_file']}},{{flags['--degraded_file']}},{{score:.9g}}\\n")
"""


@pytest.fixture
def visqol_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program with the documented command line of ViSQOL, whose score is the ratio of the peaks."""
    program = tmp_path / "visqol"
    program.write_text(VISQOL.format(python=sys.executable), encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", "")  # it imports nothing of ours
    return program


@pytest.mark.skipif(os.name == "nt", reason="the program is a script")
def test_visqol_runs_the_program(speech: np.ndarray, visqol_program: Path, tmp_path: Path) -> None:
    with pytest.raises(BweError, match=r"visqol failed: .*Failed to load the default SVR model"):
        perceptual.visqol(speech, speech, SR)
    model = tmp_path / "model" / "libsvm_nu_svr_model.txt"
    model.parent.mkdir()
    model.touch()
    pair = perceptual.visqol(np.stack([speech, 3 * speech]), np.stack([0.5 * speech, 1.5 * speech]), SR)
    assert pair.tolist() == pytest.approx([2.375, 2.375], abs=0.01), "also where the reference would clip"
    moved = model.rename(tmp_path / "libsvm_mine.txt")
    assert float(perceptual.visqol(at_16khz(speech), 0.5 * at_16khz(speech), 16_000, moved)) == pytest.approx(2.375, abs=0.01)
    assert math.isnan(perceptual.visqol(speech[:20_000], speech[:20_000], SR, moved))


def test_without_the_program_visqol_says_how_to_get_it(
    speech: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match=r"github\.com/google/visqol .*bazel build"):
        perceptual.visqol(speech, speech, SR)


def cross(widths: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Points whose mean is `centre` and whose covariance is exactly diag(widths²)."""
    arms = np.diag(widths) * math.sqrt((2 * len(widths) - 1) / 2)
    return centre + np.concatenate([arms, -arms])


def test_frechet_distance_closed_form_of_diagonal_covariances() -> None:
    a, b = np.array([1.0, 2, 0, 4]), np.array([3.0, 2, 5, 0])
    shift = np.array([1.0, -2, 0, 0.5])
    expected = (shift**2).sum() + ((a - b) ** 2).sum()
    assert perceptual.frechet_distance(cross(a, np.zeros(4)), cross(b, shift)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_against_the_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((50, 12)) @ rng.standard_normal((12, 12)) + rng.standard_normal(12) for _ in range(2))
    covariances = [np.cov(x.T) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert perceptual.frechet_distance(a, torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)
    assert perceptual.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_few_samples_is_finite_and_zero_for_equal_sets() -> None:
    x = np.random.default_rng(0).standard_normal((3, 72))
    assert perceptual.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert perceptual.frechet_distance(x, x + 1) == pytest.approx(72, rel=1e-9)
    with pytest.raises(ValueError, match="N ≥ 2"):
        perceptual.frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match="same D"):
        perceptual.frechet_distance(x, x[:, :5])


def test_embedding_shapes(speech: np.ndarray) -> None:
    whole = perceptual.embed(speech, SR)
    assert whole.dtype == torch.float64
    assert whole.shape == (7, 72)
    assert whole.isfinite().all()
    both = perceptual.embed(np.stack([speech, 0.1 * speech]), SR)
    torch.testing.assert_close(both[:7], whole)
    assert both.shape == (14, 72)
    assert perceptual.embed(speech[:1000], SR).shape == (1, 72)
    assert perceptual.embed(np.zeros(SR), SR).isfinite().all()


def test_embedding_knows_level_spectrum_and_rhythm(speech: np.ndarray) -> None:
    t = np.arange(2 * SR) / SR
    hiss = 0.1 * np.random.default_rng(0).standard_normal(len(t))
    beats = {hz: perceptual.embed(hiss * (1.05 + np.sin(2 * np.pi * hz * t)), SR).mean(0)[60:] for hz in (2, 7, 20)}
    bands = {hz: beat.unflatten(0, (3, 4)).mean(1).argmax() for hz, beat in beats.items()}
    assert bands == {2: 0, 7: 1, 20: 2}
    a, b = perceptual.embed(hiss, SR), perceptual.embed(0.1 * hiss, SR)
    # the 0th of 64 orthonormal cepstra is 8 times the mean level
    torch.testing.assert_close((a - b).mean(0)[:2], torch.tensor([160.0, 0.0], dtype=torch.float64), atol=0.5, rtol=0)


def test_embeddings_of_damaged_speech_lie_farther_off_the_more_it_is_damaged(talk: np.ndarray) -> None:
    x = torch.from_numpy(talk[0].astype(np.float64))
    ref = perceptual.embed(x, SR)
    dull = [perceptual.frechet_distance(ref, perceptual.embed(dsp.band_limit(x, SR, hz), SR)) for hz in (16e3, 8e3, 4e3)]
    hiss = [perceptual.frechet_distance(ref, perceptual.embed(noisy(talk[0], level), SR)) for level in (1e-4, 1e-3, 1e-2)]
    assert 0 < dull[0] < dull[1] < dull[2]
    assert 0 < hiss[0] < hiss[1] < hiss[2]


def test_embedding_is_of_sound_not_of_the_sample_rate(talk: np.ndarray) -> None:
    x = dsp.band_limit(torch.from_numpy(talk[0].astype(np.float64)), SR, 18_000.0)
    same, other = perceptual.embed(x, SR), perceptual.embed(dsp.resample(x, SR, 44_100), 44_100)
    count = min(len(same), len(other))
    gone = perceptual.frechet_distance(same, perceptual.embed(dsp.band_limit(x, SR, 15_000.0), SR))
    assert perceptual.frechet_distance(same[:count], other[:count]) < 0.05 * gone


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, without caches elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def test_without_weights_each_predictor_says_where_they_belong(speech: np.ndarray, home: Path) -> None:
    for predict, place in (
        (perceptual.dnsmos, ".torchmetrics/DNSMOS/DNSMOS/sig_bak_ovr.onnx"),
        (perceptual.nisqa, ".torchmetrics/NISQA/nisqa.tar"),
        (perceptual.squim, ".cache/torch/hub/torchaudio/models/squim_objective_dns2020.pth"),
    ):
        with pytest.raises(ModelError) as raised:
            predict(speech, SR)
        assert f"no weights at {home / place}" in str(raised.value)
    assert not list(home.iterdir()), "nothing was made or fetched"


def test_squim_loads_its_weights_from_the_cache_of_torchaudio(
    speech: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bwe._torchaudio import torchaudio

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "torchaudio" / "models" / "squim_objective_dns2020.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"not weights")
    with pytest.raises(ModelError, match="not the weights of SQUIM"):
        perceptual.squim(speech, SR)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchaudio.models.squim_objective_base().eval()
    torch.save(model.state_dict(), weights)
    x = np.stack([speech[:SR], noisy(speech[:SR], 0.1)])
    found = perceptual.squim(x, SR)
    with torch.inference_mode():
        expected = model(dsp.resample(torch.from_numpy(x), SR, 16_000).float())
    assert list(found) == ["stoi", "pesq", "si_sdr"]
    for value, wanted in zip(found.values(), expected, strict=True):
        assert value.shape == (2,)
        torch.testing.assert_close(value, wanted.double())
    assert math.isnan(perceptual.squim(speech[:1], SR)["pesq"])


@pytest.mark.slow
def test_dnsmos_runs_the_networks_in_the_cache_of_torchmetrics(speech: np.ndarray, home: Path) -> None:
    pytest.importorskip("torchmetrics")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("librosa")

    def network(path: Path, shape: list[int | str], outputs: int) -> None:
        """Mean magnitude of the input, `outputs` times."""
        nodes = [
            onnx.helper.make_node("Abs", ["input_1"], ["size"]),
            onnx.helper.make_node("ReduceMean", ["size"], ["mean"], axes=list(range(1, len(shape))), keepdims=0),
            onnx.helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
            onnx.helper.make_node("Tile", ["column", "times"], ["mos"]),
        ]
        constants = [("last", [1]), ("times", [1, outputs])]
        kind = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            nodes,
            "mean",
            [onnx.helper.make_tensor_value_info("input_1", kind, shape)],
            [onnx.helper.make_tensor_value_info("mos", kind, ["batch", outputs])],
            [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants],
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, str(path))

    folder = home / ".torchmetrics" / "DNSMOS"
    network(folder / "DNSMOS" / "sig_bak_ovr.onnx", ["batch", 144_160], 3)
    network(folder / "DNSMOS" / "model_v8.onnx", ["batch", "frames", 120], 1)
    loud = np.sign(np.sin(np.arange(10 * 16_000) + 0.5))  # mean magnitude 1
    found = perceptual.dnsmos(np.stack([loud, 0.5 * loud])[None], 16_000)
    assert list(found) == ["p808", "sig", "bak", "ovr"]
    # the polynomials by which the published networks' raw scores become DNSMOS, at 1 and at 0.5
    assert found["sig"].tolist()[0] == pytest.approx([1.22083953 - 0.08397278 + 0.0052439, 0.5946702], abs=1e-5)
    assert found["bak"].tolist()[0] == pytest.approx([1.60915514 - 0.13166888 - 0.39604546, 0.3756149], abs=1e-5)
    assert found["ovr"].tolist()[0] == pytest.approx([1.11546468 - 0.06766283 + 0.04602535, 0.5868420], abs=1e-5)
    assert perceptual.dnsmos(speech[:100], SR)["p808"].isfinite()
    assert math.isnan(perceptual.dnsmos(speech[:1], SR)["ovr"])
    with pytest.raises(ModelError, match="pDNSMOS"):
        perceptual.dnsmos(speech, SR, personalized=True)


@pytest.mark.slow
def test_nisqa_runs_the_network_in_the_cache_of_torchmetrics(speech: np.ndarray, home: Path) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("librosa")
    from torchmetrics.functional.audio import nisqa

    args = {
        "cnn_pool_1": (24, 7), "cnn_pool_2": (12, 5), "cnn_pool_3": (6, 3), "cnn_dropout": 0.2, "cnn_kernel_size": (3, 3),
        "cnn_c_out_1": 4, "cnn_c_out_2": 4, "cnn_c_out_3": 8, "td_sa_d_model": 8, "td_sa_nhead": 1, "td_sa_num_layers": 1,
        "td_sa_h": 8, "td_sa_dropout": 0.1, "pool_att_h": 8, "pool_att_dropout": 0.1, "ms_sr": 48_000, "ms_fmax": 20_000,
        "ms_n_fft": 4096, "ms_hop_length": 0.01, "ms_win_length": 0.02, "ms_n_mels": 48, "ms_seg_length": 15,
        "ms_seg_hop_length": 4, "ms_max_segments": 200,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nisqa._NISQADIM(args)
    weights = home / ".torchmetrics" / "NISQA" / "nisqa.tar"
    weights.parent.mkdir(parents=True)
    torch.save({"args": args, "model_state_dict": model.state_dict()}, weights)
    found = perceptual.nisqa(np.stack([speech, noisy(speech, 0.1)]), SR)
    expected = nisqa.non_intrusive_speech_quality_assessment(torch.from_numpy(speech).float(), SR)
    assert list(found) == ["mos", "noisiness", "discontinuity", "coloration", "loudness"]
    assert [float(value[0]) for value in found.values()] == pytest.approx(expected.tolist(), abs=1e-5)
    assert float((found["mos"][0] - found["mos"][1]).abs()) > 1e-5
    assert math.isnan(perceptual.nisqa(speech[:1000], SR)["mos"])
    with pytest.raises(ValueError, match="NISQA takes no 16 s at once"):
        perceptual.nisqa(np.tile(speech, 4), SR)


def test_mismatched_and_empty_signals_are_named(speech: np.ndarray) -> None:
    for call in (perceptual.pesq_wb, perceptual.stoi, perceptual.gammatone_nsim):
        with pytest.raises(ValueError, match="differ in shape"):
            call(speech, speech[1:], SR)
        with pytest.raises(ValueError, match="at least one sample"):
            call(speech[:0], speech[:0], SR)
    with pytest.raises(ValueError, match="x is complex"):
        perceptual.embed(speech + 0j, SR)
