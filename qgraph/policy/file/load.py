"""Reading and writing policies: from a file, a recipe's name, text or plain data."""

from __future__ import annotations

import difflib
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from qgraph.errors import Place, PolicyError
from qgraph.policy.file.document import Document, read_document
from qgraph.policy.file.extend import extended
from qgraph.policy.file.faults import validate
from qgraph.policy.file.resolve import resolve
from qgraph.policy.file.schema import policy_schema
from qgraph.policy.file.words import printable
from qgraph.policy.model import Policy

MAX_BYTES = 1 << 20  # a recipe has 2000
SUFFIXES = (".yaml", ".yml")
RECIPES = importlib.resources.files("qgraph.policy") / "recipes"


def recipe_names() -> tuple[str, ...]:
    """Return the names of the policies qgraph ships, sorted."""
    return tuple(sorted(Path(f.name).stem for f in RECIPES.iterdir() if f.name.endswith(".yaml")))


def load_policy(source: str | os.PathLike[str]) -> Policy:
    """Return the policy in a file, or the recipe of that name.

    A name with a slash or a YAML suffix is a file; `nvfp4.yaml` falls back to the recipe nvfp4.

    Raises: PolicyError if there is none, or with the first fault in it.
    """
    if not isinstance(source, str | os.PathLike):
        raise PolicyError(
            "policy",
            type(source).__name__,
            "a policy is a file or a recipe's name",
            "write qgraph.load_policy(PATH), or load_policy_dict of qgraph.policy for a dict",
        )
    text, file = _find(os.fspath(source))
    return load_policy_text(text, file=file)


def _find(name: str, folder: str = "") -> tuple[str, str]:
    """Return a policy's text, and what to call its file; paths are relative to `folder`."""
    path = os.path.join(folder, name)
    if os.path.isfile(path):
        return _read_file(path), path
    stem, suffix = os.path.splitext(name)
    recipe = stem if suffix in SUFFIXES else name
    if recipe in recipe_names():
        data = (RECIPES / f"{recipe}.yaml").read_bytes()
        file = f"qgraph/policy/recipes/{recipe}.yaml"
        return _decode(data, file), file
    if suffix in SUFFIXES or "/" in name or os.sep in name:
        return _read_file(path), path
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    fix = f"{hint}qgraph recipes lists them"
    raise PolicyError(printable(name) or "''", "policy", "no such file or recipe", fix)


def load_policy_text(text: str, file: str = "<string>") -> Policy:
    """Return the policy in YAML text; errors call it `file`.

    Raises: PolicyError with the first fault.
    """
    folder = os.path.dirname(file) if os.path.isfile(file) else ""

    def base(name: str) -> Document:
        found, where = _find(name, folder)
        return read_document(found, printable(where))

    document = extended(read_document(text, printable(file)), base)
    return resolve(validate(document, policy_schema()), document)


def load_policy_dict(data: Mapping[str, object]) -> Policy:
    """Return the policy that `Policy.to_dict` wrote, perhaps through JSON.

    Raises: PolicyError with the first fault; positions count in the data written as YAML.
    """
    try:
        text = _dump(data)
    except (yaml.YAMLError, RecursionError):
        place = Place(file="<resolved>", line=1, column=1)
        problem, fix = "not plain data", "use only mappings, lists, text and numbers"
        raise PolicyError(place, "policy", problem, fix) from None
    return load_policy_text(text, file="<resolved>")


def dump_policy(policy: Policy) -> str:
    """Return the resolved policy as YAML; loading it gives the same fingerprint."""
    return _dump(policy.to_dict())


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _dump(data: Mapping[str, object]) -> str:
    return yaml.dump(
        dict(data), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100
    )


def _read_file(name: str) -> str:
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        fix = "write a file that exists, or a recipe: qgraph recipes lists them"
        raise PolicyError(printable(name), "policy", "no such file", fix) from None
    except IsADirectoryError:
        fix = "write the YAML file in it"
        raise PolicyError(printable(name), "policy", "this is a directory", fix) from None
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise PolicyError(printable(name), "policy", problem, "write a file you can read") from None
    return _decode(data, name)


def _decode(data: bytes, file: str) -> str:
    if len(data) > MAX_BYTES:
        problem = f"the file is larger than {MAX_BYTES} bytes"
        raise PolicyError(printable(file), "policy", problem, "write a policy file, in YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from after the mark; lines and columns do as well
        good = data.removeprefix(b"\xef\xbb\xbf")[: error.start].decode(errors="replace")
        column = len(good) - good.rfind("\n")
        place = Place(file=printable(file), line=good.count("\n") + 1, column=column)
        fix = "save the file as UTF-8 text"
        raise PolicyError(place, "policy", "this is not UTF-8 text", fix) from None
