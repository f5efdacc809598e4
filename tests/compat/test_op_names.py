"""Ops are named by torch's own names, underscores and all; torch has each name that is written anywhere.

They are no private names of a module: nodes of graphs are such ops, torch documents the set (Core ATen
IR: `_softmax`, `_to_copy`) and keeps the schemas of all of them. So they stand where graphs are read, not in
`qgraph/compat`, and what a new torch lacks is told here.
"""

from __future__ import annotations

import ast
import re

import pytest
import torch

from tests.compat.private import names_of, path_of
from tests.compat.test_private_names import ROOT, sources

_WRITTEN = re.compile(r"\b(aten|prims)\.(\w+)")


def ops_in(source: str) -> set[tuple[str, bool]]:
    """Return the ops that a file names, and whether the name may be the beginning of several."""
    tree = ast.parse(source)
    names, found = names_of(tree), set[tuple[str, bool]]()
    for node in ast.walk(tree):
        path = path_of(node, names) if isinstance(node, ast.Attribute) else None
        parts = (path or "").split(".")
        if parts[:2] == ["torch", "ops"] and len(parts) > 3 and parts[2] in ("aten", "prims"):
            found.add((f"{parts[2]}::{parts[3]}", False))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            written = _WRITTEN.match(node.value)
            if written and written.end() == len(node.value.removesuffix(".default")):
                found.add((f"{written[1]}::{written[2]}", True))
    return found


USED = sorted({op for file in sources() for op in ops_in(file.read_text())})


def known() -> set[str]:
    schemas = torch._C._jit_get_all_schemas()
    return {schema.name for schema in schemas} | {f"prims::{name}" for name in dir(torch.ops.prims)}


@pytest.mark.parametrize(
    "name", ["aten::mm", "aten::_to_copy", "aten::_softmax", "aten::_grouped_mm"]
)
def test_ops_are_seen_in_the_code(name: str) -> None:
    assert name in {op for op, _ in USED}


def test_torch_has_every_op_that_is_named() -> None:
    have = known()
    missing = [
        op
        for op, beginning in USED
        if op not in have and not (beginning and any(name.startswith(op) for name in have))
    ]
    assert not missing, f"torch {torch.__version__} has no {missing}, named below {ROOT}"


def test_an_op_that_is_gone_would_be_missed() -> None:
    (op,) = ops_in("import torch\naten = torch.ops.aten\naten._no_such_op.default")
    assert op == ("aten::_no_such_op", False)
    assert op[0] not in known()
