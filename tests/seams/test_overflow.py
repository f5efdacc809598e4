"""What overflows is seen in the product, so that a GradScaler and NaN checks see it too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qgraph
from qgraph import numerics, ops
from qgraph.formats import parse_format
from qgraph.passes import Target
from qgraph.policy import load_policy, recipe_names

FORMATS = sorted(
    {
        str(operand.format)
        for name in recipe_names()
        for rule in load_policy(name).rules
        for product in rule.products.values()
        for operand in product.values()
        if operand.format is not None and "delayed" not in str(operand.format)
    }
)


@pytest.mark.parametrize("text", FORMATS)
def test_an_infinite_element_is_not_finite_in_the_product(text: str) -> None:
    fmt = parse_format(text)
    noise = numerics.Noise(seed=1, site=1) if fmt.scale.random else None
    for bad in (torch.inf, -torch.inf, torch.nan):
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
        x[3, 5] = bad
        assert not bool(numerics.fake_quant(x, fmt, -1, noise)[3, 5].isfinite())
        if fmt.scale.kind == "none":  # no product multiplies its codes
            continue
        codes, scales, whole = ops.quantize(x, text, -1, *([torch.tensor(1), 1] if noise else []))
        found = ops.dequantize(codes, scales, whole, text, list(x.shape), -1, x.dtype)
        assert not bool(found[3, 5].isfinite())


def test_codes_and_scales_stay_those_of_the_dialect() -> None:
    x = torch.tensor([[1.0, torch.inf, -2.0, 0.5]])
    codes, scales, _ = numerics.quantize(x, parse_format("e4m3/tensor/fp32"), -1)
    assert scales.item() == 1.0  # Transformer Engine: an infinity has scale 1 and saturates
    assert codes.view(torch.float8_e4m3fn).float().tolist() == [[1.0, 448.0, -2.0, 0.5]]


@pytest.mark.parametrize("text", FORMATS)
def test_values_near_the_limit_of_half_precision_stay_finite(text: str) -> None:
    fmt = parse_format(text)
    noise = numerics.Noise(seed=1, site=1) if fmt.scale.random else None
    x = torch.full((32, 64), 65504.0, dtype=torch.float16)
    x[:, ::2] = -65504.0
    assert bool(numerics.fake_quant(x, fmt, -1, noise).isfinite().all())
    assert bool(
        ops.fake_quant(x, text, -1, *([torch.tensor(1), 1] if noise else [])).isfinite().all()
    )


@pytest.mark.parametrize("target", ["emulate", "native-always"])
@pytest.mark.parametrize("recipe", ["fp8", "fp8_row", "fp8_lm", "int8", "mxfp8", "nvfp4"])
def test_a_gradient_that_overflows_reaches_the_scaler(recipe: str, target: Target) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    qgraph.compile(model, recipe, codegen=False, target=target)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.autocast("cpu", dtype=torch.float16):
        y = model(torch.randn(32, 64))
    scaler.scale((y.float() * 300).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert all(map(torch.equal, before, model.parameters()))
