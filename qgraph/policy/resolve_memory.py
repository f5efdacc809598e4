"""From typed file to policy: the keys optimizer, parameters and stash."""

from __future__ import annotations

from collections.abc import Callable

from qgraph.formats import BlockFormat
from qgraph.formats.rounding import NEAREST
from qgraph.policy.document import Document, Path, shown
from qgraph.policy.faults import nearest
from qgraph.policy.memory import OptimizerPolicy, ParameterPolicy, StashRule, Stored
from qgraph.policy.memory_schema import (
    OptimizerEntry,
    ParametersEntry,
    StashEntry,
    StoredEntry,
)
from qgraph.policy.selector import OPS, Match

FindFormat = Callable[[str, Path], BlockFormat | None]
_WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4}


def resolve_optimizer(
    entry: OptimizerEntry | None, find: FindFormat, document: Document
) -> OptimizerPolicy | None:
    """Return what the key `optimizer` says, or None without it.

    Raises: PolicyError if it names no state, or a format a state cannot have.
    """
    if entry is None:
        return None
    path: Path = ("optimizer",)
    states = {}
    for name in document.words(path):
        state = entry.states.get(name)
        if state is None:
            continue
        for word in ("storage", "keep"):  # misspelt, it would be the name of a state
            if nearest(name, [word]).startswith("did"):
                problem, fix = f"unknown key '{shown(name)}'", f"did you mean '{word}'?"
                raise document.fault((*path, name), problem, fix, at_key=True)
        states[name] = _stored(state, (*path, name), find, document)
    if not any(state.format for state in states.values()):
        fix = "write exp_avg: int8/row/fp32, or remove optimizer"
        raise document.fault(path, "no state has a format", fix, at_key=True)
    places = {name: document.keys[*path, name] for name in states}
    return OptimizerPolicy(
        states=states, storage=entry.storage, keep=tuple(entry.keep or ()), places=places
    )


def resolve_parameters(
    entry: ParametersEntry | None, find: FindFormat, document: Document
) -> ParameterPolicy | None:
    """Return what the key `parameters` says, or None without it.

    Raises: PolicyError if its words exclude each other.
    """
    if entry is None:
        return None
    path: Path = ("parameters",)
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
        master = Stored() if fp32 else _stored(entry.master, (*path, "master"), find, document)
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


def resolve_stash(
    entries: list[StashEntry] | None, find: FindFormat, document: Document
) -> tuple[StashRule, ...]:
    """Return the rules of the key `stash`; none without it.

    Raises: PolicyError if a rule says nothing, or two things, or a format no tensor can wait in.
    """
    return tuple(_rule(i, entry, find, document) for i, entry in enumerate(entries or ()))


def _rule(index: int, entry: StashEntry, find: FindFormat, document: Document) -> StashRule:
    path: Path = ("stash", index)
    here: Path = path if path in document.values else ("stash",)  # one word stands for one rule
    if (entry.keep is None) == (entry.format is None):
        problem = "keep and format exclude each other" if entry.keep else "the rule says nothing"
        raise document.fault(here, problem, "write format: bfp4, or keep: high")
    stored = Stored()
    if entry.format is not None:
        where = (*path, "format") if (*path, "format") in document.values else here
        fmt = find(entry.format, where)
        stored = Stored(format=fmt, rounding=entry.rounding)
        _check(stored, where, document)
    asked = entry.match
    match = Match(
        ops=None if asked.op is None else tuple(op for op in OPS if op in asked.op),
        modules=None if asked.module is None else tuple(asked.module),
        blocks=None if asked.blocks is None else tuple(asked.blocks),
        first_blocks=asked.first_blocks,
        last_blocks=asked.last_blocks,
    )
    return StashRule(number=index + 1, match=match, min_size=asked.min_size, stored=stored)


def _stored(entry: StoredEntry, path: Path, find: FindFormat, document: Document) -> Stored:
    where = (*path, "format") if (*path, "format") in document.values else path
    found = Stored(format=find(entry.format, where), rounding=entry.rounding)
    _check(found, path, document)
    return found


def _check(stored: Stored, path: Path, document: Document) -> None:
    fmt = stored.format
    if fmt is None:
        if stored.rounding != NEAREST:
            problem = f"{stored.rounding.mode} rounding needs a format to round to"
            raise document.fault(path, problem, "name a format, or remove rounding")
        return
    if fmt.scale.range.kind == "delayed":
        problem = f"{fmt} keeps a history of steps, which only operands of products have"
        raise document.fault(path, problem, "use the range absmax")
