"""Products that torch ran outside the rewritten graphs: in high precision, whatever the policy says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A product that ran while the model was called, and that no graph of ours holds.

    `module` is the path of the module that called it, several joined by ` or ` where torch does not
    tell which, "" for the root; `op` is torch's name (`aten::lstm`), `code` the line, `model.py:12`.
    """

    module: str
    op: str
    code: str

    def __str__(self) -> str:
        where = f" of {self.module}" if self.module else ""
        return f"{self.op}{where} ({self.code})" if self.code else f"{self.op}{where}"


def elsewhere_text(found: Iterable[Elsewhere]) -> str:
    """Return the words for products that ran outside the graphs."""
    texts = sorted({str(product) for product in found})
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return (
        f"{len(texts)} products run outside the compiled graphs, in high precision: "
        f"{', '.join(texts[:5])}{more}"
    )
