"""Tensors in parts: which ranges are shared between processes, which blocks are cut, whose random bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.doors.aot import capture
from qgraph.doors.partition import Partitioner
from qgraph.errors import PolicyError
from qgraph.passes import Processes, Report, Split, below_permutes
from qgraph.policy import Policy, load_policy_text
from tests.passes.graphs import rewrite

HEAD = """
qgraph: 1
name: test
formats:
  fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
  tile: {element: e2m1, block: [16, 16], scale: e4m3, tensor_scale: fp32}
  mx: {element: e4m3, block: [1, 32], scale: ue8m0}
  fp8: {element: e4m3, block: tensor, scale: fp32}
  int8: {element: int8, block: row, scale: fp32}
  worst: {element: int8, block: tensor, scale: fp32, range: p99}
  late: {element: e4m3, block: tensor, scale: fp32, range: delayed3}
transforms:
  rht: {hadamard: 16, signs: step}
rules:
"""


COLUMN, ROW = ("column",), ("row",)
TWO = Processes(splits={}, group="tp", parts=2, everyone="all", stream=6)


class Pair(nn.Module):
    """A layer split by its outputs and one split by its inputs, as each of two processes has them."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.column = nn.Linear(32, inner, bias=False)
        self.row = nn.Linear(inner, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.row(torch.relu(self.column(x))))


def rewritten(rules: str, inner: int = 32) -> tuple[Graph, Policy]:
    policy = load_policy_text(HEAD + rules, "test.yaml")
    found = capture(Pair(inner), {"x": torch.randn(16, 32, requires_grad=True)}, policy)
    weights = [node.name for node in found.graph.nodes if node.name in found.facts.parameters]
    splits = {
        name: Split(axis=axis, group="tp", parts=2)
        for name, axis in zip(weights, (0, 1), strict=True)
    }
    facts = replace(found.facts, processes=replace(TWO, splits=splits), history=0)
    rewrite(found.graph, policy, facts)
    return found.graph, policy


def shared(graph: Graph) -> list[tuple[str, str, bool]]:
    """Return (module, operand, rows) for each operand of a product that reads a shared range."""
    found = []
    for product in graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
        stack = product.meta.get("nn_module_stack") or product.meta.get("fwd_nn_module_stack")
        module = str(list(stack.values())[-1][0]).rpartition(".")[2]
        for side, argument in zip(("left", "right"), product.args, strict=True):
            assert isinstance(argument, Node)
            node, _ = below_permutes(argument)
            amax = node.args[6] if node.target is ops.fake_quant and len(node.args) > 6 else None
            if isinstance(amax, Node):
                found.append((module, side, bool(amax.args[3])))
    return sorted(found)


@pytest.mark.parametrize("name", ["fp4", "fp8"])
def test_ranges_of_what_is_split_are_shared_and_no_others(name: str) -> None:
    rule = f"  - match: {{op: linear}}\n    fprop: {{input: {name}, weight: {name}}}\n"
    graph, _ = rewritten(rule)
    assert shared(graph) == [
        (*COLUMN, "right", False),
        (*ROW, "left", False),
        (*ROW, "right", False),
    ]
    graph, _ = rewritten(rule.replace("fprop: {input", "dgrad: {grad_output"))
    # By its outputs: grad_output and weight; by its inputs: the weight alone.
    assert shared(graph) == [
        (*COLUMN, "left", False),
        (*COLUMN, "right", False),
        (*ROW, "right", False),
    ]
    graph, _ = rewritten(rule.replace("weight: ", "grad_output: ").replace("fprop", "wgrad"))
    assert shared(graph) == [("column", "left", False), ("row", "right", False)]


def test_a_scale_for_each_row_is_shared_where_rows_are_cut() -> None:
    graph, _ = rewritten("  - match: {op: linear}\n    fprop: {input: int8, weight: int8}\n")
    assert shared(graph) == [("row", "left", True), ("row", "right", True)]


def test_blocks_of_their_own_share_nothing() -> None:
    graph, _ = rewritten("  - match: {op: linear}\n    fprop: {input: mx, weight: mx}\n")
    assert shared(graph) == []


def test_a_delayed_range_is_one_on_all_processes() -> None:
    graph, _ = rewritten("  - match: {op: linear}\n    fprop: {input: late, weight: late}\n")
    found = list(graph.find_nodes(op="call_function", target=ops.shared_amax))
    assert {node.args[4] for node in found} == {"all"}
    assert len(found) == 4
    for node in found:
        assert [user.target for user in node.users] == [ops.delayed]


def test_signs_are_common_and_rounding_is_each_processs_own() -> None:
    graph, _ = rewritten(
        "  - match: {op: linear}\n    wgrad: {input: {format: mx, transform: rht}, "
        "grad_output: {format: mx, transform: rht, rounding: stochastic}}\n"
    )
    (seed,) = graph.find_nodes(op="call_function", target=ops.shared_seed)
    (stream,) = graph.find_nodes(op="call_function", target=ops.stream)
    assert stream.args == (seed, 6)
    assert {n.args[4] for n in graph.find_nodes(op="call_function", target=ops.hadamard)} == {seed}
    seeds = {
        n.args[3]
        for n in graph.find_nodes(op="call_function", target=ops.fake_quant)
        if len(n.args) > 3
    }
    assert seeds == {stream}


NEAREST = "fprop: {input: mx, weight: mx}"
IN_FORWARD = "fprop: {input: {format: mx, rounding: stochastic}}"
IN_BACKWARD = "wgrad: {grad_output: {format: mx, rounding: stochastic}}"


@pytest.mark.parametrize("rule", [NEAREST, IN_FORWARD, IN_BACKWARD])
@pytest.mark.parametrize("processes", [None, TWO], ids=["alone", "two"])
def test_what_is_saved_is_rounded_by_each_processs_own_bits_too(
    rule: str, processes: Processes | None
) -> None:
    text = f"{HEAD}  - match: {{op: linear}}\n    {rule}\n"
    policy = load_policy_text(
        f"{text}stash: [{{format: bfp4, rounding: stochastic}}]\n", "test.yaml"
    )
    found = capture(Pair(32), {"x": torch.randn(16, 32, requires_grad=True)}, policy)
    facts = replace(found.facts, processes=processes)
    rewrite(found.graph, policy, facts)
    cut = Partitioner(
        policy=policy, report=Report(policy=policy), facts=lambda _: facts, frame=None, key=""
    )
    forward, _ = cut(found.joint.graph_module, (), num_fwd_outputs=1)

    def calls(target: Any) -> list[Node]:
        return list(forward.graph.find_nodes(op="call_function", target=target))

    (seed,) = calls(ops.seed)
    own = seed
    if processes is not None:
        (common,), (own,) = calls(ops.shared_seed), calls(ops.stream)
        assert common.args == (seed, "tp")
        assert own.args == (common, 6)
    drawn = [n.args[3] for n in calls(ops.quantize) if n.args[3] is not None]
    assert drawn
    assert {*drawn} == {own}
    assert len(calls(ops.stream)) == (processes is not None)


@pytest.mark.parametrize(
    ("rule", "inner", "said"),
    [
        ("fprop: {weight: tile}", 24, "fprop of 'column', its weight: split over 2 processes, 24 elem"),
        ("fprop: {input: fp4}", 24, "fprop of 'row', its input: split over 2 processes"),
        ("dgrad: {grad_output: {format: mx, transform: rht}, weight: {format: mx, transform: rht}}", 40,
         "dgrad of 'column', its grad_output: split over 2 processes, 40 elements on each, which cuts its"),
        ("fprop: {weight: worst}", 32, "the range p99 of the whole is not found from parts"),
    ],
)  # fmt: skip
def test_what_parts_cannot_give_is_told_before_anything_runs(
    rule: str, inner: int, said: str
) -> None:
    with pytest.raises(PolicyError) as error:
        rewritten(f"  - match: {{op: linear}}\n    {rule}\n", inner)
    assert said in error.value.problem
    assert "keep this product in high precision" in error.value.fix
