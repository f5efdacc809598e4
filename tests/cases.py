"""Which of a test's many cases run in every `make test`, and which only when drawn: see README.md."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def mostly_full(
    cases: Iterable[Any], telling: Collection[str], name: Callable[[Any], str] = str
) -> list[Any]:
    """Return the cases as parameters: those named run always, of the others a tenth each time.

    A tuple is the values of several parameters; `name` says what to call it.
    """
    found = {name(case): case for case in cases}
    assert telling, "some cases run always"
    assert set(telling) <= set(found), f"no such cases: {set(telling) - set(found)}"
    return [_parameter(key, case, key in telling) for key, case in found.items()]


def _parameter(key: str, case: Any, telling: bool) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, id=key, marks=() if telling else pytest.mark.full)
