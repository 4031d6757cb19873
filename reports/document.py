"""A report as data: everything that a template shows, computed from tracked runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from reports import (
    ablation,
    compare,
    figures,
    findings,
    limits,
    names,
    recipes,
    setting,
    study_figures,
    tables,
    tuning,
)  # fmt: skip
from reports.density import density
from reports.load import Overview, ReportError, Tracked
from reports.ranking import Ranking, ranking
from reports.table import Table


@dataclass(frozen=True, eq=False)
class Section:
    """What is said of the runs of one recipe.

    Attributes:
        title: what tells it from the report's other sections; empty where there is one.
        stem: what its files' names begin with; empty where there is one section.
        runs: as `reports.load` has them.
        names: spoken, by label.
        reference: label of the baseline, or empty where there is nothing to compare.
        question: in words.
        setting: in words.
        recipe: what all runs share, by name.
        findings: sentences.
        tables: by name: `main`, `tasks`, `strategies`, and where there is something to show `paired`, `lost`.
        figures: with captions, by name.
        ablation: where the runs are enough for one.
        origin: which of the settings a study chose, and which of these on the test set.
        tuning: one a study.
        limitations: sentences.
    """

    title: str
    stem: str
    runs: pd.DataFrame
    names: Mapping[str, str]
    reference: str
    question: str
    setting: str
    recipe: Mapping[str, str]
    findings: list[str]
    tables: dict[str, Table]
    figures: dict[str, figures.Drawn]
    ablation: ablation.Ablation | None
    origin: tuning.Origin
    tuning: list[tuning.Tuning]
    limitations: list[str]

    @property
    def ids(self) -> dict[str, list[str]]:
        """MLflow's ids of the runs, by label of the strategy, in order of seed."""
        ordered = self.runs.sort_values("seed", kind="stable")
        return {label: list(ordered.loc[ordered["strategy"] == label, "run_id"]) for label in self.names}

    @property
    def every_table(self) -> list[Table]:
        """Those of its parts too."""
        found = [*self.tables.values(), *(self.ablation.tables if self.ablation else [])]
        return [*found, *(each.table for each in self.tuning)]


@dataclass(frozen=True, eq=False)
class Document:
    """A report.

    Attributes:
        title: of the report.
        sections: one a recipe.
        overviews: by run id.
        uri: where the runs are tracked, without secrets.
        ranking: strategies over scenarios, where there are several.
        commands: that trained the runs.
        superseded: runs left out because a newer one of the same setting and seed is there.
    """

    title: str
    sections: list[Section]
    overviews: Mapping[str, Overview]
    uri: str
    ranking: Ranking | None
    commands: list[str] = field(default_factory=list)
    superseded: int = 0

    @property
    def stem(self) -> str:
        """A name for its folder."""
        return "-".join(re.sub(r"[^\w.-]+", "-", name) for name in self.title.split(", "))

    @property
    def every_figure(self) -> dict[str, figures.Drawn]:
        """By the name of its files."""
        found = {f"{section.stem}{name}": drawn for section in self.sections for name, drawn in section.figures.items()}
        return found | ({"critical_difference": self.ranking.figure} if self.ranking else {})

    @property
    def tuned_on_test(self) -> bool:
        """Whether some of its settings were chosen on the test set."""
        return any(section.origin.on_test for section in self.sections)


def build(tracked: Tracked, *, baseline: str = "naive", allow_mixed: bool = False) -> Document:
    """Everything a report says.

    Args:
        tracked: what to report on.
        baseline: a strategy's label or name, with which the others are compared.
        allow_mixed: runs of several recipes get a section each.

    Raises:
        ReportError: no finished runs, runs of several recipes, or no such baseline.
    """
    if compare.finished(tracked.runs).empty:
        states = ", ".join(f"{many} {status}" for status, many in tracked.runs["status"].value_counts().items())
        wait = "wait for the experiment, or " * bool(tracked.runs["status"].eq("unfinished").any())
        raise ReportError(f"no finished runs to report on: {states}; {wait}look at its recipe")
    current = recipes.groups(tracked.runs, allow_mixed=allow_mixed)
    # One cast for the whole report: a strategy has the same colour and name in every section.
    cast = figures.Cast.of(label for group in current for label in group.runs["strategy"])
    sections = [_section(group, i, len(current), tracked, cast, baseline) for i, group in enumerate(current, 1)]
    experiments = list(dict.fromkeys(tracked.runs["experiment"]))
    return Document(
        title=", ".join(experiments),
        sections=sections,
        overviews=tracked.overviews,
        uri=tracked.uri,
        ranking=ranking([(section.title, section.runs) for section in sections], cast),
        commands=_commands(tracked.overviews),
        superseded=len(tracked.runs) - sum(len(group.runs) for group in current),
    )


def _section(
    group: recipes.Group, number: int, many: int, tracked: Tracked, cast: figures.Cast, baseline: str
) -> Section:
    accuracy = tracked.accuracy[tracked.accuracy["run_id"].isin(group.runs["run_id"])]
    runs = compare.with_new_tasks(group.runs, accuracy)
    labels = list(dict.fromkeys(runs["strategy"]))
    names = {label: cast.names[label] for label in labels}
    tied = set(runs["overview"])
    # Two studies may have tested one setting: its runs are those of one, and both are shown.
    overviews = {i: o for i, o in tracked.overviews.items() if i in tied or (o.study and i in group.overviews)}
    origin, chosen = tuning.origin(overviews, runs), tuning.tunings(overviews, runs, accuracy, names)
    reference = _reference(runs, baseline, bool(origin.tuned))
    differences = compare.differences(runs, reference) if reference else pd.DataFrame()
    cells = density(runs)
    optional = {
        "paired": tables.paired(differences, reference, names) if reference else None,
        "lost": tables.lost(runs, cells.lost, names),
        "tasks": tables.final(runs, accuracy, names) if len(accuracy) else None,
    }
    section = Section(
        title=group.title,
        stem=f"{number}-" if many > 1 else "",
        runs=runs,
        names=names,
        reference=reference,
        question=setting.question(runs),
        setting=setting.setting(runs),
        recipe=recipes.recipe(runs),
        findings=findings.sentences(runs, differences, reference, names) if reference else findings.alone(runs, names),
        tables={
            "main": tables.main(runs, names),
            "strategies": tables.strategies(runs, names),
            **{name: table for name, table in optional.items() if table},
        },
        figures=figures.every(runs, accuracy, cast) | tuning.drawn(overviews, cast),
        ablation=ablation.ablation(runs, names, chosen_on_test=not origin.tuned or bool(origin.on_test)),
        origin=origin,
        tuning=chosen,
        limitations=limits.limitations(runs, accuracy, differences, cells, overviews, origin, names),
    )
    return _marked(section) if origin.on_test else section


def _marked(section: Section) -> Section:
    """What comes of a choice on the test set says so wherever it is shown: parts of a report go their own ways."""
    mark, on_test = section.origin.mark, section.origin.on_test

    def table(given: Table) -> Table:
        known = "strategy" in given.frame
        told = given.frame.assign(tuned_on_test=given.frame["strategy"].isin(on_test) if known else True)
        return dataclasses.replace(given, caption=f"{mark} {given.caption}", frame=told)

    def drawn(given: figures.Drawn) -> figures.Drawn:
        if not given.figure.get_suptitle():
            given.figure.suptitle(mark.rstrip("."), x=0.01, ha="left", fontsize=7, color=study_figures.TUNED_ON_TEST)
        return dataclasses.replace(given, caption=f"{mark} {given.caption}")

    parts = section.ablation
    return dataclasses.replace(
        section,
        tables={name: table(given) for name, given in section.tables.items()},
        figures={name: drawn(given) for name, given in section.figures.items()},
        ablation=parts and dataclasses.replace(parts, tables=[table(given) for given in parts.tables]),
        tuning=[dataclasses.replace(each, table=table(each.table)) for each in section.tuning],
    )


def _reference(runs: pd.DataFrame, baseline: str, study: bool) -> str:
    """The strategy to compare with; a study need not have trained the default one, and one strategy has no other.

    Raises:
        ReportError: none is the baseline that was asked for.
    """
    labels = [str(label) for label in dict.fromkeys(runs["strategy"])]
    if len(labels) < 2:
        return ""
    try:
        return compare.baseline(runs, baseline)
    except ReportError:
        if baseline == "naive" and (study or not any(names.parse(label)[0] == "naive" for label in labels)):
            return labels[0]
        raise


def _commands(overviews: Mapping[str, Overview]) -> list[str]:
    found = [overview.environment.get("command", "") for overview in overviews.values()]
    return [command for command in dict.fromkeys(found) if command]
