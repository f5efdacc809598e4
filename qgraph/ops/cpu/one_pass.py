"""Values of the usual formats on a CPU: one kernel finds scales and codes, in one read or two.

Bit for bit what `qgraph.numerics` defines.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, FloatFormat, IntFormat, Range, Rounding
from qgraph.numerics import Noise, check_axis, in_range
from qgraph.ops.cpu.build import loaded
from qgraph.ops.cpu.rotate import largest_bits, rotate_on_cpu, why_not_cpu
from qgraph.ops.machine import Machine
from qgraph.ops.work import How, Kernel, Quantize

# The scales that the kernel of one pass computes itself.
_FUSED_SCALES = {"e4m3": 0, "ue8m0-rceil": 1, "ue8m0-floor": 2, "fp32": 3}


def _takes(work: Quantize, machine: Machine) -> str | None:
    if (why := why_not_cpu(work.dtype, machine)) is not None:
        return why
    fused = _fuses(work.format, work.rounding) and work.known != "blocks"
    return None if fused else ""  # two passes do it


def _run(x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How) -> Tensor:
    known = how.known if how.amax is None else int(how.amax.view(torch.int32))
    if how.signs:
        x, known = rotate_on_cpu(x, how.signs, how.axis, how.output)
    noise = how.noise if rounding.random else None
    return quantize_in_one_pass(x, fmt, how.axis, noise, known)


CPU_ONE_PASS = Kernel(
    name="cpu",
    work=Quantize,
    wanted=("values",),
    device="cpu",
    takes=_takes,
    run=_run,
    special="cpu kernels",
)


@functools.cache
def _fuses(fmt: BlockFormat, rounding: Rounding) -> bool:
    """Whether one kernel finds scales and codes of `fmt`: the formats of the usual recipes."""
    element = fmt.element
    if isinstance(element, FloatFormat):
        plain = element.signed and element.subnormals and element.saturate and element.unit == 1
        plain = plain and element.specials != "fnuz" and element.mantissa_bits > 0
        step = element.min_exponent - element.mantissa_bits
        plain = plain and step > -126 and element.max_exponent - element.mantissa_bits < 104
    else:
        plain = (
            isinstance(element, IntFormat) and element.range == "symmetric" and element.unit == 1
        )
    scaled = _fused_scale(fmt) in _FUSED_SCALES and fmt.two_level == (fmt.scale.name == "e4m3")
    usual = fmt.dialect == "te" and fmt.tensor_scale != "fp32-row" and str(fmt.block) != "column"
    return plain and scaled and usual and str(rounding) in ("nearest", "stochastic")


@functools.cache
def _fused_facts(fmt: BlockFormat) -> tuple[float, ...]:
    """Return whether one scale serves the tensor, and `Format` in cpu.cpp, in its order."""
    element = fmt.element
    mantissa, lowest = 0, 0
    if isinstance(element, FloatFormat):
        mantissa, lowest = element.mantissa_bits, element.min_exponent + 127
    return (
        str(fmt.block) == "tensor", isinstance(element, IntFormat), mantissa, lowest, element.max,
        _FUSED_SCALES[_fused_scale(fmt)], element.max_exponent,
    )  # fmt: skip


def _fused_scale(fmt: BlockFormat) -> str:
    """Return the scale's text; a delayed range is a largest magnitude that is known."""
    delayed = fmt.scale.range.kind == "delayed"
    return str(replace(fmt.scale, range=Range()) if delayed else fmt.scale)


def quantize_in_one_pass(
    x: Tensor, fmt: BlockFormat, axis: int, noise: Noise | None, known_amax: int | None = None
) -> Tensor:
    """See `qgraph.numerics.fake_quant`, for formats that are fused; nearest without noise.

    `known_amax` saves the pass that finds the largest magnitude.
    """
    check_axis(x, axis)
    if x.dtype == torch.float16:  # float32 inside, and one rounding at the end: the same values
        found = quantize_in_one_pass(x.float(), fmt, axis, noise, known_amax)
        return in_range(found, x.dtype).to(x.dtype)
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    axis %= x.dim()
    size, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    outer = x.numel() // (size * inner)
    rows = x.shape[-2] if axis == x.dim() - 1 else 1  # a column (inner 1) is in memory one row
    whole, *element = _fused_facts(fmt)
    if known_amax is None:
        known_amax = largest_bits(x) if whole or fmt.two_level else 0
    loaded().qgraph_fake_quant(
        x.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        outer, size, inner, rows, fmt.block.across or 1, fmt.block.along or size, whole,
        *element, known_amax,
        noise is not None,
        noise.seed & 0xFFFFFFFF if noise else 0,
        noise.site & 0xFFFFFFFF if noise else 0,
    )  # fmt: skip
    return out
