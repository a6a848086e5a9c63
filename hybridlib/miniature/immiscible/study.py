"""The pieces of study 11, each remembered under all that decides its numbers, and the tables made of them.

A piece is one network trained under one arm from one seed, and measured. A killed piece goes on from its checkpoint.
Pieces are independent of each other, so any number of processes may share them; see `command`.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import nn

from ...files import digest, locked, write_atomically, write_json
from ...metrics.distribution import frechet_distance
from ...study.pieces import remembered, written
from ...training.assignment import class_means
from ...training.denoising_loss import NONE, Assignment, denoising_loss
from ...training.evaluation import class_mean_error, straightness
from ...training.loop import Recipe, fit
from ...training.matching import choose_condition_weight
from ...training.semidiscrete import SemidiscreteCoupling
from ..scenes import COLOURS, SHAPES
from . import world
from .world import CLASSES, Judges, LoneObjects, Told, Training

if TYPE_CHECKING:
    from ...study.parameters import ImmiscibleParameters

VERSION = 2  # of the numbers; a change of what a piece computes raises it
INDEPENDENT, LINEAR, WITHIN = "independent", "linear", "linear, within condition"
PRICED, PUBLISHED_KNN, CENTRED_KNN = "linear, caption price", "KNN, as published", "KNN, condition-centred"
SEMIDISCRETE, SEMIDISCRETE_WITHIN = "semidiscrete", "semidiscrete, within condition"
FARTHEST = "farthest (control)"
UNCONDITIONAL = "unconditional, "
BASE_SEED = 1000
DIAGNOSED = 8  # batches of the losses that are told beside the measures


class Piece(NamedTuple):
    """One training: which network, from where, under which arm, from which seed."""

    model: str  # "flow" or "epsilon"
    start: str  # "scratch" or "fine-tune"
    arm: str
    seed: int


class Study:
    """The parts of study 11 under one set of parameters; `folder` holds tables, checkpoints and finished pieces."""

    def __init__(self, parameters: ImmiscibleParameters, folder: Path) -> None:
        self.parameters, self.folder = parameters, folder

    # What all pieces share.
    @cached_property
    def told(self) -> Told:
        """Captions."""
        return Told.by_mini_sd3()

    @cached_property
    def objects(self) -> LoneObjects:
        """The training set of every arm."""
        p = self.parameters
        return LoneObjects.drawn(p.images, 11, p.shapes, p.colours, self.folder / "latents")

    @cached_property
    def judges(self) -> Judges:
        """Autoencoder, mini-judge and mini-clip."""
        return Judges()

    @cached_property
    def reference(self) -> Any:
        """mini-clip features of held-out scenes of the same classes, after the autoencoder: what perfection gives."""
        p = self.parameters
        folder = self.folder / "latents"
        drawn = LoneObjects.drawn(p.reference_images, world.REFERENCE_SEED, p.shapes, p.colours, folder)
        path = folder / f"{digest('features', p.reference_images, p.shapes, p.colours)}.safetensors"
        if not path.exists():
            features = torch.from_numpy(self.judges.look(drawn.latents)[1])
            write_atomically(path, save({"features": features}))
        return load_file(path)["features"].numpy()

    def assignment(self, arm: str) -> Assignment:
        """What an arm does with noise."""
        p, (latents, labels) = self.parameters, self.objects
        if arm == WITHIN:
            return Assignment("linear", condition="groups", pool=p.pool)
        if arm == PRICED:
            return Assignment("linear", condition="captions", condition_weight=self.caption_weight, pool=p.pool)
        if arm == PUBLISHED_KNN:
            return Assignment("knn", k=p.k, cost="l2_fp16")
        if arm == CENTRED_KNN:
            return Assignment("knn", k=p.k, means=class_means(latents, labels))
        if arm in (SEMIDISCRETE, SEMIDISCRETE_WITHIN):
            return Assignment("semidiscrete", coupling=self.coupling(within=arm == SEMIDISCRETE_WITHIN))
        name = arm.removeprefix(UNCONDITIONAL)
        if name not in (INDEPENDENT, LINEAR, FARTHEST):
            raise ValueError(f"no arm {arm!r} in this study")
        return NONE if name == INDEPENDENT else Assignment("farthest" if name == FARTHEST else "linear", pool=p.pool)

    @cached_property
    def caption_weight(self) -> float:
        """C2OT's price, so chosen that one row in twenty leaves its caption."""
        p, (latents, labels) = self.parameters, self.objects
        path = self.folder / "couplings" / f"{digest('price', VERSION, self._data_key(), p.pool, p.batch_size)}.json"
        if not path.exists():
            generator = torch.Generator().manual_seed(0)
            rows = torch.randperm(len(latents), generator=generator)[: p.pool * p.batch_size]
            captions = self.told.directions()[labels[rows]]
            write_json({"weight": choose_condition_weight(latents[rows], captions, generator=generator)}, path)
        return json.loads(path.read_text())["weight"]

    def coupling(self, within: bool) -> SemidiscreteCoupling:
        """The semidiscrete potentials, fitted once; with `within`, apart for each class."""
        latents, labels = self.objects
        condition = labels if within else None
        key = digest(VERSION, self._data_key(), self.parameters.passes, within)
        path = self.folder / "couplings" / f"{key}.safetensors"
        if not path.exists():
            SemidiscreteCoupling.fit(latents, condition, passes=self.parameters.passes).save(path)
        return SemidiscreteCoupling.load(path, latents, condition)

    def prepare(self) -> None:
        """Make what several pieces read, so that processes do not make it twice."""
        _ = self.objects, self.reference
        arms = {piece.arm for piece in self.pieces()}
        for arm in arms:
            self.assignment(arm)
        for model in sorted({piece.model for piece in self.pieces() if piece.start == "fine-tune"}):
            self.base(model)

    # Pieces.
    def pieces(self) -> list[Piece]:
        """All of them, seed by seed, so that a run cut short has whole pairs."""
        p, found = self.parameters, []
        for seed in p.seeds:
            for model, arms in (("flow", p.flow_arms), ("epsilon", p.epsilon_arms)):
                found += [Piece(model, "scratch", arm, seed) for arm in arms]
                if arms:
                    found += [Piece(model, "fine-tune", arm, seed) for arm in p.finetune_arms]
        return found

    def base(self, model: str) -> nn.Module:
        """The network that fine-tuning starts from: independent noise, lone objects of all shapes and colours."""
        p = self.parameters
        facts = [p.base_images, p.base_steps, p.batch_size, self._learning_rate(model), p.min_snr_gamma]
        name = f"base-{model}-{digest(VERSION, facts)}"
        path = self.folder / "training" / f"{name}-weights.safetensors"
        net = world.network(model, BASE_SEED)
        if not path.exists():
            with locked(self.folder / ".locks" / name):
                self._train_base(name, model, net, path)
        net.load_state_dict(load_file(path))
        return net

    def _train_base(self, name: str, model: str, net: nn.Module, path: Path) -> None:
        if path.exists():  # made while another process was waited for
            return
        p = self.parameters
        drawn = LoneObjects.drawn(p.base_images, 12, len(SHAPES), len(COLOURS), self.folder / "latents")
        loss_of = self._loss(model, net, Training(drawn, self.told, model))
        recipe = self._recipe(p.base_steps, self._learning_rate(model), BASE_SEED)
        fit(name, net, loss_of, recipe, self.folder / "training")
        write_atomically(path, save(dict(net.state_dict())))
        self._checkpoint(name).unlink(missing_ok=True)

    def piece(self, piece: Piece) -> pd.DataFrame:
        """The measures of one training: a row each with measure, steps (of sampling; 0 where there are none), value."""
        key = self._key(piece)
        table = remembered(self.folder, key, lambda: self._trained_and_measured(piece, key))
        self._checkpoint(key).unlink(missing_ok=True)
        return table

    def _trained_and_measured(self, piece: Piece, key: str) -> pd.DataFrame:
        p, (model, start, arm, seed) = self.parameters, piece
        tuned = start == "fine-tune"
        net = self.base(model) if tuned else world.network(model, seed)
        conditional = not arm.startswith(UNCONDITIONAL)
        examples = Training(self.objects, self.told, model, conditional)
        loss_of = self._loss(model, net, examples, self.assignment(arm))
        steps = {"flow": (p.flow_steps, p.flow_finetune_steps), "epsilon": (p.epsilon_steps, p.epsilon_finetune_steps)}
        rate = p.finetune_learning_rate if tuned else self._learning_rate(model)
        history = fit(key, net, loss_of, self._recipe(steps[model][tuned], rate, seed), self.folder / "training")
        rows = self._measures(model, net, conditional, seed)
        independent = self._loss(model, net, examples)
        for name, loss in (("loss, own pairs", loss_of), ("loss, independent pairs", independent)):
            rows.append([name, 0, _mean_loss(loss, p.batch_size, seed)])
        rows.append(["training seconds", 0, history.seconds])
        return pd.DataFrame(rows, columns=["measure", "steps", "value"]).assign(**piece._asdict())

    def _loss(self, model: str, net: nn.Module, examples: Training, assignment: Assignment = NONE) -> Any:
        """The plain loss of a flow; that of noise is weighed by level, or so short a training learns no condition."""
        gamma = self.parameters.min_snr_gamma if model == "epsilon" else None
        return denoising_loss(net, world.training_scheduler(model), examples, assignment, min_snr_gamma=gamma)

    def _learning_rate(self, model: str) -> float:
        return self.parameters.epsilon_learning_rate if model == "epsilon" else self.parameters.learning_rate

    def _measures(self, model: str, net: nn.Module, conditional: bool, seed: int) -> list[list[Any]]:
        """From the same noise and the same prompts for every arm of a seed, without guidance."""
        p, (latents, labels) = self.parameters, self.objects
        classes = labels.unique()
        asked = classes[torch.arange(p.samples) % len(classes)]
        generator = torch.Generator().manual_seed(1_000_000 + seed)
        noise = torch.randn(p.samples, *latents.shape[1:], generator=generator)
        seen = asked if conditional else torch.full_like(asked, CLASSES)
        told, rows = self.told.conditioning(model, seen), list[list[Any]]()
        for steps in p.step_counts:
            walked = world.paths(model, net, noise, told, steps)
            read, features = self.judges.look(walked.latents)
            rows.append(["Frechet distance", steps, frechet_distance(features, self.reference)])
            if conditional:
                rows.append(["prompt correct", steps, float((read == asked).float().mean())])
                index = torch.searchsorted(classes, asked)
                means = class_means(latents, torch.searchsorted(classes, labels))
                rows.append(["class mean error", steps, class_mean_error(walked.latents, index, means)])
        rows.append(["straightness", steps, straightness(walked.states, walked.sigmas)])
        return rows

    def results(self) -> pd.DataFrame:
        """All pieces in one tidy table: model, start, arm, seed, measure, steps, value."""
        table = pd.concat([self.piece(piece) for piece in self.pieces()], ignore_index=True)
        table = table[["model", "start", "arm", "seed", "measure", "steps", "value"]]
        return written(table, self.folder, "results", self.parameters)

    # Keys and files.
    def _recipe(self, steps: int, learning_rate: float, seed: int) -> Recipe:
        warmup = min(50, steps // 10)
        return Recipe(steps, self.parameters.batch_size, learning_rate, seed, 0.99, warmup, precision="no")

    def _data_key(self) -> list[int]:
        p = self.parameters
        return [p.images, p.shapes, p.colours]

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "training" / f"{name}.safetensors"

    def _key(self, piece: Piece) -> str:
        """Everything that decides a piece; which other arms and seeds there are does not."""
        p = self.parameters
        lists = {"profile", "figures_from", "seeds", "flow_arms", "epsilon_arms", "finetune_arms"}
        facts = {name: v for name, v in p.model_dump().items() if name not in lists and not name.startswith("cost_")}
        return digest(VERSION, facts, piece._asdict())


def _mean_loss(loss_of: Any, size: int, seed: int) -> float:
    """The loss over a few fresh draws, the same for every arm."""
    from ...training.loop import Draw

    device, total = torch.device("cpu"), 0.0
    with torch.no_grad():
        for step in range(DIAGNOSED):
            key = 77_000_000 + seed * 1_000 + step
            total += float(loss_of(Draw(step, size, key, torch.Generator().manual_seed(key), device)))
    return total / DIAGNOSED
