"""Numbers as data: element and block formats. Nothing here imports torch."""

from qgraph.formats.block import Block, BlockFormat, check_format, make_block, parse_format
from qgraph.formats.catalog import E2M1, E4M3, E5M2, ELEMENTS, find_element
from qgraph.formats.element import Element, FloatFormat, IntFormat

__all__ = [
    "E2M1",
    "E4M3",
    "E5M2",
    "ELEMENTS",
    "Block",
    "BlockFormat",
    "Element",
    "FloatFormat",
    "IntFormat",
    "check_format",
    "find_element",
    "make_block",
    "parse_format",
]
