"""Block removal against published sizes, scores against their definition, rules against the published table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from hybridlib.denoising.compact import widths_of
from hybridlib.denoising.published import BK_SDM_TINY, HYBRID_SD_WIDTHS
from hybridlib.training import pruning

SD1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SMALL = {
    "sample_size": 16,
    "block_out_channels": (16, 24, 32, 32),
    "attention_head_dim": 4,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
}


def parameters(unet):
    return sum(parameter.numel() for parameter in unet.parameters())


def small_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL).eval()


@pytest.fixture(scope="module")
def sd1():
    with torch.device("meta"):
        return UNet2DConditionModel(**SD1)


@pytest.mark.parametrize(("size", "expected"), [("base", 579.38e6), ("small", 482.35e6), ("tiny", 323_384_964)])
def test_removed_blocks_leave_the_published_sizes(sd1, size, expected):
    """SD1.4's 859.52 M, and BK-SDM's three sizes, to the digits that are published."""
    assert parameters(sd1) == pytest.approx(859.52e6, abs=5e3)
    assert parameters(pruning.remove_blocks(sd1, size)) == pytest.approx(expected, abs=0 if size == "tiny" else 5e3)


def test_tiny_is_the_published_configuration(sd1):
    with torch.device("meta"):
        published = UNet2DConditionModel(**BK_SDM_TINY)
    shapes = {key: value.shape for key, value in published.state_dict().items()}
    assert shapes == {key: value.shape for key, value in pruning.remove_blocks(sd1, "tiny").state_dict().items()}


@pytest.mark.slow
def test_kept_blocks_keep_their_weights():
    """The first layer on the way down; the first and the last on the way up, one stage further out for tiny."""
    unet = small_unet()
    tiny, base = pruning.remove_blocks(unet, "tiny"), pruning.remove_blocks(unet, "base")
    pairs = [
        (tiny.down_blocks[1].resnets[0], unet.down_blocks[1].resnets[0]),
        (tiny.up_blocks[0].resnets[1], unet.up_blocks[1].resnets[2]),
        (tiny.up_blocks[2].attentions[0], unet.up_blocks[3].attentions[0]),
        (tiny.up_blocks[1].upsamplers[0], unet.up_blocks[2].upsamplers[0]),
        (base.up_blocks[0].resnets[1], unet.up_blocks[0].resnets[2]),
        (base.mid_block, unet.mid_block),
    ]
    for mine, source in pairs:
        for key, value in source.state_dict().items():
            assert torch.equal(mine.state_dict()[key], value)
    latents = torch.randn(1, 4, 16, 16)
    assert tiny(latents, 5, torch.randn(1, 3, 8)).sample.shape == latents.shape


def test_rules_give_the_published_table():
    """The published keep ratios, one by one, on BK-SDM-Tiny."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**BK_SDM_TINY)
    groups = pruning.groups(unet)
    keep = dict(zip([f"resnet_{i}" for i in range(1, 10)], [0.75] * 3 + [0.25] * 5 + [0.75], strict=True))
    widths = [pruning.kept_size(groups[name], ratio) for name, ratio in keep.items()]
    assert widths == list(HYBRID_SD_WIDTHS.resnets)
    heads = [0.25, 0.5, 0.75, 0.75, 0.25, 0.25, 0.5, 0.25, 0.25]
    assert [pruning.kept_size(groups[f"selfattn_{i}"], r) for i, r in enumerate(heads, 1)] == list(
        HYBRID_SD_WIDTHS.self_attention
    )


def test_strongest_channels_and_heads_are_kept_in_order():
    unet = small_unet()
    block = pruning.resnets(unet)[2]
    with torch.no_grad():
        block.conv1.weight.mul_(0.01)
        block.conv1.weight[[20, 3, 11, 7]] *= 1000
    assert pruning.strongest_channels(block, 4) == [3, 7, 11, 20]
    attention = pruning.transformers(unet)[0].attn1
    size = attention.inner_dim // attention.heads
    with torch.no_grad():
        attention.to_out[0].weight[:, :size] = 0.0  # what head 0 says is thrown away
    assert pruning.strongest_heads(attention, 3) == [1, 2, 3]


def final_latents(unet, paired=True):
    """Four images after two steps; unpaired draws new noise at each call, as the published script does."""
    noise = torch.Generator().manual_seed(7)

    def generate():
        if paired:
            noise.manual_seed(7)
        latents = torch.randn(4, 4, 8, 8, generator=noise)
        text = torch.linspace(-1, 1, 4 * 3 * 8).view(4, 3, 8)
        with torch.no_grad():
            for t in (900, 300):
                latents = latents - 0.5 * unet(latents, t, text).sample
        return latents

    return generate


@pytest.mark.slow
def test_scores_are_those_of_the_definition_and_the_unet_is_whole_afterwards():
    unet = pruning.remove_blocks(small_unet(), "tiny")
    weights = {key: value.clone() for key, value in unet.state_dict().items()}
    widths = widths_of(unet)
    scores = pruning.significance(unet, final_latents(unet), keep=0.5)
    assert scores.keys() == pruning.groups(unet).keys()
    assert widths_of(unet) == widths
    assert all(torch.equal(weights[key], value) for key, value in unet.state_dict().items())
    # 4 heads at 0.5 would leave two, so the rules leave them whole: a no-op, whose score is exactly 0
    assert all(score == 0.0 for name, score in scores.items() if "attn" in name)
    for i, width in enumerate(widths.resnets, 1):  # 16 channels would be left with two a group
        assert (scores[f"resnet_{i}"] > 0.0) == (width > 16)
    name = "resnet_3"
    intact = final_latents(unet)().numpy().astype(np.float64)
    with pruning.pruned(pruning.groups(unet)[name], 0.5):
        other = final_latents(unet)().numpy().astype(np.float64)
    by_hand = np.linalg.norm(intact.mean(0) - other.mean(0)) + np.linalg.norm(
        intact.std(0, ddof=1) - other.std(0, ddof=1)
    )
    assert scores[name] == pytest.approx(by_hand, rel=1e-9)


def test_unpaired_noise_is_refused_and_scores_a_no_op_as_published():
    unet = pruning.remove_blocks(small_unet(), "tiny")
    with pytest.raises(ValueError, match="same noise at every call"):
        pruning.significance(unet, final_latents(unet, paired=False))
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(50, 4, 64, 64, generator=generator) for _ in range(2))
    assert pruning.change(one, two) == pytest.approx(43.5, abs=0.6)  # the reference's own draw; expected 25.6 + 18.3
    assert pruning.change(one, one) == 0.0


def test_ranks_become_ratios():
    scores = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.5}
    assert pruning.ratios(scores, 1, 3) == {"d": 0.25, "b": 0.5, "c": 0.5, "a": 0.75}
    with pytest.raises(ValueError, match="ranks must satisfy"):
        pruning.ratios(scores, 3, 2)


def test_prune_takes_names_and_refuses_others(sd1):
    unet = small_unet()
    widths = pruning.prune(unet, {"resnet_3": 0.75, "selfattn_1": 0.75})
    assert widths.resnets[2] == 20  # 24 channels at 0.75 are 18: rounded up to groups of 4
    assert widths.self_attention[0] == 3
    with pytest.raises(ValueError, match="resnet_99"):
        pruning.prune(unet, {"resnet_99": 0.5})
    with pytest.raises(ValueError, match="size must be one of"):
        pruning.remove_blocks(sd1, "nano")
    with pytest.raises(ValueError, match="two layers per block"):
        pruning.remove_blocks(pruning.remove_blocks(small_unet(), "tiny"), "tiny")
