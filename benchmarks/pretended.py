"""Memory plans at true size on a GPU that is not there: a run whose tensors have shapes and a device, but no values.

The code is that of a real run: `memory.follow` with the offloading of diffusers, prompts read, a tree walked, images
decoded. PyTorch's fake tensors stand in for all others. They refuse an operation whose tensors lie on two devices, and
every byte on "cuda" is counted from when it is made until nobody holds it. What a GPU adds is not seen: workspaces of
kernels, what the allocator leaves unused, the driver's context. Nothing is timed.

`python benchmarks/pretended.py --sizes sd3-medium --budgets 8 16` takes about a minute a plan, on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pandas as pd
import torch
import transformers
from diffusers.hooks.group_offloading import ModuleGroup
from gpu import PAGE, put_between, table_lines, tokenizers
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hybridlib.denoising import memory
from hybridlib.denoising.blueprints import BLUEPRINTS, Blueprint, assemble, network
from hybridlib.denoising.footprint import FusedAttention, Live
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.texts import TEXTS_NEAR
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.files import write_table
from hybridlib.paths import OUTPUTS

BEGIN = "<!-- counted without a GPU -->"
GPU, GB = torch.device("cuda"), 1e9
SIZES = ["sd3-medium", "sd3.5-medium", "flux.1-dev"]
WORDS = ["".join(letters) for letters in itertools.product("abcdefghijkl", repeat=3)]


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    for library in (diffusers, transformers):  # the stand-in tokenizers cut prompts short
        library.utils.logging.set_verbosity_error()
    rows = []
    for name in given.sizes:
        plans = [(f"{budget:g}", memory.make_plan(name, budget)) for budget in given.budgets]
        plans += [("any", memory.make_plan(name, placement="model"))]  # which no budget chooses
        for budget, plan in plans:
            rows.append({"model": name, "budget GB": budget, "plan": plan.placement} | count(BLUEPRINTS[name], plan))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    write_table(table, given.out / "pretended.parquet")
    if given.write:
        put_between(PAGE, BEGIN, table_lines(table))
        print(f"wrote {PAGE}")


def count(
    parts: Blueprint, plan: memory.MemoryPlan, images: int = memory.ROWS, prompts: int = TEXTS_NEAR
) -> dict[str, float]:
    """Peaks in GB on the device while a plan is followed: texts read, a tree of two updates walked, images decoded.

    Args:
        images: rows of the tree after its first, common update; guided, but for FLUX.1.
        prompts: how many different ones they have. Both are by default what a plan counts with.
    """
    pipeline = assemble(parts, {name: network(*entry) for name, entry in parts.networks.items()}, tokenizers(parts))
    peaks: dict[str, float] = {}
    with pretended_gpu() as live, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the words are none of a miniature's
        for part in parts.networks:
            _without_values(getattr(pipeline, part), getattr(torch, plan.dtype))
        memory.follow(pipeline, plan, GPU)
        at_rest = live.now

        def mark(phase: str) -> None:
            peaks[phase] = max(peaks.get(phase, 0.0), live.peak / GB)
            live.peak = live.now

        read = pipeline.encode_prompt
        pipeline.encode_prompt = lambda *texts, **options: (read(*texts, **options), mark("reading"))[0]
        pipeline.image_processor.postprocess = lambda pictures, **_: [None] * len(pictures)
        paths = [
            Trajectory.hybrid("a star", f"a star {WORDS[i % prompts]}", 1, i // prompts, 2.0, 7.0, "", 2)
            for i in range(images)
        ]
        size = {"height": plan.image_size, "width": plan.image_size}
        samples = sample(pipeline, paths, progress=False, **size)
        mark("walking")
        for _ in samples.each_image():
            pass
        mark("decoding")
    row = {"weights GB": at_rest / GB} | {f"{phase} GB": peak for phase, peak in peaks.items()}
    return row | {"peak GB": max(peaks.values()), "planned GB": plan.peak / GB}


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Live]:
    """A place where tensors have no values, "cuda" is there, and the bytes on it are followed.

    Fake tensors keep their device beside their storage. So what assigns `.data` has to bring it along: the moves of
    modules and of offloaded groups, which otherwise are those of PyTorch and diffusers.
    """
    changes = [
        (torch.nn.Module, "_apply", _apply),
        (ModuleGroup, "_transfer_tensor_to_device", lambda group, to, source, _: _assign(to, source.to(GPU))),
        (ModuleGroup, "_offload_to_memory", _offload),
        (torch.Tensor, "pin_memory", lambda tensor, *_: tensor),
        (torch.Tensor, "is_pinned", lambda tensor, *_: True),
        (torch.cuda, "Stream", mock.MagicMock),
        (torch.cuda, "stream", lambda _: contextlib.nullcontext()),
        (torch.cuda, "current_stream", mock.MagicMock),
        (torch.cuda, "empty_cache", lambda: None),
        (copy, "deepcopy", _copied),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in changes:
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(torch.no_grad())
        live = stack.enter_context(Live(device=GPU.type))
        stack.enter_context(FusedAttention())
        yield live


def _without_values(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Fake weights in host memory; what is one tensor stays one."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors, wrap in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    empty = torch.empty(tensor.shape, dtype=kind, device="cpu")
                    made[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if wrap else empty
                tensors[name] = made[id(tensor)]


def _assign(tensor: Any, source: Any) -> None:
    tensor.data, tensor.fake_device = source, source.fake_device


def _apply(model: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if isinstance(tensor, FakeTensor):
                    _assign(tensor, change(tensor))
                elif tensor is not None:
                    tensors[name] = change(tensor)
    return model


def _offload(group: Any) -> None:
    held = [tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers())]
    for tensor in (*held, *group.parameters, *group.buffers):
        _assign(tensor, group.cpu_param_dict[tensor])


_deepcopy = copy.deepcopy


def _copied(value: Any, memo: Any = None) -> Any:
    """Schedulers hold real tensors, which a fake place cannot copy; nobody changes them in place."""
    if not hasattr(value, "set_timesteps"):
        return _deepcopy(value, memo)
    copied = copy.copy(value)
    vars(copied).update({name: list(held) for name, held in vars(value).items() if isinstance(held, list)})
    return copied


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=BLUEPRINTS, help=", ".join(SIZES))
    parser.add_argument("--budgets", nargs="+", type=float, default=[8.0, 16.0, 24.0, 48.0], help="in GB; a plan each")
    parser.add_argument("--out", type=Path, default=OUTPUTS / "benchmarks" / "gpu", help="folder of the table")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    return parser


if __name__ == "__main__":
    main()
