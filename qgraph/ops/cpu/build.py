"""Building the CPU kernels: once, by the machine's own C++ compiler, kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

_FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
    # Exact arithmetic: no fused multiply-add the definition does not have.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip


def why_unavailable() -> str | None:
    """Return why the kernels cannot be used on this machine, or None when they can."""
    found = _library()
    return found if isinstance(found, str) else None


def loaded() -> ctypes.CDLL:
    """Return the built kernels; only where `why_unavailable` says nothing."""
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
    source = resources.files("qgraph.ops.cpu").joinpath("cpu.cpp").read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(b"\0".join([source, version, " ".join(_FLAGS).encode(), _cpu_flags()]))
    path = _cache_dir() / f"kernels-{key.hexdigest()[:24]}.so"
    if not path.exists():
        with _one_at_a_time(path.parent):
            said = None if path.exists() else _build(compiler, source, path)
        if said is not None:
            return said
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


def _build(compiler: str, source: bytes, path: Path) -> str | None:
    """Build the kernels at `path`; return what went wrong, if anything."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, built = Path(folder) / "cpu.cpp", Path(folder) / "cpu.so"
        code.write_bytes(source)
        command = [compiler, *_FLAGS, "-o", str(built), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            return f"{compiler} failed: {said.splitlines()[0]}"
        built.replace(path)
    return None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several processes that want the kernels at once, let one build and the others wait."""
    if importlib.util.find_spec("fcntl") is None:  # not on every system
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: several build the same
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
