"""What processes must agree on: the range of a tensor each has a part of, and the seed of a step.

A graph names a group of processes by its text name; `know_group` makes the group known to this process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from qgraph.errors import GraphError
from qgraph.formats import parse_format
from qgraph.ops import state
from qgraph.ops.quantizing import element_steps


def know_group(group: dist.ProcessGroup) -> str:
    """Make `group` known to the ops here, and return the name that graphs call it by."""
    name = str(group.group_name)
    state.PROCESS_GROUPS[name] = group
    return name


def shared_amax(x: Tensor, format: str, axis: int, rows: bool, group: str) -> Tensor:
    """Return the largest magnitude over all processes of `group`, each of which has a part of x.

    With `rows` that of each block of the format, a row or a column that the parts cut; else one for
    the whole tensor. NaN is the largest of all.

    Shapes: x [..., M, K] -> [], or [..., M/A, 1, K/B, 1].
    Dtypes: -> float32.
    Raises: GraphError if this process is in no such group.
    """
    if rows:
        found = element_steps(x).largest(x.float(), parse_format(format).block, axis)
    else:
        found = x.abs().amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)
    # Bits of magnitudes are ordered as the magnitudes are, and NaN's are above those of infinity.
    bits = found.contiguous().view(torch.int32).clone()
    dist.all_reduce(bits, dist.ReduceOp.MAX, group=_known(group))
    return bits.view(torch.float32)


def shared_amax_fake(x: Tensor, format: str, axis: int, rows: bool, group: str) -> Tensor:
    """Return an empty result of `shared_amax`."""
    if not rows:
        return x.new_empty([], dtype=torch.float32)
    block, shape = parse_format(format).block, x.movedim(axis, -1).shape
    across, along = block.across or shape[-2] or 1, block.along or shape[-1] or 1
    counts = ((shape[-2] + across - 1) // across, (shape[-1] + along - 1) // along)
    return x.new_empty([*shape[:-2], counts[0], 1, counts[1], 1], dtype=torch.float32)


def shared_seed(seed: Tensor, group: str) -> Tensor:
    """Return the seed of the group's first process, which every process then draws from.

    Shapes: [1] -> the same.
    Dtypes: int64.
    """
    found = seed.clone()
    dist.broadcast(found, group=_known(group), group_src=0)
    return found


def stream(seed: Tensor, number: int) -> Tensor:
    """Return the seed of an independent stream of random bits; stream 0 is `seed` itself.

    Processes that train on parts of a batch each have a number: their rounding errors average out.

    Shapes: [1] -> the same.
    Dtypes: int64, 0 to 2**32 - 1.
    """
    return (seed + number * 2654435761) % 2**32  # Knuth's multiplier: far apart, and odd


def _known(name: str) -> dist.ProcessGroup:
    if name not in state.PROCESS_GROUPS:
        raise GraphError(
            f"this process is in no group of processes called '{name}'",
            "compile the model in the process that runs it",
        )
    return state.PROCESS_GROUPS[name]
