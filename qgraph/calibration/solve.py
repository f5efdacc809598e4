"""Calibrating a model: the steps of a policy's `calibrate`, in order, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.calibration.method import LinearLayer, Method, output_error
from qgraph.calibration.methods.clip import CLIP
from qgraph.calibration.observe import observe
from qgraph.doors import Outline
from qgraph.errors import ModelError
from qgraph.numerics import fake_quant
from qgraph.passes import Layer
from qgraph.policy import Policy, decide, names_module

METHODS: tuple[Method, ...] = (CLIP,)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What one step did to one layer: the relative squared error of its outputs, before and after."""

    module: str
    method: str
    before: float
    after: float
    tensors: Mapping[str, Tensor] = field(repr=False)


def calibrate(
    model: nn.Module, policy: Policy, batches: Iterable[Mapping[str, Any]]
) -> list[Calibrated]:
    """Change the weights of `model` in place as the policy's `calibrate` says; return what came of it.

    `batches` are keyword inputs; their statistics are of the model in high precision. Layers are those
    whose weight the policy quantizes in the forward.

    Raises: ModelError if the policy says nothing of calibration, or a step has no layer to work on.
    """
    if not policy.calibrate:
        raise ModelError(
            f"policy {policy.name} has no calibrate", "calibrate: [{clip: {steps: 20}}]"
        )
    every, known = list(batches), {method.name: method for method in METHODS}
    found: list[Calibrated] = []
    for step in policy.calibrate:
        layers = {
            name: layer
            for name, layer in _layers(model, policy).items()
            if not step.modules or any(names_module(glob, name) for glob in step.modules)
        }
        if not layers:
            raise ModelError(
                f"calibrate: {step.method}: the policy quantizes no linear layer that it names",
                "name other modules, or leave modules out",
            )
        method = known[step.method]
        seen = observe(model, layers, every, method.looks | {"gram"})
        for name, layer in layers.items():
            gram = seen[name].gram
            if gram is None:
                continue  # no batch reached the layer
            solution = method.solve(layer, seen[name], dict(step.options))
            errors = [
                output_error(layer.weight, fake_quant(weight.float(), layer.format, -1), gram)
                for weight in (layer.weight, solution.weight)
            ]
            with torch.no_grad():
                model.get_submodule(name).weight.copy_(solution.weight)  # type: ignore[operator]
            found.append(
                Calibrated(
                    module=name,
                    method=method.name,
                    before=errors[0],
                    after=errors[1],
                    tensors=solution.tensors,
                )
            )
    return found


def _layers(model: nn.Module, policy: Policy) -> dict[str, LinearLayer]:
    """Return the linear layers whose weight the policy quantizes in the forward, by name."""
    blocks, layers = Outline.of(model).blocks, {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        place = Layer.at(name, blocks)
        wanted = dict(zip(place.operand_kinds, decide(policy, place).operands, strict=False))
        weight = wanted.get("weight")
        if weight is not None and weight.format is not None:
            layers[name] = LinearLayer(
                name=name, weight=module.weight.detach().clone(), format=weight.format
            )
    return layers
