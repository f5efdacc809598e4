"""The policies that the READMEs show, read as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qgraph.policy import load_policy_text

ROOT = Path(__file__).parent.parent.parent
SHOWN = [
    (file, text)
    for file in ("README.md", "qgraph/training/README.md")
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    # Alternatives stand one a line, under a comment.
    for text in (block.splitlines()[1:] if block.startswith("# one of") else [block])
]


@pytest.mark.parametrize(("file", "text"), SHOWN)
def test_a_policy_shown_to_users_loads(file: str, text: str) -> None:
    whole = text if "qgraph: 1" in text else f"qgraph: 1\nname: shown\nextends: nvfp4\n{text}"
    assert load_policy_text(whole, file).rules
    assert len(SHOWN) > 7
