"""Which products get which format: the least error for a budget, found exactly.

A choice for each product, errors that add up, one budget: a multiple-choice knapsack, solved as an
integer program by HiGHS through scipy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from qgraph.errors import PolicyError


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to treat one product: what it adds to the error, and to what is limited."""

    error: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The number of the choice taken for each product, the error they add up to, and their cost."""

    taken: tuple[int, ...]
    error: float
    cost: float


def allocate(products: Sequence[Sequence[Option]], budget: float) -> Allocation:
    """Return the choices with the least summed error whose summed cost is at most `budget`.

    Among choices of one product with the same error, the cheapest is taken.

    Raises: PolicyError if even the cheapest choices cost more than the budget.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    least = sum(min(choice.cost for choice in choices) for choices in products)
    tolerance = 1e-9 * max(1.0, abs(budget))
    if least > budget + tolerance:
        raise PolicyError(
            "--keep or --bits", "budget", f"the least that can be had is {least:.4g}", "allow more"
        )
    owner = [i for i, choices in enumerate(products) for _ in choices]
    flat = [choice for choices in products for choice in choices]
    scale = max((choice.error for choice in flat if choice.error < inf), default=1.0) or 1.0
    most = max((abs(choice.cost) for choice in flat), default=1.0) or 1.0
    # Solvers work to absolute tolerances: errors and costs of about one keep them meaningful.
    errors = np.array([choice.error / scale + 1e-9 * choice.cost / most for choice in flat])
    one_each = csr_array(
        (np.ones(len(flat)), (owner, range(len(flat)))), shape=(len(products), len(flat))
    )
    costs = np.array([[choice.cost / most for choice in flat]])
    result = milp(
        errors,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs, -inf, (budget + tolerance) / most),
        ],
        options={"mip_rel_gap": 0},
    )
    assert result.x is not None, f"a feasible program was not solved: {result.message}"
    picked = {owner[i]: i for i in np.flatnonzero(result.x > 0.5)}
    first = [owner.index(i) for i in range(len(products))]
    taken = tuple(int(picked[i]) - first[i] for i in range(len(products)))
    chosen = [choices[i] for choices, i in zip(products, taken, strict=True)]
    return Allocation(
        taken=taken,
        error=sum(choice.error for choice in chosen),
        cost=sum(choice.cost for choice in chosen),
    )
