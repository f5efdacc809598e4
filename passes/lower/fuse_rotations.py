"""Turn and quantize in one kernel, where one quantizer alone reads a rotation.

    fake_quant(hadamard(x, signs, axis, r), f, axis)  ->  rotate_quant(x, signs, r, f, axis)

The kernel finds the largest magnitude while it rotates, and quantizes in place.
"""

from __future__ import annotations

from dataclasses import replace

from qgraph.passes.graph.quantizer import Quantizer, Rotation
from qgraph.passes.step import Step


def fuse_rotations(step: Step) -> None:
    """Fuse each rotation with the one quantization that reads it."""
    if not any(operand.transform for plan in step.plans for operand in plan.operands):
        return
    for node in list(step.graph.nodes):
        quantizer = Quantizer.read(node)
        below = Rotation.read(quantizer.source) if quantizer is not None else None
        if quantizer is None or below is None or len(quantizer.source.users) > 1:
            continue
        # Redrawn signs and ranges of other steps are no arguments of the kernel.
        if below.axis != quantizer.axis or below.seed is not None or quantizer.amax is not None:
            continue
        rotation = quantizer.source
        replace(quantizer, source=below.source, signs=below.signs, output=below.output).put(node)
        step.graph.erase_node(rotation)
