"""Policies: which products a run quantizes, and how. Nothing here imports torch."""

from qgraph.policy.decide import (
    Decision,
    check_blocks,
    check_globs,
    check_named_parts,
    decide,
    first_match,
    unused_rules,
    why_unused,
)
from qgraph.policy.file.load import (
    dump_policy,
    load_policy,
    load_policy_dict,
    load_policy_text,
    recipe_names,
)
from qgraph.policy.file.schema import policy_json_schema
from qgraph.policy.file.values import Moment, percent
from qgraph.policy.file.words import did_you_mean
from qgraph.policy.keys import KEYS
from qgraph.policy.keys.calibrate import CalibrationStep
from qgraph.policy.keys.format import Stored
from qgraph.policy.keys.functions import FunctionRule
from qgraph.policy.keys.groups import EMBEDDINGS, GROUPS, Group, names_module
from qgraph.policy.keys.match import BlockCount, Match
from qgraph.policy.keys.monitor import PLATEAU, Monitor
from qgraph.policy.keys.operand import HIGH, OperandPolicy, Transform
from qgraph.policy.keys.optimizer import OptimizerPolicy
from qgraph.policy.keys.parameters import ParameterPolicy
from qgraph.policy.keys.rules import Rule
from qgraph.policy.keys.schedule import Switch
from qgraph.policy.keys.stash import StashRule
from qgraph.policy.lint import Advice, lint
from qgraph.policy.model import Policy
from qgraph.policy.products import ATTENTION, OPS, ROLES, Op, Role, SiteFacts, products_of
from qgraph.policy.stages import check_run, stage
from qgraph.policy.trial import try_rules

__all__ = [
    "ATTENTION",
    "EMBEDDINGS",
    "GROUPS",
    "HIGH",
    "KEYS",
    "OPS",
    "PLATEAU",
    "ROLES",
    "Advice",
    "BlockCount",
    "CalibrationStep",
    "Decision",
    "FunctionRule",
    "Group",
    "Match",
    "Moment",
    "Monitor",
    "Op",
    "OperandPolicy",
    "OptimizerPolicy",
    "ParameterPolicy",
    "Policy",
    "Role",
    "Rule",
    "SiteFacts",
    "StashRule",
    "Stored",
    "Switch",
    "Transform",
    "check_blocks",
    "check_globs",
    "check_named_parts",
    "check_run",
    "decide",
    "did_you_mean",
    "dump_policy",
    "first_match",
    "lint",
    "load_policy",
    "load_policy_dict",
    "load_policy_text",
    "names_module",
    "percent",
    "policy_json_schema",
    "products_of",
    "recipe_names",
    "stage",
    "try_rules",
    "unused_rules",
    "why_unused",
]
