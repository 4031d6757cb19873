"""Which strategy x seed cells have a result: what a report says before it aggregates."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

COLUMNS = ["strategy", "seed", "status"]
FINISHED, MISSING = "finished", "missing"


@dataclass(frozen=True, eq=False)
class Density:
    """The status of every cell of strategies (rows, in order of appearance) x seeds (columns, ascending)."""

    cells: pd.DataFrame

    @property
    def lost(self) -> pd.DataFrame:
        """Cells without a result, one a row: `strategy`, `seed`, and `status`, which is `missing`, `diverged`, ..."""
        cells = self.cells.T.melt(ignore_index=False, value_name="status").reset_index()[COLUMNS]
        return cells[cells["status"] != FINISHED].reset_index(drop=True)


def density(runs: pd.DataFrame) -> Density:
    """The cells that a set of runs fills, out of all of its strategies x all of its seeds; the others are `missing`.

    Args:
        runs: one row a run: `strategy`, `seed`, `status` (`finished`, `diverged`, ...); more columns do no harm.

    Raises:
        ValueError: a column that is not there, an empty cell, or two runs of one strategy and seed.
    """
    if absent := [name for name in COLUMNS if name not in runs]:
        raise ValueError(f"runs: expected the columns {COLUMNS}, found none named {absent}")
    if (empty := runs[COLUMNS].isna().any(axis=1)).any():
        raise ValueError(f"runs: expected a strategy, seed and status in every row, got\n{runs.loc[empty, COLUMNS]}")
    if (twice := runs.duplicated(["strategy", "seed"])).any():
        strategy, seed = runs.loc[twice, ["strategy", "seed"]].iloc[0]
        raise ValueError(f"two runs of {strategy!r} with seed {seed}: expected one; are recipes or scenarios mixed?")
    cells = runs.pivot(index="strategy", columns="seed", values="status").reindex(runs["strategy"].unique())
    return Density(cells.astype(object).fillna(MISSING).sort_index(axis=1))
