"""The two front doors run the same numbers, and what torch gives privately is still what we rely on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qgraph
from qgraph.doors.aot import capture, compile_capture
from qgraph.doors.converting import analyze
from qgraph.errors import ModelError, PolicyError
from qgraph.models.examples import example_inputs
from qgraph.models.load import load_model
from qgraph.passes import names_of, run_passes
from qgraph.policy import load_policy, load_policy_text
from tests.doors.models import one_block


def test_both_doors_compute_the_same_bits() -> None:
    torch._dynamo.reset()
    model, inputs = one_block()
    policy = load_policy("nvfp4_naive")
    jit = qgraph.compile(copy.deepcopy(model), policy)
    torch.manual_seed(1)
    first = jit(**inputs)
    first.loss.backward()
    captured = capture(model, inputs)
    assert len(captured.parameters) == len(list(model.parameters()))
    run_passes(captured.step(policy), names_of("joint", "lower", "watch"))
    run = compile_capture(captured)
    torch.manual_seed(1)
    second = run(**inputs)
    second.loss.backward()
    assert type(second) is type(first)
    assert torch.equal(first.loss, second.loss)
    for one, two in zip(jit.parameters(), model.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad)


def test_convert_returns_the_model_with_its_report_and_graphs() -> None:
    torch._dynamo.reset()
    model = load_model("preset:tiny-llama,layers=2")
    names = list(model.state_dict())
    inputs = example_inputs(model, 2, 32)
    converted = qgraph.convert(model, "nvfp4", inputs)
    assert converted is model
    assert list(converted.state_dict()) == names
    found = qgraph.conversion(converted)
    assert "qgraph.fake_quant" in found.graph_after
    assert "qgraph.hadamard" in found.graph_after
    assert "qgraph." not in found.graph_before
    assert found.inputs["input_ids"] == [2, 32]
    assert model.config.use_cache  # left as it was


def test_the_string_backend_needs_no_import() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    x = torch.randn(16, 32)
    plain = model(x)
    compiled = torch.compile(model, backend="qgraph", options={"policy": "int8"})
    quantized = compiled(x)
    quantized.sum().backward()
    assert not torch.equal(plain, quantized)
    assert torch.allclose(plain, quantized, atol=0.1)


def test_the_string_backend_names_an_unknown_option() -> None:
    model = nn.Linear(16, 16)
    compiled = torch.compile(model, backend="qgraph", options={"polcy": "int8"})
    with pytest.raises(Exception, match="has no option 'polcy'"):
        compiled(torch.randn(16, 16))


def test_a_policy_whose_rules_match_nothing_is_an_error() -> None:
    torch._dynamo.reset()
    text = """
qgraph: 1
name: nowhere
formats:
  f: {element: int8, block: row, scale: fp32}
rules:
  - match: {module: no_such_layer}
    fprop: {input: f}
"""
    model = load_model("preset:tiny-llama,layers=2")
    # transformers up to 5.17 multiplies positions by frequencies as matrices: the fiftieth.
    with pytest.raises(
        PolicyError, match=r"none of the model's (49|50) products is quantized: .*no rule matches"
    ):
        analyze(model, load_policy_text(text, "p.yaml"), example_inputs(model, 1, 16))


def test_a_block_the_model_does_not_have_is_named() -> None:
    torch._dynamo.reset()
    text = """
qgraph: 1
name: far
formats:
  f: {element: int8, block: row, scale: fp32}
rules:
  - match: {op: linear, blocks: [40]}
    fprop: {input: f}
"""
    model = load_model("preset:tiny-llama,layers=2")
    with pytest.raises(PolicyError) as caught:
        analyze(model, load_policy_text(text, "p.yaml"), example_inputs(model, 1, 16))
    assert str(caught.value) == (
        "p.yaml:7:34: rules[0].match.blocks[0]: block 40 is out of range\n"
        "  fix: this model has 2 blocks: write 0 to 1"
    )


def test_compile_takes_only_modules_and_chooses_the_backend() -> None:
    with pytest.raises(ModelError, match=r"takes a torch\.nn\.Module, not str"):
        qgraph.compile("llama", "nvfp4")  # type: ignore[type-var]
    with pytest.raises(ModelError, match="chooses the backend itself"):
        qgraph.compile(nn.Linear(2, 2), "int8", backend="eager")
    with pytest.raises(ModelError, match="was not compiled by qgraph"):
        qgraph.coverage(nn.Linear(2, 2))
