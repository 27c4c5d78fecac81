"""F0: right within 2 % gross error on voices whose F0 is known, aligned, steady on what is hard, clear about what is wrong."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bwe import dsp, pitch
from bwe.errors import AudioError, ConfigError

SR = 16_000
PACKAGES = {"harvest": "pyworld", "dio": "pyworld", "praat": "parselmouth", "pyin": "librosa", "crepe": "torchcrepe"}
EXTRAS = {"harvest": "f0", "dio": "f0", "praat": "praat", "pyin": "pyin", "crepe": "crepe", "crepe-tiny": "crepe"}
FAST = ["harvest", "dio", "praat", "crepe-tiny"]
SLOW = [pytest.param("pyin", marks=pytest.mark.slow), pytest.param("crepe", marks=pytest.mark.slow)]
PYIN = pytest.param("pyin", marks=pytest.mark.slow)


def need(*methods: str) -> None:
    for method in methods:
        pytest.importorskip(PACKAGES[method.removesuffix("-tiny")])


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("f0", Path(__file__).resolve().parent.parent / "benchmarks" / "f0.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "f0", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def voices(benchmark: ModuleType) -> list[Any]:
    return benchmark.voices()


@pytest.fixture(scope="module")
def telephone(benchmark: ModuleType, voices: list[Any]) -> Any:
    """A low voice without its fundamental."""
    return benchmark.under("300-3400 Hz", voices[0], 0)


@pytest.fixture(scope="module")
def scores(benchmark: ModuleType, voices: list[Any]) -> Callable[[str], dict[str, float]]:
    """Gross error, fine error and F1 of a method over the clean voices; each method is run once."""
    known: dict[str, dict[str, float]] = {}

    def of(method: str) -> dict[str, float]:
        if method not in known:
            tracks = [pitch.estimate(v.x, v.sr, method).hz for v in voices]
            known[method] = benchmark.score(tracks, [v.hz for v in voices])
        return known[method]

    return of


def tone(hz: float | np.ndarray, seconds: float = 0.5, sr: int = SR, harmonics: int = 10) -> np.ndarray:
    """Harmonics k of height 1 / k, as far as they fit; hz is one F0 or one for each sample."""
    f0 = np.broadcast_to(np.asarray(hz, float), round(seconds * sr))
    phase = 2 * np.pi * np.cumsum(f0) / sr
    return 0.3 * sum(np.sin(k * phase + k) / k for k in range(1, harmonics + 1) if k * f0.max() < 0.47 * sr)


def cents(hz: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    return 1200 * np.log2(hz / truth)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", [*FAST, *SLOW])
def test_gross_error_on_clean_voices_is_at_most_two_percent(method: str, scores: Callable[[str], dict[str, float]]) -> None:
    need(method)
    found = scores(method)
    assert found["gross"] <= 0.02
    assert found["fine_cents"] < 12
    assert found["f1"] > 0.95


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_hybrid_is_no_worse_than_the_best_single_method(scores: Callable[[str], dict[str, float]]) -> None:
    need(*pitch.VOTERS, "dio")
    hybrid, singles = scores("hybrid"), [scores(method) for method in (*pitch.VOTERS, "dio")]
    assert hybrid["gross"] <= min(s["gross"] for s in singles)
    assert hybrid["f1"] >= max(s["f1"] for s in singles) - 0.005


def test_three_voters_outvote_the_one_that_errs(benchmark: ModuleType, telephone: Any) -> None:
    """Without a fundamental Harvest finds octaves above; Praat and CREPE do not on this vowel."""
    need("harvest", "praat", "crepe-tiny")
    v = telephone
    singles = np.array([pitch.estimate(v.x, v.sr, m).hz for m in ("harvest", "praat", "crepe-tiny")])
    hybrid = pitch.estimate(v.x, v.sr, "hybrid", voters=("harvest", "praat", "crepe-tiny"))
    gross = [benchmark.score([track], [v.hz])["gross"] for track in (singles[0], hybrid.hz)]
    assert gross[0] > 0.2
    assert gross[1] < 0.02
    np.testing.assert_allclose(hybrid.voicing, np.isfinite(singles).mean(0))
    assert np.array_equal(hybrid.voiced, hybrid.voicing > 0.5)
    everyone = np.isfinite(singles).all(0)
    assert everyone.sum() > 20
    np.testing.assert_allclose(hybrid.hz[everyone], np.median(singles[:, everyone], axis=0))


def test_two_voters_an_octave_apart_are_not_averaged(telephone: Any) -> None:
    need("harvest", "praat")
    v = telephone
    harvest, praat = (pitch.estimate(v.x, v.sr, m).hz for m in ("harvest", "praat"))
    apart = np.abs(cents(harvest, praat)) > 600
    assert apart.sum() > 10
    for voters, first in ((("harvest", "praat"), harvest), (("praat", "harvest"), praat)):
        np.testing.assert_allclose(pitch.estimate(v.x, v.sr, "hybrid", voters=voters).hz[apart], first[apart])


@pytest.mark.parametrize("method", [*FAST, PYIN])
def test_frames_are_centred_at_ten_milliseconds_each(method: str) -> None:
    """In a glide a lag shows as a deviation that changes its sign with the direction, a bias as one that does not."""
    need(method)
    t = np.arange(2 * SR) / SR
    octaves_per_second, off = 1.0, []
    for sign in (1, -1):
        hz = 200 * 2 ** (sign * octaves_per_second * (t - 1))
        found = pitch.estimate(tone(hz, 2.0), SR, method).hz[20:-20]
        truth = 200 * 2 ** (sign * octaves_per_second * (np.arange(201) / 100 - 1))
        off.append(np.nanmedian(cents(found, truth[20:-20])))
        assert np.isfinite(found).mean() > 0.95
    lag_ms = 1e3 * (off[1] - off[0]) / 2 / (1200 * octaves_per_second)
    assert abs(lag_ms) < 4, "under half a frame"
    assert abs(off[0] + off[1]) / 2 < 10, "cents"


@pytest.mark.parametrize("method", [*FAST, PYIN])
@pytest.mark.parametrize("hz", [80.0, 800.0])
def test_the_ends_of_the_range_are_inside(method: str, hz: float) -> None:
    need(method)
    found = pitch.estimate(tone(hz, harmonics=30), SR, method).hz[10:-10]
    assert np.isfinite(found).mean() > 0.9
    assert np.nanmax(np.abs(cents(found, hz))) < 40


@pytest.mark.parametrize("method", ["harvest", "dio", "praat", "crepe-tiny", PYIN])
def test_neither_level_nor_offset_matters_nor_hardly_the_rate(method: str) -> None:
    need(method)
    x = tone(150.0)
    expected = pitch.estimate(x, SR, method)
    for changed in (1e-4 * x, 30 * x, x + 0.4, torch.from_numpy(x).float()):
        found = pitch.estimate(changed, SR, method)
        assert np.array_equal(found.voiced, expected.voiced)
        np.testing.assert_allclose(found.hz, expected.hz, rtol=1e-4)
    for sr in (8_000, 44_100):
        found = pitch.estimate(tone(150.0, 0.52, sr), sr, method).hz
        assert len(found) == 53
        assert np.abs(cents(found[5:-5], 150.0)).max() < 25


@pytest.mark.parametrize("method", [*FAST, PYIN])
@pytest.mark.parametrize("length", [1, 2, 159, 160, 161, 500, 1601])
def test_any_length_gives_the_same_grid(method: str, length: int) -> None:
    need(method)
    found = pitch.estimate(tone(150.0)[:length], SR, method)
    assert found.hz.shape == found.voicing.shape == (1 + length // 160,) == (pitch.frame_count(length, SR),)
    assert found.hz.dtype == found.voicing.dtype == np.float64
    assert ((found.voicing >= 0) & (found.voicing <= 1)).all()


def test_frame_count_at_rates_without_whole_hops() -> None:
    need("praat")
    for sr, length in ((11_025, 11_024), (11_025, 11_025), (22_050, 12_345), (44_100, 441), (12_345, 5_000)):
        assert len(pitch.estimate(tone(150.0, length / sr, sr), sr, "praat").hz) == 1 + 100 * length // sr


def test_each_signal_on_its_own() -> None:
    need("harvest", "praat")
    signals = np.stack([tone(100.0), 0.01 * tone(300.0), np.zeros(SR // 2), tone(200.0)]).reshape(2, 2, -1)
    for options in ({"method": "praat"}, {"method": "hybrid", "voters": ("harvest", "praat")}):
        together = pitch.estimate(signals, SR, **options)
        assert together.hz.shape == together.voicing.shape == (2, 2, 51)
        for i, j in np.ndindex(2, 2):
            np.testing.assert_array_equal(together.hz[i, j], pitch.estimate(signals[i, j], SR, **options).hz)


@pytest.mark.parametrize("method", [*FAST, PYIN])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_silence_is_unvoiced(method: str, offset: float) -> None:
    need(method)
    faint = 1e-310 * np.sin(np.arange(SR))  # denormal
    for x in (np.zeros(SR), faint):
        found = pitch.estimate(x + offset, SR, method)
        assert np.isnan(found.hz).all()
        assert (found.voicing == 0).all()
    found = pitch.estimate(np.concatenate([tone(150.0) + offset, np.zeros(SR) + offset]), SR, method)
    assert np.nanmedian(found.hz[5:45]) == pytest.approx(150, rel=0.01)
    if not offset:  # its end is a step, which may ring a little
        assert np.isnan(found.hz[56:]).all()
        assert (found.voicing[56:] == 0).all()


def test_the_gate_is_sixty_decibels_below_the_loudest() -> None:
    need("harvest")
    x = tone(200.0, 1.5)
    x[SR // 2 : SR] *= 10 ** (-70 / 20)
    x[SR:] *= 10 ** (-50 / 20)
    voiced = pitch.estimate(x, SR).voiced
    assert not voiced[55:95].any()
    assert voiced[105:145].all()


@pytest.mark.parametrize("method", [*FAST[1:], PYIN])
def test_noise_is_mostly_unvoiced(method: str) -> None:
    """But by Harvest, which is known to call much of it voiced."""
    need(method)
    x = 0.1 * np.random.default_rng(0).standard_normal(SR)
    assert pitch.estimate(x, SR, method).voiced.mean() < 0.15


def test_methods_agree_on_real_speech(talk: np.ndarray) -> None:
    need("harvest", "dio", "praat", "crepe-tiny")
    x = talk[0, :96_000]
    tracks = {method: pitch.estimate(x, 48_000, method).hz for method in FAST}
    for method, hz in tracks.items():
        both = np.isfinite(hz) & np.isfinite(tracks["praat"])
        assert both.sum() > 50, method
        assert (np.abs(cents(hz[both], tracks["praat"][both])) > 315).mean() < 0.02, method


def test_twice_the_same_and_no_trace_in_the_generators() -> None:
    need("crepe-tiny", "harvest", "dio")
    x = tone(150.0) + 0.05 * np.random.default_rng(0).standard_normal(SR // 2)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for method in ("harvest", "dio", "crepe-tiny"):
        first, second = (pitch.estimate(x, SR, method) for _ in range(2))
        np.testing.assert_array_equal(first.hz, second.hz)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_wrong_arguments_are_named() -> None:
    x = tone(150.0)
    with pytest.raises(ConfigError, match="no F0 method 'harvset'; did you mean 'harvest'"):
        pitch.estimate(x, SR, "harvset")
    with pytest.raises(ConfigError, match="no F0 voter 'praet'; did you mean 'praat'"):
        pitch.estimate(x, SR, "hybrid", voters=["praet"])
    with pytest.raises(ConfigError, match="no F0 voter 'hybrid'"):
        pitch.estimate(x, SR, "hybrid", voters=["hybrid"])
    with pytest.raises(ConfigError, match="for the method 'hybrid'"):
        pitch.estimate(x, SR, "praat", voters=["dio"])
    for low, high in ((300, 200), (200, 200), (0, 400), (-5, 400), (80, 9000), (80, np.nan), (np.nan, 400), (100, 110)):
        with pytest.raises(ConfigError, match="F0 cannot be searched"):
            pitch.estimate(x, SR, fmin=low, fmax=high)
    for sr in (1600, 0, -16_000):
        with pytest.raises(ConfigError, match="too low for F0 up to fmax=800"):
            pitch.estimate(x, sr)
    with pytest.raises(ConfigError, match="whole number"):
        pitch.estimate(x, 16_000.5)
    for empty in (np.zeros(0), np.zeros((2, 0)), np.float64(1.0)):
        with pytest.raises(AudioError, match="at least one sample"):
            pitch.estimate(empty, SR)
    with pytest.raises(AudioError, match="complex"):
        pitch.estimate(x + 0j, SR)
    for bad, name in ((np.nan, "NaN"), (np.inf, "Inf")):
        x[123] = bad
        with pytest.raises(AudioError, match=f"{name} at sample 123"):
            pitch.estimate(np.stack([tone(100.0), x]), SR)


def test_a_missing_package_does_not_vote_and_is_named_with_its_extra() -> None:
    """In an interpreter where two of the packages cannot be imported, then none can."""
    need("harvest", "praat")
    code = """
        import json, sys, warnings
        warnings.simplefilter("error")
        sys.modules["torchcrepe"] = sys.modules["librosa"] = None
        import numpy as np
        from bwe import pitch
        x = sum(np.sin(2 * np.pi * 200 * k * np.arange(8000) / 16000) / k for k in range(1, 9))
        some, track = pitch.installed(), pitch.estimate(x, 16000, "hybrid")
        sys.modules["pyworld"] = sys.modules["parselmouth"] = None
        said = {}
        for method in pitch.METHODS:
            try:
                pitch.estimate(x, 16000, method)
            except ImportError as error:
                said[method] = str(error)
        print(json.dumps([some, track.hz[10:40].tolist(), sorted(set(track.voicing)), pitch.installed(), said]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    some, hz, shares, none, said = json.loads(done.stdout)
    assert some == ["harvest", "dio", "praat", "hybrid"]
    assert hz == pytest.approx([200.0] * 30, rel=1e-3)
    assert set(shares) <= {0, 0.5, 1}, "two voters"
    assert none == []
    assert set(said) == set(pitch.METHODS)
    for method, extra in {**EXTRAS, "hybrid": "f0"}.items():
        assert said[method].endswith(f"pip install 'bwe[{extra}]'"), method


def test_stability_of_held_gliding_and_absent_pitch() -> None:
    assert pitch.stability(np.full(20, 137.0)) == pytest.approx(np.ones(20))
    assert (pitch.stability(np.full(20, np.nan)) == 0).all()
    for step in (10.0, 50.0):
        glide = 100 * 2 ** (step * np.arange(40) / 1200)
        inside = pitch.stability(glide)[2:-2]
        assert inside == pytest.approx(np.full(36, np.exp(-((step / 50) ** 2))))
    octave = np.repeat([100.0, 200.0], 10)
    jumped = pitch.stability(octave)
    assert (jumped[8:12] < 1e-20).all()
    assert jumped[:8] == pytest.approx(np.ones(8))
    assert jumped[12:] == pytest.approx(np.ones(8))


def test_stability_counts_the_voiced_frames_around() -> None:
    hz = np.full(11, np.nan)
    hz[5] = 200
    expected = np.zeros(11)
    expected[5] = 1 / 5
    assert pitch.stability(hz) == pytest.approx(expected)
    hz[6:9] = 200
    assert pitch.stability(hz)[5:9] == pytest.approx([3 / 5, 4 / 5, 4 / 5, 3 / 5])
    hz[0] = 200
    assert pitch.stability(hz)[0] == pytest.approx(1 / 3), "at the edge there are two frames beside it"


def test_stability_and_template_of_batches_and_of_an_f0() -> None:
    rng = np.random.default_rng(0)
    hz = np.where(rng.random((2, 3, 30)) < 0.3, np.nan, 150 * 2 ** (0.1 * rng.standard_normal((2, 3, 30))))
    steady, template = pitch.stability(hz), pitch.harmonic_template(torch.from_numpy(hz), 48_000)
    assert steady.shape == (2, 3, 30)
    assert template.shape == (2, 3, 1025, 30)
    one = pitch.F0(hz[1, 2], np.isfinite(hz[1, 2]) * 1.0)
    np.testing.assert_array_equal(steady[1, 2], pitch.stability(one))
    assert torch.equal(template[1, 2], pitch.harmonic_template(one, 48_000))


@pytest.mark.parametrize(("sr", "hop"), [(48_000, 480), (48_000, 512), (16_000, 160), (44_100, 441)])
def test_template_peaks_at_the_harmonics(sr: int, hop: int) -> None:
    n_fft, bin_hz = 2048, sr / 2048
    hz = np.full(30, 10 * bin_hz)
    hz[20:] = np.nan
    template = pitch.harmonic_template(hz, sr, n_fft, hop)
    assert template.dtype == torch.float32
    assert template.shape == (1025, 1 + (29 * sr // 100) // hop)
    column = template[:, 5]
    peaks = [k for k in range(1, 1024) if column[k] > column[k - 1] and column[k] > column[k + 1]]
    assert peaks == [10, 20, 30, 40, 50]
    assert column[peaks].tolist() == [1.0] * 5
    assert column[11] == pytest.approx(np.exp(-0.5))
    assert float(template.max()) == 1.0
    assert (template[:, (20 * sr // 100 + hop) // hop :] == 0).all(), "unvoiced"
    assert float(pitch.harmonic_template(hz, sr, n_fft, hop, harmonics=2)[30:, 5].max()) < 1e-9


def test_template_stands_on_a_real_spectrogram() -> None:
    """Over a voice most of the power lies under it, at frames of another hop as well; a fifth off, it does not."""
    sr, t = 48_000, np.arange(48_000) / 48_000
    f0 = 220 * 2 ** (0.3 * np.sin(2 * np.pi * t))
    x = torch.from_numpy(tone(f0, 1.0, sr))
    power = dsp.power_spectrogram(x, 4096, 512)
    hz = np.interp(np.arange(101) / 100, t, f0)
    shares = []
    for factor in (1.0, 1.5):
        template = pitch.harmonic_template(hz * factor, sr, 4096, 512, harmonics=10, frames=power.shape[-1], width=2.0)
        assert template.shape == power.shape
        shares.append(float((power * template)[:, 5:-5].sum() / power[:, 5:-5].sum()))
    assert shares[0] > 0.6
    assert shares[1] < 0.3


def test_template_has_no_harmonic_above_half_the_rate() -> None:
    template = pitch.harmonic_template(np.full(3, 700.0), 2000, n_fft=256, hop=20)
    assert (template[:, 0] == template[:, 0].max()).sum() == 1
    assert float(template[110:].max()) < 1e-6


def test_wrong_f0_and_template_sizes_are_named() -> None:
    for function in (pitch.stability, lambda hz: pitch.harmonic_template(hz, 48_000)):
        with pytest.raises(ValueError, match="at least one frame"):
            function(np.zeros(0))
        for hz in ([100.0, 0.0], [100.0, -3.0], [np.inf]):
            with pytest.raises(ValueError, match="above 0 Hz"):
                function(np.array(hz))
    for options in ({"hop": 0}, {"harmonics": 0}, {"n_fft": 0}, {"width": 0.0}, {"frames": -1}):
        with pytest.raises(ValueError, match="no template with"):
            pitch.harmonic_template(np.full(3, 100.0), 48_000, **options)


@pytest.mark.slow
def test_the_benchmark_prints_a_table(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need("harvest", "dio", "praat")
    figures, speech = tmp_path / "f0.json", Path(__file__).resolve().parent.parent / "examples"
    options = ["--conditions", "clean", "--speech", str(speech), "--json", str(figures)]
    monkeypatch.setattr(sys, "argv", ["f0.py", "--methods", "harvest", "dio", "praat", *options])
    threads = torch.get_num_threads()
    try:
        assert benchmark.main() == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(figures.read_text())
    assert [(row["signals"], row["method"]) for row in rows] == [
        (signals, method) for signals in ("clean", "speech") for method in ("harvest", "dio", "praat")
    ]
    assert len(lines) == 2 + len(rows)
    assert all(row["speed"] > 1 and row["f1"] > 0.5 for row in rows)
    assert rows[0]["gross"] < 0.02
