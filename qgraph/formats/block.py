"""Block formats: an element format, the block that shares a scale, and how the scale is found.

A block format has a text form, used in policies, printed graphs and reports:

    element/block/scale[-rounding][:range][/tensor scale][@dialect]

    e2m1/1x16/e4m3/fp32            NVFP4               e4m3/1x32/ue8m0-rceil    MXFP8
    e2m1/1x16/e4m3:4over6/fp32     four over six       int16/tensor/ue8m0-floor dynamic fixed point
    e2m1/1x16/e4m3/fp32@modelopt   another dialect     int8/row/fp32:p99.9      a percentile
    e8m3/tensor/none               a plain cast
    int8/row/fp32:absmax+floor1e-5 no range below 1e-5
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qgraph.errors import FormatError
from qgraph.formats.element import Element, IntFormat
from qgraph.formats.scale import Scale

TensorScale = Literal["none", "fp32", "fp32-row"]
Dialect = Literal["te", "torchao_ptq", "modelopt", "quartet2", "qutlass", "torchao"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """How many elements share one scale.

    `along` counts elements along the axis the product sums over, `across` along the other
    axis; None means the whole axis. `1x16` is along=16, across=1; `row` is along=None,
    across=1; `column` is across=None, along=1; `tensor` is both None.
    """

    across: int | None
    along: int | None

    def __str__(self) -> str:
        if self.along is None:
            return "tensor" if self.across is None else "row"
        return "column" if self.across is None else f"{self.across}x{self.along}"


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How a tensor is stored in few bits: codes of `element`, one scale per `block`.

    `tensor_scale` adds a second fp32 scale above the block scales: one for the whole tensor, or
    one for each row. `dialect` says whose rules find the scales, where implementations differ.
    """

    element: Element
    block: Block
    scale: Scale
    tensor_scale: TensorScale = "none"
    dialect: Dialect = "te"

    def __str__(self) -> str:
        text = f"{self.element.name}/{self.block}/{self.scale}"
        text += "" if self.tensor_scale == "none" else f"/{self.tensor_scale}"
        return text if self.dialect == "te" else f"{text}@{self.dialect}"

    @property
    def two_level(self) -> bool:
        """Whether there is a second scale above the block scales."""
        return self.tensor_scale != "none"

    @property
    def asymmetric(self) -> bool:
        """Whether each block has a zero point."""
        return isinstance(self.element, IntFormat) and self.element.range == "asymmetric"

    @property
    def bits_per_element(self) -> float:
        """Storage per element, in bits, the tensor scale and scales of whole axes not counted."""
        if self.block.along is None or self.block.across is None:
            return float(self.element.bits)
        scale_bits = self.scale.bits * (2 if self.asymmetric else 1)
        return self.element.bits + scale_bits / (self.block.across * self.block.along)


def make_block(text: str) -> Block:
    """Read a block: `tensor`, `row`, `column`, or `ACROSSxALONG` such as `1x16`.

    Raises: FormatError if the text is none of these, or a side is not 1 to 1024.
    """
    if text == "tensor":
        return Block(across=None, along=None)
    if text == "row":
        return Block(across=1, along=None)
    if text == "column":
        return Block(across=None, along=1)
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        fix = "write tensor, row, column, or a tile such as 1x16"
        raise FormatError(f"unknown block '{text}'", fix)
    across, along = int(found[1]), int(found[2])
    if not (1 <= across <= 1024 and 1 <= along <= 1024) or across * along == 1:
        raise FormatError(
            f"block '{text}' is out of range", "write 1 to 1024 by 1 to 1024 elements, as in 1x16"
        )
    return Block(across=across, along=along)
