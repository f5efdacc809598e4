"""The words for products: ops, roles, operands, and what a rule may ask of one product."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

Role = Literal["fprop", "dgrad", "wgrad"]
Op = Literal["linear", "matmul", "conv", "experts", "qk", "pv", "sdpa"]
OperandKind = Literal["input", "weight", "grad_output", "lhs", "rhs"]
Pairs = dict[Role, tuple[tuple[OperandKind, OperandKind], ...]]

ROLES: tuple[Role, ...] = get_args(Role)
OPS: tuple[Op, ...] = get_args(Op)
ATTENTION: tuple[Op, ...] = ("qk", "pv")  # the two products that sdpa stands for

# The two operands of every product: of an op with a weight, and of one without.
_WITH_WEIGHT: Pairs = {
    "fprop": (("input", "weight"),),
    "dgrad": (("grad_output", "weight"),),
    "wgrad": (("input", "grad_output"),),
}
_WITHOUT: Pairs = {
    "fprop": (("lhs", "rhs"),),
    "dgrad": (("grad_output", "rhs"), ("lhs", "grad_output")),
    "wgrad": (),
}


def products_of(op: Op) -> Pairs:
    """Return the operand pairs of each product of `op`."""
    return _WITH_WEIGHT if op in ("linear", "conv", "experts") else _WITHOUT


class SiteFacts(Protocol):
    """What a rule may ask of a site: one product in a graph."""

    @property
    def op(self) -> str:
        """One of OPS."""

    @property
    def module(self) -> str:
        """Dotted module path; may be empty."""

    @property
    def part(self) -> str:
        """The named part of the model that it is by its structure, such as head; "" if by its name alone."""

    @property
    def role(self) -> str:
        """One of ROLES."""

    @property
    def block(self) -> int | None:
        """Index within the site's stack of blocks, from 0; None outside any stack."""

    @property
    def block_count(self) -> int | None:
        """How many blocks that stack has."""

    @property
    def operand_kinds(self) -> tuple[str, ...]:
        """The product's two operands, such as ("input", "weight")."""
