"""Parts of a model that policies may name: the modules that Hugging Face models have for them."""

from __future__ import annotations

from collections.abc import Mapping

# A glob that begins with ! takes modules out again. `*` crosses dots.
GROUPS: Mapping[str, tuple[str, ...]] = {
    # Output heads, routers of experts and embeddings of patches (decoder: BERT's and RoBERTa's).
    # Not the proj_out of a diffusion model's attentions.
    "head": (
        "lm_head", "head", "generator_lm_head", "embed_out", "proj_out", "output_projection",
        "vocab_projector", "decoder", "score", "classifier", "classifier.1", "classifier.out_proj",
        "qa_outputs", "gate", "router", "router.layer", "shared_expert_gate", "*patch_embed*",
        "!*attentions.*",
    ),
    # The projections of attention: q, k, v and output.
    "attention": (
        "*self_attn.*", "*.attn.*", "*attention.*", "*.attn_*", "*encoder_attn.*", "*cross_attn.*",
        "*linear_attn.*", "*SelfAttention.*", "*EncDecAttention.*",
        "*self_attention.*", "*crossattention.*", "*rel_attn.*",
    ),
    # The feed-forward part of a block, experts too.
    "ffn": (
        "*.mlp.*", "*.ffn.*", "*.ffn", "*.ffn_output", "*.feed_forward.*", "*feedforward*.*",
        "*.DenseReluDense.*", "*.block_sparse_moe.*", "*.experts", "*.experts.*",
        "*.shared_expert.*", "*.fc1", "*.fc2", "*.intermediate.dense", "*.output.dense", "*.ff.*",
        "*.dense_h_to_4h", "*.dense_4h_to_h", "!*attention.output.dense", "!*.attn.*",
    ),
}  # fmt: skip

# Embeddings' names: a list that holds them all fits any model, so one that is missing is no fault.
EMBEDDINGS = ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "shared")
