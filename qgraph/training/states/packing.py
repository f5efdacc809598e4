"""One tensor in few bits: its codes and scales, and the way to and from a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qgraph import ops
from qgraph.formats import parse_format
from qgraph.policy import Stored

_SHORT = 16  # elements: an axis shorter than this is a kernel's, not a matrix's
_KEYS = ("codes", "scales", "tensor_scale")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A tensor as `qgraph::quantize` stores it. `shape` and `dtype` are those it had.

    `layout` is how a tensor sharded over processes lies: its mesh, placements, shape and strides.
    """

    format: str
    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: tuple[Any, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.tensor_scale))

    def unpack(self) -> Tensor:
        """Return the values, in the shape and dtype the tensor had."""
        shape = list(matrix_shape(self.shape))
        stored = (self.codes, self.scales, self.tensor_scale)
        found = ops.dequantize(*stored, self.format, shape, -1, self.dtype).view(self.shape)
        return found if self.layout is None else _shard(found, self.layout)

    def to_dict(self) -> dict[str, Any]:
        """Return plain tensors and numbers, which any checkpoint can hold.

        The format's name is a tensor of bytes: optimizers take text in a state for a list.
        """
        return {
            "codes": self.codes,
            "scales": self.scales,
            "tensor_scale": self.tensor_scale,
            "format": torch.frombuffer(bytearray(self.format.encode()), dtype=torch.uint8),
            "shape": list(self.shape),
            "dtype": _DTYPES.index(self.dtype),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], device: torch.device) -> Packed:
        """Return what `to_dict` wrote, on `device`.

        An optimizer that knows nothing of codes casts them to its parameter's dtype as it loads
        them; float32 holds them all, so they are cast back.
        """
        text = bytes(saved["format"].to("cpu", torch.uint8).tolist()).decode()
        dtype, shape = _DTYPES[int(saved["dtype"])], tuple(map(int, saved["shape"]))
        like = ops.quantize(torch.zeros(1, 1), text, -1)
        codes, scales, whole = (
            saved[key].to(device, part.dtype).contiguous()
            for key, part in zip(_KEYS, like, strict=True)
        )
        return cls(
            format=text, codes=codes, scales=scales, tensor_scale=whole, shape=shape, dtype=dtype
        )


def is_saved(value: object) -> bool:
    """Whether `value` is what `Packed.to_dict` wrote."""
    return isinstance(value, Mapping) and {*_KEYS, "format", "shape", "dtype"} <= set(value)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape [rows, columns] a tensor is quantized in.

    Columns are the last axis (experts [E, out, in]: in), or, where that is a convolution's kernel,
    all axes but the first.
    """
    if len(shape) <= 2:
        return (1, *shape)[-2:]
    if shape[-1] >= _SHORT:
        return (torch.Size(shape[:-1]).numel(), shape[-1])
    return (shape[0], torch.Size(shape[1:]).numel())


def pack(x: Tensor, stored: Stored, seed: Tensor, site: int) -> Packed:
    """Return `x` in a format; `seed` and `site` are where its random bits come from, if it draws.

    Shapes: any of two axes or more, see `matrix_shape`.
    Dtypes: floating-point.
    """
    local, layout = _local(x)
    rows = local.reshape(matrix_shape(tuple(local.shape)))
    codes, scales, whole = ops.quantize(rows, str(stored.format), -1, *_tail(stored, seed, site))
    return Packed(
        format=str(parse_format(str(stored.format))), codes=codes, scales=scales, tensor_scale=whole,
        shape=tuple(local.shape), dtype=x.dtype, layout=layout,
    )  # fmt: skip


def round_in_place(x: Tensor, stored: Stored, seed: Tensor, site: int) -> None:
    """Give `x` the values it would have after packing and unpacking."""
    local, _ = _local(x)
    rows = local.reshape(matrix_shape(tuple(local.shape)))
    found = ops.fake_quant(rows, str(stored.format), -1, *_tail(stored, seed, site))
    local.copy_(found.view(local.shape))


def _tail(stored: Stored, seed: Tensor, site: int) -> tuple[Any, ...]:
    drawn = (seed, site) if stored.draws else (None, 0)
    return (*drawn, str(stored.rounding))


def _local(x: Tensor) -> tuple[Tensor, tuple[Any, ...] | None]:
    """Return this process's part of a tensor, and how it lies among the others."""
    to_local = getattr(x, "to_local", None)
    if to_local is None:
        return x, None
    placed: Any = x
    return to_local(), (placed.device_mesh, placed.placements, x.shape, x.stride())


def _shard(local: Tensor, layout: tuple[Any, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor

    mesh, placements, shape, stride = layout
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
