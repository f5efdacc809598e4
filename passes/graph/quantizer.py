"""Quantizers and rotations of a graph, read and written: no other file knows their arguments.

    fake_quant(source, format, axis, seed, site, rounding, amax)
    rotate_quant(source, signs, output, format, axis, seed, site, rounding)    rotated on the way in

Arguments that are as usual are left out at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.graph.edit import add_node, below_permutes
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.targets import PERMUTES, argument_node, aten

# What quantizes a tensor and gives its values.
QUANTIZERS: frozenset[object] = frozenset({ops.fake_quant, ops.rotate_quant})
# What nothing reads any more once a product multiplies codes.
LEFT_OVER = QUANTIZERS | PERMUTES
_DRAWS = ("seed", "site", "rounding")
_WATCHED = ("signs", "output", "format", "axis", *_DRAWS, "amax")
_ARGUMENTS: dict[object, tuple[str, ...]] = {
    ops.fake_quant: ("source", "format", "axis", *_DRAWS, "amax"),
    ops.rotate_quant: ("source", "signs", "output", "format", "axis", *_DRAWS),
    ops.quantize: ("source", "format", "axis", *_DRAWS),
    ops.observed_quant: ("source", *_WATCHED),
}


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """What a node quantizes, and how.

    `axis` is negative. Side tensors: `seed` is what random bits are drawn from, at `site`; `amax` the
    largest magnitude, where other steps or processes have a say in it. `rounding` is None where it is
    to nearest, or with a seed stochastic. With `signs` the source is rotated first, to `output`.
    """

    source: Node
    format: str
    axis: int
    seed: Node | None = None
    site: int = 0
    rounding: str | None = None
    amax: Node | None = None
    signs: str = ""
    output: str = "bf16"

    @classmethod
    def read(cls, node: Node) -> Quantizer | None:
        """Return what `node` quantizes, None if it is no quantizer."""
        names = _ARGUMENTS.get(node.target)
        if node.op != "call_function" or names is None:
            return None
        found: dict[str, Any] = dict(zip(names, node.args, strict=False))
        return cls(**found)

    def write(self, graph: Graph, like: Node, target: object = None) -> Node:
        """Add the quantizer at the insertion point, belonging where `like` belongs.

        `target` is another op of the same arguments, such as the one that gives codes.
        """
        target = self._target() if target is None else target
        return add_node(graph, target, self._arguments(target), like=like)

    def put(self, node: Node) -> None:
        """Make `node` this quantizer, in its place."""
        node.target = self._target()  # type: ignore[assignment]
        node.args = self._arguments(node.target)

    @property
    def rounds(self) -> str:
        """The rounding in words."""
        usual = "nearest" if self.seed is None else "stochastic"
        return rounding_text(self.rounding or usual, drawn=self.seed is not None)

    @property
    def plain(self) -> bool:
        """Whether it rounds to nearest, in a range of its own, and turns nothing."""
        return self.seed is None and self.rounding is None and self.amax is None and not self.signs

    @property
    def watched(self) -> tuple[Any, ...]:
        """All but the source, in the order of the ops that watch a quantizer."""
        return tuple(getattr(self, name) for name in _WATCHED)

    def _target(self) -> object:
        return ops.rotate_quant if self.signs else ops.fake_quant

    def _arguments(self, target: object) -> tuple[Any, ...]:
        names = _ARGUMENTS[target]
        lost = {f.name for f in fields(self) if getattr(self, f.name) != f.default} - {*names}
        assert lost <= {"output"}, f"{target} has no place for {lost}"
        while getattr(self, names[-1]) == _USUAL.get(names[-1], ...):
            if names[-1] == "site" and self.seed is not None:
                break
            names = names[:-1]
        return tuple(getattr(self, name) for name in names)


_USUAL = {f.name: f.default for f in fields(Quantizer)}


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """A Hadamard rotation along `axis`; with a seed its signs are drawn anew each step, at `site`."""

    source: Node
    signs: str
    axis: int
    output: str
    seed: Node | None = None
    site: int = 0

    @classmethod
    def read(cls, node: Node) -> Rotation | None:
        """Return the rotation that `node` is, None if it is none."""
        if node.target is not ops.hadamard:
            return None
        found: dict[str, Any] = dict(zip((f.name for f in fields(cls)), node.args, strict=False))
        return cls(**found)

    def write(self, graph: Graph, like: Node) -> Node:
        """Add the rotation at the insertion point, belonging where `like` belongs."""
        args: tuple[Any, ...] = (self.source, self.signs, self.axis, self.output)
        args += () if self.seed is None else (self.seed, self.site)
        return add_node(graph, ops.hadamard, args, like=like)


def rounding_text(mode: str, *, drawn: bool) -> str:
    """Return a rounding in words: its mode, and where random bits go that it does not take."""
    if mode.startswith("stochastic") == drawn:
        return mode
    return f"{mode} with random scales" if drawn else f"{mode} without random bits"


def quantizer_of(operand: Node, axis: int) -> tuple[Node, int]:
    """Return the node below what only lays `operand` out, and the axis (negative) that `axis` is there.

    What checks a quantizer as it runs is no part of it.
    """
    base, order = _below_layout(operand)
    if order is None:
        base, axis = argument_node(base, 0), -1
    else:
        axis = order[axis] - len(order)
    return (argument_node(base, 0) if base.target is ops.checked else base), axis


def matrix_axes(source: Node, operand: Operand) -> tuple[int, int]:
    """Return which axes (negative) of what `quantizer_of` finds are the matrix's.

    The one that its product sums over comes second; the first is the one that tiles span with it.
    """
    _, order = _below_layout(source)
    if order is None:
        return -2, -1
    rank = len(order)
    matrix = [*operand.layout[-2:]] or [rank - 2, rank - 1]
    summed = operand.axis % rank
    (other,) = (axis for axis in matrix if axis != summed)
    return order[other] - rank, order[summed] - rank


def _below_layout(operand: Node) -> tuple[Node, list[int] | None]:
    """Return what only lays `operand` out, and its order of axes; None if batch and positions are one."""
    if operand.target is aten.clone.default:
        operand = argument_node(operand, 0)
    base, order = below_permutes(operand)
    return base, None if base.target is aten.reshape.default else order
