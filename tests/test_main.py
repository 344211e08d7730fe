"""The command line: what reaches the modes, and each mistake as one line."""

import importlib
import pathlib
import subprocess
import sys
import types

import pytest

import dwsep_jax
from dwsep_jax import cli
from dwsep_jax.config import COMPARISON, FIELDS
from dwsep_jax.errors import ConfigError, DataError, UserError
from dwsep_jax.workdir import load_config, open_workdir

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py"
WORK = (
    *("train.loop.train_and_evaluate", "train.evaluation.evaluate_workdir"),
    *("efficiency.cost.measure_workdir", "compare.runs.compare", "sweep.search.sweep"),
)


@pytest.fixture(autouse=True)
def _root(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def calls(monkeypatch):
    """Replace the functions that do the work; return what they are called with."""
    calls = []
    for name in WORK:
        monkeypatch.setattr(f"dwsep_jax.{name}", lambda *args: calls.append(args))
    return calls


@pytest.fixture
def run(calls, capsys):
    """Run main on arguments: what the modes were called with, code, stdout, stderr."""
    main = importlib.import_module("main").main

    def run(*arguments):
        calls.clear()
        code = main(["main.py", *arguments])
        out, err = capsys.readouterr()
        return types.SimpleNamespace(calls=list(calls), code=code, out=out, err=err)

    return run


def raising(error):
    def raise_error(*args):
        raise error

    return raise_error


def test_train_gets_the_config_and_a_workdir_of_its_own(run):
    result = run(DIGITS, "--config.seed=3", "--config.block_sizes=2,3")
    assert (result.code, result.err) == (0, "")
    [(config, workdir)] = result.calls
    assert (config.dataset, config.seed, config.block_sizes) == ("digits", 3, (2, 3))
    assert config.is_locked
    assert workdir == "runs/digits-block_sizes=2_3-seed=3"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--config.learning_rate=1e-3"], "digits-learning_rate=0.001"),
        (["--config.learning_rate=0.0010"], "digits-learning_rate=0.001"),
        (["--config.learning_rate", ".001"], "digits-learning_rate=0.001"),
        (["--config.progress=false", "--config.data_dir=/d"], "digits"),
        (["--config.flip=false", "--config.seed=0"], "digits"),
        (["--noconfig.flip"], "digits"),
        (["--config.flip"], "digits-flip=True"),
        (["--config.seed=1", "--config.seed=0"], "digits"),
        (["--config.block_sizes=(2, 2, 2, 2)"], "digits"),
        (["--config.block_sizes=5"], "digits-block_sizes=5"),
        (["--config.stem_width=1"], "digits-stem_width=1.0"),
    ],
)
def test_equal_runs_have_one_workdir(run, arguments, name):
    result = run(DIGITS, *arguments)
    assert (result.code, result.err) == (0, "")
    assert result.calls[0][1] == f"runs/{name}"


def test_override_may_come_before_the_file(run):
    [(config, workdir)] = run("--config.seed=1", DIGITS).calls
    assert (config.seed, workdir) == (1, "runs/digits-seed=1")


def test_value_may_stand_apart_from_its_flag(run):
    arguments = ["--config", "configs/digits.py", "--config.seed", "1"]
    [(config, workdir)] = run(*arguments, "--workdir", "a").calls
    assert (config.seed, workdir) == (1, "a")


@pytest.mark.parametrize("name", FIELDS)
def test_example_in_the_message_is_valid(run, monkeypatch, name):
    monkeypatch.setattr(cli, "select_platform", lambda platform: None)
    result = run(DIGITS, f"--config.{name}={FIELDS[name].example}")
    assert (result.code, result.err) == (0, "")


def test_argument_reaches_the_file(run, tmp_path):
    path = tmp_path / "wide.py"
    path.write_text(
        "from configs import digits\n"
        "def get_config(rate='7'):\n"
        "    c = digits.get_config()\n"
        "    c.growth_rate = int(rate)\n"
        "    return c\n"
    )
    [(config, workdir)] = run(f"--config={path}").calls
    assert (config.growth_rate, workdir) == (7, "runs/wide")
    [(config, workdir)] = run(f"--config={path}:30").calls
    assert (config.growth_rate, workdir) == (30, "runs/wide@30")


def test_files_of_one_stem_do_not_mix(run, tmp_path):
    for i in (1, 2):
        path = tmp_path / str(i) / "digits.py"
        path.parent.mkdir()
        path.write_text(
            "from configs import digits\n"
            f"def get_config():\n    c = digits.get_config()\n    c.seed = {i}\n"
            "    return c\n"
        )
        [(config, _)] = run(f"--config={path}").calls
        assert config.seed == i


def start(workdir, *overrides):
    config = cli.override(cli.load_file("configs/digits.py"), ["main.py", *overrides])

    def resolve(config):
        config.learning_rate = 0.125
        return config

    return open_workdir(workdir, config, resolve)


def test_train_goes_on_from_the_workdir_alone(run, tmp_path):
    start(tmp_path, "--config.growth_rate=7")
    [(config, workdir)] = run(f"--workdir={tmp_path}", "--noconfig.progress").calls
    assert workdir == str(tmp_path)
    assert (config.growth_rate, config.progress) == (7, False)
    assert config.learning_rate is None  # As requested; open_workdir resolves it.


@pytest.mark.parametrize("given", [[], [DIGITS, "--config.growth_rate=7"]])
def test_evaluate_gets_the_resolved_config(run, tmp_path, given):
    start(tmp_path, "--config.growth_rate=7")
    arguments = ["--mode=evaluate", f"--workdir={tmp_path}", *given]
    result = run(*arguments, "--config.data_dir=/d")
    assert (result.code, result.err) == (0, "")
    [(config, workdir, split)] = result.calls
    assert (workdir, split) == (str(tmp_path), "test")
    assert (config.learning_rate, config.data_dir) == (0.125, "/d")
    assert run(*arguments, "--split=validation").calls[0][2] == "validation"


def test_evaluate_finds_the_default_workdir(run, tmp_path, monkeypatch):
    arguments = [f"--config={ROOT}/configs/digits.py", "--config.growth_rate=7"]
    monkeypatch.chdir(tmp_path)
    [(_, workdir)] = run(*arguments).calls
    requested = cli.load_file(f"{ROOT}/configs/digits.py")
    requested.growth_rate = 7
    open_workdir(workdir, requested, lambda config: config)
    [(config, found, _)] = run(*arguments, "--mode=evaluate").calls
    assert found == workdir
    assert config.to_dict() == load_config(workdir).to_dict()


def test_evaluate_refuses_another_config(run, tmp_path):
    start(tmp_path)
    result = run("--mode=evaluate", f"--workdir={tmp_path}", "--config.seed=13")
    assert (result.code, result.calls) == (2, [])
    assert "seed=0 there, 13 here" in result.err


def test_efficiency_gets_the_config_and_the_workdir_of_training(run, tmp_path):
    arguments = [DIGITS, "--config.growth_rate=7"]
    [(config, workdir)] = run("--mode=efficiency", *arguments).calls
    assert (config.growth_rate, workdir) == (7, "runs/digits-growth_rate=7")
    start(tmp_path, "--config.growth_rate=5")
    [(config, workdir)] = run("--mode=efficiency", f"--workdir={tmp_path}").calls
    assert (config.growth_rate, workdir) == (5, str(tmp_path))


@pytest.mark.parametrize(
    "names", ["separable,standard", "separable, standard", "('separable','standard')"]
)
def test_compare_gets_the_config_and_a_workdir_of_its_own(run, names):
    arguments = ["--mode=compare", "--config=configs/compare.py:digits"]
    result = run(
        *arguments, f"--config.compare.variants={names}", "--config.compare.num_seeds=3"
    )
    assert (result.code, result.err) == (0, "")
    [(config, workdir)] = result.calls
    assert (config.dataset, config.compare.num_seeds) == ("digits", 3)
    assert config.compare.variants == ("separable", "standard")
    assert workdir == "runs/compare@digits-variants=separable_standard"
    assert run(*arguments).calls[0][1] == "runs/compare@digits"


def test_compare_and_train_refuse_each_others_workdir(run, tmp_path):
    config = cli.load_file("configs/digits.py")
    open_workdir(tmp_path, config, lambda config: config, COMPARISON)
    [(found, _)] = run("--mode=compare", f"--workdir={tmp_path}").calls
    assert found.to_dict() == config.to_dict()
    for mode in ("train", "evaluate"):
        result = run(f"--mode={mode}", f"--workdir={tmp_path}")
        assert (result.code, result.calls) == (2, [])
        assert "holds a comparison, and a run is asked for; name one" in result.err
        assert result.err.count("\n") == 1


def test_the_comparison_on_cifar10_is_that_of_separable():
    config = cli.load_file("configs/compare.py")
    assert config.to_dict() == cli.load_file("configs/separable.py").to_dict()
    with pytest.raises(ConfigError, match="'mnist' is unknown; choose one of cifar10,"):
        cli.load_file("configs/compare.py:mnist")


SPACE = "optimizer=adam|sgd,learning_rate=x0.1..x10 log"


def test_sweep_gets_the_config_and_a_workdir_of_its_own(run):
    arguments = ["--mode=sweep", "--config=configs/sweep.py:digits"]
    result = run(
        *arguments, "--config.sweep.num_trials=9", "--config.sweep.storage=a.journal"
    )
    assert (result.code, result.err) == (0, "")
    [(config, workdir)] = result.calls
    assert (config.dataset, config.sweep.num_trials) == ("digits", 9)
    assert config.sweep.storage == "a.journal"
    assert workdir == "runs/sweep@digits"
    [(config, workdir)] = run(*arguments, f"--config.sweep.space={SPACE}").calls
    assert config.sweep.space == tuple(SPACE.split(","))
    assert workdir.startswith("runs/sweep@digits-space=")


@pytest.mark.parametrize("others", ["", ", optimizer=adam|sgd"])
def test_an_axis_may_have_tuples_of_numbers(run, others):
    space = f"block_sizes=3,3|6, 6{others}"
    arguments = ["--mode=sweep", "--config=configs/sweep.py:digits"]
    expected = ("block_sizes=3,3|6, 6", *filter(None, [others[2:]]))
    for text in (space, repr(expected)):
        [(config, _)] = run(*arguments, f"--config.sweep.space={text}").calls
        assert config.sweep.space == expected


def test_the_sweep_on_cifar10_is_that_of_separable():
    config = cli.load_file("configs/sweep.py")
    assert config.to_dict() == cli.load_file("configs/separable.py").to_dict()
    with pytest.raises(ConfigError, match="'mnist' is unknown; choose one of cifar10,"):
        cli.load_file("configs/sweep.py:mnist")


def test_tilde_is_the_home_directory(run, tmp_path):
    assert run(DIGITS, "--workdir=~/x").calls[0][1] == str(tmp_path / "home" / "x")


MISTAKES = {
    "efficiency of nothing": (
        ["--mode=efficiency"],
        "--config is missing; there are configs/compare.py, configs/",
    ),
    "nothing": ([], "--config is missing; there are configs/compare.py, configs/"),
    "no such file": (
        ["--config=configs/digit.py"],
        "--config=configs/digit.py: no such file; there are configs/compare.py, ",
    ),
    "directory": (["--config=configs"], "--config=configs: no such file; there are "),
    "no Python": (
        ["--config=LICENSE"],
        "--config=LICENSE: must be a Python file, *.py",
    ),
    "argument": (
        ["--config=configs/digits.py:wide"],
        "--config=configs/digits.py:wide: TypeError: get_config() takes 0 positional "
        "arguments but 1 was given",
    ),
    "no value": (["--config"], "Missing value for flag --config"),
    "no value of field": (
        [DIGITS, "--config.seed"],
        "Missing value for flag --config.seed",
    ),
    "unknown field": (
        [DIGITS, "--config.batchsize=64"],
        "unknown field --config.batchsize; did you mean --config.batch_size or "
        "--config.eval_batch_size or --config.block_sizes?",
    ),
    "far field": (
        [DIGITS, "--config.lr=0.1"],
        "unknown field --config.lr; configs/default.py describes them all",
    ),
    "method": (
        [DIGITS, "--config.lock=1"],
        "unknown field --config.lock; configs/default.py describes them all",
    ),
    "negated unknown": (
        [DIGITS, "--noconfig.flips"],
        "unknown field --config.flips; did you mean --config.flip?",
    ),
    "part of a field": (
        [DIGITS, "--config.seed.x=1"],
        "unknown field --config.seed.x; did you mean --config.seed?",
    ),
    "text for integer": (
        [DIGITS, "--config.growth_rate=wide"],
        "--config.growth_rate=wide: must be an integer of at least 1 and at most "
        "4,096; "
        "e.g. --config.growth_rate=24",
    ),
    "float for integer": (
        [DIGITS, "--config.num_epochs=1e3"],
        "--config.num_epochs=1e3: must be an integer of at least 1 and at most "
        "1,000,000; "
        "e.g. --config.num_epochs=100",
    ),
    "None for integer": (
        [DIGITS, "--config.batch_size=None"],
        "--config.batch_size=None: must be an integer of at least 1 and at most "
        "1,000,000; "
        "e.g. --config.batch_size=128",
    ),
    "None for number": (
        [DIGITS, "--config.learning_rate=None"],
        "--config.learning_rate=None: must be a finite number above 0 and at most "
        "1000, or left out; "
        "e.g. --config.learning_rate=0.1",
    ),
    "nan": (
        [DIGITS, "--config.learning_rate=nan"],
        "--config.learning_rate=nan: must be a finite number above 0 and at most 1000, "
        "or left out; "
        "e.g. --config.learning_rate=0.1",
    ),
    "inf": (
        [DIGITS, "--config.weight_decay=inf"],
        "--config.weight_decay=inf: must be a finite number of at least 0, or left "
        "out; e.g. --config.weight_decay=5e-4",
    ),
    "None for path": (
        [DIGITS, "--config.data_dir=None"],
        "--config.data_dir=None: must be a name or path, or left out; "
        "e.g. --config.data_dir=/data/tensorflow_datasets",
    ),
    "out of range": (
        [DIGITS, "--config.dropout_rate=1"],
        "--config.dropout_rate=1.0: must be a finite number that is 0, or from 1/256 "
        "to 255/256; e.g. --config.dropout_rate=0.1",
    ),
    "negative, apart": (
        [DIGITS, "--config.seed", "-1"],
        "--config.seed=-1: must be an integer from 0 to 4294967295; "
        "e.g. --config.seed=1",
    ),
    "text for boolean": (
        [DIGITS, "--config.flip=maybe"],
        "--config.flip=maybe: must be true or false; e.g. --config.flip=false",
    ),
    "boolean apart": (
        [DIGITS, "--config.flip", "false"],
        "unexpected argument false; write every flag as --flag=value",
    ),
    "negated integer": (
        [DIGITS, "--noconfig.seed"],
        "--noconfig.seed: only a field that is true or false can be negated",
    ),
    "negated with a value": (
        [DIGITS, "--noconfig.flip=true"],
        "--noconfig.flip=true does not take an argument; leave =... out",
    ),
    "negated flag with a value": (
        [DIGITS, "--nodebug=1"],
        "--nodebug=1 does not take an argument; leave =... out",
    ),
    "tuple with spaces": (
        [DIGITS, "--config.block_sizes=6 6"],
        "--config.block_sizes=6 6: must be a tuple of integers from 1 to 256, one per "
        "block; e.g. --config.block_sizes=6,6,6,6",
    ),
    "empty tuple": (
        [DIGITS, "--config.block_sizes=()"],
        "--config.block_sizes=: must be a tuple of integers from 1 to 256, one per "
        "block; e.g. --config.block_sizes=6,6,6,6",
    ),
    "tuple of zero": (
        [DIGITS, "--config.block_sizes=6,0"],
        "--config.block_sizes=6,0: must be a tuple of integers from 1 to 256, one per "
        "block; e.g. --config.block_sizes=6,6,6,6",
    ),
    "long warmup": (
        [DIGITS, "--config.num_epochs=2", "--config.warmup_epochs=5"],
        "--config.warmup_epochs=5.0: must be less than --config.num_epochs=2 with the "
        "cosine schedule; e.g. --config.warmup_epochs=0.2",
    ),
    "unknown platform": (
        [DIGITS, "--config.platform=cuda"],
        "--config.platform='cuda' is unknown; choose one of cpu, gpu, tpu",
    ),
    "unknown flag": (
        [DIGITS, "--wordir=x"],
        "unknown flag --wordir; did you mean --workdir?",
    ),
    "mistyped config": (
        ["--confg=configs/digits.py"],
        "unknown flag --confg; did you mean --config?",
    ),
    "field as a flag": (
        [DIGITS, "--seed=1"],
        "unknown flag --seed; did you mean --config.seed?",
    ),
    "far flag": ([DIGITS, "--xyz=1"], "unknown flag --xyz; --help lists all"),
    "no flag": (
        [DIGITS, "evaluate"],
        "unexpected argument evaluate; write every flag as --flag=value",
    ),
    "unknown mode": (
        [DIGITS, "--mode=eval"],
        "--mode=eval: value should be one of "
        "<train|evaluate|efficiency|compare|sweep|report>",
    ),
    "unknown split": (
        [DIGITS, "--mode=evaluate", "--split=val"],
        "--split=val: value should be one of <train|validation|test>",
    ),
    "split of train": (
        [DIGITS, "--split=test"],
        "--split=test: is read by --mode=evaluate alone; leave it out",
    ),
    "empty workdir": (
        [DIGITS, "--workdir="],
        "--workdir=: is empty; name a directory, or leave it out",
    ),
}


@pytest.mark.parametrize(("arguments", "line"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_and_exit_code_2(run, arguments, line):
    result = run(*arguments)
    assert result.err.startswith(f"error: {line}")
    if not line.endswith((" ", "/")):
        assert result.err == f"error: {line}\n"
    assert result.err.count("\n") == 1
    assert (result.code, result.out, result.calls) == (2, "", [])


BODIES = {
    "raises": (
        "def get_config():\n    return 1 / 0\n",
        "ZeroDivisionError: division by zero (line 2)",
    ),
    "does not import": (
        "import nowhere\n",
        "ModuleNotFoundError: No module named 'nowhere' (line 1)",
    ),
    "no syntax": (
        "def get_config(:\n",
        "SyntaxError: invalid syntax (FILE.py, line 1)",
    ),
    "no get_config": (
        "x = 1\n",
        "AttributeError: module 'config_file' has no attribute 'get_config'",
    ),
    "returns nothing": (
        "def get_config():\n    pass\n",
        "get_config() must return a ConfigDict, not NoneType",
    ),
    "wrong type": (
        "from configs import default\n"
        "def get_config():\n    c = default.get_config()\n    c.seed = 'x'\n",
        "TypeError: Could not override field 'seed'",
    ),
    "unknown field": (
        "from configs import default\n"
        "def get_config():\n    c = default.get_config()\n    c.momentun = 0.5\n"
        "    return c\n",
        "unknown field --config.momentun; did you mean --config.momentum or "
        "--config.norm_momentum?",
    ),
    "field missing": (
        "from configs import default\n"
        "def get_config():\n    c = default.get_config()\n    del c.seed\n"
        "    return c\n",
        "lacks seed; start from default.get_config() of configs/default.py and "
        "change what differs",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_config_file_is_one_line(run, tmp_path, name):
    body, line = BODIES[name]
    path = tmp_path / f"{name.replace(' ', '_')}.py"
    path.write_text(body)
    result = run(f"--config={path}")
    line = line.replace("FILE", path.stem)
    assert result.err.startswith(f"error: --config={path}")
    assert line in result.err
    assert result.err.count("\n") == 1
    assert (result.code, result.calls) == (2, [])


ERRORS = {
    "user's": (UserError("no data;\n get some"), 1, "error: no data; get some\n"),
    "data": (DataError("no cifar10"), 1, "error: no cifar10\n"),
    "config": (ConfigError("seed=x: no"), 2, "error: seed=x: no\n"),
    "ours": (
        RuntimeError("broken\nin detail"),
        1,
        "error: RuntimeError: broken (--debug shows the traceback)\n",
    ),
    "without a message": (
        AssertionError(),
        1,
        "error: AssertionError (--debug shows the traceback)\n",
    ),
    "memory": (
        MemoryError("\nof the host"),
        1,
        "error: MemoryError: of the host; out of memory: take a smaller "
        "--config.batch_size, --config.eval_batch_size or network, and another "
        "--workdir (--debug shows the traceback)\n",
    ),
    "memory of the device": (
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore"),
        1,
        "error: RuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.; "
        "out of memory: take a smaller --config.batch_size, --config.eval_batch_size "
        "or network, and another --workdir (--debug shows the traceback)\n",
    ),
    "disk, in orbax": (
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [28]"),
        1,
        "error: ValueError: RESOURCE_EXHAUSTED: Error writing: No space left on device "
        "[28]; free some space and give the same command again (--debug shows the "
        "traceback)\n",
    ),
    "disk": (
        OSError(28, "No space left on device", "/w/metrics.jsonl"),
        1,
        "error: OSError: [Errno 28] No space left on device: '/w/metrics.jsonl'; free "
        "some space and give the same command again (--debug shows the traceback)\n",
    ),
    "permission": (
        PermissionError(13, "Permission denied", "/w/x"),
        1,
        "error: PermissionError: [Errno 13] Permission denied: '/w/x' "
        "(--debug shows the traceback)\n",
    ),
    "interrupted": (KeyboardInterrupt(), 130, "interrupted\n"),
}


@pytest.mark.parametrize(("error", "code", "text"), ERRORS.values(), ids=ERRORS)
def test_error_of_a_run_is_one_line(run, monkeypatch, error, code, text):
    monkeypatch.setattr(f"dwsep_jax.{WORK[0]}", raising(error))
    result = run(DIGITS)
    assert (result.code, result.err) == (code, text)


def test_debug_shows_the_traceback_too(run, monkeypatch):
    error = RuntimeError("broken")
    monkeypatch.setattr(f"dwsep_jax.{WORK[0]}", raising(error))
    result = run(DIGITS, "--debug")
    assert result.code == 1
    assert result.err.startswith("Traceback (most recent call last):\n")
    assert "in raise_error" in result.err
    assert result.err.splitlines()[-1].startswith("error: RuntimeError: broken")


@pytest.mark.parametrize(
    ("mode", "code"),
    [("train", 1), ("evaluate", 1), ("efficiency", 1), ("compare", 1), ("sweep", 1)],
    ids=str,
)
def test_workdir_without_a_run_is_one_line(run, tmp_path, mode, code):
    result = run(f"--mode={mode}", f"--workdir={tmp_path}")
    assert (result.code, result.calls) == (code, [])
    assert result.err == (
        f"error: --workdir={tmp_path}: no run was started there (no config.json); "
        "give --config=FILE, or another --workdir\n"
    )


@pytest.fixture
def jax_with(monkeypatch):
    """Replace jax by one that finds only the given platform, and note its settings."""

    def replace(found):
        settings = []
        fake = types.SimpleNamespace(
            config=types.SimpleNamespace(update=lambda *args: settings.append(args)),
            default_backend=lambda: found,
        )
        monkeypatch.setitem(sys.modules, "jax", fake)
        return settings

    return replace


@pytest.mark.parametrize(
    ("platform", "setting"), [("cpu", "cpu"), ("gpu", ""), ("tpu", "")]
)
def test_platform_is_set_before_the_mode_runs(run, jax_with, platform, setting):
    settings = jax_with(platform)
    result = run(DIGITS, f"--config.platform={platform}")
    assert (result.code, len(result.calls)) == (0, 1)
    assert settings == [("jax_platforms", setting)]


def test_unset_platform_leaves_jax_alone(run, jax_with):
    settings = jax_with("cpu")
    assert run(DIGITS).code == 0
    assert settings == []


@pytest.mark.parametrize(
    ("found", "choices"), [("cpu", "choose cpu,"), ("gpu", "choose cpu or gpu,")]
)
def test_absent_platform_is_one_line(run, jax_with, found, choices):
    jax_with(found)
    result = run(DIGITS, "--config.platform=tpu")
    assert (result.code, result.calls) == (1, [])
    assert result.err == (
        "error: --config.platform=tpu: jax finds none on this machine; "
        f"{choices} or install jax with support for it\n"
    )


def run_python(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PATH": "", "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_platform_of_the_config_wins_over_the_environment(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from dwsep_jax import cli; cli.select_platform('cpu')\n"
        "import jax; print(jax.devices()[0].platform)"
    )
    result = run_python("-c", code, cwd=tmp_path, JAX_PLATFORMS="nowhere")
    assert (result.returncode, result.stdout) == (0, "cpu\n"), result.stderr


@pytest.mark.parametrize("flag", ["-h", "--help", "--helpfull"])
def test_help_succeeds_without_a_config(run, flag):
    result = run(flag)
    assert (result.code, result.err, result.calls) == (0, "", [])
    assert result.out.startswith("Train and evaluate")
    flags = importlib.import_module("main").define_flags()
    for name in set(flags) - {"help", "h", "helpfull", "helpshort"}:
        assert f"\n  --{name} " in result.out
    for mode in importlib.import_module("main").MODES:
        assert f"{mode} (" in result.out or f"{mode}:" in result.out
    assert "configs/default.py" in result.out


def test_help_imports_neither_jax_nor_numpy(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import main; code = main.main(['main.py', '--help'])\n"
        "print(code, sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    )
    result = run_python("-c", code, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


@pytest.mark.parametrize("absolute", [True, False])
def test_main_runs_from_any_directory(tmp_path, absolute):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "mine.py"
    path.write_text(
        "from configs import default\n"
        "def get_config():\n    c = default.get_config()\n    c.shift = -1\n"
        "    return c\n"
    )
    config = str(path) if absolute else "mine/mine.py"
    result = run_python(str(ROOT / "main.py"), f"--config={config}", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --config.shift=-1: must be an integer of at least 0 and at "
        "most 64; e.g. --config.shift=4\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_report_gets_the_workdirs_and_no_config(run, monkeypatch):
    noted = []

    def write_report(workdirs):
        noted.append(list(workdirs))
        return "a/report.html"

    module = types.SimpleNamespace(write_report=write_report)
    monkeypatch.setitem(sys.modules, "dwsep_jax.report", module)
    monkeypatch.setattr(dwsep_jax, "report", module, raising=False)
    result = run("--mode=report", "--workdir=a,b")
    assert (result.code, result.out) == (0, "report: a/report.html\n")
    assert run("--mode=report", DIGITS).code == 0
    assert noted == [["a", "b"], ["runs/digits"]]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--workdir is missing: name the workdir to report, or several with"),
        (["--workdir=a", "--config.seed=1"], "--config.seed=1: --mode=report reads"),
    ],
)
def test_a_mistaken_report_is_one_line(run, arguments, line):
    result = run("--mode=report", *arguments)
    assert result.code == 2
    assert result.err.startswith(f"error: {line}")
    assert result.err.count("\n") == 1
