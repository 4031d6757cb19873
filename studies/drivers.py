"""Who works on a study: the process that trains a trial, and whether it is certain that this process is gone."""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

_AT_WORK: set[str] = set()  # drivers of this process


@dataclass(frozen=True)
class Driver:
    """A command at work on a study, as the attributes of its trials have it.

    Attributes:
        id: of this command alone.
        host: name of the machine, for people.
        machine: where `pid` means something: this boot of this machine, and its container.
        pid: of the process.
        began: what tells the process from a later one of the same number.
        owner: of what it delivers, see `Tracker`; empty if it delivers nothing.
    """

    id: str
    host: str
    machine: str
    pid: int
    began: str
    owner: str = ""

    @classmethod
    def here(cls, owner: str = "") -> Driver:
        """Another driver in this process.

        Args:
            owner: of what it delivers.
        """
        return cls(uuid.uuid4().hex, platform.node(), _machine(), os.getpid(), _began(os.getpid()), owner)

    @classmethod
    def of(cls, attributes: Mapping[str, str | int]) -> Driver:
        """The driver that such attributes tell of; what they lack is nobody's."""
        given = {name: str(attributes.get(name, "")) for name in ("id", "host", "machine", "began", "owner")}
        return cls(pid=int(attributes.get("pid", 0)), **given)

    def attributes(self) -> dict[str, str | int]:
        """What JSON can hold of this."""
        return asdict(self)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @contextlib.contextmanager
    def at_work(self) -> Generator[Driver, None, None]:
        """While this lasts, and its process lives, nobody takes this driver for one that is gone."""
        _AT_WORK.add(self.id)
        try:
            yield self
        finally:
            _AT_WORK.discard(self.id)

    def visible(self) -> bool:
        """Whether its process can be looked for from here."""
        return self.machine == _machine()

    def gone(self, *, rebooted: bool = False) -> bool:
        """Whether it is certain that this driver works no more; of one on another machine nothing is.

        Args:
            rebooted: believe that a machine of this one's name is this one, before it was started anew.
        """
        if not self.visible():
            return rebooted and self.host == platform.node()
        if self.pid == os.getpid():
            return self.id not in _AT_WORK
        return not _lives(self.pid) or _began(self.pid) != self.began


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()  # not Linux: there are no containers either


def _began(pid: int) -> str:
    """When a process was started, in a unit of the kernel's; empty where that is not known, and of one that ended."""
    try:
        # The name of the command, in parentheses, may contain anything.
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    # A killed process has its number until its parent asks, which in many a container nobody does.
    return "" if state in {"Z", "X"} else rest[18]


def _lives(pid: int) -> bool:
    if pid <= 0:
        return False
    if os.name == "nt":
        return True  # asking is killing there; its heartbeat will tell
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True
