"""Intervals as every table shows them; what they are is tested beside the other statistics."""

from __future__ import annotations

import pytest

from benchmark.intervals import mean_interval, number, percent


@pytest.mark.parametrize(
    ("values", "said", "signed"),
    [
        ([0.8, 0.85, 0.9], "85.0 ± 12.4", "+85.0 ± 12.4"),
        ([-0.8, -0.85, -0.9], "−85.0 ± 12.4", "−85.0 ± 12.4"),
        ([0.772], "77.2", "+77.2"),  # one seed
        ([0.3, 0.3, 0.3], "30.0", "+30.0"),  # one setting with itself
        ([0.0, 0.0], "0.0", "0.0"),
        ([-1e-5, -2e-5], "0.0 ± 0.0", "0.0 ± 0.0"),
        ([], "–", "–"),
    ],
)
def test_a_mean_is_shown_with_its_interval_where_there_is_one(values: list[float], said: str, signed: str) -> None:
    found = mean_interval(values)
    shown = tuple(percent(found.mean, found.low, found.high, signed=sign) for sign in (False, True))
    assert shown == (said, signed)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "+1.2"), (-0.0123, "−1.2"), (0.0, "0.0"), (-0.0001, "0.0"), (float("nan"), "–")]
)
def test_differences_have_a_sign(value: float, text: str) -> None:
    assert number(value, signed=True) == text
