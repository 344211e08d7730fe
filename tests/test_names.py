"""Names are text, whatever is in them: in paths, data, studies and every format."""

import dataclasses
import html
import pathlib

import pytest
import tensorflow_datasets as tfds

from dwsep_jax import data, evaluate
from dwsep_jax.__main__ import main
from dwsep_jax.errors import ConfigError, DataError
from dwsep_jax.train import loop
from dwsep_jax.workdir import load_config
from tests import quick, tiny
from tests.compare import comparing
from tests.data.tfds_files import write_dataset
from tests.report import report_files, sweep_files
from tests.sweep import sweeping

PIECES = ["-", "$x$", "_a_", "<b>", "%s%41", "{{x}}", "`c`", "~", "#", "&lt;", "|"]
PIECES += ["'", '"', ",", ";", "\n", "\t", " ", "=", "@2", "x.log", ":1"]
PIECES += ["\N{GRINNING FACE}", "\u05d0\u05d1", "\u202e", "e\u0301", "n" * 100]
NAME = "".join(PIECES)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path / NAME)  # The name itself begins with a dash.
    return pathlib.Path(NAME)


def report(workdir):
    """Report a workdir as the command line does; return the page as text."""
    assert main(["", "--mode=report", f"--workdir={workdir}"]) == 0
    return html.unescape((workdir / "report.html").read_text())


def test_a_run(workdir, monkeypatch, capsys):
    # Vega would cut one of them in the middle of an emoji.
    many = 60 * "\N{GRINNING FACE}"
    names = [NAME + "\\", "n" + many, many]
    names = tuple(" ".join(name.split()) for name in names)
    dataset = dataclasses.replace(tiny.make_dataset(), name=NAME, class_names=names)
    for module in (data, evaluate):
        monkeypatch.setattr(module, "load", lambda config: dataset)
    weights = ",".join(f"{name}={i}" for i, name in enumerate(names, 1))
    options = dict(class_weights=weights, schedule="constant", tensorboard=True)
    for num_epochs in (1, 2):
        config = tiny.make_config(num_epochs=num_epochs, **options)
        loop.train_and_evaluate(config, workdir)
    assert "resuming after epoch 1" in capsys.readouterr().out
    evaluate.evaluate_workdir(load_config(workdir), workdir, "validation")
    page = report(workdir)
    assert all(name in page for name in names)


def test_data(tmp_path):
    label = tfds.features.ClassLabel(names=[f"\x1b[31m{NAME[:14]}", *"bcd"])
    place = tmp_path / f"{NAME}\\[*?]"
    write_dataset(place / "toy" / "1.0.0", label=label)
    config = tiny.make_config(dataset="toy", data_dir=str(place), validation_size=4)
    for _ in range(2):  # The second time from the cache.
        assert data.load(config).class_names == (f" [31m{NAME[:14]}", *"bcd")
    for name in [*PIECES, NAME]:
        with pytest.raises((ConfigError, DataError)):
            data.load(tiny.make_config(dataset=name, data_dir=str(place)))


def test_a_comparison(workdir, monkeypatch):
    with monkeypatch.context() as patch:
        quick.stand_in(patch)
        quick.Quick(patch)
        comparing.run(workdir)
    made = workdir / "made"
    report_files.write_comparison(made, names=[NAME, "b"], num_examples=40, num_seeds=2)
    assert "standard" in report(made)


@pytest.mark.parametrize("storage", [None, f"{NAME}.journal"])
def test_a_sweep(workdir, monkeypatch, storage):
    with monkeypatch.context() as patch:
        sweeping.Quick(patch)
        for num_trials in (1, 2):
            changes = dict(storage=storage, num_trials=num_trials)
            best = sweeping.run(workdir, study=NAME, **changes)
    assert best["study"] == NAME
    assert len(sweeping.read_trials(workdir)) == 2
    sweep_files.write_sweep(workdir / "made")
    assert "swish" in report(workdir / "made")
