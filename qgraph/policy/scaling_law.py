"""What quantizing should cost a run, by the scaling law of floating-point quantized training.

    L = n/N^a + d/D^b + eps + D^b/N^a · log2(B) / (g (E + 1/2)^de (M + 1/2)^nu)

N parameters, D tokens, formats of E exponent and M mantissa bits, B elements to a scale; L in nats
per token. The last term is the penalty. It grows with D: past the critical number of tokens, more
data makes the quantized model worse.

Source: Sun et al., arXiv 2501.02423 (ICML 2025). Fitted on LLaMA-style models of 41 to 679 million
parameters and 10 to 100 billion tokens, scales in high precision, and only three operands of every
linear layer quantized (`SITES`): it does not describe a run that is quantized in full.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2, pow

from qgraph.formats import BlockFormat, FloatFormat, IntFormat
from qgraph.policy import Policy

_N_SCALE, _N_POWER = 69.2343, 0.2368  # n, a
_D_SCALE, _D_POWER = 68973.0621, 0.5162  # d, b
_FLOOR = 1.9061  # eps
_GAMMA, _EXPONENT, _MANTISSA = 11334.5197, 3.1926, 2.9543  # g, de, nu
_ROW = 13.1567  # log2(B) that a scale for each row behaves like

FITTED_PARAMS = (41e6, 679e6)
FITTED_TOKENS = (10e9, 100e9)
SITES = (("fprop", "weight"), ("dgrad", "weight"), ("wgrad", "input"))


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What the law knows of a format: exponent and mantissa bits, and log2 of elements to a scale.

    `notes` say where the format differs from those the law was fitted on.
    """

    exponent: int
    mantissa: int
    log2_block: float
    notes: tuple[str, ...] = ()

    @property
    def strength(self) -> float:
        """The penalty's denominator over log2(B)."""
        bits = pow(self.exponent + 0.5, _EXPONENT) * pow(self.mantissa + 0.5, _MANTISSA)
        return _GAMMA * bits


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Which operands of a policy the law speaks about.

    `inside`: the places (`rule 3 fprop.weight`) of each format it describes. `unknown`: those at its
    sites in a format it cannot describe. `outside`: quantized operands that it leaves out.
    """

    inside: dict[str, list[str]] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    outside: dict[str, list[str]] = field(default_factory=dict)


def precision(fmt: BlockFormat) -> Precision | None:
    """Return what the law takes of `fmt`; None for a codebook, which has no exponent.

    A symmetric integer of n bits is the float e1m(n-2): the same evenly spaced values.
    """
    element, notes = fmt.element, []
    if isinstance(element, FloatFormat):
        exponent, mantissa = element.exponent_bits, element.mantissa_bits
    elif isinstance(element, IntFormat):
        exponent, mantissa = 1, max(0, element.bits - 2)
        notes.append(f"{element.name} taken as e1m{mantissa}, which has the same values")
    else:
        return None
    across, along = fmt.block.across, fmt.block.along
    if across is not None and along is not None:
        block = log2(across * along)
    else:
        block = _ROW
        if (across, along) == (None, None):
            notes.append(
                "one scale a tensor: its constants were not published, those of a row are a lower bound"
            )
    if fmt.scale.bits < 16:
        notes.append(
            f"scales in {fmt.scale.name}; the law was fitted with scales in high precision"
        )
    return Precision(exponent=exponent, mantissa=mantissa, log2_block=block, notes=tuple(notes))


def high_loss(params: float, tokens: float) -> float:
    """Return the law's loss in high precision, in nats per token."""
    return _N_SCALE / pow(params, _N_POWER) + _D_SCALE / pow(tokens, _D_POWER) + _FLOOR


def penalty(params: float, tokens: float, fmt: BlockFormat | Precision) -> float:
    """Return what quantizing `SITES` to `fmt` adds to the loss, in nats per token.

    Raises: ValueError for a format the law does not know (see `precision`).
    """
    known = _known(fmt)
    return pow(tokens, _D_POWER) / pow(params, _N_POWER) * known.log2_block / known.strength


def critical_tokens(params: float, fmt: BlockFormat | Precision) -> float:
    """Return the tokens past which more data makes the quantized model worse.

    With a scale for each element there are none: infinity.

    Raises: ValueError for a format the law does not know (see `precision`).
    """
    known = _known(fmt)
    if known.log2_block == 0:
        return float("inf")
    ratio = _D_SCALE * pow(params, _N_POWER) * known.strength / known.log2_block
    return pow(ratio, 1 / (2 * _D_POWER))


def best_layout(bits: int) -> tuple[int, int]:
    """Return the exponent and mantissa bits with the smallest penalty among floats of `bits` bits."""
    layouts = [(e, bits - 1 - e) for e in range(1, bits)]
    return min(
        layouts, key=lambda at: -Precision(exponent=at[0], mantissa=at[1], log2_block=1).strength
    )


def coverage(policy: Policy) -> Coverage:
    """Return which quantized operands of `policy` the law describes, by format."""
    found = Coverage()
    for rule in policy.rules:
        for role, product in rule.products.items():
            for kind, operand in product.items():
                if operand.format is None:
                    continue
                known = precision(operand.format) is not None
                here = (role, kind) in SITES
                group = found.outside if not here else found.inside if known else found.unknown
                place = f"rule {rule.number} {role}.{kind}"
                group.setdefault(str(operand.format), []).append(place)
    return found


def _known(fmt: BlockFormat | Precision) -> Precision:
    found = precision(fmt) if isinstance(fmt, BlockFormat) else fmt
    if found is None:
        raise ValueError(f"the scaling law does not know {fmt}: it has no exponent and mantissa")
    return found
