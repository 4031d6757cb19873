"""Figures of a study, one column wide. Each takes one of the frames that `reports.studies` makes.

They carry in themselves, in small print, what makes their trials good or bad evidence: the images these were judged on
and the number of seeds. The caption has the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports import measures, names
from reports.figures import labels
from reports.figures.drawn import Drawn
from reports.figures.plane import AXES
from reports.figures.style import COLUMN, STYLE, Cast, Look, figure, panel, panels

TUNED_ON_TEST = "#b3261e"


@dataclass(frozen=True)
class About:
    """What figures need to know beside their numbers.

    Attributes:
        strategies: labels, in the order of the study.
        objectives: `maximize` or `minimize` by name.
        tuned_on_test: trials were judged on test images.
        n: seeds a trial, in words.
        cast: names and looks of the strategies.
    """

    strategies: list[str]
    objectives: dict[str, str]
    tuned_on_test: bool
    n: str
    cast: Cast


def history(frame: pd.DataFrame, about: About) -> Drawn:
    """Value of every trial in the order they were asked, and the best so far; a panel an objective.

    Args:
        frame: of `reports.studies.history`.
        about: the study.
    """
    cast, height = about.cast, 1.35
    header = _header(about, f"line: best so far · mark: mean of {about.n}", frame)
    key = labels.Key(cast, about.strategies)
    direct = labels.ends_fit(cast, about.strategies, height)
    with mpl.rc_context(STYLE):
        made = figure(0.4 + height * len(about.objectives) + _height(header) + (0 if direct else key.height))
        axes = panels(made, len(about.objectives), sharex=True)[:, 0]
        for axis, name in zip(axes, about.objectives, strict=True):
            own = frame[frame["objective"] == name]
            for i, strategy in enumerate(about.strategies):
                _trials(axis, own[own["strategy"] == strategy], cast.looks[strategy], i)
            labels.per_cent(axis, "y")
            labels.foot([axis], own["state"], len(about.strategies))
            axis.set_ylabel(_measure(name, about, "\n"))
            labels.integers(axis)
            if direct:
                last = own.dropna(subset="best_so_far").groupby("strategy")[["order", "best_so_far"]].last()
                labels.ends(axis, {s: (x, y) for s, x, y in last.itertuples(name=None)}, cast, height)
        axes[-1].set_xlabel("trials of a strategy")
        made.suptitle(**header)
        if not direct:
            key.draw(made)
    what = " and ".join(map(measures.spoken, about.objectives)).capitalize()
    caption = (
        f"{what} of every trial in the order they were asked: marks are means of {about.n}, lines the best so far."
    )
    return Drawn(made, caption + _fate(frame) + _images(about))


def response(frame: pd.DataFrame, about: About) -> Drawn:
    """A measure against each thing searched: mean and range over seeds, the chosen setting as a star.

    Args:
        frame: of `reports.studies.response`.
        about: the study.
    """
    searched = list(frame[["strategy", "param"]].drop_duplicates().itertuples(index=False, name=None))
    name = next(name for name in about.objectives if name in frame)
    columns = min(len(searched), 2)
    places = _places(searched, columns)
    rows = 1 + max(row for row, _ in places.values())
    written = labels.wrap([about.cast.names[s] for s in about.strategies], COLUMN / columns - 0.4)
    titles = dict(zip(about.strategies, written, strict=True))
    spread = "mean, lowest and highest" if frame["n"].max() > 1 else "value"
    header = _header(about, f"{spread} of {about.n} · ★ chosen", frame)
    with mpl.rc_context(STYLE):
        above = labels.LINE * (1 + max(map(labels.lines, written)))
        made = figure(rows * (1.45 + above) + _height(header))
        axes = panels(made, rows, columns, sharey=True)
        for axis in axes.flat:
            axis.set_visible(False)
        for (strategy, param), place in places.items():
            own = frame[(frame["strategy"] == strategy) & (frame["param"] == param)]
            axes[place].set_visible(True)
            alone = sum(s == strategy for s, _ in searched) == 1
            _panel(axes[place], own, name, about.cast.looks[strategy], titles[strategy], band=alone)
            axes[place].set_ylabel(_measure(name, about, "\n") if place[1] == 0 else "")
        labels.per_cent(axes[0, 0], "y")
        labels.foot([axes[place] for place in places.values()], frame["state"])
        made.suptitle(**header)
    caption = (
        f"{measures.spoken(name).capitalize()} at every setting tried: {spread} of {about.n}; "
        "stars are the chosen settings."
    )
    return Drawn(made, caption + _fate(frame) + _images(about))


def plane(frame: pd.DataFrame, about: About) -> Drawn:
    """Two measures against each other: a mark a trial, a line through those that no other of the strategy beats.

    Args:
        frame: of `reports.studies.plane`.
        about: the study.
    """
    x, y = list(frame.columns.drop(["strategy", "trial", "best", "on_front"]))
    up = {name: about.objectives.get(name, "maximize") == "maximize" for name in (x, y)}
    better = f"{'up' if up[y] else 'down'} and {'right' if up[x] else 'left'} is better"
    header = _header(about, f"{better} · mark: mean of {about.n}\nline: Pareto front of a strategy · ★ chosen")
    key = labels.Key(about.cast, about.strategies)
    with mpl.rc_context(STYLE):
        made = figure(2.2 + _height(header) + key.height)
        axis = panel(made)
        for strategy in about.strategies:
            own, look = frame[frame["strategy"] == strategy], about.cast.looks[strategy]
            axis.plot(own[x], own[y], ms=3.5, alpha=0.6, **look.mark)
            edge = own[own["on_front"]].sort_values([x, y])
            # Beyond the line is what no trial reached.
            step = "steps-pre" if up[x] else "steps-post"
            axis.plot(edge[x], edge[y], drawstyle=step, color=look.colour, ls=look.line, lw=1)
            _star(axis, own.loc[own["best"], x], own.loc[own["best"], y], look)
        for side in "xy":
            labels.per_cent(axis, side)
        axis.set_xlabel(AXES.get(x, _measure(x, about, " ")).replace("\n", " "))
        axis.set_ylabel(AXES.get(y, _measure(y, about, "\n")))
        made.suptitle(**header)
        key.draw(made)
    caption = (
        f"{measures.spoken(y).capitalize()} against {measures.spoken(x)} of every trial, means of {about.n}: lines are "
        f"the Pareto front of a strategy, stars the chosen settings; {better}."
    )
    return Drawn(made, caption + _images(about))


def importance(frame: pd.DataFrame, about: About) -> Drawn:
    """How much of what tells the best trials from all each hyperparameter carries (PED-ANOVA): a panel a strategy.

    Args:
        frame: of `studies.frames.importance`, without what has none.
        about: the study.
    """
    shown = about.cast.among(frame["strategy"])
    bars = [int((frame["strategy"] == s).sum()) for s in shown]
    header = _header(about, "what tells the best trials of a strategy from all")
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        made = figure(0.45 + sum(0.2 * n + 0.3 for n in bars) + _height(header))
        axes = panels(made, len(shown), sharex=True, height_ratios=bars)[:, 0]
        for axis, strategy in zip(axes, shown, strict=True):
            own = frame[frame["strategy"] == strategy].sort_values("importance")
            params = [names.OPTIONS.get(str(param), str(param)) for param in own["param"]]
            drawn = axis.barh(params, own["importance"], color=about.cast.looks[strategy].colour, height=0.65)
            axis.bar_label(drawn, fmt="%.2f", padding=2)
            first = own.iloc[0]
            title = f"{about.cast.names[strategy]}: best {first['top']:.0f} of {first['trials']:.0f} trials"
            axis.set_title("\n".join(labels.wrap([title], COLUMN - 0.9)), loc="left")
            axis.set_xlim(0, 1.12)
            axis.tick_params(axis="y", length=0)
        axes[-1].set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes[-1].set_xlabel("importance (PED-ANOVA, share)")
        made.suptitle(**header)
    caption = (
        "How much of what tells the best trials of a strategy from all its trials each hyperparameter carries"
        " (PED-ANOVA)."
    )
    return Drawn(made, caption + _images(about))


def _trials(axis: Axes, rows: pd.DataFrame, look: Look, place: int) -> None:
    axis.plot(rows["order"], rows["value"], ms=3.5, alpha=0.6, **look.mark)
    axis.plot(rows["order"], rows["best_so_far"], drawstyle="steps-post", color=look.colour, ls=look.line)
    labels.lost(axis, rows.assign(x=rows["order"]), look.colour, place)


def _panel(axis: Axes, own: pd.DataFrame, name: str, look: Look, title: str, *, band: bool) -> None:
    scale, param = own["scale"].iloc[0], str(own["param"].iloc[0])
    own = _placed(own)
    complete = own[own["state"] == "complete"].sort_values("x")
    if scale != "choice" and band:
        axis.fill_between(complete["x"], complete["low"], complete["high"], color=look.colour, alpha=0.2, lw=0)
        axis.plot(complete["x"], complete[name], color=look.colour, lw=0.7, alpha=0.7)
    else:
        axis.vlines(complete["x"], complete["low"], complete["high"], color=look.colour, alpha=0.35, lw=1)
    axis.plot(complete["x"], complete[name], ms=3, alpha=0.8, **look.mark)
    labels.lost(axis, own, look.colour)
    best = own[own["best"]]
    _star(axis, best["x"], best[name], look)
    _scale(axis, own, scale)
    symbol = names.OPTIONS.get(param, param)
    axis.set_xlabel(symbol, labelpad=1)
    chosen = "none chosen" if best.empty else f"★ {symbol} = {names.setting(best['setting'].iloc[0])}"
    axis.set_title(f"{title}\n{chosen}")


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
    elif scale.startswith("log"):
        labels.strengths(axis, own["x"], zero=scale == "log0")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(4))


def _places(panels: Sequence[tuple[str, str]], columns: int) -> dict[tuple[str, str], tuple[int, int]]:
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


def _star(axis: Axes, x: pd.Series, y: pd.Series, look: Look) -> None:
    axis.plot(x, y, ls="", marker="*", ms=9, color=look.colour, mec="black", mew=0.6, zorder=5)


def _measure(name: str, about: About, separator: str) -> str:
    """What an axis shows, in words."""
    lower = "" if about.objectives.get(name, "maximize") == "maximize" else f"{separator}(lower is better)"
    return f"{measures.spoken(name)} (%){lower}"


def _header(about: About, text: str, frame: pd.DataFrame | None = None) -> dict[str, Any]:
    """What stands over a figure, as `suptitle` takes it."""
    images = "tuned on test images" if about.tuned_on_test else "validation images"
    lines = [" · ".join([images, *_lost(frame)]), *text.split("\n")]
    colour = TUNED_ON_TEST if about.tuned_on_test else "0.35"
    return {"t": "\n".join(lines), "x": 0.01, "ha": "left", "fontsize": 7, "color": colour}


def _height(header: dict[str, Any]) -> float:
    """Inches."""
    return labels.LINE * labels.lines(str(header["t"])) + 0.05


def _lost(frame: pd.DataFrame | None) -> list[str]:
    """Signs of what has no value, of those there are."""
    return [] if frame is None else [f"{sign} {state}" for state, sign in labels.signs(frame["state"]).items()]


def _fate(frame: pd.DataFrame) -> str:
    """A sentence on trials without a value, empty if there are none."""
    found = _lost(frame)
    return f" At the foot, trials without a value: {', '.join(found)}." if found else ""


def _images(about: About) -> str:
    if about.tuned_on_test:
        return " Trials were judged on test images: what was chosen is tuned on test."
    return " Trials were judged on validation images."
