"""Parameters stored in bf16 and multiplied in fp32: edits reach what is stored, or are refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import qgraph
from qgraph.errors import ModelError
from qgraph.policy import load_policy_text

LAYERCAST = load_policy_text(
    "qgraph: 1\nname: p\nrules: [{match: {op: linear}, fprop: {weight: bfp8}}]\n"
    "parameters: {storage: bf16, compute: fp32}\n"
)
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 8)
        for parameter in self.parameters():
            parameter.data = parameter.data.bfloat16().float()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


def layercast() -> Net:
    return qgraph.compile(Net(), LAYERCAST, codegen=False)


def _add_out(layer: nn.Linear) -> None:
    with torch.no_grad():
        torch.add(layer.weight, 1, out=layer.weight)


def _augmented(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight += 0.5


def _part_of_data(layer: nn.Linear) -> None:
    layer.weight.data[:2] = 3


def _data(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data * 2 + 0.001


def _new(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.full((6, 8), 0.3))


def _loaded(layer: nn.Linear) -> None:
    layer.load_state_dict({"weight": torch.full((6, 8), 0.3), "bias": torch.ones(6)}, assign=True)


def _reset(layer: nn.Linear) -> None:
    torch.manual_seed(3)
    layer.reset_parameters()


def _in_inference_mode(layer: nn.Linear) -> None:
    with torch.inference_mode():
        layer.weight.add_(0.25)


def _swapped(layer: nn.Linear) -> None:
    held = layer.weight  # read before an edit of the same weight, and used after
    layer.weight.data.mul_(2)
    held.data.add_(1)


EDITS: dict[str, Callable[[nn.Linear], object]] = {
    "data.mul_": lambda m: m.weight.data.mul_(0.3),
    "data.copy_": lambda m: m.weight.data.copy_(torch.full((6, 8), 0.7)),
    "a part of data": _part_of_data,
    "a row": lambda m: m.weight.data[1].fill_(0.1),
    "a transposed view": lambda m: m.weight.detach().t()[:, 0].zero_(),
    "pieces": lambda m: [piece.zero_() for piece in m.weight.detach().chunk(2)[:1]],
    "data =": _data,
    "+=": _augmented,
    "out=": _add_out,
    "in inference mode": _in_inference_mode,
    "held over an edit": _swapped,
    "nn.init.constant_": lambda m: nn.init.constant_(m.weight, 0.2),
    "nn.init.kaiming_uniform_": lambda m: (torch.manual_seed(3), nn.init.kaiming_uniform_(m.weight)),
    "nn.init.orthogonal_": lambda m: (torch.manual_seed(3), nn.init.orthogonal_(m.weight)),
    "reset_parameters": _reset,
    "a bias": lambda m: nn.init.ones_(m.bias),
    "a new parameter": _new,
    "load_state_dict(assign=True)": _loaded,
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_edit_of_an_fp32_parameter_rounded(name: str) -> None:
    model, plain = layercast(), Net()
    for one in (model, plain):
        EDITS[name](one.first)
    for got, want in zip(model.first.parameters(), plain.first.parameters(), strict=True):
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, want.bfloat16())
    assert model.first.weight.dtype == torch.float32
    assert torch.equal(model.first.weight, plain.first.weight.bfloat16().float())


def test_what_belongs_to_a_parameter_is_the_stored_ones() -> None:
    torch._dynamo.reset()
    model, seen = layercast(), list[torch.dtype]()
    stored = dict(model.named_parameters())["first.weight"]
    model.first.weight.register_hook(lambda gradient: seen.append(gradient.dtype))
    model(X).sum().backward()
    assert seen == [torch.bfloat16]
    assert stored.grad is not None
    assert model.first.weight.grad is stored.grad
    model.first.weight.grad = None
    assert dict(model.named_parameters())["first.weight"].grad is None
    with torch.no_grad():
        assert model.first.weight.requires_grad
    model.first.weight.requires_grad_(False)
    model.second.weight.requires_grad = False
    named: Any = model.first.weight
    named.tag = "kept"
    assert vars(stored)["tag"] == named.tag == "kept"
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "first.bias",
        "second.bias",
    }


def test_what_only_reads_a_weight_writes_nothing() -> None:
    model = layercast()
    stored = dict(model.named_parameters())["first.weight"]
    before = stored._version
    torch.zeros(6, 8).add_(model.first.weight)
    torch.mul(model.first.weight.detach(), 2, out=torch.empty(6, 8))
    model.first.weight.detach().sum().item()
    assert stored._version == before


def test_what_would_be_lost_is_refused() -> None:
    model = layercast()
    with pytest.raises(ValueError, match="non-leaf"):
        torch.optim.SGD([model.first.weight], lr=1.0)
    with pytest.raises(ValueError, match="read-only"):
        model.first.weight.detach().numpy()[0] = 1
    held = model.first.weight
    model.first.weight.data = torch.zeros(3, 8)
    with pytest.raises(ModelError, match=r"read as \[6, 8\] and has become \[3, 8\]"):
        held.data.zero_()


def test_modules_and_parameters_put_in_later_are_stored_alike() -> None:
    model = layercast()
    model.first = nn.Linear(8, 6)
    model.third = nn.Sequential(nn.Linear(6, 6))
    model.second.weight = model.first.weight  # tied
    other = nn.Linear(8, 6)
    other.weight = model.first.weight  # and outside of the model
    stored = dict(model.named_parameters(remove_duplicate=False))
    assert {p.dtype for p in stored.values()} == {torch.bfloat16}
    assert stored["first.weight"] is stored["second.weight"] is next(other.parameters())
    assert other(X).dtype == model.first(X).dtype == torch.float32


def test_copies_and_pickles_compute_alike_and_stand_alone() -> None:
    torch._dynamo.reset()
    model = layercast()
    model.second.weight = nn.Parameter(torch.randn(8, 6))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    plain = Net()
    plain.load_state_dict({name: p.float() for name, p in model.state_dict().items()})
    for other in others:
        assert type(other.first).__name__ == "Linear"
        assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
        assert torch.equal(other(X), plain(X))
        nn.init.zeros_(other.first.weight)
        assert not dict(other.named_parameters())["first.weight"].any()
        assert model.first.weight.any()
        with pytest.raises(ModelError, match="was not compiled by qgraph"):
            qgraph.coverage(other)
    taken = copy.deepcopy(model.first.weight)
    assert taken.is_leaf
    assert torch.equal(taken, model.first.weight)


def test_a_parameter_made_of_a_stored_one_is_another() -> None:
    model = layercast()
    model.first.weight.requires_grad_(False)
    other = nn.Linear(8, 6)
    other.weight = nn.Parameter(model.first.weight.data)
    assert other.weight.requires_grad
    assert not model.first.weight.requires_grad
    assert torch.equal(other.weight, model.first.weight)
    other.weight.grad = torch.ones(6, 8)
    before = model.first.weight.detach().clone()
    torch.optim.SGD(other.parameters(), lr=1.0).step()
    assert torch.equal(other.weight, before - 1)
    assert torch.equal(model.first.weight, before)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_hook_that_computes_a_stored_weight() -> None:
    torch._dynamo.reset()
    model, plain = layercast().eval(), Net().eval()
    for one in (model, plain):
        nn.utils.weight_norm(one.first)
        one(X).sum().backward()
    assert torch.equal(model.first.weight, plain.first.weight)
    assert all(p.grad is not None for p in model.parameters())


def test_a_stored_weight_can_be_parametrized_and_pruned() -> None:
    class Twice(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    torch._dynamo.reset()
    model = layercast()
    before = model.first.weight.detach().clone()
    parametrize.register_parametrization(model.first, "weight", Twice())
    prune.l1_unstructured(model.second, "weight", 0.5)
    stored = dict(model.named_parameters())
    assert stored["first.parametrizations.weight.original"].dtype == torch.bfloat16
    assert stored["second.weight_orig"].dtype == torch.bfloat16
    assert torch.equal(model.first.weight, 2 * before)
    assert (model.second.weight == 0).sum() == 24
    model(X).square().sum().backward()
    assert all(p.grad is not None for p in stored.values())


@pytest.mark.parametrize(("size", "tied"), [(80, False), (48, True)])
def test_a_language_model_grows_and_shrinks(size: int, tied: bool) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        config = hf.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=tied,
        )  # fmt: skip
        return hf.LlamaForCausalLM(config)

    torch._dynamo.reset()
    model, plain = qgraph.compile(make(), LAYERCAST, codegen=False), make()
    for one in (model, plain):
        torch.manual_seed(1)
        one.resize_token_embeddings(size, mean_resizing=False)
        one.tie_weights()
    assert model.config.vocab_size == size
    stored, wide = (dict(one.named_parameters(remove_duplicate=False)) for one in (model, plain))
    assert stored.keys() == wide.keys()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert stored[name].shape == (size, 16)
        assert torch.equal(stored[name], wide[name].bfloat16())
    assert (stored["model.embed_tokens.weight"] is stored["lm_head.weight"]) == tied
    ids = torch.arange(40)[None]
    assert model(input_ids=ids, labels=ids).logits.shape == (1, 40, size)
