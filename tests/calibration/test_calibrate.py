"""Calibration: what a method is asked, what it changes, and that the outputs are nearer for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import qgraph
from qgraph.calibration import write_tensors
from qgraph.errors import ModelError
from qgraph.formats import parse_format
from qgraph.numerics import fake_quant
from qgraph.policy import Policy, load_policy, load_policy_text

HEAD = "qgraph: 1\nname: test\n"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.head(self.down(self.up(x).relu())).square())


def chosen(step: str = "{clip: {steps: 20}}") -> Policy:
    return load_policy_text(
        f"{HEAD}formats: {{int4: {{element: int4, block: row, scale: fp32}}}}\nrules:\n"
        "  - {match: {op: linear, module: head}, keep: high}\n"
        "  - {match: {op: linear}, fprop: {input: int4, weight: int4}}\n"
        f"calibrate: [{step}]\n"
    )


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [{"x": torch.randn(128, 32, generator=generator)} for _ in range(3)]


def test_clipping_brings_outputs_nearer() -> None:
    model = Small()
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = qgraph.calibrate(model, chosen(), batches())
    assert [one.module for one in found] == ["up", "down"]
    assert all(one.after < 0.95 * one.before for one in found)
    # The numbers are those of the outputs themselves.
    x = torch.cat([batch["x"] for batch in batches()])
    fmt = parse_format("int4/row/fp32")
    for weight, expected in (
        (before["up.weight"], found[0].before),
        (model.up.weight, found[0].after),
    ):
        lost = x @ (before["up.weight"] - fake_quant(weight.detach(), fmt, -1)).T
        whole = x @ before["up.weight"].T
        assert (lost.square().sum() / whole.square().sum()).item() == pytest.approx(
            expected, rel=1e-4
        )
    assert torch.equal(model.head.weight, before["head.weight"])
    assert torch.equal(model.up.bias, before["up.bias"])


def test_what_was_found_is_kept_beside_the_model(tmp_path: Path) -> None:
    found = qgraph.calibrate(Small(), chosen(), batches())
    write_tensors(found, tmp_path)
    kept = load_file(tmp_path / "calibration.safetensors")
    assert {*kept} == {"up.clip.ratio", "down.clip.ratio"}
    ratios = torch.cat([*kept.values()])
    assert 0.5 <= ratios.min() < 0.95
    assert ratios.max() <= 1


def test_modules_choose_layers_and_naming_none_is_an_error() -> None:
    found = qgraph.calibrate(Small(), chosen("{clip: {modules: up}}"), batches())
    assert [one.module for one in found] == ["up"]
    with pytest.raises(ModelError, match="quantizes no linear layer that it names"):
        qgraph.calibrate(Small(), chosen("{clip: {modules: head}}"), batches())


def test_a_policy_without_the_key_says_what_to_write() -> None:
    with pytest.raises(ModelError, match=r"calibrate: \[\{clip"):
        qgraph.calibrate(Small(), load_policy("nvfp4"), batches())
