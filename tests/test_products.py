"""Products by either library: the same values and derivatives, of one run and of a stack."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from strategies import products
from strategies.products import product

RUNS, ROWS, INNER, COLUMNS = 3, 5, 7, 4


@pytest.fixture(params=["MKL", "oneDNN"])
def library(request, monkeypatch):
    """Which library products in float32 are taken by, however small they are."""
    one_dnn = request.param == "oneDNN"
    if one_dnn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "wider_than_mkl", lambda: one_dnn)
    monkeypatch.setattr(products, "WORTH_A_CALL", 0)
    return request.param


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(RUNS, *shape, generator=generator) for shape in ((ROWS, INNER), (INNER, COLUMNS))]


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values with gaps between the rows."""
    return torch.stack([t, t], dim=-2).flatten(-3, -2)[..., ::2, :]


LAYOUTS = {
    "dense": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "sample by sample": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "transposed, sample by sample": lambda t: t.mT.transpose(0, 1).contiguous().transpose(0, 1).mT,
    "with gaps": strided,
}


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_products_are_those_of_each_run_however_they_lie(library, factors, left, right, by_row):
    a, b = factors
    found = products.products(LAYOUTS[left](a), LAYOUTS[right](b), by_row=by_row)
    torch.testing.assert_close(found, torch.einsum("rnk,rkm->rnm", a, b))
    assert (found.transpose(0, 1) if by_row else found).is_contiguous()


def test_onednn_is_asked_where_it_is_wider_and_the_product_large(monkeypatch, factors):
    asked = []
    monkeypatch.setattr(products, "_onednn", lambda a, b: asked.append(a.shape) or a @ b)
    a, b = factors
    for wider, worth in ((False, 0), (True, ROWS * INNER * COLUMNS), (True, 0)):
        monkeypatch.setattr(products, "wider_than_mkl", lambda wider=wider: wider)
        monkeypatch.setattr(products, "WORTH_A_CALL", worth)
        assert not asked
        product(a[0], b[0]), product(a[0].double(), b[0].double()), product(a[0].bfloat16(), b[0].bfloat16())
    assert asked == [(ROWS, INNER)]


@pytest.mark.parametrize(
    ("processor", "wider"),
    [
        ({"cpu_name": "AMD EPYC 9555", "avx512_f": True, "avx512_vp2intersect": True}, True),
        ({"cpu_name": "AMD EPYC 9554", "avx512_f": True, "avx512_vp2intersect": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_f": True, "avx512_vp2intersect": True}, False),
        ({}, False),
    ],
    ids=["Zen 5", "Zen 4", "Intel", "unknown"],
)
def test_only_a_processor_that_mkl_does_not_know_is_wider_than_mkl(monkeypatch, processor, wider):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert products.wider_than_mkl.__wrapped__() is (wider and torch.backends.mkldnn.is_available())


def test_derivatives_are_those_of_plain_products(library, factors):
    def slopes(multiply, a, b):
        def second(a, b):
            of_a, of_b = torch.autograd.grad(multiply(a, b).sin().sum(), (a, b), create_graph=True)
            return torch.autograd.grad(of_a.cos().sum() + of_b.square().sum(), (a, b))

        return second(*(t.clone().requires_grad_() for t in (a, b)))

    a, b = factors
    torch.testing.assert_close(slopes(products.products, a, b), slopes(torch.bmm, a, b))
    torch.testing.assert_close(slopes(product, a[0], b[0]), slopes(torch.matmul, a[0], b[0]))


@pytest.mark.parametrize("shared", ["neither", "left", "right"])
def test_runs_may_share_a_factor(library, factors, shared):
    a, b = (t[0] if name == shared else t for name, t in zip(("left", "right"), factors, strict=True))
    dims = (None if shared == "left" else 0, None if shared == "right" else 0)

    def slope(multiply):
        return lambda a, b: grad(lambda a, b: multiply(a, b).sin().sum(), argnums=(0, 1))(a, b)

    for fn in (lambda multiply: multiply, slope):
        torch.testing.assert_close(vmap(fn(product), dims)(a, b), vmap(fn(torch.matmul), dims)(a, b))


@pytest.mark.parametrize("shared", ["neither", "left", "right"])
def test_products_may_be_lifted_twice(library, factors, shared):
    more = [torch.stack([t, t + 1]) for t in factors]
    a, b = (t[0] if name == shared else t for name, t in zip(("left", "right"), more, strict=True))
    dims = (None if shared == "left" else 0, None if shared == "right" else 0)
    found = vmap(vmap(product), dims)(a, b)
    torch.testing.assert_close(found, torch.matmul(a, b))
