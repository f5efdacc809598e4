"""The key `name`: what reports call a policy."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from qgraph.policy.file.values import Text
from qgraph.policy.key import Key, Reading, nothing


def _name(name: str, reading: Reading) -> str:
    if not re.fullmatch(r"[^./\\][^/\\]*", name) or not name.isprintable():
        # `qgraph train` names folders after policies.
        fix = "leave out slashes and a leading dot, as in my-nvfp4"
        raise reading.document.fault(("name",), f"'{name}' is no name for a policy", fix)
    return name


NAME_KEY: Key[str] = Key(
    module=__name__,
    name="name",
    entry=Annotated[Text, Field(min_length=1)],
    description="What reports call the policy.",
    example="nvfp4",
    extends="never",
    resolve=_name,
    written=lambda name, policy: policy.name,  # it may be given another
    numbers=nothing,
)
