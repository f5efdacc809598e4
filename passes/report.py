"""What a policy did to a model: every product in exactly one row, totals, and what was left out."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qgraph.errors import PolicyError
from qgraph.passes.plan import Plan, Status
from qgraph.policy import OperandPolicy, Policy, percent, unused_rules, why_unused


@dataclass(frozen=True, kw_only=True)
class OperandEntry:
    """One operand as it is computed: its kind, format (`high` or a text form), and what goes with it."""

    kind: str
    format: str
    rounding: str
    transform: str
    gradient: str  # of the quantizer; empty for straight through


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One product of a graph and what happened to it: a site and its plan, without the graph."""

    module: str
    block: int | None
    block_count: int | None
    op: str
    role: str
    operand_kinds: tuple[str, ...]
    operands: tuple[OperandEntry, ...]
    shape: tuple[int, int, int, int]  # batch, m, n, k
    flops: int
    dtype: str
    status: Status
    rule: str
    reason: str
    notes: tuple[str, ...]
    lowering: str  # for the target native: `native int8`, or `emulated: why`

    @property
    def formats(self) -> str:
        """The formats multiplied, such as `e2m1`, `e5m2 x e4m3` or `high`."""
        names = [operand.format.split("/")[0] for operand in self.operands] or ["high"]
        return names[0] if len(set(names)) == 1 else " x ".join(names)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Equal products of several blocks, as one line of the table."""

    module: str  # model.layers.{0-2}.mlp.up_proj
    count: int
    flops: int  # of all of them
    first: Entry


@dataclass
class Report:
    """Every product of every graph compiled under one policy, filled as graphs are compiled.

    A graph compiled again (another shape, or after a graph break) replaces its own products.
    """

    policy: Policy
    lowering: str = ""
    graphs: int = 0
    pass_seconds: float = 0.0  # spent rewriting graphs
    not_captured: set[str] = field(default_factory=set)  # weights no graph has read
    products: dict[tuple[object, ...], Entry] = field(default_factory=dict)

    def add(self, plans: Sequence[Plan], frame: int | None = None) -> None:
        """Take the products of one rewritten graph, of the frame of that number."""
        self.graphs += 1
        seen: dict[tuple[str, str, str], int] = {}
        for entry in map(make_entry, plans):
            key = (entry.module, entry.role, entry.op)
            seen[key] = seen.get(key, -1) + 1
            self.products[(frame, *key, seen[key])] = entry

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every product, in graph order."""
        return tuple(self.products.values())

    @property
    def quantized(self) -> tuple[Entry, ...]:
        """The products that are quantized."""
        return tuple(entry for entry in self.entries if entry.status == "quantized")

    @property
    def share(self) -> float:
        """The share of product FLOPs that is quantized, 0 to 1."""
        whole = sum(entry.flops for entry in self.entries)
        return sum(entry.flops for entry in self.quantized) / (whole or 1)

    def check(self) -> None:
        """Hold what was found so far against the policy's `coverage`.

        Raises: PolicyError if less is quantized than the policy demands, or if weights are in no
            captured graph, so that the share of their products is unknown.
        """
        wanted = self.policy.min_flops
        if wanted is None or (100 * self.share >= wanted and not self.not_captured):
            return
        totals = make_totals(self.entries)
        left = sorted((totals["kept"] | totals["not_quantized"]).items(), key=lambda item: -item[1])
        problem = f"{100 * self.share:.1f}% of product FLOPs are quantized, {percent(wanted)} are demanded"
        if left:
            problem += "; left: " + "; ".join(
                f"{100 * share:.1f}% {why}" for why, share in left[:4]
            )
        if self.not_captured:
            problem += f"; {_weights_text(self.not_captured)}"
        raise PolicyError(
            self.policy.path or self.policy.name,
            "coverage.min_flops",
            problem,
            "quantize what is left, or demand less",
        )


def make_entry(plan: Plan) -> Entry:
    """Return what a plan says, without its graph."""
    site = plan.site
    wanted = plan.operands or tuple(OperandPolicy() for _ in site.operands)
    return Entry(
        module=site.module,
        block=site.block,
        block_count=site.block_count,
        op=site.op,
        role=site.role,
        operand_kinds=site.operand_kinds,
        operands=tuple(
            OperandEntry(
                kind=operand.kind,
                format=str(policy.format or "high"),
                rounding=str(policy.rounding),
                transform=policy.transform.name if policy.transform else "",
                gradient="" if policy.gradient.straight else str(policy.gradient),
            )
            for operand, policy in zip(site.operands, wanted, strict=True)
        ),
        shape=site.shape,
        flops=site.flops,
        dtype=site.dtype,
        status=plan.status,
        rule=plan.rule,
        reason=plan.reason,
        notes=plan.notes,
        lowering=plan.lowering,
    )


def make_rows(entries: Iterable[Entry]) -> list[Row]:
    """Group products that differ only in their block or in the last part of their module's path.

    Each product is in exactly one row. Rows stand in graph order of their modules, fprop first.
    """
    groups: dict[Entry, list[Entry]] = {}
    # The backward runs the other way round; names keep the forward's order.
    entries = sorted(entries, key=lambda entry: ("fprop", "dgrad", "wgrad").index(entry.role))
    order = list(dict.fromkeys(_template(entry) for entry in entries))
    for entry in entries:
        alike = replace(entry, block=None, module=_template(entry).rpartition(".")[0])
        groups.setdefault(alike, []).append(entry)
    return [
        Row(
            module=_merged(group, order),
            count=len(group),
            flops=sum(e.flops for e in group),
            first=group[0],
        )
        for group in groups.values()
    ]


def make_totals(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Return shares of product FLOPs, 0 to 1: per format, and per reason of what is not quantized."""
    whole = sum(entry.flops for entry in entries) or 1
    totals: dict[str, dict[str, float]] = {"formats": {}, "kept": {}, "not_quantized": {}}
    for entry in entries:
        keys = [("formats", entry.formats)]
        if entry.status == "kept":
            keys.append(("kept", entry.reason))
        elif entry.status != "quantized":
            keys.append(("not_quantized", entry.reason))
        for group, key in keys:
            totals[group][key] = totals[group].get(key, 0.0) + entry.flops / whole
    return totals


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data.

    Keys: `policy`, `fingerprint`, `lowering` (what computes the quantization), `graphs` (how many
    were compiled), `totals` (see `make_totals`), `not_captured` (weights in no graph),
    `unused_rules` (`rule`, `why`), and `products`, a list with the fields of `Entry`: sizes in
    elements, `flops` counting a multiply and an add as two.
    """
    return {
        "policy": report.policy.name,
        "fingerprint": report.policy.fingerprint(),
        "lowering": report.lowering,
        "graphs": report.graphs,
        "totals": make_totals(report.entries),
        "not_captured": sorted(report.not_captured),
        "unused_rules": [
            {"rule": rule.text, "why": why_unused(rule, report.entries)}
            for rule in unused_rules(report.policy, report.entries)
        ],
        "products": [asdict(entry) for entry in report.entries],
    }


def report_text(report: Report, width: int = 100) -> str:
    """Return the coverage table and its totals as text of at most `width` columns.

    Under each module stand its products: role and op, how many, sizes (b x m x n x k, k summed; a
    batch of 1 left out), share of all product FLOPs, and what is done to the operands.
    """
    entries = report.entries
    whole = sum(entry.flops for entry in entries) or 1
    lines: list[str] = []
    table = [
        (row.module or "(root)", _cells(row, whole), _operand_text(row.first))
        for row in make_rows(entries)
    ]
    widths = [max((len(cells[i]) for _, cells, _ in table), default=0) for i in range(4)]
    for module in dict.fromkeys(module for module, _, _ in table):
        lines += textwrap.wrap(module, width, subsequent_indent="    ", break_on_hyphens=False)
        for name, cells, words in table:
            if name == module:
                first, *rest = (cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
                left = "  ".join(["  " + first, *rest[:2], cells[3].rjust(widths[3]), ""])
                room = max(20, width - len(left))
                wrapped = textwrap.wrap(words, room, break_on_hyphens=False) or [""]
                lines.append(left + wrapped[0])
                lines += [" " * len(left) + more for more in wrapped[1:]]
    for line in _total_lines(report, entries):
        lines += textwrap.wrap(line, width, subsequent_indent="    ", break_on_hyphens=False) or [
            ""
        ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _cells(row: Row, whole: int) -> tuple[str, str, str, str]:
    batch, *sizes = row.first.shape
    shape = (
        "x".join(str(size) for size in ([batch] if batch > 1 else []) + sizes)
        if any(sizes)
        else "-"
    )
    return (
        f"{row.first.role} {row.first.op}",
        f"x{row.count}",
        shape,
        f"{100 * row.flops / whole:.1f}%",
    )


def _total_lines(report: Report, entries: Sequence[Entry]) -> Iterable[str]:
    totals = make_totals(entries)
    yield ""
    yield (
        f"policy {report.policy.name}: {len(report.quantized)} of {len(entries)} products quantized; "
        "share of product FLOPs:"
    )
    for title, group in (("", "formats"), ("", "kept"), ("not quantized: ", "not_quantized")):
        for key, share in sorted(totals[group].items(), key=lambda item: -item[1]):
            yield f"{100 * share:6.1f}%  {title}{key}"
    notes = Counter(note for entry in entries for note in entry.notes)
    for note, count in notes.items():
        yield f"note: {count} products: {note}"
    lowered = Counter(entry.lowering for entry in entries if entry.lowering)
    for lowering, count in lowered.most_common():
        yield f"{count} products: {lowering}"
    for rule in unused_rules(report.policy, entries):
        yield f"warning: {rule.text}: {why_unused(rule, entries)}"
    if entries and report.not_captured:
        yield f"warning: {_weights_text(report.not_captured)}"
    if entries and report.policy.quantizes and not report.quantized:
        yield "warning: nothing is quantized"
    if report.lowering:
        yield f"quantization runs on: {report.lowering}"


def _weights_text(weights: Iterable[str]) -> str:
    names = sorted(weights)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{len(names)} weights are in no captured graph; their products are neither counted nor "
        f"quantized: {', '.join(names[:5])}{more}"
    )


def _operand_text(entry: Entry) -> str:
    if entry.status != "quantized":
        # A rule is spelt out in the totals; here its number is enough.
        return "high: " + re.sub(r"^kept: (rule [0-9]+) .*", r"\1", entry.reason)
    words = []
    for operand in entry.operands:
        extra = [operand.transform] if operand.transform else []
        extra += [operand.rounding] if operand.rounding != "nearest" else []
        extra += [f"gradient {operand.gradient}"] if operand.gradient else []
        words.append(" ".join([operand.kind, _compact(operand.format), *extra]))
    return ", ".join(words)


def _compact(text: str) -> str:
    """Return a format's text without its scales: e2m1/1x16/e4m3/fp32 -> e2m1/1x16."""
    return "/".join(text.split("/")[:2])


def _template(entry: Entry) -> str:
    """Return the module's path with its block's number left open."""
    path = entry.module
    if entry.block is not None:
        path = re.sub(rf"\.{entry.block}(?=\.|$)", ".{}", f".{path}", count=1)[1:]
    return path


def _merged(group: Sequence[Entry], order: Sequence[str]) -> str:
    """Return one name for the modules of `group`: model.layers.{0-2}.self_attn.{q,k,v}_proj."""
    blocks = sorted({entry.block for entry in group if entry.block is not None})
    paths = sorted({_template(entry) for entry in group}, key=order.index)
    parent, _, _ = paths[0].rpartition(".")
    leaves = [path.rpartition(".")[2] for path in paths]
    name = paths[0]
    if len(leaves) > 1:
        ends = {"_".join(["", *leaf.split("_")[1:]]) for leaf in leaves}
        tail = ends.pop() if len(ends) == 1 else ""
        heads = [leaf.removesuffix(tail) for leaf in leaves]
        name = f"{parent}." * bool(parent) + "{" + ",".join(heads) + "}" + tail
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and block == ranges[-1][1] + 1:
            ranges[-1][1] = block
        else:
            ranges.append([block, block])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return name.replace(".{}", f".{text}" if text.isdigit() else f".{{{text}}}") if blocks else name
