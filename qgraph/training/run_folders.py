"""The folder of a run that can be resumed: what it trains, its checkpoints, and its results at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from qgraph.errors import CheckpointError, RunError

SETTINGS = "run.json"
CHECKPOINTS = "checkpoints"
# What a run may be resumed with that it was not started with: none of these changes a number.
_FREE = ("save_every",)


def text_digest(ids: Tensor) -> str:
    """Return the SHA-256, in hex, of token ids."""
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()


@contextmanager
def run_folder(out: str, facts: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """Give a folder inside the run `out` to write results into; on success they are moved to `out`.

    `facts` are what the run is: they are written when it starts and compared when it resumes.
    Unlike `new_directory` the run stays when it is broken off, to be resumed.

    Raises: RunError if `out` is there and `resume` is not asked, or the other way round, or if it
        was started with other facts; CheckpointError if its notes cannot be read.
    """
    if not out.strip():
        raise RunError("--out is empty", "give the name of a directory to write")
    path = Path(out).expanduser().absolute()
    try:
        if (path / SETTINGS).exists():
            if not resume:
                raise RunError(f"{out}: a run is here already", "--resume, or another --out")
            _compare(path / SETTINGS, facts)
        elif resume:
            raise RunError(f"{out}: there is no run to resume", "leave --resume out to start one")
        elif path.exists():
            raise RunError(f"{out}: already exists", "choose another --out, or remove it")
        else:
            _start(path, facts)
        results = path / ".results"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        yield results
        for item in sorted(results.iterdir()):
            _replace(item, path / item.name)
        results.rmdir()
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise RunError(
            f"{out}: cannot write here: {error.strerror or error}",
            "free some space or choose another --out",
        ) from error


def _start(path: Path, facts: Mapping[str, Any]) -> None:
    path.mkdir(parents=True)
    temporary = path / f".{SETTINGS}.tmp"
    temporary.write_text(json.dumps(dict(facts), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path / SETTINGS)


def _compare(file: Path, facts: Mapping[str, Any]) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        differs = [key for key in facts if key not in _FREE and before[key] != facts[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged: {error}", "start another run") from error
    if differs:
        key = differs[0]
        more = f", and {', '.join(differs[1:])}" if differs[1:] else ""
        raise RunError(
            f"{file.parent}: this run was started with {key} {before[key]}, not {facts[key]}{more}",
            "resume with what it was started with, or start another run",
        )


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)
