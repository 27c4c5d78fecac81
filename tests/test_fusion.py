"""A generator that hears a body and air microphones at once, its features of frames, and how it is called."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bwe import batch, export, fusion, generators, hub, infer
from bwe.errors import AudioError, ModelError

SR = 16_000
BODY = replace(generators.SIZES["tiny"], sample_rate=SR, bands=8, passthrough=False, told_hz=1000.0)
CARD = "# Test\n\nRandom weights."


def network(**config: object) -> generators.SEANet:
    torch.manual_seed(0)
    net = generators.SEANet(replace(BODY, **config)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        net.head.bias.zero_()
    return net


def tone(hz: float, seconds: float = 0.5) -> torch.Tensor:
    t = torch.arange(round(SR * seconds)) / SR
    return sum((torch.sin(2 * torch.pi * hz * k * t + k) / k for k in range(1, 8)), torch.zeros(len(t))) * 0.1


@pytest.mark.parametrize("hz", [75.0, 110.0, 233.0, 390.0])
def test_f0_feature_is_the_pitch_of_the_body_signal_whatever_the_air_holds(hz: float) -> None:
    features = fusion.FrameFeatures(SR, 128, 1, ("f0",))
    x = torch.stack([tone(hz), torch.randn(SR // 2)])[None]
    pitch, height = features(x)[0, :, 16:-16]
    assert float(height.min()) > 0.9
    assert torch.allclose(150 * 2 ** (pitch / height.clamp(max=1)), torch.tensor(hz), rtol=0.03)
    assert float(features(torch.randn(1, 2, SR // 2))[0, 1].mean()) < 0.6


def test_bank_feature_follows_each_signal_and_direction_the_side_of_the_noise() -> None:
    hop, length = 128, 6400
    bank = fusion.FrameFeatures(SR, hop, 1, ("bank",))
    assert bank.size == 40
    torch.manual_seed(0)
    x = torch.randn(1, 2, length) * 0.1
    louder = x * torch.tensor([1.0, 10.0])[:, None]
    inside = slice(8, -8)
    change = (bank(louder) - bank(x))[0, :, inside].mean(-1)
    assert torch.allclose(change[:20], torch.zeros(20), atol=1e-4)
    assert torch.allclose(change[20:], torch.full((20,), 0.1 * np.log(100)), atol=1e-3)

    direction = fusion.FrameFeatures(SR, hop, 2, ("direction",))
    noise = torch.randn(length + 8)
    late = torch.stack([noise[4:-4], noise[4:-4], 2 * noise[2:-6]])[None]
    cosine, sine, level = direction(late)[0, :, inside].mean(-1).split(20)
    assert direction(late).shape == (1, 60, length // hop)
    assert float(cosine[:8].min()) > 0.7  # long waves hardly notice two samples
    assert float(sine[6:14].min()) > 0.2
    assert torch.allclose(level, torch.full((20,), -np.log(2.0)), atol=0.1)
    straight = direction(torch.stack([noise, noise, noise])[None, :, :length])[0]
    assert torch.allclose(straight[20:40], torch.zeros(()), atol=1e-3)


def test_a_fusion_hears_all_its_inputs_and_makes_one_signal() -> None:
    net = network(air=1, features=("f0", "bank"))
    with torch.no_grad():  # features enter through weights that start at zero
        net.frame_film.net[-1].weight.normal_(0, 0.1)
    x = torch.randn(2, 2, 5000) * 0.1
    told = torch.tensor([1.0, 7000.0])
    with torch.inference_mode():
        y = net(x, told)
        assert y.shape == (2, 1, 5000)
        for channel in (0, 1):
            other = x.clone()
            other[:, channel] = torch.randn(2, 5000) * 0.1
            assert float((net(other, told) - y).abs().max()) > 1e-3
        assert torch.equal(net(x, torch.tensor([1000.0, 1000.0])), y)  # told_hz takes the place of any cut-off
        assert net(x[..., :0], told).shape == (2, 1, 0)


def test_a_fusion_starts_from_a_generator_of_one_input() -> None:
    one, two = network(), network(air=1, features=("f0",))
    two.warm_start(one, "init=one")
    bands = BODY.bands
    assert torch.allclose(two.stem.weight[:, : 3 * bands], one.stem.weight)
    assert torch.allclose(two.head.weight[: 3 * bands], one.head.weight)
    with torch.no_grad():
        for group in (two.stem.parametrizations.weight.original1[:, 3 * bands :], two.head.bias[3 * bands :]):
            group.zero_()
    features = network(features=("f0",))
    features.warm_start(one, "init=one")
    x = torch.randn(1, 1, 4000) * 0.1
    with torch.inference_mode():
        assert torch.allclose(features(x, torch.tensor([1.0])), one(x, torch.tensor([1.0])), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"air": 1, "passthrough": True, "told_hz": 0.0}, "without passthrough and not causal"),
        ({"air": 1, "features": ("direction",)}, "'direction' of two air microphones"),
        ({"air": 9}, "up to 8 air microphones"),
        ({"passthrough": True}, "told_hz is 0 with passthrough"),
    ],
)
def test_configs_that_make_no_sense_are_refused(config: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(BODY, **config)  # type: ignore[arg-type]


def test_body_models_make_the_whole_band_of_files_and_arrays_anew(tmp_path: Path) -> None:
    model = infer.load(hub.save(tmp_path / "body", network(), CARD))
    assert not model.keeps_band
    x = (0.1 * np.random.default_rng(0).standard_normal(SR)).astype(np.float32)  # full-band already, for other models
    y = model(x, SR)
    direct = model.generator(torch.from_numpy(x)[None, None], torch.tensor([1000.0])).detach().numpy()[0, 0]
    assert np.allclose(y, direct, atol=1e-6)
    assert float(np.abs(y - x).max()) > 0.01
    assert np.array_equal(model(x, SR, cutoff=3000.0), y)
    assert np.allclose(model(x, SR, chunk_seconds=0.2), y, atol=1e-6)
    soundfile.write(tmp_path / "in.wav", x, SR, subtype="FLOAT")
    report = infer.extend(tmp_path / "in.wav", tmp_path / "out.wav", model)
    assert "whole band made anew" in str(report)
    assert np.allclose(soundfile.read(tmp_path / "out.wav")[0], y, atol=1e-5)
    wide = (0.1 * np.random.default_rng(0).standard_normal(48_000)).astype(np.float32)
    soundfile.write(tmp_path / "wide.wav", wide, 48_000, subtype="FLOAT")
    infer.extend(tmp_path / "wide.wav", tmp_path / "own.wav", model)
    assert soundfile.info(tmp_path / "own.wav").samplerate == SR  # there is nothing above
    settings = batch.Settings(model=str(tmp_path / "body"))
    assert (settings.output_rate(), settings.keeps_rate()) == (SR, False)
    infer.extend(tmp_path / "wide.wav", tmp_path / "made.wav", model, sample_rate=48_000)
    made, rate = soundfile.read(tmp_path / "made.wav")
    assert rate == 48_000
    power = np.abs(np.fft.rfft(made)) ** 2
    above = np.fft.rfftfreq(len(made), 1 / rate) > 8200
    assert power[above].sum() < 1e-6 * power.sum()  # nothing of the body signal's own highs


def test_fusion_models_take_a_channel_for_each_microphone(tmp_path: Path) -> None:
    model = infer.load(hub.save(tmp_path / "fusion", network(air=1, features=("f0", "bank")), CARD))
    assert model.inputs == 2
    x = (0.1 * np.random.default_rng(0).standard_normal((2, 2 * SR))).astype(np.float32)
    y = model(x, SR)
    assert y.shape == (1, 2 * SR)
    assert np.allclose(model(x, SR, chunk_seconds=0.5), y, atol=1e-5)
    assert model(np.stack([x, x]), SR).shape == (2, 1, 2 * SR)
    with pytest.raises(AudioError, match=r"this model hears 2 microphones at once"):
        model(x[0], SR)
    soundfile.write(tmp_path / "in.wav", x.T, SR, subtype="FLOAT")
    infer.extend(tmp_path / "in.wav", tmp_path / "out.wav", model)
    made, rate = soundfile.read(tmp_path / "out.wav", always_2d=True)
    assert (made.shape, rate) == ((2 * SR, 1), SR)
    assert np.allclose(made[:, 0], y[0], atol=1e-5)
    soundfile.write(tmp_path / "mono.wav", x[0], SR)
    with pytest.raises(AudioError, match=r"mono\.wav: has 1 channel; fusion hears 2 microphones at once, the body microphone"):
        infer.extend(tmp_path / "mono.wav", tmp_path / "no.wav", model)
    assert not (tmp_path / "no.wav").exists()
    with pytest.raises(ModelError, match="hears several microphones"):
        export.export(tmp_path / "fusion", tmp_path / "fusion.onnx")
