"""A driver's heartbeat: every few seconds, for each trial that it trains, from a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator


class Pulse:
    """Heartbeats of the trials that are held.

    Optuna's own thread beats for one trial, and within `Study.optimize` alone.

    Args:
        beat: records one, given the trial's id.
        interval: in seconds.
    """

    def __init__(self, beat: Callable[[int], None], interval: float) -> None:
        self._beat, self._interval = beat, interval
        self._held: set[int] = set()
        self._turn = threading.Lock()

    def hold(self, trial: int) -> None:
        """Beat for a trial from now on, at once for the first time."""
        with self._turn:
            self._held.add(trial)
        self._beat(trial)

    def let_go(self, trial: int) -> None:
        """Beat for a trial no longer."""
        with self._turn:
            self._held.discard(trial)

    def beat(self) -> None:
        """Beat for every trial that is held."""
        with self._turn:
            held = sorted(self._held)
        for trial in held:
            self._beat(trial)

    @contextlib.contextmanager
    def beating(self) -> Generator[None, None, None]:
        """While this lasts, trials that are held have their heartbeats."""
        stop = threading.Event()

        def beats() -> None:
            while not stop.wait(self._interval):
                # A storage that fails is what whoever asks and tells says; the next beat tries again.
                with contextlib.suppress(Exception):
                    self.beat()

        thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            # Not for long: it may be waiting for a database that is away.
            thread.join(timeout=5)
            with self._turn:
                self._held.clear()
