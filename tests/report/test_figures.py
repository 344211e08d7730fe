"""The charts of a run, and the PNGs drawn of its files."""

import html
import itertools
import json

import numpy as np
import pytest
import vl_convert
from PIL import Image

from dwsep_jax.errors import UserError
from dwsep_jax.report import charts, figures, page
from tests.report import report_files


@pytest.fixture
def workdir(tmp_path):
    report_files.write_run(tmp_path, num_epochs=3)
    return tmp_path


def series_of(chart):
    """Return {label: [(epoch, value), ...]} of a chart of curves."""
    found = {}
    for value in chart.spec["data"]["values"]:
        found.setdefault(value["series"], []).append((value["x"], value["mean"]))
    return found


def marked_epoch(chart):
    """Return the epoch of the vertical line of a chart of curves."""
    [rule] = [
        layer
        for layer in chart.spec["layer"]
        if layer["mark"]["type"] == "rule" and "params" not in layer
    ]
    return rule["data"]["values"][0]["x"]


def test_curves_are_those_of_the_rows():
    rows = report_files.make_rows(4, 0.9)
    for row in rows[2:]:
        row |= {"ema_val_loss": 0.5, "ema_val_accuracy": 0.25}
    loss, accuracy, rate = figures.curves(rows)
    for chart, key, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        found = series_of(chart)
        assert len(found) == 4
        expected = [(row["epoch"], factor * row[f"val_{key}"]) for row in rows]
        assert found["validation"] == expected
        ema = [(row["epoch"], factor * row[f"ema_val_{key}"]) for row in rows[2:]]
        assert found["validation, EMA weights"] == ema
    expected = [(row["epoch"], row["learning_rate"]) for row in rows]
    assert series_of(rate) == {"learning rate": expected}


def test_the_best_epoch_is_the_first_of_equals_by_the_evaluated_weights():
    rows = report_files.make_rows(3, 0.9)
    for row, raw, ema in zip(rows, [0.9, 0.1, 0.2], [0.3, 0.6, 0.6], strict=True):
        row["val_accuracy"] = raw
        if ema:
            row |= {"ema_val_loss": 1.0, "ema_val_accuracy": ema}
    assert [marked_epoch(chart) for chart in figures.curves(rows)] == [2, 2, 2]
    words = "Best validation accuracy of the EMA weights: 60.00 %, in epoch 2"
    assert figures.describe_best(rows).startswith(words)


@pytest.mark.parametrize(
    ("losses", "scale"), [([3, 2, 1], None), ([90, 2, 1], "log"), ([90, 2, 0], None)]
)
def test_one_wild_epoch_makes_the_scale_logarithmic(losses, scale):
    rows = [(i, loss, loss, loss) for i, loss in enumerate(losses)]
    spec = charts.lines({"a": rows}, ["a", "b"], "loss", ".4f")
    y = spec["layer"][0]["encoding"]["y"]
    assert y["scale"].get("type") == scale
    assert ("log scale" in y["title"]) == (scale == "log")


def test_curves_differ_in_more_than_color_and_ticks_are_whole_epochs():
    names = list("abcdef")
    series = {name: [(1, i, i, i), (2, i, i, i)] for i, name in enumerate(names)}
    line, _ = charts.lines(series, names, "loss", ".4f")["layer"]
    for channel in ("color", "strokeDash"):
        looks = line["encoding"][channel]["scale"]["range"]
        assert all(a != b for a, b in itertools.combinations(looks, 2))
    assert line["mark"]["point"]
    assert line["encoding"]["x"]["axis"]["values"] == [1, 2]


def test_the_confusion_matrix_has_counts_and_shares_of_the_true_class():
    spec = charts.confusion(["a", "b", "c"], [[3, 1, 0], [0, 0, 0], [10, 20, 970]])
    found = {(v["true"], v["predicted"]): v for v in spec["data"]["values"]}
    assert len(found) == 9
    assert (found["a", "b"]["count"], found["a", "b"]["share"]) == (1, 0.25)
    assert found["b", "b"]["share"] == 0
    assert found["c", "c"]["share"] == 0.97
    cells, counts = spec["layer"]
    assert cells["encoding"]["opacity"]["scale"]["type"] == "sqrt"
    assert counts["encoding"]["text"]["field"] == "count"


def test_a_matrix_of_many_classes_has_only_its_colors():
    matrix = np.diag(np.arange(100)).tolist()
    spec = charts.confusion([f"class {i}" for i in range(100)], matrix)
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rect"]
    assert len(spec["data"]["values"]) == 99


def test_reliability_leaves_out_empty_bins():
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 1.0, "count": 5, "confidence": 0.9, "accuracy": 0.8},
    ]
    spec = charts.reliability(bins)
    assert spec["data"]["values"] == bins[1:]
    chart = page.Chart("r", "Reliability", spec)
    told = "Reliability. images 5, mean confidence 90.00%, accuracy 80.00%."
    assert chart.alt == told


def test_the_alt_text_of_many_points_tells_the_first_and_the_last():
    rows = [(epoch, epoch / 2, 0, 1) for epoch in range(1, 31)]
    spec = charts.lines({"a": rows}, ["a"], "loss", ".2f")
    told = "Loss. 30 points, first and last: epoch 1, a 0.50; epoch 30, a 15.00."
    assert page.Chart("loss", "Loss", spec).alt == told


def test_a_run_is_drawn_as_far_as_its_files_go(workdir, tmp_path):
    assert figures.draw_run(tmp_path / "nothing") == []
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    path = workdir / "evaluation-validation.json"
    path.write_text(json.dumps(evaluation | {"split": "validation"}))
    paths = figures.draw_run(str(workdir))
    assert [path.name for path in paths] == [
        "curves.png",
        "confusion_matrix.png",
        "reliability.png",
        "confusion_matrix-validation.png",
        "reliability-validation.png",
    ]
    first = {path: path.read_bytes() for path in paths}
    assert len(set(first.values())) == 5  # Each names its split.
    for path in figures.draw_run(workdir):
        assert path.read_bytes() == first[path]
        with Image.open(path) as image:
            edge = np.asarray(image.convert("L"))
            assert min(image.size) >= 600
        # Nothing is cut off.
        for line in (edge[:3], edge[-3:], edge[:, :3], edge[:, -3:]):
            assert (line == 255).all()


def test_names_are_drawn_as_plain_text(monkeypatch):
    names = report_files.NASTY
    spec = charts.confusion(names, np.eye(len(names), dtype=int).tolist())
    draw = lambda spec, scale: vl_convert.vegalite_to_svg(spec)  # noqa: E731
    monkeypatch.setattr(page.vl_convert, "vegalite_to_png", draw)
    drawn = page.draw(spec, "On $x$ <i>")
    for words in [*names[:-1], "On $x$ <i>"]:
        assert html.escape(words, quote=False) in drawn


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("metrics.jsonl", b'{"epoch": 1, "st', ["metrics.jsonl, line 1", "train"]),
        ("evaluation-train.json", b"\xff\xfe{", ["-train.json", "--split=train"]),
    ],
)
def test_a_damaged_file_is_one_line_and_nothing_is_drawn(workdir, name, content, parts):
    (workdir / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        figures.draw_run(workdir)
    for part in [str(workdir), "damaged", *parts]:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (workdir / "figures").exists()
