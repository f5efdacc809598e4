"""Quantizing and rotating a tensor by the kernel that takes it: what the ops of a graph call."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, Rounding, parse_format, parse_rounding
from qgraph.numerics import REFERENCE, Kernels, Noise, usual_rounding
from qgraph.ops.cpu.two_passes import CPU_STEPS, CPU_VALUES
from qgraph.ops.kernels import CHOICES, choose
from qgraph.ops.machine import Machine, at_hand
from qgraph.ops.work import How, Kernel, Known, Quantize, Rotate, Wanted


def noise_of(seed: Tensor | None, site: int) -> Noise | None:
    """Return the random bits of one place in the graph; none without a seed."""
    return None if seed is None else Noise(seed=int(seed.item()), site=site)


def values(x: Tensor, format: str, rounding: str | None, how: How) -> Tensor:
    """Return `x`, rotated where `how` says so, as what its codes are worth."""
    known: Known = "" if how.amax is None else "blocks" if how.amax.dim() else "tensor"
    kernel, fmt, mode = _quantizer(
        format, rounding, how.noise is not None, x.dtype, x.dim(), x.numel() == 0, "values",
        len(how.signs), known, at_hand(x.device.type),
    )  # fmt: skip
    found: Tensor = kernel.run(x, fmt, mode, how)
    return found


def codes(x: Tensor, format: str, rounding: str | None, how: How) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and tensor scale of `x`, as `qgraph.numerics.quantize` stores them."""
    kernel, fmt, mode = _quantizer(
        format, rounding, how.noise is not None, x.dtype, x.dim(), x.numel() == 0, "codes", 0, "",
        at_hand(x.device.type),
    )  # fmt: skip
    found: tuple[Tensor, Tensor, Tensor] = kernel.run(x, fmt, mode, how)
    return found


def codes_both_ways(x: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes and scales of x [M, N] along its last axis, then along its first."""
    kernel, fmt, _ = _quantizer(
        format, None, False, x.dtype, x.dim(), x.numel() == 0, "both", 0, "", at_hand(x.device.type)
    )
    found: tuple[Tensor, Tensor, Tensor, Tensor] = kernel.run(x, fmt)
    return found


@functools.lru_cache(CHOICES)
def _quantizer(
    format: str,
    rounding: str | None,
    draws: bool,
    dtype: torch.dtype,
    rank: int,
    empty: bool,
    wanted: Wanted,
    points: int,
    known: Known,
    machine: Machine,
) -> tuple[Kernel, BlockFormat, Rounding]:
    """Return the kernel that quantizes so, and the format and the rounding it is told."""
    fmt = parse_format(format)
    mode = parse_rounding(rounding) if rounding else usual_rounding(draws or None)
    work = Quantize(
        format=fmt, rounding=mode, draws=draws, dtype=dtype, rank=rank, empty=empty, wanted=wanted,
        points=points, known=known, named=bool(rounding),
    )  # fmt: skip
    return choose(work, machine).kernel, fmt, mode


def rotated(x: Tensor, signs: str, axis: int, output: str) -> tuple[Tensor, int | None]:
    """Return the rotated tensor and, where a kernel finds it on the way, its largest magnitude's bits."""
    found: tuple[Tensor, int | None] = _rotator(x.dtype, at_hand(x.device.type)).run(
        x, signs, axis, output
    )
    return found


@functools.lru_cache(CHOICES)
def _rotator(dtype: torch.dtype, machine: Machine) -> Kernel:
    return choose(Rotate(dtype=dtype), machine).kernel


def element_steps(x: Tensor) -> Kernels:
    """Return what computes the steps that touch every element of `x`, whatever the format."""
    return _steps(x.dtype, at_hand(x.device.type))


@functools.lru_cache(CHOICES)
def _steps(dtype: torch.dtype, machine: Machine) -> Kernels:
    anything = Quantize(format=parse_format("int8/row/fp32"), dtype=dtype)
    return CPU_STEPS if CPU_VALUES.refuses(anything, machine) is None else REFERENCE
