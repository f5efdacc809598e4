"""The gradient of a quantizer: what stands for the derivative of rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, Codebook, Element, Gradient
from qgraph.numerics.blocks import block_scales, scale_tiles
from qgraph.numerics.cast import place_between, round_to
from qgraph.numerics.tiles import check_axis, cut, from_tiles


def quant_backward(
    grad: Tensor, x: Tensor, fmt: BlockFormat, axis: int, gradient: Gradient
) -> Tensor:
    """Return the gradient of a loss with respect to `x`, given that to its quantized values.

    With u = x/s the scaled elements, s = amax/M: grad · Q'(u), Q' the estimator's. With
    `gradient.absmax` the element of largest magnitude in each block also takes
    sign(x) · sum(grad · (Q(u) - Q'(u)·u)) / M, shared among equals; the scale's own rounding and
    the tensor scale count as exact. Sums run in float32.

    Shapes: grad and x [..., M, K] (K the size of `axis`, one of the last two) -> the same.
    Dtypes: any floating-point one -> that of grad; arithmetic in float32.
    Raises: ShapeError as `fake_quant`.
    Source: FP4 design space (arXiv 2509.17791), proposition 1.
    """
    check_axis(x, axis)
    if gradient.straight:
        return grad
    rows, x32 = grad.float().movedim(axis, -1), x.float()
    scales = block_scales(x32, fmt, axis)
    tiles, upstream = cut(x32.movedim(axis, -1), fmt.block), cut(rows, fmt.block)
    scaled = scale_tiles(tiles, scales)
    slope = derivative(scaled, fmt.element, gradient)
    found = upstream * slope
    if gradient.absmax:
        # A scale that underflowed to zero leaves elements far out of range: they count as saturated.
        bounded = scaled.clamp(-fmt.element.max, fmt.element.max)
        gap = round_to(bounded, fmt.element) - slope * bounded
        rest = (upstream * gap).sum((-3, -1), keepdim=True) / fmt.element.max
        size = tiles.abs()
        top = size.amax((-3, -1), keepdim=True) if tiles.numel() else size
        if str(fmt.block) == "tensor":
            rest, top = rest.sum(), top.amax() if tiles.numel() else top
        largest = (size == top) & (size > 0)
        count = largest.sum() if str(fmt.block) == "tensor" else largest.sum((-3, -1), keepdim=True)
        found = found + torch.where(largest, torch.sign(tiles) * rest / count, 0.0)
    return from_tiles(found, x.shape, axis).to(grad.dtype).contiguous()


def derivative(scaled: Tensor, element: Element, gradient: Gradient) -> Tensor:
    """Return what the estimator says is the derivative of rounding at `scaled`.

    Shapes: any -> the same.
    Dtypes: float32.
    Source: clipped: QuEST (arXiv 2502.05003), as its mask; dge: arXiv 2501.17116.
    """
    if gradient.estimator == "ste":
        return torch.ones_like(scaled)
    low = -element.max if isinstance(element, Codebook) else element.min
    room = 1 + 2.0**-20  # the largest element of a block is not exactly max after scaling
    inside = ((scaled >= low * room) & (scaled <= element.max * room)).float()
    if gradient.estimator == "clipped":
        return inside
    place = place_between(scaled, element)  # from 0, on the lower neighbor, to 1
    if gradient.estimator == "spline":
        return inside * torch.where((place >= 0.25) & (place < 0.75), 2.0, 0.0)
    slope = (2 * place - 1).abs() ** (1 / gradient.k - 1) / gradient.k
    return inside * slope.clamp(max=gradient.cap)
