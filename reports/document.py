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
    ranks,
    recipes,
    studies,
    study_figures,
    tables,
    tuning,
)  # fmt: skip
from reports.density import density
from reports.load import TRIALS, Overview, ReportError, Tracked
from reports.measures import LOWER_IS_BETTER
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
        tuning: of a study.
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
    tuning: tuning.Tuning | None
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
        return [*found, self.tuning.table] if self.tuning else found


@dataclass(frozen=True, eq=False)
class Document:
    """A report.

    Attributes:
        title: of the report.
        sections: one a recipe.
        overviews: by run id.
        uri: where the runs are tracked, without secrets.
        ranking: strategies over scenarios, where there are several, and its figure.
        commands: that trained the runs.
        superseded: runs left out because a newer one of the same setting and seed is there.
        tuned_on_test: something in it was.
    """

    title: str
    sections: list[Section]
    overviews: Mapping[str, Overview]
    uri: str
    ranking: ranks.Ranks | None
    ranking_figure: figures.Drawn | None
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
        return found | ({"critical_difference": self.ranking_figure} if self.ranking_figure else {})

    @property
    def tuned_on_test(self) -> bool:
        """Whether a study of it chose its settings on the test set."""
        return any(section.tuning and section.tuning.on_test for section in self.sections)


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
        raise ReportError(f"no finished runs to report on: {states}; wait for the experiment, or look at its recipe")
    groups = recipes.groups(tracked.runs, allow_mixed=allow_mixed)
    current = [dataclasses.replace(group, runs=_newest(group.runs)) for group in groups]
    # One cast for the whole report: a strategy has the same colour and name in every section.
    cast = figures.Cast.of(label for group in current for label in group.runs["strategy"])
    sections = [_section(group, i, len(current), tracked, cast, baseline) for i, group in enumerate(current, 1)]
    ranking, drawn = _ranking(sections, cast)
    experiments = list(dict.fromkeys(tracked.runs["experiment"]))
    return Document(
        title=", ".join(experiments),
        sections=sections,
        overviews=tracked.overviews,
        uri=tracked.uri,
        ranking=ranking,
        ranking_figure=drawn,
        commands=_commands(tracked.overviews),
        superseded=len(tracked.runs) - sum(len(group.runs) for group in current),
    )


def _newest(runs: pd.DataFrame) -> pd.DataFrame:
    """Newer code may have trained the same setting again: the tracker lists the newest first."""
    return runs.drop_duplicates(["strategy", "seed"]).reset_index(drop=True)


def _section(
    group: recipes.Group, number: int, many: int, tracked: Tracked, cast: figures.Cast, baseline: str
) -> Section:
    accuracy = tracked.accuracy[tracked.accuracy["run_id"].isin(group.runs["run_id"])]
    runs = compare.with_new_tasks(group.runs, accuracy)
    labels = list(dict.fromkeys(runs["strategy"]))
    names = {label: cast.names[label] for label in labels}
    overviews = {i: o for i, o in tracked.overviews.items() if i in set(runs["overview"])}
    chosen = next((t for o in overviews.values() if (t := tuning.tuning(o, runs, names))), None)
    reference = _reference(runs, baseline, chosen is not None)
    differences = compare.differences(runs, reference) if reference else pd.DataFrame()
    cells = density(runs)
    optional = {
        "paired": tables.paired(differences, reference, names) if reference else None,
        "lost": tables.lost(runs, cells.lost, names),
    }
    section = Section(
        title=group.title,
        stem=f"{number}-" if many > 1 else "",
        runs=runs,
        names=names,
        reference=reference,
        question=question(runs),
        setting=setting(runs),
        recipe=recipes.recipe(runs),
        findings=findings.sentences(runs, differences, reference, names) if reference else findings.alone(runs, names),
        tables={
            "main": tables.main(runs, names),
            "tasks": tables.final(runs, accuracy, names),
            "strategies": tables.strategies(runs, names),
            **{name: table for name, table in optional.items() if table},
        },
        figures=figures.every(runs, accuracy, cast) | _of_studies(overviews, cast),
        ablation=ablation.ablation(runs, names, chosen_on_test=chosen is None or chosen.on_test),
        tuning=chosen,
        limitations=limits.limitations(
            runs, accuracy, differences, cells, overviews,
            tuned_on_test=bool(chosen and chosen.on_test), tuned=chosen is not None,
        ),
    )  # fmt: skip
    return _marked(section) if chosen and chosen.on_test else section


def _marked(section: Section) -> Section:
    """What comes of a choice on the test set says so wherever it is shown: parts of a report go their own ways."""

    def table(given: Table) -> Table:
        caption = f"{tuning.ON_TEST} {given.caption}"
        return dataclasses.replace(given, caption=caption, frame=given.frame.assign(tuned_on_test=True))

    def drawn(given: figures.Drawn) -> figures.Drawn:
        if not given.figure.get_suptitle():
            given.figure.suptitle(
                tuning.ON_TEST.rstrip("."), x=0.01, ha="left", fontsize=7, color=study_figures.TUNED_ON_TEST
            )
        return dataclasses.replace(given, caption=f"{tuning.ON_TEST} {given.caption}")

    parts = section.ablation
    return dataclasses.replace(
        section,
        tables={name: table(given) for name, given in section.tables.items()},
        figures={name: drawn(given) for name, given in section.figures.items()},
        ablation=parts and dataclasses.replace(parts, tables=[table(given) for given in parts.tables]),
        tuning=section.tuning and dataclasses.replace(section.tuning, table=table(section.tuning.table)),
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
        if baseline == "naive" and (study or not any(label.startswith("naive") for label in labels)):
            return labels[0]
        raise


def question(runs: pd.DataFrame) -> str:
    """What the runs ask, in a sentence.

    Args:
        runs: of one recipe.
    """
    tasks = int(runs["tasks"].iloc[0]) if "tasks" in runs and pd.notna(runs["tasks"].iloc[0]) else 0
    sequence = f"{tasks} tasks" if tasks else "tasks"
    strategies, seeds = runs["strategy"].nunique(), runs["seed"].nunique()
    return (
        f"How much does a network forget when it learns {sequence} one after another, and which of {strategies} "
        f"strateg{'ies' if strategies > 1 else 'y'} forgets least, at which price on new tasks? "
        f"Each was trained with {seeds} seed{'s' * (seeds > 1)}."
    )


INCREMENTAL = {
    "task": "task-incremental: each task has a head of its own, and the task is known when an image is classified",
    "domain": "domain-incremental: all tasks share one head, and the task is not known when an image is classified",
    "class": "class-incremental: each task brings classes of its own, which compete with all earlier ones",
}


def setting(runs: pd.DataFrame) -> str:
    """How the runs were trained and tested, in words.

    Args:
        runs: of one recipe.
    """
    run = runs.iloc[0]

    def known(name: str) -> str:
        return f"{run[name]:g}" if name in run and isinstance(run[name], float) else str(run.get(name, ""))

    said = [f"Scenario `{known('scenario')}`"]
    if "images" in run:
        said.append(f"on {known('images')}")
    said.append(INCREMENTAL.get(known("incremental"), ""))
    length = f"{known('epochs')} epochs" if known("epochs") not in {"", "nan"} else f"{known('iterations')} steps"
    trained = (
        f"The network `{known('model')}` is trained with {known('optimizer')} at learning rate {known('lr')}, "
        f"{length} a task, {known('batch_size')} images a step; the optimiser's state is "
        f"{'kept' if known('optimizer_state') == 'keep' else 'reset'} between tasks."
    )
    tested = "After every task it is tested on the test images of all tasks."
    return f"{', '.join(part for part in said if part)}. {trained} {tested}"


def _of_studies(overviews: Mapping[str, Overview], cast: figures.Cast) -> dict[str, figures.Drawn]:
    found: dict[str, figures.Drawn] = {}
    for overview in overviews.values():
        if set(TRIALS) - overview.trials.keys():
            continue
        objectives = overview.settings["objective"].split(", ")
        directions = {name: "minimize" if name in LOWER_IS_BETTER else "maximize" for name in objectives}
        on_test = overview.settings.get("protocol") == "test-oracle"
        drawn = studies.drawn(overview.trials, directions, tuned_on_test=on_test, cast=cast)
        found |= {f"study_{name}": shown for name, (shown, _) in drawn.items()}
    return found


def _ranking(sections: list[Section], cast: figures.Cast) -> tuple[ranks.Ranks | None, figures.Drawn | None]:
    """Over scenarios, for the strategies that all of them have."""
    means = {
        section.title or str(i): compare.finished(section.runs).groupby("strategy")["average_accuracy"].mean()
        for i, section in enumerate(sections)
    }
    scores = pd.DataFrame(means).dropna().T
    scores = scores[[label for label in cast.names if label in scores]]
    if len(sections) < 2 or scores.shape[1] < 3:
        return None, None
    found = ranks.friedman(scores)
    drawn = figures.critical_difference(found.mean_ranks, found.critical_difference, found.groups, len(scores), cast)
    return found, drawn


def _commands(overviews: Mapping[str, Overview]) -> list[str]:
    found = [overview.environment.get("command", "") for overview in overviews.values()]
    return [command for command in dict.fromkeys(found) if command]
