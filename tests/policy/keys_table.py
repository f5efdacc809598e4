"""Print the table of keys in qgraph/policy/README.md: python -m tests.policy.keys_table"""

from __future__ import annotations

from typing import Any

import yaml

from qgraph.policy import KEYS
from qgraph.policy.key import REQUIRED, Key

HEAD = """\
| key | says | example | if not given |
|---|---|---|---|"""


def row(key: Key[Any]) -> str:
    """Return the line of one key."""
    cells = [_code(key.name), key.description, _code(_text({key.name: key.example})), _default(key)]
    return f"| {' | '.join(cells)} |"


def _default(key: Key[Any]) -> str:
    if key.default is REQUIRED:
        return "an error"
    return _code(_text(key.default)) if key.default else "nothing"


def _text(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text[1:-1] if isinstance(value, dict) else text


def _code(text: str) -> str:
    assert "|" not in text, "would end a cell of the table"
    return f"`{text}`"


def table() -> str:
    """Return the table: every key of a policy file, in the order in which files write them."""
    return "\n".join([HEAD, *map(row, KEYS)])


if __name__ == "__main__":
    print(table())
