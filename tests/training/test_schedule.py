"""Switching a model's policy as it trains: what runs, what it costs, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

import qgraph
from qgraph.doors.jit import dynamo_backend
from qgraph.errors import ModelError, PolicyError, QGraphWarning
from qgraph.policy import load_policy_text
from qgraph.training.schedule import Schedule
from tests.training.models import NVFP4, llama, train_step

Trained = tuple[list[float], list[Tensor], list[str], Any]


def trained(schedule: str, steps: int = 5) -> Trained:
    """Losses, the state of the random generator after each step, what was said, and the model."""
    torch._dynamo.reset()
    model = qgraph.compile(llama(), load_policy_text(NVFP4 + schedule), codegen=False)
    said: list[str] = []
    run = qgraph.Run(model, steps=steps, say=said.append)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    losses, states = [], []
    for _ in range(steps):
        loss = train_step(model, optimizer)
        run.step(loss)
        losses.append(float(loss.detach()))
        states.append(torch.get_rng_state())
    return losses, states, said, model


def quantized(model: Any) -> dict[str, int]:
    entries = qgraph.coverage(model).quantized
    return {role: sum(e.role == role for e in entries) for role in ("fprop", "dgrad", "wgrad")}


@pytest.fixture(scope="module")
def plain() -> Trained:
    return trained("")


def test_only_fprop_goes_high_at_82_percent_and_the_run_before_is_bitwise_the_same(
    plain: Trained,
) -> None:
    plain_losses, plain_states, nothing, model = plain
    assert nothing == []
    assert quantized(model) == {"fprop": 7, "dgrad": 7, "wgrad": 7}
    late, states, said, model = trained("schedule: [{at: 82%, set: {fprop: high}}]\n", steps=6)
    assert quantized(model) == {"fprop": 0, "dgrad": 7, "wgrad": 7}
    (entry,) = {
        e.reason for e in qgraph.coverage(model).entries if e.role == "fprop" and e.rule
    } - {"kept: rule 1 (module lm_head)"}
    assert entry == "schedule[0] sets fprop high"
    # Five of six steps are 82 % and more: the sixth alone is another.
    assert late[:5] == plain_losses
    assert all(map(torch.equal, states, plain_states))
    switched, counted = said
    assert switched == (
        "policy mine, after 5 of 6 steps: schedule[0] (at 82%: set fprop high) is on; "
        "the next step compiles anew"
    )
    assert counted == "step 6: 14 of 30 products quantized now: 0 fprop, 7 dgrad, 7 wgrad"


def test_a_cycle_compiles_each_stage_once_and_random_draws_go_on(plain: Trained) -> None:
    plain_losses, plain_states, _, _ = plain
    losses, states, said, model = trained(
        "schedule: [{at: 1, every: 2, for: 1, set: {fprop: high, dgrad: high}}]\n"
    )
    assert losses[0] == plain_losses[0]
    assert losses[1] != plain_losses[1]
    ends = [line.rpartition("; ")[2] for line in said if line.startswith("policy")]
    assert ends[0] == "the next step compiles anew"
    assert ends[1:] == 3 * ["back to code that was compiled before"]
    # Each step draws once, whichever stage it is in.
    assert all(map(torch.equal, states, plain_states))
    assert qgraph.coverage(model).graphs == 1


def test_a_schedule_that_nothing_runs_is_told() -> None:
    torch._dynamo.reset()
    policy = load_policy_text(f"{NVFP4}schedule: [{{at: 2, set: high}}]\n")
    model = qgraph.compile(llama(), policy, codegen=False)
    with pytest.warns(QGraphWarning, match="nothing counts the steps of this run"):
        train_step(model, torch.optim.SGD(model.parameters(), 0.1))


def test_a_schedule_past_the_end_is_refused_before_the_first_step() -> None:
    policy = load_policy_text(f"{NVFP4}schedule: [{{at: 9, set: high}}]\n", file="p.yaml")
    with pytest.raises(PolicyError, match=r"p.yaml:14:17: schedule\[0\].at: 9 is past the end"):
        qgraph.Run(llama(), policy, steps=9)


def test_the_backend_by_name_refuses_what_it_cannot_switch() -> None:
    policy = load_policy_text(f"{NVFP4}schedule: [{{at: 2, set: high}}]\n")
    with pytest.raises(ModelError, match="this one has a schedule or monitors"):
        dynamo_backend(GraphModule({}, Graph()), [], options={"policy": policy})


def test_a_plateau_is_two_stretches_of_about_the_same_loss() -> None:
    text = "schedule: [{on: plateau, patience: 3, improvement: 1%, for: 2, set: high}]\n"
    policy = load_policy_text(NVFP4 + text)
    schedule = Schedule(policy, 100)
    falling = [5.0, 4.0, 3.0, 2.5, 2.2, 2.0]
    for done, loss in enumerate(falling, 1):
        assert schedule.see_loss(done, loss) == []
    assert [len(schedule.see_loss(done, 2.0)) for done in range(7, 13)] == [0, 0, 0, 0, 1, 0]
    assert [done for done in range(14) if schedule.active(done)] == [11, 12]
    again = Schedule(policy, 100)
    again.restore(schedule.state())
    assert again.state() == schedule.state()
    assert again.active(11) == (1,)


def test_a_plateau_without_a_loss_is_told() -> None:
    policy = load_policy_text(f"{NVFP4}schedule: [{{on: plateau, set: high}}]\n")
    run = qgraph.Run(llama(), policy, steps=9)
    with pytest.raises(PolicyError, match="it watches the loss, and step 1 gave none"):
        run.step()
