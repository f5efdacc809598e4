"""Codes of 8 bits of a matrix on a CPU, to nearest: what native products read."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import NEAREST, BlockFormat, Element, Rounding, find_element
from qgraph.numerics import block_scales, torch_dtype
from qgraph.ops.cpu.build import loaded
from qgraph.ops.cpu.rotate import largest_bits, why_not_cpu
from qgraph.ops.cpu.two_passes import CPU_STEPS
from qgraph.ops.machine import Machine
from qgraph.ops.work import How, Kernel, Quantize


def _takes(work: Quantize, machine: Machine) -> str | None:
    if (why := why_not_cpu(work.dtype, machine)) is not None:
        return why
    fmt = work.format
    usual = str(fmt.scale) == "fp32" and str(fmt.block) in ("row", "tensor") and fmt.dialect == "te"
    usual = usual and work.rank == 2 and not work.empty and _is_8_bits(fmt.element)
    nearest = work.rounding == NEAREST and not work.draws and not work.named
    return None if usual and nearest else ""  # two passes do it


def _is_8_bits(element: Element) -> bool:
    floats = element.name in ("e4m3", "e5m2") and torch_dtype(element) is not None
    return floats or element == find_element("int8")


def _run(
    x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    return *codes_of_matrix(x, fmt, how.axis), torch.ones(())


def codes_of_matrix(x: Tensor, fmt: BlockFormat, axis: int) -> tuple[Tensor, Tensor]:
    """Return codes [M, K], the summed axis last, and scales [M, 1] or [1, 1], as `quantize` stores them."""
    if fmt.element == find_element("int8"):
        codes, scales = _int8_codes(x, fmt, axis)
        return codes.view(torch.uint8), scales if str(fmt.block) == "row" else scales[
            :1
        ].contiguous()
    dtype = torch_dtype(fmt.element)
    assert dtype is not None, "torch has 8-bit floats"
    found = block_scales(x.float(), fmt, axis, None, CPU_STEPS)
    values = CPU_STEPS.round(x.float(), fmt, found, axis, NEAREST, None, True)
    codes = values.to(dtype).view(torch.uint8)
    codes = codes.mT.contiguous() if axis % 2 == 0 else codes
    return codes, found.visible.squeeze(-1).squeeze(-2).contiguous()


def _int8_codes(x: Tensor, fmt: BlockFormat, axis: int) -> tuple[Tensor, Tensor]:
    """Return int8 codes [M, K], the summed axis last, and float32 scales [M, 1], of a matrix.

    What `qgraph.numerics.quantize` gives to nearest for a symmetric integer of at most 8 bits with
    an fp32 scale for each row or for the tensor.
    """
    x = x.float().contiguous()
    by_column = axis % 2 == 0
    rows, size = (x.shape[1], x.shape[0]) if by_column else (x.shape[0], x.shape[1])
    codes = torch.zeros((rows, size), dtype=torch.int8)
    scales = torch.ones((rows, 1), dtype=torch.float32)
    if x.numel():
        whole = str(fmt.block) == "tensor"
        loaded().qgraph_int8_codes(
            x.data_ptr(), codes.data_ptr(), scales.data_ptr(), rows, size, by_column, fmt.element.max,
            whole, largest_bits(x) if whole else 0,
        )  # fmt: skip
    return codes, scales


CPU_MATRIX_CODES = Kernel(
    name="cpu codes", work=Quantize, wanted=("codes",), device="cpu", takes=_takes, run=_run
)
