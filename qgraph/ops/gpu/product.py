"""Products of NVFP4 codes on a GPU whose matrix unit takes them with their block scales."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from qgraph.ops.gpu.language import jit, tl
from qgraph.ops.gpu.launch import LAUNCHES, Launch
from qgraph.ops.gpu.pack import NVFP4_FORMATS, TRITON_PACK, side_bytes
from qgraph.ops.machine import Machine, at_hand
from qgraph.ops.native.common import why_not_plain
from qgraph.ops.work import Kernel, Multiply

_DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


@jit
def load_scales(scales, r, c, wide):
    """Load swizzled scales of rows `r` and blocks `c`: see `qgraph.numerics.storage.swizzle`."""
    tile = (r // 128)[:, None] * wide + (c // 4)[None, :]
    within = ((r % 32) * 16 + (r % 128) // 32 * 4)[:, None] + (c % 4)[None, :]
    return tl.load(scales + tile.to(tl.int64) * 512 + within)


@jit
def product_kernel(
    a, a_scales, a_whole, b, b_scales, b_whole, bias, out, M, N, K2,
    BIAS: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr,
):  # fmt: skip
    """Out [M, N] = a [M, 2·K2] @ b [N, 2·K2].T on NVFP4 codes, scales of tensor and bias applied once."""
    columns = tl.cdiv(N, TN)
    tile = tl.program_id(0)
    m = (tile // columns) * TM + tl.arange(0, TM)
    n = (tile % columns) * TN + tl.arange(0, TN)
    wide = tl.cdiv(K2, 32)
    held_m, held_n = m < M, n < N
    total = tl.zeros([TM, TN], tl.float32)
    for start in range(tl.cdiv(K2, TK // 2)):
        k = start * (TK // 2) + tl.arange(0, TK // 2)
        c = start * (TK // 16) + tl.arange(0, TK // 16)
        left = tl.load(
            a + m[:, None].to(tl.int64) * K2 + k[None, :],
            held_m[:, None] & (k < K2)[None, :],
            other=0,
        )
        right = tl.load(
            b + n[None, :].to(tl.int64) * K2 + k[:, None],
            held_n[None, :] & (k < K2)[:, None],
            other=0,
        )
        left_scales = load_scales(
            a_scales, tl.where(held_m, m, 0), tl.minimum(c, wide * 4 - 1), wide
        )
        right_scales = load_scales(
            b_scales, tl.where(held_n, n, 0), tl.minimum(c, wide * 4 - 1), wide
        )
        total = tl.dot_scaled(left, left_scales, "e2m1", right, right_scales, "e2m1", total)
    found = total * (tl.load(a_whole) * tl.load(b_whole))
    if BIAS:
        found = found + tl.load(bias + n, held_n, other=0.0).to(tl.float32)[None, :]
    place = m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), held_m[:, None] & held_n[None, :])


def _takes(work: Multiply, machine: Machine) -> str | None:
    sides = (work.left, work.right)
    if any(side is None or str(side.format) not in NVFP4_FORMATS for side in sides):
        return ""
    if (why := why_no_nvfp4(machine)) is not None or (why := why_not_plain(work)) is not None:
        return why
    if work.dtype not in _DTYPES:
        return f"no NVFP4 product that gives {str(work.dtype)[6:]}"
    for side in sides:
        assert side is not None
        if TRITON_PACK.refuses(replace(side, wanted="packed"), machine) is not None:
            return "no native product of these roundings or rotations"
    return None


def why_no_nvfp4(machine: Machine) -> str | None:
    """Return why a GPU does not multiply NVFP4, or None if it does."""
    if machine.no_triton is not None:
        return f"no NVFP4 product: {machine.no_triton}"
    if machine.hip:
        return "no NVFP4 product on this GPU: its FP4 units scale 32 elements by a power of two"
    if machine.capability < (10, 0):
        shown = machine.shown_capability
        return f"no NVFP4 product on a GPU of capability {shown}: it has no FP4 units"
    return None


def _run(
    a: Tensor, a_scales: Tensor, a_whole: Tensor, b: Tensor, b_scales: Tensor, b_whole: Tensor,
    bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
    launch = product_launch(a.shape, b.shape, dtype, bias is not None, at_hand("cuda"))
    left, right = a_scales.view(torch.float8_e4m3fn), b_scales.view(torch.float8_e4m3fn)
    launch.run(
        a, left, a_whole, b, right, b_whole, bias if bias is not None else out, out,
        a.shape[0], b.shape[0], a.shape[1],
    )  # fmt: skip
    return out


def product_launch(
    a: torch.Size, b: torch.Size, dtype: torch.dtype, bias: bool, machine: Machine
) -> Launch:
    """Return the launch of the product; its bytes are those of operands and result, each once."""
    return _product_launch(a, b, dtype, bias, _product_tile(machine))


@functools.lru_cache(LAUNCHES)
def _product_launch(
    a: torch.Size, b: torch.Size, dtype: torch.dtype, bias: bool, tile: tuple[int, int, int]
) -> Launch:
    (m, k2), n, (tm, tn, tk) = a, b[0], tile
    name = _DTYPES[dtype]
    size = side_bytes(m, 2 * k2) + side_bytes(n, 2 * k2) + m * n * dtype.itemsize
    return Launch(
        kernel=product_kernel,
        signature={
            "a": "*u8", "a_scales": "*fp8e4nv", "a_whole": "*fp32", "b": "*u8", "b_scales": "*fp8e4nv",
            "b_whole": "*fp32", "bias": name, "out": name, "M": "i32", "N": "i32", "K2": "i32",
        },
        constants={"BIAS": bias, "TM": tm, "TN": tn, "TK": tk},
        grid=(-(-m // tm) * -(-n // tn), 1, 1),
        warps=8,
        minimum=size,
        moved=size,
        flops=4 * m * n * k2,
        unit="fp4",
    )  # fmt: skip


def _product_tile(machine: Machine) -> tuple[int, int, int]:
    """Return rows, columns and summed elements of a product's program.

    GPUs of capability 12 sum in registers, not in a memory of the matrix unit: larger tiles spill.
    """
    return (64, 64, 128) if machine.capability[0] == 12 else (128, 128, 128)


NVFP4 = Kernel(
    name="nvfp4",
    work=Multiply,
    device="cuda",
    takes=_takes,
    run=_run,
    launches=product_launch,
    unit="fp4",
)
