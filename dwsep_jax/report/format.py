"""Numbers as people read them; a missing value is a dash."""

import functools
import math
from collections.abc import Callable
from typing import Any

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


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
def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with a number of significant digits, never as a power of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


@_or_dash
def amount(value: float | None) -> str:
    """Return a count in full up to 99,999, and then in k, M, G or T: 12.3 M."""
    size, prefix = 1, ""
    for larger in ((1e3, " k"), (1e6, " M"), (1e9, " G"), (1e12, " T")):
        if abs(value) >= max(1e5, larger[0]):
            size, prefix = larger
    return f"{significant(value / size)}{prefix}" if prefix else f"{value:,.0f}"


@_or_dash
def times(ratio: float | None) -> str:
    """Return a ratio as 1.85x, with a multiplication sign."""
    return f"{ratio:.{2 if ratio < 10 else 1}f}{TIMES}"


def mean_and_interval(summary: dict | None, form: Callable = percent) -> str:
    """Return a mean and half its interval, `98.25 ± 0.35 %`, or the mean alone."""
    ends = (summary or {}).get("ci95")
    if not ends:
        return form((summary or {}).get("mean"))
    mean, half = form(summary["mean"]), form((ends[1] - ends[0]) / 2)
    return f"{mean.removesuffix(' %')} {PLUS_MINUS} {half}"


def listing(names: list[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
