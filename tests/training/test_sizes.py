"""Published sizes from configurations; the peak of memory by hand on a chain whose tensors can be counted."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from hybridlib.training import decoders, sizes


@pytest.mark.slow
def test_published_networks_have_their_published_sizes():
    """Parameters as Hybrid SD's reference counts them, to the last one; GMACs to the digit that is given."""
    unets = sizes.published_unets()
    table = sizes.unet_table(unets).set_index("model")
    exact = {"BK-SDM-Tiny": 323_384_964, "Hybrid SD 224M": 224_492_676, "Hybrid SD 224M, LCM": 224_574_596}
    assert {name: table.parameters[name] for name in exact} == exact
    for name, gmacs, attention in (
        ("SD-v1.4", 338.6, 63),
        ("BK-SDM-Base", 223.7, None),
        ("BK-SDM-Small", 217.6, None),
        ("BK-SDM-Tiny", 205.0, 38),
        ("Hybrid SD 224M", 151.3, 36),
    ):
        assert table.gmacs[name] == pytest.approx(gmacs, abs=0.06)
        assert attention is None or table.attention_gmacs[name] == pytest.approx(attention, abs=1)
    shares = sizes.kept_shares(unets["BK-SDM-Tiny"], unets["Hybrid SD 224M"])
    assert shares[shares.kind == "residual width"].kept.round(2).tolist()[:3] == [0.8, 0.75, 0.75]
    assert shares[shares.kind == "cross-attention heads"].kept.tolist() == [1.0] * 9


def test_published_autoencoders():
    table = sizes.decoder_table(sizes.published_autoencoders(), image_size=64).set_index("model")
    assert table.parameters.tolist() == pytest.approx([83.65e6, 62.01e6, 2.45e6], abs=6e3)
    assert table.peak_mib.is_monotonic_decreasing
    assert table.gmacs.is_monotonic_decreasing


def test_peak_is_the_most_that_is_alive_at_once():
    """Of a chain that keeps nothing: input and output of the widest layer; a residual keeps its input in addition."""
    chain = nn.Sequential(nn.Linear(10, 1000), nn.Linear(1000, 500), nn.Linear(500, 10))
    x = torch.randn(2, 10)
    assert sizes.peak_bytes(lambda: chain(x), chain) == 4 * 2 * (1000 + 500)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(10, 1000), nn.Linear(1000, 1000)

        def forward(self, x):
            kept = self.first(x)
            return kept + self.second(kept)

    assert sizes.peak_bytes(lambda: Residual()(x), nn.Module()) > 4 * 2 * 3 * 1000
    model = Residual()
    assert sizes.peak_bytes(lambda: model(x), model) == 4 * 2 * 3 * 1000


def test_peaks_of_the_meta_device_are_those_of_the_cpu():
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    latents = torch.randn(1, 4, 4, 4)
    real = sizes.peak_bytes(lambda: tiny.decode(latents), tiny)
    expected = sizes.decoder_table({"tiny": tiny.to("meta")}, image_size=32, dtype=torch.float32)
    assert expected.peak_mib.item() == pytest.approx(real / 2**20, rel=0.02)
    assert decoders.PUBLISHED == (96, 192, 384, 384)
