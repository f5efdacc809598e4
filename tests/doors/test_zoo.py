"""Many architectures, three recipes: one training step each, and nothing left unsaid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qgraph
from qgraph.passes import Report
from tests.cases import mostly_full
from tests.doors.zoo import ZOO, Entry, make_entry
from tests.doors.zoo_steps import Step, plain_step, take_steps
from tests.doors.zoo_table import row

RECIPES = ("mxfp8", "nvfp4", "int8")
# Weights read transposed, attention not fused, experts of several kinds, scans, cross attention,
# pictures, depthwise convolutions, a product of the root module.
TELLING = ("gpt2", "gemma2", "deepseek_v3", "mamba2", "t5", "vit", "convnext", "clip")
README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("entry", mostly_full(ZOO, TELLING, lambda entry: entry.name))
def test_a_step_is_quantized_and_accounted_for(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QGRAPH_VERIFY", "1")  # each operand, against its definition and its bound
    plain = plain_step(entry)
    reports = {}
    for recipe, step in take_steps(entry, RECIPES):
        assert step.loss.isfinite()
        for name, expected in plain.gradients.items():
            found = step.gradients[name]
            assert bool(found.isfinite().all()), name
            assert bool(found.any()) or not bool(expected.any()), f"{name} gets no gradient"
        gradients = plain.gradients.items()
        assert any(not torch.equal(step.gradients[name], g) for name, g in gradients)
        reports[recipe] = check_report(step)
    assert row(entry, reports) in README, "print the table again: python -m tests.doors.zoo_table"


@pytest.mark.parametrize("entry", mostly_full(ZOO, TELLING, lambda entry: entry.name))
def test_no_product_runs_outside_of_graphs(entry: Entry) -> None:
    torch._dynamo.reset()
    model, inputs = make_entry(entry)
    qgraph.compile(model, "mxfp8", codegen=False, strict=True)
    for training in (True, False):
        model.train(training)
        with torch.set_grad_enabled(training):
            model(**inputs)
    report = qgraph.coverage(model)
    assert not report.elsewhere
    assert not report.unaudited
    assert report.quantized


def check_report(step: Step) -> Report:
    """Check that each product is quantized or says why not, and that each quantizer was looked at."""
    report = step.report
    assert report is not None
    assert not report.not_captured
    # One tensor may serve two operands, never more than the operands there are.
    operands = sum(o.format != "high" for e in report.quantized for o in e.operands)
    assert operands / 4 < report.checked <= operands
    for product in report.entries:
        assert product.status == "quantized" or product.reason
        # Only CLIP-like models multiply in the root module: pictures by texts.
        assert product.module or product.op == "matmul"
    return report
