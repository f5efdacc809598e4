"""Block formats: an element format, the block that shares a scale, and the scale's own format.

A block format has a text form, used in policies, printed graphs and reports:

    element/block/scale[/tensor_scale]      e2m1/1x16/e4m3/fp32
                                            e4m3/1x32/ue8m0-rceil
                                            int8/row/fp32
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from qgraph.errors import FormatError
from qgraph.formats.catalog import find_element
from qgraph.formats.element import Element, FloatFormat

ScaleFormat = Literal["e4m3", "ue8m0-rceil", "ue8m0-floor", "fp32"]
SCALES: tuple[ScaleFormat, ...] = ("e4m3", "ue8m0-rceil", "ue8m0-floor", "fp32")


@dataclass(frozen=True, kw_only=True)
class Block:
    """How many elements share one scale.

    `along` counts elements along the axis the product sums over, `across` along the other
    axis; None means the whole axis. `1x16` is along=16, across=1; `row` is along=None,
    across=1; `tensor` is both None.
    """

    across: int | None
    along: int | None

    def __str__(self) -> str:
        if self.along is None:
            return "tensor" if self.across is None else "row"
        return f"{self.across}x{self.along}"


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How a tensor is stored in few bits: codes of `element`, one scale per `block`.

    `tensor_scale` adds one fp32 scale for the whole tensor, above the block scales.
    """

    element: Element
    block: Block
    scale: ScaleFormat
    tensor_scale: bool

    def __str__(self) -> str:
        tail = "/fp32" if self.tensor_scale else ""
        return f"{self.element.name}/{self.block}/{self.scale}{tail}"

    @property
    def bits_per_element(self) -> float:
        """Storage per element, in bits, the tensor scale and per-row scales not counted."""
        if self.block.along is None or self.block.across is None:
            return float(self.element.bits)
        scale_bits = 32 if self.scale == "fp32" else 8
        return self.element.bits + scale_bits / (self.block.across * self.block.along)


def make_block(text: str) -> Block:
    """Read a block: `tensor`, `row`, or `ACROSSxALONG` such as `1x16`.

    Raises: FormatError if the text is none of these, or a side is not 1 to 1024.
    """
    if text == "tensor":
        return Block(across=None, along=None)
    if text == "row":
        return Block(across=1, along=None)
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise FormatError(f"unknown block '{text}'", "write tensor, row, or a tile such as 1x16")
    across, along = int(found[1]), int(found[2])
    if not (1 <= across <= 1024 and 2 <= along <= 1024):
        raise FormatError(
            f"block '{text}' is out of range", "write 1 to 1024 by 2 to 1024 elements, as in 1x16"
        )
    return Block(across=across, along=along)


def check_format(fmt: BlockFormat) -> BlockFormat:
    """Return `fmt` if its parts fit together.

    Raises: FormatError if the tensor scale has no e4m3 block scale below it, or the other way round.
    """
    if fmt.tensor_scale != (fmt.scale == "e4m3"):
        raise FormatError(
            f"'{fmt}': an e4m3 block scale and a tensor scale go together",
            "write scale: e4m3 with tensor_scale: fp32, or another scale and no tensor_scale",
        )
    if fmt.tensor_scale and not (isinstance(fmt.element, FloatFormat) and fmt.block.along):
        raise FormatError(
            f"'{fmt}': two-level scales need a floating-point element and a tile",
            "write block: [1, 16] and an element such as e2m1",
        )
    return fmt


@functools.cache
def parse_format(text: str) -> BlockFormat:
    """Read the text form of a block format.

    Raises: FormatError naming the part that is wrong and the legal ones.
    """
    parts = text.split("/")
    if len(parts) not in (3, 4):
        raise FormatError(
            f"unknown format '{text}'", "write element/block/scale, as in e2m1/1x16/e4m3/fp32"
        )
    scale = next((s for s in SCALES if s == parts[2]), None)
    if scale is None:
        raise FormatError(f"unknown scale '{parts[2]}'", f"use one of: {', '.join(SCALES)}")
    if parts[3:] not in ([], ["fp32"]):
        raise FormatError(f"unknown tensor scale '{parts[3]}'", "write fp32 or leave it out")
    return check_format(
        BlockFormat(
            element=find_element(parts[0]),
            block=make_block(parts[1]),
            scale=scale,
            tensor_scale=len(parts) == 4,
        )
    )
