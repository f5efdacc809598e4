"""torch's private names stand in `qgraph/compat` alone: as imports, attributes, strings, keys of meta."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from qgraph.compat.table import NAMES
from tests.compat.private import Found, Words, attributes_in, find_private, private_words

ROOT = Path(__file__).parents[2]
TOPS = ("qgraph", "passes", "tools")


def sources() -> list[Path]:
    """Return every source file outside `qgraph/compat`; links to the top-level folders count once."""
    found = {file.resolve() for top in TOPS for file in (ROOT / top).rglob("*.py")}
    return sorted(file for file in found if not file.is_relative_to(ROOT / "qgraph" / "compat"))


@functools.cache
def words() -> Words:
    ours = {name for file in sources() for name in attributes_in(file.read_text())}
    return private_words(NAMES, ours)


def told(file: Path, found: list[Found]) -> list[str]:
    return [f"{file.relative_to(ROOT)}:{f.line} {f.kind} {f.name}" for f in found]


FOLDERS = sorted({str(file.parent.relative_to(ROOT)) for file in sources()})


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_outside_compat_knows_a_private_name(folder: str) -> None:
    breaches = [
        line
        for file in sources()
        if file.parent == ROOT / folder
        for line in told(file, find_private(file.read_text(), words()))
    ]
    assert not breaches, "\n".join(["move these to qgraph/compat:", *breaches])


def test_every_folder_of_sources_is_looked_at() -> None:
    looked_at = {str(file.relative_to(ROOT)) for file in sources()}
    for expected in (
        "qgraph/errors.py", "qgraph/doors/jit.py", "qgraph/predict/offline/codegen.py",
        "qgraph/training/states/optimizer.py", "passes/pipeline.py", "passes/joint/split_bias.py",
        "tools/main.py", "tools/show/shared.py",
    ):  # fmt: skip
        assert expected in looked_at
    assert "qgraph/compat/dynamo.py" not in looked_at


PLANTED = {
    "import torch._dynamo": ("import", "torch._dynamo"),
    "from torch._inductor import config": ("import", "torch._inductor.config"),
    "from torch import _dynamo": ("import", "torch._dynamo"),
    "from torch.utils._triton import has_triton": ("import", "torch.utils._triton.has_triton"),
    "from functorch.compile import make_boxed_func": ("import", "functorch.compile.make_boxed_func"),
    "def f():\n    from torch.fx.experimental import symbolic_shapes": (
        "import", "torch.fx.experimental.symbolic_shapes",
    ),
    "import torch\ntorch._int_mm(a, b)": ("chain", "torch._int_mm"),
    "import torch\ntorch._dynamo.exc.Unsupported": ("chain", "torch._dynamo.exc.Unsupported"),
    "from torch import nn\nnn.Module._call_impl": ("chain", "torch.nn.Module._call_impl"),
    "import torch.distributed as dist\ndist._x.y()": ("chain", "torch.distributed._x.y"),
    "import torch\ngetattr(torch, '_int_mm')": ("chain", "torch._int_mm"),
    "model._compiled_call_impl = None": ("attribute", "_compiled_call_impl"),
    "call = model._call_impl": ("attribute", "_call_impl"),
    "module._parameters['weight']": ("attribute", "_parameters"),
    "module._buffers": ("attribute", "_buffers"),
    "module._modules": ("attribute", "_modules"),  # in no row: what torch's classes hide counts too
    "node._input_nodes": ("attribute", "_input_nodes"),
    "tensor._local_tensor": ("attribute", "_local_tensor"),
    "getattr(node, '_dynamo_source')": ("attribute", "_dynamo_source"),
    "value.fake_mode": ("attribute", "fake_mode"),
    "hasattr(value, 'fake_mode')": ("attribute", "fake_mode"),
    "getattr(lowering, 'sizevars')": ("attribute", "sizevars"),
    "joint.graph_module": ("attribute", "graph_module"),
    "class Mine(Module):\n    def f(self):\n        return self._call_impl": (
        "attribute", "_call_impl",
    ),
    "from torch import nn\nclass Mine(nn.Module):\n    def f(self):\n        self._buffers = 1": (
        "attribute", "_buffers",
    ),
    "name = 'torch._inductor.utils.is_big_gpu'": ("string", "torch._inductor.utils.is_big_gpu"),
    "f'raise torch._dynamo.config.recompile_limit, {x}'": (
        "string", "torch._dynamo.config.recompile_limit",
    ),
    "import importlib\nimportlib.import_module('functorch.compile')": ("string", "functorch.compile"),
    "found.attr == '_local_tensor'": ("word", "_local_tensor"),
    "re.sub(r'^_export_root[.]', '', name)": ("word", "_export_root"),
    "re.sub(r'_modules[.]', '', path)": ("word", "_modules"),
    "options = {'isolate_recompiles': True}": ("word", "isolate_recompiles"),
    "import torch\ntorch.compile(f, isolate_recompiles=True)": ("parameter", "isolate_recompiles"),
    "node.meta['val']": ("meta", "node.meta"),
    "node.meta.get('desc')": ("meta", "node.meta"),
    "node.meta = {**other}": ("meta", "node.meta"),
    "getattr(node, 'meta')": ("meta", "getattr(node, 'meta')"),
    "KEYS = ('val', 'seq_nr')": ("word", "seq_nr"),
    "tag == 'is_backward'": ("word", "is_backward"),
}  # fmt: skip


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_breach_is_found(source: str) -> None:
    found = {(breach.kind, breach.name) for breach in find_private(source, words())}
    assert PLANTED[source] in found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.compile(f)\ntorch.fx.Graph()",
        "import torch\naten = torch.ops.aten\naten._to_copy.default\ntorch.ops.aten._softmax",
        "'aten._int_mm'",
        "class Ours:\n    def __init__(self):\n        self._parameters = {}\n        self._parameters",
        "value.to('meta')\nvalue.is_meta",
        "from qgraph.compat import meta\nmeta.value(node)\nmeta.fake_mode(graph)",
        '"""A capture is a torch._functorch thing: prose may say so."""',
        "import os\nos._exit(0)",
        "self._private.of_ours",
    ],
)
def test_what_is_public_or_ours_is_left_alone(source: str) -> None:
    assert not find_private(source, words())


def test_tests_import_private_names_from_compat_too() -> None:
    breaches = [
        line
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if not file.is_relative_to(ROOT / "tests" / "compat")
        for line in told(
            file, [f for f in find_private(file.read_text(), Words()) if f.kind == "import"]
        )
    ]
    assert not breaches, "\n".join(breaches)
