"""Products on codes: what torch computes itself on integers and 8-bit floats, and when it can.

Codes and scales are those of emulation. Only the sum differs: integers add up exactly, where
emulation rounds each partial sum to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, FloatFormat, IntFormat, find_element
from qgraph.formats.rounding import NEAREST
from qgraph.numerics.blocks import block_scales
from qgraph.numerics.storage import torch_dtype
from qgraph.ops import cpu, cpu_build, gpu

# Sums of more products of int8 codes could pass 2**31.
MAX_SUMMED = (2**31 - 1) // 127**2


def native_kind(a: BlockFormat, b: BlockFormat, device_type: str, *, always: bool = False) -> str:
    """Return `int8` or `fp8` if torch multiplies codes of these formats on such a device, and it pays.

    Otherwise return the reason it does not, which begins with `no`. With `always` it need not pay.
    """
    for fmt in (a, b):
        if (
            fmt.dialect != "te"
            or str(fmt.scale) != "fp32"
            or str(fmt.block) not in ("row", "tensor")
        ):
            return f"no native product takes {fmt}"
    if device_type != "cpu":
        return f"no native product on {device_type} yet"
    elements = (a.element, b.element)
    if all(e == find_element("int8") for e in elements):
        return "int8"
    if all(isinstance(e, IntFormat) for e in elements):
        return "no native product of these integers"
    if all(isinstance(e, FloatFormat) and e.name in ("e4m3", "e5m2") for e in elements):
        if str(a.block) != str(b.block):
            return "no native product of a row and a tensor scale"
        # torch 2.13 converts fp8 on a CPU before it multiplies: steps were 4 to 8 times slower.
        return "fp8" if always else "no native fp8 product on a cpu that is faster than emulation"
    return f"no native product of {a.element.name} and {b.element.name}"


def why_no_nvfp4() -> str | None:
    """Return why the GPU at hand does not multiply NVFP4, or None if it does."""
    if gpu.why_unavailable() is not None:
        return f"no NVFP4 product: {gpu.why_unavailable()}"
    if torch.version.hip:
        return "no NVFP4 product on this GPU: its FP4 units scale 32 elements by a power of two"
    major, minor = torch.cuda.get_device_capability()
    if major < 10:
        return f"no NVFP4 product on a GPU of capability {major}.{minor}: it has no FP4 units"
    return None


def codes_2d(x: Tensor, fmt: BlockFormat, axis: int) -> tuple[Tensor, Tensor] | None:
    """Return codes [M, K], the summed axis last, and scales [M, 1] or [1, 1] of a matrix, fast.

    None where this does not compute what `qgraph.numerics.quantize` does to nearest.
    """
    usual = str(fmt.scale) == "fp32" and str(fmt.block) in ("row", "tensor") and fmt.dialect == "te"
    if not usual or x.dim() != 2 or not x.numel() or not cpu.supports(x):
        return None
    element, dtype = fmt.element, torch_dtype(fmt.element)
    if element == find_element("int8"):
        codes, scales = cpu.int8_codes(x, fmt, axis)
        return codes.view(torch.uint8), scales if str(fmt.block) == "row" else scales[
            :1
        ].contiguous()
    if element.name not in ("e4m3", "e5m2") or dtype is None:
        return None
    found = block_scales(x.float(), fmt, axis, None, cpu.KERNELS)
    values = cpu.KERNELS.round(x.float(), fmt, found, axis, NEAREST, None, True)
    codes = values.to(dtype).view(torch.uint8)
    codes = codes.mT.contiguous() if axis % 2 == 0 else codes
    return codes, found.stored.squeeze(-1).squeeze(-2).contiguous()


def scaled_mm(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    kind: str,
    format_a: BlockFormat,
    format_b: BlockFormat,
    dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    """Return (a · a_scale) @ (b · b_scale).T (+ bias).

    Shapes: a [M, K], b [N, K] as `quantize` stores them, scales [M, 1] and [N, 1] or [1, 1], bias [N].
    Dtypes: uint8 codes, float32 scales -> dtype; int8 sums in int32, fp8 in float32.
    """
    rows, columns = a_scale.expand(a.shape[0], 1), b_scale.expand(b.shape[0], 1)
    if kind == "int8":
        if a.shape[1] < 2:  # torch 2.13's _int_mm returns garbage for a sum of one product
            a, b = (torch.nn.functional.pad(codes, (0, 2 - codes.shape[1])) for codes in (a, b))
        sums = torch._int_mm(a.view(torch.int8), b.view(torch.int8).mT)
        if cpu_build.why_unavailable() is None and sums.device.type == "cpu":
            return cpu.rescale(sums, rows, columns, bias).to(dtype)
        out = sums.float() * rows * columns.mT
        return (out if bias is None else out + bias.float()).to(dtype)
    left, right = (
        t.view(d)
        for t, d in ((a, torch_dtype(format_a.element)), (b, torch_dtype(format_b.element)))
        if d is not None
    )
    whole = str(format_a.block) == "tensor"
    scales = (rows.contiguous(), columns.mT.contiguous())
    if whole:
        scales = (a_scale.reshape(()), b_scale.reshape(()))
    out = torch._scaled_mm(left, right.mT, *scales, out_dtype=torch.float32)
    return (out if bias is None else out + bias.float()).to(dtype)
