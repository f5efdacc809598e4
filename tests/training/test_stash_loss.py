"""What a stash costs: `QGRAPH_STEPS=60 pytest -s tests/training/test_stash_loss.py` prints the table."""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch
import transformers as hf
from torch import Tensor

import qgraph
from qgraph.policy import load_policy_text
from qgraph.training.text import read_text

HEAD = "qgraph: 1\nname: p\nrules: [{match: {}, keep: high}]\n"
KEPT = "stash: [{match: {module: lm_head}, keep: high}, {format: %s}]\n"
ARMS = {
    "none": "parameters: {storage: fp32}\n",
    "bfp8": KEPT % "bfp8",
    "bfp4": KEPT % "bfp4",
    "int2/1x32/ue8m0-floor": KEPT % "int2/1x32/ue8m0-floor",
    "bfp4, logits too": "stash: bfp4\n",
}
STEPS, BATCH, LENGTH = int(os.environ.get("QGRAPH_STEPS", "1")), 8, 64


def train(text: str, ids: Tensor) -> tuple[float, Tensor, tuple[int, int]]:
    """Return the mean loss of the last quarter of the steps, the first gradient, and bytes."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=1, use_cache=False,
        num_attention_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True,
    )  # fmt: skip
    chosen = load_policy_text(HEAD + text)
    model: Any = qgraph.compile(hf.LlamaForCausalLM(config), chosen, codegen=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses: list[float] = []
    first = torch.empty(0)
    for rows in ids.view(STEPS, BATCH, LENGTH):
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            first = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.step()
        losses.append(loss.item())
    last = losses[-max(1, STEPS // 4) :]
    return statistics.mean(last), first, qgraph.coverage(model).saved_bytes


def test_the_fewer_bits_the_further_the_gradient_and_the_loss_before_it_is_the_same() -> None:
    text = read_text(None).encode()[: STEPS * BATCH * LENGTH]
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    found = {name: train(text, ids) for name, text in ARMS.items()}
    plain, exact, _ = found["none"]
    error = {name: ((g - exact).norm() / exact.norm()).item() for name, (_, g, _) in found.items()}
    print(
        "\n| stash | first gradient off by | loss above none | stored / saved |\n|---|---|---|---|"
    )
    for name, (loss, _, (size, stored)) in found.items():
        share = f"{stored / size:.3f}" if size else "1"
        print(f"| {name} | {100 * error[name]:.1f}% | {loss - plain:+.4f} | {share} |")
    if STEPS == 1:
        assert {loss for loss, _, _ in found.values()} == {plain}
    assert error["none"] == 0 < error["bfp8"] < 0.02
    assert 5 * error["bfp8"] < error["bfp4"] < 0.25
    assert 3 * error["bfp4"] < error["int2/1x32/ue8m0-floor"]
    assert found["bfp4"][2][1] < 0.35 * found["bfp4"][2][0]
