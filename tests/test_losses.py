"""Losses on values worked out by hand, and the balancer on gradients known in advance."""

import numpy as np
import pytest
import torch

from bwe import dsp, losses

SR = 48_000


def maps(*scores: float, features: float = 1.0) -> losses.Features:
    return [[torch.full((1, 2, 1, 4), features), torch.full((1, 1, 1, 3), s)] for s in scores]


def test_hinge_and_least_squares_by_hand() -> None:
    assert float(losses.generator_adversarial(maps(0.5, -1.5), "hinge")) == pytest.approx(0.5)
    assert float(losses.generator_adversarial(maps(0.5, -1.0), "ls")) == pytest.approx((0.25 + 4) / 2)
    # max(0, 1 - 0.5) + max(0, 1 - 0.2) and max(0, 1 - 3) + max(0, 1 - 2)
    assert float(losses.discriminator_adversarial(maps(0.5, 3.0), maps(-0.2, -2.0), "hinge")) == pytest.approx(1.3 / 2)
    assert float(losses.discriminator_adversarial(maps(0.5), maps(-0.2), "ls")) == pytest.approx(0.25 + 0.04)


def test_feature_matching_of_a_batch_is_the_mean_of_its_items() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0]).view(4, 1, 1, 1)
    real, fake = ([[torch.randn(4, 2, 1, 8) * scale, torch.zeros(4, 1, 1, 1)]] for _ in range(2))
    alone = [losses.feature_matching([[m[i : i + 1] for m in real[0]]], [[m[i : i + 1] for m in fake[0]]]) for i in range(4)]
    assert float(losses.feature_matching(real, fake)) == pytest.approx(float(torch.stack(alone).mean()))


def test_feature_matching_is_normalised_by_the_reference() -> None:
    real, fake = maps(0.0, features=2.0), maps(0.0, features=3.0)
    assert float(losses.feature_matching(real, real)) == 0
    assert float(losses.feature_matching(real, fake)) == pytest.approx(0.5)
    ten_fold = maps(0.0, features=30.0)
    assert losses.feature_matching(real, ten_fold) > losses.feature_matching(real, fake)


@pytest.mark.parametrize(
    "loss",
    [losses.MultiResolutionSTFT((512, 2048)), losses.LogMel(SR, ((2048, 64), (512, 20))), losses.BandEnergy(SR)],
)
def test_spectral_losses_are_zero_at_home_and_see_the_noise_floor(loss: torch.nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 12_000) * 0.1
    assert float(loss(x, x)) < 2e-3
    quiet = torch.randn(2, 1, 12_000) * 1e-4
    missing = dsp.band_limit(quiet, SR, 4000.0)
    assert loss(missing, quiet) > 0.5, "a missing floor at -80 dBFS must cost"


def test_stft_and_mel_measure_a_gain_in_nepers() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 24_000) * 0.1
    expected = np.log(2)
    assert float(losses.MultiResolutionSTFT((1024,))(2 * x, x)) == pytest.approx(expected, rel=1e-3)
    assert float(losses.LogMel(SR, ((1024, 40),))(2 * x, x)) == pytest.approx(expected, rel=1e-3)
    assert float(losses.BandEnergy(SR)(2 * x, x)) == pytest.approx(2 * np.log10(2), rel=1e-3)


def two_losses(scale: float) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Two opposed losses on the output of a one-parameter layer, the second `scale` times as steep."""
    last = torch.ones(3, requires_grad=True)
    y = (last * torch.tensor([1.0, 2.0, 3.0])).view(1, 1, 3) * 1.0
    return {"rec": y.sum(), "adv": -scale * y.sum()}, y, last


def weigh(balancer: losses.GradBalancer, scale: float) -> tuple[dict[str, float], dict[str, float], torch.Tensor]:
    values, y, last = two_losses(scale)
    at_output, at_last = losses.output_gradients(values, y, last)
    weights, stats = balancer.weigh(at_last)
    y.backward(torch.stack([at_output[name] * weight for name, weight in weights.items()]).sum(0))
    assert last.grad is not None
    return weights, stats, last.grad


@pytest.mark.parametrize("mode", ["ratio", "shares"])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_balancer_cancels_opposed_losses_of_any_scale(mode: str, scale: float) -> None:
    config = losses.BalancerConfig(mode=mode, shares={"rec": 0.5, "adv": 0.5})  # type: ignore[arg-type]
    weights, stats, gradient = weigh(losses.GradBalancer(config), scale)
    assert gradient.abs().max() < 1e-5
    assert weights["rec"] == 1.0
    assert stats["balance/weight/adv"] == pytest.approx(1 / scale, rel=1e-5)


def test_balancer_shares_limit_and_fixed_weights() -> None:
    shares = {"rec": 0.8, "adv": 0.2}
    _, _, gradient = weigh(losses.GradBalancer(losses.BalancerConfig(mode="ratio", shares=shares)), 2.0)
    assert torch.allclose(gradient, torch.tensor([1.0, 2.0, 3.0]) * (1 - 0.25))
    weights, _, _ = weigh(losses.GradBalancer(losses.BalancerConfig(shares={"rec": 0.5, "adv": 0.5}, limit=50.0)), 1e-9)
    assert weights["adv"] == 50.0
    weights, stats, _ = weigh(losses.GradBalancer(losses.BalancerConfig(mode="fixed", shares=shares)), 2.0)
    assert weights == shares
    assert stats["balance/norm/adv"] == pytest.approx(2 * np.sqrt(14))


def test_shares_average_over_time_and_survive_a_restart() -> None:
    balancer = losses.GradBalancer(losses.BalancerConfig(mode="shares", shares={"rec": 0.5, "adv": 0.5}, decay=0.9))
    for scale in (1.0, 3.0):
        _, stats, _ = weigh(balancer, scale)
    norm = float(np.sqrt(14))
    assert stats["balance/norm/adv"] == pytest.approx(0.9 * norm + 0.1 * 3 * norm, rel=1e-5)
    balancer.weigh({"rec": torch.ones(3), "adv": torch.full((3,), float("nan"))})
    assert balancer.norms["adv"] == pytest.approx(stats["balance/norm/adv"]), "a broken step does not count"
    restarted = losses.GradBalancer(balancer.config)
    restarted.load_state_dict(balancer.state_dict())
    assert restarted.norms == balancer.norms


def test_source_adaptive_loss_asks_for_fine_structure_where_the_pitch_is_held() -> None:
    torch.manual_seed(0)
    sr = 16_000
    # Two noises have one envelope and different fine structure.
    noise, other = 0.1 * torch.randn(2, 1, 1, sr)
    loss = losses.SourceAdaptive(sr, (1024,))
    held, free = torch.ones(1, 101), torch.zeros(1, 101)
    assert float(loss(noise, noise, held)) == 0
    both = [float(loss(other, noise, s)) for s in (held, free)]
    assert both[0] > 1.5 * both[1] > 0
    assert float(loss(other, noise, torch.full((1, 101), 0.5))) == pytest.approx(sum(both) / 2, rel=1e-4)
    half = torch.cat([held[:, :50], free[:, :51]], dim=1)
    changed = torch.cat([other[..., : sr // 2], noise[..., sr // 2 :]], dim=-1)
    assert float(loss(changed, noise, half)) == pytest.approx(both[0] / 2, rel=0.1)


def test_si_sdr_loss_counts_tens_of_decibels_and_no_gain() -> None:
    torch.manual_seed(0)
    x, n = torch.randn(2, 1, 8000), torch.randn(2, 1, 8000)
    loss = losses.SISDR()
    assert float(loss(x + 0.1 * n, x)) == pytest.approx(-2.0, abs=0.02)
    assert float(loss(3 * (x + 0.1 * n), x)) == pytest.approx(float(loss(x + 0.1 * n, x)), abs=1e-4)
