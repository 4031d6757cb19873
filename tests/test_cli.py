"""The command: what it answers to everything that can be wrong, and one small experiment from start to end."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy import make_url
from typer.main import get_command

from benchmark import cli, experiment, listing, schedule, server, tracking
from benchmark.config import TrainTable
from benchmark.errors import Explained
from benchmark.recipe import Recipe
from benchmark.sources import IDX_FILES
from strategies import Strategy, registry
from strategies.base import option

GOOD = """
name = "trial"
scenario = { name = "permuted-digits", tasks = 2 }
seeds = 1
[train]
epochs = 1
lr = 1e-2
batch_size = 32
[[strategy]]
name = "naive"
[[strategy]]
name = "ewc"
lam = 10
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams without frames and line breaks, which depend on the width of the terminal."""
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", self.out + self.err).split())


Command = Callable[..., Done]


@pytest.fixture
def forgetbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command in this process, from a folder of its own; an error it does not explain is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORGETBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORGETBENCH_DATA", raising=False)

    def command(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["forgetbench", *args])
        status: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        return Done(status, *capsys.readouterr())

    return command


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything begins to train."""

    def execute(*args: object, **kwargs: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(schedule, "execute", execute)


@pytest.fixture
def closed() -> str:
    """Address of a port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def a_port(address: str) -> str:
    return address.rpartition(":")[2]


Served = list[list[str]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Commands of servers that would have been started, and answered at once."""
    commands: Served = []

    def serve(command: list[str], port: int, ready: Callable[[], None]) -> int:
        commands.append(command)
        ready()
        return 0

    monkeypatch.setattr(server, "serve", serve)
    return commands


def assert_one_message(done: Done, *parts: str) -> None:
    assert done.status not in {0, None}
    assert "Traceback" not in done.text and "a bug of forgetbench" not in done.text
    assert len(re.findall(r"forgetbench: |Error:? ", done.text)) == 1
    for part in parts:
        assert part in done.text


# Bad input

OFFLINE = ("run", "permuted-digits", "--offline")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("run", "permuted-digit", "--offline"),
            "no preset and no file 'permuted-digit'; did you mean 'permuted-digits'?",
        ),
        (("run", "nowhere.toml", "--offline"), "no preset and no file 'nowhere.toml' (forgetbench list presets)"),
        (("study", "nope", "--resume", "--new"), "--resume continues a study, --new starts another: give one of them"),
        (("study", "nope", "--offline"), "no preset and no file 'nope' (forgetbench list studies)"),
        ((*OFFLINE, 'strategy=[{name="ewcc"}]'), "strategy.0.name: unknown strategy 'ewcc'; did you mean 'ewc'?"),
        ((*OFFLINE, "scenario=permuted"), "scenario: unknown scenario 'permuted'; did you mean 'permuted-mnist'?"),
        ((*OFFLINE, "scenario.name=[1]"), "scenario: "),
        ((*OFFLINE, "model=mpl"), "model: unknown model 'mpl'; did you mean 'mlp'? (forgetbench list models)"),
        (
            (*OFFLINE, "model={name='mlp', width=[9]}"),
            "model: model 'mlp': unknown option 'width'; did you mean 'widths'?",
        ),
        ((*OFFLINE, "train.epoch=3"), "train.epoch: unknown key; did you mean 'epochs'?"),
        ((*OFFLINE, "colour=red"), "colour: unknown key; known: name, scenario, model, seeds, train, strategy"),
        ((*OFFLINE, "strategy.1.lam=-1"), "strategy.1.lam: expected greater than or equal to 0, got -1"),
        ((*OFFLINE, "train.epochs=0"), "train.epochs: expected greater than or equal to 1, got 0"),
        ((*OFFLINE, "seeds=[]"), "seeds: expected a count >= 1 or a list of distinct whole numbers >= 0, got []"),
        ((*OFFLINE, "seeds=0"), "seeds: expected a count >= 1"),
        ((*OFFLINE, "train.epochs"), "override 'train.epochs': expected KEY=VALUE, such as train.epochs=2"),
        ((*OFFLINE, "--device", "tpu"), "unknown device 'tpu': expected auto, cpu, cuda or cuda:N"),
        ((*OFFLINE, "--device", "cuda:99"), "device 'cuda:99' is not there"),
        ((*OFFLINE, "--device", "cpu:"), "unknown device 'cpu:': expected auto, cpu, cuda or cuda:N"),
        ((*OFFLINE, "--max-stack", "0"), "--max-stack"),
        ((*OFFLINE, "--fast"), "No such option: --fast"),
        (("run",), "Missing argument"),
        (("train",), "No such command 'train'"),
        (("list", "networks"), "'networks' is not one of"),
        (("check", "ewcc"), "unknown strategy 'ewcc'; did you mean 'ewc'?"),
        (("check", "shlex"), "a module 'shlex' is there: name its class too, 'shlex:Class'"),
        (("run", "lambda-permuted-digits"), "is a study: forgetbench study lambda-permuted-digits"),
        (("ui",), "no results in out"),
        (("sync",), "no results in out"),
        (("data", "fetch", "mnis"), "unknown image set 'mnis'; did you mean 'mnist'?"),
        (("data", "verify", "mnis"), "unknown image set 'mnis'; did you mean 'mnist'?"),
        (("data", "verify", "mnist"), "not in the cache"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_bad_input_is_answered_with_one_message(
    forgetbench: Command, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    assert_one_message(forgetbench(*args), message)
    assert not list(tmp_path.glob("out/*/*.csv"))


def test_all_errors_of_a_file_are_said_at_once(forgetbench: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(
        GOOD.replace("seeds = 1", "seeds = []").replace("lam", "lamb").replace("epochs = 1", "epochs = 0")
    )
    done = forgetbench("run", "bad.toml", "--offline")
    assert_one_message(done, "3 errors in the experiment", "seeds: ", "train.epochs: ", "strategy.1.lamb: unknown key; did you mean 'lam'?")  # fmt: skip
    assert len(done.err.splitlines()) == 4 and done.out == ""


def test_a_syntax_error_in_a_file_is_said_with_its_place(forgetbench: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = \n")
    done = forgetbench("run", "bad.toml", "--offline")
    assert_one_message(done, "bad.toml is not valid TOML", "line 1")
    assert len(done.err.splitlines()) == 1


@pytest.mark.usefixtures("no_training")
def test_a_data_folder_without_the_files_is_said_with_what_was_looked_for(forgetbench: Command, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    done = forgetbench("run", "mnist-fashion", "--offline", "--data-dir", "images")
    assert_one_message(done, "mnist: no MNIST/raw/", "no mnist.npz in", "data folder images", "permuted-digits")


@pytest.mark.usefixtures("no_training")
def test_a_truncated_file_in_a_data_folder_is_named(forgetbench: Command, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in IDX_FILES:
        (folder / name).write_bytes(b"\x00\x00\x08\x03 and no more")
    done = forgetbench("run", "mnist-fashion", "--offline", "--data-dir", "images")
    assert_one_message(done, f"{IDX_FILES[0]} is corrupt or truncated: expected MD5", "delete it")


@pytest.mark.parametrize("tracking", [(), ("--offline",)])
@pytest.mark.usefixtures("no_training")
def test_an_output_folder_that_is_a_file_is_said_with_what_to_do(
    forgetbench: Command, tmp_path: Path, tracking: tuple[str, ...]
) -> None:
    (tmp_path / "out").write_text("not a folder")
    assert_one_message(forgetbench("run", "permuted-digits", *tracking), "cannot write to out", "choose another --out")
    assert (tmp_path / "out").read_text() == "not a folder"


@pytest.mark.usefixtures("no_training")
def test_a_tracking_server_that_does_not_answer_is_said_before_training(forgetbench: Command, closed: str) -> None:
    done = forgetbench("run", "permuted-digits", "--tracking-uri", closed.replace("//", "//me:secret@"))
    assert_one_message(
        done, "the tracking server http://***@127.0.0.1", "does not answer", "--offline", "forgetbench sync"
    )
    assert "secret" not in done.text


@pytest.mark.usefixtures("no_training")
def test_a_tracking_address_that_is_none_is_said_before_training(forgetbench: Command) -> None:
    assert_one_message(
        forgetbench("run", "permuted-digits", "--tracking-uri", "http://127.0.0.1:port"), "127.0.0.1:port"
    )


def test_an_error_that_is_ours_is_not_made_to_look_like_the_users(
    forgetbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("this cannot happen")

    monkeypatch.setattr(schedule, "execute", broken)
    done = forgetbench(*OFFLINE, "seeds=1")
    assert done.status == 1
    assert "unexpected RuntimeError: this cannot happen (a bug of forgetbench; --debug shows where)" in done.text
    with pytest.raises(RuntimeError, match="this cannot happen"):
        forgetbench(*OFFLINE, "seeds=1", "--debug")


def test_debug_shows_where_an_error_came_from(forgetbench: Command) -> None:
    with pytest.raises(ValueError, match="unknown strategy"):
        forgetbench("run", "permuted-digits", "strategy.0.name=ewcc", "--debug")


def test_an_interrupted_command_says_that_nothing_finished_is_lost(
    forgetbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schedule, "execute", interrupted)
    done = forgetbench(*OFFLINE, "seeds=1")
    assert done.status == 130
    assert "interrupted; finished runs are kept, the same command continues" in done.err
    study = forgetbench("study", "lambda-permuted-digits", "--offline")
    assert study.status == 130
    assert "interrupted; finished runs are kept, the same command with --resume continues" in study.err


# Help and lists


@pytest.mark.parametrize(
    "command", [(), ("run",), ("list",), ("ui",), ("sync",), ("data",), ("data", "fetch"), ("data", "verify")]
)
def test_the_help_of_every_command_has_an_example_of_it(forgetbench: Command, command: tuple[str, ...]) -> None:
    done = forgetbench(*command, "--help")
    assert done.status == 0
    assert f"Example: {' '.join(('forgetbench', *command))} " in done.text
    assert forgetbench(*command, "-h") == done


def test_the_version_is_that_of_the_package(forgetbench: Command) -> None:
    assert forgetbench("--version") == Done(0, f"forgetbench {version('forgetbench')}\n", "")


def test_a_study_takes_every_option_that_a_run_takes() -> None:
    run, study = (
        {option for parameter in get_command(cli.app).commands[name].params for option in parameter.opts}
        for name in ("run", "study")
    )
    assert run <= study and "--max-stack" in run


def test_an_error_that_explains_itself_is_no_bug_wherever_it_was_made(
    forgetbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TheirsError(Explained):
        """Of a package of somebody else's."""

    def refuse(what: str) -> None:
        raise TheirsError(f"{what}: expected this, got that")

    monkeypatch.setattr(listing, "table", refuse)
    assert forgetbench("list", "data") == Done(2, "", "forgetbench: data: expected this, got that\n")


def test_every_command_has_the_option_that_errors_advise() -> None:
    group = get_command(cli.app)
    for name, command in {**group.commands, **group.commands["data"].commands}.items():
        if name != "data":
            assert "--debug" in {option for parameter in command.params for option in parameter.opts}, name


def test_no_command_is_without_a_test_of_its_help() -> None:
    assert {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback} <= {
        "run", "list", "ui", "sync", "study", "report", "check",
    }  # fmt: skip


@pytest.mark.parametrize("args", [("--help",), ("run", "--help"), ("data", "--help"), ("run",)])
def test_help_imports_nothing_slow(args: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom benchmark import cli\nsys.argv[0] = 'forgetbench'\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    print('loaded', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split("loaded ")[-1].split())
    assert "benchmark.cli" in loaded
    assert not loaded & {"torch", "mlflow", "numpy", "pandas", "matplotlib"}


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("strategies", ("naive", "l2", "ewc", "lam", "estimator")),
        ("scenarios", ("mnist-fashion", "permuted-digits", "[")),
        ("models", ("mlp-bn",)),
        ("presets", ("mnist-fashion", "notebook", "permuted-digits")),
        ("data", ("mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "digits")),
    ],
)
def test_everything_a_file_can_name_is_listed(forgetbench: Command, what: str, names: tuple[str, ...]) -> None:
    done = forgetbench("list", what)
    assert done.status == 0
    for name in names:
        assert name in done.out


def test_what_looks_like_markup_is_listed_as_it_is_written(
    forgetbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Marked(Strategy):
        """A [bold] claim: \\[x]."""

        mode: str = option("[red]", doc="one of [red], [blue] \\")

    monkeypatch.setitem(registry.BUILT_IN, "marked", Marked)
    out = " ".join(forgetbench("list", "strategies").out.split())
    assert "marked A [bold] claim: \\[x]. mode [red] one of [red], [blue] \\" in out


def test_the_keys_of_training_are_listed_with_defaults_and_what_they_do(forgetbench: Command) -> None:
    lines = {line.split()[0]: " ".join(line.split()) for line in forgetbench("list", "train").out.splitlines() if line}
    assert TrainTable.model_fields.keys() == listing.attributes(Recipe).keys() <= lines.keys()
    assert lines["lr"] == "lr 0.0001 learning rate." and lines["epochs"].startswith("epochs 4 passes over")
    assert lines["optimizer_state"].endswith("fresh optimiser. reset, keep")


def test_a_listed_example_of_a_scenario_can_be_copied(forgetbench: Command) -> None:
    assert '["a", "b", ...]' in forgetbench("list", "scenarios").out


def test_digits_can_be_fetched_and_verified_anywhere(forgetbench: Command) -> None:
    assert "digits: 1437 training and 360 test images" in forgetbench("data", "fetch", "digits").out
    assert "digits: comes with scikit-learn" in forgetbench("data", "verify").out


def test_of_a_folder_without_names_what_is_there_is_verified(forgetbench: Command, tmp_path: Path) -> None:
    (tmp_path / "images" / "FashionMNIST" / "raw").mkdir(parents=True)
    done = forgetbench("data", "verify", "--data-dir", "images")
    assert_one_message(done, "fashion-mnist: images/FashionMNIST/raw/train-images-idx3-ubyte is missing")


# ui


def test_the_ui_of_a_tracking_server_is_its_own(forgetbench: Command) -> None:
    done = forgetbench("ui", "--tracking-uri", "https://me:secret@mlflow.example.org")
    assert done.status == 0
    assert "https://***@mlflow.example.org" in done.text and "secret" not in done.text


# An experiment from start to end, with the real command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A folder with a small experiment that ran, and what the command said."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "trial.toml").write_text(GOOD)
    command = [str(Path(sysconfig.get_path("scripts")) / "forgetbench"), "run", "trial.toml", "--device", "cpu"]
    env = {**os.environ, "COLUMNS": "200", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return folder, Done(done.returncode, done.stdout, done.stderr)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_ends_with_the_table_and_the_next_command(finished: tuple[Path, Done]) -> None:
    folder, done = finished
    assert done.status == 0, done.err
    assert "trial: permuted-digits, 2 strategies x 1 seed on cpu" in done.text
    assert "2 runs in " in done.text and "the first task trained once a seed (1)" in done.text
    for row in table(folder / "out" / "trial" / "runs.csv"):
        shown = next(line for line in done.out.splitlines() if line.startswith(f"{row['strategy']} "))
        assert f"{100 * float(row['average_accuracy']):.1f}" in shown
    assert "MLflow   forgetbench ui" in done.out


def test_the_tables_hold_every_run_and_cell(finished: tuple[Path, Done]) -> None:
    folder, _ = finished
    runs, cells = (table(folder / "out" / "trial" / f"{name}.csv") for name in ("runs", "accuracy"))
    assert sorted(row["strategy"] for row in runs) == ["ewc[lam=10]", "naive"]
    assert {row["status"] for row in runs} == {"finished"}
    assert len(cells) == 2 * 3 * 2
    naive, ewc = ([float(c["accuracy"]) for c in cells if c["strategy"] == s] for s in ("naive", "ewc[lam=10]"))
    assert naive[:4] == ewc[:4]  # paired: the same before and after the first task
    assert naive[2] > 0.5  # it learned something


def test_mlflow_holds_what_the_tables_hold(finished: tuple[Path, Done]) -> None:
    folder, _ = finished
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("trial")
    assert experiment is not None
    tracked = {r.data.tags["forgetbench.kind"]: r for r in client.search_runs([experiment.experiment_id])}
    assert set(tracked) == {"run", "overview"}
    found = client.search_runs([experiment.experiment_id], "tags.`forgetbench.kind` = 'run'")
    rows = {row["run_key"]: row for row in table(folder / "out" / "trial" / "runs.csv")}
    assert {r.data.tags["forgetbench.run_key"] for r in found} == set(rows)
    for r in found:
        row = rows[r.data.tags["forgetbench.run_key"]]
        assert r.data.params["strategy"] == row["strategy"]
        assert r.data.metrics["average_accuracy"] == float(row["average_accuracy"])
    artifacts = {f.path for f in client.list_artifacts(tracked["overview"].info.run_id)}
    assert {"runs.csv", "accuracy.csv", "result_table.md", "figures"} <= artifacts


@pytest.mark.usefixtures("no_training")
def test_the_same_command_again_trains_nothing_and_delivers_nothing_twice(
    finished: tuple[Path, Done], forgetbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    monkeypatch.setattr(schedule, "execute", lambda plan, *args, **kwargs: iter([()] * plan.runs))
    before = (folder / "out" / "trial" / "runs.csv").read_bytes()
    done = forgetbench("run", "trial.toml", "--device", "cpu")
    assert done.status == 0
    assert "2 of 2 runs are finished already; they are not run again" in done.text
    assert (folder / "out" / "trial" / "runs.csv").read_bytes() == before
    assert "trial: 0 of 2 runs delivered, 2 were there" in forgetbench("sync").text


def test_results_kept_offline_are_delivered_by_sync(
    finished: tuple[Path, Done], forgetbench: Command, tmp_path: Path
) -> None:
    folder, _ = finished
    uri = f"sqlite:///{folder / 'out' / 'mlflow.db'}"  # creating a database takes seconds
    (tmp_path / "trial.toml").write_text(GOOD)
    run = forgetbench("run", "trial.toml", "name=kept", 'strategy=[{name="l2"}]', "--offline", "--device", "cpu")
    assert run.status == 0 and "not delivered; forgetbench sync" in run.text
    assert not (tmp_path / "out" / "mlflow.db").exists()
    assert "kept: 1 of 1 runs delivered, 0 were there" in forgetbench("sync", "--tracking-uri", uri).text
    assert "kept: 0 of 1 runs delivered, 1 were there" in forgetbench("sync", "--tracking-uri", uri).text


def test_sync_goes_on_after_a_folder_that_it_cannot_read(
    finished: tuple[Path, Done], forgetbench: Command, tmp_path: Path
) -> None:
    folder, _ = finished
    uri = f"sqlite:///{folder / 'out' / 'mlflow.db'}"
    (tmp_path / "trial.toml").write_text(GOOD)
    run = forgetbench("run", "trial.toml", "name=well", 'strategy=[{name="l2"}]', "--offline", "--device", "cpu")
    assert run.status == 0
    damaged = tmp_path / "out" / "damaged" / "runs.csv"
    damaged.parent.mkdir()
    damaged.write_bytes(b"run_key\n\xff\xff\n")
    done = forgetbench("sync", "--tracking-uri", uri)
    assert done.status == 1 and "damaged" in done.text and "well: 1 of 1 runs delivered" in done.text


def test_sync_goes_on_after_a_folder_that_mlflow_or_the_disk_does_not_take(
    finished: tuple[Path, Done], forgetbench: Command, tmp_path: Path
) -> None:
    folder, _ = finished
    uri = f"sqlite:///{folder / 'out' / 'mlflow.db'}"
    (tmp_path / "trial.toml").write_text(GOOD)
    run = ("run", "trial.toml", 'strategy=[{name="l2"}]', "--offline", "--device", "cpu")
    for name in ("deleted", "elsewhere", "last"):
        assert forgetbench(*run, f"name={name}").status == 0
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment("deleted"))
    (tmp_path / "out" / "mlartifacts").mkdir()
    (tmp_path / "out" / "mlartifacts" / "elsewhere").touch()
    done = forgetbench("sync", "--tracking-uri", uri)
    assert done.status == 1 and "last: 1 of 1 runs delivered" in done.out
    said = [line.removeprefix("forgetbench: ") for line in done.err.splitlines()]
    assert [line.split(":")[0] for line in said] == ["deleted", "elsewhere"]
    assert "'deleted' was deleted: restore it" in said[0] and "cannot write to out/mlartifacts/elsewhere" in said[1]


@pytest.mark.usefixtures("no_training")
def test_sync_goes_on_after_an_error_that_is_ours(
    finished: tuple[Path, Done], forgetbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished[0] / "out" / "trial", tmp_path / "out" / name)

    def broken(folder: Path, *args: object) -> tuple[int, int]:
        if folder.name == "one":
            raise RuntimeError("this cannot happen")
        return 0, 2

    monkeypatch.setattr(experiment, "sync", broken)
    done = forgetbench("sync")
    assert done.status == 1 and "two: 0 of 2 runs delivered" in done.out
    assert "one: unexpected RuntimeError: this cannot happen (a bug of forgetbench; --debug shows where)" in done.err
    with pytest.raises(RuntimeError, match="this cannot happen"):
        forgetbench("sync", "--debug")


def test_a_server_that_is_down_is_said_once_whatever_is_to_be_delivered(
    finished: tuple[Path, Done], forgetbench: Command, closed: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(finished[0] / "out" / "trial", tmp_path / "out" / name)
    done = forgetbench("sync", "--tracking-uri", closed)
    assert done.status == 1 and done.err.startswith("forgetbench: one, two: the tracking server ")
    assert len(done.err.splitlines()) == 1


def test_an_address_that_no_ui_can_be_opened_on_shows_no_password(forgetbench: Command, closed: str) -> None:
    done = forgetbench("ui", "--tracking-uri", "postgre://me:hunter2@db.example.org/runs", "--port", a_port(closed))
    assert done.status == 2 and "hunter2" not in done.text


def test_the_ui_listens_on_loopback_alone(
    finished: tuple[Path, Done], forgetbench: Command, closed: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    assert f"MLflow UI on {closed} " in forgetbench("ui", "--port", a_port(closed)).text
    (command,) = served
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == a_port(closed)
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{folder / 'out' / 'mlflow.db'}"


@pytest.mark.usefixtures("no_training")
def test_the_ui_finds_a_database_whose_path_means_something_in_a_url(
    forgetbench: Command, closed: str, served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking, "links", lambda uri: [])
    (tmp_path / "50% ?").mkdir()
    (tmp_path / "50% ?" / "mlflow.db").touch()
    assert forgetbench("ui", "--out", "50% ?", "--port", a_port(closed)).status == 0
    (command,) = served
    uri = command[command.index("--backend-store-uri") + 1]
    assert make_url(uri).database == str(tmp_path / "50% ?" / "mlflow.db")


@pytest.mark.usefixtures("no_training")
def test_a_port_that_is_taken_is_one_message_and_no_address(
    forgetbench: Command, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = forgetbench("ui", "--port", str(other.getsockname()[1]))
    assert done.status == 1 and not served and "http://" not in done.text
    assert_one_message(done, "Address already in use); choose another with --port")


def test_addresses_are_said_once_the_server_answers_and_its_end_is_told(
    closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    code = (
        "import http.server, sys, time; time.sleep(0.5); "
        f"http.server.HTTPServer(('127.0.0.1', {a_port(closed)}), http.server.SimpleHTTPRequestHandler).handle_request(); "
        "sys.exit(3)"
    )
    ended = server.serve([sys.executable, "-c", code], int(a_port(closed)), lambda: asked.append(True))
    assert ended == 3 and asked == [True]
    assert server.serve([sys.executable, "-c", "raise SystemExit(4)"], int(a_port(closed)), asked.clear) == 4 and asked


def test_the_command_that_is_suggested_shows_no_password(
    finished: tuple[Path, Done], forgetbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "_tracker", lambda uri, out, name: None)
    monkeypatch.setattr(schedule, "execute", lambda *args, **kwargs: iter(()))
    done = forgetbench("run", "trial.toml", "--device", "cpu", "--tracking-uri", "https://me:secret@mlflow.example.org")
    assert done.status == 0 and "mlflow.example.org" in done.text
    assert "secret" not in done.text


def test_results_that_are_damaged_are_trained_again_and_no_reason_to_fail(
    finished: tuple[Path, Done], forgetbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = finished
    (tmp_path / "out" / "trial").mkdir(parents=True)
    (tmp_path / "trial.toml").write_text(GOOD)
    for name in ("runs.csv", "accuracy.csv"):
        text = (folder / "out" / "trial" / name).read_text()
        (tmp_path / "out" / "trial" / name).write_text(text[: len(text) * 2 // 3])
    planned: list[int] = []

    def execute(plan: Any, *args: object, **kwargs: object) -> None:
        planned.append(plan.runs)
        raise KeyboardInterrupt

    monkeypatch.setattr(schedule, "execute", execute)
    assert forgetbench("run", "trial.toml", "--offline", "--device", "cpu").status != 0
    assert planned in ([1], [2])


def test_a_report_of_what_was_tuned_on_test_says_so_in_every_table_and_figure(
    forgetbench: Command, tmp_path: Path
) -> None:
    small = ["study.trials=2", "study.batch=2", "study.protocol=test-oracle", "study.test_seeds=2", "train.epochs=1"]
    study = forgetbench("study", "lambda-permuted-digits", *small, "scenario.tasks=2", "--device", "cpu")
    assert study.status == 0, study.text
    assert "report   forgetbench report --study lambda-permuted-digits" in study.out
    report = forgetbench("report", "--study", "lambda-permuted-digits", "-o", "report")
    assert report.status == 0, report.text
    folder = tmp_path / "report"
    text = (folder / "report.md").read_text()
    assert text.count("TUNED ON TEST") > 12 and "fresh seeds" not in text
    said = ("tuned_on_test", "TUNED ON TEST", "test-oracle")
    for path in [*folder.rglob("*.tex"), *folder.rglob("*.csv")]:
        assert any(words in path.read_text() for words in said), path


def test_another_study_of_a_name_is_continued_by_its_own(forgetbench: Command, tmp_path: Path) -> None:
    small = ["study.trials=2", "study.batch=2", "study.test_seeds=2", "train.epochs=1", "scenario.tasks=2"]
    small += ["study.protocol=['validation', 'test-oracle']"]
    options = ["--device", "cpu", "--offline"]
    first = forgetbench("study", "lambda-permuted-digits", *small, *options)
    assert first.status == 0
    assert "not delivered; the same command with --resume and without --offline delivers" in first.text
    again = forgetbench("study", "lambda-permuted-digits", *small, *options, "--new")
    assert again.status == 0 and "name=lambda-permuted-digits-2 --resume continues it" in again.text
    own = "name=lambda-permuted-digits-2"
    continued = forgetbench("study", "lambda-permuted-digits", own, *small, "study.trials=3", *options, "--resume")
    assert continued.status == 0 and continued.text.count("3 of 3 trials") == 4
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        f"lambda-permuted-digits{number}-{kind}"
        for number in ("", "-2")
        for kind in ("validation", "test-oracle", "compared")
    }


def test_several_protocols_end_with_what_each_chose_on_common_ground(forgetbench: Command, tmp_path: Path) -> None:
    small = ["study.trials=2", "study.batch=2", "study.test_seeds=2", "train.epochs=1", "scenario.tasks=4"]
    small += ["study.protocol=['test-oracle', 'validation', 'first-k']", "study.tasks=2"]
    done = forgetbench("study", "lambda-permuted-digits", *small, "--device", "cpu")
    assert done.status == 0, done.text
    assert "lambda-permuted-digits-compared: what each protocol chose, seeds 2, 3, on cpu" in done.text
    head = next(line for line in done.out.splitlines() if "chosen by" in line)
    assert head.split("  ")[0] == "strategy" and head.rstrip().endswith("here  against validation")
    assert done.text.count("TUNED ON TEST") >= 3  # as it begins, and under both tables
    name = "lambda-permuted-digits"
    assert {path.name for path in (tmp_path / "out").iterdir() if (path / "runs.csv").is_file()} == {
        f"{name}-test-oracle", f"{name}-validation", f"{name}-first-k", f"{name}-compared",
    }  # fmt: skip
    # The command that it ends with is one that works, and the report knows which setting saw the test set.
    (asked,) = [line for line in done.out.splitlines() if line.startswith("report ")]
    _, _, command, *options = shlex.split(asked)
    assert forgetbench(command, *options, "-o", str(tmp_path / "report")).status == 0
    assert "(test-oracle, tuned on test" in (tmp_path / "report" / "report.md").read_text()
    again = forgetbench("study", "lambda-permuted-digits", *small, "--device", "cpu", "--resume")
    assert again.status == 0 and "4 of 4 runs are finished already" in again.text
