"""Block formats from their text form, or from their parts."""

from __future__ import annotations

import functools
from typing import get_args

from qgraph.errors import FormatError
from qgraph.formats.block import Block, BlockFormat, Dialect, TensorScale, make_block
from qgraph.formats.element import Element
from qgraph.formats.fits import check_format
from qgraph.formats.names import find_element
from qgraph.formats.scale import Scale, make_range, make_scale


@functools.cache
def parse_format(text: str) -> BlockFormat:
    """Read the text form of a block format.

    Raises: FormatError naming the part that is wrong and the legal ones.
    """
    body, _, dialect = text.partition("@")
    parts = body.split("/")
    if len(parts) not in (3, 4):
        raise FormatError(
            f"unknown format '{text}'", "write element/block/scale, as in e2m1/1x16/e4m3/fp32"
        )
    scale, _, range = parts[2].partition(":")
    name, _, rounding = scale.partition("-")
    return make_format(
        element=find_element(parts[0]),
        block=make_block(parts[1]),
        scale=make_scale(name, rounding or None, make_range(range) if range else None),
        tensor_scale=parts[3] if len(parts) == 4 else "none",
        dialect=dialect or "te",
    )


def make_format(
    *, element: Element, block: Block, scale: Scale, tensor_scale: str = "none", dialect: str = "te"
) -> BlockFormat:
    """Return the block format of these parts.

    Raises: FormatError if a word is unknown or the parts do not fit together.
    """
    level = next((t for t in get_args(TensorScale) if t == tensor_scale), None)
    if level is None:
        raise FormatError(
            f"unknown tensor scale '{tensor_scale}'", "write fp32, fp32-row, or leave it out"
        )
    speaks = next((d for d in get_args(Dialect) if d == dialect), None)
    if speaks is None:
        raise FormatError(
            f"unknown dialect '{dialect}'", f"use one of: {', '.join(get_args(Dialect))}"
        )
    return check_format(
        BlockFormat(element=element, block=block, scale=scale, tensor_scale=level, dialect=speaks)
    )
