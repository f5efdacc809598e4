"""Who computes what: one table, asked by the ops, the passes, the report and every prediction.

Kernels of one kind of work stand in the order in which they are asked; the last takes everything.
A kernel is a file of `cpu`, `gpu` or `native`, and a row here.
"""

from __future__ import annotations

from typing import NamedTuple

from qgraph.ops.cpu.codes import CPU_MATRIX_CODES
from qgraph.ops.cpu.one_pass import CPU_ONE_PASS
from qgraph.ops.cpu.rotate import CPU_ROTATE
from qgraph.ops.cpu.two_passes import CPU_CODES, CPU_VALUES
from qgraph.ops.gpu.codes import TRITON_BOTH, TRITON_CODES
from qgraph.ops.gpu.fake_quant import TRITON_AFTER_ROTATION, TRITON_VALUES
from qgraph.ops.gpu.pack import TRITON_PACK
from qgraph.ops.gpu.product import NVFP4
from qgraph.ops.machine import Machine
from qgraph.ops.native.fp8 import FP8
from qgraph.ops.native.int8 import INT8
from qgraph.ops.native.limits import why_it_does_not_pay
from qgraph.ops.native.mxfp8 import MXFP8
from qgraph.ops.reference import (
    EMULATED,
    REFERENCE_BOTH,
    REFERENCE_CODES,
    REFERENCE_PACK,
    REFERENCE_ROTATE,
    REFERENCE_VALUES,
)
from qgraph.ops.work import Kernel, Multiply, Work

KERNELS: tuple[Kernel, ...] = (
    # rotating a tensor
    CPU_ROTATE,
    REFERENCE_ROTATE,
    # quantizing an operand: what its codes are worth
    CPU_ONE_PASS,
    CPU_VALUES,
    TRITON_VALUES,
    TRITON_AFTER_ROTATION,
    REFERENCE_VALUES,
    # codes along one axis
    CPU_MATRIX_CODES,
    CPU_CODES,
    TRITON_CODES,
    REFERENCE_CODES,
    # codes along both axes
    TRITON_BOTH,
    REFERENCE_BOTH,
    # NVFP4 as a matrix unit reads it
    TRITON_PACK,
    REFERENCE_PACK,
    # multiplying two operands: their codes, or what they are worth
    INT8,
    FP8,
    MXFP8,
    NVFP4,
    EMULATED,
)
CHOICES = 4096  # that an op remembers, for as many formats and dtypes


class Chosen(NamedTuple):
    """The kernel that computes something, and why none before it in the table does."""

    kernel: Kernel
    why: str

    @property
    def falls_back(self) -> bool:
        """Whether the definition runs, or a product is emulated, for want of a kernel."""
        return self.kernel.definition

    @property
    def text(self) -> str:
        """The kernel's name, and of a definition why it runs."""
        return f"{self.kernel.name}: {self.why}" if self.falls_back else self.kernel.name


def choose(work: Work, machine: Machine, *, always: bool = False) -> Chosen:
    """Return the kernel that computes `work` on `machine`, and why those before it do not.

    A native product is chosen where it is known to pay; with `always` where there is one.
    """
    why = ""
    for kernel in KERNELS:
        if kernel.work is not type(work):
            continue
        reason = kernel.refuses(work, machine)
        if reason is None and isinstance(work, Multiply) and not always:
            reason = why_it_does_not_pay(kernel.name, work, machine)
        if reason is None:
            return Chosen(kernel, why or f"no {machine.device} kernels yet")
        why = reason or why
    raise AssertionError("the last kernel of each kind of work takes everything")


def product_named(name: str) -> Kernel:
    """Return the kernel of this name that multiplies two operands."""
    return next(kernel for kernel in KERNELS if kernel.work is Multiply and kernel.name == name)
