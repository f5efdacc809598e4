"""The rewritten graph of each kind of product, as text: golden/NAME.txt.

Written anew by `QGRAPH_GOLDEN=write pytest tests/passes/test_golden.py`; read what changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgraph.doors.aot import capture
from qgraph.passes import graph_text
from tests.cases import of_torch, with_experts
from tests.passes.graphs import policy, rewrite

GOLDEN = Path(__file__).parent / "golden"
POLICY = policy("""
  - match: {op: [linear, conv, experts]}
    fprop: {input: fp4, weight: tile}
    dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: tile}
    wgrad: {input: {format: fp4, transform: rht}, grad_output: {format: fp4, transform: rht}}
  - match: {op: [matmul, sdpa]}
    fprop: {lhs: mxfp8, rhs: mxfp8}
    dgrad: {grad_output: mxfp8, lhs: mxfp8, rhs: mxfp8}
""")


class Product(nn.Module):
    """A function of one input and the parameters given, summed."""

    def __init__(self, function: Callable[..., Tensor], *weights: Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(map(nn.Parameter, weights))

    def forward(self, x: Tensor) -> Tensor:
        weights = [self.weights[i] for i in range(len(self.weights))]  # torch 2.11 unpacks no list
        return self.function(x, *weights).square().sum()


def _experts(x: Tensor, weight: Tensor) -> Tensor:
    from transformers.integrations.moe import _grouped_mm

    ends = torch.tensor([16, 48], dtype=torch.int32)
    return _grouped_mm(x, weight.transpose(-2, -1), ends)


def _attention(x: Tensor, weight: Tensor) -> Tensor:
    q, k, v = F.linear(x, weight).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _convolution(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        ones, zeros = [1] * (x.dim() - 2), [0] * (x.dim() - 2)
        return torch.convolution(
            x, weight, None, ones, zeros, ones, options.get("transposed", False), zeros,
            options.get("groups", 1),
        )  # fmt: skip

    return function


W = torch.zeros
KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mm": (Product(F.linear, W(48, 32)), (2, 16, 32)),
    "addmm": (Product(F.linear, W(48, 32), W(48)), (16, 32)),
    "bmm": (Product(torch.bmm, W(2, 32, 48)), (2, 16, 32)),
    "baddbmm": (Product(lambda x, b: torch.baddbmm(b, x, x.mT), W(2, 16, 16)), (2, 16, 32)),
    "matmul, broadcast": (Product(lambda x, w: (x * w) @ x.mT[0], W(32)), (2, 16, 32)),
    "einsum": (Product(lambda x, w: torch.einsum("btk,nk->btn", x, w), W(48, 32)), (2, 16, 32)),
    "conv1d": (Product(_convolution(), W(32, 16, 3)), (2, 16, 8)),
    "conv2d, grouped": (Product(_convolution(groups=2), W(32, 16, 3, 3)), (2, 32, 8, 8)),
    "conv2d, depthwise": (Product(_convolution(groups=16), W(16, 1, 3, 3)), (2, 16, 8, 8)),
    "conv2d, transposed": (Product(_convolution(transposed=True), W(16, 32, 3, 3)), (2, 16, 8, 8)),
    "conv3d": (Product(_convolution(), W(32, 16, 2, 2, 2)), (2, 16, 4, 4, 4)),
    "experts": (Product(_experts, W(2, 32, 32)), (48, 32)),
    "attention": (Product(_attention, W(96, 32)), (2, 16, 32)),
    "embedding, tied": (
        Product(lambda x, w: F.linear(F.embedding(x.long(), w), w), W(64, 32)),
        (2, 16),
    ),
    "low rank": (Product(lambda x, a, b: F.linear(F.linear(x, a), b), W(8, 32), W(32, 8)), (16, 32)),
}  # fmt: skip


# Where torch or transformers give another graph, there is nothing to compare.
ONLY = {
    "experts": with_experts(),
    "embedding, tied": of_torch(
        (2, 12), "an embedding's gradient does not ask for numbers in range"
    ),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=ONLY.get(kind, ())) for kind in KINDS])
def test_the_rewritten_graph_is_the_golden_one(kind: str) -> None:
    torch._dynamo.reset()
    model, shape = KINDS[kind]
    # The layer below wants a gradient too, so that each product has all its gradient products.
    x = torch.zeros(shape, requires_grad=len(shape) != 2 or kind != "embedding, tied")
    found = capture(model, {"x": x}, POLICY)
    before = graph_text(found.graph, found.facts.modules)
    rewrite(found.graph, POLICY, found.facts, until="share")
    text = f"before\n{before}\nafter\n{graph_text(found.graph, found.facts.modules)}"
    file = GOLDEN / f"{kind.replace(', ', '_').replace(' ', '_')}.txt"
    if os.environ.get("QGRAPH_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
    assert "qgraph.fake_quant" in text
