"""Print the table of architectures in tests/README.md: python -m tests.doors.zoo_table"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qgraph.passes import Report, make_totals
from tests.doors.zoo import ZOO, Entry
from tests.doors.zoo_steps import take_steps

HEAD = """\
| architecture | family | graphs | products | quantized: mxfp8 | nvfp4 | left high by mxfp8 |
|---|---|---|---|---|---|---|"""
# The beginnings of reasons, in fewer words.
SHORT = {
    "kept: rule": "rule",
    "fused attention": "fused attention",
    "no rule matches": "no rule",
    "a depthwise": "depthwise",
    "blocks of": "groups of odd size",
}


def row(entry: Entry, reports: Mapping[str, Report]) -> str:
    """Return the line of one architecture; shares are of its products' FLOPs."""
    report = reports["mxfp8"]
    totals = make_totals(report.entries)
    left: dict[str, float] = {}
    for reason, share in (totals["kept"] | totals["not_quantized"]).items():
        word = next((word for start, word in SHORT.items() if reason.startswith(start)), reason)
        word = f"rule {reason.split()[2]}" if word == "rule" else word
        left[word] = left.get(word, 0.0) + share
    ordered = sorted(left.items(), key=lambda item: -item[1])
    why = ", ".join(f"{word} {share:.0%}" for word, share in ordered if share >= 0.005)
    cells = [
        entry.name, entry.family, str(report.graphs), str(len(report.entries)), f"{report.share:.0%}",
        f"{reports['nvfp4'].share:.0%}", why or "nothing",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run one step of each architecture under both recipes."""
    print(HEAD)
    for entry in ZOO:
        torch._dynamo.reset()
        reports = {
            recipe: step.report
            for recipe, step in take_steps(entry, ("mxfp8", "nvfp4"))
            if step.report is not None
        }
        print(row(entry, reports), flush=True)


if __name__ == "__main__":
    main()
