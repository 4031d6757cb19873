"""Saved views of the MLflow UI: chart pages of an experiment, held by its tags."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

VIEW = "forgetbench"  # the one that `forgetbench ui` opens
TESTED = "forgetbench-tested"
METRICS = ("average_accuracy", "forgetting", "learning_accuracy")


@dataclass(frozen=True)
class View:
    """A saved view.

    Attributes:
        key: in the URL that opens it.
        name: in the page's menu of views.
        value: of the experiment's tag.
    """

    key: str
    name: str
    value: str

    @property
    def tag(self) -> str:
        """Key of the experiment's tag."""
        return f"mlflow.sharedViewState.{self.key}"


@dataclass(frozen=True)
class Axes:
    """What the trials of a study are charted by.

    Attributes:
        searched: key and kind (`PARAM` or `METRIC`) of everything searched.
        common: those of them that every strategy has: a line of parallel coordinates needs all of its points.
        measured: metrics that every trial with a value has, the objective last.
        plane: two metrics to scatter against each other, or none.
    """

    searched: tuple[tuple[str, str], ...]
    common: tuple[tuple[str, str], ...]
    measured: tuple[str, ...]
    plane: tuple[str, str] | None = None


def comparison(tasks: int, strategies: Iterable[str] = (), overview: str = "", key: str = VIEW) -> View:
    """Strategies side by side: means over the runs of each.

    Bars of summary metrics, lines of the accuracy on each task. The same arguments give the same view, so setting the
    tag again changes nothing.

    Args:
        tasks: how many the scenario has.
        strategies: labels whose runs are folded away in the list beside the charts.
        overview: id of the overview run whose runs are shown; empty: all runs.
        key: of the view.
    """
    state = {
        "selectedColumns": [f"metrics.`{name}`" for name in METRICS],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "strategy"}]},
        "groupsExpanded": {f"param.strategy.{label}": False for label in strategies},
        "useGroupedValuesInCharts": True,
    }
    charts = [
        *(_chart("BAR", name, "summary", metricKey=name) for name in METRICS),
        *(_line(f"acc/task_{task:02d}") for task in range(1, tasks + 1)),
    ]
    sections = {"summary": "Summary", "tasks": "Accuracy on each task"}
    return _view(key, "Strategies compared", "run", overview, charts, sections, state)


def trials(axes: Axes, overview: str) -> View:
    """The trials of a study: what was searched against what came of it.

    Args:
        axes: of the charts.
        overview: id of the overview run whose trials are shown.
    """
    objective = axes.measured[-1]
    scatters = [
        _scatter(f"{name} {measured}", (name, kind), (measured, "METRIC"), "searched")
        for measured in axes.measured[::-1]
        for name, kind in axes.searched
    ]
    plane = []
    if axes.plane:
        x, y = axes.plane
        plane.append(_scatter("plane", (x, "METRIC"), (y, "METRIC"), "searched"))
    # The colour of a line is that of its last metric.
    metrics = [name for name, kind in axes.common if kind == "METRIC"] + list(axes.measured)
    params = ["strategy", *(name for name, kind in axes.common if kind == "PARAM")]
    parallel = _chart("PARALLEL", "parallel", "all", selectedParams=params, selectedMetrics=metrics, showAllRuns=False)
    bars = [_chart("BAR", f"bar {name}", "all", metricKey=name) for name in axes.measured[::-1]]
    sections = {"searched": "What was searched, and what came of it", "all": "All trials"}
    names = [*(f"params.`{name}`" for name in ("strategy", *(n for n, kind in axes.searched if kind == "PARAM")))]
    state = {"selectedColumns": [f"metrics.`{objective}`", *names], "groupBy": None}
    return _view(VIEW, "Trials", "trial", overview, [*scatters, *plane, parallel, *bars], sections, state)


def path(experiment_id: str, key: str = VIEW) -> str:
    """What follows the server's address in the URL that opens a view.

    Args:
        experiment_id: of an experiment that has the tag.
        key: of the view.
    """
    query = f"viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _view(
    key: str,
    name: str,
    kind: str,
    overview: str,
    charts: list[dict[str, Any]],
    sections: dict[str, str],
    changes: dict[str, Any],
) -> View:
    # Other settings of the experiment may have the same labels: the runs of one overview.
    tied = f" and tags.`forgetbench.overview` = '{overview}'" if overview else ""
    state = {
        "searchFilter": f"tags.`forgetbench.kind` = '{kind}'{tied}",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        # The page adds a chart for every other metric to the section of this name.
        "compareRunSections": [
            *(_section(uuid, title) for uuid, title in sections.items()),
            _section("others", "Model metrics", display=False),
        ],
        "isAccordionReordered": True,  # sections stay in this order
        "hideEmptyCharts": True,
        "viewMaximized": False,
        "runListHidden": False,
        **changes,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    envelope = {"name": name, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    return View(key, name, json.dumps(envelope))


def _section(uuid: str, name: str, *, display: bool = True) -> dict[str, Any]:
    place = {"isReordered": True, "deleted": False, "isGenerated": False, "cardHeight": 320}
    return {"uuid": uuid, "name": name, "display": display, **place}


def _chart(kind: str, uuid: str, section: str, **content: Any) -> dict[str, Any]:
    place = {"metricSectionId": section, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "type": kind, **content, **place}


def _scatter(uuid: str, x: tuple[str, str], y: tuple[str, str], section: str) -> dict[str, Any]:
    axes = {f"{axis}axis": {"key": key, "type": kind} for axis, (key, kind) in (("x", x), ("y", y))}
    return _chart("SCATTER", uuid, section, **axes, runsCountToCompare=1000)


def _line(metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "range": {"yMin": 0, "yMax": 1}}
    common = {"yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False, "lineSmoothness": 0}
    return _chart("LINE", metric, "tasks", metricKey=metric, **axes, **common)
