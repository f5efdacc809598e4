"""Rotation on a CPU, which finds the largest magnitude on the way; and what all its kernels need."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from qgraph.ops.cpu.build import loaded
from qgraph.ops.machine import Machine
from qgraph.ops.work import Kernel, Rotate

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not_cpu(dtype: torch.dtype, machine: Machine) -> str | None:
    """Return why the CPU's kernels do not read tensors of `dtype` there, None if they do."""
    if machine.no_compiler is not None:
        return machine.no_compiler
    return None if dtype in _DTYPES else f"no cpu kernel reads {str(dtype)[6:]}"


def _takes(work: Rotate, machine: Machine) -> str | None:
    return why_not_cpu(work.dtype, machine)


def rotate_on_cpu(x: Tensor, signs: str, axis: int, output: str) -> tuple[Tensor, int]:
    """See `qgraph.numerics.hadamard`; also returns the bits of the largest magnitude."""
    if x.dtype == torch.float16:
        rotated = rotate_on_cpu(x.float(), signs, axis, output)[0].to(x.dtype)
        return rotated, largest_bits(rotated.float())
    x = x.contiguous()
    axis %= x.dim()
    n, size = len(signs), x.shape[axis]
    shape = (*x.shape[:axis], -(-size // n) * n, *x.shape[axis + 1 :])
    out = torch.empty(shape, dtype=x.dtype)
    if not x.numel():
        return out, 0
    inner = math.prod(x.shape[axis + 1 :])
    bits = loaded().qgraph_hadamard(
        x.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        x.numel() // (size * inner), size, inner, n, _sign_array(signs), output == "bf16",
    )  # fmt: skip
    return out, int(bits)


def largest_bits(x: Tensor) -> int:
    """Return the bits of the largest magnitude of a contiguous `x`; NaN is the largest of all."""
    return int(loaded().qgraph_amax(x.data_ptr(), x.numel(), x.dtype == torch.bfloat16))


@functools.cache
def _sign_array(signs: str) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(signs))(*(1.0 if s == "+" else -1.0 for s in signs))


CPU_ROTATE = Kernel(name="cpu rotation", work=Rotate, device="cpu", takes=_takes, run=rotate_on_cpu)
