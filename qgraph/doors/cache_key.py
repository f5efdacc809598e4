"""The key under which Inductor may keep code built with a policy."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from qgraph.policy import Policy

_CODE = (".py", ".cpp")


def cache_key(policy: Policy) -> str:
    """Return a hash of everything that decides a rewritten graph: policy and qgraph's own source."""
    return hashlib.sha256(f"{policy.fingerprint()} {source_hash()}".encode()).hexdigest()


@functools.cache
def source_hash() -> str:
    """Return a hash of all of qgraph's code: a list of what decides numbers would one day miss a file."""
    return hash_of(resources.files("qgraph"))


def hash_of(folder: Traversable) -> str:
    """Return a hash of all code below `folder`, and of where it stands."""
    digest = hashlib.sha256()
    for name, file in sources(folder):
        digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def sources(folder: Traversable, path: str = "") -> Iterator[tuple[str, Traversable]]:
    """Yield every file of code below `folder` by its path from there, in order."""
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        name = f"{path}/{entry.name}"
        if entry.is_dir():
            yield from sources(entry, name)
        elif entry.name.endswith(_CODE):
            yield name, entry
