"""The report of a sweep: its answer, what it shows of which file, and its errors."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dwsep_jax import report
from dwsep_jax.errors import UserError
from dwsep_jax.report import files, finals, page, parallel, sweep_charts, sweep_text
from dwsep_jax.report.sweep import describe_sweep
from dwsep_jax.report.trials import Axis, axes_of_best, axes_of_config
from tests.report import sweep_files

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {"num_examples": 500}
NAMES = ("best", "config")
CLEAR = {"optimizer=rmsprop": 0.02, "optimizer=sgd": 0.03}
CLEAR |= {"activation=relu": 0.02, "activation=leaky_relu": 0.025}
IMPORTANCE = {"learning_rate_factor": 0.55, "optimizer": 0.25, "activation": 0.12}
IMPORTANCE |= {"batch_size": 0.05, "dropout_rate": 0.03}


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """Return the workdir of a sweep whose winner is ahead of all others."""
    directory = tmp_path_factory.mktemp("clear")
    sweep_files.write_sweep(directory, losses=CLEAR, importance=IMPORTANCE, **SMALL)
    return directory


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(page, "draw", lambda spec, title: b"PNG")


@pytest.fixture
def workdir(clear, tmp_path):
    """Return a copy of the sweep, to change."""
    return shutil.copytree(clear, tmp_path / "copy")


def sweep_of(directory, **changes):
    sweep_files.write_sweep(directory, **(SMALL | changes))
    return files.read_workdir(directory)


def answer_of(sweep):
    return sweep_text.answer(sweep, finals.find_rivals(sweep))


def discuss(sweep):
    return sweep_text.discuss(sweep, finals.find_rivals(sweep))


def list_steps(sweep):
    return sweep_text.list_next_steps(sweep, finals.find_rivals(sweep))


def change(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def markdown_of(directory):
    report.write_report([directory])
    text = (directory / "report.md").read_text()
    return re.sub(r"\\([\\`*_\[\]<>|#])", r"\1", text)


def find_parts(sweep):
    return {part.title: part.blocks for part in describe_sweep(sweep).parts}


def test_a_clear_winner_is_named_with_its_settings_and_figures(clear):
    answer = answer_of(files.read_workdir(clear))
    assert (answer.verdict, answer.tone) == ("adam with swish, clearly", "good")
    assert answer.text == (
        "On digits, the best of 16 trials is number 2: activation swish, optimizer "
        "adam, learning_rate 0.0045 (0.9 \N{MULTIPLICATION SIGN} the default), "
        "batch_size 64, dropout_rate 0.12. It reaches 98.50 % on validation, after "
        "epoch 12. Trained anew over 3 seeds that the search has not seen, it reaches "
        "98.00 \N{PLUS-MINUS SIGN} 0.50 % on test (95 % interval over seeds), and "
        "98.20 \N{PLUS-MINUS SIGN} 0.50 % on validation."
    )
    assert "Optimizer: adam is ahead of rmsprop (+2.00 points, " in answer.more
    assert "and sgd (+3.00 points, " in answer.more
    assert "Activation: swish is ahead of relu (+2.00 points, " in answer.more
    assert "not distinguishable" not in answer.more
    assert "edge" not in answer.more
    assert ("11 of 16", "trials went to their end") in answer.figures


def test_a_tie_says_which_values_are_not_distinguishable(tmp_path):
    losses = {"optimizer=rmsprop": 0.002, "optimizer=sgd": 0.03, "activation=relu": 0}
    sweep = sweep_of(tmp_path, losses=losses)
    answer = answer_of(sweep)
    assert answer.verdict == "adam with swish, not clearly ahead of rmsprop and relu"
    assert answer.tone == "open"
    assert (
        "Optimizer: adam is ahead of sgd (+3.00 points, +2.14 to +3.86 over seeds); "
        "not distinguishable from rmsprop (+0.20 points, "
    ) in answer.more
    assert "Activation: swish is not distinguishable from relu (" in answer.more
    assert any(step.startswith("More seeds") for step in list_steps(sweep))


def test_a_rival_that_is_better_on_test_is_not_hidden(tmp_path):
    losses = {"optimizer=rmsprop": -0.015, "optimizer=sgd": 0.03}
    answer = answer_of(sweep_of(tmp_path, losses=losses))
    words = "adam with swish on validation, but rmsprop does better on test"
    assert answer.verdict == words
    assert answer.tone == "bad"
    assert "ahead of sgd" in answer.more
    assert "behind rmsprop (\N{MINUS SIGN}1.47 points" in answer.more


def test_few_images_leave_open_what_the_seeds_alone_would_tell(tmp_path):
    losses = {"optimizer=rmsprop": 0.01, "optimizer=sgd": 0.3}
    sweep = sweep_of(tmp_path, losses=losses, num_examples=100)
    found = {r.value: r for r in finals.find_rivals(sweep)["optimizer"]}
    assert found["rmsprop"].over_seeds["ci95"][0] > 0
    assert found["rmsprop"].over_images[0] <= 0
    assert found["rmsprop"].answer == "undecided"
    assert found["sgd"].answer == "better"


def test_without_predictions_the_seeds_alone_decide_and_it_is_said(workdir):
    (workdir / "final/trial3/seed1/predictions.npz").unlink()
    sweep = files.read_workdir(workdir)
    found = {r.value: r for r in finals.find_rivals(sweep)["optimizer"]}
    assert found["rmsprop"].over_images is None
    assert found["sgd"].over_images is not None
    assert any("over seeds alone" in words for words in discuss(sweep))


def test_a_winner_at_the_edge_says_to_widen(tmp_path):
    winner = {"learning_rate_factor": 9.9, "batch_size": 32, "dropout_rate": 0.0}
    sweep = sweep_of(tmp_path, winner=winner)
    edges = [(axis.name, side) for axis, side in finals.find_edges(sweep)]
    # A rate of dropout below 0 there is not.
    assert edges == [("learning_rate_factor", "above"), ("batch_size", "below")]
    more = answer_of(sweep).more
    assert "sits at the edge of batch_size: better settings may lie below." in more
    steps = list_steps(sweep)
    label = "learning_rate, \N{MULTIPLICATION SIGN} default"
    assert f"Widen {label} in space: above 10, where it ends now." in steps
    assert "Widen batch_size in space: below 32, where it ends now." in steps


@pytest.mark.parametrize(
    ("axis", "setting", "edge"),
    [
        (Axis("growth_rate", "growth_rate", "int", low=8, high=24), "24", "above"),
        (Axis("growth_rate", "growth_rate", "int", low=8, high=24), "23", None),
        (Axis("weight_decay", "weight_decay", "float", True, 1e-5, 1), "1.2e-5", "low"),
        (Axis("dropout_rate", "dropout_rate", "float", False, 0.1, 0.5), "0.2", None),
        (Axis("x", "x", "choice", choices=("1", "2")), "2", None),
        (Axis("x", "x", "choice", choices=("a", "b", "c")), "c", None),
    ],
)
def test_what_is_an_edge(clear, axis, setting, edge):
    sweep = files.read_workdir(clear)
    sweep.axes[:] = [axis]
    winner = finals.find_winner(sweep)
    winner.settings[axis.name] = setting
    sides = {"above": ["above"], "low": ["below"], None: []}
    assert [side for _, side in finals.find_edges(sweep)] == sides[edge]


def test_too_few_complete_trials_are_no_answer(tmp_path):
    sweep = sweep_of(tmp_path, num_trials=8, num_complete=1)
    answer = answer_of(sweep)
    assert answer.verdict == "adam with swish, of too few trials to tell"
    assert answer.tone == "open"
    discussion = " ".join(discuss(sweep))
    assert "3 complete trials of a space of 5 axes are few: it takes 5" in discussion
    assert any(step.startswith("More trials") for step in list_steps(sweep))


def test_trials_that_came_after_the_finals_are_told_apart(workdir):
    num_trials = json.loads((workdir / "best.json").read_text())["num_trials"]
    num_trials["complete"] -= 2
    change(workdir / "best.json", num_trials=num_trials)
    text = answer_of(files.read_workdir(workdir)).text
    num_known = sum(num_trials.values())
    assert f"the best of {num_known} trials is number 2" in text
    assert f"{16 - num_known} more trials came after that: give the command" in text


def test_a_seed_that_diverged_is_counted(workdir):
    finals = json.loads((workdir / "best.json").read_text())["finals"]
    finals[1]["diverged"] = [4]
    change(workdir / "best.json", finals=finals)
    assert "| 3 (1 diverged) | optimizer=rmsprop |" in markdown_of(workdir)


def test_one_seed_confirms_nothing(tmp_path):
    sweep = sweep_of(tmp_path, num_seeds=1)
    answer = answer_of(sweep)
    assert answer.verdict == "adam with swish, not yet confirmed over seeds"
    assert "Trained anew over 1 seed, it reaches 98.00 % on test: too few" in (
        answer.text
    )
    assert "Finals over 3 seeds at least (num_seeds)." not in list_steps(sweep)


def test_a_sweep_under_way_shows_what_trials_it_has(tmp_path):
    sweep_files.write_sweep(tmp_path, finished=False)
    rows = sweep_files.make_trials(16, 10, sweep_files.WINNER)
    rows[14] |= {"state": "running", "value": "", "epochs": ""}
    rows[15] |= dict.fromkeys(sweep_files.NAMES, "") | {"state": "waiting", "note": ""}
    sweep_files.write_trials(tmp_path, rows)
    text = markdown_of(tmp_path)
    assert (
        "**Under way.** There is no best.json yet: 14 of 16 trials have ended (11 "
        "complete, 3 pruned, 1 running and 1 waiting). The best so far is number 2, "
        "with 98.50 % on validation: activation swish, optimizer adam, learning_rate "
    ) in text
    assert "## The winner" not in text
    assert "Not known: it takes at least 4 complete trials" in text
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"history.png", "parallel.png", "slice_batch_size.png"} <= figures
    assert "finals.png" not in figures
    (tmp_path / "final/trial2/seed1").mkdir(parents=True)
    (tmp_path / "final/trial2/seed1/evaluation.json").write_text("{}")
    assert "The search is over; 1 final run evaluated on test so far." in (
        markdown_of(tmp_path)
    )


def test_a_sweep_whose_trials_have_no_values_yet(tmp_path):
    sweep_files.write_sweep(tmp_path, finished=False)
    sweep_files.write_trials(tmp_path, [])
    text = markdown_of(tmp_path)
    assert "0 of 16 trials have ended. Give the command of the sweep again" in text
    assert text.count("Left out: no trial has a value yet.") == 3
    assert not (tmp_path / "figures/history.png").exists()


def test_every_part_is_there_and_draws_its_figures(clear):
    text = markdown_of(clear)
    for title in (
        *("The winner", "Finals over seeds", "History", "All settings together"),
        *("Which settings matter", "Setting by setting", "Every trial", "Discussion"),
        *("What to try next", "How to reproduce it", "References"),
    ):
        assert f"\n## {title}\n" in text
    names = {path.stem for path in (clear / "figures").iterdir()}
    slices = {f"slice_{name}" for name in sweep_files.NAMES}
    assert names == slices | {"finals", "finals_curves", "history", "parallel"} | {
        "importance"
    }
    for name in names:
        assert f"(figures/{name}.png)" in text
    assert "| dropout_rate | 0.12 | 0 to 0.3 |" in text
    assert "0.1 to 10 \N{MULTIPLICATION SIGN} default, log |" in text
    assert "  --config.batch_size=64 \\\n" in text
    assert "| adam, swish (2) | 98.00 % | 0.20 % | 97.50 % to 98.50 % |" in text
    assert "| optimizer=sgd | " in text
    assert "| 15 | failed | \N{EN DASH} | 1 |" in text
    assert "| diverged |" in text
    assert "learning_rate, \N{MULTIPLICATION SIGN} default 55 %" in text
    assert "Best of each optimizer. adam: 98.50 % (median " in text


def test_the_discussion_counts_and_says_what_is_not_shown(workdir):
    discussion = " ".join(discuss(files.read_workdir(workdir)))
    assert "Of 16 trials, 11 complete, 4 pruned and 1 failed. 1 trial diverged." in (
        discussion
    )
    assert "that proves little of what it would have reached" in discussion
    assert "98.50 % in the search and 98.20 % on the mean of its finals" in discussion
    assert "The winner is set against 4 other finals, at 95 % each" in discussion
    assert "How the winner's loss curves read: well fitted in 3 of 3 runs." in (
        discussion
    )
    rows = sweep_files.make_trials(16, 10, sweep_files.WINNER)
    rows[14] |= {"state": "failed", "note": "killed"}
    rows[15] |= {"retry_of": 14, "note": "", "state": "complete", "value": 0.5}
    sweep_files.write_trials(workdir, rows)
    discussion = " ".join(discuss(files.read_workdir(workdir)))
    assert "1 trial did a lost one again." in discussion
    assert "Failed: killed" not in discussion  # It was done again.
    assert "Of 15 trials, 12 complete and 3 pruned." in discussion
    rows[15]["retry_of"] = ""
    sweep_files.write_trials(workdir, rows)
    assert "Failed: killed (1)." in " ".join(discuss(files.read_workdir(workdir)))
    assert "diverged" not in discussion


def test_a_winner_that_still_improves_is_to_train_longer(tmp_path):
    sweep = sweep_of(tmp_path, verdict="still_improving")
    assert any(step.startswith("More epochs") for step in list_steps(sweep))


def test_references_are_those_of_what_was_used(tmp_path):
    def urls(sweep):
        return " ".join(find_parts(sweep)["References"][0].urls)

    plain = urls(sweep_of(tmp_path / "plain"))
    assert "1907.10902" in plain
    assert "4443" in plain
    assert "1502.07943" not in plain
    assert "hutter14" not in plain
    used = {"pruner": "halving", "importance": IMPORTANCE}
    halving = urls(sweep_of(tmp_path / "halving", **used))
    assert "1502.07943" in halving
    assert "1810.05934" in halving
    assert "hutter14" in halving


def test_the_command_searches_again_and_joins_no_study(clear):
    code = find_parts(files.read_workdir(clear))["How to reproduce it"][0].text
    command, again = code.replace(" \\\n ", "").splitlines()
    assert command.startswith(
        "python main.py --mode=sweep --config=configs/sweep.py:digits --config."
    )
    assert f"--config.sweep.space='{','.join(sweep_files.SPACE)}' " in command
    assert " --config.sweep.num_trials=16 " in command
    assert "--config.sweep.storage" not in command
    assert "--config.growth_rate" not in command  # As the file says.
    assert command.endswith(" --workdir=runs/again")
    assert again == "python main.py --mode=report --workdir=runs/again"


def test_texts_that_a_shell_would_read_are_quoted(tmp_path):
    sweep = sweep_of(tmp_path)
    requested = sweep.config["requested"]["sweep"]
    requested["space"] = ["a=b|c", "d=1..2 log"]
    requested["study"] = "mine"
    requested["storage"] = "postgresql://me:secret@host/db"
    code = find_parts(sweep)["How to reproduce it"][0].text
    assert "--config.sweep.space='a=b|c,d=1..2 log'" in code
    assert "secret" not in code
    assert "mine" not in code


def test_the_axes_of_the_config_are_those_of_best(clear):
    best, config = (json.loads((clear / f"{n}.json").read_text()) for n in NAMES)
    *axes, dropout_rate = axes_of_config(config)
    assert axes == axes_of_best(best)[:-1]
    assert dropout_rate.high == pytest.approx(0.3, abs=1 / 256)
    config["resolved"]["sweep"]["space"] = ["growth_rate=24..8"]
    with pytest.raises(UserError, match=r"growth_rate=24\.\.8: the range is empty"):
        axes_of_config(config)


def test_hopeless_trials_do_not_flatten_the_others(workdir):
    rows = sweep_files.make_trials(16, 10, sweep_files.WINNER)
    rows[4]["value"] = 0.1
    sweep_files.write_trials(workdir, rows)
    blocks = find_parts(files.read_workdir(workdir))["History"]
    values = blocks[0].spec["data"]["values"]
    low = [v for v in values if v["value"] < v["y"]]
    assert [v["number"] for v in low] == [4, 11, 12, 13, 14]
    assert min(v["y"] for v in values) > 85
    assert f"Of the trials, {len(low)} lie lower" in blocks[1].text
    steps = blocks[0].spec["layer"][0]["data"]["values"]
    ys = [step["y"] for step in steps]
    assert ys == sorted(ys)
    assert ys[-1] == 98.5
    assert steps[-1]["number"] == 14


def test_the_numbers_of_few_trials_stand_there_once(tmp_path):
    sweep = sweep_of(tmp_path, finished=False)
    sweep.trials[:] = sweep.trials[:3]
    chart = find_parts(sweep)["History"][0]
    axis = chart.spec["layer"][0]["encoding"]["x"]["axis"]
    assert axis["values"] == [0, 1, 2]


def test_lines_run_from_each_setting_to_the_value(clear):
    sweep = files.read_workdir(clear)
    spec = find_parts(sweep)["All settings together"][0].spec
    values = [v for v in spec["data"]["values"] if v["number"] == 2]
    assert {v["class"] for v in values} == {"the winner"}
    xs = {v["row"].partition(",")[0]: v["x"] for v in values}
    assert xs["optimizer"] == pytest.approx(1 / 6, abs=1e-3)
    assert xs["activation"] == pytest.approx(5 / 6, abs=1e-3)
    # On a logarithmic axis from 0.1 to 10.
    assert xs["learning_rate"] == pytest.approx((np.log10(0.9) + 1) / 2, abs=1e-3)
    assert xs["dropout_rate"] == pytest.approx(0.4, abs=1e-3)
    assert xs["validation"] == 1
    classes = {v["class"] for v in spec["data"]["values"]}
    assert classes == set(parallel._CLASSES)


def test_a_logarithmic_axis_is_drawn_as_one(clear):
    charts = find_parts(files.read_workdir(clear))["Setting by setting"][0].charts
    kinds = {c.name: c.spec["layer"][0]["encoding"]["x"] for c in charts}
    assert kinds["slice_learning_rate_factor"]["scale"]["type"] == "log"
    assert kinds["slice_dropout_rate"]["scale"]["type"] == "linear"
    assert kinds["slice_batch_size"]["type"] == "nominal"
    assert kinds["slice_batch_size"]["sort"] == ["32", "64", "128"]


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.1, 10, True, [0.1, 0.3, 1, 3, 10]),
        (1e-5, 1, True, [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]),
        (0, 0.3, False, [0, 0.06, 0.12, 0.18, 0.24, 0.3]),
        (8, 24, False, [8, 12, 16, 20, 24]),
        (5, 5, False, [5]),
        (1.1, 1.2, True, [1.1, 1.12, 1.14, 1.16, 1.18, 1.2]),
    ],
)
def test_ticks_are_round(low, high, log, ticks):
    assert sweep_charts.list_ticks(low, high, log) == pytest.approx(ticks)


def test_workdirs_of_all_kinds_stand_together(workdir, tmp_path):
    run = workdir / "final/trial2/seed1"
    other = tmp_path / "other"
    sweep_files.write_sweep(other, finished=False)
    path = report.write_report([workdir, run, other])
    assert path == workdir / "report.html"
    text = (workdir / "report.md").read_text()
    assert text.startswith("# Overview")
    assert "| copy | digits | sweep | 98.00 \N{PLUS-MINUS SIGN} 0.50 % | adam" in text
    assert "| trial2/seed1 |" in text
    assert "| other | digits | sweep | \N{EN DASH} | Under way |" in text
    assert (workdir / "figures/3-history.png").exists()


def test_a_sweep_without_config_is_drawn_from_best(workdir):
    (workdir / "config.json").unlink()
    assert "configs/sweep.py" not in markdown_of(workdir)
    (workdir / "best.json").unlink()
    with pytest.raises(UserError, match=r"neither best\.json nor config\.json is"):
        report.write_report([workdir])


def test_a_sweep_without_trials_is_one_line(workdir):
    (workdir / "trials.csv").unlink()
    with pytest.raises(UserError, match=r"no trials\.csv yet; give the command of the"):
        report.write_report([workdir])
    (workdir / "best.json").unlink()
    with pytest.raises(UserError, match=r"no trials\.csv yet"):
        report.write_report([workdir])


HEADER = "number,state,value,epochs,seconds,retry_of,note\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "its columns must be number, state, value, epochs, ..., seconds, retry"),
        ("number,value\n1,2\n", "its columns must be number, state, value"),
        (HEADER + "2,complete,0.5,1,1,,\n", "lacks the column activation of the space"),
        (HEADER + "1,complete,0.5\n", "line 2 has 3 cells, its header 7"),
        (HEADER + "x,complete,0.5,1,1,,\n", "line 2: number must be an integer of at"),
        (HEADER + ",complete,0.5,1,1,,\n", "line 2 has no number"),
        (HEADER + "1,done,0.5,1,1,,\n", "state must be one of complete, pruned, fai"),
        (HEADER + "1,complete,high,1,1,,\n", "value must be a finite number of at le"),
        (HEADER + "1,complete,nan,1,1,,\n", "value must be a finite number"),
        (HEADER + "1,complete,98.5,1,1,,\n", "value is 98.5, and an accuracy is at m"),
        (HEADER + "1,complete,0.5,1,1,-1,\n", "retry_of must be an integer"),
        (HEADER + '1,complete,0.5,1,1,,"a\n', "unexpected end of data"),
        (b"\xff\xfe", "can't decode"),
    ],
)
def test_a_damaged_table_is_one_line_that_says_where(workdir, content, problem):
    path = workdir / "trials.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as raised:
        report.write_report([workdir])
    message = str(raised.value)
    assert message.startswith(f"{path} is damaged (")
    assert problem in message
    remedy = "); give the command of the sweep again, and it is written anew"
    assert message.endswith(remedy)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"number": 99}, "trials.csv is damaged (it lacks trial 99 of best.json)"),
        ({"number": "two"}, "best.json is damaged (number must be a number"),
        ({"number": True}, "best.json is damaged (number must be a number"),
        ({"importance": {"optimizer": "high"}}, "importance.optimizer must be a num"),
        ({"axes": [{"name": "a"}]}, "it lacks axes[0].field"),
        ({"finals": [{"number": 1}]}, "it lacks finals[0].overrides"),
        ({"schema": 2}, "its schema is 2, not 1"),
    ],
)
def test_a_wrong_value_of_best_is_named(workdir, changes, problem):
    change(workdir / "best.json", **changes)
    with pytest.raises(UserError) as raised:
        report.write_report([workdir])
    assert problem in str(raised.value)
    assert "give the command of the sweep again" in str(raised.value)


def test_an_axis_of_another_kind_is_refused(workdir):
    axes = json.loads((workdir / "best.json").read_text())["axes"]
    axes[0]["kind"] = "text"
    change(workdir / "best.json", axes=axes)
    with pytest.raises(UserError, match=r"axes\[0\].kind must be one of choice, float"):
        report.write_report([workdir])
    axes[0] |= {"kind": "choice", "log": 0}
    change(workdir / "best.json", axes=axes)
    with pytest.raises(UserError, match=r"axes\[0\].log must be true or false"):
        report.write_report([workdir])


def test_texts_of_trials_are_no_markup(workdir):
    rows = sweep_files.make_trials(16, 10, sweep_files.WINNER)
    rows[15]["note"] = "<script>alert(1)</script> a|b"
    sweep_files.write_trials(workdir, rows)
    html = report.write_report([workdir]).read_text()
    assert "<script>alert" not in html
    assert r"a\|b" in (workdir / "report.md").read_text()


def test_a_sweep_is_reported_without_jax_and_optuna(clear):
    code = (
        "import sys, main; code = main.main(sys.argv);"
        "print({'jax', 'flax', 'optuna', 'sqlalchemy'} & set(sys.modules));"
        "sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "--mode=report", f"--workdir={clear}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"report: {clear}/report.html\nset()\n"
    for name in ("history", "parallel", "finals", "importance"):
        content = (clear / f"figures/{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
