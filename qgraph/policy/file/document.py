"""YAML text as plain data, with the line and column of every key and value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from qgraph.errors import Place, PolicyError
from qgraph.policy.file.words import one_line

Path = tuple[str | int, ...]
MAX_DEPTH = 12  # a policy needs 6


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed file. Paths lead from the root: ("rules", 2, "match")."""

    file: str
    data: object
    keys: Mapping[Path, Place]
    values: Mapping[Path, Place]

    def fault(self, path: Path, problem: str, fix: str, *, at_key: bool = False) -> PolicyError:
        """Return the error at the longest part of `path` that the file has."""
        while path and path not in self.values:
            path = path[:-1]
        place = self.keys.get(path) if at_key else None
        return PolicyError(place or self.values[path], key_text(path), problem, fix)

    def at(self, path: Path) -> object:
        """Return the value at `path`, or None where the file has none."""
        value = self.data
        for step in path:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def words(self, path: Path) -> list[str]:
        """Return the keys of the mapping at `path`, in file order."""
        value = self.at(path)
        return list(value) if isinstance(value, dict) else []


def key_text(path: Path) -> str:
    """Return a path as errors print it: rules[2].fprop.weight."""
    text = ""
    for step in path:
        text += (
            f"[{step}]"
            if isinstance(step, int)
            else f".{one_line(step)}"
            if text
            else one_line(step)
        )
    return text or "policy"


def read_document(text: str, file: str) -> Document:
    """Parse YAML text.

    Raises: PolicyError for anything that is not one plain mapping.
    """
    reader = _Reader(file=file)
    try:
        reader.check_events(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, file) from None
    except yaml.reader.ReaderError as error:
        start = text[: error.position]
        place = _place_after(start, file)
        problem = f"the character {text[error.position]!a} is not allowed"
        raise PolicyError(place, "yaml", problem, "remove it") from None
    except PolicyError:
        raise
    except (ValueError, OverflowError):  # PyYAML lets chr() and int() fail
        found = re.search(r"\\U(?!0010|000)|^%YAML", text, re.MULTILINE)
        place = _place_after(text[: found.start()] if found else "", file)
        problem, fix = "the number is too large", "remove the escape or directive"
        raise PolicyError(place, "yaml", problem, fix) from None
    place = Place(file=file, line=1, column=1)
    if node is None:
        raise PolicyError(place, "policy", "the file is empty", "begin with qgraph: 1")
    if not isinstance(node, yaml.MappingNode):
        place = reader.place(node)
        raise PolicyError(place, "policy", "the file is not a mapping", "begin with qgraph: 1")
    data = reader.read(node, ())
    return Document(file=file, data=data, keys=reader.keys, values=reader.values)


@dataclass(frozen=True, kw_only=True)
class _Reader:
    file: str
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)

    def check_events(self, text: str) -> None:
        depth, documents = 0, 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            place = self.place(event)
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if documents > 1:
                problem = "a second document begins"
                raise PolicyError(place, "yaml", problem, "write one policy a file")
            if depth > MAX_DEPTH:
                problem = f"lists and mappings lie more than {MAX_DEPTH} deep"
                raise PolicyError(place, "yaml", problem, "close the brackets")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                fix = "write the value out in each place"
                raise PolicyError(place, "yaml", "anchors and aliases are not supported", fix)
            if tag := getattr(event, "tag", None):
                problem = f"the tag '{one_line(tag)}' is not supported"
                raise PolicyError(place, "yaml", problem, "remove it")

    def place(self, item: yaml.Node | yaml.Event) -> Place:
        mark = item.start_mark
        assert mark is not None, "the parser gives every item a place"
        return Place(file=self.file, line=mark.line + 1, column=mark.column + 1)

    def read(self, node: yaml.Node, path: Path) -> object:
        self.values[path] = self.place(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise PolicyError(place, key_text(path), "a key is not a word", "write key: value")
            key = self._text(key_node.value, key_node, path)
            if key in data:
                first = self.keys[*path, key].line
                problem, fix = "the key is written twice", f"keep one; the first is on line {first}"
                raise PolicyError(place, key_text((*path, key)), problem, fix)
            self.keys[*path, key] = place
            data[key] = self.read(value_node, (*path, key))
        return data

    def _text(self, text: str, node: yaml.Node, path: Path) -> str:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            problem = f"'{one_line(text)}' holds half a character"
            raise PolicyError(self.place(node), key_text(path), problem, "remove the escape")
        return text

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> object:
        text = self._text(node.value, node, path)
        if node.tag == "tag:yaml.org,2002:null":
            return None
        if node.tag == "tag:yaml.org,2002:int" and re.fullmatch(r"-?(0|[1-9][0-9]{0,8})", text):
            return int(text)
        return text  # no key takes a truth value or a float: `name: on` is a word


def _syntax_error(error: yaml.MarkedYAMLError, text: str, file: str) -> PolicyError:
    mark = error.problem_mark or error.context_mark
    assert mark is not None, f"a YAML error without a place: {error}"
    place = Place(file=file, line=mark.line + 1, column=mark.column + 1)
    problem = one_line(error.problem or "not YAML")
    fix = "check the indentation, brackets and quotes here and on the line above"
    if mark.index < len(text) and text[mark.index] == "\t":
        problem, fix = "a tab where YAML takes only spaces", "indent with spaces"
    elif "<block end>" in problem:
        problem, fix = "this does not line up with the lines above", "indent it as they are"
    elif "<stream end>" in problem or "end of stream" in problem:
        problem, fix = "the file ends inside brackets or quotes", "close them"
    elif problem == "mapping values are not allowed here":
        problem, fix = "a second ': ' in one entry", "put the value in quotes, or on its own line"
    return PolicyError(place, "yaml", problem, fix)


def _place_after(start: str, file: str) -> Place:
    column = len(start) - (start.rfind("\n") + 1) + 1
    return Place(file=file, line=start.count("\n") + 1, column=column)
