from __future__ import annotations

import pytest  # and nothing heavy: the process that only hands out tests reads this, too


def pytest_collection_modifyitems(items):
    on_gpu = [item for item in items if "gpu" in item.keywords]
    if on_gpu:
        import torch

        for item in [] if torch.cuda.is_available() else on_gpu:
            item.add_marker(pytest.mark.skip(reason="no accelerator"))


@pytest.fixture(scope="session")
def tiny():
    """A random SD3 without T5."""
    from factories import random_sd3

    return random_sd3()


@pytest.fixture(scope="session")
def tiny_t5():
    """A random SD3 with T5."""
    from factories import random_sd3

    return random_sd3(with_t5=True, seed=1)


@pytest.fixture(scope="session")
def mini():
    """The shipped mini-sd3."""
    from hybridlib.denoising import models

    return models.load("mini-sd3", device="cpu")


@pytest.fixture(params=["mini", "tiny", "tiny_t5"])
def pipeline(request):
    """Each kind of SD3 in turn."""
    return request.getfixturevalue(request.param)
