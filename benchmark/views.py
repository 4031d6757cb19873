"""A saved view of the MLflow UI: the chart page of an experiment, grouped by strategy, held by an experiment tag."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from typing import Any

VIEW = "forgetbench"
NAME = "Strategies compared"  # in the page's menu of views
METRICS = ("average_accuracy", "forgetting", "learning_accuracy")


def comparison(tasks: int, strategies: Iterable[str] = (), overview: str = "") -> tuple[str, str]:
    """Key and value of the experiment tag that holds the view.

    Charts show means over the runs of a strategy: bars of summary metrics, lines of the accuracy on each task. The same
    arguments give the same value, so setting the tag again changes nothing.

    Args:
        tasks: how many the scenario has.
        strategies: labels whose runs are folded away in the list beside the charts.
        overview: id of the overview run whose runs are shown; empty: all runs.
    """
    state = {
        # All but overviews, or the runs of one: other settings of the experiment may have the same labels.
        "searchFilter": f"tags.`forgetbench.overview` = '{overview}'"
        if overview
        else "tags.`forgetbench.kind` = 'run'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [f"metrics.`{name}`" for name in METRICS],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "strategy"}]},
        "groupsExpanded": {f"param.strategy.{label}": False for label in strategies},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [
            *(_chart("BAR", name, "summary") for name in METRICS),
            *(_line(f"acc/task_{task:02d}") for task in range(1, tasks + 1)),
        ],
        # The page adds a chart for every other metric to the section of this name.
        "compareRunSections": [
            _section("summary", "Summary"),
            _section("tasks", "Accuracy on each task"),
            _section("others", "Model metrics", display=False),
        ],
        "isAccordionReordered": True,  # sections stay in this order
        "hideEmptyCharts": True,
        "viewMaximized": False,
        "runListHidden": False,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    envelope = {"name": NAME, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    return f"mlflow.sharedViewState.{VIEW}", json.dumps(envelope)


def path(experiment_id: str) -> str:
    """What follows the server's address in the URL that opens the view.

    Args:
        experiment_id: of an experiment that has the tag.
    """
    query = f"viewStateShareKey={VIEW}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _section(uuid: str, name: str, *, display: bool = True) -> dict[str, Any]:
    place = {"isReordered": True, "deleted": False, "isGenerated": False, "cardHeight": 320}
    return {"uuid": uuid, "name": name, "display": display, **place}


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    place = {"metricSectionId": section, "deleted": False, "isGenerated": False}
    return {"uuid": metric, "type": kind, "metricKey": metric, **place}


def _line(metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "range": {"yMin": 0, "yMax": 1}}
    common = {"yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False, "lineSmoothness": 0}
    return _chart("LINE", metric, "tasks") | axes | common
