"""Shards on workers: the same bytes as in this process, whoever dies. A stand-in plays Ray; Ray itself is slow."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from factories import random_sd, random_sd3, random_unet

from hybridlib.denoising import models
from hybridlib.denoising.solvers import with_solver
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.files import checksum
from hybridlib.study import cluster, preflight, reproduce, workers
from hybridlib.study.origin import Models
from hybridlib.study.parameters import AlignmentParameters, HiqmParameters, Settings
from hybridlib.study.runner import generate

SETTINGS = Settings(num_inference_steps=2, image_size=32, batch_size=8, max_sequence_length=8)


def small_table(seeds=(1, 2, 3), names=("",)):
    """A shard for each seed, each of two images for every denoiser."""
    rows = []
    for seed in seeds:
        for text in ("a ring", "a star"):
            path = Trajectory.hybrid("a", text, 1, seed, num_inference_steps=2)
            rows.append({"path": f"{seed}/{text}.png", "trajectory": path.with_denoisers([("", 1), (names[-1], 1)])})
    return pd.DataFrame(rows)


def files(folder):
    """Every image, and what every ledger says of images."""
    made = {str(p.relative_to(folder)): checksum(p) for p in folder.rglob("*.png")}
    return made | {p.name: json.loads(p.read_text())["sha256"] for p in (folder / ".ledger").iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline that workers can load: a folder."""
    folder = tmp_path_factory.mktemp("models") / "own"
    random_sd3().save_pretrained(folder)
    return models.load(str(folder), "cpu")


# --- a stand-in for Ray, in this process


class Died(Exception):
    pass


class Failed(Exception):
    cause: Exception | None = None


class StandIn:
    """What `cluster` uses of Ray. Every task runs when somebody waits for it; chosen ones lose their worker."""

    exceptions = SimpleNamespace(RayActorError=Died, RayTaskError=Failed)

    def __init__(self, dying=(), cpus=2, lasts=1000):
        self.dying, self.made, self.killed, self.cpus = set(dying), 0, 0, cpus
        self.lasts, self.gone = lasts, False  # Ray's own processes end with this shard
        self.under_way = self.most_under_way = 0
        self.actors = []

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(self.cpus)}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, cls):
        return SimpleNamespace(
            options=lambda **options: SimpleNamespace(remote=lambda recipe: self._actor(cls, recipe))
        )

    def _actor(self, cls, recipe):
        actor = Actor(self, cls, recipe)
        self.actors.append(actor)
        return actor

    def wait(self, tasks, num_returns=1, timeout=None):
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task):
        return task()

    def kill(self, actor):
        self.killed += 1


class Actor:
    def __init__(self, ray, cls, recipe):
        self.ray, self.cls, self.recipe, self.worker = ray, cls, recipe, cls(recipe)
        self.load = SimpleNamespace(remote=lambda: self._call("load") if not ray.gone else self._lost)
        self.make = SimpleNamespace(remote=self._make)
        self.done = SimpleNamespace(remote=lambda: self._call("done"))

    def _call(self, name, *arguments):
        def task():
            try:
                return getattr(self.worker, name)(*arguments)
            except ValueError as error:
                failure = Failed()
                failure.cause = error
                raise failure from error

        return task

    def _lost(self):
        raise Died

    def _make(self, *arguments):
        number = self.ray.made
        self.ray.made += 1
        self.ray.under_way += 1
        self.ray.most_under_way = max(self.ray.most_under_way, self.ray.under_way)
        task = self._call("make", *arguments)

        def finish():
            self.ray.under_way -= 1
            if number >= self.ray.lasts:
                self.ray.gone = True
            if self.ray.gone or number in self.ray.dying:
                self.worker = self.cls(self.recipe)  # a new process, which has loaded nothing
                raise Died
            return task()

        return finish


@pytest.fixture
def stand_in(monkeypatch):
    def use(**options):
        ray = StandIn(**options)
        monkeypatch.setattr(cluster, "require_ray", lambda: ray)
        monkeypatch.setattr(cluster.Crew, "_last", None)
        return ray

    return use


@pytest.mark.parametrize("dying", [(), (0, 1, 3)])
def test_workers_make_the_same_bytes_whoever_dies(saved, tmp_path, stand_in, dying):
    table = small_table()
    here = generate(table, saved, tmp_path / "here", SETTINGS, progress=False)
    ray = stand_in(dying=dying)
    there = generate(table, saved, tmp_path / "there", SETTINGS, progress=False, cluster="ray")
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert (there.images, there.cost) == (here.images, here.cost)
    assert ray.made == 3 + len(dying)
    assert ray.most_under_way == len(ray.actors) == 2  # no shard waits at a worker
    generate(table, saved, tmp_path / "there", SETTINGS, progress=False, cluster="ray")
    assert ray.made == 3 + len(dying)  # all is there: nobody is asked
    (tmp_path / "there" / table["path"].iloc[2]).write_bytes(b"damaged")
    generate(table, saved, tmp_path / "there", SETTINGS, progress=False, cluster="ray")
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert ray.made == 4 + len(dying)
    assert len(ray.actors) == 2  # the crew is kept


def test_a_shard_that_kills_its_workers_is_named(saved, tmp_path, stand_in):
    ray = stand_in(dying=range(100))
    with pytest.raises(ValueError, match=r"5 workers died one after another of the shard of 1/a ring.png"):
        generate(small_table(), saved, tmp_path, SETTINGS, progress=False, cluster="ray")
    assert ray.killed == 2
    assert not list(tmp_path.rglob("*.png"))


def test_a_cluster_that_is_gone_is_told_and_what_is_finished_stays(saved, tmp_path, stand_in):
    table = small_table()
    stand_in(lasts=1)
    with pytest.raises(ValueError, match="die before they have loaded their models, as where Ray's own processes"):
        generate(table, saved, tmp_path / "there", SETTINGS, progress=False, cluster="ray")
    assert len(list((tmp_path / "there" / ".ledger").iterdir())) == 1
    stand_in()
    generate(table, saved, tmp_path / "there", SETTINGS, progress=False, cluster="ray")
    generate(table, saved, tmp_path / "here", SETTINGS, progress=False)
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_what_a_worker_refuses_is_raised_here(saved, tmp_path, stand_in):
    stand_in()
    with pytest.raises(ValueError, match="a segment asks for denoiser 'small'"):
        generate(small_table(names=("small",)), saved, tmp_path, SETTINGS, progress=False, cluster="ray")


def test_a_worker_with_another_model_is_refused(saved, tmp_path, stand_in, monkeypatch):
    """Control of the fingerprints: one bias of the VAE, one version."""
    stand_in()
    generate(small_table((1,)), saved, tmp_path / "a", SETTINGS, progress=False, cluster="ray")
    bias = saved.vae.decoder.conv_out.bias
    before = bias.data.clone()
    try:
        bias.data[0] += 1e-3
        stand_in()
        with pytest.raises(ValueError, match="vae is [0-9a-f]{16} at a worker and .* here; all machines need the same"):
            generate(small_table((1,)), saved, tmp_path / "b", SETTINGS, progress=False, cluster="ray")
    finally:
        bias.data.copy_(before)
    with pytest.raises(ValueError, match="version of torch is 1 at a worker and 2 here"):
        cluster._check_equal({"version of torch": "2"}, {"version of torch": "1"})
    with pytest.raises(ValueError, match="text_encoder_3 is None at a worker"):
        cluster._check_equal({"text_encoder_3": "a"}, {})


def test_workers_get_solvers_and_other_denoisers(tmp_path, stand_in):
    pipeline = random_sd()
    pipeline.save_pretrained(tmp_path / "large")
    random_sd(seed=1).save_pretrained(tmp_path / "small")
    pipeline, small = (models.load(str(tmp_path / name), "cpu") for name in ("large", "small"))
    stand_in()
    table = small_table((1, 2), ("", "small"))
    for denoiser in (small, small.unet):
        given = Models({"small": denoiser}, "reset")
        for where in ("local", "ray"):
            generate(table, pipeline, tmp_path / where, SETTINGS, progress=False, models=given, cluster=where)
        assert files(tmp_path / "local") == files(tmp_path / "ray")
    flow = random_sd3()
    flow.save_pretrained(tmp_path / "flow")
    solved = with_solver(models.load(str(tmp_path / "flow"), "cpu"), "dpm-solver++")
    for where in ("local", "ray"):
        generate(small_table((1,)), solved, tmp_path / "solved" / where, SETTINGS, progress=False, cluster=where)
    assert files(tmp_path / "solved" / "local") == files(tmp_path / "solved" / "ray")


class Own:
    identity = "mine"

    def __call__(self, latents, timestep, conditionings):
        return latents


def test_what_workers_cannot_load_is_refused(saved, tiny, tmp_path, stand_in):
    table, run = small_table((1,)), {"folder": tmp_path, "settings": SETTINGS, "progress": False}
    stand_in(cpus=0)
    with pytest.raises(ValueError, match=r"a worker needs \d+ CPU of one machine, and the cluster has none such"):
        generate(table, saved, **run, cluster="ray")
    with pytest.raises(ValueError, match="workers load the pipeline by its name, so it must come from models.load"):
        generate(table, tiny, **run, cluster="ray")
    for other in (Own(), random_sd3(seed=1).transformer):
        with pytest.raises(ValueError, match="denoiser 'mine' was not loaded from a folder"):
            generate(table, saved, **run, cluster="ray", models=Models({"mine": other}))
    with pytest.raises(ValueError, match=r"cluster must be one of \('local', 'ray'\), got 'slurm'"):
        generate(table, saved, **run, cluster="slurm")


def test_models_are_named_so_that_other_machines_find_them(saved, tmp_path):
    recipe = workers.recipe_of(saved, Models())
    assert os.path.isabs(recipe.model)
    assert workers._source(SimpleNamespace(config={"_name_or_path": str(models.MODELS / "mini-sd3")})) == "mini-sd3"
    assert workers._source(SimpleNamespace(config={"_name_or_path": "somebody/sd3"})) == "somebody/sd3"
    pruned = random_unet()
    models_folder = tmp_path / "unet"
    from hybridlib.denoising import compact

    compact.save_unet(pruned, models_folder)
    assert workers._source(compact.load_unet(models_folder)) == str(models_folder)
    assert workers._source(pruned) == ""


# --- parameters and command


def test_the_cluster_is_a_parameter_that_provenance_does_not_tell(monkeypatch):
    assert AlignmentParameters(cluster="ray").model_dump() == AlignmentParameters().model_dump()
    with pytest.raises(ValueError, match="02_alignment: cluster = 'rai': input should be 'local' or 'ray'"):
        AlignmentParameters.from_names({"cluster": "rai"})
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = preflight.missing({"02_alignment": AlignmentParameters(cluster="ray")})
    assert missing == ["02_alignment: cluster = 'ray': Ray is not installed; pip install 'hybridlib[ray]'"]


def test_the_command_sets_the_cluster_of_studies_that_make_images(tmp_path):
    tasks = [reproduce.Task(tmp_path, tmp_path, p) for p in (AlignmentParameters(), HiqmParameters())]
    changed = reproduce.on_cluster(tasks, "ray")
    assert [dict(task.changes) for task in changed] == [{"cluster": "ray"}, {}]
    assert changed[0].checked.cluster == "ray"
    assert reproduce.default_workers(changed) == 1
    with pytest.raises(ValueError, match="cluster = 'ray': none of .* makes images in shards"):
        reproduce.on_cluster(tasks[1:], "ray")


# --- Ray itself


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_makes_the_same_bytes_though_a_worker_is_killed(saved, tmp_path):
    ray = pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    table = small_table(range(12))
    generate(table, saved, tmp_path / "here", SETTINGS, progress=False)
    killed = []

    def kill_one():
        while not (tmp_path / "there" / ".ledger").is_dir():  # until the first shard is there
            time.sleep(0.05)
        children = psutil.Process().children(recursive=True)
        pids = [child.pid for child in children if "Worker" in " ".join(child.cmdline())]
        os.kill(pids[0], signal.SIGKILL)
        killed.append(pids[0])

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        generate(table, saved, tmp_path / "there", SETTINGS, progress=False, cluster="ray")
    finally:
        ray.shutdown()
    assert killed
    assert files(tmp_path / "there") == files(tmp_path / "here")
