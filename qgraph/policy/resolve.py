"""From typed file to policy: every name looked up, every rule checked against what ops have."""

from __future__ import annotations

from collections.abc import Mapping

from qgraph.errors import FormatError, Place
from qgraph.formats import BlockFormat, parse_format
from qgraph.policy.document import Document, Path, shown
from qgraph.policy.faults import nearest
from qgraph.policy.model import HIGH, OperandPolicy, Policy, Rule, Transform
from qgraph.policy.schema import (
    FormatEntry,
    MatchEntry,
    OperandEntry,
    PolicyFile,
    RuleEntry,
    TransformEntry,
)
from qgraph.policy.selector import OPS, ROLES, Match, Op, Role, products_of

BLOCK_KEYS = ("blocks", "first_blocks", "last_blocks")


def resolve(file: PolicyFile, document: Document, path: str) -> Policy:
    """Return the policy a file describes.

    Raises: PolicyError where names, operands or transforms do not fit together.
    """
    formats = {name: _format(name, e, document) for name, e in file.formats.items()}
    transforms = {name: _transform(name, e, document) for name, e in file.transforms.items()}
    rules = tuple(
        _rule(i, entry, _Names(formats, transforms, document)) for i, entry in enumerate(file.rules)
    )
    policy = Policy(
        name=file.name, source=file.source, path=path, ragged=file.ragged, rules=rules
    )
    if policy.name != "high" and not any(operand.changes for operand in policy.operands):
        fix = "give an operand a format, or name the policy high"
        raise document.fault(("rules",), "no rule quantizes anything", fix, at_key=True)
    return policy
