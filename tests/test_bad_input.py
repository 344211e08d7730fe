"""Bad input, generated: one line each, of the right exit code, and no file changed."""

import json
import pathlib
import shutil

import pytest

from dwsep_jax import data
from dwsep_jax.__main__ import main
from dwsep_jax.errors import UserError
from dwsep_jax.evaluate import load_trained
from dwsep_jax.fields import FIELDS
from dwsep_jax.report.files import read_workdir
from dwsep_jax.train import loop
from dwsep_jax.workdir import load_config

OLD = pathlib.Path(__file__).parent / "old"
VALUES = ["", "x", "None", "nan", "-1", "1e999", "0.5", "99999999999", "1,x", "[", "()"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_value_of_a_field_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    accepted = []  # What a name may be, such as an optimizer's, is known further down.
    monkeypatch.setattr(loop, "train_and_evaluate", lambda c, _: accepted.append(c))
    flags = [f"--config.{name}={value}" for value in VALUES]
    for flag in [*flags, f"--config.{name}x=1", f"--config.{name}.x=1"]:
        code = main(["", "--config=digits", "--config.platform=cpu", flag])
        err = capsys.readouterr().err
        if code:
            assert (code, err.count("\n")) == (2, 1), flag
            assert err.startswith(("error: --config.", "error: unknown field ")), flag
        else:
            assert FIELDS[name].is_valid(accepted[-1][name]), flag
            assert flag in flags, flag
    assert len(accepted) < len(VALUES)
    assert not any(tmp_path.iterdir())


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "noise": lambda content: bytes(i * 7919 % 256 for i in range(500)),
    "other": lambda content: b"[1, 2]",
    "flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "deep": lambda content: b"[" * 5000,
    "folder": None,
}


def read(workdir):
    """Return all that is read of a run."""
    trained = load_trained(workdir)
    return load_config(workdir).to_dict(), trained.class_names, read_workdir(workdir)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_run_is_one_line(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", None)
    run = shutil.copytree(OLD / "run", tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_bytes())
    (run / "evaluation.json").write_text(
        json.dumps(evaluation | {"image_shape": [32, 32, 3]})
    )
    read(run)
    for path in filter(pathlib.Path.is_file, sorted(run.rglob("*"))):
        content = path.read_bytes()
        path.unlink()
        if DAMAGES[damage]:
            path.write_bytes(DAMAGES[damage](content))
        else:
            path.mkdir()
        with pytest.raises(UserError) as error:
            read(run)
        line = str(error.value)
        assert "\n" not in line
        assert str(run) in line
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(content)
