"""Kronecker factors against a batch-1 loop, a closed form and an independent library; their penalty against torch.kron."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from strategies import FinishedTask, Setting, fisher, kfac
from strategies.base import check_state, masked
from strategies.ewc_kfac import EWCKfac

Params = dict[str, Tensor]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 3))


def cnn() -> nn.Sequential:
    """Convolutions with several positions and of every shape, with a bias and without."""
    return nn.Sequential(
        nn.Unflatten(1, (2, 5, 5)),
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, (2, 1), dilation=(2, 1), padding=(0, 1), bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


class Sequence(nn.Module):
    """Linear layers over the positions of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.unflatten(1, (4, 3))).tanh()).mean(1)


def data(pixels: int, samples: int = 30) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(samples, pixels, dtype=torch.float64), torch.randint(0, 3, (samples,))


def double(build, x: Tensor) -> nn.Module:
    """A model whose BatchNorm statistics are away from where they start."""
    torch.manual_seed(0)
    model = build().double()
    model(x)
    return model.eval()


@pytest.fixture(params=[(mlp, 5), (cnn, 50)], ids=["mlp", "cnn"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    build, pixels = request.param
    x, y = data(pixels)
    return double(build, x), x, y


def patches(layer: nn.Module, h: Tensor) -> Tensor:
    """What W meets, a row a position, by slicing: h is one sample, (1, ...)."""
    if isinstance(layer, nn.Conv2d):
        (sy, sx), (dy, dx), (ky, kx), (py, px) = layer.stride, layer.dilation, layer.kernel_size, layer.padding
        padded = F.pad(h[0], (px, px, py, py))
        _, height, width = padded.shape
        corners = itertools.product(range(0, height - dy * (ky - 1), sy), range(0, width - dx * (kx - 1), sx))
        rows = [padded[:, i : i + dy * (ky - 1) + 1 : dy, j : j + dx * (kx - 1) + 1 : dx].flatten() for i, j in corners]
        h = torch.stack(rows)
    return h if layer.bias is None else torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1)


def loop(model: nn.Sequential, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Params, Params]:
    """A over samples and G over weighted (sample, label) pairs, one by one, by plain autograd."""
    a: dict[str, list[Tensor]] = {}
    g: dict[str, list[Tensor]] = {}
    for xi, yi, wi in zip(x, y, weights, strict=True):
        h, outputs = xi[None], {}
        for name, layer in model.named_children():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                rows = patches(layer, h).detach()
                a.setdefault(name, []).append(sum(torch.outer(r, r) for r in rows))
                h = outputs[name] = layer(h)
                h = h.clone()
            else:
                h = layer(h)
        gradients = torch.autograd.grad(F.log_softmax(h, 1)[0, yi], list(outputs.values()))
        for name, gradient in zip(outputs, gradients, strict=True):
            columns = gradient[0].flatten(1).T if gradient.ndim == 4 else gradient
            g.setdefault(name, []).append(wi * sum(torch.outer(c, c) for c in columns) / len(columns))
    return {k: sum(v) / len(v) for k, v in a.items()}, {k: sum(v) for k, v in g.items()}


def agree(found: Params, expected: Params, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for k, e in expected.items():
        assert found[k].shape == e.shape and found[k].dtype == e.dtype
        assert (found[k] - e).abs().max() <= tolerance * e.abs().max(), k


def test_empirical_is_the_mean_of_outer_products_over_samples(case):
    model, x, y = case
    a, g = loop(model, x, y, torch.full((len(x),), 1 / len(x), dtype=x.dtype))
    found = kfac.factors(model, x, y, estimator="empirical")
    agree(found.a, a)
    agree(found.g, g)


def test_exact_weighs_every_class_by_its_probability(case):
    model, x, _ = case
    p = model(x).softmax(1).detach()
    y = torch.arange(3).repeat(len(x))
    a, g = loop(model, x.repeat_interleave(3, 0), y, p.flatten() / len(x))
    found = kfac.factors(model, x, estimator="exact")
    agree(found.a, a)
    agree(found.g, g)


def test_logistic_regression_has_the_closed_form():
    x, _ = data(6, 50)
    model = double(lambda: nn.Linear(6, 3), x)
    p = model(x).softmax(1).detach()
    x1 = torch.cat([x, torch.ones(50, 1, dtype=x.dtype)], 1)
    found = kfac.factors(model, x, estimator="exact")
    agree(found.a, {"": x1.T @ x1 / 50})
    agree(found.g, {"": (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)})


def test_the_product_is_the_exact_fisher_block_of_a_single_sample():
    x, _ = data(5)
    model = double(mlp, x)
    a, g = kfac.factors(model, x[:1], estimator="exact")
    log_p = F.log_softmax(model(x[:1]), 1)[0]
    for name in ("0", "3"):
        layer = model.get_submodule(name)
        block = torch.zeros(a[name].shape[0] * g[name].shape[0], dtype=x.dtype).diag()
        for value in log_p:
            weight, bias = torch.autograd.grad(value, [layer.weight, layer.bias], retain_graph=True)
            vector = torch.cat([weight, bias[:, None]], 1).T.flatten()  # vec stacks columns
            block += value.exp().detach() * torch.outer(vector, vector)
        agree({name: torch.kron(a[name], g[name])}, {name: block})


def test_a_convolution_of_one_position_is_a_linear_layer():
    x, y = data(18)
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(2, 3, 3).double(), nn.Linear(18, 3).double()
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    found = kfac.factors(nn.Sequential(nn.Unflatten(1, (2, 3, 3)), conv, nn.Flatten()), x, y, estimator="exact")
    expected = kfac.factors(nn.Sequential(nn.Identity(), linear), x, y, estimator="exact")
    agree(found.a, expected.a)
    agree(found.g, expected.g)


def test_a_linear_layer_over_a_sequence_is_a_convolution_of_width_one():
    x, _ = data(12)
    model = double(Sequence, x)
    same = nn.Sequential(
        nn.Unflatten(1, (1, 4, 3)), nn.Conv2d(1, 4, (1, 3)), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.AvgPool2d((4, 1)), nn.Flatten()
    ).double()  # fmt: skip
    values = zip(same.parameters(), model.parameters(), strict=True)
    same.load_state_dict({k: v.view(p.shape) for k, (p, v) in zip(dict(same.named_parameters()), values, strict=True)})
    found, expected = (kfac.factors(m, x, estimator="exact") for m in (model, same))
    for mine, other in zip(found, expected, strict=True):
        agree({"1": mine["first"], "3": mine["head"]}, other)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_factors_agree_with_an_independent_library():
    from backpack import backpack, extend
    from backpack.extensions import KFLR

    x, y = data(50)
    # The last convolution has one position, where this library's G (of the sum over positions) is ours.
    layers = (
        nn.Unflatten(1, (2, 5, 5)),
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    model = double(lambda: nn.Sequential(*layers), x)
    other = extend(copy.deepcopy(nn.Sequential(*model[1:])))
    with backpack(KFLR()):
        extend(nn.CrossEntropyLoss(reduction="mean"))(other(model[0](x)), y).backward()  # G is a mean with "mean"
    a, g = kfac.factors(model, x, estimator="exact")
    for name, layer in {"1": other[0], "3": other[2], "5": other[4]}.items():
        g_theirs, a_theirs = layer.weight.kflr
        agree({"a": a[name][:-1, :-1]}, {"a": a_theirs}, 1e-10)  # without the row and column of the bias
        if name != "1":
            agree({"g": g[name], "b": g[name]}, {"g": g_theirs, "b": layer.bias.kflr[0]}, 1e-10)


@pytest.mark.parametrize("estimator", kfac.ESTIMATORS)
def test_the_diagonal_of_g_is_the_fisher_diagonal_of_a_linear_layers_bias(estimator):
    x, y = data(5)
    model = double(mlp, x)
    g = kfac.factors(model, x, y, estimator=estimator, draws=2, generator=torch.Generator().manual_seed(1)).g
    omega = fisher.diagonal(model, x, y, estimator=estimator, samples=2, generator=torch.Generator().manual_seed(1))
    agree({k: g[k].diagonal() for k in ("0", "3")}, {k: omega[f"{k}.bias"] for k in ("0", "3")})


def test_sampled_is_unbiased_for_exact(case):
    model, x, _ = case
    exact = kfac.factors(model, x[:10], estimator="exact")
    once = kfac.factors(model, x[:10], generator=torch.Generator().manual_seed(0))
    often = kfac.factors(model, x[:10].repeat(500, 1), draws=15, generator=torch.Generator().manual_seed(0))
    agree(once.a, exact.a)
    agree(often.g, exact.g, 0.03)
    with pytest.raises(AssertionError):
        agree(once.g, exact.g, 0.03)


@pytest.mark.parametrize("estimator", kfac.ESTIMATORS)
def test_the_chunk_changes_nothing(case, estimator, monkeypatch):
    model, x, y = case
    found = []
    for chunk, patches in ((1000, 1 << 24), (7, 500)):
        monkeypatch.setattr(kfac, "CHUNK", chunk)
        monkeypatch.setattr(kfac, "PATCHES", patches)
        found.append(kfac.factors(model, x, y, estimator=estimator, generator=torch.Generator().manual_seed(1)))
    whole, parts = found
    agree(parts.a, whole.a)
    agree(parts.g, whole.g)


@pytest.mark.parametrize("estimator", kfac.ESTIMATORS)
def test_outputs_that_do_not_compete_add_nothing(estimator):
    x, y = data(5)
    model = double(mlp, x)
    active = torch.tensor([True, False, True])
    model.register_forward_hook(lambda module, args, logits: masked(logits, active))
    a, g = kfac.factors(model, x, y // 2 * 2, estimator=estimator)
    assert all(torch.isfinite(v).all() for part in (a, g) for v in part.values())
    assert not g["3"][1].any() and not g["3"][:, 1].any() and g["3"][0, 0] > 0


def test_a_single_masked_layer_is_accepted():
    x, _ = data(6)
    model = double(lambda: nn.Linear(6, 3), x)
    model.register_forward_hook(lambda module, args, logits: masked(logits, torch.tensor([True, True, False])))
    assert not kfac.factors(model, x).g[""][2].any()


def test_other_parameters_keep_their_fisher_diagonal_and_the_model_is_left_as_it_came():
    x, y = data(5)
    model = double(mlp, x).train()
    model[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = kfac.rest(model, x, y, estimator="exact")
    kfac.factors(model, x, y)
    agree(found, {k: fisher.diagonal(model, x, estimator="exact")[k] for k in ("1.weight", "1.bias")})
    assert model.training and [k for k, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_frozen_parameters_are_no_obstacle():
    x, y = data(5)
    model = double(mlp, x)
    expected = kfac.factors(model, x, y, estimator="exact")
    for layer in (model[0], model[1]):
        layer.requires_grad_(False)
    found = kfac.factors(model, x, y, estimator="exact")
    assert not found.g["0"].any() and not any(v.any() for v in kfac.rest(model, x, y).values())
    agree({"a": found.a["3"], "g": found.g["3"]}, {"a": expected.a["3"], "g": expected.g["3"]})


class Odd(nn.Module):
    """One layer used in a way that Kronecker factors do not cover."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.head = kind, nn.Linear(6, 6), nn.Linear(6, 3)
        if kind == "embedding":
            self.layer = nn.Embedding(6, 6)
        if kind == "tied":
            self.other = nn.Linear(6, 6)
            self.other.weight = self.layer.weight
        if kind == "tied bias":
            self.other = nn.Linear(6, 6)
            self.other.bias = self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "embedding":
            return self.head(self.layer(x.long() % 6).mean(1))
        h = self.layer(input=x).tanh() if self.kind == "keyword" else self.layer(x).tanh()
        if self.kind == "twice":
            h = self.layer(h)
        if self.kind == "behind":
            h = F.linear(h, self.layer.weight.T)
        if self.kind in {"tied", "tied bias"}:
            h = self.other(h)
        return self.head(h.tanh())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("embedding", "its type is Embedding"),
        ("twice", "it is called 2 times"),
        ("behind", "used elsewhere too"),
        ("tied", "used elsewhere too"),
        ("tied bias", "used elsewhere too"),
        ("keyword", "not by a plain call"),
    ],
)
def test_a_layer_without_factors_is_refused_by_name(kind, reason):
    x, y = data(6)
    with pytest.raises(ValueError, match=f"layer 'layer' has no Kronecker factors: .*{reason}.*expected an nn.Linear"):
        kfac.factors(double(lambda: Odd(kind), x), x, y)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(2, 4, 3, groups=2), "it has 2 groups"),
        (nn.Conv2d(2, 4, 3, padding="same"), "its padding is 'same'"),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), "its padding is .* with circular"),
        (nn.ConvTranspose2d(2, 4, 3), "its type is ConvTranspose2d"),
    ],
)
def test_a_convolution_without_factors_is_refused_by_name(layer, reason):
    x, y = data(50)
    model = nn.Sequential(nn.Unflatten(1, (2, 5, 5)), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(ValueError, match=f"layer '1' has no Kronecker factors: {reason}"):
        kfac.factors(model, x, y)


def test_a_parametrised_layer_falls_back_to_the_diagonal():
    x, y = data(5)
    model = double(mlp, x)
    nn.utils.parametrizations.weight_norm(model[0])
    assert kfac.factors(model, x, y).a.keys() == {"3"}
    names = {k for k, _ in model.named_parameters() if not k.startswith("3")}
    assert kfac.rest(model, x, y).keys() == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "batched"}, "expected one of exact, sampled, empirical, got 'batched'"),
        ({"estimator": "empirical"}, "needs the data set's labels"),
        ({"draws": 0}, "expected at least 1, got 0"),
        ({"x": torch.rand(0, 5)}, "at least one sample"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kfac.factors(mlp(), **{"x": torch.rand(4, 5)} | arguments)


# The strategy.


def hparams(strategy: EWCKfac) -> Params:
    return {k: torch.tensor(getattr(strategy, k), dtype=torch.float64) for k in strategy.hyperparameters()}


def parameters(model: nn.Module) -> Params:
    return {k: p.detach().clone() for k, p in model.named_parameters()}


def moved(params: Params, by: float, seed: int = 5) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {k: p + by * torch.randn(p.shape, dtype=p.dtype, generator=generator) for k, p in params.items()}


def finished(number: int, pixels: int) -> FinishedTask:
    torch.manual_seed(number)
    x, y = torch.randn(20, pixels, dtype=torch.float64), torch.randint(0, 3, (20,))
    return FinishedTask(number, lambda: x, y, torch.Generator().manual_seed(number))


History = list[tuple[Params, Params]]
"""What each task left: the parameters, and what was measured there."""


def consolidated(strategy: EWCKfac, model: nn.Module, pixels: int, tasks: int, length: int = 4) -> tuple[dict, History]:
    params = parameters(model)
    state = first = strategy.init(params, Setting(length, 3, {}))
    history = []
    for number in range(1, tasks + 1):
        params = moved(params, 0.2, number)
        model.load_state_dict(params, strict=False)
        measured = strategy.measure(model, finished(number, pixels))
        state = strategy.consolidate(state, params, measured, hparams(strategy))
        check_state(strategy.name, "consolidate", first, state)
        history.append((params, measured))
    return state, history


def quadratic_form(here: Params, anchor: Params, measured: Params) -> Tensor:
    """½ vec(ΔW)ᵀ (A ⊗ G) vec(ΔW), and ½ Σ Ω Δ² for what has no factors, by hand."""
    total = torch.zeros((), dtype=torch.float64)
    for key in measured:
        if key.startswith("A/"):
            layer = key.removeprefix("A/")
            delta = here[f"{layer}.weight"] - anchor[f"{layer}.weight"]
            matrix = delta.reshape(len(delta), -1)
            if f"{layer}.bias" in here:
                matrix = torch.cat([matrix, (here[f"{layer}.bias"] - anchor[f"{layer}.bias"])[:, None]], 1)
            vector = matrix.T.flatten()
            total += 0.5 * vector @ torch.kron(measured[key], measured[f"G/{layer}"]) @ vector
        elif not key.startswith("G/"):
            total += 0.5 * (measured[key] * (here[key] - anchor[key]).square()).sum()
    return total


variants = pytest.mark.parametrize(
    "strategy", [EWCKfac(lam=3.0), EWCKfac(lam=3.0, accumulate="online", decay=0.7)], ids=["separate", "online"]
)


@variants
def test_the_penalty_is_the_quadratic_form_of_the_kronecker_product(case, strategy):
    model, x, _ = case
    state, [(anchor, measured)] = consolidated(strategy, model, x.shape[1], 1)
    away = moved(anchor, 0.5)
    expected = 3.0 * quadratic_form(away, anchor, measured)
    assert expected > 0
    torch.testing.assert_close(strategy.penalty(state, away, hparams(strategy)), expected, rtol=1e-12, atol=0)


@variants
def test_the_penalty_is_zero_before_the_first_task_and_at_its_anchor(case, strategy):
    model, x, _ = case
    params = parameters(model)
    fresh = strategy.init(params, Setting(3, 3, {}))
    state, [(anchor, _)] = consolidated(strategy, model, x.shape[1], 1)
    for at, point in ((fresh, moved(params, 1.0)), (state, anchor)):
        assert strategy.penalty(at, point, hparams(strategy)) == 0
        assert not any(g.any() for g in strategy.penalty_gradient(at, point, hparams(strategy)).values())


@variants
def test_the_penaltys_gradient_is_its_gradient_in_tensors_of_its_own(case, strategy):
    model, x, _ = case
    state, _ = consolidated(strategy, model, x.shape[1], 3)
    away, h = moved(parameters(model), 0.5), hparams(strategy)
    expected = torch.func.grad(lambda p: strategy.penalty(state, p, h))(away)
    found = strategy.penalty_gradient(state, away, h)
    assert list(found) == list(away)
    agree(found, expected)
    before = {k: v.clone() for k, v in found.items()}
    for k in found:
        found[k].mul_(0)
        assert all(torch.equal(found[j], before[j]) for j in found if j > k)
        found[k].copy_(before[k])
    agree(strategy.penalty_gradient(state, away, h), expected)


def test_separate_is_the_sum_of_one_penalty_a_task(case):
    model, x, _ = case
    strategy = EWCKfac(lam=3.0)
    state, history = consolidated(strategy, model, x.shape[1], 3)
    here, there = (moved(parameters(model), by) for by in (0.5, 1.0))
    values = [strategy.penalty(state, at, hparams(strategy)) for at in (here, there)]
    by_hand = [3.0 * sum(quadratic_form(at, *task) for task in history) for at in (here, there)]
    # The diagonal part has its constant left out, and only the MLP has such a part.
    torch.testing.assert_close(values[1] - values[0], by_hand[1] - by_hand[0], rtol=1e-12, atol=0)
    if not state["diagonal"]:
        torch.testing.assert_close(values, by_hand, rtol=1e-12, atol=0)


def test_online_holds_all_curvature_at_the_latest_anchor_and_decays_the_old(case):
    model, x, _ = case
    strategy = EWCKfac(lam=3.0, accumulate="online", decay=0.7)
    state, history = consolidated(strategy, model, x.shape[1], 3)
    latest, _ = history[-1]
    away = moved(latest, 0.5)
    expected = sum(
        3.0 * 0.7**age * quadratic_form(away, latest, measured) for age, (_, measured) in enumerate(reversed(history))
    )
    torch.testing.assert_close(strategy.penalty(state, away, hparams(strategy)), expected, rtol=1e-12, atol=0)
    assert strategy.penalty(state, latest, hparams(strategy)) == 0


@variants
def test_methods_lift_over_a_stack_with_a_strength_of_its_own_each(case, strategy):
    model, x, _ = case
    _, history = consolidated(strategy, model, x.shape[1], 2)
    runs = [{"lam": torch.tensor(v, dtype=torch.float64), "decay": torch.tensor(d)} for v, d in ((0, 0.5), (2, 1.0))]

    def through(params: Params, measured: Params, away: Params, h: Params) -> tuple[Tensor, Params]:
        state = strategy.init(params, Setting(4, 3, {}))
        for _ in range(2):
            state = strategy.consolidate(state, params, measured, h)
        return strategy.penalty(state, away, h), strategy.penalty_gradient(state, away, h)

    rows = [(*task, moved(task[0], 0.5), h) for task, h in zip(history, runs, strict=True)]
    stacked = [{k: torch.stack([row[i][k] for row in rows]) for k in rows[0][i]} for i in range(4)]
    values, gradients = vmap(through)(*stacked)
    for r, row in enumerate(rows):
        value, gradient = through(*row)
        torch.testing.assert_close(values[r], value, rtol=1e-12, atol=0)
        agree({k: g[r] for k, g in gradients.items()}, gradient)
    assert values[0] == 0 and values[1] > 0


@variants
def test_with_every_slot_taken_nothing_changes(strategy):
    model = double(mlp, data(5)[0])
    state, history = consolidated(strategy, model, 5, 2, length=3)
    after = strategy.consolidate(state, moved(*history[0][:1], 1.0), history[0][1], hparams(strategy))
    assert all(torch.equal(v, after[name][k]) for name, part in state.items() for k, v in part.items())


def test_measure_uses_the_samples_it_is_told_to_and_one_key_gives_one_result():
    model = double(mlp, data(5)[0])
    some, all_, again = (EWCKfac(fisher_samples=n).measure(model, finished(1, 5)) for n in (7, 0, 0))
    assert all(torch.equal(all_[k], again[k]) for k in all_)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:7]
    agree({"A/0": some["A/0"]}, {"A/0": kfac.factors(model, finished(1, 5).x[order]).a["0"]})
