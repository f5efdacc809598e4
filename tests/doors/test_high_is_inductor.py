"""The policy that quantizes nothing changes nothing: not a bit of what Inductor computes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import qgraph
from tests.cases import mostly_full
from tests.doors.models import one_block, run_model
from tests.doors.zoo import ZOO, make_entry

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Inductor's embedding gradients add up in the order threads come: two plain runs differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# One of each family, and small: both runs compile with Inductor.
TEN = (
    "llama", "gpt2", "opt", "mixtral", "bert", "distilbert", "t5", "vit", "resnet", "convnext",
)  # fmt: skip
# One block is enough, where a setting says so.
ONE = {
    "num_hidden_layers": 1, "n_layer": 1, "n_layers": 1, "num_layers": 1, "depths": [1, 1],
}  # fmt: skip


def make(name: str) -> tuple[Any, dict[str, Any]]:
    if name == "llama":
        return one_block()
    entry = next(entry for entry in ZOO if entry.name == name)
    fewer = {key: ONE.get(key, value) for key, value in entry.settings.items()}
    return make_entry(replace(entry, settings=fewer))


@pytest.mark.parametrize("name", mostly_full(TEN, ("llama",)))
def test_loss_and_every_gradient_equal_those_of_plain_inductor(name: str) -> None:
    (model, inputs), (plain, _) = make(name), make(name)
    for each in (model, plain):
        with torch.no_grad():
            each(**inputs)  # some set up hooks in their first call
    qgraph.compile(model, "high")
    got = run_model(model, **inputs)
    torch._dynamo.reset()  # the two are one class: nothing of the first may serve the second
    plain.compile()
    want = run_model(plain, **inputs)
    assert got.keys() == want.keys()
    assert {"loss", "logits"} < got.keys()
    # A head of its own for another task gets no gradient, in either.
    assert len(got) > 0.9 * len(list(model.parameters()))
    assert [name for name in got if not torch.equal(got[name], want[name])] == []
    report = qgraph.coverage(model)
    assert report.entries
    assert not report.quantized


def test_inference_equals_plain_inductor() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
    x = torch.randn(2, 16, 32)
    wrapped, plain = _Wrapped(model), _Wrapped(deepcopy(model))
    with torch.no_grad():
        got = qgraph.compile(wrapped.train(), "high")(x)
        torch._dynamo.reset()
        plain.train().compile()
        assert torch.equal(got, plain(x))
    assert qgraph.coverage(wrapped).entries


class _Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x)
        return result
