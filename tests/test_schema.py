"""Files damaged in every way: a `UserError`, which is one line, or harmless."""

import contextlib
import json

import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.report import write
from dwsep_jax.workdir import read_json
from tests.report import report_files, sweep_files

WRONG = (None, "x", -1, 0, 10**400, True, [], {})


def damage(value):
    """Yield copies of a JSON value, each with one value replaced or one key lost."""
    yield from WRONG
    if isinstance(value, dict):
        for key, inner in list(value.items())[:40]:
            yield {k: v for k, v in value.items() if k != key}
            for changed in damage(inner):
                yield value | {key: changed}
    elif isinstance(value, list) and value:
        for changed in damage(value[0]):
            yield [changed, *value[1:]]


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("workdirs")
    few = {"names": ["a", "b"], "num_epochs": 2}
    efficiency = report_files.make_efficiency(1000, 2000, 1.0)
    report_files.write_run(directory / "run", efficiency=efficiency, **few)
    variants = {k: report_files.VARIANTS[k] for k in ("separable", "standard")}
    few |= {"num_seeds": 1, "variants": variants}
    report_files.write_comparison(directory / "comparison", **few)
    sweep_files.write_sweep(directory / "sweep", num_seeds=2)
    for path in directory.rglob("predictions.npz"):  # They would take time, as does
        path.unlink()
    (directory / "comparison" / "config.json").unlink()  # the command in the report.
    return directory


@pytest.mark.parametrize(
    "name",
    [
        *("run/evaluation.json", "run/diagnosis.json", "run/efficiency.json"),
        *("run/metrics.jsonl", "comparison/comparison.json", "sweep/best.json"),
    ],
)
def test_no_damage_is_an_error_of_ours(workdirs, name):
    path = workdirs / name
    first, *rest = path.read_bytes().splitlines(keepends=True)
    for content in damage(json.loads(first)):
        path.write_bytes(b"".join([json.dumps(content).encode(), b"\n", *rest]))
        with contextlib.suppress(UserError):
            write.describe(path.parent)
    path.write_bytes(first + b"".join(rest))


def test_no_damage_of_a_config_is_an_error_of_ours(workdirs):
    path = workdirs / "sweep" / "config.json"
    for content in damage(json.loads(path.read_bytes())):
        path.write_text(json.dumps(content))
        with contextlib.suppress(UserError):
            read_json(path.parent, "config")
