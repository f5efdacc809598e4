"""What a policy keeps is known by the model's structure as it is now, whatever its parts are called."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qgraph
from qgraph.doors.structure import stacks_in
from qgraph.errors import PolicyError
from qgraph.policy import load_policy_text

LAST = """
qgraph: 1
name: last
extends: mxfp8
keep: [{group: head}, {last_blocks: 1}]
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.up(x))


class Stack(nn.Module):
    """Blocks in a list, in a dictionary, or as attributes with numbers."""

    def __init__(self, kind: str, count: int = 4) -> None:
        super().__init__()
        self.kind, self.count = kind, count
        if kind == "list":
            self.h = nn.ModuleList(Block() for _ in range(count))
        elif kind == "dictionary":
            self.h = nn.ModuleDict({str(i): Block() for i in range(count)})  # type: ignore[assignment]
        else:
            for i in range(count):
                setattr(self, f"block{i + 1}", Block())

    def blocks(self) -> list[Any]:
        if self.kind == "attributes":
            return [getattr(self, f"block{i + 1}") for i in range(self.count)]
        return list(self.h.values() if self.kind == "dictionary" else self.h)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks():
            x = block(x)
        return x


def statuses(model: nn.Module) -> dict[str, str]:
    return {e.module: e.status for e in qgraph.coverage(model).entries if e.role == "fprop"}


@pytest.mark.parametrize("kind", ["list", "dictionary", "attributes"])
def test_the_last_block_is_kept_however_blocks_are_held(kind: str) -> None:
    model = qgraph.compile(Stack(kind), load_policy_text(LAST, "p"), codegen=False)
    model(torch.randn(2, 8, 64)).sum().backward()
    assert [*statuses(model).values()] == ["quantized"] * 3 + ["kept"]


def test_numbered_parts_that_are_no_blocks_are_no_stack() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.layer1, self.layer2 = nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())
            self.block2, self.block4 = Block(), Block()

    assert stacks_in(Parts()) == {}


@pytest.mark.parametrize("change", ["dropped", "added"])
def test_the_last_block_is_that_of_the_model_as_it_is_now(change: str) -> None:
    model = qgraph.compile(Stack("list"), load_policy_text(LAST, "p"), codegen=False)
    x = torch.randn(2, 8, 64)
    model(x).sum().backward()
    blocks: Any = model.h
    if change == "dropped":
        del blocks[2:]
    else:
        blocks.append(Block())
    model(x).sum().backward()
    assert statuses(model) == {
        f"h.{i}.up": "kept" if i == len(blocks) - 1 else "quantized" for i in range(len(blocks))
    }


def tied(model: Any, x: Tensor) -> Tensor:
    return functional.linear(x, model.table.weight)


def own(model: Any, x: Tensor) -> Tensor:
    found: Tensor = x @ model.scores
    return found


def named(model: Any, x: Tensor) -> Tensor:
    found: Tensor = model.unusual(x)
    return found


@pytest.mark.parametrize("head", [tied, own, named])
def test_the_product_that_makes_the_scores_is_kept_by_any_name(
    head: Callable[[Any, Tensor], Tensor],
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.body = nn.Embedding(256, 64), nn.Linear(64, 64)
            if head is own:
                self.scores = nn.Parameter(torch.randn(64, 256))
            if head is named:
                self.unusual = nn.Linear(64, 256)

        def forward(self, ids: Tensor) -> Tensor:
            return functional.cross_entropy(
                head(self, self.body(self.table(ids))).flatten(0, 1), ids.flatten()
            )

    model = qgraph.compile(Model(), "mxfp8", codegen=False)
    model(torch.arange(32).view(2, 16)).backward()
    kept = {
        (e.role, e.status, e.part) for e in qgraph.coverage(model).entries if e.module != "body"
    }
    assert kept == {(role, "kept", "head") for role in ("fprop", "dgrad", "wgrad")}
    assert {e.status for e in qgraph.coverage(model).entries if e.module == "body"} == {"quantized"}


def test_a_glob_that_names_nothing_is_told_at_compile() -> None:
    text = LAST.replace("last_blocks: 1", "module: [h.9.up, h.1.up]")
    with pytest.warns(qgraph.QGraphWarning, match=r"called 'h\.9\.up'; did you mean h\.\d\.up\?"):
        qgraph.compile(Stack("list"), load_policy_text(text, "p"), codegen=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", qgraph.QGraphWarning)
        known = text.replace("h.9.up, ", "")
        qgraph.compile(Stack("list"), load_policy_text(known, "p"), codegen=False)


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [("re:.*self_attn.*", "*self_attn*"), ("^lm_head$", "lm_head"), (".*mlp.*", "*mlp*")],
)
def test_another_tools_pattern_is_refused_with_the_glob_to_write(
    pattern: str, instead: str
) -> None:
    with pytest.raises(PolicyError) as error:
        load_policy_text(LAST.replace("last_blocks: 1", f"module: '{pattern}'"), "p")
    assert f"dots too: '{instead}'" in error.value.fix
