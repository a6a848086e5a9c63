"""Costs of splits against published numbers, the tree's own counts, and times put together by hand."""

from __future__ import annotations

import pytest
from diffusers import DDIMScheduler
from factories import diffusion_scheduler, random_sd, random_sdxl, random_unet

from hybridlib.codecs import MinMax
from hybridlib.denoising.families import collect, denoiser_of, nfe_of
from hybridlib.denoising.tree import Tree
from hybridlib.splits import costs, grids
from hybridlib.study.parameters import Settings
from hybridlib.study.runner import Models


@pytest.fixture(scope="module")
def published():
    return {name: costs.published_network(name) for name in costs.PUBLISHED_NETWORKS[:3]}


def test_published_networks(published):
    """BK-SDM's table (parameters, GMACs) and Hybrid SD's released weights."""
    table = costs.network_table(published)
    assert table["parameters (M)"].round(2)[["SD-v1.4", "BK-SDM-Tiny"]].tolist() == [859.52, 323.38]
    assert published["Hybrid SD 224M"].parameters == 224_492_676
    assert table["GMACs"].round(1)[["SD-v1.4", "BK-SDM-Tiny", "Hybrid SD 224M"]].tolist() == [338.6, 205.0, 151.3]
    assert table["GMACs of attention"].round()[["SD-v1.4", "BK-SDM-Tiny", "Hybrid SD 224M"]].tolist() == [63, 38, 36]
    assert (table["evaluations a step"] == 2).all()


@pytest.mark.slow
def test_published_networks_of_lcm_and_sdxl():
    """Hybrid SD's released LCM weights; the parameters that SDXL's report gives."""
    lcm, sdxl = (costs.published_network(name) for name in ("Hybrid SD 224M LCM", "SDXL-base"))
    assert (lcm.parameters, lcm.evaluations) == (224_574_596, 1)
    assert (round(sdxl.parameters / 1e6), sdxl.evaluations) == (2567, 2)


def test_published_cost_of_an_image(published):
    """Hybrid SD, 10,15 under guidance: 6.77 T in the cloud and 4.54 T at the edge, against 16.93 T for 25,0."""
    made = grids.divisions(grids.PUBLISHED["sd"])
    table = costs.cost_table(made, published["SD-v1.4"], published["Hybrid SD 224M"]).set_index("split")
    assert table.loc["10,15", ["cloud_macs", "edge_macs"]].div(1e12).round(2).tolist() == [6.77, 4.54]
    assert round(table.loc["25,0", "macs"] / 1e12, 2) == 16.93
    saved = 1 - table["cloud_macs"] / table.loc["25,0", "cloud_macs"]
    assert saved[["10,15", "5,20"]].round(2).tolist() == [0.6, 0.8]
    assert table.loc[["0,25", "25,0"], ["cloud_parameters", "edge_parameters"]].to_numpy().tolist() == [
        [0, 224_492_676],
        [published["SD-v1.4"].parameters, 0],
    ]


def test_costs_are_those_of_the_tree():
    pipeline, small = random_sd(), random_unet(width=16)
    denoisers = collect(denoiser_of(pipeline), {"small": small})
    large, edge = (costs.network_of(denoisers[name], 4.0) for name in (grids.LARGE, grids.SMALL))
    made = grids.divisions(["3,9"], 12, ["3,9"], ["3,1,0.3,8"], ["LLSSLLSSLLSS"])
    table = costs.cost_table(made, large, edge)
    for row, division in enumerate(made):
        cost = Tree([division.trajectory("a ring", 1, 4.0)], nfe=nfe_of(denoisers)).cost
        assert table.loc[row, ["cloud_nfe", "edge_nfe"]].tolist() == [cost.of("").tree, cost.of("small").tree]
        assert table.loc[row, "macs"] == cost.of("").tree * large.work.macs + cost.of("small").tree * edge.work.macs
    assert table["macs"][0] == table["macs"][1] == pytest.approx(table["share"][0] * 24 * large.work.macs)
    assert edge.work.macs < large.work.macs


def test_a_budget_below_the_cheapest_is_refused(published):
    table = costs.cost_table(
        grids.divisions(["0,25", "25,0"]), published["SD-v1.4"], published["Hybrid SD 224M"]
    )  # the small model alone costs 0.45 of the large one
    costs.check_budgets(table, [0.45, 1.0])
    with pytest.raises(ValueError, match=r"budget must be at least 0.44\d+ \(share of the cheapest\), got 0.4"):
        costs.check_budgets(table, [1.0, 0.4])


@pytest.mark.slow
def test_an_embedded_scale_costs_one_evaluation():
    denoiser = denoiser_of(random_sd(time_cond_proj_dim=16))
    assert costs.network_of(denoiser, 7.0).evaluations == 1
    assert costs.network_of(denoiser_of(random_sd()), 1.0).evaluations == 1
    assert costs.network_of(denoiser_of(random_sd()), 7.0).evaluations == 2


def test_published_text_bytes():
    """SD1: 115.5 KiB a condition, 231 KiB with the negative; SDXL: 308 KiB and 2.5 KiB pooled a condition."""
    pipeline = random_sd(cross_attention_dim=768)
    pipeline.tokenizer.model_max_length = 77
    assert costs.text_bytes(denoiser_of(pipeline), 1) == 115.5 * 1024
    assert costs.text_bytes(denoiser_of(pipeline)) == 231 * 1024
    pipeline = random_sdxl(cross_attention_dim=2048)
    pipeline.tokenizer.model_max_length, pipeline.text_encoder_2.config.projection_dim = 77, 1280
    assert costs.text_bytes(denoiser_of(pipeline), 1) == (308 + 2.5) * 1024


@pytest.mark.parametrize("multistep", [True, False])
def test_payloads_are_real_bytes(multistep):
    pipeline = random_sd(scheduler=None if multistep else diffusion_scheduler(DDIMScheduler))
    models = Models({"small": random_unet(width=16, seed=5)})
    made = grids.divisions(["2,2", "4,0"], 4, ["2,2"])
    codec, settings = MinMax(4), Settings(4, 32)
    table = costs.payloads(pipeline, made, ["a ring", "a star"], 3, [codec], settings, models, 4.0)
    values = 4 * 8 * 8
    found = table.set_index(["method", "option"])["bytes"]
    assert set(table["split"]) == {"2,2"}  # the large one alone hands nothing over
    assert found["large first", "latents"] == 2 * values
    assert ("large first", "latents and history") in found.index or not multistep
    if multistep:  # the two model outputs that a second-order solver keeps
        assert found["large first", "latents and history"] == 3 * 2 * values
    assert values / 2 < found["large first", codec.specification] < 2 * values  # 4 bits a value, and a header
