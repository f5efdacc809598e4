"""Random small models: the report is what ran, by the audit, and values are those of an eager oracle."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import qgraph
from tests.seams.small_modules import (
    CALLS,
    HEADS,
    KINDS,
    POLICY,
    VOCABULARY,
    Model,
    Part,
    Wrapper,
    draw,
)

ALWAYS, FULL = 40, 1000  # draws; each is compiled anew
EACH = 20  # of a test's case


def run(model: Any, ids: Tensor, call: str) -> Tensor:
    """Return what `model` computes when it is called in this way."""
    if call == "forward":
        found = model.forward(ids)
    elif call == "functional":
        fast = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        found = torch.func.functional_call(model, fast, (ids,))
    elif call == "wrapper":
        outer = Wrapper()
        outer.module = model
        found = outer(ids)
    elif call == "no grad":
        with torch.no_grad():
            found = model.eval()(ids)
    else:
        found = model(ids)
        found = model(ids) if call == "twice" else found
    return found  # type: ignore[no-any-return]


def check(number: int) -> None:
    kinds, head, call = draw(number)
    torch._dynamo.reset()
    torch.manual_seed(number)
    model = Model(kinds, head)
    oracle = copy.deepcopy(model)
    for part in oracle.modules():
        if isinstance(part, Part):
            part.eager = True
    qgraph.compile(model, POLICY, codegen=False)
    ids = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(number))
    what = f"draw {number}: {kinds}, head {head}, {call}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qgraph.QGraphWarning)
        found = run(model, ids, call)
        if found.requires_grad:
            found.sum().backward()
    # With one eager part in a model, Dynamo may end a graph inside a sum that it fused otherwise before.
    assert torch.equal(found, oracle(ids)), what
    report = qgraph.coverage(model)
    forward = [e for e in report.entries if e.role == "fprop" and "makes a weight" not in e.reason]
    quantized, kept, elsewhere = model.expected()
    assert Counter(e.module for e in forward if e.status == "quantized") == quantized, what
    assert Counter(e.module for e in forward if e.status == "kept") == kept, what
    assert {f"{e.module} {e.op}" for e in report.elsewhere} == elsewhere, what


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(start, marks=() if start < ALWAYS else pytest.mark.full)
        for start in range(0, FULL, EACH)
    ],
)
def test_the_report_is_what_ran_and_values_are_the_oracles(first: int) -> None:
    for number in range(first, first + EACH):
        check(number)


def test_the_draws_have_every_kind() -> None:
    draws = [draw(number) for number in range(ALWAYS)]
    seen = Counter(kind for kinds, _, _ in draws for kind in kinds)
    seen += Counter(head for _, head, _ in draws) + Counter(call for _, _, call in draws)
    print("draws by kind:", dict(sorted(seen.items())))
    assert {*seen} == {*KINDS, *HEADS, *CALLS}
    assert min(seen.values()) >= 3
