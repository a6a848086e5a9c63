"""Tables of models of true size: counted again from the networks, and in agreement with what is published."""

from __future__ import annotations

import pytest

from hybridlib.denoising.blueprints import BLUEPRINTS, network
from hybridlib.study import full_size


@pytest.mark.slow
def test_parts_agree_with_what_is_published_in_round_numbers():
    table = full_size.parts(["sd3-medium", "flux.1-dev"])
    told = table.dropna(subset=["published_parameters_m"]).set_index(["model", "part"])
    assert len(told) == 6
    assert ((told["weights_m"] / told["published_parameters_m"] - 1).abs() < 0.05).all()
    vae = network(*BLUEPRINTS["sd3-medium"].networks["vae"])
    assert table["weights_m"].iloc[4] * 1e6 == pytest.approx(sum(p.numel() for p in vae.parameters()))
    assert list(table["gb"]) == pytest.approx(list(table["weights_m"] / 500))


@pytest.mark.slow
def test_plans_fit_their_budgets_or_say_that_none_does():
    table = full_size.plans(["sd3-medium", "flux.1-dev"], [1.0, 8.0, 80.0])
    none = table["plan"] == "none fits"
    assert list(table[none]["budget_gb"]) == [1.0, 1.0]
    assert (table[~none]["peak_gb"] <= table[~none]["budget_gb"]).all()
    assert list(table["plan"])[1:3] == ["stream text", "resident"]
    smaller = full_size.plans(["sd3-medium"], [16.0], t5="8bit")
    assert smaller["weights_gb"].iloc[0] < 12
    bars = full_size.placements(["sd3-medium"]).set_index("plan")
    assert bars.loc["resident", "weights_gb"] > 2 * bars.loc["stream text", "weights_gb"]
    assert (bars["weights_gb"] + bars["host_gb"] > 15.5 - 1).all()  # nothing is lost on the way
