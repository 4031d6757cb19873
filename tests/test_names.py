"""Spoken names of strategies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark import config
from reports import names
from strategies import registry


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("naive", "fine-tuning"),
        ("naive[batchnorm=update]", "fine-tuning (BatchNorm updating)"),
        ("naive[batchnorm=freeze-after-first]", "fine-tuning (BatchNorm frozen)"),
        ("ewc[estimator=empirical,lam=1000]", "EWC (empirical, λ = 1\u202f000)"),
        ("ewc[accumulate=online,decay=0.9,lam=1e+07]", "EWC (online, γ = 0.9, λ = 10⁷)"),
        ("l2[lam=1]", "L2 (λ = 1)"),
        ("der++[memory=2000]", "DER++ (memory = 2\u202f000)"),
        ("joint[mode=continued]", "joint training (continued)"),
        ("frozen", "frozen after task 1"),
        ("mine:Magnitude", "mine:Magnitude"),
        ("mine:Magnitude[lam=1,odd_option=a b]", "mine:Magnitude (λ = 1, odd_option = a b)"),
        ("ewc (validation; first-k)", "EWC (validation; first-k)"),
        ("ewc[estimator=exact] (validation)", "EWC (exact) (validation)"),
        ("l2[note=a] (b]", "L2 (note = a] (b)"),
    ],
)
def test_a_label_is_spoken_as_papers_name_the_strategy(label: str, name: str) -> None:
    assert names.spoken(label) == name


def test_a_remark_after_a_label_is_no_part_of_name_or_options() -> None:
    label = "ewc[estimator=exact,lam=10] (test-oracle, tuned on test; first-k)"
    assert names.parse(label) == ("ewc", {"estimator": "exact", "lam": "10"})
    assert names.remark(label) == "test-oracle, tuned on test; first-k" and names.remark("ewc[lam=10]") == ""
    assert names.family(label) == "ewc[estimator=exact] (test-oracle, tuned on test; first-k)"
    assert names.parse("joint (validation)") == ("joint", {}) and names.parse("odd(one)") == ("odd(one)", {})


def test_every_strategy_built_in_has_a_spoken_name() -> None:
    assert set(names.STRATEGIES) == set(registry.BUILT_IN)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("0", "0"), ("0.1", "0.1"), ("0.001", "0.001"), ("0.0001", "10⁻⁴"), ("2.5e-07", "2.5×10⁻⁷"), ("999", "999"),
        ("1000", "1\u202f000"), ("100000", "100\u202f000"), ("1000000", "10⁶"), ("3e+08", "3×10⁸"), ("1e+13", "10¹³"),
        ("1234567", "1\u202f234\u202f567"), ("12345.5", "12\u202f345.5"), ("1e3", "1\u202f000"), ("-20000", "-20\u202f000"),
        ("empirical", "empirical"), ("", ""), ("nan", "nan"), ("1e", "1e"), ("1.5.2", "1.5.2"),
    ],
)  # fmt: skip
def test_numbers_are_grouped_and_large_ones_are_powers_of_ten(text: str, spoken: str) -> None:
    assert names.number(text) == spoken


def test_a_family_is_what_differs_in_lambda_alone() -> None:
    assert names.family("ewc[estimator=exact,lam=10]") == names.family("ewc[estimator=exact,lam=1e+07]")
    assert names.family("ewc[estimator=exact,lam=10]") != names.family("ewc[estimator=sampled,lam=10]")
    assert names.family("l2[lam=1]") == "l2" and names.family("naive") == "naive"
    assert names.lam("ewc[estimator=exact,lam=1e+07]") == 1e7 and names.lam("l2[lam=0]") == 0
    assert math.isnan(names.lam("naive")) and math.isnan(names.lam("x[lam=high]"))


def test_a_sweep_is_a_family_with_enough_values_of_lambda() -> None:
    labels = ["naive", "l2[lam=1]", "l2[lam=1.0]", "x[y=1,lam=1]", "l2[lam=2]", "x[y=2,lam=1]"]
    assert names.sweeps(labels, 2) == {"l2": ["l2[lam=1]", "l2[lam=1.0]", "l2[lam=2]"]}
    assert names.sweeps(labels, 3) == {}


@pytest.mark.parametrize("label", ["", "x[", "x[]", "]", "x[y]", "x[y=1", "[lam=1]", "x[lam=1]]y"])
def test_what_is_not_a_label_of_ours_is_a_name_as_it_stands(label: str) -> None:
    assert names.spoken(label) == label and names.family(label) == label


def test_a_comma_within_a_value_does_not_end_it() -> None:
    assert names.parse("x[set=a,b,lam=1]") == ("x", {"set": "a,b", "lam": "1"})


def test_labels_of_experiments_are_taken_apart() -> None:
    entries = [{"name": "ewc", "estimator": ["exact", "notebook"], "lam": [0.5, 1e9]}, {"name": "der++", "alpha": 0.3}]
    content = {"name": "x", "scenario": "permuted-digits", "seeds": 1, "strategy": entries}
    labels = [run.label for run in config.parse(content).runs()]
    assert [names.parse(label)[1] for label in labels] == [
        {"estimator": "exact", "lam": "0.5"}, {"estimator": "exact", "lam": "1e+09"},
        {"estimator": "notebook", "lam": "0.5"}, {"estimator": "notebook", "lam": "1e+09"}, {"alpha": "0.3"},
    ]  # fmt: skip


def test_strategies_that_would_be_spoken_alike_keep_their_labels() -> None:
    assert names.names(["ewc", "EWC", "l2[lam=1]"]) == {"ewc": "ewc", "EWC": "EWC", "l2[lam=1]": "L2 (λ = 1)"}
    assert names.names(["l2[lam=1e3]", "l2[lam=1000]"]) == {
        "l2[lam=1e3]": "l2[lam=1e3]",
        "l2[lam=1000]": "l2[lam=1000]",
    }


PARTS = st.sampled_from(
    ["naive", "fine-tuning", "ewc", "EWC", "x", "[lam=1]", "[lam=1.0]", " (λ = 1)", "[odd_option=1]"]
)


@given(st.lists(st.lists(PARTS, min_size=1, max_size=2).map("".join), unique=True, max_size=8))
def test_no_two_strategies_of_a_report_have_one_name(labels: list[str]) -> None:
    found = names.names(labels)
    assert list(found) == labels and len(set(found.values())) == len(labels)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1024.0, f"1{names.GROUP}024"),
        (0.123456, "0.123"),
        (123456.7, f"123{names.GROUP}000"),
        (3e7, "3×10⁷"),
        (7, "7"),
        ("exact", "exact"),
    ],
)
def test_a_setting_that_is_a_whole_number_is_not_rounded(value: object, said: str) -> None:
    assert names.setting(value) == said
