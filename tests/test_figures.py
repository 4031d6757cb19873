"""Figures of results: by their numbers and structure, not their pixels; and that no text of theirs overlaps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmark import metrics
from reports import figures, studies
from reports.figures import Cast, Drawn, curves, forgetting, labels, style, sweep
from reports.names import spoken
from tests.result_frames import NAN, diverge, frames

PRESET = (
    "naive[batchnorm=update]", "naive[batchnorm=freeze-after-first]", "l2[lam=1]", "ewc[estimator=exact,lam=1000]",
    "ewc[estimator=sampled,lam=1000]", "ewc[estimator=empirical,lam=1000]", "ewc[estimator=batched,lam=100000]",
    "ewc[estimator=notebook,lam=1000]", "ewc[estimator=notebook,lam=10000]", "ewc[estimator=notebook,lam=100000]",
)  # fmt: skip
MANY = (
    *PRESET, "er[memory=2000,replay_batch=128]", "der++", "some.package.module:AStrategyOfAVeryLongName[strange_option=x,lam=1]",
    "ewc[accumulate=online,estimator=exact,fisher_samples=500,lam=1e+13]",
)  # fmt: skip
SWEPT = tuple(f"ewc[estimator={e},lam={lam}]" for e in ("exact", "notebook") for lam in ("0", "1", "100", "1e+07"))
SMALL = tuple(f"{name}[lam={lam}]" for name in ("ewc", "l2") for lam in (1, 10, 100))


def visible(drawn: Drawn) -> list[Axes]:
    return [axis for axis in drawn.figure.axes if axis.get_visible()]


def legend(drawn: Drawn) -> list[str]:
    return [text.get_text() for found in drawn.figure.legends for text in found.get_texts()]


def lines(axis: Axes, colour: Any) -> list[Any]:
    return [line for line in axis.lines if same_color(line.get_color(), colour)]


def shown_texts(figure: Figure) -> list[Text]:
    """All texts a reader sees, ticks beyond the limits of their axis left out."""
    hidden: set[int] = set()
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            room = 1e-9 + 1e-6 * (high - low)
            for tick in side.get_major_ticks():
                if not (axis.get_visible() and low - room <= tick.get_loc() <= high + room):
                    hidden |= {id(tick.label1), id(tick.label2)}
            for tick in side.get_minor_ticks():
                hidden |= {id(tick.label1), id(tick.label2)}
        if not axis.get_visible():
            hidden |= {id(text) for text in axis.findobj(Text)}
    found = figure.findobj(
        lambda artist: isinstance(artist, Text) and artist.get_visible() and bool(artist.get_text().strip())
    )
    return [text for text in found if id(text) not in hidden]


def crowded(figure: Figure) -> list[str]:
    """Texts that leave the figure, and pairs that overlap by more than a pixel each way."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = shown_texts(figure)
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts]).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, 2:]
    outside = ((low < -1) | (high > np.array(figure.bbox.size) + 1)).any(axis=1)
    common = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    pairs = np.argwhere(np.triu((common > 1).all(axis=2), k=1))
    name = [text.get_text() for text in texts]
    return [name[i] for i in np.flatnonzero(outside)] + [f"{name[i]} / {name[j]}" for i, j in pairs]


def ranks(strategies: tuple[str, ...]) -> Drawn:
    """A diagram of these strategies, in groups of three."""
    order = list(strategies)
    means = pd.Series({s: 1 + i * (len(order) - 1) / max(1, len(order)) for i, s in enumerate(order)})
    groups = [order[i : i + 3] for i in range(0, len(order), 2)]
    return figures.critical_difference(means, 1.234, groups, 8)


# What every figure promises

CASES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "one task": (1, 3, ("naive", "ewc[lam=10]")),
    "one run": (1, 1, ("naive",)),
    "one strategy": (2, 1, ("naive",)),
    "the preset": (2, 3, PRESET),
    "three tasks": (3, 2, ("naive", "l2[lam=1]")),
    "five tasks": (5, 6, ("naive", *SMALL[:5])),
    "ten tasks": (10, 3, ("naive", "joint", "ewc[lam=1000]")),
    "fifty tasks": (50, 2, ("naive", "ewc[lam=1000]", "si[lam=0.2]", "joint")),
    "long names": (5, 2, MANY),
    "a sweep": (3, 2, ("naive", *SWEPT)),
    "formulas in names": (2, 2, ("a$\\q$:b_1", "c&%#{}[k=$1$]")),
}


def drawn_of(case: str, lost: str = "none") -> dict[str, Drawn]:
    """All figures of a case, runs lost: none, some or all."""
    tasks, seeds, strategies = CASES[case]
    runs, accuracy = frames(tasks, seeds, strategies)
    for strategy in {"none": (), "some": strategies[:1], "all": strategies}[lost]:
        diverge(runs, accuracy, strategy, tuple(range(seeds)))
    if lost == "some" and len(strategies) > 1:
        diverge(runs, accuracy, strategies[1], (0,))
    return figures.every(runs, accuracy) | ({"ranks": ranks(strategies)} if len(strategies) > 2 else {})


@pytest.mark.parametrize(("case", "lost"), [*((case, "none") for case in CASES), ("five tasks", "some"), ("a sweep", "some"),
                                            ("one run", "all"), ("the preset", "all"), ("five tasks", "all"), ("a sweep", "all")])  # fmt: skip
def test_figures_are_a_column_wide_and_no_text_is_clipped_or_overlaps(case: str, lost: str) -> None:
    for name, drawn in drawn_of(case, lost).items():
        assert drawn.figure.get_figwidth() == figures.COLUMN == 3.3
        assert crowded(drawn.figure) == [], name
        assert all(6 <= text.get_fontsize() <= 8 for text in shown_texts(drawn.figure)), name


def test_three_digits_have_room_in_the_cells_of_a_matrix() -> None:
    drawn = figures.accuracy_matrices(frames(5, 1, SMALL)[1].assign(accuracy=1.0))
    assert [len(axis.texts) for axis in visible(drawn)] == [30] * len(SMALL)
    assert crowded(drawn.figure) == []


def test_the_check_for_overlaps_finds_them() -> None:
    made = Figure(figsize=(2, 2))
    made.text(0.1, 0.5, "here")
    made.text(0.15, 0.5, "there")
    made.text(0.95, 0.1, "outside")
    assert crowded(made) == ["outside", "here / there"]


@pytest.mark.parametrize(
    ("tasks", "labels", "names"),
    [
        (1, ("naive",), ["accuracy_over_tasks", "seed_distribution", "accuracy_matrices"]),
        (2, ("naive",), ["accuracy_over_tasks", "seed_distribution", "stability_plasticity", "forgetting_by_task", "accuracy_matrices"]),
        (2, SMALL, ["accuracy_over_tasks", "seed_distribution", "stability_plasticity", "forgetting_by_task", "accuracy_matrices", "lambda_sweep"]),
    ],
)  # fmt: skip
def test_a_report_has_the_figures_its_results_allow(tasks: int, labels: tuple[str, ...], names: list[str]) -> None:
    assert list(figures.every(*frames(tasks, 2, labels))) == names


def test_captions_say_the_interval_and_n() -> None:
    def captions(seeds: int, *lost: int) -> dict[str, str]:
        runs, accuracy = frames(3, seeds, SMALL[:3])
        diverge(runs, accuracy, SMALL[0], lost)
        return {name: drawn.caption for name, drawn in figures.every(runs, accuracy).items()}

    for name, caption in captions(3).items():
        banded = name not in {"accuracy_matrices", "stability_plasticity"}
        assert ("95% Student t interval" in caption) == banded and "n = 3 seeds" in caption, name
        assert "did not finish" not in caption
    assert all("n = 1 seed" in caption and "95%" not in caption for caption in captions(1).values())
    for caption in captions(3, 1).values():
        assert "Runs that did not finish: EWC (λ = 1) 1 of 3." in caption and "n = 2 to 3 seeds" in caption


def test_a_strategy_has_one_look_in_every_figure_of_results_and_studies() -> None:
    strategies = ("naive", "l2[lam=1]", "ewc[lam=10]", "si[lam=1]")
    cast = Cast.of(strategies)
    assert len({look.colour for look in cast.looks.values()}) == 4
    drawn = figures.every(*frames(6, 3, strategies)) | {"ranks": ranks(strategies)}
    for strategy, look in cast.looks.items():
        for name, each in drawn.items():
            if name == "accuracy_matrices":
                continue
            own = [line for axis in visible(each) for line in lines(axis, look.colour)]
            assert {line.get_marker() for line in own} - {"None", None, ""} == {look.marker}, (name, strategy)
        assert same_color(studies.colours(list(strategies))[strategy], look.colour)


def test_colours_stay_where_others_are_missing() -> None:
    runs, accuracy = frames(3, 2, ("naive", "ewc", "l2"))
    cast, some = Cast.of(runs["strategy"]), runs["strategy"] != "ewc"
    for drawn in (figures.seed_distribution(runs[some], cast), figures.accuracy_over_tasks(accuracy[some.reindex(accuracy.index, fill_value=False) | (accuracy["strategy"] != "ewc")], cast)):  # fmt: skip
        found = {line.get_color() for axis in visible(drawn) for line in axis.lines if line.get_marker() in "osD"}
        assert cast.looks["l2"].colour in found and cast.looks["ewc"].colour not in found


# Names and looks


def test_forty_strategies_can_be_told_apart_eleven_by_colour() -> None:
    looks = [style.look(place) for place in range(40)]
    assert len({look.colour for look in looks[:11]}) == 11
    assert len(set(looks)) == 40
    assert not {"*", "x", "|"} & {look.marker for look in looks}  # these mean something else


MACHADO = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3).tolist(),
}  # of linear RGB, Machado, Oliveira & Fernandes 2009
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def linear(colour: str) -> np.ndarray:
    """RGB as light adds up."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour: str, seen: list[list[float]]) -> np.ndarray:
    """CIE L*a*b* of a colour as somebody sees it."""
    xyz = np.array(XYZ) @ np.clip(np.array(seen) @ linear(colour), 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", MACHADO)
def test_the_palette_stays_apart_for_colour_blind_readers(sight: str) -> None:
    seen = [lab(colour, MACHADO[sight]) for colour in style.PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15  # seaborn's colorblind: 11


def test_lines_stand_out_from_white_but_for_a_grey() -> None:
    def contrast(colour: str) -> float:
        return 1.05 / (float(np.array(XYZ)[1] @ linear(colour)) + 0.05)

    assert {colour for colour in style.PALETTE if contrast(colour) < 3} == {"#94a4a2"}  # 2.6


def test_of_many_strategies_those_that_differ_in_lambda_share_a_colour_and_one_stands_for_them() -> None:
    strategies = ("naive", *(f"{name}[lam={10**i}]" for name in ("ewc", "l2") for i in range(9)))
    runs, accuracy = frames(2, 2, strategies)
    looks = Cast.of(strategies).looks
    assert len({looks[s].colour for s in strategies}) == 3 and len(set(looks.values())) == len(strategies)
    best = sweep.representatives(runs, strategies)
    assert list(best) == ["naive", "ewc", "l2"]
    means = runs.groupby("strategy")["average_accuracy"].mean()
    assert best["ewc"] == means[[s for s in strategies if s.startswith("ewc")]].idxmax()
    drawn = figures.every(runs, accuracy)
    assert legend(drawn["stability_plasticity"]) == [spoken(s) for s in strategies if s in best.values()]
    assert (
        "(3 of 19)" in drawn["seed_distribution"].caption and "in these results" in drawn["seed_distribution"].caption
    )
    assert all(lines(axis, looks[best["ewc"]].colour) for axis in visible(drawn["lambda_sweep"]))
    assert "in these results" not in drawn["lambda_sweep"].caption


@pytest.mark.parametrize(
    ("inches", "wrapped"),
    [
        (9.0, ["fine-tuning (BatchNorm frozen)", "EWC (exact, λ = 10⁷)"]),
        (1.25, ["fine-tuning\n(BatchNorm frozen)", "EWC (exact, λ = 10⁷)"]),
        (0.9, ["fine-tuning\n(BatchNorm\nfrozen)", "EWC (exact,\nλ = 10⁷)"]),
    ],
)
def test_names_break_before_and_between_options(inches: float, wrapped: list[str]) -> None:
    assert labels.wrap(["fine-tuning (BatchNorm frozen)", "EWC (exact, λ = 10⁷)"], inches) == wrapped


def test_a_name_without_a_place_to_break_still_fits() -> None:
    (found,) = labels.wrap(["my_package.module:AVeryLongNameIndeed"], 0.7)
    assert all(labels.width(line) <= 0.7 for line in found.split("\n"))
    assert found.replace("\n", "") == "my_package.module:AVeryLongNameIndeed"


@pytest.mark.parametrize("places", [[0.5, 0.5, 0.5, 0.5], [0.0, 0.99, 1.0, 1.0], [0.0, 0.3, 0.31, 1.0], [], [2.0]])
def test_names_at_the_ends_of_lines_are_pushed_apart_and_keep_their_order(places: list[float]) -> None:
    found = labels.apart(places, 0.1)
    assert len(found) == len(places) and found == sorted(found)
    assert all(b - a > 0.0999 for a, b in itertools.pairwise(found)) and max(found, default=0) <= 1


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0, 0.5, 1], ["0", "50", "100"]), ([0.875, 0.9], ["87.5", "90.0"]), ([-0.2, 0.1 + 0.2], ["−20", "30"]),
        ([0.9001, 0.9002], ["90.01", "90.02"]), ([-0.0], ["0"]),
    ],
)  # fmt: skip
def test_ticks_are_in_per_cent_with_the_decimals_they_need(ticks: list[float], texts: list[str]) -> None:
    assert labels.PerCent().format_ticks(ticks) == texts


# Files


def test_saved_figures_are_vectors_with_truetype_fonts_and_pictures_at_print_resolution(tmp_path: Path) -> None:
    for name, drawn in figures.every(*frames(2, 2, SMALL)).items():
        pdf, png = figures.save(drawn.figure, tmp_path / f"{name}.v1")
        assert (pdf.name, png.name) == (f"{name}.v1.pdf", f"{name}.v1.png")
        content = pdf.read_bytes()
        assert content.startswith(b"%PDF") and b"/CIDFontType2" in content and b"/Type3" not in content
        assert b"/MediaBox [ 0 0 237.6 " in content  # 3.3 in of 72 points
        assert mpl.image.imread(png).shape[1] == 990


def test_equal_figures_are_equal_files_and_saving_leaves_a_figure_as_it_was(tmp_path: Path) -> None:
    runs, _ = frames(2, 2, SMALL)
    one, other = (figures.seed_distribution(runs).figure for _ in range(2))
    before = one.get_layout_engine()
    first = figures.save(one, tmp_path / "one", ("pdf", "svg", "png"))
    assert one.get_layout_engine() is before
    second = figures.save(other, tmp_path / "other", ("pdf", "svg", "png"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    again = figures.save(one, tmp_path / "again", ("png",))
    assert again[0].read_bytes() == first[2].read_bytes()


# Accuracy over tasks


def test_accuracy_over_tasks_has_a_panel_a_task_and_a_line_and_a_band_a_strategy() -> None:
    runs, accuracy = frames()
    drawn, cast = figures.accuracy_over_tasks(accuracy), Cast.of(runs["strategy"])
    assert [axis.get_title() for axis in visible(drawn)] == ["task 1", "task 2", "task 3", "tasks so far, mean"]
    assert legend(drawn) == ["fine-tuning", "EWC (λ = 10)"]
    for task, axis in enumerate(visible(drawn)[:3], start=1):
        assert len(axis.collections) == 2
        for (strategy, look), band in zip(cast.looks.items(), axis.collections, strict=True):
            own = accuracy[(accuracy["task"] == task) & (accuracy["strategy"] == strategy)]
            values = own.groupby("after_task")["accuracy"]
            line = next(line for line in lines(axis, look.colour) if len(line.get_xdata()))
            assert list(line.get_xdata()) == [0, 1, 2, 3]
            assert list(line.get_ydata()) == pytest.approx(list(values.mean()))
            high = values.mean() + 4.302653 * values.std() / math.sqrt(3)  # t of 2 degrees of freedom
            top = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
            for x, y in high.clip(0, 1).items():
                assert any(corner == pytest.approx((x, y)) for corner in top)


def test_the_mean_over_tasks_so_far_is_over_those_already_trained() -> None:
    _, accuracy = frames(4, 2, ("naive",))
    for row in curves.so_far(accuracy).to_dict("records"):
        own = accuracy[(accuracy["seed"] == row["seed"]) & (accuracy["after_task"] == row["after_task"])]
        assert row["accuracy"] == pytest.approx(own.loc[own["task"] <= row["after_task"], "accuracy"].mean())


def test_of_many_tasks_some_over_the_whole_sequence_have_a_panel_and_the_caption_says_so() -> None:
    titles = [axis.get_title() for axis in visible(figures.accuracy_over_tasks(frames(50, 1, ("naive",))[1]))]
    assert len(titles) == 12 and titles[0] == "task 1" and titles[-2] == "task 50"
    assert "11 of the 50 tasks" in figures.accuracy_over_tasks(frames(50, 1, ("naive",))[1]).caption
    assert "on each task" in figures.accuracy_over_tasks(frames(11, 1, ("naive",))[1]).caption


def test_of_one_task_lines_are_named_where_they_end() -> None:
    drawn = figures.accuracy_over_tasks(frames(1, 3)[1])
    (axis,) = visible(drawn)
    assert legend(drawn) == [] and {text.get_text() for text in axis.texts} == {"fine-tuning", "EWC (λ = 10)"}


# Accuracy matrices


def test_accuracy_matrices_show_the_mean_over_seeds_in_per_cent() -> None:
    _, accuracy = frames()
    drawn = figures.accuracy_matrices(accuracy)
    assert [axis.get_title() for axis in visible(drawn)] == ["fine-tuning", "EWC (λ = 10)"]
    for strategy, axis in zip(("naive", "ewc[lam=10]"), visible(drawn), strict=True):
        own = accuracy[accuracy["strategy"] == strategy]
        expected = 100 * own.groupby(["after_task", "task"])["accuracy"].mean().to_numpy()
        (mesh,) = axis.collections
        assert list(np.ravel(mesh.get_array())) == pytest.approx(list(expected))
        assert mesh.get_clim() == (0, 100)
        assert [text.get_text() for text in axis.texts] == [f"{value:.0f}" for value in expected]


def test_where_cells_are_too_small_for_numbers_a_bar_gives_the_colours_a_meaning() -> None:
    *panels, bar = visible(figures.accuracy_matrices(frames(30, 1, ("naive", "joint"))[1]))
    assert bar.get_xlabel() == "accuracy (%)" and not any(axis.texts for axis in panels)


def test_matrices_keep_their_shape_where_runs_diverged_and_the_caption_says_so() -> None:
    runs, accuracy = frames()
    assert "Grey" not in figures.accuracy_matrices(accuracy).caption
    diverge(runs, accuracy, "naive", (0, 1, 2))
    drawn = figures.accuracy_matrices(accuracy)
    naive, ewc = visible(drawn)
    assert naive.collections[0].get_array().shape == ewc.collections[0].get_array().shape == (4, 3)
    assert "Grey: no run got there." in drawn.caption and "fine-tuning 3 of 3" in drawn.caption


# Stability and plasticity


def test_stability_against_plasticity_is_old_tasks_at_the_end_against_each_when_learned() -> None:
    _, accuracy = frames()
    drawn = figures.stability_plasticity(accuracy)
    (axis,) = visible(drawn)
    assert legend(drawn) == ["fine-tuning", "EWC (λ = 10)"]
    for strategy, look in Cast.of(accuracy["strategy"]).looks.items():
        own = accuracy[accuracy["strategy"] == strategy]
        matrices = own.pivot_table(index=["seed", "after_task"], columns="task", values="accuracy").to_numpy().reshape(3, 4, 3)  # fmt: skip
        stability = [metrics.stability(matrix) for matrix in matrices]
        plasticity = [metrics.learning_accuracy(matrix) for matrix in matrices]
        seeds, mean, _ = lines(axis, look.colour)
        assert list(seeds.get_xdata()) == pytest.approx(plasticity)
        assert list(seeds.get_ydata()) == pytest.approx(stability)
        assert (mean.get_xdata()[0], mean.get_ydata()[0]) == pytest.approx((np.mean(plasticity), np.mean(stability)))


def test_a_strategy_that_always_diverged_has_no_mark() -> None:
    runs, accuracy = frames(labels=("naive", "ewc", "l2"))
    diverge(runs, accuracy, "ewc", (0, 1, 2))
    assert legend(figures.stability_plasticity(accuracy)) == ["fine-tuning", "L2"]


# Rows: seeds, forgetting of a few tasks


def test_a_row_has_every_seed_their_mean_and_its_interval() -> None:
    runs, _ = frames(labels=("naive", "ewc[lam=10]", "l2[lam=1]"))
    drawn = figures.seed_distribution(runs)
    (axis,) = visible(drawn)
    assert [text.get_text() for text in axis.get_yticklabels()] == ["fine-tuning", "EWC (λ = 10)", "L2 (λ = 1)"]
    assert axis.get_xlabel() == "average accuracy (%), n = 3"
    for (strategy, look), y in zip(Cast.of(runs["strategy"]).looks.items(), axis.get_yticks(), strict=True):
        values = runs.loc[runs["strategy"] == strategy, "average_accuracy"]
        interval, seeds, mean = lines(axis, look.colour)
        assert mean.get_marker() == "None" and len(set(mean.get_xdata())) == 1  # a tick, which hides no interval
        half = 4.302653 * values.std() / math.sqrt(3)
        assert list(interval.get_xdata()) == pytest.approx([values.mean() - half, values.mean() + half])
        assert list(seeds.get_xdata()) == list(values) and mean.get_xdata()[0] == pytest.approx(values.mean())
        assert abs(mean.get_ydata()[0] - y) < 0.1 and all(abs(at - y) < 0.1 for at in seeds.get_ydata())


def test_where_strategies_have_different_numbers_of_seeds_each_row_says_its_own() -> None:
    runs, accuracy = frames(labels=("naive", "ewc", "l2"))
    diverge(runs, accuracy, "ewc", (0, 1, 2))
    diverge(runs, accuracy, "l2", (1,))
    drawn = figures.seed_distribution(runs)
    texts = [text.get_text() for text in visible(drawn)[0].texts]
    assert texts == ["no run finished", "3", "0", "2", "n"]
    assert "EWC 3 of 3; L2 1 of 3" in drawn.caption


def test_intervals_do_not_reach_beyond_what_can_be() -> None:
    runs, _ = frames(2, 2, ("naive",))  # of two seeds an interval is many times their distance
    low, high = visible(figures.seed_distribution(runs))[0].get_xlim()
    assert low > -0.06 and high < 1.06


def test_forgetting_of_a_task_is_the_drop_from_its_best() -> None:
    _, accuracy = frames(4, 3)
    frame = forgetting.dropped(accuracy)
    for (strategy, seed), own in frame.groupby(["strategy", "seed"]):
        cells = accuracy[(accuracy["strategy"] == strategy) & (accuracy["seed"] == seed)]
        a = cells.pivot_table(index="after_task", columns="task", values="accuracy").to_numpy()
        expected = metrics.forgetting_by_task(a)
        assert list(own["forgetting"]) == pytest.approx(list(expected)) and list(own["task"]) == [1, 2, 3]


def test_runs_that_diverged_have_no_forgetting() -> None:
    runs, accuracy = frames(4, 3)
    diverge(runs, accuracy, "naive", (1,))
    frame = forgetting.dropped(accuracy)
    assert set(frame.loc[frame["strategy"] == "naive", "seed"]) == {0, 2} and frame["forgetting"].notna().all()


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_forgetting_of_a_few_tasks_has_a_panel_a_task(tasks: int) -> None:
    runs, accuracy = frames(tasks, 3)
    panels = visible(figures.forgetting_by_task(accuracy))
    assert [axis.get_title() for axis in panels] == [f"task {j}" for j in range(1, tasks)]
    ((low, high),) = {axis.get_xlim() for axis in panels}
    assert low < 0 < high
    named = [axis.get_xlabel() for axis in panels if axis.get_xlabel()] or [panels[0].get_figure().get_supxlabel()]
    assert named == ["forgetting (points)"]
    frame = forgetting.dropped(accuracy)
    for task, axis in enumerate(panels, start=1):
        means = frame[frame["task"] == task].groupby("strategy", sort=False)["forgetting"].mean()
        drawn = [lines(axis, look.colour)[-1].get_xdata()[0] for look in Cast.of(runs["strategy"]).looks.values()]
        assert drawn == pytest.approx(list(means))


def test_forgetting_of_many_tasks_is_a_curve_a_strategy_named_at_its_end() -> None:
    runs, accuracy = frames(6, 3)
    (axis,) = visible(figures.forgetting_by_task(accuracy))
    frame = forgetting.dropped(accuracy)
    for strategy, look in Cast.of(runs["strategy"]).looks.items():
        means = frame[frame["strategy"] == strategy].groupby("task")["forgetting"].mean()
        curve = lines(axis, look.colour)[0]
        assert list(curve.get_xdata()) == [1, 2, 3, 4, 5] and list(curve.get_ydata()) == pytest.approx(list(means))
    assert {text.get_text() for text in axis.texts} == {"fine-tuning", "EWC (λ = 10)"}


# λ


def test_a_sweep_is_a_line_for_strategies_that_differ_in_lambda_alone() -> None:
    runs, _ = frames(3, 3, ("naive", *SMALL, "si[lam=1]", "si[lam=2]"))
    drawn = figures.lambda_sweep(runs)
    assert drawn is not None
    panels = visible(drawn)
    assert [axis.get_ylabel() for axis in panels] == ["average accuracy (%)", "forgetting (points)"]
    best = sweep.representatives(runs, list(runs["strategy"].unique()))
    for metric, axis in zip(("average_accuracy", "forgetting"), panels, strict=True):
        assert axis.get_xscale() == "log" and {text.get_text() for text in axis.texts} == {"EWC", "L2"}
        assert len(axis.collections) == 2
        for family in ("ewc", "l2"):
            curve = lines(axis, Cast.of(runs["strategy"]).looks[best[family]].colour)[0]
            means = runs.groupby("strategy")[metric].mean()
            assert list(curve.get_xdata()) == [1, 10, 100]
            assert list(curve.get_ydata()) == pytest.approx([means[f"{family}[lam={lam}]"] for lam in (1, 10, 100)])


@pytest.mark.parametrize("labels", [("naive", "l2[lam=1]", "l2[lam=2]"), ("ewc", "ewc[lam=1]", "ewc[decay=1,lam=2]")])
def test_without_three_values_of_lambda_there_is_no_sweep(labels: tuple[str, ...]) -> None:
    assert figures.lambda_sweep(frames(2, 2, labels)[0]) is None


def test_no_lambda_stands_left_of_the_others_and_ticks_are_powers_of_ten() -> None:
    drawn = figures.lambda_sweep(frames(2, 2, SWEPT)[0])
    assert drawn is not None
    axis = visible(drawn)[-1]
    places = [axis.transData.transform((x, 0))[0] for x in (0, 1, 10, 100, 1e7)]
    assert places == sorted(places) and places[1] - places[0] > places[2] - places[1]
    texts = [text.get_text() for text in axis.get_xticklabels()]
    assert texts[:2] == ["0", "1"] and "10⁶" in texts and not any("$" in text for text in texts)


@pytest.mark.parametrize(
    ("values", "texts"), [([2, 4, 8], ["2", "8"]), ([5], ["5"]), ([1, 3, 30], ["1", "10"]), ([1, 1e13], ["1", "1\u202f000", "10⁶", "10⁹", "10¹²"])]
)  # fmt: skip
def test_a_logarithmic_axis_always_has_ticks(values: list[float], texts: list[str]) -> None:
    axis = Figure().subplots()
    labels.strengths(axis, pd.Series(values * 20, dtype=float), zero=False)
    assert [axis.xaxis.get_major_formatter()(0, i) for i in range(len(axis.get_xticks()))] == texts


def test_a_lambda_at_which_runs_diverged_or_failed_is_marked_at_the_foot() -> None:
    runs, accuracy = frames(2, 3, SMALL)
    diverge(runs, accuracy, "ewc[lam=100]", (0, 1, 2))
    diverge(runs, accuracy, "l2[lam=10]", (0,))
    runs.loc[(runs["strategy"] == "l2[lam=1]") & (runs["seed"] == 1), "status"] = "failed"
    drawn = figures.lambda_sweep(runs)
    assert drawn is not None and " +: a run failed. ×: a run diverged." in drawn.caption
    for axis in visible(drawn):
        assert [
            list(line.get_xdata()) for line in axis.lines if line.get_marker() == "+" and len(line.get_xdata())
        ] == [[1]]
        crosses = [list(line.get_xdata()) for line in axis.lines if line.get_marker() == "x"]
        assert crosses == [[100], [10]] and axis.patches


# Ranks


def test_a_diagram_of_ranks_has_the_best_above_and_bars_over_groups() -> None:
    means = pd.Series({"naive": 3.0, "ewc[lam=10]": 1.25, "l2[lam=1]": 1.75, "si": 4.0})
    groups = [("ewc[lam=10]", "l2[lam=1]"), ("l2[lam=1]", "naive"), ("si",)]
    drawn = figures.critical_difference(means, 1.5, groups, 6)
    (axis,) = visible(drawn)
    order = ["ewc[lam=10]", "l2[lam=1]", "naive", "si"]
    assert [text.get_text() for text in axis.get_yticklabels()] == [spoken(s) for s in order]
    low, high = axis.get_ylim()
    assert low > high  # the first row is above
    rows = dict(zip(order, axis.get_yticks(), strict=True))
    looks = Cast.of(means.index).looks
    marks = {s: next(iter(lines(axis, looks[s].colour))).get_xydata().tolist() for s in order}
    assert marks == {s: [[means[s], rows[s]]] for s in order}
    bars = [line for line in axis.lines if line.get_linewidth() > 2]
    assert len(bars) == 2  # nobody is a group alone
    for bar, group in zip(bars, groups[:2], strict=True):
        (x, top), (same, bottom) = bar.get_xydata()
        assert x == same > 4 and top < rows[group[0]] < rows[group[1]] < bottom
    assert bars[0].get_xdata()[0] != bars[1].get_xdata()[0]  # they overlap: side by side
    scale = next(line for line in axis.lines if line.get_marker() == "|")
    assert list(scale.get_xdata()) == [1, 2.5]
    assert "n = 6 scenarios" in drawn.caption and "1.50" in drawn.caption


def test_ranks_may_be_any_mapping() -> None:
    drawn = figures.critical_difference({"a": 1.0, "b": 2.0, "c": 3.0}, 9.0, [("a", "b", "c")], 2)
    scale = next(line for line in visible(drawn)[0].lines if line.get_marker() == "|")
    assert max(scale.get_xdata()) == 3  # no longer than the axis


FUNCTIONS: list[Callable[[pd.DataFrame], Drawn | None]] = [figures.seed_distribution, figures.lambda_sweep]


@pytest.mark.parametrize("draw", FUNCTIONS)
def test_numbers_of_runs_that_did_not_finish_are_not_shown(draw: Callable[[pd.DataFrame], Drawn | None]) -> None:
    runs, accuracy = frames(2, 3, SMALL)
    diverge(runs, accuracy, SMALL[0], (0,))
    runs.loc[runs["status"] == "diverged", ["average_accuracy", "forgetting"]] = 77.0
    drawn = draw(runs)
    assert drawn is not None
    shown = [float(v) for axis in visible(drawn) for line in axis.lines for v in np.ravel(line.get_xydata()[:, :])]
    assert 77.0 not in shown and not math.isnan(NAN if not shown else shown[0])
