"""What a policy did to a model: every product once, totals, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qgraph.errors import PolicyError
from qgraph.passes.graph.places import lookups
from qgraph.passes.plan import Plan, Status
from qgraph.passes.report.computed import kernel_of
from qgraph.passes.report.elsewhere import Elsewhere, elsewhere_text
from qgraph.passes.sites.saved import SavedTensor
from qgraph.passes.step import Step
from qgraph.policy import OperandPolicy, Policy, percent, unused_rules, why_unused


@dataclass(frozen=True, kw_only=True)
class ProductOperand:
    """One operand as it is computed: its kind, format (`high` or a text form), and what goes with it.

    `kernel` is what quantizes it: see `kernel_of`. It is empty of an operand that is high, and in
    reports from before it was told.
    """

    kind: str
    format: str
    rounding: str
    transform: str
    gradient: str  # of the quantizer; empty for straight through
    kernel: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One product of a graph and what happened to it: a site and its plan, without the graph."""

    module: str
    block: int | None
    block_count: int | None
    op: str
    role: str
    operand_kinds: tuple[str, ...]
    operands: tuple[ProductOperand, ...]
    shape: tuple[int, int, int, int]  # batch, m, n, k
    flops: int
    dtype: str
    status: Status
    rule: str
    reason: str
    notes: tuple[str, ...]
    lowering: str  # for the target native: `native int8`, or `emulated: why`
    part: str = ""  # as `Site` has it
    node: str = field(default="", compare=False)  # its name in the printed graph

    @property
    def formats(self) -> str:
        """The formats multiplied, such as `e2m1`, `e5m2 x e4m3` or `high`."""
        names = [operand.format.split("/")[0] for operand in self.operands] or ["high"]
        return names[0] if len(set(names)) == 1 else " x ".join(names)


@dataclass
class Report:
    """Every product of every graph compiled under one policy, filled as graphs are compiled.

    A graph compiled again (another shape, or after a graph break) replaces its own products.
    """

    policy: Policy
    lowering: str = ""
    graphs: int = 0
    checked: int = 0  # operands held against their definition, with QGRAPH_VERIFY=1
    observed: int = 0  # operands that telemetry looks at
    not_observed: int = 0  # and those it cannot: of native products
    pass_seconds: float = 0.0  # spent rewriting graphs
    not_captured: set[str] = field(default_factory=set)  # weights no graph has read
    elsewhere: set[Elsewhere] = field(default_factory=set)  # products that ran outside graphs
    unaudited: str = ""  # why nobody has looked for them
    lookups: set[str] = field(default_factory=set)  # modules that pick rows by number
    replaced: Counter[str] = field(default_factory=Counter)  # functions, by the rule that did it
    products: dict[tuple[object, ...], Entry] = field(default_factory=dict)
    saved: dict[object, list[SavedTensor]] = field(default_factory=dict)  # by frame, with a stash

    @property
    def saved_bytes(self) -> tuple[int, int]:
        """Bytes of activations saved for the backward: as they would be, and as they are stored."""
        every = [tensor for group in self.saved.values() for tensor in group]
        return sum(t.bytes for t in every), sum(t.stored for t in every)

    def add(self, step: Step, frame: int | None = None) -> None:
        """Take what became of one rewritten graph, of the frame of that number."""
        self.graphs += 1
        self.lookups |= {*lookups(step.graph, step.facts.modules)}
        self.checked += step.checked
        self.observed += step.observed
        self.not_observed += step.not_observed
        seen: dict[tuple[str, str, str], int] = {}
        for entry in map(make_entry, step.plans):
            key = (entry.module, entry.role, entry.op)
            seen[key] = seen.get(key, -1) + 1
            self.products[(frame, *key, seen[key])] = entry

    def __str__(self) -> str:
        from qgraph.passes.report.table import report_text  # it reads this file

        return report_text(self).rstrip("\n")

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
            captured graph or products ran outside of them, so that their share is unknown.
        """
        wanted = self.policy.min_flops
        unknown = self.not_captured or self.elsewhere
        if wanted is None or (100 * self.share >= wanted and not unknown):
            return
        totals = make_totals(self.entries)
        left = sorted((totals["kept"] | totals["not_quantized"]).items(), key=lambda item: -item[1])
        problem = f"{100 * self.share:.1f}% of product FLOPs are quantized, {percent(wanted)} are demanded"
        if left:
            problem += "; left: " + "; ".join(
                f"{100 * share:.1f}% {why}" for why, share in left[:4]
            )
        if self.not_captured:
            problem += f"; {weights_text(self.not_captured)}"
        if self.elsewhere:
            problem += f"; {elsewhere_text(self.elsewhere)}"
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
            ProductOperand(
                kind=operand.kind,
                format=str(policy.format or "high"),
                rounding=str(policy.rounding),
                transform=policy.transform.name if policy.transform else "",
                gradient="" if policy.gradient.straight else str(policy.gradient),
                kernel=kernel_of(plan, index),
            )
            for index, (operand, policy) in enumerate(zip(site.operands, wanted, strict=True))
        ),
        shape=site.shape,
        flops=site.flops,
        dtype=site.dtype,
        status=plan.status,
        rule=plan.rule,
        reason=plan.reason,
        notes=plan.notes,
        lowering=plan.lowering,
        part=site.part,
        node=site.node.name,
    )


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
    were compiled), `totals` (see `make_totals`), `not_captured` (weights in no graph), `elsewhere`
    (products that ran outside of graphs, the fields of `Elsewhere`), `unaudited` (why nobody has
    looked for such), `lookups`
    (modules that pick rows of a table, which is no product), `functions` (how many each rule of the
    policy's `functions` replaced), `saved_bytes` (of activations kept for
    the backward: `plain`, `stored`; with a stash), `saved` (the fields of `SavedTensor`),
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
        "elsewhere": [asdict(product) for product in sorted(report.elsewhere, key=str)],
        "unaudited": report.unaudited,
        "lookups": sorted(report.lookups),
        "functions": dict(report.replaced),
        "saved_bytes": dict(zip(("plain", "stored"), report.saved_bytes, strict=True)),
        "saved": [asdict(tensor) for group in report.saved.values() for tensor in group],
        "unused_rules": [
            {"rule": rule.text, "why": why_unused(rule, report.entries)}
            for rule in unused_rules(report.policy, report.entries)
        ],
        "products": [asdict(entry) for entry in report.entries],
    }


def read_report(data: Mapping[str, Any], policy: Policy) -> Report:
    """Return the report that `report_json` wrote under `policy`.

    Raises: ValueError saying which part of `data` is something else.
    """
    try:
        products = TypeAdapter(tuple[Entry, ...]).validate_python(data.get("products"))
        report = Report(
            policy=policy,
            lowering=str(data["lowering"]),
            graphs=int(data["graphs"]),
            not_captured={*data["not_captured"]},
            elsewhere={Elsewhere(**product) for product in data.get("elsewhere", [])},
            unaudited=str(data.get("unaudited", "")),
            lookups={*data["lookups"]},
            replaced=Counter(data.get("functions", {})),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("products", *first["loc"])))
        raise ValueError(f"{where}: {first['msg']}") from error
    except KeyError as error:
        raise ValueError(f"no {error}") from error
    except (TypeError, OverflowError) as error:
        raise ValueError(f"no report: {error}") from error
    report.products = {(number,): entry for number, entry in enumerate(products)}
    return report


def weights_text(weights: Iterable[str]) -> str:
    """Return the words for weights that no captured graph has read."""
    names = sorted(weights)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{len(names)} weights are in no captured graph; their products are neither counted nor "
        f"quantized: {', '.join(names[:5])}{more}"
    )
