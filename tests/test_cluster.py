"""Stacks through Ray: the same results, and what happens when workers and nodes die."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from benchmark import plan, scenarios, schedule
from benchmark.keys import generator_seed
from benchmark.runs import Result, Run
from strategies import EWC, L2, option
from tests import conftest
from tests.conftest import CPU
from tests.test_end_to_end import environment, forgetbench, table
from tests.test_kills import descendants
from tests.test_many_drivers import until
from tests.test_schedule import Noted, Raises, go, make_run, same

ray = pytest.importorskip("ray")
from benchmark import cluster  # ruff: ignore[module-import-not-at-top-of-file]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def here() -> Iterator[cluster.Ray]:
    """Ray on this machine."""
    said: list[str] = []
    yield cluster.Ray(say=said.append)
    ray.shutdown()
    assert len(said) == 1 and "on loopback" in said[0]


def exactly(found: dict[str, Result], expected: dict[str, Result]) -> None:
    assert found.keys() == expected.keys()
    for key, e in expected.items():
        assert (found[key].status, found[key].stack_size) == ("finished", e.stack_size)
        np.testing.assert_array_equal(found[key].accuracy, e.accuracy)
        assert [(p.task, p.step) for p in found[key].trace] == [(p.task, p.step) for p in e.trace]


@dataclass(frozen=True)
class Kills(L2):
    """Ends its process, as the kernel would, as often as it is told to."""

    name: ClassVar[str] = "kills"
    folder: str = option("", doc="where it counts")
    times: int = option(1, doc="how often")
    seed: int = option(0, doc="of the run that does it")

    def measure(self, model: Any, task: Any) -> Any:
        own = task.generator.initial_seed() == generator_seed(self.seed, "measure", 2)
        if own and len(list(Path(self.folder).iterdir())) < self.times:
            (Path(self.folder) / str(time.time_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(model, task)


@dataclass(frozen=True)
class Waits(L2):
    """Takes its time, so that something may happen meanwhile, and notes on which node."""

    name: ClassVar[str] = "waits"
    folder: str = option("", doc="where it notes")

    def measure(self, model: Any, task: Any) -> Any:
        if self.folder:
            node = ray.get_runtime_context().get_node_id()
            (Path(self.folder) / f"{node} {task.generator.initial_seed()}").touch()  # a run and task
        time.sleep(1)
        return super().measure(model, task)


def test_runs_through_ray_equal_those_of_this_process_to_the_bit(here: cluster.Ray) -> None:
    runs = [
        conftest.make_run(
            s, seed=seed, tasks=3, epochs=1, evaluate_every=9, precision="float32", optimizer_state="keep"
        )
        for s in (EWC(lam=3.0), L2(), EWC(lam=3.0, estimator="sampled"))
        for seed in (0, 1, 2)
    ]
    exactly(go(runs, workers=2, executor=here)[0], go(runs, workers=2)[0])


LISTEN = "0A"  # as a state in /proc/net/tcp


def listening() -> dict[str, list[Any]]:
    """Addresses that this process and its descendants listen on, by their names, as the kernel knows them."""
    owners = {}
    for pid, name in {os.getpid(): "driver", **descendants(os.getpid())}.items():
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):  # closed meanwhile
                owners[os.readlink(descriptor)] = name
    found: dict[str, list[Any]] = {}
    for line in [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == LISTEN and (name := owners.get(f"socket:[{inode}]")):
            digits = local.split(":")[0]  # words of 32 bits, each in this machine's order
            words = [int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8)]
            address = ipaddress.ip_address(b"".join(words))
            found.setdefault(name, []).append(getattr(address, "ipv4_mapped", None) or address)
    return found


def test_everything_listens_on_loopback(here: cluster.Ray) -> None:
    with socket.create_server(("", 0)):  # what is looked for would be found
        assert any(address.is_unspecified for each in listening().values() for address in each)
    assert here.room(CPU).workers == os.cpu_count()
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    found = listening()
    assert {"gcs_server", "raylet"} <= {*found} and any(name.startswith("ray::") for name in found)
    assert all(address.is_loopback for each in found.values() for address in each), found


def test_a_strategy_that_raises_fails_alone(here: cluster.Ray) -> None:
    bad, good = [make_run(Raises(), seed=s) for s in (0, 1)], [make_run(L2(), seed=s) for s in (0, 1)]
    found, noted = go([*bad, *good], workers=2, executor=here)
    assert all(
        found[run.key].reason.startswith("strategy 'raises': KeyError: 'nope' (test_schedule.py, ") for run in bad
    )
    same({run.key: found[run.key] for run in good}, go(good)[0])
    assert any('raise KeyError("nope")' in trace for trace in noted.traces)


def test_a_task_whose_worker_is_killed_is_run_again(here: cluster.Ray, tmp_path: Path) -> None:
    killer, other = make_run(Kills(folder=str(tmp_path)), tasks=3), make_run(L2(), tasks=3)
    found, _ = go([killer, other], executor=here)
    assert len(list(tmp_path.iterdir())) == 1
    exactly(found, go([killer, other])[0])


def test_a_run_that_kills_every_worker_fails_alone_and_its_neighbours_finish(
    here: cluster.Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stack of four, its half, the run: each is tried twice here."""
    monkeypatch.setattr(cluster, "RETRIES", 1)
    strategy = Kills(folder=str(tmp_path), times=99, seed=1)
    runs = [*(make_run(strategy, seed=seed, tasks=3) for seed in range(3)), make_run(L2(), seed=3, tasks=3)]
    expected = go([make_run(L2(), seed=seed, tasks=3) for seed in range(4)])[0].values()
    found, noted = go(runs, executor=here)
    lost = found[runs[1].key]
    assert (lost.status, lost.reason) == ("failed", "its worker died 2 times, perhaps for want of memory")
    assert len(list(tmp_path.iterdir())) == 6
    assert [said.split(" runs")[0] for said in noted.said[:-1]] == [
        f"memory may have run out in a stack of {many}" for many in (4, 2)
    ]
    by_seed = {result.run.seed: result.accuracy for result in expected}
    for run in (run for run in runs if run is not runs[1]):
        assert found[run.key].status == "finished"
        np.testing.assert_allclose(found[run.key].accuracy, by_seed[run.seed], rtol=0, atol=1e-12)


def test_a_run_that_kills_every_worker_does_not_keep_other_workers_from_their_stacks(
    here: cluster.Ray, tmp_path: Path
) -> None:
    killer, other = make_run(Kills(folder=str(tmp_path), times=99), tasks=3), make_run(L2(), tasks=3)
    found, _ = go([killer, other], executor=here, workers=2)
    assert (found[killer.key].status, found[other.key].status) == ("failed", "finished")
    assert found[killer.key].reason.startswith("its worker died 4 times")
    assert len(list(tmp_path.iterdir())) == 4


def test_runs_are_pruned_by_the_driver_and_progress_is_heard(here: cluster.Ray) -> None:
    runs = [make_run(L2(lam=lam), seed=s, tasks=4) for lam in (1.0, 2.0) for s in (0, 1)]
    tasks, heard, asked = scenarios.load(runs[0].scenario), [], []

    class Listening(Noted):
        def epoch_done(self, runs: int, task: int, *rest: Any) -> None:
            heard.append((runs, task))

    def prune(task: int, alive: tuple[Run, ...], accuracy: Any) -> list[bool]:
        asked.append((task, len(alive), accuracy.shape[1:], os.getpid()))
        return [run.strategy.lam == 2.0 for run in alive]

    made = plan.make(runs, tasks, CPU)
    found = [r for s in schedule.execute(made, tasks, CPU, Listening(), prune=prune, executor=here) for r in s]
    assert {(r.run.strategy.lam, r.status) for r in found} == {(1.0, "finished"), (2.0, "pruned")}
    assert {pid for *_, pid in asked} == {os.getpid()} and {task for task, *_ in asked} == {2, 3}
    assert sum(n for n, task in heard if task == 1) == 2 and sum(n for n, task in heard if task == 4) == 2


@pytest.mark.parametrize("fails", ["listener", "prune"])
def test_what_fails_as_it_hears_a_worker_leaves_none_waiting_and_is_raised_in_the_end(
    here: cluster.Ray, fails: str
) -> None:
    runs = [make_run(L2(lam=lam), seed=0, tasks=3) for lam in (1.0, 2.0)]
    tasks = scenarios.load(runs[0].scenario)

    class Listening(Noted):
        def epoch_done(self, *_: Any) -> None:
            if fails == "listener":
                raise OSError("the terminal is gone")

    def prune(task: int, alive: tuple[Run, ...], accuracy: Any) -> list[bool]:
        if fails == "prune":
            raise OSError("the terminal is gone")
        return [run.strategy.lam == 2.0 for run in alive]

    made, found = plan.make(runs, tasks, CPU), list[Result]()
    with pytest.raises(OSError, match="the terminal is gone"):
        for results in schedule.execute(made, tasks, CPU, Listening(), prune=prune, executor=here):
            found += results
    given_up = "pruned" if fails == "listener" else "finished"
    assert {(r.run.strategy.lam, r.status) for r in found} == {(1.0, "finished"), (2.0, given_up)}


def test_a_worker_with_other_software_is_refused(here: cluster.Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cluster._versions()
    monkeypatch.setattr(cluster, "_versions", lambda: own | {"forgetbench": "9.9"})
    with pytest.raises(ValueError, match=r"is refused: forgetbench .* there, 9\.9 here; install there what"):
        here.room(CPU)
    with pytest.raises(ValueError, match="is refused"):  # one that joined later
        go([make_run(L2())], executor=here)


def test_a_worker_with_another_version_of_ones_own_code_is_refused(
    here: cluster.Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(Waits())
    monkeypatch.setattr("strategies.imports.inspect.getsource", lambda module: "a version that was never saved")
    _ = run.key
    with pytest.raises(ValueError, match="another version of the code of 'waits'"):
        go([run], executor=here)


def test_a_stack_for_which_there_is_no_room_is_refused(here: cluster.Ray) -> None:
    with pytest.raises(ValueError, match=r"no node of the Ray cluster has 1000 CPUs and 0 GPUs .*--cpus-per-stack"):
        cluster.Ray(cpus=1000).room(CPU)


def test_giving_up_cancels_what_is_running(here: cluster.Ray) -> None:
    runs = [make_run(Waits(), seed=s, tasks=9) for s in range(3)]
    tasks = scenarios.load(runs[0].scenario)
    quick = make_run(L2(), tasks=9)
    stacks = schedule.execute(plan.make([quick, *runs], tasks, CPU, largest=1), tasks, CPU, executor=here)
    next(stacks)
    began = time.monotonic()
    stacks.close()
    assert time.monotonic() - began < 15


def test_stacks_of_a_node_that_is_removed_run_again_elsewhere(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    there = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = there.add_node(num_cpus=1)
        runs = [make_run(Waits(folder=str(tmp_path)), seed=s, tasks=5) for s in range(4)]
        executor = cluster.Ray(there.address)
        assert executor.room(CPU).workers == 2

        def begun(node: str) -> set[str]:
            """What has begun on a node."""
            return {seed for on, seed in (path.name.split() for path in tmp_path.iterdir()) if on == node}

        def remove() -> None:
            until(lambda: begun(doomed.node_id))
            there.remove_node(doomed, allow_graceful=False)

        removal = threading.Thread(target=remove)
        removal.start()
        found = go(runs, largest=1, workers=2, executor=executor)[0]
        removal.join()
        until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)
        assert executor.room(CPU).workers == 1
        assert begun(doomed.node_id) and begun(doomed.node_id) <= begun(there.head_node.node_id)
        exactly(found, go(runs, largest=1, workers=2)[0])
    finally:
        ray.shutdown()
        there.shutdown()


def test_an_address_where_nothing_is_is_said_with_what_to_do() -> None:
    ray.shutdown()
    with pytest.raises(ValueError, match="no Ray cluster at 'auto' .*ray start --head"):
        cluster.Ray("auto").room(CPU)


CONNECTS = """
import json, sys
from pathlib import Path
import ray, torch
from ray._private import utils, worker
from benchmark import cluster

cluster.Ray().room(torch.device("cpu"))
(job,) = worker.global_worker.gcs_client.get_all_job_info().values()
logs = [path for path in Path(worker._global_node.get_session_dir_path()).rglob("*") if path.is_file()]
kept = [path.name for path in logs if sys.argv[1].encode() in path.read_bytes()]
print(json.dumps([job.entrypoint, str(job), len(logs), kept, utils.get_entrypoint_name()]))
"""


def test_ray_is_not_told_the_command_line_which_may_hold_a_password(tmp_path: Path) -> None:
    secret = "a-secret-of-the-test"
    command = [sys.executable, "-c", CONNECTS, secret]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    entrypoint, job, logs, kept, otherwise = json.loads(done.stdout)
    assert entrypoint == "forgetbench" and secret not in job
    assert logs > 5 and kept == []
    assert secret in otherwise  # what Ray would have taken, and takes for others in this process


HUNGRY = """
import dataclasses, pathlib, time
from typing import ClassVar
from strategies import L2, option

@dataclasses.dataclass(frozen=True)
class Hungry(L2):
    name: ClassVar[str] = "hungry"
    folder: str = option("", doc="where it notes that it was here")

    def measure(self, model, task):
        noted = pathlib.Path(self.folder) / "first"
        if not noted.exists():
            noted.touch()
            eaten = bytearray(4 * 2**30)
            eaten[:: 4096] = bytes(len(eaten[:: 4096]))
            time.sleep(60)
        return super().measure(model, task)
"""


def test_a_stack_that_the_memory_monitor_ends_is_split(tmp_path: Path) -> None:
    """Ray by itself would try it again for ever."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(lines[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    if free < 8:
        pytest.skip("needs 8 GiB of free memory")
    (tmp_path / "hungry.py").write_text(HUNGRY)
    limit = {"RAY_memory_usage_threshold": str((total - free + 3) / total), "RAY_memory_monitor_refresh_ms": "100"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limit.items():
            patch.setenv(name, value)
        done = forgetbench(
            "run", "permuted-digits", "seeds=2", "scenario.tasks=2", "train.epochs=1", "--executor", "ray", "--offline",
            "--cpus-per-stack", "2", f"strategy=[{{name='hungry:Hungry', folder='{tmp_path}'}}]", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "memory ran out in a stack of 2 runs: it is tried again in two parts" in done.stdout + done.stderr
    runs = table(tmp_path / "out" / "permuted-digits" / "runs.csv")
    assert {row["status"] for row in runs.values()} == {"finished"} and len(runs) == 2


def test_a_study_through_ray_finds_what_threads_find(tmp_path: Path) -> None:
    """Its later batches branch off from first tasks that earlier ones left in the cluster."""
    small = [
        "study.trials=4", "study.batch=2", "study.test_seeds=2", "train.epochs=1", "scenario.tasks=2", "model=mlp",
        "train.precision=float64", "--offline",
    ]  # fmt: skip
    found = []
    for executor in ("ray", "local"):
        done = forgetbench(
            "study", "lambda-permuted-digits", *small, "--executor", executor, "--out", executor, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found.append(table(tmp_path / executor / "lambda-permuted-digits" / "runs.csv"))
    ray_, local = ({key: float(row["average_accuracy"]) for key, row in rows.items()} for rows in found)
    assert ray_ == pytest.approx(local, abs=1e-12) and len(local) == 2 * (4 * 2 + 2)
