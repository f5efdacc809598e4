"""qgraph check: read a policy and say what it does, without loading torch."""

from __future__ import annotations

from typing import Annotated

import typer

from qgraph.formats.rounding import NEAREST
from qgraph.policy import load_policy, percent
from qgraph.tools.screen import print_json


def check(
    policy: Annotated[str, typer.Argument(help="A policy file or a recipe's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a policy file and print its rules.

    JSON keys: name, source, path, fingerprint, stochastic, rules, schedule, monitors (one line each),
    resolved.
    """
    found = load_policy(policy)
    if as_json:
        print_json(
            {
                "name": found.name,
                "source": found.source,
                "path": found.path,
                "fingerprint": found.fingerprint(),
                "stochastic": found.stochastic,
                "rules": [rule.text for rule in found.rules],
                "schedule": [switch.text for switch in found.schedule],
                "monitors": [monitor.text for monitor in found.monitors],
                "resolved": found.to_dict(),
            }
        )
        return
    typer.echo(f"{found.name}: {found.source or 'no source given'}\n{found.path}")
    typer.echo(f"  ragged: {found.ragged}")
    if found.min_flops is not None:
        typer.echo(f"  coverage: at least {percent(found.min_flops)} of product FLOPs quantized")
    for rule in found.rules:
        typer.echo(f"  {rule.text}")
        for role, operands in rule.products.items():
            words = []
            for kind, operand in operands.items():
                extra = [operand.transform.name] if operand.transform else []
                extra += [str(operand.rounding)] if operand.rounding != NEAREST else []
                words.append(
                    f"{kind} {operand.format or 'high'}"
                    + (f" ({', '.join(extra)})" if extra else "")
                )
            typer.echo(f"    {role}: {', '.join(words)}")
    for switch in found.schedule:
        typer.echo(f"  {switch.key}: {switch.text}")
    for monitor in found.monitors:
        typer.echo(f"  {monitor.key}: {monitor.text}")
