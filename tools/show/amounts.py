"""Large numbers as people write them: 1.2B parameters, 100B tokens, 3.5 GB, 10%."""

from __future__ import annotations

import re

from qgraph.errors import QGraphError

_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def read_count(text: str, option: str) -> float:
    """Return a number such as 7B, 1.5e9 or 10T; `option` is where it was written.

    Raises: QGraphError if it is none, or not above zero.
    """
    found = re.fullmatch(
        r"(\d+\.?\d*(?:e[+-]?\d{1,3})?)([KMBGT]?)", text.strip().replace("_", ""), re.I
    )
    value = float(found[1]) * _SUFFIXES[found[2].upper()] if found else 0.0
    if not 0 < value < 1e30:
        raise QGraphError(
            f"{option}: '{text}' is not a number above zero", f"write {option} 7B, or 1.5e9"
        )
    return value


def count_text(value: float) -> str:
    """Return a count with three digits and a suffix: 1.73e15 -> 1730T."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{_digits(value / size)}{suffix}"
    return _digits(value)


def bytes_text(value: float) -> str:
    """Return bytes in decimal units, as the memory of devices is given, with three digits: 3.5 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{value:.0f} B"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
