"""What every native product demands of a product, and how its codes are scaled."""

from __future__ import annotations

from qgraph.formats import BlockFormat, FloatFormat, IntFormat, find_element
from qgraph.ops.machine import Machine
from qgraph.ops.work import Multiply, Quantize

PLAIN = ("aten.mm.default", "aten.addmm.default")


def why_not_plain(work: Multiply) -> str | None:
    """Return why no native product stands for this op, None if one may."""
    if work.target not in PLAIN:
        return f"no native product for {work.target}"
    return None if work.plain else "no native product that scales or adds a matrix"


def why_no_codes(work: Multiply, machine: Machine) -> str | None:
    """Return why torch multiplies no codes of these formats there, None if one of its products may."""
    if (why := why_not_plain(work)) is not None:
        return why
    if work.left is None or work.right is None:
        return "no native product with an operand in high precision"
    formats = (work.left.format, work.right.format)
    for fmt in formats:
        if not scaling_of(fmt):
            return f"no native product takes {fmt}"
    elements = [fmt.element for fmt in formats]
    scalings = [scaling_of(fmt) for fmt in formats]
    integers = [isinstance(element, IntFormat) for element in elements]
    if scalings[0] != scalings[1] and not all(integers):
        return f"no native product of a {scalings[0]} and a {scalings[1]} scale"
    if machine.device not in ("cpu", "cuda") or machine.hip:
        return f"no native product on {'this GPU' if machine.hip else machine.device} yet"
    if all(integers):
        known = all(element == find_element("int8") for element in elements)
        return None if known and "1x32" not in scalings else "no native product of these integers"
    if not all(isinstance(e, FloatFormat) and e.name in ("e4m3", "e5m2") for e in elements):
        return f"no native product of {elements[0].name} and {elements[1].name}"
    return None


def scaling_of(fmt: BlockFormat) -> str:
    """Return how codes of this format are scaled, `row`, `tensor` or `1x32`; nothing if otherwise."""
    block = str(fmt.block)
    if fmt.dialect != "te" or fmt.tensor_scale != "none":
        return ""
    if block == "1x32" and fmt.scale.name == "ue8m0":
        return block
    return block if block in ("row", "tensor") and str(fmt.scale) == "fp32" else ""


def why_not_stored(work: Multiply) -> str | None:
    """Return why the operands have no codes that a product could read, None if they have."""
    for side in (work.left, work.right):
        assert side is not None, "operands in high precision were refused"
        if (why := _why_not_stored(side)) is not None:
            return f"no native product of operands {why}"
    return None


def _why_not_stored(side: Quantize) -> str | None:
    if side.points or side.draws:
        return "that are rotated or rounded at random"
    if str(side.rounding) != "nearest":
        return f"that are rounded {side.rounding}"
    return "whose range is not their own" if side.known else None
