"""What qgraph whatif prints: the products by what they do, as JSON and as text."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgraph.search import Sensitivity


def measured_json(
    model: str,
    tokens: int,
    found: Sensitivity,
    by: str,
    scores: dict[tuple[int, str], float],
    first: str,
) -> dict[str, Any]:
    """Return what was measured as plain data; `scores` are ranked under the candidate `first`."""
    products = []
    for number, unit in enumerate(found.units):
        effects = {c.name: found.effects[number, c.name] for c in found.candidates}
        products.append(
            {
                "module": unit.module,
                "op": unit.op,
                "role": unit.role,
                "block": unit.block,
                "flops": unit.flops,
                "score": scores[number, first],
                "effects": {
                    name: {
                        "bits": e.candidate.bits,
                        "sqnr_db": {k: v if math.isfinite(v) else None for k, v in e.sqnr.items()},
                        "underflow": e.underflow,
                        "clipped": e.clipped,
                        "output_error": e.output_error,
                        "gradient_error": e.gradient_error,
                        "measured": e.measured,
                        "loss_change": e.loss_change,
                        "first_order": e.first_order,
                        "fisher": e.fisher,
                        "kept_gradient_error": e.kept_gradient_error,
                    }
                    for name, e in effects.items()
                },
            }
        )
    measured = [e.measured for e in found.effects.values()]
    left = Counter(site.unsupported or f"op {site.op}" for site in found.left_out)
    return {
        "model": model,
        "tokens": tokens,
        "loss": found.loss,
        "by": by,
        "products": products,
        "everything": {
            "gradient_error": found.all_gradient_error, "loss_change": found.all_loss_change
        },
        "measured": sum(measured) / max(1, len(measured)),
        "left_out": dict(left),
    }  # fmt: skip


def whatif_text(result: dict[str, Any], first: str, top: int, columns: int) -> str:
    """Return the `top` products and what was chosen, at most `columns` wide."""
    lines = [
        (
            f"{result['model']}: loss {result['loss']:.4f} on {result['tokens']} tokens; each product alone "
            f"under {first}, the most sensitive by {result['by']} first"
        ),
        "",
    ]
    room = max(20, columns - 53)
    head = f"{'role':<6}{'SQNR dB':>12}{'flushed':>8}{'error':>7}{'gradient':>10}{'loss':>10}"
    lines.append(f"{'module':<{room}}{head}"[:columns])
    products = sorted(result["products"], key=lambda p: -p["score"])
    for product in products[:top]:
        effect = product["effects"][first]
        ratio = "/".join("-" if v is None else f"{v:.0f}" for v in effect["sqnr_db"].values())
        flushed = 100 * max(effect["underflow"].values(), default=0.0)
        loss = "" if effect["loss_change"] is None else f"{effect['loss_change']:+.1e}"
        mark = "" if effect["measured"] else "~"
        module = product["module"] or "(root)"
        module = module if len(module) < room else "..." + module[4 - room :]
        gradient = f"{mark}{effect['gradient_error']:.4f}"
        lines.append(
            f"{module:<{room}}{product['role']:<6}{ratio:>12}{flushed:>7.1f}%"
            f"{effect['output_error']:>7.3f}{gradient:>10}{loss:>10}"
        )
    if len(products) > top:
        lines.append(f"... and {len(products) - top} more products")
    wrapped: list[str] = []
    for line in [*lines, "", *_totals(result, first)]:
        fits = len(line) <= columns
        wrapped += [line] if fits else textwrap.wrap(line, columns, subsequent_indent="    ")
    return "\n".join(line.rstrip() for line in wrapped) + "\n"


def _totals(result: dict[str, Any], first: str) -> list[str]:
    share = f"{100 * result['measured']:.0f}%"
    lines = [f"{share} of the effects were measured to the end of the step; others (~) are scaled"]
    if (error := result["everything"]["gradient_error"]) is not None:
        change = result["everything"]["loss_change"]
        lines.append(f"everything {first}: gradient off by {error:.4f}, loss {change:+.1e}")
    lines += [f"left out, {count} products: {why}" for why, count in result["left_out"].items()]
    if policy := result.get("policy"):
        ((kind, amount),) = policy["budget"].items()
        spent, wanted = (
            (f"{100 * v:.2f}% of FLOPs kept" if kind == "keep" else f"{v:.3f} bits")
            for v in (policy["cost"], amount)
        )
        counts = ", ".join(f"{count} {name}" for name, count in policy["counts"].items())
        others = ", ".join(f"{value:.4f}" for value in policy["random"])
        lines += [
            "",
            f"policy for at most {wanted}: {spent}; {counts}",
            (
                f"gradient off by {policy['gradient_error']:.4f} when all of it runs (predicted, summed: "
                f"{policy['predicted']:.4f}), loss {policy['loss_change']:+.1e}"
            ),
            f"random policies of the same budget: {others}",
        ]
    lines += [f"wrote {result[key]}" for key in ("wrote", "plot") if key in result]
    return lines
