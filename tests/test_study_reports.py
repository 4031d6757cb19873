"""Frames, tables and figures of a study: by their numbers and structure, not their pixels."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from optuna.trial import TrialState

from benchmark import metrics
from reports import figures, studies, study_figures
from reports.names import spoken
from studies import frames, objectives
from tests.synthetic_study import EWC, L2, SEEDS, Played, matrix, play, study

NAN = float("nan")
DECAY = EWC | {"decay": {"low": 0.0, "high": 1.0}, "accumulate": "online", "estimator": ["exact", "empirical"]}
SI = {"name": "si", "lam": {"low": 0.0, "high": 100.0}}
MAS = {"name": "mas", "lam": {"low": 1, "high": 10}}
TWO = ["stability", "plasticity"]


def shown(played: Played, *, tuned_on_test: bool = False) -> dict[str, Any]:
    names = {name: objectives.direction(name) for name in played.study.objectives}
    return studies.contents(tables(played), names, tuned_on_test=tuned_on_test)


def tables(played: Played) -> dict[str, pd.DataFrame]:
    return frames.every(played.searchers, played.records)


def drawn(files: dict[str, Any]) -> dict[str, Figure]:
    found = {name: content for name, content in files.items() if isinstance(content, Figure)}
    return {name.removeprefix("figures/").removesuffix(".png"): figure for name, figure in found.items()}


def csv(files: dict[str, Any], name: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(files[f"figures/{name}.csv"]))


def draw(figure: Figure) -> bytes:
    """As it is saved; any warning is an error."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def visible(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.get_visible()]


def xy(axis: Axes, marker: str) -> list[tuple[float, float]]:
    """Points of a marker, in the order drawn."""
    lines = [line for line in axis.lines if line.get_marker() == marker]
    return [(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def last_of(label: str, *numbers: int) -> Any:
    """Diverge with the last seed of these trials."""
    return lambda of, number, seed: of == label and number in numbers and seed == SEEDS - 1


# Frames


def test_a_trial_is_a_row_with_its_setting_and_the_means_that_were_told() -> None:
    played = play().all()
    trials = frames.trials(played.searchers, played.records)
    assert list(trials["strategy"]) == ["ewc"] * 6 + ["l2"] * 6
    ended = [trial for searcher in played.searchers for trial in searcher.ended]
    assert list(trials["average_accuracy"]) == pytest.approx([trial.value for trial in ended])
    assert list(trials["lam"]) == [trial.params["lam"] for trial in ended]
    assert set(trials["state"]) == {"complete"} and set(trials["reason"]) == {""}
    assert list(trials["seconds"]) == [SEEDS * 1.5] * 12
    best = trials[trials["best"]]
    assert list(best["trial"]) == [searcher.best().number for searcher in played.searchers]
    for row in trials.to_dict("records"):
        both = [matrix(row["lam"], seed) for seed in range(SEEDS)]
        assert row["stability"] == pytest.approx(np.mean([metrics.stability(a) for a in both]))
        assert row["plasticity"] == pytest.approx(np.mean([metrics.learning_accuracy(a) for a in both]))


def test_a_seed_is_a_row_with_its_own_values() -> None:
    played = play().all()
    seeds = frames.seeds(played.searchers, played.records)
    assert len(seeds) == 12 * SEEDS and list(seeds["seed"][:4]) == [0, 1, 0, 1]
    for row in seeds.to_dict("records"):
        a = played.records[row["run_key"]].accuracy
        assert row["average_accuracy"] == metrics.average_accuracy(a) and row["stability"] == metrics.stability(a)


@pytest.mark.parametrize("told", ["fail", "worst"])
def test_a_diverged_trial_has_a_reason_and_no_value_whatever_optuna_was_told(told: str) -> None:
    played = play(study(EWC, diverged=told)).all(diverges=last_of("ewc", 0))
    trial, seed = (tables(played)[name].iloc[0] for name in ("trials", "seeds"))
    assert played.searchers[0].ended[0].state == (TrialState.FAIL if told == "fail" else TrialState.COMPLETE)
    assert (trial["state"], trial["reason"]) == ("diverged", "diverged with seeds 1")
    assert np.isnan(trial["average_accuracy"]) and np.isnan(trial["stability"])
    assert np.isfinite(seed["average_accuracy"])  # of the seed that did not


def test_a_pruned_trial_has_its_reason_and_neither_value_nor_seconds() -> None:
    played = play(study(EWC)).all(prunes=[0])
    row, other = (frames.trials(played.searchers, played.records).iloc[i] for i in (0, 1))
    assert (row["state"], row["reason"]) == ("pruned", "pruned after task 2")
    assert (row["saved_run_epochs"], row["saved_seconds"]) == (4, 1.5) and np.isnan(other["saved_seconds"])
    assert np.isnan(row["average_accuracy"]) and np.isnan(row["seconds"])


def test_what_is_not_known_of_a_run_is_left_open() -> None:
    played = play(study(EWC)).all()
    trials = frames.trials(played.searchers, {})
    assert trials["average_accuracy"].notna().all()  # Optuna has it
    assert trials[["stability", "plasticity", "seconds"]].isna().all(axis=None)


def test_frames_of_a_study_without_trials_are_empty_with_all_columns() -> None:
    played = play()
    trials, seeds, space, importance = tables(played).values()
    assert {"strategy", "trial", "state", "best", "lam", "average_accuracy", "seconds"} <= {*trials.columns}
    assert len(trials) == len(seeds) == 0 and len(space) == len(importance) == 2
    assert drawn(shown(played)) == {}


def test_the_space_has_a_row_for_everything_searched() -> None:
    space = frames.space(play(study(DECAY, SI)).searchers).set_index(["strategy", "param"])
    label = "ewc[accumulate=online]"
    assert tuple(space.loc[(label, "lam"), ["low", "high", "log"]]) == (1.0, 1e6, True)
    assert tuple(space.loc[(label, "decay"), ["low", "high", "log"]]) == (0.0, 1.0, False)
    assert space.loc[(label, "estimator"), "choices"] == "exact, empirical"
    assert np.isnan(space.loc[(label, "estimator"), "low"]) and not space.loc[("si", "lam"), "log"]


# Importance


def test_importance_finds_what_matters_and_its_shares_sum_to_one() -> None:
    played = play(study(DECAY, trials=20, batch=20, sampler="random")).all()
    importance = frames.importance(played.searchers).set_index("param")
    assert importance["importance"].sum() == pytest.approx(1)
    assert importance["importance"].idxmax() == "lam"  # the only one that the made-up accuracies follow
    assert set(importance["trials"]) == {20} and set(importance["top"]) == {5} and set(importance["reason"]) == {""}


@pytest.mark.parametrize(
    ("table", "trials", "reason"),
    [
        (EWC, 12, "lam alone was searched"),
        (DECAY, 9, "9 complete trials are too few, it takes 10"),
        (DECAY | {"lam": {"low": 1e9, "high": 1e10, "log": True}}, 12, "all trials have the same value"),
    ],
)
def test_where_importance_says_nothing_there_is_a_reason(
    table: dict[str, Any], trials: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.synthetic_study.matrix", lambda lam, seed: matrix(0.0 if lam >= 1e9 else lam, seed))
    played = play(study(table, trials=trials, batch=trials)).all()
    importance = frames.importance(played.searchers)
    assert importance["importance"].isna().all() and set(importance["reason"]) == {reason}
    files = shown(played)
    assert "importance" not in drawn(files) and reason in files["importance.csv"]


def test_importance_is_drawn_as_a_bar_for_each_with_its_value() -> None:
    figure = drawn(shown(play(study(DECAY, EWC, trials=12, batch=12)).all()))["importance"]
    (axis,) = visible(figure)  # of the other, one thing alone was searched
    assert [tick.get_text() for tick in axis.get_yticklabels()][-1] == "λ"
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == sorted(widths) and sum(widths) == pytest.approx(1)
    assert [text.get_text() for text in axis.texts] == [f"{width:.2f}" for width in widths]
    assert "best 5 of 12 trials" in axis.get_title(loc="left")


# Data behind the figures


def rows(**columns: list[Any]) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    frame["strategy"], frame["trial"] = "ewc", np.arange(len(frame))
    return frame.assign(best=False, state=np.where(frame.iloc[:, 0].isna(), "diverged", "complete"))


@pytest.mark.parametrize(
    ("direction", "best"),
    [("maximize", [NAN, 0.5, 0.5, 0.5, 0.7, 0.7]), ("minimize", [NAN, 0.5, 0.4, 0.4, 0.4, 0.4])],
)
def test_the_best_so_far_passes_over_what_diverged(direction: str, best: list[float]) -> None:
    trials = rows(goal=[NAN, 0.5, 0.4, NAN, 0.7, 0.6])
    frame = studies.history(trials, {"goal": direction})
    assert list(frame["best_so_far"]) == pytest.approx(best, nan_ok=True)
    assert list(frame["order"]) == [1, 2, 3, 4, 5, 6]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beaten(p: tuple[int, int]) -> bool:
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)

    assert list(studies.front(np.array(points, float))) == [not beaten(p) for p in points]


def test_a_front_knows_which_way_is_better() -> None:
    trials = rows(accuracy=[0.9, 0.8, 0.7], forgetting=[0.3, 0.1, 0.2])
    frame = studies.plane(trials, "forgetting", "accuracy", {"accuracy": "maximize", "forgetting": "minimize"})
    assert list(frame["on_front"]) == [True, True, False]


def test_each_strategy_has_a_front_of_its_own() -> None:
    trials = rows(x=[0.5, 0.9], y=[0.5, 0.9]).assign(strategy=["a", "b"])
    assert list(studies.plane(trials, "x", "y", {})["on_front"]) == [True, True]


def test_the_response_has_mean_range_and_spread_over_seeds() -> None:
    played = play(study(EWC, seeds=3)).all()
    trials, seeds, space, _ = tables(played).values()
    frame = studies.response(trials, seeds, space, "average_accuracy")
    assert len(frame) == 6 and set(frame["scale"]) == {"log"} and set(frame["n"]) == {3}
    for row in frame.to_dict("records"):
        values = [metrics.average_accuracy(matrix(row["setting"], seed)) for seed in range(3)]
        found = [row[k] for k in ("average_accuracy", "low", "high", "std")]
        assert found == pytest.approx([np.mean(values), min(values), max(values), np.std(values, ddof=1)])


def test_scales_are_those_of_the_ranges() -> None:
    played = play(study(DECAY, SI, MAS)).all()
    trials, seeds, space, _ = tables(played).values()
    frame = studies.response(trials, seeds, space, "average_accuracy")
    scales = frame.drop_duplicates(["strategy", "param"]).set_index(["strategy", "param"])["scale"].to_dict()
    label = "ewc[accumulate=online]"
    assert scales == {
        (label, "lam"): "log", (label, "decay"): "linear", (label, "estimator"): "choice",
        ("si", "lam"): "log0", ("mas", "lam"): "linear",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["average_accuracy"], [("plasticity", "stability")]),
        (["stability", "plasticity"], [("plasticity", "stability")]),
        (["stability", "learning_accuracy"], [("plasticity", "stability")]),
        (["average_accuracy", "forgetting"], [("plasticity", "stability"), ("forgetting", "average_accuracy")]),
    ],
)
def test_plasticity_and_stability_are_drawn_always_and_two_objectives_beside(
    names: list[str], pairs: list[tuple[str, str]]
) -> None:
    played = play(study(EWC, objective=names)).all()
    files = shown(played)
    assert studies.planes(tables(played)["trials"], names) == pairs
    assert {f"{x}_{y}" for x, y in pairs} <= {*drawn(files)}


def test_without_the_runs_there_is_no_plane_to_draw() -> None:
    played = play(study(EWC)).all()
    played.records.clear()
    assert "plasticity_stability" not in drawn(shown(played))


# Figures


def test_every_figure_has_its_numbers_beside_it() -> None:
    played = play(study(DECAY, L2, objective=TWO, trials=12, batch=12)).all()
    files = shown(played)
    names = {"history", "response_stability", "response_plasticity", "plasticity_stability", "importance"}
    assert set(drawn(files)) == names
    assert all(f"figures/{name}.csv" in files for name in names)
    assert {"trials.csv", "seeds.csv", "search_space.csv", "importance.csv"} <= {*files}


def test_history_draws_every_value_and_the_best_up_to_it() -> None:
    files = shown(play().all())
    (axis,), frame = visible(drawn(files)["history"]), csv(files, "history")
    for strategy, marker in (("ewc", "o"), ("l2", "s")):
        own = frame[frame["strategy"] == strategy]
        # One mark more is beside the name at the end of the line.
        assert xy(axis, marker)[:-1] == list(zip(own["order"], own["value"], strict=True))
    steps = [line for line in axis.lines if line.get_drawstyle() == "steps-post"]
    drawn_steps = [list(line.get_ydata()) for line in steps]
    assert drawn_steps == [list(own["best_so_far"]) for _, own in frame.groupby("strategy", sort=False)]


def test_the_response_has_a_band_over_seeds_and_a_star_at_the_chosen_setting() -> None:
    played = play().all()
    files = shown(played)
    frame = csv(files, "response_average_accuracy")
    panels = visible(drawn(files)["response_average_accuracy"])
    for axis, searcher in zip(panels, played.searchers, strict=True):
        own = frame[frame["strategy"] == searcher.search.label].sort_values("setting")
        best = searcher.best()
        assert xy(axis, "*") == [pytest.approx((best.params["lam"], best.value))]
        (band,) = axis.collections
        corners = {tuple(vertex) for vertex in band.get_paths()[0].vertices.tolist()}
        assert {
            *zip(own["setting"], own["low"], strict=True),
            *zip(own["setting"], own["high"], strict=True),
        } <= corners
        assert axis.get_xscale() == "log" and axis.get_xlabel() == "λ"
        assert axis.get_title() == f"{spoken(searcher.search.label)}\n★ λ = {best.params['lam']:.3g}"


def test_a_plane_has_a_mark_a_trial_the_front_and_the_chosen() -> None:
    files = shown(play(study(EWC, objective=TWO)).all())
    (axis,), frame = visible(drawn(files)["plasticity_stability"]), csv(files, "plasticity_stability")
    assert xy(axis, "o") == list(zip(frame["plasticity"], frame["stability"], strict=True))
    edge = frame[frame["on_front"]].sort_values("plasticity")
    (line,) = [line for line in axis.lines if line.get_drawstyle() == "steps-pre"]
    assert list(line.get_xdata()) == list(edge["plasticity"]) and list(line.get_ydata()) == list(edge["stability"])
    assert xy(axis, "*") == [tuple(frame.loc[frame["best"], ["plasticity", "stability"]].iloc[0])]


def test_a_strategy_has_one_colour_in_every_figure_and_in_the_tracker() -> None:
    labels = ["ewc", "l2", "mas"]
    files = drawn(shown(play(study(EWC, L2, MAS)).all(diverges=lambda label, number, seed: label == "l2")))
    wanted = figures.colours(labels)
    assert all(same_color(studies.colours(labels)[label], wanted[label]) for label in labels)
    (plane,) = visible(files["plasticity_stability"])
    (history,) = visible(files["history"])
    for axis in (plane, history):
        colours = {line.get_marker(): line.get_color() for line in axis.lines if line.get_marker() in "osD"}
        assert all(same_color(colours[mark], wanted[label]) for mark, label in zip("osD", labels, strict=True))
    panels = visible(files["response_average_accuracy"])
    stars = [line.get_color() for axis in panels for line in axis.lines if line.get_marker() == "*"]
    assert [same_color(a, wanted[b]) for a, b in zip(stars, labels, strict=True)] == [True] * 3


@pytest.mark.parametrize("tuned_on_test", [True, False])
def test_every_figure_says_tuned_on_test_where_it_was_and_nowhere_else(tuned_on_test: bool) -> None:
    files = drawn(shown(play(study(DECAY, objective=TWO, trials=12, batch=12)).all(), tuned_on_test=tuned_on_test))
    captions = [figure.get_suptitle() for figure in files.values()]
    assert len(captions) == 5
    assert all(("tuned on test" in caption) == tuned_on_test for caption in captions)
    assert all(("validation images" in caption) != tuned_on_test for caption in captions)


def test_figures_of_means_say_over_how_many_seeds() -> None:
    files = drawn(shown(play(study(EWC, seeds=3)).all()))
    assert all("n = 3 seeds a trial" in figure.get_suptitle() for figure in files.values())
    (one,) = {
        f.get_suptitle().count("n = 1 seed a trial") for f in drawn(shown(play(study(EWC, seeds=1)).all())).values()
    }
    assert one == 1


def test_what_failed_or_diverged_or_was_pruned_is_marked_at_the_foot_apart_from_values() -> None:
    played = play(study(EWC, batch=6)).all(diverges=last_of("ewc", 1, 4), prunes=[2], fails=last_of("ewc", 0))
    files = drawn(shown(played))
    for name, expected in (("history", [1, 2, 5, 3]), ("response_average_accuracy", [0, 1, 4, 2])):
        (axis,) = visible(files[name])
        at = [x for mark in "+x|" for x, _ in xy(axis, mark)]
        trials = played.searchers[0].ended
        assert at == (expected if name == "history" else [trials[i].params["lam"] for i in expected])
        (foot,) = axis.patches
        low, high = axis.get_ylim()
        values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
        assert min(values) > low + foot.get_height() * (high - low)
        assert all(y < foot.get_height() for mark in "+x|" for _, y in xy(axis, mark))
        assert "+ failed · × diverged · | pruned" in files[name].get_suptitle()


def test_captions_say_what_is_shown_over_how_many_seeds_on_which_images_and_what_was_lost() -> None:
    played = play(study(EWC, seeds=3)).all(diverges=last_of("ewc", 1))
    named = {"average_accuracy": "maximize"}
    for tuned_on_test, images in ((True, "test images"), (False, "validation images")):
        found = studies.drawn(tables(played), named, tuned_on_test=tuned_on_test)
        assert all(f"judged on {images}" in drawn.caption for drawn, _ in found.values())
        assert all("n = 3 seeds a trial" in drawn.caption for drawn, _ in found.values())
        assert "× diverged" in found["history"][0].caption


def test_in_a_report_that_has_all_strategies_they_look_as_in_its_other_figures() -> None:
    played = play(study(EWC, L2)).all()
    for labels, place in ((["naive", "l2", "ewc"], 2), (["naive", "ewc"], 0)):
        cast = figures.Cast.of(labels)
        found = studies.drawn(tables(played), {"average_accuracy": "maximize"}, tuned_on_test=False, cast=cast)
        (axis,) = visible(found["plasticity_stability"][0].figure)
        assert same_color(axis.lines[0].get_color(), figures.Cast.of("abc").looks["abc"[place]].colour)


def test_captions_say_which_way_is_better() -> None:
    played = play(study(EWC, objective=["average_accuracy", "forgetting"])).all()
    named = {"average_accuracy": "maximize", "forgetting": "minimize"}
    found = studies.drawn(tables(played), named, tuned_on_test=False)
    assert "up and left is better" in found["forgetting_average_accuracy"][0].caption


def test_where_nothing_ended_well_the_tables_are_there_and_no_figure() -> None:
    files = shown(play(study(EWC)).all(diverges=lambda label, number, seed: True))
    assert drawn(files) == {} and "diverged with seeds 0, 1" in files["trials.csv"]


@pytest.mark.parametrize(
    ("panels", "places"),
    [
        ("a1 b1 c1", [(0, 0), (0, 1), (1, 0)]),
        ("a1 a2 a3 b1 c1", [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]),
        ("a1 b1 b2", [(0, 0), (1, 0), (1, 1)]),
    ],
)
def test_panels_fill_rows_and_several_of_one_strategy_begin_one(panels: str, places: list[tuple[int, int]]) -> None:
    named = [(name[0], name[1]) for name in panels.split()]
    assert study_figures._places(named, 2) == dict(zip(named, places, strict=True))


@pytest.mark.parametrize("objective", ["average_accuracy", ["average_accuracy", "forgetting"]])
@pytest.mark.parametrize("tables_", [(EWC,), (DECAY,), (EWC, L2), (DECAY, L2, SI, MAS)])
@pytest.mark.parametrize("lost", [False, True])
def test_figures_can_be_drawn_without_a_warning(
    tables_: tuple[dict[str, Any], ...], objective: Any, lost: bool
) -> None:
    made = study(*tables_, objective=objective, trials=10, batch=10)
    played = play(made).all(
        diverges=last_of("ewc", 3) if lost else None, prunes=[5] if lost and isinstance(objective, str) else []
    )
    assert all(draw(figure).startswith(b"\x89PNG") for figure in drawn(shown(played, tuned_on_test=lost)).values())


def test_a_single_trial_can_be_drawn() -> None:
    files = drawn(shown(play(study(EWC, trials=1, seeds=1)).all()))
    assert all(draw(figure).startswith(b"\x89PNG") for figure in files.values())


def test_figures_are_a_column_wide() -> None:
    files = drawn(shown(play(study(DECAY, L2, SI, MAS, objective=TWO, trials=12, batch=12)).all()))
    assert {figure.get_figwidth() for figure in files.values()} == {figures.COLUMN}


def test_figures_of_a_study_import_neither_torch_nor_optuna() -> None:
    code = "import sys, reports.studies; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "reports.study_figures" in loaded and not loaded & {"torch", "mlflow", "optuna", "studies"}


def test_tables_of_what_was_tuned_on_test_say_so() -> None:
    played = play(study(EWC))
    played.all()
    files = {name: content for name, content in shown(played, tuned_on_test=True).items() if name.endswith(".csv")}
    assert files and all(pd.read_csv(io.StringIO(content))["tuned_on_test"].all() for content in files.values())
    assert not any("tuned_on_test" in content for content in shown(played).values() if isinstance(content, str))
