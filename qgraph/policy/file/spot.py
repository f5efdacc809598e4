"""What the schema expects at a place of a file, for messages."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from qgraph.policy.file.document import Path
from qgraph.policy.file.entry import FileEntry
from qgraph.policy.file.words import flow_text, one_line


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A place in a file: the type expected there, the last key on the way, and its example."""

    kind: Any
    word: str = ""
    example: object = None
    inside: bool = False  # whether the place is in the list that the key holds

    @property
    def model(self) -> type[FileEntry] | None:
        """The entry that stands here, if it is one."""
        return self.kind if _is(self.kind, FileEntry) else None

    @property
    def keys(self) -> list[str]:
        """The keys it may have."""
        fields = self.kind.model_fields if _is(self.kind, FileEntry) else {}
        return [info.alias or name for name, info in fields.items()]

    @property
    def example_fix(self) -> str:
        """What to write here, from the example of its key."""
        if self.inside and self.model and isinstance(self.example, list):
            return f"write {flow_text(self.example[0])}"
        example = "..." if self.example is None else flow_text(self.example)
        return f"write {one_line(self.word)}: {example}"


def find_spot(schema: type[FileEntry], path: Path) -> Spot:
    """Return what is expected at `path`; where the schema knows no such place, only its last key."""
    spot = Spot(kind=schema)
    for step in path:
        spot = _below(spot, step)
    return spot


def _below(spot: Spot, step: str | int) -> Spot:
    if isinstance(step, int):
        item = _arguments(spot.kind, list)
        return Spot(kind=item and item[0], word=spot.word, example=spot.example, inside=True)
    if _is(spot.kind, FileEntry):
        for name, info in spot.kind.model_fields.items():
            if (info.alias or name) == step:
                return Spot(kind=_plain(info.annotation), word=step, example=_example(info))
    model = spot.model
    if model is not None and model.named is not None:
        return Spot(kind=model.named, word=step, example=model.named.example)
    entry = (_arguments(spot.kind, dict) or (None, None))[1]
    return Spot(kind=entry, word=step, example=_named_example(entry, spot.example))


def _named_example(entry: Any, around: object) -> object:
    """Return the example of an entry under a name that users choose."""
    if _is(entry, FileEntry) and entry.example is not None:
        return entry.example
    return next(iter(around.values()), None) if isinstance(around, dict) else None


def _example(info: FieldInfo) -> object:
    return info.examples[0] if info.examples else None


def _arguments(kind: Any, of: type) -> tuple[Any, ...] | None:
    return tuple(map(_plain, get_args(kind))) if get_origin(kind) is of else None


def _plain(annotation: Any) -> Any:
    """Return a type without what is only annotated, and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return _plain(kinds[0])
    return annotation


def _is(kind: Any, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)
