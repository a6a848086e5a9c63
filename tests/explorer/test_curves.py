from __future__ import annotations

import numpy as np
import pytest

from hybridlib.explorer.charts import png, quality_and_rates
from hybridlib.explorer.controls import Controls, codec_of
from hybridlib.explorer.curves import Curves
from hybridlib.explorer.session import Session
from hybridlib.metrics.distortion import psnr
from hybridlib.study import results

USERS = ("a large red circle on grass at noon", "a star")


class Similarity:
    """Stands in for MiniLM, which takes seconds to load."""

    def matrix(self, texts):
        return np.array([[1.0, 0.5 if "circle" in texts[1] else 0.05]] * 2)


@pytest.fixture(scope="module")
def curves():
    return Curves(Similarity())


def test_the_point_lies_on_the_surface(curves, mini):
    picture = Session(mini).picture(Controls("a circle", USERS, common_step=8))
    first, second = curves.quality(picture)
    assert first.mean[8] == pytest.approx(float(curves.surface(picture.sigmas[8], 0.5)))
    assert first.safe_step == curves.surface.max_common_step(0.5, 0.95, picture.sigmas[:-1]).common_step
    assert (first.fitted, second.fitted) == (True, False)
    assert second.mean[8] == pytest.approx(float(curves.surface(picture.sigmas[8], curves.surface.similarity_range[0])))


@pytest.mark.slow
def test_rates_are_those_of_study_07_at_the_nearest_noise_level(curves, mini):
    session = Session(mini)
    controls = Controls("a circle", USERS, common_step=8, codec=codec_of("adaptive (ours)", 1.0))
    picture = session.picture(controls)
    rates = curves.rates(picture, session)
    links = results.load("07_links")
    assert rates.step == 6  # coded after update 6 is handed over with 7 updates made, the nearest of those measured
    own = links[(links["step"] == 6) & (links["family"] == "adaptive (ours)")].groupby("codec")["message_bytes"].mean()
    np.testing.assert_allclose(rates.lines["adaptive (ours)"][0], np.sort(own))
    assert rates.message == picture.link.message
    plain = session.picture(controls.without_codec())
    assert rates.psnr == pytest.approx(float(psnr(picture.images, plain.images, grey=True).mean()))
    assert curves.rates(plain, session).psnr is None
    assert png(quality_and_rates(picture, curves.quality(picture), rates))[:4] == b"\x89PNG"
