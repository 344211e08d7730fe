"""The command line: what reaches the modes, and each mistake as one line."""

import pathlib
import re
import shlex
import signal
import subprocess
import sys
import types

import jax
import pytest

from dwsep_jax import cli, signals
from dwsep_jax.__main__ import MODES, define_flags, main
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import COMPARISON, FIELDS
from dwsep_jax.report import write
from dwsep_jax.workdir import load_config, open_workdir

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py"
WORK = ("train.loop.train_and_evaluate", "evaluate.evaluate_workdir")
WORK += ("predict.predict_workdir", "efficiency.cost.measure_workdir")
WORK += ("compare.training.compare", "sweep.search.sweep")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run main on arguments: the calls of the modes' work, code, stdout and stderr."""
    monkeypatch.chdir(ROOT)
    calls = []
    for name in WORK:
        monkeypatch.setattr(f"dwsep_jax.{name}", lambda *args: calls.append(args))

    def run(*arguments):
        calls.clear()
        code = main(["main.py", *arguments])
        out, err = capsys.readouterr()
        return types.SimpleNamespace(calls=list(calls), code=code, out=out, err=err)

    return run


COMMANDS = {
    "--config.seed=3 --config.block_sizes=2,3": "digits-block_sizes=2_3-seed=3",
    "--config.learning_rate=1e-3": "digits-learning_rate=0.001",
    "--config.learning_rate=0.0010": "digits-learning_rate=0.001",
    "--config.learning_rate .001": "digits-learning_rate=0.001",
    "--config.weight_decay=1e-5": "digits-weight_decay=1e-05",
    "--config.platform=cpu": "digits-platform=cpu",
    "--config.progress=false --config.data_dir=/d": "digits",
    "--config.flip=false --config.seed=0": "digits",
    "--noconfig.flip": "digits",
    "--config.flip": "digits-flip=True",
    "--config.seed=1 --config.seed=0": "digits",
    "'--config.block_sizes=(2, 2, 2, 2)'": "digits",
    "--config.block_sizes=5": "digits-block_sizes=5",
    "--config.block_sizes=3 --config.block_sizes=5": "digits-block_sizes=5",
    "--config.stem_width=1": "digits-stem_width=1.0",
    "--config.compare.num_seeds=3 --config.sweep.study=a": "digits",
    "--mode=efficiency --config.seed=1": "digits-seed=1",
    "--mode=compare --config.compare.variants=a,b": "compare-digits-variants=a_b",
    "--mode=compare '--config.compare.variants=a, b'": "compare-digits-variants=a_b",
    "--mode=compare --config.compare.variants a,b": "compare-digits-variants=a_b",
    "--mode=compare --config.compare.num_seeds=3": "compare-digits",
    "--mode=compare --config.compare.margin=1": "compare-digits",
    "--mode=compare --config.bottleneck=4": "compare-digits-bottleneck=4",
    "--mode=sweep --config.sweep.num_trials=9": "sweep-digits",
    "--mode=sweep --config.sweep.storage=a.journal": "sweep-digits",
    "--mode=sweep --config.sweep.sampler=grid": "sweep-digits-sampler=grid",
    f"--config.dataset=/{'x/' * 200}": f"digits-dataset=_{'x_' * 42}-a0d5b07c9c",
    "--config.dataset=./\u4e2d": "digits-dataset=.__-c50d12c025",
}


@pytest.mark.parametrize(("arguments", "name"), COMMANDS.items(), ids=COMMANDS)
def test_the_default_workdir_names_what_differs_from_the_file(run, arguments, name):
    result = run(*shlex.split(arguments), DIGITS)
    assert (result.code, result.err) == (0, "")
    [(config, workdir)] = result.calls
    assert workdir == f"runs/{name}"
    assert config.is_locked


def test_names_are_separated_by_commas(run):
    for argument, names in (
        ("compare.variants=separable, standard", ("separable", "standard")),
        ("compare.variants=('separable','standard')", ("separable", "standard")),
        ("sweep.space=flip=a|b,mixup=0..1 log", ("flip=a|b", "mixup=0..1 log")),
        ("sweep.space=block_sizes=3,3|6, 6", ("block_sizes=3,3|6, 6",)),
        ("sweep.space=block_sizes=3,3|6, 6, a=b", ("block_sizes=3,3|6, 6", "a=b")),
        ("sweep.space=('block_sizes=3,3|6',)", ("block_sizes=3,3|6",)),
    ):
        [(config, _)] = run(DIGITS, f"--config.{argument}").calls
        assert config[argument.partition("=")[0]] == names


@pytest.mark.parametrize("name", FIELDS)
def test_the_example_in_a_message_is_valid(run, monkeypatch, name):
    monkeypatch.setattr(cli, "prepare_process", lambda platform: None)
    monkeypatch.setattr(cli.launch, "start", lambda *arguments: None)
    result = run(DIGITS, f"--config.{name}={FIELDS[name].example}")
    assert (result.code, result.err) == (0, "")


def test_a_value_may_be_apart_from_its_flag(run, tmp_path):
    arguments = ["--config", "configs/digits.py", "--config.seed", "1"]
    [(config, workdir)] = run(*arguments, "--workdir", "~/x").calls
    assert (config.seed, workdir) == (1, str(tmp_path / "home" / "x"))


WIDE = """
from configs import digits
def get_config(rate='7'):
    c = digits.get_config()
    c.growth_rate = int(rate)
    return c
"""


def test_an_argument_reaches_the_file(run, tmp_path):
    for folder, default in (("a", 7), ("b", 8)):  # Files of one name do not mix.
        path = tmp_path / folder / "wide.py"
        path.parent.mkdir()
        path.write_text(WIDE.replace("7", str(default)))
        [(config, workdir)] = run(f"--config={path}").calls
        assert (config.growth_rate, workdir) == (default, "runs/wide")
        [(config, workdir)] = run(f"--config={path}:30").calls
        assert (config.growth_rate, workdir) == (30, "runs/wide@30")


def make_config(*overrides):
    values = define_flags()
    rest = values(["main.py", DIGITS, *overrides])
    return cli.read_flags(values, rest)[0]


def start(workdir, *overrides):
    def resolve(config):
        config.learning_rate = 0.125
        return config

    return open_workdir(workdir, make_config(*overrides), resolve)


def test_a_workdir_is_enough_to_continue(run, tmp_path):
    start(tmp_path, "--config.growth_rate=7")
    for mode in ("train", "efficiency"):
        arguments = (f"--mode={mode}", f"--workdir={tmp_path}", "--noconfig.progress")
        [(config, workdir)] = run(*arguments).calls
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
    result = run(*arguments[:2], "--config.seed=13")
    assert (result.code, result.calls) == (2, [])
    assert "seed=0 there, 13 here" in result.err


def test_predict_gets_the_resolved_config_and_its_flags(run, tmp_path):
    start(tmp_path)
    arguments = ["--mode=predict", f"--workdir={tmp_path}", "--images=a,b.png"]
    [(config, *found)] = run(*arguments).calls
    assert config.learning_rate == 0.125
    assert found == [str(tmp_path), "a,b.png", None, 5]
    [(_, *found)] = run(*arguments, "--output=o.csv", "--top=2").calls
    assert found[2:] == ["o.csv", 2]


def test_evaluate_finds_the_default_workdir(run, tmp_path, monkeypatch):
    arguments = [f"--config={ROOT}/configs/digits.py", "--config.growth_rate=7"]
    requested = make_config(arguments[1])
    monkeypatch.chdir(tmp_path)
    [(_, workdir)] = run(*arguments).calls
    open_workdir(workdir, requested, lambda config: config)
    [(config, found, _)] = run(*arguments, "--mode=evaluate").calls
    assert found == workdir
    assert config.to_dict() == load_config(workdir).to_dict()


def test_train_refuses_the_workdir_of_a_comparison(run, tmp_path):
    config = cli.load_file("configs/digits.py")
    open_workdir(tmp_path, config, lambda config: config, COMPARISON)
    [(found, _)] = run("--mode=compare", f"--workdir={tmp_path}").calls
    assert found.to_dict() == config.to_dict()
    for mode in ("train", "evaluate"):
        result = run(f"--mode={mode}", f"--workdir={tmp_path}")
        assert (result.code, result.calls) == (2, [])
        assert "holds a comparison, and a run is asked for; name one" in result.err


@pytest.mark.parametrize("name", ["compare", "sweep"])
def test_comparison_and_sweep_on_cifar10_are_those_of_separable(name):
    config = cli.load_file(f"configs/{name}.py")
    assert config.to_dict() == cli.load_file("configs/separable.py").to_dict()
    with pytest.raises(ConfigError, match="'mnist' is unknown; choose one of cifar10,"):
        cli.load_file(f"configs/{name}.py:mnist")


# Commands, and below each what follows "error: ", up to [...] if that is longer.
MISTAKES = """
--mode=efficiency
    --config is missing; name a Python file, or one of compare, cpu, default, [...]
(nothing)
    --config is missing; name a Python file, or one of compare, cpu, default, [...]
--config=configs/digit.py
    --config=configs/digit.py: no such file; name a Python file, or one of compare,
    cpu, default, digits, separable, standard, sweep
--config=configs
    --config=configs: no such file; name a Python file, or one of [...]
--config=LICENSE
    --config=LICENSE: must be a Python file, *.py
--config=configs/digits.py:wide
    --config=configs/digits.py:wide: TypeError: get_config() takes 0 positional
    arguments but 1 was given
--config
    Missing value for flag --config
DIGITS --config.seed
    Missing value for flag --config.seed
DIGITS --config.batchsize=64
    unknown field --config.batchsize; did you mean --config.batch_size or
    --config.eval_batch_size or --config.block_sizes?
DIGITS --config.num_seeds=3
    unknown field --config.num_seeds; did you mean --config.compare.num_seeds or
    --config.sweep.num_seeds?
DIGITS --config.num_sedes=3
    unknown field --config.num_sedes; did you mean --config.compare.num_seeds or
    --config.sweep.num_seeds or --config.num_devices?
DIGITS --config.compare.num_seed=3
    unknown field --config.compare.num_seed; did you mean
    --config.compare.num_seeds or [...]
DIGITS --config.lr=0.1
    unknown field --config.lr; configs/default.py describes them all
DIGITS --config.lock=1
    unknown field --config.lock; configs/default.py describes them all
DIGITS --noconfig.flips
    unknown field --config.flips; did you mean --config.flip?
DIGITS --config.seed.x=1
    unknown field --config.seed.x; did you mean --config.seed?
DIGITS --config.dropout_rate=1
    --config.dropout_rate=1.0: must be a finite number that is 0, or from 1/256
    to 255/256; e.g. --config.dropout_rate=0.1
DIGITS --config.seed -1
    --config.seed=-1: must be an integer of at least 0 and at most 4,294,966,295;
    e.g. --config.seed=1
DIGITS --config.flip false
    unexpected argument false; write every flag as --flag=value
DIGITS --noconfig.flip=true
    --noconfig.flip=true does not take an argument; leave =... out
DIGITS --nodebug=1
    --nodebug=1 does not take an argument; leave =... out
DIGITS --config.num_epochs=2 --config.warmup_epochs=5
    --config.warmup_epochs=5.0: must be less than --config.num_epochs=2 with the
    cosine schedule; e.g. --config.warmup_epochs=0.2
DIGITS --config.platform=cuda
    --config.platform='cuda' is unknown; choose one of cpu, gpu, tpu
DIGITS --wordir=x
    unknown flag --wordir; did you mean --workdir?
--confg=configs/digits.py
    unknown flag --confg; did you mean --config?
DIGITS --seed=1
    unknown flag --seed; did you mean --config.seed?
DIGITS --xyz=1
    unknown flag --xyz; --help lists all
DIGITS evaluate
    unexpected argument evaluate; write every flag as --flag=value
DIGITS -- --config.seed=1
    unexpected argument --config.seed=1; write every flag as --flag=value
DIGITS --mode=evaluate --split=val
    --split=val: value should be one of <train|validation|test>
DIGITS --mode=predict
    --images is missing: name a picture, a folder, or a .txt file of paths
DIGITS --mode=predict --images=x --top=0
    --top=0: 0 is not a positive integer
--mode=report
    --workdir is missing: name the workdir to report, or several with commas
--mode=report --workdir=a --config.seed=1
    --config.seed=1: --mode=report only reads files; leave it out
"""
PAIRS = re.findall(r"^(\S.*)\n((?:    .*\n)+)", MISTAKES, re.MULTILINE)
# Arguments with the digits, and after the colon what is said of each.
OF_ONE_ARGUMENT = """
--config.growth_rate=wide: must be an integer of at least 1 and at most 4,096; e.g.
    --config.growth_rate=24
--config.num_epochs=1e3: must be an integer of at least 1 and at most 1[...]
--config.batch_size=None: must be an integer of at least 1 and at most 1[...]
--config.compare.num_seeds=x: must be an integer of at least 1 and at most[...]
--config.learning_rate=None: must be a finite number above 0 and at most 1,000, or left
    out; e.g. --config.learning_rate=0.1
--config.learning_rate=nan: must be a finite number above 0 and at most 1,0[...]
--config.weight_decay=inf: must be a finite number of at least 0, or left [...]
--config.data_dir=None: must be a name or path, or left out; e.g.
    --config.data_dir=/data/tensorflow_datasets
--config.class_weights=3=0: must be none, balanced or CLASS=NUMBER,..., each class once
    and each number from 1e-6 to 1e6; e.g. --config.class_weights=balanced
--config.class_weights=3=1,3=2: must be none, balanced or CLASS=NUMBER,..., [...]
--config.class_weights=3=1,4: must be none, balanced or CLASS=NUMBER,..., [...]
--config.flip=maybe: must be true or false; e.g. --config.flip=false
--noconfig.seed: only a field that is true or false can be negated
--config.block_sizes=6 6: must be a tuple of integers from 1 to 256, one per block; e.g.
    --config.block_sizes=6,6,6,6
--config.block_sizes=(): must be a tuple of integers from 1 to 256, one per[...]
--config.block_sizes=6,0: must be a tuple of integers from 1 to 256, one per[...]
--mode=eval: value should be one of
    <train|evaluate|predict|export|efficiency|compare|sweep|report>
--config.label=a-b: must be a name of letters, digits and _; e.g. --config.label=coarse
--config.image_size=3: must be an integer of at least 4 and at most 1,024, or left out;
    e.g. --config.image_size=64
--workdir=: is empty; name a directory, or leave it out
--split=test: only --mode=evaluate reads it; leave it out
--output=x: only --mode=report or predict or export reads it; leave it out
--images=x.png: only --mode=predict reads it; leave it out
--format=onnx: only --mode=export reads it; leave it out
--top=3: only --mode=predict reads it; leave it out
"""
PAIRS += [
    (f"DIGITS {shlex.quote(line.partition(': ')[0])}", line)
    for line in re.findall(r"^\S.*\n(?:    .*\n)*", OF_ONE_ARGUMENT, re.MULTILINE)
]


@pytest.mark.parametrize(("command", "line"), PAIRS, ids=[c for c, _ in PAIRS])
def test_a_mistake_is_one_line_and_exit_code_2(run, command, line):
    command = command.replace("(nothing)", "").replace("DIGITS", DIGITS)
    result = run(*shlex.split(command))
    text, is_longer, _ = f"error: {' '.join(line.split())}\n".partition("[...]")
    assert result.err.startswith(text) if is_longer else result.err == text
    assert result.err.count("\n") == 1
    assert (result.code, result.out, result.calls) == (2, "", [])


CHANGED = """
from configs import default
def get_config():
    c = default.get_config()
    {}
    return c
"""
BODIES = {
    "def get_config():\n    1 / 0": "ZeroDivisionError: division by zero (line 2)",
    "import nowhere": "ModuleNotFoundError: No module named 'nowhere' (line 1)",
    "def get_config(:": "SyntaxError: invalid syntax (file.py, line 1)",
    "x = 1": "AttributeError: module 'config_file' has no attribute 'get_config'",
    "def get_config(): pass": "get_config() must return a ConfigDict, not NoneType",
}
CHANGES = {
    "c.seed = 'x'": "TypeError: Could not override field 'seed'",
    "c.momentun = 0.5": "unknown field --config.momentun; did you mean --config.mome",
    "c.compare.seeds = 2": "compare.seeds; did you mean --config.compare.num_seeds",
    "del c.seed": "lacks seed; start from default.get_config() of configs/default.py ",
}
BODIES |= {CHANGED.format(change): line for change, line in CHANGES.items()}


@pytest.mark.parametrize(("body", "line"), BODIES.items(), ids=BODIES)
def test_a_bad_config_file_is_one_line(run, tmp_path, body, line):
    path = tmp_path / "file.py"
    path.write_text(body)
    result = run(f"--config={path}")
    assert result.err.startswith(f"error: --config={path}")
    assert line in result.err
    assert result.err.count("\n") == 1
    assert (result.code, result.calls) == (2, [])


DEBUG = " (--debug shows the traceback)"
SMALLER = (
    "; out of memory: take a smaller --config.batch_size, --config.eval_batch_size or "
    "network, and another --workdir"
)
FULL, SPENT = "No space left on device", "RESOURCE_EXHAUSTED: "
FREE = "; free some space and repeat the command"
# What follows "error: RuntimeError: " and the like, and precedes DEBUG.
BUGS = [
    (RuntimeError("broken\nin detail"), "broken"),
    (MemoryError("\nhost"), f"host{SMALLER}"),
    (RuntimeError(f"{SPENT}9 bytes.\nMore"), f"{SPENT}9 bytes.{SMALLER}"),
    (ValueError(SPENT + FULL), f"{SPENT}{FULL}{FREE}"),  # As orbax reports it.
    (OSError(28, FULL, "a"), f"[Errno 28] {FULL}: 'a'{FREE}"),
    (PermissionError(13, "no", "a"), "[Errno 13] no: 'a'"),
]
ERRORS = [(e, 1, f"error: {type(e).__name__}: {line}{DEBUG}") for e, line in BUGS]
ERRORS += [
    (AssertionError(), 1, f"error: AssertionError{DEBUG}"),
    (UserError("no data;\n get some"), 1, "error: no data; get some"),
    (ConfigError("seed=x: no"), 2, "error: seed=x: no"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (signals.Stopped(signal.SIGINT), 130, "interrupted"),
    (signals.Stopped(signal.SIGTERM), 143, "terminated"),
]


@pytest.mark.parametrize(("error", "code", "line"), ERRORS, ids=repr)
def test_an_error_of_a_run_is_one_line_or_a_traceback(
    run, monkeypatch, error, code, line
):
    def fail(*args):
        raise error

    monkeypatch.setattr(f"dwsep_jax.{WORK[0]}", fail)
    result = run(DIGITS)
    assert (result.code, result.err) == (code, f"{line}\n")
    if line.endswith(DEBUG):
        result = run(DIGITS, "--debug")
        assert result.code == code
        assert result.err.startswith("Traceback (most recent call last):\n")
        assert "raise error" in result.err
        assert result.err.splitlines()[-1] == line


@pytest.fixture
def jax_with(monkeypatch):
    """Replace jax by one that finds only the given platform; return its settings."""

    def replace(found):
        config = types.SimpleNamespace(jax_disable_jit=False)
        config.update = lambda *args: settings.append(args)
        fake = types.SimpleNamespace(config=config, default_backend=lambda: found)
        settings = []
        monkeypatch.setitem(sys.modules, "jax", fake)
        return settings

    return replace


@pytest.mark.parametrize(
    ("platform", "setting"), [(None, None), ("cpu", "cpu"), ("gpu", ""), ("tpu", "")]
)
def test_the_platform_is_set_before_the_mode_runs(run, jax_with, platform, setting):
    settings = jax_with(platform or "cpu")
    result = run(DIGITS, *([f"--config.platform={platform}"] if platform else []))
    assert (result.code, len(result.calls)) == (0, 1)
    assert settings == ([("jax_platforms", setting)] if platform else [])


@pytest.mark.parametrize(("found", "choices"), [("cpu", "cpu"), ("gpu", "cpu or gpu")])
def test_an_absent_platform_is_one_line(run, jax_with, found, choices):
    jax_with(found)
    result = run(DIGITS, "--config.platform=tpu")
    assert (result.code, result.calls) == (1, [])
    assert result.err == (
        "error: --config.platform=tpu: jax finds none on this machine; choose "
        f"{choices}, or install jax with support for it\n"
    )


def test_what_may_not_be_compiled_is_one_line(run):
    with jax.disable_jit():
        result = run(DIGITS)
    assert (result.code, result.calls) == (1, [])
    assert result.err.startswith("error: JAX_DISABLE_JIT=1: the training step is comp")


def run_python(*arguments, cwd, **environment):
    options = dict(cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    env = {"PATH": "", "HOME": str(cwd), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], env=env, **options)


def test_a_disk_that_is_full_is_one_line(tmp_path):
    """Orbax would print a traceback for each of its threads that cannot write."""
    code = """if True:
        import asyncio, resource, sys
        from dwsep_jax.__main__ import main
        from dwsep_jax.train.checkpoint import Checkpoints

        def save_without_space(*arguments, save=Checkpoints.save):
            # Of the threads that fail, only one is heard; asyncio logs the others.
            asyncio.new_event_loop().create_future().set_exception(ValueError())
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
            save(*arguments)

        Checkpoints.save = save_without_space
        sys.exit(main(sys.argv))
    """
    fields = {"num_epochs": 1, "growth_rate": 4, "block_sizes": "1"}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    flags += ["--config=digits", "--workdir=run"]
    result = run_python("-c", code, *flags, cwd=tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"error: .*File too large.*; free some.*\n", result.stderr)


def test_the_platform_of_the_config_wins_over_the_environment(tmp_path):
    code = "from dwsep_jax import cli; cli.prepare_process('cpu')\n"
    code += "import jax; print(jax.devices()[0].platform)"
    result = run_python("-c", code, cwd=tmp_path, JAX_PLATFORMS="nowhere")
    assert (result.returncode, result.stdout) == (0, "cpu\n"), result.stderr


@pytest.mark.parametrize("flag", ["-h", "--help", "--helpfull"])
def test_help_needs_no_config(run, flag):
    result = run(flag)
    assert (result.code, result.err, result.calls) == (0, "", [])
    names = [name for name in define_flags() if not name.startswith("config.")]
    for name in set(names) - {"help", "h", "helpfull", "helpshort"}:
        assert f"\n  --{name} " in result.out
    for mode in MODES:
        assert re.search(rf"\b{mode}(:| \()", result.out)
    assert "configs/default.py" in result.out


def test_help_imports_neither_jax_nor_numpy(tmp_path):
    code = "import sys, main; code = main.main(['main.py', '--help'])\n"
    code += "print(code, sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    result = run_python("-c", code, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


@pytest.mark.parametrize("command", [[f"{ROOT}/main.py"], ["-m", "dwsep_jax"]])
def test_the_program_runs_from_any_directory(tmp_path, command):
    (tmp_path / "mine.py").write_text(CHANGED.format("c.shift = -1"))
    result = run_python(*command, "--config=mine.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch("error: --config.shift=-1: must be .*=4\n", result.stderr)
    assert not (tmp_path / "runs").exists()


def test_report_gets_the_workdirs_and_no_config(run, monkeypatch):
    noted = []
    monkeypatch.setattr(write, "write_report", lambda *a: noted.append(a) or "x")
    result = run("--mode=report", "--workdir=a,b", "--output=c")
    assert (result.code, result.out) == (0, "report: x\n")
    assert run("--mode=report", DIGITS).code == 0
    assert noted == [(["a", "b"], "c"), (["runs/digits"], None)]
