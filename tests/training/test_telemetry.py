"""Telemetry against the same numbers worked out by hand, and that it changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph import numerics, ops
from qgraph.errors import ArtifactError
from qgraph.formats import parse_format
from qgraph.policy import load_policy_text
from qgraph.training.table import summary
from qgraph.training.telemetry import TelemetryFile
from tests.training.models import NVFP4

FP4 = parse_format("e2m1/1x16/e4m3/fp32")
POLICY = (
    NVFP4.replace(", rounding: stochastic", "") + "monitors: [{watch: wgrad_error, every: 1}]\n"
)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        loss: Tensor = (self.up(x) * g).sum()
        return loss


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(48, 64, generator=generator) * torch.logspace(-2, 2, 64)
    x[0] = 0.0
    return x, torch.randn(48, 32, generator=generator).pow(3)


def run_once(folder: Path, telemetry: int) -> tuple[qgraph.Run, Layer]:
    torch._dynamo.reset()
    text = POLICY if telemetry else POLICY.partition("monitors")[0]
    model = qgraph.compile(Layer(), load_policy_text(text), codegen=False)
    run = qgraph.Run(model, steps=3, telemetry=telemetry, folder=folder, say=lambda _: None)
    x, g = inputs()
    x.requires_grad_()
    model(x, g).backward()
    run.step()
    run.close()
    return run, model


def by_hand(x: Tensor, axis: int, *, rotated: bool = False) -> dict[str, float]:
    """What one quantizer does to `x`, in float64 and element by element where it can be."""
    if rotated:
        x = numerics.hadamard(x, numerics.TE_SIGNS, axis, "bf16")
    found = numerics.fake_quant(x, FP4, axis)
    error = (x.double() - found.double()).square().sum()
    rows, values = (t.movedim(axis, -1).reshape(-1, 16) for t in (x, found))
    stored = numerics.quantize(x, FP4, axis)
    scales = (stored[1].float() * stored[2]).reshape(-1)
    # Beyond the code 6: the share above 6 times the block's scale, with room for the rounding of it.
    clipped = (rows.abs() > 6 * scales[:, None] * (1 + 1e-6)).float().mean()
    return {
        "sqnr_db": float(10 * torch.log10(x.double().square().sum() / error)),
        "clipped": float(clipped),
        "flushed": float(((values == 0) & (rows != 0)).float().mean()),
        "scale_min": float(scales.min()),
        "scale_max": float(scales.max()),
        "norm": float(x.double().norm()),
    }


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> tuple[qgraph.Run, Layer, Path]:
    folder = tmp_path_factory.mktemp("telemetry")
    return *run_once(folder, 1), folder


def test_rows_are_what_the_same_tensors_give_offline(
    observed: tuple[qgraph.Run, Layer, Path],
) -> None:
    run, model, folder = observed
    x, g = inputs()
    weight = model.up.weight.detach()
    wanted = {
        ("fprop", "input"): by_hand(x, -1),
        ("fprop", "weight"): by_hand(weight, -1),
        ("dgrad", "grad_output"): by_hand(g, -1),
        ("dgrad", "weight"): by_hand(weight, -2),
        ("wgrad", "grad_output"): by_hand(g, -2, rotated=True),
        ("wgrad", "input"): by_hand(x, -2, rotated=True),
    }
    found = {(row["product"], row["operand"]): row for row in run.rows}
    assert found.keys() == wanted.keys()
    for place, numbers in wanted.items():
        for name, number in numbers.items():
            assert found[place][name] == pytest.approx(number, rel=1e-5), (place, name)
        assert found[place]["module"] == "up"
    assert found["fprop", "input"]["flushed"] > 0
    lines = [
        json.loads(line) for line in (folder / "qgraph-telemetry.jsonl").read_text().splitlines()
    ]
    assert [line for line in lines if "module" in line] == run.rows


def test_the_error_of_wgrad_is_that_of_the_gradient(
    observed: tuple[qgraph.Run, Layer, Path],
) -> None:
    run, model, _ = observed
    x, g = inputs()
    exact = g.double().T @ x.double()
    assert model.up.weight.grad is not None
    wanted = float((model.up.weight.grad.double() - exact).norm() / exact.norm())
    (row,) = [r for r in run.rows if r["product"] == "wgrad" and r["operand"] == "input"]
    assert row["wgrad_error"] == pytest.approx(wanted, rel=1e-4)


def test_a_run_with_telemetry_is_the_run_without(
    observed: tuple[qgraph.Run, Layer, Path], tmp_path: Path
) -> None:
    _, model, _ = observed
    without, plain = run_once(tmp_path, 0)
    assert model.up.weight.grad is not None
    assert plain.up.weight.grad is not None
    assert torch.equal(model.up.weight.grad, plain.up.weight.grad)
    assert qgraph.coverage(model).observed == 6
    assert qgraph.coverage(plain).observed == 0  # nothing is in the graph
    assert without.rows == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_due_is_not_looked_at() -> None:
    number, recorder = ops.make_recorder()
    for due in (recorder.due, True):
        recorder.due = due
        x = torch.ones(2, 16)
        ops.observed_quant(x, "", "", "int8/row/fp32", -1, None, 0, None, None, number, "here")
        assert [*recorder.records] == ["here"][:due]
    assert recorder.records["here"].count == 32
    recorder.clear()
    assert recorder.records == {}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "step": 4, "module": "model.layers.0.mlp.up_proj", "product": "fprop", "operand": "input",
        "sqnr_db": 20.0, "clipped": 0.5, "flushed": 0.0, **changes,
    }  # fmt: skip


def test_the_table_shows_the_worst_site_of_each_operand() -> None:
    worse = row(module="model.layers.3.mlp.up_proj", sqnr_db=10.0)
    rows = [row(), worse, row(operand="weight", sqnr_db=None)]
    table = summary(4, 10, rows)
    cells = [list(column.cells) for column in table.columns]
    assert cells[3] == ["15.0", "exact"]
    assert cells[4] == ["10.0", "-"]
    assert cells[5] == ["3.mlp.up_proj", ""]
    assert cells[6] == ["50.00%", "50.00%"]


def test_a_resumed_file_goes_on_where_the_run_does(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    first = TelemetryFile(path, {"policy": "p"}, 0)
    first.write([{"step": step} for step in (2, 4, 6)])
    first.close()
    path.write_text(path.read_text() + '{"step": 8')  # killed while it wrote
    again = TelemetryFile(path, {"policy": "p"}, 4)
    again.write([{"step": 6, "again": True}])
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"run": {"policy": "p"}}, {"step": 2}, {"step": 4}, {"step": 6, "again": True}]
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write telemetry here"):
        TelemetryFile(tmp_path / "file" / "t.jsonl", {}, 0)


def test_an_exact_quantizer_has_no_sqnr() -> None:
    from qgraph.ops.observe import Record

    assert math.isinf(Record(format="x", count=1, squares=1.0).sqnr_db)
    assert Record(format="x", squares=100.0, errors=1.0).sqnr_db == 20
