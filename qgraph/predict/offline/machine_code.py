"""Triton kernels compiled to machine code for a GPU that need not be there, and what is in it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qgraph.compat import codegen
from qgraph.ops import Device

# The instructions of matrix units, as NVIDIA's PTX and AMD's assembly name them.
_PRODUCTS = re.compile(
    r"\b(tcgen05\.mma(?!\.ws\.)[\w.:]*|wgmma\.mma_async[\w.:]*|mma\.sync[\w.:]*|v_s?mfma_\w+|v_wmma_\w+)"
)
# The hardware's own rounding to 4 and 8 bits.
_CONVERSIONS = re.compile(
    r"\b(cvt\.(?:rn|rs)[\w.]*(?:e2m1|e4m3|e5m2)[\w.]*|v_cvt_\w*(?:fp4|fp8)\w*)"
)


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """One kernel compiled for one GPU.

    `registers` per thread; `spills` are bytes of local memory per thread, `shared` bytes of shared
    memory per block; `instructions` those of matrix units and conversions that were found.
    """

    registers: int
    spills: int
    shared: int
    instructions: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(repr=False, default_factory=dict)  # by extension


def compile_kernel(
    fn: Any,
    signature: Mapping[str, str],
    constants: Mapping[Any, Any],
    options: Mapping[str, Any],
    chip: Device,
    attributes: Any = None,
) -> MachineCode:
    """Compile a Triton function for `chip`; its driver must be a stand-in (see `standing_in`)."""
    import triton
    from triton.compiler import ASTSource

    source = ASTSource(fn, dict(signature), dict(constants), attributes)
    return _read(triton.compile(source, target=chip.triton_target, options=dict(options)), chip)


def compile_generated(source: str, name: str, chip: Device) -> MachineCode:
    """Compile a kernel that Inductor wrote, with the first configuration its heuristics list."""
    found = codegen.first_configuration(source, name)
    return compile_kernel(
        found.function, found.signature, found.constants, found.options, chip, found.attributes
    )


def _read(compiled: Any, chip: Device) -> MachineCode:
    assembly = compiled.asm["amdgcn" if chip.amd else "ptx"]
    registers, spills = _amd(assembly) if chip.amd else _nvidia(compiled.asm["cubin"])
    found = {*_PRODUCTS.findall(assembly), *_CONVERSIONS.findall(assembly)}
    kinds = ("ttir", "ttgir", "ptx", "cubin", "amdgcn", "hsaco")
    return MachineCode(
        registers=registers,
        spills=spills,
        shared=int(compiled.metadata.shared),
        instructions=tuple(sorted(found)),
        files={kind: compiled.asm[kind] for kind in kinds if kind in compiled.asm},
    )


def _nvidia(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of stack that ptxas gave the kernel in `cubin`."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = re.search(r"\bREG:(\d+)", text)
    local = [int(n) for n in re.findall(r"\b(?:STACK|LOCAL):(\d+)", text)]
    return int(registers[1]) if registers else 0, max(local, default=0)


def _amd(assembly: str) -> tuple[int, int]:
    def first(key: str) -> int:
        found = re.search(rf"\.{key}:\s*(\d+)", assembly)
        return int(found[1]) if found else 0

    return first("vgpr_count"), 4 * (first("vgpr_spill_count") + first("sgpr_spill_count"))
