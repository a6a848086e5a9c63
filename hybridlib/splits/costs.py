"""What a split costs: evaluations, multiply-adds and parameters in each place, and bytes between them.

The large denoiser runs in the cloud, the small one at the edge, where prompt and image belong. Multiply-adds are those
of convolutions and linear layers, the convention of the published tables; attention's products are told apart.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from ..denoising.trajectory import Conditioning
from .grids import Division

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from ..codecs import Codec
    from ..denoising.costs import Work
    from ..denoising.denoisers import GuidedDenoiser
    from ..denoising.hybrid_call import HybridPipeline
    from ..study.parameters import Settings
    from ..study.runner import Models

HALF = 2  # bytes of a 16-bit float


class Network(NamedTuple):
    """What one denoiser costs."""

    parameters: int
    work: Work  # of one evaluation
    evaluations: int  # of a step: two under classifier-free guidance, one where the scale is embedded


# --- networks


def network_of(denoiser: GuidedDenoiser, guidance_scale: float, image_size: int | None = None) -> Network:
    """The costs of a loaded denoiser at an image size in pixels, its own by default."""
    from ..denoising.costs import parameters, work

    evaluations = denoiser.nfe(Conditioning("", "", guidance_scale))
    return Network(parameters(denoiser.model), work(denoiser, image_size, image_size), evaluations)


PUBLISHED_NETWORKS = (
    *("SD-v1.4", "BK-SDM-Tiny", "Hybrid SD 224M"),
    *("SD-v1.4 LCM", "Hybrid SD 224M LCM", "SDXL-base"),
)


@functools.cache
def published_network(name: str) -> Network:
    """One of `PUBLISHED_NETWORKS` under guidance, counted from its configuration. No weights are needed.

    Latents are 64 x 64 (512 pixels), SDXL's 128 x 128 (1024 pixels).
    """
    import torch
    from diffusers import UNet2DConditionModel

    from ..denoising.compact import narrow
    from ..denoising.published import BK_SDM_TINY, HYBRID_SD_WIDTHS, SD14, SDXL_BASE

    pruned = name.startswith("Hybrid SD")
    config = {"SD-v1.4": SD14, "SDXL-base": SDXL_BASE}.get(name.removesuffix(" LCM"), BK_SDM_TINY)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config, time_cond_proj_dim=256 if name.endswith("LCM") else None)
        if pruned:
            narrow(unet, HYBRID_SD_WIDTHS)
    return _counted(unet)


def _counted(unet: UNet2DConditionModel) -> Network:
    import torch

    from ..denoising.costs import parameters, work_of

    config = unet.config
    with torch.device("meta"):
        arguments: dict[str, Any] = {
            "sample": torch.empty(1, config.in_channels, config.sample_size, config.sample_size),
            "timestep": torch.empty(()),
            "encoder_hidden_states": torch.empty(1, 77, config.cross_attention_dim),
        }
        if config.addition_embed_type:
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
            arguments["added_cond_kwargs"] = added
        if config.time_cond_proj_dim:
            arguments["timestep_cond"] = torch.empty(1, config.time_cond_proj_dim)
    return Network(parameters(unet), work_of(unet, arguments), 1 if config.time_cond_proj_dim else 2)


def network_table(networks: Mapping[str, Network]) -> pd.DataFrame:
    """Parameters in millions and multiply-adds of one evaluation in billions, one row a network."""
    rows = {
        name: (n.parameters / 1e6, n.work.macs / 1e9, n.work.attention_macs / 1e9, n.evaluations)
        for name, n in networks.items()
    }
    columns = ["parameters (M)", "GMACs", "GMACs of attention", "evaluations a step"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def cost_table(chosen: Sequence[Division], large: Network, small: Network) -> pd.DataFrame:
    """One image by each division.

    Returns:
        One row per division: method, split, cloud_nfe, edge_nfe, cloud_macs, edge_macs, macs (both), share (of the
        large denoiser alone over the whole schedule), cloud_parameters, edge_parameters (0 where nothing runs there).
    """
    rows = []
    for division in chosen:
        nfe = {"cloud": division.large_evaluated * large.evaluations, "edge": division.small_steps * small.evaluations}
        macs = {"cloud": nfe["cloud"] * large.work.macs, "edge": nfe["edge"] * small.work.macs}
        alone = (division.large_steps + division.small_steps) * large.evaluations * large.work.macs
        rows.append(
            {"method": division.method, "split": division.label}
            | {f"{place}_nfe": number for place, number in nfe.items()}
            | {f"{place}_macs": number for place, number in macs.items()}
            | {"macs": sum(macs.values()), "share": sum(macs.values()) / alone}
            | {"cloud_parameters": large.parameters if nfe["cloud"] else 0}
            | {"edge_parameters": small.parameters if nfe["edge"] else 0}
        )
    return pd.DataFrame(rows)


def check_budgets(table: pd.DataFrame, budgets: Sequence[float], compute: str = "share") -> None:
    """Raise ValueError where a budget is below the cheapest division; `compute` is a column of `cost_table`."""
    least = table[compute].min()
    if small := [budget for budget in budgets if budget < least]:
        raise ValueError(f"budget must be at least {least:g} ({compute} of the cheapest), got {small[0]:g}")


# --- bytes


def text_bytes(denoiser: GuidedDenoiser, conditions: int = 2) -> int:
    """Bytes of the embeddings of a prompt, and of the negative one, as 16-bit floats."""
    example = denoiser.example(denoiser.default_size, denoiser.default_size)
    told = example | example.get("added_cond_kwargs", {})
    names = ("encoder_hidden_states", "text_embeds", "pooled_projections")
    return HALF * conditions * sum(told[name].numel() for name in names if name in told)


def payloads(
    pipeline: HybridPipeline,
    chosen: Sequence[Division],
    prompts: Sequence[str],
    seed: int,
    codecs: Sequence[Codec],
    settings: Settings,
    models: Models,
    guidance_scale: float = 7.0,
) -> pd.DataFrame:
    """Bytes of the latents at each division's last handoff, coded as messages where a codec is given.

    Latents and what the solver remembers count as 16-bit floats; a codec codes the latents alone, so whoever uses it
    lets the solver begin anew (handoff "reset").

    Returns:
        One row per division with a handoff and option: method, split, step, option, bytes (mean over prompts).
    """
    from ..denoising.sampler import sample

    handed = [division for division in chosen if division.handoffs]
    paths = {d: [d.trajectory(prompt, seed, guidance_scale) for prompt in prompts] for d in handed}
    steps = {d: paths[d][0].segments[-1].start for d in handed}
    rows: list[tuple[str, str, int, str, float]] = []
    if not handed:
        return pd.DataFrame(rows, columns=["method", "split", "step", "option", "bytes"])
    everything = [path for d in handed for path in paths[d]]
    kept = sorted(set(steps.values()))
    samples = sample(pipeline, everything, keep=kept, progress=False, **models._asdict(), **settings.sampling())
    for number, division in enumerate(handed):
        step = steps[division]
        states = [samples.state(number * len(prompts) + i, step) for i in range(len(prompts))]
        raw = HALF * states[0].latents.numel()
        memory = HALF * sum(tensor.numel() for tensor in states[0].history.values() if tensor.ndim)
        options = {"latents": float(raw), **({"latents and history": float(raw + memory)} if memory else {})}
        for codec in codecs:
            messages = [codec.encode(state.latents.float(), [seed])[0] for state in states]
            options[codec.specification] = sum(map(len, messages)) / len(messages)
        rows += [(division.method, division.label, step, option, size) for option, size in options.items()]
    return pd.DataFrame(rows, columns=["method", "split", "step", "option", "bytes"])
