"""The narrower decoder: published size, the same function where nothing or only zeros are cut, folders, refusals."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from hybridlib.training import decoders

SD15 = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
MINI = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "sample_size": 16,
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def mini_vae():
    torch.manual_seed(0)
    vae = AutoencoderKL(**MINI).eval()
    for parameter in vae.parameters():  # norms of all ones would hide a channel put in another's place
        torch.nn.init.normal_(parameter, std=0.3)
    return vae


def test_published_sizes():
    """83.65 M for SD1.5's and 62.01 M for the small one, as its card says: 62.013 M where the card has 62.014."""
    with torch.device("meta"):
        vae = AutoencoderKL(**SD15)
        assert parameters(vae) == pytest.approx(83.65e6, abs=5e3)
        assert decoders.widths_of(vae) == SD15["block_out_channels"]
        assert decoders.kept_widths(vae, 0.75) == decoders.PUBLISHED
        vae.decoder = decoders.build_decoder(vae, decoders.PUBLISHED)
    assert parameters(vae) == pytest.approx(62.01e6, abs=5e3)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("attention", [True, False])
def test_all_channels_kept_are_the_same_function(layers, attention):
    torch.manual_seed(0)
    vae = AutoencoderKL(**MINI, layers_per_block=layers, mid_block_add_attention=attention).eval()
    same = decoders.with_decoder_widths(vae, decoders.widths_of(vae))
    assert set(same.state_dict()) == set(vae.state_dict())
    for key, value in vae.state_dict().items():
        assert torch.equal(same.state_dict()[key], value), key


def test_every_layer_is_wired():
    vae = mini_vae()
    layers = {key.rpartition(".")[0] for key in vae.decoder.state_dict()}
    assert set(decoders.wiring(vae.decoder)) == layers


def silent_half(vae):
    """The second half of each group copies the first and is not read. Copies keep the group's mean and variance, so
    nothing changes when they go. Filters of one group are equal but for their sign, so all are equally strong and
    the first half is what stays."""
    groups = vae.config.norm_num_groups
    with torch.no_grad():
        for name, (reads, writes) in decoders.wiring(vae.decoder).items():
            layer = vae.decoder.get_submodule(name)
            if writes is not None:
                half = layer.weight.shape[0] // groups // 2
                for tensor in (layer.weight, layer.bias):
                    parts = tensor.view(groups, 2, half, *tensor.shape[1:])
                    if half == 2 and layer.weight.ndim > 1:
                        parts[:, 0, 1] = -parts[:, 0, 0]
                    parts[:, 1] = parts[:, 0]
            if reads is not None and layer.weight.ndim > 1:
                half = layer.weight.shape[1] // groups // 2
                layer.weight.view(len(layer.weight), groups, 2, half, *layer.weight.shape[2:])[:, :, 1] = 0


def test_channels_that_nobody_reads_can_go():
    """Half of every group copies the other half and is not read: the decoder of half the width is the same function,
    but for the attention's scale, which has none here. 1e-4 covers other orders of float sums."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**MINI | {"mid_block_add_attention": False}).eval()
    silent_half(vae)
    small = decoders.with_decoder_widths(vae, (4, 8, 8))
    latents = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected, got = vae.decode(latents).sample, small.decode(latents).sample
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.std().item())
    for parameter in (small.decoder.conv_norm_out.weight, vae.decoder.conv_in.weight):
        parameter.data.mul_(1.5)  # the control: the comparison sees a changed weight
    with torch.no_grad():
        assert (small.decode(latents).sample - expected).abs().max() > 0.01 * expected.std()


def test_the_strongest_channels_of_each_group_stay():
    vae, kept = mini_vae(), torch.tensor([1, 2, 4, 6, 8, 11, 13, 15])  # two of each four
    with torch.no_grad():
        vae.decoder.up_blocks[0].resnets[0].conv1.weight[kept] *= 10
    small = decoders.with_decoder_widths(vae, (4, 8, 8))
    old, new = (v.decoder.up_blocks[0].resnets[0] for v in (vae, small))
    assert torch.equal(new.norm2.weight, old.norm2.weight[kept])
    assert torch.equal(new.conv1.bias, old.conv1.bias[kept])
    assert decoders.widths_of(small) == (4, 8, 8)
    assert torch.equal(small.encoder.conv_in.weight, vae.encoder.conv_in.weight)


def test_a_folder_loads_as_it_was_saved(tmp_path):
    small = decoders.with_decoder_widths(mini_vae(), (4, 8, 8)).eval()
    decoders.save(small, tmp_path)
    again = decoders.load(tmp_path)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(image).sample, small(image).sample)
    assert decoders.load(tmp_path, torch.bfloat16).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused():
    vae = mini_vae()
    for wrong, words in (
        ((4, 8), "widths must be 3 numbers"),
        ((4, 8, 32), "widths must be 3 numbers between 4 and"),
        ((4, 6, 6), "multiples of the 4 groups"),
        ((4, 8, 12), "must be equal where those of the decoder"),
        ((8, 8, 8), "and differ elsewhere"),
    ):
        with pytest.raises(ValueError, match=words):
            decoders.with_decoder_widths(vae, wrong)
    with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\], got 0"):
        decoders.kept_widths(vae, 0.0)
