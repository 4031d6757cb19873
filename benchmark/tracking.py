"""MLflow: flat runs that the chart view compares at once, tied to one overview run that holds what is common.

Trials of a study are flat too, and the runs of their seeds nest under them.

One process writes, through `MlflowClient` with one batch a run. What is delivered is found out by asking the server, so
delivering twice is the same as once, and a run cut off in the middle is delivered anew.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmark import views
from benchmark.files import replacing
from benchmark.results import Record
from benchmark.server import (
    KEY,
    KIND,
    LAM,
    MATRIX,
    OVERVIEW,
    OWNER,
    PARENT,
    REASON,
    STATUS,
    WHAT,
    TrackingError,
    client,
    explained,
    search,
)
from strategies import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

COLOUR = "mlflow.runColor"
STATUSES = {"finished": "FINISHED", "pruned": "KILLED"}  # anything else: FAILED


def start_times(runs: Iterable[tuple[str, int]], started: float) -> dict[str, float]:
    """When each run of an experiment is said to have begun: a millisecond apart, in the opposite of the table's order.

    The runs of a stack begin together. MLflow lists the newest first and charts ten: so those are one seed of every
    strategy, in the order of the experiment.

    Args:
        runs: key and seed of every run of the experiment.
        started: when the experiment began, in seconds since the epoch.
    """
    listed = list(runs)
    seeds = list(dict.fromkeys(seed for _, seed in listed))
    ranked = sorted(listed, key=lambda run: seeds.index(run[1]))[::-1]
    return {key: started + rank / 1000 for rank, (key, _) in enumerate(ranked, start=1)}


@dataclass(frozen=True)
class Trial:
    """Runs that count as one, which nest under a run of their own.

    Attributes:
        key: identifies the trial and its outcome.
        name: of its run.
        status: `finished`, `failed`, `diverged` or `pruned`.
        reason: why it did not finish, or empty.
        params: what the UI groups by.
        metrics: what it charts, beside the runs' mean accuracy on each task.
        started: when it was asked, in seconds since the epoch.
        ended: when its value was known, likewise.
        runs: one a seed.
    """

    key: str
    name: str
    status: str
    reason: str
    params: dict[str, str]
    metrics: dict[str, float]
    started: float
    ended: float
    runs: list[Record]


class _Tracked(NamedTuple):
    """A run that is there: its id, the overview it is tied to, and its name."""

    run_id: str
    overview: str
    name: str


class Tracker:
    """An MLflow experiment.

    Args:
        uri: tracking URI.
        experiment: its name; made if missing.
        artifacts: folder for artifacts where a new experiment's tracking store is a local database.

    Raises:
        TrackingError: nothing usable answers at that URI.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        self.uri = uri
        # Kind of run -> key -> what is there. This process alone writes: asking once is enough.
        self._there: dict[str, dict[str, _Tracked]] = {}
        # Run key -> run id of those of them that failed, which may have been tried again; empty for somebody else's.
        self._failed: dict[str, str] = {}
        # Of runs delivered from here, half or whole: several folders, and people, may share a server.
        self.owner = _owner(artifacts)
        self._overview, self._common = "", dict[str, str]()  # the overview run, and what its runs have in common
        self._client = client(uri)
        with explained(uri):
            found = self._client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"the MLflow experiment {experiment!r} was deleted: restore it (mlflow experiments restore) "
                    "or give yours another name"
                )
            # A database has no server to keep artifacts; without a folder of ours they would land in the current one.
            database = "://" in uri and not uri.startswith("http")
            location = artifacts.resolve().as_uri() if database else None
            self.experiment_id: str = found.experiment_id if found else self._create_experiment(experiment, location)

    def _create_experiment(self, name: str, location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)  # another driver made it a moment ago

    def deliver(
        self,
        records: Iterable[Record],
        start_times: Mapping[str, float],
        colours: Mapping[str, str] | None = None,
        *,
        alone: bool = False,
    ) -> int:
        """Log every record that is not there yet.

        Args:
            records: in any order.
            start_times: by run key, in seconds since the epoch; see `start_times`.
            colours: of strategies in the UI, as `#rrggbb` by label.
            alone: other runs of this overview are results no more, and are tied to it no longer.

        Returns:
            How many were new.

        Raises:
            TrackingError: the server stopped answering.
        """
        records = list(records)
        new = self.missing(records)
        with explained(self.uri):
            for r in new:
                started_ms = int(start_times[r.run_key] * 1000)
                run_id = self._log(r, started_ms, (colours or {}).get(r.strategy, ""))
                self._there["run"][r.run_key] = _Tracked(run_id, self._overview, _name(r))
                if superseded := self._failed.pop(r.run_key, ""):  # not before the new one is whole
                    self._client.delete_run(superseded)
                if r.status == "failed":
                    self._failed[r.run_key] = run_id
            self._tie("run", [r.run_key for r in records], alone)
        return len(new)

    def deliver_trials(
        self,
        trials: Iterable[Trial],
        colours: Mapping[str, str] | None = None,
        *,
        anew: bool = False,
        whole: Collection[str] = (),
    ) -> dict[str, dict[str, str]]:
        """Log every trial that is not there yet, and its runs nested under it.

        Args:
            trials: in any order.
            colours: as for `deliver`.
            anew: ask again what is there, since other drivers deliver too.
            whole: these are all there will be, delivered by these owners, one or more of whom may be gone. What one of
                them left unfinished, or delivered although another one had, is deleted; so are their overviews but the
                oldest of these settings. What others have here, with equal settings perhaps, stays.

        Returns:
            Of each trial that was new, by its key: the ids of its nested runs, by run key.

        Raises:
            TrackingError: the server stopped answering.
        """
        listed = {trial.key: trial for trial in trials}
        with explained(self.uri):
            if anew:
                self._there.pop("trial", None)
                self._overview = next(iter(self._overviews()), self._overview)  # whoever gathers keeps the first
            if whole:
                self._gather({*listed}, {*whole})
            there = self._known("trial")
            new = {
                key: self._log_trial(trial, (colours or {}).get(trial.params["strategy"], ""))
                for key, trial in listed.items()
                if key not in there
            }
            self._tie("trial", list(listed))
        return new

    def missing(self, records: Iterable[Record]) -> list[Record]:
        """The records that are not there yet, or there as failed and have a result now, each once.

        Args:
            records: in any order.

        Raises:
            TrackingError: the server stopped answering.
        """
        with explained(self.uri):
            there = self._known("run")

        def is_there(r: Record) -> bool:
            return r.run_key in there and (r.status == "failed" or r.run_key not in self._failed)

        return list({r.run_key: r for r in records if not is_there(r)}.values())

    def open(self, params: dict[str, str], started: float) -> None:
        """Create the overview run of these settings, or find it: the runs delivered from now on are tied to it.

        Args:
            params: what all runs have in common.
            started: when the experiment began, in seconds since the epoch.

        Raises:
            TrackingError: the server stopped answering.
        """
        with explained(self.uri):
            # Params of a run cannot change, so other settings have an overview of their own.
            self._common = params
            if found := self._overviews():
                self._overview = next(iter(found))
                return
            tags, start_ms = {KIND: "overview", OWNER: self.owner}, int(started * 1000)
            # A command killed just here has left one that says nothing yet.
            empty = (run for run in self._listed() if run.data.tags.get(OWNER) == self.owner and not run.data.params)
            run = next(empty, None) or self._client.create_run(
                self.experiment_id, start_time=start_ms, tags=tags, run_name="overview"
            )
            self._overview = str(run.info.run_id)
            self._batch(self._overview, [], params, {})

    def close(
        self,
        tags: dict[str, str],
        note: str,
        files: dict[str, Any],
        tasks: int,
        strategies: list[str],
        axes: views.Axes | None = None,
    ) -> None:
        """Fill the overview run, and what the experiment's page shows.

        Args:
            tags: of the environment.
            note: Markdown that the UI shows.
            files: by name: text, or matplotlib figures.
            tasks: how many the scenario has, for the saved view.
            strategies: labels in the order of the experiment, for the saved view.
            axes: of a study, for a saved view of its trials, which is then the first to be seen.

        Raises:
            TrackingError: the server stopped answering.
        """
        with explained(self.uri):
            self._batch(self._overview, [], {}, {**tags, "mlflow.note.content": _cut(note, 8000)})
            with tempfile.TemporaryDirectory(prefix="forgetbench-") as folder:
                for name, content in files.items():
                    _save(Path(folder) / name, content)
                self._client.log_artifacts(self._overview, folder)
            began_ms = self._client.get_run(self._overview).info.start_time
            self._client.set_terminated(self._overview, end_time=_end_ms(time.time(), began_ms))
            shown = [views.comparison(tasks, strategies, self._overview, views.TESTED if axes else views.VIEW)]
            if axes:
                shown.insert(0, views.trials(axes, self._overview))
            links = [f"[{v.name} in charts]({views.path(self.experiment_id, v.key).removeprefix('/')})" for v in shown]
            note = _cut(f"{' · '.join(links)}\n\n{note}", 5000)
            self._client.set_experiment_tag(self.experiment_id, "mlflow.note.content", note)
            for view in shown:
                self._client.set_experiment_tag(self.experiment_id, view.tag, view.value)

    def _tie(self, kind: str, keys: list[str], alone: bool = False) -> None:
        """Tie runs to the overview that are tied to one of older settings, and untie what they supersede.

        Args:
            kind: of runs.
            keys: of these runs.
            alone: they supersede all others; else those of the same strategy and seed, whose code was another.
        """
        if not self._overview:
            return
        there = self._there[kind]
        names = {there[key].name for key in keys} if kind == "run" else set()
        others = {key: run for key, run in there.items() if run.overview == self._overview and key not in {*keys}}
        superseded = {key for key, run in others.items() if alone or run.name in names}
        for key, overview in (dict.fromkeys(keys, self._overview) | dict.fromkeys(superseded, "")).items():
            if there[key].overview != overview:
                self._client.set_tag(there[key].run_id, OVERVIEW, overview)
                there[key] = there[key]._replace(overview=overview)

    def _overviews(self) -> dict[str, str]:
        """Overview runs of these settings and their owners, oldest first: drivers that begin at once make several."""
        same = [run for run in self._listed() if run.data.params == self._common]
        same.sort(key=lambda run: (run.info.start_time, run.info.run_id))
        return {str(run.info.run_id): run.data.tags.get(OWNER, "") for run in same}

    def _listed(self) -> list[Run]:
        return list(self._client.search_runs([self.experiment_id], f"tags.`{KIND}` = 'overview'"))

    def _gather(self, keys: set[str], owners: set[str]) -> None:
        """Look at what is there anew, since other drivers deliver too, and make it one of each.

        Args:
            keys: of all trials.
            owners: who may have delivered them.
        """
        if self._overview and (found := self._overviews()):
            self._overview, *others = found
            for run_id in others:
                if found[run_id] in owners:
                    self._client.delete_run(run_id)
        self._there["trial"] = self._delivered("trial", keys, owners)

    def _known(self, kind: str) -> dict[str, _Tracked]:
        if kind not in self._there:
            self._there[kind] = self._delivered(kind)
        return self._there[kind]

    def _delivered(self, kind: str, gathered: Container[str] = (), owners: Container[str] = ()) -> dict[str, _Tracked]:
        """The runs that are there whole, by key; those that this folder's commands left unfinished are deleted.

        Args:
            kind: of runs.
            gathered: keys of those that none of the owners is about to deliver: unfinished or twice, they are deleted.
            owners: of runs that may be.
        """
        found: dict[str, _Tracked] = {}
        unfinished, whole = [], []
        for run in search(self._client, [self.experiment_id], f"tags.`{KIND}` = '{kind}'"):
            tags = run.data.tags
            if run.info.status in {"FINISHED", "FAILED", "KILLED"}:
                whole.append(run)
            elif tags.get(OWNER) == self.owner or (tags.get(KEY) in gathered and tags.get(OWNER) in owners):
                unfinished.append(run.info.run_id)
        for run in sorted(whole, key=_failed, reverse=True):
            key, mine = run.data.tags[KEY], run.data.tags.get(OWNER) == self.owner
            if key in gathered and run.data.tags.get(OWNER) not in owners:
                continue  # of a study that is not this one
            if key in found and key in gathered:  # one that did not fail replaces one that did, as below
                unfinished.append(found[key].run_id)
            # A command killed between logging a run that was tried again and deleting the one that failed left both.
            if superseded := self._failed.pop(key, ""):
                unfinished.append(superseded)
            if kind == "run" and _failed(run):
                self._failed[key] = run.info.run_id if mine else ""
            found[key] = _Tracked(run.info.run_id, run.data.tags.get(OVERVIEW, ""), run.info.run_name or "")
        for run_id in unfinished:  # not before: pages are counted, and would leave out as many as were deleted
            self._delete(run_id)
        return found

    def _delete(self, run_id: str) -> None:
        """A run and those nested under it."""
        for child in list(search(self._client, [self.experiment_id], f"tags.`{PARENT}` = '{run_id}'")):
            self._client.delete_run(child.info.run_id)
        self._client.delete_run(run_id)

    def _log_trial(self, trial: Trial, colour: str) -> dict[str, str]:
        """The ids of its nested runs, by run key."""
        from mlflow.entities import Metric

        tags = {KEY: trial.key, STATUS: trial.status, REASON: trial.reason, COLOUR: colour}
        started_ms, now = int(trial.started * 1000), int(time.time() * 1000)
        run_id = self._create("trial", trial.name, started_ms, tags)
        nested = {r.run_key: self._log(r, started_ms, colour, run_id) for r in trial.runs}
        metrics = [Metric(k, v, now, 0) for k, v in trial.metrics.items()]
        if trial.runs:
            metrics += _curves(np.mean([r.accuracy for r in trial.runs], axis=0), now)
        self._batch(run_id, metrics, trial.params, {})
        # Last, so that a trial that has ended has all of its runs.
        self._client.set_terminated(run_id, STATUSES.get(trial.status, "FAILED"), _end_ms(trial.ended, started_ms))
        self._there["trial"][trial.key] = _Tracked(run_id, self._overview, trial.name)
        return nested

    def _create(self, kind: str, name: str, started_ms: int, tags: dict[str, str]) -> str:
        """A run with those tags that say something."""
        tied = {} if tags.get(PARENT) else {OVERVIEW: self._overview}
        said = {k: v for k, v in {KIND: kind, OWNER: self.owner, **tied, **tags}.items() if v}
        run = self._client.create_run(self.experiment_id, start_time=started_ms, tags=said, run_name=name)
        return str(run.info.run_id)

    def _log(self, r: Record, started_ms: int, colour: str, parent: str = "") -> str:
        from mlflow.entities import Metric

        about = registry.about(r.fields.get("strategy_name", ""))
        tags = {KEY: r.run_key, STATUS: r.status, REASON: r.reason, PARENT: parent, COLOUR: colour}
        tags |= {WHAT: about.get("what", ""), LAM: about.get("lam", "")}
        run_id = self._create("seed" if parent else "run", _name(r), started_ms, tags)
        now = int(time.time() * 1000)
        metrics = [Metric(k, v, now, 0) for k, v in r.values.items() if np.isfinite(v)]
        metrics.append(Metric("train_seconds", float(r.facts["train_seconds"]), now, 0))
        metrics += _curves(r.accuracy, now)
        params = {"strategy": r.strategy, "seed": str(r.seed), **r.fields, "trunk": r.facts["trunk"]}
        self._batch(run_id, metrics, {k: v for k, v in params.items() if v}, {})
        if not parent:  # a trial's runs are many, and their curves hold the same numbers
            matrix = {
                "run_key": r.run_key,
                "rows": "after task 0..T",
                "columns": "task 1..T",
                "accuracy": _for_json(r.accuracy),
            }
            self._client.log_dict(run_id, matrix, MATRIX)
        ended = started_ms + int(float(r.facts["train_seconds"]) * 1000)  # the run's own share of its stack
        self._client.set_terminated(run_id, STATUSES.get(r.status, "FAILED"), ended)
        return run_id

    def _batch(self, run_id: str, metrics: list[Any], params: dict[str, str], tags: dict[str, str]) -> None:
        """One request where the server's limits allow."""
        from mlflow.entities import Param, RunTag

        room = 1000 - len(params) - len(tags)
        self._client.log_batch(
            run_id,
            metrics=metrics[:room],
            params=[Param(k, v) for k, v in params.items()],
            tags=[RunTag(k, v) for k, v in tags.items()],
        )
        for start in range(room, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[start : start + 1000])


def _name(r: Record) -> str:
    return f"{r.strategy} seed {r.seed}"


def _end_ms(ended: float, started_ms: int) -> int:
    """When a run ended, which is not before it began: a clock may jump back in between."""
    return max(int(ended * 1000), started_ms)


def _owner(folder: Path) -> str:
    """What a folder of results is known by, on whatever machine its next command runs.

    Args:
        folder: of artifacts; gets the file that says so.
    """
    path = folder / ".owner"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(uuid.uuid4().hex.encode())
    return path.read_text(encoding="ascii")


def _failed(run: Run) -> bool:
    return bool(run.data.tags.get(STATUS) == "failed")


def _curves(accuracy: NDArray[np.float64], now: int) -> list[Any]:
    """Accuracy on each task against tasks trained, as metrics."""
    from mlflow.entities import Metric

    cells = [(k, j, float(v)) for (k, j), v in np.ndenumerate(accuracy)]
    return [Metric(f"acc/task_{j + 1:02d}", v, now, k) for k, j, v in cells if np.isfinite(v)]


def _cut(note: str, most: int) -> str:
    """At a line's end, to the length that every supported server takes; the whole is among the artifacts."""
    if len(note) <= most:
        return note
    return note[: note.rindex("\n", 0, most - 40)] + "\n\nand more: see `result_table.md`"


def links(uri: str) -> list[tuple[str, str]]:
    """Name and page of each experiment's saved view, to put after the UI's address.

    Args:
        uri: of a local tracking store.

    Raises:
        TrackingError: nothing usable answers there.
    """
    opened = client(uri)
    with explained(uri):
        import mlflow

        found = opened.search_experiments()
    # Older versions show an empty page for a view saved in this form.
    knows_views = tuple(int(part) for part in mlflow.__version__.split(".")[:2]) >= (3, 15)
    ours = [e for e in found if f"mlflow.sharedViewState.{views.VIEW}" in e.tags]
    plain = "/#/experiments/{}/runs?workflowType=machine_learning"
    return [(e.name, views.path(e.experiment_id) if knows_views else plain.format(e.experiment_id)) for e in ours]


def _for_json(a: NDArray[np.float64]) -> list[list[float | None]]:
    """Lists of rows, where NaN is null: JSON has none."""
    return [[float(v) if np.isfinite(v) else None for v in row] for row in a]


def _save(path: Path, content: str | Figure) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        content.savefig(path, dpi=200)
