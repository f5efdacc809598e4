"""Compute softmax by another definition, where a policy's `functions` says so.

    softmax(x, dim)  ->  two_pass_softmax(x, dim)

The definition is traced in the place of torch's, and its backward follows by itself. Fused attention
computes its own softmax, which is none of the graph's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qgraph.compat import meta
from qgraph.numerics import two_pass_softmax
from qgraph.passes.graph.places import frame_module, module_path
from qgraph.passes.step import Step

_FUNCTIONS = (torch.nn.functional.softmax, torch.softmax)
_METHOD = "softmax"  # of a tensor


def replace_softmax(step: Step) -> None:
    """Replace each softmax that a rule of the policy's `functions` names; the step counts them by rule."""
    rules = [rule for rule in step.policy.functions if rule.function == "softmax"]
    if not rules:
        return
    modules, frame = step.facts.modules, frame_module(step.graph, step.facts.modules)
    for node in step.graph.nodes:
        module = module_path(node, modules, frame) if _is_softmax(node) else ""
        rule = next((rule for rule in rules if _is_softmax(node) and rule.names(module)), None)
        if rule is not None:
            node.op, node.target = "call_function", _softmax
            meta.mark(node, "softmax")  # attention is known by it
            step.replaced[rule.text] += 1


def _is_softmax(node: Node) -> bool:
    called = node.op == "call_function" and node.target in _FUNCTIONS
    if not called and not (node.op == "call_method" and node.target == _METHOD):
        return False
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None) is not None


def _softmax(
    input: Tensor, dim: int, *rest: Any, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    """Take the arguments of torch's functions: `rest` is the dtype, or an old stack level before it."""
    given = [value for value in rest if isinstance(value, torch.dtype)]
    wanted = dtype or (given[0] if given else input.dtype)
    return two_pass_softmax(input.to(wanted), dim)
