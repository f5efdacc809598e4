"""Twelve small models, one of each kind, with inputs for one training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

IDS = torch.randint(5, 90, (2, 32), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0))
CLASSES = torch.zeros(2, dtype=torch.long)
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, **SMALL}
GROUPED: dict[str, Any] = {**WIDE, "num_key_value_heads": 2, "head_dim": 16}
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
TEXT = {"input_ids": IDS, "labels": IDS}
PICTURE = {"pixel_values": IMAGES, "labels": CLASSES}


def _t5() -> Any:
    config = hf.T5Config(  # type: ignore[call-arg]
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=100,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def _whisper() -> Any:
    config = hf.WhisperConfig(
        d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=100,
        max_source_positions=50, num_mel_bins=80, pad_token_id=0, decoder_start_token_id=1, **ENDS,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config)


def _mamba2() -> Any:
    config = hf.Mamba2Config(
        hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=16, n_groups=1,
        vocab_size=100, chunk_size=16,
    )  # fmt: skip
    return hf.Mamba2ForCausalLM(config)


def _opt() -> Any:
    return hf.OPTForCausalLM(
        hf.OPTConfig(hidden_size=64, ffn_dim=128, word_embed_proj_dim=64, **SMALL)
    )


def _vit() -> Any:
    config = hf.ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return hf.ViTForImageClassification(config)


def _resnet() -> Any:
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    return hf.ResNetForImageClassification(config)


MODELS: dict[str, tuple[Callable[[], Any], dict[str, torch.Tensor]]] = {
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100, **ENDS)
        ),
        TEXT,
    ),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**WIDE)), TEXT),
    "qwen3": (lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED)), TEXT),
    "gemma3": (lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GROUPED)), TEXT),
    "mixtral": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=4, **GROUPED)),
        TEXT,
    ),
    "mamba2": (_mamba2, TEXT),
    "opt": (_opt, TEXT),
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**WIDE)), TEXT),
    "t5": (_t5, TEXT),
    "vit": (_vit, PICTURE),
    "resnet": (_resnet, PICTURE),
    "whisper": (_whisper, {"input_features": SOUND, "labels": IDS}),
}


def make(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model with seeded weights, in training mode, and its inputs."""
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    model = build()
    model.config.use_cache = False
    return model.train(), inputs
