"""How much memory there is to plan with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmark.memory import free_bytes

CPU = torch.device("cpu")
UNLIMITED = {"2": "max", "1": str(2**63 - 4096)}


def machine(root: Path, available: int, cgroup: str = "") -> Path:
    """A file system of a machine with so much memory, whose processes are in these control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable:  {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def group(folder: Path, version: str, limit: int | None, used: int, cached: int = 0) -> None:
    """A control group with a limit, or none, some of whose memory holds files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "2": ("memory.max", "memory.current", ""),
        "1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    }
    limits, uses, prefix = names[version]
    (folder / limits).write_text(f"{UNLIMITED[version] if limit is None else limit}\n")
    (folder / uses).write_text(f"{used}\n")
    counted = {
        f"{prefix}inactive_file": cached // 2,
        f"{prefix}active_file": cached - cached // 2,
        "anon": used - cached,
    }
    (folder / "memory.stat").write_text("".join(f"{k} {v}\n" for k, v in counted.items()))


def test_a_machine_without_limits_has_what_is_available(tmp_path: Path) -> None:
    assert free_bytes(CPU, machine(tmp_path, 2**30)) == 2**30


def test_a_kernel_without_groups_has_what_is_available(tmp_path: Path) -> None:
    root = machine(tmp_path, 2**34)
    (root / "proc/self/cgroup").unlink()
    assert free_bytes(CPU, root) == 2**34


def test_the_least_that_a_group_or_one_around_it_leaves_is_what_there_is(tmp_path: Path) -> None:
    root, top = machine(tmp_path, 2**34, "0::/slurm/job/step\n"), tmp_path / "sys/fs/cgroup"
    group(top / "slurm/job/step", "2", None, 2**20)
    assert free_bytes(CPU, root) == 2**34
    group(top / "slurm/job", "2", 2**30, 2**28)
    group(top / "slurm", "2", 2**33, 2**28)
    assert free_bytes(CPU, root) == 2**30 - 2**28


def test_a_containers_own_group_lies_at_the_top_whatever_the_host_calls_it(tmp_path: Path) -> None:
    root = machine(tmp_path, 2**34, "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n")
    group(tmp_path / "sys/fs/cgroup/memory", "1", None, 2**20)
    assert free_bytes(CPU, root) == 2**34
    group(tmp_path / "sys/fs/cgroup/memory", "1", 2**30, 2**28)
    assert free_bytes(CPU, root) == 2**30 - 2**28


@pytest.mark.parametrize(("version", "cgroup", "place"), [("2", "0::/", ""), ("1", "4:memory:/", "memory")])
def test_cached_files_make_room_and_a_limit_that_is_passed_leaves_nothing(
    tmp_path: Path, version: str, cgroup: str, place: str
) -> None:
    root, folder = machine(tmp_path, 2**34, cgroup), tmp_path / "sys/fs/cgroup" / place
    group(folder, version, 2**30, 2**30 - 4096, cached=2**29)
    assert free_bytes(CPU, root) == 2**29 + 4096
    group(folder, version, 2**20, 2**21)
    assert free_bytes(CPU, root) == 0


def test_where_nothing_says_so_a_small_machine_is_assumed(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path) == 4 * 2**30
