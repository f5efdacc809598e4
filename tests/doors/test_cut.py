"""Cutting a joint graph: what is said to be kept for the backward is what a run keeps."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from qgraph.doors.aot import Capture, capture, compile_capture
from qgraph.doors.partition import cut
from qgraph.passes import graph_text
from qgraph.policy import load_policy
from tests.passes.graphs import rewrite

Kept = Counter[tuple[tuple[int, ...], torch.dtype]]


class Derived(nn.Module):
    """Products with a weight, with what is made of a weight, and with what is made of a buffer."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(32, 48)
        self.turn = nn.Parameter(torch.randn(48, 16))
        self.register_buffer("table", torch.randn(16, 24))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x.cos())) @ self.turn.exp().sin()
        return (hidden.sigmoid() @ self.table.cos()).softmax(-1).sum()


def said(captured: Capture) -> Kept:
    """Return what the cut keeps beside parameters, buffers and inputs."""
    forward, backward, results = cut(captured.joint.graph_module)
    (output,) = forward.graph.find_nodes(op="output")
    kept = output.args[0][results:]
    holders = [node.name for node in backward.graph.find_nodes(op="placeholder")]
    assert {node.name for node in kept} < set(holders)  # the rest is the gradient of the result
    values = [node.meta["val"] for node in kept if node.op != "placeholder"]
    return Counter((tuple(value.shape), value.dtype) for value in values)


def done(captured: Capture, model: nn.Module, x: Tensor) -> Kept:
    """Return what a run keeps beside them."""
    there = {t.data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    kept: Kept = Counter()

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in there:
            kept[tuple(value.shape), value.dtype] += 1
        return value

    run = compile_capture(captured, codegen=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        run(x=x).backward()
    return kept


@pytest.mark.parametrize("recipe", ["high", "nvfp4", "fp8"])
def test_a_run_keeps_what_the_cut_says(recipe: str) -> None:
    model, x = Derived(), torch.randn(4, 16, 32)
    captured = capture(model, {"x": x})
    rewrite(captured.graph, load_policy(recipe), captured.facts)
    before = graph_text(captured.graph)
    found = said(captured)
    assert graph_text(captured.graph) == before
    assert found.total() > 0
    assert found == done(captured, model, x)
