"""Average accuracy and forgetting against λ, a line for strategies that differ in nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reports import names
from reports.figures import labels
from reports.figures.curves import curve, curves, ends
from reports.figures.drawn import Drawn, mean_over, unfinished
from reports.figures.style import STYLE, Cast, figure, panels

METRICS = {"average_accuracy": "average accuracy (%)", "forgetting": "forgetting (points)"}
FEWEST = 3  # values of λ that make a line


def lambda_sweep(runs: pd.DataFrame, cast: Cast | None = None) -> Drawn | None:
    """A panel a metric over a logarithmic λ; None where no family has enough values of λ.

    A line looks like its best strategy does in other figures.

    Args:
        runs: one row a run, see `reports.load`.
        cast: of the report; by default the strategies here.
    """
    cast = cast or Cast.of(runs["strategy"])
    found = names.sweeps(cast.among(runs["strategy"]), FEWEST)
    if not found:
        return None
    own = runs[runs["strategy"].isin([s for members in found.values() for s in members])]
    frame = own.assign(strategy=own["strategy"].map(names.family), lam=own["strategy"].map(names.lam))
    metrics = {name: words for name, words in METRICS.items() if name == "average_accuracy" or own[name].notna().any()}
    means = {
        name: curves(frame.assign(**{name: frame[name].where(frame["status"] == "finished")}), "lam", name)
        for name in metrics
    }
    best = representatives(own, cast.among(own["strategy"]))
    lines = Cast(names.names(found), {family: cast.looks[best[family]] for family in found})
    with mpl.rc_context(STYLE):
        made = _draw(means, frame, lines)
    counts = pd.concat(means.values())["n"]
    caption = (
        f"{' and '.join(words.partition(' (')[0] for words in metrics.values())} against λ".capitalize()
        + f", a line for strategies that differ in nothing else: {mean_over(counts, 'band')}."
        + "".join(f" {sign}: a run {state}." for state, sign in labels.signs(frame["status"]).items())
    )
    return Drawn(made, caption + unfinished(own.assign(finished=own["status"] == "finished"), cast))


def representatives(runs: pd.DataFrame, strategies: Iterable[str]) -> dict[str, str]:
    """Of strategies that differ in λ alone the one with the highest mean average accuracy, by their common label.

    Args:
        runs: one row a run, see `reports.load`.
        strategies: labels; where no run of a family finished, its first stands for it.
    """
    means = runs[runs["status"] == "finished"].groupby("strategy")["average_accuracy"].mean()
    best: dict[str, str] = {}
    for strategy in strategies:
        family = names.family(strategy)
        if family not in best or means.get(strategy, -1.0) > means.get(best[family], -1.0):
            best[family] = strategy
    return best


def _draw(means: dict[str, pd.DataFrame], frame: pd.DataFrame, lines: Cast) -> Figure:
    shown, height = list(lines.names), 1.45
    key = labels.Key(lines, shown)
    direct = labels.ends_fit(lines, shown, height)
    made = figure(len(means) * (height + 0.08) + 0.35 + (0 if direct else key.height))
    axes = panels(made, len(means), sharex=True)[:, 0]
    for axis, (name, found) in zip(axes, means.items(), strict=True):
        labels.strengths(axis, frame["lam"], zero=bool((frame["lam"] == 0).any()))
        for i, family in enumerate(shown):
            curve(axis, found[found["strategy"] == family], lines.looks[family], len(shown))
            own = frame.loc[frame["strategy"] == family, ["lam", "status"]].drop_duplicates()
            labels.lost(axis, own.set_axis(["x", "state"], axis=1), lines.looks[family].colour, i)
        axis.set_ylim(*_limits(found))
        labels.per_cent(axis, "y")
        labels.foot([axis], frame["status"], len(shown))
        axis.set_ylabel(METRICS[name])
        if found["n"].eq(0).all():
            labels.none(axis)
        elif direct:
            labels.ends(axis, ends(found), lines, height)
    axes[-1].set_xlabel("λ")
    if not direct:
        key.draw(made)
    return made


def _limits(found: pd.DataFrame) -> tuple[float, float]:
    """Room for all means, and for bands as far as a share can be."""
    known = found[["mean", "low", "high"]].to_numpy(float)
    known = np.clip(known[np.isfinite(known)], -1.0, 1.0)
    if not len(known):
        return 0.0, 1.0
    room = 0.05 * max(float(np.ptp(known)), 0.01)
    return float(known.min()) - room, float(known.max()) + room
