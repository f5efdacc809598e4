"""Block formats from their text form, or from their parts."""

from __future__ import annotations

import difflib
import functools
from typing import get_args

from qgraph.errors import FormatError
from qgraph.formats.block import Block, BlockFormat, Dialect, TensorScale, make_block
from qgraph.formats.element import Element
from qgraph.formats.fits import check_format
from qgraph.formats.names import find_element
from qgraph.formats.scale import Scale, make_range, make_scale

# Block formats that have a name in the field.
NAMED = {
    "nvfp4": "e2m1/1x16/e4m3/fp32",  # Transformer Engine 2
    "nvfp4_tile": "e2m1/16x16/e4m3/fp32",  # the same for weights
    "mxfp8": "e4m3/1x32/ue8m0-rceil",  # OCP MX 1.0, scales rounded up as in training
    "mxfp8_e5m2": "e5m2/1x32/ue8m0-rceil",
    "mxfp6_e3m2": "e3m2/1x32/ue8m0-rceil",
    "mxfp6_e2m3": "e2m3/1x32/ue8m0-rceil",
    "mxfp4": "e2m1/1x32/ue8m0-rceil",
    "mxint8": "fixed2.6/1x32/ue8m0-floor",
    "fp8_tensor": "e4m3/tensor/fp32",
    "fp8_row": "e4m3/row/fp32",
    "fp8_block": "e4m3/128x128/fp32",
    "int8_row": "int8/row/fp32",
    "dfp16": "int16/tensor/ue8m0-floor",  # dynamic fixed point, arXiv 1802.00930
    "bfp16": "int16/1x16/ue8m0-floor",  # block floating point, as Pychop names it
    "bfp12": "int12/1x16/ue8m0-floor",
    "bfp8": "int8/1x32/ue8m0-floor",
    "bfp6": "int6/1x32/ue8m0-floor",
    "bfp4": "int4/1x32/ue8m0-floor",
    "flexpoint16": "int16/1x16/ue5m0-floor",
    "flexpoint8": "int8/1x32/ue5m0-floor",
}


@functools.cache
def parse_format(text: str) -> BlockFormat:
    """Read the text form of a block format, or its name in `NAMED`.

    Raises: FormatError naming the part that is wrong and the legal ones.
    """
    if text in NAMED:
        return parse_format(NAMED[text])
    body, _, dialect = text.partition("@")
    parts = body.split("/")
    if len(parts) not in (3, 4):
        near = difflib.get_close_matches(text, NAMED, n=1)
        fix = "write element/block/scale, as in e2m1/1x16/e4m3/fp32"
        raise FormatError(f"unknown format '{text}'", f"did you mean '{near[0]}'?" if near else fix)
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
