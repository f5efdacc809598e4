"""What computes: a machine at hand, or one whose GPU is a row of the table of devices.

Kernels are asked whether they take some work on a machine, never whether torch finds a GPU. So
what runs here, what would run on a GPU that is not there and what is predicted have one answer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from qgraph.ops.cpu.build import why_unavailable
from qgraph.ops.devices import DEVICES, Device
from qgraph.ops.gpu.language import why_no_triton


@dataclass(frozen=True, kw_only=True, eq=False)  # one object a machine: looked up at each call
class Machine:
    """Where a graph's tensors lie, and what is there to compile kernels with.

    `device` is the type as torch names it. `capability` is a GPU's, (0, 0) of none; `hip` says that
    ROCm compiles for it. `features` are a CPU's instructions, as torch names them. `no_compiler`, of
    a CPU, and `no_triton`, of a GPU, say why its kernels cannot be built, None where they can.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    hip: bool = False
    features: frozenset[str] = frozenset()
    no_compiler: str | None = None
    no_triton: str | None = None

    @property
    def shown_capability(self) -> str:
        """The capability as it is written: 9.0."""
        return ".".join(map(str, self.capability))


def at_hand(device_type: str) -> Machine:
    """Return the machine that computes on tensors of `device_type` in this process."""
    there = device_type == "cuda" and torch.cuda.is_available()
    return _found(device_type, torch.cuda.current_device() if there else -1)


@functools.cache
def _found(device_type: str, number: int) -> Machine:
    """Return what is at hand; `number` is that of the GPU, -1 without one."""
    features = torch.cpu.get_capabilities() if device_type == "cpu" else {}
    return Machine(
        device=device_type,
        capability=torch.cuda.get_device_capability(number) if number >= 0 else (0, 0),
        hip=bool(torch.version.hip) and device_type == "cuda",
        features=frozenset(name for name, there in features.items() if there is True),
        no_compiler=why_unavailable() if device_type == "cpu" else None,  # asking builds them
        no_triton=why_no_triton() if device_type == "cuda" else None,
    )


def forget_machines() -> None:
    """Look anew at what is at hand: for stand-ins of a GPU that come and go."""
    _found.cache_clear()


def machine_of(device: Device) -> Machine:
    """Return the machine of a GPU of the table, with all that its kernels are compiled with."""
    return _of_table(device.name)


@functools.cache
def _of_table(name: str) -> Machine:
    device = DEVICES[name]
    return Machine(device="cuda", capability=device.capability, hip=device.amd)
