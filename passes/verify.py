"""What a legal graph is: every planned operand is fed by exactly the op its plan names."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.errors import GraphError
from qgraph.passes.edit import below_permutes
from qgraph.passes.insert_hadamard import signs_of
from qgraph.passes.plan import Plan
from qgraph.policy import OperandPolicy



def verify(graph: Graph, plans: Sequence[Plan]) -> None:
    """Check `graph` against `plans`.

    Raises: GraphError naming the product, the operand and what it should read.
    """
    graph.lint()
    for plan in plans:
        product = plan.site.node
        wanted = plan.operands or (OperandPolicy(format=None),) * len(plan.site.operands)
        for operand, policy in zip(plan.site.operands, wanted, strict=True):
            source = product.args[operand.argument]
            assert isinstance(source, Node), "a product's operands are nodes"
            base, order = below_permutes(source)
            found, expected = _describe(base), _expect(policy)
            if found[:-1] != expected:
                raise GraphError(
                    f"{product.name} ({plan.site.role} of '{plan.site.module}'): its {operand.kind} reads "
                    f"{' '.join(map(str, found[:-1])) or 'an unquantized tensor'}, "
                    f"the plan says {' '.join(map(str, expected)) or 'high'}"
                )
            axis = order[operand.axis] - len(order)
            block = policy.format.block if policy.format else None
            free = block is not None and policy.transform is None and block.across == block.along
            if expected and not free and found[-1] != axis:
                raise GraphError(f"{product.name}: its {operand.kind} is quantized along axis {found[-1]}, not {axis}")
        left, right = (product.args[o.argument].meta["val"] for o in plan.site.operands) if wanted else (None, None)  # type: ignore[union-attr]
        if left is not None and (left.dtype != right.dtype or left.dtype != product.meta["val"].dtype):
            raise GraphError(f"{product.name}: operands of {left.dtype} and {right.dtype}")


def _expect(policy: OperandPolicy) -> tuple[object, ...]:
    turned = (signs_of(policy.transform), policy.transform.output) if policy.transform else ()
    if policy.format is None:
        return turned
    return (*turned, str(policy.format), policy.rounding)


def _describe(node: Node) -> tuple[object, ...]:
    """Return what `node` does to its argument, in the order of `_expect`, and its axis last."""
    if node.target is ops.hadamard:
        _, signs, axis, rounding = node.args
        return (signs, rounding, axis)
    if node.target is ops.rotate_quant:
        _, signs, rounding, text, axis, *noise = node.args
        return (signs, rounding, text, "stochastic" if noise else "nearest", axis)
    if node.target is ops.fake_quant:
        source, text, axis, *noise = node.args
        assert isinstance(source, Node), "fake_quant reads a node"
        below = _describe(source)[:-1] if source.target is ops.hadamard else ()
        return (*below, text, "stochastic" if noise else "nearest", axis)
    return (None,)
