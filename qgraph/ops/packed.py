"""The ops of NVFP4 as a matrix unit takes it, and their definitions.

    pack(x, row, column, ...) -> (codes, scales, tensor scale) along N, then along M

A side is a format's text, or nothing; `row` has blocks along the last axis of x [M, N], `column` along
the first. `nvfp4_mm` multiplies two sides.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import NEAREST, STOCHASTIC, parse_format
from qgraph.numerics import unswizzle
from qgraph.ops.gpu.pack import NVFP4_FORMATS, Six, empty_sides
from qgraph.ops.gpu.product import NVFP4
from qgraph.ops.kernels import CHOICES, choose
from qgraph.ops.machine import Machine, at_hand
from qgraph.ops.reference import REFERENCE_PACK
from qgraph.ops.work import Kernel, Multiply, Quantize

PACK = (
    "pack(Tensor x, str row, bool row_turns, bool row_draws, int row_site, "
    "str column, bool column_turns, bool column_draws, int column_site, "
    "str signs, str output, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
MULTIPLY = (
    "nvfp4_mm(Tensor a, Tensor a_scales, Tensor a_whole, Tensor b, Tensor b_scales, Tensor b_whole, "
    "Tensor? bias, ScalarType dtype) -> Tensor"
)


def pack(
    x: Tensor,
    row: str,
    row_turns: bool,
    row_draws: bool,
    row_site: int,
    column: str,
    column_turns: bool,
    column_draws: bool,
    column_site: int,
    signs: str,
    output: str,
    seed: Tensor | None,
) -> Six:
    """Quantize x [M, N] in one or both orientations, rotated along the blocks where a side turns.

    Each side is what `numerics.quantize` stores: codes [M, N'/2] and [N, M'/2] (N' and M' whole blocks
    of 16), scales of every row swizzled, tensor scale []. A side that is not asked for is empty.
    """
    drawn = int(seed.item()) if seed is not None else 0
    sides = (
        (row, row_turns, row_draws, row_site),
        (column, column_turns, column_draws, column_site),
    )
    turned = len(signs) if row_turns or column_turns else 0
    kernel = _packer(
        (row, row_draws), (column, column_draws), turned, x.dtype, x.dim(), x.numel() == 0,
        at_hand(x.device.type),
    )  # fmt: skip
    found: Six = kernel.run(x, sides, signs, output, drawn)
    return found


@functools.lru_cache(CHOICES)
def _packer(
    row: tuple[str, bool],
    column: tuple[str, bool],
    points: int,
    dtype: torch.dtype,
    rank: int,
    empty: bool,
    machine: Machine,
) -> Kernel:
    """Return the kernel that packs both sides, each a format, or nothing, and whether it draws."""
    found = {
        choose(
            Quantize(
                format=parse_format(text), rounding=STOCHASTIC if draws else NEAREST, draws=draws,
                dtype=dtype, rank=rank, empty=empty, wanted="packed", points=points,
            ),
            machine,
        ).kernel
        for text, draws in (row, column)
        if text
    }  # fmt: skip
    return found.pop() if len(found) == 1 else REFERENCE_PACK


def pack_fake(
    x: Tensor, row: str, row_turns: bool, row_draws: bool, row_site: int, column: str,
    column_turns: bool, column_draws: bool, column_site: int, signs: str, output: str,
    seed: Tensor | None,
) -> Six:  # fmt: skip
    """Return empty results of `pack`."""
    return empty_sides(x, ((row, row_turns, row_draws, 0), (column, column_turns, column_draws, 0)))


def nvfp4_mm(
    a: Tensor, a_scales: Tensor, a_whole: Tensor, b: Tensor, b_scales: Tensor, b_whole: Tensor,
    bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return a @ b.T (+ bias) of two sides of `pack`: [M, K'/2] and [N, K'/2] -> [M, N] of `dtype`.

    Sums are of float32; the tensor scales are multiplied in once, after the sum.
    """
    if _multiplies(dtype, at_hand(a.device.type)):
        found: Tensor = NVFP4.run(a, a_scales, a_whole, b, b_scales, b_whole, bias, dtype)
        return found
    sides = []
    for codes, scales in ((a, a_scales), (b, b_scales)):
        rows, size = codes.shape[0], codes.shape[1] * 2
        stored = unswizzle(scales, rows, size // 16).view(torch.float8_e4m3fn)
        one = torch.ones((), device=a.device)
        fmt, shape = parse_format(NVFP4_FORMATS[0]), torch.Size((rows, size))
        sides.append(numerics.dequantize(codes, stored, one, fmt, shape, -1, torch.float32))
    product = (sides[0] @ sides[1].mT) * (a_whole * b_whole)
    return (product if bias is None else product + bias.float()).to(dtype)


@functools.lru_cache(CHOICES)
def _multiplies(dtype: torch.dtype, machine: Machine) -> bool:
    """Whether the matrix unit multiplies two sides into `dtype`; else their values are multiplied."""
    side = Quantize(format=parse_format(NVFP4_FORMATS[0]))
    work = Multiply(left=side, right=side, dtype=dtype)
    return choose(work, machine).kernel is NVFP4


def nvfp4_mm_fake(
    a: Tensor, a_scales: Tensor, a_whole: Tensor, b: Tensor, b_scales: Tensor, b_whole: Tensor,
    bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return an empty result of `nvfp4_mm`."""
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
