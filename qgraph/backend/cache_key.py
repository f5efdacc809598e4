"""The key under which Inductor may keep code built with a policy."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources

from qgraph.policy import Policy

_SOURCES = ("qgraph.backend", "qgraph.passes", "qgraph.ops", "qgraph.numerics", "qgraph.formats")


def cache_key(policy: Policy) -> str:
    """Return a hash of everything that decides a rewritten graph: policy and qgraph's own source."""
    return hashlib.sha256(f"{policy.fingerprint()} {_source_hash()}".encode()).hexdigest()


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for package in _SOURCES:
        for entry in sorted(resources.files(package).iterdir(), key=lambda e: e.name):
            if entry.name.endswith((".py", ".cpp")):
                digest.update(entry.name.encode() + b"\0" + entry.read_bytes())
    return digest.hexdigest()
