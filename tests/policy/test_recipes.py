import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import qgraph.policy
from qgraph.policy import (
    Decision,
    decide,
    dump_policy,
    load_policy,
    load_policy_dict,
    load_policy_text,
    policy_json_schema,
    recipe_names,
)
from tests.policy.sites import Site

FOLDER = Path(qgraph.policy.__file__).parent / "recipes"
HEADS = [
    "lm_head", "embed_out", "proj_out", "cls.predictions.decoder", "lm_head.decoder", "decoder",
    "score", "classifier", "classifier.1", "classifier.out_proj", "output_projection",
    "vocab_projector", "generator_lm_head", "qa_outputs",
]  # fmt: skip
PRODUCTS = {
    "fprop": ("input", "weight"),
    "dgrad": ("grad_output", "weight"),
    "wgrad": ("input", "grad_output"),
}
NVFP4, TILES = "e2m1/1x16/e4m3/fp32", "e2m1/16x16/e4m3/fp32"
# Per product, the formats of its two operands in the order of PRODUCTS.
FORMATS = {
    "nvfp4": {"fprop": (NVFP4, TILES), "dgrad": (NVFP4, TILES), "wgrad": (NVFP4, NVFP4)},
    "nvfp4_naive": dict.fromkeys(PRODUCTS, (NVFP4, NVFP4)),
    "mxfp8": dict.fromkeys(PRODUCTS, ("e4m3/1x32/ue8m0-rceil",) * 2),
    "mxfp4": dict.fromkeys(PRODUCTS, ("e2m1/1x32/ue8m0-rceil",) * 2),
    "int8": dict.fromkeys(PRODUCTS, ("int8/row/fp32",) * 2),
    "fp8": {
        "fprop": ("e4m3/tensor/fp32", "e4m3/tensor/fp32"),
        "dgrad": ("e5m2/tensor/fp32", "e4m3/tensor/fp32"),
        "wgrad": ("e4m3/tensor/fp32", "e5m2/tensor/fp32"),
    },
    "high": dict.fromkeys(PRODUCTS, ("None", "None")),
}


def _decide(recipe: str, role: str, **facts: Any) -> Decision:
    return decide(load_policy(recipe), Site(role=role, operand_kinds=PRODUCTS[role], **facts))


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipe_survives_dump_and_load(recipe: str) -> None:
    policy = load_policy(recipe)
    again = load_policy_text(dump_policy(policy))
    assert again.fingerprint() == policy.fingerprint()
    assert again.to_dict() == policy.to_dict()
    assert policy.name == recipe


@pytest.mark.parametrize("recipe", FORMATS)
def test_recipe_gives_each_operand_its_format(recipe: str) -> None:
    formats = {
        role: tuple(str(operand.format) for operand in _decide(recipe, role).operands)
        for role in PRODUCTS
    }
    assert formats == FORMATS[recipe]


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("head", HEADS)
def test_recipe_keeps_the_head(recipe: str, head: str) -> None:
    decision = _decide(recipe, "fprop", module=head, block=None, block_count=None)
    assert decision.reason.startswith("kept: rule 1")


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipe_leaves_other_ops_alone(recipe: str) -> None:
    policy = load_policy(recipe)
    reason = decide(policy, Site(op="matmul", operand_kinds=("lhs", "rhs"))).reason
    assert reason == ("no rule matches" if policy.quantizes else "kept: rule 1 (everything)")


@pytest.mark.parametrize(("total", "kept"), [(1, [0]), (4, [3]), (12, [10, 11])])
def test_nvfp4_keeps_the_last_blocks(total: int, kept: list[int]) -> None:
    decisions = [_decide("nvfp4", "fprop", block=i, block_count=total) for i in range(total)]
    assert [i for i, decision in enumerate(decisions) if decision.reason] == kept


def test_nvfp4_rounds_gradients_at_random_and_rotates_wgrad() -> None:
    treated = {
        (role, kind): (str(operand.rounding), operand.transform and operand.transform.name)
        for role, kinds in PRODUCTS.items()
        for kind, operand in zip(kinds, _decide("nvfp4", role).operands, strict=True)
    }
    assert treated == {
        ("fprop", "input"): ("nearest", None),
        ("fprop", "weight"): ("nearest", None),
        ("dgrad", "grad_output"): ("stochastic", None),
        ("dgrad", "weight"): ("nearest", None),
        ("wgrad", "input"): ("nearest", "rht"),
        ("wgrad", "grad_output"): ("stochastic", "rht"),
    }
    transform = _decide("nvfp4", "wgrad").operands[0].transform
    assert transform is not None
    assert (transform.hadamard, transform.signs, transform.output) == (16, "te", "bf16")


def test_which_recipes_round_at_random_and_only_high_quantizes_nothing() -> None:
    policies = [load_policy(recipe) for recipe in recipe_names()]
    random = {"fp4_ue5m3", "quartet", "quartet2"} | {
        name for name in recipe_names() if name.startswith("nvfp4")
    }
    random -= {"nvfp4_naive", "nvfp4_no_sr"}
    assert {policy.name for policy in policies if policy.stochastic} == random
    states = {"efficient_m4", "efficient_m8", "efficient_v8", "layercast"}  # and no products
    assert {policy.name for policy in policies if not policy.quantizes} == {"high", *states}
    assert len({policy.fingerprint() for policy in policies}) == len(policies)


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipe_is_one_short_page(recipe: str) -> None:
    lines = (FOLDER / f"{recipe}.yaml").read_text().splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 110
    policy = load_policy(recipe)
    summary, *_ = policy.page.splitlines()
    assert 20 < len(summary) <= 100
    assert summary.endswith(".")
    assert policy.source or recipe == "high"
    assert bool(policy.claims) == policy.quantizes


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipe_and_its_resolved_form_fit_the_json_schema(recipe: str) -> None:
    schema = policy_json_schema()
    assert _misfit(yaml.safe_load((FOLDER / f"{recipe}.yaml").read_text()), schema, schema) == ""
    assert _misfit(load_policy(recipe).to_dict(), schema, schema) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"functions": [{"softmax": "two_pass"}, {"modules": ["a.*"], "softmax": "two_pass"}]},
        {"calibrate": [{"clip": {}}, {"clip": {"steps": 5, "lowest": "30%", "modules": "a"}}]},
    ],
)
def test_json_schema_takes_what_the_loader_takes(change: dict[str, object]) -> None:
    schema = policy_json_schema()
    given = load_policy("nvfp4").to_dict() | change
    assert _misfit(given, schema, schema) == ""
    assert _misfit(load_policy_dict(given).to_dict(), schema, schema) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"functions": []},
        {"functions": [{"softmax": "twopass"}]},
        {"calibrate": [{"clip": {"stesp": 2}}]},
        {"qgraph": 2},
        {"ragged": "padd"},
        {"schedule": []},
        {"rules": []},
        {"rules": [{"keep": "low"}]},
        {"rules": [{"match": {"op": "linaer"}, "keep": "high"}]},
        {"rules": [{"fprop": {"grad_output": "fp4"}}]},
        {"transforms": {"t": {"hadamard": 12}}},
        {"formats": {"f": {"element": "e9m9", "block": "row", "scale": "fp32"}}},
        {"formats": {"f": {"element": "e4m3", "block": "rows", "scale": "fp32"}}},
    ],
)
def test_json_schema_refuses_what_the_loader_refuses(change: dict[str, object]) -> None:
    schema = policy_json_schema()
    assert _misfit(load_policy("nvfp4").to_dict() | change, schema, schema)


def test_json_schema_describes_every_key() -> None:
    schema: Any = policy_json_schema()
    objects = [schema, *schema["$defs"].values()]
    keys = {k: v for o in objects for k, v in o.get("properties", {}).items()}
    assert [key for key, value in keys.items() if not value.get("description")] == []
    assert json.loads(json.dumps(schema)) == schema


def test_policies_are_checked_without_torch() -> None:
    code = (
        "import sys, qgraph.policy as p\n"
        "[p.load_policy(name) for name in p.recipe_names()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _misfit(value: Any, schema: Any, root: Any) -> str:
    """What part of `value` does not fit a JSON Schema; empty if all of it does."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]] | {
            k: v for k, v in schema.items() if k != "$ref"
        }
    known = {"$schema", "$defs", "additionalProperties", "anyOf", "const", "default", "description",
             "enum", "examples", "exclusiveMaximum", "items", "maxItems", "maximum", "minItems", "minLength",
             "minimum", "pattern", "prefixItems",
             "properties", "required", "title", "type"}  # fmt: skip
    assert set(schema) <= known, f"this checker does not know {set(schema) - known}"
    types: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "null": type(None),
    }
    types |= {"number": (int, float), "boolean": bool}
    if "anyOf" in schema and all(_misfit(value, part, root) for part in schema["anyOf"]):
        return f"{value!r} fits no alternative"
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(isinstance(value, types[name]) for name in wanted):
        return f"{value!r} is not of type {schema['type']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{value!r} does not match"
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return f"{value!r} is not allowed"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return f"{value!r} has the wrong length"
        parts = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        return next(filter(None, map(_misfit, value, parts, [root] * len(value))), "")
    if isinstance(value, dict):
        known_keys, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        if missing := set(schema.get("required", ())) - set(value):
            return f"{missing} missing"
        if other is False and (extra := set(value) - set(known_keys)):
            return f"{extra} unknown"
        return next(
            filter(None, (_misfit(v, known_keys.get(k, other), root) for k, v in value.items())), ""
        )
    return ""
