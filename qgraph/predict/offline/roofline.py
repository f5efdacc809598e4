"""How long a kernel takes at least: its bytes and its operations at the published peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils.flop_counter import flop_registry

from qgraph import ops
from qgraph.compat import meta
from qgraph.ops import Device, Kind, product_named
from qgraph.predict.offline.codegen import KernelCall

_KINDS: dict[torch.dtype, Kind] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "bf16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.int8: "int8",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one kernel does: bytes, and operations of a matrix unit at a peak of `rate` a second."""

    minimum: int
    moved: int
    bandwidth: float
    flops: int = 0
    kind: str = ""
    rate: float = 0.0

    @property
    def seconds(self) -> float:
        """The roofline: the longer of moving the bytes and computing."""
        return max(self.moved / self.bandwidth, self.flops / self.rate if self.flops else 0.0)


def work_of(call: KernelCall, chip: Device) -> tuple[Work, str]:
    """Return the work of a library call, and what is to be said about it."""
    node = call.node
    packet = getattr(node.target, "overloadpacket", node.target)
    bandwidth = chip.bandwidth
    values = _values(node.args)
    kind: Kind
    if node.target is ops.scaled_mm:
        flops = 2 * values[0].numel() * values[2].shape[0]
        kind = product_named(str(node.args[4])).unit
    elif packet in flop_registry:
        flops = int(flop_registry[packet](*values, **_values(node.kwargs), out_val=_value(node)))
        dtype = next(v.dtype for v in values if isinstance(v, Tensor))
        kind = _KINDS.get(dtype, "fp32")
    else:
        return Work(minimum=call.minimum, moved=call.moved, bandwidth=bandwidth), ""
    return Work(
        minimum=call.minimum,
        moved=call.moved,
        bandwidth=bandwidth,
        flops=flops,
        kind=kind,
        rate=chip.peaks[kind],
    ), "the library's own kernel, not compiled here"


def _value(value: Any) -> Any:
    return meta.value(value) if isinstance(value, Node) else value


def _values(arguments: Any) -> Any:
    if isinstance(arguments, dict):
        return {key: _value(item) for key, item in arguments.items()}
    return [_value(item) for item in arguments]
