"""What memory there is, and whether it ran out."""

from __future__ import annotations

import re
from pathlib import Path

import torch

# How PyTorch, the CUDA driver and its libraries say it, where they raise no error of its own for it.
RAN_OUT = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory")


def free_bytes(device: torch.device) -> int:
    """Memory of this machine, or of the accelerator, that nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps for later counts as used
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 4 * 2**30  # not Linux: assume a small machine


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the device's memory, or the machine's, that ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(RAN_OUT.search(str(error)))
