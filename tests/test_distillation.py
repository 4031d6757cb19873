"""LwF against its formula in plain loops: the distillation, its groups and temperature, and whose gradient it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from strategies.base import Batch, FinishedTask, Network, Params, Setting, Strategy, check_state
from strategies.lwf import LwF, distillation
from strategies.naive import Naive

FLOAT = torch.float64


def model(seed: int = 0, *, norm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(6) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(3, 6), middle, nn.ReLU(), nn.Linear(6, 5)).to(FLOAT)


def parameters(module: nn.Module) -> Params:
    return {k: v.detach().clone() for k, v in module.named_parameters()}


def everything(module: nn.Module) -> Params:
    return {**parameters(module), **{k: v.clone() for k, v in module.named_buffers()}}


def network(params: Params, earlier: list[list[int]], *, module: nn.Module | None = None) -> Network:
    """The network of one run in its second task: `params` in training, anything recorded in eval mode."""
    module = module or model()
    buffers = {k: b.clone() for k, b in module.named_buffers()}

    def logits(x: Tensor) -> Tensor:
        return functional_call(module.train(), (params, buffers), (x,))

    def recorded(old: Params, x: Tensor) -> Tensor:
        return functional_call(module.eval(), old, (x,))

    groups = torch.zeros(len(earlier), 5, dtype=torch.bool)
    for row, outputs in enumerate(earlier):
        groups[row, outputs] = True
    return Network(logits, recorded, 2, groups)


def batch(seed: int = 0, active: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Batch:
    g = torch.Generator().manual_seed(seed)
    competing = torch.zeros(4, 5, dtype=torch.bool)
    competing[:, list(active)] = True
    y = torch.tensor(active)[torch.randint(0, len(active), (4,), generator=g)]
    x = torch.randn(4, 3, generator=g, dtype=FLOAT)
    ids = torch.arange(4)
    return Batch(x, y, competing, torch.full((4,), 2), ids, torch.rand(4, generator=g, dtype=FLOAT), {})


def hparams(lam: float, temperature: float = 2.0) -> Params:
    return {"lam": torch.tensor(lam, dtype=FLOAT), "temperature": torch.tensor(temperature, dtype=FLOAT)}


def softmax(row: list[float], outputs: list[int], temperature: float) -> list[float]:
    top = [math.exp(row[c] / temperature) for c in outputs]
    return [t / sum(top) for t in top]


def loop(student: Tensor, teacher: Tensor, groups: list[list[int]], temperature: float) -> float:
    """The docstring's sum, a sample, group and output at a time."""
    total = 0.0
    for outputs in groups:
        for new, old in zip(student.tolist(), teacher.tolist(), strict=True):
            p, q = softmax(old, outputs, temperature), softmax(new, outputs, temperature)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(student)
    return temperature**2 * total


GROUPS = {"one head": [[0, 1, 2]], "two heads": [[0, 1], [2, 3]], "all outputs": [[0, 1, 2, 3, 4]]}


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_the_distillation_is_the_sum_written_out_in_loops(groups, temperature):
    g = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(4, 5, generator=g, dtype=FLOAT) for _ in range(2))
    net = network(parameters(model()), groups)
    found = distillation(student, teacher, net.earlier, torch.tensor(temperature, dtype=FLOAT))
    assert float(found) == pytest.approx(loop(student, teacher, groups, temperature), rel=1e-12)


def test_the_loss_is_cross_entropy_and_lambda_times_the_distillation_of_the_recorded_network():
    params, old, data = parameters(model(1)), everything(model(2)), batch(active=(3, 4))
    net = network(params, [[0, 1], [2]])
    found = LwF().loss(net, data, None, {"teacher": old}, hparams(0.7)).value
    logits, teacher = net.logits(data.x), net.recorded(old, data.x)
    entropy = 0.0
    for row, y in zip(logits.tolist(), data.y.tolist(), strict=True):
        entropy -= math.log(softmax(row, [3, 4], 1.0)[y - 3]) / 4
    assert float(found) == pytest.approx(entropy + 0.7 * loop(logits, teacher, [[0, 1], [2]], 2.0), rel=1e-12)


def test_a_student_equal_to_its_teacher_is_at_the_minimum():
    old = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    groups = torch.ones(1, 5, dtype=torch.bool)
    value = distillation(old, old, groups, torch.tensor(2.0, dtype=FLOAT))
    slope = grad(distillation)(old, old, groups, torch.tensor(2.0, dtype=FLOAT))
    assert float(value) == pytest.approx(0, abs=1e-15)
    assert float(slope.abs().max()) < 1e-15


def test_at_high_temperature_the_gradient_no_longer_depends_on_it():
    # Hinton et al. 2015, equation 4: with T² the limit is (z - z*) less their means, over C.
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=g, dtype=FLOAT) for _ in range(2))
    groups = torch.ones(1, 5, dtype=torch.bool)
    slope = grad(distillation)(student, teacher, groups, torch.tensor(1e4, dtype=FLOAT))
    apart = student - teacher
    limit = (apart - apart.mean(1, keepdim=True)) / 5 / 4
    assert torch.allclose(slope, limit, rtol=0, atol=1e-4)


def test_the_papers_cross_entropy_has_the_gradient_of_lambda_over_temperature_squared():
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=g, dtype=FLOAT) for _ in range(2))
    groups = torch.ones(1, 5, dtype=torch.bool)

    def paper(z: Tensor) -> Tensor:
        return -((teacher / 2).softmax(1) * (z / 2).log_softmax(1)).sum(1).mean()

    ours = grad(lambda z: 0.25 * distillation(z, teacher, groups, torch.tensor(2.0, dtype=FLOAT)))(student)
    assert torch.allclose(ours, grad(paper)(student), rtol=1e-12, atol=1e-15)


def test_no_gradient_reaches_the_teacher():
    module, data = model(1, norm=False), batch()
    old = parameters(model(2, norm=False))
    net = network(parameters(module), [[0, 1, 2]], module=module)

    def loss(teacher: Params) -> Tensor:
        return LwF().loss(net, data, None, {"teacher": teacher}, hparams(1.0)).value

    assert all(not g.any() for g in grad(loss)(old).values())


@pytest.mark.parametrize("output", range(5))
def test_outputs_outside_every_group_are_not_distilled(output):
    student, teacher = torch.zeros(1, 5, dtype=FLOAT), torch.arange(5, dtype=FLOAT)[None]
    net = network(parameters(model()), [[0, 1], [3]])
    slope = grad(distillation)(student, teacher, net.earlier, torch.tensor(2.0, dtype=FLOAT))
    # A group of one output has nothing to tell apart.
    assert bool(slope[0, output] != 0) == (output in (0, 1))


def gradients(strategy: Strategy, lam: float) -> Params:
    module = model(1, norm=False)
    state = {"teacher": parameters(model(2, norm=False))}

    def loss(params: Params) -> Tensor:
        return strategy.loss(network(params, [[0, 1]], module=module), batch(), None, state, hparams(lam)).value

    return grad(loss)(parameters(module))


def test_with_lambda_zero_it_is_naive():
    expected, found = gradients(Naive(), 0.0), gradients(LwF(), 0.0)
    assert all(torch.equal(found[k], g) for k, g in expected.items())
    assert not torch.equal(gradients(LwF(), 1.0)["0.weight"], expected["0.weight"])


def test_the_first_task_trains_as_naive_without_asking_the_teacher():
    def refuse(old: Params, x: Tensor) -> Tensor:
        raise AssertionError("no teacher yet")

    net, data = network(parameters(model(1)), []), batch()
    silent = Network(net.logits, refuse, 1, net.earlier)
    found = LwF().loss(silent, data, None, {"teacher": {}}, hparams(1.0)).value
    assert torch.equal(found, Naive().loss(net, data, None, {}, {}).value)
    assert LwF.shares_first_task()


def test_the_teacher_is_the_trained_network_in_eval_mode_and_a_copy():
    module, data = model(1), batch()
    module.train()(data.x)  # so that BatchNorm's statistics are not those it started with
    setting = Setting(tasks=2, outputs=5, buffers=dict(module.named_buffers()))
    params = parameters(module)
    state = LwF().init(params, setting)
    task = FinishedTask(1, lambda: data.x, data.y, torch.Generator())
    after = LwF().consolidate(state, params, LwF().measure(module.eval(), task), hparams(1.0))
    check_state("lwf", "consolidate", state, after)
    expected = module(data.x).detach()
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.zero_()
    assert torch.equal(network(params, []).recorded(after["teacher"], data.x), expected)


def test_a_stack_of_runs_is_each_run_by_itself():
    def loss(params: Params, old: Params, x: Tensor, y: Tensor, values: Params) -> Tensor:
        net = network(params, [[0, 1]], module=module)
        return LwF().loss(net, data._replace(x=x, y=y), None, {"teacher": old}, values).value

    module, data = model(norm=False), batch()
    runs = [
        (
            parameters(model(r, norm=False)),
            everything(model(r + 9, norm=False)),
            batch(r).x,
            batch(r).y,
            hparams(lam, t),
        )
        for r, (lam, t) in enumerate([(0.0, 1.0), (0.5, 2.0), (2.0, 4.0)])
    ]
    together = vmap(loss)(*tree_map(lambda *leaves: torch.stack(leaves), *runs))
    assert torch.allclose(together, torch.stack([loss(*run) for run in runs]), rtol=1e-12)
