"""The key `stash`: how tensors that are saved for the backward are stored until then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from qgraph.formats import NEAREST
from qgraph.policy.file.document import Path
from qgraph.policy.file.entry import FileEntry, optional, value_fault
from qgraph.policy.file.values import Modules, RoundingText
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.format import Stored, check_waiting, find_format
from qgraph.policy.keys.match import Count, Match, Ops, Ranges, read_places


@dataclass(frozen=True, kw_only=True)
class StashRule:
    """One entry of `stash`: which tensors saved for the backward, and how they are stored.

    `match` asks for the module and the op that made the tensor; `min_size` counts its elements.
    A rule without a format keeps them as they are.
    """

    number: int
    match: Match
    min_size: int = 0
    stored: Stored

    @property
    def title(self) -> str:
        """The rule's number and what it matches."""
        words = f"{self.match}" if not self.min_size else f"{self.match}, min_size {self.min_size}"
        return f"stash rule {self.number} ({words})"

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        return {
            "match": self.match.entry,
            "min_size": self.min_size,
            "stored": self.stored.facts,
        }

    @property
    def entry(self) -> dict[str, object]:
        """The rule as a policy file has it."""
        match = self.match.entry | ({"min_size": self.min_size} if self.min_size else {})
        if self.stored.format is None:
            return {"match": match, "keep": "high"}
        stored = self.stored.entry
        return {"match": match, **(stored if isinstance(stored, dict) else {"format": stored})}


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise value_fault(f"'{value}' is not a number of elements", "write min_size: 4096")
    return value


Size = Annotated[int, PlainValidator(_size), WithJsonSchema({"type": "integer", "minimum": 0})]


class StashMatchEntry(FileEntry):
    """The saved tensors a rule speaks about; no key at all means every one."""

    op: Ops | None = optional("Kinds of product that made the tensor.", "linear")
    module: Modules | None = optional("Modules that made the tensor, as in rules.", "*.mlp.*")
    min_size: Size = optional("Elements it has at least.", 4096, 0)
    blocks: Ranges | None = optional("Blocks of the model, as in rules.", [0, "2-5", -1])
    first_blocks: Count | None = optional("The first blocks of each stack.", "15%")
    last_blocks: Count | None = optional("The last blocks of each stack.", "15%")


class StashEntry(FileEntry):
    """How tensors that are saved for the backward are stored until then."""

    match: StashMatchEntry = optional(
        "Which tensors; left out, all of them.", {"module": "lm_head"}, StashMatchEntry()
    )
    keep: Literal["high"] | None = optional("Save them as they are.", "high")
    format: str | None = optional(
        "A name from `formats`, or any format's name or text form.", "bfp4"
    )
    rounding: RoundingText = optional("As for operands.", "stochastic", NEAREST)


def _one_rule(value: object) -> object:
    return [{"format": value}] if isinstance(value, str) else value


Stash = Annotated[
    list[StashEntry],
    Field(min_length=1),
    BeforeValidator(_one_rule, json_schema_input_type=str | list[StashEntry]),
]


def _resolve(entries: list[StashEntry] | None, reading: Reading) -> tuple[StashRule, ...]:
    return tuple(_rule(i, entry, reading) for i, entry in enumerate(entries or ()))


def _rule(index: int, entry: StashEntry, reading: Reading) -> StashRule:
    path: Path = ("stash", index)
    document = reading.document
    here: Path = path if path in document.values else ("stash",)  # one word stands for one rule
    if (entry.keep is None) == (entry.format is None):
        problem = "keep and format exclude each other" if entry.keep else "the rule says nothing"
        raise document.fault(here, problem, "write format: bfp4, or keep: high")
    stored = Stored()
    if entry.format is not None:
        where = (*path, "format") if (*path, "format") in document.values else here
        fmt = find_format(entry.format, where, reading)
        stored = Stored(format=fmt, rounding=entry.rounding)
        check_waiting(stored, where, document)
    return StashRule(
        number=index + 1,
        match=read_places(entry.match),
        min_size=entry.match.min_size,
        stored=stored,
    )


STASH_KEY: Key[tuple[StashRule, ...]] = Key(
    module=__name__,
    name="stash",
    entry=Stash | None,
    description="How what the forward saves for the backward is stored: a format, or rules of which "
    "the first that matches decides.",
    example="bfp4",
    default=None,
    resolve=_resolve,
    written=lambda rules, policy: [rule.entry for rule in rules] or None,
    numbers=lambda rules, policy: [rule.facts for rule in rules] or None,
    words=lambda rules, policy: [f"{rule.title}: {rule.stored.text}" for rule in rules],
    changes=bool,
)
