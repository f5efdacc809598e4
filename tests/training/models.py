"""A small Llama, and steps of it, for tests of training."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor

NVFP4 = """\
qgraph: 1
name: mine
formats:
  fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
transforms: {rht: {hadamard: 16, signs: te}}
rules:
  - {match: {module: lm_head}, keep: high}
  - match: {op: linear}
    fprop: {input: fp4, weight: fp4}
    dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: fp4}
    wgrad:
      input: {format: fp4, transform: rht}
      grad_output: {format: fp4, transform: rht, rounding: stochastic}
"""
IDS = torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(1))


def llama(seed: int = 0) -> Any:
    """A Llama of one block and hidden size 32, with dropout in its attention."""
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        attention_dropout=0.1,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).train()


def train_step(model: Any, optimizer: torch.optim.Optimizer, ids: Tensor = IDS) -> Tensor:
    """Run one optimizer step; return the loss."""
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss
