"""The CPU lowering: kernels built once by the machine's own C++ compiler and called through ctypes.

Bit for bit what `qgraph.numerics` defines; the definitions run instead when there is no compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from qgraph.formats import (
    ROUNDINGS,
    Block,
    BlockFormat,
    Codebook,
    Element,
    FloatFormat,
    IntFormat,
    Range,
    Rounding,
)
from qgraph.numerics import Noise
from qgraph.numerics.blocks import ERRORS, ErrorKind, Kernels
from qgraph.numerics.scales import Scales
from qgraph.numerics.tiles import check_axis

_FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
    # Exact arithmetic: no fused multiply-add the definition does not have.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
# The scales that the kernel of one pass computes itself.
_FUSED_SCALES = {"e4m3": 0, "ue8m0-rceil": 1, "ue8m0-floor": 2, "fp32": 3}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_unavailable() -> str | None:
    """Return why the kernels cannot be used on this machine, or None when they can."""
    found = _library()
    return found if isinstance(found, str) else None


def supports(x: Tensor) -> bool:
    """Whether the kernels take `x`."""
    return x.device.type == "cpu" and x.dtype in _DTYPES and not isinstance(_library(), str)


def amax(x: Tensor) -> int:
    """Return the bits of the largest magnitude of a contiguous `x`; NaN is the largest of all."""
    return int(_loaded().qgraph_amax(x.data_ptr(), x.numel(), x.dtype == torch.bfloat16))


def fuses(fmt: BlockFormat, rounding: Rounding) -> bool:
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


def _fused_scale(fmt: BlockFormat) -> str:
    """Return the scale's text; a delayed range is a largest magnitude that is known."""
    delayed = fmt.scale.range.kind == "delayed"
    return str(replace(fmt.scale, range=Range()) if delayed else fmt.scale)


def fake_quant(
    x: Tensor, fmt: BlockFormat, axis: int, noise: Noise | None, known_amax: int | None = None
) -> Tensor:
    """See `qgraph.numerics.fake_quant`, for formats that `fuses` names; nearest without noise.

    `known_amax` saves the pass that finds the largest magnitude.
    """
    check_axis(x, axis)
    if x.dtype == torch.float16:  # float32 inside, and one rounding at the end: the same values
        return fake_quant(x.float(), fmt, axis, noise, known_amax).to(x.dtype)
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    axis %= x.dim()
    size, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    outer = x.numel() // (size * inner)
    rows = x.shape[-2] if axis == x.dim() - 1 else 1  # a column (inner 1) is in memory one row
    block = fmt.block
    whole = str(block) == "tensor"
    if known_amax is None:
        known_amax = amax(x) if whole or fmt.two_level else 0
    element = fmt.element
    mantissa, lowest = 0, 0
    if isinstance(element, FloatFormat):
        mantissa, lowest = element.mantissa_bits, element.min_exponent + 127
    _loaded().qgraph_fake_quant(
        x.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        outer, size, inner, rows, block.across or 1, block.along or size, whole,
        isinstance(element, IntFormat), mantissa, lowest, element.max,
        _FUSED_SCALES[_fused_scale(fmt)], element.max_exponent,
        known_amax,
        noise is not None,
        noise.seed & 0xFFFFFFFF if noise else 0,
        noise.site & 0xFFFFFFFF if noise else 0,
    )  # fmt: skip
    return out


def block_amax(x: Tensor, block: Block, axis: int) -> Tensor:
    """See `qgraph.numerics.blocks.block_amax`; x float32."""
    grid, shape = _grid(x, block, axis)
    out = torch.zeros(shape, dtype=torch.float32)
    if x.numel():
        x = x.contiguous()
        _loaded().qgraph_block_amax(x.data_ptr(), out.data_ptr(), *grid)
    return out


def round_blocks(
    x: Tensor,
    fmt: BlockFormat,
    scales: Scales,
    axis: int,
    rounding: Rounding,
    noise: Noise | None,
    codes: bool,
) -> Tensor:
    """See `qgraph.numerics.blocks.round_blocks`; x float32."""
    grid, shape = _grid(x, fmt.block, axis)
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    parts = [scales.encode, scales.zero, scales.decode, scales.outer]
    if codes:
        parts[2] = parts[3] = None
    spread = [None if part is None else part.expand(shape).contiguous() for part in parts]
    element = fmt.element
    values = getattr(element, "values", ())
    _loaded().qgraph_round_blocks(
        x.data_ptr(), out.data_ptr(), *grid,
        *[None if part is None else part.data_ptr() for part in spread],
        (ctypes.c_int * 11)(*_facts(element, rounding, scales)),
        (ctypes.c_float * 3)(*_limits(element)),
        len(values), _floats(values), _floats(getattr(element, "limits", ())),
        rounding.random and noise is not None,
        noise.seed & 0xFFFFFFFF if noise else 0,
        noise.site & 0xFFFFFFFF if noise else 0,
    )  # fmt: skip
    return out


def block_error(x: Tensor, values: Tensor, block: Block, axis: int, kind: ErrorKind) -> Tensor:
    """See `qgraph.numerics.blocks.block_error`; both float32."""
    grid, shape = _grid(x, block, axis)
    out = torch.zeros(shape, dtype=torch.float64)
    if x.numel():
        x, values, number = x.contiguous(), values.contiguous(), ERRORS.index(kind)
        _loaded().qgraph_block_error(x.data_ptr(), values.data_ptr(), out.data_ptr(), *grid, number)
    return out


KERNELS = Kernels(largest=block_amax, round=round_blocks, error=block_error)


def _grid(x: Tensor, block: Block, axis: int) -> tuple[tuple[int, ...], torch.Size]:
    """Return how the kernels see `x`, and the shape of its blocks' scales."""
    check_axis(x, axis)
    by_column = axis % x.dim() == x.dim() - 2
    size, rows = x.shape[axis], x.shape[-1 if by_column else -2]
    across, along = block.across or max(rows, 1), block.along or max(size, 1)
    shape = torch.Size([*x.shape[:-2], -(-rows // across), 1, -(-size // along), 1])
    return (math.prod(x.shape[:-2]), rows, size, across, along, int(by_column)), shape


def _facts(element: Element, rounding: Rounding, scales: Scales) -> tuple[int, ...]:
    """Return the whole numbers of `Element` in cpu.cpp, in its order."""
    mode = list(ROUNDINGS).index(rounding.mode)
    if isinstance(element, FloatFormat):
        one_zero = element.specials == "fnuz" or not element.signed
        return (
            0, element.mantissa_bits, element.min_exponent + 127, mode, rounding.bits,
            element.subnormals, element.saturate, element.specials == "ieee", one_zero,
            scales.divides, scales.plus_zero,
        )  # fmt: skip
    kind = 2 if isinstance(element, Codebook) else 1
    tail = (scales.divides, scales.plus_zero)
    return (kind, 0, 0, mode, rounding.bits, True, True, False, False, *tail)


def _limits(element: Element) -> tuple[float, float, float]:
    if isinstance(element, Codebook):
        return element.min, element.max, 1.0
    return element.min / element.unit, element.max / element.unit, element.unit


@functools.cache
def _floats(values: tuple[float, ...]) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(values))(*values)


def int8_codes(x: Tensor, fmt: BlockFormat, axis: int) -> tuple[Tensor, Tensor]:
    """Return int8 codes [M, K], the summed axis last, and float32 scales [M, 1], of a matrix.

    What `qgraph.numerics.quantize` gives to nearest for a symmetric integer of at most 8 bits with
    an fp32 scale for each row or for the tensor.
    """
    x = x.float().contiguous()
    by_column = axis % 2 == 0
    rows, size = (x.shape[1], x.shape[0]) if by_column else (x.shape[0], x.shape[1])
    codes = torch.zeros((rows, size), dtype=torch.int8)
    scales = torch.ones((rows, 1), dtype=torch.float32)
    if x.numel():
        whole = str(fmt.block) == "tensor"
        _loaded().qgraph_int8_codes(
            x.data_ptr(), codes.data_ptr(), scales.data_ptr(), rows, size, by_column, fmt.element.max,
            whole, amax(x) if whole else 0,
        )  # fmt: skip
    return codes, scales


def rescale(sums: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return sums · a · b (+ bias) in float32: [M, N] int32, a [M, 1], b [N, 1], bias [N]."""
    out = torch.empty(sums.shape, dtype=torch.float32)
    if sums.numel():
        sums, a, b = sums.contiguous(), a.contiguous(), b.contiguous()
        added = None if bias is None else bias.float().contiguous()
        _loaded().qgraph_rescale(
            sums.data_ptr(), out.data_ptr(), *sums.shape, a.data_ptr(), b.data_ptr(),
            None if added is None else added.data_ptr(),
        )  # fmt: skip
    return out


def hadamard(x: Tensor, signs: str, axis: int, output: str) -> tuple[Tensor, int]:
    """See `qgraph.numerics.hadamard`; also returns the bits of the largest magnitude."""
    if x.dtype == torch.float16:
        rotated = hadamard(x.float(), signs, axis, output)[0].to(x.dtype)
        return rotated, amax(rotated.float())
    x = x.contiguous()
    axis %= x.dim()
    n, size = len(signs), x.shape[axis]
    shape = (*x.shape[:axis], -(-size // n) * n, *x.shape[axis + 1 :])
    out = torch.empty(shape, dtype=x.dtype)
    if not x.numel():
        return out, 0
    inner = math.prod(x.shape[axis + 1 :])
    bits = _loaded().qgraph_hadamard(
        x.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        x.numel() // (size * inner), size, inner, n, _sign_array(signs), output == "bf16",
    )  # fmt: skip
    return out, int(bits)


@functools.cache
def _sign_array(signs: str) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(signs))(*(1.0 if s == "+" else -1.0 for s in signs))


def _loaded() -> ctypes.CDLL:
    found = _library()
    assert not isinstance(found, str), found
    return found


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Return the built kernels, or the reason there are none."""
    compiler = next(
        (c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None
    )
    if compiler is None:
        return "no C++ compiler found (g++ or clang++; set CXX)"
    source = resources.files("qgraph.ops").joinpath("cpu.cpp").read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(b"\0".join([source, version, " ".join(_FLAGS).encode(), _cpu_flags()]))
    path = _cache_dir() / f"kernels-{key.hexdigest()[:24]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            code, built = Path(folder) / "cpu.cpp", Path(folder) / "cpu.so"
            code.write_bytes(source)
            done = subprocess.run(
                [compiler, *_FLAGS, "-o", str(built), str(code)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                said = done.stderr.strip() or f"exit status {done.returncode}"
                return f"{compiler} failed: {said.splitlines()[0]}"
            built.replace(path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # a damaged file, or a folder that forbids running code
        return f"{path} cannot be loaded: {error}"
    i64, u32, i32, ptr, f32 = (
        ctypes.c_int64, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p, ctypes.c_float,
    )  # fmt: skip
    library.qgraph_amax.argtypes = [ptr, i64, i32]
    library.qgraph_amax.restype = u32
    library.qgraph_hadamard.argtypes = [ptr, ptr, i32, i64, i64, i64, i32, ptr, i32]
    library.qgraph_hadamard.restype = u32
    library.qgraph_fake_quant.argtypes = (
        ptr, ptr, i32, *[i64] * 6, *[i32] * 4, f32, i32, i32, u32, i32, u32, u32,
    )  # fmt: skip
    library.qgraph_fake_quant.restype = None
    library.qgraph_int8_codes.argtypes = [ptr, ptr, ptr, i64, i64, i32, f32, i32, u32]
    library.qgraph_int8_codes.restype = None
    library.qgraph_rescale.argtypes = [ptr, ptr, i64, i64, ptr, ptr, ptr]
    library.qgraph_rescale.restype = None
    library.qgraph_block_amax.argtypes = [ptr, ptr, *[i64] * 5, i32]
    library.qgraph_block_amax.restype = None
    library.qgraph_block_error.argtypes = [ptr, ptr, ptr, *[i64] * 5, i32, i32]
    library.qgraph_block_error.restype = None
    library.qgraph_round_blocks.argtypes = (
        ptr, ptr, *[i64] * 5, i32, *[ptr] * 6, i32, ptr, ptr, i32, u32, u32,
    )  # fmt: skip
    library.qgraph_round_blocks.restype = None
    return library


def _cpu_flags() -> bytes:
    """Return what identifies this processor to -march=native."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {flags}".encode()


def _cache_dir() -> Path:
    """Return a private folder for built kernels: QGRAPH_CACHE_DIR, or the user's cache."""
    chosen = os.environ.get("QGRAPH_CACHE_DIR")
    base = (
        Path(chosen)
        if chosen
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qgraph"
    )
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="qgraph-"))
