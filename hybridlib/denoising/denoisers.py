"""Denoisers behind one protocol: batched latents in, guided model output out, with a conditioning for every row."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from .identity import model_identity
from .texts import EncodesTexts
from .trajectory import Conditioning


class Space(NamedTuple):
    """What two models have to share so that one can go on with the latents of the other.

    A tiny autoencoder decodes the scaled latents of the VAE that it imitates and does not tell their scaling: None.
    """

    latent_channels: int
    vae_scaling: float | None
    vae_shift: float | None
    prediction_type: str
    training_noise: str  # the noise schedule that they were trained on

    @staticmethod
    def of(latent_channels: int, vae: Any, prediction_type: str, training_noise: str) -> Space:
        """The space of a network of so many latent channels and the VAE of its pipeline."""
        tiny = type(vae).__name__ == "AutoencoderTiny"
        scaling = None if tiny else float(vae.config.scaling_factor)
        shift = None if tiny else float(vae.config.get("shift_factor") or 0.0)
        return Space(latent_channels, scaling, shift, prediction_type, training_noise)

    def difference(self, other: Space) -> str | None:
        """The first thing in which two spaces differ, as far as both tell, in words, or None."""
        for name, mine, its in zip(self._fields, self, other, strict=True):
            if mine != its and None not in (mine, its):
                return f"{name.replace('_', ' ').replace('vae', 'VAE')} {mine} and {its}"
        return None


class Denoiser(Protocol):
    """What the sampler needs of a diffusion model."""

    @property
    def device(self) -> torch.device:
        """Where the latents have to be."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the latents have to be."""
        ...

    def nfe(self, conditioning: Conditioning) -> int:
        """Evaluations of a row under this conditioning: two under classifier-free guidance, else one."""
        ...

    def __call__(self, latents: Tensor, timestep: Tensor, conditionings: Sequence[Conditioning]) -> Tensor:
        """Guided model output for every row, in as many forwards as the batch size asks for.

        latents: (rows, channels, height, width), all at noise level `timestep` (scalar tensor).
        """
        ...


class GuidedDenoiser(EncodesTexts):
    """A network of a diffusers pipeline with per-row prompt, negative prompt and guidance scale.

    Rows at guidance scale <= 1 cost one evaluation, the others two: e = e_neg + g (e_text - e_neg). Prompts are
    encoded once, also those of a blend. `batch_size` bounds the evaluations in one forward; when the device runs out
    of memory it is halved, with a warning, and the forward is tried again. What differs between families of models is
    left to subclasses.

    Args:
        pipeline: a diffusers pipeline that holds network, text encoders, tokenizers, VAE and scheduler.
        batch_size: most denoiser evaluations in one forward.
        clip_skip, attention_kwargs: as in diffusers.
    """

    network: str  # the name that the pipeline gives its network

    def __init__(
        self,
        pipeline: Any,
        batch_size: int = 64,
        clip_skip: int | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.pipeline = pipeline
        self.model = getattr(pipeline, self.network)
        plan = getattr(pipeline, "memory_plan", None)
        self.batch_size = min(batch_size, plan.batch_size) if plan else batch_size
        self.clip_skip = clip_skip
        self.attention_kwargs = attention_kwargs
        super().__init__()
        self._places: dict[object, tuple[torch.device, torch.dtype]] = {}
        self._identity: str | None = None

    def of_model(self, model: Any) -> Self:
        """The same denoiser with another network; encoded prompts are shared."""
        other = copy.copy(self)
        other.model = model
        other._places, other._near, other._identity = {}, {}, None
        return other

    @property
    def device(self) -> torch.device:
        """Where the latents have to be."""
        return self._place[0]

    @property
    def dtype(self) -> torch.dtype:
        """What the latents have to be."""
        return self._place[1]

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype. Diffusers looks through all modules for them, which takes longer than a small network.

        So they are asked for again only where the weights have moved.
        """
        first = next(iter(self.model.parameters()), None)
        key = None if first is None else (first.device, first.dtype)
        if key not in self._places:
            own = self.model is getattr(self.pipeline, self.network)
            device = self.pipeline._execution_device if own else self.model.device
            self._places[key] = device, self.model.dtype
        return self._places[key]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.model.config.in_channels

    @property
    def identity(self) -> str:
        """A short fingerprint of the network, taken once: every state asks for it."""
        if self._identity is None:
            self._identity = model_identity(self.model)
        return self._identity

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network, so that guidance costs no second evaluation."""
        return False

    @property
    def ignores_guidance(self) -> bool:
        """Whether the network was made to need no guidance and takes no scale."""
        return False

    @property
    @abstractmethod
    def space(self) -> Space:
        """What another model has to share to take part in the same trajectory."""

    @property
    def is_flow(self) -> bool:
        """Whether the network predicts the velocity of a flow, not noise or v of diffusion."""
        return self.space.prediction_type == "flow_prediction"

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Height and width of images are multiples of this many pixels."""

    @property
    @abstractmethod
    def default_size(self) -> int:
        """Height and width of images in pixels where nobody says otherwise."""

    def schedule_options(self, config: Any, latent_size: tuple[int, int], num_inference_steps: int) -> dict[str, Any]:
        """What the scheduler's `set_timesteps` is told beside the number of steps, as the stock pipeline tells it."""
        return {}

    def noise(self, rows: int, height: int, width: int, generator: Any, latents: Tensor | None) -> Tensor:
        """Initial latents (rows, channels, height, width): as the stock pipeline draws them, or those that it is given.

        Height and width are those of the image in pixels.
        """
        where = (self.dtype, self.device)
        return self.pipeline.prepare_latents(rows, self.latent_channels, height, width, *where, generator, latents)

    def to_stock(self, latents: Tensor) -> Tensor:
        """Latents as the stock pipeline returns them and shows them to callbacks."""
        return latents

    def from_stock(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Inverse of `to_stock`: (rows, channels, height, width)."""
        return latents

    @abstractmethod
    def decode(self, latents: Tensor, output_type: str) -> Any:
        """Images of latents (rows, channels, height, width) as the stock pipeline decodes and returns them."""

    @abstractmethod
    def example(self, height: int, width: int) -> dict[str, Any]:
        """Arguments of the network for one evaluation at an image size in pixels, empty tensors on the meta device."""

    @abstractmethod
    def _evaluate(
        self, latents: Tensor, timestep: Tensor, texts: tuple[Tensor, ...], negatives: int, scales: list[float]
    ) -> Tensor:
        """Model output of rows of which the first `negatives` have negative prompts; `scales` belong to the others."""

    def nfe(self, conditioning: Conditioning) -> int:
        """See `Denoiser.nfe`."""
        return 1 if self.embeds_guidance else conditioning.nfe

    def __call__(self, latents: Tensor, timestep: Tensor, conditionings: Sequence[Conditioning]) -> Tensor:
        """See `Denoiser.__call__`."""
        outputs, start = [], 0
        while start < len(latents):
            stop = self._chunk_end(conditionings, start)
            try:
                outputs.append(self._forward(latents[start:stop], timestep, conditionings[start:stop]))
            except RuntimeError as error:
                if not _is_out_of_memory(error) or stop - start == 1:
                    raise
                self.batch_size = max(1, self.batch_size // 2)
                warnings.warn(f"out of memory: batch_size lowered to {self.batch_size}", stacklevel=2)
                continue
            start = stop
        return torch.cat(outputs)

    def _chunk_end(self, conditionings: Sequence[Conditioning], start: int) -> int:
        """The most rows from `start` whose evaluations fit the batch size; at least one."""
        stop, evaluations = start, 0
        while stop < len(conditionings):
            evaluations += self.nfe(conditionings[stop])
            if evaluations > self.batch_size and stop > start:
                break
            stop += 1
        return stop

    def _forward(self, latents: Tensor, timestep: Tensor, conditionings: Sequence[Conditioning]) -> Tensor:
        guided = [row for row, conditioning in enumerate(conditionings) if self.nfe(conditioning) == 2]
        # Negatives first, as diffusers orders them, so that a single row repeats its arithmetic exactly.
        texts = [(conditionings[row].negative_prompt, True) for row in guided] + [
            (conditioning.prompt, False) for conditioning in conditionings
        ]
        inputs = torch.cat([latents[guided], latents])
        scales = [conditioning.guidance_scale for conditioning in conditionings]
        output = self._evaluate(inputs, timestep, self._encoded(texts), len(guided), scales)
        negative, text = output[: len(guided)], output[len(guided) :]
        if not guided:
            return text
        guided_output = negative + scaled(text[guided] - negative, [scales[row] for row in guided])
        if len(guided) == len(text):
            return guided_output
        text = text.clone()
        text[guided] = guided_output
        return text


def scaled(rows: Tensor, factors: Sequence[float]) -> Tensor:
    """Rows (n, channels, height, width), each times its number, as a product with that number alone is rounded.

    In half precision PyTorch multiplies in float32 and rounds the product; the number itself keeps its digits.
    """
    exact = torch.tensor(factors, device=rows.device, dtype=torch.promote_types(rows.dtype, torch.float32))
    return (exact.view(-1, 1, 1, 1) * rows).to(rows.dtype)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
