"""Fields and their limits, names of workdirs, config.json."""

import copy
import json
import os
import pathlib
import re
import sys
from functools import partial

import pytest
from ml_collections import ConfigDict

from dwsep_jax.config import flatten, from_dict, load_file, validate
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import ADDED, COMPARISON, FIELDS, MAY_CHANGE, RUN, SWEEP
from dwsep_jax.workdir import (
    default_workdir,
    load_config,
    load_requested,
    open_workdir,
)

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def make_config(**changes) -> ConfigDict:
    fields = load_file(str(ROOT / "configs/default.py")).to_dict()
    for name, value in changes.items():
        section, _, last = name.rpartition(".")
        (fields[section] if section else fields)[last] = value
    return ConfigDict(fields)


def resolve(config):
    if config.learning_rate is None:
        config.learning_rate = 0.125
    return config


def never_resolve(config):
    raise AssertionError("resolved twice")


def test_table_has_a_row_for_each_field_of_default():
    default = load_file(str(ROOT / "configs/default.py"))
    assert set(FIELDS) == set(flatten(default))
    assert set(FIELDS) > MAY_CHANGE
    assert {name: default[name] for name in ADDED} == ADDED


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/[!_]*.py")), ids=str)
def test_each_config_file_is_valid(path):
    validate(load_file(str(path)))


NAN, INF = float("nan"), float("inf")
INVALID = {
    "dataset conv activation dtype lowering optimizer schedule": ["", "None", None, 3],
    "sweep.sampler sweep.pruner sweep.study": ["", None, 1],
    "label": ["", "a b", "../x", None],
    "image_size": [0, 3, 1025, 64.0],
    "data_dir platform init_from freeze sweep.storage": ["", "None", 3],
    "flip inner_norm inner_activation remat": [1, "true", None],
    "deterministic tensorboard wandb mlflow progress": [1, "no", None],
    "accumulate": [0, 10**4 + 1, 2.0, None],
    "seed split_seed": [-1, 2**32 - 1000, 1.0, None, True],
    "validation_size": [0, -1, 1.5, None, True],
    "shift bottleneck": [-1, 65, 1.0],
    "cutout": [-1, 1025],
    "mixup": [-0.1, 101, NAN, INF, 10**400, None, True, "1"],
    "class_weights": ["", "None", "cat", "cat=0", "cat=nan", "a=1,a=2", "a=1,b", 3],
    "label_smoothing norm_momentum momentum ema_decay": [-0.1, 1.0, 1, NAN],
    "growth_rate": [0, 4097, None],
    "block_sizes": [(), (0,), (6, 1.5), (True,), (257,), 6, "6,6", ("6",), [6], None],
    "reduction": [0.0, 1.01, NAN],
    "stem_width": [0.0, -1.0, 65.0, INF],
    "stem_stride": [0, 3, 1.0],
    "kernel_size": [0, 32],
    "dropout_rate": [-0.1, 0.001, 0.999, 1.0, NAN],
    "learning_rate": [0.0, -1.0, 1001.0, NAN, INF, "0.1"],
    "weight_decay warmup_epochs": [-1e-9, NAN],
    "plateau_factor": [0.0, 1.0],
    "plateau_patience": [0, 10**6 + 1],
    "clip_norm": [-1.0, INF, 10**400],
    "batch_size num_epochs": [0, -1, 1.5, 10**6 + 1],
    "early_stopping": [-1, 0.5],
    "min_change": [-0.001, 1.0],
    "steps_per_dispatch": [0, -1, 1.5, 10**4 + 1],
    "eval_batch_size": [0, 10**5 + 1],
    "checkpoint_minutes": [-1, "often"],
    "num_devices num_processes": [0, 1.5],
    "coordinator_address": ["", "host0", "host0:", ":1", "host0:port", 1],
    "process_id": [-1, 1.5, True],
    "compare.variants": [(), ("",), ("a", "a"), (1,), "separable", None],
    "compare.num_seeds sweep.num_seeds": [0, 1001, 1.5],
    "compare.rate_factors": [(), (0.0,), (1001,), (1, 1.0001), (NAN,), ("1",), 1.0],
    "compare.margin": [-0.1, 101, NAN],
    "compare.members_at_once sweep.members_at_once": [0, 1001, 1.5],
    "sweep.space": [(), ("",), ("a=1|2", "a=1|2"), (1,), "a=1|2", None],
    "sweep.num_trials sweep.refit_epochs": [0, -1, 1.5, 10**6 + 1],
}
INVALID = {name: values for names, values in INVALID.items() for name in names.split()}


def test_shipped_files_are_known_by_name_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "digits"):  # Somebody's own.
        (tmp_path / name).mkdir()
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    for name in ("digits", "compare:digits"):
        file, colon, argument = name.partition(":")
        path = f"{ROOT}/configs/{file}.py{colon}{argument}"
        assert load_file(name).to_dict() == load_file(path).to_dict()
    pathlib.Path("digits").rmdir()
    pathlib.Path("digits").touch()
    with pytest.raises(ConfigError, match="must be a Python file"):
        load_file("digits")


def test_each_field_has_an_invalid_value():
    assert set(INVALID) == set(FIELDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in INVALID.items() for value in values],
)
def test_invalid_value_is_refused_by_name(field, value):
    with pytest.raises(ConfigError) as error:
        validate(make_config(**{field: value}))
    line = str(error.value)
    assert line.startswith(f"--config.{field}=")
    assert ": must be " in line
    assert f"e.g. --config.{field}={FIELDS[field].example}" in line


def test_limits_are_part_of_what_is_valid():
    for changes in (
        {"validation_size": 1, "split_seed": 2**32 - 1001, "seed": 0},
        {"shift": 0, "cutout": 0, "mixup": 0, "bottleneck": 0},
        {"growth_rate": 1, "block_sizes": (1,), "kernel_size": 2},
        {"block_sizes": (1, 2, 3, 4, 5), "reduction": 1.0, "stem_stride": 2},
        {"dropout_rate": 0.0, "momentum": 0.0, "norm_momentum": 0.0},
        {"learning_rate": 1, "weight_decay": 0.0, "data_dir": "/data"},
        {"warmup_epochs": 0, "num_epochs": 1, "batch_size": 1, "platform": "gpu"},
        {"warmup_epochs": 9.0, "num_epochs": 2, "schedule": "constant"},
    ):
        validate(make_config(**changes))


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step", "exponential"])
def test_warmup_leaves_room_for_decay(schedule):
    message = rf"warmup_epochs=.*num_epochs=5 with the {schedule} schedule.*=0\.5$"
    with pytest.raises(ConfigError, match=message):
        validate(make_config(warmup_epochs=5.0, num_epochs=5, schedule=schedule))


def test_early_stopping_leaves_time_for_the_plateau():
    for early_stopping in (1, 5):
        config = make_config(schedule="plateau", early_stopping=early_stopping)
        with pytest.raises(ConfigError, match=r"plateau_patience=5, or 0; e\.g\. .*5$"):
            validate(config)
        validate(make_config(early_stopping=early_stopping))
    for early_stopping in (0, 6):
        validate(make_config(schedule="plateau", early_stopping=early_stopping))


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ConfigError, match=r"momentun; did you mean --config\.momentum"):
        validate(make_config(momentun=0.9))
    config = make_config()
    del config.seed
    del config.shift
    with pytest.raises(ConfigError, match="the config lacks shift, seed; start from"):
        validate(config)


def test_json_gives_back_the_same_config():
    config = make_config(block_sizes=(2, 3), learning_rate=1e-3)
    again = from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again.to_dict() == config.to_dict()
    assert again.block_sizes == (2, 3)
    assert again.is_locked


def test_default_workdir_names_file_and_argument():
    for path, kind, name in (
        ("/elsewhere/separable.py:wide", RUN, "separable@wide"),
        ("configs/compare.py:digits", COMPARISON, "compare@digits"),
        ("configs/sweep.py:digits", SWEEP, "sweep@digits"),
    ):
        workdir = default_workdir(path, make_config(), make_config(), kind)
        assert workdir == f"runs/{name}"


def test_different_runs_have_different_workdirs():
    paths = ["a.py", "a.py:", "a.py:b", "a@b.py", "a_b.py", "a b.py", "a-seed=1.py"]
    paths.append("a.py:b-seed=1")
    runs = [(path, {}) for path in paths] + [("a.py:b", {"seed": 1})]
    long = "x" * 300
    names = ["x-seed=1", "x/y", "x_y", "x:y", "../../x", long, f"{long}x"]
    runs += [("a.py", {"dataset": name}) for name in names]
    runs += [("a.py", {"dataset": name, "seed": 1}) for name in ("cifar10", "x", long)]
    runs += [("a.py", {"block_sizes": sizes}) for sizes in ((1, 2), (12,))]
    workdirs = [default_workdir(p, make_config(**c), make_config()) for p, c in runs]
    assert len(set(workdirs)) == len(runs)
    for workdir in workdirs:
        parent, name = os.path.split(workdir)
        assert parent == "runs"
        assert len(name) < 128
        assert not set(name) & set("/\\:*?\"<>|' ,")


def test_first_start_writes_requested_and_resolved(tmp_path):
    directory, requested = tmp_path / "a" / "b", make_config()
    before = copy.deepcopy(requested.to_dict())
    config = open_workdir(directory, requested, resolve)
    assert requested.to_dict() == before
    assert config.learning_rate == 0.125
    assert config.block_sizes == (6, 6, 6, 6)
    assert config.is_locked  # As it is at a later start.
    text = (directory / "config.json").read_text()
    content = json.loads(text)
    assert content["requested"]["learning_rate"] is None
    assert content["resolved"]["learning_rate"] == 0.125
    assert text == json.dumps(content, indent=2, sort_keys=True) + "\n"
    assert os.listdir(directory) == ["config.json"]
    # A later start reuses what was resolved.
    again = open_workdir(directory, requested, never_resolve)
    assert again.to_dict() == config.to_dict()
    assert load_requested(directory).learning_rate is None
    assert (directory / "config.json").read_text() == text


def test_exempt_fields_are_those_of_the_present_request(tmp_path):
    open_workdir(tmp_path, make_config(data_dir="/old"), resolve)
    changes = {"data_dir": "/new", "progress": False, "eval_batch_size": 7}
    changes |= {"tensorboard": True, "compare.variants": ("x",), "compare.margin": 1.0}
    changes |= {"sweep.num_trials": 3, "sweep.storage": "a.journal"}
    for config in (
        open_workdir(tmp_path, make_config(**changes), never_resolve),
        load_config(tmp_path, make_config(**changes)),
    ):
        assert {name: config[name] for name in changes} == changes
        assert config.learning_rate == 0.125


def test_a_comparison_keeps_its_variants_and_may_gain_seeds(tmp_path):
    open_workdir(tmp_path, make_config(), resolve, COMPARISON)
    before = (tmp_path / "config.json").read_text()
    assert json.loads(before)["kind"] == COMPARISON
    open_workdir(tmp_path, make_config(progress=False), never_resolve, COMPARISON)
    assert (tmp_path / "config.json").read_text() == before
    changes = {"compare.num_seeds": 7, "compare.margin": 1.0}
    config = open_workdir(tmp_path, make_config(**changes), never_resolve, COMPARISON)
    assert {name: config[name] for name in changes} == changes
    assert config.learning_rate == 0.125
    # A later start from the workdir alone has as many.
    requested = load_requested(tmp_path, COMPARISON)
    assert (requested.compare.num_seeds, requested.learning_rate) == (7, None)
    for change in ({"compare.variants": ("x", "y")}, {"seed": 1}):
        with pytest.raises(ConfigError, match="belongs to another comparison: "):
            open_workdir(tmp_path, make_config(**change), never_resolve, COMPARISON)


def test_a_sweep_keeps_its_space_and_may_gain_trials(tmp_path):
    open_workdir(tmp_path, make_config(), resolve, SWEEP)
    changes = {"sweep.num_trials": 50, "sweep.num_seeds": 7, "sweep.storage": "a.log"}
    config = open_workdir(tmp_path, make_config(**changes), never_resolve, SWEEP)
    assert {name: config[name] for name in changes} == changes
    requested = load_requested(tmp_path, SWEEP)
    assert {name: requested[name] for name in changes} == changes
    of_the_other = make_config(**{"compare.variants": ("x",)})
    open_workdir(tmp_path, of_the_other, never_resolve, SWEEP)
    space = ("flip=true|false",)
    for change in ({"sweep.space": space}, {"sweep.study": "b"}):
        with pytest.raises(ConfigError, match="belongs to another sweep: "):
            open_workdir(tmp_path, make_config(**change), never_resolve, SWEEP)
    # A comparison reads none of these.
    open_workdir(tmp_path / "a", make_config(), resolve, COMPARISON)
    other = make_config(**{"sweep.space": space})
    open_workdir(tmp_path / "a", other, never_resolve, COMPARISON)


def test_a_workdir_of_the_other_kind_is_refused(tmp_path):
    for kind in (RUN, COMPARISON, SWEEP):
        open_workdir(tmp_path / kind, make_config(), resolve, kind)
    for held, asked, remedy in (
        (COMPARISON, RUN, "name one of the runs below it, or give --mode=compare"),
        (RUN, COMPARISON, "choose another --workdir, or --mode=train"),
        (SWEEP, RUN, "name one of the runs below it, or give --mode=sweep"),
    ):
        with pytest.raises(ConfigError) as error:
            load_requested(tmp_path / held, asked)
        assert str(error.value) == (
            f"--workdir={tmp_path / held}: holds a {held}, and a {asked} is asked for; "
            f"{remedy}"
        )
    with pytest.raises(ConfigError, match="holds a sweep, and a run is asked for; "):
        load_config(tmp_path / SWEEP)


def test_differing_config_is_refused_by_name(tmp_path):
    open_workdir(tmp_path, make_config(), resolve)
    other = make_config(growth_rate=12, block_sizes=(2, 2), learning_rate=0.125)
    for reopen in (load_config, partial(open_workdir, resolve=resolve)):
        with pytest.raises(ConfigError) as error:
            reopen(tmp_path, other)
        assert str(error.value) == (
            f"--workdir={tmp_path} belongs to another run: "
            "block_sizes=6,6,6,6 there, 2,2 here; growth_rate=24 there, 12 here; "
            "learning_rate=None there, 0.125 here; "
            "choose another --workdir, or delete this one"
        )
    assert load_requested(tmp_path).growth_rate == 24


def test_another_platform_may_evaluate_but_not_go_on(tmp_path):
    open_workdir(tmp_path, make_config(platform="gpu"), resolve)
    assert load_config(tmp_path).platform == "gpu"
    assert load_config(tmp_path).learning_rate == 0.125
    assert load_config(tmp_path, make_config(platform="cpu")).platform == "cpu"
    with pytest.raises(ConfigError, match="platform=gpu there, cpu here"):
        open_workdir(tmp_path, make_config(platform="cpu"), resolve)


def test_what_cannot_be_started_makes_no_workdir(tmp_path):
    def refuse(config):
        raise UserError("cannot be reached")

    for config, problem in (
        (make_config(seed=-1), r"--config\.seed=-1"),
        (make_config(), "cannot be reached"),
    ):
        with pytest.raises(UserError, match=problem):
            open_workdir(tmp_path / "a", config, refuse)
        assert not (tmp_path / "a").exists()


def test_broken_off_first_start_is_started_again(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="No space left on device; choose another"):
            open_workdir(tmp_path, make_config(), resolve)
    assert not (tmp_path / "config.json").exists()
    assert open_workdir(tmp_path, make_config(), resolve).learning_rate == 0.125
    assert os.listdir(tmp_path) == ["config.json"]


def test_what_cannot_be_a_workdir_is_one_line(tmp_path, monkeypatch):
    def refuse(name, message, error=UserError):
        with pytest.raises(error, match=message) as raised:
            open_workdir(tmp_path / name, make_config(), never_resolve)
        assert type(raised.value) is error

    # Checkpoints below these could not be read.
    for name in ("run[1]", "what?/run", "a*b", "a\\b"):
        message = f"^--workdir={re.escape(f'{tmp_path}/{name}')}: .* another --workdir"
        refuse(name, message, ConfigError)
    refuse("gr\udcc3\udcbcn", "is not text in this locale; set PYTHONUTF8")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        refuse(name, f"{name}: cannot be used: not a directory")

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", deny)
    refuse("a", "a: cannot be used: Permission denied")


def test_only_a_directory_of_logs_becomes_a_workdir(tmp_path):
    for name in ("thesis.tex", "notes"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds notes, thesis\.tex but no config"):
        open_workdir(tmp_path, make_config(), resolve)
    assert not (tmp_path / "config.json").exists()
    (tmp_path / "logs").mkdir()
    for name in (".gitkeep", "train.log", "slurm-1.out", "config.json.7.tmp"):
        (tmp_path / "logs" / name).touch()
    open_workdir(tmp_path / "logs", make_config(), resolve)


def test_no_flipped_bit_of_a_number_goes_unnoticed(tmp_path):
    open_workdir(tmp_path, make_config(), resolve)
    path = tmp_path / "config.json"
    content = path.read_bytes()
    for i in range(content.index(b'"sha256"')):
        if content[i : i + 1].isdigit():
            changed = bytearray(content)
            changed[i] ^= 1
            path.write_bytes(changed)
            with pytest.raises(UserError, match=r"config\.json is damaged"):
                load_config(tmp_path)


def update(content, part, **changes):
    return content | {part: content[part] | changes}


DAMAGES = {
    "Expecting value": lambda content: b"",
    "can't decode": lambda content: b"\xff\xfe\x00",
    "it must be an object": lambda content: [],
    "its schema is 2, not 1": lambda content: content | {"schema": 2},
    "its schema is None": lambda content: content.pop("schema") and content,
    "lacks seed": lambda content: content["resolved"].pop("seed") + 1 and content,
    "seed=x: must be": lambda content: update(content, "resolved", seed="x"),
    "m is resolved as 0.8, not 0.9": lambda c: update(c, "resolved", momentum=0.8),
    "its checksum differs": lambda content: content | {"sha256": 64 * "0"},
    "unknown field": lambda content: update(content, "requested", nest=1),
    "kind must be one of run,": lambda content: content | {"kind": "ensemble"},
    "requested must be an object": lambda content: content | {"requested": 3},
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_damaged_config_json_is_one_line(tmp_path, problem):
    open_workdir(tmp_path, make_config(), resolve)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["sha256"]  # Without it, each value must speak for itself.
    content = DAMAGES[problem](content)
    is_bytes = isinstance(content, bytes)
    path.write_bytes(content if is_bytes else json.dumps(content).encode())
    for read in (load_config, partial(open_workdir, resolve=resolve)):
        with pytest.raises(UserError, match=rf"\.json is damaged .*{problem}") as error:
            read(tmp_path, make_config())
        assert not isinstance(error.value, ConfigError)


def test_workdir_without_a_run_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(UserError, match="no run was started there"):
            load_config(path)
