"""What the READMEs show, as it stands there: policies load, tables are printed ones, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from qgraph.policy import KEYS, load_policy_text, recipe_names
from tests.policy.keys_table import table

ROOT = Path(__file__).parent.parent.parent
READMES = [
    ROOT / name
    for name in (
        "README.md",
        "passes/README.md",
        "qgraph/ops/README.md",
        "qgraph/policy/README.md",
        "qgraph/training/README.md",
        "tests/README.md",
        "tools/README.md",
    )
]
POLICIES = ROOT / "qgraph/policy/README.md"
SHOWN = [
    (str(file.relative_to(ROOT)), text)
    for file in READMES
    for block in re.findall(r"```yaml\n(.*?)```", file.read_text(), re.DOTALL)
    # Alternatives stand one a line, under a comment.
    for text in (block.splitlines()[1:] if block.startswith("# one of") else [block])
]


@pytest.mark.parametrize(("file", "text"), SHOWN)
def test_a_policy_shown_to_users_loads(file: str, text: str) -> None:
    whole = text if "qgraph: 1" in text else f"qgraph: 1\nname: shown\nextends: nvfp4\n{text}"
    assert load_policy_text(whole, file).rules
    assert len(SHOWN) > 7


def test_the_table_of_keys_is_what_the_script_prints() -> None:
    again = "print the table again: python -m tests.policy.keys_table"
    assert f"\n{table()}\n\n" in POLICIES.read_text(), again


def test_examples_in_the_table_of_keys_are_the_keys_own() -> None:
    rows = [row.split(" | ") for row in table().splitlines()[2:]]
    shown = [yaml.safe_load(cells[2].strip("`")) for cells in rows]
    assert shown == [{key.name: key.example} for key in KEYS]


def test_every_recipe_stands_in_the_table_of_recipes_once() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", POLICIES.read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"\w+", row)]
    assert all(named.count(name) == 1 for name in recipe_names())


def anchors(file: Path) -> set[str]:
    """The places in a file that links can name."""
    titles = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_readme_names_is_there(file: Path) -> None:
    text = file.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, place = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert not place or place in anchors(target), link
    folders = r"(?:qgraph|passes|tests|tools)"
    for path in re.findall(rf"(?<=[`\s(]){folders}/[\w/]+(?:\.\w+)?(?=[`\s,:)])", text):
        assert (ROOT / path).exists(), path
