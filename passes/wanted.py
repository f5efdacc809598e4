"""What plans ask of a graph: read by the passes that rewrite it, and by the one that verifies it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qgraph.numerics import TE_SIGNS, random_signs
from qgraph.passes.graph.operand import Operand
from qgraph.passes.plan import Plan
from qgraph.passes.sites.site import Site
from qgraph.policy import OperandPolicy, Transform

SIGN_SITES = 1 << 30  # the sites that signs are drawn at: apart from those of codes


def quantized_operands(plan: Plan) -> Iterator[tuple[int, Operand, OperandPolicy]]:
    """Yield each operand of a plan that is quantized, with its index."""
    for index, (operand, wanted) in enumerate(zip(plan.site.operands, plan.operands, strict=False)):
        if wanted.format is not None:
            yield index, operand, wanted


def signs_of(transform: Transform, number: int) -> str:
    """Return the signs of a transform at site `number` as text, one + or - for each of its points."""
    match transform.signs:
        case "te":
            return TE_SIGNS
        case "run":
            return random_signs(transform.hadamard, transform.seed, SIGN_SITES - 1)
        case "site":
            return random_signs(transform.hadamard, transform.seed, SIGN_SITES + number)
    return "+" * transform.hadamard


def spans_positions(site: Site, wanted: OperandPolicy) -> bool:
    """Whether one scale serves all positions and images of a channel.

    So it does where a convolution's wgrad has a scale a row: it sums over positions and images.
    """
    block = wanted.format.block if wanted.format and not wanted.transform else None
    rows = block is not None and block.across == 1 and block.along is None
    return rows and site.op == "conv" and site.role == "wgrad"


def axis_is_free(wanted: OperandPolicy) -> bool:
    """Whether an operand is the same quantized along either axis, so that one copy serves both.

    So it is for a square tile or a whole tensor, rounded to nearest and not rotated.
    """
    if wanted.format is None or wanted.transform or wanted.random:
        return False
    if wanted.format.scale.range.kind == "delayed":
        return False  # each operand has a history of its own
    return wanted.format.block.across == wanted.format.block.along


def shares_rows(wanted: OperandPolicy) -> bool:
    """Whether a scale serves a part of several rows, so that it matters which axes are the matrix's."""
    block = wanted.format.block if wanted.format else None
    return block is not None and block.across != 1 and str(block) != "tensor"


def gradients(
    plans: Sequence[Plan],
) -> Iterator[tuple[Plan, Operand, OperandPolicy, Plan, bool]]:
    """Yield (forward plan, operand, its policy, backward plan, transposed) for every such gradient.

    Of Y = A·B, the gradient of A is the product of dY and B: transposed, if dY comes second. That
    of B is the product of A and dY: transposed, if dY comes first.
    """
    behind: dict[object, list[Plan]] = {}
    for plan in plans:
        if plan.site.role != "fprop":
            behind.setdefault(plan.site.sequence, []).append(plan)
    for plan in plans:
        if plan.site.role != "fprop" or plan.site.op == "conv":
            continue
        pairs = list(zip(plan.site.operands, plan.operands, strict=False))
        for index, (operand, wanted) in enumerate(pairs):
            if wanted.gradient.straight:
                continue
            other = plan.site.operands[1 - index].kind
            for backward in behind.get(plan.site.sequence, []):
                kinds = backward.site.operand_kinds
                if set(kinds) == {"grad_output", other}:
                    yield plan, operand, wanted, backward, kinds.index("grad_output") != index
