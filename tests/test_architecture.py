"""Imports go one way, and the core runs where only torch and numpy are installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("strategies", "benchmark", "studies", "reports")
ALLOWED = {
    "strategies": {"strategies"},
    "benchmark": {"strategies", "benchmark"},
    "studies": {"strategies", "benchmark", "studies"},
    "reports": {"reports", "benchmark.errors", "benchmark.intervals", "benchmark.metrics", "benchmark.server"},
}
SHELL = {"benchmark.cli", "benchmark.terminal"}  # put everything together, importing where it is used
HEAVY = {"pydantic", "typer", "rich", "mlflow", "pandas", "seaborn", "matplotlib", "optuna", "scipy", "sklearn"}
CORE = (
    "data", "own_data", "sources", "scenarios", "feed", "networks", "stackable", "models", "recipe", "learner", "harness",
    "plan", "schedule", "executors", "files", "graphs", "replay", "compiled", "unfused", "memory", "blame", "runs", "metrics", "results", "keys", "perf.gpu",
)  # fmt: skip


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package):
    for path in (ROOT / package).rglob("*.py"):
        module = f"{package}.{path.stem}"
        if module in SHELL:
            continue
        for name in imported(path):
            if name.split(".")[0] in PACKAGES:
                fits = any(name == a or name.startswith(f"{a}.") for a in ALLOWED[package])
                # `from benchmark import metrics` also names the package itself.
                assert fits or (package == "reports" and name == "benchmark"), f"{module} imports {name}"


def test_reports_never_import_torch():
    for path in (ROOT / "reports").rglob("*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imported(path)), path


@pytest.mark.parametrize("modules", ["strategies", ", ".join(f"benchmark.{name}" for name in CORE)])
def test_the_core_needs_torch_and_numpy_alone(modules):
    code = f"import sys, {modules}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_figures_and_tables_of_results_need_neither_torch_nor_mlflow():
    code = "import sys, reports.overview, reports.studies; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "reports.figures" in loaded
    assert not loaded & {"torch", "mlflow", "optuna", "benchmark.harness", "strategies", "studies"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_how_long_threads_wait_is_said_before_torch_is_loaded_unless_the_user_did(given, expected):
    code = "import sys, os, benchmark.cli; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    plain = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=plain | given
    )
    assert done.stdout.split() == [str(expected), "False"]
