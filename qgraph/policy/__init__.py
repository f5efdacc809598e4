"""Policies: which products a run quantizes, and how. Nothing here imports torch."""

from qgraph.policy.load import (
    dump_policy,
    load_policy,
    load_policy_dict,
    load_policy_text,
    recipe_names,
)
from qgraph.policy.match import (
    Decision,
    check_blocks,
    check_parts,
    decide,
    unused_rules,
    why_unused,
)
from qgraph.policy.model import HIGH, OperandPolicy, Policy, Rule, Transform, percent
from qgraph.policy.schema import policy_json_schema
from qgraph.policy.selector import (
    ATTENTION,
    OPS,
    ROLES,
    BlockCount,
    Match,
    Op,
    Role,
    SiteFacts,
    products_of,
)

__all__ = [
    "ATTENTION", "HIGH", "OPS", "ROLES", "BlockCount", "Decision", "Match", "Op", "OperandPolicy",
    "Policy", "Role", "Rule", "SiteFacts", "Transform", "check_blocks", "check_parts",
    "decide", "dump_policy",
    "load_policy", "load_policy_dict", "load_policy_text", "percent", "policy_json_schema", "products_of",
    "recipe_names", "unused_rules", "why_unused",
]  # fmt: skip
