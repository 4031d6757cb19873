"""What runs that failed took from a study's answer, and how that is said: as `forgetbench run` says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmark.experiment import with_reasons
from benchmark.results import Record
from studies import fate
from studies.places import SEEDS
from studies.search import Searcher


def of_trials(searcher: Searcher, records: Mapping[str, Record]) -> str:
    """How many trials of a strategy failed, and why, where none ended well; empty if none failed.

    Args:
        searcher: of the strategy, which has no trial to report.
        records: of runs, by key: of another driver's the reason is not known here.
    """
    told = [trial.user_attrs[SEEDS] for trial in searcher.ended]
    failed = sum(fate.state(seeds) == "failed" for seeds in told)
    if not failed:
        return ""
    many = (
        f"all {failed} trials failed"
        if failed == len(told) > 1
        else f"no trial ended well, {failed} of {len(told)} failed"
    )
    said = f"{searcher.search.label}: {many}, so no setting of it was tested; --new starts another study"
    return with_reasons(said, (records[s["run_key"]] for seeds in told for s in seeds if s["run_key"] in records))


def of_tests(tested: Mapping[str, Sequence[Record]]) -> str:
    """How many runs of the final evaluation failed, and why; empty if none did.

    Args:
        tested: its runs, by strategy.
    """
    runs = [record for each in tested.values() for record in each]
    failed = sum(record.status == "failed" for record in runs)
    if not failed:
        return ""
    said = f"{failed} of {len(runs)} test runs failed; the same command with --resume tries them again"
    return with_reasons(said, runs)
