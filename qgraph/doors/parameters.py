"""Parameters stored in one dtype and multiplied in another.

LayerCast: weights lie in bf16, and each use casts them to fp32. The cast is in the captured graph,
so that a compiler fuses it and the backward does not keep what it gives. Source: arXiv 2506.09501.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.compat import modules
from qgraph.errors import QGraphWarning
from qgraph.policy import ParameterPolicy, names_module

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MADE = "_qgraph_reads_wide"  # stands in the classes made here


def store_parameters(model: nn.Module, policy: ParameterPolicy) -> None:
    """Bring `model`'s parameters into the storage dtype, in place; each stays the same Parameter.

    With a wider compute dtype: those of every module that holds a matrix and is not kept. Such a
    module's attribute, `module.weight`, then gives the cast tensor; `parameters()`, `state_dict` and
    `save_pretrained` give what is stored. Without: the whole model, buffers too.
    """
    low, wide = DTYPES[policy.storage], DTYPES[policy.compute]
    if low == wide:
        model.to(low)
        return
    kept = _kept(model, policy.keep)
    for module in model.modules():
        parts: list[str] = []
        if isinstance(getattr(type(module), "dtype", None), property):
            # Hugging Face models make masks of it, cast inputs to it, and write it in the config: a
            # checkpoint is then loaded as wide, and what was not stored narrow keeps its bits.
            parts.append("dtype")
        own = {name: p for name, p in modules.parameters_of(module).items() if p is not None}
        if any(p.numel() > max(p.shape, default=1) for p in own.values()):
            for name, value in own.items():
                if id(value) not in kept and value.is_floating_point():
                    value.data = value.data.to(low)
                    parts.append(name)
        if parts and _MADE not in vars(type(module)):
            module.__class__ = _reading_wide(type(module), tuple(parts), wide)  # type: ignore[arg-type]


def _kept(model: nn.Module, globs: tuple[str, ...]) -> set[int]:
    """Return the ids of the parameters of kept modules; a shared one is kept everywhere."""
    kept: set[int] = set()
    for glob in globs:
        found = [module for name, module in model.named_modules() if names_module(glob, name)]
        if not found:
            problem = f"parameters.keep: no module is called '{glob}'"
            warnings.warn(problem, QGraphWarning, stacklevel=4)
        kept |= {id(p) for module in found for p in module.parameters()}
    return kept


@functools.cache
def _reading_wide(
    base: type[nn.Module], parts: tuple[str, ...], dtype: torch.dtype
) -> type[nn.Module]:
    """Return a class of the same name as `base` whose attributes `parts` are of, or are, `dtype`."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, _MADE: True}
    read = {name: property(_reader(name, dtype)) for name in parts if name != "dtype"}
    own = {"dtype": property(lambda _: dtype)} if "dtype" in parts else {}
    return type(base.__name__, (base,), {**own, **read, **names})


def _reader(name: str, dtype: torch.dtype) -> Any:
    def read(module: nn.Module) -> Tensor | None:
        stored = modules.parameters_of(module)[name]
        return None if stored is None else stored.to(dtype)

    return read
