"""The rules of the house, without exceptions, and that each is broken by what breaks it."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.house import ORDER, ROOT, Sources, module_of, planted, sources

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STAGES = ("model", "joint", "lower", "watch", "halves")


def runs_up(found: Sources) -> list[str]:
    """Imports from a lower package to a higher one."""
    return [
        f"{source.name} imports {name}"
        for source in found.values()
        if source.layer
        for name in source.imports()
        if ORDER.index(source.layer) < ORDER.index(name.split(".")[0])
    ]


def circles(found: Sources) -> list[str]:
    """Modules that import themselves, through others, while they are imported."""
    below = {
        name: {module_of(found, n) for n in source.imports(running=True)} - {name}
        for name, source in found.items()
    }
    circular: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circular.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for other in sorted(below.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in found:
        visit(name, ())
    return circular


def past_faces(found: Sources) -> list[str]:
    """Imports from another package that do not stop at its face."""
    return [
        f"{source.name} imports {name}"
        for source in found.values()
        for name in source.imports()
        if name.split(".")[0] != source.layer and name.count(".") > 1
    ]


def between_stages(found: Sources) -> list[str]:
    """Imports from one stage of the passes to another."""
    homes = {f"passes.{stage}." for stage in STAGES}
    return [
        f"{source.name} imports {name}"
        for source in found.values()
        for home in homes
        if source.name.startswith(home)
        for name in source.imports()
        if any(name.startswith(other) for other in homes - {home})
    ]


def names_of_quantizers(found: Sources) -> list[str]:
    """Passes that name the ops of quantizers, whose arguments one file alone knows."""
    return [
        f"{source.name}: {node.attr}"
        for source in found.values()
        if source.layer == "passes" and source.name != "passes.graph.quantizer"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("fake_quant", "rotate_quant")
    ]


def files_of(found: Sources, *folders: str) -> list[str]:
    """The modules in these folders, without the folders' own."""
    return [name for name in found if name.rpartition(".")[0] in folders]


def left_out(modules: Iterable[str], listed: Iterable[str]) -> list[str]:
    """Modules that do not stand in a list exactly once."""
    every = [name.removeprefix("qgraph.") for name in listed]
    return [name for name in modules if every.count(name) != 1]


def passes_left_out(found: Sources) -> list[str]:
    """Files of a stage that are not one pass of the pipeline."""
    from qgraph.passes import PASSES

    folders = [f"passes.{stage}" for stage in STAGES]
    return left_out(files_of(found, *folders), (one.run.__module__ for one in PASSES))


def keys_left_out(found: Sources) -> list[str]:
    """Files of policy keys that are not in KEYS."""
    from qgraph.policy import KEYS

    return left_out(files_of(found, "policy.keys"), (key.module for key in KEYS))


def kernels_left_out(found: Sources) -> list[str]:
    """Kernels that do not stand in the table exactly once."""
    (table,) = (
        node.value
        for node in found["ops.kernels"].tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "KERNELS"
    )
    assert isinstance(table, ast.Tuple), "the table is a tuple of names"
    rows = [ast.unparse(row) for row in table.elts]
    made = [
        (source.name, ast.unparse(target))
        for source in found.values()
        if source.layer == "ops"
        for node in source.tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Kernel(")
        for target in node.targets
    ]
    assert made, "kernels are made by their files"
    return [f"{module}: {name}" for module, name in made if rows.count(name) != 1]


def methods_that_see_graphs(found: Sources) -> list[str]:
    """Calibration methods that import graphs or passes."""
    return [
        f"{source.name} imports {name}"
        for source in found.values()
        if source.name.startswith("calibration.methods.")
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [ast.unparse(node)]
        if "torch.fx" in name or "qgraph.passes" in name
    ]


def defined_twice(found: Sources) -> list[str]:
    """Classes of one name in the tree, and functions of one name in a folder."""
    homes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for source in found.values():
        for node in source.tree.body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
                continue
            folder = "" if isinstance(node, ast.ClassDef) else source.name.rpartition(".")[0]
            homes[folder, node.name].append(source.name)
    return [f"{name}: {', '.join(v)}" for (_, name), v in homes.items() if len(v) > 1]


_MAKERS = {
    "count", "Counter", "ContextVar", "WeakKeyDictionary", "WeakValueDictionary", "WeakSet",
    "defaultdict", "deque",
}  # fmt: skip
_CHANGES = {
    "add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault",
    "update",
}  # fmt: skip


def mutable_globals(found: Sources) -> list[str]:
    """Names of modules that hold what changes, outside the one file for them."""
    return [
        f"{source.name}: {name}"
        for source in found.values()
        if source.name != "ops.state"
        for name in _changing(source.tree)
    ]


def _changing(tree: ast.Module) -> set[str]:
    made: dict[str, ast.expr] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name) and value is not None:
                made[target.id] = value
    changing = {
        name for name, value in made.items()
        if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in _MAKERS
    }  # fmt: skip
    # What a module does to its own names at import is data.
    functions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    for inside in (n for function in functions for n in ast.walk(function)):
        if isinstance(inside, ast.Global):
            changing |= {*inside.names}
        elif isinstance(inside, ast.Subscript) and isinstance(inside.ctx, (ast.Store, ast.Del)):
            changing |= {ast.unparse(inside.value)} & {*made}
        elif (
            isinstance(inside, ast.Call)
            and isinstance(inside.func, ast.Attribute)
            and inside.func.attr in _CHANGES
        ):
            changing |= {ast.unparse(inside.func.value)} & {*made}
    return changing


def unreachable(found: Sources) -> list[str]:
    """Modules that neither a command nor qgraph's own names lead to."""
    todo, seen = ["tools.main", "", *_run_by_name(found)], set[str]()
    while todo:
        name = todo.pop()
        if name in seen or name not in found:
            continue
        seen.add(name)
        todo += [module_of(found, imported) for imported in found[name].imports()]
        todo.append(name.rpartition(".")[0])  # a module's packages run first
    return sorted(set(found) - seen)


def _run_by_name(found: Sources) -> list[str]:
    """Modules that `python -m` runs."""
    return [name for name, s in found.items() if "__name__ == '__main__'" in ast.unparse(s.tree)]


Rule = Callable[[Sources], list[str]]
# Each rule, and a file that breaks it: its name, its text.
RULES: dict[str, tuple[Rule, str, str]] = {
    "imports run down": (runs_up, "formats.new", "from qgraph.ops import fake_quant"),
    "no circles": (circles, "errors", "import qgraph.formats"),
    "only faces are imported": (past_faces, "tools.new", "from qgraph.passes.plan import Plan"),
    "stages are apart": (
        between_stages, "passes.watch.new", "from qgraph.passes.lower.fuse_rotations import x",
    ),
    "one file knows quantizers": (names_of_quantizers, "passes.joint.new", "x = ops.fake_quant"),
    "a pass stands in the pipeline": (passes_left_out, "passes.joint.new", ""),
    "a key stands in KEYS": (keys_left_out, "policy.keys.new", ""),
    "a kernel stands in KERNELS": (kernels_left_out, "ops.gpu.new", "NEW = Kernel(name='new')"),
    "methods see no graph": (
        methods_that_see_graphs, "calibration.methods.new", "from qgraph.passes import Plan",
    ),
    "no class twice": (defined_twice, "tools.new", "class Step: ..."),
    "no function twice": (defined_twice, "policy.file.new", "def load_policy(): ..."),
    "no hidden state": (mutable_globals, "doors.new", "_SEEN = set()\ndef f(x): _SEEN.add(x)"),
    "no count": (mutable_globals, "doors.new", "_NEXT = itertools.count()"),
    "every module is of use": (unreachable, "search.new", ""),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule: str) -> None:
    assert not RULES[rule][0](sources())


@pytest.mark.parametrize("rule", RULES)
def test_a_breach_is_found(rule: str) -> None:
    broken, name, text = RULES[rule]
    found = broken(planted(name, text))
    assert any(name in line or "load_policy" in line for line in found), found


@pytest.mark.parametrize("layer", ["errors", "formats", "policy"])
def test_a_policy_can_be_read_without_torch(layer: str) -> None:
    code = f"import sys, qgraph.{layer}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_every_package_has_its_place_in_the_order() -> None:
    assert {source.layer for source in sources().values()} - {""} <= {*ORDER}


def test_every_face_gives_what_it_names() -> None:
    for source in sources().values():
        if source.layer and source.name == source.layer:
            face = importlib.import_module(f"qgraph.{source.name}")
            assert all(hasattr(face, name) for name in getattr(face, "__all__", ())), source.name


def test_every_package_is_installed() -> None:
    found = {"qgraph"}
    found |= {f"qgraph.{name.rpartition('.')[0]}".rstrip(".") for name in sources() if name}
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
        name: source.tree.body[-1].end_lineno
        for name, source in sources().items()
        if source.tree.body and (source.tree.body[-1].end_lineno or 0) > 330
    }
    assert not long
