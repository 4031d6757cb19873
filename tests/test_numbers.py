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
        (math.nan, math.nan, numbers.NONE),
    ],
)
def test_a_bound_that_rounds_to_zero_shows_its_side_unless_it_is_rounding(low: float, high: float, shown: str) -> None:
    assert numbers.interval(low, high) == shown
    if shown != numbers.NONE:
        assert numbers.between(low, high) == shown.strip("[]").replace(", ", " to ")
