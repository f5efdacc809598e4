import os
from pathlib import Path

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import (
    dump_policy,
    load_policy,
    load_policy_dict,
    load_policy_text,
    recipe_names,
)

RECIPES = {"fp8", "high", "int8", "mxfp4", "mxfp8", "nvfp4", "nvfp4_naive", "quartet"}
TEXT = """\
qgraph: 1
name: mine
formats: {f: {element: e4m3, block: row, scale: fp32}}
rules: [{fprop: {input: f}}]
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _message(source: str | os.PathLike[str]) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(source)
    return str(caught.value)


def test_recipe_is_found_by_its_name_and_by_its_file_name() -> None:
    assert load_policy("nvfp4").name == "nvfp4"
    assert load_policy("nvfp4.yaml") == load_policy("nvfp4")
    assert load_policy("nvfp4").path == "qgraph/policy/recipes/nvfp4.yaml"


def test_file_comes_before_a_recipe_of_its_name() -> None:
    Path("nvfp4.yaml").write_text(TEXT)
    Path("high").write_text(TEXT)
    assert load_policy("nvfp4.yaml").name == "mine"
    assert load_policy(Path("nvfp4.yaml")).path == "nvfp4.yaml"
    assert load_policy("high").name == "mine"
    assert load_policy("nvfp4").name == "nvfp4"


def test_folder_called_like_a_recipe_is_passed_over() -> None:
    Path("nvfp4").mkdir()
    assert load_policy("nvfp4").name == "nvfp4"


def test_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    Path("p.yaml").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert load_policy("p.yaml").fingerprint() == load_policy_text(TEXT).fingerprint()


def test_unknown_name_gets_the_nearest_recipe() -> None:
    problem = "nvfp5: policy: no such file or recipe"
    assert _message("nvfp5") == f"{problem}\n  fix: did you mean 'nvfp4'? qgraph recipes lists them"


def test_unknown_name_with_none_near_gets_the_recipes() -> None:
    assert _message("zz") == "zz: policy: no such file or recipe\n  fix: qgraph recipes lists them"
    assert _message("") == "'': policy: no such file or recipe\n  fix: qgraph recipes lists them"


@pytest.mark.parametrize("name", ["no/such", "other.yaml", "./nvfp4.yaml", "x.yml", "a\nb.yaml"])
def test_missing_file_is_named(name: str) -> None:
    shown = name.replace("\n", "\\n")
    fix = "write a file that exists, or a recipe: qgraph recipes lists them"
    assert _message(name) == f"{shown}: policy: no such file\n  fix: {fix}"


def test_directory_is_named() -> None:
    Path("p.yaml").mkdir()
    assert (
        _message("p.yaml")
        == "p.yaml: policy: this is a directory\n  fix: write the YAML file in it"
    )


def test_file_that_is_not_utf8_is_named_with_its_place() -> None:
    Path("p.yaml").write_bytes(b"qgraph: 1\nname: \xff\n")
    problem = "p.yaml:2:7: policy: this is not UTF-8 text"
    assert _message("p.yaml") == f"{problem}\n  fix: save the file as UTF-8 text"


def test_place_counts_characters_after_a_byte_order_mark() -> None:
    Path("p.yaml").write_bytes(b"\xef\xbb\xbf\xc3\xa9\xff")
    assert _message("p.yaml").startswith("p.yaml:1:2: policy: this is not UTF-8 text")


def test_huge_file_is_not_read() -> None:
    Path("p.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    problem = "p.yaml: policy: the file is larger than 1048576 bytes"
    assert _message("p.yaml") == f"{problem}\n  fix: write a policy file, in YAML"
    text = TEXT.encode()
    Path("p.yaml").write_bytes(text + b"#" * ((1 << 20) - len(text)))  # no byte too many
    assert load_policy("p.yaml").rules


@pytest.mark.parametrize("name", ["p\0.yaml", "a" * 5000 + ".yaml", "/dev/null/x.yaml"])
def test_impossible_path_is_an_error_without_a_traceback(name: str) -> None:
    assert "\n  fix: " in _message(name)


def test_unreadable_file_is_named() -> None:
    Path("p.yaml").write_text(TEXT)
    Path("p.yaml").chmod(0)
    if os.access("p.yaml", os.R_OK):
        pytest.skip("the superuser reads every file")
    problem = "p.yaml: policy: cannot be read: Permission denied"
    assert _message("p.yaml") == f"{problem}\n  fix: write a file you can read"


def test_long_path_is_shown_whole() -> None:
    folder = Path("a" * 50) / ("b" * 50)
    folder.mkdir(parents=True)
    (folder / "p.yaml").write_text("")
    assert _message(folder / "p.yaml").startswith(f"{folder}/p.yaml:1:1: policy: the file is empty")


def test_faults_in_plain_data_are_reported_like_those_in_a_file() -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy_dict({"qgraph": 1, "name": "x", "rules": [{"keep": "low"}]})
    assert str(caught.value) == "<resolved>:4:9: rules[0].keep: unknown 'low'\n  fix: write high"


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", float("nan"), None, [[]]])
def test_data_that_is_not_plain_is_an_error(value: object) -> None:
    with pytest.raises(PolicyError):
        load_policy_dict({"qgraph": 1, "name": value, "rules": [{"keep": "high"}]})


def test_data_that_holds_itself_is_an_error() -> None:
    data: dict[str, object] = {"qgraph": 1}
    data["rules"] = data
    with pytest.raises(PolicyError, match="not plain data"):
        load_policy_dict(data)


def test_recipes_are_listed_sorted() -> None:
    assert recipe_names() == tuple(sorted(recipe_names()))
    assert set(recipe_names()) > RECIPES


def test_a_format_is_fields_or_text_or_a_name_or_not_declared_at_all() -> None:
    policy = load_policy_text(
        "qgraph: 1\nname: forms\nformats:\n"
        "  fields: {element: {exponent_bits: 3, mantissa_bits: 2, bias: 2.5}, block: row, scale: fp32}\n"
        "  values: {element: [-1, -0.25, 0, 0.25, 1], block: row, scale: fp32, range: p99.9}\n"
        "  integer: {element: {bits: 6, range: full}, block: row, scale: fp32}\n"
        "  fixed: {element: {bits: 8, fraction_bits: 4}, scale: none}\n"
        "  named: mxfp8\n"
        "  text: e2m1/1x16/ue5m3-up\n"
        "  rceil: {element: e4m3, block: [1, 32], scale: ue8m0, dialect: rceil}\n"
        "  ocp: {element: e4m3, block: [1, 32], scale: ue8m0, dialect: ocp}\n"
        "  torchao: {element: e5m2, scale: fp32, scale_rounding: pow2, dialect: torchao}\n"
        "  floor: {element: int8, block: row, scale: fp32, range: absmax+floor1e-5}\n"
        "rules:\n"
        "- {match: {module: a}, fprop: {input: fields, weight: values}}\n"
        "- {match: {module: b}, fprop: {input: named, weight: text}}\n"
        "- {match: {module: c}, fprop: {input: nvfp4, weight: int8/row/fp32}}\n"
        "- {match: {module: d}, fprop: {input: integer, weight: fixed}}\n"
        "- {match: {module: e}, fprop: {input: rceil, weight: ocp}}\n"
        "- {match: {module: f}, fprop: {input: torchao, weight: floor}}\n"
    )
    assert [str(operand.format) for operand in policy.operands] == [
        "e3m2+b2.5/row/fp32",
        "list(-1,-0.25,0,0.25,1)/row/fp32:p99.9",
        "e4m3/1x32/ue8m0-rceil",
        "e2m1/1x16/ue5m3-up",
        "e2m1/1x16/e4m3/fp32",
        "int8/row/fp32",
        "int6+full/row/fp32",
        "fixed4.4/tensor/none",
        "e4m3/1x32/ue8m0-rceil",
        "e4m3/1x32/ue8m0-floor",
        "e5m2/tensor/fp32-pow2@torchao",
        "int8/row/fp32:absmax+floor1e-5",
    ]
    again = load_policy_dict(policy.to_dict())
    assert again.fingerprint() == policy.fingerprint()


@pytest.mark.parametrize(
    "tail",
    [
        "rounding: 'stochastic:4'", "rounding: 'stochastic:24'", "rounding: odd",
        "gradient: 'dge:3:2+absmax'",
        "gradient: clipped, rounding: up", "transform: run", "transform: site", "transform: step",
    ],
)  # fmt: skip
def test_what_an_operand_says_survives_writing_and_changes_the_fingerprint(tail: str) -> None:
    head = (
        "qgraph: 1\nname: x\ntransforms:\n  run: {hadamard: 32, signs: run, seed: 9}\n"
        "  site: {hadamard: 32, signs: site}\n  step: {hadamard: 32, signs: step}\nrules:\n"
    )
    operands = "{{input: {{format: mxfp8{0}}}, weight: {{format: mxfp8{1}}}}}"
    rule = "- {{match: {{op: linear}}, fprop: " + operands + "}}\n"
    both = f", {tail}" if "transform" in tail else ""
    plain = load_policy_text(head + rule.format("", ""))
    policy = load_policy_text(head + rule.format(f", {tail}", both))
    assert policy.fingerprint() != plain.fingerprint()
    again = load_policy_text(dump_policy(policy))
    assert [*again.operands] == [*policy.operands]
    assert again.fingerprint() == policy.fingerprint()
