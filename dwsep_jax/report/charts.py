"""Vega-Lite specifications of the charts, colored by the page's theme.

Rows of data have keys that a person can read: they are the titles of the axes, and what
a mark shows under the pointer.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dwsep_jax.space import Axis

Spec = dict[str, Any]
# Rows {epoch, mean, low, high}.
Series = list[Spec]

COLORS = [f"var(--series{i})" for i in range(4)]
_SHAPES = ["circle", "square", "triangle-up", "diamond"]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
MAX_CLASSES_WITH_COUNTS = 20
MAX_POINTS_WITH_MARKERS = 20
TEST_ACCURACY = "test accuracy (%)"
VALIDATION_ACCURACY = "validation accuracy (%)"


def lines(
    series: dict[str, Series],
    title: str,
    marked: int | None = None,
    height: float = 260,
) -> Spec:
    """Draw curves over the epochs, with bands from lowest to highest.

    Args:
      series: by label, in the order of the colors; an empty one is left out.
      title: of the y axis.
      marked: an epoch to mark with a vertical line.
      height: in pixels.
    """
    rows = [{"series": name} | row for name, found in series.items() for row in found]
    epochs = sorted({row["epoch"] for row in rows})
    is_short = len(epochs) <= MAX_POINTS_WITH_MARKERS
    x = quantity("epoch", nice=False, zero=False, padding=8)
    x["axis"] = {"format": "d", "grid": False, "labelFlush": False, "tickMinStep": 1}
    if is_short:  # A tick at each epoch and none between.
        x["axis"]["values"] = epochs
    y = quantity("mean", zero=False) | {"title": title}
    means = [row["mean"] for row in rows]
    # One wild epoch would flatten all the others.
    if means and min(means) > 0 and max(means) > 10 * float(np.median(means)):
        y |= {"scale": {"type": "log", "nice": False}, "title": f"{title}, log scale"}
        ticks = [factor * 10.0**power for power in range(-8, 8) for factor in (1, 3)]
        ticks = [tick for tick in ticks if min(means) <= tick <= max(means)]
        y["axis"] = {"values": ticks, "format": "~g"}
    shown = [name for name, found in series.items() if found]
    stroke = {"symbolType": "stroke", "symbolSize": 150}
    color = by_name("series", series, COLORS, shown, **stroke)
    dash = by_name("series", series, _DASHES, shown, **stroke)
    ends = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": color}
    line = {"x": x, "y": y, "color": color, "strokeDash": dash}
    # The pointer finds the points of a long curve, too.
    point = {"size": 40, "opacity": 1 if is_short else 0}
    layers = [
        layer("area", ends, opacity=0.15),
        layer("line", line, strokeWidth=2, point=point),
    ]
    if marked is not None:
        mark = [{"epoch": marked}]
        layers.append(layer("rule", {"x": x}, mark, color="var(--muted)"))
    return layered(rows, layers, height)


def accuracy_against(cost: str, rows: list[Spec], names: list[str]) -> Spec:
    """Draw accuracy against a cost, with error bars.

    Args:
      cost: its name and unit.
      rows: one of each variant: {variant, `cost`, `TEST_ACCURACY`}, and {low, high}
        where there is an interval; accuracies in per cent.
      names: all variants, in the order of the colors.
    """
    x = quantity(cost, zero=True, nice=4) | {"axis": {"format": "~s", "tickCount": 4}}
    y = quantity(TEST_ACCURACY, zero=False, nice=True)
    shown = [row["variant"] for row in rows]
    color, shape = (by_name("variant", names, c, shown) for c in (COLORS, _SHAPES))
    bars = [row for row in rows if "low" in row]
    ends = {"y": y | {"field": "low", "title": TEST_ACCURACY}, "y2": {"field": "high"}}
    dots = {"x": x, "y": y, "color": color, "shape": shape}
    layers = [
        layer("rule", {"x": x, "color": color} | ends, bars, strokeWidth=2),
        layer("point", dots, filled=True, size=110, opacity=1),
    ]
    return layered(rows, layers, 240)


def confusion(names: list[str], matrix: list[list[int]]) -> Spec:
    """Draw shares of the true class on a square-root scale, and counts where they fit.

    Args:
      names: of the classes.
      matrix: counts, (classes, classes), rows are the true classes.
    """
    counts = np.array(matrix)
    # A class without examples has a row of zeros, not of 0/0.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= MAX_CLASSES_WITH_COUNTS
    rows = [
        {"true class": names[i], "predicted class": names[j], "images": int(count)}
        | {"share of the true class": round(float(shares[i, j]), 4)}
        for (i, j), count in np.ndenumerate(counts)
        if few or count
    ]
    axis = {"grid": False, "ticks": False, "domain": False, "labelOverlap": not few}
    axis |= {} if few else {"labelFontSize": 9}
    angle = {"labelAngle": 0 if few and max(map(len, names)) <= 2 else -90}
    place = {
        "x": category("predicted class", axis=axis | angle, scale={"domain": names}),
        "y": category("true class", axis=axis, scale={"domain": names}),
    }
    scale = {"type": "sqrt", "domain": [0, 1], "range": [0.03, 1]}
    opacity = quantity("share of the true class", **scale) | {"legend": None}
    layers = [layer("rect", place | {"opacity": opacity}, color="var(--heat)")]
    if few:
        size = 12 if len(names) <= 10 and counts.max() < 10_000 else 9
        text = place | {"text": {"field": "images"}}
        layers.append(layer("text", text, fontSize=size))
    return layered(rows, layers, max(220, len(names) * (34 if few else 9)))


def reliability(bins: list[Spec]) -> Spec:
    """Draw accuracy, its gap to confidence, and the number of images of each bin.

    Args:
      bins: as evaluation.json has them (Guo et al. 2017); empty ones are left out.
    """
    rows = [b for b in bins if b["count"]]
    limits = {"axis": {"format": ".0%", "tickCount": 6}}
    x = quantity("confidence", domain=[0, 1]) | limits
    x["title"] = "confidence (probability of the predicted class)"
    y = quantity("accuracy", domain=[0, 1]) | limits
    bar = {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y}
    gap = {"x": x, "y": y, "y2": {"field": "confidence"}}
    words = {"field": "count", "type": "quantitative", "format": ",.4~s"}
    count = {"x": x, "y": {"value": -6}, "text": words}
    diagonal = [{"confidence": end, "accuracy": end} for end in (0, 1)]
    dashed = {"color": "var(--muted)", "strokeDash": [4, 3]}
    layers = [
        layer("rect", bar | {"y2": {"datum": 0}}, color="var(--series0)", opacity=0.75),
        layer("line", {"x": x, "y": y}, diagonal, **dashed),
        layer("rule", gap, color="var(--series1)", strokeWidth=3),
        layer("text", count, fontSize=10),
    ]
    return layered(rows, layers, 280)


def pictures(rows: list[Spec]) -> Spec:
    """Draw pictures in rows of four, each above its caption.

    Args:
      rows: each {uri, id, caption}; a caption has three lines.
    """
    rows = [row | {"column": i % 4, "row": i // 4} for i, row in enumerate(rows)]
    place = {
        "x": category("column", axis=None, scale={"domain": [0, 1, 2, 3]}),
        "y": category("row", axis=None),
        "tooltip": {"field": "id"},
    }
    picture = place | {"url": {"field": "uri"}}
    caption = place | {"text": {"field": "caption"}}
    layers = [
        layer("image", picture, width=80, height=80, yOffset=-26),
        layer("text", caption, lineBreak="\n", dy=24),
    ]
    return layered(rows, layers, 150 * (1 + rows[-1]["row"]))


def by_setting(axis: Axis, rows: list[Spec], winner: int) -> Spec:
    """Draw the accuracy of each trial by its setting of an axis.

    Args:
      axis: of the sweep.
      rows: of each complete trial: {trial, `VALIDATION_ACCURACY`} and its settings.
      winner: the number of the trial that gets a ring around it.
    """
    values = np.array([row[VALIDATION_ACCURACY] for row in rows])
    # A few hopeless trials do not flatten all the others.
    reach = 3 * max(values.max() - np.median(values), 0.5)
    low = max(values.min(), values.max() - reach)
    scale = {"domain": [float(low), float(values.max())], "clamp": True, "padding": 10}
    place = {"y": quantity(VALIDATION_ACCURACY, nice=False, **scale)}
    if axis.choices:
        place["x"] = category(axis.name, axis={"labelAngle": 0})
        place["x"]["scale"] = {"domain": list(axis.choices), "paddingInner": 0.4}
        # Side by side in the order of their numbers, not on top of each other.
        place["xOffset"] = quantity("trial", zero=False, nice=False)
    else:
        look = {"type": "log" if axis.log else "linear", "nice": False, "padding": 10}
        place["x"] = quantity(axis.name, domain=[axis.low, axis.high], **look)
        place["x"]["axis"] = {"grid": False, "tickCount": 3, "format": "~g"}
    ring = {"size": 220, "strokeWidth": 2.5, "color": "var(--series1)"}
    best = [row for row in rows if row["trial"] == winner]
    layers = [
        layer("point", place, filled=True, size=60, opacity=0.85, color=COLORS[0]),
        layer("point", place, best, **ring),
    ]
    return layered(rows, layers, 190)


def band_of(curves: list[list[Spec]], key: str, factor: float = 1) -> Series:
    """Return mean, lowest and highest over the runs at each epoch that any has.

    Args:
      curves: the rows of each run.
      key: of a row; missing values are left out.
      factor: of the values, which are rounded to five significant digits.
    """
    found: dict[int, list[float]] = {}
    for row in itertools.chain(*curves):
        if (value := row.get(key)) is not None:
            found.setdefault(row["epoch"], []).append(factor * value)
    return [
        {"epoch": epoch}
        | {"mean": _round(sum(ys) / len(ys))}
        | {"low": _round(min(ys)), "high": _round(max(ys))}
        for epoch, ys in sorted(found.items())
    ]


def _round(value):
    return float(f"{value:.5g}")


def layered(rows: list[Spec], layers: list[Spec], height: float) -> Spec:
    """Return a chart of layers over common rows, as wide as its container."""
    spec: Spec = {"width": "container", "height": height, "layer": layers}
    return spec | {"data": {"values": rows}}


def layer(
    mark: str, encoding: Spec, rows: list[Spec] | None = None, **look: Any
) -> Spec:
    """Return one layer: a mark, its look, and its own rows where it has any."""
    data = {} if rows is None else {"data": {"values": rows}}
    return data | {"mark": {"type": mark} | look, "encoding": encoding}


def quantity(field: str, **scale: Any) -> Spec:
    """Return a quantitative encoding."""
    return {"field": field, "type": "quantitative", "scale": scale, "title": field}


def category(field: str, **more: Any) -> Spec:
    """Return a nominal encoding."""
    return {"field": field, "type": "nominal", "title": field} | more


def by_name(
    field: str,
    names: Iterable[str],
    choices: Sequence[Any],
    shown: Sequence[str],
    **legend: Any,
) -> Spec:
    """Return an encoding that gives each name one look, the same in all charts."""
    looks = {name: look for name, look in zip(names, itertools.cycle(choices))}
    scale = {"domain": list(looks), "range": list(looks.values())}
    legend = {"values": shown} | legend if len(looks) > 1 else None
    return category(field, scale=scale, legend=legend, title=None)
