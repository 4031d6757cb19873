"""Stacks as Ray tasks, on this machine's cores or on a cluster's.

Only this process writes results: workers return arrays. Images go into Ray's object store once, and from there once to
each node. What a trunk leaves stays in the cluster. A worker that dies is replaced and its task run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import cloudpickle, exceptions
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmark.data import ImageSet
from benchmark.executors import Job, Lost, LostForMemory, LostWorkers, Room, Submit, Ticket, prepared
from benchmark.harness import Silent, Site
from benchmark.memory import free_bytes
from benchmark.runs import NUMERICS, Run

RETRIES = 3  # of a task whose worker died
PROBE = 60.0  # seconds a node has to say what it is
POLL = 0.5  # seconds between questions for progress
PARTS = ("train_x", "train_y", "test_x", "test_y")
DEAD = (
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.RayActorError,
)


class Ray:
    """An `Executor` on a Ray cluster, which is connected to, or started on this machine, when there is work.

    Args:
        address: `auto`, `host:port` or `ray://host:port`; None starts Ray on this machine, on loopback.
        cpus: of each stack, which trains on as many threads.
        gpus: of each stack; a share of one, if less than 1.
        say: takes one line for each thing worth knowing.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: float = 1,
        gpus: float = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.address, self.cpus, self.gpus, self._say = address, cpus, gpus, say

    def room(self, device: torch.device) -> Room:
        """As many stacks as every node has the processors for; every node is asked for its memory and its versions.

        Args:
            device: not asked: what a stack is given is said in processors.

        Raises:
            ValueError: there is no cluster, nothing in it has room for a stack, or its forgetbench is another one.
        """
        self._connect()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        slots = {node["NodeID"]: self._slots(node["Resources"]) for node in nodes}
        if not sum(slots.values()):
            there = "; ".join(
                f"{n['Resources'].get('CPU', 0):g} CPUs, {n['Resources'].get('GPU', 0):g} GPUs" for n in nodes
            )
            raise ValueError(
                f"no node of the Ray cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs for a stack "
                f"(there are {there}); choose other --cpus-per-stack and --gpus-per-stack"
            )
        free = self._probe([node for node, many in slots.items() if many])
        return Room(sum(slots.values()), min(free[node] // slots[node] for node in free))

    @contextmanager
    def open(self, site: Site, workers: int) -> Generator[Submit, None, None]:
        """Put the images where every worker finds them."""
        self._connect()
        images = ray.put(_packed(site))
        relay = _relay()
        work = self._task(_work)
        waited: dict[Future[Any], Any] = {}
        with _listening(relay, site), ThreadPoolExecutor(1, "results") as hands:

            def submit(job: Job, *needs: Any) -> Ticket:
                given = cloudpickle.dumps(job)
                asks = site.prune is not None
                left, told = work.remote(_versions(), os.getcwd(), self._threads, [images], relay, asks, given, *needs)
                settled = _settled(told, hands)
                waited[settled] = told
                return Ticket(left, settled)

            try:
                yield submit
            finally:
                site.stop.set()
                for settled, told in waited.items():
                    if not settled.done():
                        ray.cancel(told, force=True)

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray tries a task that its memory monitor ended again and again, whatever `max_retries` says. Here the stack is
        # split instead.
        os.environ.setdefault("RAY_task_oom_retries", "0")
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # what became of a task is heard, and said, here
        if self.address is None:
            # Ray's own switch, which it reads when it is imported: one node, all of whose ports are on loopback.
            ray_constants.ENABLE_RAY_CLUSTER = False
        began = time.perf_counter()
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            with _unnamed():
                if self.address is None:
                    ray.init("local", include_dashboard=False, **quiet)
                else:
                    ray.init(self.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"no Ray cluster at {self.address!r} ({said[:200]}); "
                "start one (ray start --head), or leave out --ray-address"
            ) from None
        nodes, total = [node for node in ray.nodes() if node["Alive"]], ray.cluster_resources()
        address = ray.get_runtime_context().gcs_address
        where = "on loopback" if address.startswith("127.") else f"at {address}, open to its network"
        self._say(
            f"Ray      {where}: {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs on {len(nodes)} nodes, "
            f"ready after {time.perf_counter() - began:.1f} s"
        )

    def _slots(self, resources: dict[str, float]) -> int:
        """How many stacks a node has room for."""
        cpus = resources.get("CPU", 0) / self.cpus
        return int(min(cpus, resources.get("GPU", 0) / self.gpus) if self.gpus else cpus)

    def _probe(self, nodes: list[str]) -> dict[str, int]:
        """Free memory of each node that answers in time.

        Args:
            nodes: their ids.

        Raises:
            ValueError: forgetbench is another one there, or none.
        """
        tasks = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            probe = self._task(_about, num_returns=1, scheduling_strategy=there)
            tasks[probe.remote(_versions(), bool(self.gpus))] = node
        done, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=PROBE)
        if late:
            self._say(f"Ray      {len(late)} of {len(tasks)} nodes do not answer; perhaps others use them")
            done = done or ray.wait(late)[0]
        try:
            return {tasks[ref]: ray.get(ref) for ref in done}
        except Mismatch as error:
            raise ValueError(str(error)) from None
        except exceptions.OutOfMemoryError:
            raise ValueError(
                "Ray ended a worker that had hardly begun: the memory of its node is nearly full (Ray's limit is "
                "RAY_memory_usage_threshold)"
            ) from None
        except exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"a worker of the Ray cluster cannot run forgetbench ({last}); install there what is installed here"
            ) from None

    @property
    def _threads(self) -> int:
        return max(int(self.cpus), 1)

    def _task(self, function: Callable[..., Any], **options: Any) -> Any:
        """A function as a task; a real error is not retried, and a GPU task needs no process of its own."""
        given = {"num_returns": 2, "max_retries": RETRIES, "retry_exceptions": False, "max_calls": 0} | options
        return ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, **given)(function)


@contextmanager
def _unnamed() -> Generator[None, None, None]:
    """Meanwhile Ray does not see the command line: it would show all who reach it, passwords included."""
    named = ray_utils.get_entrypoint_name
    ray_utils.get_entrypoint_name = lambda: "forgetbench"
    try:
        yield
    finally:
        ray_utils.get_entrypoint_name = named


class Mismatch(ValueError):
    """A worker's software is not the driver's."""


def _versions() -> dict[str, str]:
    """What must be equal for results to be."""
    return {"forgetbench": version("forgetbench"), "results of version": str(NUMERICS), "torch": torch.__version__}


def _check(driver: dict[str, str]) -> None:
    own = _versions()
    differs = [f"{name} {own.get(name)} there, {driver[name]} here" for name in driver if own.get(name) != driver[name]]
    if differs:
        raise Mismatch(
            f"a worker on {os.uname().nodename} is refused: {'; '.join(differs)}; install there what is installed here"
        )


def _about(driver: dict[str, str], gpu: bool) -> int:
    """Free memory of this node, whose versions are right."""
    _check(driver)
    return free_bytes(torch.device("cuda" if gpu else "cpu"))


def _work(
    driver: dict[str, str],
    folder: str,
    threads: int,
    images: list[Any],
    relay: Any,
    asks: bool,
    given: bytes,
    *needs: Any,
) -> tuple[Any, Any]:
    """A job in a worker. It comes as bytes, so that versions are compared before anything of it is looked at."""
    _check(driver)
    if folder not in sys.path:  # a user's own strategies lie where the command was given
        sys.path.append(folder)
    job = _read(given)
    packed = _site_of(images[0])
    site = dataclasses.replace(packed, listener=_Told(relay), prune=functools.partial(_asked, relay) if asks else None)
    site.__dict__["pool"] = packed.pool  # the device has the images once
    try:
        return prepared(lambda: job(site, *needs), threads)
    finally:
        if site.device.type == "cuda":
            torch.cuda.empty_cache()


def _read(given: bytes) -> Job:
    try:
        job: Job = cloudpickle.loads(given)
    except (ImportError, AttributeError) as error:
        raise Mismatch(
            f"a worker on {os.uname().nodename} is refused: {error}; what an experiment names must be "
            "importable there, most simply from the folder the command is given in, on a file system of all nodes"
        ) from None
    _check_code(job)
    return job


def _check_code(job: Job) -> None:
    """A strategy or network of the user's own must be the same file here; its text is part of a run's key.

    Args:
        job: whose runs to look at.

    Raises:
        Mismatch: it is another one.
    """
    runs = [
        run
        for part in _arguments(job)
        for run in (part if isinstance(part, tuple) else (part,))
        if isinstance(run, Run)
    ]
    for run in runs:
        if dataclasses.replace(run).key != run.key:
            raise Mismatch(
                f"a worker on {os.uname().nodename} is refused: it has another version of the code of "
                f"{run.strategy_name!r} or of the network; give both the same files"
            )


def _arguments(job: Any) -> list[Any]:
    """Of a `partial` of a `partial` ..."""
    if not isinstance(job, functools.partial):
        return []
    return [*job.args, *(deeper for each in (job.func, *job.args) for deeper in _arguments(each))]


def _packed(site: Site) -> dict[str, Any]:
    """What jobs train on, with images as arrays, which workers of a node share."""
    distinct = list({id(images): images for images in site.tasks}.values())
    sets = [
        {f.name: getattr(images, f.name) for f in dataclasses.fields(images)}
        | {part: getattr(images, part).cpu().numpy() for part in PARTS}
        for images in distinct
    ]
    places = [next(i for i, each in enumerate(distinct) if each is images) for images in site.tasks]
    return {"scenario": site.scenario, "sets": sets, "places": places, "device": str(site.device)}


@functools.lru_cache(maxsize=1)
def _site_of(reference: Any) -> Site:
    """The site of an execution, made once a worker."""
    packed = ray.get(reference)
    # Copies: Ray's memory cannot be written to, and a strategy of the user's own might.
    sets = [ImageSet(**each | {part: torch.tensor(each[part]) for part in PARTS}) for each in packed["sets"]]
    tasks = [sets[i] for i in packed["places"]]
    site = Site(packed["scenario"], tasks, torch.device(packed["device"]), Silent())
    site.load()
    return site


def _settled(reference: Any, hands: ThreadPoolExecutor) -> Future[Any]:
    """What a task tells, or that its workers died, in a thread in which one may take one's time."""
    settled: Future[Any] = Future()

    def settle(done: Future[Any]) -> None:
        if settled.cancelled():
            return
        try:
            settled.set_result(done.result())
        except exceptions.OutOfMemoryError:
            settled.set_exception(LostForMemory("memory of its node ran out, and Ray ended its worker"))
        except exceptions.WorkerCrashedError:
            settled.set_exception(LostWorkers(f"its worker died {RETRIES + 1} times, perhaps for want of memory"))
        except DEAD as error:
            settled.set_exception(
                Lost(f"what it ran on, or what it needed, was lost for good ({type(error).__name__})")
            )
        except exceptions.RayTaskError as error:
            settled.set_exception(error.cause if isinstance(error.cause, Mismatch) else error)
        except BaseException as error:  # whoever waits for it gets it
            settled.set_exception(error)

    def arrived(done: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            hands.submit(settle, done)

    reference.future().add_done_callback(arrived)
    return settled


# Progress, and questions, between workers and the driver


class _Relay:
    """An actor that keeps what workers say until the driver asks for it, and questions until the driver answers."""

    def __init__(self) -> None:
        self._said: list[tuple[str, tuple[Any, ...]]] = []
        self._answers: list[asyncio.Future[list[bool]]] = []

    async def say(self, what: str, *about: Any) -> None:
        """Note what a worker says."""
        self._said.append((what, about))

    async def ask(self, *question: Any) -> list[bool]:
        """Wait for the driver's answer."""
        answer: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._said.append(("prune", (len(self._answers) - 1, *question)))
        return await answer

    async def answer(self, number: int, given_up: list[bool]) -> None:
        """Give the driver's answer."""
        self._answers[number].set_result(given_up)

    async def heard(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What was said since the last time."""
        said, self._said = self._said, []
        return said


def _relay() -> Any:
    """On the driver's node: when that dies, nobody listens any more."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)(_Relay).remote()


class _Told(Silent):
    """A worker's listener: everything goes to the driver, each time with the stack it is about."""

    def __init__(self, relay: Any) -> None:
        self._relay, self._stack = relay, (0, 0, "")

    def stack_started(self, number: int, runs: int, title: str) -> None:
        self._stack = number, runs, title
        self._relay.say.remote("stack_started", *self._stack)

    def epoch_done(self, runs: int, task: int, tasks: int, epoch: int, epochs: int, loss: float) -> None:
        self._relay.say.remote("stack_started", *self._stack)
        self._relay.say.remote("epoch_done", runs, task, tasks, epoch, epochs, loss)

    def consolidating(self, task: int, done: int, total: int) -> None:
        self._relay.say.remote("stack_started", *self._stack)
        self._relay.say.remote("consolidating", task, done, total)


def _asked(relay: Any, task: int, runs: tuple[Run, ...], accuracy: NDArray[np.float64]) -> list[bool]:
    """A worker's `Prune`: the driver knows."""
    answer: list[bool] = ray.get(relay.ask.remote(task, runs, accuracy))
    return answer


@contextmanager
def _listening(relay: Any, site: Site) -> Generator[None, None, None]:
    """While workers are at it, pass on what they say."""
    over, errors = threading.Event(), list[Exception]()

    def listen() -> None:
        ended = False
        while not ended:
            ended = over.wait(POLL)
            for what, about in ray.get(relay.heard.remote()):
                try:
                    if what != "prune":
                        getattr(site.listener, what)(*about)
                    elif site.prune:
                        number, *question = about
                        relay.answer.remote(number, site.prune(*question))
                except Exception as error:  # who hears of progress may be gone; a worker that asks waits for its answer
                    errors.append(error)
                    if what == "prune":
                        relay.answer.remote(number, [False] * len(question[1]))

    thread = threading.Thread(target=listen, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        ray.kill(relay)
    if errors:
        raise errors[0]
