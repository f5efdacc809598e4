"""The key `extends`: the policy that a file starts from; `qgraph.policy.file.extend` follows it."""

from __future__ import annotations

from qgraph.policy.key import Key, as_written, nothing

EXTENDS_KEY: Key[str] = Key(
    module=__name__,
    name="extends",
    entry=str,
    description="A recipe, or a policy file, to start from: keys given here replace its keys; entries "
    "of formats, transforms, groups and claims do so by name.",
    example="nvfp4",
    default="",
    extends="never",
    resolve=as_written,
    written=nothing,
)
