"""Figures of a study, one column (3.4 inches) wide. Each takes one of the frames that `reports.studies` makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from reports.figures import MARKERS, STYLE, colours, decimals, parts

WIDTH = 3.4
STYLE = STYLE | {"axes.titlesize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7, "lines.linewidth": 1.2}
NAMES = {
    "average_accuracy": "average accuracy",
    "average_incremental_accuracy": "average incremental accuracy",
    "learning_accuracy": "learning accuracy",
    "bwt": "backward transfer",
    "fwt": "forward transfer",
    "lam": "λ",
}
MEANT = {
    "plasticity": "plasticity: accuracy on each task when learned (%)",
    "stability": "stability: final accuracy\non all tasks but the last (%)",
}
LOST = {"diverged": "x", "pruned": "|"}  # marks of trials without a value
STEP = 0.07  # of a panel's height, for a row of them
TUNED_ON_TEST = "#b3261e"
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class About:
    """What figures need to know beside their numbers.

    Attributes:
        strategies: labels, in the order that gives them their colours.
        objectives: `maximize` or `minimize` by name.
        tuned_on_test: trials were judged on test images.
        n: seeds a trial, in words.
    """

    strategies: list[str]
    objectives: dict[str, str]
    tuned_on_test: bool
    n: str

    def looks(self) -> dict[str, dict[str, Any]]:
        """Colour and mark of each strategy, as `plot` takes them."""
        found = colours(self.strategies).items()
        return {s: {"color": colour, "marker": MARKERS[i % len(MARKERS)]} for i, (s, colour) in enumerate(found)}


def history(frame: pd.DataFrame, about: About) -> Figure:
    """Value of every trial in the order they were asked, and the best so far; a panel an objective."""
    names = list(about.objectives)
    caption = _caption(about, f"line: best so far · mark: mean of {about.n}", frame)
    short = len(about.strategies) <= 4 and max(map(len, about.strategies)) <= 10
    with mpl.rc_context(STYLE):
        height = 0.45 + 1.5 * len(names) + _height(caption) + (0 if short else _key_height(about))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            own = frame[frame["objective"] == name]
            for i, (strategy, look) in enumerate(about.looks().items()):
                rows = own[own["strategy"] == strategy]
                axis.plot(rows["order"], rows["value"], ls="", ms=3.5, alpha=0.6, mew=0, **look)
                axis.plot(rows["order"], rows["best_so_far"], drawstyle="steps-post", color=look["color"])
                _lost(axis, rows.assign(x=rows["order"]), look["color"], i)
            _per_cent(axis, "y", own["value"])
            _foot([axis], own, len(about.strategies))
            axis.set_ylabel(_measure(name, about, "\n"))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if short:
                _ends(axis, own.groupby("strategy", sort=False)["best_so_far"].last().dropna(), about)
        axes[-1].set_xlabel("trials of a strategy")
        figure.suptitle(**caption)
        if not short:
            _key(figure, axes[0], about)
    return figure


def response(frame: pd.DataFrame, about: About) -> Figure:
    """A measure against each thing searched: mean and range over seeds, the chosen setting as a star."""
    panels = list(frame[["strategy", "param"]].drop_duplicates().itertuples(index=False, name=None))
    name = next(name for name in about.objectives if name in frame)
    columns = min(len(panels), 2)
    places = _places(panels, columns)
    rows = 1 + max(row for row, _ in places.values())
    titles = max(len(parts(strategy)) for strategy in about.strategies) + 1
    spread = "mean, lowest and highest" if frame["n"].max() > 1 else "value"
    caption = _caption(about, f"{spread} of {about.n} · ★ chosen", frame)
    with mpl.rc_context(STYLE):
        height = rows * (1.6 + 0.13 * titles) + _height(caption)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axis in axes.flat:
            axis.set_visible(False)
        for (strategy, param), place in places.items():
            own = frame[(frame["strategy"] == strategy) & (frame["param"] == param)]
            axes[place].set_visible(True)
            alone = sum(s == strategy for s, _ in panels) == 1
            _panel(axes[place], own, name, about.looks()[strategy], band=alone)
            axes[place].set_ylabel(_measure(name, about, "\n") if place[1] == 0 else "")
        _per_cent(axes[0, 0], "y", pd.concat([frame["low"], frame["high"]]))
        _foot([axes[place] for place in places.values()], frame)
        figure.suptitle(**caption)
    return figure


def plane(frame: pd.DataFrame, about: About) -> Figure:
    """Two measures against each other: a mark a trial, a line through those that no other of the strategy beats."""
    x, y = list(frame.columns.drop(["strategy", "trial", "best", "on_front"]))
    up = {name: about.objectives.get(name, "maximize") == "maximize" for name in (x, y)}
    better = f"{'up' if up[y] else 'down'} and {'right' if up[x] else 'left'} is better"
    caption = _caption(about, f"{better} · mark: mean of {about.n}\nline: Pareto front of a strategy · ★ chosen")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2 + _height(caption) + _key_height(about)), layout="constrained")
        axis = figure.subplots()
        for strategy, look in about.looks().items():
            own = frame[frame["strategy"] == strategy]
            axis.plot(own[x], own[y], ls="", ms=3.5, alpha=0.6, mew=0, **look)
            edge = own[own["on_front"]].sort_values([x, y])
            # Beyond the line is what no trial reached.
            axis.plot(edge[x], edge[y], drawstyle="steps-pre" if up[x] else "steps-post", color=look["color"], lw=1)
            _star(axis, own.loc[own["best"], x], own.loc[own["best"], y], look["color"])
        for side, name in (("x", x), ("y", y)):
            _per_cent(axis, side, frame[name])
        axis.set_xlabel(MEANT.get(x, _measure(x, about, " ")))
        axis.set_ylabel(MEANT.get(y, _measure(y, about, "\n")))
        figure.suptitle(**caption)
        _key(figure, axis, about)
    return figure


def importance(frame: pd.DataFrame, about: About) -> Figure:
    """How much of what tells the best trials from all each hyperparameter carries (PED-ANOVA): a panel a strategy."""
    strategies = [s for s in about.strategies if s in set(frame["strategy"])]
    bars = [int((frame["strategy"] == s).sum()) for s in strategies]
    caption = _caption(about, "what tells the best trials of a strategy from all")
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        height = 0.45 + sum(0.2 * n + 0.3 for n in bars) + _height(caption)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(len(strategies), 1, sharex=True, squeeze=False, height_ratios=bars)[:, 0]
        for axis, strategy in zip(axes, strategies, strict=True):
            own = frame[frame["strategy"] == strategy].sort_values("importance")
            names = [NAMES.get(str(param), str(param)) for param in own["param"]]
            drawn = axis.barh(names, own["importance"], color=about.looks()[strategy]["color"], height=0.65)
            axis.bar_label(drawn, fmt="%.2f", padding=2, fontsize=7)
            first = own.iloc[0]
            axis.set_title(f"{strategy}: best {first['top']:.0f} of {first['trials']:.0f} trials", loc="left")
            axis.set_xlim(0, 1.12)
            axis.tick_params(axis="y", length=0)
        axes[-1].set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes[-1].set_xlabel("importance (PED-ANOVA, share)")
        figure.suptitle(**caption)
    return figure


def _panel(axis: Axes, own: pd.DataFrame, name: str, look: dict[str, Any], *, band: bool) -> None:
    scale, param = own["scale"].iloc[0], str(own["param"].iloc[0])
    own = _placed(own)
    complete = own[own["state"] == "complete"].sort_values("x")
    if scale != "choice" and band:
        axis.fill_between(complete["x"], complete["low"], complete["high"], color=look["color"], alpha=0.2, lw=0)
        axis.plot(complete["x"], complete[name], color=look["color"], lw=0.7, alpha=0.7)
    else:
        axis.vlines(complete["x"], complete["low"], complete["high"], color=look["color"], alpha=0.35, lw=1)
    axis.plot(complete["x"], complete[name], ls="", ms=3, mew=0, alpha=0.8, **look)
    _lost(axis, own, look["color"])
    best = own[own["best"]]
    _star(axis, best["x"], best[name], look["color"])
    _scale(axis, own, scale)
    symbol = NAMES.get(param, param)
    axis.set_xlabel(symbol, labelpad=1)
    chosen = "none chosen" if best.empty else f"★ {symbol} = {_text(best['setting'].iloc[0])}"
    axis.set_title("\n".join([*parts(str(own["strategy"].iloc[0])), chosen]))


def _placed(own: pd.DataFrame) -> pd.DataFrame:
    """With a column `x`: the setting, or the place of a choice, trials side by side around it."""
    if own["scale"].iloc[0] != "choice":
        return own.assign(x=own["setting"].astype(float))
    choices = list(dict.fromkeys(own["setting"]))
    beside = np.linspace(-0.25, 0.25, max(len(own), 2))[: len(own)]
    return own.assign(x=[choices.index(setting) for setting in own["setting"]] + beside)


def _scale(axis: Axes, own: pd.DataFrame, scale: str) -> None:
    if scale == "choice":
        choices = list(dict.fromkeys(own["setting"]))
        axis.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axis.set_xlim(-0.5, len(choices) - 0.5)
        axis.grid(visible=False, axis="x")
    elif scale == "log":
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=5))
        axis.xaxis.set_minor_locator(NullLocator())
    elif scale == "log0":
        lowest, highest = (np.log10(own.loc[own["x"] > 0, "x"].agg(end)) for end in ("min", "max"))
        axis.set_xscale("symlog", linthresh=10**lowest, linscale=0.6)
        decades = np.arange(np.ceil(lowest), highest + 0.01)
        axis.xaxis.set_major_locator(FixedLocator([0, *10.0 ** decades[:: -(-len(decades) // 4)]]))
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(4))


def _places(panels: list[tuple[str, str]], columns: int) -> dict[tuple[str, str], tuple[int, int]]:
    """Row and column of each panel; where a strategy has several, they begin a row."""
    places: dict[tuple[str, str], tuple[int, int]] = {}
    several = {strategy for strategy, _ in panels if sum(s == strategy for s, _ in panels) > 1}
    spot, before = 0, ""
    for strategy, param in panels:
        if strategy != before and several & {strategy, before}:
            spot = -(-spot // columns) * columns
        places[strategy, param] = divmod(spot, columns)
        spot, before = spot + 1, strategy
    return places


def _star(axis: Axes, x: pd.Series, y: pd.Series, colour: Colour) -> None:
    axis.plot(x, y, ls="", marker="*", ms=9, color=colour, mec="black", mew=0.6, zorder=5)


def _lost(axis: Axes, rows: pd.DataFrame, colour: Colour, place: int = 0) -> None:
    """Marks at the foot of a panel for trials without a value."""
    for state, mark in LOST.items():
        x = rows.loc[rows["state"] == state, "x"]
        y = [STEP * (place + 0.6)] * len(x)
        axis.plot(x, y, mark, ms=4, mew=1, color=colour, transform=axis.get_xaxis_transform())


def _foot(axes: list[Axes], rows: pd.DataFrame, places: int = 1) -> None:
    """Set the marks of `_lost` apart from what has a value, in panels that share their y axis."""
    if not rows["state"].isin(LOST.keys()).any():
        return
    height = STEP * (places + 0.2)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low - height / (1 - height) * (high - low), high)
    for axis in axes:
        axis.add_patch(Rectangle((0, 0), 1, height, transform=axis.transAxes, fc="0.93", ec="none", zorder=0))


def _ends(axis: Axes, ends: pd.Series, about: About) -> None:
    """Name lines where they end, pushed apart so that no two names overlap."""
    low, high = axis.get_ylim()
    names = [str(strategy) for strategy in ends.sort_values().index]
    at = [(float(ends[name]) - low) / (high - low) for name in names]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + 0.1)
    at[-1] = min(at[-1], 1.0)
    for i in range(len(at) - 1, 0, -1):
        at[i - 1] = min(at[i - 1], at[i] - 0.1)
    for strategy, place in zip(names, at, strict=True):
        look = about.looks()[strategy]
        axis.text(1.01, place, strategy, color=look["color"], transform=axis.transAxes, va="center", fontsize=7)


def _measure(name: str, about: About, separator: str) -> str:
    """What an axis shows, in words."""
    lower = "" if about.objectives.get(name, "maximize") == "maximize" else f"{separator}(lower is better)"
    return f"{NAMES.get(name, name)} (%){lower}"


def _per_cent(axis: Axes, side: str, values: pd.Series) -> None:
    formatter = PercentFormatter(1, decimals=decimals(values.dropna()), symbol="")
    (axis.xaxis if side == "x" else axis.yaxis).set_major_formatter(formatter)


def _text(setting: Any) -> str:
    return f"{setting:.3g}" if isinstance(setting, float) else str(setting)


def _caption(about: About, text: str, frame: pd.DataFrame | None = None) -> dict[str, Any]:
    """What stands over a figure, as `suptitle` takes it."""
    signs = {"diverged": "×", "pruned": "|"}
    there = [f"{signs[s]} {s}" for s in LOST if frame is not None and (frame["state"] == s).any()]
    images = "tuned on test images" if about.tuned_on_test else "validation images"
    lines = [" · ".join([images, *there]), *text.split("\n")]
    colour = TUNED_ON_TEST if about.tuned_on_test else "0.35"
    return {"t": "\n".join(lines), "x": 0.01, "ha": "left", "fontsize": 7, "color": colour}


def _height(caption: dict[str, Any]) -> float:
    """Inches."""
    return 0.13 * (1 + str(caption["t"]).count("\n"))


def _key_height(about: About) -> float:
    """Inches."""
    return 0.1 + 0.15 * -(-len(about.strategies) // _key_columns(about))


def _key_columns(about: About) -> int:
    return 1 if max(map(len, about.strategies)) > 24 else 2


def _key(figure: Figure, axis: Axes, about: About) -> None:
    """Which strategy is which, under the panels."""
    for strategy, look in about.looks().items():
        axis.plot([], [], ms=4, lw=1.2, label=strategy, **look)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_key_columns(about), frameon=False)
