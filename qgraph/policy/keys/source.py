"""The key `source`: where a recipe comes from."""

from __future__ import annotations

from qgraph.policy.file.values import Text
from qgraph.policy.key import Key, as_written, nothing

SOURCE_KEY: Key[str] = Key(
    module=__name__,
    name="source",
    entry=Text,
    description="Where the recipe comes from.",
    example="arXiv 2509.25149",
    default="",
    resolve=as_written,
    written=lambda source, policy: source,
    numbers=nothing,
)
