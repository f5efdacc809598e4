"""The key `coverage`: the least share of product FLOPs, in percent, that has to be quantized."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from qgraph.policy.file.entry import FileEntry, required
from qgraph.policy.file.values import Percent, percent
from qgraph.policy.key import Key, Reading, nothing

if TYPE_CHECKING:
    from qgraph.policy.model import Policy


class CoverageEntry(FileEntry):
    """What has to be quantized for a run to go on."""

    min_flops: Percent = required("The least share of all product FLOPs that is quantized.", "90%")


def _resolve(entry: CoverageEntry | None, reading: Reading) -> Fraction | None:
    return None if entry is None else entry.min_flops


def _words(least: Fraction | None, policy: Policy) -> Iterator[str]:
    if least is not None:
        yield f"coverage: at least {percent(least)} of product FLOPs quantized"


COVERAGE_KEY: Key[Fraction | None] = Key(
    module=__name__,
    name="coverage",
    entry=CoverageEntry | None,
    description="What has to be quantized; with less, converting and training stop.",
    example={"min_flops": "90%"},
    default=None,
    resolve=_resolve,
    written=lambda least, policy: None if least is None else {"min_flops": percent(least)},
    numbers=nothing,
    words=_words,
)
