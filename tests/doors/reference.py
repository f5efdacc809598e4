"""Quantized linear layers written from the numeric definitions: what compiled models are held to.

NVFP4 is written here from its rules (Transformer Engine's, `shared/numerics.md` 2.1), and shares
no code with qgraph but the random bytes. Other formats are `qgraph.numerics`, held to outside
oracles by its own tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad, relu

from qgraph import numerics
from qgraph.formats import parse_format
from tests.doors.mlp import MLP

SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
FLT_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Where an operand's random bytes come from."""

    seed: int
    stream: int


Quantizer = Callable[[Tensor, int, Draw | None], Tensor]  # x, the axis summed over, noise -> x


def e2m1_nearest(magnitude: Tensor) -> Tensor:
    """Round magnitudes to 0 .5 1 1.5 2 3 4 6, ties to the even code: the thresholds, one by one."""
    m = magnitude
    ups = ((m > 0.25, 0.5), (m >= 0.75, 0.5), (m > 1.25, 0.5), (m >= 1.75, 0.5),
           (m > 2.5, 1.0), (m >= 3.5, 1.0), (m > 5.0, 2.0))  # fmt: skip
    result = torch.zeros_like(m)
    for up, by in ups:
        result = result + up * by
    return result


def e2m1_stochastic(magnitude: Tensor, octets: Tensor) -> Tensor:
    """Round up where the fraction of a step plus octet / 256 reaches one."""
    m = magnitude.clamp(max=6)
    step = torch.where(m < 2, 0.5, torch.where(m < 4, 1.0, 2.0))
    return (torch.floor((m + octets / 256 * step) / step) * step).clamp(max=6)


def nvfp4(tile: int) -> Quantizer:
    """Two-level NVFP4 with `tile` x 16 elements a block scale."""

    def quantize(x: Tensor, axis: int, draw: Draw | None) -> Tensor:
        rows = x.float().movedim(axis, -1)
        octets = None
        if draw is not None:
            octets = numerics.random_bits(x.shape, axis, draw.seed, draw.stream, x.device)
            octets = pad(
                octets.movedim(axis, -1).float(),
                (0, -rows.shape[-1] % 16, 0, -rows.shape[-2] % tile),
            )
        m, k = rows.shape
        rows = pad(rows, (0, -k % 16, 0, -m % tile))
        amax = rows.abs().max()
        s_enc = torch.div(torch.tensor(2688.0), amax).clamp(max=FLT_MAX)
        if amax == 0 or s_enc == 0:
            s_enc = torch.tensor(1.0)
        sixth = torch.div(torch.tensor(1.0), torch.tensor(6.0))
        result = torch.empty_like(rows)
        for i in range(0, rows.shape[0], tile):
            strip = rows[i : i + tile].reshape(tile, -1, 16)  # [tile, K/16, 16]
            block_amax = strip.abs().amax((0, 2))
            scale = (block_amax * (s_enc * sixth)).clamp(max=448).to(torch.float8_e4m3fn).float()
            inverse = scale * torch.div(torch.tensor(1.0), s_enc)
            encode = torch.div(torch.ones_like(inverse), inverse).clamp(max=FLT_MAX)
            scaled = strip * encode[:, None]
            if octets is None:
                codes = e2m1_nearest(scaled.abs())
            else:
                codes = e2m1_stochastic(scaled.abs(), octets[i : i + tile].reshape(tile, -1, 16))
            values = codes * scaled.sign() * scale[:, None] * torch.div(amax, torch.tensor(2688.0))
            result[i : i + tile] = values.flatten(-2)
        return result[:m, :k].movedim(-1, axis).to(x.dtype)

    return quantize


def numeric(text: str) -> Quantizer:
    """Any other format, by its text form, as `qgraph.numerics` defines it."""

    def quantize(x: Tensor, axis: int, draw: Draw | None) -> Tensor:
        noise = None if draw is None else numerics.Noise(seed=draw.seed, site=draw.stream)
        return numerics.fake_quant(x, parse_format(text), axis, noise)

    return quantize


def rotate(x: Tensor, axis: int, output: torch.dtype = torch.bfloat16) -> Tensor:
    """Multiply chunks of 16 along `axis`, padded with zeros, by diag(signs) times Sylvester's matrix / 4.

    H(2n) = [[H, H], [H, -H]], so the transform of a chunk is the sum and the difference of those of
    its halves. This fixes the order of the sums, on which the bits depend.
    """

    def transform(v: Tensor) -> Tensor:
        if v.shape[-1] == 1:
            return v
        low, high = (transform(half) for half in v.chunk(2, -1))
        return torch.cat([low + high, low - high], -1)

    rows = x.float().movedim(axis, -1)
    rows = pad(rows, (0, -rows.shape[-1] % 16))
    rows = rows.reshape(*rows.shape[:-1], -1, 16)
    turned = transform(rows * torch.tensor(SIGNS)) / 4
    return turned.to(output).flatten(-2).movedim(-1, axis).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a policy does to each operand, keyed by (role, operand); the others stay as they are."""

    formats: Mapping[tuple[str, str], Quantizer]
    stochastic: frozenset[tuple[str, str]] = frozenset()
    rotated: frozenset[str] = frozenset()  # roles

    def prepare(self, role: str, kind: str, x: Tensor, axis: int, draw: Draw | None) -> Tensor:
        """The operand as the product reads it, contiguous: the bits of small products depend on layout."""
        if role in self.rotated:
            x = rotate(x, axis).contiguous()
        quantize = self.formats.get((role, kind))
        if quantize is None:
            return x
        return quantize(x, axis, draw if (role, kind) in self.stochastic else None).contiguous()


OPERANDS = (("fprop", "input"), ("fprop", "weight"), ("dgrad", "grad_output"), ("dgrad", "weight"),
            ("wgrad", "input"), ("wgrad", "grad_output"))  # fmt: skip
GRADIENTS = (("dgrad", "grad_output"), ("wgrad", "grad_output"))


def uniform(quantizer: Quantizer, gradient: Quantizer | None = None) -> Recipe:
    """Every operand of every product in one format, or gradients in another."""
    chosen = {key: gradient if gradient and key in GRADIENTS else quantizer for key in OPERANDS}
    return Recipe(formats=chosen)


NVFP4 = Recipe(
    formats={key: nvfp4(16 if key[1] == "weight" else 1) for key in OPERANDS},
    stochastic=frozenset(GRADIENTS),
    rotated=frozenset({"wgrad"}),
)


def only(recipe: Recipe, role: str) -> Recipe:
    """The recipe's word for one product; the other two stay high."""
    return Recipe(
        formats={key: value for key, value in recipe.formats.items() if key[0] == role},
        stochastic=recipe.stochastic,
        rotated=recipe.rotated & {role},
    )


class QuantizedLinear(torch.autograd.Function):
    """y = x Wᵀ + b, each of the three products on operands of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        recipe: Recipe,
        draws: Mapping[tuple[str, str], Draw],
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        ctx.recipe, ctx.draws, ctx.has_bias, ctx.shape = recipe, draws, bias is not None, x.shape
        left = recipe.prepare("fprop", "input", rows, -1, draws.get(("fprop", "input")))
        right = recipe.prepare("fprop", "weight", weight, -1, draws.get(("fprop", "weight")))
        y = torch.mm(left, right.t()) if bias is None else torch.addmm(bias, left, right.t())
        return y.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        recipe, draws = ctx.recipe, ctx.draws
        g = grads[0].reshape(-1, weight.shape[0])
        left = recipe.prepare("dgrad", "grad_output", g, -1, draws.get(("dgrad", "grad_output")))
        right = recipe.prepare("dgrad", "weight", weight, -2, draws.get(("dgrad", "weight")))
        dx = torch.mm(left, right).reshape(ctx.shape)
        left = recipe.prepare("wgrad", "grad_output", g, -2, draws.get(("wgrad", "grad_output")))
        right = recipe.prepare("wgrad", "input", rows, -2, draws.get(("wgrad", "input")))
        dw = torch.mm(left.t(), right)
        return dx, dw, g.sum(0) if ctx.has_bias else None, None, None


class ReferenceMLP(nn.Module):
    """An eager MLP on the parameters of `model`, its products quantized by a recipe."""

    def __init__(
        self,
        model: MLP,
        recipe: Recipe,
        streams: Mapping[tuple[str, str, str], int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layers, self.recipe, self.streams, self.dtype = (
            model.layers,
            recipe,
            streams or {},
            dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        # As the op qgraph::seed does, once a step.
        seed = int(torch.randint(0, 2**32, (1,), dtype=torch.int64)) if self.streams else 0
        function: Any = QuantizedLinear
        for i, (name, layer) in enumerate(self.layers.items()):
            draws = {
                (role, kind): Draw(seed=seed, stream=stream)
                for (module, role, kind), stream in self.streams.items()
                if module == f"layers.{name}"
            }
            x = relu(x) if i else x
            bias = None if layer.bias is None else layer.bias.to(self.dtype)
            x = function.apply(
                x.to(self.dtype), layer.weight.to(self.dtype), bias, self.recipe, draws
            )
        return x


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one forward and backward gave."""

    output: Tensor
    loss: Tensor
    gradients: Mapping[str, Tensor]  # the input's is called x

    def differing(self, other: Step) -> list[str]:
        """The names of what is not equal bit for bit."""
        assert self.gradients.keys() == other.gradients.keys()
        one = {"output": self.output, "loss": self.loss, **self.gradients}
        two = {"output": other.output, "loss": other.loss, **other.gradients}
        return [name for name in one if not torch.equal(one[name], two[name])]


def take_step(model: nn.Module, x: Tensor, target: Tensor, seed: int) -> Step:
    """Run `model` on x under a seed, against `target` by mean squares; gradients are cleared."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    output = model(x)
    loss = mse_loss(output.float(), target)
    torch.autograd.backward(loss)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert x.grad is not None
    return Step(output=output.detach(), loss=loss.detach(), gradients=found | {"x": x.grad})
