"""What `qgraph cost` says runs natively is what the passes do: every recipe, every device, one table."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch.fx import Graph

from qgraph.compat.fake import FakeTensorMode
from qgraph.doors.aot import Capture, capture
from qgraph.models.examples import example_inputs
from qgraph.ops import DEVICES, at_hand, choose, find_device, machine_of
from qgraph.passes import Plan, Site, find_sites, multiply_of, plan_sites, quantizes_attention
from qgraph.passes.graph.places import Layer
from qgraph.policy import Policy, load_policy, load_policy_text
from qgraph.policy.file.load import RECIPES
from qgraph.predict.offline.retarget import move_to_gpu
from qgraph.predict.offline.standin import standing_in
from qgraph.predict.speed import runs_as
from tests.passes.graphs import rewrite

pytest.importorskip("triton")
NAMES = sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if "yaml" in file.name)
APART = "{qgraph: 1, name: a, rules: [{match: {op: [qk, pv]}, fprop: {lhs: mxfp4, rhs: mxfp4}}]}"
# The same numbers in formats that no recipe has: what only some devices, or none, multiply.
OTHERS = {
    "fp8 by row": ("e4m3/row/fp32",) * 2,
    "mxfp4": ("e2m1/1x32/ue8m0-rceil",) * 2,
    "fp8 with int8": ("e4m3/tensor/fp32", "int8/row/fp32"),
    "int4": ("int4/row/fp32",) * 2,
}


def other(name: str) -> Policy:
    left, right = OTHERS[name]
    every = "fprop: {input: %s, weight: %s}, dgrad: {grad_output: %s, weight: %s}" % (
        (left, right) * 2
    )
    return load_policy_text(f"qgraph: 1\nname: o\nrules:\n  - {{match: {{op: linear}}, {every}}}\n")


@cache
def captured(apart: bool) -> Capture:
    """The step of a small Llama of two blocks, some of whose products are large enough to pay."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=4096, intermediate_size=4096, num_hidden_layers=2,
        num_attention_heads=32, num_key_value_heads=4,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model: Any = transformers.LlamaForCausalLM(config).train()
    finally:
        torch.set_default_dtype(before)
    inputs = example_inputs(model, 1, 2048)
    fakes = {name: mode.from_tensor(value) for name, value in inputs.items()}
    return capture(model, fakes, load_policy_text(APART) if apart else None)


def takes_apart(policy: Policy) -> bool:
    whole = Layer(module="model.layers.0.self_attn", block=0, block_count=2)
    return quantizes_attention(policy, whole)


@cache
def graph_on(device: str, apart: bool) -> Graph:
    """The graph of the step as a CPU has it, or a GPU."""
    graph = copy.deepcopy(captured(apart).graph)
    if device != "cpu":
        move_to_gpu(graph)
    return graph


@cache
def sites_of(apart: bool) -> tuple[Site, ...]:
    """The products that costs are predicted from: of the graph as it was captured, on a CPU."""
    return find_sites(copy.deepcopy(captured(apart).graph), captured(apart).facts)


def lowered(policy: Policy, device: str) -> list[Plan]:
    """What the passes do with each product on a device, under the target native."""
    apart = takes_apart(policy)
    graph = copy.deepcopy(graph_on(device if device == "cpu" else "gpu", apart))
    return list(rewrite(graph, policy, captured(apart).facts, target="native"))


def predicted(policy: Policy) -> list[Plan]:
    """The plans that costs are predicted from."""
    apart = takes_apart(policy)
    return list(plan_sites(sites_of(apart), policy, captured(apart).facts))


def disagreements(policy: Policy, device: str) -> list[str]:
    machine = at_hand("cpu") if device == "cpu" else machine_of(find_device(device))
    done = {plan.site.node.name: plan for plan in lowered(policy, device)}
    wrong = []
    for plan in predicted(policy):
        if plan.status != "quantized":
            continue
        kind, reason = runs_as(plan, machine)
        chosen = choose(multiply_of(plan), machine)
        says = f"emulated: {reason}" if chosen.falls_back else f"native {chosen.kernel.name}"
        assert chosen.falls_back == bool(reason)
        assert chosen.falls_back == (kind == "bf16")
        does = done[plan.site.node.name].lowering
        if says != does:
            wrong.append(f"{policy.name}, {plan.site.node.name}: cost says {says}, it is {does}")
    return wrong


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_a_product_runs_as_its_cost_is_predicted(device: str) -> None:
    policies = [load_policy(name) for name in NAMES] + [other(name) for name in OTHERS]
    if device == "cpu":
        wrong = [line for policy in policies for line in disagreements(policy, device)]
    else:
        with standing_in(find_device(device)):
            wrong = [line for policy in policies for line in disagreements(policy, device)]
    assert not wrong


def ways(name: str, device: str) -> set[str]:
    with standing_in(find_device(device)):
        return {p.lowering for p in lowered(load_policy(name), device) if p.status == "quantized"}


def test_what_was_predicted_and_not_done() -> None:
    # The product leaves these to emulation, though the matrix units could multiply them.
    assert ways("int8", "h100") == {
        "emulated: no native int8 product on a GPU that is faster: torch's takes as long as one of bfloat16"
    }
    assert ways("mxfp4", "b200") == {"emulated: no native product of e2m1 and e2m1"}
    # And these it multiplies: where the product is large enough, and in NVFP4 on what has units for it.
    assert ways("fp8", "h100") == {
        "native fp8", "emulated: no native fp8 product on a GPU that pays below 69 GFLOP"
    }  # fmt: skip
    assert ways("nvfp4", "b200") == {"native nvfp4"}
    assert torch.cuda.is_available() or at_hand("cuda").capability == (0, 0)
