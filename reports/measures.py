"""What is measured of a run: names of metrics as tracked, in words, and which way is better."""

from __future__ import annotations

MAIN = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "fwt": "FWT",
    "learning_accuracy": "learning accuracy",
}
"""Columns of the main table."""
MEASURES = MAIN | {
    "average_incremental_accuracy": "average incremental accuracy",
    "min_acc": "min-ACC",
    "wc_acc": "WC-ACC",
    "average_anytime_accuracy": "average anytime accuracy",
    "train_seconds": "training seconds",
}
LOWER_IS_BETTER = frozenset({"forgetting", "train_seconds"})
MEANING = {
    "average_accuracy": "mean final accuracy over all tasks",
    "forgetting": "mean over tasks but the last of the best earlier accuracy less the final one; lower is better",
    "bwt": "backward transfer, mean final accuracy less that when just learned, over tasks but the last",
    "fwt": "forward transfer, mean accuracy just before a task is learned less that before any training",
    "learning_accuracy": "mean accuracy on each task when just learned",
}
"""Of the main table's columns, for people; formulas and sources are in `benchmark.metrics`."""

NEW = "new_task_accuracy"
"""Mean accuracy on each task but the first when just learned; see `reports.compare`."""
COMPARED = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    NEW: "accuracy on new tasks",
}
"""What strategies are compared by, paired: the whole, and the two sides of the trade."""
