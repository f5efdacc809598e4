"""torch's product of 8-bit float codes under scales, and its operands as it reads them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from qgraph.formats import BlockFormat
from qgraph.numerics import as_torch, swizzle
from qgraph.ops.native.common import scaling_of

RECIPES = {
    "tensor": (ScalingType.TensorWise, SwizzleType.NO_SWIZZLE),
    "row": (ScalingType.RowWise, SwizzleType.NO_SWIZZLE),
    "1x32": (ScalingType.BlockWise1x32, SwizzleType.SWIZZLE_32_4_4),
}


def multiply_floats(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, format_a: BlockFormat,
    format_b: BlockFormat, dtype: torch.dtype, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return (a · a_scale) @ (b · b_scale).T (+ bias): see `qgraph.ops.stored.scaled_mm`.

    Sums are of float32. Rounded once: after the bias, where the product may give float32.
    """
    whole = (bias is not None and scaling_of(format_a) == "tensor") or a.device.type == "cpu"
    given = torch.float32 if whole else dtype
    out = _scaled(a, a_scale, b, b_scale, format_a, format_b, given)
    return (out if bias is None else out + bias.to(out.dtype)).to(dtype)


def _scaled(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, format_a: BlockFormat,
    format_b: BlockFormat, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return the product of 8-bit float codes."""
    scaling, wanted, on_gpu = scaling_of(format_a), b.shape[0], a.device.type != "cpu"
    recipe, layout = RECIPES[scaling]
    left, b_side = as_torch(a, a_scale, format_a), as_torch(b, b_scale, format_b)
    left, right = laid_out(*left, scaling, on_gpu), laid_out(*b_side, scaling, on_gpu, right=True)
    found = torch.nn.functional.scaled_mm(
        left[0], right[0].mT, left[1], recipe, right[1], recipe, layout, layout, output_dtype=dtype
    )  # fmt: skip
    return found if found.shape[1] == wanted else found[:, :wanted]


def laid_out(
    codes: Tensor, scales: Tensor, scaling: str, on_gpu: bool, right: bool = False
) -> tuple[Tensor, Tensor]:
    """Return one operand of `torch.nn.functional.scaled_mm`, which reads both along the summed axis.

    On a GPU the summed axis, and the other of the right operand, are filled up to multiples of 16
    with codes of zero; the scales of blocks are swizzled.

    Shapes: codes [M, K], scales [M, 1], [1, 1] or [M, K / 32] -> codes [M', K'], scales [M', 1],
    [1, M'] of the right operand, [1], or as `swizzle` gives them.
    """
    rows, length = (-codes.shape[0] % 16 if right else 0), -codes.shape[1] % 16
    if on_gpu and (rows or length):
        size = (codes.shape[0] + rows, codes.shape[1] + length)
        filled = codes.view(torch.uint8).new_zeros(size)
        filled[: codes.shape[0], : codes.shape[1]] = codes.view(torch.uint8)
        codes = filled.view(codes.dtype)
        if scaling == "row":
            scales = torch.nn.functional.pad(scales, (0, 0, 0, rows), value=1.0)
    if scaling == "tensor":
        return codes, scales.reshape(1)
    if scaling == "row":
        return codes, scales.mT.contiguous() if right else scales.contiguous()
    return codes, swizzle(scales)
