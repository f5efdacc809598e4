"""The kernels that qgraph's own ops launch on a GPU, from a node of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.formats import Rounding, parse_format, parse_rounding
from qgraph.ops import (
    OPTIONS,
    Chosen,
    Device,
    Launch,
    Machine,
    Quantize,
    choose,
    product_named,
)
from qgraph.passes import Quantizer
from qgraph.predict.offline.machine_code import MachineCode, compile_kernel

NOT_FUSED = "op by op: neither compiled nor counted here"
Found = tuple[tuple[Launch, ...], str]


def launches_of(node: Node, machine: Machine) -> Found:
    """Return what a node of a qgraph op launches on `machine`, or nothing and the reason."""
    arguments: list[Any] = list(node.args)
    value = meta.value(arguments[0])
    if node.target is ops.pack:
        return _pack(value, machine, *arguments[1:])
    if node.target is ops.nvfp4_mm:
        other, bias, dtype = meta.value(arguments[3]), arguments[6], arguments[7]
        launches = product_named("nvfp4").launches
        assert launches is not None, "a product of codes is launched"
        return (launches(value.shape, other.shape, dtype, bias is not None, machine),), ""
    if node.target in (ops.quantize, ops.quantize_both):
        return _codes(node.target is ops.quantize_both, value, machine, *arguments[1:])
    quantizer = Quantizer.read(node)
    if quantizer is None or node.target is ops.observed_quant:
        return (), f"the definition runs, {NOT_FUSED}"
    signs, axis, fmt = quantizer.signs, quantizer.axis, parse_format(quantizer.format)
    random = quantizer.seed is not None and quantizer.rounding in (None, "stochastic")
    mode = parse_rounding(quantizer.rounding or ("stochastic" if random else "nearest"))
    chosen = choose(_work(value, quantizer.format, mode, points=len(signs)), machine)
    by_column = axis % value.dim() == value.dim() - 2
    return _launched(
        chosen,
        value.shape,
        value.dtype,
        fmt,
        by_column,
        random,
        len(signs),
        quantizer.output,
        quantizer.amax is not None,
    )


def _work(value: Any, text: str, rounding: Rounding, **more: Any) -> Quantize:
    return Quantize(
        format=parse_format(text),
        rounding=rounding,
        draws=rounding.random,
        dtype=value.dtype,
        rank=value.dim(),
        **more,
    )


def _launched(chosen: Chosen, *arguments: Any) -> Found:
    if chosen.kernel.launches is None:
        return (), f"{chosen.text}, {NOT_FUSED}"
    found: Iterable[Launch | None] = chosen.kernel.launches(*arguments)
    return tuple(launch for launch in found if launch is not None), ""


def _pack(value: Any, machine: Machine, *arguments: Any) -> Found:
    sides = (tuple(arguments[:4]), tuple(arguments[4:8]))
    signs, output = arguments[8], arguments[9]
    text, turns, draws, _ = next(side for side in sides if side[0])
    rounding = parse_rounding("stochastic" if draws else "nearest")
    work = _work(value, text, rounding, wanted="packed", points=len(signs) if turns else 0)
    return _launched(choose(work, machine), value.shape, value.dtype, sides, len(signs), output)


def _codes(
    both: bool, value: Any, machine: Machine, text: str, axis: int = -1, *drawn: object
) -> Found:
    row = axis % 2 == 1
    rounding = parse_rounding("nearest")
    work = _work(value, text, rounding, wanted="both" if both else "codes", named=bool(drawn))
    return _launched(
        choose(work, machine), value.shape, value.dtype, work.format, both or row, both or not row,
        machine,
    )  # fmt: skip


def compile_launch(launch: Launch, chip: Device) -> MachineCode:
    """Compile the kernel of a launch, told of alignment what a running one would see."""
    signature = {**launch.signature, **dict.fromkeys(launch.constants, "constexpr")}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(launch.signature.values())
        if kind[0] == "*"
    }
    options = {"num_warps": launch.warps, **OPTIONS}
    return compile_kernel(launch.kernel, signature, launch.constants, options, chip, aligned)
