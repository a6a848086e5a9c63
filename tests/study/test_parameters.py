from __future__ import annotations

import ast

import papermill
import pytest

from hybridlib.paths import ROOT
from hybridlib.study.parameters import STUDIES, FiguresParameters

FILES = sorted((ROOT / "params").glob("*/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_parameter_files_are_valid(path):
    parameters = STUDIES[path.stem].from_yaml(path)
    assert parameters.profile == path.parent.name


@pytest.mark.parametrize("name", STUDIES)
def test_notebook_defaults_are_the_smoke_profile(name):
    cells = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    defaults = {key: ast.literal_eval(entry["default"]) for key, entry in cells.items()}
    smoke = STUDIES[name].from_yaml(ROOT / "params" / "smoke" / f"{name}.yaml")
    assert defaults == {name: getattr(smoke, name) for name in type(smoke).model_fields}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: mini-sd3", "modle is no parameter; did you mean 'model'; known: profile, prompts, model, "),
        ("sim_seeds: [1, one]", r"sim_seeds\[1\] = 'one': input should be a valid integer"),
        ("batch_size: 1e3", "batch_size = '1e3': input should be a valid integer"),
        ("batch_size: 0", "batch_size = 0: input should be greater than or equal to 1"),
        ("case_seed: true", "case_seed = True: input should be a valid integer"),
        ("sim_public_scales: [-1.0]", r"sim_public_scales\[0\] = -1.0: input should be greater"),
        ("personal_guidance_scale: .nan", "personal_guidance_scale = nan: input should be a finite number"),
        ("case_common_step: 28", "case_common_step = 28: must be below num_inference_steps = 28"),
        ("npi_common_steps: [3, 40]", "npi_common_steps = 40: must be below"),
        ("personal_prompts: [20]", "personal_prompts = 20: the prompt set 'miniature' has 20 personal prompts"),
        ("prompts: nothing", "prompts = 'nothing': no prompt set 'nothing'"),
        ("profile: ..", "profile = '..': string should match"),
        ("profile: ../elsewhere", "profile = '../elsewhere': string should match"),
        ("- a list", "expected a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_one_sentence_names_file_key_and_rule(tmp_path, text, message):
    path = tmp_path / "01_figures.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        FiguresParameters.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("02_alignment", "common_steps: [28]", "common_steps = 28: must be below num_inference_steps = 28"),
        ("02_alignment", "seeds: []", "seeds = .*: list should have at least 1 item"),
        (
            "03_fidelity",
            "brisque_weights: best",
            "brisque_weights = 'best': input should be 'auto', 'piq' or 'shipped'",
        ),
        ("04_similarity", "prompts: nothing", "no prompt set 'nothing'"),
        ("05_image_quality", "common_steps: [3, 6, 9, 12, 15]", "common_steps = .*: must contain 0"),
        ("05_image_quality", "joint_prompts: [0, 22]", "joint_prompts = 22: the prompt set 'miniature' has 22 joint"),
        ("05_image_quality", "anchored_prompts: [0, 20]", "anchored_prompts = 20: .* has 20 personal prompts"),
        ("06_hiqm_fit", "quality_share: 1.0", "quality_share = 1.0: input should be less than 1"),
        ("07_compression_surface", "ratio_steps: [2, 10, 27]", "ratio_steps = 27: an update must remain.* 26$"),
        ("07_compression_surface", "ratios: [0.25, 0.0, 1.0]", r"ratios\[1\] = 0.0: input should be greater than 0"),
        ("07_compression_surface", "rates: [0.5, 1.0]", r"rates\[1\] = 1.0: input should be less than 1"),
        ("07_compression_surface", "min_max_bits: [9]", r"min_max_bits\[0\] = 9: input should be less than or equal"),
        ("07_compression_surface", "link_prompts: [20]", "link_prompts = 20: .* has 20 personal prompts"),
        ("13_planned_trees", "pair_common_steps: [1, 2, 4, 7, 11]", "pair_common_steps = .*: must contain 0"),
        ("13_planned_trees", "pair_common_steps: [0, 2, 4, 7, 14]", "pair_common_steps = 14: must be below"),
        ("13_planned_trees", "floors: [0.9, 0.9]", r"floors = \[0.9, 0.9\]: must be different"),
        ("13_planned_trees", "floors: [1.1]", r"floors\[0\] = 1.1: input should be less than or equal to 1"),
        ("11_immiscible", "seeds: [1, 1]", r"seeds = \[1, 1\]: must be different"),
        ("11_immiscible", "step_counts: [4, 2]", r"step_counts = \[4, 2\]: must rise, from at most 4 steps"),
        ("11_immiscible", "flow_arms: [linear]", r"flow_arms = .*: must be different and hold 'independent', or none"),
        (
            "11_immiscible",
            "flow_arms: [nearest]",
            r"flow_arms\[0\] = 'nearest': input should be 'independent'",
        ),
        (
            "11_immiscible",
            "finetune_arms: [independent, 'unconditional, linear']",
            "finetune_arms = .*: fine-tuning starts from a conditional model",
        ),
        (
            "09_hybrid_sd",
            'small_first: ["5,19"]',
            "small_first = '5,19': must sum to num_inference_steps = 25, makes 24",
        ),
        ("09_hybrid_sd", 'splits: ["5,20", "10,15", "25,0"]', "splits = .*: must contain '0,25', one denoiser alone"),
        ("09_hybrid_sd", 'splits: ["five,20", "0,25", "25,0"]', r"splits\[0\] = 'five,20': string should match"),
        ("09_hybrid_sd", 'thinned: ["4,2,18"]', r"thinned\[0\] = '4,2,18': string should match"),
        ("09_hybrid_sd", "seeds: [1]", "seeds = .*: list should have at least 2 items"),
        ("09_hybrid_sd", "solver: pndm", "solver = 'pndm': input should be 'model', 'dpm-solver"),
        ("09_hybrid_sd", 'codecs: ["zip"]', "codecs = 'zip': "),
    ],
)
def test_studies_refuse_what_they_cannot_run(tmp_path, name, text, message):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        STUDIES[name].from_yaml(path)


def test_notebook_variables_are_checked_too():
    names = {"batch_size": -1, "unrelated": object()}
    with pytest.raises(ValueError, match="01_figures: batch_size = -1"):
        FiguresParameters.from_names(names)
    assert FiguresParameters.from_names({"batch_size": 3, "unrelated": 1}).batch_size == 3


def test_unknown_names_that_papermill_injects_are_refused():
    executed = ["", "# Parameters: defaults\nbatch_size: int = 3", "# Parameters\nbatch_size = 4\nbatch_sise = 5"]
    names = {"In": executed, "batch_size": 4, "batch_sise": 5, "mine": 1}
    with pytest.raises(ValueError, match="01_figures: batch_sise is no parameter; did you mean 'batch_size'; known: "):
        FiguresParameters.from_names(names)
    assert FiguresParameters.from_names(names | {"In": executed[:2]}).batch_size == 4
