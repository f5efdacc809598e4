"""Rules on qk and pv reach attention that Dynamo keeps as one call, or say that they do not."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qgraph
from qgraph.errors import QGraphWarning
from qgraph.policy import load_policy_text

QK = load_policy_text(
    """
qgraph: 1
name: heads
rules:
  - match: {op: [qk, pv]}
    fprop: {lhs: mxfp8, rhs: mxfp8}
    dgrad: {grad_output: mxfp8, lhs: mxfp8, rhs: mxfp8}
""",
    "heads",
)


class Heads(nn.Module):
    """nn.MultiheadAttention over a sequence and another."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.need_weights = need_weights
        self.mha = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.mha(x, y, y, need_weights=self.need_weights)[0]
        return found


class Written(Heads):
    """The same, written out."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights, biases = self.mha.in_proj_weight.chunk(3), self.mha.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(part, w, b).unflatten(-1, (4, 16)).transpose(1, 2)
            for part, w, b in zip((x, y, y), weights, biases, strict=True)
        )
        scores = (q / 4) @ k.mT
        return self.mha.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def run(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    x, y = (torch.randn(2, size, 64, requires_grad=True) for size in (32, 64))
    model.zero_grad()
    out = model(x, y)
    out.square().sum().backward()
    grads: list[Any] = [x.grad, y.grad, *(p.grad for p in model.parameters())]
    return [out.detach(), *grads]


@pytest.mark.parametrize("need_weights", [False, True])
def test_heads_that_torch_computes_are_those_written_out(need_weights: bool) -> None:
    torch._dynamo.reset()
    model = qgraph.compile(Heads(need_weights=need_weights), QK, codegen=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QGraphWarning)
        got = run(model)
    found = Counter(
        (e.op, e.role, e.status) for e in qgraph.coverage(model).entries if e.op != "linear"
    )
    assert found == {
        (op, role, "quantized"): count
        for op in ("qk", "pv") for role, count in (("fprop", 1), ("dgrad", 2))
    }  # fmt: skip
    written = Written(need_weights=False)
    high, want = run(written), run(qgraph.compile(written, QK, codegen=False))
    # The softmaxes differ in the last bit, so a number on the edge of two codes may take either: what is
    # left between the two must be small beside what quantization did.
    for one, two, three in zip(got, want, high, strict=True):
        done = (two - three).norm()
        assert done > 1e-3 * three.norm() or three.norm() < 1e-4  # a bias that changes nothing
        assert (one - two).norm() <= 0.1 * done


def test_attention_in_a_call_that_nobody_looks_into_is_told() -> None:
    torch._dynamo.reset()

    @torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
    def hidden(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return hidden(self.q(x)[:, None])  # type: ignore[no-any-return]

    model = qgraph.compile(Hidden(), QK, codegen=False)
    with (
        pytest.warns(QGraphWarning, match="fused attention of the model is inside a call that"),
        pytest.warns(QGraphWarning, match="nothing is quantized so far: fused attention inside"),
    ):
        model(torch.randn(2, 16, 32)).sum().backward()
    reasons = {e.reason for e in qgraph.coverage(model).entries if e.op == "sdpa"}
    assert reasons == {
        "fused attention inside a call that cannot be taken apart: its qk and pv stay high"
    }
