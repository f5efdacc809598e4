"""Accelerators as data: published peaks, memory, what their units multiply, what compilers must know.

Peaks are dense (no structured sparsity), a multiply and an add counted as two, accumulating in
32 bits. A device reaches a part of them: `qgraph cost` says which part it assumes. No torch here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qgraph.errors import QGraphError

# What a matrix unit takes: the wider of a product's two operands decides.
Kind = Literal["fp32", "tf32", "bf16", "int8", "fp8", "fp6", "fp4", "int4"]
KIB, MIB = 1 << 10, 1 << 20


class DeviceError(QGraphError, ValueError):
    """A device that is not in the table."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator.

    `peaks` are operations a second by kind of operand, fp16 as bf16; a kind that is missing has no
    matrix unit. `block_scales` are the block scales that the unit itself multiplies in: `nvfp4`
    (16 elements, e4m3) and `mx` (32 elements, ue8m0). `bandwidth` is bytes a second, `memory` bytes,
    `units` streaming multiprocessors or compute units, `arch` what compilers call it. `shared` is the
    shared memory a block can take and `cache` the last-level cache, both in bytes; `threads` and
    `registers` are those of one multiprocessor; `warp` is threads.
    """

    name: str
    title: str
    arch: str
    units: int
    memory: float
    bandwidth: float
    peaks: Mapping[Kind, float]
    block_scales: tuple[str, ...] = ()
    shared: int
    cache: int
    threads: int = 2048
    registers: int = 65536
    warp: int = 32
    source: str

    @property
    def amd(self) -> bool:
        """Whether ROCm compiles for it."""
        return self.arch.startswith("gfx")

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, as torch gives it: (10, 0) for sm_100, (9, 5) for gfx950."""
        digits = re.sub(r"\D", "", self.arch)
        cut = -2 if self.amd else -1
        return int(digits[:cut]), int(digits[cut])

    @property
    def triton_arch(self) -> int | str:
        """What Triton calls the architecture."""
        return self.arch if self.amd else int(self.arch.removeprefix("sm_"))

    @property
    def triton_target(self) -> Any:
        """The target of `triton.compile`."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("hip" if self.amd else "cuda", self.triton_arch, self.warp)


# Sources of memories, threads and registers: NVIDIA CUDA C++ Programming Guide, technical specifications per
# compute capability; the whitepapers below; AMD CDNA 4 instruction set architecture guide.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            name="a100",
            title="NVIDIA A100 SXM, 80 GB",
            arch="sm_80",
            units=108,
            memory=80e9,
            bandwidth=2.039e12,
            peaks={"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "int8": 624e12, "int4": 1248e12},
            shared=163 * KIB,
            cache=40 * MIB,
            source="NVIDIA A100 Tensor Core GPU datasheet",
        ),
        Device(
            name="h100",
            title="NVIDIA H100 SXM5, 80 GB",
            arch="sm_90",
            units=132,
            memory=80e9,
            bandwidth=3.35e12,
            peaks={"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "int8": 1978.9e12, "fp8": 1978.9e12},
            shared=227 * KIB,
            cache=50 * MIB,
            source="NVIDIA H100 Tensor Core GPU Architecture whitepaper",
        ),
        Device(
            name="b200",
            title="NVIDIA B200 SXM, 180 GB",
            arch="sm_100",
            units=148,
            memory=180e9,
            bandwidth=8e12,
            peaks={
                "fp32": 75e12, "tf32": 1125e12, "bf16": 2250e12, "int8": 4500e12, "fp8": 4500e12,
                "fp6": 4500e12, "fp4": 9000e12,
            },
            block_scales=("nvfp4", "mx"),
            shared=227 * KIB,
            cache=126 * MIB,
            source="NVIDIA HGX B200 datasheet, an eighth of the eight-GPU board",
        ),
        Device(
            name="rtx5090",
            title="NVIDIA GeForce RTX 5090, 32 GB",
            arch="sm_120",
            units=170,
            memory=32e9,
            bandwidth=1.792e12,
            peaks={
                "fp32": 104.8e12, "tf32": 104.8e12, "bf16": 209.5e12, "int8": 838e12, "fp8": 419e12,
                "fp6": 419e12, "fp4": 1676e12,
            },
            block_scales=("nvfp4", "mx"),
            shared=99 * KIB,
            cache=96 * MIB,
            threads=1536,
            source="NVIDIA RTX Blackwell GPU Architecture whitepaper, FP32 accumulate",
        ),
        Device(
            name="mi355x",
            title="AMD Instinct MI355X, 288 GB",
            arch="gfx950",
            units=256,
            memory=288e9,
            bandwidth=8e12,
            peaks={
                "fp32": 157.3e12, "bf16": 2516.6e12, "int8": 5033.2e12, "fp8": 5033.2e12,
                "fp6": 10066.3e12, "fp4": 10066.3e12,
            },
            block_scales=("mx",),
            shared=160 * KIB,
            cache=256 * MIB,
            registers=131072,
            warp=64,
            source="AMD Instinct MI355X data sheet, CDNA 4 whitepaper",
        ),
    )
}  # fmt: skip


def find_device(name: str) -> Device:
    """Return the device of this name.

    Raises: DeviceError naming the nearest, and all there are.
    """
    if name in DEVICES:
        return DEVICES[name]
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise DeviceError(f"unknown device '{name}'", f"{hint}devices: {', '.join(DEVICES)}")
