"""Numbers as data: element and block formats. Nothing here imports torch."""

from qgraph.formats.block import Block, BlockFormat, Dialect, make_block
from qgraph.formats.catalog import E2M1, E4M3, E5M2, ELEMENTS
from qgraph.formats.element import Codebook, Element, FloatFormat, IntFormat
from qgraph.formats.fits import check_format
from qgraph.formats.gradient import STRAIGHT, Gradient, parse_gradient
from qgraph.formats.names import find_element, make_element, make_float, make_list
from qgraph.formats.rounding import NEAREST, ROUNDINGS, STOCHASTIC, Rounding, parse_rounding
from qgraph.formats.scale import (
    SCALE_ROUNDINGS,
    Range,
    Scale,
    ScaleRounding,
    make_range,
    make_scale,
)
from qgraph.formats.text import NAMED, make_format, parse_format

__all__ = [
    "E2M1",
    "E4M3",
    "E5M2",
    "ELEMENTS",
    "NAMED",
    "NEAREST",
    "ROUNDINGS",
    "SCALE_ROUNDINGS",
    "STOCHASTIC",
    "STRAIGHT",
    "Block",
    "BlockFormat",
    "Codebook",
    "Dialect",
    "Element",
    "FloatFormat",
    "Gradient",
    "IntFormat",
    "Range",
    "Rounding",
    "Scale",
    "ScaleRounding",
    "check_format",
    "find_element",
    "make_block",
    "make_element",
    "make_float",
    "make_format",
    "make_list",
    "make_range",
    "make_scale",
    "parse_format",
    "parse_gradient",
    "parse_rounding",
]
