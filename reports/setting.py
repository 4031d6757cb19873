"""What the runs ask and how they were trained, in words."""

from __future__ import annotations

import pandas as pd

from reports import recipes

INCREMENTAL = {
    "task": "task-incremental: each task has a head of its own, and the task is known when an image is classified",
    "domain": "domain-incremental: all tasks share one head, and the task is not known when an image is classified",
    "class": "class-incremental: each task brings classes of its own, which compete with all earlier ones",
}


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
