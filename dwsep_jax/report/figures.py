"""Figures of a run, drawn from the files in its workdir."""

import io
import os
import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from dwsep_jax.workdir import read_evaluation, read_rows, score, write_atomically

DOTS_PER_INCH = 150
MAX_CLASSES_WITH_COUNTS = 20
# Of a run and its evaluation on test, this one is written last.
LAST_FIGURE = os.path.join("figures", "reliability.png")
MAX_EPOCHS_WITH_MARKERS = 20

# Okabe and Ito's palette, its purple replaced by Tol's darker one: told apart with any
# colour vision.
SKY_BLUE, BLUE, VERMILION, PURPLE = "#56B4E9", "#0072B2", "#D55E00", "#AA4499"
BLACK, GRAY, LIGHT_GRAY, WHITE = "#000000", "#666666", "#DDDDDD", "#FFFFFF"

# Prefix of the keys in metrics.jsonl, label, colour, line style, marker: no curve is
# told apart by its colour alone.
_CURVES = (
    ("train", "train, as trained", SKY_BLUE, "--", "v"),
    ("train_eval", "train, evaluated", BLUE, "-", "s"),
    ("val", "validation", VERMILION, "-", "o"),
    ("ema_val", "validation, EMA weights", PURPLE, "-.", "D"),
)


def draw_run(workdir: str | os.PathLike) -> list[pathlib.Path]:
    """Draw everything that the files of a run have to show, into its figures/.

    From metrics.jsonl: curves.png. From evaluation.json and each
    evaluation-<split>.json: confusion_matrix.png and reliability.png, with the same
    suffix. What is not there, or has no epoch yet, is not drawn.

    Returns:
      The paths of the files that were written.

    Raises:
      UserError: if a file is damaged; nothing has been written then.
    """
    directory = pathlib.Path(workdir) / "figures"
    contents = render_run(workdir)
    if contents:
        directory.mkdir(exist_ok=True)
    for name, content in contents.items():
        write_atomically(directory / name, content)
    return [directory / name for name in contents]


def render_run(workdir: str | os.PathLike) -> dict[str, bytes]:
    """Return the PNGs that `draw_run` writes, by the names of their files."""
    workdir = pathlib.Path(workdir)
    rows = read_rows(workdir)
    evaluations = {
        path.stem.removeprefix("evaluation"): read_evaluation(path)
        for name in ("evaluation.json", "evaluation-*.json")
        for path in sorted(workdir.glob(name))
    }
    figures = {"curves.png": _build_curves(rows)} if rows else {}
    for suffix, evaluation in evaluations.items():
        matrix = _build_confusion_matrix(evaluation)
        figures[f"confusion_matrix{suffix}.png"] = matrix
        figures[f"reliability{suffix}.png"] = _build_reliability(evaluation)
    return {name: _render(figure) for name, figure in figures.items()}


def render_pictures(images: np.ndarray, captions: list[str]) -> bytes:
    """Return a PNG of small pictures in rows of four, each over its caption.

    Args:
      images: uint8 (N, H, W, C), C 1 or 3.
      captions: N texts.
    """
    columns = min(4, len(images))
    num_rows = -(-len(images) // columns)
    figure = _make_figure(2 * columns, 2.5 * num_rows)
    panels = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, caption in zip(panels, images, captions, strict=False):
        axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=9, parse_math=False)
    return _render(figure)


def _make_figure(width, height):
    """Return an empty figure, sizes in inches, that belongs to no global state."""
    figure = Figure((width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _render(figure):
    content = io.BytesIO()
    options = {"dpi": DOTS_PER_INCH, "bbox_inches": "tight", "pad_inches": 0.08}
    # The name of the program holds its version: the same input, the same bytes.
    figure.savefig(content, format="png", metadata={"Software": None}, **options)
    return content.getvalue()


def _style(axes):
    """Leave what carries data: two spines, and light horizontal lines behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LIGHT_GRAY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10)


def _build_curves(rows):
    """Plot loss (nats), accuracy and learning rate over the epochs."""
    figure = _make_figure(8, 8.5)
    panels = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.4))
    loss_axes, accuracy_axes, rate_axes = panels
    with_markers = len(rows) <= MAX_EPOCHS_WITH_MARKERS
    for prefix, label, color, linestyle, marker in _CURVES:
        present = [row for row in rows if f"{prefix}_loss" in row]
        if not present:
            continue
        epochs = [row["epoch"] for row in present]
        look = {"color": color, "linestyle": linestyle, "linewidth": 1.8}
        look |= {"marker": marker if with_markers else None, "markersize": 5}
        loss_axes.plot(epochs, [row[f"{prefix}_loss"] for row in present], **look)
        percent = [100 * row[f"{prefix}_accuracy"] for row in present]
        accuracy_axes.plot(epochs, percent, label=label, **look)
    _set_loss_scale(loss_axes)
    accuracy_axes.set_ylabel("accuracy (%)", fontsize=11)
    _draw_learning_rate(rate_axes, rows, "o" if with_markers else None)
    best = _mark_best_epoch(panels, rows)
    for axes in panels:
        _style(axes)
    figure.align_ylabels(panels)
    handles = [*accuracy_axes.get_legend_handles_labels()[0], best]
    look = {"fontsize": 10, "frameon": False, "handlelength": 3}
    figure.legend(handles=handles, loc="outside upper center", ncols=2, **look)
    return figure


def _set_loss_scale(axes):
    losses = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    # One epoch gone wild would flatten all the others.
    if losses.min() > 0 and losses.max() > 10 * np.median(losses):
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=[1, 3]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_ylabel("loss (log scale)", fontsize=11)
    else:
        axes.set_ylabel("loss", fontsize=11)


def _draw_learning_rate(axes, rows, marker):
    epochs = [row["epoch"] for row in rows]
    rates = [row["learning_rate"] for row in rows]
    look = {"color": BLACK, "linewidth": 1.8, "marker": marker, "markersize": 4}
    # Unclipped: a schedule ends at zero, on the axis.
    axes.plot(epochs, rates, clip_on=False, **look)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate", fontsize=11)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(
        MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    )
    axes.set_xlabel("epoch", fontsize=11)


def _mark_best_epoch(panels, rows):
    """Draw a line at the epoch with the best validation accuracy; return one."""
    # The first of equals: it is the one whose checkpoint is kept.
    best = max(rows, key=score)
    weights = ", EMA" if "ema_val_accuracy" in best else ""
    look = {"color": GRAY, "linestyle": ":", "linewidth": 1.4, "zorder": 1}
    lines = [axes.axvline(best["epoch"], **look) for axes in panels]
    lines[0].set_label(
        f"best validation accuracy{weights}: {score(best):.2%}, epoch {best['epoch']}"
    )
    return lines[0]


def _build_confusion_matrix(evaluation):
    """Show which classes are taken for which: shares of the true class, and counts.

    The colours are on a square-root scale, so that rare confusions are seen.
    """
    names = [row["name"] for row in evaluation["per_class"]]
    counts = np.array(evaluation["confusion_matrix"])
    # A class without examples has a row of zeros, not of 0/0.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with_counts = len(names) <= MAX_CLASSES_WITH_COUNTS
    cell = max(min(0.9, 5.6 / len(names)), 0.36 if with_counts else 0.15)  # Inches.
    side = cell * len(names)
    # Shown at the width of a page, a large figure is a reduced one.
    font_size = 12 * max(1, side / 6.5)
    name_size = min(0.92 * font_size, 0.8 * 72 * cell)
    name_width = max(map(len, names)) * 0.6 * name_size / 72
    figure = _make_figure(side + name_width + 1.8, side + name_width + 1.4)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    _write_class_names(axes, names, name_size, upright=name_width < 0.9 * cell)
    axes.set_xlabel("predicted class", fontsize=font_size)
    axes.set_ylabel("true class", fontsize=font_size)
    if with_counts:
        width = len(str(counts.max())) * 0.65
        _write_counts(axes, image, counts, min(12, 72 * 0.9 * cell / width))
    _add_color_bar(axes, image, 0.85 * font_size)
    title = _make_title("Confusion matrix", evaluation)
    axes.set_title(title, fontsize=font_size, pad=font_size)
    return figure


def _write_class_names(axes, names, font_size, upright):
    ticks = range(len(names))
    turn = {"rotation": 45 if len(names) <= MAX_CLASSES_WITH_COUNTS else 90}
    turn |= {"rotation_mode": "anchor", "ha": "right", "va": "center"}
    axes.set_xticks(ticks, names, fontsize=font_size, **({} if upright else turn))
    axes.set_yticks(ticks, names, fontsize=font_size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _write_counts(axes, image, counts, font_size):
    colors = image.to_rgba(image.get_array())
    for (row, column), count in np.ndenumerate(counts):
        color = _choose_text_color(colors[row, column, :3])
        text = {"ha": "center", "va": "center_baseline", "fontsize": font_size}
        axes.text(column, row, str(count), color=color, **text)


def _choose_text_color(background):
    """Return black or white, whichever has the higher contrast (WCAG 2.1)."""
    linear = np.where(
        background <= 0.04045, background / 12.92, ((background + 0.055) / 1.055) ** 2.4
    )
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return BLACK if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else WHITE


def _add_color_bar(axes, image, font_size):
    # Inset, so that it is as high as the matrix.
    bar = axes.figure.colorbar(image, cax=axes.inset_axes([1.03, 0, 0.035, 1]))
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.ax.tick_params(labelsize=font_size)
    bar.set_label("share of the true class", fontsize=font_size)
    bar.outline.set_visible(False)


def _make_title(name, evaluation):
    """Return two lines: which figure of what, and the result."""
    weights = ", EMA weights" if evaluation["weights"] == "ema" else ""
    accuracy, count = evaluation["accuracy"], evaluation["num_examples"]
    return (
        f"{name} on {evaluation['split']} after epoch {evaluation['epoch']}{weights}\n"
        f"accuracy {accuracy:.2%} of {count:,} images"
    )


def _build_reliability(evaluation):
    """Show accuracy against confidence, bin by bin (Guo et al. 2017)."""
    calibration = evaluation["calibration"]
    bins = [b for b in calibration["bins"] if b["count"]]
    figure = _make_figure(7, 7.5)
    panels = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    axes, count_axes = panels
    counts = np.array([b["count"] for b in bins])
    accuracy = np.array([b["accuracy"] for b in bins])
    confidence = np.array([b["confidence"] for b in bins])
    place = {"x": [b["low"] for b in bins], "align": "edge"}
    place["width"] = [b["high"] - b["low"] for b in bins]
    look = {"color": SKY_BLUE, "edgecolor": WHITE}
    axes.bar(height=accuracy, label="accuracy", **look, **place)
    look = {"facecolor": "none", "edgecolor": VERMILION, "hatch": "//"}
    look |= {"bottom": accuracy, "label": "gap to mean confidence"}
    axes.bar(height=confidence - accuracy, **look, **place)
    axes.plot([0, 1], [0, 1], color=BLACK, linestyle="--", label="perfect calibration")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy", fontsize=12)
    # Above the panel: inside, every corner may hold a bar.
    look = {"fontsize": 10, "frameon": False, "ncols": 3}
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), **look)

    count_axes.bar(height=counts, color=GRAY, edgecolor=WHITE, **place)
    _set_count_scale(count_axes, counts)
    count_axes.set_xlabel("confidence: probability of the predicted class", fontsize=12)
    for panel in panels:
        _style(panel)
    figure.align_ylabels(panels)
    mean = np.average(confidence, weights=counts)
    title = _make_title("Reliability", evaluation)
    title += f", mean confidence {mean:.2%}, ECE {calibration['ece']:.4f}"
    figure.suptitle(title, fontsize=12)
    return figure


def _set_count_scale(axes, counts):
    # Most bins of a good classifier are tiny beside the last one.
    if counts.max() > 50 * counts.min():
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)  # A bin of one image is seen, too.
        axes.set_ylabel("images (log scale)", fontsize=12)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylabel("images", fontsize=12)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
