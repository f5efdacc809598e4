"""Files the commands write: checked before work starts, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from qgraph.errors import ArtifactError


def check_writable(file: str, *suffixes: str) -> None:
    """Check, before work starts, that `file` can be written and ends in one of `suffixes`.

    Raises: ArtifactError saying what to write instead.
    """
    path = Path(file).expanduser()
    if suffixes and path.suffix not in suffixes:
        raise ArtifactError(
            f"{file}: is no {suffixes[0]} file by its name",
            f"give a name that ends in {suffixes[0]}",
        )
    if path.is_dir():
        raise ArtifactError(f"{file}: is a directory", "give the name of a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ArtifactError(
            f"{file}: there is no directory {folder}", "make it, or write elsewhere"
        )
    if not os.access(folder, os.W_OK):
        raise ArtifactError(f"{file}: cannot write in {folder}", "write elsewhere")


def write_whole(file: str, text: str) -> None:
    """Write `text` to `file` through a temporary sibling, so that no half file is ever there.

    Raises: ArtifactError if it cannot be written.
    """
    path = Path(file).expanduser().absolute()
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as stream:
            temporary = stream.name
            stream.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = ""
    except OSError as error:
        raise ArtifactError(
            f"{file}: writing failed: {error.strerror}", "free some space or write elsewhere"
        ) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
