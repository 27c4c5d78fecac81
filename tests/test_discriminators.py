"""Discriminators: what they return, what they can tell apart, and the options of the ensemble."""

import numpy as np
import pytest
import torch

from bwe import discriminators, dsp, losses

SR = 48_000
SMALL = discriminators.Config(
    periods=(2, 5),
    scales=2,
    fft_sizes=(512,),
    band_dilations=(1, 3),
    period_width=4,
    scale_width=4,
    stft_width=4,
    band_width=8,
)


def test_every_member_returns_maps_and_a_score() -> None:
    ensemble = discriminators.Ensemble(SMALL)
    assert ensemble.names == ["mpd_2", "mpd_5", "msd_1", "msd_2", "mrd_512", "mbd_1", "mbd_3"]
    outputs = ensemble(torch.randn(2, 1, 6001) * 0.1)
    assert len(outputs) == 7
    for maps in outputs:
        assert len(maps) >= 5
        assert maps[-1].shape[1] == 1
        assert all(torch.isfinite(m).all() for m in maps)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ({"periods": (3,)}, ["mpd_3"]),
        ({"scales": 1}, ["msd_1"]),
        ({"fft_sizes": (1024,)}, ["mrd_1024"]),
        ({"bands": 24, "band_dilations": (2,)}, ["mbd_2"]),
        ({}, []),
    ],
)
def test_any_combination(kind: dict[str, object], names: list[str]) -> None:
    nothing: dict[str, object] = {"periods": (), "scales": 0, "fft_sizes": (), "bands": 0}
    ensemble = discriminators.Ensemble(discriminators.Config(**{**nothing, **kind}))  # type: ignore[arg-type]
    assert ensemble.names == names
    assert len(ensemble(torch.zeros(1, 1, 4000))) == len(names) == len(ensemble)


def test_subset_is_drawn_from_the_rng_and_computed_alone() -> None:
    ensemble = discriminators.Ensemble(discriminators.Config(**{**SMALL.__dict__, "subset": 2}))
    draws = [ensemble.draw(np.random.default_rng([0, i])) for i in range(40)]
    assert draws[7] == ensemble.draw(np.random.default_rng([0, 7]))
    assert all(len(d) == 2 for d in draws)
    assert {i for d in draws for i in d} == set(range(7))
    x = torch.randn(1, 1, 4800)
    everything = ensemble(x)
    for index, maps in zip(draws[0], ensemble(x, draws[0]), strict=True):
        assert torch.equal(maps[-1], everything[index][-1])


def test_width_is_configurable() -> None:
    narrow, wide = (
        sum(p.numel() for p in discriminators.Ensemble(discriminators.Config(period_width=w)).parameters()) for w in (4, 16)
    )
    assert wide > narrow


def test_period_discriminator_never_mixes_phases() -> None:
    member = discriminators.Period(3, 4)
    x = torch.randn(1, 1, 3000)
    changed = x.clone()
    changed[..., 0::3] += 1
    a, b = member(x)[-1], member(changed)[-1]
    assert not torch.allclose(a[0], b[0])
    assert torch.allclose(a[1:], b[1:])


@pytest.mark.parametrize("index", range(7))
def test_each_member_learns_to_tell_a_missing_band(index: int) -> None:
    torch.manual_seed(0)
    ensemble = discriminators.Ensemble(SMALL)
    optimizer = torch.optim.Adam(ensemble.members[index].parameters(), lr=5e-3, betas=(0.5, 0.9))
    first = last = 0.0
    for _ in range(40):
        real = torch.randn(4, 1, 4800) * 0.1
        fake = dsp.band_limit(torch.randn(4, 1, 4800) * 0.1, SR, 6000.0)
        loss = losses.discriminator_adversarial(ensemble(real, [index]), ensemble(fake, [index]), "hinge")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(loss.detach())
        first = first or last
    assert last < 1.2 < first


def test_fine_discriminators_do_not_see_level_or_colour() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 24_000) * 0.1
    spectrum = torch.fft.rfft(x)
    coloured = torch.fft.irfft(spectrum * torch.linspace(1, 10, spectrum.shape[-1]), 24_000)
    for fine in (False, True):
        member = discriminators.Spectrum(1024, 4, fine=fine)
        plain, louder, brighter = (member(s)[0] for s in (x, 4 * x, coloured))
        scale = plain.abs().mean()
        for other in (louder, brighter):
            change = (other - plain)[:, :, 2:-2].abs().mean() / scale
            assert change < 0.03 if fine else change > 0.15
