"""Products whose operands lie in parts on several processes: what tensor parallelism leaves of them.

A linear layer's weight says which: split by its outputs, each process has a part of the output and so
of grad_output; split by its inputs, a part of the input. What the weight does not tell, such as an
attention product's operands, may be a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.fx import Node

from qgraph.errors import PolicyError
from qgraph.passes.graph.targets import ALIASES, CASTS, argument_node, aten, size_hint, value_of
from qgraph.passes.sites.processes import Processes, Split
from qgraph.passes.sites.site import Site
from qgraph.policy import OperandPolicy

Side = Literal["along", "across", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How an operand is split: along the axis its product sums over, across it, or who knows."""

    side: Side
    group: str
    parts: int


def parts_of(sites: Sequence[Site], processes: Processes) -> list[tuple[Parts | None, ...]]:
    """Return for each site which of its operands are in parts."""
    weights = {
        site.sequence: found
        for site in sites
        if site.role == "fprop" and (found := _split_weight(site, processes)) is not None
    }
    return [_parts(site, weights.get(site.sequence), processes) for site in sites]


Found = tuple[Split | None, str]  # of a weight: its split, and which side of fprop it cuts


def _split_weight(site: Site, processes: Processes) -> Found | None:
    """Return how the weight of a linear layer's forward is split, or None if that cannot be followed."""
    for operand in site.operands:
        if operand.kind != "weight":
            continue
        node = argument_node(site.node, operand.argument)
        axes = list(range(value_of(node).dim()))  # of the placeholder, by axis of the operand
        while node.op == "call_function" and node.target in _FOLLOWED:
            node, axes = _below(node, axes)
        if node.op != "placeholder":
            return None
        split = processes.splits.get(node.name)
        if split is None:
            return None, ""
        return split, "along" if axes[operand.axis] == split.axis else "across"
    return None


_FOLLOWED = ALIASES | CASTS | {aten.permute.default, aten.t.default, aten.clone.default}


def _below(node: Node, axes: list[int]) -> tuple[Node, list[int]]:
    order = list(range(len(axes)))
    if node.target is aten.permute.default:
        arguments: Any = node.args
        order = [axis % len(axes) for axis in arguments[1]]
    elif node.target is aten.t.default:
        order = order[::-1]
    return argument_node(node, 0), [order[axis] for axis in axes]


def _parts(site: Site, weight: Found | None, processes: Processes) -> tuple[Parts | None, ...]:
    if not processes.group:
        return tuple(None for _ in site.operands)
    if weight is None:
        unsure = Parts(side="unknown", group=processes.group, parts=processes.parts)
        return tuple(unsure for _ in site.operands)
    split, cut = weight
    if split is None:
        return tuple(None for _ in site.operands)
    # fprop sums over the inputs, dgrad over the outputs, wgrad over tokens, which nobody cuts.
    sides: dict[str, Side | None] = {"input": None, "weight": None, "grad_output": None}
    if site.role == "fprop":
        sides["weight"] = "along" if cut == "along" else "across"
        sides["input"] = "along" if cut == "along" else None
    elif site.role == "dgrad":
        sides["weight"] = "across" if cut == "along" else "along"
        sides["grad_output"] = None if cut == "along" else "along"
    else:
        sides["input"] = "across" if cut == "along" else None
        sides["grad_output"] = None if cut == "along" else "across"
    return tuple(
        Parts(side=side, group=split.group, parts=split.parts) if side else None
        for side in (sides.get(operand.kind) for operand in site.operands)
    )


def check_parts(
    site: Site, operands: Sequence[OperandPolicy], parts: Sequence[Parts | None], policy: str
) -> None:
    """See that no block is cut by where a tensor is split, and that ranges can be found from parts.

    Raises: PolicyError naming the product, its operand and what to write instead.
    """
    for operand, wanted, part in zip(site.operands, operands, parts, strict=False):
        if part is None or not wanted.changes:
            continue
        where = f"{site.role} of '{site.module}', its {operand.kind}"
        size = value_of(argument_node(site.node, operand.argument)).shape
        for name, block in _blocks(wanted, part.side):
            axis = operand.axis if part.side == "along" else -3 - operand.axis
            if size_hint(size[axis]) % block:
                raise PolicyError(
                    policy,
                    "match",
                    f"{where}: split over {part.parts} processes, {size_hint(size[axis])} elements on "
                    f"each, which cuts its {name} of {block}",
                    "use fewer processes, a smaller block, or keep this product in high precision",
                )
        if shares_range(wanted, part) and (why := _cannot_share(wanted, part)):
            raise PolicyError(
                policy,
                "match",
                f"{where}: split over {part.parts} processes, and {why}",
                "use the range absmax there, or keep this product in high precision",
            )


def _blocks(wanted: OperandPolicy, side: Side) -> list[tuple[str, int]]:
    found: list[tuple[str, int | None]] = []
    if wanted.format is not None and side != "unknown":
        block = wanted.format.block
        found.append(("blocks", block.along if side == "along" else block.across))
    if wanted.transform is not None and side == "along":
        found.append(("rotation", wanted.transform.hadamard))
    return [(name, size) for name, size in found if size]


def shares_range(wanted: OperandPolicy, part: Parts | None) -> bool:
    """Whether an operand in parts has a scale that takes the whole tensor, a row or a column to find."""
    fmt = wanted.format
    if part is None or fmt is None or fmt.scale.range.kind == "fixed" or fmt.scale.kind == "none":
        return False
    return fmt.two_level or str(fmt.block) == "tensor" or rows_are_cut(wanted, part)


def rows_are_cut(wanted: OperandPolicy, part: Parts) -> bool:
    """Whether each part holds a piece of every block."""
    block = wanted.format.block if wanted.format else None
    if block is None or str(block) == "tensor":
        return False
    whole = {"along": block.along is None, "across": block.across is None, "unknown": False}
    return whole[part.side]


def _cannot_share(wanted: OperandPolicy, part: Parts) -> str:
    fmt = wanted.format
    assert fmt is not None
    whole = str(fmt.block) == "tensor" or rows_are_cut(wanted, part)
    if fmt.asymmetric and whole:
        return "a zero point of the whole is not found from parts"
    if whole and fmt.scale.range.kind not in ("absmax", "delayed"):
        return f"the range {fmt.scale.range} of the whole is not found from parts"
    if fmt.tensor_scale == "fp32-row" and part.side != "across":
        return "a tensor scale for each row is not found from parts"
    if not wanted.gradient.straight:
        return f"the gradient {wanted.gradient} needs the whole tensor"
    return ""
