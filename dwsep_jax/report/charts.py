"""The specifications of the charts, in Vega-Lite; colours are those of the theme."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from dwsep_jax.report.figures import MAX_CLASSES_WITH_COUNTS, MAX_EPOCHS_WITH_MARKERS

Spec = dict[str, Any]
# x, then mean, lowest and highest of y.
Series = list[tuple[float, float, float, float]]

_COLORS = [f"var(--series{i})" for i in range(6)]
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4], [4, 6]]
MAX_BARS = 30


def lines(series: dict[str, Series], names: list[str], y_title: str, form: str) -> Spec:
    """Draw curves over epochs, with a band from lowest to highest, and a reading rule.

    Args:
      series: by label.
      names: all labels, at most six, in the order of the colours.
      y_title: of the axis.
      form: of the numbers, in d3's notation.
    """
    values = [
        {"x": x, "mean": mean, "low": low, "high": high, "series": name}
        for name, rows in series.items()
        for x, mean, low, high in rows
    ]
    by_x: dict[float, dict[str, float]] = {}
    for value in values:
        field = f"v{names.index(value['series'])}"
        by_x.setdefault(value["x"], {"x": value["x"]})[field] = value["mean"]
    x = {"field": "x", "type": "quantitative", "title": "epoch"}
    x |= {"scale": {"nice": False, "zero": False}}
    x["axis"] = {"format": "d", "grid": False, "labelFlush": False}
    are_few = len(by_x) <= MAX_EPOCHS_WITH_MARKERS
    if are_few:  # Else ticks might be between them, and markers cut in half.
        x["axis"]["values"] = sorted(by_x)
        x["scale"]["padding"] = 8
    scale = _choose_scale([value["mean"] for value in values])
    suffix = " (log scale)" if scale["type"] == "log" else ""
    y = {"type": "quantitative", "title": y_title + suffix, "scale": scale}
    band = {"mark": {"type": "area", "opacity": 0.15, "clip": True}}
    band["encoding"] = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}
    color = color_by("series", names, series)
    # The legend shows the lines, and not the pale bands.
    color["legend"] |= {"symbolType": "stroke", "symbolSize": 150, "symbolOpacity": 1}
    color["legend"] |= {"symbolFillColor": "transparent"}
    band["encoding"]["color"] = color
    curve: Spec = {"mark": {"type": "line", "strokeWidth": 2, "clip": True}}
    if are_few:
        curve["mark"]["point"] = {"size": 40}
    curve["encoding"] = {"x": x, "y": y | {"field": "mean"}}
    curve["encoding"]["color"] = color
    curve["encoding"]["strokeDash"] = scale_by("series", names, _DASHES, series)
    layers = [curve, _reading_rule(x, by_x, names, form)]
    if any(value["low"] != value["high"] for value in values):
        layers.insert(0, band)
    return layered(values, layers, 260)


def accuracy_against(
    points: list[Spec], names: list[str], front: list[str], x_title: str
) -> Spec:
    """Draw accuracy (%) against a cost, with error bars and the Pareto front.

    Args:
      points: each {variant, cost, shown (the cost as text), accuracy, low, high}, the
        last three in per cent; low and high None without an interval.
      names: all variants, in the order of the colours.
      front: the variants that no other one beats, cheapest first.
      x_title: of the axis.
    """
    shown = [point["variant"] for point in points]
    x = {"field": "cost", "type": "quantitative", "title": x_title}
    x |= {"axis": {"format": "~s", "tickCount": 4}, "scale": {"zero": True, "nice": 4}}
    y = {"field": "accuracy", "type": "quantitative", "title": "test accuracy (%)"}
    y["scale"] = {"zero": False, "nice": True}
    bars = [point for point in points if point["low"] is not None]
    steps = [point for name in front for point in points if point["variant"] == name]
    tooltip = [
        {"field": "variant", "title": "variant"},
        {"field": "accuracy", "title": "accuracy (%)", "format": ".2f"},
        {"field": "interval", "title": "95 % interval"},
        {"field": "shown", "title": x_title},
    ]
    step_mark = {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5}
    step_mark |= {"color": "var(--muted)", "strokeDash": [4, 3]}
    color = color_by("variant", names, shown)
    layers = [
        {"data": {"values": steps}, "mark": step_mark, "encoding": {"x": x, "y": y}},
        {
            "data": {"values": bars},
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}
            | {"color": color},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": color, "tooltip": tooltip}
            | {"shape": scale_by("variant", names, _SHAPES, shown)},
        },
    ]
    return layered(points, layers, 240)


def ratios(values: list[Spec], names: list[str], measures: list[str]) -> Spec:
    """Draw shares of the baseline on a logarithmic axis: on paper, and by the clock.

    Args:
      values: each {variant, measure, ratio, shown}.
      names: all variants, in the order of the colours.
      measures: from top to bottom.
    """
    ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    largest = max([1.0, *(value["ratio"] for value in values)])
    smallest = min([1.0, *(value["ratio"] for value in values)])
    domain = [min(0.9 * smallest, 0.5), max(1.1 * largest, 1.25)]
    x = {"field": "ratio", "type": "quantitative"}
    x["title"] = "share of the baseline's"
    x["scale"] = {"type": "log", "domain": domain, "nice": False}
    x["axis"] = {"values": ticks, "format": "~r"}
    y = {"field": "measure", "type": "nominal", "sort": measures, "title": None}
    y["axis"] = {"grid": True, "labelLimit": 170}
    tooltip = [
        {"field": "variant", "title": "variant"},
        {"field": "measure", "title": "measure"},
        {"field": "ratio", "title": "share of the baseline's", "format": ".3f"},
        {"field": "shown", "title": "value"},
    ]
    one = {"mark": {"type": "rule", "color": "var(--text)", "strokeWidth": 1.5}}
    one |= {"data": {"values": [{"ratio": 1}]}, "encoding": {"x": x}}
    mark = {"type": "point", "filled": True, "size": 100, "opacity": 0.9}
    dots = {"mark": mark, "encoding": {"x": x, "y": y, "tooltip": tooltip}}
    shown = [n for n in names if any(value["variant"] == n for value in values)]
    color = color_by("variant", names, shown)
    # Long labels leave no room for two beside each other on a phone.
    color["legend"] |= {"columns": 1}
    dots["encoding"] |= {"color": color}
    dots["encoding"]["shape"] = scale_by("variant", names, _SHAPES, shown)
    return layered(values, [one, dots], 34 * len(measures))


def bars(values: list[Spec], names: list[str], parts: list[str], x_title: str) -> Spec:
    """Draw one bar for each variant in each part.

    Args:
      values: each {variant, part, value, shown}.
      names: all variants, in the order of the colours.
      parts: from top to bottom.
      x_title: of the axis.
    """
    x = {"field": "value", "type": "quantitative", "title": x_title}
    x["axis"] = {"format": "~s", "tickCount": 5}
    y = {"field": "part", "type": "nominal", "sort": parts, "title": None}
    shown = [n for n in names if any(value["variant"] == n for value in values)]
    encoding = {
        "x": x,
        "y": y,
        "yOffset": {"field": "variant", "sort": shown},
        "color": color_by("variant", names, shown),
        "tooltip": [
            {"field": "variant", "title": "variant"},
            {"field": "part", "title": "part"},
            {"field": "shown", "title": x_title},
        ],
    }
    layer = {"mark": {"type": "bar"}, "encoding": encoding}
    return layered(values, [layer], len(parts) * (11 * len(shown) + 6))


def differences(values: list[Spec], x_title: str) -> Spec:
    """Draw a bar to the left (a loss) or the right (a gain) for each class.

    Args:
      values: each {name, difference}, from top to bottom.
      x_title: of the axis.
    """
    x = {"field": "difference", "type": "quantitative", "title": x_title}
    x["axis"] = {"tickCount": 6}
    sort = [value["name"] for value in values]
    y = {"field": "name", "type": "nominal", "sort": sort, "title": None}
    color = {"condition": {"test": "datum.difference < 0", "value": "var(--bad)"}}
    color["value"] = "var(--good)"
    tooltip = [{"field": "name", "title": "class"}]
    tooltip.append({"field": "difference", "title": x_title, "format": "+.2f"})
    encoding = {"x": x, "y": y, "color": color, "tooltip": tooltip}
    zero = {"mark": {"type": "rule", "color": "var(--text)"}}
    zero["encoding"] = {"x": {"datum": 0}}
    height = 20 * len(values)
    return layered(values, [{"mark": "bar", "encoding": encoding}, zero], height)


def confusion(names: list[str], matrix: list[list[int]]) -> Spec:
    """Draw shares of the true class, on a square-root scale; counts where they fit."""
    counts = np.array(matrix)
    # A class without examples has a row of zeros, not of 0/0.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= MAX_CLASSES_WITH_COUNTS
    values = [
        {"true": names[i], "predicted": names[j], "count": int(counts[i, j])}
        | {"share": round(float(shares[i, j]), 6)}
        for i in range(len(names))
        for j in range(len(names))
        if few or counts[i, j]
    ]
    axis = {"grid": False, "ticks": False, "domain": False, "labelOverlap": not few}
    axis |= {} if few else {"labelFontSize": 9}
    axes = {}
    for channel, field in (("x", "predicted"), ("y", "true")):
        axes[channel] = {"field": field, "type": "nominal", "axis": axis}
        axes[channel] |= {"title": f"{field} class", "scale": {"domain": names}}
    long_names = max(map(len, names)) > 2
    axes["x"]["axis"] = axis | {"labelAngle": -90 if not few or long_names else 0}
    opacity = {"field": "share", "type": "quantitative", "legend": None}
    opacity["scale"] = {"type": "sqrt", "domain": [0, 1], "range": [0.03, 1]}
    tooltip = [
        {"field": "true", "title": "true class"},
        {"field": "predicted", "title": "predicted class"},
        {"field": "count", "title": "images"},
        {"field": "share", "title": "share of the true class", "format": ".2%"},
    ]
    cells = {"mark": {"type": "rect", "color": "var(--heat)"}}
    cells["encoding"] = axes | {"opacity": opacity, "tooltip": tooltip}
    layers = [cells]
    if few:
        size = 12 if len(names) <= 10 and counts.max() < 10_000 else 9
        text = {"mark": {"type": "text", "fontSize": size}}
        text["encoding"] = axes | {"text": {"field": "count"}, "tooltip": tooltip}
        layers.append(text)
    return layered(values, layers, max(220, len(names) * (34 if few else 7)))


def reliability(bins: list[Spec]) -> Spec:
    """Draw accuracy against confidence, bin by bin, beside perfect calibration."""
    values = [b for b in bins if b["count"]]
    limits = {"scale": {"domain": [0, 1]}, "axis": {"format": ".0%", "tickCount": 6}}
    x = {"type": "quantitative", "title": "confidence (probability of the prediction)"}
    y = {"type": "quantitative", "title": "accuracy"} | limits
    x |= limits
    tooltip = [
        {"field": "count", "title": "images", "format": ","},
        {"field": "confidence", "title": "mean confidence", "format": ".2%"},
        {"field": "accuracy", "title": "accuracy", "format": ".2%"},
    ]
    bar = {"mark": {"type": "rect", "color": "var(--series0)", "opacity": 0.75}}
    bar["encoding"] = {"x": x | {"field": "low"}, "x2": {"field": "high"}}
    bar["encoding"] |= {"y": y | {"field": "accuracy"}, "y2": {"datum": 0}}
    bar["encoding"] |= {"tooltip": tooltip}
    gap = {"mark": {"type": "rule", "color": "var(--series1)", "strokeWidth": 3}}
    gap["encoding"] = {"x": x | {"field": "confidence"}, "y": y | {"field": "accuracy"}}
    gap["encoding"] |= {"y2": {"field": "confidence"}, "tooltip": tooltip}
    ends = {"values": [{"confidence": 0, "accuracy": 0}]}
    ends["values"].append({"confidence": 1, "accuracy": 1})
    mark = {"type": "line", "color": "var(--muted)", "strokeDash": [4, 3]}
    line = {"data": ends, "mark": mark}
    line["encoding"] = {
        "x": x | {"field": "confidence"},
        "y": y | {"field": "accuracy"},
    }
    return layered(values, [bar, line, gap], 280)


def band_of(curves: list[list[Spec]], read: Callable[[Spec], float | None]) -> Series:
    """Return mean, lowest and highest over the runs at each epoch that any has.

    Args:
      curves: the rows of each run.
      read: what a row shows; None is left out.
    """
    found: dict[int, list[float]] = {}
    for rows in curves:
        for row in rows:
            value = read(row)
            if value is not None and math.isfinite(value):
                found.setdefault(row["epoch"], []).append(value)
    return [
        (epoch, sum(ys) / len(ys), min(ys), max(ys))
        for epoch, ys in sorted(found.items())
    ]


def layered(values: list[Spec], layers: list[Spec], height: float) -> Spec:
    """Return a chart of layers over common values, as wide as its place."""
    spec: Spec = {"width": "container", "height": height, "layer": layers}
    return spec | {"data": {"values": values}}


def scale_by(
    field: str, names: Sequence[str], choices: Sequence[Any], shown: Iterable[str]
) -> Spec:
    """Return an encoding that gives each name one look, the same in all charts."""
    scale = {"domain": names, "range": [c for c, _ in zip(cycle(choices), names)]}
    legend = {"values": list(shown)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def color_by(field: str, names: Sequence[str], shown: Iterable[str]) -> Spec:
    """Return an encoding that gives each name its colour of the series."""
    return scale_by(field, names, _COLORS, shown)


def _choose_scale(values):
    # One epoch gone wild would flatten all the others.
    if values and min(values) > 0 and max(values) > 10 * float(np.median(values)):
        return {"type": "log", "nice": False}
    return {"type": "linear", "zero": False}


def _reading_rule(x, by_x, names, form):
    """Return the rule that follows the pointer and tells every series' value."""
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout"}
    hover |= {"nearest": True, "encodings": ["x"]}
    # Without a format, Vega-Lite finds no value of the point that is nearest.
    tooltip = [{"field": "x", "title": "epoch", "type": "quantitative", "format": "d"}]
    shown = set().union(*by_x.values())
    for i, name in enumerate(names):
        if f"v{i}" not in shown:
            continue
        tooltip.append({"field": f"v{i}", "title": name, "format": form})
        tooltip[-1]["type"] = "quantitative"
    opacity = {"condition": {"param": "hover", "empty": False, "value": 0.6}}
    return {
        "data": {"values": list(by_x.values())},
        "params": [{"name": "hover", "select": hover}],
        "mark": {"type": "rule", "color": "var(--muted)", "strokeWidth": 1.5},
        "encoding": {"x": x, "opacity": opacity | {"value": 0}, "tooltip": tooltip},
    }
