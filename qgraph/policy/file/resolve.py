"""From typed file to policy: every key read, and held against the others."""

from __future__ import annotations

from qgraph.policy import keys
from qgraph.policy.file.document import Document
from qgraph.policy.file.entry import FileEntry
from qgraph.policy.key import Reading
from qgraph.policy.keys.name import NAME_KEY
from qgraph.policy.model import Policy


def resolve(entries: FileEntry, document: Document) -> Policy:
    """Return the policy a file describes.

    Raises: PolicyError where what its keys say does not fit together.
    """
    reading = Reading(document=document, entries=entries)
    values = {key.name: reading.of(key) for key in keys.KEYS}
    policy = Policy(name=reading.of(NAME_KEY), path=document.file, values=values)
    for key in keys.KEYS:
        key.check(key.of(policy), policy, document)
    if policy.name != "high" and not any(key.changes(key.of(policy)) for key in keys.KEYS):
        fix = "give an operand a format, or name the policy high"
        raise document.fault(("rules",), "no rule quantizes anything", fix, at_key=True)
    return policy
