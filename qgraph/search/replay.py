"""A captured training step, run node by node on real tensors, and again from any node on.

All values of one run are kept, so that a change at one node costs only what comes after it.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node

from qgraph.compat import descriptions, meta
from qgraph.doors import Capture, capture
from qgraph.errors import ModelError
from qgraph.passes import GraphFacts, Plan, Site, find_sites, open_plans, run_passes
from qgraph.policy import Policy


class Replay:
    """The joint graph of `model(**inputs)` and its backward, with what every node computes.

    The loss is the first output. The model is put in evaluation mode while it is captured: dropout
    would hide small effects. `sites` are its products; `loss` and `gradients` those of the last full run.

    Raises: ModelError as `capture`; also where the model's output does not begin with a loss.
    """

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Any], apart: Policy | None = None
    ) -> None:
        training = model.training
        self._captured: Capture = capture(model.eval(), inputs, apart)
        model.train(training)
        self.graph: Graph = self._captured.graph
        self.facts: GraphFacts = self._captured.facts
        self._run(open_plans(self._captured.products()), ("bias",))
        self.sites: tuple[Site, ...] = find_sites(self.graph, self.facts)
        self._original = {site.node: site.node.args for site in self.sites}
        (self._output,) = self.graph.find_nodes(op="output")
        self._loss, self._parameters = _results(self._output, self._captured)
        self._runner = Interpreter(self._captured.joint_module, garbage_collect_values=False)
        self._inputs = self._placeholders(model, inputs)
        self.values: dict[Node, Any] = {}
        self.run()

    @property
    def loss(self) -> float:
        """The loss of the last full run."""
        return float(self.values[self._loss])

    def gradients(self, values: Mapping[Node, Any] | None = None) -> dict[str, Tensor]:
        """Return the gradient of each parameter by its name, of `values` laid over the last full run."""
        return {
            name: (values or {}).get(node, self.values[node])
            for name, node in self._parameters.items()
        }

    def loss_of(self, values: Mapping[Node, Any]) -> float:
        """Return the loss of `values` laid over the last full run."""
        return float(values.get(self._loss, self.values[self._loss]))

    @torch.no_grad()
    def run(self) -> None:
        """Run the graph as it is now, and keep every value."""
        self.values.clear()
        self._runner.env = self.values
        for node in self.graph.nodes:
            if node.op != "output":
                found = self._inputs.get(node)
                self.values[node] = found if found is not None else self._runner.run_node(node)

    @torch.no_grad()
    def rerun(
        self,
        start: Sequence[Node],
        stop: Node | None = None,
        below: Mapping[Node, Any] | None = None,
        given: Mapping[Node, Any] | None = None,
    ) -> dict[Node, Any]:
        """Return what changes if `start`, in graph order, runs again with its arguments as they are now.

        All that follows from it runs too; with `stop` nothing behind that node. `below` are values laid
        over the last full run; `given` are new values of placeholders.
        """
        changed: dict[Node, Any] = dict(given or {})
        base = ChainMap(dict(below), self.values) if below else self.values
        self._runner.env = _Layered(changed, base)
        dirty = set(start)
        node = start[0] if start else next(iter(self.graph.nodes))
        while node.op != "output":
            again = node in dirty or any(source in changed for source in node.all_input_nodes)
            if again and node.op != "placeholder":
                changed[node] = self._runner.run_node(node)
                if node is stop:
                    break
            node = node.next
        return changed

    @contextmanager
    def quantized(self, plans: Sequence[Plan]) -> Iterator[list[Node]]:
        """Put the plans' rotations and quantizers into the graph while the context lasts.

        Gives the nodes that are new or have other arguments, in the order they run in.
        """
        before = {plan.site.node: plan.site.node.args for plan in plans}
        known = set(self.graph.nodes)
        self._run(plans, ("rotate", "quantize", "layout"))
        new = [node for node in self.graph.nodes if node not in known or node in before]
        try:
            yield new
        finally:
            for node, arguments in before.items():
                node.args = arguments
            for node in reversed(new):
                if node not in known:
                    self.graph.erase_node(node)

    @contextmanager
    def restored(self, sites: Sequence[Site]) -> Iterator[list[Node]]:
        """Give products their own operands again, inside `quantized`; gives their nodes, in graph order."""
        now = {site.node: site.node.args for site in sites}
        for node in now:
            node.args = self._original[node]
        try:
            yield [node for node in self.graph.nodes if node in now]
        finally:
            for node, arguments in now.items():
                node.args = arguments

    def _run(self, plans: Sequence[Plan], names: Sequence[str]) -> None:
        run_passes(replace(self._captured.step(), plans=tuple(plans)), names)

    @property
    def parameters(self) -> dict[str, Node]:
        """The placeholder of each parameter that the loss has a gradient of."""
        return {name: node for node, name in self._named.items() if name in self._parameters}

    def name_of(self, node: Node) -> str | None:
        """Return the name of the parameter a placeholder stands for."""
        return self._named.get(node)

    def _placeholders(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[Node, Any]:
        captured, found = self._captured, {}
        state = {
            **{name: value.detach() for name, value in captured.module.named_parameters()},
            **dict(captured.module.named_buffers()),
        }
        plain = list(inputs.values())
        self._named: dict[Node, str] = {}
        names = dict(
            zip(dict(captured.module.named_parameters()), captured.parameters, strict=True)
        )
        for node in self.graph.find_nodes(op="placeholder"):
            what = meta.description(node)
            target = descriptions.state_name(what)
            if target is not None:
                found[node] = state[target]
                if target in names:
                    self._named[node] = names[target]
            elif descriptions.is_tangent(what):
                value = meta.value(node)
                is_loss = descriptions.tangent_number(what) == 0
                make = torch.ones if is_loss else torch.zeros
                found[node] = make(value.shape, dtype=value.dtype)
            else:
                index = descriptions.input_number(what)
                assert index is not None, f"{node.name} is no input of the call"
                found[node] = plain[index]
        return found


class _Layered(dict[Node, Any]):
    """What changed, and below it what did not."""

    def __init__(self, changed: dict[Node, Any], below: Mapping[Node, Any]) -> None:
        super().__init__()
        self._changed, self._below = changed, below

    def __getitem__(self, node: Node) -> Any:
        return self._changed[node] if node in self._changed else self._below[node]

    def __contains__(self, node: object) -> bool:
        return node in self._changed or node in self._below


def _results(output: Node, captured: Capture) -> tuple[Node, dict[str, Node]]:
    """Return the node of the loss, and for each parameter that has a gradient, its node."""
    kinds, nodes = meta.description(output), output.args[0]
    values = captured.module.named_parameters()
    names = dict(zip((name for name, _ in values), captured.parameters, strict=True))
    found: dict[str, Node] = {}
    for kind, node in zip(kinds, nodes, strict=True):  # type: ignore[arg-type]
        target = descriptions.gradient_name(kind)
        if target is not None and target in names and isinstance(node, Node):
            found[names[target]] = node
    loss = nodes[0]  # type: ignore[index]
    value = meta.value(loss) if isinstance(loss, Node) else None
    if not isinstance(loss, Node) or not isinstance(value, Tensor) or value.dim() or not found:
        raise ModelError(
            "the model's first output is not a loss",
            "give inputs with labels, to a model with a head",
        )
    return loss, found
