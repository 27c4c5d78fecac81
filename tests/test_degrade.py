"""Degradations: reproducible, independent of the batch, and doing what their parameters say."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from scipy import signal

from bwe import audio, codecs, degrade, dsp
from bwe.errors import AudioError, BweError, ConfigError, OutputError
from bwe.evaluate import evaluate

SR = 48_000
# One setting of each codec; Opus at each of its bandwidths.
CODED = [
    ("mp3", 16_000, 24_000), ("mp3", 44_100, 64_000), ("mp3", 48_000, 40_000), ("opus", 16_000, 8_000),
    ("opus", 48_000, 11_000), ("opus", 48_000, 32_000), ("vorbis", 24_000, 48_000), ("vorbis", 44_100, 64_000),
    ("aac", 16_000, 32_000), ("aac", 44_100, 48_000), ("gsm", 8_000, 13_000), ("amr", 8_000, 4_750), ("amr", 8_000, 12_200),
    ("ulaw", 8_000, 64_000), ("alaw", 8_000, 64_000),
]  # fmt: skip
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Voice = Callable[..., np.ndarray]


def clips(count: int, length: int = 24_000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 1, length)).astype(np.float32)) * 0.05


def drawn(**config: Any) -> degrade.Parameters:
    """Parameters of one clip without gain, equalisation and noise, told exactly."""
    quiet: dict[str, Any] = {"clean_share": 1.0, "gain_db": (0.0, 0.0), "cutoff_jitter": 0.0}
    return degrade.Degradation(degrade.Config(**quiet, **config)).sample(np.random.default_rng(0), 1)[0]


def gain_db(before: torch.Tensor, after: torch.Tensor, sr: int = SR) -> Callable[[float], float]:
    """Gain at a frequency, from the spectra averaged over time (`(..., T)` noise) and five bins."""
    ratios = [signal.welch(s.double().numpy().reshape(-1), sr, nperseg=2048)[1] for s in (after, before)]
    smooth = [np.convolve(r, np.ones(5) / 5, "same") for r in ratios]
    return lambda hz: float(10 * np.log10(smooth[0] / smooth[1] + 1e-20)[round(hz * 2048 / sr)])


EVERYTHING = degrade.Config(
    resamplers=degrade.RESAMPLERS,
    codec_share=0.3,
    codecs=("mp3", "opus", "gsm"),
    shelf_share=0.2,
    bone_share=0.3,
    bone=degrade.Bone(noise_share=1.0),
    clip_share=0.5,
    quantise_share=0.5,
    dropout_share=0.5,
    eq_db=3.0,
)


@pytest.mark.parametrize("config", [degrade.Config(), EVERYTHING], ids=["default", "everything"])
def test_same_seed_same_pairs_for_any_batch_split(config: degrade.Config) -> None:
    x, d = clips(6), degrade.Degradation(config)
    p = d.sample(np.random.default_rng(3), 6)
    assert p == d.sample(np.random.default_rng(3), 6)
    before = x.clone()
    together = d.apply(x, SR, p)
    assert torch.equal(x, before), "apply must not change its input"
    for i in range(6):
        alone = d.apply(x[i : i + 1], SR, p[i : i + 1])
        assert torch.equal(alone.input[0], together.input[i])
        assert torch.equal(alone.target[0], together.target[i])
        assert alone.cutoff_hz[0] == together.cutoff_hz[i]


@pytest.mark.parametrize("kind", [*dsp.FILTER_FAMILIES, *degrade.RESAMPLERS])
def test_input_ends_at_the_cutoff_that_is_reported(kind: str) -> None:
    d = degrade.Degradation()
    p = replace(drawn(), filter=kind, cutoff_hz=6000.0, order=8)
    x = clips(1, SR)
    pair = d.apply(x, SR, [p])
    assert torch.equal(pair.target, x)
    assert float(pair.cutoff_hz) == pytest.approx(6000, rel=0.06)
    spectrum = [dsp.power_spectrogram(s[0, 0], 2048, 512).mean(-1) for s in (pair.input, pair.target)]
    gain = 10 * torch.log10(spectrum[0] / spectrum[1] + 1e-12)
    frequency = torch.linspace(0, SR / 2, 1025)
    assert gain[(frequency > 100) & (frequency < 3000)].abs().max() < 2
    # Linear interpolation leaves images of the low band, 15 to 30 dB down, holding 10 to 20; everything else is gone above.
    highest = {"hold": -6, "linear": -8, "bessel": -8}.get(kind, -25)
    assert gain[(frequency > 9000) & (frequency < 10_500)].max() < highest


@pytest.mark.parametrize("kind", [*dsp.FILTER_FAMILIES, *degrade.RESAMPLERS[:-1]])
def test_reported_cutoff_is_the_edge_as_the_family_defines_it(kind: str) -> None:
    x = clips(1, 8 * SR)
    p = replace(drawn(), filter=kind, cutoff_hz=6000.0, order=8, ripple_db=0.1, attenuation_db=60.0)
    pair = degrade.Degradation().apply(x, SR, [p])
    cutoff, gain = float(pair.cutoff_hz), gain_db(x, pair.input)
    if kind in dsp.FILTER_FAMILIES:  # -3 dB or the ripple in each direction
        assert gain(cutoff) == pytest.approx(-0.2 if kind in ("cheby1", "ellip") else -6.02, abs=0.3)
    else:
        half = max(hz for hz in np.arange(300, 8000, 20.0) if gain(hz) > -6)
        assert half == pytest.approx(cutoff, rel=0.07)


def test_noise_is_in_both_and_sometimes_more_in_the_input() -> None:
    d = degrade.Degradation(
        degrade.Config(clean_share=0.0, noise_share=1.0, input_noise_share=1.0, noise_dbfs=(-60, -60), rumble_share=0.0)
    )
    p = d.sample(np.random.default_rng(0), 1)
    x = torch.zeros(1, 1, SR)
    pair = d.apply(x, SR, p)
    assert 20 * np.log10(float(pair.target.square().mean().sqrt())) == pytest.approx(-60, abs=0.1)
    low = dsp.band_limit(pair.input - pair.target, SR, 1500.0)
    assert float(low.square().mean()) > 0, "the input-only noise is missing"


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_coloured_noise_has_its_level_and_slope(exponent: float) -> None:
    x = degrade.coloured_noise(4 * SR, -40, exponent, seed=1)
    assert 20 * np.log10(np.sqrt(np.mean(x**2))) == pytest.approx(-40, abs=0.01)
    power = np.abs(np.fft.rfft(x)) ** 2
    octaves = [power[int(f * 4) : int(2 * f * 4)].mean() for f in (500, 1000, 2000, 4000, 8000)]
    slope = np.diff(10 * np.log10(octaves)).mean()
    assert slope == pytest.approx(-3.01 * exponent, abs=0.3)


def test_cutoffs_cover_the_range_uniformly() -> None:
    p = degrade.Degradation().sample(np.random.default_rng(0), 2000)
    cutoffs = np.array([q.cutoff_hz for q in p])
    assert cutoffs.min() > 2000
    assert cutoffs.max() < 16_000
    assert np.all(np.abs(np.histogram(cutoffs, 7, (2000, 16_000))[0] - 2000 / 7) < 70)
    assert {q.filter for q in p} == set(dsp.FILTER_FAMILIES) | set(degrade.Config().resamplers)


def test_equalisation_tilts_by_what_it_says() -> None:
    x = clips(1, SR)
    y = degrade.equalise(x, SR, tilt_db=20.0, slope_db=0.0)
    spectrum = [torch.fft.rfft(s[0, 0]).abs() for s in (y, x)]
    gain = 20 * torch.log10(spectrum[0] / spectrum[1])
    frequency = torch.linspace(0, SR / 2, len(gain))
    assert gain[frequency < 900].abs().max() < 0.01
    assert float(gain[frequency > 23_900].mean()) == pytest.approx(20, abs=0.1)
    octave = degrade.equalise(x, SR, tilt_db=0.0, slope_db=-2.0)
    at_8k = 20 * torch.log10(torch.fft.rfft(octave[0, 0]).abs() / spectrum[1])[8000]
    assert float(at_8k) == pytest.approx(-6, abs=0.05)


def test_clean_clips_are_left_as_they_are() -> None:
    d, x = degrade.Degradation(degrade.Config(clean_share=1.0, gain_db=(0.0, 0.0))), clips(4)
    assert torch.equal(d.apply(x, SR, d.sample(np.random.default_rng(0), 4)).target, x)


def test_rumble_is_low() -> None:
    d = degrade.Degradation(degrade.Config(clean_share=0.0, noise_share=0.0, input_noise_share=0.0, rumble_share=1.0))
    pair = d.apply(torch.zeros(1, 1, SR), SR, d.sample(np.random.default_rng(0), 1))
    power = torch.fft.rfft(pair.target[0, 0]).abs().square()
    assert -71 < 10 * np.log10(float(pair.target.square().mean())) < -29
    assert float(power[:200].sum() / power.sum()) > 0.95


def test_default_draws_only_what_it_always_drew() -> None:
    neutral = {f.name: f.default for f in fields(degrade.Parameters) if f.name in ("clip_db", "bits", "body", "codec")}
    for p in degrade.Degradation().sample(np.random.default_rng(0), 200):
        assert {name: getattr(p, name) for name in neutral} == neutral
        assert p.eq[0] == p.dropout[1] == 0
    more = degrade.Degradation(EVERYTHING).sample(np.random.default_rng(0), 200)
    plain = degrade.Degradation(degrade.Config(resamplers=degrade.RESAMPLERS)).sample(np.random.default_rng(0), 200)
    shared = ("order", "gain_db", "tilt_db", "noise", "rumble", "input_noise", "told")
    assert [[getattr(p, name) for name in shared] for p in more] == [[getattr(p, name) for name in shared] for p in plain]


def test_shares_are_what_the_config_says() -> None:
    p = degrade.Degradation(EVERYTHING).sample(np.random.default_rng(1), 2000)
    share = {
        "codec": np.mean([q.filter in degrade.CODEC_SETTINGS for q in p]) / 0.3,
        "shelf": np.mean([q.filter == "shelf" for q in p]) / 0.2,
        "bone": np.mean([q.filter == "bone" for q in p]) / 0.3,
        "clip": np.mean([q.clip_db > 0 for q in p]) / 0.5,
        "quantise": np.mean([q.bits > 0 for q in p]) / 0.5,
        "dropout": np.mean([q.dropout[1] > 0 for q in p]) / 0.5,
        "eq": np.mean([q.eq[0] > 0 for q in p]) / 0.72,  # equalise_share of the clips that are not clean
    }
    assert all(abs(value - 1) < 0.15 for value in share.values()), share
    assert {q.bits for q in p} == {0, 8, 16}
    assert {q.filter for q in p} & set(degrade.CODEC_SETTINGS) == {"mp3", "opus", "gsm"}
    with pytest.raises(ConfigError, match=r"add up to 1\.2"):
        degrade.Config(codec_share=0.6, bone_share=0.6)


def test_curriculum_goes_from_little_that_is_missing_to_the_whole_range() -> None:
    d = degrade.Degradation(degrade.Config(curriculum=1000))

    def lowest(item: int | None) -> float:
        rng = np.random.default_rng(0)
        return min(p.cutoff_hz for _ in range(500) for p in d.sample(rng, 1, item))

    assert lowest(0) == 16_000
    assert lowest(500) == pytest.approx(9_000, abs=200)
    assert lowest(1000) == lowest(None) == pytest.approx(2_000, abs=200)
    rng = np.random.default_rng(0)
    one_by_one = [d.sample(rng, 1, 400 + i)[0] for i in range(4)]
    assert one_by_one == d.sample(np.random.default_rng(0), 4, 400)


def test_hold_leaves_images_where_the_sinc_of_the_hold_says() -> None:
    x = clips(1, 4 * SR)
    y, cutoff = degrade.through_resampler(x, SR, "hold", 6000.0)
    gain = gain_db(x, y)
    for hz in (1000, 3000, 5000):
        assert gain(hz) == pytest.approx(20 * np.log10(np.sinc(hz / 12_000)), abs=0.7)
        assert gain(12_000 - hz) == pytest.approx(20 * np.log10(np.sinc(1 - hz / 12_000)), abs=1.0)
    assert gain(cutoff - 300) > -6 > gain(6300)
    impulse = torch.zeros(1, 1, 9601)
    impulse[..., 4800] = 1.0
    response = degrade.through_resampler(impulse, SR, "hold", 6000.0)[0][0, 0].square()
    centre = float((response * torch.arange(9601)).sum() / response.sum())
    assert centre == pytest.approx(4800, abs=1), "held samples must not come late"


def test_hold_can_be_evaluated_with(voice: Voice, tmp_path: Path) -> None:
    sf.write(tmp_path / "voice.wav", voice(SR, SR)[0], SR)

    class Nothing:
        sample_rate = SR

        def __call__(self, x: torch.Tensor, sr: int, cutoff: float | None = None) -> torch.Tensor:
            return x

    table = evaluate(Nothing(), [tmp_path / "voice.wav"], [4000.0], filters="hold")
    smooth = evaluate(Nothing(), [tmp_path / "voice.wav"], [4000.0], filters="fft")
    assert table.mean("lsd_hf", 4000.0) < smooth.mean("lsd_hf", 4000.0), "images fill the missing band"


@pytest.mark.parametrize(("name", "rate", "bitrate"), CODED)
def test_codec_is_aligned_and_ends_where_it_says(voice: Voice, name: codecs.Codec, rate: int, bitrate: int) -> None:
    if name in ("aac", "amr"):
        pytest.importorskip("av")
    x = torch.from_numpy(voice(2 * SR, SR))
    before = x.clone()
    y = degrade.codec(x, SR, name, bitrate, rate)
    assert torch.equal(x, before)
    assert y.shape == x.shape
    # Above 300 Hz: the high-pass of AMR shifts the phase of the lowest harmonics.
    band = signal.butter(2, (300, 3000), "bandpass", fs=SR, output="sos")
    a, b = (signal.sosfiltfilt(band, s[0].double().numpy()) for s in (x, y))
    correlation = signal.correlate(b, a, mode="full")
    inside = 16_000 if name == "opus" else rate  # for speech, Opus runs at 16 kHz and less
    assert abs(int(np.abs(correlation).argmax()) - (len(a) - 1)) <= SR / min(inside, rate), (
        "the delay of the codec is still there"
    )
    assert correlation.max() == np.abs(correlation).max()

    cutoff = degrade.codec_cutoff(name, bitrate, rate, SR)
    noise = torch.from_numpy(degrade.coloured_noise(2 * SR, -25.0, 1.0, seed=7))
    gain = gain_db(noise, degrade.codec(noise, SR, name, bitrate, rate))
    assert all(gain(hz) > -10 for hz in np.linspace(300, 0.9 * cutoff, 20))
    assert gain(1.06 * cutoff) < -12
    assert gain(min(1.2 * cutoff, 23_500)) < -25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate", "bitrate"),
    [(name, rate, bitrate) for name, rates in degrade.CODEC_SETTINGS.items() for rate in rates for bitrate in rates[rate]],
)
def test_every_codec_setting(voice: Voice, name: codecs.Codec, rate: int, bitrate: int) -> None:
    test_codec_is_aligned_and_ends_where_it_says(voice, name, rate, bitrate)


@pytest.mark.parametrize(("name", "low", "high"), [("gsm", 3400, 4000), ("ulaw", 3400, 4000), ("amr", 3400, 4000)])
def test_telephone_codecs_end_where_the_telephone_does(name: codecs.Codec, low: float, high: float) -> None:
    if name == "amr":
        pytest.importorskip("av")
    rate, bitrates = next(iter(degrade.CODEC_SETTINGS[name].items()))
    assert low < degrade.codec_cutoff(name, bitrates[-1], rate, SR) < high


@pytest.mark.parametrize("seconds", [0.02, 0.4])
def test_codec_takes_short_and_loud_clips(voice: Voice, seconds: float) -> None:
    x = torch.from_numpy(voice(round(seconds * SR), SR, seed=2))[None] * 20
    assert float(x.abs().max()) > 1.5
    y = degrade.codec(x, SR, "ulaw", 64_000)
    low = dsp.band_limit(x, SR, 3500.0)
    assert float((dsp.band_limit(y, SR, 3500.0) - low).square().mean() / low.square().mean()) < 0.01, "clipped"
    assert degrade.codec(x[..., :0], SR, "ulaw", 64_000).shape == (1, 1, 0)


def test_codec_refuses_what_it_does_not_know() -> None:
    with pytest.raises(AudioError, match=r"no codec 'mp4'.*mp3"):
        degrade.codec(clips(1), SR, "mp4", 64_000)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="gsm cannot encode 16000 Hz; resample to one of 8000 Hz"):
        degrade.codec(clips(1), SR, "gsm", 13_000, rate=16_000)
    with pytest.raises(AudioError, match="no codec 'mp4'"):
        codecs.transcode(np.zeros(100, np.float32), 8000, "mp4", 0)  # type: ignore[arg-type]


def test_codec_without_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"bwe\[formats\]"):
        degrade.codec(clips(1), SR, "amr", 12_200)


def test_codec_clips_become_pairs() -> None:
    x = clips(1)
    p = drawn(codec_share=1.0, codecs=("mp3",))
    pair = degrade.Degradation().apply(x, SR, [p])
    assert torch.equal(pair.target, x)
    assert float(pair.cutoff_hz) == pytest.approx(degrade.codec_cutoff("mp3", p.codec[1], p.codec[0], SR))
    assert torch.equal(pair.input[0], degrade.codec(x[0], SR, "mp3", p.codec[1], p.codec[0]))


def test_clipping_is_hard_and_at_its_level(voice: Voice) -> None:
    x = torch.from_numpy(voice(SR, SR))
    y = degrade.hard_clip(x, 6.0)
    level = float(x.abs().max()) * 10 ** (-6 / 20)
    assert float(y.abs().max()) == pytest.approx(level)
    assert torch.equal(y[x.abs() < level], x[x.abs() < level])
    assert 0.05 < float((x.abs() > level).float().mean()) < 0.5
    # A clipped sine: its third harmonic, from the Fourier series of a sine clipped at c = cos(t).
    t = torch.arange(SR) / SR
    spectrum = torch.fft.rfft(degrade.hard_clip(torch.sin(2 * np.pi * 100 * t), 6.0)).abs() / (SR / 2)
    c = 10 ** (-6 / 20)
    a = np.arcsin(c)
    third = abs(4 / np.pi * (np.sin(2 * a) / 4 - np.sin(4 * a) / 8 + c * np.cos(3 * a) / 3))
    assert float(spectrum[300]) == pytest.approx(third, rel=0.01)


def test_a_target_stands_on_the_floor_of_its_file() -> None:
    rng, x = np.random.default_rng(3), 0.02 * torch.randn(4, 1, 24_000)
    way = degrade.Degradation(degrade.Config(file_bits=16, gain_db=(-30.0, -20.0), noise_share=0.0))
    pair = way.apply(x, 48_000, way.sample(rng, 4))
    steps = pair.target * 2**15
    assert torch.equal(steps, steps.round())
    assert steps.any()
    assert not torch.equal(pair.input * 2**15, (pair.input * 2**15).round())


@pytest.mark.parametrize(("level", "added"), [(-80.0, False), (-40.0, True)])
def test_noise_is_added_where_the_known_band_has_it(level: float, added: bool) -> None:
    rng, torch_rng = np.random.default_rng(5), torch.Generator().manual_seed(5)
    x = 10 ** (-60 / 20) * torch.randn(3, 1, 24_000, generator=torch_rng)
    noise = {"noise_share": 1.0, "noise_dbfs": (level, level), "noise_exponent": (0.0, 0.0), "rumble_share": 0.0}
    plain = {"clean_share": 0.0, "equalise_share": 0.0, "gain_db": (0.0, 0.0), "noise_heard": True}
    way = degrade.Degradation(degrade.Config(**noise, **plain))
    target = way.apply(x, 48_000, way.sample(rng, 3)).target
    power = 10 * (target - x).square().mean((1, 2)).log10()
    assert torch.allclose(power, torch.full((3,), level), atol=0.1) if added else torch.equal(target, x)


@pytest.mark.parametrize(("family", "cutoff", "added"), [("butter", 4000, False), ("butter", 7000, True), ("mp3", 4000, True)])
def test_noise_is_added_at_cut_offs_from_a_lowest_up(family: str, cutoff: int, added: bool) -> None:
    x = torch.zeros(1, 1, 24_000)
    way = degrade.Degradation(degrade.Config(noise_share=1.0, rumble_share=0.0, clean_share=0.0, noise_from_hz=6000.0))
    p = way.sample(np.random.default_rng(2), 1)[0]
    # What an MP3 keeps is decided by its rate, here 16 kHz and more.
    target = way.apply(x, 48_000, [replace(p, filter=family, cutoff_hz=cutoff, codec=(44_100, 128))]).target
    assert bool(target.any()) is added


def test_noise_that_only_the_missing_band_shows_is_left_out() -> None:
    x = dsp.band_limit(0.1 * torch.randn(1, 24_000, generator=torch.Generator().manual_seed(6)), 48_000, 6000.0)
    noise = torch.from_numpy(degrade.coloured_noise(24_000, -50.0, 0.0, 7))
    way = degrade.Degradation(degrade.Config(noise_share=1.0, clean_share=0.0, noise_heard=True))
    p = way.sample(np.random.default_rng(1), 1)[0]
    for cutoff, heard in ((4000.0, False), (15_000.0, True)):
        assert degrade._belongs(noise, x[0], 48_000, replace(p, filter="butter", cutoff_hz=cutoff)) is heard


@pytest.mark.parametrize("bits", [8, 16])
def test_quantisation_noise_is_white_and_of_the_level_of_its_step(bits: int) -> None:
    x = clips(1, 4 * SR)
    y = degrade.quantise(x, bits)
    step = 2.0 ** (1 - bits)
    assert float((y / step - torch.round(y / step)).abs().max()) == 0
    power = (y - x).double().square().mean()
    assert 10 * np.log10(float(power)) == pytest.approx(10 * np.log10(step**2 / 12), abs=0.1)
    hz, spectrum = signal.welch((y - x)[0, 0].double().numpy(), SR, nperseg=512)
    level = 10 * np.log10(spectrum[(hz > 500) & (hz < 23_000)])
    assert level.max() - level.min() < 2


@pytest.mark.parametrize("repeat", [False, True])
def test_lost_packets_are_silent_or_the_packet_before(repeat: bool) -> None:
    x = clips(1, 10 * SR)
    y = degrade.drop_packets(x, SR, 0.02, 0.2, repeat, seed=3)
    packets = y.reshape(-1, 960), x.reshape(-1, 960)
    lost = (packets[0] != packets[1]).any(-1)
    assert float(lost.float().mean()) == pytest.approx(0.2, abs=0.05)
    assert not lost[0]
    for n in torch.nonzero(lost).flatten().tolist():
        assert torch.equal(packets[0][n], packets[0][n - 1] if repeat else torch.zeros(960))
    assert torch.equal(packets[0][~lost], packets[1][~lost])


def test_damage_is_in_the_input_only_and_ends_at_the_cutoff(voice: Voice) -> None:
    x = torch.from_numpy(voice(SR, SR))[None]
    damage: dict[str, Any] = {"clip_share": 1.0, "quantise_share": 1.0, "quantise_bits": (8,), "dropout_share": 1.0}
    damaged, intact = (replace(drawn(**kind), filter="fft", cutoff_hz=5000.0) for kind in (damage, {}))
    pair, plain = (degrade.Degradation().apply(x, SR, [p]) for p in (damaged, intact))
    assert torch.equal(pair.target, x)
    assert pair.cutoff_hz == plain.cutoff_hz
    difference = pair.input - plain.input
    assert float(difference.square().mean() / plain.input.square().mean()) > 0.01
    above = difference - dsp.band_limit(difference, SR, 5100.0)
    assert float(above.square().mean() / difference.square().mean()) < 1e-4


@pytest.mark.parametrize("edge", [11_000.0, 16_000.0, 19_400.0])
def test_shelf_is_flat_up_to_its_steep_edge(edge: float) -> None:
    x = clips(1, 4 * SR)
    pair = degrade.Degradation().apply(x, SR, [drawn(shelf_share=1.0, shelves_hz=(edge,))])
    assert float(pair.cutoff_hz) == edge
    assert torch.equal(pair.target, x)
    gain = gain_db(x, pair.input)
    assert all(abs(gain(hz)) < 0.05 for hz in np.linspace(500, edge - 300, 20))
    assert gain(edge + 300) < -40
    below = [hz for hz in np.arange(edge - 300, edge + 300, 23.4) if gain(hz) < -3]
    assert below[0] == pytest.approx(edge, rel=0.01)


@pytest.mark.parametrize(("cutoff", "q"), [(600.0, 1.0), (480.0, 0.8), (720.0, 1.2), (600.0, 2**-0.5)])
def test_bone_lowpass_has_the_gain_of_its_biquad_twice_and_no_delay(cutoff: float, q: float) -> None:
    sr = 16_000
    impulse = torch.zeros(1, sr + 1)
    impulse[0, sr // 2] = 1.0
    y = degrade.bone_lowpass(impulse, sr, cutoff, q)[0]
    assert int(y.argmax()) == sr // 2
    assert float((y - y.flip(0)).abs().max()) < 1e-6, "not symmetric in time: there is a delay or a phase"
    gain = 20 * np.log10(np.abs(np.fft.rfft(y.double().numpy(), sr)))
    assert gain[round(cutoff)] == pytest.approx(40 * np.log10(q), abs=0.05)
    assert gain[10] == pytest.approx(0, abs=0.05)
    # |H|^2 of the analogue prototype, far below half the sample rate; with q = 1 / sqrt(2), -3 dB at 0.8 of the cut-off.
    for ratio in (0.5, 0.8, 1.3):
        analogue = -20 * np.log10((1 - ratio**2) ** 2 + (ratio / q) ** 2)
        assert gain[round(ratio * cutoff)] == pytest.approx(analogue, abs=0.5)


def test_bone_pairs_are_what_was_drawn() -> None:
    sr, x = 16_000, clips(1, 64_000)
    bone = degrade.Bone(deviation_db=0.0, noise_share=0.0, flip_share=1.0)
    d = degrade.Degradation(degrade.Config(bone_share=1.0, bone=bone))
    drawn_bodies = d.sample(np.random.default_rng(0), 500)
    assert {p.filter for p in drawn_bodies} == {"bone"}
    for values in ([p.cutoff_hz / 600 for p in drawn_bodies], [p.body.q for p in drawn_bodies if p.body]):
        assert 0.8 <= min(values) < 0.81 < 1.19 < max(values) <= 1.2
    p = drawn(bone_share=1.0, bone=bone)
    assert p.body is not None
    pair = d.apply(x, sr, [p])
    assert float(pair.cutoff_hz) == pytest.approx(p.cutoff_hz)
    assert torch.equal(pair.target, x)
    assert torch.equal(pair.input[0], -degrade.bone_lowpass(x[0], sr, p.cutoff_hz, p.body.q))
    noisy = replace(bone, flip_share=0.0, noise_share=1.0, noise_dbfs=(-50.0, -50.0))
    with_noise = d.apply(x, sr, [drawn(bone_share=1.0, bone=noisy)])
    noise = with_noise.input + pair.input
    assert 10 * np.log10(float(noise.square().mean())) == pytest.approx(-50, abs=0.1)
    power = torch.fft.rfft(noise[0, 0]).abs().square()
    assert float(power[: 4 * 200].sum() / power.sum()) > 0.9, "noise of a body is low"


def test_bone_follows_a_measured_response_and_varies_around_it() -> None:
    sr, x = 16_000, clips(1, 160_000)
    curve = ((100.0, 6.0), (400.0, 0.0), (1000.0, -10.0), (4000.0, -20.0), (8000.0, -30.0))
    bone = degrade.Bone(response=curve, spread=(1.0, 1.0), deviation_db=0.0, noise_share=0.0, flip_share=0.0)
    exact = degrade.Degradation().apply(x, sr, [drawn(bone_share=1.0, bone=bone)])
    gain = gain_db(x, exact.input, sr)
    for hz, db in curve[1:4]:
        assert gain(hz) == pytest.approx(db, abs=0.5)
    assert gain(2000) == pytest.approx(-15, abs=0.3)
    d = degrade.Degradation(degrade.Config(bone_share=1.0, clean_share=1.0, bone=replace(bone, deviation_db=3.0)))
    quiet = [replace(p, gain_db=0.0) for p in d.sample(np.random.default_rng(0), 40)]
    gains = [gain_db(x[..., :32_000], d.apply(x[..., :32_000], sr, [p]).input, sr)(2000) for p in quiet]
    assert 1.8 < np.std(gains) < 4.2  # between nodes a little less than 3
    assert np.mean(gains) == pytest.approx(-15, abs=1.5)


def test_random_equalisation_is_in_both_and_leaves_the_lows() -> None:
    x = clips(1, 4 * SR)
    p = replace(drawn(eq_db=4.0, equalise_share=1.0), eq=(4.0, 11))
    pair = degrade.Degradation().apply(x, SR, [replace(p, filter="fft", cutoff_hz=12_000.0)])
    gain = gain_db(x, pair.target)
    assert all(abs(gain(hz)) < 0.05 for hz in (200, 500, 900))
    hz, db = degrade.random_curve(4.0, 11, 1000.0)
    for node in (2, 4, 6):
        assert gain(hz[node]) == pytest.approx(db[node], abs=0.4)
    assert float((dsp.band_limit(pair.target - pair.input, SR, 11_500.0)).abs().max()) < 1e-3, "the input has it, too"
    spread = np.std([degrade.random_curve(4.0, seed, 1000.0)[1][1:] for seed in range(200)])
    assert spread == pytest.approx(4.0, rel=0.05)


def test_response_is_estimated_through_delay_inverted_polarity_and_noise_of_the_body() -> None:
    sr, rng = 16_000, np.random.default_rng(0)
    taps = signal.firwin2(65, [0, 400, 1000, 4000, 8000], [1, 1, 0.3, 0.1, 0.05], fs=sr)
    air = [rng.standard_normal(4 * sr) for _ in range(3)]
    lags, signs = (12, -9, 0), (-1, 1, -1)
    body = [
        s * np.roll(np.convolve(a, taps, "same"), lag) + 0.3 * rng.standard_normal(4 * sr)
        for a, lag, s in zip(air, lags, signs, strict=True)
    ]
    found = degrade.estimate_response(body, air, sr)
    assert found.lags == lags
    assert found.polarities == signs
    hz, true = signal.freqz(taps, worN=found.hz, fs=sr)
    assert np.abs(found.gain_db - 20 * np.log10(np.abs(true)))[(hz > 100) & (hz < 1500)].max() < 1.5
    assert float(np.mean((found.gain_db - 20 * np.log10(np.abs(true)))[hz < 4000])) == pytest.approx(0, abs=0.5)
    expected = np.abs(true) ** 2 / (np.abs(true) ** 2 + 0.09)
    assert np.abs(found.coherence - expected).max() < 0.15
    at_4k = min(found.ratio(), key=lambda point: abs(point[0] - 4000))
    assert at_4k[1] == pytest.approx(10 * np.log10(0.1**2 + 0.09), abs=0.5)
    with pytest.raises(AudioError, match="do not pair up"):
        degrade.estimate_response(body[:2], air, sr)
    with pytest.raises(AudioError, match="100 samples is too short"):
        degrade.estimate_response([body[0][:100]], [air[0][:100]], sr)


def test_throat_recordings_give_the_response_that_comes_with_them(shared_data: Path) -> None:
    bodies = sorted((shared_data / "bone" / "train").glob("*_body_002.flac"))
    read = [(audio.read(p)[0][0], audio.read(p.with_name(p.name.replace("body_002", "air_001")))[0][0]) for p in bodies]
    found = degrade.estimate_response([b for b, _ in read], [a for _, a in read], 16_000)
    assert found.polarities.count(-1) > 0.8 * len(found.polarities)
    known = json.loads((shared_data / "bone" / "transfer.json").read_text())["body (unnamed, fits throat)@16000"]
    ratio = found.gain_db - 10 * np.log10(found.coherence)
    for low, high, db in zip(known["bands_hz"][:-1], known["bands_hz"][1:], known["gain_db"], strict=True):
        assert ratio[(found.hz >= low) & (found.hz < high)].mean() == pytest.approx(db, abs=1.5), (low, high)


@pytest.mark.parametrize(
    ("settings", "band_hz"),
    [
        ({"to_hz": 4000.0}, 4300),
        ({"to_hz": 6000.0, "filter": "brickwall"}, 6000),
        ({"to_hz": 4000.0, "filter": "sinc16"}, 4000),
        ({"codec": "mp3:32k"}, 8300),
        ({"codec": "gsm"}, 3700),
    ],
)
def test_degraded_files_keep_everything_but_the_band(
    tmp_path: Path, talk: np.ndarray, settings: dict[str, object], band_hz: float
) -> None:
    audio.write(tmp_path / "in.wav", np.concatenate([talk, 0.5 * talk]), SR, "PCM_24")
    line = degrade.degrade_file(tmp_path / "in.wav", tmp_path / "out.wav", **settings)
    y, info = audio.read(tmp_path / "out.wav")
    assert (y.shape, info.sample_rate, info.subtype) == ((2, talk.shape[1]), SR, "PCM_24")
    assert dsp.detect_cutoff(y, SR) == pytest.approx(band_hz, rel=0.15)
    low = [dsp.band_limit(torch.from_numpy(x), SR, 1000.0).numpy() for x in (talk, y[:1])]
    assert np.corrcoef(*np.concatenate(low))[0, 1] > 0.95
    assert line.startswith(f"{tmp_path / 'in.wav'} → {tmp_path / 'out.wav'}  48 kHz  0:06  ")


def test_simulated_bone_conduction_follows_its_seed(tmp_path: Path) -> None:
    source, outputs = EXAMPLES / "talk_16k.flac", []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        degrade.degrade_file(source, tmp_path / f"{name}.flac", bone="throat", seed=seed)
        outputs.append((tmp_path / f"{name}.flac").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]
    y, x = audio.read(tmp_path / "a.flac")[0], audio.read(source)[0]
    high = [np.square(np.fft.rfft(s[0]))[len(s[0]) // 8 :] for s in (y, x)]
    assert np.abs(high[0]).sum() < 0.2 * np.abs(high[1]).sum()


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({}, ConfigError, "nothing to do"),
        ({"to_hz": 24_000.0}, ConfigError, "must lie between 20 and 8000 Hz"),
        ({"to_hz": 1e-300}, ConfigError, "must lie between 20 and 8000 Hz"),
        ({"to_hz": 4000.0, "filter": "chebby1"}, ConfigError, "did you mean 'cheby1'"),
        ({"to_hz": 4000.0, "order": 0}, ConfigError, "order must be"),
        ({"codec": "mp4:32k"}, ConfigError, "did you mean 'mp3'"),
        ({"codec": "mp3"}, ConfigError, "needs a bit rate"),
        ({"codec": "mp3:lots"}, ConfigError, "'lots' is no bit rate"),
        ({"codec": "mp3:9999k"}, ConfigError, "outside 4k to 512k"),
        ({"codec": f"mp3:{'9' * 400}"}, ConfigError, "outside 4k to 512k"),
        ({"bone": "throat", "seed": -1}, ConfigError, "seed must be 0 or more, not -1"),
        ({"bone": "knee"}, ConfigError, "use one of throat, ear"),
    ],
)
def test_degrade_refuses_in_one_sentence(
    tmp_path: Path, settings: dict[str, object], error: type[BweError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        degrade.degrade_file(EXAMPLES / "talk_16k.flac", tmp_path / "out.wav", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("filter", degrade._FILTERS)
def test_degrade_keeps_the_length(tmp_path: Path, filter: str) -> None:
    x = 0.1 * np.random.default_rng(0).standard_normal((2, 4_807)).astype(np.float32)
    for frames in (1, 2, 7, 4_807):
        audio.write(tmp_path / "a.wav", x[:, :frames], SR, overwrite=True)
        for to_hz in (300.0, 4_000.0):
            degrade.degrade_file(tmp_path / "a.wav", tmp_path / "b.wav", to_hz, filter=filter, overwrite=True)
            assert audio.read(tmp_path / "b.wav")[0].shape == (2, frames)


def test_what_a_resampler_rounds_off_goes_on_at_the_end() -> None:
    """50 samples at 500 Hz are 4 800, 39 fewer than went in."""
    y = degrade.through_resampler(torch.ones(1, 4_839), SR, "kaiser", 250.0)[0]
    assert y.shape == (1, 4_839)
    assert float(y[0, 4_800:].abs().max()) > 0.1


def test_degrade_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out.wav").write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        degrade.degrade_file(EXAMPLES / "talk_16k.flac", tmp_path / "out.wav", 4000.0)
    assert (tmp_path / "out.wav").read_bytes() == b"precious"
    degrade.degrade_file(EXAMPLES / "talk_16k.flac", tmp_path / "out.wav", 4000.0, overwrite=True)
    assert audio.read(tmp_path / "out.wav")[1].frames == 89_760


def test_wandering_lowers_the_coherence_as_real_bodies_do_and_unvoiced_sounds_get_lost() -> None:
    sr = 16_000
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((1, 20 * sr)).astype(np.float32)) * 0.1
    assert torch.allclose(degrade.wander(x, sr, 0.0, 0.0, 1), x, atol=1e-5)

    def coherence(std_db: float, std_rad: float) -> np.ndarray:
        y = degrade.wander(x, sr, std_db, std_rad, 1)
        found = degrade.estimate_response([y[0].numpy()], [x[0].numpy()], sr)
        return np.array(
            [found.coherence[(found.hz > low) & (found.hz < high)].mean() for low, high in ((100, 500), (1500, 6000))]
        )

    weak, strong = coherence(2.0, 0.3), coherence(6.0, 0.9)
    assert weak[0] > strong[0]
    assert 0.3 < strong[0] < 0.65
    assert strong[1] < 0.6 * strong[0]  # phases above 1 kHz wander twice as far
    t = torch.arange(2 * sr) / sr
    voiced = 0.1 * torch.sin(2 * torch.pi * 200 * t)[None]
    hiss = torch.from_numpy(degrade.coloured_noise(2 * sr, -20.0, -1.0, 0))[None]
    lost = [
        float(10 * torch.log10(degrade.wander(s, sr, 0, 0, 1, 12.0).square().mean() / s.square().mean()))
        for s in (voiced, hiss)
    ]
    assert lost[0] == pytest.approx(0, abs=0.3)
    assert lost[1] == pytest.approx(-12 * 0.98, abs=0.7)


def test_contact_adds_harmonics_and_bodies_get_what_was_drawn() -> None:
    sr = 16_000
    t = torch.arange(sr) / sr
    x = 0.1 * torch.sin(2 * torch.pi * 300 * t)[None, None]
    flat = ((100.0, 0.0), (8000.0, 0.0))
    bone = degrade.Bone(response=flat, deviation_db=0.0, noise_share=0.0, flip_share=0.0, spread=(1.0, 1.0), drive=(0.2, 0.2))
    way = degrade.Degradation(degrade.Config(bone_share=1.0, clean_share=1.0, gain_db=(0.0, 0.0), bone=bone))
    y = way.apply(x, sr, way.sample(np.random.default_rng(0), 1)).input[0, 0]
    level = 2 * torch.fft.rfft(y).abs() / sr
    assert float(level[300]) == pytest.approx(0.1, rel=0.02)
    assert float(level[600]) == pytest.approx(0.2 * 0.1 / np.sqrt(2), rel=0.05)
    mixed = degrade.Degradation(degrade.Config(bone_share=1.0, bone=replace(bone, lowpass_share=0.4)))
    drawn_bodies = mixed.sample(np.random.default_rng(1), 400)
    assert np.mean([p.body is not None and not p.body.response for p in drawn_bodies]) == pytest.approx(0.4, abs=0.08)
