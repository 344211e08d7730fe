"""The report of a sweep: its verdict, its limits, its charts and its errors."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.report import files, page, write
from dwsep_jax.report.sweep import describe_sweep, find_edge
from dwsep_jax.space import parse_space
from tests.report import sweep_files
from tests.report.sweep_files import make_trials, write_sweep, write_trials

ROOT = pathlib.Path(__file__).parents[2]
IMPORTANCE = {"learning_rate_factor": 0.55, "optimizer": 0.25, "activation": 0.12}
IMPORTANCE |= {"batch_size": 0.05, "dropout_rate": 0.03}
PLUS_MINUS, TIMES = "\N{PLUS-MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """Return the workdir of a sweep whose winner is ahead of all other finals."""
    directory = tmp_path_factory.mktemp("clear")
    write_sweep(directory, importance=IMPORTANCE)
    return directory


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch):
    monkeypatch.setattr(page, "draw", lambda spec, title: b"PNG")


@pytest.fixture
def workdir(clear, tmp_path):
    """Return a copy of that sweep, to change."""
    return shutil.copytree(clear, tmp_path / "copy")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_sweep(path, **changes):
    """Change fields of the section `sweep` in config.json."""
    content = json.loads(path.read_text())
    for part in ("requested", "resolved"):
        content[part]["sweep"] |= changes
    path.write_text(json.dumps(content))


def describe(directory):
    """Return the headline and the blocks of each part."""
    section = describe_sweep(files.read_workdir(directory))
    return section.lead[0], {part.title: part.blocks for part in section.parts}


def read_limits(directory):
    return "\n".join(describe(directory)[1]["What decided, and its limits"][0].items)


def markdown_of(directory):
    write.write_report([directory])
    text = (directory / "report.md").read_text()
    return re.sub(r"\\([\\`*_\[\]<>|#])", r"\1", text)


@pytest.mark.parametrize(
    ("options", "verdict", "tone", "limit"),
    [
        ({"num_seeds": 1}, "adam with swish, not yet confirmed over seeds", "open", ""),
        (
            {"losses": {"optimizer=rmsprop": 0.002, "activation=relu": 0}},
            "adam with swish, not clearly ahead of rmsprop and relu",
            "open",
            "More seeds (sweep.num_seeds) may settle what is undecided.",
        ),
        (
            {"losses": {"optimizer=rmsprop": -0.015}},
            "adam with swish on validation, but behind rmsprop on test",
            "bad",
            "",
        ),
        (  # The seeds alone would tell; so few test images do not.
            {"losses": {"optimizer=rmsprop": 0.01}, "num_examples": 100},
            "adam with swish, not clearly ahead of rmsprop",
            "open",
            "",
        ),
        (
            {"rows": make_trials(num_trials=8, num_complete=1)},
            "adam with swish, but too few trials are complete",
            "open",
            "Too few trials are complete for a space of 5 settings.",
        ),
        (
            {"verdict": "still_improving"},
            "adam with swish, clearly",
            "good",
            "still improving in 3 of its runs.\nWith more epochs (num_epochs) the or",
        ),
    ],
)
def test_the_verdict_follows_from_the_numbers(tmp_path, options, verdict, tone, limit):
    write_sweep(tmp_path, **options)
    headline, _ = describe(tmp_path)
    assert (headline.verdict, headline.tone) == (verdict, tone)
    assert limit in read_limits(tmp_path)


def test_the_page_has_each_part_and_a_figure_of_each_chart(clear):
    text = markdown_of(clear)
    assert re.findall(r"^## (.*)", text, re.M) == [
        *("The winner", "Finals", "Accuracy by setting", "Search", "All trials"),
        *("What decided, and its limits", "How to reproduce it"),
    ]
    names = {path.stem for path in (clear / "figures").iterdir()}
    slices = {f"slice_{name}" for name in sweep_files.NAMES}
    assert names == slices | {"history"}
    for words in (
        "Trial 2 reached the highest validation accuracy of 16 trials, at epoch 12.",
        f"- 98.00 {PLUS_MINUS} 0.50 % test accuracy over 3 seeds, 95 % interval",
        "| dropout_rate | 0.12 | 0 to 0.297 | 3 % |",
        f"| learning_rate | 0.0045 (0.9 {TIMES} default) | 0.1 to 10, log, {TIMES} def",
        f"| adam with swish (2) | 98.20 {PLUS_MINUS} 0.50 % | 98.00 {PLUS_MINUS} 0.50",
        "| 3 | +3.00 | +2.14 to +3.86 | +2.13 to +3.87 | behind |",
        "| 15 | failed | \N{EN DASH} | 1 |",
    ):
        assert words in text
    limits = read_limits(clear)
    for words in (
        "Trials: 11 complete, 4 pruned and 1 failed.\nFailures: diverged (1).\n",
        "98.50 % on validation in the search and 98.20 % when retrained (",
        "The winner's loss curves: well fitted in 3 of its runs.",
    ):
        assert words in limits
    assert "edge" not in limits
    assert "undecided" not in limits


def test_the_winner_at_the_edge_of_the_space_says_to_widen_it(tmp_path):
    winner = {"learning_rate_factor": 9.9, "batch_size": 32, "dropout_rate": 0.0}
    write_sweep(tmp_path, make_trials(**winner))
    limits = read_limits(tmp_path)
    searched = f"edge of the space (0.1 to 10, log, {TIMES} default)"
    assert f"{searched}. Better values may lie above" in limits
    assert "edge of the space (32, 64, 128). Better values may lie below" in limits
    assert "dropout_rate is at the edge" not in limits  # There is nothing below 0.


@pytest.mark.parametrize(
    ("axis", "setting", "edge"),
    [
        ("growth_rate=8..24", 24, "above"),
        ("growth_rate=8..24", 23, None),
        ("weight_decay=1e-5..1 log", 1.2e-5, "below"),
        ("dropout_rate=0.1..0.5", 0.2, None),
        ("batch_size=1|2", 2, None),
        ("activation=a|b|c", "c", None),
        ("flip=true|false", True, None),
    ],
)
def test_a_setting_at_an_end_of_its_range_is_at_the_edge(clear, axis, setting, edge):
    trial = files.read_workdir(clear).trials[0]
    [axis] = parse_space([axis])
    assert find_edge(axis, trial._replace(settings={axis.name: setting})) == edge


def test_lost_failed_and_late_trials_and_seeds_are_counted(workdir):
    best = json.loads((workdir / "best.json").read_text())
    best["finals"][1]["diverged"] = [4]
    change(workdir / "best.json", finals=best["finals"])
    (workdir / "final/trial4/seed1/predictions.npz").unlink()
    rows = make_trials()
    rows[14] |= {"state": "failed", "note": "killed"}
    rows[15] |= {"retry_of": 14, "note": "", "state": "complete", "value": 0.5}
    rows += [rows[0] | {"number": number} for number in (16, 17)]
    write_trials(workdir, rows)
    text = markdown_of(workdir)
    assert f"| 96.00 {PLUS_MINUS} 0.50 % | 3 (1 diverged) |" in text
    assert "highest validation accuracy of 16 trials" in text
    limits = read_limits(workdir)
    assert (
        "Trials: 14 complete and 3 pruned.\nTrials repeated because their worker"
        in limits
    )
    assert "Failures" not in limits  # The lost one was repeated.
    assert "Trials that ended after the finals: 1." in limits
    assert f"| +3.00 | +2.14 to +3.86 | {DASH} | behind |" in text


def test_an_unfinished_sweep_shows_the_trials_that_it_has(tmp_path):
    rows = make_trials()
    rows[14] |= {"state": "running", "value": "", "epochs": ""}
    rows[15] |= dict.fromkeys(sweep_files.NAMES, "") | {"state": "waiting", "note": ""}
    write_trials(tmp_path, rows)
    text = markdown_of(tmp_path)
    assert (
        "**In progress.** 14 of 16 trials have ended. The best so far is trial 2, "
        in (text)
    )
    assert "with 98.50 % on validation: activation swish, optimizer adam, " in text
    assert "11 complete, 3 pruned, 1 running and 1 waiting." in text
    assert "## The winner" not in text
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"history.png", "slice_batch_size.png"} <= figures
    (tmp_path / "final/trial2/seed1").mkdir(parents=True)
    (tmp_path / "final/trial2/seed1/evaluation.json").write_text("{}")
    assert "The search is over; finals evaluated on test: 1." in markdown_of(tmp_path)
    write_trials(tmp_path, [])
    text = markdown_of(tmp_path)
    assert "0 of 16 trials have ended. The search is over;" in text
    assert "No trial has a validation accuracy yet." in text


def test_hopeless_trials_do_not_flatten_the_others(workdir):
    rows = make_trials()
    rows[0]["value"] = 0.1
    write_trials(workdir, rows)
    _, parts = describe(workdir)
    accuracy = parts["Search"][0].spec["layer"][1]["encoding"]["y"]["scale"]
    assert 85 < accuracy["domain"][0] < 98.5 == accuracy["domain"][1]
    assert accuracy["clamp"]
    charts = parts["Accuracy by setting"][0].charts
    scales = [chart.spec["layer"][0]["encoding"]["x"]["scale"] for chart in charts]
    types = [scale.get("type") for scale in scales]
    assert types == [None, None, "log", None, "linear"]


def test_workdirs_of_all_kinds_stand_together(workdir, tmp_path):
    write_trials(tmp_path / "other", make_trials())
    write.write_report([workdir, workdir / "final/trial2/seed1", tmp_path / "other"])
    text = (workdir / "report.md").read_text()
    assert f"| copy | digits | sweep | 98.00 {PLUS_MINUS} 0.50 % | adam" in text
    assert "| trial2/seed1 |" in text
    assert "| other | digits | sweep | \N{EN DASH} | In progress |" in text
    assert (workdir / "figures/3-history.png").exists()


def test_the_command_starts_the_same_search_in_a_new_study(workdir):
    secret = {"study": "mine", "storage": "postgresql://me:secret@host/db"}
    change_sweep(workdir / "config.json", space=["a=b|c", "d=1..2 log"], **secret)
    command = describe(workdir)[1]["How to reproduce it"][0].text.replace(" \\\n ", "")
    assert command.startswith(
        "python main.py --mode=sweep --config=configs/sweep.py:di"
    )
    assert "--config.sweep.space='a=b|c,d=1..2 log' " in command
    assert not re.search("secret|mine|growth_rate", command)
    (workdir / "config.json").unlink()
    assert "configs/sweep.py" not in markdown_of(workdir)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"number": 99}, "trials.csv is damaged (it lacks trial 99 of best.json)"),
        ({"importance": {"optimizer": 1.0}}, "it lacks importance."),
        ({"space": ["optimizer"]}, "sweep.space: optimizer: an axis is FIELD=A|B|"),
    ],
)
def test_a_wrong_value_of_best_is_named(workdir, changes, problem):
    change(workdir / "best.json", **changes)
    with pytest.raises(UserError, match=re.escape(problem)):
        write.write_report([workdir])


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"num_trials": None}, "**In progress.** 16 trials have ended."),
        ({"sampler": None}, "--config.sweep.sampler=None: must be a name"),
        ({"space": ["lr=low..high"]}, "space: lr=low..high: unknown field lr"),
    ],
)
def test_the_configuration_of_an_unfinished_sweep_is_checked(tmp_path, changes, shown):
    write_trials(tmp_path, make_trials())
    path = tmp_path / "config.json"
    change_sweep(path, **changes)
    try:
        text = markdown_of(tmp_path)
    except UserError as error:
        text = str(error)
        assert text.startswith(f"{path} is damaged (")
    assert shown in text


def test_a_sweep_is_reported_and_drawn_without_jax_and_optuna(clear):
    code = (
        "import sys, main; code = main.main(sys.argv);"
        "print({'jax', 'flax', 'optuna', 'sqlalchemy'} & set(sys.modules));"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "--mode=report", f"--workdir={clear}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"report: {clear}/report.html\nset()\n"
    for name in ("history", "slice_learning_rate_factor", "slice_optimizer"):
        assert len((clear / f"figures/{name}.png").read_bytes()) > 10_000
