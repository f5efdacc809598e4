"""Which sites a rule speaks about: by op, module path, role and block."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, get_args

Role = Literal["fprop", "dgrad", "wgrad"]
Op = Literal["linear", "matmul", "conv", "experts", "qk", "pv", "sdpa"]
OperandKind = Literal["input", "weight", "grad_output", "lhs", "rhs"]

ROLES: tuple[Role, ...] = get_args(Role)
OPS: tuple[Op, ...] = get_args(Op)
ATTENTION: tuple[Op, ...] = ("qk", "pv")  # the two products that sdpa stands for

# The two operands of every product: of an op with a weight, and of one without.
PRODUCTS: dict[Role, tuple[tuple[OperandKind, OperandKind], ...]] = {
    "fprop": (("input", "weight"),),
    "dgrad": (("grad_output", "weight"),),
    "wgrad": (("input", "grad_output"),),
}
ACTIVATION_PRODUCTS: dict[Role, tuple[tuple[OperandKind, OperandKind], ...]] = {
    "fprop": (("lhs", "rhs"),),
    "dgrad": (("grad_output", "rhs"), ("lhs", "grad_output")),
    "wgrad": (),
}


def products_of(op: Op) -> dict[Role, tuple[tuple[OperandKind, OperandKind], ...]]:
    """Return the operand pairs of each product of `op`."""
    return PRODUCTS if op in ("linear", "conv", "experts") else ACTIVATION_PRODUCTS


class SiteFacts(Protocol):
    """What a rule may ask of a site: one product in a graph."""

    @property
    def op(self) -> str:
        """One of OPS."""

    @property
    def module(self) -> str:
        """Dotted module path; may be empty."""

    @property
    def role(self) -> str:
        """One of ROLES."""

    @property
    def block(self) -> int | None:
        """Index within the site's stack of blocks, from 0; None outside any stack."""

    @property
    def block_count(self) -> int | None:
        """How many blocks that stack has."""

    @property
    def operand_kinds(self) -> tuple[str, ...]:
        """The product's two operands, such as ("input", "weight")."""


@dataclass(frozen=True, kw_only=True)
class BlockCount:
    """A number of blocks, or a share of a stack in percent."""

    amount: Fraction
    percent: bool

    def __str__(self) -> str:
        if not self.percent:
            return str(self.amount)
        return f"{float(self.amount):g}%"

    def of(self, total: int) -> int:
        """Return how many of `total` blocks this is; a share rounds up to whole blocks."""
        if not self.percent:
            return int(self.amount)
        return math.ceil(self.amount * total / 100)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A named part of a model, by module globs; one that begins with `!` takes modules out again."""

    name: str
    modules: tuple[str, ...]

    def names(self, module: str) -> bool:
        """Whether `module` is in the group."""
        inside = any(
            names_module(glob, module) for glob in self.modules if not glob.startswith("!")
        )
        return inside and not any(
            names_module(glob[1:], module) for glob in self.modules if glob.startswith("!")
        )


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
            and (self.groups is None or any(g.names(site.module) for g in self.groups))
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
            _phrase("blocks", None if self.blocks is None else map(range_text, self.blocks)),
            _phrase("first_blocks", None if self.first_blocks is None else [self.first_blocks]),
            _phrase("last_blocks", None if self.last_blocks is None else [self.last_blocks]),
            *map(str, self.also),
        ]
        return ", ".join(word for word in words if word) or "everything"


def from_start(block: int, count: int) -> int:
    """Return a block index counted from the start."""
    return block if block >= 0 else count + block


def range_text(blocks: tuple[int, int]) -> str:
    """Return a range of blocks as a policy file writes it."""
    first, last = blocks
    return str(first) if first == last else f"{first}-{last}"


def percent(share: Fraction) -> str:
    """Return a share, 0 to 100, as policies write it: 90%."""
    return f"{float(share):g}%"


def match_entry(match: Match) -> dict[str, object]:
    """Return what a match asks for, as a policy file writes it."""
    entry: dict[str, object] = {}
    groups = match.groups and [group.name for group in match.groups]
    for key, value in (
        ("op", match.ops),
        ("group", groups),
        ("module", match.modules),
        ("role", match.roles),
    ):
        if value is not None:
            entry[key] = list(value)
    if match.blocks is not None:
        entry["blocks"] = [a if a == b else range_text((a, b)) for a, b in match.blocks]
    for key, count in (("first_blocks", match.first_blocks), ("last_blocks", match.last_blocks)):
        if count is not None:
            entry[key] = str(count) if count.percent else int(count.amount)
    return entry


def names_module(glob: str, module: str) -> bool:
    """Whether a glob, or the last parts of a path, name a module."""
    if any(letter in glob for letter in "*?["):
        return fnmatch.fnmatchcase(module, glob)
    return module == glob or module.endswith(f".{glob}")


def _phrase(key: str, values: Iterable[object] | None) -> str:
    if values is None:
        return ""
    words = [str(value) for value in values]
    if len(words) > 3:
        words = [words[0], f"{len(words) - 1} others"]
    return f"{key} {' or '.join(words)}"
