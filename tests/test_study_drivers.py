"""Several drivers on one study: no place filled twice, nothing lost, and one final evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError

from benchmark.results import Store
from studies import claims, databases, places, waiting
from studies import storage as storages
from studies.drivers import Driver
from studies.final import Final
from studies.grid import grid
from studies.places import DRIVER, PLACE, REASON, SEEDS
from studies.pruning import GivenUp
from studies.search import Searcher
from studies.storage import Storage
from tests.test_study_run import go
from tests.test_study_search import quality, seed
from tests.test_study_spec import made

ELSEWHERE = "another machine"


@pytest.fixture
def at_work() -> Iterator[Callable[[], Driver]]:
    """Makes drivers that are alive until the test ends."""
    import contextlib

    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Driver.here().at_work())


def searcher(storage: Any, driver: Driver | None = None, **study: Any) -> Searcher:
    chosen = made({"trials": 12, "batch": 4} | study)
    return Searcher(chosen, chosen.searches[0], storage, resume=True, driver=driver)


def tell(asker: Searcher, trial: optuna.Trial) -> bool:
    return asker.tell(trial, [seed(0, average_accuracy=quality(trial.params["lam"]))])


def lams(trials: list[Any]) -> list[float]:
    return [trial.params["lam"] for trial in trials]


def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def journal(tmp_path: Path) -> str:
    return str(tmp_path / "optuna.journal")


KINDS = pytest.mark.parametrize("kind", [sqlite, journal])


# Places


def trial_at(number: int, place: int | None, state: TrialState = TrialState.RUNNING, **attributes: Any) -> FrozenTrial:
    attributes |= {} if place is None else {PLACE: place}
    value = 0.5 if state == TrialState.COMPLETE else None
    trial = create_trial(state=state, value=value, user_attrs=attributes)
    trial.number = number
    return trial


FILLED = {SEEDS: [seed(0)]}
MIDNIGHT = datetime(2026, 1, 1)


def test_of_two_trials_of_a_place_the_first_has_it() -> None:
    assert places.holders([trial_at(0, 0), trial_at(1, 1), trial_at(2, 0)])[0].number == 0
    assert places.holders([trial_at(2, 0), trial_at(0, 0)])[0].number == 0


def test_a_trial_left_behind_gives_its_place_to_the_next() -> None:
    left = trial_at(0, 0, TrialState.FAIL)
    assert places.abandoned(left) and not places.counts(left)
    assert places.holders([left, trial_at(1, 0), trial_at(2, 0)])[0].number == 1


def test_the_time_of_a_study_is_that_in_which_any_trial_was_in_training() -> None:
    def worked(began: float, ended: float | None) -> FrozenTrial:
        trial = trial_at(0, 0)
        trial.datetime_start = MIDNIGHT + timedelta(seconds=began)
        trial.datetime_complete = None if ended is None else MIDNIGHT + timedelta(seconds=ended)
        return trial

    side_by_side = [worked(2, 8), worked(0, 10), worked(5, 12)]
    later = [worked(100, 101), worked(101, 101.5)]
    clock_set_back, running = worked(200, 190), worked(300, None)
    assert places.seconds([]) == 0
    assert places.seconds([*later, *side_by_side, clock_set_back, running]) == 13.5


def test_a_trial_that_failed_for_a_reason_fills_its_place() -> None:
    diverged = trial_at(0, 0, TrialState.FAIL, **FILLED, **{REASON: "diverged with seeds 0"})
    assert places.counts(diverged) and places.free([diverged], 1, 1) == [] and places.spent([diverged], 1)


def test_a_trial_failed_by_others_between_its_seeds_and_its_end_is_tried_again() -> None:
    """It has a value, which nobody was told: to count it as failed would lose it."""
    taken_over = trial_at(0, 0, TrialState.FAIL, **FILLED)
    assert places.abandoned(taken_over) and places.free([taken_over], 1, 1) == [0]


def test_the_places_to_fill_are_those_of_the_first_batch_that_has_any() -> None:
    done = [trial_at(n, n, TrialState.COMPLETE, **FILLED) for n in (0, 1, 3)]
    assert places.free(done, 8, 4) == [2]
    assert places.free([*done, trial_at(4, 2)], 8, 4) == [4, 5, 6, 7]
    assert places.free([*done, trial_at(4, 2)], 6, 4) == [4, 5]
    assert places.free([*done, trial_at(4, 2)], 4, 4) == [] and not places.spent([*done, trial_at(4, 2)], 4)


# Whether a driver is gone


def test_a_driver_is_gone_when_its_process_is() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        from studies.drivers import _began

        there = dataclasses.replace(Driver.here(), pid=process.pid, began=_began(process.pid))
        assert not there.gone()
        # Its number given to another process.
        assert dataclasses.replace(there, began="1").gone() or sys.platform != "linux"
        process.kill()
        process.wait()
        assert there.gone()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_driver_that_nobody_waited_for_is_gone_all_the_same() -> None:
    """As in a container whose first process waits for no other."""
    from studies.drivers import _began

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    there = dataclasses.replace(Driver.here(), pid=process.pid, began=_began(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert there.gone()
    process.communicate()


def test_a_driver_of_this_process_is_gone_when_it_has_ended() -> None:
    driver = Driver.here()
    assert driver.gone()
    with driver.at_work():
        assert not driver.gone() and not Driver.of(driver.attributes()).gone()
    assert driver.gone()


def test_of_a_driver_on_another_machine_nothing_is_certain() -> None:
    there = dataclasses.replace(Driver.here(), machine=ELSEWHERE, pid=1)
    assert not there.gone() and not there.visible()
    assert there.gone(rebooted=True)  # the host's name is this one's
    assert not dataclasses.replace(there, host="node7").gone(rebooted=True)


# Two that ask


@pytest.mark.parametrize("kind", [sqlite, journal, None])
def test_two_drivers_share_the_grid_and_the_budget(
    kind: Callable[[Path], str] | None, at_work: Callable[[], Driver], tmp_path: Path
) -> None:
    storage = kind(tmp_path) if kind else InMemoryStorage()
    one, other = searcher(storage, at_work(), batch=2), searcher(storage, at_work(), batch=2)
    first, second = one.ask(), other.ask()
    assert [t.params for t in first] == grid(one.search, 2)
    assert len(second) == 2 and not {*lams(first)} & {*lams(second)}
    for asker, asked in ((other, second), (one, first)):
        assert all(tell(asker, trial) for trial in asked)
    rest = [(asker, asker.ask()) for asker in itertools.islice(itertools.cycle([one, other]), 6)]
    assert [len(asked) for _, asked in rest] == [2, 2, 2, 2, 0, 0]
    assert len(one.others()) == len(other.others()) == 4 and not one.spent
    assert all(tell(asker, trial) for asker, asked in rest for trial in asked)
    assert len(one.ended) == 12 and one.spent and other.spent
    assert len({*lams(one.ended)}) == 12
    assert {t.state for t in one.optuna.trials} == {TrialState.COMPLETE}


def test_a_grid_that_one_driver_takes_part_of_is_gone_through_by_the_other(at_work: Callable[[], Driver]) -> None:
    storage = InMemoryStorage()
    one, other = searcher(storage, at_work()), searcher(storage, at_work())
    taken = one._claims.take(3, range(12), one.search.space)
    assert sorted(lams(taken) + lams(other.ask())) == pytest.approx([1.0, 1e2, 1e4, 1e6])


def test_who_joins_leaves_trials_in_training_alone(at_work: Callable[[], Driver], tmp_path: Path) -> None:
    one = searcher(sqlite(tmp_path), at_work())
    asked = one.ask()
    other = searcher(sqlite(tmp_path), at_work())
    assert other.take_over() == [] and all(one.holds(trial) for trial in asked)
    assert all(tell(one, trial) for trial in asked)


def test_drivers_that_come_to_an_empty_queue_at_once_do_not_ask_the_same(
    at_work: Callable[[], Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see the same places free, and both queue them: what comes second is given up untrained."""
    storage = InMemoryStorage()
    one, other = (searcher(storage, at_work(), sampler="random") for _ in range(2))
    for trial in one.ask():
        tell(one, trial)
    free = one._free()
    monkeypatch.setattr(claims, "holders", lambda trials: {})
    one._queue(free)
    other._queue(free)
    monkeypatch.undo()
    assert [t.user_attrs[PLACE] for t in one.optuna.trials[4:]] == [4, 5, 6, 7, 4, 5, 6, 7]
    # In turn, as two processes would take them.
    taken: dict[int, list[Any]] = {0: [], 1: []}
    for turn in range(8):
        asker = (one, other)[turn % 2]
        taken[turn % 2] += asker._claims.take(1, range(12), asker.search.space)
    assert [len(each) for each in taken.values()] == [2, 2]
    assert len({*lams(taken[0] + taken[1])}) == 4
    for asker, asked in zip((one, other), taken.values(), strict=True):
        assert all(tell(asker, trial) for trial in asked)
    assert len(one.ended) == 8 and len(one.ask()) == 4


@KINDS
def test_drivers_that_race_fill_every_place_once(
    kind: Callable[[Path], str], at_work: Callable[[], Driver], tmp_path: Path
) -> None:
    """Each with a connection of its own, as processes have."""
    started, drivers, budget = threading.Barrier(4), [at_work() for _ in range(4)], 24

    def opened() -> Storage:
        if kind is journal:
            return Storage.of(kind(tmp_path))
        turn = {"connect_args": {"timeout": databases.TURN}}
        made_once = RDBStorage(kind(tmp_path), turn)  # without heartbeats, whose warnings threads cannot be kept from
        databases._one_writer(made_once.engine)
        return Storage("a database", made_once)

    def drive(driver: Driver) -> list[tuple[int, float]]:
        asker, told, pause = searcher(stores.pop(), driver, **study), [], random.Random(driver.id)
        started.wait()
        while asked := asker.ask():
            time.sleep(pause.uniform(0, 0.02))
            for trial in asked:
                assert tell(asker, trial)
                told.append((trial.user_attrs[PLACE], trial.params["lam"]))
        return told

    study = {"trials": budget, "batch": 2, "sampler": "random"}
    stores = [opened() for _ in drivers]
    searcher(stores[0], drivers[0], **study)
    with ThreadPoolExecutor(4) as pool:
        told = list(itertools.chain(*pool.map(drive, drivers)))
    assert sorted(place for place, _ in told) == list(range(budget))
    assert len({lam for _, lam in told}) == budget
    last = searcher(kind(tmp_path), **study)
    assert sorted(lams(last.ended)) == sorted(lam for _, lam in told) and last.ask() == []


# One that dies, and one that only seemed to


def vanish(asker: Searcher, **changes: Any) -> Driver:
    """Let the trials of a driver be another one's."""
    gone = dataclasses.replace(asker._claims._driver, **changes)
    for trial in asker._claims.others() + [t for t in asker.optuna.trials if t.number in asker._claims._mine]:
        asker.storage.optuna.set_trial_user_attr(trial._trial_id, DRIVER, gone.attributes())
    return gone


@pytest.fixture
def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@KINDS
def test_what_a_killed_driver_left_is_asked_again_at_once_and_by_one_alone(
    kind: Callable[[Path], str], at_work: Callable[[], Driver], ended_process: int, tmp_path: Path
) -> None:
    killed = searcher(kind(tmp_path), at_work())
    left = killed.ask()
    tell(killed, left[0])
    gone = vanish(killed, pid=ended_process)
    one, other = searcher(kind(tmp_path), at_work()), searcher(kind(tmp_path), at_work())
    assert other.take_over() == []  # `one` has, when it came
    again, more = one.ask(), other.ask()
    assert lams(again) == lams(left[1:]) and len(more) == 4 and not {*lams(more)} & {*lams(left)}
    assert str(gone).startswith(f"process {ended_process} on ")
    assert [t.state.name for t in one.optuna.trials[:4]] == ["COMPLETE", "FAIL", "FAIL", "FAIL"]


def test_a_place_whose_driver_was_killed_as_it_chose_gets_no_setting_of_another(
    at_work: Callable[[], Driver], ended_process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting of the first place is known and asked again; that of the second is drawn, as it would have been."""
    storage, undisturbed = InMemoryStorage(), searcher(InMemoryStorage(), sampler="random")
    killed, one = (searcher(storage, at_work(), sampler="random") for _ in range(2))
    for asker in (undisturbed, killed):
        for trial in asker.ask():
            tell(asker, trial)
    draws, calls = RandomSampler.sample_independent, itertools.count()

    def kill(*args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return draws(*args)

    monkeypatch.setattr(RandomSampler, "sample_independent", kill)
    with pytest.raises(KeyboardInterrupt):
        killed.ask()
    vanish(killed, pid=ended_process)
    one.take_over()
    asked, expected = ({t.user_attrs[PLACE]: t.params for t in asker.ask()} for asker in (one, undisturbed))
    assert asked == expected and len(expected) == 4


def test_a_driver_that_dies_while_others_work_is_taken_over_by_the_next_that_asks(
    at_work: Callable[[], Driver], ended_process: int
) -> None:
    storage = InMemoryStorage()
    killed, one = searcher(storage, at_work(), trials=8), searcher(storage, at_work(), trials=8)
    left, mine = killed.ask(), one.ask()
    for trial in mine:
        tell(one, trial)
    assert one.ask() == [] and len(one.others()) == 4
    vanish(killed, pid=ended_process)
    (line,) = one.take_over()
    assert line.startswith(f"ewc: process {ended_process} on ") and "took over trials 0, 1, 2, 3" in line
    assert one.others() == [] and not one.spent
    again = one.ask()
    assert lams(again) == lams(left)
    for trial in again:
        tell(one, trial)
    assert one.spent and len(one.ended) == 8


def silence(asker: Searcher) -> None:
    """Let it be longer than a driver may be silent since any heartbeat in a database."""
    assert isinstance(asker.storage.optuna, RDBStorage)
    ago = f"'-{claims.GRACE + 60} seconds'"
    with asker.storage.optuna.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, {ago})")


def test_a_driver_on_another_machine_is_gone_when_its_heartbeat_stops(
    at_work: Callable[[], Driver], tmp_path: Path
) -> None:
    there, one = searcher(sqlite(tmp_path), at_work()), searcher(sqlite(tmp_path), at_work())
    left = there.ask()
    vanish(there, machine=ELSEWHERE, host="node7")
    assert one.take_over() == []
    silence(there)
    there.storage.pulse.beat()
    assert one.take_over() == []
    silence(there)
    (line,) = one.take_over()
    assert "on node7 is gone, took over trials 0, 1, 2, 3" in line
    assert lams(one.ask()) == lams(left)


def test_a_thread_keeps_the_heartbeat_while_a_batch_trains(
    at_work: Callable[[], Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "HEARTBEAT", 0.1)
    there, one = searcher(sqlite(tmp_path), at_work()), searcher(sqlite(tmp_path), at_work())
    asked = there.ask()
    vanish(there, machine=ELSEWHERE)
    silence(there)
    beat, beats = there.storage.pulse.beat, itertools.count()
    again = threading.Event()

    def heard() -> None:
        beat()
        if next(beats):  # it goes on
            again.set()

    monkeypatch.setattr(there.storage.pulse, "beat", heard)
    with there.storage.pulse.beating():
        assert again.wait(60)
        assert one.take_over() == [] and all(there.holds(trial) for trial in asked)


def test_a_driver_killed_before_its_first_heartbeat_is_taken_over_too(
    at_work: Callable[[], Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, one = searcher(sqlite(tmp_path), at_work()), searcher(sqlite(tmp_path), at_work())
    there.storage.pulse.hold = lambda trial: None  # type: ignore[method-assign]
    there.ask()
    vanish(there, machine=ELSEWHERE)
    with monkeypatch.context() as patch:
        patch.setattr(claims, "GRACE", 0)
        assert one.take_over() == one.take_over() == []  # the second time it was there for too long
    silence(one)
    assert one.take_over() and not one.others() and len(one.ask()) == 4


def test_a_trial_taken_by_a_driver_that_never_said_so_is_taken_over_soon(
    at_work: Callable[[], Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queued here, popped there, and killed in between: it still says that it is this driver's, who lives."""
    monkeypatch.setattr(claims, "SIGNING", 0)
    one = searcher(InMemoryStorage(), at_work())
    one.optuna.ask()
    assert one.take_over() == [] and len(one.others()) == 1  # seen for the first time
    (line,) = one.take_over()
    assert line == "ewc: a driver that gave no name is gone, took over trials 0" and len(one.ask()) == 4


def test_a_driver_that_was_asleep_finds_its_trials_gone_and_counts_none_twice(
    at_work: Callable[[], Driver], tmp_path: Path
) -> None:
    asleep, one = searcher(sqlite(tmp_path), at_work(), trials=4), searcher(sqlite(tmp_path), at_work(), trials=4)
    late = asleep.ask()
    vanish(asleep, machine=ELSEWHERE)
    silence(asleep)
    assert one.take_over()
    again = one.ask()
    assert lams(again) == lams(late)
    assert not any(asleep.holds(trial) for trial in late)
    # Before the other one has told, and after.
    assert not tell(asleep, late[0]) and not asleep.prune(late[1], [seed(0, "pruned")], GivenUp(2, 0.5, 4, 1.5))
    for trial in again:
        assert tell(one, trial)
    asleep.note(late[2], "mlflow_runs", ["a"])
    assert not tell(asleep, late[2])
    assert asleep.ask() == [] and one.spent
    assert len(one.ended) == len(one.complete) == 4


def test_a_driver_that_wakes_up_does_not_take_over_from_itself(at_work: Callable[[], Driver], tmp_path: Path) -> None:
    one = searcher(sqlite(tmp_path), at_work())
    asked = one.ask()
    silence(one)
    assert one.take_over() == []
    assert all(tell(one, trial) for trial in asked)


def test_trials_of_a_larger_budget_are_left_to_who_has_it(at_work: Callable[[], Driver]) -> None:
    storage = InMemoryStorage()
    searcher(storage, at_work(), trials=8, batch=8)  # queues eight, and asks none
    few = searcher(storage, at_work(), trials=4, batch=4)
    asked = few.ask()
    assert len(asked) == 4 and few.ask() == []
    for trial in asked:
        tell(few, trial)
    assert few.spent
    many = searcher(storage, at_work(), trials=8, batch=8)
    assert len(many.ask()) == 4


def test_what_a_killed_driver_took_beside_the_budget_is_given_up_in_the_end(
    at_work: Callable[[], Driver],
) -> None:
    """Two drivers had queued the same places; one took a trial of its own and was killed, and left one in the queue."""
    storage = InMemoryStorage()
    one, many = searcher(storage, at_work(), trials=4), searcher(storage, at_work(), trials=8)
    asked, more = one.ask(), many.ask()
    for place in (0, 1):
        one.optuna.enqueue_trial({"lam": 1.0}, user_attrs={PLACE: place, DRIVER: one._claims._driver.attributes()})
    one.optuna.ask()  # as the killed one did, before it said that it was there
    for trial in asked:
        tell(one, trial)
    assert one.spent and one.others() == [] and one.take_over() == []
    one.tidy()
    assert [trial.state for trial in one.optuna.trials[-2:]] == [TrialState.FAIL] * 2
    assert one.spent and lams(one.ended) == lams(asked)
    assert all(tell(many, trial) for trial in more) and many.spent  # a larger budget is another driver's business


@pytest.mark.parametrize("breaks", ["heartbeat", "name"])
def test_a_trial_taken_as_the_connection_broke_is_taken_again(
    breaks: str, at_work: Callable[[], Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have this driver's heartbeat for ever, and nobody to train it: the last batch would never come."""
    storage = sqlite(tmp_path)
    searcher(storage, at_work(), trials=4)  # queues all, under its own name
    one = searcher(storage, at_work(), trials=4)
    where, name = {
        "heartbeat": (RDBStorage, "record_heartbeat"),
        "name": (optuna.Trial, "set_user_attr"),
    }[breaks]
    works, calls = getattr(where, name), itertools.count()

    def breaking(*args: Any) -> Any:
        if next(calls) == 1:
            raise DBAPIError("UPDATE", {}, Exception("gone"), connection_invalidated=True)
        return works(*args)

    monkeypatch.setattr(where, name, breaking)
    asked = one.ask()
    assert sorted(lams(asked)) == pytest.approx([1.0, 1e2, 1e4, 1e6]) and one.others() == []
    assert {t.number for t in one.optuna.get_trials(states=(TrialState.RUNNING,))} == {t.number for t in asked}


def test_a_trial_failed_as_it_was_taken_gets_no_heartbeat(
    at_work: Callable[[], Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who queued it died a moment ago, and a third driver has just freed what it left."""
    storage = InMemoryStorage()
    searcher(storage, at_work(), trials=1, batch=1)
    one = searcher(storage, at_work(), trials=1, batch=1)
    named, freed = optuna.Trial.set_user_attr, list[int]()

    def late(trial: optuna.Trial, *args: Any) -> None:
        if not freed:
            freed.append(trial._trial_id)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        named(trial, *args)

    monkeypatch.setattr(optuna.Trial, "set_user_attr", late)
    (again,) = one.ask()
    assert freed and one.storage.pulse._held == {again._trial_id}


# Whole studies


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Folder and seed of every run whose results were kept."""
    kept, add = list[tuple[str, int]](), Store.add

    def watched(self: Store, results: Any) -> Any:
        records = add(self, results)
        kept.extend((self.folder.parent.name, record.seed) for record in records)
        return records

    monkeypatch.setattr(Store, "add", watched)
    monkeypatch.setattr(waiting, "POLL", 0.1)
    return kept


def test_two_commands_on_one_study_end_with_the_same_answer_tested_once(
    tested: list[tuple[str, int]], tmp_path: Path
) -> None:
    study, storage = made({"trials": 8, "batch": 2}), journal(tmp_path)
    alone = go(made({"trials": 8, "batch": 2}), tmp_path / "alone")
    tested.clear()
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda out: go(study, tmp_path / out, storage, resume=True), ["a", "b"]))
    assert done[0].outcome.answers == done[1].outcome.answers
    assert done[0].answer.trials == {"complete": 8} and len(done[0].answer.tested["average_accuracy"]) == 2
    assert alone.answer.trials == {"complete": 8}
    in_the_end = [entry for entry in tested if entry[1] in study.test_seeds]
    assert len({out for out, _ in in_the_end}) == 1 and sorted(s for _, s in in_the_end) == list(study.test_seeds)
    in_trials = [entry for entry in tested if entry[1] in study.tuning_seeds]
    assert len(in_trials) == 8 * 2
    assert optuna.get_all_study_names(Storage.of(storage).optuna) == ["trial/ewc"]
    said = [line for each in done for line in each.said]
    assert sum(line.startswith("testing the best setting") for line in said) == 1
    assert sum("were tested by another driver" in line for line in said) == 1


def test_a_final_evaluation_whose_driver_was_killed_is_done_by_the_next(
    tested: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, storage = made({"trials": 2}), journal(tmp_path)

    class Killed(BaseException):
        pass

    add = Store.add

    def killing(self: Store, results: Any) -> Any:
        if results[0].run.seed in study.test_seeds:
            raise Killed
        return add(self, results)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Store, "add", killing)
        go(study, tmp_path / "a", storage)
    assert "trial/final evaluation" in optuna.get_all_study_names(Storage.of(storage).optuna)
    done = go(study, tmp_path / "b", storage, resume=True)
    assert len(done.answer.tested["average_accuracy"]) == 2 and done.answer.trials == {"complete": 2}
    assert optuna.get_all_study_names(Storage.of(storage).optuna) == ["trial/ewc"]
    # The first one's command again prints the same, and trains nothing.
    before = list(tested)
    assert go(study, tmp_path / "a", storage, resume=True).outcome.answers == done.outcome.answers
    assert tested == before


def test_a_larger_budget_is_evaluated_anew(tested: list[tuple[str, int]], tmp_path: Path) -> None:
    storage = InMemoryStorage()
    first = go(made({"trials": 2, "batch": 2}), tmp_path, storage)
    more = go(made({"trials": 6, "batch": 2}), tmp_path, storage, resume=True)
    assert more.answer.trials == {"complete": 6}
    assert (more.answer.tested == first.answer.tested) == (more.answer.params == first.answer.params)


@KINDS
def test_an_evaluation_found_by_one_driver_is_what_all_others_are_told(
    kind: Callable[[Path], str], at_work: Callable[[], Driver], tmp_path: Path
) -> None:
    askers = [searcher(kind(tmp_path), at_work(), trials=1, batch=1) for _ in range(3)]
    first, second, third = (Final([asker], "runs", asker._claims._driver) for asker in askers)
    assert first.claim() and not second.claim() and second.driver() is not None
    assert second.found() is None
    first.note({"ewc": {"average_accuracy": [0.5, 0.75]}})
    first.close()
    # The second still knows the study that stood for it, which is there no longer.
    assert not second.claim() or second.found()
    for final in (second, third):
        assert final.found() == {"ewc": {"average_accuracy": [0.5, 0.75]}}
        final.close()
    assert optuna.get_all_study_names(Storage.of(kind(tmp_path)).optuna) == ["trial/ewc"]
    assert Final([askers[2]], "other runs", askers[2]._claims._driver).found() is None


def test_an_evaluation_whose_study_is_deleted_as_it_is_opened_is_opened_anew(
    at_work: Callable[[], Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna looks a study up by its name, after it was told that there is one."""
    asker, create, failures = searcher(InMemoryStorage(), at_work()), optuna.create_study, iter([KeyError("gone")])

    def deleted(**options: Any) -> optuna.Study:
        for error in failures:
            raise error
        return create(**options)

    monkeypatch.setattr(optuna, "create_study", deleted)
    assert Final([asker], "runs", asker._claims._driver).claim()


def test_an_evaluation_that_is_given_up_is_another_drivers(at_work: Callable[[], Driver]) -> None:
    storage = InMemoryStorage()
    first, second = (
        Final([asker], "runs", asker._claims._driver)
        for asker in (searcher(storage, at_work()), searcher(storage, at_work()))
    )
    assert first.claim() and not second.claim()
    first.give_up()
    assert second.claim() and not first.claim()


@KINDS
def test_who_has_its_evaluation_leaves_that_of_other_runs_alone(
    kind: Callable[[Path], str], at_work: Callable[[], Driver], tmp_path: Path
) -> None:
    """A driver whose time was up tested the best setting so far; meanwhile the others came to the end."""
    askers = [searcher(kind(tmp_path), at_work(), trials=1, batch=1) for _ in range(3)]
    early, second, third = (
        Final([asker], runs, asker._claims._driver)
        for asker, runs in zip(askers, ("some runs", "all runs", "all runs"), strict=True)
    )
    assert early.claim() and second.claim()
    early.note({"ewc": {"average_accuracy": [0.5]}})
    early.close()
    assert not third.claim() and third.driver() is not None
    second.note({"ewc": {"average_accuracy": [0.75]}})
    second.close()
    assert third.found() == {"ewc": {"average_accuracy": [0.75]}}
    assert optuna.get_all_study_names(Storage.of(kind(tmp_path)).optuna) == ["trial/ewc"]
