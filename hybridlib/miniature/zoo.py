"""Train, ship and measure the miniature models, and write their cards."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderTiny, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from ..denoising.compact import save_unet
from ..denoising.models import BASE, INDEX, load
from ..files import write_atomically
from ..noise import initial_noise
from ..paths import MODELS, OUTPUTS
from ..training import decoders
from ..training.loop import History, Recipe
from . import clip, compact_vae, diffusion, sd, students, vae
from .judge import Judge, Reading, accuracy, arrangement_correct, objects_correct
from .judge import train as train_judge
from .scenes import COLOURS, SHAPES, SIZES, Scenes, captions, contradict, sample_scenes

RUNS = OUTPUTS / "training"
COMPACT_VAES = ("mini-tiny-vae", "mini-small-vae")
SD_FAMILY = ("mini-sd", "mini-sd-small", "mini-lcm", "mini-lcm-small")
AGAINST = "guidance 8 against a negative prompt"


def train_mini_sd3() -> Path:
    """Train autoencoder, text encoders and transformer, and ship them as one `StableDiffusion3Pipeline` folder."""
    autoencoder, runs = vae.train(RUNS)
    pipeline, history = diffusion.train(RUNS, autoencoder)
    folder = MODELS / "mini-sd3"
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    _write_training(folder, runs | {"transformer": (diffusion.RECIPE, history)})
    return folder


def train_mini_sd() -> Path:
    """Train text encoder and UNet on the latents of mini-sd3, and ship a `StableDiffusionPipeline` folder."""
    pipeline, runs = sd.train(RUNS / "mini-sd")
    folder = MODELS / "mini-sd"
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    _write_training(folder, runs)
    return folder


def train_mini_sd_small() -> Path:
    """Prune and distil mini-sd, and ship the UNet with its scores."""
    folder = _ship_unet("mini-sd-small", students.train_small(RUNS / "mini-sd"))
    write_atomically(folder / "scores.json", (RUNS / "mini-sd" / "scores.json").read_bytes())
    return folder


def train_mini_lcm() -> Path:
    """Distil mini-sd to few steps, and ship the UNet."""
    return _ship_unet("mini-lcm", students.train_lcm(RUNS / "mini-sd"), students.lcm_scheduler())


def train_mini_lcm_small() -> Path:
    """The same from mini-sd-small."""
    return _ship_unet("mini-lcm-small", students.train_lcm(RUNS / "mini-sd", small=True), students.lcm_scheduler())


def _ship_unet(name: str, made: students.Made, scheduler: LCMScheduler | None = None) -> Path:
    """A folder with a UNet, and a scheduler if it needs its own: everything else is mini-sd's."""
    folder = MODELS / name
    save_unet(made.unet.half(), folder / "unet")
    index = {"_class_name": "StableDiffusionPipeline", BASE: "mini-sd"}
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")
        index["_class_name"] = "LatentConsistencyModelPipeline"
    write_atomically(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    _write_training(folder, {"unet": (made.recipe, made.history)})
    return folder


def train_mini_tiny_vae() -> Path:
    """Train and ship the tiny autoencoder, and time it."""
    made = compact_vae.train_tiny(RUNS)
    return _ship_vae("mini-tiny-vae", made, functools.partial(_save_tiny, made.vae))


def _save_tiny(vae: AutoencoderTiny, folder: Path) -> None:
    """As diffusers saves it, without the derived entry of its configuration that diffusers warns of when loading."""
    vae.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    del config["block_out_channels"]
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def train_mini_small_vae() -> Path:
    """Prune and finetune the decoder of mini-sd3's autoencoder, ship and time it."""
    made = compact_vae.train_small(RUNS)
    return _ship_vae("mini-small-vae", made, lambda folder: decoders.save(made.vae, folder, encoder=False))


def _ship_vae(name: str, made: compact_vae.Trained, save: Callable[[Path], None]) -> Path:
    folder = MODELS / name
    times = compact_vae.decode_times(made.vae)
    made.vae.to(memory_format=torch.contiguous_format).half()
    save(folder)
    _write_training(folder, {name.removeprefix("mini-"): (made.recipe, made.history)})
    rounded = {key: round(value, 3) for key, value in times.items()}
    write_atomically(folder / "decode_times.json", (json.dumps(rounded, indent=1) + "\n").encode())
    return folder


def train_mini_clip() -> Path:
    """Train and ship the open_clip alignment model."""
    model, history = clip.train(RUNS)
    folder = MODELS / "mini-clip"
    folder.mkdir(parents=True, exist_ok=True)
    clip.write_config(folder)
    _save_half(model, folder / "open_clip_model.safetensors")
    _write_training(folder, {"clip": (clip.RECIPE, history)})
    return folder


def train_mini_judge() -> Path:
    """Train and ship the attribute classifier."""
    from .judge import RECIPE

    judge, history = train_judge(RUNS)
    folder = MODELS / "mini-judge"
    folder.mkdir(parents=True, exist_ok=True)
    _save_half(judge, folder / "model.safetensors")
    _write_training(folder, {"judge": (RECIPE, history)})
    return folder


TRAINERS = {
    "mini-sd3": train_mini_sd3,
    "mini-sd": train_mini_sd,
    "mini-sd-small": train_mini_sd_small,
    "mini-lcm": train_mini_lcm,
    "mini-lcm-small": train_mini_lcm_small,
    "mini-tiny-vae": train_mini_tiny_vae,
    "mini-small-vae": train_mini_small_vae,
    "mini-clip": train_mini_clip,
    "mini-judge": train_mini_judge,
}


def evaluate(
    images: int = 256, write: bool = True, names: Collection[str] = tuple(TRAINERS)
) -> dict[str, dict[str, float]]:
    """Quality of the shipped models on held-out scenes; with `write` also recorded in their folders.

    `images` are generated by mini-sd3 for one-object and again for two-object prompts, at 28 steps: guidance 4 alone,
    and guidance 8 against a negative prompt that names the same object in another size and colour.
    """
    judge = Judge.load(MODELS / "mini-judge")
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "mini-judge": lambda: {"held-out accuracy": accuracy(judge)},
        "mini-clip": lambda: {"retrieval top-1 of 100": clip.retrieval(*load_clip(MODELS / "mini-clip"))},
        "mini-sd3": lambda: _sd3_quality(judge, images),
    }
    measures |= {name: functools.partial(_sd_quality, name, judge, images) for name in SD_FAMILY}
    measures |= {name: functools.partial(_vae_quality, name) for name in COMPACT_VAES}
    results = {name: measure() for name, measure in measures.items() if name in names and (MODELS / name).is_dir()}
    for name, figures in results.items() if write else ():
        write_atomically(MODELS / name / "evaluation.json", (json.dumps(figures, indent=1) + "\n").encode())
    return results


def _sd3_quality(judge: Judge, images: int) -> dict[str, float]:
    pipeline = load("mini-sd3", device="cpu")
    figures = {"autoencoder PSNR (dB)": vae.reconstruction_psnr(pipeline.vae)}
    for objects in (1, 2):
        figures |= _generation_quality(pipeline, judge, objects, images)
    return figures


def _vae_quality(name: str) -> dict[str, float]:
    return compact_vae.quality(compact_vae.shipped(name))


def load_clip(folder: Path) -> tuple[open_clip.CLIP, open_clip.HFTokenizer]:
    """A model and its tokenizer from a folder, by open_clip's own `local-dir:` scheme."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")


def _sd_quality(name: str, judge: Judge, images: int) -> dict[str, float]:
    """What a pipeline draws of one object, all that its family was taught, at guidance 4 and at Hybrid SD's 7. LCM
    takes 8 steps, others 25."""
    pipeline, scenes = load(name, "cpu", "float32"), _held_out(1, images)
    results: dict[str, float] = {}
    for guidance_scale in (4.0, 7.0):
        reading = _sd_reading(pipeline, judge, captions(scenes), guidance_scale)
        prefix = f"one object, guidance {guidance_scale:g}"
        results |= {f"{prefix}: {measure}": value for measure, value in _shares(scenes, reading).items()}
    return results


def _sd_reading(pipeline: StableDiffusionPipeline, judge: Judge, prompts: list[str], guidance_scale: float) -> Reading:
    shape = (pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
    noise = torch.cat([initial_noise(seed, *shape) for seed in range(len(prompts))])
    parts = []
    for i in range(0, len(prompts), 64):
        drawn = pipeline(
            prompts[i : i + 64],
            num_inference_steps=8 if isinstance(pipeline.scheduler, LCMScheduler) else 25,
            guidance_scale=guidance_scale,
            latents=noise[i : i + 64],
            output_type="pt",
        )
        parts.append(drawn.images)
    return judge.read(torch.cat(parts))


def _held_out(objects: int, images: int) -> Scenes:
    pool = sample_scenes(max(4 * images, 1024), seed=900_004)  # fewer images are the first of the same scenes
    return pool[(pool.count == objects).nonzero()[:images, 0]]


def _shares(scenes: Scenes, reading: Reading) -> dict[str, float]:
    """Shares of images that show what the caption says."""
    return {
        "colour and shape": objects_correct(scenes, reading).float().mean().item(),
        "count and arrangement": arrangement_correct(scenes, reading).float().mean().item(),
        "ground": (reading.ground == scenes.ground).float().mean().item(),
        "light": (reading.light == scenes.light).float().mean().item(),
    }


def _generation_quality(pipeline: Any, judge: Judge, objects: int, images: int) -> dict[str, float]:
    scenes = _held_out(objects, images)
    prompts, prefix = captions(scenes), "one object" if objects == 1 else "two objects"
    reading = _drawn(pipeline, judge, prompts, [""] * len(prompts), guidance_scale=4.0)
    pushed = _drawn(pipeline, judge, prompts, _negatives(scenes), guidance_scale=8.0)
    return {f"{prefix}: {name}": value for name, value in _shares(scenes, reading).items()} | {
        f"{prefix}: colour and shape, {AGAINST}": objects_correct(scenes, pushed).float().mean().item(),
    }


def _negatives(scenes: Scenes) -> list[str]:
    """As in the shipped prompt set: the first object in another size and colour."""
    other = contradict(scenes, seed=5)
    sizes, colours, shapes = list(SIZES), list(COLOURS), list(SHAPES)
    first = zip(other.size[:, 0].tolist(), other.colour[:, 0].tolist(), scenes.shape[:, 0].tolist(), strict=True)
    return [f"a {sizes[size]} {colours[colour]} {shapes[shape]}" for size, colour, shape in first]


def _drawn(pipeline: Any, judge: Judge, prompts: list[str], negatives: list[str], guidance_scale: float) -> Reading:
    """What the judge reads from one image a prompt."""
    from ..denoising.sampler import sample
    from ..denoising.trajectory import Trajectory

    texts = zip(prompts, negatives, strict=True)
    trajectories = [
        Trajectory.plain(text, seed, guidance_scale, negative) for seed, (text, negative) in enumerate(texts)
    ]
    pictures = sample(pipeline, trajectories, batch_size=128, max_sequence_length=1).images()
    pixels = torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures])
    return judge.read(pixels.view(-1, 64, 64, 3).permute(0, 3, 1, 2).float() / 255)


def _save_half(model: torch.nn.Module, path: Path) -> None:
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, path)


def _write_training(folder: Path, runs: dict[str, tuple[Recipe, History]]) -> None:
    record = {
        name: {
            "recipe": recipe._asdict(),
            "seconds": round(history.seconds),
            "losses": [round(x, 5) for x in history.losses],
            "terms": {term: [round(x, 5) for x in curve] for term, curve in history.terms.items()},
        }
        for name, (recipe, history) in runs.items()
    }
    write_atomically(folder / "training.json", (json.dumps(record, indent=1) + "\n").encode())
