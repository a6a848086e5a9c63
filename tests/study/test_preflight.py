from __future__ import annotations

import shutil

import pytest

from hybridlib.paths import MODELS, ROOT
from hybridlib.study import preflight
from hybridlib.study.parameters import STUDIES

SMOKE = {name: cls.from_yaml(ROOT / "params" / "smoke" / f"{name}.yaml") for name, cls in STUDIES.items()}


def changed(study, **values):
    return {study: SMOKE[study].model_copy(update=values)}


def test_what_ships_is_enough_for_every_miniature_profile():
    assert preflight.missing(SMOKE) == []


def test_a_missing_model_is_told_once_for_all_studies(tmp_path, monkeypatch):
    studies = changed("01_figures", model=str(tmp_path)) | changed("02_alignment", model=str(tmp_path))
    told = preflight.missing(studies)
    assert len(told) == 1
    assert told[0].startswith(f"01_figures, 02_alignment: model = '{tmp_path}': ")
    assert "holds no model_index.json" in told[0]


def test_a_folder_without_weights_is_found_out(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(MODELS / "mini-sd3", folder)
    preflight.diffusion_model(str(folder))
    for weights in (folder / "vae").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match="lacks the weights of vae$"):
        preflight.diffusion_model(str(folder))
    shutil.rmtree(folder / "transformer")
    with pytest.raises(ValueError, match="lacks the transformer$"):
        preflight.diffusion_model(str(folder))


def test_large_images_need_a_gpu_or_a_word(monkeypatch):
    studies = changed("01_figures", image_size=1024)
    monkeypatch.setattr(preflight, "_has_gpu", lambda: False)
    assert "01_figures: images of 512 pixels and more need a GPU" in preflight.missing(studies)[0]
    assert preflight.missing(studies, on_cpu=True) == []
    monkeypatch.setattr(preflight, "_has_gpu", lambda: True)
    assert preflight.missing(studies) == []


def test_nothing_is_downloaded_where_the_machine_will_not_do(monkeypatch):
    monkeypatch.setattr(preflight, "_has_gpu", lambda: False)
    monkeypatch.setattr(preflight, "diffusion_model", lambda name: pytest.fail("asked for weights"))
    assert len(preflight.missing(changed("01_figures", image_size=1024, model="some/hub-id"))) == 1


def test_study_06_may_read_what_study_05_is_about_to_write():
    later = changed("06_hiqm_fit", profile="mine", scores="outputs/mine/05_image_quality/scores.parquet")
    assert "run study 05 first" in preflight.missing(later)[0]
    assert preflight.missing(changed("05_image_quality", profile="mine") | later) == []


def test_a_sentence_model_without_weights(tmp_path):
    told = preflight.missing(changed("04_similarity", sentence_model=str(tmp_path)))
    assert told == [f"04_similarity: sentence_model = '{tmp_path}': {tmp_path} holds no model.safetensors"]


def test_a_pruned_unet_alone_is_a_small_model(tmp_path):
    folder = tmp_path / "small" / "unet"
    folder.mkdir(parents=True)
    (folder / "widths.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{folder} holds no weights"):
        preflight.small_model(str(tmp_path / "small"))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    preflight.small_model(str(tmp_path / "small"))
    preflight.small_model("mini-sd3")  # a whole pipeline is one, too
    with pytest.raises(ValueError, match="no miniature model 'mini-nothing'"):
        preflight.small_model("mini-nothing")


def test_a_judge_may_be_none_but_not_missing(tmp_path):
    preflight.judge("")
    preflight.judge("mini-judge")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        preflight.judge(str(tmp_path))


def test_metric_weights_that_cannot_be_had(monkeypatch):
    from hybridlib.metrics import alignment, fidelity

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(alignment.open_clip, "download_pretrained", no_network)
    monkeypatch.setattr(fidelity, "_download", no_network)
    studies = changed("02_alignment", clip_model="ViT-L-14-336") | changed("03_fidelity", brisque_weights="piq")
    clip, brisque = preflight.missing(studies)
    assert clip.startswith("02_alignment: clip_model = 'ViT-L-14-336': the OpenAI weights")
    assert brisque.startswith("03_fidelity: brisque_weights = 'piq': piq's support vectors could not be downloaded")
