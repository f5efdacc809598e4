"""The schema of what a policy says about memory: the keys optimizer, parameters and stash."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from qgraph.formats.rounding import NEAREST
from qgraph.policy.keys import CONFIG, key, optional
from qgraph.policy.memory import FloatName, StateStorage
from qgraph.policy.values import Count, Modules, Ops, Ranges, RoundingText, Size


class StoredEntry(BaseModel):
    """A format and how numbers are rounded to it."""

    model_config = CONFIG
    format: str = key("A name from `formats`, high, or any format's own name or text form.", "high")
    rounding: RoundingText = optional(
        "nearest (ties to even), stochastic, or any other mode `qgraph formats` lists.",
        "stochastic",
        NEAREST,
    )


def _as_entry(value: object) -> object:
    return {"format": value} if isinstance(value, str) else value


StoredFormat = Annotated[
    StoredEntry, BeforeValidator(_as_entry, json_schema_input_type=str | StoredEntry)
]


class OptimizerEntry(BaseModel):
    """How the optimizer keeps its states; every other key is the name of a state."""

    model_config = ConfigDict(**CONFIG | {"extra": "allow"})
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


class ParametersEntry(BaseModel):
    """What parameters are stored in and multiplied in, and how updates reach them."""

    model_config = CONFIG
    storage: FloatName = key("What parameters of modules that hold a matrix are stored in.", "bf16")
    compute: FloatName | None = optional(
        "What they are cast to at each use; left out, the whole model has the dtype of storage.",
        "fp32",
    )
    rounding: Literal["nearest", "stochastic"] = optional(
        "How an update is rounded to storage where there is no master.", "stochastic", "nearest"
    )
    master: StoredFormat | None = optional(
        "The optimizer's own copy, which updates go to: fp32, a format, or none (the default).",
        "fp32",
    )
    keep: Modules | None = optional("Modules whose parameters stay as they are.", ["embed_tokens"])


class StashMatchEntry(BaseModel):
    """The saved tensors a rule speaks about; no key at all means every one."""

    model_config = CONFIG
    op: Ops | None = optional("Kinds of product that made the tensor.", "linear")
    module: Modules | None = optional("Modules that made the tensor, as in rules.", "*.mlp.*")
    min_size: Size = optional("Elements it has at least.", 4096, 0)
    blocks: Ranges | None = optional("Blocks of the model, as in rules.", [0, "2-5", -1])
    first_blocks: Count | None = optional("The first blocks of each stack.", "15%")
    last_blocks: Count | None = optional("The last blocks of each stack.", "15%")


class StashEntry(BaseModel):
    """How tensors that are saved for the backward are stored until then."""

    model_config = CONFIG
    match: StashMatchEntry = optional(
        "Which tensors; left out, all of them.", {"module": "lm_head"}, StashMatchEntry()
    )
    keep: Literal["high"] | None = optional("Save them as they are.", "high")
    format: str | None = optional(
        "A name from `formats`, or any format's name or text form.", "bfp4"
    )
    rounding: RoundingText = optional("As for operands.", "stochastic", NEAREST)


def _as_rules(value: object) -> object:
    return [{"format": value}] if isinstance(value, str) else value


Stash = Annotated[
    list[StashEntry],
    Field(min_length=1),
    BeforeValidator(_as_rules, json_schema_input_type=str | list[StashEntry]),
]
