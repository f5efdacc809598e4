"""Formats with which a run of many tokens is past the size that the scaling law calls critical."""

from __future__ import annotations

from qgraph.policy import Advice, Policy
from qgraph.policy.scaling_law import coverage, critical_tokens


def lint_tokens(policy: Policy, params: float, tokens: float) -> list[Advice]:
    """Return the formats with which a run of `tokens` on a model of `params` is past the critical size.

    Source: the scaling law of arXiv 2501.02423; see `scaling_law` for what it is fitted on.
    """
    found = []
    formats = {str(o.format): o.format for o in policy.operands if o.format is not None}
    for name, places in coverage(policy).inside.items():
        critical = critical_tokens(params, formats[name])
        if tokens > critical:
            problem = (
                f"{_count(tokens)} tokens are past the critical {_count(critical)} of {name} on "
                f"{_count(params)} parameters: by the scaling law more data makes the model worse"
            )
            found.append(
                Advice(
                    name="tokens",
                    place=places[0],
                    problem=problem,
                    fix="use a wider format, smaller blocks or fewer tokens; see qgraph predict",
                    source="arXiv 2501.02423",
                )
            )
    return found


def _count(value: float) -> str:
    return f"{value / 1e12:.3g}T" if value >= 1e12 else f"{value / 1e9:.3g}B"
