"""The key `rules`: which sites, and what happens to the operands of their products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

from qgraph.errors import Place
from qgraph.policy.file.document import Document, Path, key_text
from qgraph.policy.file.entry import FileEntry, optional
from qgraph.policy.file.words import one_line
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.format import FORMATS_KEY
from qgraph.policy.keys.match import KEEP_KEY, Match, MatchEntry, block_places, read_match
from qgraph.policy.keys.operand import HIGH, OperandField, OperandPolicy, read_operand
from qgraph.policy.products import OPS, ROLES, Role, products_of

if TYPE_CHECKING:
    from qgraph.policy.model import Policy

Product = Mapping[str, OperandPolicy]  # by the operand's kind


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of `rules`: the sites it speaks about, and what happens to them.

    `places` says where each block selector stands in the file; `notes`, of a switched rule, why a
    product is high.
    """

    number: int  # from 1, in file order
    place: Place
    match: Match
    keep: bool
    products: Mapping[Role, Product]
    places: Mapping[str, Place] = field(default_factory=dict)
    name: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    key: str = ""  # where its selectors stand: rules[0].match, keep[0]

    @property
    def quantizes(self) -> bool:
        """Whether the rule stores an operand in fewer bits."""
        return any(operand.quantizes for operand in operands_of([self]))

    @property
    def text(self) -> str:
        """The rule in one line."""
        does = (
            "keep high"
            if self.keep or not self.products
            else f"quantize {', '.join(self.products)}"
        )
        return f"{self.title}: {does}"

    @property
    def title(self) -> str:
        """The rule's number and what it matches."""
        return f"rule {self.number} ({self.match})"

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        match = self.match.entry
        modules, groups = self.match.modules, self.match.groups
        if groups is not None:  # what a group holds changes numbers, its name does not
            found = sorted({glob for group in groups for glob in group.modules})
            match["group"] = found
            if modules is None and not any(glob.startswith("!") for glob in found):
                match["module"] = match.pop("group")
        if modules is not None:
            match["module"] = sorted(set(modules))
        products = {
            role: {kind: o.facts for kind, o in product.items() if o.changes}
            for role, product in self.products.items()
        }
        also = {"also": [m.entry for m in self.match.also]} if self.match.also else {}
        return {
            "match": match,
            **also,
            "products": {role: facts for role, facts in products.items() if facts},
        }

    @property
    def entry(self) -> dict[str, object]:
        """The rule as a policy file writes it."""
        entry: dict[str, object] = {"match": self.match.entry}
        if self.name:
            entry["name"] = self.name
        if self.keep:
            entry["keep"] = "high"
        return entry | {
            role: {kind: operand.entry for kind, operand in product.items()}
            for role, product in self.products.items()
        }


class HasProducts(Protocol):
    """A rule, or a switch of rules."""

    @property
    def products(self) -> Mapping[Role, Product]:
        """What it says of the operands of each product."""


def operands_of(entries: Iterable[HasProducts]) -> Iterator[OperandPolicy]:
    """Yield every operand that rules or switches name."""
    return (o for entry in entries for p in entry.products.values() for o in p.values())


class FpropEntry(FileEntry):
    """The forward product."""

    input: OperandField | None = optional("The layer's input.", "fp4")
    weight: OperandField | None = optional("The weight.", "fp4")
    lhs: OperandField | None = optional("The left operand of an op without a weight.", "fp4")
    rhs: OperandField | None = optional("The right operand of an op without a weight.", "fp4")


class DgradEntry(FileEntry):
    """The product that gives the gradient of the input, or of lhs and rhs."""

    grad_output: OperandField | None = optional("The gradient of the output.", "fp4")
    weight: OperandField | None = optional("The weight.", "fp4")
    lhs: OperandField | None = optional("The left operand of an op without a weight.", "fp4")
    rhs: OperandField | None = optional("The right operand of an op without a weight.", "fp4")


class WgradEntry(FileEntry):
    """The product that gives the gradient of the weight."""

    input: OperandField | None = optional("The layer's input.", "fp4")
    grad_output: OperandField | None = optional("The gradient of the output.", "fp4")


class RuleEntry(FileEntry):
    """What happens to the sites a rule matches: keep them, or quantize operands per product."""

    match: MatchEntry = optional(
        "Which sites; left out, all of them.", {"op": "linear"}, MatchEntry()
    )
    name: Annotated[str, Field(min_length=1)] | None = optional(
        "What a schedule calls the rule.", "mlp"
    )
    keep: Literal["high"] | None = optional("Leave the sites in high precision.", "high")
    fprop: FpropEntry | None = optional("The forward product.", {"input": "fp4"})
    dgrad: DgradEntry | None = optional("The input's gradient.", {"grad_output": "fp4"})
    wgrad: WgradEntry | None = optional("The weight's gradient.", {"grad_output": "fp4"})


class ProductEntries(Protocol):
    """What an entry has that says what happens to products."""

    fprop: FpropEntry | None
    dgrad: DgradEntry | None
    wgrad: WgradEntry | None


def _resolve(entries: list[RuleEntry], reading: Reading) -> tuple[Rule, ...]:
    matches = reading.of(KEEP_KEY)
    kept = [_kept(i, match, reading.document) for i, match in enumerate(matches)]
    own = [_rule(i, entry, len(kept), reading) for i, entry in enumerate(entries)]
    return (*kept, *own)


def _kept(index: int, match: Match, document: Document) -> Rule:
    path: Path = ("keep", index)
    return Rule(
        number=index + 1, place=document.values[path], match=match, keep=True, products={},
        places=block_places(path, document), key=key_text(path),
    )  # fmt: skip


def _rule(index: int, entry: RuleEntry, before: int, reading: Reading) -> Rule:
    path: Path = ("rules", index)
    document = reading.document
    roles = [word for word in document.words(path) if word in ROLES]
    if entry.keep and roles:
        problem = f"keep and {roles[0]} exclude each other"
        raise document.fault((*path, roles[0]), problem, "remove one of them", at_key=True)
    if not entry.keep and not roles:
        fix = "write keep: high, or a product: fprop, dgrad or wgrad"
        raise document.fault(path, "the rule says nothing about the sites it matches", fix)
    match = read_match(entry.match, (*path, "match"), reading)
    return Rule(
        number=before + index + 1,
        place=document.values[path],
        match=match,
        keep=entry.keep is not None,
        products={
            role: read_product(role, entry, match, path, reading) for role in ROLES if role in roles
        },
        places=block_places((*path, "match"), document),
        key=key_text((*path, "match")),
        name=entry.name or "",
    )


def read_product(
    role: Role, entry: ProductEntries, match: Match, path: Path, reading: Reading
) -> Product:
    """Return what the entry at `path` does to one product of the sites that `match` names.

    Raises: PolicyError if these have no such product or operand, or if its rotations do not cancel.
    """
    path, document = (*path, role), reading.document
    kinds = document.words(path)
    legal = {k: None for op in match.ops or OPS for pair in products_of(op)[role] for k in pair}
    if not legal:
        fix = f"remove {role}, or match op linear, conv or experts"
        raise document.fault(path, f"{match.ops_text} has no {role}", fix, at_key=True)
    if match.roles is not None and role not in match.roles:
        problem = f"the rule matches only {' and '.join(match.roles)}"
        fix = f"add {role} to match.role, or remove it here"
        raise document.fault(path, problem, fix, at_key=True)
    if not kinds:
        declared = reading.of(FORMATS_KEY)
        example = one_line(next(iter(declared), "high"))
        fix = f"write {role}: {{{next(iter(legal))}: {example}}}"
        raise document.fault(path, "it names no operand", fix)
    product: dict[str, OperandPolicy] = {}
    for kind in kinds:
        if kind not in legal:
            problem = f"{match.ops_text} has no {kind} in {role}"
            fix = f"use one of: {', '.join(legal)}"
            raise document.fault((*path, kind), problem, fix, at_key=True)
        product[kind] = read_operand(getattr(getattr(entry, role), kind), (*path, kind), reading)
    _check_rotations(role, match, product, path, document)
    return product


def _check_rotations(
    role: Role, match: Match, product: Product, path: Path, document: Document
) -> None:
    pairs = {pair: op for op in (match.ops or OPS)[::-1] for pair in products_of(op)[role]}
    for pair, op in pairs.items():
        first, second = (product.get(kind, HIGH).transform for kind in pair)
        if (first and first.rotation) == (second and second.rotation):
            continue
        rotated, other = pair if first else pair[::-1]
        place: Path = (*path, rotated, "transform")
        if first and second:
            problem = f"{rotated} and {other} are rotated differently: the product would be wrong"
            raise document.fault(place, problem, "give both the same transform")
        problem = f"rotated on one side only: the product with {other} would be wrong"
        transform = first or second
        assert transform is not None, "one side is rotated"
        fix = f"give {other} the transform '{one_line(transform.name)}' too, or remove it here"
        if match.ops is None and len(pairs) > 1 and other not in product:
            fix += f" (the rule matches op {op} as well)"
        raise document.fault(place, problem, fix)


def _words(rules: tuple[Rule, ...], policy: Policy) -> Iterator[str]:
    for rule in rules:
        yield rule.text
        for role, product in rule.products.items():
            operands = (f"{kind} {operand.text}" for kind, operand in product.items())
            yield f"  {role}: {', '.join(operands)}"


RULES_KEY: Key[tuple[Rule, ...]] = Key(
    module=__name__,
    name="rules",
    entry=Annotated[list[RuleEntry], Field(min_length=1)],
    description="The first rule that matches a site decides.",
    example=[{"match": {"op": "linear"}, "keep": "high"}],
    resolve=_resolve,
    written=lambda rules, policy: [rule.entry for rule in rules],
    numbers=lambda rules, policy: [rule.facts for rule in rules],
    words=_words,
    changes=lambda rules: any(operand.changes for operand in operands_of(rules)),
)
