"""Directories that version 0.1.0 wrote, when all fields were at the top, stay readable."""

import pathlib
import shutil

import pytest

from dwsep_jax import evaluate, report
from dwsep_jax.cli import load_file
from dwsep_jax.config import COMPARISON, RUN, SWEEP, flatten, upgrade
from dwsep_jax.errors import ConfigError
from dwsep_jax.train import loop
from dwsep_jax.workdir import load_requested, open_workdir, read_json, read_rows

OLD = pathlib.Path(__file__).parent / "old"


@pytest.mark.parametrize(
    ("kind", "name", "changes"),
    [
        (RUN, "run", {"kernel_size": 3, "num_epochs": 2, "compare.num_seeds": 5}),
        (COMPARISON, "comparison", {"compare.num_seeds": 2, "num_epochs": 3}),
        (SWEEP, "sweep", {"sweep.num_trials": 4, "compare.num_seeds": 2}),
    ],
)
def test_old_fields_are_read_as_those_of_today(tmp_path, kind, name, changes):
    shutil.copytree(OLD / name, tmp_path / name)
    requested = load_requested(tmp_path / name, kind)
    assert {field: requested[field] for field in changes} == changes
    assert requested.sweep.num_seeds == requested.compare.num_seeds
    default = flatten(load_file("configs/default.py"))
    assert flatten(requested).keys() == default.keys()
    open_workdir(tmp_path / name, requested, None, kind)
    # Today's fields are left alone.
    content = read_json(OLD / name, "config")
    assert upgrade(content["requested"]) == content["requested"]
