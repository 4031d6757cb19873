"""Bounds of intervals and p-values as a report writes them; means are written by `benchmark.intervals`."""

from __future__ import annotations

import pandas as pd

from benchmark.intervals import MINUS, NONE, number


def bound(share: float) -> str:
    """`−0.02` of -0.0002: as `number`, with the digits, up to three, that show on which side of zero a bound lies."""
    shown = (f"{100 * share:.{digits}f}" for digits in (1, 2, 3))
    return next((text.replace("-", MINUS) for text in shown if float(text)), number(0.0))


def between(low: float, high: float) -> str:
    """`−1.2 to 3.4`, in per cent or points: the bounds of an interval."""
    return f"{bound(low)} to {bound(high)}"


def interval(low: float, high: float) -> str:
    """`[−1.2, 3.4]`, in points; a dash where there is none."""
    return NONE if pd.isna(low) else f"[{bound(low)}, {bound(high)}]"


def p_said(p: float) -> str:
    """`p = 0.031`, `p < 0.001`."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def p_value(p: float) -> str:
    """`0.031`, `< 0.001`; two digits that count, none that do not."""
    if pd.isna(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
