"""Optimizer states under FSDP, in two processes: the same numbers, half the bytes each."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.distributed.fsdp import fully_shard

import qgraph
from qgraph.policy import load_policy_text

# Whose annotations are not for callers.
dist: Any = torch.distributed
multiprocessing: Any = torch.multiprocessing
POLICY = load_policy_text(
    "qgraph: 1\nname: p\nrules: [{match: {}, keep: high}]\n"
    "optimizer: {exp_avg: int8/row/fp32, exp_avg_sq: e5m2/1x32/ue8m0}\n"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 50), nn.Linear(50, 33))  # 33 rows: shards of 17 and 16


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int) -> None:
    for step in range(first, first + 3):
        x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()  # every process has the whole batch: the mean is the same
        optimizer.step()


def full(value: Any) -> torch.Tensor:
    whole: torch.Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def process(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model: Any = fully_shard(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    qgraph.quantize_optimizer(optimizer, POLICY, model)
    train(model, optimizer, 0)
    state = copy.deepcopy(optimizer.state_dict())
    weights = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 3)
    found = [full(p).clone() for p in model.parameters()]
    # From a state dict, on, the same again.
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(copy.deepcopy(state))  # loading takes the tensors as they are
    train(model, optimizer, 3)
    again = [full(p).clone() for p in model.parameters()]
    states = {i: {k: full(v) for k, v in s.items()} for i, s in state["state"].items()}
    result = {
        "found": found,
        "again": again,
        "bytes": qgraph.state_bytes(optimizer),
        "state": states,
    }
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_two_processes_keep_the_states_one_would(tmp_path: Path) -> None:
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    model = network()
    optimizer = qgraph.quantize_optimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), POLICY)
    train(model, optimizer, 0)
    whole = copy.deepcopy(qgraph.unpack_state_dict(optimizer.state_dict())["state"])
    train(model, optimizer, 3)
    total = 0
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert all(map(torch.equal, result["found"], result["again"]))
        assert all(map(torch.equal, result["found"], model.parameters()))
        for index, values in whole.items():
            assert all(torch.equal(values[name], result["state"][index][name]) for name in values)
        total += result["bytes"]["exp_avg"]
    assert total <= qgraph.state_bytes(optimizer)["exp_avg"] + 8  # a tensor scale a process
