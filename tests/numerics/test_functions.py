"""Functions by other definitions: as near to the exact value as torch's own, at the edges as torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qgraph.numerics import two_pass_softmax

LEAST = torch.finfo(torch.float32).min


def rows(scale: float) -> Tensor:
    x = torch.randn(64, 513, generator=torch.Generator().manual_seed(3)) * scale
    x[0, 3], x[1, 5] = -math.inf, LEAST  # as masks are written
    return x


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4, 1e12])
def test_two_pass_softmax_errs_no_more_than_an_ulp_beyond_torchs(scale: float) -> None:
    x = rows(scale)
    exact = x.double().softmax(-1)
    found, usual = (abs(y.double() - exact) for y in (two_pass_softmax(x, -1), x.softmax(-1)))
    ulp = torch.finfo(torch.float32).eps
    assert found.max() <= usual.max() + ulp
    assert found.max() < 4 * ulp
    assert abs(two_pass_softmax(x, -1).sum(-1) - 1).max() < 64 * ulp


def test_its_gradient_is_softmaxs() -> None:
    x = rows(2.0).requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    (found,) = torch.autograd.grad(two_pass_softmax(x, -1), x, upstream)
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(wide.softmax(-1), wide, upstream.double())
    assert exact.abs().max() > 0.1
    assert abs(found.double() - exact).max() < 1e-6


@pytest.mark.parametrize(
    "row", [[-math.inf] * 4, [math.inf, 1.0], [math.nan, 1.0], [-math.inf, 2.0]]
)
def test_at_the_edges_it_is_torchs(row: list[float]) -> None:
    x = torch.tensor([row])
    assert torch.equal(two_pass_softmax(x, 1).isnan(), x.softmax(1).isnan())
    assert torch.equal(two_pass_softmax(x, 1).nan_to_num(), x.softmax(1).nan_to_num())


def test_any_axis_and_dtype() -> None:
    x = rows(1.0).bfloat16()
    found = two_pass_softmax(x, 0)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), x.float().softmax(0), rtol=2**-8)
