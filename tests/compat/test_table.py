"""The table of private names: it has what the code uses, and torch has what is in it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch

from qgraph.compat import dynamo
from qgraph.compat.names import AREAS, Name, find
from qgraph.compat.table import NAMES, is_there
from tests.compat.inventory import areas, is_used, paths_used, words_used

VERSION = torch.__version__


def rows(area: str) -> list[Name]:
    return [name for name in NAMES if name.area == area]


def test_every_file_is_an_area_and_says_what_needs_it() -> None:
    assert set(AREAS) == set(areas()) == {name.area for name in NAMES}
    assert all(text for text in AREAS.values())


def test_no_name_is_listed_twice() -> None:
    listed = [(name.area, name.path) for name in NAMES]
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("area", AREAS)
def test_what_a_file_uses_is_in_the_table(area: str) -> None:
    source = areas()[area].read_text()
    listed = {name.path for name in rows(area)}
    begun = {path for path in paths_used(source) if any(p.startswith(f"{path}.") for p in listed)}
    assert not paths_used(source) - listed - begun
    assert not words_used(source) - {name.last for name in rows(area)}


@pytest.mark.parametrize("area", AREAS)
def test_what_is_in_the_table_is_used(area: str) -> None:
    source = areas()[area].read_text()
    assert not [name.path for name in rows(area) if not is_used(name.last, source)]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from torch._dynamo import reset", "torch._dynamo.reset"),
        ("from torch._dynamo import config\nconfig.verbose", "torch._dynamo.config.verbose"),
        ("from torch._dynamo import config\nconfig.patch(a=1)", "torch._dynamo.config.a"),
        ("from torch._x import f\nf(1, wide=2)", "torch._x.f(wide)"),
        ("import torch\ntorch._int_mm(a, b)", "torch._int_mm"),
        ("NAME = 'torch._inductor.utils.is_big_gpu'", "torch._inductor.utils.is_big_gpu"),
        ("from torch._x import A\nclass B(A):\n    def ask(self): ...", "torch._x.A.ask"),
        ("from unittest import mock\nfrom torch._x import A\nmock.patch.object(A, '_b', 1)", "torch._x.A._b"),
    ],
)  # fmt: skip
def test_a_use_without_a_row_is_seen(source: str, path: str) -> None:
    assert path in paths_used(source)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("kernel.python_stuff()", "python_stuff"),
        ("getattr(node, '_dynamo_thing', None)", "_dynamo_thing"),
        ("setattr(x, '_written', 1)", "_written"),
        ("LOCAL = '_local_thing'", "_local_thing"),
        ("KEY = 'new_key'\nnode.meta[KEY]", "new_key"),
        ("node.meta['other_key'] = 1", "other_key"),
    ],
)
def test_a_word_without_a_row_is_seen(source: str, word: str) -> None:
    assert word in words_used(source)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name.area}:{name.path}")
def test_torch_has_what_it_is_to_have(name: Name) -> None:
    if name.path.startswith("triton."):
        pytest.importorskip("triton")
    assert is_there(name.path) == name.expected(VERSION), name.problem(VERSION, AREAS[name.area])


@pytest.mark.parametrize(
    "path",
    [
        "torch._gone.reset", "torch._dynamo.gone", "torch.compile(gone)", "torch.fx.proxy[gone_key]",
        "torch.nn.Module._gone", "torch._inductor.codegen.simd.SIMDKernel.gone",
    ],
)  # fmt: skip
def test_a_name_that_is_gone_is_missed(path: str) -> None:
    with pytest.raises(AttributeError):
        find(path)
    with pytest.raises(KeyError):
        is_there(path)
    with pytest.raises(AttributeError):
        find(path)


def test_a_failure_names_the_file_what_for_and_what_breaks() -> None:
    (name,) = [name for name in NAMES if name.last == "_dynamo_graph_capture_for_export"]
    said = name.problem("9.9", AREAS[name.area])
    for part in ("torch 9.9", name.path, "qgraph/compat/dynamo.py", name.used_for, "convert"):
        assert part in said


def test_a_row_knows_the_versions_it_is_of() -> None:
    name = Name(path="torch._a.b", area="aot", used_for="", since="2.12", until="2.14")
    versions = ("2.11.0", "2.12.0", "2.13.0+cpu", "2.14.1", "2.9")
    assert [name.expected(version) for version in versions] == [False, True, True, False, False]
    always = Name(path="torch._a.b", area="aot", used_for="")
    assert all(always.expected(version) for version in versions)


def test_a_name_that_some_torch_lacks_says_what_is_done_without_it() -> None:
    partly = [name for name in NAMES if name.since or name.until]
    assert partly
    assert all(name.instead for name in partly)


def test_each_model_has_a_limit_of_its_own_where_torch_can() -> None:
    known = inspect.signature(torch.compile).parameters
    options = dynamo.own_limit(2)
    assert set(dynamo.taken(options)) == {"isolate_recompiles", "recompile_limit"} & set(known)
    limits: list[int] = []
    dynamo.within(lambda: limits.append(dynamo.recompile_limit()), options)()
    assert limits == [
        dynamo.recompile_limit() if "recompile_limit" in known else options["recompile_limit"]
    ]


def test_compat_imports_nothing_of_qgraph_but_errors() -> None:
    for file in Path(dynamo.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qgraph"):
                assert str(node.module).startswith(("qgraph.compat", "qgraph.errors")), file
