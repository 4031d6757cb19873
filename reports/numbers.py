"""Numbers as a report writes them: accuracies in per cent, differences in points, p-values."""

from __future__ import annotations

import pandas as pd

NONE = "–"
MINUS = "−"


def percent(mean: float, low: float, high: float, *, places: int = 1) -> str:
    """`97.5 ± 0.6`: a share as per cent, with half the width of its interval where there is one."""
    if pd.isna(mean):
        return NONE
    return _number(100 * mean, places) + ("" if pd.isna(low) else f" ± {50 * (high - low):.{places}f}")


def points(difference: float, *, places: int = 1) -> str:
    """`+1.2`: a difference of shares in points."""
    if pd.isna(difference):
        return NONE
    return f"{'+' if round(100 * difference, places) > 0 else ''}{_number(100 * difference, places)}"


def interval(low: float, high: float, *, places: int = 1) -> str:
    """`[−1.2, 3.4]`, in points; a dash where there is none."""
    return NONE if pd.isna(low) else f"[{_number(100 * low, places)}, {_number(100 * high, places)}]"


def p_value(p: float) -> str:
    """`0.031`, `< 0.001`; two digits that count, none that do not."""
    if pd.isna(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _number(value: float, places: int) -> str:
    """With a minus that is as wide as a plus, and without a negative zero."""
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", MINUS)
