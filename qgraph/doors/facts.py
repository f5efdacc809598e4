"""What the passes need of a model that a captured graph does not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from weakref import ref

from torch import nn
from torch.fx import Graph, GraphModule, Node

from qgraph.compat import descriptions, meta
from qgraph.doors.entrances import is_matrix
from qgraph.doors.structure import heads_in, stacks_in, table_ids, vocabulary_of
from qgraph.models import Shapes
from qgraph.passes import (
    GraphFacts,
    Layer,
    Step,
    find_sites,
    frame_module,
    module_path,
    names_of,
    run_passes,
    stacks_of,
)
from qgraph.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What the passes need of a model that a graph does not hold; see `GraphFacts`."""

    blocks: dict[str, int]
    modules: dict[str, str]
    weights: dict[int, str]  # parameters that are most likely a product's operand: name by id
    heads: frozenset[str] = frozenset()
    tables: frozenset[int] = frozenset()  # ids of embeddings
    vocabulary: int = 0
    history: int | None = None  # the store of amax histories, see `qgraph.ops.history`
    owner: Callable[[], nn.Module | None] = lambda: None  # the model, while it is alive
    # The recorder of telemetry, and whether it looks at products: see `qgraph.ops.observe`.
    observe: tuple[int, bool] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Outline:
        """Return what `model` is made of now."""
        return cls(
            blocks=stacks_in(model),
            heads=frozenset(heads_in(model)),
            tables=frozenset(table_ids(model)),
            vocabulary=vocabulary_of(model),
            modules={str(id(module)): name for name, module in model.named_modules()},
            owner=ref(model),
            weights={id(p): name for name, p in model.named_parameters() if is_matrix(p)},
        )

    @classmethod
    def of_shapes(cls, shapes: Shapes) -> Outline:
        """Return the outline of `shapes.model`, its blocks numbered and counted as in the whole model."""
        found = cls.of(shapes.model)
        stack = {shapes.stack: shapes.size} if shapes.stack else {}
        return replace(
            found,
            blocks={**found.blocks, **stack},
            modules={key: shapes.whole_path(path) for key, path in found.modules.items()},
            heads=frozenset(map(shapes.whole_path, found.heads)),
            weights={key: shapes.whole_path(name) for key, name in found.weights.items()},
        )

    @property
    def layers(self) -> list[Layer]:
        """The modules as a policy sees them."""
        return [Layer.at(name, self.blocks, self.heads) for name in self.modules.values()]

    def now(self) -> Outline:
        """Return the outline of the model as it is now: parts may have been replaced, dropped or added."""
        model = self.owner()
        if model is None:
            return self
        return replace(Outline.of(model), history=self.history, observe=self.observe)

    def buffers(self, inputs: Iterable[object]) -> frozenset[int]:
        """Return which of `inputs`, by position, are buffers of the model."""
        model = self.owner()
        known = {id(buffer) for buffer in model.buffers()} if model is not None else set()
        return frozenset(i for i, value in enumerate(inputs) if id(value) in known)

    def module_of(self, paths: Iterable[str], inputs: Iterable[object]) -> str:
        """Return the path of the module whose code has `inputs`, at `paths` from it; "" if none tells."""
        model = self.owner()
        names = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
        for path, value in zip(paths, inputs, strict=True):
            name = names.get(id(value), "")
            if path and f".{name}".endswith(f".{path}"):
                return name.removesuffix(path).removesuffix(".")
        return ""

    def seen(self, inputs: Iterable[object]) -> set[str]:
        """Return the names of the weights among `inputs`.

        FSDP puts other tensors in the place of those the model had: those there now count too.
        """
        names, model = dict(self.weights), self.owner()
        if model is not None:
            names |= {id(p): name for name, p in model.named_parameters()}
        return {names.get(id(value), "") for value in inputs}


def graph_facts(
    graph: Graph,
    is_parameter: Callable[[Node], bool],
    outline: Outline | None,
    is_table: Callable[[Node], bool] = lambda _: False,
    is_buffer: Callable[[Node], bool] = lambda _: False,
) -> GraphFacts:
    """Return what the passes must know about `graph`; without an outline, count the blocks it shows."""
    placeholders = graph.find_nodes(op="placeholder")
    names = frozenset(node.name for node in placeholders if is_parameter(node))
    buffers = frozenset(node.name for node in placeholders if is_buffer(node))
    if outline is None:
        sites = find_sites(graph, GraphFacts(parameters=names))
        blocks = stacks_of(site.module for site in sites)
        return GraphFacts(parameters=names, buffers=buffers, blocks=blocks)
    return GraphFacts(
        parameters=names,
        buffers=buffers,
        blocks=outline.blocks,
        modules=outline.modules,
        heads=outline.heads,
        tables=frozenset(node.name for node in placeholders if is_table(node)),
        vocabulary=outline.vocabulary,
        history=outline.history,
    )


def rewrite_model(module: GraphModule, policy: Policy, outline: Outline | None) -> Counter[str]:
    """Run the passes of the stage `model` on what Dynamo captured, before autograd.

    Return how many functions were replaced, by the rule that did.
    """
    replaced: Counter[str] = Counter()
    graphs = [part for part in module.modules() if isinstance(part, GraphModule)]
    modules = outline.modules if outline else {}
    blocks = (
        outline.blocks
        if outline
        else stacks_of(
            module_path(node, modules, frame_module(part.graph, modules))
            for part in graphs
            for node in part.graph.nodes
        )
    )
    facts = GraphFacts(parameters=frozenset(), blocks=blocks, modules=modules)
    for part in graphs:
        before = _written(part.graph)
        step = Step(graph=part.graph, policy=policy, facts=facts)
        replaced += run_passes(step, names_of("model")).replaced
        if _written(part.graph) != before:
            part.recompile()
    return replaced


def _written(graph: Graph) -> list[tuple[object, ...]]:
    """Return all that the code of a graph is written from."""
    return [(node, node.op, node.target, node.args, node.kwargs) for node in graph.nodes]


def input_index(node: Node) -> int | None:
    """Return which of the captured function's inputs a placeholder is, if AOTAutograd says.

    Of a tensor in parts on several processes, the placeholder of this process's part counts.
    """
    return descriptions.input_number(meta.description(node))
