"""The formats qgraph ships, by name."""

from __future__ import annotations

import difflib

from qgraph.errors import FormatError
from qgraph.formats.element import Element, FloatFormat, IntFormat

OFP8 = "OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1"
MX = "OCP Microscaling Formats (MX) 1.0, section 5.3"
LINEAR = "symmetric linear quantization, EfficientLLMs"

E4M3 = FloatFormat(name="e4m3", exponent_bits=4, mantissa_bits=3, specials="nan_only", source=OFP8)
E5M2 = FloatFormat(name="e5m2", exponent_bits=5, mantissa_bits=2, specials="ieee", source=OFP8)
E2M1 = FloatFormat(name="e2m1", exponent_bits=2, mantissa_bits=1, specials="none", source=MX)
E2M3 = FloatFormat(name="e2m3", exponent_bits=2, mantissa_bits=3, specials="none", source=MX)
E3M2 = FloatFormat(name="e3m2", exponent_bits=3, mantissa_bits=2, specials="none", source=MX)
INT8 = IntFormat(name="int8", bits=8, source=LINEAR)
INT4 = IntFormat(name="int4", bits=4, source=LINEAR)

ELEMENTS: dict[str, Element] = {f.name: f for f in (E4M3, E5M2, E2M1, E2M3, E3M2, INT8, INT4)}


def find_element(name: str) -> Element:
    """Return the element format called `name`.

    Raises: FormatError with the nearest name, or all of them.
    """
    if name in ELEMENTS:
        return ELEMENTS[name]
    near = difflib.get_close_matches(name, ELEMENTS, n=1)
    fix = f"did you mean '{near[0]}'?" if near else f"use one of: {', '.join(ELEMENTS)}"
    raise FormatError(f"unknown element format '{name}'", fix)
