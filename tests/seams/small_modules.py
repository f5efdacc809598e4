"""Small random models of the kinds that have gone wrong, each with what must become of its products."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qgraph import numerics
from qgraph.formats import parse_format
from qgraph.policy import load_policy_text

SIZE, VOCABULARY = 32, 96
FORMAT = "e2m1/1x16/ue8m0-rceil"
POLICY = load_policy_text(
    f"""
qgraph: 1
name: seams
keep: [{{group: head}}, {{last_blocks: 1}}]
rules: [{{match: {{op: linear}}, fprop: {{input: {FORMAT}, weight: {FORMAT}}}}}]
""",
    "seams",
)


class Part(nn.Module):
    """A piece of a model. `eager` says that it computes what it must, by itself, in high-precision torch."""

    quantized: tuple[str, ...] = ("",)  # the modules in it whose products are, by their path
    kept: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()  # `module op` of what no graph holds

    def __init__(self) -> None:
        super().__init__()
        self.eager = False

    def multiply(self, x: Tensor, weight: Tensor, keep: bool = False) -> Tensor:
        """Return x W.T, quantized by hand where this is what the model is held to."""
        if self.eager and not keep:
            fmt = parse_format(FORMAT)
            x, weight = (numerics.fake_quant(value, fmt, -1) for value in (x, weight))
        return functional.linear(x, weight)

    def own(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape or (SIZE, SIZE)) / 8)


class Plain(Part):
    def __init__(self) -> None:
        super().__init__()
        self.weight = self.own()

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)


class Transposed(Plain):
    """The weight is stored [in, out]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.eager:
            return self.multiply(x, self.weight.mT)
        return x @ self.weight


class Masked(Plain):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand(SIZE, SIZE) < 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight * self.mask)


class LowRank(Plain):
    """A frozen weight and its update; the product that makes the update stays high."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = self.own(SIZE, 4), self.own(4, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight + self.up @ self.down)


class Block(Part):
    quantized = ("inner",)

    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.relu(self.inner(x))


class Last(Plain):
    """The product of a stack's last block, which the policy keeps."""

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight, keep=True)


class Stack(Part):
    """Blocks in a list, a dictionary, or as attributes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        blocks = [Block(), Block()]
        blocks[-1].inner = Last()
        if kind == "list":
            self.held = nn.ModuleList(blocks)
        elif kind == "dictionary":
            self.held = nn.ModuleDict(dict(zip("01", blocks, strict=True)))  # type: ignore[assignment]
        else:
            self.block1, self.block2 = blocks
        names = ["block1", "block2"] if kind == "attributes" else ["held.0", "held.1"]
        self.quantized, self.kept = (f"{names[0]}.inner",), (f"{names[1]}.inner",)

    def forward(self, x: Tensor) -> Tensor:
        held: Any = None if self.kind == "attributes" else self.held
        blocks: Any = [self.block1, self.block2] if held is None else held
        for block in blocks.values() if self.kind == "dictionary" else blocks:
            x = block(x)
        return x


class Hidden(Part):
    """What Dynamo is told not to follow runs as it is."""

    quantized, elsewhere = (), (" aten::linear",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.own()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Any:
        return self.multiply(x, self.weight, keep=True)


class Recurrent(Part):
    quantized, elsewhere = (), ("inner aten::gru",)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(SIZE, SIZE, batch_first=True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Any:
        return self.inner(x)[0]


class Wrapper(Part):
    """Another's model under the name that torch's own wrappers use."""

    quantized = ("module",)

    def __init__(self) -> None:
        super().__init__()
        self.module = Plain()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found


KINDS: dict[str, Callable[[], Part]] = {
    "plain": Plain,
    "transposed": Transposed,
    "masked weight": Masked,
    "low rank": LowRank,
    "list of blocks": lambda: Stack("list"),
    "dictionary of blocks": lambda: Stack("dictionary"),
    "numbered blocks": lambda: Stack("attributes"),
    "not followed": Hidden,
    "recurrent": Recurrent,
    "wrapped": Wrapper,
}
HEADS = ("none", "tied", "own", "odd name")
CALLS = ("call", "forward", "functional", "wrapper", "no grad", "twice")


class Model(nn.Module):
    """An embedding, parts of some kinds in a row, and a head or none."""

    def __init__(self, kinds: list[str], head: str) -> None:
        super().__init__()
        self.head = head
        self.table = nn.Embedding(VOCABULARY, SIZE)
        self.parts = nn.ModuleDict({f"part_{chr(97 + i)}": KINDS[k]() for i, k in enumerate(kinds)})
        if head in ("own", "odd name"):
            self.unusual = nn.Linear(SIZE, VOCABULARY, bias=False)
        if head == "own":
            self.scores = self.unusual.weight
            del self.unusual

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for part in self.parts.values():
            x = part(x)
        if self.head == "none":
            return x  # type: ignore[no-any-return]
        if self.head == "odd name":
            return self.unusual(x)  # type: ignore[no-any-return]
        return functional.linear(x, self.table.weight if self.head == "tied" else self.scores)

    def expected(self) -> tuple[Counter[str], Counter[str], set[str]]:
        """Return the modules whose products are quantized, are kept, and what runs elsewhere."""
        quantized, kept, elsewhere = Counter[str](), Counter[str](), set[str]()
        for name, part in self.parts.items():
            assert isinstance(part, Part)
            place = f"parts.{name}"
            quantized.update(f"{place}.{path}".rstrip(".") for path in part.quantized)
            kept.update(f"{place}.{path}".rstrip(".") for path in part.kept)
            elsewhere |= {f"{place}.{text}".replace(". ", " ") for text in part.elsewhere}
        if self.head == "odd name":
            kept["unusual"] += 1
        elif (
            self.head != "none" and elsewhere
        ):  # Dynamo leaves a loop that it cannot follow as it is
            elsewhere.add(" aten::linear")
        elif self.head != "none":
            kept[""] += 1
        return quantized, kept, elsewhere


def draw(number: int) -> tuple[list[str], str, str]:
    """Return the kinds of parts, the head and the way of calling of a draw."""
    chance = random.Random(number)
    kinds = chance.sample(sorted(KINDS), chance.randint(1, 3))
    return kinds, chance.choice(HEADS), chance.choice(CALLS)
