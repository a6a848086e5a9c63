"""The published system: capacities, links and task types with their fixed draws."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class MecConfig:
    """Size and ranges of the system; the defaults are the published ones.

    | parameter  | unit             | default          | drawn as                                           |
    |------------|------------------|------------------|----------------------------------------------------|
    | servers B  |                  | 20               | one edge server at each base station               |
    | max_tasks N|                  | 50               | tasks of a base station in a slot: integers 1..N   |
    | slots T    |                  | 60               | T - 1 are played, the last only supplies next state|
    | capacity C | Gcycles/s        | 10..50           | integers, both ends included, one per server       |
    | rate R     | Mbit/s           | 400..500         | integers, both ends included, one per server       |
    | density    | Gcycles per step | 0.1024..0.3072   | uniform, one per task index n                      |
    | quality z  | denoising steps  | 1..14            | integers, one per task index n                     |
    | result o   | Mbit             | 0.6..1.0         | uniform, one per task index n                      |
    | size d     | Mbit             | 2..5             | uniform, one per task and episode                  |
    | slot       | s                | 1                | constant                                           |

    The published quality is documented as 1..15, but 15 is never drawn. Ranges are (low, high) pairs.

    Raises:
        ValueError: one sentence naming the parameter, its value and what is allowed.
    """

    servers: int = 20
    max_tasks: int = 50
    slots: int = 60
    capacity_gcycles_s: tuple[int, int] = (10, 50)
    rate_mbit_s: tuple[int, int] = (400, 500)
    density_gcycles: tuple[float, float] = (0.1024, 0.3072)
    quality_steps: tuple[int, int] = (1, 14)
    result_mbit: tuple[float, float] = (0.6, 1.0)
    size_mbit: tuple[float, float] = (2.0, 5.0)
    slot_s: float = 1.0
    capacity_seed: int = 2
    rate_seed: int = 5
    task_seed: int = 1

    def __post_init__(self) -> None:
        for name, low in (("servers", 1), ("max_tasks", 1), ("slots", 2)):
            check_whole(name, getattr(self, name), low)
        for name in ("capacity_seed", "rate_seed", "task_seed"):
            check_whole(name, getattr(self, name), 0, 2**32 - 1)
        for name in ("capacity_gcycles_s", "rate_mbit_s", "quality_steps"):
            _ordered(name, getattr(self, name), Integral, "two whole numbers")
        for name in ("density_gcycles", "result_mbit", "size_mbit"):
            _ordered(name, getattr(self, name), Real, "two finite numbers")
        if not (isinstance(self.slot_s, Real) and math.isfinite(self.slot_s) and self.slot_s > 0):
            raise ValueError(f"slot_s must be finite and above 0, got {self.slot_s!r}")

    def __repr__(self) -> str:
        differs = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return f"MecConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in differs)})"

    def at_load(self, load: float) -> MecConfig:
        """The same system with every workload scaled so that the offered load becomes `load`.

        Raises:
            ValueError: unless load is finite and above 0.
        """
        if not (math.isfinite(load) and load > 0):
            raise ValueError(f"load must be finite and above 0, got {load!r}")
        scale = load / Model.draw(self).load
        low, high = self.density_gcycles
        return dataclasses.replace(self, density_gcycles=(low * scale, high * scale))


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ValueError, one sentence, unless `value` is a whole number (no bool) of at least `low`, at most `high`."""
    # A scalar array of whole numbers counts: it is what agents of stable-baselines3 act with.
    whole = isinstance(value, Integral) or (getattr(value, "shape", None) == () and value.dtype.kind in "iu")
    whole = whole and not isinstance(value, bool)
    if not (whole and low <= value and (high is None or value <= high)):
        allowed = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def check_real(name: str, value: Any, allowed: str) -> None:
    """Raises ValueError, one sentence, unless `value` is a finite number inside `allowed`, such as "[0, 1)"."""
    low, high = (float(bound) for bound in allowed[1:-1].split(","))
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    excluded = [bound for bound, bracket in ((low, allowed[0]), (high, allowed[-1])) if bracket in "()"]
    if not (real and low <= value <= high and value not in excluded):
        raise ValueError(f"{name} must be a number in {allowed}, got {value!r}")


def check_config(value: Any) -> None:
    """Raises TypeError, one sentence, unless `value` is a MecConfig."""
    if not isinstance(value, MecConfig):
        raise TypeError(f"config must be a MecConfig, got {type(value).__name__}")


def check_model(value: Any) -> None:
    """Raises TypeError, one sentence, unless `value` is a Model."""
    if not isinstance(value, Model):
        raise TypeError(f"model must be a Model, as Model.draw(config) returns it, got {type(value).__name__}")


def _ordered(name: str, value: Any, kind: Any, words: str) -> None:
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, kind) for v in value)
    if not (pair and all(math.isfinite(v) for v in value) and 0 < value[0] <= value[1]):
        raise ValueError(f"{name} must be {words} with 0 < low <= high, got {value!r}")


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """The fixed draws: servers, links and task types. A task's work depends on its index n alone, everywhere.

    Attributes:
        capacity: Gcycles/s, shape (B,).
        rate: Mbit/s of the link to each server, shape (B,).
        work: Gcycles of task index n, shape (N,).
        result: Mbit of its result, shape (N,).

    Raises:
        TypeError: if config is no MecConfig.
        ValueError: if a shape is wrong, or a value is not finite and above 0.
    """

    config: MecConfig
    capacity: Floats
    rate: Floats
    work: Floats
    result: Floats

    def __post_init__(self) -> None:
        check_config(self.config)
        sizes = {"capacity": self.config.servers, "rate": self.config.servers}
        sizes |= {"work": self.config.max_tasks, "result": self.config.max_tasks}
        for name, size in sizes.items():
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != (size,):
                raise ValueError(f"{name} must have shape ({size},), got {values.shape}")
            if not (np.isfinite(values) & (values > 0)).all():
                worst = values[~(np.isfinite(values) & (values > 0))][0]
                raise ValueError(f"{name} must be finite and above 0 everywhere, got {worst}")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @classmethod
    def draw(cls, config: MecConfig | None = None) -> Model:
        """The published draws: each quantity restarts NumPy's legacy generator at its seed, so work and result
        come from the same uniforms.

        Raises:
            TypeError: if config is no MecConfig.
        """
        c = MecConfig() if config is None else config
        check_config(c)
        low, high = c.capacity_gcycles_s
        capacity = np.random.RandomState(c.capacity_seed).randint(low, high + 1, c.servers, dtype=np.int64)
        low, high = c.rate_mbit_s
        rate = np.random.RandomState(c.rate_seed).randint(low, high + 1, c.servers, dtype=np.int64)
        density = np.random.RandomState(c.task_seed).uniform(*c.density_gcycles, c.max_tasks)
        low, high = c.quality_steps
        quality = np.random.RandomState(c.task_seed).randint(low, high + 1, c.max_tasks, dtype=np.int64)
        result = np.random.RandomState(c.task_seed).uniform(*c.result_mbit, c.max_tasks)
        return cls(c, capacity.astype(np.float64), rate.astype(np.float64), density * quality, result)

    def __repr__(self) -> str:
        c = self.config
        return f"Model({c.servers} servers, {c.max_tasks} task types, {c.slots} slots, load {self.load:.3f})"

    @property
    def offered_gcycles(self) -> float:
        """Expected work arriving per slot at all base stations, Gcycles: index n is present with P(m > n)."""
        n = np.arange(self.config.max_tasks)
        return float(self.config.servers * (self.work * (1 - n / self.config.max_tasks)).sum())

    @property
    def load(self) -> float:
        """Offered work over what all servers can do in a slot. Above 1 the backlog grows without end."""
        return self.offered_gcycles / (float(self.capacity.sum()) * self.config.slot_s)
