"""What torch writes beside the nodes of a graph: no other file knows these keys.

A node of a joint graph carries its fake value, the modules it was called in, the half of the graph it
belongs to, the number of the forward op it stems from, and what the partitioner is told about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

_VALUE, _CACHED_SHAPE = "val", "tensor_meta"
_STACK, _FORWARD_STACK = "nn_module_stack", "fwd_nn_module_stack"
_HALF, _SEQUENCE, _RECOMPUTE = "partitioner_tag", "seq_nr", "recompute"
_DESCRIPTION, _ORIGIN = "desc", "original_aten"
_CUSTOM, _FUNCTION = (
    "custom",
    "qgraph function",
)  # torch copies what is custom to what a node becomes
# What the partitioner and later passes must know of an inserted node. Without the tags, the
# node would land in the wrong half of the graph, or be computed twice under checkpointing.
_INHERITED = (
    _STACK, _FORWARD_STACK, _HALF, _SEQUENCE, _RECOMPUTE, "ac_graph_id", "stack_trace",
    "autograd_backward",
)  # fmt: skip


def value(node: Node) -> Any:
    """Return the fake value of what `node` computes, None if it has none; several as a tuple."""
    return node.meta.get(_VALUE)


def set_value(node: Node, found: Any) -> None:
    """Say what `node` computes; what torch remembered of another value is forgotten."""
    node.meta[_VALUE] = found
    node.meta.pop(_CACHED_SHAPE, None)


def fake_mode(graph: Graph) -> Any:
    """Return the mode that the fake values of `graph` are of."""
    return next(v.fake_mode for n in graph.nodes if hasattr(v := value(n), "fake_mode"))


def inherit(node: Node, like: Node) -> None:
    """Let `node` belong where `like` belongs."""
    for key in _INHERITED:
        if key in like.meta:
            node.meta[key] = like.meta[key]


def copy_but_value(node: Node, like: Node, found: Any) -> None:
    """Give `node` all that is known of `like`, and a value of its own."""
    node.meta = {**like.meta}
    set_value(node, found)


def modules(node: Node) -> Mapping[str, Any]:
    """Return the modules `node` was called in, outermost first: path and class by id, as text.

    A node of the backward names those of the forward it stems from; what has none gives nothing.
    """
    return node.meta.get(_STACK) or node.meta.get(_FORWARD_STACK) or {}


def sequence(node: Node) -> object:
    """Return the number that a forward op shares with what its backward made, None if there is none."""
    return node.meta.get(_SEQUENCE)


def half(node: Node) -> str:
    """Return `forward` or `backward`, nothing where torch does not say."""
    return {"is_forward": "forward", "is_backward": "backward"}.get(str(node.meta.get(_HALF)), "")


def put_in_half(node: Node, *, forward: bool) -> None:
    """Say in which half `node` must be."""
    node.meta[_HALF] = "is_forward" if forward else "must_be_in_backward"


def keep(node: Node) -> None:
    """Tell the partitioner to keep what `node` computes for the backward."""
    node.meta[_RECOMPUTE] = CheckpointPolicy.MUST_SAVE


def compute_again(node: Node) -> None:
    """Tell the partitioner to compute `node` again in the backward."""
    node.meta[_RECOMPUTE] = CheckpointPolicy.MUST_RECOMPUTE


def kept_or_not(node: Node) -> object:
    """Return what the partitioner was told of `node`, None if nothing."""
    return node.meta.get(_RECOMPUTE)


def keep_alike(node: Node, told: object) -> None:
    """Tell the partitioner of `node` what `kept_or_not` gave for another, if it gave anything."""
    if told is not None:
        node.meta[_RECOMPUTE] = told


def description(node: Node) -> Any:
    """Return what AOTAutograd says an input, or the results of an output node, are; None elsewhere."""
    return node.meta.get(_DESCRIPTION)


def describe(node: Node, found: Any) -> None:
    """Say what an input, or the results of an output node, are."""
    node.meta[_DESCRIPTION] = found


def origin(node: Node) -> object:
    """Return the op that `node` is a decomposition of, None if of none."""
    return node.meta.get(_ORIGIN)


def mark(node: Node, function: str) -> None:
    """Say what function `node` computes; all that it is traced and differentiated to then knows it."""
    node.meta[_CUSTOM] = {**(node.meta.get(_CUSTOM) or {}), _FUNCTION: function}


def function_of(node: Node) -> str:
    """Return what `mark` said of the node that this one was traced from, nothing if it said nothing."""
    return str((node.meta.get(_CUSTOM) or {}).get(_FUNCTION, ""))


def is_tensor(node: Node) -> bool:
    """Whether `node` computes one tensor."""
    return isinstance(value(node), Tensor)
