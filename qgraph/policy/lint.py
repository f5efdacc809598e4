"""Choices that papers advise against: each with the rule that makes it, and who says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qgraph.policy.decide import decide
from qgraph.policy.keys.operand import OperandPolicy
from qgraph.policy.keys.rules import Rule
from qgraph.policy.model import Policy
from qgraph.policy.products import ROLES, Op, Role, products_of

NVFP4 = "arXiv 2509.25149"
FEW_BITS = 4
_BLOCKS = 20  # of a model to try `last_blocks` on; the smallest that the NVFP4 paper trained


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One suspicious choice: where it stands, what is known of it, and what to write instead."""

    name: str
    place: str
    problem: str
    fix: str
    source: str


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A product of a model that there is none of."""

    module: str
    op: str = "linear"
    role: str = "fprop"
    block: int | None = None
    block_count: int | None = None
    operand_kinds: tuple[str, ...] = ("input", "weight")
    part: str = ""


def lint(policy: Policy, head: str = "lm_head") -> list[Advice]:
    """Return what papers advise against in `policy`; `head` is the module of the model's last product."""
    found = [*_unreachable(policy)]
    for rule in policy.rules:
        for role, product in rule.products.items():
            for kind, operand in product.items():
                found += _operand(rule, role, kind, operand)
        found += _two_weights(rule)
    found += _head(policy, head)
    found += _last_blocks(policy)
    if policy.optimizer is not None:
        for warning in policy.optimizer.warnings:
            source = "arXiv 2407.11722"
            place, _, text = warning.partition(": ")
            problem, _, fix = text.replace(f" ({source})", "").partition("; ")
            found.append(_finding("second-moment", place, problem, fix, source))
    return found


def _finding(name: str, place: object, problem: str, fix: str, source: str) -> Advice:
    return Advice(name=name, place=str(place), problem=problem, fix=fix, source=source)


def _unreachable(policy: Policy) -> Iterator[Advice]:
    for number, rule in enumerate(policy.rules):
        if str(rule.match) == "everything":
            for later in policy.rules[number + 1 :]:
                yield _finding(
                    "unreachable", later.place,
                    f"rule {later.number} is never reached: rule {rule.number} matches everything",
                    "move it up, or remove it", "",
                )  # fmt: skip
            return


def _operand(rule: Rule, role: Role, kind: str, operand: OperandPolicy) -> Iterator[Advice]:
    where = f"rule {rule.number} {role}.{kind} ({rule.place})"
    fmt = operand.format
    if fmt is None:
        return
    if role == "fprop" and operand.rounding.random:
        yield _finding(
            "stochastic-forward", where,
            "stochastic rounding of a forward operand adds noise and cures no bias; on weights and "
            "activations it made training diverge",
            "round to nearest here, stochastically only grad_output", NVFP4,
        )  # fmt: skip
    if kind == "grad_output":
        if fmt.scale.name == "e4m3" and not fmt.two_level:
            yield _finding(
                "gradient-scale", where,
                "e4m3 scales end at 2**-9: without a tensor scale, gradients around 1e-5 become 0",
                "add tensor_scale: fp32, or use scale: ue5m3", f"{NVFP4}, 2509.17791",
            )  # fmt: skip
        if fmt.element.bits <= FEW_BITS and not operand.rounding.random:
            yield _finding(
                "nearest-gradient", where,
                "rounding gradients of few bits to nearest biases them, and the bias adds up",
                "write rounding: stochastic", f"{NVFP4}, 2505.19115",
            )  # fmt: skip


def _two_weights(rule: Rule) -> Iterator[Advice]:
    forward, backward = (rule.products.get(role, {}).get("weight") for role in ("fprop", "dgrad"))
    if forward is None or backward is None or forward.format is None or backward.format is None:
        return
    fmt = forward.format
    square = fmt.block.across == fmt.block.along
    if fmt.element.bits <= FEW_BITS and not (square and backward.format == fmt):
        yield _finding(
            "two-weights", f"rule {rule.number} fprop.weight ({rule.place})",
            "fprop and dgrad read two different quantized weights, so that the backward is of another "
            "function than the forward",
            "use one format with square blocks, such as [16, 16]", NVFP4,
        )  # fmt: skip


def _head(policy: Policy, head: str) -> Iterator[Advice]:
    decided = _quantizes(policy, _Product(module=head))
    if decided is not None:
        yield _finding(
            "head", decided.place,
            f"the output head ({head}) is quantized by rule {decided.number}: its error goes into every "
            "logit, and recipes keep it high",
            "put - {match: {module: " + head + "}, keep: high} first", NVFP4,
        )  # fmt: skip


def _last_blocks(policy: Policy) -> Iterator[Advice]:
    last = _Product(module="layers.19.mlp.down_proj", block=_BLOCKS - 1, block_count=_BLOCKS)
    decided = _quantizes(policy, last, bits=FEW_BITS, both=True)
    if decided is not None:
        yield _finding(
            "last-blocks", decided.place,
            f"the last blocks are in {FEW_BITS} bits: they are the most sensitive, and so trained, a 12B "
            "model diverged",
            "keep some high: - {match: {op: linear, last_blocks: 15%}, keep: high}", NVFP4,
        )  # fmt: skip


def _quantizes(
    policy: Policy, product: _Product, bits: int = 64, *, both: bool = False
) -> Rule | None:
    """Return the rule that stores operands of `product` in at most `bits` bits, or None."""
    op: Op = "linear"
    for role in ROLES:
        for pair in products_of(op)[role]:
            decision = decide(policy, replace(product, role=role, operand_kinds=pair))
            few = [
                o.format is not None and o.format.element.bits <= bits for o in decision.operands
            ]
            if all(few) if both else any(few):
                return decision.rule
    return None
