"""The real command line, interrupted and resumed."""

from __future__ import annotations

import csv
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("forgetbench")
FORGETBENCH = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-m", "benchmark.cli"]
SMALL = ["scenario.tasks=3", "train.epochs=2", "train.precision=float64", "--max-stack", "2"]


def forgetbench(*arguments: str, cwd: Path, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command, ended; without room for files of more bytes than that it finds a disk that is full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return subprocess.run(
        [*FORGETBENCH, *arguments], cwd=cwd, capture_output=True, text=True, check=False, env=environment(),
        preexec_fn=limit if largest_file else None,
    )  # fmt: skip


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["run_key"] for row in rows}) == len(rows)
    return {row["run_key"]: row for row in rows}


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, once it has written its first results."""
    pipe = subprocess.PIPE
    running = subprocess.Popen(
        [*FORGETBENCH, "run", "permuted-digits", *SMALL, *arguments],
        cwd=cwd,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment(),
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    runs = cwd / "out" / "permuted-digits" / "runs.csv"
    for _ in range(6000):  # five minutes: the machine may be busy
        if runs.is_file() or running.poll() is not None:
            break
        time.sleep(0.05)
    assert runs.is_file() and running.poll() is None
    return running


def delivered(cwd: Path) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("permuted-digits")
    found = client.search_runs([experiment.experiment_id], "tags.`forgetbench.kind` = 'run'")
    assert {run.info.status for run in found} == {"FINISHED"}
    return sorted(run.data.tags["forgetbench.run_key"] for run in found)


def test_killed_in_the_middle_the_same_command_continues(tmp_path):
    undisturbed = forgetbench("run", "permuted-digits", *SMALL, "--offline", "--out", "other", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = table(tmp_path / "other" / "permuted-digits" / "runs.csv")

    running = start(tmp_path)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    kept = table(tmp_path / "out" / "permuted-digits" / "runs.csv")
    assert 0 < len(kept) < len(expected)

    again = forgetbench("run", "permuted-digits", *SMALL, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of {len(expected)} runs are finished already" in again.stdout
    found = table(tmp_path / "out" / "permuted-digits" / "runs.csv")
    assert found.keys() == expected.keys()
    for key, row in kept.items():
        assert {k: v for k, v in found[key].items() if v} == {k: v for k, v in row.items() if v}  # not run twice
    for key, row in expected.items():
        assert float(found[key]["average_accuracy"]) == pytest.approx(float(row["average_accuracy"]), abs=1e-12)
    assert delivered(tmp_path) == sorted(expected)

    nothing = forgetbench("run", "permuted-digits", *SMALL, cwd=tmp_path)
    assert nothing.returncode == 0 and "run-epochs" not in nothing.stdout
    assert delivered(tmp_path) == sorted(expected)


def test_ctrl_c_keeps_what_is_finished_and_says_so(tmp_path):
    running = start(tmp_path, "--offline")
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 130
    assert errors.strip() == "forgetbench: interrupted; finished runs are kept, the same command continues"
    assert table(tmp_path / "out" / "permuted-digits" / "runs.csv")


def test_a_run_that_diverges_is_counted_in_the_table(tmp_path):
    file = tmp_path / "big.toml"
    file.write_text(
        'name = "big"\nscenario = { name = "permuted-digits", tasks = 2 }\nseeds = 2\n[train]\nepochs = 1\nlr = 1e-3\n'
        '[[strategy]]\nname = "l2"\nlam = [1.0, 1e30]\n'
    )
    done = forgetbench("run", "big.toml", "--offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("l2[")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [("l2[lam=1]", "2", rows[0][-1]), ("l2[lam=1e+30]", "0", "2")]
    statuses = [row["status"] for row in table(tmp_path / "out" / "big" / "runs.csv").values()]
    assert sorted(statuses) == ["diverged", "diverged", "finished", "finished"]


FEW = ["scenario.tasks=2", "seeds=2", "train.epochs=1", "model=mlp", "train.precision=float64", "--max-stack", "2"]


def test_on_a_full_disk_finished_runs_are_kept_and_with_room_the_same_command_goes_on(tmp_path):
    command = ("run", "permuted-digits", *FEW, "--offline")
    undisturbed = forgetbench(*command, "--out", "other", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    there, runs = tmp_path / "other" / "permuted-digits", tmp_path / "out" / "permuted-digits" / "runs.csv"
    expected, half = table(there / "runs.csv"), (there / "accuracy.csv").stat().st_size // 2

    full = forgetbench(*command, cwd=tmp_path, largest_file=half)
    assert full.returncode == 2
    (line,) = full.stderr.splitlines()
    assert re.fullmatch(r"forgetbench: cannot write to out/permuted-digits: (File too large|No space left .*)", line)
    kept = table(runs)
    assert 0 < len(kept) < len(expected)

    again = forgetbench(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of {len(expected)} runs are finished already" in again.stdout
    found = table(runs)
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert float(found[key]["average_accuracy"]) == pytest.approx(float(row["average_accuracy"]), abs=1e-12)


def test_a_database_of_mlflow_for_which_there_is_no_room_costs_no_run_and_is_filled_later(tmp_path):
    first = forgetbench("run", "permuted-digits", *FEW, "strategy=[{name='naive'}]", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    room = (tmp_path / "out" / "mlflow.db").stat().st_size + 2**14
    full = forgetbench("run", "permuted-digits", *FEW, cwd=tmp_path, largest_file=room)
    assert (full.returncode, full.stderr) == (0, "")
    assert full.stdout.count("results stay on disk, deliver them with `forgetbench sync`") == 1
    runs = table(tmp_path / "out" / "permuted-digits" / "runs.csv")
    assert {row["status"] for row in runs.values()} == {"finished"} and len(runs) == 14
    synced = [forgetbench("sync", cwd=tmp_path).stdout for _ in range(2)]
    assert "0 of 14 runs delivered" not in synced[0] and "0 of 14 runs delivered, 14 were there" in synced[1]
    assert delivered(tmp_path) == sorted(runs)


def test_a_study_keeps_to_the_largest_stack_it_is_given(tmp_path):
    small = ["study.trials=2", "study.test_seeds=2", "scenario.tasks=2", "train.epochs=1", "--offline"]
    done = forgetbench("study", "lambda-permuted-digits", *small, "--max-stack", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = table(tmp_path / "out" / "lambda-permuted-digits" / "runs.csv")
    assert {row["stack_size"] for row in runs.values()} == {"1"} and len(runs) == 2 * (2 * 2 + 2)


def where_not_even_root_may_write_anywhere() -> list[str]:
    """Put before a command, makes of root an ordinary owner of its files."""
    if os.geteuid():
        return []
    prefix = ["setpriv", "--bounding-set", "-dac_override"]
    if not shutil.which("setpriv") or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("as root needs setpriv (util-linux), and leave to use it")
    return prefix


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("out", "run permuted-digits --offline"),
        ("out", "run permuted-digits"),
        ("out", "study lambda-permuted-digits --offline"),
        ("out/permuted-digits", "run permuted-digits --offline"),
        ("out/mlartifacts", "run permuted-digits"),
    ],
)
def test_a_folder_that_may_not_be_written_to_is_refused_in_one_line_before_anything_trains(folder, command, tmp_path):
    read_only = tmp_path / folder
    read_only.mkdir(parents=True)
    read_only.chmod(0o555)
    try:
        done = subprocess.run(
            [*where_not_even_root_may_write_anywhere(), *FORGETBENCH, *command.split()],
            cwd=tmp_path, capture_output=True, text=True, check=False, env=environment(), timeout=300,
        )  # fmt: skip
    finally:
        read_only.chmod(0o755)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"forgetbench: cannot write to {folder}") and line.endswith("; choose another --out")
    assert "Permission denied" in line and "run-epochs" not in done.stdout


OWN = """
name = "own"
scenario = { name = "split", set = "mine.npz", tasks = 3, incremental = "task", class_order = "shuffled" }
model = { name = "mlp", widths = [8] }
seeds = 2
[train]
epochs = 2
batch_size = 16
"""


def write_own(folder: Path, shift: int) -> None:
    import numpy as np

    x = (np.arange(120 * 10).reshape(120, 10) * 7 + shift) % 256
    y = np.arange(120) % 6
    np.savez(folder / "mine.npz", train_x=x.astype(np.uint8), train_y=y, test_x=x[:30].astype(np.uint8), test_y=y[:30])


def test_images_of_ones_own_are_split_and_trained_on_and_again_when_they_change(tmp_path):
    names = ("naive", "er", "joint", "frozen")
    strategies = "".join(f'[[strategy]]\nname = "{name}"\n' for name in names)
    (tmp_path / "own.toml").write_text(OWN + strategies)
    keys = []
    for shift in (0, 0, 1):
        write_own(tmp_path, shift)
        done = forgetbench("run", "own.toml", "--offline", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = table(tmp_path / "out" / "own" / "runs.csv")
        assert {(row["strategy"], row["seed"]) for row in rows.values()} == {(n, s) for n in names for s in "01"}
        assert {(row["status"], row["incremental"], row["model"]) for row in rows.values()} == {
            ("finished", "task", "mlp[widths=8]")
        }
        keys.append(set(rows))
        assert ("run-epochs" in done.stdout) == (len(keys) != 2)  # the second time there is nothing to train
    assert keys[0] == keys[1] < keys[2] and len(keys[2]) == 16


FRAGILE = """
import os
from dataclasses import dataclass
from strategies import L2


@dataclass(frozen=True)
class Fragile(L2):
    name = "fragile"

    def measure(self, model, task):
        if not os.path.exists("repaired"):
            raise KeyError("no such\\nlayer")
        return super().measure(model, task)
"""


def test_runs_that_fail_say_why_and_are_tried_again_while_the_others_go_on(tmp_path):
    (tmp_path / "mine.py").write_text(FRAGILE)
    (tmp_path / "own.toml").write_text(
        'name = "permuted-digits"\nscenario = { name = "permuted-digits", tasks = 2 }\nseeds = 2\n[train]\nepochs = 1\n'
        '[[strategy]]\nname = "naive"\n[[strategy]]\nname = "mine:Fragile"\n'
    )
    runs, why = (
        tmp_path / "out" / "permuted-digits" / "runs.csv",
        "strategy 'mine:Fragile': KeyError: 'no such\\nlayer' (mine.py, line 13)",
    )
    for _ in range(2):  # failed again is failed once
        failed = forgetbench("run", "own.toml", cwd=tmp_path)
        assert failed.returncode == 1
        last = ["2 of 4 runs failed; the same command tries them again:", f"  {why} (2 runs)"]
        assert failed.stderr.strip().splitlines() == [f"forgetbench: {last[0]}", last[1]]
        assert [line.split()[-1] for line in failed.stdout.splitlines() if line.startswith("mine:Fragile[")] == ["2"]
        assert (
            sorted((row["status"], row["reason"]) for row in table(runs).values())
            == [("failed", why)] * 2 + [("finished", "")] * 2
        )
        assert sorted(tracked(tmp_path)) == [("FAILED", why)] * 2 + [("FINISHED", "")] * 2
    (tmp_path / "repaired").touch()
    again = forgetbench("run", "own.toml", cwd=tmp_path)
    assert again.returncode == 0 and "2 of 4 runs are finished already" in again.stdout, again.stderr
    assert {row["status"] for row in table(runs).values()} == {"finished"}
    assert sorted(tracked(tmp_path)) == [("FINISHED", "")] * 4 and delivered(tmp_path) == sorted(table(runs))


def tracked(cwd: Path) -> list[tuple[str, str]]:
    """Status and reason of each run in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("permuted-digits")
    found = client.search_runs([experiment.experiment_id], "tags.`forgetbench.kind` = 'run'")
    return [(run.info.status, run.data.tags.get("forgetbench.reason", "")) for run in found]


UNTESTED = """
from dataclasses import dataclass
import os
from strategies.l2 import L2

@dataclass(frozen=True)
class Fragile(L2):
    name = "fragile"

    def measure(self, model, task):
        held_out = len(task.y) < 1437
        if os.path.exists("broken") or not (held_out or os.path.exists("repaired")):
            raise KeyError("no such layer")
        return super().measure(model, task)
"""


def test_a_study_whose_runs_fail_says_why_and_ends_with_a_status(tmp_path):
    (tmp_path / "mine.py").write_text(UNTESTED)
    (tmp_path / "own.toml").write_text(
        'name = "own"\nscenario = { name = "permuted-digits", tasks = 2 }\n[train]\nepochs = 1\n'
        "[study]\ntrials = 2\nseeds = 1\ntest_seeds = 2\n"
        '[[strategy]]\nname = "mine:Fragile"\nlam = { low = 1.0, high = 2.0 }\n'
    )
    study, why = (
        ("study", "own.toml", "--offline"),
        "  strategy 'mine:Fragile': KeyError: 'no such layer' (mine.py, line 13)",
    )
    failed = forgetbench(*study, cwd=tmp_path)
    said = "forgetbench: 2 of 2 test runs failed; the same command with --resume tries them again:"
    assert (failed.returncode, failed.stderr.strip().splitlines()) == (1, [said, f"{why} (2 runs)"])
    assert "testing the best setting" in failed.stdout and " 2, 2 failed" in failed.stdout
    (tmp_path / "repaired").touch()
    again = forgetbench(*study, "--resume", cwd=tmp_path)
    assert again.returncode == 0 and "failed" not in again.stdout + again.stderr
    (tmp_path / "broken").touch()
    nothing = forgetbench(*study, "--new", cwd=tmp_path)
    said = "forgetbench: mine:Fragile: all 2 trials failed, so no setting of it was tested; --new starts another study:"
    assert (nothing.returncode, nothing.stderr.strip().splitlines()) == (1, [said, f"{why} (2 runs)"])
    assert "testing" not in nothing.stdout and "there is no setting to test" in nothing.stdout


def test_a_folder_may_have_any_name(tmp_path):
    folder = "ü 50%/a%20b? #1"
    (tmp_path / "own.toml").write_text(
        'name = "own"\nscenario = { name = "permuted-digits", tasks = 2 }\nseeds = 2\n[train]\niterations = 3\n'
        '[[strategy]]\nname = "naive"\n[[strategy]]\nname = "l2"\n'
    )
    (tmp_path / "study.toml").write_text(
        'name = "tuned"\nscenario = { name = "permuted-digits", tasks = 2 }\n[train]\niterations = 3\n'
        "[study]\ntrials = 2\nseeds = 1\ntest_seeds = 2\n"
        '[[strategy]]\nname = "l2"\nlam = { low = 1.0, high = 2.0 }\n'
    )
    run = forgetbench("run", "own.toml", "--out", folder, cwd=tmp_path)
    study = forgetbench("study", "study.toml", "--out", folder, cwd=tmp_path)
    assert run.returncode == study.returncode == 0, run.stderr + study.stderr
    asked = next(line for line in run.stdout.splitlines() if line.startswith("MLflow "))
    assert shlex.split(asked)[1:] == ["forgetbench", "ui", "--out", folder]  # for copying
    report = forgetbench("report", "--experiment", "own", "--out", folder, cwd=tmp_path)
    assert report.returncode == 0 and (tmp_path / folder / "reports" / "own" / "report.md").is_file(), report.stderr
    assert {path.name for path in (tmp_path / folder).glob("*.db")} == {"mlflow.db", "optuna.db"}
    assert {path.name for path in tmp_path.iterdir()} == {"own.toml", "study.toml", folder.split("/")[0]}
    again = forgetbench("sync", "--out", folder, cwd=tmp_path)
    assert "own: 0 of 4 runs delivered, 4 were there" in again.stdout
