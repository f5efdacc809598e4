"""qgraph check: read a policy, say what it does and what papers advise against in it."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.errors import QGraphError
from qgraph.policy import (
    Advice,
    Policy,
    lint,
    load_policy,
    policy_json_schema,
    unused_rules,
    why_unused,
)
from qgraph.predict import lint_tokens
from qgraph.tools.show.amounts import read_count
from qgraph.tools.show.screen import print_json, progress, width

if TYPE_CHECKING:
    from qgraph.tools.show.look import Look


def check(
    policy: Annotated[str | None, typer.Argument(help="A policy file or a recipe's name.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Also hold it against this model, named as for convert.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Tokens of the run, as 20B: are they too many for its formats?"),
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="Parameters of the model, for --tokens without --model.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there is a warning.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of policies, for editors.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, where a model is captured.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence, likewise.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a policy file, print its rules, and warn of choices that papers advise against.

    For example: qgraph check mine.yaml --model preset:tiny-llama, or:
    qgraph check nvfp4 --tokens 10T --params 7B, or: qgraph check --schema > policy.schema.json

    An editor that knows YAML schemas completes keys where the policy begins with
    # yaml-language-server: $schema=policy.schema.json

    JSON keys: name, source, path, fingerprint, stochastic, rules, schedule, monitors (one line each),
    resolved, warnings (name, place, problem, fix, source), and with --model unused_rules (rule, why),
    products, quantized (counts), share (of FLOPs).
    """
    if schema:
        sys.stdout.write(json.dumps(policy_json_schema(), indent=1) + "\n")
        return
    if policy is None:
        raise QGraphError("no policy is given", "write qgraph check mine.yaml, or a recipe's name")
    found = load_policy(policy)
    data = None if tokens is None else read_count(tokens, "--tokens")
    count = None if params is None else read_count(params, "--params")
    if data is not None and count is None and model is None:
        raise QGraphError("--tokens asks for the model's size", "add --params 7B, or --model")
    look, head = None, "lm_head"
    if model is not None:
        look, size, head = _hold(model, policy, batch, length)
        count = count or size
    warnings = lint(found, head)
    if data is not None and count is not None:
        warnings += lint_tokens(found, count, data)
    if as_json:
        print_json(_json(found, warnings, look))
    else:
        sys.stdout.write("\n".join(_text(found, warnings, look)) + "\n")
    if strict and (warnings or (look and unused_rules(found, look.entries))):
        sys.exit(1)


def _hold(model: str, policy: str, batch: int, length: int) -> tuple[Look, float, str]:
    """Return the plan of a model, its number of parameters, and the module of its last product."""
    from qgraph.tools.show.look import look_at

    with progress(4) as step:
        look = look_at(model, policy, batch, length, step)
        from qgraph.models import load_shapes

        step("counting parameters")
        size = sum(load_shapes(model).parameters.values())
    last = [e for e in look.entries if e.role == "fprop" and e.op == "linear"]
    return look, size, last[-1].module if last and last[-1].block is None else "lm_head"


def _json(found: Policy, warnings: list[Advice], look: Look | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": found.name,
        "source": found.source,
        "path": found.path,
        "fingerprint": found.fingerprint(),
        "stochastic": found.stochastic,
        "rules": [rule.text for rule in found.rules],
        "schedule": [switch.text for switch in found.schedule],
        "monitors": [monitor.text for monitor in found.monitors],
        "resolved": found.to_dict(),
        "warnings": [asdict(finding) for finding in warnings],
    }
    if look is not None:
        result |= {
            "unused_rules": [
                {"rule": rule.text, "why": why_unused(rule, look.entries)}
                for rule in unused_rules(found, look.entries)
            ],
            "products": len(look.entries),
            "quantized": len(look.report.quantized),
            "share": look.report.share,
        }
    return result


def _text(found: Policy, warnings: list[Advice], look: Look | None) -> list[str]:
    lines = [f"{found.name}: {found.source or 'no source given'}", found.path]
    lines += [f"  {line}" for line in found.lines()]
    if look is not None:
        lines.append(
            f"on {look.source}: {len(look.report.quantized)} of {len(look.entries)} products, "
            f"{100 * look.report.share:.1f}% of their FLOPs quantized"
        )
        lines += [
            f"warning: {rule.text}: {why_unused(rule, look.entries)}"
            for rule in unused_rules(found, look.entries)
        ]
    for finding in warnings:
        source = f" ({finding.source})" if finding.source else ""
        lines += _wrap(f"warning: {finding.place}: {finding.problem}{source}")
        lines += _wrap(f"  fix: {finding.fix}")
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(60, width()),
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
