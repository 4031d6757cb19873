"""What asks a study's settings: one of Optuna's samplers, seeded anew for each place."""

from __future__ import annotations

import logging
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from benchmark.keys import generator_seed
from studies.places import PLACE

STARTUP = 2  # trials that ended well before a sampler follows them: the first batch is a grid, not the sampler's


class PlaceSampler(BaseSampler):
    """A sampler whose choice for a trial follows from the trial's place and what was told before.

    It does not depend on who asks, or what else that driver asked: two places never get one draw twice, and a study
    that was stopped goes on as it would have.

    Args:
        name: `tpe`, `gp` or `random`.
        seed: of the study.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        self._of_place: BaseSampler = RandomSampler()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed the sampler for a trial that is about to be asked."""
        place = trial.user_attrs.get(PLACE, -1)
        self._of_place = _sampler(self._name, generator_seed(self._seed, "sampler", place) % 2**32)
        self._of_place.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return self._of_place.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._of_place.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does."""
        return self._of_place.sample_independent(study, trial, param_name, param_distribution)


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "gp":
        # It would say at every start that a package is not there which nobody needs.
        logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)
        return GPSampler(seed=seed, n_startup_trials=STARTUP)
    if name == "random":
        return RandomSampler(seed=seed)
    # Constant liar: what is still in training counts as bad, so that a batch spreads.
    return TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)
