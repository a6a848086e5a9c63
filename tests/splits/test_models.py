"""The pair of models of a study: the published solver from a model's own configuration, and what is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from factories import BETAS, diffusion_scheduler, random_sd, random_unet

from hybridlib.denoising import compact
from hybridlib.denoising.pipelines import HybridStableDiffusionPipeline
from hybridlib.splits import models
from hybridlib.study.parameters import SplitParameters

SD14 = BETAS | {"set_alpha_to_one": False, "skip_prk_steps": True}  # as its scheduler's configuration is


def folder_of(path, **options):
    pipeline = random_sd(cls=HybridStableDiffusionPipeline, **options)
    pipeline.save_pretrained(path, safe_serialization=True)
    return str(path)


def test_published_solver_on_the_configuration_of_sd14():
    """Timesteps 999, 959, ..., 40, and as many as steps: PNDM's 25 make 26."""
    pipeline = random_sd(scheduler=PNDMScheduler(**SD14))
    with pytest.raises(ValueError, match="PNDMScheduler cannot be walked as a tree; the pipeline's scheduler must be"):
        models.set_solver(pipeline, "model")
    models.set_solver(pipeline, "dpm-solver++")
    assert type(pipeline.scheduler) is DPMSolverMultistepScheduler
    pipeline.scheduler.set_timesteps(25)
    table = pipeline.scheduler.timesteps.tolist()
    assert (table[:2], table[10], table[-1], len(table)) == ([999, 959], 599, 40, 25)
    models.set_solver(pipeline, "ddim")
    assert type(pipeline.scheduler) is DDIMScheduler
    assert pipeline.scheduler.config.beta_end == SD14["beta_end"]
    with pytest.raises(ValueError, match=r"solver must be 'model' or one of \('dpm-solver\+\+', .*, got 'heun'"):
        models.set_solver(pipeline, "heun")


def test_a_pair_from_folders(tmp_path):
    """A pruned UNet alone, and a whole pipeline whose network is taken."""
    large = folder_of(tmp_path / "large")
    narrow = random_unet(width=16, seed=5)
    compact.save_unet(narrow, tmp_path / "narrow" / "unet")
    whole = folder_of(tmp_path / "whole", seed=3)
    for name, expected in ((str(tmp_path / "narrow"), narrow), (whole, random_sd(seed=3).unet)):
        parameters = SplitParameters(model=large, small_model=name, handoff="reset", image_size=32)
        pipeline, pair = models.load(parameters)
        assert pair.handoff == "reset"
        found = pair.denoisers["small"].state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())
        assert list(models.denoisers(pipeline, pair)) == ["", "small"]


def test_a_pair_that_shares_no_latents_is_refused(tmp_path):
    large = folder_of(tmp_path / "large")
    compact.save_unet(random_unet(width=16, in_channels=8), tmp_path / "other" / "unet")
    with pytest.raises(ValueError, match="'small' cannot go on with the latents .* latent channels 4 and 8"):
        models.load(SplitParameters(model=large, small_model=str(tmp_path / "other"), image_size=32))
    v = folder_of(tmp_path / "v", scheduler=diffusion_scheduler(prediction_type="v_prediction"))
    with pytest.raises(ValueError, match="'small' cannot go on .* prediction type epsilon and v_prediction"):
        models.load(SplitParameters(model=large, small_model=v, image_size=32))
    with pytest.raises(ValueError, match="no miniature model 'mini-nothing'"):
        models.load(SplitParameters(model=large, small_model="mini-nothing", image_size=32))
