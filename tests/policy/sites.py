"""A site with only the facts that rules ask for."""

from dataclasses import dataclass

from qgraph.policy import Policy, load_policy_text


@dataclass(frozen=True, kw_only=True)
class Site:
    op: str = "linear"
    module: str = "model.layers.0.mlp.up_proj"
    role: str = "fprop"
    block: int | None = 0
    block_count: int | None = 4
    operand_kinds: tuple[str, ...] = ("input", "weight")
    part: str = ""


def stack(count: int) -> list[Site]:
    """One site per block of a model with `count` blocks."""
    return [Site(module=f"model.layers.{i}.mlp", block=i, block_count=count) for i in range(count)]


def policy_of(rules: str) -> Policy:
    """A policy with formats fp4 and fp8, rotations rht and h32, and these rules."""
    return load_policy_text(
        f"""\
qgraph: 1
name: test
formats:
  fp4: {{element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}}
  fp8: {{element: e4m3, block: tensor, scale: fp32}}
transforms: {{rht: {{hadamard: 16, signs: te}}, h32: {{hadamard: 32}}}}
rules:
{rules}""",
        file="p.yaml",
    )


def policy_with(match: str) -> Policy:
    """A policy whose only rule matches this."""
    return policy_of(f"  - {{match: {{{match}}}, fprop: {{input: fp4}}}}\n")
