"""What memory there is, and whether it ran out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

# How PyTorch, the CUDA driver and its libraries say it, where they raise no error of its own for it.
RAN_OUT = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory")


# Of control groups of version 2 and 1: where they lie, their limit, what is used of it, how they name cached files.
_GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Memory of this machine, or of the accelerator, that nobody uses, and that this process may.

    Args:
        device: the accelerator, or the CPU for the machine's.
        root: of the file system.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps for later counts as used
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        return min([int(lines["MemAvailable"].split()[0]) * 1024, *_left_to_groups(root)])
    except (OSError, KeyError):
        return 4 * 2**30  # not Linux: assume a small machine


def _left_to_groups(root: Path) -> Iterator[int]:
    """Bytes up to the limit of each control group this process is in, as of a container or a job of a batch system."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # a kernel without groups
    for line in lines:
        _, controller, path = line.split(":", 2)
        if controller not in _GROUPS:
            continue
        place, limit, used, prefix = _GROUPS[controller]
        innermost = root / place / path.lstrip("/")
        # In a container its own group may lie at the top, under which the host's path leads nowhere.
        for group in (innermost, *innermost.parents):
            with contextlib.suppress(OSError, ValueError):  # no group, or none with a limit
                left = int((group / limit).read_text()) - int((group / used).read_text())
                # Cached files make room, as they do in `MemAvailable`.
                cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", (group / "memory.stat").read_text(), re.M)
                yield max(left + sum(map(int, cached)), 0)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the device's memory, or the machine's, that ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(RAN_OUT.search(str(error)))
