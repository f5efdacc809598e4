"""What every entry of the schema is made of."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

CONFIG = ConfigDict(extra="forbid", strict=True, frozen=True)
FAULT = "qgraph"  # the type of the errors raised here; their context holds problem and fix


class FileEntry(BaseModel):
    """A mapping of a policy file.

    Messages take from it what it is `called` where something else is given, an `example` where users
    choose the name it stands under, and, where users choose its keys as well, the entry `named` by them.
    """

    model_config = CONFIG
    called: ClassVar[str] = "a mapping"
    example: ClassVar[object] = None
    named: ClassVar[Any] = None


def required(description: str, example: Any) -> Any:
    """Return a key that has to be there."""
    return Field(description=description, examples=[example])


def optional(description: str, example: Any, default: Any = None) -> Any:
    """Return a key that may be left out."""
    return Field(default=default, description=description, examples=[example])


def value_fault(problem: str, fix: str) -> PydanticCustomError:
    """Return the error pydantic carries to `faults`, which puts the key's name for {key} in the fix."""
    return PydanticCustomError(FAULT, "{problem}", {"problem": problem, "fix": fix})
