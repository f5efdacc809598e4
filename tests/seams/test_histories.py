"""Amax histories of delayed scaling are not lost on the way, and move once a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import qgraph
from qgraph.models import load_model
from qgraph.ops import history_of
from qgraph.policy import dump_policy, load_policy, load_policy_text

DELAYED = """
qgraph: 1
name: delayed
formats: {f: {element: e4m3, block: tensor, scale: fp32, range: delayed4}}
rules:
  - {match: {op: linear}, fprop: {input: f, weight: f}, dgrad: {grad_output: f}, wgrad: {input: f}}
"""


def make(recompute: bool = False) -> Any:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = (
                checkpoint(self.body, x, use_reentrant=False) if recompute else self.body(x)
            )
            return found

    return qgraph.compile(Net(), load_policy_text(DELAYED, "p"), codegen=False)


def history(model: nn.Module) -> Tensor:
    found = history_of(model)
    assert found is not None
    return found


def data(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 32, generator=generator) * (i + 1) for i in range(count)]


def test_micro_batches_take_one_place_and_see_one_past() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = data(6)
    for first in (0, 3):
        for x in batches[first : first + 3]:
            model(x).sum().backward()
        optimizer.step()
    largest = [float(x.abs().max()) for x in batches]
    rows = [row[row > 0].tolist() for row in history(model) if bool((row > 0).any())]
    assert pytest.approx([max(largest[3:]), max(largest[:3])]) in rows
    assert max(map(len, rows)) == 2
    whole, parts = model(torch.cat(batches[:3])), [model(x) for x in batches[:3]]
    assert torch.equal(whole, torch.cat(parts))  # one scale for all of the step


def test_evaluation_between_steps_moves_nothing() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(data(1)[0]).sum().backward()
    optimizer.step()
    before = history(model).clone()
    with torch.no_grad():
        model(100 * data(1)[0])
    assert torch.equal(history(model), before)


def test_what_is_computed_again_in_the_backward_is_what_was() -> None:
    gradients = []
    for recompute in (False, True):
        model = make(recompute)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in data(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_change_of_the_models_dtype_leaves_them_as_they_were(dtype: torch.dtype) -> None:
    model = make()
    for x in data(2):
        model(x).sum().backward()
    before = history(model).clone()
    model.to(dtype)
    with torch.no_grad():
        model(data(1)[0].to(dtype))
    assert torch.equal(history(model), before)
    model.float()
    assert torch.equal(history(model), before)


def test_load_brings_them_back(tmp_path: Path) -> None:
    model = load_model("preset:tiny-llama,layers=1")
    qgraph.compile(model, "fp8_lm", codegen=False)
    ids = torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids, labels=ids).loss.backward()
    model.save_pretrained(tmp_path)
    (tmp_path / "policy.yaml").write_text(dump_policy(load_policy("fp8_lm")))
    assert torch.equal(history(qgraph.load(tmp_path)), history(model))
    assert bool(history(model).any())
