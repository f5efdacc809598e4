"""The key `claims`: what a recipe says of itself, in the report's words, for tests to hold it to."""

from __future__ import annotations

from collections.abc import Mapping

from qgraph.policy.file.entry import FileEntry, optional
from qgraph.policy.key import Key, Reading, nothing

Claims = Mapping[str, Mapping[str, str]]


class ClaimEntry(FileEntry):
    """What the page says of one part of a model: the words of the report's table, per product."""

    fprop: str = optional("The forward product.", "input e2m1/1x16, weight e2m1/16x16", "high")
    dgrad: str = optional("The input's gradient.", "grad_output e2m1/1x16 stochastic", "high")
    wgrad: str = optional("The weight's gradient.", "high", "high")


def _resolve(entries: Mapping[str, ClaimEntry], reading: Reading) -> Claims:
    return {group: entry.model_dump() for group, entry in entries.items()}


CLAIMS_KEY: Key[Claims] = Key(
    module=__name__,
    name="claims",
    entry=dict[str, ClaimEntry],
    description="What is quantized, per group, in the report's words; tests hold recipes to it.",
    example={"ffn": {"fprop": "input e4m3/tensor, weight e4m3/tensor"}},
    default={},
    extends="names",
    resolve=_resolve,
    written=nothing,
)
