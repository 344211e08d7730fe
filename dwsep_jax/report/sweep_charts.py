"""The charts of a sweep, in Vega-Lite.

A trial is a row {number, state, accuracy, settings, is_winner}, its accuracy on
validation in per cent, and a column for each axis. `scope` is the axis of the
accuracies that are shown: those below it are drawn at its lower end.
"""

from collections.abc import Sequence

from dwsep_jax.report.charts import (
    Spec,
    category,
    layer,
    layered,
    quantity,
    scale_by,
    tips,
)
from dwsep_jax.report.trials import Axis

_STATES = ("complete", "pruned", "running")
_COLORS = ("var(--series0)", "var(--series4)", "var(--series3)")
_SHAPES = ("circle", "triangle-down", "diamond")
_WINNER = "var(--series1)"
_TOLD = tips(
    ("number", "trial", "d"),
    ("state", "state"),
    ("accuracy", "accuracy (%)", ".2f"),
    ("settings", "settings"),
)
_ROW_HEIGHT = 62


def history(trials: list[Spec], scope: Axis) -> Spec:
    """Draw the accuracy of each trial, and the best complete one so far."""
    x = quantity("number", "trial", zero=False, nice=False, padding=10)
    x["axis"] = {"format": "d", "tickMinStep": 1, "grid": False}
    complete = "datum.state === 'complete' ? datum.accuracy : null"
    best = {"op": "max", "field": "complete", "as": "best"}
    look = {"interpolate": "step-after", "strokeWidth": 2, "color": "var(--text)"}
    steps = layer("line", {"x": x, "y": _encode_accuracy(scope, "best")}, **look)
    steps["transform"] = [
        {"calculate": complete, "as": "complete"},
        {"window": [best], "sort": [{"field": "number"}]},
        {"filter": "isValid(datum.best)"},
    ]
    return layered(trials, [steps, *_draw_points(trials, scope, x=x)], 260)


def by_setting(trials: list[Spec], axis: Axis, scope: Axis) -> Spec:
    """Draw the accuracy of each trial by its setting of an axis."""
    if axis.choices:
        x = category(axis.name, axis.ticks, title=axis.label, axis={"labelAngle": 0})
        x["scale"] = {"domain": axis.ticks, "paddingInner": 0.4}
        # Side by side in the order of their numbers, not on top of each other.
        spread = {"xOffset": quantity("number", None, zero=False, nice=False)}
    else:
        scale = {"type": "log" if axis.log else "linear", "nice": False, "padding": 10}
        x = quantity(axis.name, axis.label, domain=[axis.low, axis.high], **scale)
        x["axis"] = {"values": axis.ticks, "grid": False}
        x["axis"]["labelExpr"] = "'' + datum.value"
        spread = {}
    return layered(trials, _draw_points(trials, scope, x=x, **spread), 190)


def importance(shares: list[Spec]) -> Spec:
    """Draw the share of each setting, {name, share in per cent, text}, in order."""
    # Room for the text.
    longest = 1.15 * max(1, *(value["share"] for value in shares))
    bar = {"x": quantity("share", "share (%)", domain=[0, longest])}
    bar |= {"y": category("name", None)}
    told = {"tooltip": tips(("name", "setting"), ("text", "share"))}
    text = bar | {"text": {"field": "text"}}
    layers = [
        layer("bar", bar | told, color="var(--series0)"),
        layer("text", text, align="left", dx=5),
    ]
    return layered(shares, layers, 28 * len(shares))


def finals(means: list[Spec], seeds: list[Spec]) -> Spec:
    """Draw the test accuracy of each final: mean, 95 % interval and seeds.

    Args:
      means: each {name, mean, low, high, interval, is_winner}, in per cent; low and
        high are None without an interval.
      seeds: each {name, seed, accuracy}.
    """
    x = quantity("mean", "test accuracy (%)", zero=False, nice=False, padding=16)
    x["axis"] = {"tickCount": 5}
    y = category("name", None, axis={"labelLimit": 190, "grid": True})
    color = {"condition": {"test": "datum.is_winner", "value": _WINNER}}
    place = {"x": x, "y": y, "color": color | {"value": "var(--series0)"}}
    told = tips(("name", "trial"), ("mean", "mean (%)", ".2f"))
    told += tips(("interval", "95 % interval"))
    ends = place | {"x": x | {"field": "low"}, "x2": {"field": "high"}}
    each = {"x": x | {"field": "accuracy"}, "y": y}
    each["tooltip"] = tips(("seed", "seed", "d"), ("accuracy", "accuracy (%)", ".2f"))
    known = [mean for mean in means if mean["low"] is not None]
    point = {"filled": True, "size": 120, "opacity": 1}
    tick = {"color": "var(--text)", "size": 12, "thickness": 1.5}
    layers = [
        layer("rule", ends, known, strokeWidth=2.5),
        layer("point", place | {"tooltip": told}, **point),
        layer("tick", each, seeds, **tick),
    ]
    return layered(means, layers, 34 * len(means))


def parallel(trials: list[Spec], axes: Sequence[Axis]) -> Spec:
    """Draw each trial as a line across axes, which lie below each other to fit a phone.

    Args:
      trials: the rows.
      axes: from top to bottom, those of the space and the scope.
    """
    places = [
        trial | {"row": axis.label, "i": i, "x": min(1, max(0, axis.place(setting)))}
        for trial in sorted(trials, key=lambda trial: trial["accuracy"])
        for i, axis in enumerate(axes)
        if (setting := trial[axis.name]) is not None
    ]
    ticks = [
        {
            "row": axis.label,
            "x": axis.place(t),
            "text": t if axis.choices else f"{t:.4g}",
        }
        for axis in axes
        for t in axis.ticks
    ]
    y = category("row", [axis.label for axis in axes])
    # A field and its unit are two lines.
    y["axis"] = {"labelExpr": "split(datum.label, ', ')", "labelPadding": 8}
    y["axis"] |= {"domain": False, "ticks": False, "labelLimit": 120}
    x = quantity("x", None, domain=[0, 1], padding=16) | {"axis": None}
    place = {"x": x, "y": y}
    line = place | {"order": {"field": "i"}, "detail": {"field": "number"}}
    ramp = [f"var(--ramp{i})" for i in range(4)]
    good = quantity("accuracy", "validation accuracy (%)", type="quantile", range=ramp)
    good["legend"] = {"title": good["title"], "format": ".1f"}
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout"}
    hover |= {"nearest": True, "fields": ["number"]}
    lines = [
        ("datum.state !== 'complete'", {}, ("var(--muted)", 1, [2, 3])),
        ("datum.state === 'complete'", {"color": good}, (None, 1.8, [])),
        ("datum.is_winner", {}, (_WINNER, 3.5, [])),
        ({"param": "trial", "empty": False}, {}, ("var(--text)", 4, [])),
    ]
    dots = place | {"tooltip": _TOLD}
    text = place | {"text": {"field": "text", "type": "nominal"}}
    words = {"dy": 9, "fontSize": 11, "baseline": "top"}
    look = {"color": "var(--line)", "strokeWidth": 2}
    layers = [
        layer("rule", {"y": y, "x": x | {"datum": 0}, "x2": {"datum": 1}}, **look),
        *(
            layer("line", line | more, color=color, strokeWidth=width, strokeDash=dash)
            | {"transform": [{"filter": kept}]}
            for kept, more, (color, width, dash) in lines
        ),
        layer("point", dots, filled=True, size=26, color="var(--muted)")
        | {"params": [{"name": "trial", "select": hover}]},
        layer("text", text, ticks, stroke="var(--page)", strokeWidth=4, **words),
        layer("text", text, ticks, color="var(--muted)", **words),
    ]
    return layered(places, layers, _ROW_HEIGHT * len(axes))


def _encode_accuracy(scope, field="accuracy"):
    scale = {"domain": [scope.low, scope.high], "clamp": True, "nice": False}
    return quantity(field, "validation accuracy (%)", padding=10, **scale)


def _draw_points(trials, scope, **place):
    """Return the layers of the trials as points, and of the ring around the winner."""
    shown = [state for state in _STATES if any(t["state"] == state for t in trials)]
    place["y"] = _encode_accuracy(scope)
    point = place | {"tooltip": _TOLD}
    point["color"] = scale_by("state", _STATES, _COLORS, shown)
    point["shape"] = scale_by("state", _STATES, _SHAPES, shown)
    ring = layer("point", place, size=220, strokeWidth=2.5, color=_WINNER)
    return [
        layer("point", point, filled=True, size=60, opacity=0.85),
        ring | {"transform": [{"filter": "datum.is_winner"}]},
    ]
