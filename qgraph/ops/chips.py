"""What a compiler must know of a GPU, beside what `qgraph.ops.devices` says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qgraph.ops.devices import Device, find_device

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One GPU as compilers see it.

    `shared` is the shared memory a block can take and `cache` the last-level cache, both in bytes;
    `threads` and `registers` are those of one multiprocessor; `warp` is threads.
    """

    device: Device
    shared: int
    cache: int
    threads: int = 2048
    registers: int = 65536
    warp: int = 32

    @property
    def amd(self) -> bool:
        """Whether ROCm compiles for it."""
        return self.device.arch.startswith("gfx")

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, as torch gives it: (10, 0) for sm_100, (9, 5) for gfx950."""
        digits = re.sub(r"\D", "", self.device.arch)
        return (
            (int(digits[:-2]), int(digits[-2])) if self.amd else (int(digits[:-1]), int(digits[-1]))
        )

    @property
    def triton_arch(self) -> int | str:
        """What Triton calls the architecture."""
        return self.device.arch if self.amd else int(self.device.arch.removeprefix("sm_"))

    @property
    def triton_target(self) -> Any:
        """The target of `triton.compile`."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("hip" if self.amd else "cuda", self.triton_arch, self.warp)


# Sources: NVIDIA CUDA C++ Programming Guide, technical specifications per compute capability; the
# whitepapers that `devices` names; AMD CDNA 4 instruction set architecture guide.
_PARTS: dict[str, dict[str, int]] = {
    "a100": {"shared": 163 * KIB, "cache": 40 * MIB},
    "h100": {"shared": 227 * KIB, "cache": 50 * MIB},
    "b200": {"shared": 227 * KIB, "cache": 126 * MIB},
    "rtx5090": {"shared": 99 * KIB, "cache": 96 * MIB, "threads": 1536},
    "mi355x": {"shared": 160 * KIB, "cache": 256 * MIB, "registers": 131072, "warp": 64},
}


def find_chip(name: str) -> Chip:
    """Return the GPU of this name.

    Raises: DeviceError naming the nearest, and all there are.
    """
    return Chip(device=find_device(name), **_PARTS[name])
