"""The passes, in the order they run. This is the whole rewrite: every door takes passes from it by name.

model     Dynamo's graph, before autograd: the backward follows by itself
joint     forward and backward in one graph: every product is found, planned and quantized
lower     semantic ops become what the target computes
watch     the graph is verified, and looked at as it runs
halves    forward and backward after the cut: what is saved between them
"""

from __future__ import annotations

from collections.abc import Collection

from qgraph.errors import GraphError, QGraphError
from qgraph.passes.halves.stash import stash
from qgraph.passes.joint.insert_gradient import insert_gradient
from qgraph.passes.joint.join_products import join_products
from qgraph.passes.joint.keep_layout import keep_layout
from qgraph.passes.joint.pad_groups import pad_groups
from qgraph.passes.joint.plan_products import plan_products
from qgraph.passes.joint.quantize_operands import quantize_operands
from qgraph.passes.joint.recompute_casts import recompute_casts
from qgraph.passes.joint.recompute_weights import recompute_weights
from qgraph.passes.joint.rotate_operands import rotate_operands
from qgraph.passes.joint.share_quantizers import share_quantizers
from qgraph.passes.joint.split_bias import split_bias
from qgraph.passes.joint.split_products import split_products
from qgraph.passes.lower.fuse_rotations import fuse_rotations
from qgraph.passes.lower.lower_native import lower_native
from qgraph.passes.lower.lower_nvfp4 import lower_nvfp4
from qgraph.passes.model.attention import take_attention_apart
from qgraph.passes.model.softmax import replace_softmax
from qgraph.passes.step import Pass, Stage, Step
from qgraph.passes.watch.insert_check import insert_check
from qgraph.passes.watch.insert_observe import insert_observe
from qgraph.passes.watch.verify import verify

PASSES: tuple[Pass, ...] = (
    Pass(name="attention", stage="model", run=take_attention_apart),
    Pass(name="softmax", stage="model", run=replace_softmax),
    Pass(name="split", stage="joint", run=split_products),
    Pass(name="casts", stage="joint", run=recompute_casts),
    Pass(name="plan", stage="joint", run=plan_products),
    Pass(name="join", stage="joint", run=join_products),
    Pass(name="bias", stage="joint", run=split_bias),
    Pass(name="groups", stage="joint", run=pad_groups),
    Pass(name="gradients", stage="joint", run=insert_gradient),
    Pass(name="rotate", stage="joint", run=rotate_operands),
    Pass(name="quantize", stage="joint", run=quantize_operands),
    Pass(name="share", stage="joint", run=share_quantizers),
    Pass(name="recompute", stage="joint", run=recompute_weights),
    Pass(name="layout", stage="joint", run=keep_layout),
    Pass(name="fuse", stage="lower", run=fuse_rotations),
    Pass(name="nvfp4", stage="lower", run=lower_nvfp4),
    Pass(name="native", stage="lower", run=lower_native),
    Pass(name="verify", stage="watch", run=verify),
    Pass(name="check", stage="watch", run=insert_check),
    Pass(name="observe", stage="watch", run=insert_observe),
    Pass(name="stash", stage="halves", run=stash),
)


def names_of(*stages: Stage, until: str | None = None) -> tuple[str, ...]:
    """Return the names of the passes of these stages in order, with `until` no further than that one."""
    names = tuple(one.name for one in PASSES if one.stage in stages)
    return names if until is None else names[: names.index(until) + 1]


def run_passes(step: Step, names: Collection[str]) -> Step:
    """Run the passes of these names on `step`, in the order of `PASSES`; return it.

    Raises: GraphError if a pass leaves an illegal graph, fails, or is none; PolicyError as `plan`.
    """
    unknown = {*names} - {one.name for one in PASSES}
    if unknown:
        every = ", ".join(one.name for one in PASSES)
        raise GraphError(f"there is no pass {', '.join(sorted(unknown))}", f"passes: {every}")
    for one in PASSES:
        if one.name in names:
            try:
                one.run(step)
            except QGraphError:
                raise
            except Exception as error:  # Dynamo takes some errors for a reason to run eagerly
                raise GraphError(
                    f"the pass '{one.name}' failed on this graph: {error!r}"
                ) from error
    return step
