"""What a study's overview run shows: tables of its trials, and figures with the numbers behind each.

Four tidy frames go in:

- `trials`, one row a trial: `strategy`, `trial` (its number), `state` (`complete`, `failed`, `diverged` or `pruned`),
  `reason`, `best` (the one chosen), `seconds`, a column for everything searched, and one for each objective,
  `stability` and `plasticity`: means over seeds, NaN unless complete;
- `seeds`, one row a run of a trial: `strategy`, `trial`, `seed`, `status` and the same measures;
- `search_space`, one row for everything searched: `strategy`, `param`, `low`, `high` (NaN for choices), `log`;
- `importance`: `strategy`, `param`, `importance`, `trials` and `top`, how many of them counted as good.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports import study_figures
from reports.figures import Cast, Drawn
from reports.figures.drawn import seeds as counted
from reports.load import TRIALS
from reports.overview import colours as colours  # the same in every figure of forgetbench
from reports.study_figures import About

Frames = Mapping[str, pd.DataFrame]
PLANE = ("plasticity", "stability")


def contents(frames: Frames, objectives: Mapping[str, str], *, tuned_on_test: bool) -> dict[str, Figure | str]:
    """Tables as CSV text and figures, by file name; beside each figure the numbers it shows.

    Args:
        frames: the four above; strategies have their colours by their order in `search_space`.
        objectives: `maximize` or `minimize` by name.
        tuned_on_test: trials were judged on test images, which every figure and table then says.
    """

    def text(frame: pd.DataFrame) -> str:
        return _csv(frame.assign(tuned_on_test=True) if tuned_on_test else frame)

    files: dict[str, Figure | str] = {f"{name}.csv": text(frame) for name, frame in frames.items()}
    for name, (shown, frame) in drawn(frames, objectives, tuned_on_test=tuned_on_test).items():
        files[f"figures/{name}.png"], files[f"figures/{name}.csv"] = shown.figure, text(frame)
    return files


def drawn(
    frames: Frames, objectives: Mapping[str, str], *, tuned_on_test: bool, cast: Cast | None = None
) -> dict[str, tuple[Drawn, pd.DataFrame]]:
    """All figures of a study with their captions and the numbers they show, by name; none if no trial is complete.

    Args:
        frames: as for `contents`.
        objectives: as for `contents`.
        tuned_on_test: as for `contents`.
        cast: of the report; by default the strategies of the study.
    """
    trials, seeds, space, importance = (frames[name] for name in TRIALS)
    complete = trials[trials["state"] == "complete"]
    if complete.empty:
        return {}
    strategies = list(space["strategy"].unique())
    # In a report that has all of them, they look as they do in its other figures.
    known = cast if cast and {*strategies} <= {*cast.names} else Cast.of(strategies)
    about = About(strategies, dict(objectives), tuned_on_test, per_trial(seeds, complete), known)
    found = {"history": (study_figures.history, history(trials, objectives))}
    for name in objectives:
        found[f"response_{name}"] = study_figures.response, response(trials, seeds, space, name)
    for x, y in planes(trials, list(objectives)):
        found[f"{x}_{y}"] = study_figures.plane, plane(trials, x, y, objectives)
    if importance["importance"].notna().any():
        found["importance"] = study_figures.importance, importance.dropna(subset="importance")
    return {name: (draw(frame, about), frame) for name, (draw, frame) in found.items()}


def history(trials: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Each trial's value and the best up to it.

    Args:
        trials: see above.
        objectives: `maximize` or `minimize` by name.

    Returns:
        `strategy, objective, trial, order (from 1), state, value, best_so_far`.
    """
    rows = []
    for strategy, own in trials.groupby("strategy", sort=False):
        for name in objectives:
            values = own[name].astype(float)
            best = values.cummax() if objectives[name] == "maximize" else values.cummin()
            rows.append(
                pd.DataFrame(
                    {
                        "strategy": strategy,
                        "objective": name,
                        "trial": own["trial"],
                        "order": np.arange(1, len(own) + 1),
                        "state": own["state"],
                        "value": values,
                        "best_so_far": best.ffill(),
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def response(trials: pd.DataFrame, seeds: pd.DataFrame, space: pd.DataFrame, name: str) -> pd.DataFrame:
    """A measure at every setting tried: a row for each thing searched and trial, with mean and range over seeds.

    Args:
        trials: see above.
        seeds: see above.
        space: see above.
        name: of the measure.

    Returns:
        `strategy, param, scale, trial, state, best, setting, <name>, low, high, std (ddof 1), n`. `scale` is `choice`,
        `linear`, `log`, or `log0` for one that begins at 0 but covers decades.
    """
    keys = ["strategy", "trial"]
    spread = seeds.groupby(keys, sort=False)[name].agg(low="min", high="max", std="std", n="count").reset_index()
    rows = []
    for strategy, param, scale in _scales(trials, space):
        own = trials[trials["strategy"] == strategy]
        shown = own[[*keys, "state", "best", name]].assign(param=param, scale=scale, setting=own[param])
        rows.append(shown.merge(spread, how="left", on=keys))
    order = ["strategy", "param", "scale", "trial", "state", "best", "setting", name, "low", "high", "std", "n"]
    return pd.concat(rows, ignore_index=True)[order]


def planes(trials: pd.DataFrame, names: list[str]) -> list[tuple[str, str]]:
    """Pairs of measures to draw against each other: plasticity and stability where known, and two objectives."""
    found = [PLANE] if {*PLANE} <= {*trials} and trials[[*PLANE]].notna().all(axis=1).any() else []
    same = {"learning_accuracy": "plasticity"}
    if len(names) == 2 and not (found and {same.get(name, name) for name in names} == {*PLANE}):
        found.append((names[1], names[0]))
    return found


def plane(trials: pd.DataFrame, x: str, y: str, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Trials as points, and which of them no other trial of the strategy beats.

    Args:
        trials: see above.
        x: name of a measure.
        y: name of another.
        objectives: `maximize` or `minimize` by name; measures that are none are to be large.

    Returns:
        `strategy, trial, best, on_front` and the two measures.
    """
    points = trials.dropna(subset=[x, y])[["strategy", "trial", "best", x, y]]
    signs = [1 if objectives.get(name, "maximize") == "maximize" else -1 for name in (x, y)]
    on_front = pd.Series(False, index=points.index)
    for _, own in points.groupby("strategy"):
        on_front[own.index] = front(own[[x, y]].to_numpy(float) * signs)
    return points.assign(on_front=on_front).reset_index(drop=True)


def front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points are on the Pareto front: none is as good in both and better in one.

    Args:
        points: shape (N, 2), more is better.

    Returns:
        Shape (N,), bool.
    """
    as_good = (points[:, None] >= points).all(axis=2)
    better = (points[:, None] > points).any(axis=2)
    return np.logical_not((as_good & better).any(axis=0))


def per_trial(seeds: pd.DataFrame, trials: pd.DataFrame) -> str:
    """`n = 3 seeds a trial`, over these trials."""
    counts = trials.merge(seeds, on=["strategy", "trial"]).groupby(["strategy", "trial"]).size()
    return f"{counted(counts)} a trial"


def _scales(trials: pd.DataFrame, space: pd.DataFrame) -> list[tuple[str, str, str]]:
    found = []
    for row in space.to_dict("records"):
        if row["param"] not in trials:
            continue
        low, high = row["low"], row["high"]
        settings = pd.to_numeric(trials.loc[trials["strategy"] == row["strategy"], row["param"]], errors="coerce")
        above = settings[settings > 0]
        if pd.isna(low):
            scale = "choice"
        elif row["log"]:
            scale = "log"
        else:
            decades = low == 0 and len(above) and high / above.min() >= 100
            scale = "log0" if decades else "linear"
        found.append((row["strategy"], row["param"], scale))
    return found


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, lineterminator="\n"))
