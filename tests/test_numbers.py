"""Numbers of reports."""

from __future__ import annotations

import math

import pytest

from reports import numbers


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-0.012, 0.034, "[−1.2, 3.4]"),
        (0.0002, 0.005, "[0.02, 0.5]"),
        (-0.0002, 0.005, "[−0.02, 0.5]"),
        (-0.00003, 0.0, "[−0.003, 0.0]"),
        (-1e-17, 1e-9, "[0.0, 0.0]"),
        (math.nan, math.nan, "–"),
    ],
)
def test_a_bound_that_rounds_to_zero_shows_its_side_unless_it_is_rounding(low: float, high: float, shown: str) -> None:
    assert numbers.interval(low, high) == shown
    if shown != "–":
        assert numbers.between(low, high) == shown.strip("[]").replace(", ", " to ")


@pytest.mark.parametrize(
    ("p", "text"), [(0.00004, "< 0.001"), (0.03125, "0.031"), (0.25, "0.25"), (1.0, "1.00"), (math.nan, "–")]
)
def test_p_values_have_the_digits_that_count(p: float, text: str) -> None:
    assert numbers.p_value(p) == text
