"""qgraph explain: why one product becomes what it does, and what its operands go through."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.errors import QGraphError
from qgraph.policy import try_rules
from qgraph.tools.inspect import Source, flops_text, schedule_note
from qgraph.tools.show.files import check_writable, write_whole
from qgraph.tools.show.graph_lines import read_lines
from qgraph.tools.show.look import Look, is_artifact, look_at
from qgraph.tools.show.operands import draw_site, steps_of
from qgraph.tools.show.picture import boxes_text, draw_svg, draw_text
from qgraph.tools.show.screen import print_json, progress, width
from qgraph.tools.show.shared import shared_codes
from qgraph.tools.show.sites import find_site, formula, site_names

if TYPE_CHECKING:
    from qgraph.passes import Entry


def explain(
    source: Source,
    site: Annotated[
        str,
        typer.Option(help="A product: model.layers.3.mlp.down_proj:wgrad. A module: all of its."),
    ],
    policy: Annotated[
        str | None,
        typer.Option(help="A policy file or a recipe's name; without it DIR's own, or nvfp4."),
    ] = None,
    svg: Annotated[
        str | None, typer.Option(metavar="FILE.svg", help="Write the picture of one product.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, where a model is captured.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence, likewise.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which rules were tried for a product, which decided, and what each operand goes through.

    For example: qgraph explain DIR --site model.layers.0.mlp.down_proj:wgrad, or:
    qgraph explain preset:tiny-llama --policy mxfp8 --site lm_head:fprop --svg head.svg

    JSON: a list with an object for each product: site, product (as mathematics), shape, flops, share,
    status, rule, reason, notes, rules (rule, place, matched, why), operands (kind, steps, and
    shared_with, the products that read the same codes).
    """
    if svg is not None:
        check_writable(svg, ".svg")
    if policy is None and not is_artifact(source):
        policy = "nvfp4"
    with progress(3) as step:
        look = look_at(source, policy, batch, length, step)
    names = find_site(site, look.entries)
    if svg is not None and len(names) > 1:
        raise QGraphError(
            f"{site} is {len(names)} products, and --svg draws one", f"name one: {', '.join(names)}"
        )
    sites = site_names(look.entries)
    shared = shared_codes(read_lines(look.after), sites)
    if as_json:
        print_json([_json(look, name, sites[name], shared) for name in names])
    else:
        blocks = ["\n".join(_text(look, name, sites[name], shared)) for name in names]
        sys.stdout.write("\n\n".join(blocks) + "\n")
    if svg is not None:
        entry = sites[names[0]]
        write_whole(svg, draw_svg(draw_site(entry, look.policy), f"{names[0]}, {look.policy.name}"))
        if not as_json:
            sys.stdout.write(f"wrote {svg}\n")


def _json(
    look: Look, name: str, entry: Entry, shared: dict[str, list[list[str]]]
) -> dict[str, Any]:
    steps = steps_of(entry, look.policy)
    others = shared.get(name, [[], []])
    return {
        "site": name,
        "product": formula(entry),
        "shape": entry.shape,
        "flops": entry.flops,
        "share": entry.flops / (look.flops or 1),
        "status": entry.status,
        "rule": entry.rule,
        "reason": entry.reason,
        "notes": entry.notes,
        "rules": [
            {"rule": t.rule.text, "place": str(t.rule.place), "matched": t.matched, "why": t.why}
            for t in try_rules(look.policy, entry)
        ],
        "operands": [
            {"kind": kind, "steps": boxes_text(boxes), "shared_with": other}
            for kind, boxes, other in zip(entry.operand_kinds, steps, others, strict=True)
        ],
    }


def _text(look: Look, name: str, entry: Entry, shared: dict[str, list[list[str]]]) -> Iterator[str]:
    batch, m, n, k = entry.shape
    sizes = (
        f"{f'{batch} x ' if batch > 1 else ''}{m} x {n} x {k} (m x n x k)" if k else "sizes vary"
    )
    share = 100 * entry.flops / (look.flops or 1)
    yield f"{name}, policy {look.policy.name}"
    yield f"{formula(entry)}: {entry.op}, {sizes}, {flops_text(entry.flops)}, {share:.1f}% of a step"
    yield from schedule_note(look)
    yield ""
    yield "rules, in order:"
    decided = False
    for trial in try_rules(look.policy, entry):
        decided |= trial.matched
        mark = "->" if trial.matched else "no"
        words = f"{mark} {trial.rule.title}: {trial.why}"
        yield from _wrap(words, "  ", "     ")
        if trial.matched:
            yield from _wrap(f"at {trial.rule.place}", "     ", "     ")
    if not decided:
        yield "  no rule matches: the product stays high"
    rest = len(look.policy.rules) - len([*try_rules(look.policy, entry)])
    if rest:
        yield f"  {rest} more not reached"
    if entry.status != "quantized":
        yield from _wrap(f"not quantized: {entry.reason}", "", "  ")
    for note in entry.notes:
        yield from _wrap(f"note: {note}", "", "  ")
    yield ""
    yield from draw_text(draw_site(entry, look.policy), width())
    for kind, others in zip(entry.operand_kinds, shared.get(name, [[], []]), strict=False):
        if others:
            yield from _wrap(f"{kind}: the same codes serve {', '.join(others)}", "", "  ")


def _wrap(text: str, first: str, rest: str) -> Sequence[str]:
    return textwrap.wrap(
        text, max(width(), 60), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
