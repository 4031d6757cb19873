"""What a report says, of runs whose accuracies are made up."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pandas as pd
import pytest

from reports import compare, document, load, recipes, setting, write
from reports.load import ReportError, Tracked
from reports.table import Cell
from tests import synthetic_runs as made

EWC, SI = "ewc[estimator=exact,lam=10]", "si"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def tracked(folder: Path, request: pytest.FixtureRequest):
    """Tracks runs, each time newer ones, and reads all of them again."""
    times = itertools.count(1e6, 1e4)

    def track(*records, **environment: str) -> Tracked:
        uri, name = f"sqlite:///{folder / 'mlflow.db'}", request.node.name
        made.track(uri, name, records, folder, next(times), **environment)
        return load.load(uri, experiments=[name])

    return track


def three(n: int) -> list:
    """Fine-tuning forgets half, EWC a tenth at a price, SI what fine-tuning does."""
    ewc = made.seeds(
        EWC, n, keeps=0.9, learns=0.85, lam="10", estimator="exact", fisher_samples="0", accumulate="separate"
    )
    return [
        *made.seeds("naive", n),
        *ewc,
        *[made.record(SI, seed, learns=0.9 + 0.001 * (-1) ** seed) for seed in range(n)],
    ]


def only(made_of: document.Document) -> document.Section:
    (section,) = made_of.sections
    return section


def test_findings_say_how_much_less_is_forgotten_and_what_it_costs(tracked) -> None:
    section = only(document.build(tracked(*three(8))))
    ewc = section.findings[0]
    assert ewc.startswith("EWC (exact, λ = 10) forgets ") and " points less than fine-tuning (95% CI " in ewc
    # Learned at 0.85, not 0.9: five points, up to what seeds differ by, which is the same for both.
    assert "at a cost of 5.0 points on new tasks" in ewc
    # 2/2^8 = 0.0078, and two comparisons.
    assert "n = 8 paired seeds, Holm-adjusted p = 0.016" in ewc
    assert any(
        said.startswith("SI: no difference from fine-tuning in forgetting detected at n = 8 paired seeds (95% CI ")
        and said.count("n = 8") == 1
        for said in section.findings
    )
    assert (
        "EWC (exact, λ = 10) has the best average accuracy of all, told apart from every other strategy."
        in section.findings
    )


def test_a_run_that_diverged_has_no_accuracy_on_new_tasks(tracked) -> None:
    found = tracked(made.record(seed=0), made.record(seed=1, status="diverged"))
    kept = compare.with_new_tasks(found.runs, found.accuracy).set_index("status")["new_task_accuracy"]
    assert kept.notna().to_dict() == {"finished": True, "diverged": False}


def test_numbers_of_a_finding_are_those_of_the_runs(tracked) -> None:
    found = tracked(*three(8))
    runs = compare.with_new_tasks(found.runs, found.accuracy)
    frame = compare.differences(runs, "naive").set_index(["strategy", "metric"])
    by_seed = runs.pivot(index="seed", columns="strategy", values="forgetting")
    expected = (by_seed[EWC] - by_seed["naive"]).mean()
    assert frame.loc[(EWC, "forgetting"), "difference"] == pytest.approx(expected)
    assert f"forgets {100 * -expected:.1f} points less" in only(document.build(found)).findings[0]


def test_with_three_seeds_no_test_decides_and_no_best_is_marked(tracked) -> None:
    section = only(document.build(tracked(*three(3))))
    assert "p = " not in section.findings[0]
    assert any(
        "No paired permutation test decides here: at n = 3 its smallest attainable p is 0.25" in s
        for s in section.findings
    )
    assert "**" not in section.tables["main"].markdown() and "†" not in section.tables["main"].markdown()
    assert any(said.startswith("Few seeds: with n = 3") for said in section.limitations)


def test_the_best_is_bold_where_the_test_says_so_and_ties_are_marked_where_it_does_not(tracked) -> None:
    records = three(8)
    table = only(document.build(tracked(*records))).tables["main"].markdown().splitlines()
    row = {line.split("|")[1].strip(): line for line in table[2:]}
    assert row["EWC (exact, λ = 10)"].count("**") >= 2 and "**" not in row["fine-tuning"]
    twin = [made.record("mas", seed, keeps=0.9, learns=0.85 + 0.001 * (-1) ** seed) for seed in range(8)]
    tied = only(document.build(tracked(*records, *twin))).tables["main"]
    marked = {row[0] for row in tied.rows if isinstance(row[2], Cell) and row[2].mark}
    assert marked == {"EWC (exact, λ = 10)", "MAS"} and "†: the best, and those not shown to be worse." in tied.caption


def test_the_best_mean_is_not_told_apart_from_what_beats_it_on_the_seeds_both_finished(tracked) -> None:
    ahead = [made.record("mas", seed, learns=0.91, keeps=0.5 + 0.0001 * seed) for seed in range(8)]
    poor = [made.record("mas", seed, learns=0.3) for seed in range(8, 16)]
    found = tracked(*made.seeds("si", 8), *ahead, *poor)
    lead = compare.leaders(found.runs, "average_accuracy")
    assert (lead.best, lead.alone, lead.tied) == ("si", False, {"mas"})
    assert not any("told apart from every other" in said for said in only(document.build(found)).findings)


def test_a_strategy_of_few_common_seeds_leaves_the_test_of_the_others_decided(tracked) -> None:
    kept = {f"ewc[lam={lam}]": 0.6 + 0.05 * i for i, lam in enumerate((1, 2, 3, 4, 5))}
    many = [r for label, keeps in kept.items() for r in made.seeds(label, 10, keeps=keeps, lam=label[8:-1])]
    few = made.seeds("l2[lam=1]", 6, keeps=0.8, lam="1")
    section = only(document.build(tracked(*made.seeds("naive", 10), *many, *few)))
    frame = section.tables["paired"].frame.set_index(["strategy", "metric"]).loc["l2[lam=1]", "forgetting"]
    # Holm: the other five, of 2/2^10 each, come first, so 2/2^6 is last and multiplied by 1.
    assert (frame["smallest_p_holm"], frame["p_holm"]) == (0.03125, 0.03125) and frame["decidable"]
    assert next(said for said in section.findings if said.startswith("L2")).count("Holm-adjusted p = 0.031") == 1
    assert not any("decide" in said for said in section.findings)


def test_findings_begin_as_sentences_do_but_for_names_of_others(tracked) -> None:
    records = [*made.seeds("naive", 8, keeps=0.6), *made.seeds("si", 8), *made.seeds("mine:keep", 8, keeps=0.9)]
    found = only(document.build(tracked(*records), baseline="si")).findings
    assert any(said.startswith("Fine-tuning forgets") for said in found)
    assert any(said.startswith("mine:keep forgets") for said in found)


def test_what_is_identical_on_every_seed_is_said_and_undoes_no_other_test(tracked) -> None:
    twin = made.seeds("ewc[lam=0]", 10, lam="0")
    ewc = made.seeds("ewc[lam=10]", 10, keeps=0.9, lam="10")
    section = only(document.build(tracked(*made.seeds("naive", 10), *twin, *ewc)))
    assert (
        "EWC (λ = 0): forgetting is identical to that of fine-tuning on every seed (n = 10 paired seeds); "
        "on new tasks it is identical on every seed." in section.findings
    )
    assert not any("decide" in said or "1.00" in said for said in section.findings)
    assert not any("Few seeds" in said for said in section.limitations)
    assert "cannot fall below" not in section.tables["paired"].caption


def test_a_strategy_of_one_common_seed_is_named_and_the_others_are_told_apart(tracked) -> None:
    others = [*made.seeds("naive", 10), *made.seeds("ewc[lam=10]", 10, keeps=0.9, lam="10")]
    section = only(document.build(tracked(*others, *made.seeds("l2[lam=1]", 1, keeps=0.8, lam="1"))))
    assert any("Holm-adjusted p = 0.004" in said for said in section.findings)
    (said,) = [said for said in section.findings if "decide" in said]
    assert said.endswith("about: L2 (λ = 1) (n = 1).")
    (few,) = [said for said in section.limitations if said.startswith("Few seeds")]
    assert few.endswith(": L2 (λ = 1) (average accuracy, forgetting, accuracy on new tasks).")


def test_without_common_seeds_there_is_no_test_and_no_empty_table(tracked) -> None:
    apart = [made.record("l2[lam=1]", seed, keeps=0.8, lam="1") for seed in range(10, 20)]
    section = only(document.build(tracked(*made.seeds("naive", 10), *made.seeds("si", 10, keeps=0.9), *apart)))
    frame = section.tables["paired"].frame.set_index(["strategy", "metric"]).loc["l2[lam=1]", "forgetting"]
    assert frame[["p_holm", "smallest_p", "smallest_p_holm"]].isna().all() and not frame["decidable"]
    assert any(said.startswith("Without a finished seed in common with fine-tuning") for said in section.findings)


def test_a_baseline_without_finished_runs_is_said(tracked) -> None:
    alone = only(document.build(tracked(*made.seeds("naive", 10, status="diverged"), *made.seeds("si", 10))))
    assert alone.findings[0].startswith("No run of fine-tuning finished, with which the others were to be compared")
    assert "paired" not in alone.tables


def test_one_seed_has_no_interval_and_says_so(tracked) -> None:
    section = only(document.build(tracked(*three(1))))
    assert "±" not in section.tables["main"].markdown()
    assert any("One seed" in said for said in section.findings)
    assert any(said.startswith("One seed") for said in section.limitations)


def test_a_section_of_which_no_run_finished_says_that_and_nothing_else(tracked) -> None:
    lost = [made.record("mas", seed, status="diverged", epochs="9") for seed in range(2)]
    sections = document.build(tracked(*made.seeds("naive", 2), *lost), allow_mixed=True).sections
    (gone,) = [s for s in sections if set(s.runs["strategy"]) == {"mas"}]
    assert gone.findings == ["No run of MAS finished."]
    assert not any("nan" in said or "seed:" in said for said in [*gone.findings, *gone.limitations])


def test_the_joint_bound_is_shown_and_not_ranked(tracked) -> None:
    section = only(document.build(tracked(*three(8), *made.seeds("joint", 8, keeps=1.0, learns=0.99))))
    row = next(line for line in section.tables["main"].markdown().splitlines() if "joint" in line)
    assert "**" not in row
    among = "of the strategies ranked (joint training, a bound, is not)"
    assert f"EWC (exact, λ = 10) has the best average accuracy {among}, told apart from every other of them." in (
        section.findings
    )
    assert f"Bold: better than every other {among} (paired" in section.tables["main"].caption
    twin = [made.record("mas", seed, keeps=0.9, learns=0.85 + 0.001 * (-1) ** seed) for seed in range(8)]
    tied = only(document.build(tracked(*three(8), *made.seeds("joint", 8, keeps=1.0, learns=0.99), *twin)))
    assert f"†: the best {among}, and those" in tied.tables["main"].caption
    assert any(f"has the best mean average accuracy {among}; not shown" in said for said in tied.findings)


def test_strategies_are_compared_on_the_seeds_that_both_finished(tracked) -> None:
    records = three(8)
    gone = made.record(
        EWC, 8, keeps=0.9, status="diverged", lam="10", estimator="exact", fisher_samples="0", accumulate="separate"
    )
    section = only(document.build(tracked(*records, made.record("naive", 8), gone)))
    assert section.tables["lost"].frame.values.tolist() == [[EWC, 8, "diverged"], [SI, 8, "missing"]]
    frame = section.tables["paired"].frame
    assert set(frame["n"]) == {8}
    assert any("2 of 27 runs have no result (1 diverged, 1 missing)" in said for said in section.limitations)
    assert section.tables["main"].header[-1] == "lost"


def test_runs_of_two_recipes_are_refused_with_what_differs_unless_asked_for(tracked) -> None:
    found = tracked(*three(3), *[made.record("naive", seed, epochs="9") for seed in range(3)])
    with pytest.raises(ReportError, match=r"epochs a task 5, 9.*--run .*--allow-mixed"):
        document.build(found)
    sections = document.build(found, allow_mixed=True).sections
    assert [(s.title, len(s.runs), s.stem) for s in sections] == [
        ("epochs a task 5", 9, "1-"),
        ("epochs a task 9", 3, "2-"),
    ]


def test_a_difference_that_labels_tell_is_part_of_the_comparison(tracked) -> None:
    records = [
        *made.seeds("naive[batchnorm=update]", 4, keeps=0.3, batchnorm="update"),
        *made.seeds("naive[batchnorm=freeze-after-first]", 4),
        *made.seeds(EWC, 4, keeps=0.9, lam="10", estimator="exact", fisher_samples="0", accumulate="separate"),
    ]
    section = only(document.build(tracked(*records)))
    assert section.reference == "naive[batchnorm=freeze-after-first]"  # trained as EWC is
    assert section.recipe["BatchNorm statistics"] == "freeze-after-first"
    assert any("BatchNorm's statistics are not handled alike" in said for said in section.limitations)


def test_runs_whose_labels_tell_a_difference_stay_with_those_they_are_compared_to(folder: Path) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    told = [*made.seeds("naive[batchnorm=update]", 2, batchnorm="update"), *made.seeds("ewc", 2, keeps=0.9, lam="10")]
    made.track(uri, "modes", told, folder)
    made.track(
        uri, "updating", [r for name in ("naive", "si") for r in made.seeds(name, 2, batchnorm="update")], folder
    )
    sections = document.build(load.load(uri, experiments=["modes", "updating"]), allow_mixed=True).sections
    assert [(s.title, [*dict.fromkeys(s.runs["strategy"])]) for s in sections] == [
        ("modes", ["naive[batchnorm=update]", "ewc"]),
        ("updating", ["naive", "si"]),
    ]


def test_runs_that_do_not_name_compiled_steps_have_none(folder: Path) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    compiled = [*made.seeds("naive[compile=true]", 2, compile="True"), *made.seeds("ewc", 2, keeps=0.9, lam="10")]
    made.track(uri, "compiled", compiled, folder)
    made.track(uri, "others", made.seeds("si", 2, compile="True"), folder)
    sections = document.build(load.load(uri, experiments=["compiled", "others"]), allow_mixed=True).sections
    assert [[*dict.fromkeys(s.runs["strategy"])] for s in sections] == [["naive[compile=true]", "ewc"], ["si"]]


@pytest.mark.parametrize("mixed", [False, True])
def test_a_label_that_tells_the_steps_of_a_recipe_tells_its_epochs_too(tracked, mixed: bool) -> None:
    short = made.seeds("naive[iterations=100]", 2, epochs="", iterations="100")
    sections = document.build(tracked(*short, *made.seeds("ewc", 2, keeps=0.9, lam="10")), allow_mixed=mixed).sections
    assert [[*dict.fromkeys(s.runs["strategy"])] for s in sections] == [["naive[iterations=100]", "ewc"]]


def test_strategies_that_share_no_trunk_are_not_counted_among_those_that_do(tracked) -> None:
    apart = [dataclasses.replace(r, facts=r.facts | {"trunk": f"own{r.seed}"}) for r in made.seeds("naive", 3)]
    shared = [*made.seeds("ewc[lam=1]", 3, lam="1"), *made.seeds("si", 3)]
    said = only(document.build(tracked(*apart, *shared))).limitations
    assert any(each.startswith("2 of 3 strategies share the first task's training") for each in said)


def test_where_all_strategies_share_a_trunk_none_is_counted_apart(tracked) -> None:
    said = only(document.build(tracked(*three(3)))).limitations
    assert any(each.startswith("3 strategies share the first task's training") for each in said)


def test_the_table_says_where_p_is_of_drawn_sign_patterns(tracked) -> None:
    few, many = (only(document.build(tracked(*three(n)))).tables["paired"].caption for n in (8, 22))
    assert "the exact paired permutation test's p after" in few
    assert "exact" not in many.partition("(from")[0] and "(from 99\u202f999 drawn sign patterns" in many


def test_one_label_of_two_settings_is_refused(tracked) -> None:
    runs = [made.record("l2", 0, lam="1"), made.record("l2", 1, lam="2"), *made.seeds("naive", 2)]
    with pytest.raises(ReportError, match="'l2' stands for several settings: lam 2, 1|lam 1, 2"):
        document.build(tracked(*runs))


def test_of_two_runs_of_one_setting_the_newer_counts_and_the_other_is_said(tracked) -> None:
    old = [made.record("naive", seed, learns=0.7) for seed in range(2)]
    tracked(*old)
    found = tracked(*made.seeds("naive", 2))
    assert len(found.runs) == 4
    report = document.build(found)
    assert report.superseded == 2 and len(only(report).runs) == 2


def test_the_newer_run_counts_in_whichever_order_experiments_are_named(folder: Path) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for at, name, learns in ((1e6, "older", 0.7), (2e6, "newer", 0.9)):
        made.track(uri, name, made.seeds("naive", 2, learns=learns), folder, at)
    for order in (["older", "newer"], ["newer", "older"]):
        section = only(document.build(load.load(uri, experiments=order)))
        assert set(section.runs["experiment"]) == {"newer"}


def test_a_baseline_that_is_not_there_is_refused_with_those_that_are(tracked) -> None:
    found = tracked(*three(2))
    with pytest.raises(ReportError, match="no runs of a baseline 'l3'.*naive, ewc"):
        document.build(found, baseline="l3")
    assert only(document.build(found, baseline="ewc")).reference == EWC


def test_where_no_run_finished_there_is_no_report(tracked) -> None:
    found = tracked(*[made.record("naive", seed, status="diverged") for seed in range(2)])
    with pytest.raises(ReportError, match="no finished runs to report on: 2 diverged; look at its recipe"):
        document.build(found)
    still = dataclasses.replace(found, runs=found.runs.assign(status=["diverged", "unfinished"]))
    with pytest.raises(ReportError, match="1 unfinished; wait for the experiment, or look at its recipe"):
        document.build(still)


def test_one_strategy_is_reported_without_a_comparison(tracked) -> None:
    section = only(document.build(tracked(*made.seeds("ewc", 3, lam="10"))))
    assert section.reference == "" and "paired" not in section.tables
    assert "There is no other strategy to compare it with." in section.findings[0]


# Runs of several versions


def test_of_a_strategys_versions_the_newest_counts_and_a_mix_of_them_is_refused(tracked) -> None:
    old = made.seeds("mine:keep", 3, keeps=0.8, strategy_version="aaa")
    tracked(*made.seeds("naive", 3), *old)
    found = tracked(*made.seeds("mine:keep", 3, keeps=0.9, strategy_version="bbb"))
    section = only(document.build(found))
    assert set(section.runs["strategy_version"].dropna()) == {"bbb"} and document.build(found).superseded == 3
    assert "bbb" not in section.tables["strategies"].markdown()
    later = [made.record("mine:keep", seed, keeps=0.9, strategy_version="aaa") for seed in (3, 4)]
    with pytest.raises(ReportError, match="'mine:keep' stands for several settings: version of its code (aaa|bbb), "):
        document.build(tracked(*later))


def test_a_run_that_an_overview_knows_of_counts_before_a_newer_one_that_none_does(tracked) -> None:
    found = tracked(*made.seeds("naive", 2), *made.seeds("si", 2, keeps=0.9))
    loose = found.runs.iloc[:1].assign(run_id="loose", overview="", average_accuracy=0.0)
    runs = pd.concat([loose, found.runs], ignore_index=True)
    report = document.build(dataclasses.replace(found, runs=runs))
    assert "loose" not in set(only(report).runs["run_id"]) and report.superseded == 1
    alone = runs[runs["run_id"] != found.runs["run_id"].iloc[0]]
    assert "loose" in set(only(document.build(dataclasses.replace(found, runs=alone))).runs["run_id"])


@pytest.mark.parametrize("field", ["angles", "data_version", "model_version"])
def test_runs_on_other_data_or_networks_of_ones_own_are_not_mixed(tracked, field: str) -> None:
    found = tracked(*made.seeds("naive", 2, **{field: "one"}), *made.seeds("si", 2, **{field: "two"}))
    with pytest.raises(ReportError, match=f"{recipes.FIELDS[field]} (one, two|two, one)"):
        document.build(found)


# What is said of the recipe


def test_the_setting_is_what_the_runs_share_and_not_that_of_the_first(tracked) -> None:
    first = made.seeds("naive[lr=0.01]", 2, lr="0.01")
    section = only(document.build(tracked(*first, *made.seeds("si", 2), *made.seeds("mas", 2))))
    assert "with adam at learning rate 0.001, 5 epochs a task, 64 images a step" in section.setting
    assert section.recipe["learning rate"] == "0.001"


def test_one_task_one_strategy_and_one_epoch_are_spoken_of_as_one(tracked) -> None:
    section = only(document.build(tracked(*made.seeds("naive", 1, tasks=1, epochs="1"))))
    assert section.question == "How well does a network learn one task? It was trained with 1 seed."
    assert "1 epoch a task" in section.setting
    both = [*made.seeds("naive", 2), *made.seeds("si", 2)]
    many = setting.question(pd.DataFrame([{"tasks": 3, "strategy": r.strategy, "seed": r.seed} for r in both]))
    assert "learns 3 tasks one after another, and which of 2 strategies forgets least" in many
    assert many.endswith("Each was trained with 2 seeds.")


def test_what_stands_in_a_recipe_is_text_and_no_markup(tracked) -> None:
    found = document.build(tracked(*made.seeds("naive", 1, model="my_nets:make", images="odd_[set]")))
    assert r"The network my\_nets:make is trained" in write.render(found) and r"odd\_\[set\]" in write.render(found)


# How much of the gain is EWC's


def notebook(n: int) -> list:
    """Freezing gains half of what frozen EWC gains over updating fine-tuning, whatever the seed."""
    cells = {("naive", "update"): 0.2, ("naive", "freeze-after-first"): 0.5, ("ewc", "freeze-after-first"): 0.8}
    options = {"lam": "10", "estimator": "exact", "fisher_samples": "0", "accumulate": "separate"}
    return [
        made.record(
            f"{name}[batchnorm={mode}]",
            seed,
            keeps=keeps,
            tasks=2,
            batchnorm=mode,
            **(options if name == "ewc" else {}),
        )
        for (name, mode), keeps in cells.items()
        for seed in range(n)
    ]


def test_the_batchnorm_ablation_says_how_much_of_the_gain_is_ewcs(tracked) -> None:
    ablation = only(document.build(tracked(*notebook(6)))).ablation
    assert ablation is not None
    (table,) = ablation.tables
    assert [row[1] for row in table.rows] == ["updating", "frozen", "updating", "frozen"]
    assert table.rows[2][2:] == ["0", "not run", "not run"]
    assert any("freezing alone accounts for 50% of the gain" in said for said in ablation.sentences)


def test_what_batchnorms_mode_does_is_told_of_one_setting_and_not_of_two_estimators(tracked) -> None:
    cells = {
        ("empirical", "update"): 0.6,
        ("empirical", "freeze-after-first"): 0.7,
        ("batched", "freeze-after-first"): 0.9,
    }
    records = [
        made.record(
            f"ewc[batchnorm={mode},estimator={estimator}]", seed, keeps=keeps, tasks=2, batchnorm=mode, lam="10",
            estimator=estimator, fisher_samples="0", accumulate="separate",
        )
        for (estimator, mode), keeps in cells.items()
        for seed in range(6)
    ]  # fmt: skip
    ablation = only(
        document.build(tracked(*[r for r in notebook(6) if r.strategy.startswith("naive")], *records))
    ).ablation
    assert ablation is not None
    assert ["empirical" in row[0] for row in ablation.tables[0].rows] == [False, False, True, True]


def test_freezing_accounts_for_no_share_of_the_gain_where_its_own_may_be_none(tracked) -> None:
    records = [
        dataclasses.replace(r, values=r.values | {"average_accuracy": r.values["average_accuracy"] + noise})
        for i, r in enumerate(notebook(6))
        for noise in [0.5 * (-1) ** i if "freeze" in r.strategy and r.strategy.startswith("naive") else 0.0]
    ]
    ablation = only(document.build(tracked(*records))).ablation
    assert ablation is not None and not any("freezing alone accounts" in said for said in ablation.sentences)


def test_an_estimator_none_of_whose_runs_finished_shifts_no_count_and_batches_are_apart(tracked) -> None:
    kinds = [
        ("exact", "1", "100", "diverged"),
        ("sampled", "1", "100", "finished"),
        ("sampled", "2", "100", "finished"),
    ]
    kinds.append(("sampled", "4", "50", "finished"))
    records = [
        record
        for estimator, lam, batch, status in kinds
        for record in made.seeds(
            f"ewc[estimator={estimator},fisher_batch_size={batch},lam={lam}]", 3, status=status, lam=lam,
            estimator=estimator, fisher_samples="0", fisher_batch_size=batch, accumulate="separate",
        )
    ]  # fmt: skip
    ablation = only(document.build(tracked(*made.seeds("naive", 3), *records))).ablation
    assert ablation is not None
    assert [(row[0].count("Fisher batch = 50"), row[1]) for row in ablation.tables[0].rows] == [(0, "2"), (1, "1")]


def test_each_estimator_stands_at_its_own_best_strength(tracked) -> None:
    quality = {("exact", "1"): 0.6, ("exact", "10"): 0.9, ("empirical", "1"): 0.8, ("empirical", "10"): 0.5}
    records = [
        made.record(
            f"ewc[estimator={e},lam={lam}]",
            seed,
            keeps=keeps,
            lam=lam,
            estimator=e,
            fisher_samples="0",
            accumulate="separate",
        )
        for (e, lam), keeps in quality.items()
        for seed in range(3)
    ]
    ablation = only(document.build(tracked(*made.seeds("naive", 3), *records))).ablation
    assert ablation is not None
    (table,) = ablation.tables
    assert [row[0] for row in table.rows] == ["EWC (exact, λ = 10)", "EWC (empirical, λ = 1)"]
    assert "chosen on the test set" in table.caption


# Several scenarios


def test_strategies_are_ranked_over_scenarios(folder: Path) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for name in ("split-digits", "rotated-digits", "permuted-digits"):
        made.track(
            uri,
            name,
            [made.record(r.strategy, r.seed, 0.9 if "ewc" in r.strategy else 0.5, scenario=name) for r in three(3)],
            folder,
        )
    found = load.load(uri, experiments=["split-digits", "rotated-digits", "permuted-digits"])
    report = document.build(found, allow_mixed=True)
    assert report.ranking is not None and report.ranking.notes == []
    assert next(iter(report.ranking.ranks.mean_ranks)) == EWC
    assert {section.title for section in report.sections} == {"split-digits", "rotated-digits", "permuted-digits"}
    assert all(section.names == report.sections[0].names for section in report.sections)
    assert report.sections[0].names[EWC] == "EWC (exact, λ = 10)"


def test_a_scenario_is_ranked_once_and_what_is_left_out_is_named(folder: Path) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    kept = {"naive": 0.5, "si": 0.6, "mas": 0.7, "joint": 1.0}
    extra = {"a": {"lwf": 0.8}, "b": {}, "c": {}}
    for name, scenario, epochs in (("a", "split", "5"), ("b", "split", "9"), ("c", "rotated", "5")):
        runs = [
            made.record(label, seed, keeps, scenario=scenario, epochs=epochs)
            for label, keeps in (kept | extra[name]).items()
            for seed in range(2)
        ]
        made.track(uri, f"ranked-{name}", runs, folder)
    found = load.load(uri, experiments=["ranked-a", "ranked-b", "ranked-c"])
    report = document.build(found, allow_mixed=True)
    assert report.ranking is not None and report.ranking.scenarios == ["split", "rotated"]
    assert list(report.ranking.ranks.mean_ranks) == ["mas", "si", "naive"]
    text = write.render(report)
    assert "Friedman's test over 2 scenarios (split, rotated)" in text and "fine-tuning forgets" not in text
    assert "Left out, since not every scenario has runs of them: LwF. Not ranked, as a bound: joint training." in text
    assert "the first is ranked" in text
    one = load.load(uri, experiments=["ranked-a", "ranked-b"])
    assert document.build(one, allow_mixed=True).ranking is None
