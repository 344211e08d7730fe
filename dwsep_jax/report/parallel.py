"""The chart of all trials over all axes: parallel coordinates, in Vega-Lite.

The axes lie below each other and not side by side, so that they fit a phone.
"""

import math
from collections.abc import Sequence

import numpy as np

from dwsep_jax.report.charts import Spec, layered, scale_by
from dwsep_jax.report.sweep_charts import list_ticks, list_tooltip, span
from dwsep_jax.report.trials import Axis, Trial, read_number

# How a trial is drawn, from bad to good: name, colour, dash and width.
_CLASSES = {
    "pruned": ("muted", [2, 3], 1.0),
    "lowest quarter": ("ramp0", [1, 0], 1.2),
    "second quarter": ("ramp1", [1, 0], 1.5),
    "third quarter": ("ramp2", [1, 0], 1.8),
    "best quarter": ("ramp3", [1, 0], 2.2),
    "the winner": ("series1", [1, 0], 3.5),
}
_ROW_HEIGHT = 62
_VALUE = Axis("value", "validation, accuracy (%)", "float")


def parallel(pairs: Sequence[tuple[Trial, Spec]], axes: Sequence[Axis]) -> Spec:
    """Draw each trial as a line over all axes and the validation accuracy.

    Args:
      pairs: the trials that have a value, and {number, state, value, y, settings,
        is_winner} of each, as `sweep_charts.history` takes it.
      axes: of the space, from top to bottom.
    """
    rows, ticks, values = [], [], []
    quartiles = np.quantile(
        [p["y"] for _, p in pairs if p["state"] == "complete"] or [0.0],
        [0.25, 0.5, 0.75],
    )
    # The best ones last: over the others.
    pairs = sorted(pairs, key=lambda pair: (pair[1]["is_winner"], pair[1]["y"]))
    for i, axis in enumerate([*axes, _VALUE]):
        settings = [_read(axis, trial, point) for trial, point in pairs]
        ends, texts = _scale(axis, settings)
        label = axis.field if axis is _VALUE else axis.label
        rows.append({"row": label, "low": 0, "high": 1})
        for setting, text in texts.items():
            ticks.append({"row": label, "x": _place(axis, setting, ends), "text": text})
        for (_, point), setting in zip(pairs, settings, strict=True):
            x = _place(axis, setting, ends)
            if x is not None:
                value = {"row": label, "i": i, "x": round(x, 4)}
                value["class"] = name = _classify(point, quartiles)
                value["width"] = _CLASSES[name][2]
                values.append(point | value)
    return _draw(values, rows, ticks)


def _read(axis, trial, point):
    return point["y"] if axis is _VALUE else trial.settings[axis.name]


def _scale(axis, settings):
    """Return the ends of an axis, and the texts of its ticks by setting."""
    if axis.kind == "choice":
        return None, {choice: choice for choice in axis.choices}
    numbers = [read_number(setting) for setting in settings]
    ends = span(axis, [number for number in numbers if number is not None])
    return ends, {tick: f"{tick:g}" for tick in list_ticks(*ends, axis.log)}


def _place(axis, setting, ends):
    """Return where a setting lies on an axis, from 0 to 1; None if it has none."""
    if axis.kind == "choice":
        choices = axis.choices
        known = setting in choices
        return (choices.index(setting) + 0.5) / len(choices) if known else None
    value, (low, high) = read_number(setting), ends
    if value is None or not low < high:
        return None if value is None else 0.5
    if axis.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _classify(point, quartiles):
    if point["is_winner"]:
        return "the winner"
    if point["state"] != "complete":
        return "pruned"
    return list(_CLASSES)[1 + int(np.searchsorted(quartiles, point["y"], "right"))]


def _draw(values, rows, ticks):
    x = {"field": "x", "type": "quantitative", "axis": None}
    x["scale"] = {"domain": [0, 1], "padding": 16}
    sort = [row["row"] for row in rows]
    y = {"field": "row", "type": "nominal", "sort": sort, "title": None}
    # A field, and what it is in, are two lines.
    y["axis"] = {"domain": False, "ticks": False, "labelLimit": 120, "labelPadding": 8}
    y["axis"]["labelExpr"] = "split(datum.label, ', ')"
    place = {"x": x, "y": y}
    line = place | {"order": {"field": "i"}, "detail": {"field": "number"}}
    shown = [name for name in _CLASSES if any(v["class"] == name for v in values)]
    colors, dashes, _ = zip(*_CLASSES.values(), strict=True)
    colors = [f"var(--{color})" for color in colors]
    color = scale_by("class", list(_CLASSES), colors, shown[::-1])
    color["legend"] |= {"symbolType": "stroke", "symbolSize": 150}
    dash = scale_by("class", list(_CLASSES), dashes, shown)
    looks = {"color": color, "strokeDash": dash | {"legend": color["legend"]}}
    looks["strokeWidth"] = {"field": "width", "type": "quantitative", "scale": None}
    looks["strokeWidth"]["legend"] = None
    rule = {"type": "rule", "color": "var(--line)", "strokeWidth": 2}
    ends = {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}}
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout"}
    hover |= {"nearest": True, "fields": ["number"]}
    over = {"type": "line", "strokeWidth": 4, "color": "var(--text)"}
    dots = {"type": "point", "filled": True, "size": 26, "opacity": 0.9}
    layers = [
        {"data": {"values": rows}, "mark": rule, "encoding": ends},
        {"mark": {"type": "line", "opacity": 0.9}, "encoding": line | looks},
        # That under the pointer once more, over all others.
        {
            "mark": over,
            "transform": [{"filter": {"param": "trial", "empty": False}}],
            "encoding": line,
        },
        {
            "mark": dots,
            "params": [{"name": "trial", "select": hover}],
            "encoding": place | {"color": color, "tooltip": list_tooltip()},
        },
        *_write(ticks, place),
    ]
    return layered(values, layers, _ROW_HEIGHT * len(rows))


def _write(ticks, place):
    """Return the layers of the ticks' texts, legible over the lines."""
    words = {"type": "text", "dy": 9, "fontSize": 11, "baseline": "top"}
    halo = words | {"stroke": "var(--page)", "strokeWidth": 4}
    encoding = place | {"text": {"field": "text"}}
    return [
        {"data": {"values": ticks}, "mark": mark, "encoding": encoding}
        for mark in (halo, words | {"color": "var(--muted)"})
    ]
