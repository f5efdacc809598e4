"""The policy file's schema: what keys there are, what they take, what they mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from qgraph.policy.keys import CONFIG
from qgraph.policy.keys import key as _key
from qgraph.policy.keys import optional as _optional
from qgraph.policy.memory_schema import OptimizerEntry, ParametersEntry, Stash
from qgraph.policy.model import Ragged
from qgraph.policy.monitor_schema import MonitorEntry
from qgraph.policy.operand_schema import Format, Operand, TransformEntry
from qgraph.policy.timed_values import (
    MomentText,
    RuleNames,
    Steps,
    high_everywhere,
    high_product,
)
from qgraph.policy.values import (
    Count,
    Modules,
    Ops,
    Percent,
    Ranges,
    Roles,
    Version,
)


class FpropEntry(BaseModel):
    """The forward product."""

    model_config = CONFIG
    input: Operand | None = _optional("The layer's input.", "fp4")
    weight: Operand | None = _optional("The weight.", "fp4")
    lhs: Operand | None = _optional("The left operand of an op without a weight.", "fp4")
    rhs: Operand | None = _optional("The right operand of an op without a weight.", "fp4")


class DgradEntry(BaseModel):
    """The product that gives the gradient of the input, or of lhs and rhs."""

    model_config = CONFIG
    grad_output: Operand | None = _optional("The gradient of the output.", "fp4")
    weight: Operand | None = _optional("The weight.", "fp4")
    lhs: Operand | None = _optional("The left operand of an op without a weight.", "fp4")
    rhs: Operand | None = _optional("The right operand of an op without a weight.", "fp4")


class WgradEntry(BaseModel):
    """The product that gives the gradient of the weight."""

    model_config = CONFIG
    input: Operand | None = _optional("The layer's input.", "fp4")
    grad_output: Operand | None = _optional("The gradient of the output.", "fp4")


class MatchEntry(BaseModel):
    """The sites a rule speaks about; no key at all means every site."""

    model_config = CONFIG
    op: Ops | None = _optional("Kinds of product.", "linear")
    group: Modules | None = _optional(
        "Named parts of the model: head, attention, ffn, or a name from `groups`.", "ffn"
    )
    module: Modules | None = _optional(
        "Module paths; * stands for anything, dots too. A path without * also names the last "
        "parts of a longer one: lm_head matches model.lm_head.",
        "lm_head",
    )
    role: Roles | None = _optional("Which of an op's products.", "fprop")
    blocks: Ranges | None = _optional(
        "Blocks of the model, from 0 or, below 0, from the end: 0, -1, 2-5. Of blocks, "
        "first_blocks and last_blocks one must hold.",
        [0, "2-5", -1],
    )
    first_blocks: Count | None = _optional(
        "The first blocks of each stack: how many, or a percent, rounded up.", "15%"
    )
    last_blocks: Count | None = _optional(
        "The last blocks of each stack: how many, or a percent, rounded up.", "15%"
    )


class RuleEntry(BaseModel):
    """What happens to the sites a rule matches: keep them, or quantize operands per product."""

    model_config = CONFIG
    match: MatchEntry = _optional(
        "Which sites; left out, all of them.", {"op": "linear"}, MatchEntry()
    )
    name: Annotated[str, Field(min_length=1)] | None = _optional(
        "What a schedule calls the rule.", "mlp"
    )
    keep: Literal["high"] | None = _optional("Leave the sites in high precision.", "high")
    fprop: FpropEntry | None = _optional("The forward product.", {"input": "fp4"})
    dgrad: DgradEntry | None = _optional("The input's gradient.", {"grad_output": "fp4"})
    wgrad: WgradEntry | None = _optional("The weight's gradient.", {"grad_output": "fp4"})


def _high(entry: Any) -> BeforeValidator:
    return BeforeValidator(high_product, json_schema_input_type=Literal["high"] | entry)


class SetEntry(BaseModel):
    """Products a switch sets: each high, or its operands as in a rule. Others stay as they were."""

    model_config = CONFIG
    fprop: Annotated[FpropEntry, _high(FpropEntry)] | None = _optional("Y.", "high")
    dgrad: Annotated[DgradEntry, _high(DgradEntry)] | None = _optional("dX.", "high")
    wgrad: Annotated[WgradEntry, _high(WgradEntry)] | None = _optional("dW.", "high")


class ScheduleEntry(BaseModel):
    """A switch of rules: from a step on, for some steps, again and again, or when something happens."""

    model_config = CONFIG
    at: MomentText | None = _optional("After how many steps, or which share of the run.", "82%")
    until: MomentText | None = _optional("When the switch ends.", "90%")
    every: MomentText | None = _optional(
        "Again after so many steps, each time as long as for.", 500
    )
    lasts: MomentText | None = Field(
        default=None, alias="for", description="How long the switch lasts.", examples=[100]
    )
    on: Annotated[str, Field(min_length=1)] | None = _optional(
        "plateau (of the loss), or the name of a monitor: when it trips.", "plateau"
    )
    patience: Steps | None = _optional("plateau: in how many steps the loss must fall.", 200)
    improvement: Percent | None = _optional("plateau: by how much, at least.", "0.1%")
    rule: RuleNames | None = _optional(
        "Rules by number or name; left out, all that quantize. A rule that keeps its sites high "
        "is switched only where it is named here.",
        3,
    )
    match: MatchEntry = _optional("Which sites of these rules.", {"op": "linear"}, MatchEntry())
    set: Annotated[
        SetEntry,
        BeforeValidator(high_everywhere, json_schema_input_type=Literal["high"] | SetEntry),
    ] = _key("high, or what products become.", {"fprop": "high"})


class CoverageEntry(BaseModel):
    """What has to be quantized for a run to go on."""

    model_config = CONFIG
    min_flops: Percent = _key("The least share of all product FLOPs that is quantized.", "90%")


class ClaimEntry(BaseModel):
    """What the page says of one part of a model: the words of the report's table, per product."""

    model_config = CONFIG
    fprop: str = _optional("The forward product.", "input e2m1/1x16, weight e2m1/16x16", "high")
    dgrad: str = _optional("The input's gradient.", "grad_output e2m1/1x16 stochastic", "high")
    wgrad: str = _optional("The weight's gradient.", "high", "high")


class PolicyFile(BaseModel):
    """What a training run does with its products: which are quantized, and how."""

    model_config = ConfigDict(**CONFIG, title="qgraph policy")
    qgraph: Version = _key("The version of this schema.", 1)
    name: Annotated[str, Field(min_length=1)] = _key("What reports call the policy.", "nvfp4")
    source: str = _optional("Where the recipe comes from.", "arXiv 2509.25149", "")
    extends: str = _optional(
        "A recipe, or a policy file, to start from: keys given here replace its keys; entries of "
        "formats, transforms, groups and claims do so by name.",
        "nvfp4",
        "",
    )
    page: str = _optional(
        "What the recipe does and does not cover; the first line is its summary.", "4 bits.", ""
    )
    claims: dict[str, ClaimEntry] = _optional(
        "What is quantized, per group, in the report's words; tests hold recipes to it.",
        {"ffn": {"fprop": "input e4m3/tensor, weight e4m3/tensor"}},
        {},
    )
    ragged: Ragged = _optional(
        "A product whose summed axis is no multiple of the block: pad it with zeros, keep it "
        "in high precision, or stop with an error.",
        "pad",
        "pad",
    )
    coverage: CoverageEntry | None = _optional(
        "What has to be quantized; with less, converting and training stop.", {"min_flops": "90%"}
    )
    formats: dict[str, Format] = _optional(
        "Number formats by name: fields, or the text form or name of one (`qgraph formats`).",
        {"fp8": {"element": "e4m3", "block": "tensor", "scale": "fp32"}},
        {},
    )
    transforms: dict[str, TransformEntry] = _optional(
        "Rotations by name.", {"rht": {"hadamard": 16, "signs": "te"}}, {}
    )
    groups: dict[str, Modules] = _optional(
        "Named parts of the model, by module paths as in `module`; ! takes modules out again.",
        {"ffn": ["*.mlp.*"]},
        {},
    )
    keep: list[MatchEntry] = _optional(
        "What stays in high precision: tried before the rules, and numbered with them.",
        [{"group": "head"}, {"last_blocks": "15%"}],
        [],
    )
    rules: Annotated[list[RuleEntry], Field(min_length=1)] = _key(
        "The first rule that matches a site decides.", [{"match": {"op": "linear"}, "keep": "high"}]
    )
    optimizer: OptimizerEntry | None = _optional(
        "How the optimizer keeps its states between steps, by the state's name.",
        {"exp_avg": "int4/row/fp32", "storage": "packed"},
    )
    parameters: ParametersEntry | None = _optional(
        "What parameters are stored in and multiplied in.", {"storage": "bf16", "compute": "fp32"}
    )
    stash: Stash | None = _optional(
        "How what the forward saves for the backward is stored: a format, or rules of which the "
        "first that matches decides.",
        "bfp4",
    )
    schedule: Annotated[list[ScheduleEntry], Field(min_length=1)] = _optional(
        "Switches of rules, in order of time.", [{"at": "82%", "set": {"fprop": "high"}}], []
    )
    monitors: Annotated[list[MonitorEntry], Field(min_length=1)] = _optional(
        "What to watch.", [{"watch": "loss_spike"}], []
    )


def policy_json_schema() -> dict[str, object]:
    """Return the JSON Schema of a policy file, for editors."""
    draft: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = draft | PolicyFile.model_json_schema()
    schema["required"] = [key for key in schema["required"] if key != "rules"]
    schema["anyOf"] = [{"required": ["rules"]}, {"required": ["extends"]}]
    return schema
