"""The key `groups`: parts of a model that policies may name, and what Hugging Face models call them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qgraph.policy.file.entry import FileEntry, optional
from qgraph.policy.file.values import Modules
from qgraph.policy.key import Key, Reading, nothing

if TYPE_CHECKING:
    from qgraph.policy.model import Policy

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

EVERYWHERE = ("*",)
# Embeddings' names: a list that holds them all fits any model, so one that is missing is no fault.
EMBEDDINGS = ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "shared")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A named part of a model, by module globs; one that begins with `!` takes modules out again."""

    name: str
    modules: tuple[str, ...]

    def names(self, module: str, part: str = "") -> bool:
        """Whether `module` is in the group: by its path, or as `part`, which its structure shows it to be."""
        inside = part == self.name or any(
            names_module(glob, module) for glob in self.modules if not glob.startswith("!")
        )
        return inside and not any(
            names_module(glob[1:], module) for glob in self.modules if glob.startswith("!")
        )


def names_module(glob: str, module: str) -> bool:
    """Whether a glob, or the last parts of a path, name a module."""
    if any(letter in glob for letter in "*?["):
        return fnmatch.fnmatchcase(module, glob)
    return module == glob or module.endswith(f".{glob}")


def modules_entry(modules: tuple[str, ...]) -> dict[str, object]:
    """Return the modules something is done in, as a policy file writes them; everywhere is left out."""
    return {} if modules == EVERYWHERE else {"modules": list(modules)}


def modules_text(modules: tuple[str, ...]) -> str:
    """Return the modules something is done in, to follow what it is."""
    return "" if modules == EVERYWHERE else f" in {' or '.join(modules)}"


class ModulesEntry(FileEntry):
    """What is done in some modules."""

    modules: Modules | None = optional(
        "Module paths, as in `module` of a rule; left out, all of them.", "model.layers.*"
    )


def _resolve(entry: Mapping[str, list[str]], reading: Reading) -> dict[str, Group]:
    known = {**GROUPS, **entry}
    return {name: Group(name=name, modules=tuple(modules)) for name, modules in known.items()}


def _written(known: object, policy: Policy) -> object:
    """Return the groups that rules ask for; what one holds stands in the fingerprint of its rules."""
    asked = [group for rule in policy.rules for group in rule.match.groups or ()]
    return {group.name: list(group.modules) for group in asked} or None


GROUPS_KEY: Key[dict[str, Group]] = Key(
    module=__name__,
    name="groups",
    entry=dict[str, Modules],
    description="Named parts of the model, by module paths as in `module`; ! takes modules out again.",
    example={"ffn": ["*.mlp.*"]},
    default={},
    extends="names",
    resolve=_resolve,
    written=_written,
    numbers=nothing,
)
