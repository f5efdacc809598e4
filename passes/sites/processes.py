"""The processes that run one graph together, each on its part of the batch or of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a parameter is split: the axis of the parameter, and the group that holds the parts."""

    axis: int
    group: str
    parts: int


@dataclass(frozen=True, kw_only=True)
class Processes:
    """What the processes that run one graph together have to do with each other.

    `splits` gives, by placeholder, how each parameter in parts is split, and nothing for one that is
    whole on each process of `group`. `stream` numbers the processes with random bits of their own;
    `everyone` is the group of all.
    """

    splits: Mapping[str, Split]
    group: str = ""
    parts: int = 1
    everyone: str = ""
    stream: int = 0
