"""The ops that hold packed bits: quantize, dequantize, and products of what they store."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import Block, parse_format, parse_rounding
from qgraph.numerics import Noise, code_dtype
from qgraph.ops import codes as on_codes
from qgraph.ops import cpu, gpu, native


def noise_of(seed: Tensor | None, site: int) -> Noise | None:
    """Return the random bits of one place in the graph; none without a seed."""
    return None if seed is None else Noise(seed=int(seed.item()), site=site)


def quantize(
    x: Tensor,
    format: str,
    axis: int,
    seed: Tensor | None = None,
    site: int = 0,
    rounding: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and tensor scale, as `qgraph.numerics.quantize` stores them."""
    kernels = cpu.KERNELS if cpu.supports(x) else numerics.REFERENCE
    mode = parse_rounding(rounding) if rounding else None
    fmt = parse_format(format)
    if seed is None and mode is None:
        if gpu.supports(x) and x.dim() == 2 and on_codes.takes(fmt):
            row = axis % 2 == 1
            found = on_codes.on_gpu(x, fmt, row=row, column=not row)
            return *(found[:2] if row else found[2:]), x.new_ones((), dtype=torch.float32)
        if (fast := native.codes_2d(x, fmt, axis)) is not None:
            return *fast, torch.ones(())
    return numerics.quantize(x, fmt, axis, noise_of(seed, site), mode, kernels)


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
    """Return a product of two quantized matrices: see `qgraph.ops.native`."""
    formats = (parse_format(format_a), parse_format(format_b))
    return native.scaled_mm(a, a_scale, b, b_scale, kind, *formats, dtype, bias)


def scaled_mm_fake(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, kind: str, format_a: str, format_b: str,
    dtype: torch.dtype, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return an empty result of `scaled_mm`."""
    return a.new_empty([a.shape[0], b.shape[0]], dtype=dtype)


def _sides(rows: torch.Size, block: Block) -> tuple[int, int]:
    return block.across or rows[-2] or 1, block.along or rows[-1] or 1
