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
class Ranking:
    """Strategies over several scenarios.

    Attributes:
        ranks: what Friedman's test and the critical difference say.
        figure: of these.
        scenarios: that were ranked, one observation each.
        notes: sentences on what was left out.
    """

    ranks: ranks.Ranks
    figure: figures.Drawn
    scenarios: list[str]
    notes: list[str]


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
        ranking=_ranking(sections, cast),
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
        question=question(runs),
        setting=setting(runs),
        recipe=recipes.recipe(runs),
        findings=findings.sentences(runs, differences, reference, names) if reference else findings.alone(runs, names),
        tables={
            "main": tables.main(runs, names),
            "strategies": tables.strategies(runs, names),
            **{name: table for name, table in optional.items() if table},
        },
        figures=figures.every(runs, accuracy, cast) | _of_studies(overviews, cast),
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


def question(runs: pd.DataFrame) -> str:
    """What the runs ask, in a sentence.

    Args:
        runs: of one recipe.
    """
    tasks = int(runs["tasks"].iloc[0]) if "tasks" in runs and pd.notna(runs["tasks"].iloc[0]) else 0
    strategies, seeds = runs["strategy"].nunique(), counted(runs["seed"].nunique(), "seed")
    which = f", and which of {strategies} strategies " if strategies > 1 else ""
    if tasks == 1:
        asked = f"How well does a network learn one task{f'{which}learns it best' * bool(which)}?"
    else:
        best = f"{which}forgets least, at which price on new tasks" if which else ", and at which price on new tasks"
        asked = f"How much does a network forget when it learns {tasks or ''} tasks one after another{best}?"
    return f"{asked.replace('  ', ' ')} {'Each' if which else 'It'} was trained with {seeds}."


def counted(many: float | str, thing: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{many} {thing}{'s' * (str(many) != '1')}"


INCREMENTAL = {
    "task": "task-incremental: each task has a head of its own, and the task is known when an image is classified",
    "domain": "domain-incremental: all tasks share one head, and the task is not known when an image is classified",
    "class": "class-incremental: each task brings classes of its own, which compete with all earlier ones",
}


def setting(runs: pd.DataFrame) -> str:
    """How the runs were trained and tested, in words; what labels tell of single strategies is left to these.

    Args:
        runs: of one recipe.
    """
    known = recipes.shared(runs)
    images = f"on {known['images']}" if "images" in known else ""
    where = [f"Scenario {known.get('scenario', '')}", images, INCREMENTAL.get(known.get("incremental", ""), "")]
    length = counted(known["epochs"], "epoch") if "epochs" in known else counted(known.get("iterations", ""), "step")
    trained = {
        "optimizer": f"with {known.get('optimizer')}",
        "lr": f"at learning rate {known.get('lr')}",
        "epochs" if "epochs" in known else "iterations": f"{length} a task",
        "batch_size": f"{counted(known.get('batch_size', ''), 'image')} a step",
    }
    how = ", ".join(words for name, words in trained.items() if name in known).replace(", at learning", " at learning")
    state = "kept" if known.get("optimizer_state") == "keep" else "reset"
    kept = f"; the optimiser's state is {state} between tasks" if "optimizer_state" in known else ""
    return (
        f"{', '.join(part for part in where if part)}. The network {known.get('model', '')} is trained {how}{kept}. "
        "After every task it is tested on the test images of all tasks."
    )


def _of_studies(overviews: Mapping[str, Overview], cast: figures.Cast) -> dict[str, figures.Drawn]:
    found: dict[str, figures.Drawn] = {}
    for run_id, stem in tuning.stems(overviews).items():
        overview = overviews[run_id]
        if set(TRIALS) - overview.trials.keys():
            continue
        objectives = overview.settings["objective"].split(", ")
        directions = {name: "minimize" if name in LOWER_IS_BETTER else "maximize" for name in objectives}
        on_test = overview.settings.get("protocol") == "test-oracle"
        drawn = studies.drawn(overview.trials, directions, tuned_on_test=on_test, cast=cast)
        of = f"Study {overview.study}. " if stem else ""
        found |= {
            f"study_{stem}{name}": dataclasses.replace(shown, caption=of + shown.caption)
            for name, (shown, _) in drawn.items()
        }
    return found


def _ranking(sections: list[Section], cast: figures.Cast) -> Ranking | None:
    """Over scenarios, for the strategies that all of them have and that are not bounds."""
    by_scenario: dict[str, Section] = {}
    for section in sections:
        by_scenario.setdefault(_scenario(section), section)  # of several recipes of one, the first
    means = {
        scenario: compare.finished(section.runs).groupby("strategy")["average_accuracy"].mean()
        for scenario, section in by_scenario.items()
    }
    every = pd.DataFrame(means).T
    scores = every.dropna(axis="columns")
    scores = scores[[label for label in cast.names if label in scores and not compare.is_bound(label)]]
    if len(by_scenario) < 2 or scores.shape[1] < 3:
        return None
    found = ranks.friedman(scores)
    drawn = figures.critical_difference(found.mean_ranks, found.critical_difference, found.groups, len(scores), cast)
    missing = [
        cast.names[label] for label in cast.names if label in every and label not in every.dropna(axis="columns")
    ]
    notes = [f"Left out, since not every scenario has runs of them: {'; '.join(missing)}."] if missing else []
    bounds = [cast.names[label] for label in cast.names if label in every and compare.is_bound(label)]
    notes += [f"Not ranked, as a bound: {'; '.join(bounds)}."] if bounds else []
    if len(by_scenario) < len(sections):
        notes.append("Of a scenario with several sections the first is ranked: one scenario is one observation.")
    return Ranking(found, drawn, list(by_scenario), notes)


def _scenario(section: Section) -> str:
    """Its name, or what the section is called where it has none."""
    return recipes.shared(section.runs).get("scenario", section.title)


def _commands(overviews: Mapping[str, Overview]) -> list[str]:
    found = [overview.environment.get("command", "") for overview in overviews.values()]
    return [command for command in dict.fromkeys(found) if command]
