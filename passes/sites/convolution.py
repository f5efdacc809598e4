"""What the products of a convolution are: operands, summed axes, sizes.

    y[n, o] = sum over c of x[n, c] * w[o, c]        fprop: channels in
    dx[n, c] = sum over o of dy[n, o] * w[o, c]      dgrad: channels out
    dw[o, c] = sum over n of dy[n, o] * x[n, c]      wgrad: the batch

and over the taps of the kernel, which shift positions. A block lies along channels, or along the
batch: the same for every tap, so that each tap is a plain product of blocks. A scale a row of wgrad
is one a channel. A transposed
convolution swaps channels in and out of its weight.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch.fx import Node

from qgraph.formats import Block
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.targets import argument_node, aten, sizes_of

Convolution = tuple[str, tuple[Operand, ...], tuple[int, int, int, int]]  # role, operands, shape


def describe_convolution(node: Node) -> Convolution:
    """Return role, operands in argument order, and sizes (groups, M, N, K) of one product."""
    backward = node.target is aten.convolution_backward.default
    transposed = _is_transposed(node)
    arguments: Any = node.args
    groups = int(arguments[9 if backward else 8])
    first = 1 if backward else 0
    x, weight = sizes_of(argument_node(node, first)), sizes_of(argument_node(node, first + 1))
    y = sizes_of(argument_node(node, 0)) if backward else sizes_of(node)
    rank = len(x)
    summed_in, summed_out = (0, 1) if transposed else (1, 0)  # axes of the weight
    taps, channels_in, channels_out = prod(weight[2:]), x[1] // groups, y[1] // groups
    rows = (y[0] * prod(y[2:])) if not transposed else x[0] * prod(x[2:])
    if not backward:
        operands = (
            _operand("input", 0, 1, rank),
            _operand("weight", 1, summed_in, rank),
        )
        return "fprop", operands, (groups, rows, channels_out, channels_in * taps)
    if node.args[-1][0]:  # type: ignore[index]
        operands = (
            _operand("grad_output", 0, 1, rank),
            _operand("weight", 2, summed_out, rank),
        )
        return "dgrad", operands, (groups, rows, channels_in, channels_out * taps)
    operands = (_operand("grad_output", 0, 0, rank), _operand("input", 1, 0, rank))
    return "wgrad", operands, (groups, channels_out, channels_in * taps, rows)


def _operand(kind: str, argument: int, axis: int, rank: int) -> Operand:
    """Return an operand that is quantized as [..., rows, summed]: positions before channels.

    A weight is laid out as [taps, out, in] whichever axis is summed, so that square tiles of fprop
    and dgrad are the same tiles.
    """
    positions = tuple(range(2, rank))
    if kind == "weight":
        layout = (*positions, 0, 1)
    else:
        layout = (0, *positions, 1) if axis == 1 else (*positions, 1, 0)
    return Operand(kind=kind, argument=argument, axis=axis - rank, layout=layout)


def cannot_block(node: Node, operand: Operand, block: Block) -> str:
    """Return why blocks do not fit the channels of an operand, or nothing."""
    if block.across is None and block.along is None:
        return ""
    role, operands, (groups, *_) = describe_convolution(node)
    if role != "wgrad":
        weight = operands[1]
        channels = sizes_of(argument_node(node, weight.argument))[weight.axis]
        channels //= groups if _is_transposed(node) == (role == "fprop") else 1
        if channels == 1 < groups:
            return (
                "a depthwise convolution sums over the taps of its kernel only: blocks do not fit"
            )
        if groups > 1 and block.along is not None and channels % block.along:
            return f"blocks of {block.along} would cross the convolution's groups of {channels} channels"
    across = _channels_across(node, operand, groups) if groups > 1 and block.across != 1 else 0
    if across and (block.across is None or across % block.across):
        return f"tiles would cross the convolution's groups of {across} channels"
    return ""


def _channels_across(node: Node, operand: Operand, groups: int) -> int:
    """Return how many channels of a group a tile spans across the summed axis, 0 if it spans none."""
    across = operand.layout[-2]
    sizes = sizes_of(argument_node(node, operand.argument))
    if operand.kind == "weight":
        return sizes[0] // groups if across == 0 else 0  # its other axis is counted in a group
    return sizes[1] // groups if across == 1 else 0


def _is_transposed(node: Node) -> bool:
    return bool(node.args[7 if node.target is aten.convolution_backward.default else 6])
