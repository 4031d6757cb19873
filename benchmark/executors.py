"""Where stacks run: in this process, a few threads side by side, or wherever else an `Executor` takes them.

Products of the sizes at hand gain little from a second core, elementwise passes even less: two stacks on a thread each
finish sooner than one stack on two threads. PyTorch releases the interpreter lock while it computes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from benchmark.harness import Site

T = TypeVar("T")

MOST_WORKERS = 4  # more would wait for the interpreter lock


class Cancelled(Exception):
    """Work was given up because the caller no longer waits for it."""


class Lost(Exception):
    """A job that no worker brought to its end, however often it was tried; the message says what became of them."""


class LostForMemory(Lost, MemoryError):
    """A job whose workers had to end because memory ran out."""


class LostWorkers(Lost):
    """A job each of whose workers died without a word, as the kernel ends them where memory runs out."""


class Room(NamedTuple):
    """What there is to train with.

    Attributes:
        workers: how many stacks at a time.
        bytes: free memory that each of them may count on.
    """

    workers: int
    bytes: int


Job = Callable[..., tuple[Any, Any]]
"""Called with the site and with what earlier jobs left -> what it leaves for later ones, and what the caller hears."""


class Ticket(NamedTuple):
    """A job that was handed in.

    Attributes:
        left: what it leaves for later jobs, as its executor knows it; hashable, and it need never come here.
        told: what the caller hears, once it is there.
    """

    left: Any
    told: Future[Any]


class Submit(Protocol):
    """Takes a job, to be run as soon as there is room."""

    def __call__(self, job: Job, *needs: Any) -> Ticket:
        """Hand a job in.

        Args:
            job: a function of the module level, or a `partial` of one: it may travel.
            needs: `Ticket.left` of jobs that have ended.
        """


class Executor(Protocol):
    """Somewhere to run jobs. These two methods are all that a further one must have."""

    def room(self, device: torch.device) -> Room | None:
        """What there is to train with on such a device; None: what this process has."""

    def open(self, site: Site, workers: int) -> AbstractContextManager[Submit]:
        """Be ready for jobs; whoever leaves the context gives up those that have not ended.

        Args:
            site: what jobs train on, and who hears of them.
            workers: how many jobs there may be at a time.
        """


def workers_for(device: torch.device) -> int:
    """How many stacks to run at a time: one on an accelerator, one a core on a small machine."""
    return 1 if device.type != "cpu" else min(torch.get_num_threads(), MOST_WORKERS)


class Local:
    """This process, on threads of its own."""

    def room(self, device: torch.device) -> Room | None:
        """What this process has."""
        return None

    @contextmanager
    def open(self, site: Site, workers: int) -> Generator[Submit, None, None]:
        """A pool of threads; for one worker on the CPU the caller's own, where a job has ended when it is handed in."""
        site.load()
        with threads(workers, site.stop, background=site.device.type != "cpu") as start:

            def submit(job: Job, *needs: Any) -> Ticket:
                pair = start(lambda: job(site, *[left.result()[0] for left in needs]))
                return Ticket(pair, then(pair, lambda ended: ended[1]))

            yield submit


HERE = Local()
"""It has no state: one will do."""


def then(future: Future[Any], fn: Callable[[Any], T]) -> Future[T]:
    """A function of what a future brings, computed where and when it arrives."""
    chained: Future[T] = Future()

    def arrived(future: Future[Any]) -> None:
        try:
            chained.set_result(fn(future.result()))
        except BaseException as error:  # whoever waits for it gets it
            chained.set_exception(error)

    future.add_done_callback(arrived)
    return chained


@contextmanager
def threads(
    workers: int, stop: threading.Event, *, background: bool = False
) -> Generator[Callable[[Callable[[], Any]], Future[Any]], None, None]:
    """A function that starts jobs on that many threads, which share the cores.

    Args:
        workers: how many threads.
        stop: set when the context is left.
        background: a thread of its own for a single worker too, so that the caller can do something else meanwhile.
    """
    cores = torch.get_num_threads()
    if workers <= 1 and not background:
        # In the caller's thread: in another, the threads of PyTorch's products would fight with those this one has.
        yield lambda job: _done(prepared(job, cores))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stack")
    try:
        yield lambda job: pool.submit(prepared, job, max(cores // workers, 1))
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(cores)  # the workers' setting is partly the whole process's


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def prepared(job: Callable[[], T], threads: int) -> T:
    """Run a job on that many threads, with denormals flushed: Adam's moments of dead pixels decay into them."""
    flushed = not sys.float_info.min / 2
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        return job()
    finally:
        torch.set_flush_denormal(flushed)
