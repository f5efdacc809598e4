"""The ops that hold packed bits: quantize, dequantize, and products of what they store."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import Block, parse_format
from qgraph.numerics import code_dtype
from qgraph.ops.gpu.codes import Four, empty_codes
from qgraph.ops.kernels import product_named
from qgraph.ops.quantizing import codes, codes_both_ways, noise_of
from qgraph.ops.work import How


def quantize(
    x: Tensor,
    format: str,
    axis: int,
    seed: Tensor | None = None,
    site: int = 0,
    rounding: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and tensor scale, as `qgraph.numerics.quantize` stores them."""
    return codes(x, format, rounding, How(axis, noise_of(seed, site)))


def quantize_fake(
    x: Tensor,
    format: str,
    axis: int,
    seed: Tensor | None = None,
    site: int = 0,
    rounding: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty results of `quantize`."""
    fmt = parse_format(format)
    rows = x.movedim(axis, -1).shape
    across, along = _sides(rows, fmt.block)
    scales = [*rows[:-2], (rows[-2] + across - 1) // across, (rows[-1] + along - 1) // along]
    size = scales[-1] * along
    size = (size + 1) // 2 if fmt.element.bits <= 4 else size
    shape = [*rows[:-2], scales[-2] * across, size]
    codes = x.new_empty(shape, dtype=code_dtype(fmt.element))
    dtype = {"e4m3": torch.float8_e4m3fn}.get(fmt.scale.name, torch.float32)
    dtype = torch.uint8 if fmt.scale.kind == "power" else dtype
    whole = [*rows[:-1], 1] if fmt.tensor_scale == "fp32-row" else []
    scales += [2] if fmt.asymmetric else []
    return codes, x.new_empty(scales, dtype=dtype), x.new_empty(whole, dtype=torch.float32)


def quantize_both(x: Tensor, format: str) -> Four:
    """Return codes and scales of x [M, N] along its last axis, then along its first."""
    return codes_both_ways(x, format)


def quantize_both_fake(x: Tensor, format: str) -> Four:
    """Return empty results of `quantize_both`."""
    return empty_codes(x, parse_format(format), True, True)


def dequantize(
    codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, shape: list[int], axis: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return what stored codes are worth."""
    fmt = parse_format(format)
    tables = codes.device.type == "cpu"
    size = torch.Size(shape)
    return numerics.dequantize(codes, scales, tensor_scale, fmt, size, axis, dtype, tables=tables)


def dequantize_fake(
    codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, shape: list[int], axis: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return an empty result of `dequantize`."""
    return codes.new_empty(shape, dtype=dtype)


def scaled_mm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, kind: str, format_a: str, format_b: str,
    dtype: torch.dtype, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return (a · a_scale) @ (b · b_scale).T (+ bias), by the native product called `kind`.

    Shapes: a [M, K], b [N, K] as `quantize` stores them, scales [M, 1] and [N, 1], [1, 1], or [M, K / 32]
    and [N, K / 32] for mxfp8, bias [N].
    Dtypes: uint8 codes, float32 scales (uint8, E8M0, for mxfp8) -> dtype; int8 sums in int32, fp8 in
    float32.
    """
    formats = (parse_format(format_a), parse_format(format_b))
    found: Tensor = product_named(kind).run(a, a_scale, b, b_scale, *formats, dtype, bias)
    return found


def scaled_mm_fake(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, kind: str, format_a: str, format_b: str,
    dtype: torch.dtype, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return an empty result of `scaled_mm`."""
    return a.new_empty([a.shape[0], b.shape[0]], dtype=dtype)


def _sides(rows: torch.Size, block: Block) -> tuple[int, int]:
    return block.across or rows[-2] or 1, block.along or rows[-1] or 1
