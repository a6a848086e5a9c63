"""Study 11: arms differ in noise alone, pieces are remembered and resumed, and verdicts say what the table says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from hybridlib.metrics.alignment import ClipAlignment
from hybridlib.miniature.immiscible import claims, command, mechanism, study, world
from hybridlib.miniature.immiscible.study import INDEPENDENT, LINEAR, UNCONDITIONAL, WITHIN, Piece, Study
from hybridlib.miniature.immiscible.world import CLASSES, Judges, LoneObjects, Told
from hybridlib.miniature.scenes import COLOURS, SHAPES, captions, sample_lone
from hybridlib.study.parameters import ImmiscibleParameters
from hybridlib.training.denoising_loss import Pairs
from hybridlib.training.evaluation import straightness
from hybridlib.training.loop import Draw

SMALL = ImmiscibleParameters(
    images=40,
    base_images=40,
    reference_images=130,
    seeds=[0],
    batch_size=8,
    pool=2,
    passes=2,
    base_steps=2,
    flow_steps=2,
    flow_finetune_steps=1,
    epsilon_steps=2,
    epsilon_finetune_steps=1,
    samples=4,
    step_counts=[1, 2],
    flow_arms=[INDEPENDENT, WITHIN, UNCONDITIONAL + INDEPENDENT],
    epsilon_arms=[INDEPENDENT],
    cost_batch_sizes=[16],
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Study(SMALL, tmp_path_factory.mktemp("study"))


def test_classes_are_told_by_their_captions():
    """The class of a lone object, its caption and what the transformer is told belong together."""
    told = Told.by_mini_sd3()
    assert told.embeds.shape == (CLASSES + 1, 3, 160)
    assert told.pooled.shape == (CLASSES + 1, 160)
    scenes = sample_lone(20, 3, 4, 3)
    texts = captions(scenes)
    for text, shape, colour in zip(texts, scenes.shape[:, 0].tolist(), scenes.colour[:, 0].tolist(), strict=True):
        assert f"{list(COLOURS)[colour]} {list(SHAPES)[shape]}" in text
    cosine = torch.nn.functional.normalize(told.directions(), dim=1)
    assert float((cosine @ cosine.T - torch.eye(CLASSES)).max()) < 0.9  # C2OT's price tells all captions apart
    conditioned = told.conditioning("flow", torch.tensor([5, CLASSES]))
    assert torch.equal(conditioned["encoder_hidden_states"], told.embeds[[5, -1]])


@pytest.mark.slow
def test_judges_read_the_training_set(small):
    """What the arms are measured by sees in encoded scenes what was drawn; features are those of the metric."""
    judges, (latents, labels) = Judges(), small.objects
    read, features = judges.look(latents)
    assert float((read == labels).float().mean()) > 0.9
    images = torch.cat(list(judges.images(latents[:3])))
    from PIL import Image

    pictures = [Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()) for image in images]
    expected = ClipAlignment.load("mini-clip", "cpu").image_features(pictures).numpy()
    np.testing.assert_allclose(features[:3], expected, atol=0.03)  # pixels of eight bits


@pytest.mark.parametrize("model", ["flow", "epsilon"])
@pytest.mark.parametrize("steps", [1, 3, 28])
def test_sampling_of_a_perfect_model_is_straight_and_ends_at_its_image(model, steps):
    """A network that knows the one image there is: every path is straight and ends there after any number of steps."""
    image = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    levels = (1 - torch.tensor(world.trained_betas(), dtype=torch.float64)).cumprod(0)

    def perfect(noisy, timestep, return_dict, **_):
        if model == "flow":
            return ((noisy - image) / (timestep.view(-1, 1, 1, 1) / 1000),)
        kept = levels[timestep.long()].view(-1, 1, 1, 1)
        return (((noisy - kept.sqrt() * image) / (1 - kept).sqrt()).float(),)

    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    walked = world.paths(model, perfect, noise, {}, steps)
    torch.testing.assert_close(walked.latents, image.expand(2, -1, -1, -1), atol=2e-3, rtol=0)
    assert len(walked.states) == len(walked.sigmas) == steps + 1
    assert straightness(walked.states, walked.sigmas) < 1e-4
    torch.testing.assert_close(walked.states[-1], walked.latents)


def test_every_arm_names_an_assignment(small):
    seen = []
    for arm in (*SMALL.flow_arms, LINEAR, *claims.AWARE, *claims.UNAWARE, study.FARTHEST, study.CENTRED_KNN):
        pair = Pairs(world.Training(small.objects, small.told, "flow"), small.assignment(arm))(
            Draw(0, 8, 5, torch.Generator().manual_seed(5), torch.device("cpu"))
        )
        assert pair.noise.shape == (8, 16, 8, 8)
        seen.append(small.assignment(arm).mode)
    assert set(seen) == {"none", "linear", "knn", "semidiscrete", "farthest"}
    with pytest.raises(ValueError, match="no arm 'best' in this study"):
        small.assignment("best")


@pytest.mark.slow
def test_pieces_are_remembered_and_make_one_table(small, monkeypatch):
    table = small.results()
    assert len(small.pieces()) == 6
    assert table.columns.tolist() == ["model", "start", "arm", "seed", "measure", "steps", "value"]
    conditional = {"Frechet distance", "prompt correct", "class mean error"}
    for piece in small.pieces():
        rows = table[(table[list(Piece._fields)] == list(piece)).all(axis=1)]
        assert set(rows[rows["steps"] == 1]["measure"]) <= conditional
        assert ("prompt correct" in set(rows["measure"])) == (not piece.arm.startswith(UNCONDITIONAL))
        assert rows["value"].notna().all()
    assert (small.folder / "results.json").is_file()
    assert not [f for f in (small.folder / "training").iterdir() if "weights" not in f.name]  # checkpoints are gone
    monkeypatch.setattr(study, "fit", None)  # nothing is trained again
    pd.testing.assert_frame_equal(Study(SMALL, small.folder).results(), table)
    more = SMALL.model_copy(update={"seeds": [0, 1]})
    assert Study(more, small.folder)._key(small.pieces()[0]) == small._key(small.pieces()[0])
    longer = SMALL.model_copy(update={"flow_steps": 3})
    assert Study(longer, small.folder)._key(small.pieces()[0]) != small._key(small.pieces()[0])


def test_mechanism_knows_the_controls(small):
    assignments = SMALL.model_copy(update={"flow_arms": [INDEPENDENT, LINEAR, study.FARTHEST], "pool": 16})
    pairs = mechanism.statistics(Study(assignments, small.folder)).set_index("arm")
    assert pairs.loc[LINEAR, "r1"] > 0.3 > abs(pairs.loc[INDEPENDENT, "r1"])
    assert pairs.loc[study.FARTHEST, "r1"] < -0.3
    assert pairs["noise_std"].between(0.98, 1.02).all()
    assert (pairs[["mean z", "std z"]] < 1).all(axis=None)  # permutations of exact noise
    sizes = mechanism.dimensions(small)
    assert sizes["dimension"].tolist() == [64, 256, 1024]
    assert sizes["mean_cosine"].is_monotonic_decreasing


def results_of(values, seeds=5, steps=(1, 4, 28, 48)):
    """A table in which each arm lies by given per cent above independent noise at each number of steps."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        luck = rng.normal(1, 0.1)  # in common to all arms of a seed
        for arm, above in ({INDEPENDENT: [0] * len(steps)} | values).items():
            for step, percent in zip(steps, above, strict=True):
                value = luck * (1 + percent / 100) * rng.normal(1, 0.005)
                rows.append(["flow", "scratch", arm, seed, "Frechet distance", step, value])
    return pd.DataFrame(rows, columns=["model", "start", "arm", "seed", "measure", "steps", "value"])


def test_verdicts_read_the_table_whatever_its_sign():
    aware = {arm: [-30, -10, 0, 0] for arm in claims.AWARE}
    unaware = {arm: [-40, -20, 40, 50] for arm in claims.UNAWARE}
    table = results_of(aware | unaware | {study.FARTHEST: [50, 40, 30, 20]})
    judged = claims.verdicts(claims.changes(table)).set_index("arm")
    assert set(judged.loc[list(claims.AWARE), "guard"]) == {"holds"}
    assert set(judged.loc[list(claims.UNAWARE), "guard"]) == {"fails"}
    assert set(judged.loc[list(claims.AWARE + claims.UNAWARE), "few steps"]) == {"yes"}
    assert judged.loc[study.FARTHEST, "few steps"] == "no"
    assert judged.loc["linear", "change there"] == pytest.approx(-40, abs=2)
    assert "result is confirmed on" in claims.conclusion(table)[-1]

    inverted = claims.conclusion(results_of(aware | unaware | {study.FARTHEST: [-9, -9, 0, 0]}))[-1]
    assert "is not for flow" in inverted
    assert "too few arms" in inverted

    good, bad = [-30, -10, 0, 0], [10, 20, 30, 30]
    swapped = results_of(dict.fromkeys(claims.UNAWARE, good) | dict.fromkeys(claims.AWARE, bad))
    assert "result is refuted on" in claims.conclusion(swapped)[-1]
    wide = {arm: [-30, -10, 0, 8] for arm in claims.AWARE}  # worse than the margin allows, but within it at 28 steps
    assert "refuted" in claims.conclusion(results_of(wide | unaware))[-1]
    unsure = results_of(dict.fromkeys(claims.AWARE, (0, 0, 0, 0)) | unaware)
    assert "result is neither" in claims.conclusion(unsure)[-1]
    few = results_of(aware | unaware, seeds=2)
    assert claims.conclusion(few) == [
        "With 2 paired seeds nothing can be told; verdicts need 5 (profile miniature-full)."
    ]
    assert set(claims.verdicts(claims.changes(few))["few steps"]) == {"cannot be told"}
    nothing = claims.verdicts(claims.changes(results_of({LINEAR: [0, 0, 0, 0]}, seeds=1)))
    assert nothing[["few steps", "guard"]].to_numpy().tolist() == [["cannot be told", "cannot be told"]]
    assert "too few arms" in claims.conclusion(results_of({LINEAR: [-10, 0, 0, 0]}))[-1]


def test_shares_are_compared_in_points():
    rows = [
        ["flow", "scratch", arm, seed, "prompt correct", 4, value + 0.01 * seed]
        for seed in range(3)
        for arm, value in ((INDEPENDENT, 0.0), (LINEAR, 0.25))
    ]
    table = pd.DataFrame(rows, columns=["model", "start", "arm", "seed", "measure", "steps", "value"])
    found = claims.changes(table).iloc[0]
    assert found[["change", "low", "high"]].tolist() == pytest.approx([25, 25, 25])


def test_the_conclusion_tells_which_arms_draw_what_was_asked():
    rng = np.random.default_rng(1)
    shares = {INDEPENDENT: 0.5, LINEAR: 0.4, study.WITHIN: 0.56, study.CENTRED_KNN: 0.5}
    rows = [
        ["flow", "scratch", arm, seed, measure, steps, share + rng.normal(0, 0.001)]
        for measure in ("prompt correct", "class mean error")
        for seed in range(5)
        for steps in (4, 48)
        for arm, share in shares.items()
    ]
    distances = results_of({arm: [-30, -10, 0, 0] for arm in list(shares)[1:]})
    sentences = claims.conclusion(pd.concat([distances, pd.DataFrame(rows, columns=distances.columns)]))
    assert sentences[1:3] == [
        "At 48 steps 50 % of its images show what was asked with independent noise; more with: linear, within "
        "condition (+6 points); fewer with: linear (-10 points).",
        "Its class means are further off with: linear, within condition (+12 %); closer with: linear (-20 %).",
    ]


@pytest.mark.slow
def test_processes_make_the_same_pieces(small, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(command, "PARAMETERS", tmp_path)
    monkeypatch.setattr(command, "OUTPUTS", tmp_path / "outputs")
    (tmp_path / "tiny").mkdir()
    import yaml

    (tmp_path / "tiny" / "11_immiscible.yaml").write_text(yaml.safe_dump(SMALL.model_dump() | {"profile": "tiny"}))
    assert command.main(["--profile", "tiny", "--workers", "2"]) == 0
    made = pd.read_parquet(tmp_path / "outputs" / "tiny" / "11_immiscible" / "results.parquet")
    keys = ["model", "start", "arm", "seed", "measure", "steps"]
    both = [t[t["measure"] != "training seconds"].set_index(keys)["value"] for t in (made, small.results())]
    pd.testing.assert_series_equal(*both)
    assert command.main(["--profile", "none"]) == 2


def test_lone_objects_are_kept(tmp_path, monkeypatch):
    first = LoneObjects.drawn(6, 1, 2, 2, tmp_path)
    monkeypatch.setattr(world, "shipped", None)
    assert torch.equal(LoneObjects.drawn(6, 1, 2, 2, tmp_path).latents, first.latents)
    assert set(first.labels.tolist()) <= {0, 1, len(COLOURS), len(COLOURS) + 1}
