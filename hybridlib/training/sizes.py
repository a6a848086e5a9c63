"""What compact models cost, counted from configurations and surgery: nothing of a published model is typed in.

Everything is built on the meta device, whose tensors have shapes and no values: no weights are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..denoising.compact import narrow, widths_of
from ..denoising.costs import parameters, work_of
from ..denoising.published import HYBRID_SD_WIDTHS
from . import decoders
from .pruning import remove_blocks

if TYPE_CHECKING:
    import pandas as pd

SD14 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def published_unets() -> dict[str, UNet2DConditionModel]:
    """Stable Diffusion 1.4 and what BK-SDM and Hybrid SD made of it, on the meta device."""
    with torch.device("meta"):
        large = UNet2DConditionModel(**SD14)
        unets = {"SD-v1.4": large}
        unets |= {f"BK-SDM-{size.capitalize()}": remove_blocks(large, size) for size in ("base", "small", "tiny")}
        pruned = remove_blocks(large, "tiny")
        narrow(pruned, HYBRID_SD_WIDTHS)
        lcm = UNet2DConditionModel.from_config({**pruned.config, "time_cond_proj_dim": 256})
        narrow(lcm, HYBRID_SD_WIDTHS)
    return unets | {"Hybrid SD 224M": pruned, "Hybrid SD 224M, LCM": lcm}


def published_autoencoders() -> dict[str, nn.Module]:
    """SD1.5's autoencoder, and Hybrid SD's small and tiny ones, on the meta device."""
    with torch.device("meta"):
        base, small = AutoencoderKL(**SD15_VAE), AutoencoderKL(**SD15_VAE)
        small.decoder = decoders.build_decoder(base, decoders.PUBLISHED)
        return {"SD1.5 base": base, "SD1.5 small": small, "SD1.5 tiny": AutoencoderTiny()}


def unet_table(unets: dict[str, UNet2DConditionModel], tokens: int = 77) -> pd.DataFrame:
    """Parameters, and GMACs of one evaluation of one image: of convolutions and linear layers, and of attention's
    products, which published tables leave out. `tokens` of text."""
    import pandas as pd

    rows = []
    for name, unet in unets.items():
        config = unet.config
        with torch.device("meta"):
            arguments = {
                "sample": torch.empty(1, config.in_channels, config.sample_size, config.sample_size),
                "timestep": torch.empty(()),
                "encoder_hidden_states": torch.empty(1, tokens, config.cross_attention_dim),
            }
            if config.time_cond_proj_dim:
                arguments["timestep_cond"] = torch.empty(1, config.time_cond_proj_dim)
        work = work_of(unet, arguments)
        gmacs = {"gmacs": work.macs / 1e9, "attention_gmacs": work.attention_macs / 1e9}
        rows.append({"model": name, "parameters": parameters(unet), **gmacs})
    return pd.DataFrame(rows)


def decoder_table(autoencoders: dict[str, Any], image_size: int, dtype: torch.dtype = torch.float16) -> pd.DataFrame:
    """Parameters of autoencoders on the meta device, and what decoding one image takes: GMACs of convolutions and
    linear layers, and the peak of its activations in MiB, beside the weights."""
    import pandas as pd
    from torch.utils.flop_counter import FlopCounterMode

    rows = []
    for name, vae in autoencoders.items():
        side = image_size // 2 ** (len(vae.config.block_out_channels) - 1)
        latents = torch.empty(1, vae.config.latent_channels, side, side, device="meta", dtype=dtype)
        model = nn.Module.to(vae, dtype=dtype).eval()  # diffusers' own method warns of layers that these have not
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.decode(latents)
        counts = counter.get_flop_counts()["Global"]
        macs = sum(flops for operation, flops in counts.items() if "attention" not in str(operation)) / 2
        peak = peak_bytes(lambda model=model, latents=latents: model.decode(latents), model)  # type: ignore[misc]
        row = {"model": name, "parameters": parameters(vae), "decoder_parameters": parameters(vae.decoder)}
        rows.append({**row, "gmacs": macs / 1e9, "peak_mib": peak / 2**20})
    return pd.DataFrame(rows)


def peak_bytes(call: Callable[[], Any], model: nn.Module) -> int:
    """The most bytes of tensors alive at once in a call without gradients, beside the model's own. What an operation
    takes only for itself, such as a convolution's workspace, is not seen."""
    with torch.no_grad(), _Peak(model) as peak:
        call()
    return peak.highest


def kept_shares(large: UNet2DConditionModel, small: UNet2DConditionModel) -> pd.DataFrame:
    """What share of inner channels and of heads pruning left in each block, small's over those of the same network
    before it was pruned: columns kind, block (from 1) and kept."""
    import pandas as pd

    before, after = widths_of(large), widths_of(small)
    kinds = {"residual width": "resnets", "self-attention heads": "self_attention"}
    kinds |= {"cross-attention heads": "cross_attention"}
    rows = []
    for kind, field in kinds.items():
        pairs = zip(*(getattr(widths, field) for widths in (before, after)), strict=True)
        rows += [{"kind": kind, "block": i, "kept": now / whole} for i, (whole, now) in enumerate(pairs, 1)]
    return pd.DataFrame(rows)


class _Peak(TorchDispatchMode):
    """Counts the storages that operations return until nothing refers to them any more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self.live: dict[int, tuple[Any, int]] = {}
        self.highest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                storage = output.untyped_storage()
                if storage._cdata not in self.own:
                    self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: value for key, value in self.live.items() if not value[0].expired()}
        self.highest = max(self.highest, sum(size for _, size in self.live.values()))
        return outputs
