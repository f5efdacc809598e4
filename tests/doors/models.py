"""Tiny Hugging Face models, and policies, for end-to-end tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from qgraph.policy import Policy, load_policy_text


def make_llama(**changes: Any) -> LlamaForCausalLM:
    """A Llama of two blocks, ready to train."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
            "use_cache": False, "tie_word_embeddings": False,
            **changes,
        }
    )  # fmt: skip
    model: LlamaForCausalLM = LlamaForCausalLM(config).train()
    return model


def one_block() -> tuple[LlamaForCausalLM, dict[str, Tensor]]:
    """The Llama that tests compile with Inductor: what they share is compiled once, whatever the policy."""
    ids = token_batch(2, 32)
    model = make_llama(num_hidden_layers=1, vocab_size=256)  # of bytes: commands take it too
    return model, {"input_ids": ids, "labels": ids}


def make_bert() -> BertForSequenceClassification:
    """A BERT of one block without dropout, ready to train."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model: BertForSequenceClassification = BertForSequenceClassification(config).train()
    return model


def token_batch(rows: int = 2, length: int = 16) -> Tensor:
    """Token numbers below 96."""
    return torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(1))


def run_model(model: nn.Module, seed: int = 0, **inputs: Tensor) -> dict[str, Tensor]:
    """Run one forward and backward; return loss, logits and every gradient, then cleared."""
    torch.manual_seed(seed)
    output = model(**inputs)
    output.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {"loss": output.loss.detach(), "logits": output.logits.detach(), **found}


def policy_of(rules: str, head: str = "") -> Policy:
    """A policy with these rules, the formats fp4, fp4w, fp8, int8, and the rotations rht and rht32."""
    return load_policy_text(
        f"""\
qgraph: 1
name: test
{head}
formats:
  fp4:  {{element: e2m1, block: [1, 16],  scale: e4m3, tensor_scale: fp32}}
  fp4w: {{element: e2m1, block: [16, 16], scale: e4m3, tensor_scale: fp32}}
  fp8:  {{element: e4m3, block: [1, 32],  scale: ue8m0}}
  int8: {{element: int8, block: row, scale: fp32}}
transforms:
  rht:   {{hadamard: 16, signs: te}}
  rht32: {{hadamard: 16, signs: te, output: fp32}}
rules:
{rules}
"""
    )


# The three products of the nvfp4 recipe.
NVFP4_PRODUCTS = {
    "fprop": "fprop: {input: fp4, weight: fp4w}",
    "dgrad": "dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: fp4w}",
    "wgrad": "wgrad: {input: {format: fp4, transform: rht}, "
    "grad_output: {format: fp4, transform: rht, rounding: stochastic}}",
}


def nvfp4_policy(*roles: str, head: str = "") -> Policy:
    """The nvfp4 recipe's word for these products of every linear layer; the others stay high."""
    products = ", ".join(NVFP4_PRODUCTS[role] for role in roles or NVFP4_PRODUCTS)
    return policy_of(f"  - {{match: {{op: linear}}, {products}}}", head)
