"""How long a split takes from prompt to image: cloud time + payload / bandwidth + edge time.

Times are measured for each evaluation on this machine, never for an image.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from ..denoising.trajectory import Conditioning
from .grids import LARGE, SMALL, Division

if TYPE_CHECKING:
    from ..denoising.denoisers import GuidedDenoiser


class Link(NamedTuple):
    """A way between edge and cloud."""

    megabits_per_second: float
    delay_s: float = 0.0  # one way

    def seconds(self, payload_bytes: float) -> float:
        """Until the last of these bytes has arrived."""
        return self.delay_s + 8 * payload_bytes / (1e6 * self.megabits_per_second)


class Pace(NamedTuple):
    """Seconds of one step in each place, and of encoding a prompt at the edge."""

    cloud_s: float
    edge_s: float
    encode_s: float = 0.0


def pace_of(
    large: GuidedDenoiser,
    small: GuidedDenoiser,
    image_size: int,
    guidance_scale: float = 7.0,
    cloud_speedup: float = 1.0,
    repeats: int = 15,
) -> Pace:
    """Seconds of one step of one image on this machine, the cloud being `cloud_speedup` times as fast.

    Each is the median of `repeats` steps after three to warm up; a first step pays for what later ones have.
    """
    cloud, edge = (step_seconds(denoiser, image_size, guidance_scale, repeats) for denoiser in (large, small))
    return Pace(cloud / cloud_speedup, edge, median_seconds(lambda: small._encode("a", False), repeats))


def step_seconds(denoiser: GuidedDenoiser, image_size: int, guidance_scale: float = 7.0, repeats: int = 15) -> float:
    """Median seconds in which a denoiser is asked for one step of one image, prompts being encoded."""
    import torch

    side = image_size // denoiser.pipeline.vae_scale_factor
    latents = torch.zeros(1, denoiser.latent_channels, side, side, device=denoiser.device, dtype=denoiser.dtype)
    timestep = torch.tensor(500.0, device=denoiser.device)
    return median_seconds(lambda: denoiser(latents, timestep, [Conditioning("a", "", guidance_scale)]), repeats)


def median_seconds(call: Callable[[], object], repeats: int = 15, warm_up: int = 3) -> float:
    """Median seconds of a call, waiting for the accelerator where there is one."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    spent = []
    with torch.inference_mode():
        for _ in range(warm_up + repeats):
            wait()
            began = time.perf_counter()
            call()
            wait()
            spent.append(time.perf_counter() - began)
    return statistics.median(spent[warm_up:])


def latency(
    division: Division, pace: Pace, link: Link, latent_bytes: float, embedding_bytes: float | None = None
) -> float:
    """Seconds from prompt to final latents at the edge: cloud time + payload / bandwidth + edge time.

    The prompt's way to the cloud is one delay; latents cross at every change of place, the last time to the edge if
    the cloud ends. Where `embedding_bytes` is None the edge encodes its prompt itself, else they cross once.
    """
    places = ["edge", *("cloud" if name == LARGE else "edge" for name, _ in division.parts), "edge"]
    crossings = sum(a != b for a, b in pairwise(places[1:]))
    seconds = crossings * link.seconds(latent_bytes) + (link.delay_s if places[1] == "cloud" else 0.0)
    seconds += division.large_evaluated * pace.cloud_s + division.small_steps * pace.edge_s
    if any(name == SMALL for name, _ in division.parts):
        at_edge = embedding_bytes is None or places[1] == "edge"  # nobody has sent any embeddings by then
        seconds += pace.encode_s if at_edge else link.seconds(embedding_bytes or 0.0) - link.delay_s
    return seconds


def latency_table(
    chosen: Sequence[Division], pace: Pace, links: Sequence[Link], latent_bytes: Mapping[str, float], texts: float
) -> pd.DataFrame:
    """Every division over every link with every payload.

    Args:
        latent_bytes: name of a way to send latents -> bytes.
        texts: bytes of the embeddings.

    Returns:
        One row each: method, split, megabits_per_second, latents, texts ("embeddings sent", "prompt encoded again"),
        seconds.
    """
    rows = []
    for division in chosen:
        for link in links:
            for name, size in latent_bytes.items():
                for told, sent in (("embeddings sent", texts), ("prompt encoded again", None)):
                    seconds = latency(division, pace, link, size, sent)
                    rows.append((division.method, division.label, link.megabits_per_second, name, told, seconds))
    return pd.DataFrame(rows, columns=["method", "split", "megabits_per_second", "latents", "texts", "seconds"])
