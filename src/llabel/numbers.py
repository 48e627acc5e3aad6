"""How numbers are told: on pages and terminals the same quantity has the same digits and signs."""

from collections.abc import Sequence
from typing import Any

NONE = "–"
MINUS = "\u2212"  # as wide as the plus sign, so that columns stay straight


def score(value: float | None) -> str:
    """An accuracy, F1, loss or calibration error: 0.6663."""
    return NONE if value is None else f"{value:.4f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Its lower and upper bound: 0.6500–0.6823."""
    return NONE if bounds is None else f"{bounds[0]:.4f}–{bounds[1]:.4f}"


def signed(value: float | None) -> str:
    """A difference: +0.0120; what rounds to zero has no sign."""
    if value is None:
        return NONE
    return f"{value:+.4f}".replace("-", MINUS) if round(value, 4) else "0.0000"


def signed_interval(bounds: Sequence[float] | None) -> str:
    """Bounds of a difference: −0.0310 to +0.0070."""
    return NONE if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def p_value(value: float | None) -> str:
    """Three decimals; smaller ones are only told to be smaller."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(share: float | None) -> str:
    """A share of 1 as whole percents; what is not quite all or nothing does not look so."""
    if share is None:
        return NONE
    if 0.99 < share < 1:
        return f"{min(share, 0.999):.1%}".replace("%", " %")
    return "< 1 %" if 0 < share < 0.005 else f"{share:.0%}".replace("%", " %")


def share(value: float | None) -> str:
    """A share of the variance, which an estimate may put below 0 or above 1: 12.3 %, −0.4 %."""
    if value is None:
        return NONE
    return f"{value:.1%}".replace("-", MINUS).replace("%", " %")


def correlation(value: float) -> str:
    """Two decimals and a sign: −0.47."""
    return f"{value:+.2f}".replace("-", MINUS)


def count(number: float | None) -> str:
    """A number of rows: 9,427."""
    return NONE if number is None else f"{number:,.0f}"


def quantity(number: float | None) -> str:
    """A number of parameters, in words from a million on: 4.9 million."""
    if number is None:
        return NONE
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return count(number)


def duration(seconds: float | None) -> str:
    """A time as people tell it: 0.4 s, 40 s, 12 min, 3.5 h."""
    if seconds is None:
        return NONE
    if seconds < 0.01:
        return "< 0.01 s" if seconds > 0 else "0 s"
    if seconds < 90:
        return f"{two_digits(seconds)} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def milliseconds(value: float | None) -> str:
    """Milliseconds with two digits that count: 0.012, 1.2, 37, 1,240."""
    if value is None:
        return NONE
    return "< 0.001" if 0 <= value < 0.001 else two_digits(value)


def size(mib: float | None) -> str:
    """A size that is given in MiB: 12 KiB, 87 MiB, 1.2 GiB."""
    if mib is None:
        return NONE
    if round(mib * 1024) < 1024:  # as it will be written
        return f"{max(1, round(mib * 1024))} KiB" if mib > 0 else "0 KiB"
    return f"{mib:,.0f} MiB" if round(mib) < 1024 else f"{mib / 1024:,.1f} GiB"


def two_digits(value: float) -> str:
    """A positive number with two significant digits, never in powers of ten."""
    if round(value, 1) >= 10:
        return f"{value:,.0f}"
    decimals = 1
    while decimals < 4 and round(value, decimals) < 10 ** (1 - decimals):
        decimals += 1
    return f"{value:.{decimals}f}"


def plain(value: Any) -> str:
    """Any setting as a person would write it: yes, none, 0.0008, a, b."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return str(value)
