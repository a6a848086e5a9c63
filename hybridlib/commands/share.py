"""Images of a list of prompts, drawn as one planned tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..hybrid.sharing.plan import SharingPlan

MODEL = "mini-sd3"  # that the shipped surface was fitted to
TOLD = 20  # prompts told one by one


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; lines without text are left out.

    Raises:
        ValueError: one sentence, if there is no such file, it is no text, or it holds no prompt.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}; it needs one prompt a line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; it needs one a line")
    return prompts


def share(path: Path, seeds: Sequence[int], out: Path | None, dry_run: bool, **options: Any) -> int:
    """Plan, tell the plan, and unless it is a dry run write `out / prompt<number>_seed<seed>.png`, `plan.json` and the
    picture of the tree, `tree.png`.

    Args:
        options: of `hybrid.share`.

    Raises:
        ValueError: one sentence, if a file or an option is not as it must be.
    """
    from ..hybrid import share as plan_for
    from ..progress import quiet_libraries

    prompts = read_prompts(path)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different, got {' '.join(map(str, seeds))}")
    if out is None and not dry_run:
        raise ValueError("images need a folder: pass --out, or --dry-run to see the plan only")
    with quiet_libraries():
        plan = plan_for(prompts, **options)
    print_plan(plan, len(seeds))
    if out is None or dry_run:
        print("Nothing was started.")
        return 0
    from ..denoising import models
    from ..files import write_image, write_json

    _draw(plan, out / "tree.png")
    images = plan.run(models.load(MODEL), list(seeds), max_sequence_length=1)
    names: dict[str, list[str]] = {}
    for number, (prompt, row) in enumerate(zip(plan.prompts, images, strict=True)):
        for seed, image in zip(seeds, row, strict=True):
            name = f"prompt{number:0{len(str(len(images) - 1))}d}_seed{seed}.png"
            write_image(image, out / name)
            names.setdefault(prompt, []).append(name)
    rows = plan.table.to_dict("records")
    told = [{**row, "images": names[str(row["prompt"])]} for row in rows]
    write_json({"nfe": plan.nfe * len(seeds), "model": plan.model, "prompts": told}, out / "plan.json")
    print(f"{sum(map(len, names.values())):,} images in {out}")
    return 0


def _draw(plan: SharingPlan, path: Path) -> None:
    from ..figures import planned_tree, use_house_style
    from ..files import replacing

    use_house_style()
    with replacing(path) as partial:
        planned_tree(plan).savefig(partial, format="png")


def print_plan(plan: SharingPlan, seeds: int = 1) -> None:
    """What is shared, what it saves and what to expect, in sentences."""
    alone = plan.one_at_a_time
    repeated = len(plan.prompts) - len(plan.texts)
    print(f"{len(plan.prompts):,} prompts" + (f", {repeated:,} of them repeated" if repeated else ""))
    saved = f"{1 - plan.nfe / alone:.0%} saved"
    print(f"{plan.nfe * seeds:,} NFE for {seeds} seed(s); one at a time {alone * seeds:,} ({saved})")
    if plan.one_public_nfe is not None:
        print(f"the best single public prompt would take {plan.one_public_nfe * seeds:,}")
    shorter = bool(plan.longest and plan.num_inference_steps < plan.longest)
    if shorter:
        print(f"{plan.num_inference_steps} steps instead of {plan.longest}")
    if not plan.shares:
        reason = "fewer steps save more" if shorter else "no two prompts are alike enough for this floor"
        print(f"nothing is shared: {reason}")
    quality, low, high = plan.quality.mean(axis=1)
    whose = "single prompts" if plan.each else "the mean over the list"
    print(f"mean quality expected at {quality:.3f} ({low:.3f} to {high:.3f}; bounds for {whose})")
    for row in plan.table.head(TOLD).itertuples():
        print(f"  {row.shared:>3} of {plan.num_inference_steps} steps shared, quality {row.quality:.3f}: {row.prompt}")
    if len(plan.texts) > TOLD:
        print(f"  and {len(plan.texts) - TOLD:,} more")
    print(
        "Quality is CLIP alignment, as a share of what nothing shared gives (1). It rests on images of mini-sd3 "
        "(data/results/05_anchored)."
    )
