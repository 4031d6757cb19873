"""Fisher diagonals against a batch-1 loop, a closed form and an independent library."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strategies import EWC, FinishedTask, fisher, persample
from strategies.mas import MAS
from strategies.stack import FinishedTasks, Networks

Params = dict[str, Tensor]


class CNN(nn.Module):
    """Every kind of layer with a closed form, and convolutions of every shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, stride=2, dilation=2, padding=2, groups=2, bias=False),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
        )
        self.norm = nn.LayerNorm(36)
        self.head = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x.unflatten(1, (2, 6, 6))).flatten(1)))


class Tokens(nn.Module):
    """Embedding, and Linear and LayerNorm over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.linear(self.embedding(x))).tanh().mean(1))


class Shared(nn.Module):
    """A layer called twice, a weight used without its layer, and a parameter of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.behind = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x).tanh()).tanh()
        x = F.linear(self.behind(x).tanh(), self.behind.weight.T)
        return self.head(x * self.scale)


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 5),
    )


def trained(model: nn.Module, x: Tensor, classes: int) -> tuple[nn.Module, Tensor]:
    """BatchNorm statistics and weights away from where they start."""
    y = torch.randint(0, classes, (len(x),))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, y


def loop(model: nn.Module, x: Tensor, y: Tensor, weights: Tensor | None = None) -> Params:
    """Σᵢ wᵢ (∂ log p(yᵢ|xᵢ))², one sample at a time by plain autograd."""
    model.eval()
    params = dict(model.named_parameters())
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    for i in range(len(x)):
        log_p = F.log_softmax(model(x[i : i + 1]), 1)[0, y[i]]
        gradients = torch.autograd.grad(log_p, list(params.values()))
        for (k, _), g in zip(params.items(), gradients, strict=True):
            total[k] += g.square() * (1.0 if weights is None else weights[i])
    return total


def agree(found: Params, expected: Params, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for k, e in expected.items():
        assert found[k].shape == e.shape and found[k].dtype == e.dtype
        assert (found[k] - e).abs().max() <= tolerance * e.abs().max(), k


PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
MODELS = [(mlp, 12, 5), (CNN, 72, 5)]


@pytest.fixture(params=[(m, p) for m in MODELS for p in PRECISIONS], ids=lambda c: f"{c[0][0].__name__}-{c[1][0]}")
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor, float]:
    (build, pixels, classes), (dtype, tolerance) = request.param
    torch.manual_seed(0)
    x = torch.rand(30, pixels, dtype=dtype)
    model, y = trained(build().to(dtype), x, classes)
    return model, x, y, tolerance


def test_empirical_is_the_mean_of_squared_per_sample_gradients(case):
    model, x, y, tolerance = case
    expected = {k: v / len(x) for k, v in loop(model, x, y).items()}
    agree(fisher.diagonal(model, x, y, estimator="empirical"), expected, tolerance)


def test_exact_weighs_every_class_by_its_probability(case):
    model, x, _, tolerance = case
    model.eval()
    p = model(x).softmax(1).detach()
    parts = [loop(model, x, torch.full((len(x),), c), p[:, c]) for c in range(p.shape[1])]
    expected = {k: sum(part[k] for part in parts) / len(x) for k in parts[0]}
    agree(fisher.diagonal(model, x, estimator="exact"), expected, tolerance)


def test_sampled_averages_over_the_labels_it_drew(case, monkeypatch):
    model, x, _, tolerance = case
    drawn: list[Tensor] = []
    inner = fisher.labels

    def spy(probabilities, uniform):
        found = inner(probabilities, uniform)
        if len(probabilities) == len(x):  # and not a few, on which closed forms are tried
            drawn.extend(found)
        return found

    monkeypatch.setattr(fisher, "labels", spy)
    generator = torch.Generator().manual_seed(3)
    found = fisher.diagonal(model, x, estimator="sampled", samples=3, generator=generator)
    assert len(drawn) == 3 and not torch.equal(drawn[0], drawn[1])
    parts = [loop(model, x, y) for y in drawn]
    agree(found, {k: sum(p[k] for p in parts) / (3 * len(x)) for k in parts[0]}, tolerance)


def test_batched_squares_the_mean_gradient_of_each_batch(case):
    model, x, y, tolerance = case
    model.eval()
    params = dict(model.named_parameters())
    squares = []
    for xb, yb in zip(x.split(8), y.split(8), strict=True):
        mean = -F.cross_entropy(model(xb), yb)
        squares.append([g.square() for g in torch.autograd.grad(mean, list(params.values()))])
    expected = {k: torch.stack([s[i] for s in squares]).mean(0) for i, k in enumerate(params)}
    agree(fisher.diagonal(model, x, y, estimator="batched", batch_size=8), expected, tolerance)


def test_notebook_is_the_notebooks_code(case):
    model, x, y, tolerance = case
    model.eval()
    params = dict(model.named_parameters())
    pairs = [F.log_softmax(model(x[i : i + 10]), dim=1)[:, y[i : i + 10]] for i in (0, 10)]
    gradients = torch.autograd.grad(torch.cat(pairs).mean(), list(params.values()))
    expected = {k: g.square() for k, g in zip(params, gradients, strict=True)}
    agree(fisher.diagonal(model, x, y, estimator="notebook", batch_size=10), expected, tolerance)


@pytest.mark.parametrize("estimator", ["exact", "sampled", "empirical"])
def test_the_chunk_changes_nothing(case, estimator):
    model, x, y, tolerance = case
    whole, parts = (
        fisher.diagonal(model, x, y, estimator=estimator, batch_size=size, generator=torch.Generator().manual_seed(1))
        for size in (30, 7)
    )
    agree(parts, whole, tolerance)


def test_logistic_regression_has_the_closed_form():
    torch.manual_seed(0)
    x, model = torch.rand(50, 6, dtype=torch.float64), nn.Linear(6, 3).double()
    p = model(x).softmax(1).detach()
    # ∂ log p(y|x)/∂W = (1[c = y] − p_c) xᵀ, whose square averaged over y ~ p is p_c(1 − p_c) x².
    expected = {"weight": (p * (1 - p)).T @ x.square() / 50, "bias": (p * (1 - p)).mean(0)}
    agree(fisher.diagonal(model, x, estimator="exact"), expected, 1e-12)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_empirical_agrees_with_an_independent_library():
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    torch.manual_seed(0)
    x = torch.rand(20, 72, dtype=torch.float64)
    y = torch.randint(0, 5, (20,))
    layers = nn.Unflatten(1, (2, 6, 6)), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
    model = nn.Sequential(*layers).double()
    loss = nn.CrossEntropyLoss(reduction="sum")
    other = extend(copy.deepcopy(nn.Sequential(*layers[1:])))
    with backpack(SumGradSquared()):
        extend(loss)(other(layers[0](x)), y).backward()
    squares = [p.sum_grad_squared for p in other.parameters()]
    expected = {k: s / 20 for k, s in zip(dict(model.named_parameters()), squares, strict=True)}
    agree(fisher.diagonal(model, x, y), expected, 1e-10)


def test_sampled_converges_to_exact():
    torch.manual_seed(0)
    x = torch.rand(200, 12, dtype=torch.float64)
    model, _ = trained(mlp().double(), x, 5)
    exact = fisher.diagonal(model, x, estimator="exact")
    sampled = fisher.diagonal(model, x, estimator="sampled", samples=100, generator=torch.Generator().manual_seed(0))
    agree(sampled, exact, 0.05)


@pytest.mark.parametrize("build", [Shared, Tied])
def test_shared_weights_are_never_silently_wrong(build):
    torch.manual_seed(0)
    width = 8 if build is Shared else 6
    x, y = torch.rand(70, width, dtype=torch.float64), torch.randint(0, 3, (70,))
    model = build().double()
    expected = {k: v / 70 for k, v in loop(model, x, y).items()}
    agree(fisher.diagonal(model, x, y), expected, 1e-10)


def test_closed_forms_serve_the_layers_they_are_for():
    torch.manual_seed(0)
    x = torch.rand(8, 72, dtype=torch.float64)
    model, y = trained(CNN().double(), x, 5)
    how = persample.plan(Networks.of(model.eval()), FinishedTasks.of(x, y), fisher._of_the_label)
    assert how.rest == set()
    shared = Networks.of(Shared().double().eval())
    how = persample.plan(shared, FinishedTasks.of(x[:, :8], y % 3), fisher._of_the_label)
    assert how.layers.keys() == {"head"} and "twice.weight" in how.rest and "scale" in how.rest


def test_sequences_and_embeddings():
    torch.manual_seed(0)
    x, y = torch.randint(0, 7, (20, 5)), torch.randint(0, 4, (20,))
    model = Tokens().double()
    expected = {k: v / 20 for k, v in loop(model, x, y).items()}
    agree(fisher.diagonal(model, x, y), expected, 1e-10)


def test_frozen_parameters_are_left_out():
    torch.manual_seed(0)
    x = torch.rand(10, 12, dtype=torch.float64)
    model, y = trained(mlp().double(), x, 5)
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    found = fisher.diagonal(model, x, y)
    assert "0.weight" not in found and "3.weight" in found


def test_the_model_is_left_as_it_came():
    x = torch.rand(10, 12)
    model, y = trained(mlp(), x, 5)
    model.train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fisher.diagonal(model, x, y)
    assert model[4].training and not model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "emprical"}, "expected one of exact, sampled, empirical, batched, notebook, got 'emprical'"),
        ({"y": None}, "needs the data set's labels"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, r"expected shape \(10,\), one label a sample, got \(3,\)"),
        ({"y": torch.zeros(10)}, "y: expected int64, got float32"),
        ({"y": torch.full((10,), -1)}, "expected labels from 0 to .*, as the model has outputs, got -1 to -1"),
        ({"y": torch.full((10,), 99)}, "expected labels from 0 to .*, got 99 to 99"),
        ({"samples": 0}, "expected at least 1, got 0"),
        ({"batch_size": -5}, "batch_size: expected at least 1, got -5"),
        ({"x": torch.rand(0, 12), "y": torch.zeros(0, dtype=torch.int64)}, "at least one sample"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    given = {"x": torch.rand(10, 12), "y": torch.zeros(10, dtype=torch.int64)} | arguments
    x, y = given.pop("x"), given.pop("y")
    with pytest.raises(ValueError, match=message):
        fisher.diagonal(mlp(), x, y, **given)


def test_layers_that_mix_samples_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="layer '1' normalises by its own batch"):
        fisher.diagonal(model, torch.rand(5, 4), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3, padding="same"), nn.InstanceNorm2d(2, affine=True)])
def test_models_without_any_closed_form_are_differentiated(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (2, 3, 3)), layer, nn.Flatten(), nn.ReLU()).double()
    x, y = torch.rand(12, 18, dtype=torch.float64), torch.randint(0, 3, (12,))
    agree(fisher.diagonal(model, x, y), {k: v / 12 for k, v in loop(model, x, y).items()}, 1e-10)


def test_a_layer_called_by_keyword_is_differentiated():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return self.linear(input=x)

    torch.manual_seed(0)
    model, x, y = Keyword().double(), torch.rand(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,))
    agree(fisher.diagonal(model, x, y), {k: v / 12 for k, v in loop(model, x, y).items()}, 1e-10)


# Stacks


def stack_of(models: list[nn.Module]) -> Networks:
    own = [dict(m.named_parameters()) for m in models], [dict(m.named_buffers()) for m in models]
    params, buffers = ({k: torch.stack([t[k].detach() for t in each]) for k in each[0]} for each in own)
    return Networks(copy.deepcopy(models[0]).eval(), params, buffers)


def finished(parts: list[tuple[Tensor, Tensor]]) -> FinishedTasks:
    """Samples of each run, not as many of each."""
    x, y = (nn.utils.rnn.pad_sequence([p[i] for p in parts], True, fill) for i, fill in ((0, 3), (1, -1)))

    def inputs(places: slice | Tensor) -> Tensor:
        if isinstance(places, slice):
            return x[:, places]
        return torch.stack([own[at] for own, at in zip(x, places, strict=True)])

    return FinishedTasks(2, inputs, y, [torch.Generator().manual_seed(i) for i in range(len(parts))])


@pytest.fixture(
    params=[(mlp, 12, 5), (CNN, 72, 5), (Tokens, 5, 4), (Shared, 8, 3), (Tied, 6, 3)], ids=lambda c: c[0].__name__
)
def three(request: pytest.FixtureRequest) -> tuple[list[nn.Module], list[tuple[Tensor, Tensor]]]:
    """Three networks, and data of different sizes."""
    build, width, classes = request.param
    torch.manual_seed(0)
    models, parts = [], []
    for count in (33, 41, 24):
        x = torch.randint(0, 7, (count, width)) if build is Tokens else torch.rand(count, width, dtype=torch.float64)
        model, y = trained(build().double(), x, classes)
        models.append(model.eval())
        parts.append((x, y))
    return models, parts


@pytest.mark.parametrize("estimator", fisher.ESTIMATORS)
@pytest.mark.parametrize("batch_size", [10, None])
def test_a_stack_has_the_diagonals_of_each_of_its_runs(three, estimator, batch_size, monkeypatch):
    models, parts = three
    monkeypatch.setattr(persample, "CHUNK", 30)
    monkeypatch.setattr(persample, "LEAST", 7)
    options = {"estimator": estimator, "batch_size": batch_size, "samples": 2}
    found = fisher.diagonals(stack_of(models), finished(parts), **options)
    for i, (model, (x, y)) in enumerate(zip(models, parts, strict=True)):
        alone = fisher.diagonal(model, x, y, generator=torch.Generator().manual_seed(i), **options)
        agree({k: v[i] for k, v in found.items()}, alone, 1e-12)


@pytest.mark.parametrize(
    "strategy",
    [MAS(), EWC(), EWC(estimator="exact", fisher_samples=30), EWC(estimator="batched", fisher_batch_size=9),
     EWC(estimator="sampled", fisher_samples=12), EWC(estimator="notebook", fisher_batch_size=15)],
    ids=lambda s: f"{s.name}-{getattr(s, 'estimator', '')}",
)  # fmt: skip
def test_importances_of_a_stack_are_those_of_each_of_its_runs(three, strategy):
    models, parts = three
    found = strategy.measure_stack(stack_of(models), finished(parts))
    for i, (model, (x, y)) in enumerate(zip(models, parts, strict=True)):
        task = FinishedTask(2, lambda x=x: x, y, torch.Generator().manual_seed(i))
        agree({k: v[i] for k, v in found.items()}, strategy.measure(model, task), 1e-12)


def test_inputs_that_all_runs_share_are_no_others_than_inputs_of_their_own():
    torch.manual_seed(0)
    x = torch.rand(20, 72, dtype=torch.float64)
    models = [trained(CNN().double(), x, 5)[0].eval() for _ in range(3)]
    y = torch.randint(0, 5, (3, 20))

    def task(runs: int) -> FinishedTasks:
        inputs = x.expand(runs, -1, -1)
        return FinishedTasks(1, lambda at: inputs[:, at] if isinstance(at, slice) else x[at], y, [None] * 3)

    agree(fisher.diagonals(stack_of(models), task(1)), fisher.diagonals(stack_of(models), task(3)), 1e-12)


def test_a_run_whose_closed_form_does_not_hold_is_differentiated_and_so_are_its_neighbours():
    class Gated(nn.Module):
        """Uses its weight behind its layer's back, in so far as a buffer says."""

        def __init__(self, gate: float) -> None:
            super().__init__()
            self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("gate", torch.tensor(gate))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.linear(x) + self.gate * F.linear(x.square(), self.linear.weight)).tanh())

    torch.manual_seed(0)
    x, y = torch.rand(20, 6, dtype=torch.float64), torch.randint(0, 3, (20,))
    models = [Gated(gate).double().eval() for gate in (0.0, 1.0)]
    found = fisher.diagonals(stack_of(models), finished([(x, y)] * 2))
    for i, model in enumerate(models):
        agree({k: v[i] for k, v in found.items()}, {k: v / 20 for k, v in loop(model, x, y).items()}, 1e-10)


def test_a_parameter_without_entries_does_no_harm():
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing, self.layer = nn.Parameter(torch.zeros(0)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.nothing.sum()

    found = fisher.diagonal(Empty().eval(), torch.randn(5, 4), torch.arange(5) % 3, estimator="empirical")
    assert found["nothing"].shape == (0,) and (found["layer.weight"] > 0).any()
