"""Which cells of strategies x seeds have a result."""

from __future__ import annotations

import pandas as pd
import pytest

from reports.density import density


def runs(*rows):
    return pd.DataFrame(rows, columns=["strategy", "seed", "status"])


FULL = [("naive", 0, "finished"), ("naive", 1, "finished"), ("ewc", 0, "finished"), ("ewc", 1, "finished")]
HOLES = [
    ("naive", 2, "finished"),
    ("naive", 0, "finished"),
    ("naive", 10, "finished"),
    ("ewc", 0, "finished"),
    ("ewc", 10, "diverged"),
    ("l2", 2, "finished"),
    ("l2", 0, "finished"),
]


def test_a_full_grid_has_nothing_lost():
    found = density(runs(*FULL))
    assert found.lost.empty


def test_missing_and_diverged_cells_are_named():
    found = density(runs(*HOLES))
    assert found.cells.index.tolist() == ["naive", "ewc", "l2"] and found.cells.columns.tolist() == [0, 2, 10]
    assert found.lost.to_dict("records") == [
        {"strategy": "ewc", "seed": 2, "status": "missing"},
        {"strategy": "ewc", "seed": 10, "status": "diverged"},
        {"strategy": "l2", "seed": 10, "status": "missing"},
    ]


def test_no_runs_are_no_cells():
    found = density(runs())
    assert found.cells.empty and found.lost.empty


def test_two_runs_in_one_cell_are_refused():
    with pytest.raises(ValueError, match="two runs of 'ewc' with seed 1"):
        density(runs(*FULL, ("ewc", 1, "diverged")))


def test_cells_that_a_pivot_would_drop_in_silence_are_refused():
    with pytest.raises(ValueError, match="in every row"):
        density(runs(*FULL, ("l2", None, "finished")))
    with pytest.raises(ValueError, match=r"none named \['seed'\]"):
        density(runs(*FULL).drop(columns="seed"))
