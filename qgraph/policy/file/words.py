"""Words for people: what a message shows of a file's text, and which word was meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable


def printable(text: str) -> str:
    """Return text with line breaks and the like written as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """Return text fit for one line of an error, cut after 60 characters."""
    text = printable(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return a fix that names the word nearest to `word`, or all of them."""
    known = list(words)
    near = difflib.get_close_matches(word, known, n=1)
    if len(known) == 1 and not near:
        return f"write {one_line(known[0])}"
    if near:
        return f"did you mean '{one_line(near[0])}'?"
    return f"use one of: {', '.join(map(one_line, known))}"


def flow_text(value: object) -> str:
    """Return plain data as YAML writes it on one line."""
    return json.dumps(value).replace('"', "")


def given_text(value: object) -> str:
    """Return what an error calls a value that the file gives."""
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return f"'{one_line(str(value))}'"
