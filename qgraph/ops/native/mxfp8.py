"""Products of 8-bit float codes in blocks of 32 with a power of two each: torch's own, on GPUs."""

from __future__ import annotations

import torch

from qgraph.ops.machine import Machine
from qgraph.ops.native.common import scaling_of, why_no_codes, why_not_stored
from qgraph.ops.native.fp8 import why_two_e5m2
from qgraph.ops.native.scaled import multiply_floats
from qgraph.ops.work import Kernel, Multiply


def _takes(work: Multiply, machine: Machine) -> str | None:
    if (why := why_no_codes(work, machine)) is not None:
        return why
    if work.left is None or scaling_of(work.left.format) != "1x32":
        return ""
    if machine.device == "cpu":
        return "no native mxfp8 product on cpu"
    if machine.capability < (10, 0):
        shown = machine.shown_capability
        return f"no native mxfp8 product with 1x32 scales on a GPU of capability {shown}"
    if (why := why_two_e5m2(work)) is not None:
        return why
    if work.dtype != torch.bfloat16:
        return f"no native mxfp8 product with 1x32 scales that gives {str(work.dtype)[6:]}: bfloat16 only"
    return why_not_stored(work)


MXFP8 = Kernel(name="mxfp8", work=Multiply, takes=_takes, run=multiply_floats, unit="fp8")
