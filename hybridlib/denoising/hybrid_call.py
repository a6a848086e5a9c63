"""A stock diffusers call with shared prefixes, codecs and several denoisers: what its families have in common."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers.utils import BaseOutput
from torch import Generator, Tensor

from ..prompts import warn_of_foreign_words
from . import arguments
from .arguments import HybridArguments
from .denoisers import GuidedDenoiser
from .families import collect, nfe_of
from .plans import Handover, Plan, compressed, make_plan
from .samples import decode, rows_of
from .solvers import (
    draws_noise,
    evaluations,
    noise_levels,
    prepared_scheduler,
    read_history,
    solver_identity,
    write_history,
)
from .texts import encode_ahead
from .trajectory import Trajectory
from .tree import Cost, Tree
from .walk import check_walk, walk

_FIELDS = tuple(inspect.signature(HybridArguments).parameters)


@dataclass(repr=False)
class HybridPipelineOutput(BaseOutput):
    """Images in stock order (all images of the first prompt first), and what they cost.

    `intermediate_images[i]` holds the decoded images after the i-th executed step, where they were asked for.
    """

    images: Any = None
    cost: Cost | None = None
    intermediate_images: list[Any] | None = None

    def __repr__(self) -> str:
        filmstrip = f", {len(self.intermediate_images)} intermediate" if self.intermediate_images else ""
        return f"HybridPipelineOutput({len(self.images)} images{filmstrip}, {self.cost})"


class HybridPipeline:
    """What makes a stock diffusers pipeline hybrid; a mixin in front of it. Without our arguments it is the stock call.

    In one call, several users share the first steps:

        pipe(["a red ring on snow", "a small ring on grass"], public_prompt="a ring", common_step=8,
             public_guidance_scale=2.0, guidance_scale=8.0, negative_prompt=["blue", "large"])

    Or in two calls with the published names, the handover kept in this pipeline object between them:

        pipe("a ring", common_step=8, prompt_unchanged=True, guidance_scale=2.0)
        pipe("a red ring on snow", common_step=8, prompt_unchanged=False, guidance_scale=8.0)

    Or a large and a small model share the steps, as in Hybrid SD, and all of it at once:

        pipe("a ring", num_inference_steps=25, denoisers=[pipe.unet, small], steps="10,15")

    Stock arguments as in diffusers; the following are added.

    Args:
        public_prompt: prompt of the shared first steps, a text or a `Blend`. `prompt` is then one personal prompt or
            a list, one per user; `negative_prompt` (NPI) and `guidance_scale` act in the personal phase, each one
            value for all or a list. `num_images_per_prompt` and `generator` choose the noises that all users share.
        common_step: number of updates under the public prompt, 0..num_inference_steps, one for all users or a
            list. The handover happens before update `common_step`, at noise level sigmas[common_step]; 0 is a
            purely personal image, num_inference_steps the public one.
        public_guidance_scale: guidance scale of the public phase (SIM); `guidance_scale` by default.
        prompt_unchanged: the published two-call form. True: run `prompt` as the public one and keep its latents
            after `common_step` updates in this object. False: skip to `common_step`, start from the kept latents
            and finish under `prompt`.
        denoisers: the networks that share the steps, in their order: networks, which take prompts from this pipeline,
            or pipelines, which encode prompts themselves. This pipeline's own network, or the pipeline itself, is one.
        steps: the number of updates of each denoiser, "10,15" or [10, 15], in sum num_inference_steps. 0 is legal.
        handoff: what a multistep solver remembers of the denoiser before: "keep" (published) or "reset".
        compress_at_step: index i of an update, 0..num_inference_steps - 1: right after it, with i + 1 updates made,
            the latents pass a codec, here and there as if they had crossed a link (the public handover at
            `common_step` happens *before* that update: i corresponds to common_step i + 1).
        codec: what they pass; or one of the published strengths instead:
        compress_scale: a of the first version, y = round(a x) / a (default there 100). The published "ratio" r is
            passed as a = 1 / r, so a ratio of 1 is the coarsest setting, not the lossless one.
        compression_rate: c in [0, 1) of the second version: round(16 (1 - c)) bits between minimum and maximum.
        get_intermediate_result: also decode the images after every executed step.
        batch_size: most denoiser evaluations in one forward.

    With an argument of ours an update is one of `num_inference_steps`, also under Heun, which evaluates twice in each
    but the last: `callback_on_step_end` is called once an update, and `cost` counts every evaluation. A network that
    embeds its guidance scale ignores negative prompts, as stock diffusers has it. A solver that draws noise takes it
    from `generator` as stock does for one image; for several it needs a generator each.

    Warns:
        UserWarning: once, naming the words that a model with a small closed vocabulary does not know.

    Raises:
        TypeError: when an argument of ours is of another type.
        ValueError: before any denoising, when arguments contradict each other or are out of range, when denoisers
            cannot share latents, or when a tree cannot be walked with the pipeline's scheduler.
    """

    vae: Any  # and other parts that all families have
    tokenizer: Any
    scheduler: Any
    vae_scale_factor: int
    _handover: Handover | None = None
    _stock_signature: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the class a `__call__` that tells stock and added arguments, for help() and completion."""
        super().__init_subclass__(**options)
        if hasattr(cls, "_stock_signature"):
            return
        stock = inspect.signature(next(b for b in cls.__mro__[1:] if "__call__" in vars(b)).__call__)

        def __call__(self: HybridPipeline, *args: Any, **kwargs: Any) -> Any:
            return self._call(args, kwargs)

        added = inspect.signature(HybridArguments).parameters.values()
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in added]
        usual = [p for p in stock.parameters.values() if p.kind is not p.VAR_KEYWORD]
        rest = [p for p in stock.parameters.values() if p.kind is p.VAR_KEYWORD]
        signature = stock.replace(parameters=[*usual, *keywords, *rest])
        vars(__call__).update(__signature__=signature)
        __call__.__doc__ = HybridPipeline.__doc__
        type.__setattr__(cls, "__call__", __call__)
        cls._stock_signature = stock

    # --- what a family says

    def _denoiser(self, call: dict[str, Any], batch_size: int) -> GuidedDenoiser:
        """The denoiser of this pipeline under the options of a stock call."""
        raise NotImplementedError

    def _check_family(self, call: dict[str, Any]) -> None:
        """Check the prompts and sizes of a stock call as the stock pipeline does."""
        raise NotImplementedError

    # --- a call

    @torch.no_grad()
    def _call(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ask = HybridArguments(**{name: kwargs.pop(name) for name in _FIELDS if name in kwargs})
        link = arguments.link_codec(ask)
        stock = self._stock_signature.bind(self, *args, **kwargs)
        stock.apply_defaults()
        call = stock.arguments
        if ask.is_stock:
            warn_of_foreign_words(self.tokenizer, arguments.texts(call), stacklevel=5)
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        ask.check()
        first = self._denoiser(call, ask.batch_size)
        defaults = {name: p.default for name, p in self._stock_signature.parameters.items()}
        arguments.check_stock(call, defaults, first)
        self._check_family(call)
        denoisers, parts = self._split(ask, first, call["num_inference_steps"])
        plan = make_plan(call, ask, first, self._handover)
        paths = [t.with_denoisers(parts) if parts else t for t in plan.trajectories]
        plan = plan._replace(trajectories=[_ignoring(path, denoisers) for path in paths])
        if link is not None:
            plan = compressed(plan, ask.compress_at_step or 0, link, call["num_inference_steps"])
        warn_of_foreign_words(self.tokenizer, Tree(plan.trajectories).texts if plan.trajectories else (), stacklevel=5)
        output = self._run(plan, call, ask, denoisers)
        self.maybe_free_model_hooks()
        return output if call["return_dict"] else (output.images,)

    def _split(
        self, ask: HybridArguments, first: GuidedDenoiser, num_inference_steps: int
    ) -> tuple[dict[str, GuidedDenoiser], list[tuple[str, int]]]:
        """Denoisers by name, this pipeline's own under "", and who runs how many updates."""
        if ask.denoisers is None:
            return {"": first}, []
        numbers = ask.parts(num_inference_steps)
        places = [next(i for i, other in enumerate(ask.denoisers) if other is d) for d in ask.denoisers]
        own = (self, first.model)
        names = ["" if any(ask.denoisers[i] is thing for thing in own) else f"denoiser {i}" for i in places]
        others = {name: d for name, d in zip(names, ask.denoisers, strict=True) if name}
        return collect(first, others), list(zip(names, numbers, strict=True))

    def _run(
        self: Any,
        plan: Plan,
        call: dict[str, Any],
        ask: HybridArguments,
        denoisers: dict[str, GuidedDenoiser],
    ) -> HybridPipelineOutput:
        for name in ("guidance_scale", "clip_skip", "joint_attention_kwargs", "cross_attention_kwargs"):
            setattr(self, f"_{name}", call.get(name))
        self._interrupt, self._num_timesteps = False, call["num_inference_steps"]
        latents, first = plan.latents, denoisers[""]
        if not plan.trajectories:  # a personal run from the very last step: the public image itself
            return HybridPipelineOutput(_finish(first, latents, call["output_type"]), Cost(0, 0), None)
        size = (latents.shape[-2], latents.shape[-1])
        scheduler = prepared_scheduler(first, call["num_inference_steps"], size, call.get("sigmas"), call.get("mu"))
        tree, levels = Tree(plan.trajectories, evaluations(scheduler), nfe_of(denoisers)), noise_levels(scheduler)
        solver, made_by = solver_identity(scheduler), None
        if (kept := plan.handover) is not None:
            if kept.solver != solver or not torch.equal(kept.levels, levels):
                raise ValueError(
                    f"the public run had solver {kept.solver} and its noise schedule, this call has others"
                )
            write_history(scheduler, kept.history)
            made_by = next((name for name, d in denoisers.items() if d.model is kept.model), "another")
        generators = self._generators(call, len(latents)) if draws_noise(scheduler) else None
        check_walk(tree, denoisers, scheduler, generators, ask.handoff)
        encode_ahead(denoisers, [tree])
        if plan.keep_step == 0:
            self._handover = Handover(latents, 0, {}, levels, solver, None)
        options: dict[str, Any] = {"generators": generators, "handoff": ask.handoff, "made_by": made_by}
        rows: Any = tree.roots
        filmstrip = []
        with self.progress_bar(total=tree.cost.tree) as bar:
            for front in walk(tree, denoisers, scheduler, latents, **options):
                if (callback := call["callback_on_step_end"]) is not None:
                    shown = first.to_stock(front.latents)
                    returned = callback(self, front.updates - 1, front.timestep, {"latents": shown})
                    front.latents = first.from_stock(returned.pop("latents", shown), size)
                latents, rows = front.latents, front.members
                if plan.keep_step == front.updates:
                    model = denoisers[tree.levels[front.updates - 1][0].denoiser].model
                    history = read_history(scheduler)
                    self._handover = Handover(latents, front.updates, history, levels, solver, model)
                if ask.get_intermediate_result:
                    filmstrip.append(_finish(first, latents[rows_of(rows)], call["output_type"]))
                bar.update(front.nfe)
                if self.interrupt:
                    break
        if plan.last_codec is not None:
            latents = plan.last_codec.quantise(latents)
        images = _finish(first, latents[rows_of(rows)], call["output_type"])
        return HybridPipelineOutput(images, tree.cost, filmstrip if ask.get_intermediate_result else None)

    def _generators(self: Any, call: dict[str, Any], rows: int) -> dict[int, Generator]:
        """Where each row draws the noise of its updates: for one image what stock diffusers draws from."""
        given = call["generator"]
        if (len(given) if isinstance(given, list) else 1) != rows:
            raise ValueError(
                f"generator must be a list of num_images_per_prompt={rows} generators: "
                f"{type(self.scheduler).__name__} draws noise for each image at every step"
            )
        if not isinstance(given, list):
            device = self._execution_device
            default = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else None
            given = [given or default or torch.default_generator]
        return dict(enumerate(given))


def _ignoring(trajectory: Trajectory, denoisers: dict[str, GuidedDenoiser]) -> Trajectory:
    """The same trajectory without the negative prompts that embedded guidance ignores, checked against denoisers."""
    segments = tuple(
        replace(s, negative_prompt="") if denoisers[s.denoiser].embeds_guidance else s for s in trajectory.segments
    )
    trajectory = Trajectory(trajectory.seed, segments)
    arguments.check_segments([trajectory], denoisers)
    return trajectory


def _finish(denoiser: GuidedDenoiser, latents: Tensor, output_type: str) -> Any:
    return denoiser.to_stock(latents) if output_type == "latent" else decode(denoiser, latents, output_type=output_type)
