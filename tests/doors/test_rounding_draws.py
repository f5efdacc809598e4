"""Stochastic rounding: the same bits under one seed, others at every step and place, the right mean."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

import qgraph
from tests.doors.capture import interpret
from tests.doors.mlp import MLP
from tests.doors.models import make_llama, nvfp4_policy, policy_of, run_model, token_batch
from tests.doors.reference import take_step

ALL_STOCHASTIC = """\
  - match: {op: linear}
    fprop: {input: {format: fp4, rounding: stochastic}, weight: {format: fp4, rounding: stochastic}}
    dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: {format: fp4, rounding: stochastic}}
    wgrad: {input: {format: fp4, rounding: stochastic}, grad_output: {format: fp4, rounding: stochastic}}
"""


def _train(model: nn.Module, seed: int, steps: int) -> list[Tensor]:
    """Train `model` by plain gradient descent on one batch; return each step's loss, then the weights."""
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(40, 48, generator=generator), torch.randn(40, 32, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(seed)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse_loss(model(x), target)
        torch.autograd.backward(loss)
        optimizer.step()
        seen.append(loss.detach())
    return [*seen, *(p.detach().clone() for p in model.parameters())]


def _mlp() -> MLP:
    torch.manual_seed(0)
    return MLP(48, 64, 32)


@pytest.mark.slow
def test_one_seed_gives_one_run_under_inductor() -> None:
    model = _mlp()
    start = deepcopy(model.state_dict())
    qgraph.compile(model, nvfp4_policy())
    first = _train(model, seed=5, steps=4)
    model.load_state_dict(start)
    again = _train(model, seed=5, steps=4)
    model.load_state_dict(start)
    other = _train(model, seed=6, steps=4)
    assert all(map(torch.equal, first, again))
    # The forward is rounded to nearest, so the first loss knows no seed; every later one does.
    assert [torch.equal(a, b) for a, b in zip(first[:4], other, strict=False)] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.slow
def test_two_steps_on_the_same_data_draw_anew_under_inductor() -> None:
    model = qgraph.compile(_mlp(), nvfp4_policy())
    torch.manual_seed(0)
    x = torch.randn(40, 48)
    found = []
    for _ in range(2):
        model.zero_grad()
        torch.autograd.backward(mse_loss(model(x), torch.zeros(40, 32)))
        found.append(
            [p.grad.clone() for p in model.parameters() if p.grad is not None and p.dim() == 2]
        )
    assert [torch.equal(a, b) for a, b in zip(*found, strict=True)] == [False, False]


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_step_draws_one_seed_and_every_step_another(dynamic: bool) -> None:
    model = _mlp()
    trace = interpret(model, policy_of(ALL_STOCHASTIC), dynamic=dynamic)
    seeds = []
    torch.manual_seed(3)
    for _ in range(3):
        trace.calls.clear()
        model(torch.ones(40, 48)).sum().backward()
        assert len({call.seed for call in trace.calls}) == 1
        seeds.append(trace.calls[0].seed)
    torch.manual_seed(3)
    assert seeds == [int(torch.randint(0, 2**32, (1,))) for _ in range(3)]


@pytest.mark.parametrize("bias", [False, True])
def test_every_stochastic_operand_draws_from_a_stream_of_its_own(bias: bool) -> None:
    torch.manual_seed(0)
    model = MLP(48, 64, 32, 32, bias=bias)
    trace = interpret(model, policy_of(ALL_STOCHASTIC))
    model(torch.randn(40, 48)).sum().backward()
    streams = list(trace.streams().values())
    assert len(streams) == 3 * 6 - 2  # the first layer's input needs no gradient
    assert len(set(streams)) == len(streams)


# The mean of many draws


def _gradients(role: str, rounding: str, draws: int) -> tuple[Tensor, Tensor]:
    """(sums over draws of one gradient, the gradient without rounding) of a 48 -> 32 layer.

    The layer's output gradient holds multiples of 1/128 up to 6, every block reaching 6: all block scales
    are equal, nothing saturates, and only stochastic rounding stands between the two.
    """
    torch.manual_seed(0)
    model = MLP(48, 32, bias=False)
    weight = model.weight(0)
    word = f"{role}: {{grad_output: {{format: fp4, rounding: {rounding}}}}}"
    interpret(model, policy_of(f"  - {{match: {{op: linear}}, {word}}}"))
    x = torch.randn(64, 48).requires_grad_()
    g = torch.randint(-768, 769, (64, 32)) / 128
    g[::16], g[:, ::16] = 6, 6
    output = model(x)
    wanted = x if role == "dgrad" else weight
    total = torch.zeros(draws, *wanted.shape)
    for i in range(draws):
        if i:
            output = model(x)
        total[i] = torch.autograd.grad(output, [x, weight], g)[0 if role == "dgrad" else 1]
    want = g @ weight if role == "dgrad" else g.T @ x
    return total.detach().double(), want.detach().double()


@pytest.mark.parametrize("role", ["dgrad", "wgrad"])
def test_the_mean_of_draws_approaches_the_unrounded_gradient(role: str) -> None:
    draws, want = _gradients(role, "stochastic", 256)
    errors = [((draws[:n].mean(0) - want).norm() / want.norm()).item() for n in (16, 256)]
    # 16-fold draws, a 4-fold smaller error. It is the norm of over 1000 sums of independent terms, within
    # 1 / sqrt(2 · 1000) = 2 % of its mean at each end; five times that, on both, is 1.2.
    assert 4 / 1.2 < errors[0] / errors[1] < 4 * 1.2
    nearest, _ = _gradients(role, "nearest", 2)
    assert torch.equal(nearest[0], nearest[1])
    assert (nearest[0] - want).norm() / want.norm() > 4 * errors[1]


# Recomputed forwards


@pytest.mark.parametrize("rules", ["nvfp4", "all stochastic"])
def test_gradient_checkpointing_changes_no_bit(rules: str) -> None:
    policy = nvfp4_policy() if rules == "nvfp4" else policy_of(ALL_STOCHASTIC)
    batch = token_batch()
    found = []
    for checkpointing in (False, True):
        model: Any = make_llama(num_hidden_layers=1)
        model(batch)
        if checkpointing:
            model.gradient_checkpointing_enable()
        trace = interpret(model, policy)
        run = run_model(model, seed=7, input_ids=batch, labels=batch)
        other = run_model(model, seed=8, input_ids=batch, labels=batch)
        assert any(not torch.equal(run[name], other[name]) for name in run)
        found.append((run, len(trace.calls)))
    (plain, few), (recomputed, many) = found
    assert [name for name in plain if not torch.equal(plain[name], recomputed[name])] == []
    assert many > few  # it did recompute: quantizations of the forward ran again in the backward


class _Checkpointed(nn.Module):
    """An MLP that keeps only its input."""

    def __init__(self, inner: MLP) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return result


@pytest.mark.slow
def test_checkpointing_sees_the_forwards_draws_under_inductor() -> None:
    model = _mlp()
    wrapped = _Checkpointed(deepcopy(model))
    x, target = torch.randn(40, 48), torch.randn(40, 32)
    policy = policy_of(ALL_STOCHASTIC)
    want = take_step(qgraph.compile(model, policy), x, target, seed=4)
    got = take_step(qgraph.compile(wrapped, policy), x, target, seed=4)
    assert torch.equal(got.output, want.output)
    inner = {name.removeprefix("inner."): value for name, value in got.gradients.items()}
    assert [
        name for name, value in want.gradients.items() if not torch.equal(value, inner[name])
    ] == []
