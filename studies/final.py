"""The final evaluation of a study: one driver does it, the others are told what came of it.

What is found goes into the attributes of the strategies' Optuna studies. Who does it is settled like who trains a
trial: by a place in a study of its own, which is there only as long as that takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from studies import places
from studies.claims import Claims
from studies.drivers import Driver
from studies.search import Searcher
from studies.storage import patient

TESTED = "tested"
"""User attribute of an Optuna study: the runs of the final evaluation, and each objective's values."""
_ATTEMPTS = 5
Tested = Mapping[str, Mapping[str, list[float]]]


class Final:
    """The evaluation of certain runs.

    Args:
        searchers: one a strategy.
        runs: what identifies them: another choice is another evaluation.
        driver: who may do it.
    """

    def __init__(self, searchers: Sequence[Searcher], runs: str, driver: Driver) -> None:
        self._searchers, self._runs, self._driver = searchers, runs, driver
        self.storage = searchers[0].storage
        self._name = f"{searchers[0].study.name}/final evaluation"
        self._claims: Claims | None = None
        self._held: int | None = None

    @patient
    def found(self) -> Tested | None:
        """Values of each objective over the test seeds that ended well, by strategy; None while they are not known."""
        noted = {s.search.label: s.optuna.user_attrs.get(TESTED, {}) for s in self._searchers}
        known = all(each.get("runs") == self._runs for each in noted.values())
        return {label: each["values"] for label, each in noted.items()} if known else None

    @patient
    def claim(self) -> bool:
        """Whether it is this driver that does it: no other one is at it."""
        with self._may_vanish():
            claims = self._freed()
            there = self._there(claims)
            if there is None or places.waits(there) or places.abandoned(there):
                claims.queue([(self._runs, {})])
                self._held = next((t.number for t in claims.take(1, {self._runs})), None)
        return self._held is not None

    @patient
    def driver(self) -> FrozenTrial | None:
        """The trial that stands for whoever is at it."""
        with self._may_vanish():
            return self._there(self._joined())
        return None

    @patient
    def note(self, tested: Tested) -> None:
        """Let every driver know what was found.

        Args:
            tested: as `found` gives it.
        """
        for searcher in self._searchers:
            values = {name: list(each) for name, each in tested[searcher.search.label].items()}
            searcher.optuna.set_user_attr(TESTED, {"runs": self._runs, "values": values})

    @patient
    def give_up(self) -> None:
        """Leave it to another driver, or to the same command again."""
        with self._may_vanish():
            if self._held is not None:
                self._joined().end(self._held, state=TrialState.FAIL)
        self._held = None

    @patient
    def close(self) -> None:
        """Once it is known what was found, nobody needs to be at it."""
        self.give_up()
        if self._name in self.storage.names():
            with self._may_vanish():
                if not self._freed().others():  # that evaluate another choice of runs
                    optuna.delete_study(study_name=self._name, storage=self.storage.optuna)

    def _joined(self) -> Claims:
        if self._claims is None:
            self._claims = Claims(self._study(), self.storage, self._driver)
        return self._claims

    def _study(self) -> optuna.Study:
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(LookupError):  # it was there, and is deleted before it is read
                return self._made()
        return self._made()

    def _made(self) -> optuna.Study:
        return optuna.create_study(study_name=self._name, storage=self.storage.optuna, load_if_exists=True)

    def _freed(self) -> Claims:
        """Without what was taken when the connection broke, and what drivers that are gone left behind."""
        claims = self._joined()
        claims.put_back()
        claims.take_over(lambda trial: claims.end(trial.number, state=TrialState.FAIL))
        return claims

    def _there(self, claims: Claims) -> FrozenTrial | None:
        return places.holders(claims.trials()).get(self._runs)

    @contextlib.contextmanager
    def _may_vanish(self) -> Generator[None, None, None]:
        """The study is deleted by the first driver that knows what was found: it is made anew when next it is needed.

        Raises:
            LookupError: by Optuna, for other reasons.
        """
        try:
            yield
        except LookupError:
            if self._claims is None:
                raise
            self._claims = None
