"""The SEANet generator: shapes, the known band, silence, receptive field, weight norm."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from bwe import audio, dsp, generators, hub, layers, metrics
from bwe.errors import ModelError

ROOT = Path(__file__).parent.parent
SR = 48_000


def tiny(**changes: object) -> generators.SEANet:
    """A tiny generator whose head says something."""
    torch.manual_seed(0)
    return generators.SEANet(dataclasses.replace(generators.SIZES["tiny"], **changes)).eval()


def speechlike(length: int, batch: int = 1, cutoff: float = 4000.0) -> torch.Tensor:
    torch.manual_seed(1)
    envelope = torch.sin(torch.arange(length) / 3000).abs()
    return dsp.band_limit(torch.randn(batch, 1, length) * 0.1 * envelope, SR, cutoff)


@pytest.mark.parametrize("length", [0, 1, 7, 383, 384, 385, 4799, 48_001])
def test_output_is_as_long_as_the_input(length: int) -> None:
    x = speechlike(max(length, 10))[..., :length]
    assert tiny()(x, torch.tensor([4000.0])).shape == x.shape


def test_items_of_a_batch_do_not_touch_each_other() -> None:
    model, x, cutoff = tiny(), speechlike(20_000, 2), torch.tensor([4000.0, 9000.0])
    with torch.inference_mode():
        both = model(x, cutoff)
        for i in range(2):
            assert torch.allclose(model(x[i : i + 1], cutoff[i : i + 1])[0], both[i], atol=1e-6)


@pytest.mark.parametrize("size", ["tiny", "S"])
@pytest.mark.parametrize("cutoff", [2000.0, 4000.0, 12_000.0])
def test_known_band_passes_exactly(size: str, cutoff: float) -> None:
    torch.manual_seed(0)
    model, x = generators.SEANet(generators.SIZES[size]).eval(), speechlike(SR, cutoff=cutoff)
    with torch.inference_mode():
        difference = model(x, torch.tensor([cutoff])) - x
    window = torch.hann_window(SR)
    spectrum = [torch.fft.rfft(s[0, 0] * window).abs().square() for s in (difference, x)]
    below = torch.linspace(0, SR / 2, SR // 2 + 1) < cutoff - 300
    assert difference.abs().max() > 1e-5, "the generator put nothing into the missing band"
    assert 10 * torch.log10(spectrum[0][below].sum() / spectrum[1].sum()) < -90


def test_without_passthrough_the_output_is_the_generators_own() -> None:
    model, x = tiny(passthrough=False), speechlike(10_000)
    y = model(x, torch.tensor([4000.0]))
    assert not torch.allclose(y, x, atol=1e-3)


def test_silence_stays_silent() -> None:
    y = tiny()(torch.zeros(1, 1, 30_000), torch.tensor([4000.0]))
    assert y.abs().max() < 10 ** (-90 / 20)


def test_missing_band_follows_the_level_of_the_input() -> None:
    model, x, cutoff = tiny(), speechlike(SR), torch.tensor([4000.0])
    with torch.inference_mode():
        loud, quiet = (model(gain * x, cutoff) - gain * x for gain in (1.0, 0.1))
    ratio = 10 * torch.log10(loud.square().mean() / quiet.square().mean())
    assert ratio == pytest.approx(20, abs=6)


@pytest.mark.parametrize(("size", "trend"), [("tiny", False), ("S", False), ("B", False), ("tiny", True)])
def test_receptive_field_covers_what_the_output_depends_on(size: str, trend: bool) -> None:
    torch.manual_seed(0)
    model = generators.SEANet(dataclasses.replace(generators.SIZES[size], trend=trend)).eval()
    reach = model.receptive_field
    length = (2 * reach // model.hop + 6) * model.hop
    centre = length // 2
    x = speechlike(length).requires_grad_()
    model.missing_band(x, model.tell(torch.tensor([4000.0])))[0, 0, centre].backward()
    assert x.grad is not None
    touched = x.grad[0, 0].nonzero().flatten()
    spread = max(centre - int(touched.min()), int(touched.max()) - centre) + dsp.splice_taps(SR) // 2
    assert spread <= reach
    assert spread > reach / 2, "the declared receptive field is far too wide"


def test_folding_weight_norm_changes_nothing_and_loads_back() -> None:
    model, x, cutoff = tiny(), speechlike(20_000), torch.tensor([4000.0])
    with torch.inference_mode():
        before = model(x, cutoff)
    folded = generators.fold_weight_norm(tiny())
    with torch.inference_mode():
        assert torch.allclose(folded(x, cutoff), before, atol=1e-6)
    fresh = generators.SEANet(generators.SIZES["tiny"])
    layers.load_folded(fresh, folded.state_dict())
    with torch.inference_mode():
        assert torch.allclose(fresh.eval()(x, cutoff), before, atol=1e-6)
    state = folded.state_dict()
    state.pop("head.weight")
    with pytest.raises(RuntimeError, match=r"head\.weight"):
        layers.load_folded(fresh, state)


def test_upsampling_starts_without_a_checkerboard() -> None:
    torch.manual_seed(0)
    y = layers.SubPixel(8, 4, 4)(torch.ones(1, 8, 1, 40))[..., 8:-8]
    assert (y - y.mean(-1, keepdim=True)).abs().max() < 1e-6


def test_cutoff_changes_what_is_generated() -> None:
    model, x = tiny(), speechlike(20_000, cutoff=4000.0)
    with torch.no_grad():
        for film in (*model.encoder_film, *model.decoder_film):
            torch.nn.init.normal_(film.affine.weight, std=0.5)
        a, b = (model.missing_band(x[..., :19_968], model.tell(torch.tensor([c]))) for c in (4000.0, 8000.0))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": (8, 8)},
        {"strides": (3, 4)},
        {"bands": 1000},
        {"kernels": ((4,), (3,))},
        {"bands": 15, "causal": True},
        {"trend": True, "causal": True},
        {"trend": True, "passthrough": False},
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="SEANet"):
        dataclasses.replace(generators.SIZES["tiny"], **change)


@pytest.mark.parametrize(("rate", "bands"), [(16_000, 8), (24_000, 12), (44_100, 22), (48_000, 24)])
def test_a_trunk_moves_to_another_sample_rate(rate: int, bands: int) -> None:
    source, target = tiny(), tiny(sample_rate=rate, bands=bands)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    target.warm_start(source, "init=x")
    for mine, theirs in zip(target.modules(), source.modules(), strict=True):
        if isinstance(getattr(mine, "weight", None), torch.Tensor) and mine not in (target.stem, target.head):
            assert torch.allclose(mine.weight, theirs.weight, atol=1e-6)
    own, other = target.stem.weight, source.stem.weight
    for group in range(3):  # whitened bands, levels, excitation
        shared = slice(group * bands, group * bands + bands)
        assert torch.allclose(own[:, shared], other[:, group * 24 : group * 24 + bands], atol=1e-6)
    assert torch.allclose(target.head.bias, torch.cat([source.head.bias[g * 24 : g * 24 + bands] for g in range(3)]))
    if bands < 24:  # and back: the bands that only the larger one has start anew
        back = tiny()
        initial = back.stem.weight.clone()
        back.warm_start(layers.fold_weight_norm(target), "init=x")
        assert torch.allclose(back.stem.weight[:, bands:24], initial[:, bands:24], atol=1e-6)
        assert torch.allclose(back.stem.weight[:, :bands], other[:, :bands], atol=1e-6)
    x = torch.randn(1, 1, 5000) * 0.1
    assert target(x, torch.tensor([4000.0])).shape == x.shape


def test_a_moved_trunk_knows_more_than_a_new_one() -> None:
    x, info = audio.read(ROOT / "examples" / "talk_48k.flac")
    talk = dsp.resample(torch.from_numpy(x[:1]), info.sample_rate, 16_000)[None]
    low, cutoff = dsp.band_limit(talk, 16_000, 4000.0), torch.tensor([4000.0])
    new, moved = tiny(sample_rate=16_000, bands=8), tiny(sample_rate=16_000, bands=8)
    moved.warm_start(hub.read("tiny")[0], "init=tiny")
    with torch.inference_mode():
        lsd = [float(metrics.lsd(talk[0, 0], model(low, cutoff)[0, 0], 16_000)) for model in (new, moved)]
    assert lsd[1] < 0.95 * lsd[0]


def test_another_trunk_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"init=x: its generator has channels=\(12, 16, 24\), this recipe \(12, 16, 32\)"):
        tiny(channels=(12, 16, 32)).warm_start(tiny(), "init=x")
    with pytest.raises(ModelError, match="is no SEANet"):
        tiny().warm_start(torch.nn.Linear(1, 1), "init=x")


def test_a_generator_need_not_be_told_the_cutoff() -> None:
    model, x = tiny(conditioning=0), speechlike(9600)
    with torch.inference_mode():
        inside = [model.missing_band(x, model.tell(torch.tensor([hz]))) for hz in (4000.0, 9000.0)]
    assert torch.equal(*inside)
    assert model(x, torch.tensor([4000.0])).shape == x.shape


def test_an_offset_of_the_texture_is_no_whistle() -> None:
    """A constant in a sub-band is a tone at its edge, an alternating one a tone at its other edge."""
    model, x = layers.fold_weight_norm(tiny()), speechlike(SR)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        model.texture_mix.fill_(0.3)
        model.head.bias[:24] = 2.0
        model.head.bias[24:48] = -1.0
        y = model.missing_band(x[..., : SR // 384 * 384], model.tell(torch.tensor([4000.0])))[0, 0]
    level = 10 * dsp.power_spectrogram(y, 2048, 512).mean(-1).log10()
    hz = torch.linspace(0, SR / 2, 1025)
    for edge in range(5000, 24_000, 1000):
        line = level[(hz - edge).abs() < 40].max() - level[((hz - edge).abs() > 100) & ((hz - edge).abs() < 400)].median()
        assert line < 3, edge


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
def test_a_warm_start_copies_and_keeps_the_memory_format() -> None:
    source, target = layers.fold_weight_norm(tiny()), tiny()
    strides = [p.stride() for p in target.parameters()]
    target.warm_start(source, "init=x")
    assert [p.stride() for p in target.parameters()] == strides
    own = {p.data_ptr() for p in target.parameters()}
    assert not own & {p.data_ptr() for p in source.parameters()}
    elsewhere = generators.SEANet(generators.SIZES["tiny"]).to("meta")
    elsewhere.warm_start(source, "init=x")  # a copy between devices
    assert all(p.device.type == "meta" for p in elsewhere.parameters())


def sloping(db_per_octave: float, cutoff: float | None = None) -> torch.Tensor:
    """Noise at -20 dBFS whose spectrum falls evenly, whole or without what is above the cut-off."""
    torch.manual_seed(2)
    spectrum = torch.fft.rfft(torch.randn(1, 1, 2 * SR, dtype=torch.float64))
    octaves = (torch.arange(spectrum.shape[-1]) / 2000).clamp(min=0.8).log2()
    x = torch.fft.irfft(spectrum * 10 ** (db_per_octave * octaves / 20))
    x = (x * 0.1 / x.square().mean().sqrt()).float()
    return x if cutoff is None else dsp.band_limit(x, SR, cutoff, width_hz=100)


@pytest.mark.parametrize("db_per_octave", [0.0, -9.0, -15.0])
@pytest.mark.parametrize("cutoff", [2000.0, 4000.0, 11_300.0])
def test_the_trend_is_where_the_slope_leads(db_per_octave: float, cutoff: float) -> None:
    model = tiny(trend=True)
    assert model.trend is not None
    narrow, whole = (model.pqmf.analysis(sloping(db_per_octave, hz)) for hz in (cutoff, None))
    line, stays = (guess[0, :, 200:-200].mean(-1) for guess in model.trend(narrow, torch.tensor([cutoff])))
    level = whole[0, :, 200:-200].square().mean(-1).sqrt().log()
    above = slice(int(cutoff / 1000) + 1, 21)
    # The mean of a logarithm of noise is 2.5 dB below the logarithm of the mean.
    assert (8.686 * (level - line)[above] - 2.5).abs().max() < 2.5
    known = slice(3, int((cutoff - 200) / 1000))  # below, a band has a slope within itself
    assert torch.allclose(8.686 * (level - stays)[known], torch.tensor(2.5), atol=1.0)
    centre = int(cutoff / 1000) + 0.5
    edge = 8.686 * float(level[int(centre)]) - db_per_octave * math.log2(centre * 1000 / (0.85 * cutoff))
    assert torch.allclose(stays[above], stays[above][0])
    assert edge - 8.686 * float(stays[above][0]) == pytest.approx(2.5, abs=1.5)


def test_a_head_that_believes_the_trend_carries_the_slope_on() -> None:
    model = tiny(trend=True)
    bands = model.config.bands
    with torch.no_grad():
        model.head.bias[bands : 2 * bands] = 0.0
        model.head.bias[-2 * bands : -bands] = 1.0
    levels = []
    for slope in (-6.0, -15.0):
        with torch.inference_mode():
            y = model(sloping(slope, 4000.0), torch.tensor([4000.0]))
        power = torch.fft.rfft(y[0, 0] * torch.hann_window(y.shape[-1])).abs().square()
        levels.append([10 * float(power[2 * hz : 2 * hz + 1000].mean().log10()) for hz in (5000, 10_000, 20_000)])
    for slope, (low, middle, high) in zip((-6.0, -15.0), levels, strict=True):
        assert middle - low == pytest.approx(slope, abs=3)
        assert high - middle == pytest.approx(slope, abs=3)


@pytest.mark.parametrize("bands", [2, 24])
@pytest.mark.parametrize("cutoff", [-50.0, 0.0, 300.0, 1000.0, 23_999.0, 30_000.0])
def test_a_trend_is_finite_at_any_cutoff(bands: int, cutoff: float) -> None:
    model, x = tiny(trend=True, bands=bands), speechlike(10_000)
    with torch.inference_mode():
        assert torch.isfinite(model(x, torch.tensor([cutoff]))).all()
        assert torch.isfinite(model(torch.zeros_like(x), torch.tensor([cutoff]))).all()


def test_a_trend_begins_where_the_network_was() -> None:
    source, x, cutoff = tiny(), speechlike(20_000), torch.tensor([4000.0])
    torch.manual_seed(9)
    target = generators.SEANet(dataclasses.replace(source.config, trend=True)).eval()
    target.warm_start(source, "init=x")
    with torch.inference_mode():
        was, now = (model(x, cutoff) - x for model in (source, target))
    assert (now - was).square().mean() < 1e-3 * was.square().mean()


def causal(**changes: object) -> generators.SEANet:
    torch.manual_seed(0)
    model = generators.SEANet(dataclasses.replace(generators.SIZES["tiny"], causal=True, **changes)).eval()
    with torch.no_grad():
        model.head.bias.zero_()
    return model


def test_a_causal_generator_looks_no_further_ahead_than_its_latency() -> None:
    model, x = causal(), speechlike(2 * SR)
    cutoff = torch.tensor([5000.0])
    with torch.no_grad():
        y = model(x, cutoff)
        for first in (30_000, 30_123, 30_383, 30_384, 40_001):
            changed = x.clone()
            changed[..., first:] += 0.1
            different = (model(changed, cutoff) != y).nonzero()[0, -1].item()
            assert first - model.latency <= different <= first
    assert model.latency == model.delay + model.hop - 1 == 551


def test_a_causal_receptive_field_covers_what_the_output_depends_on() -> None:
    model = causal()
    reach = model.receptive_field
    x = (0.1 * torch.randn(1, 1, -(-2 * reach // model.hop + 4) * model.hop)).requires_grad_()
    centre = x.shape[-1] - model.hop
    model(x, torch.tensor([4000.0]))[0, 0, centre].backward()
    touched = x.grad[0, 0].nonzero()[:, 0]  # type: ignore[index]
    assert centre - reach <= touched.min()
    assert touched.max() <= centre + model.latency


@pytest.mark.parametrize("cutoff", [1500.0, 4000.0, 7581.0, 16_000.0])
def test_the_causal_splice_keeps_the_known_band(cutoff: float) -> None:
    """What is added to the input below the cut-off is at least 60 dB down, for the loudest generated band."""
    model = causal()
    x = dsp.band_limit(torch.randn(1, 1, SR), SR, cutoff)
    with torch.no_grad():
        difference = model(x, torch.tensor([cutoff])) - x
    below = dsp.band_limit(difference * torch.hann_window(SR), SR, cutoff - 300)
    assert 10 * torch.log10(below.square().sum() / x.square().sum()) < -60


def test_a_causal_generator_is_silent_where_the_input_is() -> None:
    model, x = causal(), speechlike(SR)
    x[..., SR // 2 :] = 0
    with torch.no_grad():
        y = model(x, torch.tensor([5000.0]))
    assert y[..., SR * 3 // 4 :].abs().max() < 1e-5


def test_weights_pass_between_causal_and_centred_generators() -> None:
    model = causal()
    with torch.no_grad():
        model.head.parametrizations.weight.original0[:5] = 0  # type: ignore[union-attr]
    centred = tiny()
    centred.warm_start(layers.fold_weight_norm(model), "init=x")
    assert torch.allclose(centred.head.weight, model.head.weight)
    assert torch.isfinite(centred.head.weight).all()
