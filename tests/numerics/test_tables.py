"""Codes by table have the bits of the definitions, for every value of every short element."""

from __future__ import annotations

import pytest
import torch

from qgraph.formats import ELEMENTS, find_element, parse_format
from qgraph.numerics import decode, dequantize, encode, quantize
from qgraph.numerics.tables import decode_by_table, decode_pairs, encode_by_table
from qgraph.ops import element_steps
from qgraph.ops.cpu.two_passes import CPU_STEPS

SHORT = [name for name, element in ELEMENTS.items() if element.bits <= 8]
OTHERS = [
    "int8+full",
    "int5",
    "fixed2.6",
    "e4m3+b8+fnuz",
    "e3m2+b3.5",
    "e5m2+overflow",
    "log4",
    "list(-1,0.3,2)",
]


@pytest.mark.parametrize("name", [*SHORT, *OTHERS])
def test_every_code_and_value(name: str) -> None:
    element = find_element(name)
    codes = torch.arange(2**element.bits, dtype=torch.uint8)
    values = decode(codes, element)
    assert _bits(decode_by_table(codes, element), values)
    if element.bits <= 4:
        both = codes | (codes.flip(0) << 4)
        assert _bits(
            decode_pairs(both, element), torch.stack([values, values.flip(0)], -1).flatten()
        )
    specials = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf])
    for x in (values, specials if name.startswith(("e", "u")) else values):
        assert torch.equal(encode_by_table(x, element), encode(x, element))


@pytest.mark.parametrize(
    "text", ["bfp4", "nvfp4", "mxfp8", "int8/row/fp32", "int4+asymmetric/1x32/fp32"]
)
def test_packing_by_table_is_packing(text: str) -> None:
    fmt = parse_format(text)
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 1e-3
    stored = quantize(x, fmt, -1)
    if element_steps(x) is CPU_STEPS:
        for one, two in zip(quantize(x, fmt, -1, kernels=CPU_STEPS), stored, strict=True):
            assert one.dtype == two.dtype
            assert torch.equal(one.float(), two.float())
    ways = [dequantize(*stored, fmt, x.shape, -1, x.dtype, tables=way) for way in (False, True)]
    assert _bits(*ways)


def _bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    return torch.equal(
        one.nan_to_num().view(torch.int32), two.nan_to_num().view(torch.int32)
    ) and torch.equal(one.isnan(), two.isnan())
