"""qgraph recipes: the policies qgraph ships, and the page of one."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated, Any

import typer

from qgraph.errors import QGraphError
from qgraph.policy import Policy, load_policy, recipe_names
from qgraph.tools.show.screen import print_json, width
from qgraph.tools.show.tables import PLAIN, Table, check_style, draw, print_table


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, to read its page.")] = None,
    table: Table = PLAIN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the recipes, one line and source each, or print the page of NAME.

    For example: qgraph recipes quartet

    JSON keys: name, summary, source, page, claims (part of a model -> product -> operands, in the
    words of the report), rules (one line each); without NAME a list of those.
    """
    check_style(table, json=as_json)
    if name is not None:
        if table != PLAIN:
            raise QGraphError("the page of a recipe is no table", "leave --table, or the name, out")
        policy = load_policy(name)
        if as_json:
            print_json(_facts(policy))
        else:
            sys.stdout.write("\n".join(_page(policy)) + "\n")
        return
    policies = [load_policy(known) for known in recipe_names()]
    if as_json:
        print_json([_facts(policy) for policy in policies])
        return
    if table == PLAIN:
        named = [(p.name, _summary(p) + (f" [{p.source}]" if p.source else "")) for p in policies]
        print_table(draw(("recipe", "summary"), named, headed=False))
        return
    rows = [(policy.name, _summary(policy), policy.source or "") for policy in policies]
    print_table(draw(("recipe", "summary", "source"), rows, table))


def _summary(policy: Policy) -> str:
    return policy.page.partition("\n")[0]


def _facts(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "summary": _summary(policy),
        "source": policy.source,
        "page": policy.page,
        "claims": policy.claims,
        "rules": [rule.text for rule in policy.rules],
    }


def _page(policy: Policy) -> list[str]:
    lines = [policy.name, *_wrapped(f"source: {policy.source or 'none'}", width()), ""]
    lines += _wrapped(policy.page.replace("\n", " ") or "The policy has no page.", width())
    if policy.claims:
        lines += ["", "what is quantized (all else stays high):"]
    for part, products in policy.claims.items():
        lines.append(f"  {part}")
        for role, words in (products or {}).items():
            lines += _wrapped(f"    {role}  {words}", width(), indent=11)
    lines += ["", "rules, the first that matches decides:"]
    for rule in policy.rules:
        lines += _wrapped(f"  {rule.text}", width(), indent=4)
    return [*lines, "", f"use it: qgraph train MODEL --policy {policy.name}"]


def _wrapped(text: str, room: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, room, subsequent_indent=" " * indent, break_on_hyphens=False)
