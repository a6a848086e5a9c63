"""Times put together by hand, and medians of warm steps."""

from __future__ import annotations

import pytest
from factories import random_sd, random_unet

from hybridlib.denoising.families import collect, denoiser_of
from hybridlib.splits import grids, latency


def test_latency_is_its_parts():
    link, pace = latency.Link(8.0, 0.1), latency.Pace(0.01, 0.05, 0.02)  # a megabyte a second
    made = {d.name: d for d in grids.divisions(["4,6", "10,0", "0,10"], 10, ["4,6"], ["2,1,0.3,4"])}
    seconds = {name: latency.latency(d, pace, link, 1e6, 5e5) for name, d in made.items()}
    assert seconds == pytest.approx(
        {
            "large first 4,6": 0.1 + 0.04 + (0.1 + 1.0 + 0.5) + 0.3,  # prompt up, cloud, latents and embeddings, edge
            "large first 10,0": 0.1 + 0.1 + (0.1 + 1.0),  # the final latents come down, no prompt is needed there
            "large first 0,10": 0.02 + 0.5,  # nothing crosses: the prompt is encoded where it was written
            "small first 4,6": 0.02 + 0.3 + 2 * (0.1 + 1.0) + 0.04,  # up and down
            "thinned 2,1,0.3,4": 0.1 + 0.03 + (0.1 + 1.0 + 0.5) + 0.3,  # 3 of 4 updates evaluated
        }
    )
    again = latency.latency(made["large first 4,6"], pace, link, 1e6)
    assert again == pytest.approx(seconds["large first 4,6"] - 0.5 + 0.02)
    table = latency.latency_table(list(made.values()), pace, [link, latency.Link(80.0)], {"latents": 1e6}, 5e5)
    assert len(table) == 5 * 2 * 1 * 2
    assert table["seconds"].iloc[0] == pytest.approx(seconds["large first 4,6"])


def test_seconds_are_medians_of_warm_steps():
    calls = []

    def call():
        calls.append(1)
        pause = 0.2 if len(calls) <= 3 else 0.0  # the first calls are slow
        latency.time.sleep(pause)

    assert latency.median_seconds(call, repeats=5) < 0.05
    assert len(calls) == 8
    pipeline, small = random_sd(), random_unet(width=16)
    denoisers = collect(denoiser_of(pipeline), {"small": small})
    pace = latency.pace_of(denoisers[""], denoisers["small"], 32, repeats=3)
    assert min(pace) > 0
