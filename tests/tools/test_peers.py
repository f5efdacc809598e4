"""The other tools that `qgraph bench --peers` times: that they quantize, and say what is missing."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch

from qgraph import numerics
from qgraph.errors import ModelError
from qgraph.formats import parse_format
from qgraph.tools.peers import PEERS, _quantized
from tests.doors.models import make_llama, token_batch


def gradients(model: torch.nn.Module) -> torch.Tensor:
    ids = token_batch()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if n.endswith("proj.weight")}
    return torch.cat([g.flatten() for g in found.values() if g is not None])


@pytest.mark.parametrize("name", [name for name in PEERS if "compiled" not in name])
def test_a_peer_quantizes_or_says_what_is_missing(name: str) -> None:
    torch._dynamo.reset()
    model = make_llama(num_hidden_layers=1)
    exact = gradients(copy.deepcopy(model))
    if "torchao" in name and importlib.util.find_spec("torchao") is None:
        with pytest.raises(ModelError, match="torchao is not installed\n  fix: pip install torcha"):
            PEERS[name](model)
        return
    error = float((gradients(PEERS[name](model)) - exact).norm() / exact.norm())
    # One rounding of a product's operands: 2^-4 in 8 bits, 2^-2 in 4; nothing would be 0.
    assert 0.01 < error < (0.5 if "nvfp4" in name else 0.2)


def test_naive_nvfp4_is_the_format() -> None:
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    want = numerics.fake_quant(x, parse_format("e2m1/1x16/e4m3/fp32"), -1)
    # Scales found in another order of divisions: values off by a rounding, no code another.
    assert torch.allclose(_quantized(x), want, rtol=2.0**-22, atol=0)
