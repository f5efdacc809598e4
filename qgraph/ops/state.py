"""What changes while a process runs. No other file has a global that is written to.

Graphs name models, recorders and groups of processes by numbers or text, because a graph holds no
objects: what they stand for is looked up here, and is gone with its owner.
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch.distributed as dist
from torch import nn

# Numbers that tell things of this process apart. Each kind has its own: they stand in graphs, and the
# first model of a process must have the number that compiled code was kept under.
STORE_NUMBERS = itertools.count()
RECORDER_NUMBERS = itertools.count()
GRAPH_NUMBERS = itertools.count(1)
# The models that keep amax histories, by number: see `qgraph.ops.history`.
STORES: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
# For each of them, what each row's operand is scaled by in the step under way, and which step that is.
PASTS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
# Their histories in float32, which a change of the model's dtype rounds.
HISTORIES: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
# How many steps all optimizers have taken: see `qgraph.ops.history`.
OPTIMIZER_STEPS: dict[str, int] = {}
# The recorders of telemetry, by number: see `qgraph.ops.observe`.
RECORDERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
# Groups of processes, by name: see `qgraph.ops.shared`.
PROCESS_GROUPS: dict[str, dist.ProcessGroup] = {}
# The places of graphs whose quantizer was held against its definition: see `qgraph.ops.check`.
CHECKED: set[tuple[int, str]] = set()
# What is known of compiled and of converted models. Kept beside them, not in them: a copy of a model
# is not compiled and must not say it is.
COMPILED: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
CONVERTED: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
# What stands for the processes of a run in a single one: see `qgraph.doors.parallel`.
ALONE: ContextVar[Any] = ContextVar("alone", default=None)
# Compiled models of experiments, by policy: compiling costs more than a short run.
EXPERIMENT_MODELS: dict[str, Any] = {}
# How the parameters of each module are stored, and the hooks that see what is put into modules: see
# `qgraph.doors.parameters`.
STORED: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
WATCHING: list[Any] = []
