"""A model of shapes alone: that it is the model, which blocks stand for which, and under which paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from qgraph.doors.aot import capture_shapes
from qgraph.doors.converting import analyze
from qgraph.models.examples import example_inputs
from qgraph.models.load import load_model
from qgraph.models.shapes import Shapes, load_shapes, shapes_of
from qgraph.passes import find_sites
from qgraph.policy import load_policy, load_policy_text
from qgraph.predict.capture import capture_step

SIZE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip

STAGES: dict[str, Any] = {
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "num_stages": 2,
    "image_size": 32,
}


def llama(blocks: int, **more: Any) -> Shapes:
    config = hf.LlamaConfig(**SIZE, num_hidden_layers=blocks)
    return shapes_of(hf.LlamaForCausalLM, config, few=True, **more)


MODELS = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZE, num_hidden_layers=2)),
    "tied": (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZE, num_hidden_layers=1, tie_word_embeddings=True)),
    "bert": (hf.BertForMaskedLM, hf.BertConfig(**SIZE, num_hidden_layers=1, hidden_dropout_prob=0.0)),
    "vit in bf16": (hf.ViTForImageClassification, hf.ViTConfig(**VISION, dtype="bfloat16")),
    # Its constructor reads numbers: how often each block is left out.
    "convnext": (hf.ConvNextForImageClassification, hf.ConvNextConfig(**STAGES)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_is_that_of_the_model_with_weights(name: str, tmp_path: Path) -> None:
    kind, config = MODELS[name]
    kind(config).to(config.dtype or torch.float32).save_pretrained(tmp_path)
    real, shapes = load_model(str(tmp_path)), load_shapes(str(tmp_path))
    policy = load_policy("mxfp8")
    inputs = example_inputs(real, 2, 8), shapes.inputs(2, 8)
    want, found = analyze(real, policy, inputs[0]), analyze(shapes.model, policy, inputs[1])
    assert found.graph_before == want.graph_before
    assert found.graph_after == want.graph_after
    assert found.report.entries == want.report.entries
    assert found.inputs == want.inputs
    assert shapes.parameters == {n: p.numel() for n, p in real.named_parameters()}
    kinds = {n: (p.dtype, p.device) for n, p in real.named_parameters()}
    assert {n: (p.dtype, p.device) for n, p in shapes.model.named_parameters()} == kinds


def test_what_is_tied_stays_tied() -> None:
    tied = shapes_of(*MODELS["tied"]).model
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    apart = shapes_of(*MODELS["llama"]).model
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight


class Angles(nn.Module):
    """A table that both of its blocks read, as one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        table = torch.arange(4.0)
        for block in self.blocks:
            block.register_buffer("table", table)
            block.register_buffer("none", None)

    @classmethod
    def from_config(cls, _: Any) -> Angles:
        return cls()


def test_a_buffer_of_two_modules_stays_one() -> None:
    first, second = shapes_of(Angles, None).model.blocks
    assert first.table is second.table
    assert first.weight is not second.weight
    assert first.none is None


def test_a_config_without_a_class_is_a_language_model(tmp_path: Path) -> None:
    hf.LlamaConfig(**SIZE, num_hidden_layers=1).save_pretrained(tmp_path)
    assert type(load_shapes(str(tmp_path)).model) is hf.LlamaForCausalLM


def test_the_first_the_last_and_one_between_are_kept() -> None:
    found = llama(6)
    assert (found.stack, found.size, found.kept) == ("model.layers", 6, (0, 1, 5))
    assert found.stand_for == {0: (0,), 1: (1, 2, 3, 4), 5: (5,)}
    assert len(found.model.model.layers) == found.model.config.num_hidden_layers == 3
    assert [llama(n).stand_for for n in (2, 3)] == [{n: (n,) for n in range(k)} for k in (2, 3)]
    whole = shapes_of(hf.LlamaForCausalLM, hf.LlamaConfig(**SIZE, num_hidden_layers=6))
    assert (whole.stack, whole.kept, len(whole.model.model.layers)) == ("", (), 6)
    assert found.parameters == whole.parameters


def test_paths_are_those_of_the_whole_model() -> None:
    found = llama(6)
    assert found.whole_path("model.layers.2.mlp.up_proj") == "model.layers.5.mlp.up_proj"
    assert found.whole_path("model.layers.2") == "model.layers.5"
    assert found.stands("model.layers.1.mlp") == (1, 2, 3, 4)
    assert found.path_in(3, "model.layers.1.mlp.up_proj") == "model.layers.3.mlp.up_proj"
    for outside in ("lm_head", "model.layers", "model.norm"):
        assert found.whole_path(outside) == outside
        assert found.stands(outside) == (None,)


def test_a_policy_divides_blocks_by_their_rules() -> None:
    # The recipe keeps the last 15 % high: two blocks of twelve.
    found = llama(12, policy=load_policy("nvfp4"))
    assert found.stand_for == {0: (0,), 1: tuple(range(1, 9)), 9: (9,), 10: (10,), 11: (11,)}
    text = "{qgraph: 1, name: n, rules: [{match: {op: qk, blocks: [2]}, fprop: {lhs: nvfp4, rhs: nvfp4}}]}"
    assert llama(6, policy=load_policy_text(text)).alike == ((0, 1, 3, 4, 5), (2,))


DEEPSEEK = hf.DeepseekV3Config(
    **SIZE, num_hidden_layers=7, first_k_dense_replace=2, moe_intermediate_size=16, n_routed_experts=4,
    num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16,
    qk_rope_head_dim=8, v_head_dim=16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "alike"),
    [
        # What the text of a block shows: two dense ones, then experts.
        (hf.DeepseekV3ForCausalLM, DEEPSEEK, ((0, 1), (2, 3, 4, 5, 6))),
        # What only the config says.
        (
            hf.Gemma3ForCausalLM,
            hf.Gemma3TextConfig(**SIZE, num_hidden_layers=14, head_dim=16, sliding_window=8),
            ((0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13), (5, 11)),
        ),
        # Two stacks of one length: neither is shortened.
        (
            hf.T5ForConditionalGeneration,
            hf.T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=6, num_heads=2),
            (),
        ),
    ],
)
def test_blocks_that_differ_do_not_stand_for_each_other(
    kind: Any, config: Any, alike: tuple[tuple[int, ...], ...]
) -> None:
    assert shapes_of(kind, config, few=True).alike == alike


@pytest.mark.parametrize("block", [3, 5])
def test_a_rule_for_one_block_is_held_against_its_number_in_the_whole_model(block: int) -> None:
    rule = f"{{match: {{op: qk, blocks: [{block}]}}, fprop: {{lhs: mxfp8, rhs: mxfp8}}}}"
    policy = load_policy_text(f"{{qgraph: 1, name: n, rules: [{rule}]}}")
    shapes = llama(6, policy=policy)
    found = capture_shapes(shapes, shapes.inputs(1, 16), policy)
    sites = find_sites(found.graph, found.facts)
    assert {site.block for site in sites if site.op == "qk"} == {block}
    assert {site.block for site in sites if site.op == "sdpa"} == set(shapes.kept) - {block}
    assert {site.block_count for site in sites if site.block is not None} == {6}


class Blocks(hf.PreTrainedModel):
    """Blocks of one kind, whose number says whether they have a second product."""

    config_class = hf.LlamaConfig
    main_input_name = "input_ids"
    odd, needed = -1, 0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(config.num_hidden_layers))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        x = self.embed(input_ids)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == self.odd:
                x = layer(x)
        return {"loss": (x * self.layers[self.needed].bias).sum()}


class Odd(Blocks):
    """One block is like no other, and nothing but its products says so."""

    odd = 1


class Needed(Blocks):
    """A block is asked for by its number."""

    needed = 4


@pytest.mark.parametrize(("kind", "few"), [(Blocks, 3), (Odd, 6), (Needed, 6)])
def test_where_few_blocks_do_not_do_all_are_captured(kind: Any, few: int) -> None:
    config = hf.LlamaConfig(**SIZE, num_hidden_layers=6)
    shapes, found = capture_step(kind, config, None, batch=1, length=4)
    assert len(shapes.model.layers) == few
    sites = [s for s in find_sites(found.graph, found.facts) if s.role == "fprop"]
    assert len(sites) == few + (kind is Odd)
    assert sum(len(shapes.stands(site.module)) for site in sites) == 6 + (kind is Odd)
