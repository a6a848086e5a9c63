"""Diffusers pipelines that hand over from a public prompt to personal prompts part of the way."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_output import StableDiffusion3PipelineOutput
from torch import Tensor

from ..codecs import Codec
from ..prompts import warn_of_foreign_words
from . import arguments
from .denoisers import SD3Denoiser
from .sampler import decode, prepared_scheduler, rows_of, walk
from .solvers import evaluations, noise_levels, read_history, solver_identity, write_history
from .trajectory import Cost, Segment, Trajectory, Tree, check_common_step

_STOCK = inspect.signature(StableDiffusion3Pipeline.__call__)


def _signature(call: Any) -> inspect.Signature:
    """The stock signature and what `call` adds to it, for help() and completion."""
    added = [p for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return _STOCK.replace(parameters=[*_STOCK.parameters.values(), *added])


@dataclass(repr=False)
class HybridPipelineOutput(StableDiffusion3PipelineOutput):
    """Images in stock order (all images of the first prompt first), and what they cost.

    `intermediate_images[i]` holds the decoded images after the i-th executed step, where they were asked for.
    """

    cost: Cost | None = None
    intermediate_images: list[Any] | None = None

    def __repr__(self) -> str:
        filmstrip = f", {len(self.intermediate_images)} intermediate" if self.intermediate_images else ""
        return f"HybridPipelineOutput({len(self.images)} images{filmstrip}, {self.cost})"


class _Handover(NamedTuple):
    latents: Tensor
    step: int
    history: dict[str, Tensor]  # what the solver remembers
    levels: Tensor  # the whole noise schedule
    solver: str

    def __repr__(self) -> str:
        return f"_Handover(after {self.step} of {len(self.levels) - 1} updates, latents {tuple(self.latents.shape)})"


class _Plan(NamedTuple):
    trajectories: list[Trajectory]
    latents: Tensor  # one row per distinct seed of the trajectories
    keep_step: int | None = None  # where a public run leaves its handover
    last_codec: Codec | None = None  # that the final latents pass
    handover: _Handover | None = None  # what a personal run goes on from

    def __repr__(self) -> str:
        return f"_Plan({len(self.trajectories)} trajectories, latents {tuple(self.latents.shape)})"


class HybridStableDiffusion3Pipeline(StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` plus hybrid inference; without a hybrid argument it is the stock pipeline.

    In one call, several users share the first steps:

        pipe(["a red ring on snow", "a small ring on grass"], public_prompt="a ring", common_step=8,
             public_guidance_scale=2.0, guidance_scale=8.0, negative_prompt=["blue", "large"])

    Or in two calls with the published names, the handover kept in this pipeline object between them:

        pipe("a ring", common_step=8, prompt_unchanged=True, guidance_scale=2.0)
        pipe("a red ring on snow", common_step=8, prompt_unchanged=False, guidance_scale=8.0)
    """

    _handover: _Handover | None = None

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        public_prompt: str | None = None,
        common_step: int | Sequence[int] | None = None,
        public_guidance_scale: float | None = None,
        prompt_unchanged: bool | None = None,
        compress_at_step: int | None = None,
        codec: Codec | None = None,
        compress_scale: float | None = None,
        compression_rate: float | None = None,
        get_intermediate_result: bool = False,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> HybridPipelineOutput | StableDiffusion3PipelineOutput | tuple[Any, ...]:
        """Stock arguments as in `StableDiffusion3Pipeline`; the following are added.

        Args:
            public_prompt: prompt of the shared first steps. `prompt` is then one personal prompt or a list, one per
                user; `negative_prompt` (NPI) and `guidance_scale` act in the personal phase, each one value for all
                or a list. `num_images_per_prompt` and `generator` choose the noises that all users share.
            common_step: number of updates under the public prompt, 0..num_inference_steps, one for all users or a
                list. The handover happens before update `common_step`, at noise level sigmas[common_step]; 0 is a
                purely personal image, num_inference_steps the public one.
            public_guidance_scale: guidance scale of the public phase (SIM); `guidance_scale` by default.
            prompt_unchanged: the published two-call form. True: run `prompt` as the public one and keep its latents
                after `common_step` updates in this object. False: skip to `common_step`, start from the kept latents
                and finish under `prompt`.
            compress_at_step: index i of an update, 0..num_inference_steps - 1: right after it, with i + 1 updates made,
                the latents pass a codec, here and there as if they had crossed a link (the public handover at
                `common_step` happens *before* that update: i corresponds to common_step i + 1).
            codec: what they pass; or one of the published strengths instead:
            compress_scale: a of the first version, y = round(a x) / a (default there 100). The published "ratio" r is
                passed as a = 1 / r, so a ratio of 1 is the coarsest setting, not the lossless one.
            compression_rate: c in [0, 1) of the second version: round(16 (1 - c)) bits between minimum and maximum.
            get_intermediate_result: also decode the images after every executed step.
            batch_size: most denoiser evaluations in one forward.

        With a hybrid argument an update is one of `num_inference_steps`, also under Heun, which evaluates twice in
        each but the last: `callback_on_step_end` is called once an update, and `cost` counts every evaluation.

        Warns:
            UserWarning: once, naming the words that a model with a small closed vocabulary does not know.

        Raises:
            TypeError: when a hybrid argument is of another type.
            ValueError: before any denoising, when arguments contradict each other or are out of range, or when a tree
                cannot be walked with the pipeline's scheduler.
        """
        hybrid = (public_prompt, common_step, public_guidance_scale, prompt_unchanged)
        link = arguments.link_codec(compress_at_step, codec, compress_scale, compression_rate)
        stock = _STOCK.bind(self, *args, **kwargs)
        stock.apply_defaults()
        call = stock.arguments
        if all(value is None for value in (*hybrid, link)) and not get_intermediate_result:
            warn_of_foreign_words(self.tokenizer, arguments.texts(call), stacklevel=4)
            return super().__call__(*args, **kwargs)
        arguments.check_types(public_prompt, public_guidance_scale, prompt_unchanged, batch_size)
        if prompt_unchanged is not None and (public_prompt is not None or public_guidance_scale is not None):
            raise ValueError("prompt_unchanged is the two-call form: leave out public_prompt and public_guidance_scale")
        if prompt_unchanged is None and public_prompt is None and (common_step or public_guidance_scale is not None):
            raise ValueError("common_step and public_guidance_scale need a public_prompt (or prompt_unchanged)")
        if common_step is None and (public_prompt is not None or prompt_unchanged is not None):
            raise ValueError("a public phase needs common_step, the number of updates that it lasts")
        arguments.check_stock(self, call)
        plan = self._plan(call, public_prompt, common_step, public_guidance_scale, prompt_unchanged)
        if link is not None:
            plan = _compressed(plan, compress_at_step or 0, link, call["num_inference_steps"])
        warn_of_foreign_words(self.tokenizer, Tree(plan.trajectories).texts if plan.trajectories else (), stacklevel=4)
        output = self._run(plan, call, batch_size, get_intermediate_result)
        self.maybe_free_model_hooks()
        return output if call["return_dict"] else (output.images,)

    __call__.__signature__ = _signature(__call__)  # type: ignore[attr-defined]

    def _plan(
        self,
        call: dict[str, Any],
        public_prompt: str | None,
        common_step: int | Sequence[int] | None,
        public_guidance_scale: float | None,
        prompt_unchanged: bool | None,
    ) -> _Plan:
        """Turn the arguments into trajectories and the latents they start from."""
        steps, copies = call["num_inference_steps"], call["num_images_per_prompt"]
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else list(call["prompt"])
        negatives = [n or "" for n in arguments.per_user("negative_prompt", call["negative_prompt"], len(prompts))]
        scales = arguments.per_user("guidance_scale", call["guidance_scale"], len(prompts))
        switches = arguments.per_user("common_step", common_step or 0, len(prompts))
        for switch in switches:
            check_common_step(switch, steps)
        if prompt_unchanged is False:
            return self._personal_plan(prompts, negatives, scales, switches, call)
        if prompt_unchanged is True and len(prompts) > 1:
            raise ValueError(f"prompt_unchanged=True runs one public prompt, got {len(prompts)} prompts")
        trajectories = []
        for prompt, negative, scale, switch in zip(prompts, negatives, scales, switches, strict=True):
            if public_prompt is None:
                make = [Trajectory.plain(prompt, n, scale, negative, steps) for n in range(copies)]
            else:
                public_scale = scale if public_guidance_scale is None else public_guidance_scale
                make = [
                    Trajectory.hybrid(public_prompt, prompt, switch, n, public_scale, scale, negative, steps)
                    for n in range(copies)
                ]
            trajectories += make
        latents = self._noise(call, copies)
        return _Plan(trajectories, latents, switches[0] if prompt_unchanged else None)

    def _personal_plan(
        self,
        prompts: list[str],
        negatives: list[str],
        scales: list[float],
        switches: list[int],
        call: dict[str, Any],
    ) -> _Plan:
        kept, steps = self._handover, call["num_inference_steps"]
        if kept is None:
            raise ValueError("prompt_unchanged=False needs an earlier call of this pipeline with prompt_unchanged=True")
        if len(set(switches)) > 1 or (kept.step, len(kept.levels) - 1) != (switches[0], steps):
            raise ValueError(
                f"the public run handed over at common_step={kept.step} of {len(kept.levels) - 1}, "
                f"this call asks for {sorted(set(switches))} of {steps}"
            )
        size = (call["height"] // self.vae_scale_factor, call["width"] // self.vae_scale_factor)
        if kept.latents.shape[-2:] != size:
            raise ValueError(f"the public run's latents are {tuple(kept.latents.shape[-2:])}, this call needs {size}")
        trajectories = [
            Trajectory(n, (Segment(prompt, kept.step, steps, scale, negative),))
            for prompt, negative, scale in zip(prompts, negatives, scales, strict=True)
            for n in range(len(kept.latents))
            if kept.step < steps
        ]
        return _Plan(trajectories, kept.latents, handover=kept)

    def _noise(self, call: dict[str, Any], rows: int) -> Tensor:
        latents = call["latents"]
        if latents is not None and len(latents) != rows:
            raise ValueError(
                f"latents must hold num_images_per_prompt={rows} rows shared by all users, got {len(latents)}"
            )
        channels = self.transformer.config.in_channels
        size = (call["height"], call["width"])
        device, dtype = self._execution_device, self.transformer.dtype
        return self.prepare_latents(rows, channels, *size, dtype, device, call["generator"], latents)

    def _run(self, plan: _Plan, call: dict[str, Any], batch_size: int, intermediate: bool) -> HybridPipelineOutput:
        self._guidance_scale, self._interrupt = call["guidance_scale"], False
        self._clip_skip, self._joint_attention_kwargs = call["clip_skip"], call["joint_attention_kwargs"]
        self._num_timesteps = steps = call["num_inference_steps"]
        latents, filmstrip = plan.latents, []
        if not plan.trajectories:  # a personal run from the very last step: the public image itself
            return HybridPipelineOutput(self._finish(latents, call["output_type"]), Cost(0, 0), None)
        denoiser = SD3Denoiser(
            self, batch_size, call["max_sequence_length"], self._clip_skip, self._joint_attention_kwargs
        )
        scheduler = prepared_scheduler(self, steps, (latents.shape[-2], latents.shape[-1]), call["sigmas"], call["mu"])
        tree, levels, solver = (
            Tree(plan.trajectories, evaluations(scheduler)),
            noise_levels(scheduler),
            solver_identity(scheduler),
        )
        if (kept := plan.handover) is not None:
            if kept.solver != solver or not torch.equal(kept.levels, levels):
                raise ValueError(
                    f"the public run had solver {kept.solver} and its noise schedule, this call has others"
                )
            write_history(scheduler, kept.history)
        if plan.keep_step == 0:
            self._handover = _Handover(latents, 0, {}, levels, solver)
        rows: Any = tree.roots
        with self.progress_bar(total=tree.cost.tree) as bar:
            for front in walk(tree, denoiser, scheduler, latents):
                if (callback := call["callback_on_step_end"]) is not None:
                    returned = callback(self, front.updates - 1, front.timestep, {"latents": front.latents})
                    front.latents = returned.pop("latents", front.latents)
                latents, rows = front.latents, front.members
                if plan.keep_step == front.updates:
                    self._handover = _Handover(latents, front.updates, read_history(scheduler), levels, solver)
                if intermediate:
                    filmstrip.append(self._finish(latents[rows_of(rows)], call["output_type"]))
                bar.update(front.nfe)
                if self.interrupt:
                    break
        if plan.last_codec is not None:
            latents = plan.last_codec.quantise(latents)
        images = self._finish(latents[rows_of(rows)], call["output_type"])
        return HybridPipelineOutput(images, tree.cost, filmstrip if intermediate else None)

    def _finish(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        return decode(self, latents, output_type=output_type)


def _compressed(plan: _Plan, step: int, codec: Codec, num_inference_steps: int) -> _Plan:
    """The same plan with latents that pass `codec` right after update `step`."""
    first = plan.trajectories[0].start if plan.trajectories else num_inference_steps
    if not first <= step < num_inference_steps:
        raise ValueError(f"compress_at_step must lie in {first}..{num_inference_steps - 1}, got {step}")
    if step == num_inference_steps - 1:
        return plan._replace(last_codec=codec)
    return plan._replace(trajectories=[t.with_codec(step + 1, codec) for t in plan.trajectories])
