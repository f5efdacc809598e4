"""The small models of experiments, their initial weights and their data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from qgraph.training import read_text, tokenize


class Batches:
    """Random windows of the standard library's sources; the same for the same generator."""

    ids: Tensor | None = None

    def __init__(self, settings: Mapping[str, Any], draw: torch.Generator) -> None:
        if Batches.ids is None:
            Batches.ids = tokenize(read_text(None), "bytes", 256)
        self.batch, self.length, self.draw = int(settings["batch"]), int(settings["length"]), draw

    def next(self) -> Tensor:
        """Return the next batch, int64 [batch, length]."""
        ids = Batches.ids
        assert ids is not None, "read by the constructor"
        starts = torch.randint(0, len(ids) - self.length, (self.batch,), generator=self.draw)
        return torch.stack([ids[s : s + self.length] for s in starts.tolist()])


def fresh_weights(settings: Mapping[str, Any], seed: int, perturb: float) -> dict[str, Tensor]:
    """Return initial weights drawn from `seed`, each changed by a normal share of deviation `perturb`."""
    torch.manual_seed(seed)
    state = {name: value.clone() for name, value in fresh_model(settings).state_dict().items()}
    if perturb:
        state = {n: v * (1 + perturb * torch.randn_like(v)) for n, v in state.items()}
    return state


def fresh_model(settings: Mapping[str, Any]) -> Any:
    """Return a model whose runs depend little on chance: torch's own initial weights, an untied head.

    From Hugging Face's weights, all of deviation 0.02, runs sit on a plateau first and leave it at a
    time that any last bit changes: two that start 1% apart end 5 to 20 times as far apart.
    """
    hidden, layers, length = (int(settings[key]) for key in ("hidden", "layers", "length"))
    shared: dict[str, Any] = {
        "vocab_size": 256, "use_cache": False, "bos_token_id": None, "eos_token_id": None,
        "tie_word_embeddings": False,
    }  # fmt: skip
    model: Any
    if settings.get("model", "llama") == "gpt2":
        gpt2 = GPT2Config(
            n_embd=hidden, n_layer=layers, n_head=4, n_positions=length, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, **shared,
        )  # fmt: skip
        model = GPT2LMHeadModel(gpt2)
    else:
        llama = LlamaConfig(
            hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=length, **shared,
        )  # fmt: skip
        model = LlamaForCausalLM(llama)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, (nn.Linear, Conv1D)):
            inputs = module.weight.shape[isinstance(module, nn.Linear)]
            nn.init.uniform_(module.weight, -(inputs**-0.5), inputs**-0.5)
    return model.train()
