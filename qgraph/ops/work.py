"""What there is to compute, as kernels are asked about it: `Rotate`, `Quantize`, `Multiply`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from qgraph.formats import NEAREST, BlockFormat, Rounding
from qgraph.numerics import Noise
from qgraph.ops.devices import Kind
from qgraph.ops.machine import Machine

Wanted = Literal["values", "codes", "both", "packed"]
Known = Literal["", "tensor", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """Rotating a tensor by random signs and a Hadamard matrix along an axis."""

    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantizing one operand of a product.

    `wanted` is what the codes are worth (`values`), codes and scales along one axis (`codes`) or
    along either axis of a matrix (`both`), or NVFP4 as a matrix unit reads it (`packed`). `points`
    are those of a rotation in the same op, 0 without. `known` says that the range is given, of the
    `tensor` or of its `blocks`. `named` says that the rounding was asked for by name: then codes
    beside a scale that is NaN, which stand for nothing, are the definition's too.
    """

    format: BlockFormat
    rounding: Rounding = NEAREST
    draws: bool = False  # takes random bits, for codes or scales
    dtype: torch.dtype = torch.float32
    rank: int = 2
    empty: bool = False
    wanted: Wanted = "values"
    points: int = 0
    known: Known = ""
    named: bool = False


@dataclass(frozen=True, kw_only=True)
class Multiply:
    """Multiplying two operands: quantized as `left` and `right` say, None where one is high.

    `target` is the op's name; `plain` says that it adds no more to the product than a vector. `dtype`
    is the result's. `summed` elements make one of it, and `flops` are all its operations: None where
    sizes change.
    """

    left: Quantize | None
    right: Quantize | None
    dtype: torch.dtype
    target: str = "aten.mm.default"
    plain: bool = True
    summed: int | None = 1
    flops: int | None = None


Work = Rotate | Quantize | Multiply


class How(NamedTuple):
    """How one call quantizes a tensor to `values` or `codes`, beside the format and the rounding.

    `signs` and `output` are those of a rotation. `amax` is a range that is given; `known` are the bits
    of the largest magnitude, where they were found on the way.
    """

    axis: int
    noise: Noise | None = None
    signs: str = ""
    output: str = "bf16"
    amax: Tensor | None = None
    known: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """One way to compute: a row of `qgraph.ops.kernels.KERNELS`.

    `takes(work, machine)` returns None where it computes that there, else why not; an empty reason
    says that the work is another kernel's, and is not worth telling. `run` computes it. `launches`
    gives what a GPU would launch, without one. `unit` is what a product multiplies, `special` what
    reports say of a device's kernels. A `definition` takes everything, and comes last.

    `run` by work: Rotate (x, signs, axis, output) -> rotated, bits of its largest magnitude or None;
    Quantize to `values` or `codes` (x, format, rounding, how), to `both` (x, format), `packed`
    (x, sides, signs, output, seed); Multiply as `qgraph.ops.define` gives it the arguments.
    """

    name: str
    work: type[Work]
    wanted: tuple[Wanted, ...] = ()
    device: str = ""  # any
    takes: Callable[[Any, Machine], str | None]
    run: Callable[..., Any]
    launches: Callable[..., Any] | None = None
    unit: Kind = "bf16"
    special: str = ""
    definition: bool = False

    @property
    def module(self) -> str:
        """The module that the kernel is written in."""
        return self.takes.__module__

    def refuses(self, work: Work, machine: Machine) -> str | None:
        """Return why this kernel does not compute `work` on `machine`: see `takes`."""
        if not isinstance(work, self.work):
            return ""
        if isinstance(work, Quantize) and work.wanted not in self.wanted:
            return ""
        if self.device not in ("", machine.device):
            return ""
        return self.takes(work, machine)
