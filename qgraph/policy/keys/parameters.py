"""The key `parameters`: what parameters are stored in, multiplied in, and how updates reach them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qgraph.policy.file.document import Path
from qgraph.policy.file.entry import FileEntry, optional, required
from qgraph.policy.file.values import Modules
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.format import Stored, StoredFormat, read_stored
from qgraph.policy.keys.optimizer import kept_entry

if TYPE_CHECKING:
    pass

FloatName = Literal["fp32", "bf16", "fp16"]
UpdateRounding = Literal["nearest", "stochastic"]
_WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4}


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
    rounding: UpdateRounding = "nearest"
    master: Stored | None = None
    keep: tuple[str, ...] = ()

    @property
    def updates(self) -> bool:
        """Whether updates are computed in fp32 and not in the storage dtype."""
        return self.master is not None or self.rounding != "nearest"

    @property
    def text(self) -> str:
        """What it says in one line."""
        return f"parameters: {', '.join(f'{key} {value}' for key, value in self.entry.items())}"

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
            **kept_entry(self.keep),
        }


class ParametersEntry(FileEntry):
    """What parameters are stored in and multiplied in, and how updates reach them."""

    storage: FloatName = required(
        "What parameters of modules that hold a matrix are stored in.", "bf16"
    )
    compute: FloatName | None = optional(
        "What they are cast to at each use; left out, the whole model has the dtype of storage.",
        "fp32",
    )
    rounding: UpdateRounding = optional(
        "How an update is rounded to storage where there is no master.", "stochastic", "nearest"
    )
    master: StoredFormat | None = optional(
        "The optimizer's own copy, which updates go to: fp32, a format, or none (the default).",
        "fp32",
    )
    keep: Modules | None = optional("Modules whose parameters stay as they are.", ["embed_tokens"])


def _resolve(entry: ParametersEntry | None, reading: Reading) -> ParameterPolicy | None:
    if entry is None:
        return None
    path: Path = ("parameters",)
    document = reading.document
    compute = entry.compute or entry.storage
    if compute != entry.storage and (compute != "fp32" or _WIDTH[entry.storage] == 4):
        problem = f"parameters stored in {entry.storage} are not multiplied in {compute}"
        fix = "write storage: bf16 with compute: fp32; for bf16 products, train under autocast"
        raise document.fault((*path, "compute"), problem, fix)
    if compute == entry.storage and entry.keep:
        problem = "without a wider compute the whole model has one dtype"
        raise document.fault((*path, "keep"), problem, "write compute: fp32, or remove keep")
    master = None
    if entry.master is not None and entry.master.format != "none":
        fp32 = entry.master.format == "fp32"
        master = Stored() if fp32 else read_stored(entry.master, (*path, "master"), reading)
        if entry.rounding != "nearest":
            problem = "with a master, an update is not rounded to storage: it goes to the master"
            raise document.fault((*path, "rounding"), problem, "remove rounding or master")
    if _WIDTH[entry.storage] == 4 and (entry.rounding != "nearest" or master is not None):
        key = "master" if master is not None else "rounding"
        problem = "parameters stored in fp32 are updated in fp32 as they are"
        raise document.fault((*path, key), problem, f"remove {key}, or write storage: bf16")
    return ParameterPolicy(
        storage=entry.storage,
        compute=compute,
        rounding=entry.rounding,
        master=master,
        keep=tuple(entry.keep or ()),
    )


PARAMETERS_KEY: Key[ParameterPolicy | None] = Key(
    module=__name__,
    name="parameters",
    entry=ParametersEntry | None,
    description="What parameters are stored in and multiplied in.",
    example={"storage": "bf16", "compute": "fp32"},
    default=None,
    resolve=_resolve,
    written=lambda parameters, policy: parameters and parameters.entry,
    numbers=lambda parameters, policy: parameters and parameters.facts,
    words=lambda parameters, policy: [parameters.text] if parameters else [],
    changes=bool,
)
