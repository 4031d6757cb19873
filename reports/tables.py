"""Tidy frames of results, and the tables made of them.

Two frames, as in `runs.csv` and `accuracy.csv`: `runs` has one row a run with `strategy`, `seed`, `status` and metrics;
`accuracy` one row a cell with `strategy`, `seed`, `after_task` (0..T), `task` (1..T) and `accuracy`.
"""

from __future__ import annotations

import pandas as pd

SHOWN = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "fwt": "FWT",
    "learning_accuracy": "learning accuracy",
}


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (ddof 1) a strategy, over the runs that finished.

    Args:
        runs: one row a run; strategies appear in their order here.

    Returns:
        One row a strategy: `strategy`, `n` finished runs, `diverged` runs, and `<metric>` and `<metric>_std` of each.
    """
    rows = []
    for strategy, group in runs.groupby("strategy", sort=False):
        finished = group[group["status"] == "finished"]
        row: dict[str, object] = {
            "strategy": strategy,
            "n": len(finished),
            "diverged": int((group["status"] == "diverged").sum()),
        }
        for metric in SHOWN:
            row[metric], row[f"{metric}_std"] = finished[metric].mean(), finished[metric].std()
        rows.append(row)
    return pd.DataFrame(rows)


def final_by_task(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Mean final accuracy a strategy and task, over the runs that finished; columns are task numbers."""
    last = accuracy[accuracy["after_task"] == accuracy["after_task"].max()]
    table: pd.DataFrame = last.pivot_table(
        index="strategy", columns="task", values="accuracy", aggfunc="mean", sort=False
    )
    return table


def percent(mean: float, std: float) -> str:
    """`97.5 ± 0.3` in per cent; the spread is left out where there is one run, all where there is none."""
    if pd.isna(mean):
        return "–"
    return f"{100 * mean:.1f}" if pd.isna(std) else f"{100 * mean:.1f} ± {100 * std:.1f}"


def markdown(runs: pd.DataFrame, accuracy: pd.DataFrame) -> str:
    """The result table in GitHub-flavoured Markdown, values in per cent."""
    from tabulate import tabulate

    final = final_by_task(accuracy)
    tasks = list(final.columns) if final.shape[1] <= 5 else []
    rows = []
    for _, row in summary(runs).iterrows():
        cells = [percent(row[metric], row[f"{metric}_std"]) for metric in SHOWN]
        by_task = [percent(final[task].get(row["strategy"], float("nan")), float("nan")) for task in tasks]
        rows.append([f"`{row['strategy']}`", row["n"], *by_task, *cells, row["diverged"] or ""])
    headers = ["strategy", "n", *(f"task {task}" for task in tasks), *SHOWN.values(), "diverged"]
    if not any(row[-1] for row in rows):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    align = ("left", "right", *("right" for _ in headers[2:]))
    return str(tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True))
