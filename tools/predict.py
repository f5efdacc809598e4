"""qgraph predict: what the scaling law of quantized training says about a planned run."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated, Any

import typer

from qgraph.formats import parse_format
from qgraph.policy import Policy, load_policy
from qgraph.predict import scaling_law
from qgraph.tools.show.amounts import count_text, read_count
from qgraph.tools.show.screen import print_json, width

SOURCE = "arXiv 2501.02423"


def predict(
    params: Annotated[str, typer.Option(help="Parameters of the model: 154M, 7B, 1.2e9.")],
    tokens: Annotated[str, typer.Option(help="Training tokens: 20B, 10T.")],
    policy: Annotated[str, typer.Option(help="A policy file or a recipe's name.")] = "nvfp4",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict what POLICY costs a run of this size, by the floating-point scaling law.

    For example: qgraph predict --params 1.2B --tokens 100B --policy nvfp4

    The law (arXiv 2501.02423) was fitted with three operands quantized: fprop.weight, dgrad.weight
    and wgrad.input. What a policy does elsewhere is listed, not predicted.

    JSON keys: params, tokens, policy, high_loss (nats per token), formats (text form -> penalty,
    penalty_percent, critical_tokens, exponent_bits, mantissa_bits, log2_block, best_layout, places,
    notes), penalty and critical_tokens (of the worst format; null if there is none), unknown and outside
    (format -> places the law says nothing about), fitted (params, tokens: lowest and highest), warnings.
    """
    count, data = read_count(params, "--params"), read_count(tokens, "--tokens")
    found = prediction(load_policy(policy), count, data)
    if as_json:
        print_json(found)
    else:
        sys.stdout.write(_text(found, width()))


def prediction(policy: Policy, params: float, tokens: float) -> dict[str, Any]:
    """Return the law's word on `policy` as plain data; see `predict` for the keys."""
    covered = scaling_law.coverage(policy)
    high = scaling_law.high_loss(params, tokens)
    formats = {
        name: _entry(name, places, params, tokens) for name, places in covered.inside.items()
    }
    worst = max((f["penalty"] for f in formats.values()), default=None)
    critical = min((f["critical_tokens"] for f in formats.values()), default=None)
    return {
        "params": params,
        "tokens": tokens,
        "policy": policy.name,
        "source": SOURCE,
        "high_loss": high,
        "formats": {
            name: entry | {"penalty_percent": 100 * entry["penalty"] / high}
            for name, entry in formats.items()
        },
        "penalty": worst,
        "critical_tokens": critical,
        "unknown": covered.unknown,
        "outside": covered.outside,
        "fitted": {"params": scaling_law.FITTED_PARAMS, "tokens": scaling_law.FITTED_TOKENS},
        "warnings": _warnings(covered, params, tokens, critical),
    }


def _entry(name: str, places: list[str], params: float, tokens: float) -> dict[str, Any]:
    known = scaling_law.precision(parse_format(name))
    assert known is not None, "coverage lists only formats the law knows as inside"
    exponent, mantissa = scaling_law.best_layout(1 + known.exponent + known.mantissa)
    critical = scaling_law.critical_tokens(params, known)
    return {
        "penalty": scaling_law.penalty(params, tokens, known),
        "critical_tokens": critical,
        "exponent_bits": known.exponent,
        "mantissa_bits": known.mantissa,
        "log2_block": known.log2_block,
        "best_layout": f"e{exponent}m{mantissa}",
        "places": places,
        "notes": list(known.notes),
    }


def _warnings(
    covered: scaling_law.Coverage, params: float, tokens: float, critical: float | None
) -> list[str]:
    found = []
    if critical is not None and tokens > critical:
        found.append(
            f"{count_text(tokens)} tokens are past the critical {count_text(critical)}: by the law, "
            "more data makes this run worse; use a wider format or smaller blocks"
        )
    elif critical is not None and tokens > 0.5 * critical:
        found.append(
            f"{count_text(tokens)} tokens are {100 * tokens / critical:.0f}% of the critical "
            f"{count_text(critical)}"
        )
    for value, what, (low, high) in (
        (params, "parameters", scaling_law.FITTED_PARAMS),
        (tokens, "tokens", scaling_law.FITTED_TOKENS),
    ):
        if not low <= value <= high:
            found.append(
                f"{count_text(value)} {what} are outside the fit, {count_text(low)} to {count_text(high)}: "
                "this is extrapolated. The law extrapolates badly to long runs: for 12B parameters and "
                "10T tokens it gives 5% (1x16) to 11% (16x16), where NVFP4 measured 1.5% (arXiv 2509.25149)"
            )
            break
    if covered.outside:
        found.append(
            "the policy quantizes operands the law says nothing about; in the paper's own study those of "
            "linear layers hurt more than the three it describes: "
            + "; ".join(f"{', '.join(places)} ({name})" for name, places in covered.outside.items())
        )
    if covered.unknown:
        found.append(f"formats without exponent and mantissa: {', '.join(covered.unknown)}")
    if len(covered.inside) > 1:
        found.append(
            "the law was fitted with one format at all three operands; each is given as if alone, and "
            "the worst is named"
        )
    return found


def _text(found: dict[str, Any], columns: int) -> str:
    lines = [
        (
            f"{found['policy']}, {count_text(found['params'])} parameters, "
            f"{count_text(found['tokens'])} tokens"
        ),
        f"  loss in high precision  {found['high_loss']:.4f} nats per token",
    ]
    for name, entry in found["formats"].items():
        places = sorted({place.split()[-1] for place in entry["places"]})
        lines += [
            f"  {name}  ({', '.join(places)})",
            f"    penalty               +{entry['penalty']:.4f} nats, {entry['penalty_percent']:.2f}%",
            f"    critical tokens       {count_text(entry['critical_tokens'])}",
            (
                f"    best layout           {entry['best_layout']} of "
                f"{1 + entry['exponent_bits'] + entry['mantissa_bits']} bits"
            ),
        ]
        lines += [f"    note: {note}" for note in entry["notes"]]
    if not found["formats"]:
        lines.append("  no penalty: the policy quantizes none of the operands the law speaks about")
    lines += [f"warning: {text}" for text in found["warnings"]]
    lines.append(
        f"The law ({found['source']}) was fitted with fprop.weight, dgrad.weight and wgrad.input "
        "quantized, and nothing else."
    )
    wrapped = (
        textwrap.wrap(
            line,
            columns,
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + 4),
            break_on_hyphens=False,
        )
        for line in lines
    )
    return "\n".join(part for lines in wrapped for part in lines) + "\n"
