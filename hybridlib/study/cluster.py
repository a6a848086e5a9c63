"""Shards on several processes or machines: Ray tasks on actors that hold the models (`workers`).

Nothing has to be shared but the models: only the caller writes images and ledgers. What Ray pickles are arguments and
answers between processes that it started; nothing of ours is read from a pickle in a file.

There is a worker for each GPU, or for each n cores, n being the threads of the caller, since bytes can depend on them:
with `OMP_NUM_THREADS=1` it is one a core. `RAY_ADDRESS` names a running cluster; else Ray starts on this machine.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from .workers import Made, Recipe, Shard, Worker

if TYPE_CHECKING:
    from .parameters import Settings

ATTEMPTS = 5  # of a shard whose workers die
POLL_S = 1.0  # between looks at what the workers have done
INSTALL = "pip install 'hybridlib[ray]'"
NEVER_LOADED = (
    "cluster = 'ray': workers die before they have loaded their models, as where Ray's own processes are gone or "
    "memory is too small; what is finished is kept, run the same command again"
)


def require_ray() -> Any:
    """Ray.

    Raises:
        ValueError: one sentence, if it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(f"cluster = 'ray': Ray is not installed; {INSTALL}") from None
    return ray


class Crew:
    """The workers of one recipe. They are kept from call to call, since loading a model takes long."""

    _last: Crew | None = None

    def __init__(self, ray: Any, recipe: Recipe, size: int) -> None:
        self._ray, self._recipe = ray, recipe
        on_gpu = recipe.device == "cuda"
        each = {"num_gpus": 1, "num_cpus": 1} if on_gpu else {"num_cpus": recipe.threads}
        options = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": 2, **each}
        actor = ray.remote(Worker).options(**options)
        self._workers = [actor.remote(recipe) for _ in range(size)]

    @classmethod
    def of(cls, recipe: Recipe, shards: int) -> Crew:
        """The crew of this recipe: that of the last call, if it is still the right one, else a new one.

        Raises:
            ValueError: if Ray is not installed, or the cluster has no room for one worker.
        """
        ray = require_ray()
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS") or "local"
            options = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, logging_level="error", log_to_driver=False, **options)
            cls._last = None
        size = min(shards, _room(ray, recipe))
        if cls._last is not None and (cls._last._recipe != recipe or len(cls._last._workers) < size):
            cls._last.dismiss()
        if cls._last is None:
            cls._last = cls(ray, recipe, size)
        return cls._last

    def dismiss(self) -> None:
        """End the workers."""
        Crew._last = None
        if self._ray.is_initialized():
            for worker in self._workers:
                self._ray.kill(worker)

    def work(
        self, shards: Iterator[Shard], scheduler: Any, settings: Settings, expected: Mapping[str, str], bar: tqdm
    ) -> Iterator[tuple[Shard, Made]]:
        """Make all shards, and yield each as soon as it is there, in any order.

        Shards are asked for one at a time as workers are free, so at most one a worker is under way. The shard of a
        worker that died is given out again.

        Raises:
            ValueError: if a worker has loaded other models or versions than expected, if `ATTEMPTS` workers died of one
                shard, or if no worker lives long enough to load its models, as where Ray's own processes are gone.
        """
        running: dict[Any, _Job] = {worker.load.remote(): _Job(worker) for worker in self._workers}
        again: deque[Shard] = deque()  # whose worker died
        shown: dict[Path, int] = {}  # of each shard under way, what the bar has of it
        deaths: Counter[Path] = Counter()
        idle: list[Any] = []
        unloaded = 0  # deaths before models were loaded, one after another
        exhausted = complete = False
        try:
            while running and not (exhausted and not again and all(job.shard is None for job in running.values())):
                ready, _ = self._ray.wait(list(running), timeout=POLL_S)
                self._show(running.values(), shown, bar)
                for task in ready:
                    job = running.pop(task)
                    answer = self._answer(task)
                    if answer is None:
                        if job.shard is not None:
                            again.append(job.shard)
                            _count_death(job.shard, deaths)
                        elif (unloaded := unloaded + 1) == ATTEMPTS * len(self._workers):
                            raise ValueError(NEVER_LOADED)
                        running[job.worker.load.remote()] = _Job(job.worker)  # Ray starts it anew
                    elif job.shard is None:
                        _check_equal(expected, answer)
                        unloaded = 0
                    if answer is not None:
                        idle.append(job.worker)
                    while idle and (again or not exhausted):
                        if (shard := again.popleft() if again else next(shards, None)) is None:
                            exhausted = True
                        else:
                            worker = idle.pop()
                            running[worker.make.remote(shard.trajectories, scheduler, settings)] = _Job(worker, shard)
                    if answer is not None and job.shard is not None:
                        bar.update(job.shard.nfe - shown.pop(job.shard.ledger, 0))
                        yield job.shard, answer
            complete = True
        finally:
            if not complete:  # what they are doing is not wanted any more
                self.dismiss()

    def _answer(self, task: Any) -> Any:
        """What a task returned, or None if its worker died. What a worker raised is raised here."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(task)
        except exceptions.RayActorError:
            return None
        except exceptions.RayTaskError as failure:
            raise (failure.cause or failure) from None

    def _show(self, jobs: Iterable[_Job], shown: dict[Path, int], bar: tqdm) -> None:
        """Advance the bar by what the workers have evaluated of their shards."""
        asked = {job.worker.done.remote(): job.shard for job in jobs if job.shard is not None}
        answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=POLL_S) if asked else ([], [])
        for question in answered:
            shard = asked[question]
            done, before = min(self._answer(question) or 0, shard.nfe), shown.get(shard.ledger, 0)
            shown[shard.ledger] = max(done, before)
            bar.update(shown[shard.ledger] - before)


class _Job(NamedTuple):
    """What a worker is at: a shard, or loading its models."""

    worker: Any
    shard: Shard | None = None


def _room(ray: Any, recipe: Recipe) -> int:
    """How many workers the cluster has room for: one a GPU, or one for each n cores of a machine."""
    kind, size = ("GPU", 1) if recipe.device == "cuda" else ("CPU", recipe.threads)
    room = sum(int(node["Resources"].get(kind, 0)) // size for node in ray.nodes() if node["Alive"])
    if room < 1:
        raise ValueError(f"cluster = 'ray': a worker needs {size} {kind} of one machine, and the cluster has none such")
    return room


def _count_death(shard: Shard, deaths: Counter[Path]) -> None:
    deaths[shard.ledger] += 1
    if deaths[shard.ledger] == ATTEMPTS:
        raise ValueError(
            f"cluster = 'ray': {ATTEMPTS} workers died one after another of the shard of {shard.paths[0]}; is their "
            "memory too small for batch_size?"
        )


def _check_equal(expected: Mapping[str, str], told: Mapping[str, str]) -> None:
    for name in (*expected, *told):
        if expected.get(name) != told.get(name):
            raise ValueError(
                f"cluster = 'ray': {name} is {told.get(name)} at a worker and {expected.get(name)} here; all machines "
                "need the same models and versions"
            )
