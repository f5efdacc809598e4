"""The key `optimizer`: how an optimizer keeps its states between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from qgraph.errors import Place
from qgraph.formats import BlockFormat, Codebook
from qgraph.policy.file.document import Path
from qgraph.policy.file.entry import CONFIG, FileEntry, optional
from qgraph.policy.file.values import Modules
from qgraph.policy.file.words import did_you_mean, one_line
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.format import Stored, StoredEntry, StoredFormat, read_stored

if TYPE_CHECKING:
    pass

StateStorage = Literal["packed", "emulated"]
# States that optimizers divide by the root of: Adam's, RMSprop's and Adadelta's, Adagrad's.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum")
_RANGE = 2.0**12  # from the smallest to the largest value of an element


@dataclass(frozen=True, kw_only=True)
class OptimizerPolicy:
    """How an optimizer keeps its states between steps, by the state's name.

    `packed` keeps codes and scales; `emulated` keeps their values in the state's own dtype. States
    of parameters in modules that `keep` names, and of parameters that are no matrices, stay high.
    """

    states: Mapping[str, Stored]
    storage: StateStorage = "packed"
    keep: tuple[str, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict, compare=False)

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers: how the same numbers are stored does not."""
        states = {name: state.facts for name, state in sorted(self.states.items())}
        return {"states": states, "keep": sorted(set(self.keep))}

    @property
    def entry(self) -> dict[str, object]:
        """The key `optimizer`, as a policy file has it."""
        states = {name: state.entry for name, state in self.states.items()}
        return {"storage": self.storage, **kept_entry(self.keep), **states}

    @property
    def text(self) -> str:
        """The states and their formats in one line."""
        states = (f"{name} {state.text}" for name, state in self.states.items())
        kept = f"; kept: {', '.join(self.keep)}" if self.keep else ""
        return f"optimizer ({self.storage}): {', '.join(states)}{kept}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of these formats, one sentence each."""
        found = ((name, second_moment_fault(name, state)) for name, state in self.states.items())
        return tuple(f"optimizer.{name}: {fault}" for name, fault in found if fault)


def kept_entry(modules: tuple[str, ...]) -> dict[str, object]:
    """Return the modules a key leaves as they are, as a policy file writes them."""
    return {"keep": list(modules)} if modules else {}


def second_moment_fault(name: str, state: Stored) -> str:
    """Return why a state's format cannot hold it, or nothing.

    Source: EfficientLLMs, arXiv 2407.11722.
    """
    fmt = state.format
    if name not in SECOND_MOMENTS or fmt is None or state.rounding.mode == "up":
        return ""
    reach = _reach(fmt)
    if reach >= _RANGE:
        return ""
    return (
        f"{fmt} is too coarse for second moments: what is below 1/{2 * reach:.0f} of its block's largest "
        "value becomes 0, and the update m / (sqrt(v) + eps) explodes (arXiv 2407.11722); use an "
        "element of more exponents, such as e5m2/1x32/ue8m0, or rounding: up"
    )


def _reach(fmt: BlockFormat) -> float:
    element = fmt.element
    if isinstance(element, Codebook):
        return float(element.max) / element.min_positive
    return element.max / element.min_positive


class OptimizerEntry(FileEntry):
    """How the optimizer keeps its states; every other key is the name of a state."""

    model_config = ConfigDict(**CONFIG | {"extra": "allow"})
    named: ClassVar[Any] = StoredEntry
    __pydantic_extra__: dict[str, StoredFormat] = Field(init=False)
    storage: StateStorage = optional(
        "packed (codes and scales, in few bits) or emulated (their values, in the state's dtype): "
        "the same numbers.",
        "packed",
        "packed",
    )
    keep: Modules | None = optional("Modules whose states stay as they are.", ["embed_tokens"])

    @property
    def states(self) -> dict[str, StoredEntry]:
        """The states by name."""
        return dict(self.__pydantic_extra__ or {})


def _resolve(entry: OptimizerEntry | None, reading: Reading) -> OptimizerPolicy | None:
    if entry is None:
        return None
    path: Path = ("optimizer",)
    document, states = reading.document, {}
    for name in document.words(path):
        state = entry.states.get(name)
        if state is None:
            continue
        for word in OptimizerEntry.model_fields:  # misspelt, it would be the name of a state
            if did_you_mean(name, [word]).startswith("did"):
                problem, fix = f"unknown key '{one_line(name)}'", f"did you mean '{word}'?"
                raise document.fault((*path, name), problem, fix, at_key=True)
        states[name] = read_stored(state, (*path, name), reading)
    if not any(state.format for state in states.values()):
        fix = "write exp_avg: int8/row/fp32, or remove optimizer"
        raise document.fault(path, "no state has a format", fix, at_key=True)
    places = {name: document.keys[*path, name] for name in states}
    return OptimizerPolicy(
        states=states, storage=entry.storage, keep=tuple(entry.keep or ()), places=places
    )


OPTIMIZER_KEY: Key[OptimizerPolicy | None] = Key(
    module=__name__,
    name="optimizer",
    entry=OptimizerEntry | None,
    description="How the optimizer keeps its states between steps, by the state's name.",
    example={"exp_avg": "int4/row/fp32", "storage": "packed"},
    default=None,
    resolve=_resolve,
    written=lambda optimizer, policy: optimizer and optimizer.entry,
    numbers=lambda optimizer, policy: optimizer and optimizer.facts,
    words=lambda optimizer, policy: [optimizer.text] if optimizer else [],
    changes=bool,
)
