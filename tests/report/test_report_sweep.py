"""The report of a sweep: its verdict, its limits, its charts and its errors."""

import json
import re
import shutil

import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.report import page, write
from dwsep_jax.report.sweep import find_edge
from dwsep_jax.space import parse_space
from tests.report.sweep_files import NAMES, make_trials, write_sweep, write_trials

PLUS_MINUS, DASH = "\N{PLUS-MINUS SIGN}", "\N{EN DASH}"


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """Return the workdir of a sweep whose winner is ahead of all other finals."""
    directory = tmp_path_factory.mktemp("clear")
    write_sweep(directory, importance=dict(zip(NAMES, (0.5, 0.3, 0.1, 0.07, 0.03))))
    return directory


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch):
    monkeypatch.setattr(page, "draw", lambda spec, title: b"PNG")


@pytest.fixture
def workdir(clear, tmp_path):
    """Return a copy of that sweep, to change."""
    return shutil.copytree(clear, tmp_path / "copy")


def read_limits(directory):
    [limits] = write.describe(directory).parts["What decided, and its limits"]
    return "\n".join(limits)


def markdown_of(directory):
    write.write_report([directory])
    text = (directory / "report.md").read_text()
    return re.sub(r"\\([\\`*_\[\]<>|#])", r"\1", text)


RMSPROP, RELU = "optimizer=rmsprop", "activation=relu"
FEW = {"num_examples": 200}


@pytest.mark.parametrize(
    ("losses", "options", "verdict", "tone"),
    [
        ({}, {"verdict": "overfitting"}, ", clearly", "good"),
        ({}, {"num_seeds": 1}, ", not yet confirmed over seeds", "open"),
        (
            {RMSPROP: 0.002, RELU: 0},
            {},
            ", not clearly ahead of rmsprop and relu",
            "open",
        ),
        ({RMSPROP: -0.015}, {}, " on validation, but behind rmsprop on test", "bad"),
        # The seeds alone would tell; so few test images do not.
        ({RMSPROP: 0.01}, FEW, ", not clearly ahead of rmsprop", "open"),
        ({}, {"made": make_trials(8, 1)}, ", but too few trials are complete", "open"),
    ],
)
def test_the_verdict_follows_from_the_numbers(tmp_path, losses, options, verdict, tone):
    write_sweep(tmp_path, losses=losses, **options)
    headline = write.describe(tmp_path).headline
    assert (headline.verdict, headline.tone) == (f"adam with swish{verdict}", tone)
    limits = read_limits(tmp_path)
    assert ("Too few trials are complete for" in limits) == ("too few" in verdict)
    assert ("overfitting in 3 of 3 runs" in limits) == ("verdict" in options)
    assert "not clearly" not in verdict or "More seeds (sweep.num_seeds)" in limits


def test_the_page_has_each_part_and_a_figure_of_each_axis(clear):
    text = markdown_of(clear)
    assert re.findall(r"^## (.*)", text, re.M) == [
        *("The winner", "Finals", "Accuracy by setting", "All trials"),
        *("What decided, and its limits", "How to reproduce it"),
    ]
    names = {path.stem for path in (clear / "figures").iterdir()}
    assert names == {f"slice_{name}" for name in NAMES}
    for words in (
        "Trial 2 reached the highest validation accuracy of 16 trials, at epoch 12.",
        f"- 98.00 {PLUS_MINUS} 0.50 % test accuracy, mean over seeds (n = 3), 95 % int",
        "| dropout_rate | 0.12 | 0..0.3 | 3 % |",
        "| learning_rate_factor | 0.9 | x0.1..x10 log | 10 % |",
        f"| adam with swish (2) | 98.20 {PLUS_MINUS} 0.50 % | 98.00 {PLUS_MINUS} 0.50",
        "| 3 | +3.00 | +2.14 to +3.86 | +1.67 to +4.47 | behind |",
        f"| 15 | failed | {DASH} | 1 |",
        "- Trials: 11 complete, 4 pruned and 1 failed.\n- The winner's loss curves: w",
    ):
        assert words in text


def test_the_winner_at_the_edge_of_the_space_is_told(tmp_path):
    winner = {"learning_rate_factor": 9.9, "batch_size": 32, "dropout_rate": 0.0}
    write_sweep(tmp_path, make_trials(**winner))
    limits = read_limits(tmp_path)
    assert "edge of the space, x0.1..x10 log. Better values may lie above" in limits
    assert "edge of the space, 32, 64, 128. Better values may lie below" in limits
    assert "dropout_rate is at the edge" not in limits  # There is nothing below 0.


def test_a_setting_at_an_end_of_its_range_is_at_the_edge():
    edges = {("growth_rate=8..24", 24): "above", ("growth_rate=8..24", 23): None}
    edges |= {("weight_decay=1e-5..1 log", 1.2e-5): "below", ("mixup=0..1", 0.2): None}
    edges |= {("batch_size=1|2", 2): None, ("activation=a|b|c", "c"): None}
    edges |= {("flip=true|false", True): None}
    for (text, setting), edge in edges.items():
        [axis] = parse_space([text])
        trial = make_trials()[0]._replace(settings={axis.name: setting})
        assert find_edge(axis, trial) == edge, text


def test_lost_seeds_and_predictions_are_told(workdir):
    path = workdir / "best.json"
    best = json.loads(path.read_text())
    best["finals"][1] |= {"diverged": [2], "runs": best["finals"][1]["runs"][::2]}
    path.write_text(json.dumps(best))
    (workdir / "final/trial4/seed1/predictions.npz").unlink()
    text = markdown_of(workdir)
    # Seeds 1 and 3 of both finals: 98.0 and 97.8 % against 95.8 and 96.2 %.
    assert "| 2 (1 diverged) | +1.90 | -1.91 to +5.71 |" in text.replace("\u2212", "-")
    assert f"| +3.00 | +2.14 to +3.86 | {DASH} | behind |" in text


def test_an_unfinished_sweep_shows_the_trials_that_it_has(tmp_path):
    *trials, running, waiting = make_trials()
    trials.append(running._replace(state="running", value=None, epochs=None))
    unset = dict.fromkeys(waiting.settings)
    write_trials(tmp_path, [*trials, waiting._replace(state="waiting", settings=unset)])
    text = markdown_of(tmp_path)
    for words in (
        "**In progress.** 14 of 16 trials have ended. The best so far is trial 2, with "
        "98.50 % on validation.",
        "11 complete, 3 pruned, 1 running and 1 waiting.",
        "![Validation accuracy by batch_size](figures/slice_batch_size.png)",
    ):
        assert words in text
    assert "## The winner" not in text
    write_trials(tmp_path, [])
    assert "0 of 16 trials have ended. Run the same" in markdown_of(tmp_path)


def test_hopeless_trials_do_not_flatten_the_others(workdir):
    trials = make_trials()
    trials[0] = trials[0]._replace(value=0.1)
    write_trials(workdir, trials)
    _, *charts = write.describe(workdir).parts["Accuracy by setting"]
    encodings = [chart.spec["layer"][0]["encoding"] for chart in charts]
    scale = encodings[0]["y"]["scale"]
    assert 85 < scale["domain"][0] < 98.5 == scale["domain"][1]
    assert scale["clamp"]
    types = [encoding["x"]["scale"].get("type") for encoding in encodings]
    assert types == [None, None, "log", None, "linear"]


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("best.json", '"number": 2,', '"number": 99,', "KeyError(99)"),
        ("best.json", '"optimizer": 0.3', '"optimizer": "all"', "must be a number"),
        ("config.json", '"tpe"', "null", "--config.sweep.sampler=None: must be a na"),
        ("trials.csv", "pruned", "done", "line 13: state cannot be 'done'"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(workdir, name, old, new, problem):
    text = (workdir / name).read_text()
    assert old in text
    (workdir / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=re.escape(problem)) as raised:
        write.write_report([workdir])
    assert str(raised.value).startswith(f"{workdir / name} is damaged (")
    assert "\n" not in str(raised.value)
