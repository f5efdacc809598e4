"""What one training step puts through each quantizer: its error, what is flushed or clipped, the spread.

The rewritten joint graph is run node by node on the model's own weights, so that each number is of
the very tensors that a product reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from qgraph.compat import meta
from qgraph.doors import Capture, capture
from qgraph.errors import ModelError
from qgraph.formats import BlockFormat, parse_format
from qgraph.numerics import dequantize, encode, quantize, sqnr_db
from qgraph.passes import (
    Plan,
    Quantizer,
    argument_node,
    names_of,
    quantizer_of,
    run_passes,
)
from qgraph.policy import Policy

BINS = 56


@dataclass(frozen=True, kw_only=True)
class Values:
    """What one operand held in one step, before and after it was quantized.

    `sqnr` is in dB, infinite where nothing changed. Shares are 0 to 1: `zeros` of elements that were
    zero, `flushed` of the others that became zero, `clipped` of those beyond the largest code.
    `histogram` counts magnitudes in equal steps of log2 from `low` to `high`; they are in units of
    the block's scale where `scaled`, else as they are. Values outside are in the first and last bin.
    """

    count: int
    amax: float
    rms: float
    sqnr: float
    zeros: float
    flushed: float
    clipped: float
    low: float
    high: float
    scaled: bool
    histogram: tuple[int, ...]


def measure_values(
    model: nn.Module, policy: Policy, inputs: Mapping[str, Any]
) -> dict[str, tuple[Values | None, ...]]:
    """Run one step of `model` under `policy` and return, by product's node, what each operand held.

    None stands for an operand that is not quantized. The names are those of the graph that
    `qgraph convert` prints for inputs of the same shapes. Gradients flow from every scalar output.

    Raises: ModelError if the model cannot be captured as one graph, or has no scalar output.
    """
    captured = capture(model, inputs, policy)
    plans = run_passes(captured.step(), names_of("joint", until="share")).plans
    recorder = _Recorder(captured.joint_module)
    with torch.no_grad():
        recorder.run(*_arguments(captured, inputs))
    return {
        plan.site.node.name: tuple(recorder.found.get(quantizer) for quantizer in _quantizers(plan))
        for plan in plans
        if plan.status == "quantized"
    }


def _quantizers(plan: Plan) -> list[str]:
    """Return the names of the nodes that quantize a product's operands, "" for one in high precision."""
    names = []
    for operand, wanted in zip(plan.site.operands, plan.operands, strict=True):
        source = argument_node(plan.site.node, operand.argument)
        names.append(quantizer_of(source, operand.axis)[0].name if wanted.format else "")
    return names


def _arguments(captured: Capture, inputs: Mapping[str, Any]) -> list[Any]:
    """Return the joint graph's inputs: parameters and buffers, the call's inputs, and tangents."""
    places = list(captured.graph.find_nodes(op="placeholder"))
    state = [
        *(p.detach() for _, p in captured.module.named_parameters()),
        *(b for _, b in captured.module.named_buffers()),
    ]
    given = [*state, *(value for value in inputs.values() if isinstance(value, Tensor))]
    tangents = [_tangent(node) for node in places[len(given) :]]
    if not any(bool(tangent.any()) for tangent in tangents):
        raise ModelError("the model has no loss to differentiate", "give it labels")
    for node, value in zip(places, given, strict=False):
        known = meta.value(node)
        if isinstance(known, Tensor) and tuple(known.shape) != tuple(value.shape):
            raise ModelError(
                f"the captured graph takes its inputs in another order: {node.name} is "
                f"{tuple(known.shape)}, not {tuple(value.shape)}"
            )
    return [*given, *tangents]


def _tangent(node: Node) -> Tensor:
    value: Tensor = meta.value(node)
    shape = [int(size) for size in value.shape]
    fill = torch.ones if not shape else torch.zeros
    return fill(shape, dtype=value.dtype, device=value.device)


class _Recorder(Interpreter):
    """Runs a graph and looks at what goes into and comes out of each quantizer."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.found: dict[str, Values] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if (quantizer := Quantizer.read(n)) is not None:
            source, fmt = self.env[quantizer.source], parse_format(quantizer.format)
            self.found[n.name] = describe_values(source, result, fmt, quantizer.axis)
        return result


def describe_values(x: Tensor, y: Tensor, fmt: BlockFormat, axis: int) -> Values:
    """Return what there is to say of `x` and of `y`, which is `x` quantized.

    Shapes: x and y alike.
    """
    wide, found = x.double(), y.double()
    error, power = float((wide - found).square().sum()), float(wide.square().sum())
    nonzero = x != 0
    count, some = x.numel(), int(nonzero.sum())
    scale = _scales(x, fmt, axis)
    magnitude = wide.abs() if scale is None else wide.abs() / scale.double()
    element = fmt.element
    top = max(element.max, -element.min) if scale is not None else float(magnitude.max())
    least = element.min_positive if scale is not None else top * 2.0**-24
    low, high = math.log2(least or 1e-30) - 4.0, math.log2(top or 1.0) + 1.0
    shown = magnitude[nonzero & (magnitude > 0) & magnitude.isfinite()].log2().clamp(low, high)
    bins = torch.histc(shown.float(), bins=BINS, min=low, max=high)
    beyond = (magnitude > top * (1 + 2.0**-12)) & nonzero
    return Values(
        count=count,
        amax=float(wide.abs().max()) if count else 0.0,
        rms=math.sqrt(power / count) if count else 0.0,
        sqnr=sqnr_db(max(power, 1e-300), error),
        zeros=1 - some / count if count else 0.0,
        flushed=float(((y == 0) & nonzero).sum()) / some if some else 0.0,
        clipped=float(beyond.sum()) / some if some and scale is not None else 0.0,
        low=low,
        high=high,
        scaled=scale is not None,
        histogram=tuple(int(number) for number in bins),
    )


def _scales(x: Tensor, fmt: BlockFormat, axis: int) -> Tensor | None:
    """Return what one unit of a code is worth at each element, or None where that is not one number."""
    if fmt.asymmetric or fmt.scale.random or fmt.scale.range.kind == "delayed":
        return None
    codes, scales, whole = quantize(x, fmt, axis)
    top = fmt.element.max
    code = encode(torch.tensor([top]), fmt.element)[0]
    if fmt.element.bits <= 4:
        code = (code & 15) | ((code & 15) << 4)
    full = torch.full_like(codes, 0) + code.to(codes.dtype)
    worth = dequantize(full, scales, whole, fmt, x.shape, axis, torch.float32) / top
    return torch.where(worth > 0, worth, torch.ones_like(worth))
