"""What `make gpu-check` measures, on the CPU: the same steps, with something that is not a GPU to be checked."""

from __future__ import annotations

import json

import pytest
import torch

from benchmark import config, data, graphs
from benchmark.perf import gpu
from strategies import ER, EWC
from tests.conftest import CPU
from tests.test_compiled import compiler
from tests.test_replayed_steps import rerun


@pytest.fixture
def small(monkeypatch):
    """Digits for images, few strategies, few steps, and the stand-in for a graph."""
    monkeypatch.setattr(gpu.registry, "BUILT_IN", {cls.name: cls for cls in (EWC, ER)})
    monkeypatch.setattr(data, "load", lambda name, say: gpu.small(DIGITS, 300))
    monkeypatch.setattr(gpu, "IMAGES", 100)
    monkeypatch.setattr(gpu, "MANY", {"cpu": 3})
    monkeypatch.setattr(gpu, "WARM", 2)
    monkeypatch.setattr(gpu, "STEPS", 4)
    monkeypatch.setattr(gpu, "COMPILED", (False,))
    monkeypatch.setitem(graphs.CAPTURES, "cpu", rerun)


DIGITS = data.load("digits")


def test_the_whole_check_passes_and_leaves_its_numbers(tmp_path, capsys, small, monkeypatch):
    asked = ["--device", "cpu", "--lambdas", "2", "--seeds", "1", "--stacks", "1", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(gpu, "RECIPE", gpu.dataclasses.replace(gpu.RECIPE, lr=1e-2))
    assert gpu.main(asked) == 0
    told, said = json.loads((tmp_path / "gpu.json").read_text()), capsys.readouterr().out
    assert "all is as it must be" in said and "FAILED" not in said
    lines = {line["what"]: line for line in told["lines"]}
    assert lines["2 complete runs, mnist-fashion"]["value"] > 0 and lines["runs that did not finish"]["value"] == 0
    assert {f"{n}, {s}, {p}" for n in ("1 run", "2 runs") for s, p in
            (("naive", "float32"), ("naive", "tf32"), ("ewc", "float32"), ("ewc", "tf32"))} <= lines.keys()  # fmt: skip
    assert len([what for what in lines if what.endswith("against the CPU")]) == 3  # two strategies, and a CNN
    assert lines["graphs"]["value"] > 9 and lines["no step became a graph"]["limit"] == 0
    assert lines["ewc: parameters, float64, one of 3 against the same alone"]["value"] < 1e-9
    assert graphs.CAPTURES["cpu"] is rerun


@compiler
@pytest.mark.slow
def test_compiled_steps_are_checked_too(tmp_path, small, monkeypatch):
    monkeypatch.setattr(gpu, "COMPILED", (False, True))
    asked = ["--device", "cpu", "--lambdas", "2", "--seeds", "1", "--stacks", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(gpu, "RECIPE", gpu.dataclasses.replace(gpu.RECIPE, lr=1e-2))
    assert gpu.main(asked) == 0
    lines = {line["what"]: line for line in json.loads((tmp_path / "gpu.json").read_text())["lines"]}
    assert 0 < lines["er: parameters, float64, compiled against none"]["value"] < 1e-6
    assert lines["2 complete runs, mnist-fashion, compiled"]["value"] > 0
    assert {"1 run, ewc, float32", "1 run, ewc, tf32, compiled"} <= lines.keys()


def test_a_device_that_computes_something_else_is_found_out(small, monkeypatch):
    def wrong(work, device):
        result = work()  # once, and never again
        return lambda: result

    monkeypatch.setitem(graphs.CAPTURES, "cpu", wrong)
    lines = list(gpu.equality([gpu.small(DIGITS, 300)] * 2, CPU))
    assert any(not line.passes and "graph against none" in line.what for line in lines)


def test_a_device_that_captures_nothing_does_not_pass(tmp_path, capsys, small, monkeypatch):
    def refuse(work, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(graphs.CAPTURES, "cpu", refuse)
    asked = ["--device", "cpu", "--lambdas", "1", "--seeds", "1", "--stacks", "1", "--out", str(tmp_path)]
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        assert gpu.main(asked) == 1
    assert "FAILED: steps that became none, no step became a graph" in capsys.readouterr().out.replace(
        "1 - average accuracy at the best λ, ", ""
    )


def test_what_raises_is_a_line_that_fails_and_the_rest_is_measured(tmp_path, capsys, small, monkeypatch):
    def broken(*args):
        raise RuntimeError("device-side assert triggered\nand more")

    monkeypatch.setattr(gpu, "against_the_cpu", broken)
    asked = ["--device", "cpu", "--lambdas", "1", "--seeds", "1", "--stacks", "1", "--out", str(tmp_path)]
    assert gpu.main(asked) == 1
    lines = {line["what"]: line for line in json.loads((tmp_path / "gpu.json").read_text())["lines"]}
    assert lines["er, mlp: RuntimeError: device-side assert triggered"]["limit"] == 0
    assert lines["1 complete runs, mnist-fashion"]["value"] > 0 and "copying" in lines


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "expected a CUDA device, found none" in capsys.readouterr().err


def test_the_recipe_is_that_of_the_preset():
    preset = config.load("mnist-fashion", [])
    (run, *_) = preset.runs()
    assert gpu.dataclasses.replace(run.recipe, batchnorm=gpu.RECIPE.batchnorm) == gpu.RECIPE
    assert run.model.name == "mlp-bn"
