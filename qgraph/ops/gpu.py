"""The GPU lowering: which Triton kernels an op launches, with what, and what they move.

A `Launch` is known from shapes alone: the ops run it, and `qgraph compile --offline` compiles and
counts it without a GPU. Bit for bit what `qgraph.numerics` defines.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, FloatFormat, Range, Rounding
from qgraph.numerics import Noise, check_axis

_DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*i16"}  # bfloat16 goes as its bits
_SCALES = {"e4m3": 0, "ue8m0-rceil": 1, "ue8m0-floor": 2, "fp32": 3}
_TILE = 64
_INT32 = 2**31 - 1
_PACK_TILE = (128, 64)
_MAX_PARTS = 256
LAUNCHES = 4096  # that are kept, for as many shapes and formats
MAX_POINTS = 64
# IEEE sums and products: a fused multiply-add would round once where the definition rounds twice.
OPTIONS = {"enable_fp_fusion": False}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a kernel of `triton_kernels`.

    `signature` gives Triton's type of each argument that is not a constant, in order. `moved` are the
    bytes its programs load and store, `minimum` those of its operands and results, each once;
    `flops` the operations of a product.
    """

    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    grid: tuple[int, int, int]
    warps: int
    minimum: int
    moved: int
    flops: int = 0
    compiled: dict[tuple[object, ...], Any] = field(default_factory=dict, compare=False, repr=False)

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
        kernel = getattr(kernels(), self.kernel)
        names = kernel.arg_names[len(arguments) :]
        assert names == [*self.constants], f"{self.kernel} takes {names}, in this order"
        found = kernel[self.grid](*arguments, **self.constants, num_warps=self.warps, **OPTIONS)
        if found is not None and not torch.version.hip:  # the interpreter compiles nothing
            self.compiled[key] = found[self.grid]


@functools.cache
def why_unavailable() -> str | None:
    """Return why there are no GPU kernels, or None."""
    return None if importlib.util.find_spec("triton") else "Triton is not installed"


def kernels() -> ModuleType:
    """Return the kernels; importing them needs Triton."""
    from qgraph.ops import triton_kernels

    return triton_kernels


def supports(x: Tensor) -> bool:
    """Whether the kernels take `x`."""
    on_gpu = x.device.type == "cuda" and x.dtype in _DTYPES and x.dim() >= 2
    return on_gpu and x.numel() > 0 and why_unavailable() is None


@functools.cache
def fuses(fmt: BlockFormat, rounding: Rounding) -> bool:
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


def rotates(signs: str, size: int) -> bool:
    """Whether the kernels rotate by `signs` along an axis of `size`."""
    return 2 <= len(signs) <= MAX_POINTS and size > 0


def fake_quant(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    noise: Noise | None,
    signs: str = "",
    output: str = "bf16",
    amax: Tensor | None = None,
) -> Tensor:
    """See `qgraph.numerics.fake_quant`, of `x` rotated by `signs` if there are any; for what `fuses`."""
    check_axis(x, axis)
    x = x.contiguous()
    by_column = axis % x.dim() == x.dim() - 2
    first, second = fake_quant_launches(
        x.shape, x.dtype, fmt, by_column, noise is not None, len(signs), output, amax is not None
    )
    mask = sign_mask(signs)
    batch, rows, columns = _seen(x.shape)
    if amax is not None:
        parts = amax.float().view(torch.int32).reshape(1)
    else:
        parts = torch.empty(_parts(x.shape), dtype=torch.int32, device=x.device)
    given = as_bits(x)
    if first is not None:
        first.run(given, parts, parts, rows, columns, batch, mask)
    shape = [*x.shape]
    n = max(1, len(signs))
    shape[axis] = -(-shape[axis] // n) * n
    out = x.new_empty(shape)
    drawn = (noise.seed & 0xFFFFFFFF, noise.site & 0xFFFFFFFF) if noise else (0, 0)
    second.run(given, as_bits(out), parts, rows, columns, mask, *drawn)
    return out


@functools.lru_cache(LAUNCHES)
def fake_quant_launches(
    shape: torch.Size,
    dtype: torch.dtype,
    fmt: BlockFormat,
    by_column: bool,
    random: bool,
    points: int = 0,
    output: str = "bf16",
    known: bool = False,
) -> tuple[Launch | None, Launch]:
    """Return the launches of `fake_quant`: of the largest magnitude, where it is asked for, and after it."""
    element = fmt.element
    assert isinstance(element, FloatFormat), "the kernels take floats"
    scale = scale_number(fmt)
    batch, rows, columns = _seen(shape)
    whole = scale in (0, 3)
    bf16 = output == "bf16" or dtype == torch.bfloat16
    parts = 1 if known else _parts(shape)
    first = None
    if whole and not known:
        first = amax_launch(shape, dtype, points, by_column, bf16, turned=points > 1)
    along = columns if not by_column else rows
    grown = -(-along // points) * points if points > 1 else along
    size = math.prod(shape)
    width = dtype.itemsize
    grid = (-(-rows // _TILE), -(-columns // _TILE), batch)
    moved = width * (size + size // max(along, 1) * grown)
    second = Launch(
        kernel="fake_quant_kernel",
        signature={
            "x": _DTYPES[dtype], "out": _DTYPES[dtype], "parts": "*i32",
            "M": "i32", "N": "i32", "signs": "i64", "seed": "i64", "site": "i64",
        },
        constants={
            "POINTS": max(points, 1), "ALONG_M": by_column, "BF16": bf16,
            "ACROSS": _TILE if scale == 3 else fmt.block.across,
            "BLOCK": _TILE if scale == 3 else fmt.block.along,
            "MANTISSA": element.mantissa_bits, "LOWEST": element.min_exponent + 127,
            "MAX": element.max, "TOP": element.max_exponent, "SCALE": scale, "NOISE": random,
            "STORED_BF16": dtype == torch.bfloat16, "PARTS": parts, "TM": _TILE, "TN": _TILE,
        },
        grid=grid,
        warps=4,
        minimum=moved + 4 * parts * whole,
        moved=moved + 4 * parts * whole * math.prod(grid),
    )  # fmt: skip
    return first, second


def amax_launch(
    shape: torch.Size,
    dtype: torch.dtype,
    points: int,
    by_column: bool,
    bf16: bool,
    *,
    plain: bool | None = None,
    turned: bool,
    most: int = _MAX_PARTS,
) -> Launch:
    """Return the launch that finds partial maxima of a tensor, of the tensor rotated, or of both.

    `most` of them at the most: more are found sooner, but each program that follows reads them all.
    """
    plain = not turned if plain is None else plain
    parts = _parts(shape, most)
    size = math.prod(shape) * dtype.itemsize + 4 * parts * (plain + turned)
    return Launch(
        kernel="amax_kernel",
        signature={
            "x": _DTYPES[dtype], "parts": "*i32", "turned": "*i32", "M": "i32", "N": "i32",
            "batch": "i32", "signs": "i64",
        },
        constants={
            "POINTS": max(points, 1), "ALONG_M": by_column, "BF16": bf16,
            "STORED_BF16": dtype == torch.bfloat16, "PLAIN": plain,
            "TURNED": turned, "PARTS": parts, "TM": _TILE, "TN": _TILE,
        },
        grid=(parts, 1, 1),
        warps=4,
        minimum=size,
        moved=size,
    )  # fmt: skip


def as_bits(x: Tensor) -> Tensor:
    """Return bfloat16 as int16, so that no conversion but the kernels' own has a say."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def sign_mask(signs: str) -> int:
    """Return signs as bits, one where the sign is minus."""
    return sum(1 << i for i, sign in enumerate(signs) if sign == "-")


def _seen(shape: torch.Size) -> tuple[int, int, int]:
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _parts(shape: torch.Size, most: int = _MAX_PARTS) -> int:
    """Return how many programs look for the largest magnitude: a power of two."""
    batch, rows, columns = _seen(shape)
    tiles = batch * -(-rows // _TILE) * -(-columns // _TILE)
    return min(most, 1 << max(0, tiles - 1).bit_length())


def scale_number(fmt: BlockFormat) -> int:
    """Return the number by which the kernels know a scale's rule."""
    return _SCALES[_scale_text(fmt)]


def _scale_text(fmt: BlockFormat) -> str:
    """Return the scale's text; a delayed range is a largest magnitude that is known."""
    delayed = fmt.scale.range.kind == "delayed"
    return str(replace(fmt.scale, range=Range()) if delayed else fmt.scale)
