"""What a learner does to remember: pure functions over dictionaries of tensors."""

from strategies.base import FinishedTask, Hparams, Params, State, Step, Strategy, hyper, option
from strategies.ewc import EWC
from strategies.l2 import L2
from strategies.naive import Naive
from strategies.quadratic import Quadratic
from strategies.registry import get, names

__all__ = [
    "EWC",
    "L2",
    "FinishedTask",
    "Hparams",
    "Naive",
    "Params",
    "Quadratic",
    "State",
    "Step",
    "Strategy",
    "get",
    "hyper",
    "names",
    "option",
]
