"""The definitions compiled by Inductor give the bits they give in eager mode."""

import pytest
import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import parse_format, parse_rounding
from qgraph.numerics import Noise
from tests.cases import mostly_full
from tests.numerics.data import kinds, same_bits

DATA = kinds(32, 64)
# One of each kind of element, scale, range and dialect; every one costs a compilation.
CASES = (
    ("e2m1/1x16/e4m3/fp32", "nearest"),
    ("e2m1/16x16/e4m3/fp32", "stochastic"),
    ("e4m3/1x32/ue8m0-rceil", "nearest"),
    ("e5m2/tensor/fp32", "toward_zero"),
    ("int8/row/fp32", "nearest"),
    ("int4+asymmetric/1x32/fp32", "nearest_away"),
    ("nf4/1x32/fp32", "nearest"),
    ("e2m1/1x16/ue5m3-up", "odd"),
    ("e2m1/1x16/e4m3:4over6/fp32", "nearest"),
    ("e2m1/1x16/e4m3/fp32@modelopt", "nearest"),
    ("e2m1/1x32/ue8m0-rfloor:std", "nearest"),
    ("e5m2+overflow/1x32/fp32:fixed3", "up"),
    ("e4m3/row/fp32-pow2@torchao", "stochastic:24"),
    ("int8+asymmetric/row/fp32:absmax+floor1e-5", "nearest"),
)


TELLING = ("e2m1/1x16/e4m3/fp32 nearest", "e4m3/1x32/ue8m0-rceil nearest", "int8/row/fp32 nearest")


@pytest.mark.parametrize(("text", "mode"), mostly_full(CASES, TELLING, " ".join))
def test_compiled_definitions_give_the_same_bits(text: str, mode: str) -> None:
    fmt, rounding = parse_format(text), parse_rounding(mode)
    noise = Noise(seed=5, site=6) if rounding.random else None

    def quantized(x: Tensor) -> Tensor:
        return numerics.fake_quant(x, fmt, -1, noise, rounding)

    torch.compiler.reset()
    compiled = torch.compile(quantized, fullgraph=True)
    wrong = [kind for kind, x in DATA.items() if not same_bits(compiled(x), quantized(x))]
    assert wrong == []


@pytest.mark.parametrize("dtype", mostly_full([torch.bfloat16, torch.float16], ("torch.bfloat16",)))
def test_compiled_definitions_take_half_precision_and_views(dtype: torch.dtype) -> None:
    fmt = parse_format("e4m3/1x32/ue8m0-rceil")

    def quantized(x: Tensor) -> Tensor:
        return numerics.fake_quant(x, fmt, -2)

    torch.compiler.reset()
    compiled = torch.compile(quantized, fullgraph=True)
    for kind in ("randn", "rows_exp8", "inf", "nan", "denormal"):
        x = DATA[kind].to(dtype).mT
        assert not x.is_contiguous()
        assert same_bits(compiled(x), quantized(x)), kind
