"""The policy that quantizes nothing changes nothing: not a bit of what Inductor computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
from torch import nn

import qgraph
from tests.backend.models import make_bert, make_llama, run_model, token_batch

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Inductor's embedding gradients add up in the order threads come: two plain runs differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "make", [lambda: make_llama(num_hidden_layers=1), make_bert], ids=["llama", "bert"]
)
def test_loss_and_every_gradient_equal_those_of_plain_inductor(
    make: Callable[[], nn.Module],
) -> None:
    model, plain = make(), make()
    ids = token_batch()
    labels = ids if "Llama" in type(model).__name__ else torch.tensor([0, 1])
    for each in (model, plain):
        each(input_ids=ids)
    qgraph.compile(model, "high")
    got = run_model(model, input_ids=ids, labels=labels)
    torch._dynamo.reset()  # the two are one class: nothing of the first may serve the second
    plain.compile()
    want = run_model(plain, input_ids=ids, labels=labels)
    assert got.keys() == want.keys()
    assert {"loss", "logits"} < got.keys()
    assert len(got) == 2 + len(list(model.parameters()))
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
