"""Prompt sets: public prompts, the personal prompts that share them, and a negative for each personal one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .paths import PROMPTS


@dataclass(frozen=True)
class PromptSet:
    """Public and personal prompts. Personal prompt i belongs to public prompt `group[i]` and has `negative[i]`.

    Raises:
        ValueError: naming the file (`source`) and the first empty or duplicate prompt.
    """

    public: tuple[str, ...]
    personal: tuple[str, ...]
    negative: tuple[str, ...]
    group: tuple[int, ...]
    source: str = "prompt set"

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for kind, prompts in (("public", self.public), ("personal", self.personal)):
            if not prompts:
                raise ValueError(f"{self.source}: needs at least one {kind} prompt")
            for index, prompt in enumerate(prompts):
                if not prompt.strip():
                    raise ValueError(f"{self.source}: {kind} prompt {index} is empty")
                if prompt in seen:
                    raise ValueError(f"{self.source}: {kind} prompt {index} is a duplicate: {prompt!r}")
                seen.add(prompt)

    def public_of(self, personal: int) -> str:
        """The public prompt that personal prompt `personal` shares."""
        return self.public[self.group[personal]]

    @staticmethod
    def load(name: str) -> PromptSet:
        """Read a prompt set by its name in `data/prompts` or from the path of a YAML file.

        Raises:
            ValueError: if there is no such file, or it does not hold `groups` of `public` and `personal` prompts.
        """
        import yaml

        path = prompt_file(name)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        public, personal, negative, group = [], [], [], []
        try:
            for index, entry in enumerate(content["groups"]):
                public.append(str(entry["public"]))
                for pair in entry["personal"]:
                    unknown = set(pair) - {"prompt", "negative"}
                    if unknown:
                        raise ValueError(f"{path}: unknown key {sorted(unknown)[0]!r} beside a personal prompt")
                    personal.append(str(pair["prompt"]))
                    negative.append(str(pair.get("negative", "")))
                    group.append(index)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: expected groups, each with public and personal prompts ({error!r})") from None
        return PromptSet(tuple(public), tuple(personal), tuple(negative), tuple(group), str(path))


def prompt_file(name: str) -> Path:
    """The file of a prompt set, or a ValueError that names where it was looked for."""
    shipped = PROMPTS / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.yaml")))
        raise ValueError(f"no prompt set {name!r}: not a file, and not one of {known}")
    return path
