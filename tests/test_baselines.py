"""The baselines: shapes, what each can and cannot do, and training, saving and loading like any generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bwe import baselines, degrade, dsp, hub, infer, losses, metrics, train
from bwe.errors import ConfigError, ModelError

RATE = 16_000
# Small shapes of each, for the machinery.
SMALL = {
    "sinc": baselines.Sinc.Config(),
    "sbr": baselines.SpectralBandReplication.Config(),
    "bilstm": baselines.BiLSTM.Config(width=24, layers=1),
    "waveunet": baselines.WaveUNet.Config(levels=4, width=4),
    "audiounet": baselines.AudioUNet.Config(channels=(8, 8, 12), kernels=(16, 8, 8)),
    "eben": baselines.EBEN.Config(channels=(8, 12, 16), strides=(2, 4)),
    "dccrn": baselines.DCCRN.Config(channels=(4, 4, 8), width=16),
    "dpcrn": baselines.DPCRN.Config(channels=(4, 8), blocks=1, width=16),
}
LEARNED = [name for name in SMALL if name not in ("sinc", "sbr")]
RECURRENT = ("bilstm", "dccrn", "dpcrn")


def build(arch: str, **changes: object) -> baselines.Baseline:
    torch.manual_seed(0)
    network = hub.build(arch, dataclasses.replace(SMALL[arch], **changes))
    assert isinstance(network, baselines.Baseline)
    return network.eval()


@pytest.fixture(scope="module")
def speech(talk: np.ndarray) -> Tensor:
    """Full-band at 16 kHz, `(1, 1, T)`."""
    return dsp.resample(torch.from_numpy(talk[:1, : 3 * 48_000]), 48_000, RATE)[None]


def test_every_architecture_has_a_small_shape() -> None:
    assert SMALL.keys() == baselines.ARCHITECTURES.keys()


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("length", [0, 1, 37, 2048, 5001])
def test_length_is_kept(arch: str, length: int) -> None:
    x = torch.randn(2, 1, length) * 0.1
    with torch.inference_mode():
        y = build(arch)(x, torch.tensor([2000.0, 4000.0]))
    assert y.shape == x.shape
    assert y.isfinite().all()


@pytest.mark.parametrize("arch", [name for name in SMALL if name not in RECURRENT])
def test_a_sample_hears_no_further_than_its_receptive_field(arch: str) -> None:
    network = build(arch)
    x = torch.randn(1, 1, 40_000) * 0.1
    other = x.clone()
    middle = 20_000
    other[..., middle:] = torch.randn(1, 1, middle) * 0.1
    with torch.inference_mode():
        before, after = (network(s, torch.tensor([4000.0])) for s in (x, other))
    reach = network.receptive_field
    assert reach < middle
    assert (before - after)[..., : middle - reach].abs().max() < 1e-6
    if reach:
        assert (before - after)[..., middle - reach // 8 - 16 : middle].abs().max() > 1e-6


@pytest.mark.parametrize("arch", [name for name in SMALL if name not in RECURRENT])
def test_in_chunks_as_in_one_piece(arch: str, speech: Tensor) -> None:
    extender = infer.Extender(build(arch))
    whole, chunked = (extender(speech[0].numpy(), RATE, 3000.0, seconds) for seconds in (None, 0.7))
    np.testing.assert_allclose(chunked, whole, atol=2e-6)


@pytest.mark.parametrize("arch", LEARNED)
def test_passthrough_keeps_the_known_band(arch: str, speech: Tensor) -> None:
    low = dsp.band_limit(speech, RATE, 4000.0)
    told = torch.tensor([4000.0])
    with torch.inference_mode():
        kept, rewritten = (build(arch, passthrough=on)(low, told) for on in (True, False))
    assert metrics.low_band_null(low, kept, RATE, 4000.0).max() < -90
    assert metrics.low_band_null(low, rewritten, RATE, 4000.0).min() > -90


def test_sinc_is_the_input(speech: Tensor) -> None:
    assert torch.equal(build("sinc")(speech, torch.tensor([4000.0])), speech)


def test_replication_fills_noise_at_its_level() -> None:
    """White noise has no slope, so copies at the least slope allowed, 0, have the level of what is missing."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.05, (1, 1, 4 * RATE))).float()
    low = dsp.band_limit(noise, RATE, 3000.0)
    y = build("sbr", slope_db=(-30.0, 0.0))(low, torch.tensor([3000.0]))
    assert abs(float(metrics.hf_bias(noise, y, RATE, 3300.0))) < 1.5
    assert float(metrics.hf_bias(noise, low, RATE, 3300.0)) < -40
    # A floor at the power that a perfect envelope leaves; replicated texture is as good as noise here.
    assert float(metrics.lsd_hf(noise, y, RATE, 3300.0)) < 1.0


def test_replication_carries_a_slope_on() -> None:
    rng = np.random.default_rng(1)
    spectrum = np.fft.rfft(rng.normal(0, 0.1, 4 * RATE))
    hz = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    x = torch.from_numpy(np.fft.irfft(spectrum * (np.maximum(hz, 100) / 1000) ** -2)).float()[None, None]  # 12 dB an octave
    y = build("sbr")(dsp.band_limit(x, RATE, 3000.0), torch.tensor([3000.0]))
    assert abs(float(metrics.hf_bias(x, y, RATE, 4000.0))) < 3


def test_replication_is_no_comb(speech: Tensor) -> None:
    """A tone that is copied up stays a steady tone: bins that are moved turn with the frames."""
    t = torch.arange(2 * RATE) / RATE
    tone = 0.1 * torch.sin(2 * torch.pi * 2000 * t)[None, None]
    y = build("sbr", slope_db=(-30.0, 0.0))(tone, torch.tensor([3000.0]))
    power = torch.fft.rfft(y[0, 0, 4000:-4000] * torch.hann_window(2 * RATE - 8000)).abs().square()
    hz = torch.linspace(0, RATE / 2, len(power))
    copied = power[(hz > 3300) & (hz < 5000)]
    assert float(copied.topk(5).values.sum() / copied.sum()) > 0.9


def test_a_mask_leaves_an_empty_band_empty(speech: Tensor) -> None:
    low = dsp.band_limit(speech, RATE, 3000.0)
    with torch.inference_mode():
        for arch in ("dccrn", "dpcrn"):
            masked, mapped = (build(arch, output=kind)(low, torch.tensor([3000.0])) for kind in ("mask", "map"))
            missing = [metrics.hf_bias(speech, y, RATE, 3500.0).item() for y in (masked, mapped)]
            assert missing[0] < missing[1] - 10


def test_bilstm_learns_its_statistics_in_training() -> None:
    network = baselines.BiLSTM(SMALL["bilstm"]).train()
    rng = np.random.default_rng(0)
    body = torch.from_numpy(rng.normal(0, 0.1, (8, 1, RATE))).float()
    air = dsp.band_limit(body, RATE, 2000.0)
    for _ in range(3):
        network.distance(network(body, torch.full((8,), 4000.0)), air)
    level = (network.spectrum(body / body.abs().amax(-1, keepdim=True)).abs() + 1e-4).log()
    torch.testing.assert_close(network.microphone.mean, level.mean((0, 2)))
    torch.testing.assert_close(network.microphone.deviation()[:, 0], level.std((0, 2), correction=0), rtol=1e-3, atol=1e-3)
    assert (network.air.mean[100:] < network.air.mean[:50].mean() - 3).all()
    before = network.microphone.mean.clone()
    network.eval()(body * 2, torch.full((8,), 4000.0))
    assert torch.equal(network.microphone.mean, before)


def test_bilstm_follows_the_level() -> None:
    network = build("bilstm")
    x = torch.randn(1, 1, 8000) * 0.1
    with torch.inference_mode():
        torch.testing.assert_close(network(4 * x, torch.tensor([4000.0])), 4 * network(x, torch.tensor([4000.0])))


@pytest.mark.parametrize("kind", ["complex", "magnitude"])
def test_spectral_mse_by_hand(kind: str) -> None:
    x, y = torch.randn(2, 1, 3000), torch.randn(2, 1, 3000)
    loss = losses.SpectralMSE(kind)  # type: ignore[arg-type]
    n = 512
    spectra = []
    for s in (x, y):
        padded = np.pad(s[:, 0].numpy(), ((0, 0), (n // 2, n // 2)), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, n, axis=-1)[:, :: n // 4]
        spectra.append(np.fft.rfft(frames * np.sin(np.pi * np.arange(n) / n) ** 2))
    a, b = spectra
    difference = a - b if kind == "complex" else abs(a) - abs(b)
    expected = (abs(difference) ** 2).mean() / (2 if kind == "complex" else 1)
    assert float(loss(x, y)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(x, x)) == 0


def overrides(arch: str) -> list[str]:
    own = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(SMALL[arch]).items() if key != "passthrough"}
    return [f"arch={arch}", *(f"generator.{key}={value}" for key, value in own.items())]


def trained(arch: str, steps: int, changes: list[str], folder: Path, batch: Callable[[], dict[str, Tensor]]) -> train.GANTask:
    recipe = train.load_recipe(
        Path(__file__).parent.parent / "recipes" / "smoke.py",
        [*overrides(arch), "valid_cutoffs=[4000]", "reconstruction_steps=2", *changes, f"data={folder}"],
    )
    task = train.GANTask(recipe, [])
    for _ in range(steps):
        task.step(batch())
    return task


@pytest.fixture
def batch(voice: Callable[..., np.ndarray]) -> Callable[[], dict[str, Tensor]]:
    target = torch.from_numpy(voice(4 * 4000, RATE)).reshape(4, 1, 4000)
    low = dsp.band_limit(target, RATE, 4000.0)
    parts = {"input": low, "target": target, "cutoff_hz": torch.full((4,), 4000.0), "top_hz": torch.full((4,), 8000.0)}
    return lambda: dict(parts)


@pytest.mark.parametrize("arch", LEARNED)
def test_trains_like_any_generator(arch: str, tmp_path: Path, batch: Callable[[], dict[str, Tensor]]) -> None:
    """Reconstruction steps, then two against discriminators; saved, loaded, and started from."""
    own = ["losses.own=1"] if arch == "bilstm" else []
    task = trained(arch, 4, own, tmp_path, batch)
    start = [p.detach().clone() for p in hub.build(arch, task.recipe.generator).parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(start, task.generator.parameters(), strict=True) if a.dim() > 1)
    task.export(tmp_path / "saved", "# Test\n\nA test.")
    loaded = infer.load(tmp_path / "saved")
    x = torch.randn(1, 1, 3000) * 0.1
    with torch.inference_mode():
        expected = task.ema(x, torch.tensor([3000.0]))
        torch.testing.assert_close(loaded.generator(x, torch.tensor([3000.0])), expected, atol=1e-5, rtol=1e-4)
    again = build(arch, sample_rate=RATE)
    again.warm_start(loaded.generator, "init")
    with torch.inference_mode():
        torch.testing.assert_close(again(x, torch.tensor([3000.0])), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="another config"):
        build(arch, passthrough=True).warm_start(loaded.generator, "init")


def test_a_loss_goes_down(tmp_path: Path, batch: Callable[[], dict[str, Tensor]]) -> None:
    changes = [f"discriminators.{kind}" for kind in ("periods=[]", "scales=0", "fft_sizes=[]", "bands=0")]
    changes += [f"losses.{name}=0" for name in ("stft", "log_mel", "band_energy")]
    changes += ["losses.complex_mse=1", "losses.magnitude_mse=0.5"]
    recipe_losses: list[float] = []
    task = trained("dpcrn", 0, changes, tmp_path, batch)
    for _ in range(25):
        values = task.step(batch())
        assert values["loss/rec"] == pytest.approx(values["loss/complex_mse"] + 0.5 * values["loss/magnitude_mse"], rel=1e-4)
        recipe_losses.append(values["loss/rec"])
    assert recipe_losses[-1] < 0.9 * recipe_losses[0]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    smoke = Path(__file__).parent.parent / "recipes" / "smoke.py"
    with pytest.raises(ConfigError, match="did you mean 'bilstm'"):
        train.load_recipe(smoke, ["arch=bilst"])
    with pytest.raises(ConfigError, match=r"did you mean 'generator\.width'"):
        train.load_recipe(smoke, ["arch=bilstm", "generator.widht=3"])
    with pytest.raises(ConfigError, match="config of another"):
        train.Recipe(name="x", data="y", arch="dccrn")
    with pytest.raises(ConfigError, match="another config"):
        hub.build("eben", SMALL["dccrn"])
    with pytest.raises(ConfigError, match="even strides"):
        hub.from_dict(baselines.EBEN.Config, {"strides": [3, 4, 8]}, "here")
    with pytest.raises(ConfigError, match="every number"):
        hub.from_dict(baselines.WaveUNet.Config, {"levels": 0}, "here")
    with pytest.raises(ConfigError, match=r"belongs to losses\.stft"):
        train.load_recipe(smoke, ["losses.stft=0", "losses.spectral_convergence=1"])
    with pytest.raises(ConfigError, match=r"losses\.own"):
        train.GANTask(train.load_recipe(smoke, ["losses.own=1"]), [])


def test_by_name_without_weights(speech: Tensor) -> None:
    sinc, sbr = infer.load("sinc-16k"), infer.load("sbr-16k")
    assert (sinc.sample_rate, sinc.name, infer.load("sbr").sample_rate) == (RATE, "sinc-16k", 48_000)
    assert infer.load("sbr-44k").sample_rate == 44_100
    low = dsp.band_limit(speech[0], RATE, 3000.0).numpy()
    np.testing.assert_array_equal(sinc(low, RATE, 3000.0), low)
    filled = sbr(low, RATE, 3000.0)
    bias = [float(metrics.hf_bias(speech[0], torch.from_numpy(y), RATE, 3000.0).mean()) for y in (low, filled)]
    assert bias[0] < -40 < bias[1]
    with pytest.raises(ModelError):
        infer.load("sbr-11k")


def test_degradations_feed_them(speech: Tensor) -> None:
    """What `Degradation` gives is what they take: any filter, told the cut-off."""
    d = degrade.Degradation(degrade.Config(cutoff_hz=(1500.0, 6000.0)))
    parameters = d.sample(np.random.default_rng(0), 2)
    pair = d.apply(speech[..., :8000].expand(2, 1, 8000).clone(), RATE, parameters)
    with torch.inference_mode():
        for arch in SMALL:
            assert build(arch)(pair.input, pair.cutoff_hz).isfinite().all()

