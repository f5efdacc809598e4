"""Several processes: who this one is, and what to say when another one is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from qgraph.errors import RunError

# What gloo and NCCL say when a peer is gone, or does not answer within the group's timeout.
_SIGNS = (
    "connection closed by peer", "connection reset by peer", "timed out", "timeout",
    "broken pipe", "remote process exited", "connection refused", "socket closed",
)  # fmt: skip


def rank() -> int:
    """Return this process's number among those torchrun or accelerate started, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes torchrun or accelerate started, 1 alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def told_of_lost_processes(again: str) -> Iterator[None]:
    """Turn the error of a collective whose peer is gone into one that says so, and what to do: `again`.

    Raises: RunError instead of torch's RuntimeError; any other error as it is.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() == 1 or not any(sign in text.lower() for sign in _SIGNS):
            raise
        raise RunError(
            f"rank {rank()} of {world_size()}: another process died or stopped answering: "
            f"{text.strip().splitlines()[0][:200]}",
            again,
        ) from error
