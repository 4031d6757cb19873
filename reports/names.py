"""Spoken names of strategies for figures, tables and sentences: `ewc[estimator=empirical,lam=1000]` is one of EWC.

A label is what an experiment file says, `name[option=value,...]`; it identifies a strategy and stays in commands and
tables of data. What is known here gets the name that papers use; what is not, a third party's strategy or option, stays
readable as it stands.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

STRATEGIES = {
    "naive": "fine-tuning",
    "joint": "joint training",
    "frozen": "frozen after task 1",
    "l2": "L2",
    "ewc": "EWC",
    "ewc-kfac": "KFAC-EWC",
    "si": "SI",
    "mas": "MAS",
    "rwalk": "RWalk",
    "lwf": "LwF",
    "er": "ER",
    "der++": "DER++",
    "a-gem": "A-GEM",
}
OPTIONS = {
    "lam": "λ",
    "decay": "γ",
    "xi": "ξ",
    "alpha": "α",
    "beta": "β",
    "epsilon": "ε",
    "fisher_samples": "Fisher samples",
    "fisher_batch_size": "Fisher batch",
    "replay_batch": "replay batch",
    "batch_size": "batch",
    "lr": "learning rate",
    "optimizer_state": "optimizer state",
    "weight_decay": "weight decay",
}
CHOICES = {
    ("batchnorm", "update"): "BatchNorm updating",
    ("batchnorm", "freeze-after-first"): "BatchNorm frozen",
    ("accumulate", "separate"): "separate anchors",
}
ALONE = {"estimator", "accumulate", "mode", "policy", "optimizer"}  # their values say what they are about
IMAGES = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
GROUP = "\u202f"  # narrow no-break space: between groups of three digits
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def parse(label: str) -> tuple[str, dict[str, str]]:
    """`ewc[estimator=exact,lam=10]` as `("ewc", {"estimator": "exact", "lam": "10"})`; a remark after it is left out.

    Args:
        label: of a strategy; one that is not of this form is a name without options.
    """
    plain, _ = _parts(label)
    found = re.fullmatch(r"([^\[\]]+)\[(\w+=.*)\]", plain, re.DOTALL)
    if not found:
        return plain, {}
    # A comma that no `key=` follows belongs to the value before it.
    pairs = [pair.partition("=") for pair in re.split(r",(?=\w+=)", found[2])]
    return found[1], {key: value for key, _, value in pairs}


def remark(label: str) -> str:
    """`validation; first-k` of `ewc (validation; first-k)`: what a comparison adds to a label; empty without one."""
    return _parts(label)[1].removeprefix(" (").removesuffix(")")


def _parts(label: str) -> tuple[str, str]:
    """The label itself, and ` (...)` after it: what stands behind the options, or behind a name without any."""
    found = re.fullmatch(r"([^\[\]()]+(?:\[\w+=.*\])?)( \([^\[\]]*\))", label, re.DOTALL)
    return (found[1], found[2]) if found else (label, "")


def family(label: str) -> str:
    """The label without its λ: equal for strategies that differ in nothing else."""
    name, options = parse(label)
    rest = ",".join(f"{key}={value}" for key, value in options.items() if key != "lam")
    return (f"{name}[{rest}]" if rest else name) + _parts(label)[1]


def lam(label: str) -> float:
    """λ as the label has it, NaN where it has none."""
    try:
        return float(parse(label)[1]["lam"])
    except (KeyError, ValueError):
        return math.nan


def sweeps(labels: Iterable[str], least: int) -> dict[str, list[str]]:
    """Strategies equal but for λ, by their family; those with enough values of λ.

    Args:
        labels: of strategies.
        least: values of λ.
    """
    found: dict[str, list[str]] = {}
    for label in labels:
        if math.isfinite(lam(label)):
            found.setdefault(family(label), []).append(label)
    return {name: own for name, own in found.items() if len(set(map(lam, own))) >= least}


def spoken(label: str) -> str:
    """`EWC (empirical, λ = 1 000)` of `ewc[estimator=empirical,lam=1000]`; a remark after the label stays."""
    name, options = parse(label)
    words = ", ".join(option(key, value) for key, value in options.items())
    known = STRATEGIES.get(name, name)
    return (f"{known} ({words})" if words else known) + _parts(label)[1]


def option(key: str, value: str) -> str:
    """`λ = 1 000` of `lam` and `1000`; options that are not known as `key = value`."""
    if (key, value) in CHOICES:
        return CHOICES[key, value]
    return value if key in ALONE else f"{OPTIONS.get(key, key)} = {number(value)}"


def setting(value: object) -> str:
    """A hyperparameter for readers: whole numbers below a million in full, others in three digits; text as it is."""
    if not isinstance(value, float):
        return str(value)
    return number(f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}")


def tasks(count: int, images: str) -> list[str]:
    """A name for each task: its images where each task has a set of its own, else `task 1`, `task 2`, ...

    Args:
        count: of tasks.
        images: names of all sets in the order of their first task, with commas between.
    """
    sets = images.split(", ") if images else []
    return [IMAGES.get(name, name) for name in sets] if len(sets) == count else [f"task {i + 1}" for i in range(count)]


def number(text: str) -> str:
    """A number for readers: `1 000`, `100 000`, `10⁶`, `3×10⁷`, `10⁻⁵`; any other text as it is.

    Digits are grouped by a narrow no-break space. From a million on, and below a thousandth, a number of at most three
    digits is given in powers of ten.
    """
    if not re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text, re.IGNORECASE):
        return text
    value = float(text)
    digits, _, exponent = f"{value:.15e}".partition("e")
    digits = digits.rstrip("0").rstrip(".")
    if value and not 1e-3 <= abs(value) < 1e6 and len(digits.lstrip("-").replace(".", "")) <= 3:
        power = f"10{str(int(exponent)).translate(SUPERSCRIPT)}"
        return power if digits == "1" else f"{digits}×{power}"
    whole, point, rest = (
        f"{value:f}".rstrip("0").rstrip(".").partition(".") if "e" in text.lower() else text.partition(".")
    )
    sign, whole = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{int(whole):,}".replace(",", GROUP) + point + rest


def names(labels: Iterable[str]) -> dict[str, str]:
    """A spoken name for each strategy of a report, by label; no two are alike.

    Strategies that would be spoken alike keep their labels.

    Args:
        labels: of all strategies of a report, each different.
    """
    found = {label: spoken(label) for label in labels}
    while len(set(found.values())) < len(found):
        counts = Counter(found.values())
        found = {label: label if counts[name] > 1 else name for label, name in found.items()}
    return found
