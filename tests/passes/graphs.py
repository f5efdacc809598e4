"""Small joint graphs to rewrite, and policies to rewrite them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from qgraph.doors.aot import Capture, capture
from qgraph.passes import GraphFacts, Plan, Step, names_of, run_passes
from qgraph.passes.step import Target
from qgraph.policy import Policy, load_policy, load_policy_text

HEAD = """
qgraph: 1
name: test
formats:
  fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
  tile: {element: e2m1, block: [16, 16], scale: e4m3, tensor_scale: fp32}
  int8: {element: int8, block: row, scale: fp32}
transforms:
  rht: {hadamard: 16, signs: te}
  turn: {hadamard: 16, signs: te, output: fp32}
rules:
"""


def policy(rules: str) -> Policy:
    """Return a policy of these rules; formats fp4, tile, int8, transforms rht, turn."""
    return load_policy_text(HEAD + rules, "test.yaml")


class Shared(nn.Module):
    """Two projections of one input, and a product of two activations."""

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.left = nn.Linear(features, 32, bias=False)
        self.right = nn.Linear(features, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.left(x) @ self.right(x).transpose(-1, -2))


class Blocks(nn.Module):
    """Four residual blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4))
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return torch.sum(self.head(x))


class Transformer(nn.Module):
    """Four blocks by the names that rules of recipes speak of."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "self_attn": nn.ModuleDict({"v_proj": nn.Linear(32, 32)}),
                    "mlp": nn.ModuleDict({"up_proj": nn.Linear(32, 32)}),
                }
            )
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attended = layer["self_attn"]["v_proj"](x)  # type: ignore[index]
            x = x + layer["mlp"]["up_proj"](torch.relu(attended))  # type: ignore[index]
        return torch.sum(x)


def captured(
    model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Capture:
    """Return the joint graph of `model` on one input of `shape`."""
    inputs: Mapping[str, Any] = {"x": torch.randn(shape, dtype=dtype)}
    return capture(model.to(dtype), inputs)


def rewrite(
    graph: Graph,
    policy: Policy,
    facts: GraphFacts,
    until: str | None = None,
    target: Target = "emulate",
) -> tuple[Plan, ...]:
    """Run the passes on a joint graph, as the doors do; with `until` no further than that one."""
    step = Step(graph=graph, policy=policy, facts=facts, target=target)
    names = names_of("joint", "lower", "watch", until=until)
    return run_passes(step, names).plans


def verify(graph: Graph, plans: Sequence[Plan]) -> None:
    """Hold a graph against plans, as the pass does."""
    facts = GraphFacts(parameters=frozenset())
    step = Step(graph=graph, policy=load_policy("high"), facts=facts, plans=tuple(plans))
    run_passes(step, ["verify"])
