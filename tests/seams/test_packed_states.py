"""An optimizer with packed states may be copied and pickled, as any other."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import qgraph


def step(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 64)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_by_itself_with_the_same_states(copied: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = qgraph.quantize_optimizer(optimizer, "efficient_m8", model)
    for _ in range(2):
        step(model, optimizer)
    other, theirs = copied((model, optimizer))
    assert type(theirs).__name__ == type(optimizer).__name__
    assert qgraph.state_bytes(theirs) == qgraph.state_bytes(optimizer)
    for pair in ((model, optimizer), (other, theirs)):
        step(*pair)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    step(other, theirs)
    assert not torch.equal(model[0].weight, other[0].weight)
