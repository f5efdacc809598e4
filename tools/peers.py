"""Other ways to train in few bits, on the same model: what `qgraph bench --peers` times.

Each takes a model's copy, changes its linear layers but the head, and returns it ready to run. They
emulate, as qgraph's target `emulate` does: products run in the model's own dtype.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.errors import ModelError

Prepare = Callable[[nn.Module], nn.Module]


def torchao_fp8(model: nn.Module) -> nn.Module:
    """Return the model with torchao's FP8 training (a scale per tensor), emulated, compiled."""
    with _torchao():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    config = Float8LinearConfig(emulate=True)
    convert_to_float8_training(model, config=config, module_filter_fn=_is_inner)
    return _compiled(model)


def torchao_mxfp8(model: nn.Module) -> nn.Module:
    """Return the model with torchao's MXFP8 training, emulated, compiled."""
    with _torchao():
        from torchao.prototype.moe_training import config
        from torchao.quantization import quantize_
    recipe = config.MXFP8TrainingRecipe.MXFP8_EMULATED_RCEIL
    chosen = config.MXFP8TrainingOpConfig.from_recipe(recipe)
    quantize_(model, chosen, filter_fn=_is_inner)
    return _compiled(model)


def fake_quant(model: nn.Module) -> nn.Module:
    """Return the model with linear layers that fake-quantize to NVFP4 in an autograd.Function, eager.

    It is NVFP4 without rotation, random rounding and square tiles: less than the recipe `nvfp4` does.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if _is_inner(child, name):
                setattr(parent, name, _FakeQuantLinear(child))
    return model


def fake_quant_compiled(model: nn.Module) -> nn.Module:
    """Return the same, compiled."""
    return _compiled(fake_quant(model))


PEERS: dict[str, Prepare] = {
    "torchao fp8, emulated": torchao_fp8,
    "torchao mxfp8, emulated": torchao_mxfp8,
    "naive nvfp4, eager": fake_quant,
    "naive nvfp4, compiled": fake_quant_compiled,
}


@contextlib.contextmanager
def _torchao() -> Any:
    """Raise a ModelError where torchao, or a part of it, is missing; drop what importing it prints."""
    if importlib.util.find_spec("torchao") is None:
        raise ModelError("torchao is not installed", "pip install torchao")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except (ImportError, AttributeError) as error:
        version = importlib.metadata.version("torchao")
        raise ModelError(f"torchao {version}: {error}", "pip install torchao==0.18.0") from error


def _compiled(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def _is_inner(module: nn.Module, name: str) -> bool:
    return type(module) is nn.Linear and "lm_head" not in name


class _FakeQuantLinear(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.weight: Any = linear.weight
        self.bias: Any = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _FakeQuantProduct.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class _FakeQuantProduct(torch.autograd.Function):
    """A linear layer's three products, each operand quantized on its way in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _quantized(x) @ _quantized(weight).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dy = gradients[0]
        dx = _quantized(dy) @ _quantized(weight.T).T
        rows = [t.reshape(-1, t.shape[-1]).T for t in (dy, x)]
        return dx, _quantized(rows[0]) @ _quantized(rows[1]).T


def _quantized(x: Tensor) -> Tensor:
    """Return NVFP4's values of `x`, in blocks of 16 along the last axis, written the usual way."""
    blocks = x.reshape(-1, 16)
    tensor_scale = x.abs().max() / (448 * 6) + 1e-30
    amax = blocks.abs().amax(-1, keepdim=True)
    scale = (amax / 6 / tensor_scale).clamp(max=448).to(torch.float8_e4m3fn).to(x.dtype)
    scale = scale * tensor_scale
    scaled = (blocks / scale.clamp(min=1e-30)).clamp(-6, 6)
    magnitude = scaled.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return ((scaled / step).round() * step * scale).reshape(x.shape)
