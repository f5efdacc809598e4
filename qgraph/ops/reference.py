"""The definitions as kernels: the last of each kind of work, which take everything, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import NEAREST, STOCHASTIC, BlockFormat, Rounding, parse_format
from qgraph.numerics import Noise, swizzle
from qgraph.ops.gpu.pack import Sides, Six
from qgraph.ops.machine import Machine
from qgraph.ops.work import How, Kernel, Multiply, Quantize, Rotate, Wanted, Work


def _takes(work: Work, machine: Machine) -> None:
    return None


def _rotate(x: Tensor, signs: str, axis: int, output: str) -> tuple[Tensor, None]:
    return numerics.hadamard(x, signs, axis, output), None


def _values(x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How) -> Tensor:
    if how.signs:
        x = numerics.hadamard(x, how.signs, how.axis, how.output)
    return numerics.fake_quant(x, fmt, how.axis, how.noise, rounding, amax=how.amax)


def _codes(
    x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    return numerics.quantize(x, fmt, how.axis, how.noise, rounding, visible=True)


def _both(x: Tensor, fmt: BlockFormat) -> tuple[Tensor, ...]:
    row, column = (numerics.quantize(x, fmt, axis, visible=True)[:2] for axis in (-1, -2))
    return (*row, *column)


def _pack(x: Tensor, sides: Sides, signs: str, output: str, seed: int) -> Six:
    found: list[Tensor] = []
    for axis, (text, turns, draws, site) in zip((-1, -2), sides, strict=True):
        noise = Noise(seed=seed, site=site) if draws else None
        found += _packed(x, text, axis, signs if turns else "", output, noise)
    return tuple(found)  # type: ignore[return-value]


def _packed(
    x: Tensor, text: str, axis: int, signs: str, output: str, noise: Noise | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one side: codes, swizzled scales, tensor scale."""
    if not text:
        return _empty(x, torch.uint8), _empty(x, torch.uint8), _empty(x, torch.float32)
    y = numerics.hadamard(x, signs, axis, output) if signs else x
    fmt = parse_format(text)
    rounding = NEAREST if noise is None else STOCHASTIC
    codes, scales, whole = numerics.quantize(y, fmt, axis, noise, rounding)
    rows = x.shape[-2] if axis == -1 else x.shape[-1]
    each = scales.view(torch.uint8).repeat_interleave(fmt.block.across or 1, 0)[:rows]
    return codes[:rows].contiguous(), swizzle(each), whole


def _empty(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty((0,), dtype=dtype)


def _make(name: str, work: type[Work], run: Callable[..., object], *wanted: Wanted) -> Kernel:
    """Return the definition of some work as the kernel that takes all of it."""
    return Kernel(name=name, work=work, wanted=wanted, takes=_takes, run=run, definition=True)


REFERENCE_ROTATE = _make("reference rotation", Rotate, _rotate)
REFERENCE_VALUES = _make("reference", Quantize, _values, "values")
REFERENCE_CODES = _make("reference codes", Quantize, _codes, "codes")
REFERENCE_BOTH = _make("reference codes, both ways", Quantize, _both, "both")
REFERENCE_PACK = _make("reference packing", Quantize, _pack, "packed")
# What a product of values is, in the compute dtype: torch's own op stays in the graph.
EMULATED = _make("emulated", Multiply, torch.matmul)
