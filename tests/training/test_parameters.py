"""Parameters stored in one dtype and multiplied in another, and how updates reach them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import qgraph
from qgraph.errors import QGraphWarning
from qgraph.policy import Policy, load_policy_text

HEAD = "qgraph: 1\nname: p\nrules: [{match: {op: linear}, fprop: {input: bfp8}}]\n"
LAYERCAST = "parameters: {storage: bf16, compute: fp32%s}\n"
IDS = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))


def policy(text: str) -> Policy:
    return load_policy_text(HEAD + text)


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, **options,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def test_layercast_is_fp32_on_the_stored_bf16_numbers(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = qgraph.compile(llama(), policy(LAYERCAST % ""), codegen=False)
    wide = llama()
    with torch.no_grad():
        for one, two in zip(wide.parameters(), model.parameters(), strict=True):
            one.copy_(two)
    wide = qgraph.compile(wide, policy(""), codegen=False)
    results = [m(input_ids=IDS, labels=IDS) for m in (model, wide)]
    assert results[0].logits.dtype == torch.float32
    assert torch.equal(results[0].logits, results[1].logits)
    for result in results:
        result.loss.backward()
    for (name, low), high in zip(model.named_parameters(), wide.parameters(), strict=True):
        # Vectors of modules that hold no matrix stay; their cast gradient is the wide one, rounded.
        assert low.dtype == (torch.float32 if "norm" in name else torch.bfloat16)
        assert torch.equal(low.grad, high.grad.to(low.dtype))
    # What is multiplied is fp32; what is kept and saved is half of it; the class is what it was.
    assert {entry.dtype for entry in qgraph.coverage(model).quantized} == {"fp32"}
    matrices = [p for p in model.parameters() if p.dim() == 2]
    assert sum(p.nbytes for p in matrices) == 2 * sum(p.numel() for p in matrices)
    assert type(model.lm_head).__name__ == "Linear"
    assert isinstance(model.lm_head, nn.Linear)
    model.save_pretrained(tmp_path)
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path)
    for one, two in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.float(), two.float())


def test_the_backward_keeps_the_stored_parameters_and_not_their_casts() -> None:
    torch._dynamo.reset()
    model = qgraph.compile(llama(use_cache=False), policy(LAYERCAST % ""), codegen=False)
    kept: list[Tensor] = []

    def pack(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        ids = IDS[:, :15]  # 30 tokens: no weight has such a side
        model(input_ids=ids, labels=ids)
    weights = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    weights |= {shape[::-1] for shape in weights}
    found = [value for value in kept if tuple(value.shape) in weights]
    assert len(found) >= 8
    assert {value.dtype for value in found} == {torch.bfloat16}


def test_kept_modules_and_tied_parameters() -> None:
    tied = qgraph.compile(
        llama(tie_word_embeddings=True), policy(LAYERCAST % ", keep: embed_tokens")
    )
    assert tied.lm_head._parameters["weight"] is tied.model.embed_tokens.weight
    assert tied.lm_head.weight.dtype == torch.float32
    assert {p.dtype for p in tied.model.layers.parameters()} == {torch.bfloat16, torch.float32}
    with pytest.warns(QGraphWarning, match="no module is called 'embd'"):
        qgraph.compile(llama(), policy(LAYERCAST % ", keep: embd"))


def steps(text: str, count: int, size: float) -> tuple[Tensor, torch.optim.Optimizer]:
    """Return a bf16 parameter of ones after `count` updates by `size`, each far below its step."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=size)
    if text:
        qgraph.quantize_optimizer(optimizer, policy(text))
    for _ in range(count):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.dtype == torch.bfloat16
    return parameter.detach().float(), optimizer


def test_updates_below_a_bf16_step_are_lost_unless_rounded_at_random_or_kept_in_a_master() -> None:
    size, count = 2.0**-12, 64  # below 1 bf16 steps by 2**-8
    wanted = 1 - size * count
    lost, _ = steps("", count, size)
    assert torch.equal(lost, torch.ones_like(lost))
    random, _ = steps("parameters: {storage: bf16, rounding: stochastic}\n", count, size)
    spread = (count * 2**-12 * 2**-8) ** 0.5  # of one element
    assert abs(random.mean().item() - wanted) < 5 * spread / 64
    assert random.unique().numel() > 2
    master, optimizer = steps("parameters: {storage: bf16, master: fp32}\n", count, size)
    assert torch.equal(master, torch.full_like(master, wanted).bfloat16().float())
    assert qgraph.state_bytes(optimizer)["master"] == 4 * 64 * 64
    _, packed = steps("parameters: {storage: bf16, master: int16/row/fp32}\n", count, size)
    assert qgraph.state_bytes(packed)["master"] == 2 * 64 * 64 + 4 * 64 + 4


def test_a_stochastic_update_draws_the_same_bits_from_the_same_seed() -> None:
    runs = [steps("parameters: {storage: bf16, rounding: stochastic}\n", 3, 0.01)[0] for _ in "ab"]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    "how", [", master: fp32", ", rounding: stochastic", ", master: {format: bfp16}"]
)
def test_masters_and_wide_states_resume_exactly(how: str) -> None:
    text = f"parameters: {{storage: bf16{how}}}\noptimizer: {{exp_avg: int8/row/fp32}}\n"

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32)).bfloat16()
        return model, qgraph.quantize_optimizer(torch.optim.AdamW(model.parameters()), policy(text))

    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for seed in range(3):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed)).bfloat16()
            optimizer.zero_grad()
            model(x).float().pow(2).mean().backward()
            optimizer.step()
            assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())

    model, optimizer = start()
    run(model, optimizer)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    run(model, optimizer)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    assert state["state"][0]["exp_avg_sq"].dtype == torch.float32
    again, other = start()
    again.load_state_dict(weights)
    other.load_state_dict(state)
    run(again, other)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
