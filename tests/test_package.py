"""The package as a whole: imports, dependencies, a run from the command line."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib

import jax
import numpy as np
import pytest
from orbax.checkpoint import StandardCheckpointer

import dwsep_jax

ROOT = pathlib.Path(__file__).parents[1]

# What an import of tensorflow would do where there is none, and then some: etils looks
# for it, so it is found, and only loading it fails.
NO_TENSORFLOW = """
import importlib.abc, importlib.machinery, sys
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_cpu"):
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise RuntimeError("tensorflow was imported")
    def exec_module(self, module):
        raise RuntimeError("tensorflow was imported")
sys.meta_path.insert(0, Finder())
"""


MAIN = "import sys, main; sys.exit(main.main(sys.argv))"
FAST_COMPILE = "--xla_backend_optimization_level=0"


def python(code, *args, **changes):
    """Run code in another process; a change of the environment to None removes it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILE}
    environment = {k: v for k, v in (environment | changes).items() if v is not None}
    command = [sys.executable, "-c", code, *map(str, args)]
    options = dict(capture_output=True, text=True, cwd=ROOT, env=environment)
    return subprocess.run(command, **options)


def test_the_package_and_the_diagnosis_import_no_jax():
    code = (
        "import sys; before = set(sys.modules); import {};"
        "new = {{m.partition('.')[0] for m in set(sys.modules) - before}};"
        "print(*sorted(new - sys.stdlib_module_names))"
    )
    found = python(code.format("dwsep_jax")).stdout.split()
    assert found == ["dwsep_jax", "lazy_loader"]
    found = python(code.format("dwsep_jax.diagnose")).stdout.split()
    assert "numpy" in found
    assert not {"jax", "flax", "optax", "orbax", "tensorflow"} & {*found}


def test_a_run_does_not_wait_for_packages_that_it_does_not_use():
    code = "import sys, dwsep_jax.train.loop; print(*sys.modules)"
    found = set(python(code).stdout.split())
    assert "orbax" in found
    assert not found & {"tensorboardX", "torch", "wandb", "mlflow", "onnx", "pyarrow"}


def test_every_exported_name_is_there():
    for name in dwsep_jax.__all__:
        assert getattr(dwsep_jax, name).__name__ == name
    assert set(dwsep_jax.__all__) <= set(dir(dwsep_jax))
    with pytest.raises(AttributeError, match="attribute SeparableConvolution"):
        _ = dwsep_jax.SeparableConvolution


def imports_of(path):
    """Yield the dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from (module + alias.name for alias in node.names)


def test_declared_dependencies_are_those_that_are_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    modules = {"absl-py": "absl", "orbax-checkpoint": "orbax", "pillow": "PIL"}
    modules |= {"scikit-learn": "sklearn", "vl-convert-python": "vl_convert"}
    needed = {modules.get(name, name.replace("-", "_")) for name in declared}
    # TFDS and jax.export import them without declaring them.
    undeclared = {"importlib_resources", "flatbuffers"}
    ours = {"configs", "dwsep_jax"}
    extras = {"mlflow", "onnx", "pyarrow", "wandb"}
    paths = [path for folder in ours for path in (ROOT / folder).rglob("*.py")]
    used = {name.partition(".")[0] for path in paths for name in imports_of(path)}
    used -= ours | set(sys.stdlib_module_names)
    assert used == (needed - undeclared) | extras


def test_a_wheel_carries_every_folder_and_the_configs():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "dwsep_jax").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert {*setup["packages"]} == names | {"dwsep_jax.configs"}
    assert setup["package-dir"] == {"dwsep_jax.configs": "configs"}


# Each may import those before it.
ROOMS = [
    *("errors", "lock", "places", "signals", "statistics", "console", "fields"),
    *("space", "schema", "condense", "launch", "processes", "environment", "config"),
    *("workdir", "trials", "nn", "data"),
    *("diagnose", "report", "train", "evaluate", "predict", "export", "efficiency"),
    *("compare", "sweep"),
    *("cli", "__main__"),
]


def test_imports_run_one_way():
    package = ROOT / "dwsep_jax"
    paths = [p for p in package.rglob("*.py") if p != package / "__init__.py"]

    for path in paths:
        place = path.relative_to(package).parts[0].removesuffix(".py")
        ours = [name for name in imports_of(path) if name.startswith("dwsep_jax.")]
        for other in (name.split(".")[1] for name in ours):
            assert ROOMS.index(other) <= ROOMS.index(place), (path, other)
    found = {path.relative_to(package).parts[0].removesuffix(".py") for path in paths}
    assert found == set(ROOMS)


def tiny_run(workdir, *fields):
    """Return the arguments of a run of seconds, with its data beside its workdir."""
    fields = ("growth_rate=4", "block_sizes=1,1", *fields)
    return [
        f"--config={ROOT}/configs/digits.py",
        *(f"--config.{field}" for field in fields),
        f"--config.data_dir={workdir.parent}/data",
        f"--workdir={workdir}",
    ]


def test_a_whole_run_from_the_command_line_without_tensorflow(tmp_path):
    code, workdir = NO_TENSORFLOW + MAIN, tmp_path / "run"
    result = python(code, *tiny_run(workdir, "num_epochs=1", "warmup_epochs=0"))
    assert result.returncode == 0, result.stderr
    assert "tensorflow was imported" not in result.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["requested"]["learning_rate"] is None
    assert config["resolved"]["learning_rate"] > 0
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["num_examples"] == 360
    assert [row["name"] for row in evaluation["per_class"]] == list("0123456789")
    with np.load(workdir / "predictions.npz") as arrays:
        assert arrays["id"][0].startswith("digit_")
    assert f"test accuracy {evaluation['accuracy']:.2%} of 360 images" in result.stdout
    assert "\x1b" not in result.stdout  # No terminal: plain lines.

    again = python(code, "--mode=evaluate", f"--workdir={workdir}", "--split=train")
    assert again.returncode == 0, again.stderr
    evaluation = json.loads((workdir / "evaluation-train.json").read_text())
    assert evaluation["num_examples"] == 1437 - 100


def test_where_nothing_can_be_locked_one_line_says_so(tmp_path):
    without = "import sys; sys.modules['fcntl'] = None\n"
    quiet = dict(PYTHONWARNINGS="ignore")  # jax has warnings of its own there.
    result = python(without + MAIN, *tiny_run(tmp_path / "run"), **quiet)
    assert result.returncode == 1
    line = "error: Windows is not supported: directories cannot be locked there; use "
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    # What needs no lock.
    code = "from dwsep_jax import SeparableConv, train_step"
    result = python(without + code, **quiet)
    assert (result.returncode, result.stderr) == (0, "")


HOLD_THE_SECOND_SAVE = """
import os, pathlib, sys, time
import dwsep_jax.train.checkpoint as checkpoint
write = checkpoint.write_atomically
def hold(path, text):
    if path.parent.name == "2":
        pathlib.Path(os.environ["HOME"], "held").touch()
        time.sleep(1000)
    write(path, text)
checkpoint.write_atomically = hold
"""


def test_a_run_killed_inside_a_save_ends_with_the_same_bits(tmp_path):
    home = pathlib.Path(os.environ["HOME"])
    home.mkdir(exist_ok=True)
    fields = ("num_epochs=3", "ema_decay=0.9", "mixup=0.2")

    def result_of(name):
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        times = ("images_per_second", "elapsed_seconds", "crc32")
        rows = [json.loads(row) for row in rows]
        arrays = tmp_path / name / "checkpoints/3/arrays"
        state = StandardCheckpointer().restore(arrays)
        state["key"] = jax.random.key_data(state["key"])
        rows = [{k: v for k, v in r.items() if k not in times} for r in rows]
        return rows, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]

    assert python(MAIN, *tiny_run(tmp_path / "whole", *fields)).returncode == 0
    arguments = tiny_run(tmp_path / "killed", *fields)
    command = [sys.executable, "-c", HOLD_THE_SECOND_SAVE + MAIN, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILE}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        while not (home / "held").exists():
            assert run.poll() is None
            time.sleep(0.05)
        run.kill()
    rows = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1]
    again = python(MAIN, *arguments)
    assert again.returncode == 0, again.stderr
    # Without the sums of its files, the second checkpoint does not count.
    assert "resuming after epoch 1, step 41" in again.stdout
    assert result_of("killed") == result_of("whole")


def test_benchmarks_can_be_started_as_they_say():
    tried = "try:\n import benchmarks.{}\nexcept ModuleNotFoundError as e:\n print(e)\n"
    code = ""
    for path in (ROOT / "benchmarks").glob("*.py"):
        if "__main__" in (text := path.read_text()):  # The others are shared.
            assert f"python -m benchmarks.{path.stem}" in text
            code += tried.format(path.stem)
    result = python(code)
    # What a benchmark compares with is no dependency of the tests.
    absent = {f"No module named '{name}'" for name in ("torch", "keras", "equinox")}
    assert set(result.stdout.splitlines()) <= absent
    assert result.returncode == 0, result.stderr
