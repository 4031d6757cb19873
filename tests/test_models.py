"""Networks by name: what they are made of, what an experiment file may say of them, and which ones can be stacked."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from benchmark.models import MODELS, Model, options, require_stackable, resolve
from benchmark.networks import AtLeast

if TYPE_CHECKING:
    from somewhere import Something  # type: ignore[import-not-found]

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def built(name: str, shape: tuple[int, ...] = (1, 8, 8), *, seed: int = 0, **given: Any) -> nn.Module:
    return resolve({"name": name, **given}).build(shape, 10, seed=seed)


def path(factory: Callable[..., Any]) -> str:
    """How an experiment file names a factory of this file."""
    return f"{__name__}:{factory.__name__}"


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# What the built-in networks are.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_network_makes_logits_of_every_image_size_and_can_be_stacked(name, shape):
    network = resolve(name).build(shape, 7, seed=0)
    assert network(torch.rand(4, *shape)).shape == (4, 7)
    require_stackable(resolve(name), shape, 7)


@pytest.mark.parametrize("name", ["mlp", "mlp-bn"])
def test_multilayer_perceptrons_take_images_and_vectors_alike(name):
    x = torch.rand(5, 2, 3, 4)
    on_images, on_vectors = built(name, (2, 3, 4)).eval(), built(name, (24,)).eval()
    assert torch.equal(on_images(x), on_vectors(x.flatten(1)))


@pytest.mark.parametrize(
    ("pixels", "outputs", "seed", "expected"),
    [
        (784, 10, 0, [-15.80666, 0.0257880, 0.0147106, 5.44702, -0.0349125, -0.0018634, 1.13432, -0.0657524]),
        (64, 10, 3, [0.6767, 0.0893465, -0.0338703, 0.85522, 0.0018899, -0.024186, 0.59964, -0.081948]),
        (3072, 100, 0, [-0.52333, 0.0130276, -0.0165903, -8.61415, 0.0258982, -0.0473227, -2.37919, -0.0662374]),
    ],
)
def test_the_notebooks_network_starts_where_it_always_did(pixels, outputs, seed, expected):
    network = resolve("mlp-bn").build((1, 1, pixels), outputs, seed=seed)
    values = network.state_dict()
    assert [k for k in values if k.endswith("weight")] == [
        f"{layer}.weight" for layer in ("linear1", "bn1", "linear2", "bn2", "linear3")
    ]
    one, two, three = (values[f"linear{i}.weight"].double() for i in (1, 2, 3))
    got = [one.sum(), one[0, 0], one[-1, -1], two.sum(), two[0, 0], two[-1, -1], three.sum(), three[0, 0]]
    torch.testing.assert_close(torch.stack(got), torch.tensor(expected).double(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_decides_the_initial_values_and_nothing_else_does(name):
    first = built(name, seed=3).state_dict()
    torch.rand(1)
    again, other = built(name, seed=3).state_dict(), built(name, seed=4).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_building_and_checking_leave_the_process_generator_alone():
    before = torch.get_rng_state()
    built("mlp")
    require_stackable(resolve({"name": "mlp", "widths": [3]}), (5,), 2)
    with pytest.raises(ValueError):
        require_stackable(resolve(path(dropout)), (5,), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ({}, [nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)]),
        ({"widths": []}, [nn.Linear(64, 10)]),
        (
            {"widths": [7, 5], "activation": "tanh", "norm": "batch"},
            [
                *(nn.Linear(64, 7), nn.BatchNorm1d(7), nn.Tanh()),
                *(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Tanh()),
                nn.Linear(5, 10),
            ],
        ),
        (
            {"widths": [6], "activation": "gelu", "norm": "layer"},
            [nn.Linear(64, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 10)],
        ),
        ({"widths": [6], "activation": "elu"}, [nn.Linear(64, 6), nn.ELU(), nn.Linear(6, 10)]),
        ({"widths": [6], "activation": "silu"}, [nn.Linear(64, 6), nn.SiLU(), nn.Linear(6, 10)]),
    ],
    ids=str,
)
def test_a_multilayer_perceptron_is_linear_then_norm_then_activation(given, layers):
    assert_same_network(built("mlp", **given), nn.Sequential(nn.Flatten(), *layers))


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        (
            {"widths": [3, 4, 5], "hidden": 6},
            [
                *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()),
                *(nn.Flatten(), nn.Linear(80, 6), nn.ReLU(), nn.Linear(6, 10)),
            ],
        ),
        (
            {"widths": [2], "hidden": 3},
            [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3), nn.ReLU(), nn.Linear(3, 10)],
        ),
    ],
    ids=str,
)
def test_a_convolutional_network_pools_after_every_second_convolution(given, layers):
    assert_same_network(built("cnn", **given), nn.Sequential(*layers))


def test_the_small_resnet_of_full_width_is_torchvisions_without_its_large_stem():
    oracle = torchvision.models.resnet18(num_classes=10)
    oracle.conv1, oracle.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
    assert_same_network(built("resnet18-small", width=64), oracle)


def test_the_small_resnet_is_as_large_as_the_one_of_gem():
    """1 109 240 parameters for 100 classes of 3x32x32 images, counted in GEM's published code (model/common.py)."""
    assert parameters(resolve("resnet18-small").build((3, 32, 32), 100, seed=0)) == 1_109_240
    assert parameters(resolve("resnet18-small").build((3, 32, 32), 10, seed=0)) == 1_094_750


def assert_same_network(network: nn.Module, oracle: nn.Module) -> None:
    """Equal logits and gradients once the oracle has the same weights in the same order."""
    values = network.state_dict().values()
    oracle.load_state_dict(dict(zip(oracle.state_dict(), values, strict=True)))
    x = torch.rand(3, 1, 8, 8)
    for mode in (True, False):
        ours, theirs = network.train(mode)(x), oracle.train(mode)(x)
        torch.testing.assert_close(ours, theirs)
    mine = torch.autograd.grad(ours.square().sum(), list(network.parameters()))
    other = torch.autograd.grad(theirs.square().sum(), list(oracle.parameters()))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


# What an experiment file may say.


def linear(shape: tuple[int, ...], outputs: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), outputs, bias=bias))


def demanding(
    shape: tuple[int, ...], outputs: int, *, depth: Annotated[int, AtLeast(2)], scale: float = 1.0
) -> nn.Module:
    return linear(shape, outputs)


def lenient(shape, outputs, anything=None, **more):
    return linear(shape, outputs)


def unresolvable(shape: Something, outputs: int, size: int = 1) -> nn.Module:
    return linear(shape, outputs)


def optional(
    shape: tuple[int, ...], outputs: int, size: int | None = None, pair: tuple[int, str] = (1, "")
) -> nn.Module:
    return linear(shape, outputs)


partial = functools.partial(linear, bias=False)


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("mlp", "mlp"),
        ({"name": "mlp"}, "mlp"),
        ({"name": "mlp", "widths": [400, 400], "norm": "batch"}, "mlp[norm=batch,widths=400x400]"),
        ({"name": "mlp", "widths": []}, "mlp[widths=none]"),
        ({"name": path(demanding), "scale": 0.5, "depth": 3}, f"{path(demanding)}[depth=3,scale=0.5]"),
        ({"name": path(demanding), "scale": 0.12345671, "depth": 3}, f"{path(demanding)}[depth=3,scale=0.12345671]"),
    ],
    ids=str,
)
def test_a_label_is_the_name_and_what_was_given(spec, label):
    assert resolve(spec).label == label


def test_models_compare_by_what_was_given_in_any_order():
    a = resolve({"name": "mlp", "norm": "layer", "widths": [3, 4]})
    b = resolve({"widths": (3, 4), "norm": "layer", "name": "mlp"})
    assert a == b == Model("mlp", (("norm", "layer"), ("widths", (3, 4))))
    assert len({a, b, resolve("mlp")}) == 2


def test_a_spec_is_json_and_resolves_to_the_model_again():
    model = resolve({"name": "mlp", "widths": [3, 4]})
    spec = json.loads(json.dumps(model.spec()))
    assert spec == {"name": "mlp", "options": {"widths": [3, 4]}, "code": ""}
    assert resolve({"name": spec["name"], **spec["options"]}) == model


@pytest.mark.parametrize("factory", ["linear", "partial", "optional"])
def test_a_factory_of_ones_own_makes_networks_that_can_be_stacked(factory):
    model = resolve(f"{__name__}:{factory}")
    assert model.build((1, 2, 2), 3, seed=0)(torch.rand(5, 1, 2, 2)).shape == (5, 3)
    require_stackable(model, (1, 2, 2), 3)


def test_the_source_of_a_factory_of_ones_own_is_part_of_its_spec(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    for i, comment in enumerate(("", "", "# another version\n")):
        (tmp_path / f"nets{i}.py").write_text(
            f"from tests.test_models import partial\n{comment}def f(shape, outputs): ...\n"
        )
        codes.append([resolve(f"nets{i}:{name}").spec()["code"] for name in ("f", "partial")])
    assert codes[0] == codes[1]
    assert all(a != b and len(a) == 16 for a, b in zip(codes[0], codes[2], strict=True))


def test_the_options_of_a_model_can_be_listed():
    assert {k: p.default for k, p in options("cnn").items()} == {"widths": (32, 32, 64, 64), "hidden": 512}
    assert options("mlp-bn") == {}
    assert list(options(path(lenient))) == ["anything", "**more"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mlpp", "unknown model 'mlpp'; did you mean 'mlp'? (forgetbench list models)"),
        ({"widths": [3]}, "name: expected the name of a model, got None (forgetbench list models)"),
        ({"name": "mlp", "width": [3]}, "model 'mlp': unknown option 'width'; did you mean 'widths'?"),
        ({"name": "mlp", "depth": 3}, "unknown option 'depth'; it takes widths, activation, norm"),
        ({"name": "mlp-bn", "widths": [3]}, "model 'mlp-bn': unknown option 'widths'; it takes none"),
        ({"name": "mlp", "widths": [400, 0]}, "widths: expected a list of whole numbers >= 1, got [400, 0]"),
        ({"name": "mlp", "widths": [True]}, "widths: expected a list of whole numbers >= 1, got [True]"),
        ({"name": "mlp", "widths": 400}, "widths: expected a list of whole numbers >= 1, got 400"),
        ({"name": "mlp", "norm": "group"}, "norm: expected one of 'none', 'batch', 'layer', got 'group'"),
        ({"name": "cnn", "hidden": 2.5}, "hidden: expected a whole number >= 1, got 2.5"),
        ({"name": "resnet18-small", "width": 0}, "width: expected a whole number >= 1, got 0"),
        ({"name": path(demanding)}, "factory(shape, outputs, **options): missing a required argument: 'depth'"),
        ({"name": path(demanding), "depth": 1}, "depth: expected a whole number >= 2, got 1"),
        ({"name": path(demanding), "depth": 2, "scale": "big"}, "scale: expected a number, got 'big'"),
        ({"name": path(demanding), "depth": 2, "scale": float("nan")}, "scale: expected a number, got nan"),
        ({"name": path(linear), "bias": 1}, "bias: expected true or false, got 1"),
        (
            {"name": path(lenient), "other": {"a": 1}},
            "other: expected text, a number, true or false, or a list of these",
        ),
        ({"name": path(optional), "size": "big"}, "size: expected a whole number, got 'big'"),
        ("nowhere.at.all:net", "model 'nowhere.at.all:net' cannot be imported: ModuleNotFoundError: No module"),
        (f"{__name__}:nothing", "cannot be imported: AttributeError"),
        (f"{__name__}:SHAPES", "expected a function or class that makes a network, got [(1, 8, 8)"),
        ("torch.nn:Flatten.nothing", "cannot be imported: AttributeError"),
        ("torchvision.models:resnet18", "called as factory(shape, outputs, **options): too many positional arguments"),
    ],
    ids=str,
)
def test_what_an_experiment_file_gets_wrong_is_said(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": path(demanding), "depth": 2, "scale": 3},
        {"name": path(lenient), "anything": "x", "other": [1, 2.5, ["y"]]},
        {"name": path(unresolvable), "size": "left to the factory"},
        {"name": path(optional), "size": 3, "pair": [1, "a"]},
    ],
    ids=str,
)
def test_options_of_ones_own_factory_are_checked_as_far_as_annotations_say(spec):
    resolve(spec).build((4,), 2, seed=0)


@pytest.mark.parametrize("name", ["cnn", "resnet18-small"])
@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 0, 8)], ids=str)
def test_networks_for_images_refuse_anything_else(name, shape):
    with pytest.raises(
        ValueError, match=rf"model '{name}' cannot be built: expected images .* got {re.escape(str(shape))}"
    ):
        built(name, shape)


def test_images_that_pooling_would_leave_nothing_of_are_refused():
    assert built("cnn", (1, 4, 4))(torch.rand(2, 1, 4, 4)).shape == (2, 10)
    with pytest.raises(ValueError, match=re.escape("at least 4 by 4, got (1, 4, 3)")):
        built("cnn", (1, 4, 3))


def test_a_factory_that_makes_no_module_or_fails_is_refused():
    with pytest.raises(ValueError, match="expected the factory to return an nn.Module, got 'a network'"):
        resolve(path(text)).build((4,), 2, seed=0)
    with pytest.raises(ValueError, match="failing' cannot be built: ZeroDivisionError"):
        require_stackable(resolve(path(failing)), (4,), 2)


def text(shape: tuple[int, ...], outputs: int) -> str:
    return "a network"


def failing(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Linear(1 // 0, outputs)


# What can be stacked.


class Flat(nn.Module):
    """One linear layer, to be spoiled in every way there is."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(torch.Size(shape).numel(), outputs)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x.flatten(1))


def dropout(shape, outputs):
    return nn.Sequential(Flat(shape, outputs), nn.Dropout())


def without_momentum(shape, outputs):
    return nn.Sequential(Flat(shape, outputs), nn.BatchNorm1d(outputs, momentum=None))


def without_tracking(shape, outputs):
    return nn.Sequential(Flat(shape, outputs), nn.BatchNorm1d(outputs, track_running_stats=False))


def lazy(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(outputs))


def empty(shape, outputs):
    return nn.Flatten()


def wide(shape, outputs):
    return Flat(shape, 2 * outputs)


def recurrent(shape, outputs):
    return nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (1, -1)), LastOf(nn.LSTM(shape[0], outputs, batch_first=True)))


def overwriting(shape, outputs):
    return nn.Sequential(nn.ReLU(inplace=True), Flat(shape, outputs))


def misfit(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(3, outputs))


class LastOf(nn.Module):
    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


class Pair(Flat):
    def forward(self, x):
        return super().forward(x), x


class ReadsValues(Flat):
    def forward(self, x):
        return super().forward(x) * float(self.linear.bias.detach().sum())


class Branches(Flat):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class Sums(Flat):
    def forward(self, x):
        total = torch.zeros(len(x), self.linear.out_features, dtype=x.dtype)
        total += super().forward(x)
        return total


class PlainTensor(Flat):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        self.scale = torch.rand(outputs, dtype=torch.float64)

    def forward(self, x):
        return super().forward(x) * self.scale


class Counts(Flat):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Remembers(Flat):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


class Noisy(Flat):
    def forward(self, x):
        return super().forward(x) * random.random()


class UnkeyedStart(Flat):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        nn.init.constant_(self.linear.bias, random.random())


class Running(Flat):
    """A running mean of its logits, in a buffer written in place: as it should be."""

    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        self.register_buffer("mean", torch.zeros(outputs))

    def note(self, mean):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * mean)

    def forward(self, x):
        y = super().forward(x)
        self.note(y.detach().mean(0))
        return y - self.mean


class Rebinds(Running):
    def note(self, mean):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * mean


class NotesInEvalMode(Running):
    def note(self, mean):
        self.mean.mul_(0.9).add_(0.1 * mean)

    def forward(self, x):
        y = Flat.forward(self, x)
        self.note(y.detach().mean(0))
        return y


class WholeNumbers(Flat):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        self.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)


class Frozen(Flat):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        self.linear.bias.requires_grad_(False)


class Detached(Flat):
    def forward(self, x):
        return super().forward(x).detach()


class MixesSamples(Flat):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0)


@functools.cache
def one_for_all(shape, outputs):
    return Flat(shape, outputs)


class Halves(Flat):
    """A custom gradient that is wrong under `vmap`, where `generate_vmap_rule` meets a constant of the whole batch."""

    def forward(self, x):
        return _Scaled.apply(super().forward(x))


class _Scaled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y):
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (2 if torch._C._functorch.maybe_current_level() else 1)


def local_class(shape, outputs):
    class Local(nn.Linear):
        pass

    return Local(shape[0], outputs)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (local_class, "stacked: its class is another one at each call: define the class at module level"),
        (
            dropout,
            "in train mode, layer '1' (Dropout): it draws random numbers, so that a run's result would depend on",
        ),
        (without_momentum, "layer '1' (BatchNorm1d): it makes a Python number of a tensor"),
        (without_tracking, "in eval mode, layer '1' (BatchNorm1d): Expected more than 1 value per channel"),
        (MixesSamples, "in eval mode, a sample's logits depend on the other samples of its batch"),
        (ReadsValues, "it makes a Python number of a tensor"),
        (Branches, "it branches on a tensor, which has a value a run: use torch.where"),
        (Sums, "it writes in place into a tensor that the runs share"),
        (recurrent, "layer '2.lstm' (LSTM): RuntimeError: Batching rule not implemented for aten::lstm"),
        (PlainTensor, "logits in a stack and alone differ: it uses something that is neither parameter nor buffer"),
        (Counts, "it keeps state in 'calls', which the runs of a stack would share: use a buffer"),
        (Remembers, "it keeps state in 'seen'"),
        (Noisy, "in train mode, the same call twice gives different logits"),
        (UnkeyedStart, "two networks of one seed differ"),
        (one_for_all, "two networks share 'linear.weight': make new tensors at every call"),
        (Rebinds, "buffer 'mean' in a stack and alone differ: buffers are to be written in place"),
        (NotesInEvalMode, "it changes buffer 'mean' in eval mode"),
        (Halves, "gradient of 'linear.weight' in a stack and alone differ"),
        (WholeNumbers, "parameter 'steps': expected floating point, got torch.int64"),
        (Frozen, "parameter 'linear.bias' requires no gradient, but all parameters train: use a buffer"),
        (Detached, "its logits do not depend on its parameters"),
        (lazy, "'1.weight' is lazy"),
        (empty, "it has no parameters"),
        (overwriting, "it writes into its inputs"),
        (wide, "expected logits of shape (4, 3) for inputs of shape (4, 5), got (4, 6)"),
        (Pair, "expected logits of shape (4, 3) for inputs of shape (4, 5), got a tuple"),
        (misfit, "called with inputs of shape (4, 5) in train mode, layer '1' (Linear): RuntimeError"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(factory, reason):
    name = path(factory)
    with pytest.raises(
        ValueError, match=rf"model '{re.escape(name)}' cannot be trained in a stack: .*{re.escape(reason)}"
    ):
        require_stackable(resolve(name), (5,), 3)


@pytest.mark.parametrize("factory", [Flat, Running])
def test_what_can_be_stacked_is_not_refused(factory):
    require_stackable(resolve(path(factory)), (5,), 3)
