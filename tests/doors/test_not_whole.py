"""Models that cannot be captured whole: one message that says which of its kinds it is, and its cure."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph.compat import fake
from qgraph.errors import ModelError


class Stubborn(nn.Module):
    """A product, and what the case does before it."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case, self.layer = case, nn.Linear(16, 16)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.case == "a value decides":
            x = x if x.sum() > 0 else -x
        elif self.case == "a size decides":
            x = x * torch.unique_consecutive(x[0] > 0).numel()
        elif self.case == "wants more" and labels is None:
            raise ValueError("labels must be given.\nThey are not.")
        elif self.case == "wants a key":
            x = {"y": x}["x"]
        elif self.case == "wants another size":
            x = x[:, :7]
        elif self.case == "breaks the graph":
            torch._dynamo.graph_break()
        out: Tensor = self.layer(x)
        return out.sum()


class Printed(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


RUNS = "Stubborn does not run on x: "
WHOLE = "Stubborn cannot be captured as one graph: "
CASES = {
    "a value decides": (WHOLE, "qgraph.compile"),
    "a size decides": (WHOLE + "the numbers in tensors decide", "qgraph.compile"),
    "breaks the graph": (WHOLE, "qgraph.compile"),
    "wants more": (RUNS + "labels must be given.", "inputs of your own"),
    "wants a key": (RUNS + "KeyError 'x'", "inputs of your own"),
    "wants another size": (
        RUNS + "mat1 and mat2 shapes cannot be multiplied",
        "inputs of your own",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_why_a_model_is_not_captured_is_told(case: str) -> None:
    says, cure = CASES[case]
    model = Stubborn(case)
    printed = Printed()
    fake.log.addHandler(printed)
    try:
        with pytest.raises(ModelError) as caught:
            qgraph.convert(model, "mxfp8", {"x": torch.randn(4, 16)})
    finally:
        fake.log.removeHandler(printed)
    assert printed.records == []  # by torch, with a traceback
    assert caught.value.problem.startswith(says)
    assert "\n" not in caught.value.problem
    assert cure in caught.value.fix
    with pytest.raises(ModelError, match="not compiled"):
        qgraph.coverage(model)
