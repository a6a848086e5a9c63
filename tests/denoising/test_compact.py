"""UNets narrower than their configuration: the published parameter counts, and the way to disk and back."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from hybridlib.denoising import compact
from hybridlib.denoising.compact import Widths, load_unet, narrow, save_unet, widths_of
from hybridlib.denoising.published import BK_SDM_TINY, HYBRID_SD_WIDTHS

SMALL = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def parameters(unet):
    return sum(parameter.numel() for parameter in unet.parameters())


def small_unet(seed=0):
    torch.manual_seed(seed)
    return UNet2DConditionModel(**SMALL).eval()


@pytest.mark.parametrize(("embedding", "expected"), [(None, 224_492_676), (256, 224_574_596)])
def test_published_widths_have_the_published_parameters(embedding, expected):
    """Hybrid SD's 224 M UNet and its LCM version, counted from released weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**BK_SDM_TINY, time_cond_proj_dim=embedding)
    assert parameters(unet) == 323_384_964 + (81_920 if embedding else 0)
    narrow(unet, HYBRID_SD_WIDTHS)
    assert parameters(unet) == expected
    assert widths_of(unet) == HYBRID_SD_WIDTHS


@pytest.mark.parametrize("cut", ["nothing", "all"])
def test_a_narrow_unet_comes_back_from_disk(tmp_path, cut):
    unet = small_unet()
    whole = widths_of(unet)
    table = whole if cut == "nothing" else Widths((24, 40, 48, 64, 48, 64, 32, 24), (2, 4, 3, 4), (4, 1, 3, 2))
    narrow(unet, table)
    save_unet(unet, tmp_path)
    again = load_unet(tmp_path)
    assert widths_of(again) == table
    assert json.loads((tmp_path / compact.FILE).read_text())["resnets"] == list(table.resnets)
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = unet(latents, torch.tensor([3, 700]), text).sample
        assert torch.equal(again(latents, torch.tensor([3, 700]), text).sample, expected)
        assert load_unet(tmp_path, torch.float16).dtype == torch.float16
        if cut == "all":  # the control: a narrower network is another function
            assert (small_unet()(latents, torch.tensor([3, 700]), text).sample - expected).abs().max() > 1e-3


def test_heads_are_cut_where_heads_are():
    """Against attention written out: what is left is the sum over the kept heads of each head's output."""
    unet = small_unet()
    attention = compact.transformers(unet)[0].attn1
    x = torch.randn(2, 7, 32)
    size = attention.inner_dim // attention.heads
    total = attention.to_out[0].bias.clone()
    with torch.no_grad():
        for head in (1, 3):
            rows = slice(head * size, (head + 1) * size)
            query, key, value = (x @ layer.weight[rows].T for layer in (attention.to_q, attention.to_k, attention.to_v))
            weights = (query @ key.transpose(1, 2) / size**0.5).softmax(-1)
            total = total + weights @ value @ attention.to_out[0].weight[:, rows].T
        compact.keep_heads(attention, (1, 3))
        torch.testing.assert_close(attention(x), total, rtol=0, atol=1e-5)  # float32 sums over 32 channels


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Widths((32,), (4, 4, 4, 4), (4, 4, 4, 4)), "widths.resnets must have 8 entries"),
        (Widths((32, 64, 64, 64, 64, 64, 32, 40), (4, 4, 4, 4), (4, 4, 4, 4)), "widths.resnets must lie between 1 and"),
        (Widths((32, 64, 64, 64, 64, 64, 32, 20), (4, 4, 4, 4), (4, 4, 4, 4)), "multiple of the 8 groups"),
        (
            Widths((32, 64, 64, 64, 64, 64, 32, 32), (4, 4, 0, 4), (4, 4, 4, 4)),
            "self_attention must lie between 1",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        narrow(small_unet(), table)
