"""What a policy says about memory: optimizer states, parameters, and what is saved for the backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qgraph.errors import Place
from qgraph.formats import BlockFormat, Codebook, Rounding
from qgraph.formats.rounding import NEAREST
from qgraph.policy.selector import Match, match_entry

StateStorage = Literal["packed", "emulated"]
FloatName = Literal["fp32", "bf16", "fp16"]
# States that optimizers divide by the root of: Adam's, RMSprop's and Adadelta's, Adagrad's.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum")
_RANGE = 2.0**12  # from the smallest to the largest value of an element


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a tensor that waits in memory is stored; no format means as it is."""

    format: BlockFormat | None = None
    rounding: Rounding = NEAREST

    @property
    def draws(self) -> bool:
        """Whether codes or scales take random bits."""
        scaled = self.format is not None and self.format.scale.random
        return self.rounding.random or scaled

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        return {"format": self.format and str(self.format), "rounding": str(self.rounding)}

    @property
    def entry(self) -> object:
        """The format as a policy file names it, with its rounding if that is not the usual one."""
        name = "high" if self.format is None else str(self.format)
        return (
            name if self.rounding == NEAREST else {"format": name, "rounding": str(self.rounding)}
        )


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
        return {"storage": self.storage, **_kept(self.keep), **states}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of these formats, one sentence each."""
        found = ((name, second_moment_fault(name, state)) for name, state in self.states.items())
        return tuple(f"optimizer.{name}: {fault}" for name, fault in found if fault)


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


@dataclass(frozen=True, kw_only=True)
class ParameterPolicy:
    """What parameters are stored in, and what they are multiplied in.

    `storage` is the dtype of every parameter of a module that holds a matrix; where `compute` is
    another, those parameters are cast to it at each use (LayerCast). `master` is a copy that the
    optimizer keeps, in fp32 if it has no format; without one, updates go straight to the stored
    numbers, rounded by `rounding`. Modules that `keep` names stay as they are.
    """

    storage: FloatName
    compute: FloatName
    rounding: Literal["nearest", "stochastic"] = "nearest"
    master: Stored | None = None
    keep: tuple[str, ...] = ()

    @property
    def updates(self) -> bool:
        """Whether updates are computed in fp32 and not in the storage dtype."""
        return self.master is not None or self.rounding != "nearest"

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        return {**self.entry, "keep": sorted(set(self.keep))}

    @property
    def entry(self) -> dict[str, object]:
        """The key `parameters`, as a policy file has it."""
        master: object = "none"
        if self.master is not None:
            entry = self.master.entry
            master = "fp32" if entry == "high" else entry
        return {
            "storage": self.storage,
            "compute": self.compute,
            "rounding": self.rounding,
            "master": master,
            **_kept(self.keep),
        }


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
            "match": match_entry(self.match),
            "min_size": self.min_size,
            "stored": self.stored.facts,
        }

    @property
    def entry(self) -> dict[str, object]:
        """The rule as a policy file has it."""
        match = match_entry(self.match) | ({"min_size": self.min_size} if self.min_size else {})
        if self.stored.format is None:
            return {"match": match, "keep": "high"}
        stored = self.stored.entry
        return {"match": match, **(stored if isinstance(stored, dict) else {"format": stored})}


def _kept(modules: tuple[str, ...]) -> dict[str, object]:
    return {"keep": list(modules)} if modules else {}
