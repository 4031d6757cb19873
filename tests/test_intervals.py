"""Intervals as every table shows them; what they are is tested beside the other statistics."""

from __future__ import annotations

import pytest

from benchmark import intervals
from benchmark.intervals import mean_interval, percent
from reports import numbers, statistics


@pytest.mark.parametrize(
    ("values", "said", "signed"),
    [
        ([0.8, 0.85, 0.9], "85.0 ± 12.4", "+85.0 ± 12.4"),
        ([-0.8, -0.85, -0.9], "−85.0 ± 12.4", "−85.0 ± 12.4"),
        ([0.772], "77.2 ± –", "+77.2 ± –"),  # one seed
        ([0.3, 0.3, 0.3], "30.0 ± –", "+30.0 ± –"),  # one setting with itself
        ([0.0, 0.0], "0.0 ± –", "0.0 ± –"),
        ([-1e-5, -2e-5], "0.0 ± 0.0", "0.0 ± 0.0"),
        ([], "–", "–"),
    ],
)
def test_a_mean_has_a_dash_where_it_has_no_interval(values: list[float], said: str, signed: str) -> None:
    assert (percent(mean_interval(values)), percent(mean_interval(values), signed=True)) == (said, signed)


def test_reports_and_studies_have_one_interval_and_one_dash() -> None:
    assert statistics.mean_interval is mean_interval
    assert (numbers.NONE, numbers.MINUS) == (intervals.NONE, intervals.MINUS)
