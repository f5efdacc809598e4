"""qgraph diff: what changes from one policy, or converted model, to another; or what a rewrite changed."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from qgraph.errors import ArtifactError, QGraphError
from qgraph.policy import dump_policy, load_policy
from qgraph.tools.show.changes import (
    Change,
    Plans,
    compare_costs,
    compare_graphs,
    compare_plans,
    count_ops,
    group_changes,
    only_high,
)
from qgraph.tools.show.look import Look, is_artifact, look_at
from qgraph.tools.show.screen import print_json, progress, wrap
from qgraph.tools.show.sites import find_site


def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A policy, a recipe, or a converted directory.")
    ],
    second: Annotated[
        str | None,
        typer.Argument(metavar="B", help="Another of its kind; without it, A before and after."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="What to hold two policies against, named as for convert.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="One product or module, with its graph before and after.")
    ] = None,
    graph: Annotated[
        bool, typer.Option("--graph", help="The graph of every changed product, not of one a row.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, where a model is captured.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence, likewise.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two policies (with --model: on a model), two converted directories, or one before and after.

    For example: qgraph diff nvfp4 mxfp8 --model preset:tiny-llama, or: qgraph diff DIR

    Printed are the lines of the policies that differ, the products whose plan differs with the graph of
    one of each kind, and the costs. Nodes that a rewrite added are numbered %1, %2 in each product.

    JSON keys: a, b, policy (lines of a diff), changed (site, a, b, graph: lines of a diff), only_a, only_b
    (sites), ops (op -> counts in a and b), cost (formats -> shares of FLOPs, quantized,
    operand_bits: the mean over all operands' elements; each with a and b).
    """
    if second is None and not is_artifact(first):
        raise ArtifactError(
            f"{first}: not a converted directory, and there is nothing to compare it with",
            "give a directory `qgraph convert --out` wrote, or two policies",
        )
    a, b = first, second or first
    lines = _policy_lines(a, b) if second is not None else []
    if second is not None and model is None and not is_artifact(a):
        if site or graph:
            raise QGraphError("policies alone have no products", "add --model")
        _print_policies(a, b, lines, as_json)
        return
    with progress(6) as step:
        looks = _looks(a, second, model, batch, length, step)
        step("comparing")
        plans = compare_plans(*looks)
        if site is not None:
            wanted = {*find_site(site, looks[1].entries)}
            plans.changed = [change for change in plans.changed if change.site in wanted]
            plans.same = len(wanted) - len(plans.changed)
        compare_graphs(plans.changed, *looks)
        costs, ops = compare_costs(*looks), count_ops(looks)
    if as_json:
        print_json(
            {
                "a": a, "b": b, "policy": lines,
                "changed": [
                    {"site": c.site, "a": c.first, "b": c.second, "graph": c.graph}
                    for c in plans.changed
                ],
                "only_a": plans.only_first, "only_b": plans.only_second, "ops": ops, "cost": costs,
            }
        )  # fmt: skip
        return
    names = (f"{a} before", f"{a} after") if second is None else (a, b)
    out = [*lines, ""] if lines else []
    out += [*_plan_text(plans, names, graph or site is not None), *_cost_text(costs, ops, names)]
    sys.stdout.write("\n".join(out) + "\n")


def _looks(
    a: str, b: str | None, model: str | None, batch: int, length: int, step: Callable[[str], None]
) -> tuple[Look, Look]:
    if b is None:
        look = look_at(a, None, batch, length, step)
        if not (look.before and look.after):
            raise ArtifactError(f"{a}: holds no graphs", "convert the model again")
        return only_high(look), look
    if model is not None:
        return look_at(model, a, batch, length, step), look_at(model, b, batch, length, step)
    return look_at(a, None, batch, length, step), look_at(b, None, batch, length, step)


def _policy_lines(a: str, b: str) -> list[str]:
    """Return a diff of the two policies as resolved.

    Raises: QGraphError if one is a directory and the other is not; PolicyError if one is none.
    """
    kinds = [is_artifact(name) for name in (a, b)]
    if kinds[0] != kinds[1]:
        made, other = (a, b) if kinds[0] else (b, a)
        raise QGraphError(
            f"{made} is a converted directory and {other} is not",
            f"compare like with like: {made}/policy.yaml is its policy",
        )
    for name in (a, b):
        if Path(name).is_dir() and not kinds[0]:
            raise ArtifactError(
                f"{name}: not a converted model (no policy.yaml)",
                "give a directory `qgraph convert --out` wrote, or a policy",
            )
    one, two = (
        dump_policy(load_policy(f"{name}/policy.yaml" if kinds[0] else name)).splitlines()
        for name in (a, b)
    )
    return [*difflib.unified_diff(one, two, a, b, lineterm="", n=1)]


def _print_policies(a: str, b: str, lines: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"a": a, "b": b, "policy": lines})
    elif lines:
        sys.stdout.write("\n".join([*lines, "add --model to see which products change"]) + "\n")
    else:
        sys.stdout.write("no difference\n")


def _plan_text(plans: Plans, names: tuple[str, str], graphs: bool) -> Iterator[str]:
    count = len(plans.changed)
    if not (count or plans.only_first or plans.only_second):
        yield f"{plans.same} products, all alike"
    else:
        yield f"{count} of {count + plans.same} products change:"
    for title, group, share in group_changes(plans.changed):
        yield f"  {title}  {100 * share:.1f}% of FLOPs"
        yield from wrap(f"    - {group[0].first}", "      ")
        yield from wrap(f"    + {group[0].second}", "      ")
        shown: list[Change] = group if graphs else group[:1]
        for change in shown:
            if change.graph:
                yield f"      {change.site}"
                yield from (f"        {line}" for line in change.graph)
    for name, sites in zip(names, (plans.only_first, plans.only_second), strict=True):
        if sites:
            more = f" and {len(sites) - 5} more" if len(sites) > 5 else ""
            yield f"only in {name}: {', '.join(sites[:5])}{more}"


def _cost_text(
    costs: dict[str, Any], ops: dict[str, list[int]], names: tuple[str, str]
) -> Iterator[str]:
    yield ""
    yield f"A: {names[0]}, B: {names[1]}"
    yield f"share of product FLOPs{'':12}{'A':>6} {'B':>8}"
    for name, (one, two) in costs["formats"].items():
        yield f"  {name:<30}{100 * one:7.1f}% {100 * two:7.1f}%"
    one, two = costs["quantized"].values()
    yield f"  {'quantized':<30}{100 * one:7.1f}% {100 * two:7.1f}%"
    one, two = costs["operand_bits"].values()
    yield f"{'bits an operand element, mean':<32}{one:7.2f}  {two:7.2f}"
    if ops:
        yield "nodes of the graph:"
        for op, (before, after) in ops.items():
            yield f"  {op:<30}{before:7}  {after:7}"
