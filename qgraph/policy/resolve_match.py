"""The `match` of a rule or a switch, from the file's words."""

from __future__ import annotations

from collections.abc import Mapping

from qgraph.errors import Place
from qgraph.policy.document import Document, Path, shown
from qgraph.policy.faults import nearest
from qgraph.policy.schema import MatchEntry
from qgraph.policy.selector import OPS, ROLES, Group, Match, products_of

BLOCK_KEYS = ("blocks", "first_blocks", "last_blocks")


def make_match(
    entry: MatchEntry, path: Path, groups: Mapping[str, Group], document: Document
) -> Match:
    """Return what a `match` of the file, at `path`, asks for.

    Raises: PolicyError if it names an unknown group, or a role that none of its ops has.
    """
    for name in entry.group or ():
        if name not in groups:
            problem = f"unknown group '{shown(name)}'"
            raise document.fault((*path, "group"), problem, nearest(name, groups))
    match = Match(
        ops=None if entry.op is None else tuple(op for op in OPS if op in entry.op),
        groups=None if entry.group is None else tuple(groups[name] for name in entry.group),
        modules=None if entry.module is None else tuple(entry.module),
        roles=None if entry.role is None else tuple(role for role in ROLES if role in entry.role),
        blocks=None if entry.blocks is None else tuple(entry.blocks),
        first_blocks=entry.first_blocks,
        last_blocks=entry.last_blocks,
    )
    for role in match.roles or ():
        if not any(products_of(op)[role] for op in match.ops or OPS):
            problem = f"{ops_text(match)} has no {role}"
            raise document.fault((*path, "role"), problem, "write fprop or dgrad")
    return match


def block_places(path: Path, document: Document) -> dict[str, Place]:
    """Return where each block selector stands, by its key."""
    places = {key: (*path, key) for key in BLOCK_KEYS}
    blocks = document.at((*path, "blocks"))
    if isinstance(blocks, list):
        places |= {f"blocks[{i}]": (*path, "blocks", i) for i in range(len(blocks))}
    return {key: document.values[p] for key, p in places.items() if p in document.values}


def ops_text(match: Match) -> str:
    """Return the ops a match speaks of, for messages."""
    return f"op {' or '.join(match.ops or OPS)}"
