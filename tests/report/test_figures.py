"""Figures: what is drawn of which file, and that it can be read."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from dwsep_jax.errors import UserError
from dwsep_jax.report import figures

ROOT = pathlib.Path(__file__).parents[2]
LABELS = {
    "train": "train, as trained",
    "train_eval": "train, evaluated",
    "val": "validation",
    "ema_val": "validation, EMA weights",
}


def make_rows(num_epochs, ema=False):
    rows = []
    for epoch in range(1, num_epochs + 1):
        row = {"schema": 1, "epoch": epoch, "step": 7 * epoch}
        for i, prefix in enumerate(list(LABELS)[: 4 if ema else 3]):
            row[f"{prefix}_loss"] = 1 + i + 1 / epoch
            row[f"{prefix}_accuracy"] = 0.5 + 0.1 * i - 0.2 / epoch
        row |= {"learning_rate": 0.1 / epoch, "images_per_second": 1e3}
        rows.append(row | {"elapsed_seconds": 2.0 * epoch})
    return rows


def make_evaluation(names=("red", "green", "blue"), matrix=None, **changes):
    if matrix is None:
        matrix = np.diag(np.arange(len(names)) + 5) + 1
    bins = [
        {"low": 0.0, "high": 0.25, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.25, "high": 0.5, "count": 1, "confidence": 0.4, "accuracy": 0.0},
        {"low": 0.5, "high": 0.75, "count": 2, "confidence": 0.6, "accuracy": 0.7},
        {"low": 0.75, "high": 1.0, "count": 5, "confidence": 0.9, "accuracy": 0.8},
    ]
    evaluation = {
        "schema": 1,
        "split": "test",
        "weights": "raw",
        "epoch": 60,
        "num_examples": 12345,
        "accuracy": 0.98765,
        "per_class": [{"name": name} for name in names],
        "confusion_matrix": np.asarray(matrix).tolist(),
        "calibration": {"ece": 0.01234, "nll": 0.1, "brier": 0.1, "bins": bins},
    }
    return evaluation | changes


def curve(axes, label):
    """Return the line of one label, which stands in the accuracy panel's legend."""
    accuracy_axes = axes.figure.axes[1]
    labels = [line.get_label() for line in accuracy_axes.get_lines()]
    return axes.get_lines()[labels.index(label)]


def texts_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def tick_texts(axis):
    """Return the labels that are drawn: those of ticks within the limits."""
    low, high = axis.get_view_interval()
    at = {"x": 0, "y": 1}[axis.axis_name]
    labels = axis.get_ticklabels()
    return [t.get_text() for t in labels if low <= t.get_position()[at] <= high]


def overlaps(artists):
    """Return the texts of neighbours whose boxes overlap, once all is laid out."""
    boxes = [artist.get_window_extent() for artist in artists]
    return [
        (a.get_text(), b.get_text())
        for a, b, box, next_box in zip(artists, artists[1:], boxes, boxes[1:])
        if box.overlaps(next_box)
    ]


def margin_is_white(path):
    """Return whether nothing touches the edge of an image: nothing is cut."""
    pixels = np.asarray(Image.open(path).convert("L"))
    edges = [pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]]
    return all((edge == 255).all() for edge in edges)


@pytest.mark.parametrize("ema", [False, True])
def test_curves_are_those_of_the_rows(ema):
    rows = make_rows(4, ema)
    figure = figures._build_curves(rows)
    loss, accuracy, rate = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "loss",
        "accuracy (%)",
        "learning rate",
    ]
    assert rate.get_xlabel() == "epoch"
    for prefix in list(LABELS)[: 4 if ema else 3]:
        for axes, name, factor in [(loss, "loss", 1), (accuracy, "accuracy", 100)]:
            line = curve(axes, LABELS[prefix])
            assert list(line.get_xdata()) == [1, 2, 3, 4]
            expected = [factor * row[f"{prefix}_{name}"] for row in rows]
            np.testing.assert_allclose(line.get_ydata(), expected)
    np.testing.assert_allclose(rate.get_lines()[0].get_ydata(), 0.1 / np.arange(1, 5))
    assert texts_of(figure)[:-1] == list(LABELS.values())[: 4 if ema else 3]


def test_ema_curves_are_of_the_rows_that_have_them():
    rows = make_rows(2) + make_rows(4, ema=True)[2:]
    figure = figures._build_curves(rows)
    for axes in figure.axes[:2]:
        assert list(curve(axes, LABELS["ema_val"]).get_xdata()) == [3, 4]
        assert list(curve(axes, LABELS["val"]).get_xdata()) == [1, 2, 3, 4]


def test_curves_differ_in_more_than_colour():
    lines = figures._build_curves(make_rows(3, ema=True)).axes[0].get_lines()[:4]
    assert len({line.get_color() for line in lines}) == 4
    assert len({line.get_marker() for line in lines}) == 4


def test_one_epoch_is_seen():
    figure = figures._build_curves(make_rows(1))
    figure.canvas.draw()
    for axes in figure.axes:
        assert axes.get_lines()[0].get_marker() not in (None, "None")
        assert axes.get_xlim() == (0.5, 1.5)
    assert tick_texts(figure.axes[2].xaxis) == ["1"]


@pytest.mark.parametrize(("num_epochs", "step"), [(30, 5), (100, 10), (120, 20)])
def test_many_epochs_have_round_numbers_and_no_markers(num_epochs, step):
    figure = figures._build_curves(make_rows(num_epochs))
    figure.canvas.draw()
    numbers = range(step, num_epochs + 1, step)
    assert tick_texts(figure.axes[2].xaxis) == [str(number) for number in numbers]
    for line in figure.axes[0].get_lines()[:3]:
        assert line.get_marker() == "None"


def test_a_learning_rate_of_zero_is_not_cut():
    (line, _) = figures._build_curves(make_rows(3)).axes[2].get_lines()
    assert line.axes.get_ylim()[0] == 0
    assert not line.get_clip_on()


def test_the_best_epoch_is_marked_the_first_of_equals():
    rows = make_rows(5)
    for row, accuracy in zip(rows, [0.1, 0.81236, 0.5, 0.81236, 0.7]):
        row["val_accuracy"] = accuracy
    figure = figures._build_curves(rows)
    for axes in figure.axes:
        assert list(axes.get_lines()[-1].get_xdata()) == [2, 2]
    assert texts_of(figure)[-1] == "best validation accuracy: 81.24%, epoch 2"


def test_the_best_epoch_is_that_of_the_weights_that_are_evaluated():
    rows = make_rows(3, ema=True)
    for row, raw, ema in zip(rows, [0.9, 0.1, 0.2], [0.3, 0.6, 0.5]):
        row |= {"val_accuracy": raw, "ema_val_accuracy": ema}
    text = texts_of(figures._build_curves(rows))[-1]
    assert text == "best validation accuracy, EMA: 60.00%, epoch 2"


@pytest.mark.parametrize(
    ("first", "smallest", "scale"),
    [(3.0, 0.5, "linear"), (900.0, 0.5, "log"), (900.0, 0.0, "linear")],
)
def test_a_wild_epoch_does_not_flatten_the_others(first, smallest, scale):
    rows = make_rows(6)
    rows[0]["val_loss"] = first
    rows[3]["train_loss"] = smallest
    axes = figures._build_curves(rows).axes[0]
    assert axes.get_yscale() == scale
    assert axes.get_ylabel() == ("loss (log scale)" if scale == "log" else "loss")


@pytest.mark.parametrize(
    ("loss", "wild", "ticks"), [(2, 70, ["3", "10", "30"]), (0.5, 5.5, ["1", "3"])]
)
def test_a_logarithmic_loss_has_few_plain_ticks(loss, wild, ticks):
    rows = make_rows(6)
    for row in rows:
        row |= {f"{prefix}_loss": loss for prefix in ("train", "train_eval", "val")}
    rows[0]["val_loss"] = wild
    figure = figures._build_curves(rows)
    figure.canvas.draw()
    axes = figure.axes[0]
    assert tick_texts(axes.yaxis) == ticks
    assert not any(t.get_text() for t in axes.get_yticklabels(minor=True))


def test_the_confusion_matrix_has_truth_in_rows_and_counts_in_cells():
    matrix = [[3, 1, 0], [0, 0, 0], [10, 20, 970]]
    figure = figures._build_confusion_matrix(make_evaluation(matrix=matrix))
    axes = figure.axes[0]
    names = ["red", "green", "blue"]
    assert [t.get_text() for t in axes.get_xticklabels()] == names
    assert [t.get_text() for t in axes.get_yticklabels()] == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    # Colours are shares of a row; a class without examples has none.
    shares = [[0.75, 0.25, 0], [0, 0, 0], [0.01, 0.02, 0.97]]
    image = axes.get_images()[0]
    np.testing.assert_allclose(image.get_array(), shares)
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)
    cells = {t.get_position(): t.get_text() for t in axes.texts}
    assert cells == {(c, r): str(matrix[r][c]) for r in range(3) for c in range(3)}


def test_the_title_says_of_what_it_is():
    evaluation = make_evaluation()
    title = figures._build_confusion_matrix(evaluation).axes[0].get_title()
    assert title == (
        "Confusion matrix on test after epoch 60\naccuracy 98.77% of 12,345 images"
    )
    evaluation |= {"split": "validation", "weights": "ema"}
    title = figures._build_confusion_matrix(evaluation).axes[0].get_title()
    assert "on validation after epoch 60, EMA weights\n" in title


def luminance(color):
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color
    ]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def test_counts_stand_out_from_their_cells():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 100, (12, 12)) + np.diag(10 ** np.arange(12) // 10**6)
    names = [f"class {i}" for i in range(12)]
    figure = figures._build_confusion_matrix(make_evaluation(names, matrix))
    axes = figure.axes[0]
    image = axes.get_images()[0]
    cells = image.to_rgba(image.get_array())
    colors = set()
    for text in axes.texts:
        column, row = text.get_position()
        pair = [luminance(to_rgb(text.get_color())), luminance(cells[row, column, :3])]
        # 4.5 is what WCAG 2.1 asks of text.
        assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5
        colors.add(text.get_color())
    assert len(colors) == 2


@pytest.mark.parametrize("num_classes", [2, 3, 10, 20])
def test_counts_fit_into_their_cells_and_names_stand_apart(num_classes):
    matrix = np.full((num_classes, num_classes), 12345)
    names = [f"{i} aquatic mammal"[: 3 + i] for i in range(num_classes)]
    figure = figures._build_confusion_matrix(make_evaluation(names, matrix))
    figure.canvas.draw()
    axes = figure.axes[0]
    cell = axes.get_window_extent().width / num_classes
    assert len(axes.texts) == num_classes**2
    assert max(text.get_window_extent().width for text in axes.texts) < cell
    assert overlaps(axes.get_yticklabels()) == []
    rotations = {text.get_rotation() for text in axes.get_xticklabels()}
    assert rotations == ({0.0} if num_classes < 4 else {45.0})
    if num_classes < 4:
        assert overlaps(axes.get_xticklabels()) == []


def test_many_classes_have_names_but_no_counts():
    names = [f"aquatic mammal {i}" for i in range(100)]
    figure = figures._build_confusion_matrix(make_evaluation(names))
    figure.canvas.draw()
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    assert [t.get_text() for t in axes.get_yticklabels()] == names
    assert overlaps(axes.get_xticklabels()) == []
    assert overlaps(axes.get_yticklabels()) == []


def bars(axes, color):
    patches = [p for p in axes.patches if p.get_edgecolor()[:3] == to_rgb(color)]
    # Drawn from the accuracy, a gap may have a negative height.
    return [
        (p.get_x(), p.get_width(), p.get_y(), p.get_y() + p.get_height())
        for p in patches
    ]


def test_reliability_shows_accuracy_gap_and_counts_of_the_bins_that_have_any():
    figure = figures._build_reliability(make_evaluation())
    axes, count_axes = figure.axes
    np.testing.assert_allclose(
        bars(axes, figures.WHITE),
        [(0.25, 0.25, 0, 0), (0.5, 0.25, 0, 0.7), (0.75, 0.25, 0, 0.8)],
    )
    np.testing.assert_allclose(
        bars(axes, figures.VERMILION),
        [(0.25, 0.25, 0, 0.4), (0.5, 0.25, 0.7, 0.6), (0.75, 0.25, 0.8, 0.9)],
    )
    np.testing.assert_allclose(
        bars(count_axes, figures.WHITE),
        [(0.25, 0.25, 0, 1), (0.5, 0.25, 0, 2), (0.75, 0.25, 0, 5)],
    )
    (diagonal,) = axes.get_lines()
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))
    texts = {text.get_text() for text in axes.get_legend().get_texts()}
    assert texts == {"accuracy", "gap to mean confidence", "perfect calibration"}
    # (1 x 0.4 + 2 x 0.6 + 5 x 0.9) / 8
    assert figure.get_suptitle() == (
        "Reliability on test after epoch 60\n"
        "accuracy 98.77% of 12,345 images, mean confidence 76.25%, ECE 0.0123"
    )


def test_legends_cover_neither_data_nor_title():
    reliability = figures._build_reliability(make_evaluation())
    reliability.canvas.draw()
    axes = reliability.axes[0]
    box = axes.get_legend().get_window_extent()
    (title,) = reliability.texts
    assert not box.overlaps(title.get_window_extent())
    assert not box.overlaps(axes.patch.get_window_extent())

    curves = figures._build_curves(make_rows(3, ema=True))
    curves.canvas.draw()
    box = curves.legends[0].get_window_extent()
    assert not box.overlaps(curves.axes[0].patch.get_window_extent())


@pytest.mark.parametrize(("count", "scale"), [(50, "linear"), (12345, "log")])
def test_small_bins_are_seen_beside_large_ones(count, scale):
    evaluation = make_evaluation()
    evaluation["calibration"]["bins"][3]["count"] = count
    figure = figures._build_reliability(evaluation)
    figure.canvas.draw()
    axes = figure.axes[1]
    assert axes.get_yscale() == scale
    assert axes.get_ylabel() == ("images (log scale)" if scale == "log" else "images")
    assert axes.get_ylim()[0] == (0.5 if scale == "log" else 0)
    if scale == "log":
        assert "10,000" in tick_texts(axes.yaxis)


def write_run(workdir, rows, **evaluations):
    workdir.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(lines)
    for split, evaluation in evaluations.items():
        suffix = "" if split == "test" else f"-{split}"
        text = json.dumps(evaluation | {"split": split})
        (workdir / f"evaluation{suffix}.json").write_text(text)


def test_a_run_is_drawn_as_far_as_its_files_go(tmp_path):
    assert figures.draw_run(tmp_path) == []
    write_run(tmp_path, [])  # As training leaves it before the first epoch.
    assert figures.draw_run(str(tmp_path)) == []
    assert not (tmp_path / "figures").exists()

    write_run(tmp_path, make_rows(2))
    assert figures.draw_run(tmp_path) == [tmp_path / "figures" / "curves.png"]

    evaluation = make_evaluation()
    write_run(tmp_path, make_rows(2), test=evaluation, validation=evaluation)
    paths = figures.draw_run(str(tmp_path))
    assert [path.name for path in paths] == [
        "curves.png",
        "confusion_matrix.png",
        "reliability.png",
        "confusion_matrix-validation.png",
        "reliability-validation.png",
    ]
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    contents = {path.read_bytes() for path in paths}
    assert len(contents) == len(paths)  # Each is of its own split.


def test_the_same_content_makes_the_same_bytes(tmp_path):
    rows, evaluation = make_rows(2, ema=True), make_evaluation()
    write_run(tmp_path, rows, test=evaluation)
    write_run(tmp_path / "again", rows, test=evaluation)
    for path, other in zip(
        figures.draw_run(tmp_path), figures.draw_run(tmp_path / "again")
    ):
        assert path.read_bytes() == other.read_bytes()
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.info.keys() == {"dpi"}  # No time, no version.


def test_nothing_is_cut_at_the_edge(tmp_path):
    names = ("benign", "malignant neoplasm of the breast")
    matrix = [[497454, 2546], [4505, 495495]]
    evaluation = make_evaluation(names, matrix, weights="ema", epoch=1000)
    evaluation |= {"split": "validation", "num_examples": 1_000_000}
    write_run(tmp_path, make_rows(1500, ema=True), validation=evaluation)
    for path in figures.draw_run(tmp_path):
        assert margin_is_white(path), path
        with Image.open(path) as image:
            assert min(image.size) >= 700, path  # Pixels enough for a README.


def test_a_figure_is_never_half_written(tmp_path, monkeypatch):
    write_run(tmp_path, make_rows(1))
    path = tmp_path / "figures" / "curves.png"
    path.parent.mkdir()
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        figures.draw_run(tmp_path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("metrics.jsonl", b'{"epoch": 1, "st', ["metrics.jsonl, line 3", "train"]),
        ("metrics.jsonl", b'{"epoch": 1}\n', ["line 3", "lacks learning_rate, train"]),
        ("evaluation.json", b"", ["evaluation.json is damaged", "--split=test"]),
        ("evaluation-train.json", b"\xff\xfe{", ["-train.json", "--split=train"]),
        ("evaluation.json", b"[1, 2]", ["evaluation.json", "--split=test"]),
        ("evaluation.json", b'{"epoch": 1}', ["lacks accuracy", "--mode=evaluate"]),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, name, content, parts):
    write_run(tmp_path, make_rows(2), test=make_evaluation())
    path = tmp_path / name
    old = path.read_bytes() if name == "metrics.jsonl" else b""
    path.write_bytes(old + content)
    with pytest.raises(UserError) as raised:
        figures.draw_run(tmp_path)
    for part in [str(tmp_path), "damaged", *parts]:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "figures").exists()


def test_drawing_loads_neither_jax_nor_pyplot(tmp_path):
    write_run(tmp_path, make_rows(1), test=make_evaluation())
    code = (
        "import sys; from dwsep_jax.figures import draw_run;"
        f"assert len(draw_run({str(tmp_path)!r})) == 3;"
        "print({'jax', 'flax', 'matplotlib.pyplot'} & sys.modules.keys())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (result.stdout.strip(), result.returncode) == ("set()", 0), result.stderr
