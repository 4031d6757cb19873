"""Tables and figures: by their numbers and structure, not their pixels."""

from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark import metrics
from reports import figures, overview, tables

NAN = float("nan")


def frames(
    tasks: int = 3, seeds: int = 3, labels: tuple[str, ...] = ("naive", "ewc[lam=10]")
) -> tuple[pd.DataFrame, ...]:
    """Tidy frames of runs with random accuracies."""
    rng, runs, cells = np.random.default_rng(0), [], []
    for label, seed in itertools.product(labels, range(seeds)):
        matrix = rng.random((tasks + 1, tasks))
        runs.append({"strategy": label, "seed": seed, "status": "finished", **metrics.summary(matrix)})
        cells += [(label, seed, k, j + 1, value) for (k, j), value in np.ndenumerate(matrix)]
    return pd.DataFrame(runs), pd.DataFrame(cells, columns=["strategy", "seed", "after_task", "task", "accuracy"])


def diverge(runs: pd.DataFrame, accuracy: pd.DataFrame, strategy: str, seeds: tuple[int, ...]) -> None:
    """Let runs diverge in the second task."""
    gone = (runs["strategy"] == strategy) & runs["seed"].isin(seeds)
    runs.loc[gone, "status"] = "diverged"
    runs.loc[gone, list(tables.SHOWN)] = NAN
    lost = (accuracy["strategy"] == strategy) & accuracy["seed"].isin(seeds) & (accuracy["after_task"] >= 2)
    accuracy.loc[lost, "accuracy"] = NAN


def draw(figure: Figure) -> bytes:
    """As it is saved; any warning is an error."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def visible(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.get_visible()]


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


# Tables

GOLDEN_RUNS = pd.DataFrame(
    {
        "strategy": ["naive", "naive", "naive", "l2[lam=1]"],
        "seed": [0, 1, 2, 0],
        "status": ["finished", "finished", "diverged", "finished"],
        "average_accuracy": [0.5, 0.7, NAN, 0.8],
        "forgetting": [0.4, 0.2, NAN, 0.1],
        "bwt": [-0.4, -0.2, NAN, -0.1],
        "fwt": [0.0, 0.1, NAN, 0.0],
        "learning_accuracy": [0.9, 0.9, NAN, 0.85],
    }
)
GOLDEN_ACCURACY = pd.DataFrame(
    [
        ("naive", 0, 1, 1, 0.9), ("naive", 0, 2, 1, 0.2), ("naive", 0, 2, 2, 0.8),
        ("naive", 1, 1, 1, 0.9), ("naive", 1, 2, 1, 0.4), ("naive", 1, 2, 2, 1.0),
        ("naive", 2, 1, 1, 0.9), ("naive", 2, 2, 1, NAN), ("naive", 2, 2, 2, NAN),
        ("l2[lam=1]", 0, 1, 1, 0.9), ("l2[lam=1]", 0, 2, 1, 0.7), ("l2[lam=1]", 0, 2, 2, 0.9),
    ],
    columns=["strategy", "seed", "after_task", "task", "accuracy"],
)  # fmt: skip


def test_the_markdown_table_of_golden_runs() -> None:
    cells = [
        [c.strip() for c in line.strip("|").split("|")]
        for line in tables.markdown(GOLDEN_RUNS, GOLDEN_ACCURACY).splitlines()
    ]
    assert cells[0] == [
        "strategy", "n", "task 1", "task 2", "average accuracy", "forgetting", "BWT", "FWT", "learning accuracy", "diverged",
    ]  # fmt: skip
    assert set("".join(cells[1])) <= set(":-")
    assert cells[2] == ["`naive`", "2", "30.0", "90.0", "60.0 ± 14.1", "30.0 ± 14.1", "-30.0 ± 14.1", "5.0 ± 7.1", "90.0 ± 0.0", "1"]  # fmt: skip
    assert cells[3] == ["`l2[lam=1]`", "1", "70.0", "90.0", "80.0", "10.0", "-10.0", "0.0", "85.0", ""]
    assert len(cells) == 4


def test_the_column_of_diverged_runs_is_there_only_if_some_diverged() -> None:
    runs, accuracy = frames()
    assert "diverged" not in tables.markdown(runs, accuracy)
    diverge(runs, accuracy, "naive", (1,))
    assert "diverged" in tables.markdown(runs, accuracy)


def test_a_summary_is_mean_and_sample_deviation_over_the_runs_that_finished() -> None:
    naive, l2 = tables.summary(GOLDEN_RUNS).to_dict("records")
    assert (naive["strategy"], naive["n"], naive["diverged"]) == ("naive", 2, 1)
    assert naive["average_accuracy"] == pytest.approx(0.6)
    assert naive["average_accuracy_std"] == pytest.approx(math.sqrt(2) / 10)
    assert (l2["n"], l2["diverged"], l2["average_accuracy"]) == (1, 0, 0.8)
    assert math.isnan(l2["average_accuracy_std"])


def test_strategies_stand_in_the_order_of_the_experiment() -> None:
    labels = ("zeta", "naive", "alpha", "ewc")
    runs, accuracy = frames(labels=labels)
    assert tuple(tables.summary(runs)["strategy"]) == labels
    assert tuple(tables.final_by_task(accuracy).index) == labels


def test_a_strategy_of_which_every_run_diverged_stays_in_the_table() -> None:
    runs, accuracy = frames()
    diverge(runs, accuracy, "naive", (0, 1, 2))
    row = next(line for line in tables.markdown(runs, accuracy).splitlines() if "naive" in line)
    assert [c.strip() for c in row.strip("|").split("|")] == ["`naive`", "0", *["–"] * 8, "3"]


def test_a_table_where_every_run_diverged_can_still_be_made() -> None:
    runs, accuracy = frames(labels=("naive",))
    diverge(runs, accuracy, "naive", (0, 1, 2))
    assert "| `naive`" in tables.markdown(runs, accuracy)


def test_many_tasks_have_no_column_each() -> None:
    assert "task 5" in tables.markdown(*frames(tasks=5))
    assert "task 1" not in tables.markdown(*frames(tasks=6))


def test_a_single_task_has_dashes_where_nothing_can_be_forgotten() -> None:
    row = tables.markdown(*frames(tasks=1, labels=("naive",))).splitlines()[2]
    assert [c.strip() for c in row.strip("|").split("|")][4:7] == ["–", "–", "–"]


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [(0.9754, 0.0031, "97.5 ± 0.3"), (0.5, NAN, "50.0"), (NAN, NAN, "–"), (NAN, 0.1, "–"), (-0.2, 0.0, "-20.0 ± 0.0")],
)
def test_numbers_are_shown_in_per_cent_with_what_is_known_of_their_spread(mean: float, std: float, text: str) -> None:
    assert tables.percent(mean, std) == text


# Accuracy over tasks


def test_accuracy_over_tasks_has_a_panel_a_task_and_a_line_a_strategy() -> None:
    _, accuracy = frames()
    figure = figures.accuracy_over_tasks(accuracy)
    panels = visible(figure)
    assert [axis.get_title() for axis in panels] == [f"accuracy on task {j}" for j in (1, 2, 3)]
    assert legend(figure) == ["naive", "ewc[lam=10]"]
    for task, axis in enumerate(panels, start=1):
        for strategy in ("naive", "ewc[lam=10]"):
            (line,) = [line for line in axis.lines if line.get_label() == strategy]
            own = accuracy[(accuracy["task"] == task) & (accuracy["strategy"] == strategy)]
            assert list(line.get_xdata()) == [0, 1, 2, 3]
            assert list(line.get_ydata()) == pytest.approx(list(own.groupby("after_task")["accuracy"].mean()))
        assert len(axis.collections) == 2  # a band each
        assert axis.get_ylim() == (0, 1)
    assert "n = 3" in panels[0].get_ylabel()
    assert draw(figure).startswith(b"\x89PNG")


def test_a_band_reaches_from_the_lowest_seed_to_the_highest() -> None:
    _, accuracy = frames(labels=("naive",))
    band = visible(figures.accuracy_over_tasks(accuracy))[0].collections[0]
    own = accuracy[accuracy["task"] == 1]["accuracy"]
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((own.min(), own.max()))


def test_where_strategies_have_different_numbers_of_seeds_the_figure_says_so() -> None:
    _, accuracy = frames()
    accuracy = accuracy[(accuracy["strategy"] != "naive") | (accuracy["seed"] > 0)]
    assert "n = 2 to 3" in visible(figures.accuracy_over_tasks(accuracy))[0].get_ylabel()


def test_the_number_of_seeds_of_a_mean_leaves_out_runs_that_are_not_in_it() -> None:
    runs, accuracy = frames()
    diverge(runs, accuracy, "naive", (1,))
    assert "n = 2 to 3" in visible(figures.accuracy_over_tasks(accuracy))[0].get_ylabel()


# Accuracy matrices


def test_accuracy_matrices_show_the_mean_over_seeds_in_per_cent() -> None:
    _, accuracy = frames()
    figure = figures.accuracy_matrices(accuracy)
    *panels, bar = visible(figure)
    assert [axis.get_title() for axis in panels] == ["naive", "ewc\nlam=10"]
    for strategy, axis in zip(("naive", "ewc[lam=10]"), panels, strict=True):
        own = accuracy[accuracy["strategy"] == strategy]
        expected = 100 * own.groupby(["after_task", "task"])["accuracy"].mean().to_numpy()
        (mesh,) = axis.collections
        assert list(np.ravel(mesh.get_array())) == pytest.approx(list(expected))
        assert mesh.get_clim() == (0, 100)
        assert [text.get_text() for text in axis.texts] == [f"{value:.0f}" for value in expected]
    assert "n = 3" in bar.get_ylabel()
    assert draw(figure).startswith(b"\x89PNG")


def test_matrices_keep_their_shape_where_runs_diverged() -> None:
    runs, accuracy = frames()
    diverge(runs, accuracy, "naive", (0, 1, 2))
    naive, ewc, _ = visible(figures.accuracy_matrices(accuracy))
    assert naive.collections[0].get_array().shape == ewc.collections[0].get_array().shape == (4, 3)


# Stability and plasticity


def test_stability_against_plasticity_is_old_tasks_at_the_end_against_each_when_learned() -> None:
    _, accuracy = frames()
    figure = figures.stability_plasticity(accuracy)
    (axis,) = visible(figure)
    assert legend(figure) == ["naive", "ewc[lam=10]"]
    for strategy in ("naive", "ewc[lam=10]"):
        own = accuracy[accuracy["strategy"] == strategy]
        matrices = (
            own.pivot_table(index=["seed", "after_task"], columns="task", values="accuracy").to_numpy().reshape(3, 4, 3)
        )
        stability = matrices[:, 3, :2].mean()
        plasticity = np.mean([metrics.learning_accuracy(matrix) for matrix in matrices])
        (mark,) = [line for line in axis.lines if line.get_label() == strategy]
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((plasticity, stability))
    seeds = [line for line in axis.lines if line.get_label().startswith("_")]
    assert [len(line.get_xdata()) for line in seeds] == [3, 3]
    draw(figure)


def test_a_strategy_that_always_diverged_has_no_mark_and_the_others_keep_their_colours() -> None:
    runs, accuracy = frames(labels=("naive", "ewc", "l2"))
    whole = figures.stability_plasticity(accuracy)
    diverge(runs, accuracy, "ewc", (0, 1, 2))
    figure = figures.stability_plasticity(accuracy)
    assert legend(figure) == ["naive", "l2"]
    colour = {line.get_label(): line.get_color() for line in visible(figure)[0].lines}
    before = {line.get_label(): line.get_color() for line in visible(whole)[0].lines}
    assert colour["l2"] == before["l2"]
    draw(figure)


@pytest.mark.parametrize(("spread", "decimals"), [(0.5, 0), (0.02, 1), (0.002, 2), (0.0, 2)])
def test_ticks_have_as_many_decimals_as_tell_them_apart(spread: float, decimals: int) -> None:
    assert figures.decimals(pd.Series([0.9, 0.9 - spread, 0.9])) == decimals


# All figures


def test_an_overview_has_the_note_and_every_figure() -> None:
    note, drawn = overview.contents(*frames())
    assert note.endswith(tables.markdown(*frames()))
    assert set(drawn) == {
        "figures/accuracy_over_tasks.png", "figures/accuracy_matrices.png", "figures/stability_plasticity.png",
    }  # fmt: skip


def test_a_single_task_has_no_stability_to_show() -> None:
    _, drawn = overview.contents(*frames(tasks=1))
    assert set(drawn) == {"figures/accuracy_over_tasks.png", "figures/accuracy_matrices.png"}
    assert all(draw(figure) for figure in drawn.values())


MANY = ("naive", *(f"ewc[estimator=exact,lam={10**i}]" for i in range(11)))


@pytest.mark.parametrize(
    ("tasks", "seeds", "labels"), [(2, 1, ("naive",)), (7, 2, ("naive", "l2")), (12, 1, ("naive", "l2")), (2, 2, MANY)]
)
def test_figures_can_be_drawn_without_a_warning(tasks: int, seeds: int, labels: tuple[str, ...]) -> None:
    _, accuracy = frames(tasks, seeds, labels)
    drawn = figures.overview(accuracy)
    assert len(visible(drawn["figures/accuracy_over_tasks.png"])) == tasks
    assert len(visible(drawn["figures/accuracy_matrices.png"])) == len(labels) + 1
    assert all(draw(figure) for figure in drawn.values())


def test_figures_can_be_drawn_where_every_run_diverged() -> None:
    runs, accuracy = frames(labels=("naive",))
    diverge(runs, accuracy, "naive", (0, 1, 2))
    assert all(draw(figure) for figure in overview.contents(runs, accuracy)[1].values())


def test_up_to_ten_strategies_can_be_told_apart_and_more_by_their_marks() -> None:
    assert len(set(figures.colours([f"s{i}" for i in range(10)]).values())) == 10
    assert len(set(figures.MARKERS)) == 10
    assert len(figures.colours(list(MANY))) == len(MANY)


@pytest.mark.parametrize(
    ("label", "lines"),
    [("naive", ["naive"]), ("ewc[lam=10]", ["ewc", "lam=10"]), ("ewc[estimator=exact,lam=10]", ["ewc", "estimator=exact", "lam=10"])],
)  # fmt: skip
def test_labels_break_into_lines_over_small_panels(label: str, lines: list[str]) -> None:
    assert figures.parts(label) == lines


def test_reports_import_neither_torch_nor_the_harness() -> None:
    code = "import sys, reports.overview; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "reports.figures" in loaded
    assert not loaded & {"torch", "mlflow", "benchmark.harness", "benchmark.learner", "strategies"}
