"""The policy file's schema, put together from the keys."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ConfigDict, create_model

from qgraph.policy import keys
from qgraph.policy.file.entry import CONFIG, FileEntry
from qgraph.policy.key import Key


class _Titled(FileEntry):
    model_config = ConfigDict(**CONFIG, title="qgraph policy")


def policy_schema() -> type[FileEntry]:
    """Return the model that a policy file has to fit."""
    return _assembled(keys.KEYS)


@functools.cache
def _assembled(known: tuple[Key[Any], ...]) -> type[FileEntry]:
    fields: dict[str, Any] = {key.name: (key.entry, key.info) for key in known}
    model: type[FileEntry] = create_model(
        "PolicyFile",
        __base__=_Titled,
        __doc__="What a training run does with its products: which are quantized, and how.",
        **fields,
    )
    return model


def policy_json_schema() -> dict[str, object]:
    """Return the JSON Schema of a policy file, for editors."""
    draft: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = draft | policy_schema().model_json_schema()
    schema["required"] = [key for key in schema["required"] if key != "rules"]
    schema["anyOf"] = [{"required": ["rules"]}, {"required": ["extends"]}]
    return schema
