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
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, FloatFormat, IntFormat
from qgraph.numerics import Noise
from qgraph.numerics.blocks import check_axis

_FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
    # Exact arithmetic: no fused multiply-add the definition does not have.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
_SCALES = {"e4m3": 0, "ue8m0-rceil": 1, "ue8m0-floor": 2, "fp32": 3}
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


def fake_quant(
    x: Tensor, fmt: BlockFormat, axis: int, noise: Noise | None, known_amax: int | None = None
) -> Tensor:
    """See `qgraph.numerics.fake_quant`; `known_amax` saves the pass that finds the largest magnitude."""
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
    whole = block.across is None
    if known_amax is None:
        known_amax = amax(x) if whole or fmt.tensor_scale else 0
    element = fmt.element
    mantissa, lowest = 0, 0
    if isinstance(element, FloatFormat):
        mantissa, lowest = element.mantissa_bits, element.min_exponent + 127
    _loaded().qgraph_fake_quant(
        x.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        outer, size, inner, rows, block.across or 1, block.along or size, whole,
        isinstance(element, IntFormat), mantissa, lowest, element.max,
        _SCALES[fmt.scale], element.max_exponent,
        known_amax,
        noise is not None,
        noise.seed & 0xFFFFFFFF if noise else 0,
        noise.site & 0xFFFFFFFF if noise else 0,
    )  # fmt: skip
    return out


def hadamard(x: Tensor, signs: str, axis: int, rounding: str) -> tuple[Tensor, int]:
    """See `qgraph.numerics.hadamard`; also returns the bits of the largest magnitude."""
    if x.dtype == torch.float16:
        rotated = hadamard(x.float(), signs, axis, rounding)[0].to(x.dtype)
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
        x.numel() // (size * inner), size, inner, n, _sign_array(signs), rounding == "bf16",
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
