"""What a checkpoint holds, file by file, so that half of one is never taken for a whole.

The manifest is written last, in one rename: a checkpoint without one was not written to its end.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qgraph.errors import CheckpointError

MANIFEST = "qgraph_manifest.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One checkpoint: `files` gives size in bytes and SHA-256 of each, by path below the folder.

    `fingerprint` is the policy's, see `Policy.fingerprint`; `processes` is how many trained.
    """

    step: int
    policy: str
    fingerprint: str
    processes: int
    files: dict[str, dict[str, Any]]
    qgraph_checkpoint: int = VERSION


def write_manifest(
    folder: Path, *, step: int, policy: str, fingerprint: str, processes: int = 1
) -> None:
    """Describe every file below `folder` in its manifest, after bringing them all to the disk."""
    for file in _files(folder):
        _to_disk(file)
    files = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": _digest(file)}
        for file in _files(folder)
    }
    found = Manifest(
        step=step, policy=policy, fingerprint=fingerprint, processes=processes, files=files
    )
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    _to_disk(temporary)
    temporary.replace(folder / MANIFEST)
    for changed in (folder, folder.parent):
        _to_disk(changed)


def check_checkpoint(folder: Path) -> Manifest:
    """Return the manifest of `folder` once every file is found to be as it was written.

    Raises: CheckpointError naming the folder or the file, and what is wrong with it.
    """
    found = _read(folder)
    for name, facts in found.files.items():
        file = folder / name
        try:
            size, digest = file.stat().st_size, ""
            if size == facts["size"]:
                digest = _digest(file)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        if size != facts["size"]:
            raise CheckpointError(
                f"{file}: torn: it has {size} bytes, and had {facts['size']} when written"
            )
        if digest != facts["sha256"]:
            raise CheckpointError(f"{file}: corrupted: its SHA-256 is not the one written with it")
    return found


def _read(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: torn: it has no {MANIFEST}, which is written last"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    try:
        if found["qgraph_checkpoint"] != VERSION:
            raise CheckpointError(f"{path}: of version {found['qgraph_checkpoint']}, not {VERSION}")
        manifest = Manifest(**found)
        assert all({"size", "sha256"} <= {*facts} for facts in manifest.files.values())
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise CheckpointError(f"{path}: corrupted: it is no manifest") from error
    return manifest


def _files(folder: Path) -> list[Path]:
    own = {folder / MANIFEST, folder / f".{MANIFEST}.tmp"}
    return sorted(file for file in folder.rglob("*") if file.is_file() and file not in own)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk, where the file system can."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
