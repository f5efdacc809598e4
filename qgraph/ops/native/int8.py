"""Products of int8 codes: torch's own, with sums in int32.

Codes and scales are those of emulation. Only the sum differs: integers add up exactly, where
emulation rounds each partial sum to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.compat import aten
from qgraph.formats import BlockFormat, IntFormat
from qgraph.ops.cpu.build import loaded
from qgraph.ops.machine import Machine, at_hand
from qgraph.ops.native.common import why_no_codes, why_not_stored
from qgraph.ops.work import Kernel, Multiply

# Sums of more products of int8 codes could pass 2**31.
MAX_SUMMED = (2**31 - 1) // 127**2


def _takes(work: Multiply, machine: Machine) -> str | None:
    if (why := why_no_codes(work, machine)) is not None:
        return why
    if work.left is None or not isinstance(work.left.format.element, IntFormat):
        return ""
    if work.summed is None or work.summed > MAX_SUMMED:
        return f"no native product that sums more than {MAX_SUMMED} codes"
    return why_not_stored(work)


def _run(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, format_a: BlockFormat,
    format_b: BlockFormat, dtype: torch.dtype, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    rows, columns = a_scale.expand(a.shape[0], 1), b_scale.expand(b.shape[0], 1)
    sums = _int_sums(a, b)
    if sums.device.type == "cpu" and at_hand("cpu").no_compiler is None:
        return _rescale(sums, rows, columns, bias).to(dtype)
    out = sums.float() * rows * columns.mT
    return (out if bias is None else out + bias.float()).to(dtype)


def _int_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b.T in int32, of int8 codes; filled up with zeros to the sizes that torch takes."""
    (m, k), n = a.shape, b.shape[0]
    pad = torch.nn.functional.pad
    if a.device.type == "cuda":  # more than 16 rows; the other sizes multiples of 8
        a, b = pad(a, (0, -k % 8, 0, max(0, 17 - m))), pad(b, (0, -k % 8, 0, -n % 8))
    elif k < 2:  # torch 2.13's product returns garbage for a sum of one product
        a, b = (pad(codes, (0, 2 - k)) for codes in (a, b))
    return aten.int_mm(a.view(torch.int8), b.view(torch.int8).mT)[:m, :n]


def _rescale(sums: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return sums · a · b (+ bias) in float32: [M, N] int32, a [M, 1], b [N, 1], bias [N]."""
    out = torch.empty(sums.shape, dtype=torch.float32)
    if sums.numel():
        sums, a, b = sums.contiguous(), a.contiguous(), b.contiguous()
        added = None if bias is None else bias.float().contiguous()
        loaded().qgraph_rescale(
            sums.data_ptr(), out.data_ptr(), *sums.shape, a.data_ptr(), b.data_ptr(),
            None if added is None else added.data_ptr(),
        )  # fmt: skip
    return out


INT8 = Kernel(name="int8", work=Multiply, takes=_takes, run=_run, unit="int8")
