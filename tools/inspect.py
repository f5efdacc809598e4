"""qgraph inspect: every product of a model and what it becomes, and the joint graph as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.errors import ArtifactError
from qgraph.tools.show.amounts import bytes_text
from qgraph.tools.show.graph_lines import Line, read_lines, within
from qgraph.tools.show.look import HIGH, Look, look_at
from qgraph.tools.show.screen import print_json, progress, wrap
from qgraph.tools.show.sites import check_module, pick, site_names
from qgraph.tools.show.tables import (
    PLAIN,
    Table,
    below,
    check_style,
    coverage_table,
    draw,
    print_table,
)

if TYPE_CHECKING:
    from qgraph.passes import Entry

Source = Annotated[
    str,
    typer.Argument(help="A directory `qgraph convert` wrote, or a model named as for convert."),
]


def inspect(
    source: Source,
    policy: Annotated[
        str | None,
        typer.Option(help="A policy file or a recipe's name; without it, DIR's own, or none."),
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only products of these modules: '*.mlp.*'.")
    ] = None,
    product: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Only fprop, dgrad or wgrad.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Only products with an operand of this format: e2m1, nvfp4, high."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="MODULE", help="One layer, with its graph.")
    ] = None,
    graph: Annotated[
        bool, typer.Option("--graph", help="Print the joint graph, after the rewrite.")
    ] = False,
    sites: Annotated[
        bool, typer.Option("--sites", help="One line a product, named as for explain.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, where a model is captured.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence, likewise.")] = 128,
    table: Table = PLAIN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every matrix product of a training step: where it is, its sizes, and what it becomes.

    For example: qgraph inspect DIR --module '*.mlp.*' --product wgrad, or:
    qgraph inspect preset:tiny-llama --policy mxfp8 --layer model.layers.3

    A model's weights are neither read nor needed. Sizes in the graph are what a tensor takes as it is
    computed; behind it, packed, what its codes and scales take.

    JSON keys: source, inputs, policy, fingerprint, flops (of one step), shown (share of flops), totals
    (as report.json), products (fields of report.json's, and site, its name), and with --graph or
    --layer graph (name, type, op, arguments, half, module, bytes, packed).
    """
    check_style(table, json=as_json, graph=graph or layer is not None)
    with progress(3) as step:
        look = look_at(source, policy, batch, length, step)
    chosen = pick(look.entries, module, product, format, layer)
    lines = _graph(look, layer) if graph or layer else []
    if as_json:
        print_json(_json(look, chosen, lines if graph or layer else None))
        return
    shown = [_plain(entry) for entry in chosen] if look.policy.name == HIGH else chosen
    below(table, _head(look))
    print_table(_sites(look, shown, table) if sites else coverage_table(shown, table))
    below(table, _rest(look, chosen, lines))


def _graph(look: Look, layer: str | None) -> list[Line]:
    if not look.after:
        raise ArtifactError(
            f"{look.source}: holds no graph_after.txt", "inspect the model with --policy instead"
        )
    lines = read_lines(look.after)
    if layer is None:
        return lines
    check_module(layer, (line.module for line in lines))
    return within(lines, layer)


def _json(look: Look, chosen: Sequence[Entry], lines: list[Line] | None) -> dict[str, Any]:
    from qgraph.passes import make_totals

    names = {id(entry): name for name, entry in site_names(look.entries).items()}
    found = {
        "source": look.source,
        "inputs": look.inputs,
        "policy": look.policy.name,
        "fingerprint": look.policy.fingerprint(),
        "flops": look.flops,
        "shown": sum(e.flops for e in chosen) / (look.flops or 1),
        "totals": make_totals(chosen),
        "products": [{"site": names[id(entry)], **asdict(entry)} for entry in chosen],
    }
    if lines is not None:
        found["graph"] = [
            {
                "name": n.name, "type": n.type, "op": n.op, "arguments": n.arguments, "half": n.half,
                "module": n.module, "bytes": n.bytes, "packed": n.packed,
            }
            for n in lines
        ]  # fmt: skip
    return found


def _head(look: Look) -> Iterator[str]:
    shapes = ", ".join(f"{k} {'x'.join(map(str, v))}" for k, v in look.inputs.items())
    named = "no policy" if look.policy.name == HIGH else f"policy {look.policy.name}"
    yield f"{look.source}, {named}" + (f"; {shapes}" if shapes else "")
    yield from schedule_note(look)
    yield ""


def _rest(look: Look, chosen: Sequence[Entry], lines: Sequence[Line]) -> Iterator[str]:
    from qgraph.passes import make_totals

    if lines:
        yield ""
        yield from graph_lines_text(lines)
    yield ""
    part = sum(entry.flops for entry in chosen)
    yield (
        f"{len(chosen)} of {len(look.entries)} products, {flops_text(part)} of "
        f"{flops_text(look.flops)} a step ({100 * part / (look.flops or 1):.1f}%)"
    )
    for key in ("op", "role"):
        counts: dict[str, list[int]] = {}
        for entry in chosen:
            counts.setdefault(getattr(entry, key), []).append(entry.flops)
        words = [
            f"{name} x{len(each)} {100 * sum(each) / (part or 1):.1f}%"
            for name, each in counts.items()
        ]
        yield f"  {', '.join(words)}"
    if look.policy.name != HIGH:
        totals = make_totals(chosen)
        for group, title in (("formats", ""), ("kept", ""), ("not_quantized", "not quantized: ")):
            for name, share in sorted(totals[group].items(), key=lambda item: -item[1]):
                yield from wrap(f"{100 * share:6.1f}%  {title}{name}", " " * 9)


def schedule_note(look: Look) -> Iterator[str]:
    """Yield, of a policy with a schedule, that the plan shown is the one a run begins with."""
    if look.policy.schedule:
        texts = "; ".join(switch.text for switch in look.policy.schedule)
        yield from wrap(f"the plan a run begins with; then, by the schedule: {texts}", "  ")


def _plain(entry: Entry) -> Entry:
    return replace(
        entry, status="kept", reason=f"{', '.join(entry.operand_kinds)} in {entry.dtype}"
    )


def _sites(look: Look, chosen: Sequence[Entry], style: str) -> list[str]:
    names = {entry: name for name, entry in _named(look)}
    rows = []
    for entry in chosen:
        name = names.get(_key(entry), entry.module)
        words = [f"{o.kind} {o.format}" for o in entry.operands if entry.status == "quantized"]
        share = f"{100 * entry.flops / (look.flops or 1):.1f}%"
        rows.append((share, name, ", ".join(words) or entry.reason))
    if style != PLAIN:
        return draw(("share", "site", "operands"), rows, style, right=("share",))
    # Names of sites are long: what becomes of them goes on below.
    return [line for row in rows for line in wrap(f"{row[0]:>6}  {row[1]}  {row[2]}", " " * 8)]


def _named(look: Look) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, entry in site_names(look.entries).items():
        yield name, _key(entry)


def _key(entry: Entry) -> tuple[Any, ...]:
    return entry.module, entry.role, entry.node, entry.op


def graph_lines_text(lines: Sequence[Line]) -> Iterator[str]:
    """Yield lines of a graph for reading: by half and module, each node's type, bytes and call."""
    place = None
    names = max((len(line.name) for line in lines), default=0)
    types = min(max((len(line.type) for line in lines), default=0), 24)
    for line in lines:
        if (line.half, line.module) != place:
            place = (line.half, line.module)
            yield f"{line.half or 'inputs'}  {line.module}".rstrip()
        size = "" if line.bytes is None else bytes_text(line.bytes)
        call = line.op if line.op == "input" else f"{line.op}({line.arguments})"
        call += "" if line.packed is None else f"  packed {bytes_text(line.packed)}"
        left = f"  {line.name:<{min(names, 18)}}  {line.type:<{types}} {size:>7}  "
        yield from wrap(left + call, " " * min(len(left), 40))


def flops_text(flops: float) -> str:
    """Return FLOPs as people read them: 1.2 GFLOP."""
    for unit in ("", "k", "M", "G", "T"):
        if flops < 1000:
            return f"{flops:.3g} {unit}FLOP"
        flops /= 1000
    return f"{flops:.4g} PFLOP"
