"""The house: which package may import which, and that what is installed is what is here."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    "errors", "compat", "formats", "numerics", "policy", "ops", "passes", "models", "doors", "predict",
    "search", "training", "experiments", "tools",
)  # fmt: skip
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(layer: str) -> list[Path]:
    home = ROOT / layer if layer in ("passes", "tools") else ROOT / "qgraph" / layer
    return sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {
                f"{node.module}.{alias.name}" for alias in node.names if node.module == "qgraph"
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("layer", ORDER)
def test_imports_point_one_way(layer: str) -> None:
    later = ORDER[ORDER.index(layer) + 1 :]
    files = sources(layer)
    assert files, f"no sources for {layer}"
    for file in files:
        for name in imports(file):
            part = name.split(".")[1] if name.startswith("qgraph.") else ""
            assert part not in later, f"{file} imports {name}, a later layer"


@pytest.mark.parametrize("layer", ["errors", "formats", "policy"])
def test_a_policy_can_be_read_without_torch(layer: str) -> None:
    code = f"import sys, qgraph.{layer}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_every_package_is_installed() -> None:
    homes = {"": ROOT / "qgraph", "passes.": ROOT / "passes", "tools.": ROOT / "tools"}
    found = {
        f"qgraph.{prefix}{'.'.join(file.parent.relative_to(home).parts)}".strip(".")
        for prefix, home in homes.items()
        for file in home.rglob("__init__.py")
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_file_that_is_not_python_is_installed() -> None:
    home = ROOT / "qgraph"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["qgraph"]
    shipped = {file for pattern in patterns for file in home.glob(pattern)}
    here = {f for f in home.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert here == shipped


@pytest.mark.parametrize("name", ["passes", "tools"])
def test_links_lead_to_the_top_level_folders(name: str) -> None:
    link = ROOT / "qgraph" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_files_stay_short() -> None:
    # Not a style limit: a file this long has two ideas in it.
    long = {
        str(file.relative_to(ROOT)): lines
        for layer in ORDER
        for file in sources(layer)
        if (lines := len(file.read_text().splitlines())) > 330
    }
    assert not long
