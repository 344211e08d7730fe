"""Numbers as people read them; what was not measured is a dash."""

import math

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def percent(share: float | None) -> str:
    """Return a share of 1 as 98.25 %."""
    return DASH if share is None else f"{100 * share:.2f} %"


def points(share: float | None) -> str:
    """Return a difference of shares of 1 in percentage points, signed: +0.25."""
    return DASH if share is None else _sign(f"{100 * share:+.2f}")


def interval(ends: list[float] | None, form=points) -> str:
    """Return an interval as `+0.10 to +0.40`."""
    return DASH if ends is None else f"{form(ends[0])} to {form(ends[1])}"


def fixed(value: float | None, digits: int = 4) -> str:
    """Return a number with so many decimals."""
    return DASH if value is None else _sign(f"{value:,.{digits}f}")


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, never as a power of ten."""
    if value is None:
        return DASH
    if value == 0 or not math.isfinite(value):
        return _sign(f"{value:g}")
    exponent = math.floor(math.log10(abs(value)))
    return _sign(f"{value:,.{max(0, digits - 1 - exponent)}f}")


def amount(value: float | None) -> str:
    """Return a count in full up to 99,999, then in k, M, G or T."""
    if value is None:
        return DASH
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    return scaled(value)


def scaled(value: float | None) -> str:
    """Return a number with three digits in k, M, G or T."""
    if value is None:
        return DASH
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return significant(value / size) + prefix
    return significant(value)


def mebibytes(value: float | None) -> str:
    """Return bytes as 12.3 MiB."""
    return DASH if value is None else f"{significant(value / 2**20)} MiB"


def times(ratio: float | None) -> str:
    """Return a ratio as 1.85x, with the sign for times."""
    if ratio is None:
        return DASH
    return f"{ratio:.{2 if ratio < 10 else 1}f}{TIMES}"


def share(ratio: float | None) -> str:
    """Return a ratio as 25 %."""
    return DASH if ratio is None else f"{100 * ratio:.0f} %"


def mean_and_interval(summary: dict | None, form=percent) -> str:
    """Return `98.25 % (97.9 % to 98.6 %)` of a summary; the mean alone without one."""
    if summary is None or summary.get("mean") is None:
        return DASH
    ends = summary.get("ci95")
    if ends is None:
        return form(summary["mean"])
    if form is percent:
        half = 100 * (ends[1] - ends[0]) / 2
        return f"{100 * summary['mean']:.2f} {PLUS_MINUS} {half:.2f} %"
    return f"{form(summary['mean'])} {PLUS_MINUS} {form((ends[1] - ends[0]) / 2)}"


def listing(names: list[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _sign(text):
    return text.replace("-", MINUS)
