"""The charts of a sweep, in Vega-Lite.

A trial is a row {number, state, accuracy, settings, is_winner}, its accuracy on
validation in per cent, and a column for each axis. `scope` is the range of accuracies
that is shown: those below it are drawn at its lower end.
"""

import math
from itertools import accumulate

import numpy as np

from dwsep_jax.report.charts import (
    Spec,
    category,
    layer,
    layered,
    quantity,
    scale_by,
    tips,
)
from dwsep_jax.space import Axis

_STATES = ("complete", "pruned", "running")
_COLORS = ("var(--series0)", "var(--series4)", "var(--series3)")
_SHAPES = ("circle", "triangle-down", "diamond")
Scope = tuple[float, float]


def find_scope(trials: list[Spec]) -> Scope:
    """Return the scope in which a few hopeless trials do not flatten all the others."""
    complete = [t["accuracy"] for t in trials if t["state"] == "complete"]
    values = np.array(complete or [t["accuracy"] for t in trials])
    top, reach = values.max(), 3 * max(values.max() - np.median(values), 0.5)
    return float(max(values.min(), top - reach)) - 1e-3, float(top)


def history(trials: list[Spec], scope: Scope) -> Spec:
    """Draw the accuracy of each trial, and the best complete one so far."""
    x = quantity("number", "trial", zero=False, nice=False, padding=10)
    x["axis"] = {"format": "d", "tickMinStep": 1, "grid": False}
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = accumulate((trial["accuracy"] for trial in complete), max)
    steps = [
        {"number": trial["number"], "accuracy": accuracy}
        for trial, accuracy in zip(complete, best, strict=True)
    ]
    look = {"interpolate": "step-after", "strokeWidth": 2, "color": "var(--text)"}
    line = layer("line", {"x": x, "y": _encode_accuracy(scope)}, steps, **look)
    return layered(trials, [line, *_draw_points(trials, scope, x=x)], 260)


def by_setting(trials: list[Spec], axis: Axis, label: str, scope: Scope) -> Spec:
    """Draw the accuracy of each trial by its setting of an axis."""
    if axis.choices:
        choices = list(axis.choices)
        x = category(axis.name, choices, title=label, axis={"labelAngle": 0})
        x["scale"] = {"domain": choices, "paddingInner": 0.4}
        # Side by side in the order of their numbers, not on top of each other.
        spread = {"xOffset": quantity("number", None, zero=False, nice=False)}
    else:
        low, high = axis.low, axis.high
        middle = math.sqrt(low * high) if axis.log else (low + high) / 2
        scale = {"type": "log" if axis.log else "linear", "nice": False, "padding": 10}
        x = quantity(axis.name, label, domain=[low, high], **scale)
        x["axis"] = {"values": [low, float(f"{middle:.2g}"), high], "grid": False}
        x["axis"]["labelExpr"] = "'' + datum.value"
        spread = {}
    return layered(trials, _draw_points(trials, scope, x=x, **spread), 190)


def _encode_accuracy(scope):
    scale = {"domain": list(scope), "clamp": True, "nice": False, "padding": 10}
    return quantity("accuracy", "validation accuracy (%)", **scale)


def _draw_points(trials, scope, **place):
    """Return the layers of the trials as points, and of the ring around the winner."""
    shown = [state for state in _STATES if any(t["state"] == state for t in trials)]
    place["y"] = _encode_accuracy(scope)
    point = place | {
        "color": scale_by("state", _STATES, _COLORS, shown),
        "shape": scale_by("state", _STATES, _SHAPES, shown),
        "tooltip": tips(
            ("number", "trial", "d"),
            ("state", "state"),
            ("accuracy", "accuracy (%)", ".2f"),
            ("settings", "settings"),
        ),
    }
    ring = layer("point", place, size=220, strokeWidth=2.5, color="var(--series1)")
    return [
        layer("point", point, filled=True, size=60, opacity=0.85),
        ring | {"transform": [{"filter": "datum.is_winner"}]},
    ]
