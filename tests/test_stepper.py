"""A network hop by hop is the network over the whole signal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bwe import generators, stepper
from bwe.errors import AudioError

SR = 48_000


def network(**changes: Any) -> generators.SEANet:
    torch.manual_seed(3)
    config = {"channels": (12, 16, 24), "blocks": 2, "dilations": (1, 3), "encoder_dilations": (1,), "conditioning": 8}
    net = generators.SEANet(generators.Config(causal=True, **(config | changes)))  # type: ignore[arg-type]
    with torch.no_grad():
        for film in (*net.encoder_film, *net.bottleneck_film, *net.decoder_film):
            torch.nn.init.normal_(film.affine.weight, std=0.3)  # type: ignore[union-attr]
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return generators.fold_weight_norm(net).eval()  # type: ignore[return-value]


def voice(frames: int) -> torch.Tensor:
    t = torch.arange(frames) / SR
    return 0.2 * (torch.sin(700 * t) + torch.sin(2900 * t)) * (torch.sin(20 * t) > 0) + 1e-3 * torch.randn(frames)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"passthrough": False},
        {"excitation": False, "conditioning": 0},
        {"kernels": ((3, 7), (3, 5)), "encoder_dilations": (1, 3)},
        {"sample_rate": 16_000, "bands": 8, "level_frames": 16},
        {"strides": (2, 8), "dilations": (1,), "blocks": 0},
    ],
)
def test_blocks_join_to_the_whole(changes: dict[str, Any]) -> None:
    net = network(**changes)
    hops = [1, 1, 2, 0, 1, 7, 30, 1, 3, 90]
    x, hz = voice(sum(hops) * net.hop), net.sample_rate / 7
    stream = stepper.Stepper(net).stream(hz)
    y = torch.cat([stream.advance(block) for block in x.split([n * net.hop for n in hops])])
    with torch.no_grad():
        whole = net(x[None, None], torch.tensor([hz]))[0, 0]
        net.head.weight.zero_()
        muted = net(x[None, None], torch.tensor([hz]))[0, 0]
    assert torch.allclose(y[net.delay :], whole[: -net.delay], atol=1e-5)
    assert (whole - muted).abs().max() > 0.01, "the network said nothing"


def test_what_is_left_out_as_it_says_nothing_is_not_missed() -> None:
    net = network()
    bands = net.config.bands
    with torch.no_grad():
        net.head.weight[2 * bands :] = 0
        net.head.bias[2 * bands :] = 0
        x = voice(20 * net.hop)
        whole = net(x[None, None], torch.tensor([5000.0]))[0, 0]
    network_of_two = stepper.Stepper(net)
    assert network_of_two.head.weight.shape[1] == 2 * bands
    y = network_of_two.stream(5000.0).advance(x)
    assert torch.allclose(y[net.delay :], whole[: -net.delay], atol=1e-5)


def test_streams_of_one_network_do_not_hear_each_other() -> None:
    net = network()
    network_of_both, x = stepper.Stepper(net), voice(8 * net.hop)
    one, other = network_of_both.stream(3000.0), network_of_both.stream(9000.0)
    together = []
    for block in x.split(net.hop):
        together.append(one.advance(block))
        other.advance(-block)
    alone = stepper.Stepper(net).stream(3000.0)
    assert torch.equal(torch.cat(together), torch.cat([alone.advance(block) for block in x.split(net.hop)]))


def test_what_is_held_does_not_grow() -> None:
    net = network()
    stream = stepper.Stepper(net).stream(4000.0)
    sizes = []
    for hops in (1, 64, 128, 1, 300):
        stream.advance(voice(hops * net.hop))
        assert stream._held is not None
        sizes.append(sum(rows.untyped_storage().nbytes() for rows in stream._held))
    # After a single hop the tables are held as they are, with that hop's rows; after longer blocks nothing but what is needed.
    assert max(sizes[1], sizes[2], sizes[4]) <= sizes[0] == sizes[3] < 64 * 1024


def test_the_weights_are_those_of_the_moment() -> None:
    net = network()
    before, x = stepper.Stepper(net), voice(2 * net.hop)
    first = before.stream(4000.0).advance(x)
    with torch.no_grad():
        net.head.weight.mul_(2)
    assert torch.equal(before.stream(4000.0).advance(x), first)
    assert not torch.equal(stepper.Stepper(net).stream(4000.0).advance(x), first)


def test_half_precision_elsewhere_does_not_reach_a_stream() -> None:
    net = network()
    x, exact = voice(4 * net.hop), stepper.Stepper(net).stream(4000.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = stepper.Stepper(net).stream(4000.0).advance(x)
    assert torch.equal(within, exact.advance(x))


@pytest.mark.parametrize("shape", [(100,), (384 + 1,), (1, 384)])
def test_blocks_are_whole_hops(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=r"blocks of n \* 384"):
        stepper.Stepper(network()).stream(4000.0).advance(torch.zeros(shape))


def test_a_network_of_any_strides_takes_bounded_tables() -> None:
    net = network(strides=(32, 32), sample_rate=16_000, bands=2, level_frames=32)
    walker, x = stepper.Stepper(net), voice(5 * net.hop)
    walker.stream(1000.0).advance(x)
    assert max(len(m) for matrices in walker.level_means._matrices.values() for m in matrices) <= 1024


def test_silence_stays_silent() -> None:
    net = network()
    stream = stepper.Stepper(net).stream(4000.0)
    stream.advance(voice(50 * net.hop))
    quiet = torch.cat([stream.advance(torch.zeros(net.hop)) for _ in range(100)])
    assert np.abs(quiet[-40 * net.hop :].numpy()).max() < 1e-6
