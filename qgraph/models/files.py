"""JSON files of a model's directory, read such that none can hang or end the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST = 256 << 20  # bytes; the report of the largest model known takes 4 MB


def read_json(file: Path, most: int = MOST) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Raises: ValueError saying what is wrong: larger than `most` bytes, no JSON, nested too deeply, no
        mapping; OSError if it cannot be read.
    """
    size = file.stat().st_size
    if size > most:
        raise ValueError(f"{size} bytes, which is more than {most}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    return found
