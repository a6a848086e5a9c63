"""The drift certificate of a model on this machine: measured, written where studies find it, and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..denoising.hybrid_call import HybridPipeline

MINIATURE_METRICS = ("clip:mini-clip", "brisque")


def certify(
    model: str,
    prompts: str | None,
    metrics: Sequence[str] | None,
    steps: int,
    image_size: int | None,
    batch_size: int,
    max_sequence_length: int,
    device: str | None = None,
    dtype: str | None = None,
) -> Path:
    """Measure the drift of a model, and write `outputs/certificates/<key>.json` and `.parquet`.

    The key is made of model, device, precision, threads and versions, so a study that runs under the same finds the
    certificate and records its checksum.

    Args:
        model: a miniature's name, a folder or a hub id.
        prompts: a prompt set; that of the miniatures or of SD3 by default, as the model is.
        metrics: names as in `metrics.named.load`; by default those that ship for miniatures, BRISQUE for others.
        image_size: pixels; the model's own by default.

    Raises:
        ValueError: one sentence, if something is not there or out of range.
    """
    from ..denoising import models
    from ..denoising.families import denoiser_of
    from ..files import write_json, write_table
    from ..metrics import named
    from ..prompts import PromptSet
    from ..study import certificate, origin
    from ..study.parameters import Settings

    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if not 1 <= value <= 1000:
            raise ValueError(f"{name} must lie in 1..1000, got {value}")
    is_miniature = model.startswith("mini-")
    shipped = MINIATURE_METRICS if is_miniature else ("brisque",)
    chosen = shipped if metrics is None else metrics
    for name in chosen:
        named.check(name)
    prompt_set = PromptSet.load(prompts or ("miniature" if is_miniature else "sd3-medium"))
    pipeline = models.load(model, device, dtype)
    denoiser = denoiser_of(pipeline)
    settings = Settings(steps, image_size or denoiser.default_size, batch_size, max_sequence_length)
    paths = certificate.trajectories_of(prompt_set, steps, negatives=not denoiser.embeds_guidance)
    loaded = [named.load(name) for name in chosen]
    measured = certificate.measure(pipeline, paths, settings, loaded, _others(model, pipeline))
    file = origin.certificate_file(pipeline)
    table = write_table(measured.drift, file.with_suffix(".parquet"))
    rows = measured.drift.astype(object).where(measured.drift.map(_is_told), None).to_dict("records")
    content: dict[str, Any] = {
        "model": model,
        "identity": denoiser.identity,
        "place": origin.place(pipeline),
        "versions": origin.versions().to_dict(),
        "settings": settings.as_json(),
        "metrics": {metric.name: metric.identity for metric in loaded},
        "exact_holds": measured.exact_holds,
        "seconds": {way: round(seconds, 3) for way, seconds in measured.seconds.items()},
        "drift": rows,  # psnr_db is null where all images are equal
        "table": table,
    }
    write_json(content, file)
    print_certificate(measured, file)
    return file


def _is_told(value: object) -> bool:
    """Whether JSON can hold it: numbers that are not finite it cannot."""
    return not isinstance(value, float) or abs(value) < float("inf")


def _others(model: str, pipeline: HybridPipeline) -> list[tuple[str, Callable[[], HybridPipeline]]]:
    """The model in the other precisions of its device, and on the CPU where it is on a GPU."""
    import functools

    import torch

    from ..denoising import models
    from ..denoising.families import denoiser_of

    denoiser = denoiser_of(pipeline)
    kind, own = denoiser.device.type, str(denoiser.dtype).removeprefix("torch.")
    precisions = ["float32", "bfloat16", "float16"] if torch.cuda.is_available() else ["float32", "bfloat16"]
    ways = [(kind, dtype) for dtype in precisions if dtype != own]
    ways += [("cpu", "float32")] if kind != "cpu" else []
    return [(f"{dtype} on {where}", functools.partial(models.load, model, where, dtype)) for where, dtype in ways]


def print_certificate(measured: Any, file: Path) -> None:
    """The table and what it means, in sentences."""
    print(measured.drift.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep=""))
    seconds = measured.seconds
    cost = seconds["exact"] / seconds["batched"]
    if measured.exact_holds:
        print(f"exact mode holds: a row alone, in company and in reverse gives the same bits; it takes x{cost:.1f}")
    else:
        print("exact mode FAILS here: a row gets other bits beside other rows; studies with exact: true are refused")
    print(f"wrote {file} and {file.with_suffix('.parquet').name}; studies of this model here record its checksum")
