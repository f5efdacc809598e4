"""Mutants of the kernels, written by hand: mistakes that kernels like these are known for."""

from __future__ import annotations

from tests.harness.mutants.draw import Mutant
from tests.house import ROOT

_CPU, _GPU = "qgraph/ops/cpu/cpu.cpp", "qgraph/ops/gpu"
# The tests of each: all of a file, or the one that interprets Triton.
_BUILT, _CODES = "tests/ops/test_cpu_kernels.py", "tests/doors/test_native.py"
_EVERY = "test_every_kernel_gives_the_bits_of_the_definitions[telling-400]"
_INTERPRETED = f"tests/ops/test_gpu_kernels.py::{_EVERY}"
# File, what is wrong, how it reads, how it is broken.
_WRITTEN = (
    (_CPU, "bfloat16 ties go away from zero", "(b + 0x7fff + ((b >> 16) & 1)) >> 16", "(b + 0x8000) >> 16"),
    (
        _CPU, "a block's scale has a floor of 2**-6",
        "s = round_nearest<false>(s, 3, 121);", "s = std::max(round_nearest<false>(s, 3, 121), 0.015625f);",
    ),
    (_CPU, "the last thread's maxima win", "amax[c] = std::max(amax[c], own[c]);", "amax[c] = own[c];"),
    (
        _CPU, "matrices of a batch draw the same bits",
        "uint64_t(outer * job.inner + c0) * chunks + k / 16", "uint64_t(c0) * chunks + k / 16",
    ),
    (_CPU, "int8 ties go up", "q = (q + 12582912.0f) - 12582912.0f;", "q = std::floor(q + 0.5f);"),
    (f"{_GPU}/pack.py", "scales are swizzled within 64 rows", "(r % 128) // 32 * 4", "(r % 64) // 32 * 4"),
    (
        f"{_GPU}/parts.py", "half a subnormal's step goes up",
        "(mantissa > 0x400000).to(tl.int32)", "(mantissa >= 0x400000).to(tl.int32)",
    ),
    (f"{_GPU}/amax.py", "only a batch's first matrix is looked at", "tiles * batch, PARTS", "tiles, PARTS"),
    (
        f"{_GPU}/product.py", "one side's scale is taken twice",
        "tl.load(a_whole) * tl.load(b_whole)", "tl.load(a_whole) * tl.load(a_whole)",
    ),
    (
        f"{_GPU}/fake_quant.py", "matrices of a batch draw the same bits",
        "number = b * rows + r.to(tl.int64)", "number = r.to(tl.int64)",
    ),
)  # fmt: skip


def written() -> list[Mutant]:
    """Return the mutants. Each place is there once."""
    found = []
    for file, what, old, new in _WRITTEN:
        text = (ROOT / file).read_text()
        assert text.count(old) == 1, f"{file}: {old!r} is there {text.count(old)} times, not once"
        tests = _CODES if "int8" in what else _BUILT if file == _CPU else _INTERPRETED
        line = text[: text.index(old)].count("\n") + 1
        found.append(
            Mutant(
                file=file, where=what, line=line, kind="written", old=old, new=new,
                tests=tests,
                broken=text.replace(old, new),
            )
        )  # fmt: skip
    return found
