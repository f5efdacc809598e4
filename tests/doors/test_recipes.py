"""Every recipe on a small Llama: it trains, and its page says what the report says."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, ResNetConfig
from transformers import ResNetForImageClassification as ResNet

import qgraph
from qgraph.doors.aot import Capture, capture
from qgraph.errors import PolicyError, QGraphWarning
from qgraph.numerics import fake_quant
from qgraph.passes import Report, run_passes
from qgraph.passes.report.table import operand_text
from qgraph.policy import GROUPS, ROLES, Group, Policy, load_policy, recipe_names, unused_rules
from tests.cases import mostly_full
from tests.doors.models import make_llama, token_batch
from tests.policy.sites import stack

PARTS = {name: Group(name=name, modules=globs) for name, globs in GROUPS.items()}


@pytest.fixture(scope="module")
def captured() -> Capture:
    """The training step of a Llama of three blocks."""
    ids = token_batch()
    found = capture(make_llama(num_hidden_layers=3), {"input_ids": ids, "labels": ids})
    found.products()
    return found


def claimed(policy: Policy, module: str, role: str) -> str:
    """The page's words for a product of a linear layer in a block that is not kept."""
    part = next((name for name in PARTS if PARTS[name].names(module)), "")
    words = policy.claims.get(part) or ({} if part == "head" else policy.claims.get("linear", {}))
    return words.get(role, "high")


def in_order(words: str) -> list[str]:
    return sorted(words.split(", "))


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_page_says_what_the_report_says(recipe: str, captured: Capture) -> None:
    policy = load_policy(recipe)
    report = Report(policy=policy)
    report.add(run_passes(captured.step(policy), ["plan"]))
    assert not unused_rules(policy, report.entries)
    seen = set()
    for entry in report.entries:
        if entry.op != "linear" or entry.block not in (1, None):  # first and last may be kept
            continue
        words = operand_text(entry) if entry.status == "quantized" else "high"
        assert in_order(words) == in_order(claimed(policy, entry.module, entry.role)), entry
        part = next(name for name in PARTS if PARTS[name].names(entry.module))
        seen.add((part, entry.role))
    assert seen == {(part, role) for part in PARTS for role in ROLES}
    others = [entry for entry in report.entries if entry.op != "linear"]
    assert others
    assert not [entry for entry in others if entry.status == "quantized"]


# A stash, optimizer states, amax histories, integers, parameters, a schedule, signs of each step.
TELLING = ("dsq", "efficient_m4", "fp8_lm", "int8", "layercast", "nvfp4_late", "quartet")


@pytest.mark.parametrize("recipe", mostly_full(recipe_names(), TELLING))
def test_a_recipe_trains_with_all_of_its_keys(recipe: str) -> None:
    torch._dynamo.reset()
    policy = load_policy(recipe)
    model = qgraph.compile(make_llama(num_hidden_layers=3), policy, codegen=False)
    parameters = list(model.parameters())
    optimizer = qgraph.quantize_optimizer(torch.optim.AdamW(parameters, lr=3e-3), policy, model)
    run = qgraph.Run(model, steps=20, say=lambda text: None)
    ids, losses = token_batch(), []
    torch.manual_seed(0)
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) == 1:  # a schedule's end may be high
            first = qgraph.coverage(model)
        run.step(loss)
    assert losses[-1] < 0.95 * losses[0]  # one batch, again and again
    if recipe != "high":
        assert first.quantized or policy.optimizer or policy.parameters
    assert any(t.stored < t.bytes for ts in first.saved.values() for t in ts) == bool(policy.stash)
    assert (parameters[1].dtype == torch.bfloat16) == (policy.parameters is not None)
    bytes_of, size = qgraph.state_bytes(optimizer), 4 * sum(p.numel() for p in parameters)
    storage = policy.optimizer.storage if policy.optimizer else ""
    for name, stored in policy.optimizer.states.items() if policy.optimizer else ():
        if storage == "packed":
            assert bytes_of[name] < 0.6 * size
            continue
        state = optimizer.state[model.model.layers[0].mlp.up_proj.weight][name]
        assert stored.format is not None
        assert torch.equal(fake_quant(state, stored.format, -1), state)
    if policy.schedule:  # both end with the forward high
        assert not [e for e in qgraph.coverage(model).quantized if e.role == "fprop"]


@pytest.mark.parametrize(
    ("recipe", "depth", "kept"),
    [
        ("nvfp4_12b", 62, [0, 1, *range(54, 62)]),
        ("nvfp4_8b", 52, [*range(44, 52)]),
        ("nvfp4_1b2", 20, [*range(16, 20)]),
        ("nvfp4_no_keep", 20, []),
    ],
)
def test_nvfp4_of_the_papers_depths_keeps_the_papers_blocks(
    recipe: str, depth: int, kept: list[int]
) -> None:
    rules = load_policy(recipe).rules
    found = [
        site.block
        for site in stack(depth)
        if next(rule for rule in rules if rule.match.matches(site)).keep
    ]
    assert found == kept


def test_a_model_without_the_parts_a_recipe_names_is_refused_before_its_first_step() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    with pytest.raises(PolicyError) as caught:
        qgraph.compile(ResNet(config), "fp4_ffn")
    assert "fp4_ffn.yaml:" in str(caught.value)
    assert "rules[0].match.group: this model has no module in the group ffn" in str(caught.value)
    assert "\n  fix: it stands for " in str(caught.value)


def test_a_part_the_model_lacks_is_warned_of_when_others_are_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("qgraph: 1\nname: mine\nextends: fp4_ffn\ngroups: {ffn: ['*.mixer.*']}\n")
    config = MambaConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0
    )
    with pytest.warns(QGraphWarning, match="rule 3: this model has no module in the group attent"):
        qgraph.compile(MambaForCausalLM(config), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qgraph.compile(make_llama(), "fp4_ffn")
