"""Tracked runs as tidy frames. The only file here that asks MLflow, and it asks in bulk: a search, and a file a run.

`runs` has one row a run, in the order of the experiment:

| column | meaning |
|---|---|
| run_id | MLflow's id of the run |
| run_key | identifies what determines the result |
| experiment | name of the MLflow experiment |
| overview | id of the overview run it is tied to, or empty |
| strategy | label, such as `ewc[lam=10000]` |
| seed | of the run |
| status | `finished`, `diverged`, or `unfinished` where a command was interrupted |
| started | when it began; runs of one experiment are a millisecond apart, see `benchmark.tracking.start_times` |
| phase | `test` for the runs that test a study's choice, else empty |
| what, lam_means | what the strategy does, and the convention of its λ |
| every param | as tracked: recipe, scenario and options of the strategy; numbers where all values are |
| every metric | as tracked: `average_accuracy`, `forgetting`, `bwt`, `fwt`, `learning_accuracy`, `train_seconds` ... |

`accuracy` has one row a cell of an accuracy matrix: `run_id, run_key, strategy, seed, after_task (0..T), task (1..T),
accuracy`.
"""

from __future__ import annotations

import difflib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.errors import Explained
from benchmark.server import (
    KEY,
    KIND,
    LAM,
    MATRIX,
    OVERVIEW,
    STATUS,
    WHAT,
    client,
    explained,
    quiet,
    redacted,
    search,
    sqlite_file,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

COLUMNS = (
    *("run_id", "run_key", "experiment", "overview", "strategy", "seed", "status", "started", "phase", "what"),
    "lam_means",
)
CELLS = ("run_id", "run_key", "strategy", "seed", "after_task", "task", "accuracy")
TRIALS = ("trials", "seeds", "search_space", "importance")
READERS = 16  # files asked for at a time, where they come from a server
ARTIFACTS = "mlartifacts"  # the folder beside a database of which artifacts have absolute paths
IDS = 200  # runs named in a search request


class ReportError(Explained):
    """There is nothing to report, or not what was asked for."""


@dataclass(frozen=True)
class Overview:
    """An overview run.

    Attributes:
        run_id: MLflow's id.
        experiment: name of the MLflow experiment.
        settings: what its runs have in common; of a study, its protocol and objective.
        environment: versions, device, revision, command, checksums.
        trials: of a study: the frames `trials`, `seeds`, `search_space` and `importance` (see `reports.studies`).
    """

    run_id: str
    experiment: str
    settings: dict[str, str]
    environment: dict[str, str]
    trials: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def study(self) -> str:
        """Name of the study, or empty for an experiment."""
        return self.settings.get("study", "")


@dataclass(frozen=True)
class Tracked:
    """What the tracker knows of the runs that were asked for.

    Attributes:
        runs: see above.
        accuracy: see above; runs whose file is not there are absent.
        overviews: by run id, those that the runs are tied to.
        uri: where it was read, without secrets.
    """

    runs: pd.DataFrame
    accuracy: pd.DataFrame
    overviews: dict[str, Overview]
    uri: str


def runs(
    uri: str, *, experiments: Sequence[str] = (), studies: Sequence[str] = (), ids: Sequence[str] = ()
) -> pd.DataFrame:
    """The runs of an experiment, a study or a selection; see above for the columns.

    Args:
        uri: tracking URI.
        experiments: names; of none of the three, the only one there is.
        studies: names.
        ids: of runs; an overview's stands for all runs tied to it.

    Raises:
        ReportError: no such experiment, study or run, or none that ended.
        TrackingError: nothing usable answers there.
    """
    return load(uri, experiments=experiments, studies=studies, ids=ids).runs


def load(uri: str, *, experiments: Sequence[str] = (), studies: Sequence[str] = (), ids: Sequence[str] = ()) -> Tracked:
    """Runs, their accuracy matrices and their overviews; arguments and errors as for `runs`."""
    _there(uri)
    reader = _Reader(uri)
    found = reader.chosen(experiments, studies, ids)
    frame = _frame(found, reader.names)
    accuracy = reader.accuracy(frame, {run.info.run_id: run.info.artifact_uri for run in found})
    return Tracked(frame, accuracy, reader.overviews(frame["overview"]), redacted(uri))


def _there(uri: str) -> None:
    """MLflow makes a database that is missing; a report has nothing to say about a new one.

    Raises:
        ReportError: it is missing.
    """
    if (path := sqlite_file(uri)) and not path.is_file():
        raise ReportError(f"there is no tracking database {path}; run an experiment (forgetbench run permuted-digits)")


class _Reader:
    """Searches and files of one tracking server."""

    def __init__(self, uri: str) -> None:
        self._uri, self._client = uri, client(uri)
        database = sqlite_file(uri)
        self._beside = database.parent / ARTIFACTS if database else None
        with explained(uri):
            self.names: dict[str, str] = {e.experiment_id: e.name for e in self._client.search_experiments()}

    def chosen(self, experiments: Sequence[str], studies: Sequence[str], ids: Sequence[str]) -> list[Run]:
        if not (experiments or studies or ids):
            experiments = [self._only_experiment()]
        found = [run for name in experiments for run in self._of_experiment(name)]
        found += [run for name in studies for run in self._of_study(name)]
        found += self._of_ids(list(ids)) if ids else []
        return list({run.info.run_id: run for run in found}.values())

    def overviews(self, ids: Iterable[str]) -> dict[str, Overview]:
        wanted = [i for i in dict.fromkeys(ids) if i]
        found = [run for run in self._by_id(wanted) if run.data.tags.get(KIND) == "overview"]
        return {run.info.run_id: self._overview(run) for run in found}

    def accuracy(self, frame: pd.DataFrame, artifacts: dict[str, str]) -> pd.DataFrame:
        def matrix(run_id: str) -> NDArray[np.float64]:
            text = self._file(artifacts[run_id], MATRIX)
            return np.array(json.loads(text)["accuracy"] if text else [[]], dtype=float)

        return _cells(frame, self._all(matrix, frame["run_id"]))

    def _only_experiment(self) -> str:
        overviews = self._search(f"tags.`{KIND}` = 'overview'")
        names = {self.names[run.info.experiment_id] for run in overviews if "study" not in run.data.params}
        studies = {run.data.params["study"] for run in overviews if "study" in run.data.params}
        if len(names) == 1 and not studies:
            return names.pop()
        if not overviews:
            raise ReportError("no runs are tracked there yet; run an experiment (forgetbench run permuted-digits)")
        there = [f"--experiment {name}" for name in sorted(names)] + [f"--study {name}" for name in sorted(studies)]
        raise ReportError(f"say what to report on: {', '.join(there)}")

    def _of_experiment(self, name: str) -> list[Run]:
        experiment_id = next((i for i, known in self.names.items() if known == name), None)
        if experiment_id is None:
            raise ReportError(f"no experiment {name!r}{self._known_experiments(name)}")
        there = self._search(f"tags.`{KIND}` = 'run'", [experiment_id])
        found = [run for run in there if run.data.params.get("phase") != "test"]
        if not found:
            hint = f"; it holds a study: --study {name}" if there else "; run it first (forgetbench run)"
            raise ReportError(f"experiment {name!r} has no runs{hint}")
        return found

    def _of_study(self, name: str) -> list[Run]:
        overviews = self._search(f"tags.`{KIND}` = 'overview' and params.study != ''")
        named = [run for run in overviews if run.data.params["study"] == name]
        if not named:
            known = list(dict.fromkeys(run.data.params["study"] for run in overviews))
            raise ReportError(f"no study {name!r}{_did_you_mean(name, known)}")
        overview = named[0]  # the newest
        found = self._tied(overview)
        if not found:
            raise ReportError(self._untested(name, self._overview(overview)))
        return found

    def _untested(self, name: str, overview: Overview) -> str:
        """Why a study has no runs: none of its trials gave it a choice, or it is not that far."""
        trials = overview.trials.get("trials", pd.DataFrame({"state": []}))
        states = trials["state"].value_counts()
        # The tables of trials are written once, when a study has ended.
        if len(trials) and "complete" not in states:
            lost = ", ".join(f"{many} {state}" for state, many in states.items())
            return (
                f"study {name!r} chose nothing: of its {len(trials)} trials {lost}; search where runs end well, or "
                "look at its recipe"
            )
        return f"study {name!r} has not tested its choice yet; finish it (forgetbench study --resume)"

    def _of_ids(self, ids: list[str]) -> list[Run]:
        there = self._by_id(ids)
        missing = [i for i in ids if i not in {run.info.run_id for run in there}]
        if missing:
            known = [
                run.info.run_id for kind in ("overview", "run") for run in self._search(f"tags.`{KIND}` = '{kind}'")
            ]
            raise ReportError(f"no run {missing[0]!r}{_did_you_mean(missing[0], known)}")
        kinds = {run.info.run_id: run.data.tags.get(KIND) for run in there}
        other = [i for i, kind in kinds.items() if kind not in {"run", "overview"}]
        if other:
            what = {"trial": "a trial of a study", "seed": "a trial's run"}.get(
                kinds[other[0]] or "", "not forgetbench's"
            )
            raise ReportError(f"run {other[0]!r} is {what}; expected a run of an experiment or its overview")
        return [r for run in there for r in (self._tied(run) if kinds[run.info.run_id] == "overview" else [run])]

    def _tied(self, overview: Run) -> list[Run]:
        where = f"tags.`{KIND}` = 'run' and tags.`{OVERVIEW}` = '{overview.info.run_id}'"
        return self._search(where, [overview.info.experiment_id])

    def _by_id(self, ids: list[str]) -> list[Run]:
        found: list[Run] = []
        for start in range(0, len(ids), IDS):
            some = ", ".join(f"'{i}'" for i in ids[start : start + IDS] if i.isalnum())
            found += self._search(f"attributes.run_id IN ({some})") if some else []
        return found

    def _search(self, where: str, experiments: list[str] | None = None) -> list[Run]:
        with explained(self._uri):
            return list(search(self._client, experiments or list(self.names), where))

    def _known_experiments(self, name: str) -> str:
        return _did_you_mean(name, [known for known in self.names.values() if known != "Default"])

    def _overview(self, run: Run) -> Overview:
        trials = {}
        if "study" in run.data.params:
            texts = self._all(lambda name: self._file(run.info.artifact_uri, f"{name}.csv"), TRIALS)
            trials = {k: pd.read_csv(io.StringIO(text)) for k, text in zip(TRIALS, texts, strict=True) if text}
        environment = {k: v for k, v in run.data.tags.items() if not k.startswith(("mlflow.", "forgetbench."))}
        return Overview(run.info.run_id, self.names[run.info.experiment_id], run.data.params, environment, trials)

    def _all(self, read: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(read, names))

    def _file(self, artifacts: str, name: str) -> str | None:
        """The text of an artifact; None where it is not there (any more)."""
        where = urlparse(artifacts)
        try:
            if where.scheme in {"", "file"}:
                return self._found(Path(url2pathname(where.path), name)).read_text(encoding="utf-8")
            with tempfile.TemporaryDirectory(prefix="forgetbench-") as folder, quiet():
                from mlflow.artifacts import download_artifacts

                uri = f"{artifacts}/{name}"
                return Path(download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=self._uri)).read_text(
                    encoding="utf-8"
                )
        except Exception:  # each kind of store has its own errors, and a report without this file says so
            return None

    def _found(self, path: Path) -> Path:
        """The file, or where it is now: a folder that was copied or moved keeps its database and artifacts together."""
        if self._beside is None or path.is_file() or ARTIFACTS not in path.parts:
            return path
        last = len(path.parts) - path.parts[::-1].index(ARTIFACTS)
        return self._beside.joinpath(*path.parts[last:])


def _frame(found: list[Run], names: dict[str, str]) -> pd.DataFrame:
    rows = []
    for run in found:
        tags, params = run.data.tags, run.data.params
        ended = run.info.status in {"FINISHED", "FAILED", "KILLED"}
        fixed = {
            "run_id": run.info.run_id,
            "run_key": tags.get(KEY, ""),
            "experiment": names[run.info.experiment_id],
            "overview": tags.get(OVERVIEW, ""),
            "strategy": params.get("strategy", run.info.run_name),
            "seed": params.get("seed", "0"),
            "status": tags.get(STATUS, "unfinished") if ended else "unfinished",
            "started": pd.Timestamp(run.info.start_time, unit="ms"),
            "phase": params.get("phase", ""),
            "what": tags.get(WHAT, ""),
            "lam_means": tags.get(LAM, ""),
        }
        curves = {k: v for k, v in run.data.metrics.items() if not k.startswith("acc/")}
        rows.append(fixed | {k: v for k, v in params.items() if k not in fixed} | curves)
    frame = pd.DataFrame(rows)
    if "compile" in frame:  # runs name it only where it is on, see `benchmark.recipe`
        frame["compile"] = frame["compile"].fillna("False")
    for name in frame.columns.difference([c for c in COLUMNS if c != "seed"]):
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if numbers.notna().equals(frame[name].notna()):
            frame[name] = numbers
    return frame


def _cells(frame: pd.DataFrame, matrices: list[NDArray[np.float64]]) -> pd.DataFrame:
    """One row a cell, of one matrix a run; all runs at once, since a frame a run takes as long as all else here."""
    runs = frame[[*CELLS[:4]]].loc[frame.index.repeat([matrix.size for matrix in matrices])].reset_index(drop=True)
    after, task = np.hstack([np.indices(matrix.shape).reshape(2, -1) for matrix in matrices])
    return runs.assign(after_task=after, task=task + 1, accuracy=np.concatenate([m.ravel() for m in matrices]))


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:5]
    more = f" and {len(known) - len(near)} more" if len(known) > len(near) else ""
    return f"; there are {', '.join(near)}{more}" if near else "; there are none"
