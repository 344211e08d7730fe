"""RESULTS.md: written from the files below results/, and by their numbers alone."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from dwsep_jax.report import page
from results import write
from results.collect import collect
from tests.report.report_files import write_comparison

ROOT = pathlib.Path(__file__).parents[2]


def write_page(directory):
    """Return the page of a directory of workdirs."""
    write.write_results(directory)
    return directory.with_name("RESULTS.md").read_text()


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch):
    monkeypatch.setattr(page, "draw", lambda spec, title: b"PNG")


@pytest.fixture
def results(tmp_path):
    """Return a directory with a comparison that the separable network wins."""
    write_comparison(tmp_path / "results/compare-cpu", difference=0.012, num_seeds=3)
    return tmp_path / "results"


def test_the_page_is_what_the_committed_files_make_it(tmp_path):
    copy = shutil.copytree(ROOT / "results", tmp_path / "results")
    assert write_page(copy) == (ROOT / "RESULTS.md").read_text()
    drawn = {path.name for path in (copy / "figures").iterdir()}
    assert drawn == {path.name for path in (ROOT / "results/figures").glob("*")}


def test_the_conclusion_follows_the_numbers(results):
    assert "Yes, it is more accurate" in write_page(results)
    path = results / "compare-cpu/comparison.json"
    content = json.loads(path.read_text())
    variants, pair = content["variants"], content["paired"]["separable"]
    ours, theirs = variants["separable"], variants["standard"]
    for key in ("summary", "runs"):
        ours[key], theirs[key] = theirs[key], ours[key]
    pair["mean"] *= -1
    for interval in (pair, pair["bootstrap"]):
        interval["ci95"] = [-end for end in reversed(interval["ci95"])]
    pair["answer"] = content["answer"] = "worse"
    path.write_text(json.dumps(content))
    after = write_page(results)
    assert "No, it loses accuracy" in after
    assert "Yes, it is more accurate" not in after


def test_figures_are_beside_the_files_and_old_ones_go(results):
    (results / "figures").mkdir()
    (results / "figures/old.png").touch()
    text = write_page(results)
    drawn = {path.name for path in (results / "figures").iterdir()}
    assert "old.png" not in drawn
    assert all(f"](results/figures/{name})" in text for name in drawn)


def test_the_answer_comes_first(results):
    name = results / "optimizers/adam"
    shutil.copytree(ROOT / "results/optimizers/adam", name)
    text = write_page(results)
    assert text.startswith("# Is a depthwise-separable convolution worth it")
    assert "- Adam over 100 epochs: `results/optimizers/adam`" in text


def test_what_has_not_been_run_is_said(results):
    text = write_page(results)
    assert "- SGD over 100 epochs: not run yet" in text
    assert "over 100 epochs and 3 seeds: `results/compare-cpu`" in text


def test_it_needs_neither_jax_nor_data(results):
    code = "import sys; sys.modules['jax'] = None; import results.write"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_copy_keeps_what_a_report_and_a_later_start_need(tmp_path):
    source, copy = ROOT / "results/compare-cpu", tmp_path / "copy"
    run, path = "separable/seed0", "checkpoints/100/commit_success.txt"
    machine = shutil.copytree(source, tmp_path / "machine")
    (machine / run / path).write_text("Checkpoint commit was successful to /home/me/x")
    (machine / run / "train.log").touch()
    done = ["separable/rate1/checkpoints", "separable/seed1/checkpoints"]
    for place in done:
        shutil.copytree(machine / run / "checkpoints", machine / place)
    collect(machine, copy)
    assert not any((copy / place).exists() for place in done)

    def files(root):
        paths = [path for path in (root / run).rglob("*") if path.is_file()]
        return {path.relative_to(root): path.read_bytes() for path in paths}

    assert files(copy) == files(source)
