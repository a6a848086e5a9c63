"""What parameters of any study are, and how they are checked: in one place, from a YAML file or a notebook cell."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ...files import read_yaml
from ...names import closest
from ...paths import OUTPUTS
from ...prompts import PromptSet, prompt_file
from ...trust import InvalidInput, shown

Scale = Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=0, le=1000)]
Index = Annotated[int, Field(ge=0)]


class Settings(NamedTuple):
    """Everything beside the trajectories that decides the bytes of an image."""

    num_inference_steps: int = 28
    image_size: int = 64
    batch_size: int = 64
    max_sequence_length: int = 256
    shift: float | None = None  # of the noise schedule; the model's own where None
    exact: bool = False  # every row denoised, decoded and scored by itself: no result depends on its batch

    def as_json(self) -> dict[str, Any]:
        """What ledgers tell of it; `exact` only where it is set, as ledgers were before there was any."""
        return {name: value for name, value in self._asdict().items() if name != "exact" or value}

    def sampling(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments for `sampler.sample`."""
        kept = self._replace(**changes)
        return {
            "num_inference_steps": kept.num_inference_steps,
            "height": kept.image_size,
            "width": kept.image_size,
            "batch_size": 1 if kept.exact else kept.batch_size,
            "max_sequence_length": kept.max_sequence_length,
            "shift": kept.shift,
        }


class Parameters(BaseModel):
    """What every study needs. Unknown names and wrong types are refused, never converted or ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    notebook: ClassVar[str] = "own"  # names the study in its provenance; a subclass says which one it is

    profile: str = Field("smoke", max_length=63, pattern=r"^\w[\w.-]*$")  # names a folder of outputs/

    @field_validator("profile")
    @classmethod
    def _profile_lies_in_outputs(cls, name: str) -> str:
        if not (OUTPUTS / name).resolve().is_relative_to(OUTPUTS.resolve()):
            raise ValueError(f"{OUTPUTS / name} is a link to another place; link {OUTPUTS} itself instead")
        return name

    @classmethod
    def from_names(cls, names: dict[str, Any]) -> Self:
        """Parameters from a notebook's variables (`globals()`).

        What papermill injects is checked for unknown names, too: papermill itself only warns of them.

        Raises:
            InvalidInput: one sentence naming the notebook, the key, its value and what is allowed.
        """
        wanted = {*cls.model_fields, *_assigned_in_parameter_cells(names.get("In", []))}
        return _checked(cls, {name: names[name] for name in names if name in wanted}, cls.notebook)

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Parameters from a YAML file; what it leaves out keeps its default.

        Raises:
            InvalidInput: one sentence naming the file, the key, its value and what is allowed.
        """
        content = read_yaml(path)
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise InvalidInput(f"{path}: expected a mapping of parameter names to values, got {type(content).__name__}")
        return _checked(cls, content, str(path))


class OwnParameters(Parameters):
    """Of a notebook that is not shipped: it checks its own; here only names are, against those that it declares."""

    model_config = ConfigDict(extra="allow")

    def check_names(self, declared: Iterable[str], source: Path) -> None:
        """Refuse a name that the notebook does not declare.

        Raises:
            InvalidInput: one sentence naming the file, the name and what is declared.
        """
        for name in self.model_extra or {}:
            if name not in (declared := list(declared)):
                guess = closest(name, declared)
                raise InvalidInput(f"{source}: {_name(name)} is no parameter{guess}; known: {', '.join(declared)}")


class PromptParameters(Parameters):
    """What a study of a prompt set needs."""

    prompts: str = "miniature"

    @field_validator("prompts")
    @classmethod
    def _prompt_file_exists(cls, name: str) -> str:
        prompt_file(name)
        return name


class SamplingParameters(PromptParameters):
    """What a study needs that makes images."""

    model: str = "mini-sd3"
    image_size: int = Field(64, ge=16, le=4096, multiple_of=16)
    num_inference_steps: int = Field(28, ge=1, le=1000)
    shift: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)  # of the noise schedule; None: the model's own
    max_sequence_length: int = Field(1, ge=0, le=512)
    batch_size: int = Field(64, ge=1, le=4096)
    exact: bool = False
    cluster: Literal["local", "ray"] = Field("local", exclude=True)  # where images are made decides nothing of them

    def settings(self) -> Settings:
        """What the sampler needs to know beside the trajectories."""
        return Settings(
            self.num_inference_steps,
            self.image_size,
            self.batch_size,
            self.max_sequence_length,
            self.shift,
            self.exact,
        )

    def _check_steps(self, *names: str) -> None:
        """Common steps lie below num_inference_steps, as in the published pipeline."""
        for name in names:
            for step in _as_list(getattr(self, name)):
                if step >= self.num_inference_steps:
                    raise ValueError(f"{name} = {step}: must be below num_inference_steps = {self.num_inference_steps}")

    def _check_prompts(self, kind: Literal["personal", "joint"], *names: str) -> None:
        """Indices of prompts exist in the prompt set."""
        available = len(getattr(PromptSet.load(self.prompts), kind))
        for name in names:
            for index in _as_list(getattr(self, name)):
                if index >= available:
                    raise ValueError(
                        f"{name} = {index}: the prompt set {self.prompts!r} has {available} {kind} prompts"
                    )


def _name(key: str) -> str:
    """A key as a sentence may hold it."""
    return key if key.isprintable() and len(key) < 80 else shown(key)


def _as_list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def _assigned_in_parameter_cells(executed: list[str]) -> set[str]:
    """Names assigned in the executed cells that begin as papermill's parameter cells do."""
    cells = [ast.parse(source) for source in executed if source.startswith("# Parameters")]
    targets = (
        node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        for cell in cells
        for node in cell.body
    )
    return {target.id for target in targets if isinstance(target, ast.Name)}


P = TypeVar("P", bound=Parameters)


def _checked(cls: type[P], values: dict[str, Any], source: str) -> P:
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise InvalidInput(f"{source}: {message}") from None
        key = _name("".join(f"[{part}]" if isinstance(part, int) else str(part) for part in first["loc"]))
        if first["type"] == "extra_forbidden":
            guess = closest(key, cls.model_fields)
            raise InvalidInput(
                f"{source}: {key} is no parameter{guess}; known: {', '.join(cls.model_fields)}"
            ) from None
        raise InvalidInput(f"{source}: {key} = {shown(first['input'])}: {message[0].lower()}{message[1:]}") from None
