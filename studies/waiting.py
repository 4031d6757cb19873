"""What a driver does when others have the last trials: it waits, and says for whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from optuna.trial import FrozenTrial

from studies.drivers import Driver
from studies.places import DRIVER
from studies.search import Searcher
from studies.storage import Storage

POLL = 2.0  # seconds between looks at the storage


class Waiting:
    """Waits for other drivers, a while at a time.

    Args:
        storage: where their trials are.
        say: takes one line for each thing worth knowing.
    """

    def __init__(self, storage: Storage, say: Callable[[str], None]) -> None:
        self._storage, self._say = storage, say
        self._said: set[str] = set()
        self.seconds = 0.0
        """Waited so far."""

    def take_over(self, searchers: Sequence[Searcher]) -> None:
        """Free what drivers that are gone left behind, and say so.

        Args:
            searchers: one a strategy.
        """
        for line in [line for searcher in searchers for line in searcher.take_over()]:
            self._say(line)

    def trials(self, searchers: Sequence[Searcher]) -> bool:
        """Wait for trials that others train, if there are any.

        Args:
            searchers: one a strategy.

        Returns:
            Whether there were.
        """
        others = [trial for searcher in searchers for trial in searcher.others()]
        if others:
            self._wait("nothing is left to ask: waiting for trials of", others)
        return bool(others)

    def evaluation(self, trial: FrozenTrial | None) -> None:
        """Wait for the final evaluation.

        Args:
            trial: that stands for it; None if it was somebody's a moment ago.
        """
        self._wait("waiting for the final evaluation by", [trial] if trial else [])

    def _wait(self, what: str, trials: Sequence[FrozenTrial]) -> None:
        drivers = {Driver.of(trial.user_attrs.get(DRIVER, {})) for trial in trials}
        new = {str(driver) for driver in drivers} - self._said
        if new:
            self._say(f"{what} {', '.join(sorted(new))}")
        if any(not driver.visible() and str(driver) in new for driver in drivers) and not self._storage.beats:
            self._say(
                f"whether it lives cannot be seen from here, as {self._storage.name} has no heartbeats; "
                "if it does not, start its command again on its machine"
            )
        self._said |= new
        began = time.perf_counter()
        time.sleep(POLL)
        self.seconds += time.perf_counter() - began
