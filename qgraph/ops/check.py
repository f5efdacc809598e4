"""Holding what a quantizer gave against what it was given: QGRAPH_VERIFY=1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.errors import GraphError
from qgraph.formats import parse_format, parse_rounding
from qgraph.numerics import Noise, usual_rounding
from qgraph.ops import state


def check(
    found: Tensor,
    source: Tensor,
    signs: str,
    output: str,
    format: str,
    axis: int,
    seed: Tensor | None,
    site: int,
    rounding: str | None,
    amax: Tensor | None,
    graph: int,
    place: str,
    axes: Sequence[int] = (),
) -> Tensor:
    """Return a copy of `found`; the first time at this place of this graph, see that it is right.

    `axes` are those of the matrix that a product reads, the one it sums over last; without them they
    are the quantizer's own. What is drawn, or is told the range of each block, keeps to its own: there
    it matters where an element lies.

    `found` must have the bits that `numerics.fake_quant` gives for `source` (rotated by `signs`, if there
    are any), and be no further from it than the format promises.

    Raises: GraphError naming the place if the quantizer did nothing or something else.
    """
    if (graph, place) not in state.CHECKED:
        state.CHECKED.add((graph, place))
        noise = None if seed is None else Noise(seed=int(seed.item()), site=site)
        other, along = axes or (-3 - axis, axis)
        x = numerics.hadamard(source, signs, along, output) if signs else source
        mode = parse_rounding(rounding) if rounding else usual_rounding(noise)
        fmt = parse_format(format)
        own = noise is not None or (amax is not None and amax.dim() > 0)
        matrix = (-3 - axis, axis) if own else (other, along)
        rows = x.movedim(matrix, (-2, -1))
        want = numerics.fake_quant(rows, fmt, -1, noise, mode, amax=amax).movedim((-2, -1), matrix)
        _compare(f"{place}, {format}", found, x, want)
        # A range that this tensor alone does not tell may lie anywhere above it.
        bound = numerics.error_bound(x, fmt, axis, mode) if amax is None else None
        if bound is not None:
            _hold(f"{place}, {format}", found, x, bound)
    return found.clone(memory_format=torch.contiguous_format)


def _compare(place: str, found: Tensor, x: Tensor, want: Tensor) -> None:
    differs = (found != want) & ~(found.isnan() & want.isnan())
    if not bool(differs.any()):
        return
    if torch.equal(found, x):
        raise GraphError(f"{place}: quantizing did nothing, all {x.numel()} elements are as before")
    where = tuple(differs.nonzero()[0].tolist())
    raise GraphError(
        f"{place}: {int(differs.sum())} of {x.numel()} elements are not what the format's definition "
        f"gives: {float(x[where])} at {list(where)} became {float(found[where])}, not {float(want[where])}"
    )


def _hold(place: str, found: Tensor, x: Tensor, bound: Tensor) -> None:
    moved = (found.float() - x.float()).abs()
    too_far = ~(moved <= bound) & bound.isfinite()  # NaN is too far as well
    if not bool(too_far.any()):
        return
    where = tuple(too_far.nonzero()[0].tolist())
    raise GraphError(
        f"{place}: {int(too_far.sum())} of {x.numel()} elements moved further than the format's scale "
        f"and step explain: {float(x[where])} at {list(where)} became {float(found[where])}",
        "use a tensor scale, a scale of more exponents, or keep the product in high precision",
    )


def check_fake(found: Tensor, *_: object) -> Tensor:
    """Return an empty result of `check`."""
    return found.new_empty(found.shape)
