"""The ways models are called: in pieces, in other shapes, in half precision, inside other modules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

import qgraph
from qgraph.passes import report_text
from tests.cases import with_experts
from tests.doors.models import make_llama, token_batch


def roles(model: nn.Module) -> dict[str, set[str]]:
    """The quantized products of each module."""
    found: dict[str, set[str]] = {}
    for entry in qgraph.coverage(model).quantized:
        found.setdefault(entry.module, set()).add(entry.role)
    return found


def step(model: Any, **inputs: Tensor) -> Tensor:
    model.zero_grad()
    torch.manual_seed(0)
    loss: Tensor = model(**inputs).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("compared", [(1, 3), pytest.param((0, 2), marks=pytest.mark.full)])
def test_batch_and_length_may_change_and_compile_once_more(compared: tuple[int, ...]) -> None:
    model = qgraph.compile(make_llama(num_hidden_layers=1), "mxfp8", codegen=False)
    found = []
    shapes = ((2, 16), (3, 24), (5, 8), (2, 32))
    for rows, length in shapes:
        ids = token_batch(rows, length)
        found.append(step(model, input_ids=ids, labels=ids))
    assert qgraph.coverage(model).graphs == 2
    for number in compared:
        torch._dynamo.reset()
        ids = token_batch(*shapes[number])
        alone = make_llama(num_hidden_layers=1)
        qgraph.compile(alone, "mxfp8", codegen=False, dynamic=False)
        assert torch.equal(step(alone, input_ids=ids, labels=ids), found[number])


def test_float16_autocast_quantizes_the_float16_values() -> None:
    model = qgraph.compile(make_llama(), "nvfp4", codegen=False)
    ids = token_batch()
    plain = step(make_llama(), input_ids=ids, labels=ids)
    with torch.autocast("cpu", torch.float16):
        loss = step(model, input_ids=ids, labels=ids)
    assert {e.dtype for e in qgraph.coverage(model).quantized} == {"fp16"}
    assert 0 < abs(loss - plain) < 0.05 * plain
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_training_and_evaluation_have_graphs_of_their_own() -> None:
    torch.manual_seed(0)
    parts = (nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 32))
    model, x = qgraph.compile(nn.Sequential(*parts), "mxfp8", codegen=False), torch.randn(4, 32)
    assert not torch.equal(model(x), model(x))  # dropout
    model.eval()
    quiet = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), quiet)
    model.train()
    graphs = qgraph.coverage(model).graphs
    model(x).sum().backward()
    assert qgraph.coverage(model).graphs == graphs  # the first graph is still there
    assert roles(model) == {"0": {"fprop", "wgrad"}, "2": {"fprop", "dgrad", "wgrad"}}


def test_a_model_in_pieces_within_a_module_with_two_losses() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.first(x).relu()
            torch._dynamo.graph_break()
            return x, self.second(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Inner(), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden, y = self.body(x)
            return hidden.square().mean(), self.head(y).square().mean()

    torch.manual_seed(0)
    model = qgraph.compile(nn.ModuleDict({"outer": Outer()})["outer"], "int8", codegen=False)
    losses = model(torch.randn(4, 32))
    sum(losses).backward()
    assert qgraph.coverage(model).graphs > 1
    every = {"fprop", "dgrad", "wgrad"}
    assert roles(model) == {
        "body.first": {"fprop", "wgrad"},
        "body.second": every,
        # `head` is a name of output heads, which the recipe keeps.
    }
    kept = Counter(e.reason.split(":")[0] for e in qgraph.coverage(model).entries if e.reason)
    assert kept == {"kept": 3}
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_checkpointed_blocks_draw_the_same_bits_twice() -> None:
    ids = token_batch()
    plain = qgraph.compile(make_llama(), "nvfp4", codegen=False)
    want = step(plain, input_ids=ids, labels=ids)
    gradients = [p.grad for p in plain.parameters()]
    torch._dynamo.reset()
    model = make_llama()
    model.gradient_checkpointing_enable()
    qgraph.compile(model, "nvfp4", codegen=False)
    assert torch.equal(step(model, input_ids=ids, labels=ids), want)
    for one, two in zip(model.parameters(), gradients, strict=True):
        assert one.grad is not None
        assert two is not None
        assert torch.equal(one.grad, two)


def test_adapters_of_peft_train_on_a_quantized_base() -> None:
    import peft

    config = peft.LoraConfig(r=8, target_modules=["q_proj", "down_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(make_llama(), config)
    qgraph.compile(model, "mxfp8", codegen=False)
    ids = token_batch()
    step(model, input_ids=ids, labels=ids)
    found = roles(model)
    place = "base_model.model.model.layers.1.self_attn"
    assert found[f"{place}.q_proj.base_layer"] == {"fprop", "dgrad"}  # frozen: no wgrad
    assert found[f"{place}.k_proj"] == {"fprop", "dgrad"}
    assert found[f"{place}.q_proj.lora_A.default"] == {"fprop", "dgrad", "wgrad"}
    assert found[f"{place}.q_proj.lora_B.default"] == {"fprop", "dgrad", "wgrad"}
    # lora_B starts at zero, so nothing reaches lora_A in the first step.
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {n for n, _ in model.named_parameters() if "lora_B" in n}
    assert not qgraph.coverage(model).not_captured


def test_a_block_of_a_diffusion_unet() -> None:
    from diffusers.models.unets import unet_2d_blocks as blocks

    torch.manual_seed(0)
    block = blocks.CrossAttnDownBlock2D(
        in_channels=32, out_channels=32, temb_channels=64, num_layers=1, resnet_groups=8,
        cross_attention_dim=32, num_attention_heads=2,
    )  # fmt: skip
    model = qgraph.compile(block, "mxfp8", codegen=False)
    x, time, text = torch.randn(2, 32, 8, 8), torch.randn(2, 64), torch.randn(2, 8, 32)
    y, _ = model(x.requires_grad_(), temb=time, encoder_hidden_states=text)
    y.square().mean().backward()
    report = qgraph.coverage(model)
    assert {e.op for e in report.quantized} == {"conv", "linear"}
    assert {e.reason.split(":")[0] for e in report.entries if e.reason} == {"fused attention"}
    assert report.share > 0.8
    assert roles(model)["attentions.0.proj_out"] == {"fprop", "dgrad", "wgrad"}, "it is no head"
    assert roles(model)["resnets.0.conv1"] == {"fprop", "dgrad", "wgrad"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_lookups_are_stated() -> None:
    model = qgraph.compile(make_llama(), "mxfp8", codegen=False)
    ids = token_batch()
    step(model, input_ids=ids, labels=ids)
    report = qgraph.coverage(model)
    assert report.lookups == {"model.embed_tokens"}
    words = "note: rows of a table picked by number, no product: model.embed_tokens"
    assert words in report_text(report, 120)


@with_experts()
def test_experts_in_bf16_use_the_grouped_product_of_torch_itself() -> None:
    """In fp32 transformers brings an op of its own; both are the same products."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    ids = torch.randint(0, 64, (2, 32))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch._dynamo.reset()
        model = MixtralForCausalLM(config).to(dtype)  # type: ignore[arg-type]
        qgraph.compile(model, "mxfp8", codegen=False)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        report = qgraph.coverage(model)
        found[dtype] = sorted(
            (e.op, e.role, e.flops, e.status) for e in report.entries if "experts" in e.module
        )
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert found[torch.float32] == found[torch.bfloat16]
    assert len(found[torch.bfloat16]) == 6
    assert {status for *_, status in found[torch.bfloat16]} == {"quantized"}
    assert "fprop experts" in str(report), "a printed report is its table"
