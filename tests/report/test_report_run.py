"""The report of runs and comparisons: what it says of which file."""

import html
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from dwsep_jax import console
from dwsep_jax.data.read import Split
from dwsep_jax.errors import UserError
from dwsep_jax.report import comparison, files, mistakes, page, write
from dwsep_jax.report import format as form
from dwsep_jax.workdir import read_json
from tests.report import report_files, sweep_files

ROOT = pathlib.Path(__file__).parents[2]
DRAW = page.draw
DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@pytest.fixture(scope="module")
def win(tmp_path_factory):
    """Return the workdir of a comparison that the separable network wins."""
    directory = tmp_path_factory.mktemp("win")
    report_files.write_comparison(directory, difference=0.012)
    write.write_report([directory])
    return directory


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch):
    """Save the time of the PNGs, except for those of `win`."""
    monkeypatch.setattr(page, "draw", lambda spec, title: b"PNG")


@pytest.fixture
def workdir(win, tmp_path):
    """Return a copy of the comparison, to change."""
    return shutil.copytree(win, tmp_path / "copy")


@pytest.fixture
def run(workdir):
    """Return a copy of one of its runs, to change."""
    return workdir / "separable/seed0"


def change(path, place="", **changes):
    """Change values of a JSON file, at a place such as `per_class.3`."""
    content = part = json.loads(path.read_text())
    for key in filter(None, place.split(".")):
        part = part[int(key) if key.lstrip("-").isdigit() else key]
    part |= changes
    path.write_text(json.dumps(content))


def write_markdown(*directories):
    """Return the Markdown of the workdirs' report."""
    write.write_report(directories)
    return (directories[0] / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "verdict", "tone", "opening"),
    [
        ({"difference": 0.012}, "Worth it", "good", "Yes, it is more accurate"),
        ({}, "Worth it", "good", "Yes, without a loss of accuracy that matters"),
        ({"difference": -0.012}, "Not without a loss", "bad", "No, it loses accuracy"),
        ({"num_seeds": 2}, "Undecided", "open", "Not answered yet"),
    ],
)
def test_the_answer_comes_first(tmp_path, changes, verdict, tone, opening):
    report_files.write_comparison(tmp_path, **changes)
    found = write.describe(tmp_path).headline
    assert (found.verdict, found.tone) == (verdict, tone)
    assert found.text.startswith(f"{opening}: on digits, separable reaches 9")
    reason = json.loads((tmp_path / "comparison.json").read_text())["reason"]
    assert reason in found.text


def test_the_verdict_weighs_accuracy_size_and_speed():
    for result, saves, speed, verdict in (
        ("better", True, 1.5, "Worth it"),
        ("better", False, 0.9, "Worth it"),
        ("not_worse", True, 0.8, "Worth it for its size, not for speed"),
        ("not_worse", True, 1.01, "Worth it for its size"),
        ("not_worse", True, None, "Worth it for its size"),
        ("not_worse", False, 0.9, "No gain"),
        ("worse", True, 0.5, "Not without a loss"),
        ("worse", False, 0.9, "Not worth it"),
        ("undecided", True, 2.0, "Undecided"),
    ):
        assert comparison.decide(result, saves, speed)[0] == verdict


def test_numbers_have_sensible_digits():
    half = {"mean": 0.5, "ci95": [0.49, 0.51]}
    assert [form.amount(n) for n in (99_999, 223_000, None)] == [
        "99,999",
        "223 k",
        DASH,
    ]
    assert [form.significant(n) for n in (0.01234, 123.4)] == ["0.0123", "123"]
    assert form.points(-0.0125) == "\N{MINUS SIGN}1.25"
    assert form.interval([0.001, 0.002]) == "+0.10 to +0.20"
    assert form.mean_and_interval(None) == DASH
    assert form.mean_and_interval(half) == f"50.00 {PLUS_MINUS} 1.00 %"


def test_the_markdown_has_every_figure_and_fact(win):
    markdown = (win / "report.md").read_text()
    shown = re.findall(r"!\[.+\]\((figures/[\w-]+)\.png\)", markdown)
    costs = [f"accuracy_{cost}" for cost in ("macs", "parameters", "latency", "memory")]
    assert shown == [f"figures/{n}" for n in (*costs, "loss_validation", "loss_train")]
    assert len(list((win / "figures").iterdir())) == len(shown)
    for path in (win / "figures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) >= 300
    for words in (
        "- +1.20 points accuracy, against standard\n- 24 % of its parameters\n- 25 %",
        f"| separable | 98.20 {PLUS_MINUS} 0.25 % | 0.9820 {PLUS_MINUS} 0.0024 | 0.20",
        "| +1.20 | +0.95 to +1.45 | +0.60 to +1.90 | better |",
        "| MACs | 62.0 M (25 %) | 244 M | 243 M (100 %) | 251 M (103 %) |",
        "| training time per image (ms) | 2.50 (62 %) | 4.00 |",
        "| peak memory (MiB) | 59.1 (25 %) | 233 |",
        "| 1 | 0.9833 | 0.9634 | 0.9735 | 0.9735 | +1.99 |",
        f"separable would be 3.94{TIMES} as fast as standard; it is 1.60{TIMES} as",
        "separable: well fitted in 3 of 3 runs",
        "1,000 test images: one image is 0.1 points.",
        report_files.ENVIRONMENT["git_commit"],
    ):
        assert words in markdown


def test_speed_is_the_geometric_mean_over_batch_sizes(workdir, run):
    path = run / "efficiency.json"
    rows = json.loads(path.read_text())["latency"]
    for i, factor in enumerate((2.0, 1.6, 0.8, 0.8)):
        change(path, f"latency.{i}", median_ms=factor * rows[i]["median_ms"])
    markdown = write_markdown(workdir)
    assert f"- 1.34{TIMES} its speed in inference" in markdown  # Of 0.8, 1, 2 and 2.
    assert f"2.00{TIMES} as fast at best (batch size 32), 51 % of that" in markdown


def test_a_learning_rate_at_the_edge_of_those_tried_is_told(workdir):
    for factor, is_edge in ((0.333, True), (1.0, False), (3.0, True)):
        rate = 0.1 * factor
        change(workdir / "comparison.json", "variants.standard", learning_rate=rate)
        edge = "the lowest or highest tried for standard;" in write_markdown(workdir)
        assert edge == is_edge


def headings_of(content):
    return [int(level) for level in re.findall("<h([1-6])", without_scripts(content))]


def without_scripts(content):
    return re.sub("<script.*?</script>", "", content, flags=re.DOTALL)


def test_the_page_is_one_file_with_headings_in_order(win):
    content = (win / "report.html").read_text()
    headings = headings_of(content)
    assert headings[0] == headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    content = without_scripts(content)
    assert len(re.findall("<figure [^>]*><figcaption>[^<]+</figcaption>", content)) == 6
    loads = re.findall(r'<(?!a )[^>]* (?:src|href)="([^"]*)"', content)
    assert all(address.startswith("data:") for address in loads)
    assert "@import" not in content


def test_names_are_text_in_every_format(tmp_path, capsys):
    directory = tmp_path / "a [1] $x_1$ <b>"
    names = report_files.NASTY
    report_files.write_comparison(directory, names=names)
    for place in (directory, directory / "separable/seed0"):
        rendered = MarkdownIt().enable("table").render(write_markdown(place))
        shown = set(re.findall("<td>(.*?)</td>", rendered))
        assert {html.escape(name) for name in names} <= shown
        # GitHub's mathematics and pictures.
        assert not re.search(r"\$x\$|[^\\]:tada:", (place / "report.md").read_text())
        content = (place / "report.html").read_text()
        shown = re.findall('<th scope="row">(.*?)</th>', content)
        assert set(names) <= {html.unescape(cell) for cell in shown}
        assert "<script>alert" not in content
        assert "</script>alert" not in content
    console.print_evaluation(read_json(place, "evaluation"), "the network")
    printed = capsys.readouterr().out
    assert all(f"  {name}  " in printed for name in names)


@pytest.mark.parametrize(
    ("place", "missing", "shown", "absent"),
    [
        (
            *("", "*/*/metrics.jsonl */*/efficiency.json */*/diagnosis.json"),
            [f"- {DASH} its speed in inference", "no efficiency.json", "its metrics."],
            "time for a batch|well fitted",
        ),
        (
            *("", "comparison.json standard/seed2/evaluation.json"),
            ["| separable/seed0 | 4 | 97.", f"ard/seed2 | 4 | 95.70 % | {DASH} |"],
            "Worth it",
        ),
        (
            *("separable/seed0", "ev*.json predictions.npz diagnosis.json ef*.json"),
            [
                "**Under way.** Epoch 4 reached 97.",
                "Not evaluated on test y",
                "/curve_",
            ],
            "confusion|reliability",
        ),
    ],
)
def test_what_is_missing_is_named(workdir, place, missing, shown, absent):
    for pattern in missing.split():
        paths = list((workdir / place).glob(pattern))
        assert paths
        for path in paths:
            path.unlink()
    markdown = write_markdown(workdir / place)
    for words in shown:
        assert words in markdown
    assert not re.search(absent, markdown)


def test_a_run_shows_what_its_files_hold(run):
    change(run / "diagnosis.json", verdict="still_improving")
    markdown = write_markdown(run)
    for words in (
        "**Still improving.** Measured on 1,000 test images after epoch 4. Raise",
        # R's binom.confint(983, 1000, methods = "wilson").
        "98.30 % test accuracy (95 % interval 97.29 % to 98.94 %)",
        "0.0789 loss (nats)",
        "| macro average | 0.98",
        "Left out: there is no config.json to name the dataset.",
        "| inference, float32 | 1 | 3.000 | 3.600 | 0.100 | 333.3 | 1.5 |",
        "Training took 10 s.",
    ):
        assert words in markdown
    figures = {path.name for path in (run / "figures").iterdir()}
    assert {"confusion_matrix.png", "reliability.png"} < figures
    assert all(f"(figures/{name})" in markdown for name in figures)


def test_a_batch_that_did_not_fit_into_memory_has_no_time(workdir, run):
    times = dict.fromkeys(("median_ms", "p95_ms", "spread_ms", "images_per_second"))
    change(run / "efficiency.json", "latency.-1", **times)
    assert "| inference, float32 | 128 | - | - | - | - |" in write_markdown(run)
    markdown = write_markdown(workdir)
    assert f"| time for a batch of 128 (ms) | {DASH} | 208 |" in markdown


def test_the_mistakes_are_the_most_confident_ones_with_their_pictures(run, monkeypatch):
    fields = {"dataset": "digits", "data_dir": str(run)}
    report_files.write_config(run, "configs/default.py", **fields)
    found = files.read_run(run)
    arrays = {"id": np.array(list("abcd")), "label": np.array([0, 0, 0, 1])}
    probabilities = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]
    arrays["probabilities"] = np.array(probabilities, np.float32)
    evaluation = {"per_class": [{"name": "x"}, {"name": "y"}]}
    found = found._replace(predictions=arrays, evaluation=evaluation)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = [10, 11, 12, 13]
    splits = {"test": Split(images, np.zeros(4, np.int32), arrays["id"])}
    monkeypatch.setattr(mistakes, "find_test", lambda config: splits["test"])
    shown = []
    monkeypatch.setattr(mistakes, "to_data_uri", lambda i: shown.append(i) or "")
    [chart] = mistakes.show_mistakes(found)
    captions = [row["caption"] for row in chart.spec["data"]["values"]]
    assert captions == ["x\nas y\n80.00 %", "y\nas x\n70.00 %", "x\nas y\n60.00 %"]
    assert [image[0, 0, 0] for image in shown] == [11, 13, 12]
    splits["test"] = splits["test"]._replace(ids=np.array(list("efgh")))
    assert "has other test images" in mistakes.show_mistakes(found)[0]


def test_pictures_are_part_of_the_page_and_drawn(run, monkeypatch):
    report_files.write_config(run, "configs/default.py", dataset="digits")
    image = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(mistakes, "find_images", lambda run, ids: [image] * len(ids))
    write.write_report([run])
    assert (run / "report.html").read_text().count("data:image/png") == 12
    [chart] = write.describe(run).parts["The most confident mistakes"]
    assert len(DRAW(chart.spec, chart.title)) > 10_000


def test_commands_name_the_fields_that_differ(workdir, run, tmp_path):
    fields = {"dataset": "digits", "growth_rate": 16, "block_sizes": (2, 2)}
    fields |= {"conv": "separable", "progress": False, "learning_rate": None}
    report_files.write_config(run, "configs/default.py", **fields)
    fields = {"sweep.study": "mine", "sweep.storage": "postgresql://me:secret@host/db"}
    fields |= {"sweep.space": ("optimizer=adam|sgd", "dropout_rate=0..0.3")}
    sweep = "configs/sweep.py:digits"
    report_files.write_config(tmp_path / "sweep", sweep, kind="sweep", **fields)
    columns = "number,state,value,epochs,optimizer,dropout_rate,seconds,retry_of,note"
    (tmp_path / "sweep/trials.csv").write_text(f"{columns}\n")
    for directory, command in {
        workdir: "--mode=compare --config=configs/compare.py:digits "
        "--config.growth_rate=12 --config.num_epochs=4 --config.compare.num_seeds=3",
        run: "--config=configs/default.py --config.block_sizes=2,2 "
        "--config.dataset=digits --config.growth_rate=16",
        tmp_path / "sweep": "--mode=sweep --config=configs/sweep.py:digits "
        "--config.sweep.space='optimizer=adam|sgd,dropout_rate=0..0.3'",
    }.items():
        [shown] = re.findall(r"```bash\n(.*?)```", write_markdown(directory), re.DOTALL)
        expected = f"python main.py {command} --workdir=runs/again"
        assert sorted(shown.replace("\\\n", "").split()) == sorted(expected.split())


def test_several_workdirs_become_sections_of_the_first(workdir, run, tmp_path):
    sweep_files.write_trials(tmp_path / "sweep", sweep_files.make_trials())
    markdown = write_markdown(run, tmp_path / "sweep", workdir)
    assert markdown.startswith("# Overview")
    for row in (
        f"| separable/seed0 | {DASH} | run | 98.30 % | Well fitted |",
        f"| sweep | digits | sweep | {DASH} | In progress |",
        f"| copy | digits | comparison | 98.20 {PLUS_MINUS} 0.25 % | Worth it |",
    ):
        assert row in markdown
    names = {path.name for path in (run / "figures").iterdir()}
    assert {"curve_loss.png", "2-slice_optimizer.png", "3-accuracy_macs.png"} <= names
    assert all(f"(figures/{name})" in markdown for name in names)
    assert headings_of((run / "report.html").read_text()).count(1) == 1
    assert not (tmp_path / "sweep/report.html").exists()


EVALUATION = "separable/seed0/evaluation.json"


@pytest.mark.parametrize(
    ("name", "place", "content", "problem"),
    [
        ("comparison.json", "", b"", "repeat the command of the comparison to write"),
        ("comparison.json", "", {"main": "separables"}, "KeyError('separables')"),
        ("separable/seed0/efficiency.json", "", b"[]", "--mode=efficiency"),
        ("standard/seed1/metrics.jsonl", "", b"{", "metrics.jsonl, line 1 is damaged"),
        ("standard/seed0/diagnosis.json", "", {"verdict": "good"}, "must be one of"),
        ("standard/seed0/diagnosis.json", "", {"schema": 2}, "schema is 2, not 1"),
        ("standard/seed0/predictions.npz", "", b"PK", "--mode=evaluate"),
        (EVALUATION, "", {"accuracy": 0.9831}, "0.9831, and by its confusion_matrix 0"),
        (EVALUATION, "", {"num_examples": 999}, "999, and by its confusion_matrix 100"),
        (EVALUATION, "per_class.3", {"f1": 0.5}, "per_class[3].f1 is 0.5, and by its"),
        (EVALUATION, "f1", {"weighted": 0.5}, "f1.weighted is 0.5, and by its"),
        (EVALUATION, "recall", {"micro": 0.5}, "recall.micro is 0.5, and by its"),
        (EVALUATION, "", {"confusion_matrix": [[1]]}, "is not 10 x 10"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(workdir, name, place, content, problem):
    before = (workdir / "report.html").read_bytes()
    if isinstance(content, dict):
        change(workdir / name, place, **content)
    else:
        (workdir / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        write.write_report([workdir])
    for part in (str(workdir / name), "damaged", problem):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (workdir / "report.html").read_bytes() == before


@pytest.mark.parametrize("witness", ["evaluation.json", "diagnosis.json"])
def test_rows_that_are_lost_are_noticed(run, witness):
    for name in {"evaluation.json", "diagnosis.json"} - {witness}:
        (run / name).unlink()
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    last = f"its last row is of epoch {len(lines) - 1}, and {len(lines)} are done"
    for kept, problem in (
        (lines[:-1], last),
        (lines[:1] + lines[2:], "the row of epoch 2 is missing"),
        ([], f"its last row is of epoch 0, and {len(lines)} are done"),
    ):
        path.write_bytes(b"".join(kept))
        with pytest.raises(UserError, match=f"damaged .{problem}.; --mode=train on"):
            write.write_report([run])


def test_predictions_that_contradict_the_evaluation_are_refused(run):
    with np.load(run / "predictions.npz") as arrays:
        changed = dict(arrays)
    changed["label"][0] = (changed["label"][0] + 1) % 10
    np.savez(run / "predictions.npz", **changed)
    with pytest.raises(UserError, match="it contradicts the confusion matrix"):
        write.write_report([run])


def test_what_cannot_be_read_or_written_is_one_line(workdir, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        write.write_report([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to report yet"):
        write.write_report([workdir, tmp_path / "empty"])
    shutil.rmtree(workdir / "figures")
    (workdir / "figures").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written there .* with --output"):
        write.write_report([workdir])
    path = write.write_report([workdir], tmp_path / "new" / "place")
    assert path == tmp_path / "new" / "place" / "report.html"
    assert path.exists()


def luminance(color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", [0, 1])
def test_both_themes_are_legible(theme):
    def contrast(name, other):
        low, high = sorted(luminance(page.COLORS[n][theme]) for n in (name, other))
        return (high + 0.05) / (low + 0.05)

    for name in ("text", "muted", "link", "good", "bad", "open"):
        assert min(contrast(name, "page"), contrast(name, "panel")) >= 4.5, name
    for i in range(4):
        assert contrast(f"series{i}", "page") >= 3, i
    assert contrast("text", "heat") >= 4.5


def test_a_report_needs_neither_jax_nor_optuna(win, tmp_path):
    sweep_files.write_sweep(tmp_path)
    code = (
        "import sys, main; assert main.main(sys.argv) == 0;"
        "print({'jax', 'flax', 'optuna', 'tensorflow_datasets'} & set(sys.modules))"
    )
    arguments = ["--mode=report", f"--workdir={tmp_path},{win},{win}/separable/seed0"]
    command = [sys.executable, "-c", code, *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout
    assert shown.decode() == f"report: {tmp_path}/report.html\nset()\n"
    assert len((tmp_path / "figures/slice_optimizer.png").read_bytes()) > 10_000


def test_the_temperature_is_told_with_what_it_changes(run):
    assert "temperature" not in write_markdown(run)  # An old evaluation.
    scaled = {"ece": 0.0123, "nll": 0.4567}
    change(run / "evaluation.json", temperature=0.789, calibrated=scaled)
    told = "divided by 0.789, a temperature fitted on validation, the ECE is 0.0123 and"
    assert told in write_markdown(run)
