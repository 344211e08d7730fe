"""Numbers as people read them; a missing value is a dash."""

import functools
import math
from collections.abc import Callable
from typing import Any

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


def _or_dash(form: Callable[..., str]) -> Callable[..., str]:
    """Make a formatting function return a dash for None and typeset minus signs."""

    @functools.wraps(form)
    def wrapped(value: Any, *args: Any) -> str:
        return DASH if value is None else form(value, *args).replace("-", MINUS)

    return wrapped


@_or_dash
def percent(share: float | None, digits: int = 2) -> str:
    """Return a share of 1 as 98.25 %."""
    return f"{100 * share:.{digits}f} %"


@_or_dash
def points(share: float | None) -> str:
    """Return a difference of shares of 1 in percentage points, signed: +0.25."""
    return f"{100 * share:+.2f}"


@_or_dash
def interval(ends: list[float] | None, form: Callable[[float], str] = points) -> str:
    """Return an interval as `+0.10 to +0.40`."""
    return f"{form(ends[0])} to {form(ends[1])}"


@_or_dash
def fixed(value: float | None, digits: int = 4) -> str:
    """Return a number with a fixed number of decimals."""
    return f"{value:,.{digits}f}"


@_or_dash
def significant(value: float | None) -> str:
    """Return a number with three significant digits, never as a power of ten."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, decimals)}f}"


@_or_dash
def amount(value: float | None) -> str:
    """Return a count in full up to 99,999, and then in k, M, G or T: 12.3 M."""
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    power = min(math.floor(math.log10(abs(value))) // 3, 4)
    return f"{significant(value / 1000**power)} {' kMGT'[power]}"


@_or_dash
def times(ratio: float | None) -> str:
    """Return a ratio as 1.85x, with a multiplication sign."""
    return f"{ratio:.{2 if ratio < 10 else 1}f}{TIMES}"


def mean_and_interval(summary: dict | None, form: Callable = percent) -> str:
    """Return a mean and half its interval, `98.25 ± 0.35 %`, or the mean alone."""
    mean, ends = (summary["mean"], summary["ci95"]) if summary else (None, None)
    if not ends:
        return form(mean)
    half = form((ends[1] - ends[0]) / 2)
    return f"{form(mean).removesuffix(' %')} ± {half}"


def difference(pair: dict | None) -> list[str]:
    """Return a paired difference: its mean, and its intervals over seeds and images.

    Args:
      pair: as `statistics.compare_networks` returns it; None gives three dashes.
    """
    found = pair or {"mean": None, "ci95": None, "bootstrap": None}
    over_images = found["bootstrap"] and found["bootstrap"]["ci95"]
    return [points(found["mean"]), interval(found["ci95"]), interval(over_images)]


def listing(names: list[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
