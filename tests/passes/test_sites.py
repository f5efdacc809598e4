"""Finding products: their roles, operands and places."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from qgraph.passes import find_sites, stacks_of
from qgraph.passes.graph.places import module_path
from tests.passes.graphs import Blocks, Shared, captured


def test_a_linear_has_three_roles_and_an_activation_product_has_two() -> None:
    found = captured(Shared(), (4, 16, 32))
    sites = find_sites(found.graph, found.facts)
    named = Counter((s.op, s.role, s.module, s.operand_kinds) for s in sites)
    # The input needs no gradient, so a linear has no dgrad here.
    assert named == {
        ("linear", "fprop", "left", ("input", "weight")): 1,
        ("linear", "fprop", "right", ("input", "weight")): 1,
        ("matmul", "fprop", "", ("lhs", "rhs")): 1,
        ("matmul", "dgrad", "", ("lhs", "grad_output")): 1,
        ("matmul", "dgrad", "", ("grad_output", "rhs")): 1,
        ("linear", "wgrad", "right", ("grad_output", "input")): 1,
        ("linear", "wgrad", "left", ("grad_output", "input")): 1,
    }


def test_sizes_and_flops_are_those_of_the_product() -> None:
    found = captured(Shared(), (4, 16, 32))
    sites = find_sites(found.graph, found.facts)
    assert len(sites) == 7
    for site in sites:
        batch, m, n, k = site.shape
        assert site.flops == 2 * batch * m * n * k
        if site.role == "fprop":
            assert site.shape == ((1, 64, 32, 32) if site.op == "linear" else (4, 16, 16, 32))


def test_blocks_are_counted_in_their_stack() -> None:
    found = captured(Blocks(), (16, 32))
    places = {(s.module, s.block, s.block_count) for s in find_sites(found.graph, found.facts)}
    assert places == {(f"layers.{i}.0", i, 4) for i in range(4)} | {("head", None, None)}


def test_a_transposed_weight_is_still_the_weight() -> None:
    class Convolution1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 48))
            self.bias = nn.Parameter(torch.zeros(48))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.addmm(self.bias, x.tanh() * self.bias[:32], self.weight)
            return (y.t() @ y).relu().sum()

    found = captured(Convolution1D(), (16, 32))
    roles = Counter((s.op, s.role) for s in find_sites(found.graph, found.facts))
    assert roles == {
        ("linear", "fprop"): 1, ("linear", "dgrad"): 1, ("linear", "wgrad"): 1,
        ("matmul", "fprop"): 1, ("matmul", "dgrad"): 2,
    }  # fmt: skip


def test_a_weight_computed_from_parameters_is_a_weight() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normal = nn.utils.parametrizations.weight_norm(nn.Linear(32, 48))
            self.places = nn.Parameter(torch.randn(16, 48))
            self.mix = nn.Linear(48, 16)

        def forward(self, x: Tensor) -> Tensor:
            # An input made of parameters alone, with a weight: linear as well.
            return torch.sum(self.normal(x).t() @ self.mix(self.places.tanh()))

    found = captured(Pair(), (16, 32))
    sites = find_sites(found.graph, found.facts)
    roles = {"fprop", "dgrad", "wgrad"}
    for name, wanted in (("normal", {"fprop", "wgrad"}), ("mix", roles)):
        mine = [s for s in sites if s.module.startswith(name)]
        assert {(s.op, s.role) for s in mine} == {("linear", role) for role in wanted}
    # What is projected is an activation, whatever from.
    assert Counter(s.op for s in sites) == {"linear": 5, "matmul": 3}


def test_thin_products_are_seen_too() -> None:
    class Column(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x[:1] @ self.weight).sum() + torch.bmm(x[None, :1], x[None, :1].mT).sum()

    found = captured(Column(), (16, 32))
    sites = find_sites(found.graph, found.facts)
    assert {(s.op, s.shape) for s in sites if s.role == "fprop"} == {
        ("linear", (1, 1, 1, 32)),
        ("matmul", (1, 1, 1, 32)),
    }


def test_convolutions_are_listed_with_both_gradients() -> None:
    class Picture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sum(self.second(self.first(x).relu()))

    found = captured(Picture(), (2, 3, 8, 8))
    sites = found.products()
    assert Counter((s.module, s.role) for s in sites) == {
        ("first", "fprop"): 1, ("first", "wgrad"): 1,
        ("second", "fprop"): 1, ("second", "dgrad"): 1, ("second", "wgrad"): 1,
    }  # fmt: skip
    assert {s.unsupported for s in sites} == {""}
    forward = next(s for s in sites if s.module == "first" and s.role == "fprop")
    assert forward.flops == 2 * (2 * 8 * 6 * 6) * (3 * 3 * 3)


def test_float64_is_found_and_not_quantized() -> None:
    found = captured(Shared(), (4, 16, 32), torch.float64)
    sites = find_sites(found.graph, found.facts)
    assert {s.unsupported for s in sites} == {"dtype float64 is not quantized"}


def node_at(key: str, path: str) -> Node:
    node = Graph().call_function(torch.ops.aten.mm.default)
    node.meta["nn_module_stack"] = {key: (path, nn.Linear)}
    return node


def test_paths_come_from_the_module_itself_or_from_cleaned_text() -> None:
    modules = {"140": "model.layers.0.mlp"}
    assert module_path(node_at("140@1", "L['args'][0].x"), modules) == "model.layers.0.mlp"
    for text, want in {
        "L['self'].model.layers.0": "model.layers.0",
        "L['args'][0].model.layers.0": "model.layers.0",
        "L['self']._modules['model']._modules['0']": "model.0",
        "L['self']._orig_mod.model": "model",
        "L['fn'].layers[3].up": "layers.3.up",
        "L['self']": "",
    }.items():
        assert module_path(node_at("7", text), modules) == want


def test_a_missing_stack_is_the_root() -> None:
    node = Graph().call_function(torch.ops.aten.mm.default)
    node.meta["fwd_nn_module_stack"] = None
    assert module_path(node, {}) == ""


def test_stacks_are_read_off_names_where_there_is_no_model() -> None:
    assert stacks_of(["a.layers.0.up", "a.layers.11.up", "b.h.2", "head"]) == {
        "a.layers": 12,
        "b.h": 3,
    }


@pytest.mark.parametrize(("between", "op"), [("elementwise", "pv"), ("a running sum", "matmul")])
def test_the_weights_of_attention_come_from_a_softmax_through_elementwise_ops(
    between: str, op: str
) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.project(x)
            weights = torch.softmax(y @ y.mT, -1)
            weights = weights * 0.5 if between == "elementwise" else weights.cumsum(-1)
            return torch.sum(torch.bmm(weights, y))

    found = captured(Weighted(), (2, 8, 16))
    sites = find_sites(found.graph, found.facts)
    assert [site.op for site in sites if site.role == "fprop"] == ["linear", "qk", op]
