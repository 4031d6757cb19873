"""What a report says of studies: which settings were chosen by which protocol, with or without their tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.tracking import Tracker
from reports import document, load, studies, write
from reports.load import ReportError
from studies import objectives
from studies.delivery import Delivery
from studies.spec import Study
from tests import synthetic_runs as made
from tests.synthetic_study import EWC, L2, Lost, Played, play, study

Delivered = Callable[..., Played]
MARK = "TUNED ON TEST"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def delivered(uri: str, tmp_path: Path) -> Delivered:
    """Plays a study and tracks it."""

    def deliver(asked: Study, diverges: Lost | None = None) -> Played:
        played = play(asked)
        delivery = Delivery(Tracker(uri, asked.name, tmp_path / "mlartifacts" / asked.name), asked, studies, print)
        played.all(delivery, diverges)
        delivery.close(played.searchers, played.records, "", played.tested(), {"command": "forgetbench study"})
        assert delivery.failure is None
        return played

    return deliver


def built(uri: str, *names: str, baseline: str = "naive") -> document.Document:
    return document.build(load.load(uri, studies=names), baseline=baseline)


def test_what_was_tuned_on_test_says_so_also_where_the_tables_of_its_trials_are_gone(
    uri: str, delivered: Delivered, tmp_path: Path
) -> None:
    delivered(study(EWC, L2, name="oracle", protocol="test-oracle"))
    whole = write.render(built(uri, "oracle"))
    for path in tmp_path.glob("mlartifacts/**/trials.csv"):
        path.unlink()
    report = built(uri, "oracle")
    text = write.render(report)
    assert report.tuned_on_test and "λ was not tuned" not in text
    assert "tables of trials of study oracle could not be read" in text
    (section,) = report.sections
    shown = len(section.every_table) + len(section.figures)
    assert text.count(MARK) == shown + 2 < whole.count(MARK)  # and in the head and the limitations
    assert all(table.frame["tuned_on_test"].all() for table in section.every_table)


def test_a_comparison_of_protocols_knows_by_its_labels_what_was_tuned_and_on_what(uri: str, tmp_path: Path) -> None:
    labels = ("ewc (validation)", "ewc (test-oracle, tuned on test; first-k)")
    runs = [record for label in labels for record in made.seeds(label, 3, lam="10", strategy_name="ewc")]
    made.track(uri, "some-compared", runs, tmp_path)
    report = document.build(load.load(uri))
    (section,) = report.sections
    assert report.tuned_on_test and section.origin.tuned == {*labels} and section.origin.on_test == {labels[1]}
    main = section.tables["main"]
    assert main.caption.startswith("PARTLY TUNED ON TEST. ")
    assert set(main.frame.loc[main.frame["tuned_on_test"], "strategy"]) == {labels[1]}
    assert not any("not tuned" in said for said in section.limitations)
    assert "the settings of EWC (test-oracle, tuned on test; first-k) were chosen on" in section.limitations[0]
    assert section.reference == labels[0]


def test_an_experiment_that_no_study_chose_for_is_not_tuned(uri: str, tmp_path: Path) -> None:
    made.track(uri, "plain", made.seeds("ewc[lam=10]", 3, lam="10"), tmp_path)
    report = document.build(load.load(uri))
    assert not report.tuned_on_test and MARK not in write.render(report)
    assert any(said.startswith("λ was not tuned") for said in report.sections[0].limitations)


def test_of_several_studies_each_has_its_table_and_its_figures(uri: str, delivered: Delivered) -> None:
    delivered(study(EWC, name="first"))
    delivered(study(L2, name="second"))
    report = built(uri, "first", "second", baseline="ewc")
    (section,) = report.sections
    assert sorted((each.study, each.table.name) for each in section.tuning) == [
        ("first", "first_tuning"), ("second", "second_tuning"),
    ]  # fmt: skip
    drawn = {name.removeprefix("study_") for name in section.figures if name.startswith("study_")}
    assert {"first_history", "second_history"} <= drawn
    text = write.render(report)
    assert "Study `first`. Protocol: λ was" in text and "Study `second`. Protocol: λ was" in text
    assert section.figures["study_first_history"].caption.startswith("Study first. ")


def test_tables_of_studies_with_dots_in_their_names_are_files_of_their_own(
    uri: str, delivered: Delivered, tmp_path: Path
) -> None:
    for name in ("lr-0.1", "lr-0.01"):
        delivered(study(EWC, name=name))
    write.write(built(uri, "lr-0.1", "lr-0.01", baseline="ewc"), tmp_path / "report", formats=("md", "tex"))
    there = {path.name for path in (tmp_path / "report" / "tables").iterdir()}
    assert {f"lr-{lr}_tuning.{ending}" for lr in ("0.1", "0.01") for ending in ("csv", "tex")} <= there


def test_two_studies_that_chose_one_setting_are_both_shown(uri: str, delivered: Delivered) -> None:
    for name in ("first", "second"):
        delivered(study(EWC, name=name))
    (section,) = built(uri, "first", "second").sections
    assert sorted(each.study for each in section.tuning) == ["first", "second"] and len(section.runs) == 3
    assert all(each.table.frame["tested_n"].tolist() == [3] for each in section.tuning)


def test_every_objective_has_a_row_with_what_it_promised_and_what_was_tested(uri: str, delivered: Delivered) -> None:
    played = delivered(study(EWC, name="two", objective=["stability", "plasticity"]))
    (section,) = built(uri, "two").sections
    (tuning,) = section.tuning
    tested = played.tested()["ewc"]
    assert tuning.table.header[3] == "objective"
    assert [row[3] for row in tuning.table.rows] == ["stability", "plasticity"]
    for row in tuning.table.frame.to_dict("records"):
        values = [objectives.value(row["objective"], record) for record in tested]
        assert row["tested_mean"] == pytest.approx(sum(values) / len(values))
        assert row["gap"] == pytest.approx(row["tested_mean"] - row["promised"])


def test_a_study_of_which_every_trial_was_lost_is_not_told_to_resume(uri: str, delivered: Delivered) -> None:
    delivered(study(EWC, name="lost"), diverges=lambda label, number, seed: True)
    with pytest.raises(ReportError, match="study 'lost' chose nothing: of its 6 trials 6 diverged; search where"):
        load.load(uri, studies=["lost"])


def test_a_folder_that_was_moved_is_reported_as_before(uri: str, delivered: Delivered, tmp_path: Path) -> None:
    delivered(study(EWC, L2, name="moved"))
    before = load.load(uri, studies=["moved"])
    elsewhere = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-elsewhere"))
    shutil.rmtree(tmp_path / "mlartifacts")
    after = load.load(f"sqlite:///{elsewhere / 'mlflow.db'}", studies=["moved"])
    assert after.accuracy.equals(before.accuracy) and len(after.accuracy)
    (overview,) = after.overviews.values()
    assert set(overview.trials) == set(load.TRIALS)


def test_without_matrices_a_report_has_what_needs_none_and_says_why(
    uri: str, delivered: Delivered, tmp_path: Path
) -> None:
    delivered(study(EWC, L2, name="bare"))
    for path in tmp_path.glob("mlartifacts/**/accuracy_matrix.json"):
        path.unlink()
    report = built(uri, "bare")
    (section,) = report.sections
    assert "tasks" not in section.tables and {name for name in section.figures if "study" not in name} == {
        "seed_distribution"
    }
    assert "The accuracy matrices of 6 runs could not be read" in write.render(report)


def test_without_some_matrices_figures_show_the_rest(uri: str, tmp_path: Path) -> None:
    made.track(uri, "some", [*made.seeds("naive", 3), *made.seeds("si", 3)], tmp_path)
    first = load.load(uri)
    gone = first.runs.loc[first.runs["strategy"] == "si", "run_id"]
    for path in [p for run_id in gone for p in tmp_path.glob(f"mlartifacts/**/{run_id}/**/accuracy_matrix.json")]:
        path.unlink()
    (section,) = document.build(load.load(uri)).sections
    assert "accuracy_matrices" in section.figures and len(section.tables["tasks"].rows) == 1
    assert any("matrices of 3 runs" in said for said in section.limitations)
