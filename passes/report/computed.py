"""What computes each operand of a product, in words: a fallback is named where it happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from qgraph.ops import Machine, Rotate, Wanted, at_hand, choose
from qgraph.passes.graph.targets import value_of
from qgraph.passes.plan import Plan
from qgraph.passes.work import quantize_of

REFERENCE = "reference"  # what definitions that run for want of a kernel are called


def kernel_of(plan: Plan, index: int) -> str:
    """Return the name of the kernel that quantizes an operand where the graph runs; "" if none does.

    Where a definition runs for want of a kernel, it is named with the reason.
    """
    device = value_of(plan.site.node).device.type
    work = quantize_of(plan, index, _wanted(plan.lowering))
    if work is None or plan.status != "quantized":
        return ""
    machine = at_hand(device)
    return choose(work, machine).text + _rotation(plan, index, machine)


def _wanted(lowering: str) -> Wanted:
    if not lowering.startswith("native"):
        return "values"
    return "packed" if lowering == "native nvfp4" else "codes"


def _rotation(plan: Plan, index: int, machine: Machine) -> str:
    """Return words for a rotation that is a node of its own and has no kernel, nothing otherwise."""
    transform = plan.operands[index].transform
    if transform is None or transform.signs != "step":
        return ""
    chosen = choose(Rotate(dtype=value_of(plan.site.node).dtype), machine)
    return f"; rotated by the {chosen.text}" if chosen.falls_back else ""


def fallback_lines(kernels: Iterable[str]) -> list[str]:
    """Return a line for each way operands are quantized without a kernel, and how many are."""
    slow = Counter(kernel for kernel in kernels if REFERENCE in kernel)
    return [f"{count} operands: {_words(kernel)}" for kernel, count in slow.most_common()]


def _words(kernel: str) -> str:
    name, _, why = kernel.partition(": ")
    return f"{name} ({why})" if why else name
