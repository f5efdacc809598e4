"""Weights on disk: looked at before anything of their size is made, and held against the model after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from qgraph.errors import ModelError
from qgraph.models.files import read_json
from qgraph.ops import BUFFER

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_AGAIN = "download the file again, or save the model again with save_pretrained"


def weights_in(folder: Path) -> dict[str, int]:
    """Return the elements of each weight that a model's directory holds, by the name it has there.

    Raises: ModelError if there are no safetensors, a file is damaged, or the index does not speak of
        the files beside it.
    """
    if (folder / SINGLE).is_file():
        return _read(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder}: neither {SINGLE} nor {INDEX} is in this directory",
            "save the model with save_pretrained: weights are read from safetensors only",
        )
    try:
        index = read_json(folder / INDEX)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / INDEX}: cannot be read: {error}", _AGAIN) from error
    found: dict[str, int] = {}
    for file, names in _by_file(folder / INDEX, index).items():
        held = _read(folder / file)
        lacking = sorted(names - held.keys())
        if lacking:
            raise ModelError(f"{folder / INDEX}: {file} does not hold {some(lacking)}", _AGAIN)
        found |= held
    return found


def _by_file(index: Path, found: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the names of weights by the file beside the index that holds them."""
    places = found.get("weight_map")
    if not isinstance(places, dict) or not isinstance(found.get("metadata"), dict):
        raise ModelError(f"{index}: has no weight_map, or no metadata", _AGAIN)
    files: dict[str, set[str]] = {}
    for name, file in places.items():
        plain = isinstance(file, str) and not {*file} & {*"/\\\0"} and file.endswith(".safetensors")
        if not plain:
            raise ModelError(
                f"{index}: {name} is to be read from {file!r}, which is no safetensors file beside it",
                "correct weight_map: write the names of files alone",
            )
        if not (index.parent / file).is_file():
            raise ModelError(f"{index}: {file}, which holds {name}, is not there", _AGAIN)
        files.setdefault(file, set()).add(name)
    return files


def _read(file: Path) -> dict[str, int]:
    """Return the elements of each tensor by the file's header, which is checked against the file."""
    try:
        with safe_open(file, "pt") as held:
            return {name: math.prod(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read: {error}", _AGAIN) from error


def check_complete(name: str, kind: str, info: Mapping[str, Any]) -> None:
    """Check that a model's weights are those of its files, but for what its class declares to be ignored.

    `info` is what transformers tells of loading it.

    Raises: ModelError naming the weights.
    """
    sizes = [
        f"{weight} {list(held)} for {list(own)}"
        for weight, held, own in sorted(info["mismatched_keys"])
    ]
    faults = [
        f"{why} {some(names)}"
        for why, names in (
            ("its files lack", sorted(info["missing_keys"])),
            (
                "its files hold what the model does not have:",
                sorted({*info["unexpected_keys"]} - {BUFFER}),
            ),
            ("its files hold other sizes:", sizes),
        )
        if names
    ]
    if faults:
        raise ModelError(
            f"{name}: {kind} and its weights do not fit: {'; '.join(faults)}",
            "complete the files, or give the config.json, and in its architectures the class, that they "
            f"were saved from. In Python, give what {kind}.from_pretrained makes of them to "
            "qgraph.compile or qgraph.convert",
        )


def some(names: list[str]) -> str:
    """Return the first of many names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
