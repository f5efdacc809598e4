"""What a key of a policy file is: the one contract that every file in `keys` fulfils."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from qgraph.policy.file.document import Document
from qgraph.policy.file.entry import FileEntry, optional, required

if TYPE_CHECKING:
    from qgraph.policy.model import Policy

T = TypeVar("T")
REQUIRED: Any = ...


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A policy file on its way to a policy: its typed entries, and what keys stand for so far."""

    document: Document
    entries: FileEntry
    values: dict[str, Any] = field(default_factory=dict)

    def of(self, key: Key[T]) -> T:
        """Return what a key stands for; so may one key be read in terms of another."""
        if key.name not in self.values:
            self.values[key.name] = key.resolve(getattr(self.entries, key.name), self)
        found: T = self.values[key.name]
        return found


def nothing(value: object, policy: Policy) -> None:
    """Say nothing: what a key answers that changes no numbers, or that no file needs to hold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Key(Generic[T]):
    """A key of a policy file: all that is known of it, in the one `module` that makes it.

    As an attribute of `Policy` it is what the policy says: `stash = STASH_KEY` types `policy.stash`.
    A key without an attribute is read by `KEY.of(policy)` or `policy.values["name"]`.

    The file: `entry` is the type of what it may hold, `description` and `example` are what editors
    and messages say of it, `default` is what it holds where it does not say, `extends` what becomes
    of a base's: replaced as a whole, merged by the names of its entries, or never taken.

    The policy: `resolve` returns what an entry stands for, and raises its faults; `check` raises
    those that only the whole policy shows.

    What it says, of a value and its policy: `written`, as a file holds it, `numbers`, what of it
    changes numbers and so the fingerprint (left out, all that is written), both None where there is
    nothing to say; `words`, the lines of a report; `changes`, whether it does something to a run.
    """

    module: str
    name: str
    entry: Any
    description: str
    example: Any
    default: Any = REQUIRED
    extends: Literal["whole", "names", "never"] = "whole"

    resolve: Callable[[Any, Reading], T]
    check: Callable[[T, Policy, Document], None] = lambda value, policy, document: None

    written: Callable[[T, Policy], object]
    numbers: Callable[[T, Policy], object] | None = None
    words: Callable[[T, Policy], Iterable[str]] = lambda value, policy: ()
    changes: Callable[[T], bool] = lambda value: False

    @property
    def info(self) -> Any:
        """The key as a field of the schema."""
        if self.default is REQUIRED:
            return required(self.description, self.example)
        return optional(self.description, self.example, self.default)

    def of(self, policy: Policy) -> T:
        """Return what a policy says."""
        found: T = policy.values[self.name]
        return found

    @overload
    def __get__(self, policy: None, owner: type) -> Key[T]: ...
    @overload
    def __get__(self, policy: Policy, owner: type) -> T: ...
    def __get__(self, policy: Policy | None, owner: type) -> Key[T] | T:
        """Return what a policy says of the key that is its attribute."""
        return self if policy is None else self.of(policy)


def as_written(entry: T, reading: Reading) -> T:
    """Resolve an entry that stands for itself."""
    return entry
