"""What a learner does to remember: pure functions over dictionaries of tensors."""

from strategies.agem import AGEM
from strategies.base import (
    Batch,
    FinishedTask,
    Hparams,
    Loss,
    Network,
    Params,
    Setting,
    State,
    Step,
    Strategy,
    cross_entropy,
    hyper,
    masked,
    option,
)
from strategies.derpp import DERpp
from strategies.er import ER
from strategies.ewc import EWC
from strategies.ewc_kfac import EWCKfac
from strategies.frozen import Frozen
from strategies.joint import Joint
from strategies.l2 import L2
from strategies.lwf import LwF
from strategies.mas import MAS
from strategies.memory import Replay
from strategies.naive import Naive
from strategies.quadratic import Quadratic
from strategies.registry import get, names
from strategies.rwalk import RWalk
from strategies.si import SI

__all__ = [
    "AGEM",
    "ER",
    "EWC",
    "L2",
    "MAS",
    "SI",
    "Batch",
    "DERpp",
    "EWCKfac",
    "FinishedTask",
    "Frozen",
    "Hparams",
    "Joint",
    "Loss",
    "LwF",
    "Naive",
    "Network",
    "Params",
    "Quadratic",
    "RWalk",
    "Replay",
    "Setting",
    "State",
    "Step",
    "Strategy",
    "cross_entropy",
    "get",
    "hyper",
    "masked",
    "names",
    "option",
]
