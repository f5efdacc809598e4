"""A small model and its conversion, for the looking commands."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

from tests.tools.command import Result, run

# The recipes nvfp4 and mxfp8 in short, so that what is printed changes with the commands alone.
FOUR = """\
qgraph: 1
name: four
source: arXiv 2509.25149
formats:
  fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
  fp4w: {element: e2m1, block: [16, 16], scale: e4m3, tensor_scale: fp32}
transforms:
  rht: {hadamard: 16, signs: te}
rules:
  - {match: {module: lm_head}, keep: high}
  - {match: {op: linear, last_blocks: 15%}, keep: high}
  - match: {op: linear}
    fprop: {input: fp4, weight: fp4w}
    dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: fp4w}
    wgrad:
      input: {format: fp4, transform: rht}
      grad_output: {format: fp4, transform: rht, rounding: stochastic}
"""
EIGHT = """\
qgraph: 1
name: eight
rules:
  - {match: {module: lm_head}, keep: high}
  - match: {op: linear}
    fprop: {input: mxfp8, weight: mxfp8}
    dgrad: {grad_output: mxfp8, weight: mxfp8}
    wgrad: {input: mxfp8, grad_output: mxfp8}
"""
NAIVE = """\
qgraph: 1
name: naive
rules:
  - match: {op: linear}
    fprop: {input: {format: nvfp4, rounding: stochastic}, weight: nvfp4}
    dgrad: {grad_output: e2m1/1x16/e4m3, weight: nvfp4}
optimizer: {exp_avg_sq: int8/tensor/fp32}
"""


def save_model(folder: Path, layers: int = 2) -> Path:
    """Write a Llama of hidden size 32 and return its folder."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def convert(model: Path, policy: str, out: Path) -> Result:
    """Convert `model` at a length of 16."""
    return run("convert", str(model), "--policy", policy, "--out", str(out), "--length", "16")
