"""Directories written when every field was at the top of the config stay readable."""

import json
import pathlib
import shutil

import pytest

from dwsep_jax.__main__ import main
from dwsep_jax.config import flatten, from_dict, load_file
from dwsep_jax.errors import ConfigError
from dwsep_jax.fields import COMPARISON, RUN, SWEEP
from dwsep_jax.workdir import load_requested, open_workdir, read_json, read_rows

OLD = pathlib.Path(__file__).parent / "old"


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (RUN, {"kernel_size": 3, "num_epochs": 2, "learning_rate": None}),
        (COMPARISON, {"num_epochs": 2, "compare.rate_factors": (1.0, 3.0)}),
        (
            SWEEP,
            {"sweep.num_trials": 4, "compare.num_seeds": 2, "sweep.num_seeds": 2}
            | {"sweep.refit_epochs": None},
        ),
    ],
)
def test_old_fields_are_read_as_those_of_today(old, kind, changes):
    requested = load_requested(old / kind, kind)
    assert {field: requested[field] for field in changes} == changes
    assert flatten(requested).keys() == flatten(load_file("configs/default.py")).keys()
    open_workdir(old / kind, requested, None, kind)
    assert read_json(old / kind, "config")["requested"].to_dict() == requested.to_dict()


def test_an_unknown_field_is_named():
    with pytest.raises(ConfigError, match=r"unknown field --config\.nesterov;"):
        from_dict({"nesterov": True})


def test_an_old_run_is_resumed_evaluated_and_reported(old):
    run = old / "run"
    before = json.loads((run / "evaluation.json").read_text())
    rows = read_rows(run)
    for mode in ("train", "evaluate"):
        (run / "evaluation.json").unlink()
        assert main(["main.py", f"--mode={mode}", f"--workdir={run}"]) == 0
        after = json.loads((run / "evaluation.json").read_text())
        assert after["confusion_matrix"] == before["confusion_matrix"]
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
        assert read_rows(run) == rows
    assert main(["main.py", "--mode=report", f"--workdir={run}"]) == 0
