"""Naming products on the command line: model.layers.3.mlp.down_proj:wgrad, and picking some of them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qgraph.errors import FormatError, QGraphError
from qgraph.formats import find_element, parse_format
from qgraph.policy import ROLES, Match

if TYPE_CHECKING:
    from qgraph.passes import Entry, ReportedOperand


def site_names(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Return each product by its name: module:role, with #2 where a module has several of a role."""
    names: dict[str, Entry] = {}
    seen: Counter[str] = Counter()
    many = Counter(f"{entry.module or '(root)'}:{entry.role}" for entry in entries)
    for entry in entries:
        name = f"{entry.module or '(root)'}:{entry.role}"
        seen[name] += 1
        names[f"{name}#{seen[name]}" if many[name] > 1 else name] = entry
    return names


def find_site(name: str, entries: Sequence[Entry]) -> list[str]:
    """Return the names of the products that `name` means: one, or all those of a module.

    Raises: QGraphError naming the nearest products.
    """
    known = site_names(entries)
    if name in known:
        return [name]
    module, _, rest = name.partition(":")
    found = [site for site in known if site == module or site.partition(":")[0] == module]
    exact = [s for s in found if not rest or s.partition(":")[2].partition("#")[0] == rest]
    if exact:
        return exact
    if found:
        roles = ", ".join(found)
        raise QGraphError(f"{module} has no product '{rest}'", f"use one of: {roles}")
    raise QGraphError(f"no product is called '{name}'", _near(name, known))


def check_module(module: str, modules: Iterable[str]) -> None:
    """Check that some product lies in `module`.

    Raises: QGraphError naming the nearest modules.
    """
    known = {""}
    for path in modules:
        parts = path.split(".")
        known |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    if module not in known:
        raise QGraphError(f"no product lies in a module '{module}'", _near(module, known - {""}))


def pick(
    entries: Sequence[Entry],
    module: str | None = None,
    product: str | None = None,
    format: str | None = None,
    layer: str | None = None,
) -> list[Entry]:
    """Return the products that all of the filters name: a module glob, a role, a format, one layer.

    Raises: QGraphError if a filter names nothing there is, with the nearest that does.
    """
    found = list(entries)
    if layer is not None:
        check_module(layer, (entry.module for entry in entries))
        found = [e for e in found if e.module == layer or e.module.startswith(f"{layer}.")]
    if module is not None:
        match = Match(modules=(module,))
        found = [e for e in found if match.matches(e)]
        if not found:
            known = {entry.module for entry in entries}
            raise QGraphError(f"no module matches '{module}'", _near(module, known))
    if product is not None:
        if product not in ROLES:
            raise QGraphError(
                f"no product is called '{product}'", f"use one of: {', '.join(ROLES)}"
            )
        found = [e for e in found if e.role == product]
    if format is not None:
        found = [e for e in found if uses(e, format)]
        if not any(uses(e, format) for e in entries):
            texts = {o.format for e in entries for o in e.operands} | {"high"}
            elements = {text.split("/")[0] for text in texts}
            raise QGraphError(
                f"no operand is stored as '{format}'",
                f"use one of: {', '.join(sorted(elements | texts))}",
            )
    return found


def uses(entry: Entry, format: str) -> bool:
    """Whether an operand of `entry` has the format: `high`, an element, a name, or a text form."""
    if format == "high":
        return not entry.operands or entry.status != "quantized"
    try:
        wanted = str(parse_format(format))
    except FormatError:
        try:
            wanted = find_element(format).name
        except FormatError:
            wanted = format
    return entry.status == "quantized" and any(_is(operand, wanted) for operand in entry.operands)


def _is(operand: ReportedOperand, wanted: str) -> bool:
    return operand.format == wanted or operand.format.startswith(f"{wanted}/")


def formula(entry: Entry) -> str:
    """Return the product as mathematics: dW = dYᵀ X."""
    if entry.op in ("linear", "conv", "experts"):
        return {"fprop": "Y = X Wᵀ", "dgrad": "dX = dY W", "wgrad": "dW = dYᵀ X"}[entry.role]
    if not entry.operand_kinds or entry.op == "sdpa":
        return "attention, fused"
    if entry.role == "fprop":
        return "Y = A B"
    return "dA = dY Bᵀ" if "rhs" in entry.operand_kinds else "dB = Aᵀ dY"


def _near(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    near = near or [name for name in names if word and word.split(":")[0] in name][:3]
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    return f"use one of: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
