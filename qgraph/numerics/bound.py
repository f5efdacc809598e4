"""How far a quantized element may be from where it was: what a format promises."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, Codebook, FloatFormat, IntFormat, Rounding, Scale
from qgraph.numerics.blocks import block_amax
from qgraph.numerics.tiles import cut, from_tiles

_FLOAT32 = 2.0**-20  # what the float32 steps between add, with room


def error_bound(x: Tensor, fmt: BlockFormat, axis: int, rounding: Rounding) -> Tensor | None:
    """Return the most that each element of `x` may move, or None where the format promises nothing.

    With A the largest magnitude of a block, s = A / top the scale that maps it to the element's
    largest value, and g the widest gap between neighboring values, rounding moves an element
    by at most g·s/2 to nearest, g·s otherwise. A scale rounded to lo·s ... hi·s makes that hi times as
    much, and cuts (1 - lo)·A off the largest. A range with a floor has the floor for A, at least.
    A scale of few bits below a tensor scale is also off by its smallest step. A range other than the
    largest magnitude promises nothing: it cuts on purpose; nor do codebooks, unsigned elements and other
    dialects, which have rules of their own.
    Where A is not finite the bound is not either.

    Shapes: x [..., M, K] (K the size of `axis`, one of the last two) -> the same.
    Dtypes: floating-point -> float32.
    """
    element = fmt.element
    if isinstance(element, Codebook) or element.min == 0 or fmt.dialect != "te":
        return None
    limits = _scale_limits(fmt.scale, element)
    if limits is None:
        return None
    low, high = limits
    top = element.max
    step = _widest_gap(element) / top * (0.5 if rounding.mode.startswith("nearest") else 1.0)
    cut_off = 1 - low * min(1.0, -element.min / top)
    if fmt.asymmetric:  # from the least to the largest value, and a zero point that is rounded too
        step, cut_off = 4.0 / (2**element.bits - 1), 0.0
    share = max(step * high, cut_off) + _FLOAT32 + torch.finfo(x.dtype).eps
    x32 = x.float()
    if str(fmt.block) == "tensor":
        amax = x32.abs().amax().expand_as(x32) if x32.numel() else x32
    else:
        tiles = cut(x32.movedim(axis, -1), fmt.block)
        amax = from_tiles(block_amax(x32, fmt.block, axis).expand_as(tiles), x.shape, axis)
    whole = x32.abs().amax() if x32.numel() else x32.sum()
    lost = 0.0
    if fmt.two_level and fmt.scale.element is not None:
        lost = fmt.scale.element.min_positive / 256  # 256 or 448 times the smallest is the largest
    return amax.clamp(min=fmt.scale.range.floor) * share + whole * lost + 2.0**-120


def _scale_limits(scale: Scale, element: FloatFormat | IntFormat) -> tuple[float, float] | None:
    """Return the least and the most a rounded scale can be, as shares of the exact one."""
    wider = {"absmax": 1.0, "4over6": 1.5, "4over6_mse": 1.5}.get(scale.range.kind)
    if wider is None or scale.kind == "none" or scale.rounding == "eden":
        return None
    if scale.element is not None:
        ulp = 2.0**-scale.element.mantissa_bits
        down, up = {
            "nearest": (ulp / 2, ulp / 2), "up": (0.0, ulp), "down": (ulp, 0.0), "stochastic": (ulp, ulp),
        }[scale.rounding]  # fmt: skip
        return 1 - down, wider * (1 + up)
    if scale.kind == "power":
        # Rounded as A / top, or as A alone, its power against that of the element's largest value.
        head = element.max / (element.unit * 2.0**element.max_exponent)
        return {
            "rceil": (1.0, 2.0), "rfloor": (0.5, 1.0), "floor": (head / 2, head), "ceil": (head, 2 * head),
            "even": (head / 2, 2 * head),
        }[scale.rounding]  # fmt: skip
    return (1.0, wider) if scale.rounding == "nearest" else (0.5, 2.0)


def _widest_gap(element: FloatFormat | IntFormat) -> float:
    if isinstance(element, FloatFormat):
        # The top binade's step; without subnormals the one between zero and the smallest.
        step = 2.0 ** (element.max_exponent - element.mantissa_bits) * element.unit
        return max(step, element.min_positive)
    return element.unit
