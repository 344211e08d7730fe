"""Every run here trains on the tiny dataset; its figures are not drawn."""

import pytest

from dwsep_jax import data, evaluate
from dwsep_jax.train import loop
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def _tiny_data():
    with pytest.MonkeyPatch.context() as patch:
        for module in (data, evaluate):
            patch.setattr(module, "load", lambda config: tiny.make_dataset())
        for module in (loop, evaluate):
            patch.setattr(module, "draw_run", lambda workdir: None)
        yield


@pytest.fixture(scope="module")
def dataset():
    return tiny.make_dataset()
