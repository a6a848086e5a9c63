"""Stock diffusers on the same parts and noise, and how far from it float32 may drift."""

from __future__ import annotations

from diffusers import StableDiffusion3Pipeline

from hybridlib.noise import initial_noise

# Rows of a batch meet other blockings of the matrix products than a row alone, so latents differ by float32 rounding
# that 28 steps amplify; the drift test below measures it. 1e-4 is the bound the project promises.
DRIFT = 1e-4


def stock(pipeline):
    plain = StableDiffusion3Pipeline(**pipeline.components)
    plain.set_progress_bar_config(disable=True)
    return plain


def noise(pipeline, seed):
    size = pipeline.default_sample_size
    return initial_noise(seed, pipeline.transformer.config.in_channels, size, size)
