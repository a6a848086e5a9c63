"""Train or fine-tune Stable Diffusion 1.x or SD3 on captioned images, with noise assignment as one parameter.

    accelerate launch --num_processes 8 -m hybridlib.training.text_to_image data/recipes/immiscible/scratch_linear.yaml

What is read from a folder: `metadata.jsonl` with `file_name` and `text` a line, as Hugging Face's image folders have
it; or one sub-folder of images a class, whose caption is the folder's name or what `captions.json` says of it. Anything
else is taken for a Hugging Face dataset. Text encoders and autoencoder stay as they are; the network is trained and its
average is saved as a whole pipeline, from which `hybridlib.study.bulk` samples. A killed training goes on from its
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..paths import OUTPUTS
from ..study.parameters import Parameters
from .denoising_loss import Assignment, Batch, Scheduler, denoising_loss
from .loop import Draw, History, Recipe, fit
from .vae import normalised

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class TextToImageParameters(Parameters):
    """One training. Defaults are those that the published settings share; `profile` names the folder of outputs/."""

    notebook: ClassVar[str] = "text_to_image"

    model: str
    data: str  # a folder of images, or a Hugging Face dataset
    split: str = "train"  # of a dataset, with the names of its columns
    image_column: str = "image"
    caption_column: str = "label"  # a class is told by its name
    image_size: int = Field(256, ge=16, multiple_of=8)
    horizontal_flip: bool = True
    from_scratch: bool  # a new network of the same shape, or the one that the model brings
    assignment: Literal["none", "linear", "knn"] = "none"
    condition: Literal["groups"] | None = None  # "linear": noise stays within one caption
    pool: int = Field(1, ge=1)
    k: int = Field(64, ge=1)
    cost: Literal["inner", "l2", "l2_fp16"] = "inner"
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    parts: int = Field(1, ge=1)  # forward passes of a step; the processes share them
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    min_snr_gamma: float | None = Field(None, gt=0, allow_inf_nan=False)
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    precision: Literal["native", "no", "bf16", "fp16"] = "fp16"
    gradient_checkpointing: bool = True
    readers: int = Field(8, ge=1)  # threads that open images
    seed: int = Field(42, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch_size % self.parts:
            raise ValueError(f"parts = {self.parts}: must divide batch_size = {self.batch_size}")
        if self.assignment != "linear" and (self.condition or self.pool > 1):
            raise ValueError(f"assignment = {self.assignment!r}: condition and pool are for 'linear'")
        return self

    def recipe(self) -> Recipe:
        """For the loop: AdamW at a constant rate."""
        return Recipe(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            ema_decay=self.ema_decay,
            warmup_steps=0,
            schedule="constant",
            betas=(0.9, 0.999),
            parts=self.parts,
            precision=self.precision,
        )

    def noise(self) -> Assignment:
        """For the loss."""
        if self.assignment == "linear":
            return Assignment("linear", condition=self.condition, pool=self.pool, cost=self.cost)
        return Assignment("knn", k=self.k, cost=self.cost) if self.assignment == "knn" else Assignment()


class Source(NamedTuple):
    """Images by number, and the caption of each."""

    open: Callable[[int], Image]
    captions: Sequence[str]


def read_source(parameters: TextToImageParameters) -> Source:
    """A folder or dataset.

    Raises:
        ValueError: one sentence, if it holds no captioned images or the package `datasets` is missing.
    """
    folder = Path(parameters.data)
    return _folder(folder) if folder.is_dir() else _dataset(parameters)


def _folder(folder: Path) -> Source:
    from ..files import read_image

    listed, captions = folder / "metadata.jsonl", folder / "captions.json"
    if listed.is_file():
        lines = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        if wrong := [line for line in lines if not {"file_name", "text"} <= set(line)]:
            raise ValueError(f"{listed}: every line needs file_name and text, got {wrong[0]}")
        pairs = [(folder / line["file_name"], line["text"]) for line in lines]
    else:
        named = json.loads(captions.read_text(encoding="utf-8")) if captions.is_file() else {}
        found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
        pairs = [(path, named.get(path.parent.name, path.parent.name)) for path in found]
    if missing := [path for path, _ in pairs if not path.is_file()]:
        raise ValueError(f"{listed} names {missing[0].name}, which is not there")
    if not pairs:
        raise ValueError(f"{folder} holds neither metadata.jsonl nor sub-folders of images")
    return Source(lambda row: read_image(pairs[row][0]), [caption for _, caption in pairs])


def _dataset(parameters: TextToImageParameters) -> Source:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"data = {parameters.data!r} is no folder, and a Hugging Face dataset needs the package datasets: "
            "pip install datasets"
        ) from None
    try:
        rows = datasets.load_dataset(parameters.data, split=parameters.split)
    except (OSError, ValueError) as error:
        raise ValueError(f"data = {parameters.data!r} is no folder and no dataset that can be had: {error}") from None
    for column in (parameters.image_column, parameters.caption_column):
        if column not in rows.column_names:
            raise ValueError(f"{parameters.data} has no column {column!r}; it has {', '.join(rows.column_names)}")
    told, names = rows[parameters.caption_column], getattr(rows.features[parameters.caption_column], "names", None)
    captions = [names[label] for label in told] if names else [str(text) for text in told]
    return Source(lambda row: rows[row][parameters.image_column].convert("RGB"), captions)


class Images:
    """Captioned images as examples of a training: cropped, flipped, encoded; see `denoising_loss.Examples`."""

    def __init__(self, source: Source, pipeline: Any, size: int, flip: bool, readers: int = 8) -> None:
        from torchvision import transforms

        self.source, self.pipeline, self.flip = source, pipeline, flip
        self.shape = transforms.Compose(
            [
                transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
            ]
        )
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(source.captions))}
        self.groups = torch.tensor([numbers[caption] for caption in source.captions])
        self.threads = ThreadPoolExecutor(readers)

    def __len__(self) -> int:
        return len(self.source.captions)

    @torch.no_grad()
    def batch(self, rows: Tensor, draw: Draw) -> Batch:
        """Posterior samples of the autoencoder, scaled and shifted, with the embeddings of their captions."""
        vae = self.pipeline.vae
        pixels = torch.stack(list(self.threads.map(self._pixels, rows.tolist())))
        if self.flip:
            flipped = torch.rand(len(rows), generator=draw.generator) < 0.5
            pixels[flipped] = pixels[flipped].flip(-1)
        if vae.device != draw.device:
            self.pipeline.to(draw.device)
        posterior = vae.encode((2 * pixels - 1).to(draw.device, vae.dtype)).latent_dist
        latents = normalised(vae, posterior.sample(draw.generator).float())
        texts = [self.source.captions[row] for row in rows.tolist()]
        return Batch(latents, conditioning(self.pipeline, texts, draw.device), self.groups[rows].to(draw.device))

    def _pixels(self, row: int) -> Tensor:
        return self.shape(self.source.open(row))


@torch.no_grad()
def conditioning(pipeline: Any, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """What the network of a pipeline is told of its texts, float32."""
    if hasattr(pipeline, "transformer"):
        embeds, _, pooled, _ = pipeline.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, device=device
        )
        return {"encoder_hidden_states": embeds.float(), "pooled_projections": pooled.float()}
    embeds, _ = pipeline.encode_prompt(list(texts), device, 1, False)
    return {"encoder_hidden_states": embeds.float()}


def train(parameters: TextToImageParameters, folder: Path) -> tuple[Path, History]:
    """Train, and save the pipeline with the averaged network in `folder / "model"`.

    Raises:
        ValueError: one sentence about data, model or recipe, before anything is computed.
    """
    from accelerate import PartialState
    from accelerate.utils import set_seed

    from ..denoising import models

    source = read_source(parameters)
    pipeline: Any = models.load(parameters.model, device="cpu", dtype="float32")
    flow = hasattr(pipeline, "transformer")
    name = "transformer" if flow else "unet"
    network = getattr(pipeline, name)
    if parameters.from_scratch:  # only then: the published scripts forgot this condition
        set_seed(parameters.seed)
        network = type(network).from_config(network.config)
    if parameters.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    empty = conditioning(pipeline, [""], torch.device("cpu"))
    frozen = _without_network(pipeline, name)
    if parameters.precision == "fp16" and torch.cuda.is_available():
        frozen.to(torch.float16)
    images = Images(source, frozen, parameters.image_size, parameters.horizontal_flip, parameters.readers)
    loss_of = denoising_loss(
        network,
        training_scheduler(pipeline),
        images,
        parameters.noise(),
        empty=empty,
        caption_dropout=parameters.caption_dropout,
        min_snr_gamma=parameters.min_snr_gamma,
        logit_normal=(0.0, 1.0) if flow else None,
    )
    history = fit(name, network.requires_grad_(True), loss_of, parameters.recipe(), folder)
    target = folder / "model"
    if PartialState().is_main_process:
        setattr(pipeline, name, network)
        pipeline.to("cpu", torch.float32).save_pretrained(target, safe_serialization=True)
    PartialState().wait_for_everyone()
    return target, history


def training_scheduler(pipeline: Any) -> Scheduler:
    """The noise levels that a pipeline's network was trained on."""
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    kind = FlowMatchEulerDiscreteScheduler if hasattr(pipeline, "transformer") else DDPMScheduler
    return kind.from_config(pipeline.scheduler.config)


def _without_network(pipeline: Any, name: str) -> Any:
    """The frozen parts as a pipeline of their own, which may be moved and cast without the network."""
    return type(pipeline)(**{**pipeline.components, name: None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one sentence if something was refused."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.training.text_to_image", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML file of parameters, such as those in data/recipes/immiscible")
    parser.add_argument("--model", help="instead of the recipe's")
    parser.add_argument("--data", help="instead of the recipe's")
    parser.add_argument("--output", type=Path, help="a folder; outputs/<profile> by default")
    given = parser.parse_args(arguments)
    try:
        parameters = TextToImageParameters.from_yaml(given.recipe)
        changed = {name: getattr(given, name) for name in ("model", "data") if getattr(given, name)}
        parameters = parameters.model_copy(update=changed)
        target, history = train(parameters, given.output or OUTPUTS / parameters.profile)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {target}; last loss {history.losses[-1]:.4f}, {history.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
