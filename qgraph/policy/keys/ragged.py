"""The key `ragged`: what becomes of a product whose summed axis is no multiple of the block."""

from __future__ import annotations

from typing import Literal

from qgraph.policy.key import Key, as_written

Ragged = Literal["pad", "keep", "error"]

RAGGED_KEY: Key[Ragged] = Key(
    module=__name__,
    name="ragged",
    entry=Ragged,
    description="A product whose summed axis is no multiple of the block: pad it with zeros, keep it "
    "in high precision, or stop with an error.",
    example="pad",
    default="pad",
    resolve=as_written,
    written=lambda ragged, policy: ragged,
    words=lambda ragged, policy: [f"ragged: {ragged}"],
)
