"""Studies whose images are painted instead of denoised: all of the runner, and next to no computing.

`python painted.py FOLDER SIZE REPORT` runs one, and some pieces, as a process of its own.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hybridlib.denoising import families, sampler
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.denoising.tree import plain_nfe
from hybridlib.files import digest, write_table
from hybridlib.study import pieces, runner
from hybridlib.study.parameters import AlignmentParameters

PIECES = 5


class Painted:
    """In the place of `sampler.Samples`: pixels that trajectory and size alone decide."""

    def __init__(self, trajectories, width):
        self.trajectories, self.width = trajectories, width

    def each_image(self):
        for index, trajectory in enumerate(self.trajectories):
            rng = np.random.default_rng(int(digest(trajectory.as_json()), 16))
            yield index, Image.fromarray(rng.integers(0, 255, (32, self.width, 3)).astype(np.uint8))


class Width:
    """A metric that tells which run an image is of."""

    name, identity = "width", "pixels"

    def score(self, images, prompts):
        return np.array([float(image.width) for image in images])


def patches(seconds=0.0):
    """What has to be replaced so that the runner needs no model: (object, attribute, value)."""

    def sample(pipeline, trajectories, width, **_):
        time.sleep(seconds)
        return Painted(trajectories, width)

    yield sampler, "sample", sample
    yield families, "denoiser_of", lambda *a: None
    yield families, "collect", lambda *a: {}
    yield families, "nfe_of", lambda denoisers: plain_nfe
    yield runner, "_context", lambda pipeline, settings, *a: [settings._asdict()]
    yield runner, "with_schedule", lambda table, *a: table
    yield runner, "provenance", lambda *a: {"what": "painted"}


def table(seeds=4, prompts=4):
    """A shard for each seed."""
    rows = [
        {
            "path": f"seed{seed}/{number}.png",
            "prompt": f"prompt {number}",
            "common_step": 2,
            "trajectory": Trajectory.hybrid("a ring", f"prompt {number}", 2, seed),
        }
        for seed in range(seeds)
        for number in range(prompts)
    ]
    return pd.DataFrame(rows)


def study(folder, width=32):
    """The scores of a painted study."""
    return runner.run(table(), None, folder, AlignmentParameters(image_size=width), [Width()])[0]


def _piece(log, number):
    with log.open("a") as file:
        file.write(f"{number}\n")
    time.sleep(0.3)
    return pd.DataFrame({"number": [number]})


def main(folder, width, report):
    for place, name, value in patches(seconds=0.3):
        setattr(place, name, value)
    scores = study(folder, width)
    found = [pieces.remembered(folder, f"p{i}", lambda i=i: _piece(folder / "log", i)) for i in range(PIECES)]
    write_table(scores.assign(pieces=len(pd.concat(found))), report)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
