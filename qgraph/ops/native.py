"""Products on codes: what torch computes itself on integers and 8-bit floats, and when it can.

Codes and scales are those of emulation. Only the sum differs: integers add up exactly, where
emulation rounds each partial sum to float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from qgraph.compat import aten
from qgraph.formats import BlockFormat, FloatFormat, IntFormat, find_element
from qgraph.formats.rounding import NEAREST
from qgraph.numerics.blocks import block_scales
from qgraph.numerics.storage import as_torch, swizzle, torch_dtype
from qgraph.ops import cpu, cpu_build, gpu

# Sums of more products of int8 codes could pass 2**31.
MAX_SUMMED = (2**31 - 1) // 127**2


def native_kind(
    a: BlockFormat,
    b: BlockFormat,
    device_type: str,
    *,
    always: bool = False,
    dtype: torch.dtype = torch.float32,
    capability: tuple[int, int] | None = None,
    flops: int | None = None,
) -> str:
    """Return `int8`, `fp8` or `mxfp8` if torch multiplies codes of these formats there, and it pays.

    Otherwise return the reason it does not, which begins with `no`. With `always` it need not pay.
    `dtype` is that of the product, `capability` that of the CUDA device, the one at hand if None,
    `flops` the floating-point operations of the product, None if its sizes change.
    """
    elements = (a.element, b.element)
    scaling = tuple(_scaling(fmt) for fmt in (a, b))
    for fmt, how in zip((a, b), scaling, strict=True):
        if not how:
            return f"no native product takes {fmt}"
    if scaling[0] != scaling[1] and not all(isinstance(e, IntFormat) for e in elements):
        return f"no native product of a {scaling[0]} and a {scaling[1]} scale"
    if device_type not in ("cpu", "cuda") or (device_type == "cuda" and torch.version.hip):
        return f"no native product on {'this GPU' if torch.version.hip else device_type} yet"
    if all(e == find_element("int8") for e in elements) and "1x32" not in scaling:
        why = _SLOW["int8"] if device_type == "cuda" else why_no_fast_integers()
        return "int8" if always or why is None else why
    if all(isinstance(e, IntFormat) for e in elements):
        return "no native product of these integers"
    if not all(isinstance(e, FloatFormat) and e.name in ("e4m3", "e5m2") for e in elements):
        return f"no native product of {a.element.name} and {b.element.name}"
    if device_type == "cuda":
        found = capability or torch.cuda.get_device_capability()
        kind = _gpu_kind(scaling[0], [e.name for e in elements], dtype, found)
        if always or kind.startswith("no "):
            return kind
        return _SLOW.get(scaling[0], "") or _large_enough(kind, flops)
    if "1x32" in scaling:
        return "no native mxfp8 product on cpu"
    # torch 2.13 converts fp8 on a CPU before it multiplies: steps were 4 to 8 times slower.
    return "fp8" if always else "no native fp8 product on a cpu that is faster than emulation"


@functools.cache
def why_no_fast_integers() -> str | None:
    """Return why integers are not multiplied faster than float32 on this CPU, or None if they are.

    Without these instructions torch 2.13's `_int_mm` took 20 to 50 times as long as float32's product.
    """
    if torch.cpu.get_capabilities().get("avx512_vnni"):
        return None
    return "no native int8 product on a cpu without AVX-512 VNNI that is faster than emulation"


# Why a product that a GPU has is left alone. On an H200, torch 2.11, `_int_mm` was 1.02 to 1.08 times as
# fast as bfloat16's product, before quantization.
_SLOW = {
    "int8": "no native int8 product on a GPU that is faster: torch's takes as long as one of bfloat16",
    "row": "no native fp8 product with row scales on a GPU that is known to be faster: "
    "its codes have no kernel yet",
    "1x32": "no native mxfp8 product that was measured to be faster",
}
# Below this a product in bfloat16 is over before this one is launched.
LEAST_FLOPS = 2**36


def _large_enough(kind: str, flops: int | None) -> str:
    if flops is None:
        return f"no native {kind} product on a GPU where sizes change: it pays for large ones only"
    if flops < LEAST_FLOPS:
        return f"no native {kind} product on a GPU that pays below {LEAST_FLOPS / 1e9:.0f} GFLOP"
    return kind


def _scaling(fmt: BlockFormat) -> str:
    """Return how codes of this format are scaled, `row`, `tensor` or `1x32`; nothing if otherwise."""
    block = str(fmt.block)
    if fmt.dialect != "te" or fmt.tensor_scale != "none":
        return ""
    if block == "1x32" and fmt.scale.name == "ue8m0":
        return block
    return block if block in ("row", "tensor") and str(fmt.scale) == "fp32" else ""


def _gpu_kind(
    scaling: str, elements: Sequence[str], dtype: torch.dtype, capability: tuple[int, int]
) -> str:
    """Return the kind of 8-bit float product of a CUDA device, or why it has none.

    Source: torch 2.13, aten/src/ATen/native/cuda/ScaledBlas.cpp; NVIDIA, cuBLAS, 8-bit floats.
    """
    kind = "mxfp8" if scaling == "1x32" else "fp8"
    least = {"1x32": (10, 0), "row": (9, 0), "tensor": (8, 9)}[scaling]
    if capability < least:
        shown = ".".join(map(str, capability))
        return f"no native {kind} product with {scaling} scales on a GPU of capability {shown}"
    if set(elements) == {"e5m2"}:
        return "no native product of two e5m2"
    if scaling != "tensor" and dtype != torch.bfloat16:
        return f"no native {kind} product with {scaling} scales that gives {str(dtype)[6:]}: bfloat16 only"
    return kind


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


def _int_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b.T in int32, of int8 codes; filled up with zeros to the sizes that torch takes."""
    (m, k), n = a.shape, b.shape[0]
    pad = torch.nn.functional.pad
    if a.device.type == "cuda":  # more than 16 rows; the other sizes multiples of 8
        a, b = pad(a, (0, -k % 8, 0, max(0, 17 - m))), pad(b, (0, -k % 8, 0, -n % 8))
    elif k < 2:  # torch 2.13's _int_mm returns garbage for a sum of one product
        a, b = (pad(codes, (0, 2 - k)) for codes in (a, b))
    return aten.int_mm(a.view(torch.int8), b.view(torch.int8).mT)[:m, :n]


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

    Shapes: a [M, K], b [N, K] as `quantize` stores them, scales [M, 1] and [N, 1], [1, 1], or [M, K / 32]
    and [N, K / 32] for mxfp8, bias [N].
    Dtypes: uint8 codes, float32 scales (uint8, E8M0, for mxfp8) -> dtype; int8 sums in int32, fp8 in
    float32.
    """
    if kind == "int8":
        rows, columns = a_scale.expand(a.shape[0], 1), b_scale.expand(b.shape[0], 1)
        sums = _int_sums(a, b)
        if cpu_build.why_unavailable() is None and sums.device.type == "cpu":
            return cpu.rescale(sums, rows, columns, bias).to(dtype)
        out = sums.float() * rows * columns.mT
        return (out if bias is None else out + bias.float()).to(dtype)
    # Sums are of float32. Rounded once: after the bias, where the product may give float32.
    whole = (bias is not None and _scaling(format_a) == "tensor") or a.device.type == "cpu"
    given = torch.float32 if whole else dtype
    out = _scaled(a, a_scale, b, b_scale, format_a, format_b, given)
    return (out if bias is None else out + bias.to(out.dtype)).to(dtype)


def _scaled(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, format_a: BlockFormat,
    format_b: BlockFormat, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return the product of 8-bit float codes."""
    scaling, wanted, on_gpu = _scaling(format_a), b.shape[0], a.device.type != "cpu"
    recipe, layout = _RECIPES[scaling]
    left, b_side = as_torch(a, a_scale, format_a), as_torch(b, b_scale, format_b)
    left, right = laid_out(*left, scaling, on_gpu), laid_out(*b_side, scaling, on_gpu, right=True)
    found = torch.nn.functional.scaled_mm(
        left[0], right[0].mT, left[1], recipe, right[1], recipe, layout, layout, output_dtype=dtype
    )  # fmt: skip
    return found if found.shape[1] == wanted else found[:, :wanted]


_RECIPES = {
    "tensor": (ScalingType.TensorWise, SwizzleType.NO_SWIZZLE),
    "row": (ScalingType.RowWise, SwizzleType.NO_SWIZZLE),
    "1x32": (ScalingType.BlockWise1x32, SwizzleType.SWIZZLE_32_4_4),
}


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
