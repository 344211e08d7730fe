"""The report: its answer, what it shows of which file, and what is left out."""

import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dwsep_jax import report
from dwsep_jax.data.read import Split
from dwsep_jax.errors import UserError
from dwsep_jax.report import charts, costs, files, mistakes, page, text
from dwsep_jax.report.comparison import describe_comparison
from dwsep_jax.report.format import amount, interval, points, significant
from dwsep_jax.report.run import describe_run, wilson_interval
from tests.report import report_files

ROOT = pathlib.Path(__file__).parents[2]
DRAW = page._draw
SMALL = {"num_seeds": 3, "num_examples": 1000, "num_epochs": 4}
NASTY = ["<script>alert(1)</script>", "a|b", 'say "hi" & $x$', *"defg"]


@pytest.fixture(scope="module")
def win(tmp_path_factory):
    """Return the workdir of a comparison that the separable network wins."""
    directory = tmp_path_factory.mktemp("win")
    report_files.write_comparison(directory, difference=0.012, **SMALL)
    report.write_report([directory])
    return directory


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """Draw nothing, but for `win`."""
    names = ("curves", "confusion_matrix", "reliability")
    pngs = {f"{name}.png": b"PNG" for name in names}
    monkeypatch.setattr(page, "_draw", lambda chart: b"PNG")
    monkeypatch.setattr(
        sys.modules["dwsep_jax.report.run"], "render_run", lambda _: pngs
    )


@pytest.fixture
def workdir(win, tmp_path):
    """Return a copy of the comparison, to change."""
    return shutil.copytree(win, tmp_path / "copy")


def compare(directory, **changes):
    report_files.write_comparison(directory, **(SMALL | changes))
    return files.read_workdir(directory)


def change(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def headline(directory, **changes):
    return text.answer(compare(directory, **changes))


def test_win_tie_loss_and_too_few_seeds_have_four_answers(tmp_path):
    win = headline(tmp_path / "win", difference=0.012)
    assert (win.verdict, win.tone) == ("Worth it", "good")
    assert win.text.startswith(
        "Yes, it wins: on digits, separable reaches 98.20 % test accuracy against "
        "97.00 % for standard, +1.20 points (95 % intervals: "
    )
    tie = headline(tmp_path / "tie", difference=0.0)
    assert (tie.verdict, tie.tone) == ("Worth it", "good")
    assert tie.text.startswith("Yes, at no loss that matters: on digits, ")
    assert "not worse by more than the margin of 0.50 points" in tie.text
    loss = headline(tmp_path / "loss", difference=-0.012)
    assert (loss.verdict, loss.tone) == ("Not without a loss", "bad")
    assert loss.text.startswith("No, it loses accuracy: ")
    assert "\N{MINUS SIGN}1.20 points" in loss.text
    few = headline(tmp_path / "few", num_seeds=2)
    assert (few.verdict, few.tone) == ("Undecided", "open")
    assert few.text.startswith("Not answered yet, for want of seeds: 2 seeds are too ")
    assert "Yes" not in few.text
    assert len({answer.text for answer in (win, tie, loss, few)}) == 4


def test_the_answer_says_what_it_saves_and_where(win):
    answer = text.answer(files.read_workdir(win))
    assert "24 % of the parameters and 25 % of the multiply-adds" in answer.text
    assert "on this machine (cpu)" in answer.text
    assert "inference is faster at batch sizes 1, 8, 32 and 128 (1.60" in answer.text
    assert "training runs at 1.60" in answer.text
    assert "separable_macs, with as many multiply-adds as standard, is" in answer.more
    assert answer.figures[0] == ("+1.20 points", "accuracy, against standard")


def test_wide_intervals_are_undecided_and_say_how_many_seeds_would_do(tmp_path):
    comparison = compare(tmp_path, difference=-0.004, spread=0.008)
    answer = text.answer(comparison)
    assert answer.verdict == "Undecided"
    assert "leave open whether it loses more than the margin" in answer.text
    std = comparison.content["paired"]["separable"]["std"]
    needed = int(np.ceil((1.96 * std / 0.005) ** 2))
    assert text.seeds_needed(comparison) == needed
    assert any(f"about {needed} narrow" in s for s in text.list_next_steps(comparison))


@pytest.mark.parametrize(
    ("result", "saves", "speed", "verdict"),
    [
        ("better", True, 1.5, "Worth it"),
        ("better", False, 0.9, "Worth it"),
        ("not_worse", True, 0.8, "Worth it for its size, not for speed"),
        ("not_worse", True, 1.01, "Worth it for its size"),
        ("not_worse", True, None, "Worth it for its size"),
        ("not_worse", False, 0.9, "No gain"),
        ("worse", True, 0.5, "Not without a loss"),
        ("worse", False, 0.9, "Not worth it"),
        ("undecided", True, 2.0, "Undecided"),
    ],
)
def test_the_verdict_weighs_accuracy_size_and_speed(result, saves, speed, verdict):
    assert text._decide(result, saves, speed)[0] == verdict


def test_batch_sizes_are_told_apart_by_the_clock(workdir):
    path = workdir / "separable/seed0/efficiency.json"
    efficiency = json.loads(path.read_text())
    for row, factor in zip(efficiency["latency"], (2.0, 1.6, 0.8, 0.8)):
        row["median_ms"] *= factor
    path.write_text(json.dumps(efficiency))
    words = text.answer(files.read_workdir(workdir)).text
    assert "faster at batch sizes 32 and 128 (2.00" in words
    assert "slower at batch size 1 (0.80" in words
    assert "about as fast at batch size 8 (1.00" in words


def test_pareto_front():
    reached = {
        "a": (1, 0.9),
        "b": (2, 0.8),
        "c": (3, 0.95),
        "d": (3, 0.95),
        "e": (4, 0.95),
    }
    assert costs.pareto_front(reached) == ["a", "c", "d"]


def test_numbers_have_sensible_digits():
    assert amount(99_999) == "99,999"
    assert amount(223_000) == "223 k"
    assert amount(62_000_000) == "62.0 M"
    assert significant(0.01234) == "0.0123"
    assert significant(123.4) == "123"
    assert points(-0.0125) == "\N{MINUS SIGN}1.25"
    assert interval([0.001, 0.002]) == "+0.10 to +0.20"
    assert amount(None) == interval(None) == "\N{EN DASH}"
    # R's binom.confint(50, 100, methods = "wilson").
    np.testing.assert_allclose(wilson_interval(0.5, 100), [0.4038, 0.5962], atol=1e-4)


def test_all_files_are_there_and_the_markdown_refers_to_them(win):
    markdown = (win / "report.md").read_text()
    shown = re.findall(r"!\[(.+)\]\((figures/[\w-]+\.png)\)", markdown)
    assert {path for _, path in shown} == {
        f"figures/{path.name}" for path in (win / "figures").iterdir()
    }
    for alt, path in shown:
        assert len(alt) > 40
        with Image.open(win / path) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 300
    names = {pathlib.Path(path).stem for _, path in shown}
    assert {"accuracy_macs", "accuracy_parameters", "accuracy_latency"} <= names
    assert {"accuracy_memory", "promise", "layers", "classes"} <= names
    for reference in ("Sifre", "Chollet", "Howard", "Huang", "Krizhevsky", "PyTorch"):
        assert reference in markdown
    assert "--mode=compare --config=configs/compare.py:digits" in markdown
    assert report_files.ENVIRONMENT["git_commit"] in markdown


class Structure(HTMLParser):
    """Collects the headings, charts, and the addresses that a page would load."""

    def __init__(self, html):
        super().__init__()
        self.headings, self.alts, self.loads = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if attrs.get("class") == "chart" or tag == "img":
            self.alts.append(attrs.get("aria-label") or attrs.get("alt"))
        if tag != "a":
            self.loads += [attrs[name] for name in ("src", "href") if attrs.get(name)]


def test_the_page_is_whole_and_in_order(win):
    html = (win / "report.html").read_text()
    structure = Structure(html)
    assert structure.headings[0] == 1
    assert structure.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(structure.headings, structure.headings[1:]))
    assert len(structure.alts) == 9
    assert all(structure.alts)
    assert all(address.startswith("data:") for address in structure.loads)
    assert "@import" not in html
    assert len(html) < 1_300_000


def test_the_same_files_make_the_same_report(workdir, monkeypatch):
    monkeypatch.setattr(page, "_draw", DRAW)
    again = shutil.copytree(workdir, workdir.parent / "again" / workdir.name)
    for directory in (workdir, again):
        report.write_report([directory])
    for name in ("report.html", "report.md", "figures/promise.png"):
        assert (workdir / name).read_bytes() == (again / name).read_bytes()


def test_text_of_files_is_escaped(tmp_path):
    report_files.write_comparison(tmp_path, names=NASTY, **SMALL)
    run = tmp_path / "separable/seed0"
    for directory in (tmp_path, run):
        report.write_report([directory])
        html = (directory / "report.html").read_text()
        assert "alert(1)" in html
        assert "<script>alert" not in html
        assert "</script>alert" not in html
        assert "<script>alert" not in (directory / "report.md").read_text()
        assert r"a\|b" in (directory / "report.md").read_text()


def test_without_measured_costs_the_report_says_so(tmp_path):
    report_files.write_comparison(
        tmp_path, with_efficiency=False, with_diagnosis=False, **SMALL
    )
    report.write_report([tmp_path])
    markdown = (tmp_path / "report.md").read_text()
    assert "Its speed was not measured." in markdown
    assert "Left out: no variant has an efficiency.json" in markdown
    assert "Not measured, so left out: peak memory (bytes), latency." in markdown
    assert "How the loss curves read" not in markdown
    assert not (tmp_path / "figures/promise.png").exists()


def test_flops_never_stand_without_a_time(win):
    section = describe_comparison(files.read_workdir(win))
    run = describe_run(files.read_workdir(win / "separable/seed0"))
    parts = [*section.parts, *run.parts]
    tables = [b for part in parts for b in part.blocks if isinstance(b, page.Table)]
    with_flops = [
        table
        for table in tables
        if "FLOPs" in " ".join([*table.columns, *(row[0] for row in table.rows)])
    ]
    assert len(with_flops) >= 2
    for table in with_flops:
        words = " ".join(
            [*table.columns, *(cell for row in table.rows for cell in row)]
        )
        # What XLA counted is itemized below the table that has the time.
        assert " ms" in words or table.caption.endswith("itemized")


def test_runs_without_their_curves_and_classes(workdir):
    for path in workdir.glob("*/seed*/metrics.jsonl"):
        path.unlink()
    change(workdir / "comparison.json", per_class={}, paired={}, answer="undecided")
    report.write_report([workdir])
    markdown = (workdir / "report.md").read_text()
    assert "no run has its metrics.jsonl any more" in markdown
    assert "comparison.json has no classes for both networks" in markdown
    assert "have no finished runs in common" in markdown


def test_a_comparison_under_way_shows_how_far_it_is(workdir):
    (workdir / "comparison.json").unlink()
    (workdir / "standard/seed2/evaluation.json").unlink()
    report.write_report([workdir])
    markdown = (workdir / "report.md").read_text()
    assert "11 of the 12 runs that were begun are evaluated" in markdown
    assert "| standard/seed2 | 4 |" in markdown


def test_missing_runs_are_named(workdir):
    content = json.loads((workdir / "comparison.json").read_text())
    content["variants"]["standard"]["runs"].pop()
    (workdir / "comparison.json").write_text(json.dumps(content))
    report.write_report([workdir])
    words = "Not all of the 3 seeds are done: standard 2."
    assert words in (workdir / "report.md").read_text()


def test_a_run_shows_what_its_files_hold(workdir):
    run = workdir / "separable/seed0"
    report.write_report([run])
    markdown = (run / "report.md").read_text()
    assert "**Well fitted.** 98.30 % test accuracy after epoch 4 (95 % int" in markdown
    assert "Raise num\\_epochs" in markdown
    assert "Most often taken for another class: " in markdown
    assert "The pictures are left out: there is no config.json" in markdown
    assert "| Multiply-adds (MACs), forward | 62.0 M | 3.00 ms at batch" in markdown
    for name in ("curve_loss", "confusion_matrix", "reliability"):
        assert f"(figures/{name}.png)" in markdown
        assert (run / f"figures/{name}.png").exists()


def test_a_run_under_way_shows_its_curves_alone(workdir):
    run = workdir / "separable/seed1"
    for name in ("evaluation.json", "predictions.npz", "diagnosis.json"):
        (run / name).unlink()
    report.write_report([run])
    markdown = (run / "report.md").read_text()
    assert "**Under way.** Not evaluated on test yet: epoch 4 is the last" in markdown
    assert "There is no diagnosis.json" in markdown
    assert "there is no efficiency.json; --mode=efficiency writes it" in markdown
    assert [path.name for path in sorted((run / "figures").iterdir())] == [
        "curve_accuracy.png",
        "curve_loss.png",
    ]


def test_of_few_epochs_each_has_a_tick_and_none_is_between():
    rows = [(epoch, 0.5, 0.4, 0.6) for epoch in (1, 2, 3)]
    spec = charts.lines({"a": rows}, ["a"], "loss", ".3f")
    axes = [
        layer["encoding"]["x"]["axis"]
        for layer in spec["layer"]
        if "axis" in layer["encoding"].get("x", {})
    ]
    assert axes
    assert all(axis["values"] == [1, 2, 3] for axis in axes)


def test_a_run_of_one_hundred_classes_has_no_counts_in_its_matrix(tmp_path):
    names = report_files.HUNDRED_CLASSES
    report_files.write_run(tmp_path, names=names, accuracy=0.6, num_examples=2000)
    report.write_report([tmp_path])
    evaluation = files.read_workdir(tmp_path).evaluation
    spec = charts.confusion(names, evaluation["confusion_matrix"])
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rect"]
    assert len(spec["data"]["values"]) == np.count_nonzero(
        evaluation["confusion_matrix"]
    )


def test_many_classes_show_the_greatest_differences(tmp_path):
    comparison = compare(tmp_path, names=report_files.HUNDRED_CLASSES)
    parts = {part.title: part for part in describe_comparison(comparison).parts}
    _, chart, table = parts["Classes"].blocks
    assert len(chart.spec["data"]["values"]) == charts.MAX_BARS
    assert "the 15 greatest losses and gains" in chart.title
    assert len(table.rows) == 100


def test_the_mistakes_are_the_most_confident_ones():
    probabilities = np.array(
        [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]], np.float32
    )
    arrays = {"id": np.array(list("abcd")), "label": np.array([0, 0, 0, 1])}
    arrays["probabilities"] = probabilities
    found = mistakes.find_mistakes(arrays, ["x", "y"])
    assert [(m.id, m.truth, m.prediction) for m in found] == [
        ("b", "x", "y"),
        ("d", "y", "x"),
        ("c", "x", "y"),
    ]
    assert found[0].confidence == pytest.approx(0.8)


@pytest.fixture
def dataset(workdir, monkeypatch):
    """Return a run and the dataset that its config names, which the cache has."""
    run = workdir / "separable/seed0"
    config = {"dataset": "digits", "data_dir": str(workdir)}
    report_files.write_json(
        run / "config.json", {"requested": config, "resolved": config}
    )
    ids = np.array([f"test_{i:05d}" for i in range(1000)])
    images = np.zeros((1000, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(1000) % 251
    splits = {"test": Split(images, np.zeros(1000, np.int32), ids)}
    monkeypatch.setattr(mistakes, "find_official", lambda *args: ((), splits))
    return run, splits


def test_the_mistakes_have_their_own_pictures(dataset):
    run, _ = dataset
    (image,) = mistakes.find_images(files.read_workdir(run), ["test_00123"])
    assert image[0, 0, 0] == 123
    report.write_report([run])
    html = (run / "report.html").read_text()
    assert html.count('src="data:image/png') == 12
    assert (run / "figures/mistakes.png").exists()


def test_pictures_of_another_dataset_are_left_out(dataset):
    run, splits = dataset
    splits["test"] = splits["test"]._replace(ids=np.array(list("abc")))
    report.write_report([run])
    assert "holds other images of digits than" in (run / "report.md").read_text()


def test_variants_come_in_the_order_of_the_config(tmp_path):
    report_files.write_comparison(tmp_path, num_seeds=1)
    found = list(files.read_workdir(tmp_path).content["variants"])
    assert found == ["separable", "standard", "separable_parameters", "separable_macs"]
    (tmp_path / "config.json").unlink()
    found = list(files.read_workdir(tmp_path).content["variants"])
    assert found == ["separable", "standard", "separable_macs", "separable_parameters"]


def test_the_command_of_a_comparison_names_the_fields_that_differ(tmp_path):
    report_files.write_comparison(tmp_path, num_seeds=3, num_epochs=12)
    [part] = [
        part
        for part in describe_comparison(files.read_workdir(tmp_path)).parts
        if part.title == "How to reproduce it"
    ]
    train, again = part.blocks[0].text.replace(" \\\n ", "").splitlines()
    assert train == (
        "python main.py --mode=compare --config=configs/compare.py:digits "
        "--config.compare.num_seeds=3 --config.growth_rate=12 --workdir=runs/again"
    )
    assert again == "python main.py --mode=report --workdir=runs/again"
    (tmp_path / "config.json").unlink()
    report.write_report([tmp_path])
    assert "configs/compare.py" not in (tmp_path / "report.md").read_text()


def test_the_command_of_a_run_names_the_fields_that_differ(workdir):
    run = workdir / "separable/seed0"
    config = {"dataset": "digits", "growth_rate": 16, "block_sizes": [2, 2]}
    config |= {"conv": "separable", "progress": False, "learning_rate": None}
    content = {"requested": config, "resolved": config}
    report_files.write_json(run / "config.json", content)
    blocks = describe_run(files.read_workdir(run)).parts[-1].blocks
    assert blocks[0].text.replace(" \\\n ", "") == (
        "python main.py --config=configs/default.py --config.block_sizes=2,2 "
        "--config.dataset=digits --config.growth_rate=16 --workdir=runs/again"
    )


def test_several_workdirs_become_sections_of_the_first(workdir):
    run, other = workdir / "separable/seed0", workdir / "standard/seed0"
    path = report.write_report([run, other, workdir])
    assert path == run / "report.html"
    markdown = (run / "report.md").read_text()
    assert markdown.startswith("# Overview")
    for row in ("| separable/seed0 |", "| standard/seed0 |", "| copy | digits | comp"):
        assert row in markdown
    names = {path.name for path in (run / "figures").iterdir()}
    assert {"curve_loss.png", "2-curve_loss.png", "3-promise.png"} <= names
    assert Structure(path.read_text()).headings.count(1) == 1
    assert not (other / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (
            "comparison.json",
            b"",
            ["is damaged", "repeat the command of the com"],
        ),
        ("comparison.json", b'{"schema": 1}', ["lacks answer, baseline, class_names"]),
        ("separable/seed0/efficiency.json", b"[]", ["damaged", "--mode=efficiency"]),
        ("standard/seed1/metrics.jsonl", b"{", ["metrics.jsonl, line 1 is damaged"]),
        ("standard/seed1/diagnosis.json", b'{"a": NaN}', ["NaN is no number"]),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(workdir, name, content, parts):
    before = (workdir / "report.html").read_bytes()
    (workdir / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        report.write_report([workdir])
    for part in (str(workdir / name), *parts):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (workdir / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("evaluation.json", {"accuracy": "high"}, "accuracy must be a number"),
        ("evaluation.json", {"confusion_matrix": [[1]]}, "is not 10 x 10"),
        (
            "evaluation.json",
            {"calibration": {"ece": 0}},
            "it lacks calibration.bins",
        ),
        ("evaluation.json", {"per_class": [1]}, "per_class[0] must be an object"),
        ("diagnosis.json", {"verdict": "good"}, "verdict must be one of overfitting"),
        ("diagnosis.json", {"schema": 2}, "its schema is 2, not 1"),
        ("efficiency.json", {"latency": [{}]}, "it lacks latency[0].batch_size"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(workdir, name, changes, problem):
    run = workdir / "separable/seed0"
    change(run / name, **changes)
    with pytest.raises(UserError) as raised:
        report.write_report([run])
    assert str(run / name) in str(raised.value)
    assert problem in str(raised.value)


def test_damaged_predictions_are_named(workdir):
    path = workdir / "separable/seed0/predictions.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"predictions\.npz is damaged .*evaluate"):
        report.write_report([path.parent])


def test_a_main_variant_that_is_none_is_refused(workdir):
    change(workdir / "comparison.json", main="separables")
    with pytest.raises(UserError, match="main is separables, which is none of its"):
        report.write_report([workdir])


def test_what_is_no_workdir_is_refused(tmp_path, win):
    with pytest.raises(UserError, match="no such directory"):
        report.write_report([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to report yet"):
        report.write_report([win, tmp_path / "empty"])


def test_a_report_that_cannot_be_written_is_one_line(workdir):
    shutil.rmtree(workdir / "figures")
    (workdir / "figures").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written there"):
        report.write_report([workdir])


def luminance(color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", page.THEMES)
def test_both_themes_are_legible(theme):
    colors = page.THEMES[theme]

    def contrast(name, other):
        low, high = sorted(luminance(colors[n]) for n in (name, other))
        return (high + 0.05) / (low + 0.05)

    for name in ("text", "muted", "link", "good", "bad", "open"):
        assert contrast(name, "page") >= 4.5, name
        assert contrast(name, "panel") >= 4.5, name
    for i in range(6):
        assert contrast(f"series{i}", "page") >= 3, i
    ramp = [contrast(f"ramp{i}", "page") for i in range(4)]
    assert ramp[0] >= 3
    assert all(high / low > 1.2 for low, high in itertools.pairwise(ramp))
    assert contrast("text", "heat") >= 4.5
    assert page.THEMES["light"].keys() == page.THEMES["dark"].keys()


def test_a_variant_looks_the_same_in_all_charts(workdir):
    (workdir / "standard/seed0/efficiency.json").unlink()
    parts = describe_comparison(files.read_workdir(workdir)).parts
    blocks = [block for part in parts for block in part.blocks]
    found = [b for b in blocks if isinstance(b, page.Chart)]
    found += [c for b in blocks if isinstance(b, page.Grid) for c in b.charts]
    scales = []
    for chart in found:
        for layer in chart.spec["layer"]:
            color = layer["encoding"].get("color", {})
            if "scale" in color:
                scale = color["scale"]
                scales.append(dict(zip(scale["domain"], scale["range"])))
    assert len(scales) > 6
    assert all(scale == scales[0] for scale in scales)
    assert scales[0]["standard"] == "var(--series1)"


def test_a_report_needs_no_jax(win):
    code = (
        "import sys, main; code = main.main(sys.argv);"
        "print({'jax', 'flax', 'tensorflow_datasets'} & set(sys.modules));"
        "sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = ["--mode=report", f"--workdir={win},{win}/separable/seed0"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"report: {win}/report.html\nset()\n"
