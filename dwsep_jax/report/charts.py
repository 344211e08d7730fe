"""Vega-Lite specifications of the charts, colored by the page's theme."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Spec = dict[str, Any]
# x, then the mean, lowest and highest y.
Series = list[tuple[float, float, float, float]]

COLORS = [f"var(--series{i})" for i in range(6)]
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [4, 6]]
MAX_CLASSES_WITH_COUNTS = 20
MAX_POINTS_WITH_MARKERS = 20


def lines(
    series: dict[str, Series],
    names: list[str],
    y_title: str,
    form: str,
    marked: float | None = None,
    height: float = 260,
) -> Spec:
    """Draw curves over the epochs, with bands from lowest to highest.

    Args:
      series: by label.
      names: all labels, at most six, in the order of the colors.
      y_title: of the axis.
      form: of the numbers, in d3's notation.
      marked: an epoch to mark with a vertical line.
      height: in pixels.
    """
    values = [
        {"series": name, "x": x, "mean": mean, "low": low, "high": high}
        for name, rows in series.items()
        for x, mean, low, high in rows
    ]
    by_x = {}
    for value in values:
        row = by_x.setdefault(value["x"], {"x": value["x"]})
        row[f"v{names.index(value['series'])}"] = value["mean"]
    x = quantity("x", "epoch", nice=False, zero=False, padding=8)
    x["axis"] = {"format": "d", "grid": False, "labelFlush": False, "tickMinStep": 1}
    y = quantity("mean", y_title, **_choose_scale([value["mean"] for value in values]))
    if y["scale"].get("type") == "log":
        y |= {"title": f"{y_title}, log scale", "axis": _log_axis(values)}
    looks = {"color": scale_by("series", names, COLORS, series)}
    looks["strokeDash"] = scale_by("series", names, _DASHES, series)
    for look in looks.values():
        look["legend"] |= {"symbolType": "stroke", "symbolSize": 150}
        look["legend"] |= {"symbolOpacity": 1, "symbolFillColor": "transparent"}
        look["legend"] = look["legend"] if len(names) > 1 else None
    points = False
    if len(by_x) <= MAX_POINTS_WITH_MARKERS:
        # A tick at each epoch and none between; one epoch alone would be invisible.
        x["axis"]["values"] = sorted(by_x)
        points = {"size": 40}
    layers = [layer("line", {"x": x, "y": y} | looks, strokeWidth=2, point=points)]
    if any(value["low"] != value["high"] for value in values):
        ends = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}
        ends["color"] = looks["color"]
        layers.insert(0, layer("area", ends, opacity=0.15))
    if marked is not None:
        rule = layer("rule", {"x": x}, [{"x": marked}], color="var(--muted)")
        layers.append(rule)
    told = [(f"v{names.index(name)}", name, form) for name in series if series[name]]
    layers.append(_reading_rule(x, [by_x[at] for at in sorted(by_x)], told))
    return layered(values, layers, height)


def accuracy_against(
    points: list[Spec], names: list[str], front: list[str], x_title: str
) -> Spec:
    """Draw accuracy against a cost, with error bars and the Pareto front.

    Args:
      points: each {variant, cost, shown, accuracy, low, high, interval}; accuracies in
        per cent, low and high None without an interval; shown and interval as text.
      names: all variants, in the order of the colors.
      front: the variants on the Pareto front, cheapest first.
      x_title: of the axis.
    """
    x = quantity("cost", x_title, zero=True, nice=4)
    x["axis"] = {"format": "~s", "tickCount": 4}
    y = quantity("accuracy", "test accuracy (%)", zero=False, nice=True)
    color, shape = _looks(points, names)
    told = tips(
        ("variant", "variant"),
        ("accuracy", "accuracy (%)", ".2f"),
        ("interval", "95 % interval"),
        ("shown", x_title),
    )
    step = {"interpolate": "step-after", "strokeWidth": 1.5, "strokeDash": [4, 3]}
    on_front = [p for name in front for p in points if p["variant"] == name]
    bars = [point for point in points if point["low"] is not None]
    ends = {"y": y | {"field": "low"}, "y2": {"field": "high"}, "color": color}
    dots = {"x": x, "y": y, "color": color, "shape": shape, "tooltip": told}
    layers = [
        layer("line", {"x": x, "y": y}, on_front, color="var(--muted)", **step),
        layer("rule", {"x": x} | ends, bars, strokeWidth=2),
        layer("point", dots, filled=True, size=110, opacity=1),
    ]
    return layered(points, layers, 240)


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
    values = [
        {"true": names[i], "predicted": names[j], "count": int(count)}
        | {"share": round(float(shares[i, j]), 6)}
        for (i, j), count in np.ndenumerate(counts)
        if few or count
    ]
    axis = {"grid": False, "ticks": False, "domain": False, "labelOverlap": not few}
    axis |= {} if few else {"labelFontSize": 9}
    place = {}
    for channel, field in (("x", "predicted"), ("y", "true")):
        place[channel] = category(field, None, title=f"{field} class", axis=axis)
        place[channel]["scale"] = {"domain": names}
    is_upright = few and max(map(len, names)) <= 2
    place["x"]["axis"] = axis | {"labelAngle": 0 if is_upright else -90}
    told = tips(
        ("true", "true class"),
        ("predicted", "predicted class"),
        ("count", "images"),
        ("share", "share of the true class", ".2%"),
    )
    opacity = quantity("share", None, type="sqrt", domain=[0, 1], range=[0.03, 1])
    cell = place | {"opacity": opacity | {"legend": None}, "tooltip": told}
    layers = [layer("rect", cell, color="var(--heat)")]
    if few:
        size = 12 if len(names) <= 10 and counts.max() < 10_000 else 9
        text = place | {"text": {"field": "count"}, "tooltip": told}
        layers.append(layer("text", text, fontSize=size))
    return layered(values, layers, max(220, len(names) * (34 if few else 9)))


def reliability(bins: list[Spec]) -> Spec:
    """Draw accuracy, its gap to confidence, and the number of images of each bin.

    Args:
      bins: as evaluation.json has them (Guo et al. 2017); empty ones are left out.
    """
    values = [b for b in bins if b["count"]]
    limits = {"axis": {"format": ".0%", "tickCount": 6}}
    title = "confidence (probability of the predicted class)"
    x = quantity("confidence", title, domain=[0, 1]) | limits
    y = quantity("accuracy", "accuracy", domain=[0, 1]) | limits
    told = tips(
        ("count", "images", ","),
        ("confidence", "mean confidence", ".2%"),
        ("accuracy", "accuracy", ".2%"),
    )
    bar = {"x": x | {"field": "low"}, "x2": {"field": "high"}, "tooltip": told}
    gap = {"x": x, "y": y, "y2": {"field": "confidence"}, "tooltip": told}
    ends = [{"confidence": end, "accuracy": end} for end in (0, 1)]
    middle = {"calculate": "(datum.low + datum.high) / 2", "as": "middle"}
    count = {"x": x | {"field": "middle"}, "y": {"value": -6}}
    count["text"] = {"field": "count", "type": "quantitative", "format": ",.4~s"}
    look = {"color": "var(--muted)", "strokeDash": [4, 3]}
    layers = [
        layer(
            "rect",
            bar | {"y": y, "y2": {"datum": 0}},
            color="var(--series0)",
            opacity=0.75,
        ),
        layer("line", {"x": x, "y": y}, ends, **look),
        layer("rule", gap, color="var(--series1)", strokeWidth=3),
        layer("text", count, fontSize=10) | {"transform": [middle]},
    ]
    return layered(values, layers, 280)


def pictures(values: list[Spec]) -> Spec:
    """Draw pictures in rows of four, each above its caption of three lines.

    Args:
      values: each {uri, id, true, predicted, confidence}, texts.
    """
    values = [
        value
        | {"column": i % 4, "row": i // 4}
        | {"text": f"{value['true']}\nas {value['predicted']}\n{value['confidence']}"}
        for i, value in enumerate(values)
    ]
    place = {"x": category("column", None, axis=None, scale={"domain": [0, 1, 2, 3]})}
    place["y"] = category("row", None, axis=None)
    place["tooltip"] = tips(
        ("id", "test image"),
        ("true", "true class"),
        ("predicted", "predicted class"),
        ("confidence", "confidence"),
    )
    look = {"width": 80, "height": 80, "yOffset": -26}
    layers = [
        layer("image", place | {"url": {"field": "uri"}}, **look),
        layer("text", place | {"text": {"field": "text"}}, lineBreak="\n", dy=24),
    ]
    return layered(values, layers, 150 * (1 + values[-1]["row"]))


def band_of(curves: list[list[Spec]], key: str, factor: float = 1) -> Series:
    """Return mean, lowest and highest over the runs at each epoch that any has.

    Args:
      curves: the rows of each run.
      key: of a row; missing and non-finite values are left out.
      factor: of the values.
    """
    found: dict[int, list[float]] = {}
    for row in itertools.chain(*curves):
        value = row.get(key)
        if value is not None and math.isfinite(value):
            found.setdefault(row["epoch"], []).append(factor * value)
    return [
        (epoch, sum(ys) / len(ys), min(ys), max(ys))
        for epoch, ys in sorted(found.items())
    ]


def layered(values: list[Spec], layers: list[Spec], height: float) -> Spec:
    """Return a chart of layers over common values, as wide as its container."""
    spec: Spec = {"width": "container", "height": height, "layer": layers}
    return spec | {"data": {"values": values}}


def layer(
    mark: str, encoding: Spec, values: list[Spec] | None = None, **look: Any
) -> Spec:
    """Return one layer: a mark, its look, and its own values where it has any."""
    data = {} if values is None else {"data": {"values": values}}
    return data | {"mark": {"type": mark} | look, "encoding": encoding}


def quantity(field: str, title: str | None, **scale: Any) -> Spec:
    """Return a quantitative encoding."""
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def category(field: str, order: list | None, **more: Any) -> Spec:
    """Return a nominal encoding without a title, its values in an order."""
    return {"field": field, "type": "nominal", "sort": order, "title": None} | more


def tips(*entries: tuple[str, ...]) -> list[Spec]:
    """Return a tooltip of (field, title) and (field, title, number format) entries."""
    # Without a type and a format, the nearest point of a selection has no value.
    return [
        {"field": field, "title": title, "format": form[0] if form else ""}
        | {"type": "quantitative" if form else "nominal"}
        for field, title, *form in entries
    ]


def scale_by(
    field: str, names: Sequence[str], choices: Sequence[Any], shown: Iterable[str]
) -> Spec:
    """Return an encoding that gives each name one look, the same in all charts."""
    scale = {
        "domain": names,
        "range": [c for c, _ in zip(itertools.cycle(choices), names)],
    }
    legend = {"values": list(shown)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def _looks(values, names):
    """Return the color and the shape of each variant that has a value."""
    shown = [n for n in names if any(value["variant"] == n for value in values)]
    return [scale_by("variant", names, looks, shown) for looks in (COLORS, _SHAPES)]


def _choose_scale(values):
    # One wild epoch would flatten all the others.
    if values and min(values) > 0 and max(values) > 10 * float(np.median(values)):
        return {"type": "log", "nice": False}
    return {"zero": False}


def _log_axis(values):
    """Return an axis with ticks at 1 and 3 times the powers of ten."""
    low, high = min(v["low"] for v in values), max(v["high"] for v in values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 3)]
    return {"values": [t for t in ticks if low <= t <= high], "format": "~g"}


def _reading_rule(x, rows, told):
    """Return a rule that follows the pointer and shows the values of every series."""
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout"}
    hover |= {"nearest": True, "encodings": ["x"]}
    opacity = {"condition": {"param": "hover", "empty": False, "value": 0.6}}
    encoding = {"x": x, "opacity": opacity | {"value": 0}}
    encoding["tooltip"] = tips(("x", "epoch", "d"), *told)
    rule = layer("rule", encoding, rows, color="var(--muted)", strokeWidth=1.5)
    return rule | {"params": [{"name": "hover", "select": hover}]}
