"""Which sites a rule speaks about: its `match`, and the key `keep`, a list of them that stay high."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Protocol

from pydantic import Field, PlainValidator

from qgraph.errors import Place
from qgraph.policy.file.document import Document, Path
from qgraph.policy.file.entry import FileEntry, optional, value_fault
from qgraph.policy.file.values import Amount, Modules, one_or_more, read_share
from qgraph.policy.file.words import did_you_mean, one_line
from qgraph.policy.key import Key, Reading, nothing
from qgraph.policy.keys.groups import GROUPS_KEY, Group, names_module
from qgraph.policy.products import ATTENTION, OPS, ROLES, Op, Role, SiteFacts, products_of

_BLOCK_KEYS = ("blocks", "first_blocks", "last_blocks")


class BlockCount(Amount):
    """A number of blocks, or a share of a stack in percent."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """The sites a rule speaks about; None asks for nothing.

    All of `ops`, `groups`, `modules` and `roles` must hold. `blocks` holds first and last index of each
    range, negative from the end. Where `blocks`, `first_blocks` or `last_blocks` are given, a
    site matches if one of them names its block, and a site outside any block does not match.
    """

    ops: tuple[Op, ...] | None = None
    groups: tuple[Group, ...] | None = None
    modules: tuple[str, ...] | None = None
    roles: tuple[Role, ...] | None = None
    blocks: tuple[tuple[int, int], ...] | None = None
    first_blocks: BlockCount | None = None
    last_blocks: BlockCount | None = None
    also: tuple[Match, ...] = ()  # what must hold as well, where a schedule speaks of some sites

    @property
    def asks_block(self) -> bool:
        """Whether any block selector is given."""
        return any(s is not None for s in (self.blocks, self.first_blocks, self.last_blocks))

    def matches(self, site: SiteFacts) -> bool:
        """Whether the rule speaks about `site`."""
        return (
            self.matches_outside_blocks(site)
            and (not self.asks_block or self._names_block(site.block, site.block_count))
            and all(match.matches(site) for match in self.also)
        )

    def matches_outside_blocks(self, site: SiteFacts) -> bool:
        """Whether the rule would speak about `site` were it in the right block."""
        return (
            (self.ops is None or site.op in self.ops or self._names_attention(site.op))
            and (self.roles is None or site.role in self.roles)
            and (self.groups is None or any(g.names(site.module, site.part) for g in self.groups))
            and (
                self.modules is None
                or any(names_module(glob, site.module) for glob in self.modules)
            )
        )

    def _names_attention(self, op: str) -> bool:
        """Whether the rule says sdpa and `op` is one of its two products."""
        return op in ATTENTION and "sdpa" in (self.ops or ())

    def _names_block(self, block: int | None, count: int | None) -> bool:
        if block is None or count is None:
            return False
        return (
            any(from_start(a, count) <= block <= from_start(b, count) for a, b in self.blocks or ())
            or (self.first_blocks is not None and block < self.first_blocks.of(count))
            or (self.last_blocks is not None and block >= count - self.last_blocks.of(count))
        )

    def __str__(self) -> str:
        words = [
            _phrase("op", self.ops),
            _phrase("group", self.groups and [group.name for group in self.groups]),
            _phrase("module", self.modules),
            _phrase("role", self.roles),
            _phrase("blocks", None if self.blocks is None else map(_range_text, self.blocks)),
            _phrase("first_blocks", None if self.first_blocks is None else [self.first_blocks]),
            _phrase("last_blocks", None if self.last_blocks is None else [self.last_blocks]),
            *map(str, self.also),
        ]
        return ", ".join(word for word in words if word) or "everything"

    @property
    def ops_text(self) -> str:
        """The ops it speaks of, for messages."""
        return f"op {' or '.join(self.ops or OPS)}"

    @property
    def entry(self) -> dict[str, object]:
        """What it asks for, as a policy file writes it."""
        entry: dict[str, object] = {}
        groups = self.groups and [group.name for group in self.groups]
        for key, value in (
            ("op", self.ops),
            ("group", groups),
            ("module", self.modules),
            ("role", self.roles),
        ):
            if value is not None:
                entry[key] = list(value)
        if self.blocks is not None:
            entry["blocks"] = [a if a == b else _range_text((a, b)) for a, b in self.blocks]
        for key, count in (("first_blocks", self.first_blocks), ("last_blocks", self.last_blocks)):
            if count is not None:
                entry[key] = count.entry
        return entry


def from_start(block: int, count: int) -> int:
    """Return a block index counted from the start."""
    return block if block >= 0 else count + block


def _range_text(blocks: tuple[int, int]) -> str:
    first, last = blocks
    return str(first) if first == last else f"{first}-{last}"


def _phrase(key: str, values: Iterable[object] | None) -> str:
    if values is None:
        return ""
    words = [str(value) for value in values]
    if len(words) > 3:
        words = [words[0], f"{len(words) - 1} others"]
    return f"{key} {' or '.join(words)}"


def _range(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    found = None
    if isinstance(value, str):
        found = re.fullmatch(r"(-?[0-9]{1,6})-(-?[0-9]{1,6})", value)
    if not found:
        fix = "write an index such as 0 or -1, or a range: 0-3"
        raise value_fault(f"'{value}' is not a block", fix)
    first, last = int(found[1]), int(found[2])
    if (first < 0) == (last < 0) and first > last:
        raise value_fault(f"the range '{value}' holds no block", "write the lower block first")
    return first, last


def _count(value: object) -> BlockCount:
    fix = "write a number of blocks such as 2, or a percent such as 15%"
    if isinstance(value, int):
        if value < 0:
            raise value_fault(f"'{value}' is below 0", fix)
        return BlockCount(amount=Fraction(value), percent=False)
    share = read_share(value)
    if share is None:
        raise value_fault(f"'{value}' is not a number of blocks", fix)
    if share > 100:
        raise value_fault(f"'{value}' is more than 100%", fix)
    return BlockCount(amount=share, percent=True)


_Range = Annotated[tuple[int, int], PlainValidator(_range, json_schema_input_type=int | str)]
Ops = Annotated[list[Op], Field(min_length=1), one_or_more(Op)]
Roles = Annotated[list[Role], Field(min_length=1), one_or_more(Role)]
Ranges = Annotated[list[_Range], Field(min_length=1), one_or_more(int | str)]
Count = Annotated[BlockCount, PlainValidator(_count, json_schema_input_type=int | str)]


class MatchEntry(FileEntry):
    """The sites a rule speaks about; no key at all means every site."""

    op: Ops | None = optional("Kinds of product.", "linear")
    group: Modules | None = optional(
        "Named parts of the model: head, attention, ffn, or a name from `groups`.", "ffn"
    )
    module: Modules | None = optional(
        "Module paths; * stands for anything, dots too. A path without * also names the last "
        "parts of a longer one: lm_head matches model.lm_head.",
        "lm_head",
    )
    role: Roles | None = optional("Which of an op's products.", "fprop")
    blocks: Ranges | None = optional(
        "Blocks of the model, from 0 or, below 0, from the end: 0, -1, 2-5. Of blocks, "
        "first_blocks and last_blocks one must hold.",
        [0, "2-5", -1],
    )
    first_blocks: Count | None = optional(
        "The first blocks of each stack: how many, or a percent, rounded up.", "15%"
    )
    last_blocks: Count | None = optional(
        "The last blocks of each stack: how many, or a percent, rounded up.", "15%"
    )


class Places(Protocol):
    """The selectors that a `match` of rules and one of saved tensors have in common."""

    op: list[Op] | None
    module: list[str] | None
    blocks: list[tuple[int, int]] | None
    first_blocks: BlockCount | None
    last_blocks: BlockCount | None


def read_match(entry: MatchEntry, path: Path, reading: Reading) -> Match:
    """Return what a `match` of the file, at `path`, asks for.

    Raises: PolicyError if it names an unknown group, or a role that none of its ops has.
    """
    groups, document = reading.of(GROUPS_KEY), reading.document
    for name in entry.group or ():
        if name not in groups:
            problem = f"unknown group '{one_line(name)}'"
            raise document.fault((*path, "group"), problem, did_you_mean(name, groups))
    match = replace(
        read_places(entry),
        groups=None if entry.group is None else tuple(groups[name] for name in entry.group),
        roles=None if entry.role is None else tuple(role for role in ROLES if role in entry.role),
    )
    for role in match.roles or ():
        if not any(products_of(op)[role] for op in match.ops or OPS):
            problem = f"{match.ops_text} has no {role}"
            raise document.fault((*path, "role"), problem, "write fprop or dgrad")
    return match


def read_places(entry: Places) -> Match:
    """Return what the selectors ask for that every `match` has."""
    return Match(
        ops=None if entry.op is None else tuple(op for op in OPS if op in entry.op),
        modules=None if entry.module is None else tuple(entry.module),
        blocks=None if entry.blocks is None else tuple(entry.blocks),
        first_blocks=entry.first_blocks,
        last_blocks=entry.last_blocks,
    )


def block_places(path: Path, document: Document) -> dict[str, Place]:
    """Return where each block selector of the `match` at `path` stands, by its key."""
    places = {key: (*path, key) for key in _BLOCK_KEYS}
    blocks = document.at((*path, "blocks"))
    if isinstance(blocks, list):
        places |= {f"blocks[{i}]": (*path, "blocks", i) for i in range(len(blocks))}
    return {key: document.values[p] for key, p in places.items() if p in document.values}


def _resolve(entries: list[MatchEntry], reading: Reading) -> tuple[Match, ...]:
    return tuple(read_match(entry, ("keep", i), reading) for i, entry in enumerate(entries))


KEEP_KEY: Key[tuple[Match, ...]] = Key(
    module=__name__,
    name="keep",
    entry=list[MatchEntry],
    description="What stays in high precision: tried before the rules, and numbered with them.",
    example=[{"group": "head"}, {"last_blocks": "15%"}],
    default=[],
    resolve=_resolve,
    written=nothing,  # the rules hold it
)
