"""Monitors: the numbers they watch, when they trip, and what is said when there is none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qgraph
from qgraph.errors import PolicyError
from qgraph.policy import load_policy_text
from qgraph.training.monitors import Monitors
from qgraph.training.signals import logit_sharpness, sharpness_of, spike_share
from tests.training.models import NVFP4, llama


def monitors(text: str, model: nn.Module | None = None) -> Monitors:
    policy = load_policy_text(f"{NVFP4}monitors:\n  - {{{text}}}\n", file="p.yaml")
    return Monitors(policy.monitors, model or nn.Linear(4, 4))


def phi(logits: Tensor, moved: Tensor, labels: Tensor) -> float:
    before, after = (functional.cross_entropy(z, labels, reduction="none") for z in (logits, moved))
    return float((100 * (after - before) / (1 + before)).mean())


@pytest.mark.parametrize("epsilon", [5e-4, 1e-2, 0.1])
def test_sharpness_is_the_largest_in_the_box(epsilon: float) -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(7, 11), torch.randint(0, 11, (7,))
    found = logit_sharpness(logits, labels, epsilon)
    bound = epsilon * (logits.abs() + 1)
    delta = torch.zeros_like(logits, requires_grad=True)
    for _ in range(20):  # projected ascent by signs
        loss = functional.cross_entropy(logits + delta, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, delta)
        moved = delta.detach() + bound * gradient.sign()
        delta = torch.minimum(torch.maximum(moved, -bound), bound).requires_grad_()
    assert found == pytest.approx(phi(logits, logits + delta.detach(), labels), rel=1e-5)
    for _ in range(50):  # no corner is worse
        corner = bound * torch.randint(0, 2, logits.shape).mul(2).sub(1)
        assert phi(logits, logits + corner, labels) < found


def test_sharpness_leaves_out_ignored_labels_and_shifts_those_of_language_models() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 5, 9), torch.tensor([[3, -100, 1, 7, 2]])
    result = {"logits": logits, "loss": torch.zeros(())}
    wanted = logit_sharpness(logits[0, [1, 2, 3]], labels[0, [2, 3, 4]])
    assert sharpness_of(llama(), result, labels) == pytest.approx(wanted)
    assert sharpness_of(nn.Linear(1, 1), result, labels) == pytest.approx(
        logit_sharpness(logits, labels)
    )
    assert sharpness_of(llama(), {"loss": 0}, labels) is None


def test_a_spike_is_a_loss_far_above_those_before() -> None:
    watch = monitors("watch: loss_spike, above: 7, window: 20")
    losses = [2.0 + 0.1 * math.sin(step) for step in range(30)]
    assert not any(watch.check(step, {"loss": loss}) for step, loss in enumerate(losses, 1))
    assert not watch.check(31, {"loss": 2.4})
    (trip,) = watch.check(32, {"loss": 4.0})
    assert trip.text.startswith("loss_spike: the loss is ")
    assert trip.value > 7
    (nan,) = watch.check(33, {"loss": math.nan})
    assert nan.value == math.inf
    again = monitors("watch: loss_spike, above: 7, window: 20")
    again.restore(watch.state())
    assert [t.text for t in again.check(34, {"loss": 9.0})] == [
        t.text for t in watch.check(34, {"loss": 9.0})
    ]


def test_sharpness_is_a_mean_over_tokens_of_each_ones_own_ratio() -> None:
    torch.manual_seed(0)
    logits, labels = 4 * torch.randn(6, 9), torch.randint(0, 9, (6,))
    alone = [logit_sharpness(logits[i : i + 1], labels[i : i + 1]) for i in range(6)]
    assert max(alone) > 2 * min(alone)  # a ratio of means would weigh tokens of a high loss more
    assert logit_sharpness(logits, labels) == pytest.approx(sum(alone) / 6)


def test_spikes_are_steps_at_which_a_monitor_would_trip() -> None:
    torch.manual_seed(0)
    losses = (2 + 0.1 * torch.randn(200)).tolist()
    losses[60], losses[90], losses[120] = 9.0, math.nan, math.inf
    # Of 20 losses the sample's deviation is 2.6% above their own: 3 and 3.08 of these are between.
    losses[150] = spike_at(losses[:150], 20, 3.04)
    watch = monitors("watch: loss_spike, above: 3, window: 20")
    tripped = [s for s, loss in enumerate(losses) if watch.check(s + 1, {"loss": loss})]
    assert {60, 90, 120, 150} <= {*tripped}
    assert min(tripped) >= 20
    assert spike_share(losses, 20, 3.0) == len(tripped) / 180
    assert spike_share(losses[:20], 20, 3.0) == 0


def spike_at(before: list[float], window: int, deviations: float) -> float:
    """Return the loss that lies so many deviations over the last finite ones."""
    finite = torch.tensor([loss for loss in before if math.isfinite(loss)][-window:]).double()
    return float(finite.mean() + deviations * finite.std(correction=0))


def test_a_monitor_looks_as_often_as_it_says() -> None:
    watch = monitors("watch: wgrad_error, above: 20%, every: 5")
    assert [step for step in range(1, 11) if watch.due(step, "wgrad_error")] == [5, 10]
    assert watch.check(4, {}) == []
    assert watch.check(5, {"wgrad_error": 0.2}) == []
    (trip,) = watch.check(5, {"wgrad_error": 0.3}, "layers.0.up")
    assert "gradient is 0.3 (layers.0.up), the limit is 0.2" in trip.text


def test_a_monitor_without_its_signal_is_told_before_the_first_step() -> None:
    policy = load_policy_text(f"{NVFP4}monitors: [{{watch: logit_sharpness}}]\n", file="p.yaml")
    with pytest.raises(
        PolicyError, match=r"p.yaml:14:12: monitors\[0\].watch: Linear takes no labels"
    ):
        qgraph.Run(nn.Linear(4, 4), policy, steps=5)
    with pytest.raises(PolicyError, match="step 1 gave no loss to watch"):
        monitors("watch: loss_spike").check(1, {"loss": None})


def test_a_stop_ends_the_run_s_wish_to_go_on() -> None:
    policy = load_policy_text(f"{NVFP4}monitors: [{{watch: loss_spike, action: stop}}]\n")
    said: list[str] = []
    run = qgraph.Run(nn.Linear(4, 4), policy, steps=50, say=said.append)
    for step in range(20):
        run.step(1.0 + 0.01 * (step % 3))
    assert run.stopped == ""
    run.step(3.0)
    assert run.stopped.startswith("loss_spike: the loss is ")
    assert said == [f"step 21: {run.stopped}"]
