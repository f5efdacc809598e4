"""Twelve architectures: captured whole, every product accounted for, and a step under nvfp4."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

import qgraph
from qgraph.doors.converting import Conversion, analyze
from qgraph.passes import Report, make_rows, make_totals, report_text
from qgraph.passes.report.entries import Entry
from qgraph.policy import load_policy
from tests.cases import NO_EXPERTS, has_experts, mostly_full
from tests.doors.architectures import MODELS, make

# How many products one line of graph text holds, written apart from the library's own list.
PRODUCT = re.compile(
    r"= (aten\.(?:mm|bmm|addmm|baddbmm|convolution|convolution_backward|_grouped_mm"
    r"|_scaled_dot_product\w+)|transformers\.grouped_mm_fallback(?:_backward)?)\("
)
UNQUANTIZED = {
    "fused attention: a rule on qk or pv would take it apart",
    "a depthwise convolution sums over the taps of its kernel only: blocks do not fit",
    "no rule matches",
}


def identity(entry: Entry) -> tuple[object, ...]:
    return (entry.module, entry.role, entry.op, entry.shape, entry.operands, entry.status)


# Weights read transposed, experts, a scan, convolutions: the zoo has the others' like.
TELLING = ("gpt2", "mixtral", "mamba2", "resnet")


@pytest.fixture(scope="module", params=mostly_full(MODELS, TELLING))
def both(request: pytest.FixtureRequest) -> tuple[Conversion, Report, float]:
    """One model through both front doors: what each found, and the loss of one step."""
    if request.param == "mixtral" and not has_experts():
        pytest.skip(NO_EXPERTS)
    torch._dynamo.reset()
    model, inputs = make(request.param)
    found = analyze(model, load_policy("nvfp4"), inputs)
    qgraph.compile(model, "nvfp4", codegen=False)
    torch.manual_seed(0)
    loss = model(**inputs).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    assert sum(g is not None and bool(g.any()) for g in gradients) > len(gradients) // 2
    return found, qgraph.coverage(model), float(loss.detach())


@pytest.mark.filterwarnings("ignore::qgraph.QGraphWarning")  # resnet has convolutions only
def test_both_doors_list_the_same_sites(both: tuple[Conversion, Report, float]) -> None:
    found, report, loss = both
    assert Counter(map(identity, found.report.entries)) == Counter(map(identity, report.entries))
    assert 0 < loss < 20  # neither NaN nor infinite; of 20 nats no vocabulary here is guessed worse


@pytest.mark.filterwarnings("ignore::qgraph.QGraphWarning")
def test_every_product_of_the_graph_is_in_one_row(both: tuple[Conversion, Report, float]) -> None:
    found, _, _ = both
    names = Counter(match[1] for match in PRODUCT.finditer(found.graph_before))
    plain = sum(names[f"aten.{name}"] for name in ("mm", "bmm", "addmm", "baddbmm"))
    entries = found.report.entries
    assert sum(entry.op in ("linear", "matmul", "qk", "pv") for entry in entries) == plain
    fused = sum(count for name, count in names.items() if "scaled_dot_product" in name)
    assert sum(entry.op == "sdpa" for entry in entries) == fused
    forward = names["aten.convolution"]
    convolutions = [entry.role for entry in entries if entry.op == "conv"]
    assert convolutions.count("fprop") == forward
    assert convolutions.count("wgrad") == names["aten.convolution_backward"]
    assert sum(row.count for row in make_rows(entries)) == len(entries)


@pytest.mark.filterwarnings("ignore::qgraph.QGraphWarning")
def test_what_is_not_quantized_says_why(both: tuple[Conversion, Report, float]) -> None:
    found, _, _ = both
    for entry in found.report.entries:
        if entry.status == "quantized":
            assert entry.op in ("linear", "experts", "conv")
        else:
            assert entry.reason in UNQUANTIZED or entry.reason.startswith("kept: rule ")
    totals = make_totals(found.report.entries)
    assert sum(totals["formats"].values()) == pytest.approx(1)
    text = report_text(found.report, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(entry.module for entry in found.report.entries)


@pytest.mark.filterwarnings("ignore::qgraph.QGraphWarning")
def test_each_weight_product_has_its_three_roles(both: tuple[Conversion, Report, float]) -> None:
    found, _, _ = both
    linear = [e for e in found.report.entries if e.op == "linear"]
    per_role = {
        role: Counter(e.module for e in linear if e.role == role) for role in ("fprop", "wgrad")
    }
    assert per_role["fprop"] == per_role["wgrad"]
    for entry in linear:
        kinds = {"fprop": {"input", "weight"}, "dgrad": {"grad_output", "weight"}}
        assert set(entry.operand_kinds) == kinds.get(entry.role, {"grad_output", "input"})
