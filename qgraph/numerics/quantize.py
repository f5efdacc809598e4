"""Quantizing a tensor: the definitions every kernel is held to, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import NEAREST, STOCHASTIC, BlockFormat, Rounding
from qgraph.numerics.blocks import REFERENCE, Kernels, Noise, block_scales
from qgraph.numerics.cast import decode
from qgraph.numerics.scales import e8m0_value
from qgraph.numerics.tables import decode_by_table, decode_pairs
from qgraph.numerics.tiles import check_axis, cut, from_tiles, to_tiles


def fake_quant(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    noise: Noise | None = None,
    rounding: Rounding | None = None,
    kernels: Kernels = REFERENCE,
    amax: Tensor | None = None,
) -> Tensor:
    """Quantize `x` and dequantize it again: `x` on the grid of `fmt`.

    Blocks lie along `axis`, the one a product sums over; a ragged last block is a shorter
    block. Random rounding, of codes or of scales, needs `noise`; without a `rounding` codes are
    rounded stochastically if there is noise, else to nearest. `amax` is the range of a `delayed`
    format, from steps before; else the largest magnitude of the tensor, or of each of its blocks, of
    which `x` is a part.

    Shapes: x [..., M, K] (K the size of `axis`, one of the last two) -> the same; amax [], or
    [..., M/A, 1, K/B, 1].
    Dtypes: a floating-point one -> the same; arithmetic in float32, one rounding to x's dtype, which
    leaves what is finite finite. A block with an infinity has nothing finite, whatever its codes are.
    Raises: ShapeError if x has fewer than two axes or `axis` is not one of the last two.
    Source: the rules of `qgraph.numerics.scales`.
    """
    x32 = _float32(x, axis)
    scales = block_scales(x32, fmt, axis, noise, kernels, amax)
    mode = rounding or usual_rounding(noise)
    values = kernels.round(x32, fmt, scales, axis, mode, noise, False)
    return in_range(values, x.dtype).to(x.dtype).contiguous()


def in_range(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `values` such that those that are finite stay so in `dtype`: a code may be worth 65536.

    Shapes, dtypes: float32 any -> the same.
    """
    if dtype != torch.float16:
        return values
    largest = torch.finfo(dtype).max
    return torch.where(values.isinf(), values, values.clamp(-largest, largest))


def quantize(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    noise: Noise | None = None,
    rounding: Rounding | None = None,
    kernels: Kernels = REFERENCE,
    visible: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bits hardware would store: (codes, scales, tensor scale).

    `axis` is moved last and both axes are padded with zeros to whole blocks. Codes of at most
    4 bits are packed two to a byte, the even index in the low half. An asymmetric format stores
    the zero point behind each scale. What is infinite is stored as the dialect says, for most by the
    largest code; with `visible` the scale of its block is NaN, so that a product shows it.

    Shapes: x [..., M, K] -> codes [..., M', K'] (or K'/2), scales [..., M'/A, K'/B] (asymmetric:
    [..., M'/A, K'/B, 2]), tensor scale [], or [..., M, 1] with one for each row.
    Dtypes: codes as `code_dtype` says; scales uint8 (E8M0) or float32 or, where
    torch has it, the scale's own dtype; tensor scale float32.
    Raises: ShapeError as `fake_quant`.
    """
    x32 = _float32(x, axis)
    scales = block_scales(x32, fmt, axis, noise, kernels)
    values = kernels.round(x32, fmt, scales, axis, rounding or usual_rounding(noise), noise, True)
    padded = cut(values.movedim(axis, -1), fmt.block).flatten(-2, -1).flatten(-3, -2)
    codes = kernels.encode(padded, fmt.element)
    if fmt.element.bits <= 4:
        if codes.shape[-1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        codes = (codes[..., 0::2] & 15) | ((codes[..., 1::2] & 15) << 4)
    stored = scales.visible if visible else scales.stored
    stored = stored.squeeze(-1).squeeze(-2)
    if scales.zero is not None:
        stored = torch.stack([stored, scales.zero.squeeze(-1).squeeze(-2)], -1)
    if fmt.scale.name == "e4m3":
        stored = stored.to(torch.float8_e4m3fn)
    whole = scales.tensor_scale
    if whole is None:
        whole = torch.ones((), device=x.device)
    elif whole.dim():
        whole = whole.squeeze(-1).squeeze(-2)
    return codes.contiguous(), stored.contiguous(), whole


def dequantize(
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    fmt: BlockFormat,
    shape: torch.Size,
    axis: int,
    dtype: torch.dtype,
    *,
    tables: bool = False,
) -> Tensor:
    """Return the values `quantize` stored, as `fake_quant` would give them.

    With `tables` codes are looked up: the same bits, faster on a CPU.

    Shapes: as `quantize` returns them -> `shape`.
    Dtypes: -> `dtype`.
    """
    if tables:
        pairs = fmt.element.bits <= 4
        found = decode_pairs(codes, fmt.element) if pairs else decode_by_table(codes, fmt.element)
    elif fmt.element.bits <= 4:
        found = decode(torch.stack([codes & 15, codes >> 4], -1).flatten(-2, -1), fmt.element)
    else:
        found = decode(codes, fmt.element)
    scale = scales.float() if scales.dtype != torch.uint8 else e8m0_value(scales)
    zero = None
    if fmt.asymmetric:
        scale, zero = scale[..., 0], scale[..., 1]
    values = to_tiles(found, scale)
    if zero is not None:
        values = values + zero[..., :, None, :, None]
    whole = tensor_scale[..., None, None] if tensor_scale.dim() else tensor_scale
    scale = scale[..., :, None, :, None]
    folded = fmt.two_level and fmt.dialect != "te" and fmt.scale.rounding != "eden"
    values = values * (scale * whole if folded else scale)
    if fmt.two_level and not folded:
        values = values * whole
    values = values + 0.0 if fmt.dialect == "modelopt" else values
    return from_tiles(values, shape, axis).to(dtype).contiguous()


def usual_rounding(noise: object) -> Rounding:
    """Return the rounding where none is named: stochastic with noise, else nearest."""
    return NEAREST if noise is None else STOCHASTIC


def _float32(x: Tensor, axis: int) -> Tensor:
    check_axis(x, axis)
    return x.float()
