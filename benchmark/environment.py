"""What a result was made with: versions, device, code revision, data."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmark import own_data
from benchmark.data import ImageSet
from benchmark.server import typed

PACKAGES = ("forgetbench", "torch", "torchvision", "numpy", "mlflow")


def describe(device: torch.device, tasks: Iterable[ImageSet]) -> dict[str, str]:
    """The environment by name, as text.

    Args:
        device: that trains.
        tasks: whose checksums to note.
    """
    found = {f"version.{name}": _version(name) for name in PACKAGES}
    found["version.python"] = platform.python_version()
    found["device"] = _device_name(device)
    found["cores"] = str(os.cpu_count())
    found["platform"] = platform.platform()
    found["git_revision"] = _git_revision()
    found["command"] = typed()
    return found | _checksums(tasks)


def _checksums(tasks: Iterable[ImageSet]) -> dict[str, str]:
    """Of each set by its stem; with numbers where tasks see it differently, turned say, or two stems are alike."""
    seen: dict[str, list[str]] = {}
    for images in tasks:
        checksums = seen.setdefault(own_data.stem(images.name), [])
        if images.checksum not in checksums:
            checksums.append(images.checksum)
    return {
        f"data.{name}" + (f".{i}" if len(checksums) > 1 else ""): checksum
        for name, checksums in seen.items()
        for i, checksum in enumerate(checksums, 1)
    }


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there.

    Args:
        name: what the user asked for.

    Raises:
        ValueError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N")
    kind, _, number = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(number or 0):
            raise ValueError(f"device {name!r} is not there: this machine has {count} CUDA device(s); use --device cpu")
    return torch.device(name)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"{device} of another machine"
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu ({torch.get_num_threads()} threads)"


def _git_revision() -> str:
    """Of the code that runs, if a checkout tracks it; `+` marks uncommitted changes."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie within another project's checkout
        return git("describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
