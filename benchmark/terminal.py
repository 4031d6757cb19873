"""What a person sees: progress while stacks train, and the table at the end, for a console that takes no markup."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from benchmark.config import Experiment
    from benchmark.data import ImageSet
    from benchmark.plan import Plan
    from benchmark.runs import Run
    from strategies.base import Params
    from strategies.conformance import Case
    from studies.answers import Answer
    from studies.comparison import Row


PLAIN_EVERY = 5.0  # seconds between lines where the output is not a terminal
FORESEEN = 0.1  # the share of training after which the time left is told: a shared first task trains few runs at a time


class _TimeLeft(TimeRemainingColumn):
    """The time left, once enough has been trained to tell."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.completed >= FORESEEN * (task.total or 0) else Text("-:--")


class Monitor:
    """A `harness.Listener` that shows progress: live on a terminal, plain lines elsewhere. Use as a context manager.

    Args:
        console: where to.
        traces: show where a stack failed.
    """

    def __init__(self, console: Console, *, traces: bool = False) -> None:
        self._console, self._traces = console, traces
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("run-epochs"),
            _TimeLeft(compact=True),
            TextColumn("{task.fields[now]}", style="dim", markup=False),  # labels have brackets
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all: TaskID | None = None
        self._stacks, self._done, self._total, self._trained = 0, 0, 0, 0
        self._current: dict[int, str] = {}
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Monitor:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def planned(self, plan: Plan, tasks: list[ImageSet]) -> None:
        """Learn how much there is to do."""
        if not plan.runs:
            return
        if self._all is not None:  # a study plans batch after batch
            self._progress.remove_task(self._all)
        self._stacks, self._started, self._trained = plan.stacks, time.monotonic(), 0
        self._total = _run_epochs(plan, tasks)
        self._all = self._progress.add_task("training", total=self._total, now="")
        self._console.print(plan.describe(), highlight=False, soft_wrap=True)

    def stack_started(self, number: int, runs: int, title: str) -> None:
        """Name what begins."""
        self._current[threading.get_ident()] = f"{number}/{self._stacks} {title}" if number else title

    def consolidating(self, task: int, done: int, total: int) -> None:
        """Say that importances are measured, which can take as long as an epoch."""
        self._show(f"measuring after task {task}, {done} of {total} runs done")

    def epoch_done(self, runs: int, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        """Advance."""
        self._trained += runs
        now = f"task {task}/{tasks}, epoch {epoch}/{epochs}, loss {loss:.3f}"
        if self._all is not None:
            self._progress.advance(self._all, runs)
        self._show(now)
        due = time.monotonic() - self._said >= PLAIN_EVERY or self._trained == self._total
        if not self._console.is_terminal and self._total and due:
            self._said = time.monotonic()
            stack = self._current.get(threading.get_ident(), "")
            self._console.print(
                f"[{self._trained}/{self._total} run-epochs{self._left()}] {stack}: {now}",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip

    def _left(self) -> str:
        """`, about 12 s left`, once enough has been trained to tell."""
        if self._trained < FORESEEN * self._total:
            return ""
        # What is tried again trains more than was planned.
        left = (time.monotonic() - self._started) * max(self._total / self._trained - 1, 0)
        return f", about {left:.0f} s left"

    def stack_trained(self, runs: tuple[Run, ...], params: Params) -> None:
        """Nothing to show: the next stack says its name."""

    def trouble(self, what: str, trace: str) -> None:
        """Say so at once: the command may have hours to go."""
        shown = f"{what}\n{trace.rstrip()}" if trace and self._traces else what
        self._console.print(shown, highlight=False, markup=False, soft_wrap=True)

    def _show(self, now: str) -> None:
        if self._all is not None:
            self._progress.update(self._all, now=f"{self._current.get(threading.get_ident(), '')}: {now}")


def _run_epochs(plan: Plan, tasks: list[ImageSet]) -> int:
    """Epochs of all runs together, trunks included."""
    total = 0
    for group in plan.groups:
        for stack in group.stacks:
            epochs = [stack[0].epochs(task, tasks) for task in range(1, len(tasks) + 1)]
            total += len(stack) * sum(epochs[1:] if stack[0].trunk else epochs)
        total += len(group.seeds) * group.stacks[0][0].epochs(1, tasks)
    return total


def titled(chosen: Experiment) -> str:
    """`mine: permuted-digits, 2 strategies x 1 seed`; a name that is the scenario's is said once."""
    names = ": ".join(dict.fromkeys([chosen.name, chosen.scenario.name]))
    strategies, seeds = len(chosen.entries), len(chosen.seeds)
    many = f"{strategies} {'strategy' if strategies == 1 else 'strategies'} x {seeds} seed{'s' * (seeds != 1)}"
    return f"{names}, {many}"


def result_table(runs: pd.DataFrame, accuracy: pd.DataFrame) -> Table:
    """Mean and spread of each strategy, in per cent.

    Args:
        runs: one row a run, see `reports.load`.
        accuracy: one row a cell of an accuracy matrix, see `reports.load`.
    """
    from benchmark.intervals import number, percent
    from reports import compare, names, recipes
    from reports.measures import MAIN, TOLD

    metrics = ["average_accuracy", "forgetting", "learning_accuracy"]
    metrics += [TOLD] * (TOLD in runs)
    summary, final = compare.summary(runs, metrics), compare.by_task(runs, accuracy)
    shown = sorted(accuracy["task"].unique()) if accuracy["task"].nunique() <= 3 else []
    lost = {status: runs[runs["status"] == status].groupby("strategy").size() for status in ("diverged", "failed")}
    lost = {status: many for status, many in lost.items() if len(many)}
    table = Table(
        caption="mean ± half the 95% interval (Student's t) over n seeds, in per cent",
        caption_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    table.add_column("strategy", overflow="fold")
    table.add_column("n", justify="right")
    known = names.tasks(accuracy["task"].nunique(), recipes.shared(runs).get("images", ""))
    for task in shown:
        table.add_column(known[task - 1], justify="right")
    for metric in metrics:
        table.add_column(MAIN[metric].replace(" ", "\n", 1), justify="right", no_wrap=True)
    for status in lost:
        table.add_column(status, justify="right", style="red")
    for strategy, own in summary.groupby("strategy", sort=False):
        means = final[final["strategy"] == strategy].set_index("task")["mean"].reindex(shown)
        cells = [percent(row.mean, row.low, row.high) for row in compare.rows(own)]
        by_task = [number(mean) for mean in means]
        extra = [str(many.get(strategy, "")) for many in lost.values()]
        table.add_row(str(strategy), str(own["n"].max()), *by_task, *cells, *extra)
    return table


def study_table(answers: Sequence[Answer]) -> Table:
    """What a study found, in per cent: the best setting of each strategy, what tuning promised and what the test gave.

    Args:
        answers: one a strategy.
    """
    from benchmark.intervals import mean_interval, number, percent
    from studies.answers import counted, shown

    n = _from_to(len(values) for a in answers for values in a.tested.values())
    protocols = {a.protocol for a in answers}
    caption = f"tested: mean and 95% interval (Student's t) over n = {n} seeds; gap: tested less promised"
    caption += "; first-k is tested on other tasks than it promises for" if "first-k" in protocols else ""
    caption += "; two-dataset promises for another dataset" if "two-dataset" in protocols else ""
    caption += "; test-oracle is TUNED ON TEST" if "test-oracle" in protocols else ""
    table = Table(
        caption=caption,
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("strategy", overflow="fold")
    table.add_column("best setting", overflow="fold")
    for name in ("objective", "promised", "tested", "gap", "within 1 point", "trials"):
        table.add_column(name, justify="left" if name == "objective" else "right", no_wrap=name != "within 1 point")
    incomplete = any(answer.tests.keys() - {"finished"} for answer in answers)
    if incomplete:
        table.add_column("test runs", justify="right", style="red")
    for answer in answers:
        label = answer.label + (f"\n{answer.protocol}" if len(protocols) > 1 else "")
        first = [label, shown(answer.params) or "none"]
        last = [counted(answer.trials), *([counted(answer.tests)] if incomplete and answer.tests else [])]
        flat = "; ".join(f"{k} {_range(low, high)}" for k, (low, high) in answer.flat.items())
        for i, (name, promised) in enumerate(answer.promised.items()):
            tested = mean_interval(answer.tested[name])
            numbers = [
                number(promised),
                percent(tested.mean, tested.low, tested.high),
                number(tested.mean - promised, signed=True),
            ]
            table.add_row(
                *(first if i == 0 else ["", ""]), name.replace("_", " "), *numbers, flat, *(last if i == 0 else [])
            )
        if not answer.promised:
            table.add_row(*first, "", "", "", "", "", *last)
    return table


def _range(low: float, high: float) -> str:
    """`530 to 6.79e+03`, or the one value there is."""
    return " to ".join(dict.fromkeys([f"{low:.3g}", f"{high:.3g}"]))


def _from_to(counts: Iterable[int]) -> str:
    """`3`, or `2 to 3` where they differ."""
    ordered = sorted({*counts})
    return " to ".join(map(str, dict.fromkeys(ordered[:1] + ordered[-1:])))


def comparison_table(rows: Sequence[Row]) -> Table:
    """What protocols chose, on common ground, in per cent.

    Args:
        rows: of `studies.comparison`.
    """
    from benchmark.intervals import mean_interval, number, percent
    from studies.answers import shown
    from studies.comparison import baseline, differences

    n, against = _from_to(len(row.values) for row in rows), baseline(rows)
    caption = (
        f"by its own rule: as each protocol reports; here: all tasks, mean and 95% interval (Student's t) over n = {n}"
    )
    caption += f" seeds by which none chose; against {against}: difference of pairs of seeds, with its interval"
    caption += "; test-oracle is TUNED ON TEST" if any(row.protocol == "test-oracle" for row in rows) else ""
    table = Table(caption=caption, caption_justify="left", box=None, pad_edge=False)
    table.add_column("strategy", overflow="fold")
    table.add_column("chosen by", overflow="fold")
    table.add_column("setting", overflow="fold")
    table.add_column("objective")
    for name in ("by its own rule", "n", "here", f"against {against}"):
        table.add_column(name, justify="right", no_wrap=name == "here")
    for row in rows:
        reported, here = mean_interval(row.reported), mean_interval([*row.values.values()])
        gap = mean_interval(differences(row, rows))
        table.add_row(
            row.label,
            row.protocol,
            shown(row.params) or "none",
            row.objective.replace("_", " "),
            number(reported.mean),
            str(len(row.values)),
            percent(here.mean, here.low, here.high),
            "" if row.protocol == against else percent(gap.mean, gap.low, gap.high, signed=True),
        )
    return table


def plain(console: Console) -> Callable[[str], None]:
    """A `say` that prints lines as they are."""
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


def verdicts(console: Console, cases: Sequence[Case]) -> int:
    """Run checks of a strategy and say what came of each.

    Args:
        console: where to.
        cases: from `strategies.conformance.cases`.

    Returns:
        How many failed.
    """
    from strategies import conformance

    counts, variant = {"ok": 0, "failed": 0, "skipped": 0}, ""
    for case in cases:
        if (name := conformance.label(case.strategy)) != variant:
            variant = name
            console.print(name, style="bold", highlight=False, markup=False)
        verdict, reason = "ok", ""
        try:
            case.run()
        except conformance.Inapplicable as skipped:
            verdict, reason = "skipped", f" ({skipped})"
        except conformance.Failed as failure:
            verdict, reason = "failed", f"\n           {failure}"
        except Exception as error:  # whatever the strategy's own code raises
            verdict, reason = "failed", f"\n           {type(error).__name__}: {error}"
        counts[verdict] += 1
        style = {"ok": "green", "failed": "red", "skipped": "dim"}[verdict]
        console.print(f"  {verdict:8}", style=style, end="")
        console.print(f" {case.title}{reason}", highlight=False, markup=False, soft_wrap=True)
    listed = f"{counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} not applicable"
    console.print(listed, highlight=False)
    return counts["failed"]
