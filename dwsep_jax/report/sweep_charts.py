"""The specifications of a sweep's charts, in Vega-Lite; see `charts`."""

import math
from collections.abc import Sequence

from matplotlib import ticker

from dwsep_jax.report.charts import Spec, layered, scale_by
from dwsep_jax.report.trials import Axis

_STATES = ("complete", "pruned", "running", "failed")
_STATE_COLORS = [f"var(--series{i})" for i in (0, 4, 3, 1)]
_STATE_SHAPES = ("circle", "triangle-down", "diamond", "cross")
_ACCURACY = {"field": "y", "type": "quantitative", "title": "validation accuracy (%)"}
_ACCURACY |= {"scale": {"zero": False, "nice": False, "padding": 10}}


def history(values: list[Spec], best: list[Spec]) -> Spec:
    """Draw the value of each trial by number, and the best so far.

    Args:
      values: each {number, state, y, value, settings, is_winner}; y and value in per
        cent, y not below what is to be shown.
      best: each {number, y}, in order.
    """
    x = {"field": "number", "type": "quantitative", "title": "trial"}
    x |= {"scale": {"zero": False, "nice": False, "padding": 10}}
    numbers = [value["number"] for value in values]
    ticks = {round(t) for t in list_ticks(min(numbers), max(numbers), False)}
    x["axis"] = {"values": sorted(ticks), "format": "d", "grid": False}
    y = _ACCURACY
    mark = {"type": "line", "interpolate": "step-after", "strokeWidth": 2}
    line = {"data": {"values": best}, "mark": mark | {"color": "var(--text)"}}
    line["encoding"] = {"x": x, "y": y}
    return layered(values, [line, *_points(x, y, values)], 260)


def slices(values: list[Spec], axis: Axis) -> Spec:
    """Draw the value of each trial by its setting of one axis.

    Args:
      values: as of `history`, each with x: the number, or the text of a choice.
      axis: of the space.
    """
    if axis.kind == "choice":
        x = {"field": "x", "type": "nominal", "sort": list(axis.choices)}
        x["scale"] = {"domain": list(axis.choices), "paddingInner": 0.4}
        x |= {"title": axis.label, "axis": {"labelAngle": 0}}
        # Side by side in the order of the trials, where they would lie on each other.
        offset = {"field": "number", "type": "quantitative"}
        offset["scale"] = {"zero": False, "nice": False}
        layers = _points(x, _ACCURACY, values, {"xOffset": offset})
    else:
        x = {"field": "x", "type": "quantitative", "title": axis.label}
        ends = span(axis, [value["x"] for value in values])
        scale = {"type": "log" if axis.log else "linear", "nice": False}
        x["scale"] = scale | {"domain": ends, "padding": 10}
        x["axis"] = {"values": list_ticks(*ends, axis.log)}
        x["axis"] |= {"format": "~r", "grid": False}
        layers = _points(x, _ACCURACY, values)
    return layered(values, layers, 190)


def importance(values: list[Spec]) -> Spec:
    """Draw the share (per cent) of each axis, {name, share, shown}, greatest first."""
    sort = [value["name"] for value in values]
    largest = max(value["share"] for value in values)
    x = {"field": "share", "type": "quantitative"}
    x |= {"title": "share (%)", "axis": {"tickCount": 5}}
    x["scale"] = {"domain": [0, 1.15 * max(largest, 1)], "nice": False}
    y = {"field": "name", "type": "nominal", "sort": sort, "title": None}
    tooltip = [{"field": "name", "title": "axis"}, {"field": "shown", "title": "share"}]
    bar = {"mark": {"type": "bar", "color": "var(--series0)"}}
    bar["encoding"] = {"x": x, "y": y, "tooltip": tooltip}
    text = {"mark": {"type": "text", "align": "left", "dx": 5}}
    text["encoding"] = {"x": x, "y": y, "text": {"field": "shown"}}
    return layered(values, [bar, text], 28 * len(values))


def finals(values: list[Spec], seeds: list[Spec]) -> Spec:
    """Draw the mean of each final with its interval, and its seeds.

    Args:
      values: each {name, mean, low, high, interval, is_winner}, accuracies in per cent;
        low and high are None without an interval.
      seeds: each {name, seed, accuracy}.
    """
    sort = [value["name"] for value in values]
    ends = [v[k] for v in values for k in ("low", "high", "mean") if v[k] is not None]
    ends += [seed["accuracy"] for seed in seeds]
    margin = 0.05 * (max(ends) - min(ends)) or 0.5
    # An interval may pass 100 %, an accuracy not.
    domain = [max(0.0, min(ends) - margin), min(100.5, max(ends) + margin)]
    x = {"field": "mean", "type": "quantitative", "title": "test accuracy (%)"}
    x["scale"] = {"domain": domain, "nice": False, "clamp": True, "zero": False}
    x["axis"] = {"tickCount": 5}
    y = {"field": "name", "type": "nominal", "sort": sort, "title": None}
    y["axis"] = {"labelLimit": 190, "grid": True}
    color = {"condition": {"test": "datum.is_winner", "value": "var(--series1)"}}
    color["value"] = "var(--series0)"
    tooltip = [{"field": "name", "title": "trial"}]
    tooltip.append({"field": "mean", "title": "mean (%)", "format": ".2f"})
    tooltip.append({"field": "interval", "title": "95 % interval"})
    bars = {"data": {"values": [v for v in values if v["low"] is not None]}}
    bars["mark"] = {"type": "rule", "strokeWidth": 2.5}
    bars["encoding"] = {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y}
    bars["encoding"] |= {"color": color}
    dots = {"mark": {"type": "point", "filled": True, "size": 120, "opacity": 1}}
    dots["encoding"] = {"x": x, "y": y, "color": color, "tooltip": tooltip}
    ticks = {"data": {"values": seeds}}
    ticks["mark"] = {"type": "tick", "color": "var(--text)", "size": 12}
    ticks["mark"] |= {"thickness": 1.5, "opacity": 0.8}
    ticks["encoding"] = {"x": x | {"field": "accuracy"}, "y": y}
    shown = [{"field": "seed", "title": "seed"}]
    shown.append({"field": "accuracy", "title": "test accuracy (%)", "format": ".2f"})
    ticks["encoding"] |= {"tooltip": shown}
    return layered(values, [bars, dots, ticks], 34 * len(values))


def span(axis: Axis, tried: Sequence[float]) -> list[float]:
    """Return the ends of an axis: those of its range, and of what was tried."""
    ends = [end for end in (axis.low, axis.high) if end is not None]
    return [min([*tried, *ends]), max([*tried, *ends])]


def list_ticks(low: float, high: float, log: bool) -> list[float]:
    """Return about five round numbers from low to high."""
    if not low < high:
        return [low]
    if log:
        few = math.log10(high / low) > 3
        subs = (1.0,) if few else (1.0, 3.0)
        found = ticker.LogLocator(subs=subs, numticks=12).tick_values(low, high)
    else:
        found = ticker.MaxNLocator(nbins=5).tick_values(low, high)
    slack = 1e-9 * (high - low)
    ticks = [float(f"{t:.12g}") for t in found if low - slack <= t <= high + slack]
    return ticks if len(ticks) > 1 else [low, high]


def list_tooltip() -> list[Spec]:
    """Return what a hover over a trial tells."""
    # Without a format, Vega-Lite finds no value of the point that is nearest.
    number, text = {"type": "quantitative"}, {"type": "nominal", "format": ""}
    return [
        {"field": "number", "title": "trial", "format": "d"} | number,
        {"field": "state", "title": "state"} | text,
        {"field": "value", "title": "accuracy (%)", "format": ".2f"} | number,
        {"field": "settings", "title": "settings"} | text,
    ]


def _points(x, y, values, more=None):
    """Return the layers of trials as points, and of the ring around the winner."""
    shown = [name for name in _STATES if any(v["state"] == name for v in values)]
    encoding = {"x": x, "y": y, "tooltip": list_tooltip()} | (more or {})
    encoding["color"] = scale_by("state", _STATES, _STATE_COLORS, shown)
    encoding["shape"] = scale_by("state", _STATES, _STATE_SHAPES, shown)
    mark = {"type": "point", "filled": True, "size": 60, "opacity": 0.85}
    ring = {"type": "point", "size": 220, "strokeWidth": 2.5, "color": "var(--series1)"}
    return [
        {"mark": mark, "encoding": encoding},
        {
            "mark": ring,
            "transform": [{"filter": "datum.is_winner"}],
            "encoding": {"x": x, "y": y} | (more or {}),
        },
    ]
