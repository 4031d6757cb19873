"""The command `forgetbench`. Thin: reads arguments, calls the library, prints. Slow imports wait until needed."""

from __future__ import annotations

import shlex
import sys
import tempfile
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from benchmark.errors import Explained

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from rich.console import Console

    from benchmark.executors import Executor
    from benchmark.experiment import Outcome
    from benchmark.session import Session
    from benchmark.tracking import Tracker
    from strategies.base import Strategy
    from studies import run as studying
    from studies.spec import Study

INTERRUPTED = 130  # the exit status of Ctrl-C, which some versions of typer report and others raise

app = typer.Typer(
    help="Continual-learning strategies compared in one stacked harness, tracked in MLflow.\n\n"
    "Example: forgetbench run permuted-digits",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Image sets: fetch and verify.\n\nExample: forgetbench data fetch mnist", no_args_is_help=True
)
app.add_typer(data_app, name="data")


class Where(StrEnum):
    """Where stacks can train."""

    local = "local"
    ray = "ray"


Out = Annotated[Path, typer.Option(help="Folder for results, the MLflow database and its artifacts.")]
Uri = Annotated[str | None, typer.Option(help="MLflow tracking URI.", show_default="sqlite:///OUT/mlflow.db")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the image files already, in torchvision's layout; also FORGETBENCH_DATA."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ExecutorName = Annotated[
    Where, typer.Option("--executor", help="Where stacks train: local, this process; ray, a cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Of a Ray cluster: auto, host:port.", show_default="start Ray on this machine"),
]
Cpus = Annotated[float, typer.Option("--cpus-per-stack", min=0.01, help="Ray: processors of a stack, and its threads.")]
Gpus = Annotated[float, typer.Option("--gpus-per-stack", min=0, help="Ray: GPUs of a stack; 0.5 puts two on one.")]
MaxStack = Annotated[int | None, typer.Option(min=1, help="Most runs a stack may hold.", show_default="by memory")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class What(StrEnum):
    """What `list` can list."""

    strategies = "strategies"
    train = "train"
    scenarios = "scenarios"
    models = "models"
    presets = "presets"
    studies = "studies"
    data = "data"


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"forgetbench {version('forgetbench')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and exit.")
    ] = False,
) -> None:
    """Options of `forgetbench` itself."""


@app.command()
def run(
    preset_or_file: Annotated[str, typer.Argument(help="Name of a preset (forgetbench list presets) or a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE ... over the file, such as train.epochs=2 seeds=5.", show_default=False),
    ] = None,
    device: Device = "auto",
    out: Out = Path("out"),
    data_dir: DataDir = None,
    tracking_uri: Uri = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not track now; `forgetbench sync` delivers later.")
    ] = False,
    max_stack: MaxStack = None,
    executor: ExecutorName = Where.local,
    ray_address: RayAddress = None,
    cpus_per_stack: Cpus = 1,
    gpus_per_stack: Gpus = 0,
    debug: Debug = False,
) -> None:
    """Run an experiment: every strategy with every seed, results in OUT/<name>/ and in MLflow.

    The same command again continues: finished runs are not run twice.

    Example: forgetbench run mnist-fashion seeds=5 train.epochs=2
    """
    console = _console()
    from benchmark import config

    chosen = config.load(preset_or_file, overrides or [])
    from benchmark import experiment
    from benchmark.session import Session
    from benchmark.terminal import Monitor, plain, result_table, titled
    from reports import overview

    say = plain(console)
    where, trains = _trains(executor, device, ray_address, cpus_per_stack, gpus_per_stack, say)
    # Before training starts: a server that does not answer should not be found out about at the end.
    tracker = None if offline else _tracker(tracking_uri, out, chosen.name)
    say(f"{titled(chosen)} on {where}")
    with Monitor(console, traces=debug) as monitor:
        session = Session(out, where, data_dir, max_stack, trains, say, monitor.planned, monitor)
        outcome = experiment.run(chosen, session, tracker=tracker, presentation=overview)
    console.print()
    console.print(result_table(*outcome.frames()))
    console.print()
    say(_tables(outcome.folder))
    if tracker and not outcome.undelivered:
        say(f"MLflow   forgetbench ui{_options(tracking_uri, out)}")
    else:
        say(f"MLflow   not delivered; forgetbench sync{_options(tracking_uri, out)}")
    if lost := outcome.failed():
        _fail(lost, 1)


@app.command()
def study(
    preset_or_file: Annotated[str, typer.Argument(help="Name of a preset (forgetbench list studies) or a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE ... over the file, such as study.trials=8.", show_default=False),
    ] = None,
    device: Device = "auto",
    out: Out = Path("out"),
    data_dir: DataDir = None,
    tracking_uri: Uri = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not track.")] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where Optuna keeps its trials: a URL, or a journal file (.journal, .log).",
            show_default="sqlite:///OUT/optuna.db",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a study of that name, or join those at it.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Start another study of that name.")] = False,
    max_stack: MaxStack = None,
    executor: ExecutorName = Where.local,
    ray_address: RayAddress = None,
    cpus_per_stack: Cpus = 1,
    gpus_per_stack: Gpus = 0,
    debug: Debug = False,
) -> None:
    """Tune strategies under a stated protocol, each with the same number of trials, and test the best of each once.

    Example: forgetbench study lambda-permuted-digits study.trials=16
    """
    if resume and new:
        _fail("--resume continues a study, --new starts another: give one of them", 2)
    _writable(out)
    console = _console()
    from studies import spec

    chosen = spec.load(preset_or_file, overrides or [])
    from benchmark.server import sqlite
    from benchmark.session import Session
    from benchmark.terminal import Monitor, comparison_table, plain, study_table
    from reports import studies as presentation
    from studies import comparison, search
    from studies import run as studying
    from studies.storage import Storage

    say = plain(console)
    where, trains = _trains(executor, device, ray_address, cpus_per_stack, gpus_per_stack, say)
    opened = Storage.of(storage or sqlite(out / "optuna.db"))
    if new and (name := search.free_name(chosen, opened)) != chosen[0].experiment.name:
        chosen = spec.load(preset_or_file, [*(overrides or []), f'name="{name}"'])
        say(f"another study of its name; name={name} --resume continues it")

    def tracker(name: str) -> Tracker | None:
        return None if offline else _tracker(tracking_uri, out, name)

    outcomes = []
    with Monitor(console, traces=debug) as monitor:
        session = Session(out, where, data_dir, max_stack, trains, say, monitor.planned, monitor)
        for each in chosen:
            say(f"{each.name}: {each.tuning.name}, {each.describe()}, on {where}")
            outcome = studying.run(
                each, session, storage=opened, tracker=tracker(each.name), presentation=presentation, resume=resume
            )
            outcomes.append(outcome)
        beside = _compared(chosen, outcomes, session, tracker)
    console.print()
    found = [outcome.answers for outcome in outcomes]
    answers = [answer for each in found for answer in each]
    console.print(study_table(answers))
    for answer in answers:
        if answer.why:
            say(answer.why)
    console.print()
    rows = comparison.rows(chosen, found, beside.records) if beside else []
    if rows:
        console.print(comparison_table(rows))
        console.print()
    for outcome in outcomes:
        say(outcome.timing())
    every: list[studying.Outcome | Outcome] = [*outcomes, *([beside] if beside else [])]
    for left in every:
        say(_tables(left.folder))
    if all(left.undelivered is None for left in every) and not offline:
        say(f"MLflow   forgetbench ui{_options(tracking_uri, out)}")
        if beside and (against := comparison.baseline_entry(rows)):
            asked = f"--experiment {beside.folder.name} --baseline {_quoted(against)}"
            say(f"report   forgetbench report {asked}{_options(tracking_uri, out)}")
        elif len(outcomes) == 1 and any(answer.tests.get("finished") for answer in answers):
            say(f"report   forgetbench report --study {outcomes[0].folder.name}{_options(tracking_uri, out)}")
    else:
        say(f"MLflow   not delivered; the same command with --resume{' and without --offline' * offline} delivers")
    say(f"trials   {_quoted(opened.name)}")
    if lost := {left.folder.name: failed for left in every if (failed := left.failed())}:
        _fail("\n".join(f"{name}: {failed}" if len(every) > 1 else failed for name, failed in lost.items()), 1)


@app.command()
def report(
    experiment: Annotated[
        list[str] | None,
        typer.Option("--experiment", help="MLflow experiment to report on; of none, the only one."),
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option("--study", help="Study to report on."),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="MLflow run id; an overview's stands for its runs."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the report, replaced as a whole.", show_default="OUT/reports/NAME"
        ),
    ] = None,
    baseline: Annotated[str, typer.Option(help="Strategy that others are compared with, paired by seed.")] = "naive",
    formats: Annotated[str, typer.Option("--format", help="Of md, tex, html, pdf: several with commas.")] = "md,tex",
    template: Annotated[
        Path | None,
        typer.Option(help="Jinja2 file that replaces or extends report.md.j2.", exists=True, dir_okay=False),
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Runs of several recipes get a section each.")
    ] = False,
    out: Out = Path("out"),
    tracking_uri: Uri = None,
    debug: Debug = False,
) -> None:
    """Write a report of tracked runs: Markdown, LaTeX tables, figures; of MLflow's data alone.

    Example: forgetbench report --experiment mnist-fashion -o paper/report
    """
    from benchmark.server import typed
    from benchmark.terminal import plain
    from reports import write
    from reports.document import build
    from reports.load import load

    wanted = write.checked(formats)
    uri = tracking_uri or _default_uri(out)
    tracked = load(uri, experiments=experiment or (), studies=study or (), ids=run or ())
    document = build(tracked, baseline=baseline, allow_mixed=allow_mixed)
    folder = output or out / "reports" / document.stem
    say = plain(_console())
    write.write(document, folder, formats=wanted, template=template, command=typed(), say=say)
    for finding in [said for section in document.sections for said in section.findings]:
        say(f"- {finding}")
    say(f"\nreport   {_quoted(folder / 'report.md')}")


@app.command("list")
def list_(what: Annotated[What, typer.Argument(help="What to list.")], debug: Debug = False) -> None:
    """List what an experiment file can name.

    Example: forgetbench list strategies
    """
    from benchmark import listing

    _console().print(listing.table(what.value))


@app.command()
def check(
    names: Annotated[list[str], typer.Argument(help="Strategies: registered names, or package.module:Class.")],
    debug: Debug = False,
) -> None:
    """Check that a strategy keeps the contract: stacks, seeds, neighbours, penalty, state, and that it does something.

    Example: forgetbench check my_package.my_module:MyStrategy
    """
    from benchmark.terminal import verdicts
    from strategies import conformance

    console = _console()
    failed = [verdicts(console, conformance.cases(cls)) for cls in [_strategy(name) for name in names]]
    sys.exit(1 if any(failed) else 0)


@app.command()
def ui(
    out: Out = Path("out"),
    tracking_uri: Uri = None,
    port: Annotated[int, typer.Option(help="Port to listen on, loopback only.")] = 5000,
    debug: Debug = False,
) -> None:
    """Open the MLflow UI on the results: http://127.0.0.1:5000.

    Example: forgetbench ui --port 5001
    """
    uri = tracking_uri or _default_uri(out)
    if uri.startswith(("http://", "https://")):
        from benchmark.server import redacted

        _console().print(f"the tracking server has its own UI: {redacted(uri)}", highlight=False)
        return
    if uri == _default_uri(out) and not (out / "mlflow.db").is_file():
        _fail(f"no results in {out} yet (forgetbench run permuted-digits)", 2)
    from benchmark import server
    from benchmark.terminal import plain

    if reason := server.taken(port):
        _fail(reason, 1)
    from benchmark import tracking

    address, links, say = f"http://127.0.0.1:{port}", tracking.links(uri), plain(_console())

    def ready() -> None:
        say(f"\nMLflow UI on {address} (Ctrl-C stops it); strategies compared in charts:")
        for name, path in links:
            say(f"  {name}: {address}{path}")
        sys.stdout.flush()

    say("the MLflow UI starts, which takes some seconds")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    sys.stdout.flush()
    if status := server.serve(command, port, ready):
        _fail(f"the MLflow UI ended with status {status}", 1)


@app.command()
def sync(
    out: Out = Path("out"),
    tracking_uri: Uri = None,
    debug: Debug = False,
) -> None:
    """Deliver results that MLflow does not have yet; what it has stays as it is.

    Example: forgetbench sync --tracking-uri http://127.0.0.1:5000
    """
    from benchmark import experiment
    from reports import overview

    folders = sorted(path.parent for path in out.glob("*/runs.csv"))
    if not folders:
        _fail(f"no results in {out} yet (forgetbench run permuted-digits)", 2)
    console, refused = _console(), dict[str, list[str]]()
    for folder in folders:
        try:
            counts = experiment.sync(folder, partial(_tracker, tracking_uri, out, folder.name), overview)
        except Exception as error:  # whatever it is, other folders have their own results
            if debug:
                raise
            refused.setdefault(_words(error), []).append(folder.name)
            continue
        if counts is None:
            said = "a study, whose command delivers it: forgetbench study ... --resume"
        else:
            new, held = counts
            said = f"{new} of {held} runs delivered, {held - new} were there"
        console.print(f"{folder.name}: {said}", highlight=False)
    if refused:
        _fail("\n".join(f"{', '.join(names)}: {why}" for why, names in refused.items()), 1)


@data_app.command("fetch")
def fetch(
    names: Annotated[list[str], typer.Argument(help="Image sets (forgetbench list data).")],
    debug: Debug = False,
) -> None:
    """Fetch image sets into the cache, trying each source in turn.

    Example: forgetbench data fetch mnist fashion-mnist
    """
    from benchmark import data
    from benchmark.terminal import plain

    for name in names:
        images = data.load(name, say=plain(_console()))
        _console().print(
            f"{name}: {len(images.train_y)} training and {len(images.test_y)} test images", highlight=False
        )


@data_app.command("verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Image sets; none: all that are there.")] = None,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Check the files on disk against the published checksums.

    Example: forgetbench data verify mnist
    """
    from benchmark import data

    for name in names or data.held(data_dir):
        _console().print(f"{name}: {data.verify(name, data_dir)}", highlight=False, soft_wrap=True)


def _strategy(name: str) -> type[Strategy]:
    """The strategy of that name.

    Raises:
        ValueError: there is none.
    """
    from benchmark.config import module_hint
    from strategies import registry

    try:
        return registry.get(name)
    except ValueError as error:
        raise ValueError(f"{error}{module_hint(name)}") from error


def _console() -> Console:
    from rich.console import Console

    # A file has no width; rich would take 80 columns and fold the table.
    # `package:tv` is a name, not a television, and brackets are a label's.
    return Console(width=None if sys.stdout.isatty() else 120, emoji=False, markup=False)


def _compared(
    chosen: list[Study],
    outcomes: list[studying.Outcome],
    session: Session,
    tracker: Callable[[str], Tracker | None],
) -> Outcome | None:
    """What several protocols chose, trained on common ground; None for one protocol, or where there is nothing to do.

    Args:
        chosen: one study a protocol.
        outcomes: of each.
        session: where and with what.
        tracker: of an experiment's name.
    """
    from benchmark import experiment
    from reports import overview
    from studies import comparison

    # Of several drivers, the one that did the last evaluation.
    several = len(chosen) > 1 and outcomes[-1].tested
    compared = comparison.experiment(chosen, [outcome.answers for outcome in outcomes]) if several else None
    if compared is None:
        return None
    seeds = ", ".join(map(str, compared.seeds))
    session.say(f"{compared.name}: what each protocol chose, seeds {seeds}, on {session.device}")
    return experiment.run(compared, session, tracker=tracker(compared.name), presentation=overview)


def _trains(
    executor: Where, device: str, address: str | None, cpus: float, gpus: float, say: Callable[[str], None]
) -> tuple[torch.device, Executor]:
    """The device that stacks train on, and what takes them there.

    Args:
        executor: where they train.
        device: as the user asked.
        address: of a Ray cluster.
        cpus: of a stack there.
        gpus: of a stack there.
        say: takes one line for each thing worth knowing.

    Raises:
        ValueError: options that contradict each other, or Ray is not installed.
    """
    from benchmark.environment import resolve_device
    from benchmark.executors import HERE

    if executor is Where.local:
        if address is not None or gpus or cpus != 1:
            raise ValueError("--ray-address, --cpus-per-stack and --gpus-per-stack are for --executor ray")
        return resolve_device(device), HERE
    import torch

    if device not in {"auto", "cuda" if gpus else "cpu"}:
        raise ValueError(f"--device {device} with --executor ray: leave it out, --gpus-per-stack decides")
    try:
        from benchmark.cluster import Ray
    except ImportError:
        raise ValueError("--executor ray needs Ray: pip install 'forgetbench[ray]'") from None
    return torch.device("cuda" if gpus else "cpu"), Ray(address, cpus, gpus, say)


def _default_uri(out: Path) -> str:
    from benchmark.server import sqlite

    return sqlite(out / "mlflow.db")


def _writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything slow.

    Raises:
        ValueError: with what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # one that is there may be somebody else's
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


def _tracker(uri: str | None, out: Path, name: str) -> Tracker:
    from benchmark.tracking import Tracker

    _writable(out)
    artifacts = out / "mlartifacts" / name
    _writable(artifacts)
    return Tracker(uri or _default_uri(out), name, artifacts)


def _tables(folder: Path) -> str:
    return f"tables   {_quoted(folder / 'runs.csv')}, {_quoted(folder / 'accuracy.csv')}"


def _options(uri: str | None, out: Path) -> str:
    """What a command needs to find these results, for copying."""
    from benchmark.server import redacted

    shown = f" --out {_quoted(out)}" if out != Path("out") else ""
    return shown + (f" --tracking-uri {_quoted(redacted(uri))}" if uri else "")


def _quoted(word: str | Path) -> str:
    """As a shell takes it, whatever is in it."""
    return shlex.quote(str(word))


def main() -> None:
    """Entry point: one clear message for every error, a traceback only with --debug."""
    # Strategies of one's own lie where one is; last, so that nothing there hides a package.
    sys.path.append(str(Path.cwd()))
    try:
        status = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's, which some versions of typer vendor
            error.show()
            sys.exit(error.exit_code)
        if "--debug" in sys.argv:
            raise
        _fail(_words(error), 2 if _expected(error) else 1)
    if status == INTERRUPTED:
        how = " with --resume" if "study" in sys.argv[1:2] else ""
        _fail(f"interrupted; finished runs are kept, the same command{how} continues", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _words(error: BaseException) -> str:
    """What is said of an error."""
    if _expected(error):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (a bug of forgetbench; --debug shows where)"


def _expected(error: BaseException) -> bool:
    """Whether this is an error that its message explains."""
    return isinstance(error, Explained | ValueError)


def _fail(message: str, status: int) -> NoReturn:
    sys.stdout.flush()
    print(f"forgetbench: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
