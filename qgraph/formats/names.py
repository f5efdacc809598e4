"""Element formats by name: the grammar that names every format outside the catalog.

[u]eXmY     float, X exponent and Y mantissa bits; `u` without a sign
+b8         bias 8, or a real one such as +b7.5
+ieee +fn +fnuz +finite   which codes are not numbers (see `FloatFormat.specials`)
+flush      no subnormals            +overflow   to infinity or NaN instead of saturating
intN        integer of N bits, symmetric; +full, +asymmetric
fixedI.F    fixed point, I bits before the point (the sign is one of them) and F after it
logN        zero and signed powers of two, N bits, rounded to the nearest logarithm
powerN+a0.5 sign(n)·|n/max|**(1/a), N bits, rounded to nearest after |x|**a
list(-1,0,1)  these values
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import replace
from typing import get_args

from qgraph.errors import FormatError
from qgraph.formats.catalog import ELEMENTS, listed
from qgraph.formats.element import (
    Codebook,
    Element,
    FloatFormat,
    IntFormat,
    IntRange,
    Specials,
    float32,
)

_SPECIALS: dict[str, Specials] = {
    "ieee": "ieee",
    "fn": "nan_only",
    "fnuz": "fnuz",
    "finite": "none",
}
_GRAMMAR = "eXmY such as e4m3, intN, fixedI.F, logN, powerN+a0.5, list(-1,0,1)"


def find_element(name: str) -> Element:
    """Return the element format called `name`, from the catalog or by the grammar of this module.

    Raises: FormatError with the nearest name, or what is wrong and how to write it.
    """
    if name in ELEMENTS:
        return ELEMENTS[name]
    found = _read_float(name) or _read_int(name) or _read_fixed(name) or _read_codebook(name)
    if found is None:
        near = difflib.get_close_matches(name, ELEMENTS, n=1)
        fix = (
            f"did you mean '{near[0]}'?"
            if near
            else f"use one of: {', '.join(ELEMENTS)}; or {_GRAMMAR}"
        )
        raise FormatError(f"unknown element format '{name}'", fix)
    return _in_catalog(found)


def make_element(fields: dict[str, str]) -> Element:
    """Return the element with these fields, as a policy writes them.

    Floats: exponent_bits, mantissa_bits, bias, specials, signed, subnormals, saturate. Integers:
    bits, range, fraction_bits.

    Raises: FormatError naming the field that is unknown or has a value it cannot have.
    """
    kind = next((k for k, own in _FIELDS.items() if own[0] in fields), None)
    if kind is None:
        fix = "write {exponent_bits: 4, mantissa_bits: 3} or {bits: 8}"
        raise FormatError("the element says neither exponent_bits nor bits", fix)
    for key in fields:
        if key not in _FIELDS[kind]:
            fix = f"use one of: {', '.join(_FIELDS[kind])}"
            raise FormatError(f"unknown field '{key}' of {kind}", fix)
    read = {key: _field(key, value) for key, value in fields.items()}
    if kind == "a float":
        return _in_catalog(make_float(**({"mantissa_bits": 0} | read)))  # type: ignore[arg-type]
    fraction = int(fields.get("fraction_bits", "0"))
    if not fraction:
        usual = "symmetric"
        tail = "" if fields.get("range", usual) == usual else f"+{fields['range']}"
        return find_element(f"int{fields['bits']}{tail}")
    if fields.get("range", "full") != "full":
        raise FormatError("fixed point has the range full", "leave range out")
    return find_element(f"fixed{int(fields['bits']) - fraction}.{fraction}")


_FIELDS = {
    "a float": (
        "exponent_bits", "mantissa_bits", "bias", "specials", "signed", "subnormals", "saturate",
    ),
    "an integer": ("bits", "range", "fraction_bits"),
}  # fmt: skip


def _field(key: str, value: str) -> object:
    words: dict[str, object] = {"true": True, "false": False}
    if key in ("signed", "subnormals", "saturate") and value.lower() in words:
        return words[value.lower()]
    if key == "specials" and value in get_args(Specials):
        return value
    if key == "range" and value in get_args(IntRange):
        return value
    if key == "bias" and re.fullmatch(r"-?\d{1,3}(\.\d{1,6})?", value):
        return float(value)
    if key.endswith("bits") and re.fullmatch(r"\d{1,2}", value):
        return int(value)
    fix = {
        "specials": f"use one of: {', '.join(get_args(Specials))}",
        "range": f"use one of: {', '.join(get_args(IntRange))}",
        "signed": "write true or false", "subnormals": "write true or false",
        "saturate": "write true or false",
    }.get(key, f"write {key}: 4")  # fmt: skip
    raise FormatError(f"{key} cannot be '{value}'", fix)


def _in_catalog(found: Element) -> Element:
    """Return the catalog's format with these facts, if it has one: bf16 for e8m7."""
    return next((e for e in ELEMENTS.values() if replace(e, name=found.name) == found), found)


def make_float(
    *,
    exponent_bits: int,
    mantissa_bits: int,
    bias: float | None = None,
    specials: Specials | None = None,
    signed: bool = True,
    subnormals: bool = True,
    saturate: bool = True,
) -> FloatFormat:
    """Return the floating-point format with these fields, under the name the grammar gives it.

    Raises: FormatError if no value, or none that float32 holds, can be made of it.
    """
    base = f"{'' if signed else 'u'}e{exponent_bits}m{mantissa_bits}"
    usual = ELEMENTS.get(base)
    known = usual.specials if isinstance(usual, FloatFormat) else "none"
    if exponent_bits == 8 or (exponent_bits, mantissa_bits) == (5, 10):
        known = "ieee"  # float32, bfloat16 and float16 with fewer bits
    made = FloatFormat(
        name=base, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, offset=bias,
        specials=specials or known, signed=signed, subnormals=subnormals, saturate=saturate,
    )  # fmt: skip
    if bias is not None and bias == replace(made, offset=None).bias:
        made = replace(made, offset=None)
    name = base
    if made.offset is not None:
        name += f"+b{made.offset:g}"
    if made.specials != known:
        name += "+" + next(word for word, kind in _SPECIALS.items() if kind == made.specials)
    name += "" if subnormals else "+flush"
    name += "" if saturate else "+overflow"
    _check_float(made, name)
    return replace(made, name=name)


def _check_float(made: FloatFormat, name: str) -> None:
    exponent_bits, mantissa_bits = made.exponent_bits, made.mantissa_bits
    if exponent_bits == 0:
        bits = max(2, mantissa_bits + 1)
        raise FormatError(
            f"'{name}' has no exponent", f"write int{bits}, or eXmY with X from 1 to 8"
        )
    if not made.signed and not mantissa_bits:
        fix = "write it as scale: ue8m0, and an element such as e4m3"
        raise FormatError(f"'{name}' is a power of two: a scale, not an element", fix)
    if exponent_bits > 8 or mantissa_bits > 10:
        raise FormatError(f"'{name}' is too wide", "write eXmY with X from 1 to 8, Y from 0 to 10")
    if made.specials == "ieee" and exponent_bits == 1:
        raise FormatError(f"'{name}' has no normal number left", "write +finite instead of +ieee")
    if made.specials == "fnuz" and not made.signed:
        raise FormatError(f"'{name}' has no negative zero to give up", "write +fn instead of +fnuz")
    if made.specials == "none" and not made.saturate:
        raise FormatError(
            f"'{name}' has nothing to overflow to", "write +ieee or +fn, or no +overflow"
        )
    if made.exponent_bits == 1 and not mantissa_bits and made.specials == "nan_only":
        raise FormatError(f"'{name}' has no number but zero", "write +finite instead of +fn")
    low = made.min_exponent - mantissa_bits
    if made.max_exponent > 127 or low < -149:
        fix = "choose a bias that keeps all values between 2**-149 and 2**128"
        raise FormatError(f"'{name}' has values that float32 cannot hold", fix)


def _read_float(name: str) -> FloatFormat | None:
    head, *options = name.split("+")
    found = re.fullmatch(r"(u?)e(\d{1,2})m(\d{1,2})", head)
    if not found:
        return None
    specials: Specials | None = None
    bias: float | None = None
    flags = {"flush": False, "overflow": False}
    for option in options:
        if option in _SPECIALS:
            specials = _SPECIALS[option]
        elif option in flags:
            flags[option] = True
        elif re.fullmatch(r"b-?\d{1,3}(\.\d{1,6})?", option):
            bias = float(option[1:])
        else:
            fix = f"use one of: +b8, {', '.join('+' + word for word in (*_SPECIALS, *flags))}"
            raise FormatError(f"'{name}': unknown option '+{option}'", fix)
    return make_float(
        exponent_bits=int(found[2]), mantissa_bits=int(found[3]), bias=bias, specials=specials,
        signed=not found[1], subnormals=not flags["flush"], saturate=not flags["overflow"],
    )  # fmt: skip


def _read_int(name: str) -> IntFormat | None:
    found = re.fullmatch(r"int(\d{1,3})(\+full|\+asymmetric)?", name)
    if not found:
        return None
    bits = int(found[1])
    if not 2 <= bits <= 16:
        raise FormatError(f"'{name}' is out of range", "write int2 to int16, or ternary, or binary")
    if found[2] == "+full":
        return IntFormat(name=name, bits=bits, range="full")
    if found[2]:
        return IntFormat(name=name, bits=bits, range="asymmetric")
    return IntFormat(name=name, bits=bits)


def _read_fixed(name: str) -> IntFormat | None:
    found = re.fullmatch(r"fixed(\d{1,2})\.(\d{1,2})", name)
    if not found:
        return None
    whole, fraction = int(found[1]), int(found[2])
    if whole < 1 or not 2 <= whole + fraction <= 16:
        raise FormatError(
            f"'{name}' is out of range", "write fixedI.F, I at least 1, I + F from 2 to 16"
        )
    return IntFormat(name=name, bits=whole + fraction, range="full", fraction_bits=fraction)


def _read_codebook(name: str) -> Codebook | None:
    if found := re.fullmatch(r"log(\d{1,2})", name):
        return _logarithmic(name, int(found[1]))
    if found := re.fullmatch(r"power(\d{1,2})\+a(\d\.\d{1,4}|\d)", name):
        return _power(name, int(found[1]), float(found[2]))
    if found := re.fullmatch(r"list\((.*)\)", name):
        return make_list(found[1].split(","))
    return None


def make_list(words: list[str]) -> Codebook:
    """Return the codebook of these numbers, rounded to float32.

    Raises: FormatError unless they are 2 to 256 ascending finite numbers, not all zero or negative.
    """
    text = ",".join(words)
    try:
        values = tuple(float32(float(word)) for word in words)
    except (ValueError, OverflowError):
        raise FormatError(
            f"'list({text})' is not a list of numbers", "write list(-1,0,1)"
        ) from None
    rising = all(math.isfinite(v) for v in values) and list(values) == sorted(set(values))
    if not (2 <= len(values) <= 256 and rising):
        raise FormatError(
            f"'list({text})' does not rise", "write 2 to 256 finite numbers, the lowest first"
        )
    if values[-1] <= 0:
        raise FormatError(f"'list({text})' has no value above zero", "add one")
    return listed(f"list({','.join(f'{v:.9g}' for v in values)})", values)


def _logarithmic(name: str, bits: int) -> Codebook:
    """Zero and ±2**-n, n from 0: half of the codes for each sign, one of them for zero."""
    if not 2 <= bits <= 8:
        raise FormatError(f"'{name}' is out of range", "write log2 to log8")
    count = (1 << (bits - 1)) - 1
    positive = tuple(math.ldexp(1.0, n - count + 1) for n in range(count))
    # Halfway between the logarithms; zero ends halfway to the first value.
    limits = (positive[0] / 2, *(float32(v * math.sqrt(2)) for v in positive[:-1]))
    return _mirrored(name, positive, limits)


def _power(name: str, bits: int, a: float) -> Codebook:
    """(n/max)**(1/a) for n from 0 to max = 2**(bits-1) - 1, with both signs.

    Source: NUPES, arXiv 2308.05600.
    """
    if not (2 <= bits <= 8 and 0.1 <= a <= 4):
        raise FormatError(
            f"'{name}' is out of range", "write power2 to power8, with a from 0.1 to 4"
        )
    top = (1 << (bits - 1)) - 1
    positive = tuple(float32((n / top) ** (1 / a)) for n in range(1, top + 1))
    limits = tuple(float32(((n + 0.5) / top) ** (1 / a)) for n in range(top))
    return _mirrored(name, positive, limits)


def _mirrored(name: str, positive: tuple[float, ...], limits: tuple[float, ...]) -> Codebook:
    return Codebook(
        name=name,
        values=(*(-v for v in reversed(positive)), 0.0, *positive),
        limits=(*(-v for v in reversed(limits)), *limits),
    )
