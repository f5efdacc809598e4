"""A model small enough to compile in no time; importing it imports nothing heavy but torch."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu


class MLP(nn.Module):
    """Linear layers of these sizes, fc0, fc1, ..., with ReLU between."""

    def __init__(self, *sizes: int, bias: bool = True) -> None:
        super().__init__()
        pairs = enumerate(pairwise(sizes))
        self.layers = nn.ModuleDict({f"fc{i}": nn.Linear(*pair, bias=bias) for i, pair in pairs})

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers.values()):
            x = layer(relu(x) if i else x)
        return x

    def weight(self, i: int) -> Tensor:
        """The weight of the i-th layer."""
        found = self.layers[f"fc{i}"].weight
        assert isinstance(found, Tensor)
        return found
