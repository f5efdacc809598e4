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
from qgraph.policy.memory import OptimizerPolicy, ParameterPolicy, StashRule, Stored
from qgraph.policy.model import Policy, Rule
from qgraph.policy.operands import HIGH, OperandPolicy, Transform
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
    percent,
    products_of,
)
from qgraph.policy.stages import check_run, stage
from qgraph.policy.timed import PLATEAU, Moment, Monitor, Switch

__all__ = [
    "ATTENTION", "HIGH", "OPS", "PLATEAU", "ROLES", "BlockCount", "Decision", "Match", "Moment", "Monitor",
    "Op", "OperandPolicy", "OptimizerPolicy", "ParameterPolicy", "Policy", "Role", "Rule", "SiteFacts",
    "StashRule", "Stored", "Switch", "Transform", "check_blocks", "check_parts", "check_run", "decide",
    "dump_policy",
    "load_policy", "load_policy_dict", "load_policy_text", "percent", "policy_json_schema", "products_of",
    "recipe_names", "stage", "unused_rules", "why_unused",
]  # fmt: skip
