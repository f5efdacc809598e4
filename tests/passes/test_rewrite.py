"""Rewriting: what each pass adds, shares, fuses, and what it leaves alone."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.doors.aot import Capture
from qgraph.errors import GraphError, PolicyError
from qgraph.passes import graph_text, names_of, run_passes
from qgraph.policy import load_policy, recipe_names
from tests.passes.graphs import Blocks, Shared, Transformer, captured, policy, rewrite, verify

ALL = """
  - match: {op: linear}
    fprop: {input: fp4, weight: tile}
    dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: tile}
    wgrad:
      input: {format: fp4, transform: rht}
      grad_output: {format: fp4, transform: rht, rounding: stochastic}
"""


def calls(graph: Graph, target: Callable[..., Any]) -> list[Node]:
    return list(graph.find_nodes(op="call_function", target=target))


def test_a_shared_input_is_quantized_once() -> None:
    found = captured(Shared(), (4, 16, 32))
    rewrite(found.graph, policy("  - match: {op: linear}\n    fprop: {input: fp4}\n"), found.facts)
    (quantized,) = calls(found.graph, ops.fake_quant)
    assert {user.target for user in quantized.users} <= {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
    }
    assert len(quantized.users) == 2


def test_one_tile_quantized_weight_serves_forward_and_backward() -> None:
    found = captured(Blocks(), (16, 32))
    rewrite(found.graph, policy(ALL), found.facts)
    weights = [node for node in calls(found.graph, ops.fake_quant) if "16x16" in str(node.args[1])]
    assert len(weights) == 5  # four blocks and the head, once each
    tags = [{user.meta["partitioner_tag"] for user in _products(node)} for node in weights]
    # The first block's input needs no gradient, so its weight has no dgrad to serve.
    assert tags.count({"is_forward", "is_backward"}) == 4


def _products(node: Node) -> set[Node]:
    found: set[Node] = set()
    for user in node.users:
        found |= _products(user) if user.target is torch.ops.aten.permute.default else {user}
    return found


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(16, 16, 3), nn.Conv1d(16, 16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.layers(x))


def masks(rules: str) -> list[list[bool]]:
    """Which gradients each backward of two convolutions computes: input's, weight's, bias's."""
    found = captured(Convolutions(), (2, 16, 12))
    rewrite(found.graph, policy(rules), found.facts)
    backward = torch.ops.aten.convolution_backward.default
    found_masks: list[Any] = [node.args[-1] for node in calls(found.graph, backward)]
    return sorted([*mask] for mask in found_masks)


def test_a_convolution_is_split_where_a_product_is_quantized_and_whole_elsewhere() -> None:
    first, second = [False, True, True], [True, True, True]  # the first's input needs no gradient
    assert masks("  - match: {op: linear}\n    wgrad: {input: fp4}\n") == [first, second]
    assert masks("  - match: {op: conv}\n    fprop: {input: fp4}\n") == [first, second]
    apart = [[False, True, False], [False, True, False], [True, False, False]]
    found = masks("  - match: {op: conv}\n    wgrad: {input: fp4}\n")
    assert found == apart


def test_stochastic_operands_share_a_seed_and_never_a_draw() -> None:
    found = captured(Blocks(), (16, 32))
    rewrite(found.graph, policy(ALL), found.facts)
    assert len(calls(found.graph, ops.seed)) == 1
    draws = [
        n.args[-1]
        for t in (ops.fake_quant, ops.rotate_quant)
        for n in calls(found.graph, t)
        if len(n.args) > 4
    ]
    draws = [d for d in draws if isinstance(d, int) and d >= 0]
    # The grad_output of four dgrads (the first block's input needs none) and of five wgrads.
    assert len(draws) == len(set(draws)) == 4 + 5


def test_rotation_and_quantization_are_fused_by_lowering_only() -> None:
    before = captured(Blocks(), (16, 32))
    rewrite(before.graph, policy(ALL), before.facts, until="share")
    # Ten rotations: input and grad_output of the five wgrads.
    assert len(calls(before.graph, ops.hadamard)) == 10
    assert not calls(before.graph, ops.rotate_quant)
    after = captured(Blocks(), (16, 32))
    rewrite(after.graph, policy(ALL), after.facts)
    assert not calls(after.graph, ops.hadamard)
    assert len(calls(after.graph, ops.rotate_quant)) == 10


def test_high_leaves_the_graph_as_it_was() -> None:
    found = captured(Blocks(), (16, 32))
    before = graph_text(found.graph)
    plans = rewrite(found.graph, load_policy("high"), found.facts)
    assert graph_text(found.graph) == before
    assert {plan.status for plan in plans} == {"kept"}


def test_nearest_rounding_draws_no_seed() -> None:
    found = captured(Blocks(), (16, 32))
    rewrite(found.graph, load_policy("nvfp4_naive"), found.facts)
    assert not calls(found.graph, ops.seed)


@pytest.fixture(scope="module")
def small_transformer() -> Capture:
    return captured(Transformer(), (16, 32))


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_verifies_after_each_pass(recipe: str, small_transformer: Capture) -> None:
    chosen, verified = load_policy(recipe), 0
    step = replace(small_transformer.step(chosen), graph=copy.deepcopy(small_transformer.graph))
    for name in names_of("joint", "lower", "watch"):
        run_passes(step, [name])
        if any(n.target in (ops.fake_quant, ops.rotate_quant) for n in step.graph.nodes):
            verify(step.graph, step.plans)
            verified += 1
    assert (verified > 5) == chosen.quantizes


def test_ragged_sizes_are_noted_or_kept() -> None:
    rules = "  - match: {op: linear}\n    fprop: {input: fp4, weight: tile}\n"
    found = captured(Shared(40), (4, 16, 40))
    plans = rewrite(found.graph, policy(rules), found.facts)
    notes = {note for plan in plans for note in plan.notes}
    assert notes == {
        "40 summed elements are no multiple of 16: the last block is padded with zeros"
    }
    found = captured(Shared(40), (4, 16, 40))
    kept = rewrite(found.graph, policy(rules).but(ragged="keep"), found.facts)
    assert {p.reason for p in kept if p.site.role == "fprop" and p.site.op == "linear"} == {
        "40 summed elements are no multiple of 16, and the policy says ragged: keep"
    }
    assert not calls(found.graph, ops.fake_quant)


def test_ragged_sizes_stop_where_the_policy_says_so() -> None:
    rules = "  - match: {op: linear}\n    fprop: {input: fp4, weight: tile}\n"
    strict = policy(rules).but(ragged="error")
    found = captured(Shared(40), (4, 16, 40))
    with pytest.raises(PolicyError) as error:
        rewrite(found.graph, strict, found.facts)
    assert (
        "fprop of 'left' does not fit its format: 40 summed elements are no" in error.value.problem
    )
    assert error.value.key == "ragged"
    fitting = captured(Shared(48), (4, 16, 48))
    assert any(plan.operands for plan in rewrite(fitting.graph, strict, fitting.facts))


def test_a_rotated_square_tile_is_quantized_along_its_rotation() -> None:
    rules = """
  - match: {op: linear}
    wgrad: {input: {format: tile, transform: rht}, grad_output: {format: tile, transform: rht}}
"""
    found = captured(Blocks(), (16, 32))
    rewrite(found.graph, policy(rules), found.facts)
    rotated = calls(found.graph, ops.rotate_quant)
    assert len(rotated) == 10
    assert {node.args[4] for node in rotated} == {-2}  # along the tokens


def test_inserted_nodes_belong_to_the_half_of_their_product() -> None:
    found = captured(Blocks(), (16, 32))
    rewrite(found.graph, policy(ALL), found.facts)
    inserted = [n for t in (ops.fake_quant, ops.rotate_quant) for n in calls(found.graph, t)]
    for node in inserted:
        halves = {user.meta["partitioner_tag"] for user in _products(node)}
        # What serves both halves is computed in the first.
        assert node.meta["partitioner_tag"] == max(halves)
        assert "seq_nr" in node.meta
        assert node.meta["val"].shape[-1] > 0
    # Inputs and weights of five layers in the forward; grad_output of four dgrads and both operands
    # of five wgrads in the backward.
    tags = Counter(node.meta["partitioner_tag"] for node in inserted)
    assert tags == {"is_forward": 5 + 5, "is_backward": 4 + 2 * 5}


def test_activation_products_are_quantized_by_lhs_and_rhs() -> None:
    rules = """
  - match: {op: matmul}
    fprop: {lhs: int8, rhs: int8}
    dgrad: {grad_output: int8, lhs: int8, rhs: int8}
"""
    found = captured(Shared(), (4, 16, 32))
    plans = rewrite(found.graph, policy(rules), found.facts)
    assert [p.status for p in plans if p.site.op == "matmul"] == ["quantized"] * 3
    # lhs and rhs along one axis for the forward, and along the other for the backward; grad_output both ways.
    assert len(calls(found.graph, ops.fake_quant)) == 6


@pytest.mark.parametrize("fault", ["format", "axis", "unplanned"])
def test_verify_refuses_a_graph_that_differs_from_its_plan(fault: str) -> None:
    found = captured(Blocks(), (16, 32))
    plans = rewrite(found.graph, load_policy("nvfp4_naive"), found.facts)
    node = calls(found.graph, ops.fake_quant)[0]
    if fault == "format":
        node.update_arg(1, "int8/row/fp32")
        message = "reads int8/row/fp32 nearest, the plan says e2m1/1x16/e4m3/fp32 nearest"
    elif fault == "axis":
        node.update_arg(2, -2)
        message = "is quantized along axis -2, not the one the product sums over"
    else:
        source = node.args[0]
        assert isinstance(source, Node)
        node.replace_all_uses_with(source)
        message = "reads a tensor in high precision, the plan says"
    with pytest.raises(GraphError, match=message):
        verify(found.graph, plans)


def test_text_shows_the_semantic_ops_with_shapes_and_modules() -> None:
    found = captured(Blocks(), (16, 32))
    rewrite(found.graph, policy(ALL), found.facts, until="share")
    lines = graph_text(found.graph, found.facts.modules).splitlines()
    assert any(
        re.fullmatch(
            r"fake_quant\w*: f32\[16, 32\] = qgraph\.fake_quant\(\w+, 'e2m1/1x16/e4m3/fp32', -1\)"
            r"  # forward  layers\.0\.0",
            line,
        )
        for line in lines
    )
    assert any("= qgraph.hadamard(" in line and "# backward  head" in line for line in lines)
