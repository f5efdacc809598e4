"""The kernels that qgraph's own ops launch on a GPU, from a node of a graph."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.formats import parse_format, parse_rounding
from qgraph.ops import codes, gpu, packed
from qgraph.ops.chips import Chip
from qgraph.ops.gpu import Launch
from qgraph.predict.offline.machine_code import MachineCode, compile_kernel

NOT_FUSED = "the definition runs, op by op: neither compiled nor counted here"


def launches_of(node: Node) -> tuple[tuple[Launch, ...], str]:
    """Return what a node of a qgraph op launches, or nothing and the reason."""
    arguments: list[Any] = list(node.args)
    value = meta.value(arguments[0])
    if node.target is ops.pack:
        sides = (tuple(arguments[1:5]), tuple(arguments[5:9]))
        turned = arguments[9]
        return packed.pack_launches(value.shape, value.dtype, sides, len(turned), arguments[10]), ""
    if node.target is ops.nvfp4_mm:
        other, bias, dtype = meta.value(arguments[3]), arguments[6], arguments[7]
        return (packed.product_launch(value.shape, other.shape, dtype, bias is not None),), ""
    if node.target in (ops.quantize, ops.quantize_both):
        return _codes(node.target is ops.quantize_both, value, *arguments[1:])
    signs, output = "", "bf16"
    if node.target is ops.rotate_quant:
        signs, output = arguments.pop(1), arguments.pop(1)
    elif node.target is not ops.fake_quant:
        return (), NOT_FUSED
    _, text, axis, *tail = arguments
    defaults: tuple[Any, ...] = (None, 0, None, None)
    seed, _, rounding, amax = (*tail, *defaults[len(tail) :])
    fmt, random = parse_format(text), seed is not None and rounding in (None, "stochastic")
    mode = parse_rounding(rounding or ("stochastic" if random else "nearest"))
    if not gpu.fuses(fmt, mode) or (signs and not gpu.rotates(signs, value.shape[axis])):
        return (), NOT_FUSED
    by_column = axis % value.dim() == value.dim() - 2
    found = gpu.fake_quant_launches(
        value.shape, value.dtype, fmt, by_column, random, len(signs), output, amax is not None
    )
    return tuple(launch for launch in found if launch is not None), ""


def _codes(
    both: bool, value: Any, text: str, axis: int = -1, *drawn: object
) -> tuple[tuple[Launch, ...], str]:
    fmt = parse_format(text)
    if drawn or value.dim() != 2 or not codes.takes(fmt):
        return (), NOT_FUSED
    row = axis % 2 == 1
    found = codes.codes_launches(
        value.shape, value.dtype, fmt, both or row, both or not row, codes.casts()
    )
    return tuple(launch for launch in found if launch is not None), ""


def compile_launch(launch: Launch, chip: Chip) -> MachineCode:
    """Compile the kernel of a launch, told of alignment what a running one would see."""
    signature = {**launch.signature, **dict.fromkeys(launch.constants, "constexpr")}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(launch.signature.values())
        if kind[0] == "*"
    }
    options = {"num_warps": launch.warps, **gpu.OPTIONS}
    kernel = getattr(gpu.kernels(), launch.kernel)
    return compile_kernel(kernel, signature, launch.constants, options, chip, aligned)
