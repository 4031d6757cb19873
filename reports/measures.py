"""What is measured of a run: names of metrics as tracked, in words, and which way is better."""

from __future__ import annotations

TOLD = "task_aware_accuracy"
"""Mean final accuracy of a class-incremental scenario if it is told which task an image is of."""
MAIN = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "fwt": "FWT",
    "learning_accuracy": "learning accuracy",
    TOLD: "task-aware accuracy",
}
"""Columns of the main table, those of them that the runs have."""
MEASURES = frozenset(
    {*MAIN, "average_incremental_accuracy", "min_acc", "wc_acc", "average_anytime_accuracy", "train_seconds"}
)
"""All that is tracked of a run."""
WORDS = {"bwt": "backward transfer", "fwt": "forward transfer", TOLD: "task-aware accuracy"}
LOWER_IS_BETTER = frozenset({"forgetting", "train_seconds"})
NEW = "new_task_accuracy"
"""Mean accuracy on each task but the first when just learned; see `reports.compare`."""
COMPARED = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    NEW: "accuracy on new tasks",
}
"""What strategies are compared by, paired: the whole, and the two sides of the trade."""


def spoken(name: str) -> str:
    """In words, for sentences and axes."""
    return WORDS.get(name, name.replace("_", " "))
