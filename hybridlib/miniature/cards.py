"""The README of each shipped model, written from what training and evaluation recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from .. import figures
from ..files import write_atomically

_ABOUT = {
    "mini-sd3": (
        "A complete Stable Diffusion 3 pipeline in miniature: autoencoder (16 latent channels, 8x downsampling), two "
        "CLIP text encoders with a vocabulary of their own, an SD3 transformer and the flow-matching Euler scheduler "
        "with shift 0.35, which belongs to latents of 8 x 8 as SD3's 3.0 belongs to 128 x 128. There is no T5, and "
        "weights are stored in 16 bits, so stock diffusers loads it by\n\n"
        "```python\n"
        "DiffusionPipeline.from_pretrained(\n"
        '    "data/models/mini-sd3", text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32\n'
        ")\n"
        "```\n\n"
        'and `hybridlib.denoising.models.load("mini-sd3")` does the same.',
        "It draws one or two shapes on six grounds in three lights at 64x64 pixels and knows no other word; a lone "
        "shape stands near the middle, as in its corpus. Prompts are cut at 16 tokens. Quality is that of guidance 4 "
        "unless a line says otherwise. Guidance away from a negative prompt costs it more than it costs SD3: its "
        "captions never lie, so it is certain of every word. Keep guidance near 4 where a negative prompt is used. "
        "Numbers measured on it say how a method behaves on a small model, not on SD3.",
    ),
    "mini-sd": (
        "A complete Stable Diffusion 1.x pipeline in miniature: one CLIP text encoder, a UNet of four levels with a "
        "middle block that predicts the noise, and DPM-Solver++ over a noise schedule that belongs to latents of 8 x "
        "8 (`trained_betas` in the scheduler's configuration: noise to signal 0.35 half way). It has the latents of "
        "mini-sd3: its autoencoder is the same with the shift of the latents moved into two 1x1 convolutions, since "
        "SD1.x knows none, and 16 channels where SD1.x has 4. mini-sd3 was also its teacher, and its text encoder "
        "started from the wider one of mini-sd3. Stock diffusers loads it by\n\n"
        "```python\n"
        'StableDiffusionPipeline.from_pretrained("data/models/mini-sd", dtype=torch.float32)\n'
        "```",
        "It knows the words of mini-sd3 and no other, and was taught scenes of one object near the middle. Prompts are "
        "cut at 16 tokens. Numbers measured on it say how a method behaves on a small model, not on Stable Diffusion.",
    ),
    "mini-sd-small": (
        "A UNet pruned from mini-sd: whole blocks removed as in BK-SDM-Tiny, then inner widths and heads by the "
        "significance scores in `scores.json`, then distilled with the three losses of BK-SDM. Only the UNet is "
        "here; the rest is mini-sd's. `hybridlib.denoising.compact.load_unet` builds it from configuration, table of "
        "widths and weights.",
        "Everything said of mini-sd holds of it.",
    ),
    "mini-lcm": (
        "A UNet distilled from mini-sd by latent consistency, with an embedding of the guidance scale: it draws in 8 "
        "steps at one evaluation each. Only the UNet is here; the rest is mini-sd's.",
        "Everything said of mini-sd holds of it. It learned guidance scales of 2 to 8.",
    ),
    "mini-lcm-small": (
        "The same from mini-sd-small, with mini-sd as its teacher.",
        "Everything said of mini-sd holds of it. It learned guidance scales of 2 to 8.",
    ),
    "mini-tiny-vae": (
        "A tiny autoencoder (`AutoencoderTiny`, the architecture of TAESD) for the latents that mini-sd3 and mini-sd "
        "share, normalised as pipelines denoise them. It was trained by Hybrid SD's recipe at miniature scale: encoder "
        "and decoder in turns with a discriminator. The perceptual distance is not LPIPS but LPIPS's formula on "
        "mini-clip's image tower, which the discriminator reads, too; a pixel loss is added. It takes the place of a "
        "pipeline's autoencoder:\n\n"
        "```python\n"
        'pipeline.vae = AutoencoderTiny.from_pretrained("data/models/mini-tiny-vae", dtype=pipeline.dtype)\n'
        "```",
        "It was trained for minutes, on scenes of this project, and blurs where mini-sd3's decoder does not. Numbers "
        "measured on it say how a method behaves on a small model, not on Stable Diffusion.",
    ),
    "mini-small-vae": (
        "The autoencoder of mini-sd3 with half of its decoder's channels: of each group of the group norms the "
        "strongest stay, then the decoder is finetuned against the original's. Only the decoder is here; the encoder "
        "is mini-sd3's. `hybridlib.miniature.compact_vae.shipped` puts them together.",
        "Its latents are mini-sd3's, with shift and scale; for mini-sd take the tiny one. Numbers measured on it say "
        "how a method behaves on a small model, not on Stable Diffusion.",
    ),
    "mini-clip": (
        "An open_clip model of scenes and captions, trained contrastively and independently of the text encoders of "
        "mini-sd3, whose images it scores.",
        "It knows the scenes and their captions only; its cosine is not comparable with that of OpenAI's CLIP.",
    ),
    "mini-judge": (
        "A small convolutional classifier that reads count, shapes, colours, sizes, arrangement, ground and light "
        "from an image: the yardstick for what mini-sd3 draws.",
        "It always answers with one of the known classes, also for an image that shows none of them.",
    ),
}
_TARGETS = {
    "autoencoder PSNR (dB)": 32.0,
    "one object: colour and shape": 0.90,
    "two objects: colour and shape": 0.75,
    "retrieval top-1 of 100": 0.90,
    "held-out accuracy": 0.98,
}


def write(folder: Path) -> None:
    """Write README.md and loss.png of a model folder."""
    name = folder.name
    runs = json.loads((folder / "training.json").read_text())
    about, limits = _ABOUT[name]
    lines = [f"# {name}", "", about, "", "## Training", ""]
    lines += [
        "Fresh or cached procedural scenes (`hybridlib/miniature/scenes.py`), AdamW, EMA weights, fp16 on disk. "
        f"Retrain from nothing with `hybridlib train {name}`.",
        "",
        "| part | steps | batch | peak learning rate | seed | wall time (2-core CPU, other work beside it) |",
        "|---|---|---|---|---|---|",
    ]
    for part, run in runs.items():
        recipe = run["recipe"]
        lines.append(
            f"| {part} | {recipe['steps']} | {recipe['batch_size']} | {recipe['learning_rate']:g} "
            f"| {recipe['seed']} | {run['seconds'] / 60:.0f} min |"
        )
    _plot_losses(runs, folder / "loss.png")
    lines += ["", "![training loss](loss.png)", ""]
    evaluation = folder / "evaluation.json"
    if evaluation.is_file():
        lines += ["## Quality on held-out scenes", "", "| measure | value | target |", "|---|---|---|"]
        for measure, value in json.loads(evaluation.read_text()).items():
            target = _TARGETS.get(measure)
            lines.append(f"| {measure} | {value:.3f} | {'' if target is None else f'>= {target:g}'} |")
        lines += ["", "Measured by `python -m hybridlib.miniature`.", ""]
    lines += [*_decode_times(folder / "decode_times.json"), "## Limits", "", limits, ""]
    write_atomically(folder / "README.md", "\n".join(lines).encode())


def _decode_times(path: Path) -> list[str]:
    if not path.is_file():
        return []
    times = json.loads(path.read_text())
    return [
        "## Speed",
        "",
        f"Decoding takes {times['own ms']:.2f} ms of processor time an image where mini-sd3's decoder takes "
        f"{times['mini-sd3 ms']:.2f}: {times['times faster']:.1f} times faster, quartiles "
        f"{times['lower quartile']:.1f} and {times['upper quartile']:.1f}. One thread, batches of 8, both in turn in "
        "one run, each in the memory format in which it is faster.",
        "",
    ]


def _plot_losses(runs: dict[str, dict[str, Any]], path: Path) -> None:
    figures.use_house_style()
    figure, axes = plt.subplots(1, len(runs), figsize=(4.2 * len(runs), 2.6), squeeze=False)
    for ax, (part, run) in zip(axes[0], runs.items(), strict=True):
        curves = {term: losses for term, losses in sorted(run.get("terms", {}).items()) if min(losses) > 0}
        terms = curves or {None: run["losses"]}
        for term, losses in terms.items():
            steps = [run["recipe"]["steps"] * (i + 0.5) / len(losses) for i in range(len(losses))]
            ax.plot(steps, losses, label=term)
        if len(terms) > 1:
            ax.legend()
        ax.set(xlabel="step", ylabel="training loss", title=part, yscale="log")
    figure.savefig(path, dpi=110)
    plt.close(figure)
