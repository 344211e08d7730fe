"""The charts of a run, and the PNGs drawn of its files."""

import html
import io
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
    """Return {label: [value, ...]} of a chart of curves, in the order of the epochs."""
    found = {}
    for row in chart.spec["data"]["values"]:
        found.setdefault(row["series"], []).append(row["mean"])
    return found


def test_curves_are_those_of_the_rows_and_mark_the_first_of_the_best():
    rows = report_files.make_rows(4, 0.9)
    accuracies = ([0.9, 0.1, 0.2, 0.3], [None, 0.6, 0.6, 0.5])
    for row, raw, ema in zip(rows, *accuracies, strict=True):
        row["val_accuracy"] = raw
        if ema:
            row |= {"ema_val_loss": 0.5, "ema_val_accuracy": ema}
    rows[0]["val_accuracy"] = 0.4  # Its own weights count in the first epoch.
    found = figures.curves(rows)
    loss, accuracy, rate = map(series_of, found)
    assert len(loss) == len(accuracy) == 4
    for key in ("train", "train_eval", "val"):
        label = {v: k for k, v in figures._CURVES.items()}[key]
        expected = [row[f"{key}_loss"] for row in rows]
        assert loss[label] == pytest.approx(expected, rel=1e-4)
    assert accuracy["validation"] == [40, 10, 20, 30]
    assert accuracy["validation, EMA weights"] == [60, 60, 50]
    expected = [row["learning_rate"] for row in rows]
    assert rate["Learning rate"] == pytest.approx(expected, rel=1e-4)
    for chart in found:
        assert chart.spec["layer"][-1]["data"]["values"] == [{"epoch": 2}]
    words = "Best validation accuracy of the EMA weights: 60.00 %, in epoch 2"
    assert figures.describe_best(rows).startswith(words)


def test_bands_are_mean_lowest_and_highest_over_the_runs():
    runs = [[{"epoch": 1, "a": 1.0}, {"epoch": 2, "a": None}], [{"epoch": 1, "a": 4.0}]]
    expected = [{"epoch": 1, "mean": 250, "low": 100, "high": 400}]
    assert charts.band_of(runs, "a", 100) == expected


@pytest.mark.parametrize(
    ("losses", "scale"), [([3, 2, 1], None), ([90, 2, 1], "log"), ([90, 2, 0], None)]
)
def test_one_wild_epoch_makes_the_scale_logarithmic(losses, scale):
    rows = [{"epoch": i, "a": loss} for i, loss in enumerate(losses)]
    spec = charts.lines({"a": charts.band_of([rows], "a"), "b": []}, "loss")
    y = spec["layer"][0]["encoding"]["y"]
    assert y["scale"].get("type") == scale
    assert ("log scale" in y["title"]) == (scale == "log")


def test_curves_differ_in_more_than_color_and_ticks_are_whole_epochs():
    rows = [{"epoch": 1, "a": 1}, {"epoch": 2, "a": 2}]
    series = dict.fromkeys("abcd", charts.band_of([rows], "a"))
    _, line = charts.lines(series, "loss")["layer"]
    for channel in ("color", "strokeDash"):
        looks = line["encoding"][channel]["scale"]["range"]
        assert all(a != b for a, b in itertools.combinations(looks, 2))
    assert line["mark"]["point"]["opacity"] == 1
    assert line["encoding"]["x"]["axis"]["values"] == [1, 2]


def test_the_confusion_matrix_has_counts_and_shares_of_the_true_class():
    spec = charts.confusion(["a", "b", "c"], [[3, 1, 0], [0, 0, 0], [10, 20, 970]])
    rows = {tuple(row.values()) for row in spec["data"]["values"]}
    assert len(rows) == 9
    assert rows > {("a", "b", 1, 0.25), ("b", "b", 0, 0), ("c", "c", 970, 0.97)}
    cells, counts = spec["layer"]
    assert cells["encoding"]["opacity"]["field"] == "share of the true class"
    assert cells["encoding"]["y"]["field"] == "true class"
    assert counts["encoding"]["text"]["field"] == "images"


def test_a_matrix_of_many_classes_has_only_its_colors():
    matrix = np.diag(np.arange(100)).tolist()
    spec = charts.confusion([f"class {i}" for i in range(100)], matrix)
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rect"]
    assert len(spec["data"]["values"]) == 99


def test_reliability_leaves_out_empty_bins():
    keys = ("low", "high", "count", "confidence", "accuracy")
    bins = [(0.0, 0.5, 0, None, None), (0.5, 1.0, 5, 0.9, 0.8)]
    bins = [dict(zip(keys, values)) for values in bins]
    assert charts.reliability(bins)["data"]["values"] == bins[1:]


def test_a_run_is_drawn_as_far_as_its_files_go(workdir, tmp_path):
    assert figures.draw_run(tmp_path / "nothing") == []
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    path = workdir / "evaluation-validation.json"
    path.write_text(json.dumps(evaluation | {"split": "validation"}))
    paths = figures.draw_run(str(workdir))
    assert [path.stem for path in paths] == [
        *("curve_loss", "curve_accuracy", "curve_learning_rate"),
        *("confusion_matrix", "reliability"),
        *("confusion_matrix-validation", "reliability-validation"),
    ]
    first = {path: path.read_bytes() for path in paths}
    assert len(set(first.values())) == 7  # Each names its split.
    for path in figures.draw_run(workdir):
        assert path.read_bytes() == first[path]
        with Image.open(path) as image:
            edge = np.asarray(image.convert("L"))
            assert min(image.size) >= 300
        # Nothing is cut off.
        for line in (edge[:3], edge[-3:], edge[:, :3], edge[:, -3:]):
            assert (line == 255).all()


def test_names_are_drawn_as_plain_text(monkeypatch):
    names = report_files.NASTY
    spec = charts.confusion(names, np.eye(len(names), dtype=int).tolist())
    drawn = ""

    def draw(spec, draw_png=vl_convert.vegalite_to_png, **options):
        nonlocal drawn
        drawn = vl_convert.vegalite_to_svg(spec)
        return draw_png(spec, **options)

    monkeypatch.setattr(page.vl_convert, "vegalite_to_png", draw)
    png = page.draw(spec, "On $x$ <i>")
    with Image.open(io.BytesIO(png)) as image:  # A palette has a fifth of the bytes.
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    for words in [*names[:-1], "On $x$ <i>"]:
        assert html.escape(words, quote=False) in drawn


def test_nothing_is_drawn_of_damaged_files(workdir):
    (workdir / "evaluation-train.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"train.json is damaged .* --split=train"):
        figures.draw_run(workdir)
    assert not (workdir / "figures").exists()
