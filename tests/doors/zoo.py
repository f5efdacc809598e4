"""Small models of many architectures: a name, a family, a class, its settings and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

BATCH, LENGTH, WORDS = 2, 32, 96
DECODER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {
    **DECODER,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
ENCODER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "embedding_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
PAIR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "pad_token_id": 0,
    "decoder_start_token_id": 0,
}  # fmt: skip
SPEECH = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0, "layerdrop": 0.0, "classifier_proj_size": 32,
}  # fmt: skip


def words() -> dict[str, Tensor]:
    """Token ids, and themselves as labels."""
    ids = torch.randint(5, WORDS - 6, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}


def few_words() -> dict[str, Tensor]:
    """A short text: some models unroll over it."""
    return {name: ids[:, :8] for name, ids in words().items()}


def picture(size: int = 32) -> dict[str, Tensor]:
    """Pictures and their classes."""
    return {"pixel_values": torch.randn(BATCH, 3, size, size), "labels": torch.zeros(BATCH).long()}


def sound() -> dict[str, Tensor]:
    """Samples of sound and their classes."""
    return {"input_values": torch.randn(BATCH, 1600), "labels": torch.zeros(BATCH).long()}


def spectrum() -> dict[str, Tensor]:
    """Spectra of sound, and tokens as labels."""
    return {"input_features": torch.randn(BATCH, 80, 100), "labels": words()["labels"]}


def caption(size: int = 32) -> dict[str, Any]:
    """Pictures and texts that belong together."""
    return {
        "input_ids": words()["input_ids"],
        "pixel_values": torch.randn(BATCH, 3, size, size),
        "return_loss": True,
    }


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture."""

    name: str
    family: str
    model: str
    settings: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]


def _all(
    family: str, inputs: Callable[[], dict[str, Any]], table: dict[str, tuple[str, dict[str, Any]]]
) -> list[Entry]:
    return [
        Entry(name=name, family=family, model=model, settings=settings, inputs=inputs)
        for name, (model, settings) in table.items()
    ]


ZOO = [
    *_all("decoder", words, {
        "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        "llama": ("LlamaForCausalLM", DECODER),
        "mistral": ("MistralForCausalLM", DECODER),
        "qwen2": ("Qwen2ForCausalLM", DECODER),
        "qwen3": ("Qwen3ForCausalLM", DECODER),
        "gemma2": ("Gemma2ForCausalLM", DECODER),
        "gemma3": ("Gemma3ForCausalLM", DECODER),
        "phi": ("PhiForCausalLM", {**DECODER, "resid_pdrop": 0.0}),
        "phi3": ("Phi3ForCausalLM", {**DECODER, "resid_pdrop": 0.0}),
        "opt": ("OPTForCausalLM", {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 32, "dropout": 0.0}),
        "gpt_neox": ("GPTNeoXForCausalLM", ENCODER),
        "gptj": ("GPTJForCausalLM", {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0}),
        "falcon": ("FalconForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}),
        "stablelm": ("StableLmForCausalLM", DECODER),
        "starcoder2": ("Starcoder2ForCausalLM", {**DECODER, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
        "olmo2": ("Olmo2ForCausalLM", DECODER),
        "cohere": ("CohereForCausalLM", DECODER),
        "granite": ("GraniteForCausalLM", DECODER),
        "smollm3": ("SmolLM3ForCausalLM", DECODER),
        "glm4": ("Glm4ForCausalLM", DECODER),
    }),
    *_all("experts", words, {
        "mixtral": ("MixtralForCausalLM", EXPERTS),
        "qwen2_moe": ("Qwen2MoeForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 32}),
        "qwen3_moe": ("Qwen3MoeForCausalLM", EXPERTS),
        "olmoe": ("OlmoeForCausalLM", EXPERTS),
        "granitemoe": ("GraniteMoeForCausalLM", EXPERTS),
        "gpt_oss": ("GptOssForCausalLM", EXPERTS),
        "deepseek_v3": ("DeepseekV3ForCausalLM", {
            **EXPERTS, "num_key_value_heads": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
            "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
        }),
    }),
    *_all("state space", few_words, {
        "mamba": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
        "mamba2": ("Mamba2ForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16}),
        "falcon_mamba": ("FalconMambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
        "rwkv": ("RwkvForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 64, "context_length": 64}),
        "bamba": ("BambaForCausalLM", {**DECODER, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16, "attn_layer_indices": [1]}),
        "qwen3_next": ("Qwen3NextForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}),
    }),
    *_all("encoder", words, {
        "bert": ("BertForMaskedLM", {**ENCODER, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
        "roberta": ("RobertaForMaskedLM", {**ENCODER, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
        "electra": ("ElectraForMaskedLM", {**ENCODER, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
        "albert": ("AlbertForMaskedLM", ENCODER),
        "deberta_v2": ("DebertaV2ForMaskedLM", {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
        "distilbert": ("DistilBertForMaskedLM", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "dropout": 0.0, "attention_dropout": 0.0}),
        "modernbert": ("ModernBertForMaskedLM", {**DECODER, "local_attention": 16}),
    }),
    *_all("encoder-decoder", words, {
        "t5": ("T5ForConditionalGeneration", {**T5, "dropout_rate": 0.0}),
        "bart": ("BartForConditionalGeneration", {**PAIR, "dropout": 0.0}),
        "marian": ("MarianMTModel", {**PAIR, "dropout": 0.0}),
        "pegasus": ("PegasusForConditionalGeneration", {**PAIR, "dropout": 0.0}),
    }),
    *_all("vision", picture, {
        "vit": ("ViTForImageClassification", VISION),
        "deit": ("DeiTForImageClassification", VISION),
        "dinov2": ("Dinov2ForImageClassification", VISION),
        "beit": ("BeitForImageClassification", {**VISION, "drop_path_rate": 0.0}),
        "swin": ("SwinForImageClassification", {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "drop_path_rate": 0.0}),
        "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2}),
        "resnet": ("ResNetForImageClassification", {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1]}),
        "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25, "image_size": 32, "classifier_dropout_prob": 0.0}),
        "segformer": ("SegformerForImageClassification", {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [32, 32], "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}),
    }),
    *_all("audio", sound, {
        "wav2vec2": ("Wav2Vec2ForSequenceClassification", {**SPEECH, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}),
        "hubert": ("HubertForSequenceClassification", {**SPEECH, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}),
    }),
    *_all("audio", spectrum, {
        "whisper": ("WhisperForConditionalGeneration", {**PAIR, "num_mel_bins": 80, "max_source_positions": 50, "max_target_positions": 64, "dropout": 0.0}),
    }),
    *_all("multimodal", caption, {
        "clip": ("CLIPModel", {"text_config": {**ENCODER, "vocab_size": WORDS, "eos_token_id": 2}, "vision_config": VISION, "projection_dim": 32}),
        "siglip": ("SiglipModel", {"text_config": {**ENCODER, "vocab_size": WORDS}, "vision_config": VISION}),
    }),
]  # fmt: skip


def make_entry(entry: Entry) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model of this architecture, ready to train, and its inputs; the same each time."""
    torch.manual_seed(0)
    kind = getattr(transformers, entry.model)
    settings = (
        entry.settings
        if "text_config" in entry.settings
        else {"vocab_size": WORDS, **entry.settings}
    )
    config = kind.config_class(**settings)
    for part in (config, getattr(config, "text_config", None)):
        if part is not None and hasattr(part, "use_cache"):
            part.use_cache = False
    model = kind(config).train()
    return model, entry.inputs()
