"""What a captured graph has to do with other processes: DDP, FSDP2 and tensor parallelism."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.fx import Graph

from qgraph.compat import dynamo
from qgraph.doors.facts import input_index
from qgraph.errors import ModelError
from qgraph.ops import know_group, state
from qgraph.passes import Processes, Split


def is_distributed() -> bool:
    """Whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def alone_as(stream: int) -> Iterator[None]:
    """Within the block, give graphs of this single process the random bits of process `stream` of many."""
    token = state.ALONE.set(Processes(splits={}, stream=stream))
    try:
        yield
    finally:
        state.ALONE.reset(token)


class Meshes:
    """The meshes a model's weights are split over, as far as graphs have shown them."""

    def __init__(self) -> None:
        self._mesh: Any = None

    def see(self, inputs: Sequence[Any], model: nn.Module | None) -> Processes | None:
        """Return what a graph of these inputs has to do with other processes; None for one alone.

        Splits are by number of the input: `name_splits` gives them the names of the graph.

        Raises: ModelError if a weight is split in a way qgraph does not follow.
        """
        if not is_distributed():
            alone: Processes | None = state.ALONE.get()
            return alone
        found = {
            str(i): split for i, v in enumerate(inputs) if _is_split(v) and (split := _split(v))
        }
        self._learn(inputs)
        if self._mesh is None and model is not None:
            self._learn(_outside_fsdp(model))
        world = dist.group.WORLD
        assert world is not None
        if self._mesh is None:
            return Processes(splits={}, everyone=know_group(world), stream=dist.get_rank())
        dim = max(range(self._mesh.ndim), key=self._mesh.size)
        return Processes(
            splits=found,
            group=know_group(self._mesh.get_group(dim)),
            parts=self._mesh.size(dim),
            everyone=know_group(world),
            stream=int(self._mesh.mesh.min()),
        )

    def _learn(self, values: Iterable[Any]) -> None:
        for value in values:
            if self._mesh is None and _is_split(value):
                self._mesh = value.device_mesh


def name_splits(processes: Processes | None, graph: Graph) -> Processes | None:
    """Return `processes` with splits by the placeholders of `graph`."""
    if processes is None:
        return None
    names = {
        node.name: processes.splits[str(index)]
        for node in graph.find_nodes(op="placeholder")
        if str(index := input_index(node)) in processes.splits
    }
    return replace(processes, splits=names)


def _is_split(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor) and any(not p.is_replicate() for p in value.placements)


def _split(value: Any) -> Split | None:
    from torch.distributed.tensor import Shard

    found = [
        (placement, dim)
        for dim, placement in enumerate(value.placements)
        if not placement.is_replicate() and value.device_mesh.size(dim) > 1
    ]
    if not found:
        return None
    placement, dim = found[0]
    if len(found) > 1 or type(placement) is not Shard:
        raise ModelError(
            f"a tensor of shape {list(value.shape)} lies on the processes as {list(value.placements)}: "
            "qgraph follows weights that are split along one axis",
            "split weights over one dimension of the mesh",
        )
    mesh = value.device_mesh
    return Split(
        axis=placement.dim % value.dim(),
        group=know_group(mesh.get_group(dim)),
        parts=mesh.size(dim),
    )


def _outside_fsdp(model: nn.Module) -> Iterable[torch.Tensor]:
    """Yield the parameters that FSDP does not keep: its own splits are undone before they are used."""
    from torch.distributed.fsdp import FSDPModule

    kept = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for parameter in module.parameters()
    }
    return (p for p in model.parameters() if id(p) not in kept)


def among_processes(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, a compiled one, such that its graphs are not cut where DDP's buckets end.

    The pieces would be compiled with stand-ins for the weights, which no rule then recognizes.
    """

    def held(*args: Any, **kwargs: Any) -> Any:
        if not is_distributed():
            return call(*args, **kwargs)
        with dynamo.uncut():
            return call(*args, **kwargs)

    return held
