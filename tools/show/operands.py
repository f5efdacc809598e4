"""What each operand of a product goes through, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.formats import parse_format
from qgraph.policy import Policy, Transform, decide
from qgraph.tools.show.picture import Box, Picture
from qgraph.tools.show.sites import formula

if TYPE_CHECKING:
    from qgraph.passes import Entry, ReportedOperand

_SIGNS = {
    "te": "Transformer Engine's signs",
    "none": "no signs",
    "run": "signs drawn once for the run",
    "site": "signs drawn once for this product",
    "step": "signs drawn anew each step",
}
_ROUNDED = {"nearest": "to nearest", "stochastic": "stochastically"}


def steps_of(entry: Entry, policy: Policy) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """Return the boxes of the left and of the right operand, in order."""
    transforms = [o.transform for o in decide(policy, entry).operands]
    _, m, n, k = entry.shape
    sizes = ((m, k), (k, n))
    columns = []
    for index, kind in enumerate(entry.operand_kinds):
        rows, cols = sizes[index]
        shape = f"{rows} x {cols}, {entry.dtype}" if k else entry.dtype
        boxes = [Box(title=kind, lines=(shape,), kind="operand")]
        if entry.status == "quantized":
            boxes += _steps(entry.operands[index], transforms[index], entry.dtype)
        columns.append(tuple(boxes))
    return columns[0], columns[1]


def draw_site(entry: Entry, policy: Policy) -> Picture:
    """Return the picture of one product."""
    batch, m, n, k = entry.shape
    many = f"{batch} times " if batch > 1 else ""
    lines = [f"{many}{m} x {n}, summed over {k}"] if k else []
    if entry.status == "quantized":
        lines.append(entry.lowering or f"values of codes, multiplied in {entry.dtype}")
    else:
        lines.append(f"high: multiplied in {entry.dtype}")
    product = Box(title=f"{entry.role}: {formula(entry)}", lines=tuple(lines), kind="product")
    return Picture(columns=steps_of(entry, policy), product=product)


def _steps(operand: ReportedOperand, transform: Transform | None, dtype: str) -> list[Box]:
    boxes = []
    if operand.transform and transform is not None:
        lines: tuple[str, ...] = (
            f"Hadamard {transform.hadamard}, along the summed axis",
            _SIGNS[transform.signs],
            f"rounded to {transform.output}",
        )
        boxes.append(Box(title=f"rotate ({transform.name})", lines=lines, kind="rotate"))
    if operand.format == "high":
        boxes.append(Box(title="high", lines=(f"stays {dtype}",), kind="operand"))
        return boxes
    fmt = parse_format(operand.format)
    scales = f"scale {fmt.scale} {_each(str(fmt.block))}"
    scales += f", {fmt.tensor_scale} a tensor" if fmt.two_level else ""
    rounding = f"round {_ROUNDED.get(operand.rounding, operand.rounding)}"
    lines = (scales, rounding, f"{fmt.bits_per_element:g} bits an element")
    if operand.gradient:
        lines = (*lines, f"gradient {operand.gradient}")
    boxes.append(Box(title=f"quantize to {operand.format}", lines=lines, kind="quantize"))
    return boxes


def _each(block: str) -> str:
    return f"each {block}" if "x" in block else f"a {block}"
