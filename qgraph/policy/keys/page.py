"""The key `page`: what a recipe does and does not cover, for people."""

from __future__ import annotations

from qgraph.policy.key import Key, nothing

PAGE_KEY: Key[str] = Key(
    module=__name__,
    name="page",
    entry=str,
    description="What the recipe does and does not cover; the first line is its summary.",
    example="4 bits.",
    default="",
    extends="never",
    resolve=lambda page, reading: page.strip(),
    written=nothing,
)
