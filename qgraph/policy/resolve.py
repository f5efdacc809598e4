"""From typed file to policy: every name looked up, every rule held against what ops have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qgraph.errors import FormatError
from qgraph.formats import (
    ELEMENTS,
    NAMED,
    BlockFormat,
    Rounding,
    find_element,
    make_format,
    make_scale,
    parse_format,
)
from qgraph.formats.rounding import NEAREST
from qgraph.formats.scale import ScaleRounding
from qgraph.policy.document import Document, Path, key_text, shown
from qgraph.policy.faults import nearest
from qgraph.policy.groups import GROUPS
from qgraph.policy.model import Policy, Rule
from qgraph.policy.operand_schema import FormatEntry, OperandEntry, TransformEntry
from qgraph.policy.operands import HIGH, OperandPolicy, Transform
from qgraph.policy.resolve_match import block_places, make_match, ops_text
from qgraph.policy.resolve_memory import resolve_optimizer, resolve_parameters, resolve_stash
from qgraph.policy.resolve_schedule import with_schedule
from qgraph.policy.schema import (
    MatchEntry,
    PolicyFile,
    RuleEntry,
    SetEntry,
)
from qgraph.policy.selector import OPS, ROLES, Group, Match, Role, products_of


@dataclass(frozen=True, kw_only=True)
class _Names:
    formats: Mapping[str, BlockFormat]
    roundings: Mapping[str, Rounding]
    transforms: Mapping[str, Transform]
    groups: Mapping[str, Group]
    document: Document

    def find(self, name: str, path: Path) -> BlockFormat | None:
        """Return the format of a name or text form, None for high; its fault is at `path`."""
        fmt = self.formats.get(name)
        return fmt if fmt is not None or name == "high" else _undeclared(name, path, self)


def resolve(file: PolicyFile, document: Document) -> Policy:
    """Return the policy a file describes.

    Raises: PolicyError where names, operands or transforms do not fit together.
    """
    if not re.fullmatch(r"[^./\\][^/\\]*", file.name) or not file.name.isprintable():
        # `qgraph train` names folders after policies.
        fix = "leave out slashes and a leading dot, as in my-nvfp4"
        raise document.fault(("name",), f"'{file.name}' is no name for a policy", fix)
    names = _Names(
        formats={name: _format(name, e, document) for name, e in file.formats.items()},
        roundings={name: entry.rounding for name, entry in file.formats.items()},
        transforms={name: _transform(name, e, document) for name, e in file.transforms.items()},
        groups={
            name: Group(name=name, modules=tuple(modules))
            for name, modules in {**GROUPS, **file.groups}.items()
        },
        document=document,
    )
    policy = Policy(
        name=file.name,
        source=file.source,
        page=file.page.strip(),
        claims={group: entry.model_dump() for group, entry in file.claims.items()},
        path=document.file,
        ragged=file.ragged,
        min_flops=None if file.coverage is None else file.coverage.min_flops,
        rules=(
            *(_keep(i, entry, names) for i, entry in enumerate(file.keep)),
            *(_rule(i, entry, len(file.keep), names) for i, entry in enumerate(file.rules)),
        ),
        optimizer=resolve_optimizer(file.optimizer, names.find, document),
        parameters=resolve_parameters(file.parameters, names.find, document),
        stash=resolve_stash(file.stash, names.find, document),
    )

    def read_product(
        role: Role, entry: SetEntry, match: Match, path: Path
    ) -> Mapping[str, OperandPolicy]:
        return _product(role, entry, match, path, names)

    policy = with_schedule(policy, file, document, read_product, names.groups)
    changes = any(operand.changes for operand in policy.operands)
    changes = changes or bool(policy.optimizer or policy.parameters or policy.stash)
    if policy.name != "high" and not changes:
        fix = "give an operand a format, or name the policy high"
        raise document.fault(("rules",), "no rule quantizes anything", fix, at_key=True)
    return policy


def _format(name: str, entry: FormatEntry, document: Document) -> BlockFormat:
    path: Path = ("formats", name)
    if name == "high":
        fix = "choose another name"
        raise document.fault(path, "high stands for no format at all", fix, at_key=True)
    rounding, dialect = entry.scale_rounding, str(entry.dialect)
    if dialect in _MX_DIALECTS:
        rounding = rounding or _MX_DIALECTS[dialect]
        if not entry.scale.endswith("m0") or rounding != _MX_DIALECTS[dialect]:
            problem = (
                f"the dialect {dialect} speaks of ue8m0 scales, rounded {_MX_DIALECTS[dialect]}"
            )
            raise document.fault(
                (*path, "dialect"), problem, "write scale: ue8m0 and no scale_rounding"
            )
        dialect = "te"
    try:
        scale = make_scale(entry.scale, rounding, entry.range)
    except FormatError as error:
        where = (*path, "scale_rounding")
        raise document.fault(where, error.problem, error.fix, at_key=True) from None
    try:
        return make_format(
            element=find_element(entry.element), block=entry.block, scale=scale,
            tensor_scale=entry.tensor_scale or "none", dialect=dialect,
        )  # fmt: skip
    except FormatError as error:
        raise document.fault(path, error.problem, error.fix) from None


# The MX dialects are roundings of a power of two; nothing else differs.
_MX_DIALECTS: dict[str, ScaleRounding] = {"ocp": "floor", "rceil": "rceil"}


def _transform(name: str, entry: TransformEntry, document: Document) -> Transform:
    if entry.signs == "te" and entry.hadamard not in (0, 16):
        problem = f"there are 16 te signs, and the rotation takes {entry.hadamard}"
        fix = "write hadamard: 16, or signs: none"
        raise document.fault(("transforms", name, "signs"), problem, fix)
    if entry.seed and entry.signs not in ("run", "site"):
        problem = f"signs of {entry.signs} are not drawn from a seed"
        fix = "remove seed, or write signs: run"
        raise document.fault(("transforms", name, "seed"), problem, fix, at_key=True)
    return Transform(
        name=name, hadamard=entry.hadamard, signs=entry.signs, output=entry.output, seed=entry.seed
    )


def _keep(index: int, entry: MatchEntry, names: _Names) -> Rule:
    path: Path = ("keep", index)
    match = make_match(entry, path, names.groups, names.document)
    return Rule(
        number=index + 1, place=names.document.values[path], match=match, keep=True, products={},
        places=block_places(path, names.document), key=key_text(path),
    )  # fmt: skip


def _rule(index: int, entry: RuleEntry, before: int, names: _Names) -> Rule:
    path: Path = ("rules", index)
    document = names.document
    roles = [word for word in document.words(path) if word in ROLES]
    if entry.keep and roles:
        problem = f"keep and {roles[0]} exclude each other"
        raise document.fault((*path, roles[0]), problem, "remove one of them", at_key=True)
    if not entry.keep and not roles:
        fix = "write keep: high, or a product: fprop, dgrad or wgrad"
        raise document.fault(path, "the rule says nothing about the sites it matches", fix)
    match = make_match(entry.match, (*path, "match"), names.groups, document)
    products = {role: _product(role, entry, match, path, names) for role in ROLES if role in roles}
    return Rule(
        number=before + index + 1,
        place=document.values[path],
        match=match,
        keep=entry.keep is not None,
        products=products,
        places=block_places((*path, "match"), document),
        key=key_text((*path, "match")),
        name=entry.name or "",
    )


def _product(
    role: Role, entry: RuleEntry | SetEntry, match: Match, path: Path, names: _Names
) -> dict[str, OperandPolicy]:
    path, document = (*path, role), names.document
    kinds = document.words(path)
    legal = {k: None for op in match.ops or OPS for pair in products_of(op)[role] for k in pair}
    if not legal:
        fix = f"remove {role}, or match op linear, conv or experts"
        raise document.fault(path, f"{ops_text(match)} has no {role}", fix, at_key=True)
    if match.roles is not None and role not in match.roles:
        problem = f"the rule matches only {' and '.join(match.roles)}"
        fix = f"add {role} to match.role, or remove it here"
        raise document.fault(path, problem, fix, at_key=True)
    if not kinds:
        example = shown(next(iter(names.formats), "high"))
        fix = f"write {role}: {{{next(iter(legal))}: {example}}}"
        raise document.fault(path, "it names no operand", fix)
    product: dict[str, OperandPolicy] = {}
    for kind in kinds:
        if kind not in legal:
            problem = f"{ops_text(match)} has no {kind} in {role}"
            fix = f"use one of: {', '.join(legal)}"
            raise document.fault((*path, kind), problem, fix, at_key=True)
        product[kind] = _operand(getattr(getattr(entry, role), kind), (*path, kind), names)
    _check_rotations(role, match, product, path, document)
    return product


def _operand(entry: OperandEntry, path: Path, names: _Names) -> OperandPolicy:
    document = names.document
    fmt = names.find(entry.format, (*path, "format"))
    rounding = entry.rounding or names.roundings.get(entry.format, NEAREST)
    if fmt is None and rounding != NEAREST:
        problem = f"{rounding.mode} rounding needs a format to round to"
        raise document.fault((*path, "rounding"), problem, "name a format, or remove rounding")
    transform = None
    if entry.transform is not None:
        transform = names.transforms.get(entry.transform)
        if transform is None:
            problem = f"unknown transform '{shown(entry.transform)}'"
            fix = "declare it under transforms:"
            if names.transforms:
                fix = nearest(entry.transform, names.transforms)
            raise document.fault((*path, "transform"), problem, fix)
        if not transform.hadamard:
            transform = None
    _check_gradient(entry, rounding, transform, fmt, path, document)
    return OperandPolicy(
        format=fmt, rounding=rounding, transform=transform, gradient=entry.gradient
    )


def _undeclared(text: str, path: Path, names: _Names) -> BlockFormat:
    """Return a format that the file does not declare: one with a name of its own, or a text form."""
    if text not in NAMED and "/" not in text:
        known = [*names.formats, "high"]
        fix = nearest(text, known)
        if not fix.startswith("did you mean") and (near := nearest(text, NAMED)).startswith("did"):
            fix = near
        elif text in ELEMENTS:
            fix = f"an element alone has no scale: write {text}/row/fp32, or {text}/1x32/ue8m0"
        raise names.document.fault(path, f"unknown format '{shown(text)}'", fix)
    try:
        return parse_format(text)
    except FormatError as error:
        raise names.document.fault(path, shown(error.problem), error.fix) from None


def _check_gradient(
    entry: OperandEntry,
    rounding: Rounding,
    transform: Transform | None,
    fmt: BlockFormat | None,
    path: Path,
    document: Document,
) -> None:
    if entry.gradient.straight:
        return
    where = (*path, "gradient")
    role = path[-2]
    if role != "fprop":
        problem = f"{role} has no gradient of its own"
        raise document.fault(where, problem, "write it in fprop, or remove it", at_key=True)
    if fmt is None:
        problem = "the gradient of a quantizer needs a format"
        raise document.fault(where, problem, "name a format, or remove gradient", at_key=True)
    if transform is not None:
        problem = "the gradient of a rotated operand is straight through"
        raise document.fault(where, problem, "remove gradient or transform", at_key=True)
    if fmt.scale.random or (entry.gradient.absmax and rounding.random):
        problem = f"the gradient {entry.gradient} needs numbers that are not drawn at random"
        raise document.fault(where, problem, "round to nearest, or remove gradient", at_key=True)
    if entry.gradient.absmax and str(fmt.scale.range) != "absmax":
        problem = f"+absmax differentiates the range absmax, and this one is {fmt.scale.range}"
        raise document.fault(where, problem, f"write {entry.gradient.estimator}", at_key=True)


def _check_rotations(
    role: Role, match: Match, product: Mapping[str, OperandPolicy], path: Path, document: Document
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
        fix = f"give {other} the transform '{shown(transform.name)}' too, or remove it here"
        if match.ops is None and len(pairs) > 1 and other not in product:
            fix += f" (the rule matches op {op} as well)"
        raise document.fault(place, problem, fix)
