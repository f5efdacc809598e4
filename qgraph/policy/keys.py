"""What every entry of the schema is made of."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

CONFIG = ConfigDict(extra="forbid", strict=True, frozen=True)


def key(description: str, example: Any) -> Any:
    """Return a key that has to be there."""
    return Field(description=description, examples=[example])


def optional(description: str, example: Any, default: Any = None) -> Any:
    """Return a key that may be left out."""
    return Field(default=default, description=description, examples=[example])
