"""What a launch of a GPU's kernel is, and what all of them need.

A `Launch` is known from shapes alone: the ops run it, and `qgraph compile --offline` compiles and
counts it without a GPU. Bit for bit what `qgraph.numerics` defines.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, FloatFormat, Range, Rounding
from qgraph.ops.devices import Kind
from qgraph.ops.machine import Machine
from qgraph.ops.work import Quantize

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*i16"}  # bfloat16 goes as its bits
TILE = 64
LAUNCHES = 4096  # that are kept, for as many shapes and formats
# IEEE sums and products: a fused multiply-add would round once where the definition rounds twice.
OPTIONS = {"enable_fp_fusion": False}
_INT32 = 2**31 - 1
MAX_PARTS = 256
_SCALES = {"e4m3": 0, "ue8m0-rceil": 1, "ue8m0-floor": 2, "fp32": 3}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a Triton kernel.

    `signature` gives Triton's type of each argument that is not a constant, in order. `moved` are the
    bytes its programs load and store, `minimum` those of its operands and results, each once;
    `flops` the operations of a product, of a matrix unit for operands of kind `unit`.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    grid: tuple[int, int, int]
    warps: int
    minimum: int
    moved: int
    flops: int = 0
    unit: Kind = "bf16"
    compiled: dict[tuple[object, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    def run(self, *arguments: Any) -> None:
        """Launch it on the current device.

        Integers depend on the shape alone, or are not specialized. So what was compiled the first
        time fits whenever pointers are aligned as they were and integers are as wide: it is launched
        again without Triton's own look at every argument, which takes longer than small kernels run.
        Not on AMD, where Triton also looks at the size of the memory behind a pointer.
        """
        key = (
            torch.cuda.is_available() and torch.cuda.current_device(),
            *[a.data_ptr() % 16 if isinstance(a, Tensor) else a > _INT32 for a in arguments],
        )
        if (again := self.compiled.get(key)) is not None:
            again(*arguments, *self.constants.values())
            return
        names = self.kernel.arg_names[len(arguments) :]
        assert names == [*self.constants], f"{self.name} takes {names}, in this order"
        found = self.kernel[self.grid](
            *arguments, **self.constants, num_warps=self.warps, **OPTIONS
        )
        if found is not None and not torch.version.hip:  # the interpreter compiles nothing
            self.compiled[key] = found[self.grid]


def why_not_triton(work: Quantize, machine: Machine) -> str | None:
    """Return why a Triton kernel does not read these tensors there, None if it does."""
    if machine.no_triton is not None:
        return machine.no_triton
    if work.dtype not in POINTERS:
        return f"no triton kernel reads {str(work.dtype)[6:]}"
    if work.rank < 2 or work.empty:
        return (
            "no triton kernel takes vectors" if work.rank < 2 else "nothing to launch a kernel for"
        )
    return None


@functools.cache
def fuses_on_gpu(fmt: BlockFormat, rounding: Rounding) -> bool:
    """Whether the kernels find scales and codes of `fmt`: the float formats of the usual recipes."""
    element, block = fmt.element, fmt.block
    if not isinstance(element, FloatFormat):
        return False
    plain = element.signed and element.subnormals and element.saturate and element.unit == 1
    plain = plain and element.specials != "fnuz" and element.mantissa_bits > 0
    step = element.min_exponent - element.mantissa_bits
    plain = plain and step > -126 and element.max_exponent - element.mantissa_bits < 104
    scale = _scale_text(fmt)
    whole = scale == "fp32" and str(block) == "tensor"
    blocks = block.across in (1, 16) and block.along in (16, 32)
    scaled = whole or (blocks and scale in ("e4m3", "ue8m0-rceil", "ue8m0-floor"))
    usual = fmt.dialect == "te" and fmt.two_level == (scale == "e4m3")
    usual = usual and fmt.tensor_scale != "fp32-row"
    return plain and scaled and usual and str(rounding) in ("nearest", "stochastic")


def as_bits(x: Tensor) -> Tensor:
    """Return bfloat16 as int16, so that no conversion but the kernels' own has a say."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def sign_mask(signs: str) -> int:
    """Return signs as bits, one where the sign is minus."""
    return sum(1 << i for i, sign in enumerate(signs) if sign == "-")


def batched(shape: torch.Size) -> tuple[int, int, int]:
    """Return a shape as a batch of matrices: [batch, M, N]."""
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def count_parts(shape: torch.Size, most: int = MAX_PARTS) -> int:
    """Return how many programs look for the largest magnitude: a power of two."""
    batch, rows, columns = batched(shape)
    tiles = batch * -(-rows // TILE) * -(-columns // TILE)
    return min(most, 1 << max(0, tiles - 1).bit_length())


def scale_number(fmt: BlockFormat) -> int:
    """Return the number by which the kernels know a scale's rule."""
    return _SCALES[_scale_text(fmt)]


def _scale_text(fmt: BlockFormat) -> str:
    """Return the scale's text; a delayed range is a largest magnitude that is known."""
    delayed = fmt.scale.range.kind == "delayed"
    return str(replace(fmt.scale, range=Range()) if delayed else fmt.scale)
