"""A key of a policy is one file: all that is said of it follows from its Key, and from a line in KEYS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import (
    KEYS,
    Policy,
    dump_policy,
    keys,
    load_policy,
    load_policy_text,
    policy_json_schema,
    recipe_names,
)
from qgraph.policy.file.entry import FileEntry, optional, required
from qgraph.policy.key import Key, Reading

FOLDER = Path(keys.__file__).parent
RECORDED = Path(__file__).parent / "fingerprints.txt"


def breaches(listed: Iterable[Key[Any]]) -> list[str]:
    """Key files whose key does not stand in `listed` exactly once."""
    counts = Counter(key.module.rpartition(".")[2] for key in listed)
    files = [file.stem for file in sorted(FOLDER.glob("*.py")) if file.name != "__init__.py"]
    return [f"{name}: {counts[name]} times" for name in files if counts[name] != 1]


def test_every_key_file_stands_in_keys_once() -> None:
    assert breaches(KEYS) == []
    assert len(KEYS) == len({key.name for key in KEYS}) == len([*FOLDER.glob("*.py")]) - 1


def test_a_key_that_is_left_out_or_listed_twice_is_found() -> None:
    (stash,) = (key for key in KEYS if key.name == "stash")
    assert breaches(key for key in KEYS if key is not stash) == ["stash: 0 times"]
    assert breaches([*KEYS, stash]) == ["stash: 2 times"]


def recorded() -> dict[str, str]:
    lines = (line.split("  ") for line in RECORDED.read_text().splitlines())
    return {name: fingerprint for fingerprint, name in lines}


def test_fingerprints_of_recipes_are_those_that_checkpoints_hold() -> None:
    # A checkpoint is resumed with the policy of its fingerprint only: a change here stops users' runs.
    # A new recipe adds its line; a recipe that means something else gets a name of its own.
    assert {name: load_policy(name).fingerprint() for name in recipe_names()} == recorded()


@dataclass(frozen=True)
class Merging:
    """What the planted key stands for."""

    ratio: int
    where: str


class MergeEntry(FileEntry):
    """The planted key's entry."""

    ratio: int = required("How many tokens become one.", 2)
    where: Literal["input", "output"] = optional("Which tokens.", "output", "input")


def _merge(entry: MergeEntry | None, reading: Reading) -> Merging | None:
    if entry is None:
        return None
    if entry.ratio < 2:
        problem = f"'{entry.ratio}' merges nothing"
        raise reading.document.fault(("merging", "ratio"), problem, "write 2 or more")
    return Merging(ratio=entry.ratio, where=entry.where)


def _written(value: Merging | None, policy: Policy) -> object:
    return None if value is None else {"ratio": value.ratio, "where": value.where}


MERGING_KEY: Key[Merging | None] = Key(
    module=__name__,
    name="merging",
    entry=MergeEntry | None,
    description="Tokens that become one.",
    example={"ratio": 2},
    default=None,
    resolve=_merge,
    written=_written,
    words=lambda value, policy: [] if value is None else [f"merging: {value.ratio} to one"],
    changes=bool,
)
HEAD = "qgraph: 1\nname: p\nrules: [{keep: high}]\n"  # three lines


@pytest.fixture
def _planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(keys, "KEYS", (*KEYS, MERGING_KEY))
    yield
    monkeypatch.undo()
    assert "merging" not in policy_json_schema()["properties"]  # type: ignore[operator]


@pytest.mark.usefixtures("_planted")
def test_a_new_key_is_in_the_schema() -> None:
    schema: Any = policy_json_schema()
    assert schema["properties"]["merging"]["description"] == "Tokens that become one."
    assert schema["$defs"]["MergeEntry"]["required"] == ["ratio"]


@pytest.mark.usefixtures("_planted")
def test_a_new_key_is_read_carried_written_and_told() -> None:
    policy = load_policy_text(HEAD + "merging: {ratio: 4}\n")
    assert MERGING_KEY.of(policy) == policy.values["merging"] == Merging(4, "input")
    assert policy.to_dict()["merging"] == {"ratio": 4, "where": "input"}
    assert "merging: 4 to one" in policy.lines()
    again = load_policy_text(dump_policy(policy))
    assert MERGING_KEY.of(again) == MERGING_KEY.of(policy)
    assert again.fingerprint() == policy.fingerprint()


@pytest.mark.usefixtures("_planted")
def test_a_new_key_is_taken_from_a_base() -> None:
    base = load_policy_text(HEAD + "merging: {ratio: 4}\n")
    Path("base.yaml").write_text(dump_policy(base))
    policy = load_policy_text("qgraph: 1\nname: q\nextends: base.yaml\n")
    assert MERGING_KEY.of(policy) == Merging(4, "input")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_planted")
def test_a_new_key_is_in_the_fingerprint_only_where_a_policy_sets_it() -> None:
    assert {name: load_policy(name).fingerprint() for name in recipe_names()} == recorded()
    fingerprints = {
        load_policy_text(f"qgraph: 1\nname: p\nextends: nvfp4\n{text}").fingerprint()
        for text in ("", "merging: {ratio: 2}\n", "merging: {ratio: 3}\n")
    }
    assert len(fingerprints) == 3
    assert recorded()["nvfp4"] in fingerprints
    assert "merging" not in dump_policy(load_policy("nvfp4"))


# What is written, and what is said of it after p.yaml:4:.
FAULTS = {
    "its name": (
        "mergin: {ratio: 2}\n",
        "1: policy: unknown key 'mergin'",
        "did you mean 'merging'?",
    ),
    "its keys": (
        "merging: {ratoi: 2}\n",
        "11: merging: unknown key 'ratoi'",
        "did you mean 'ratio'?",
    ),
    "its words": (
        "merging: {ratio: 2, where: ouput}\n",
        "28: merging.where: unknown 'ouput'",
        "did you mean 'output'?",
    ),
    "a key that is missing": (
        "merging: {where: input}\n",
        "10: merging: the key 'ratio' is missing",
        "write ratio: 2",
    ),
    "no value": ("merging:\n", "9: merging: no value is given", "write merging: {ratio: 2}"),
    "another kind": (
        "merging: 2\n",
        "10: merging: '2' is not a mapping",
        "write merging: {ratio: 2}",
    ),
    "its own": (
        "merging: {ratio: 1}\n",
        "18: merging.ratio: '1' merges nothing",
        "write 2 or more",
    ),
}


@pytest.mark.usefixtures("_planted")
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_a_new_key_is_told_as_any_other(case: str) -> None:
    text, problem, fix = FAULTS[case]
    with pytest.raises(PolicyError) as caught:
        load_policy_text(HEAD + text, file="p.yaml")
    assert str(caught.value) == f"p.yaml:4:{problem}\n  fix: {fix}"


def test_a_key_that_is_merged_by_names_says_so() -> None:
    by_name = [key.name for key in KEYS if key.extends == "names"]
    (extends,) = (key for key in KEYS if key.name == "extends")
    assert sorted(by_name) == ["claims", "formats", "groups", "transforms"]
    assert all(name in extends.description for name in by_name)
