"""Products of 8-bit float codes scaled by row or by tensor: torch's own, with sums in float32."""

from __future__ import annotations

import torch

from qgraph.formats import FloatFormat
from qgraph.ops.machine import Machine
from qgraph.ops.native.common import scaling_of, why_no_codes, why_not_stored
from qgraph.ops.native.scaled import multiply_floats
from qgraph.ops.work import Kernel, Multiply

_LEAST = {"row": (9, 0), "tensor": (8, 9)}


def _takes(work: Multiply, machine: Machine) -> str | None:
    if (why := why_no_codes(work, machine)) is not None:
        return why
    if work.left is None or not isinstance(work.left.format.element, FloatFormat):
        return ""
    scaling = scaling_of(work.left.format)
    if scaling == "1x32":
        return ""
    if machine.device == "cuda" and (why := _why_not_on(work, scaling, machine)) is not None:
        return why
    return why_not_stored(work)


def _why_not_on(work: Multiply, scaling: str, machine: Machine) -> str | None:
    """Return why a CUDA device does not multiply these codes.

    Source: torch 2.13, aten/src/ATen/native/cuda/ScaledBlas.cpp; NVIDIA, cuBLAS, 8-bit floats.
    """
    if machine.capability < _LEAST[scaling]:
        shown = machine.shown_capability
        return f"no native fp8 product with {scaling} scales on a GPU of capability {shown}"
    if (why := why_two_e5m2(work)) is not None:
        return why
    if scaling != "tensor" and work.dtype != torch.bfloat16:
        return f"no native fp8 product with {scaling} scales that gives {str(work.dtype)[6:]}: bfloat16 only"
    return None


def why_two_e5m2(work: Multiply) -> str | None:
    """Return why a GPU does not multiply e5m2 by e5m2, None for other elements."""
    names = {side.format.element.name for side in (work.left, work.right) if side is not None}
    return "no native product of two e5m2" if names == {"e5m2"} else None


FP8 = Kernel(name="fp8", work=Multiply, takes=_takes, run=multiply_floats, unit="fp8")
