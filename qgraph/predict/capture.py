"""A training step captured from a config alone, with few blocks where they stand for all."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import torch

from qgraph.doors import Capture, capture_shapes
from qgraph.models import Shapes, shapes_of
from qgraph.passes import Site, find_sites
from qgraph.policy import Policy

DTYPE = torch.bfloat16  # what is predicted is a step in bf16, whatever the config says


def capture_step(
    kind: Any, config: Any, policy: Policy | None, *, batch: int, length: int, few: bool = True
) -> tuple[Shapes, Capture]:
    """Capture the training step of the model of class `kind` that `config` describes, in bf16.

    With `few`, blocks that are alike under the policy are captured few times; all are where a model
    does not run without the others, or where blocks that should be alike have different products.

    Raises: ModelError as `example_inputs` and `capture`.
    """
    if few:
        shapes = shapes_of(kind, config, dtype=DTYPE, few=True, policy=policy)
        with suppress(Exception):  # what a model does where blocks are missing is anyone's guess
            captured = _capture(shapes, policy, batch, length)
            if _look_alike(shapes, captured):
                return shapes, captured
    shapes = shapes_of(kind, config, dtype=DTYPE)
    return shapes, _capture(shapes, policy, batch, length)


def _capture(shapes: Shapes, policy: Policy | None, batch: int, length: int) -> Capture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return capture_shapes(shapes, shapes.inputs(batch, length), policy)


def _look_alike(shapes: Shapes, captured: Capture) -> bool:
    """Whether the kept blocks of each group have the same products."""
    looks: dict[int | None, list[object]] = {}
    for site in find_sites(captured.graph, captured.facts):
        (block, *_) = shapes.stands(site.module)
        looks.setdefault(block, []).append(_look(site))
    groups = [
        [looks.get(number) for number in group if number in shapes.kept] for group in shapes.alike
    ]
    return all(group == group[:1] * len(group) for group in groups)


def _look(site: Site) -> object:
    return site.role, site.op, site.shape, site.operand_kinds
