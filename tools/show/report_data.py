"""The data behind the report: every product with its plan, values, code, and the flow between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qgraph.formats import Codebook, find_element, parse_format
from qgraph.policy import ROLES, dump_policy, try_rules
from qgraph.tools.show.changes import describe, operand_bits
from qgraph.tools.show.curves import Telemetry, means
from qgraph.tools.show.flow import product_flow
from qgraph.tools.show.graph_lines import read_lines, slice_before
from qgraph.tools.show.look import Look
from qgraph.tools.show.operands import draw_site
from qgraph.tools.show.picture import draw_text
from qgraph.tools.show.shared import shared_codes
from qgraph.tools.show.sites import formula, site_names

if TYPE_CHECKING:
    from qgraph.passes import Entry
    from qgraph.search import Values

Measured = Mapping[str, tuple["Values | None", ...]]
# By what is stored, in order of bits; high precision is grey.
HIGH_COLOUR = "#9aa5b1"
COLOURS = ("#2f855a", "#2b6cb0", "#b7791f", "#6b46c1", "#c53030", "#00838f", "#ad1457", "#558b2f")


class Texts:
    """Texts that many products share, each kept once; products hold their numbers."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def add(self, text: str) -> int:
        """Return the number of `text`."""
        return self.numbers.setdefault(text, len(self.numbers))


def report_data(
    look: Look,
    values: Measured | None = None,
    curves: dict[str, Any] | None = None,
    telemetry: Telemetry | None = None,
) -> dict[str, Any]:
    """Return all that the report shows, as plain data.

    Keys: `about` (source, policy, fingerprint, inputs, flops, lowering, values: whether measured),
    `sites` (see `_site`), `edges` (pairs of numbers of sites), `texts`, `colours` (by format),
    `grids` (positive values by element), `coverage` and `policy` (text), `cost`, `curves`.
    """
    from qgraph.passes import make_totals, report_text

    names = in_reading_order(site_names(look.entries))
    lines = read_lines(look.after)
    before = read_lines(look.before)
    old, known = {line.name: line.text for line in before}, {line.name: line for line in lines}
    shared = shared_codes(lines, names)
    texts = Texts()
    numbers = {entry.node: number for number, entry in enumerate(names.values())}
    sites = []
    for name, entry in names.items():
        site = _site(look, name, entry, texts)
        after = slice_before(known, entry.node, old) if entry.node in known else []
        site["before"] = _code(old.get(entry.node, ""))
        site["after"] = "\n".join(_code(line.text) for line in after)
        site["shared"] = shared.get(name, [])
        site["values"] = _values(values, entry)
        site["telemetry"] = {
            kind: series
            for kind in entry.operand_kinds
            if (series := (telemetry or {}).get((entry.module, entry.role, kind)))
        }
        sites.append(site)
    totals = make_totals(look.entries)
    return {
        "about": {
            "source": look.source,
            "policy": look.policy.name,
            "origin": look.policy.source,
            "fingerprint": look.policy.fingerprint(),
            "inputs": look.inputs,
            "flops": look.flops,
            "lowering": look.report.lowering,
            "values": values is not None,
        },
        "sites": sites,
        "edges": [[numbers[a], numbers[b]] for a, b in product_flow(lines, numbers)],
        "texts": list(texts.numbers),
        "colours": _colours(look.entries),
        "grids": _grids(look.entries),
        "coverage": report_text(look.report, 100),
        "policy": dump_policy(look.policy),
        "cost": {
            "formats": totals["formats"],
            "quantized": look.report.share,
            "operand_bits": operand_bits(look.entries),
            "nodes": [len(before), len(lines)],
        },
        "curves": _curves(curves, telemetry),
    }


def _curves(curves: dict[str, Any] | None, telemetry: Telemetry | None) -> dict[str, Any] | None:
    if telemetry is None:
        return curves
    return {"losses": {}, **(curves or {}), "telemetry": {"SQNR in dB, mean": means(telemetry)}}


def in_reading_order(names: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return products module by module as the forward meets them: the backward runs the other way."""
    forward = sorted(names.values(), key=lambda entry: entry.role != "fprop")
    modules = list(dict.fromkeys(entry.module for entry in forward))
    place = {module: number for number, module in enumerate(modules)}
    key = {name: (place[e.module], ROLES.index(e.role)) for name, e in names.items()}
    return {name: names[name] for name in sorted(names, key=lambda name: key[name])}


def _site(look: Look, name: str, entry: Entry, texts: Texts) -> dict[str, Any]:
    """Return one product: its name, module, role, op, plan in words, sizes, FLOPs, and its picture."""
    trials = "\n".join(
        f"{'->' if t.matched else 'no'} {t.rule.title}: {t.why}"
        + (f"\n   at {t.rule.place}" if t.matched else "")
        for t in try_rules(look.policy, entry)
    )
    return {
        "name": name,
        "module": entry.module or "(root)",
        "role": entry.role,
        "op": entry.op,
        "status": entry.status,
        "format": entry.formats if entry.status == "quantized" else "high",
        "plan": describe(entry),
        "product": formula(entry),
        "shape": entry.shape,
        "dtype": entry.dtype,
        "flops": entry.flops,
        "reason": entry.reason,
        "notes": entry.notes,
        "operands": [
            {"kind": kind, "format": o.format if entry.status == "quantized" else "high",
             "rounding": o.rounding, "transform": o.transform}
            for kind, o in zip(entry.operand_kinds, entry.operands, strict=False)
        ],
        "rules": texts.add(trials or "no rule matches"),
        "picture": texts.add("\n".join(draw_text(draw_site(entry, look.policy), 72))),
    }  # fmt: skip


def _code(text: str) -> str:
    return text.partition("  # ")[0]


def _values(values: Measured | None, entry: Entry) -> list[dict[str, Any] | None]:
    if values is None or entry.status != "quantized":
        return []
    return [
        None if found is None else _finite(asdict(found)) for found in values.get(entry.node, ())
    ]


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    """Return `facts` with null for what JSON has no number for."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in facts.items()
    }


def _colours(entries: Sequence[Entry]) -> dict[str, str]:
    formats = {e.formats for e in entries if e.status == "quantized"}
    ordered = sorted(formats, key=lambda name: (len(name), name))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(ordered)}
    return colours | {"high": HIGH_COLOUR}


def _grids(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """Return the positive values of each element format of at most 8 bits."""
    texts = {o.format for e in entries if e.status == "quantized" for o in e.operands} - {"high"}
    grids = {}
    for text in texts:
        element = parse_format(text).element
        if element.bits > 8:
            continue
        if isinstance(element, Codebook):
            values = [abs(value) for value in element.values if value]
        else:
            from qgraph.tools.show.format_facts import grid

            found = (value for _, value in grid(find_element(element.name)))
            values = [v for v in found if v is not None and math.isfinite(v) and v > 0]
        grids[text] = sorted(set(values))
    return grids
