"""The `match` of a rule or a switch, from the file's words."""

from __future__ import annotations

from qgraph.errors import Place
from qgraph.policy.document import Document, Path
from qgraph.policy.schema import MatchEntry
from qgraph.policy.selector import OPS, ROLES, Match, products_of

BLOCK_KEYS = ("blocks", "first_blocks", "last_blocks")


def make_match(entry: MatchEntry) -> Match:
    """Return what a `match` of the file asks for."""
    return Match(
        ops=None if entry.op is None else tuple(op for op in OPS if op in entry.op),
        modules=None if entry.module is None else tuple(entry.module),
        roles=None if entry.role is None else tuple(role for role in ROLES if role in entry.role),
        blocks=None if entry.blocks is None else tuple(entry.blocks),
        first_blocks=entry.first_blocks,
        last_blocks=entry.last_blocks,
    )


def block_places(path: Path, document: Document) -> dict[str, Place]:
    """Return where each block selector stands, by its key."""
    places = {key: (*path, key) for key in BLOCK_KEYS}
    blocks = document.at((*path, "blocks"))
    if isinstance(blocks, list):
        places |= {f"blocks[{i}]": (*path, "blocks", i) for i in range(len(blocks))}
    return {key: document.values[p] for key, p in places.items() if p in document.values}


def check_match_roles(match: Match, path: Path, document: Document) -> None:
    """Raise PolicyError if none of the ops has a role that is asked for."""
    for role in match.roles or ():
        if not any(products_of(op)[role] for op in match.ops or OPS):
            problem = f"{ops_text(match)} has no {role}"
            raise document.fault(path, problem, "write fprop or dgrad")


def ops_text(match: Match) -> str:
    """Return the ops a match speaks of, for messages."""
    return f"op {' or '.join(match.ops or OPS)}"
