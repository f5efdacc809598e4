"""A captured joint graph moved to a GPU that need not be there.

A model is captured on fake CPU tensors; each node then gets the fake value it would have on the
GPU, and attention the op that torch takes there.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from qgraph.compat import meta

aten = torch.ops.aten
GPU = torch.device("cuda", 0)


def move_to_gpu(graph: Graph) -> None:
    """Give every node of `graph` the fake value it has on a GPU, in place.

    Fused attention of a CPU becomes flash attention, or with a mask memory-efficient attention, as
    torch chooses for 16-bit operands.
    """
    mode = meta.fake_mode(graph)
    for node in list(graph.nodes):
        if node.target is aten._scaled_dot_product_flash_attention_for_cpu.default:
            _attention(graph, node)
    with mode:
        for node in graph.nodes:
            if node.op in ("placeholder", "call_function"):
                node.args, node.kwargs = _on_gpu(node.args), _on_gpu(node.kwargs)
                meta.set_value(node, _moved(meta.value(node)))


def _moved(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item) for item in value)
    if not isinstance(value, Tensor) or value.device == GPU:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)


def _on_gpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return GPU
    if isinstance(value, (list, tuple)):
        return type(value)(_on_gpu(item) for item in value)
    if isinstance(value, dict):
        return {key: _on_gpu(item) for key, item in value.items()}
    return value


def _attention(graph: Graph, node: Node) -> None:
    """Put the GPU's attention in the place of `node` and of its backward, if it has one."""
    query, key, value, *rest = node.args
    dropout: Any = rest[0] if rest else 0.0
    causal: Any = rest[1] if len(rest) > 1 else False
    mask, scale = node.kwargs.get("attn_mask"), node.kwargs.get("scale")
    backward = [
        user
        for item in node.users
        for user in _through_aliases(item)
        if user.target is aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    ]
    with graph.inserting_before(node):
        bias = _expanded(graph, mask, query) if isinstance(mask, Node) else None
        if bias is not None:
            target: Any = aten._scaled_dot_product_efficient_attention.default
            args: tuple[Any, ...] = (query, key, value, bias, True, dropout, causal)
        else:
            target = aten._scaled_dot_product_flash_attention.default
            args = (query, key, value, dropout, causal, False)
        new = _call(graph, target, args, {"scale": scale}, node)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    for old in dict.fromkeys(backward):
        grad, q, k, v, out, logsumexp, *_ = old.args
        with graph.inserting_before(old):
            count = 4 if bias is not None else 9
            items = [_item(graph, new, i, old) for i in range(2, count)]
            if bias is not None:
                mask_out = [True, True, True, False]
                late = (grad, q, k, v, bias, out, logsumexp, *items, dropout, mask_out, causal)
                target = aten._scaled_dot_product_efficient_attention_backward.default
            else:
                late = (grad, q, k, v, out, logsumexp, *items[:4], dropout, causal, *items[4:6])
                target = aten._scaled_dot_product_flash_attention_backward.default
            made = _call(graph, target, late, {"scale": scale}, old)
        old.replace_all_uses_with(made)
        graph.erase_node(old)


def _through_aliases(node: Node) -> list[Node]:
    found: list[Node] = []
    for user in node.users:
        found += [user, *_through_aliases(user)] if user.target is aten.alias.default else [user]
    return found


def _expanded(graph: Graph, mask: Node, query: Any) -> Node:
    shape = [*meta.value(query).shape[:-1], meta.value(mask).shape[-1]]
    return _call(graph, aten.expand.default, (mask, shape), {}, mask)


def _item(graph: Graph, node: Node, index: int, like: Node) -> Node:
    return _call(graph, operator.getitem, (node, index), {}, node)


def _call(
    graph: Graph, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: Node
) -> Node:
    """Add a call with its fake value, belonging where `like` belongs."""
    node = graph.call_function(target, args, kwargs)
    with meta.fake_mode(graph):
        values = map_arg((args, kwargs), lambda n: _moved(meta.value(n)))
        meta.copy_but_value(node, like, target(*values[0], **values[1]))
    return node
