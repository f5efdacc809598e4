"""Gradients of the quantizer: against autograd through the same formula, and finite differences."""

import pytest
import torch
from torch import Tensor

from qgraph.formats import Element, Gradient, find_element, parse_format, parse_gradient
from qgraph.numerics import fake_quant, quant_backward, round_to
from qgraph.numerics.gradient import derivative
from tests.numerics.data import kinds, same_bits

ESTIMATORS = ("ste", "clipped", "spline", "dge", "dge:3:2")
BLOCKS = ("int4/1x8/fp32", "e2m1/1x16/fp32", "e4m3/row/fp32", "nf4/4x4/fp32", "int8/tensor/fp32")


class Rounding(torch.autograd.Function):
    """Rounding with an estimator's derivative, for autograd to differentiate around."""

    @staticmethod
    def forward(ctx, u: Tensor, element: Element, gradient: Gradient) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(u)
        ctx.rule = (element, gradient)
        return round_to(u.float(), element).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (u,) = ctx.saved_tensors
        return grad * derivative(u.float(), *ctx.rule).to(grad.dtype), None, None


def by_autograd(grad: Tensor, x: Tensor, text: str, gradient: Gradient) -> Tensor:
    """Differentiate f(x) = Q(x/s)·s, s = amax/M, block by block; s constant without `absmax`."""
    fmt = parse_format(text)
    x = x.double().requires_grad_()
    along = fmt.block.along or x.shape[-1]
    across = fmt.block.across or x.shape[-2]
    tiles = x.unflatten(-1, (-1, along)).unflatten(-3, (-1, across))
    amax = tiles.abs().amax((-3, -1), keepdim=True)
    scale = amax / fmt.element.max
    scale = scale if gradient.absmax else scale.detach()
    values = Rounding.apply(tiles / scale, fmt.element, gradient) * scale  # type: ignore[no-untyped-call]
    values.flatten(-2).flatten(-3, -2).backward(grad.double())
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("text", BLOCKS)
@pytest.mark.parametrize("tail", ["", "+absmax"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_agrees_with_autograd_through_the_formula(text: str, tail: str, estimator: str) -> None:
    generator = torch.Generator().manual_seed(30)
    # Away from the estimators' jumps, where a last bit of x/s decides.
    x, grad = torch.randn(8, 32, generator=generator), torch.randn(8, 32, generator=generator)
    gradient = parse_gradient(estimator + tail)
    found = quant_backward(grad, x, parse_format(text), -1, gradient)
    want = by_autograd(grad, x, text, gradient).float()
    wrong = ~torch.isclose(found, want, rtol=2e-4, atol=2e-5)
    assert int(wrong.sum()) <= 2 if estimator == "spline" else not bool(wrong.any())
    if gradient.straight:
        assert torch.equal(found, grad)
    else:
        assert not torch.equal(found, grad) or (estimator == "clipped" and not tail)


def test_absmax_is_the_derivative_of_the_quantizer_in_its_largest_element() -> None:
    # Q is flat between its jumps, so the derivative along the largest element is that of the scale alone.
    fmt = parse_format("int4/1x8/fp32")
    x = torch.tensor([[3.1, -0.4, 1.27, 0.9, -2.2, 0.05, 1.9, -1.1]], dtype=torch.float32)
    weights = torch.tensor([[0.3, -1.0, 2.0, 0.5, 1.5, -0.7, 0.2, 1.1]])
    step = torch.zeros_like(x)
    step[0, 0] = 2.0**-9
    ahead = (fake_quant(x + step, fmt, -1).double() * weights).sum()
    behind = (fake_quant(x - step, fmt, -1).double() * weights).sum()
    # With Q' = 0 everywhere the product rule gives sum(w·Q)/M for it.
    codes = fake_quant(x, fmt, -1) / (3.1 / 7)
    want = float((weights * codes).sum() / 7)
    assert float(ahead - behind) / 2.0**-8 == pytest.approx(want, rel=1e-3)
    ste = quant_backward(weights, x, fmt, -1, parse_gradient("ste+absmax"))
    inner = (weights * x / (3.1 / 7)).sum() / 7  # what Q' = 1 takes off again
    assert float(ste[0, 0]) == pytest.approx(0.3 + want - float(inner), rel=1e-4)
    assert torch.equal(ste[0, 1:], weights[0, 1:])


def test_the_estimators_have_the_integral_of_rounding() -> None:
    # Over one cell, a derivative integrates to the step: 1. dge loses what its cap cuts off.
    element = find_element("int8")
    u = torch.linspace(3, 4, 200_001, dtype=torch.float64)[:-1].float()
    mean = {
        name: float(derivative(u, element, parse_gradient(name)).double().mean())
        for name in ("ste", "clipped", "spline", "dge:2:999")
    }
    assert mean == pytest.approx(dict.fromkeys(mean, 1.0), abs=5e-3)
    capped = derivative(u, element, parse_gradient("dge"))
    assert float(capped.max()) == 3.0
    assert 0.5 < float(capped.double().mean()) < 1.0


def test_saturated_elements_get_no_gradient_unless_it_is_straight() -> None:
    x, fmt = torch.tensor([[1.0, 2.9, 3.1, -8.0]]), parse_format("int4/row/fp32:fixed3")
    grad = torch.ones(1, 4)
    for estimator, want in (("ste", [1.0, 1.0, 1.0, 1.0]), ("clipped", [1.0, 1.0, 0.0, 0.0])):
        found = quant_backward(grad, x, fmt, -1, parse_gradient(estimator))
        assert found.tolist() == [want]


@pytest.mark.parametrize("estimator", ["clipped", "spline", "dge", "ste+absmax"])
@pytest.mark.parametrize("text", [*BLOCKS, "e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil"])
def test_either_axis_and_any_data(estimator: str, text: str) -> None:
    fmt, gradient = parse_format(text), parse_gradient(estimator)
    for kind, x in kinds().items():
        grad = torch.ones_like(x)
        along = quant_backward(grad, x, fmt, -1, gradient)
        across = quant_backward(grad.mT, x.mT, fmt, -2, gradient)
        assert torch.allclose(across.mT, along, rtol=1e-4, atol=1e-4, equal_nan=True), kind
        assert along.shape == x.shape
        if kind not in ("nan", "inf"):
            assert bool(along.isfinite().all()), kind


def test_the_gradient_keeps_its_dtype_and_empty_tensors_pass() -> None:
    fmt, gradient = parse_format("int4/1x8/fp32"), parse_gradient("clipped+absmax")
    x = torch.randn(3, 16)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert quant_backward(torch.ones(3, 16, dtype=dtype), x, fmt, -1, gradient).dtype == dtype
    assert quant_backward(x[:0], x[:0], fmt, -1, gradient).shape == (0, 16)
    assert same_bits(quant_backward(x, x, fmt, -1, parse_gradient("ste")), x)
