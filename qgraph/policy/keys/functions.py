"""The key `functions`: which functions of the model are computed by another definition than its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from qgraph.policy.file.document import Path
from qgraph.policy.file.entry import optional
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.groups import (
    EVERYWHERE,
    ModulesEntry,
    modules_entry,
    modules_text,
    names_module,
)

# What may be said of each function: how it is computed. The first is shown as the example.
FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "softmax": ("two_pass",),  # the largest value and the sum in one pass, the quotients in another
}


@dataclass(frozen=True, kw_only=True)
class FunctionRule:
    """One function, how it is computed, and in which modules; the first rule that names one decides."""

    modules: tuple[str, ...] = EVERYWHERE
    function: str
    use: str

    def names(self, module: str) -> bool:
        """Whether it speaks about `module`."""
        return any(names_module(glob, module) for glob in self.modules)

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        return {"modules": sorted(set(self.modules)), self.function: self.use}

    @property
    def entry(self) -> dict[str, object]:
        """The rule as a policy file writes it."""
        return {**modules_entry(self.modules), self.function: self.use}

    @property
    def text(self) -> str:
        """The rule in one line."""
        return f"{self.function} {self.use}{modules_text(self.modules)}"


def _field(function: str, uses: tuple[str, ...]) -> Any:
    return Literal[uses] | None, optional(f"How {function} is computed.", uses[0])


FunctionEntry: Any = create_model(
    "FunctionEntry",
    __base__=ModulesEntry,
    __doc__="How functions are computed, in some modules or in all.",
    **{function: _field(function, uses) for function, uses in FUNCTIONS.items()},
)


def _resolve(entries: list[Any], reading: Reading) -> tuple[FunctionRule, ...]:
    return tuple(rule for i, entry in enumerate(entries) for rule in _rules(i, entry, reading))


def _rules(index: int, entry: Any, reading: Reading) -> list[FunctionRule]:
    path: Path = ("functions", index)
    named = [word for word in reading.document.words(path) if word in FUNCTIONS]
    if not named:
        function, uses = next(iter(FUNCTIONS.items()))
        raise reading.document.fault(path, "it names no function", f"write {function}: {uses[0]}")
    modules = EVERYWHERE if entry.modules is None else tuple(entry.modules)
    return [
        FunctionRule(modules=modules, function=word, use=getattr(entry, word)) for word in named
    ]


FUNCTIONS_KEY: Key[tuple[FunctionRule, ...]] = Key(
    module=__name__,
    name="functions",
    entry=Annotated[list[FunctionEntry], Field(min_length=1)],
    description="Functions computed by another definition than the model's own; of rules that name one "
    "function the first decides.",
    example=[{"softmax": "two_pass"}],
    default=[],
    resolve=_resolve,
    written=lambda rules, policy: [rule.entry for rule in rules] or None,
    numbers=lambda rules, policy: [rule.facts for rule in rules] or None,
    words=lambda rules, policy: [f"functions: {rule.text}" for rule in rules],
    changes=bool,
)
