"""Stored bits as hardware and torch take them: torch's own dtypes, and the swizzle of scales."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qgraph.errors import ShapeError
from qgraph.formats import BlockFormat, Element, FloatFormat, find_element

_DTYPES: dict[Element, torch.dtype] = {
    find_element(name): dtype
    for name, dtype in (
        ("e2m1", torch.float4_e2m1fn_x2), ("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2),
        ("e4m3+b8+fnuz", torch.float8_e4m3fnuz), ("e5m2+b16+fnuz", torch.float8_e5m2fnuz),
        ("bf16", torch.bfloat16), ("fp16", torch.float16),
    )
}  # fmt: skip
ROWS, COLUMNS = 128, 4  # of one tile of swizzled scales


@functools.cache
def torch_dtype(element: Element) -> torch.dtype | None:
    """Return torch's own dtype of an element's codes, or None where it has none.

    e2m1 is `float4_e2m1fn_x2`, two codes a byte. int8 is torch's int8 as well.
    """
    if element == find_element("int8") or element == find_element("int8+full"):
        return torch.int8
    plain = element
    if isinstance(element, FloatFormat) and not element.saturate:
        plain = find_element(element.name.removesuffix("+overflow"))
    return _DTYPES.get(plain)


def as_torch(codes: Tensor, scales: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor]:
    """Return what `quantize` stored under torch's own dtypes, without a copy.

    E8M0 scales become `float8_e8m0fnu`. What torch has no dtype for stays as it is.

    Shapes: as `quantize` returns them -> the same; e2m1 codes stay two to a byte.
    """
    dtype = torch_dtype(fmt.element)
    if dtype is not None:
        codes = codes.view(dtype)
    if fmt.scale.name == "ue8m0":
        scales = scales.view(torch.float8_e8m0fnu)
    return codes, scales


def swizzle(scales: Tensor) -> Tensor:
    """Return block scales in the order that block-scaled products of NVIDIA GPUs read them.

    The matrix is padded with zeros to tiles of 128x4. In a tile, four rows that are 32 apart lie
    together: element (r, c) is at (r % 32) · 16 + (r // 32) · 4 + c.

    Shapes: [M, K] -> [ceil(M/128) · ceil(K/4) · 512].
    Dtypes: any -> the same.
    Raises: ShapeError if `scales` is no matrix.
    Source: cuBLAS, block scaling factors layout; torchao `to_blocked`.
    """
    if scales.dim() != 2:
        raise ShapeError(f"scales of one matrix are swizzled, not of shape {tuple(scales.shape)}")
    high, wide = -(-scales.shape[0] // ROWS), -(-scales.shape[1] // COLUMNS)
    padded = scales.new_zeros((high * ROWS, wide * COLUMNS))
    padded[: scales.shape[0], : scales.shape[1]] = scales
    tiles = padded.view(high, 4, 32, wide, COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)


def unswizzle(blocked: Tensor, rows: int, columns: int) -> Tensor:
    """Return the [rows, columns] scales that `swizzle` reordered.

    Shapes: [ceil(rows/128) · ceil(columns/4) · 512] -> [rows, columns].
    Raises: ShapeError if the sizes do not fit.
    """
    high, wide = -(-rows // ROWS), -(-columns // COLUMNS)
    if blocked.numel() != high * wide * ROWS * COLUMNS:
        raise ShapeError(f"{blocked.numel()} scales are not those of {rows} x {columns} blocks")
    tiles = blocked.view(high, wide, 32, 4, COLUMNS).permute(0, 3, 2, 1, 4)
    return tiles.reshape(high * ROWS, wide * COLUMNS)[:rows, :columns].contiguous()
