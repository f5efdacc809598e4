"""The looking commands on a bad path, a wrong kind of file, an unknown name, an interrupt."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from qgraph.policy import dump_policy, load_policy
from qgraph.tools.main import main
from tests.tools.command import run

PRODUCT = {
    "module": "model.layers.0.mlp.up_proj", "block": 0, "block_count": 1, "op": "linear", "role": "fprop",
    "operand_kinds": ["input", "weight"], "shape": [1, 8, 16, 16], "flops": 4096, "dtype": "fp32",
    "status": "quantized", "rule": "rule 2 (op linear): quantize fprop", "reason": "", "notes": [],
    "lowering": "", "node": "mm",
    "operands": [
        {"kind": kind, "format": "int8/row/fp32", "rounding": "nearest", "transform": "", "gradient": ""}
        for kind in ("input", "weight")
    ],
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan of one product, written by hand; it is the working directory."""
    policy = load_policy("int8")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "policy.yaml").write_text(dump_policy(policy))
    report = {
        "inputs": {}, "policy": "int8", "fingerprint": policy.fingerprint(), "lowering": "", "graphs": 1,
        "totals": {}, "not_captured": [], "lookups": [], "unused_rules": [], "products": [PRODUCT],
    }  # fmt: skip
    (tmp_path / "dir" / "report.json").write_text(json.dumps(report))
    (tmp_path / "dir" / "graph_after.txt").write_text(
        "mm: f32[8, 16] = aten.mm(a, b)  # forward  model\n"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "losses.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# A command, and what its error says.
WRONG = {
    "inspect, no such path": (("inspect", "./nowhere"), "no such directory"),
    "inspect, a file": (("inspect", "dir/policy.yaml"), "is a file"),
    "inspect, an empty folder": (("inspect", "empty"), "no config.json in this directory"),
    "inspect, a run": (("inspect", "run"), "is a training run"),
    "inspect, an unknown module": (("inspect", "dir", "--module", "down"), "model.layers.0.mlp.up_proj"),
    "inspect, an unknown layer": (("inspect", "dir", "--layer", "model.layer.0"), "mean 'model.layers.0'"),
    "inspect, an unknown product": (("inspect", "dir", "--product", "bprop"), "fprop, dgrad, wgrad"),
    "inspect, an unknown format": (("inspect", "dir", "--format", "e2m1"), "use one of: high, int8"),
    "explain, an unknown site": (
        ("explain", "dir", "--site", "model.layers.0.mlp.up_prj:fprop"), "up_proj:fprop'"),
    "explain, an unknown role": (
        ("explain", "dir", "--site", "model.layers.0.mlp.up_proj:wgrad"), "has no product 'wgrad'"),
    "explain, an unknown policy": (
        ("explain", "dir", "--site", "a", "--policy", "nvfp5"), "did you mean 'nvfp4'?"),
    "explain, no place for the picture": (
        ("explain", "dir", "--site", "a", "--svg", "no/x.svg"), "there is no directory"),
    "explain, another kind of picture": (
        ("explain", "dir", "--site", "a", "--svg", "x.png"), "ends in .svg"),
    "diff, one policy": (("diff", "nvfp4"), "nothing to compare it with"),
    "diff, two kinds": (("diff", "dir", "nvfp4"), "compare like with like: dir/policy.yaml"),
    "diff, a folder": (("diff", "empty", "nvfp4"), "not a converted model"),
    "diff, no graphs": (("diff", "dir"), "holds no graphs"),
    "diff, a site without a model": (("diff", "nvfp4", "fp8", "--site", "a"), "add --model"),
    "check, nothing": (("check",), "no policy is given"),
    "check, a folder": (("check", "./empty"), "write the YAML file in it"),
    "check, tokens without a size": (("check", "nvfp4", "--tokens", "1T"), "add --params 7B"),
    "check, no number": (("check", "nvfp4", "--tokens", "many", "--params", "7B"), "is not a number"),
    "report, no such path": (("report", "./nowhere"), "no such directory"),
    "report, a damaged run": (("report", "run"), "losses.json: cannot be read"),
    "report, no telemetry": (
        ("report", "dir", "--telemetry", "dir/policy.yaml"), "is no telemetry"),
    "report, missing telemetry": (("report", "dir", "--telemetry", "nowhere"), "cannot be read: No such"),
    "report, another kind of file": (("report", "dir", "--out", "x.pdf"), "ends in .html"),
    "report, a folder": (("report", "dir", "--dot", "dir"), "ends in .dot"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_it_is_told_in_one_message_and_nothing_is_written(case: str, place: Path) -> None:
    arguments, message = WRONG[case]
    before = sorted(path.name for path in place.rglob("*"))
    result = run(*arguments)
    assert result.code == 1
    assert message in result.err, result.err
    assert "\n  fix: " in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert sorted(path.name for path in place.rglob("*")) == before


DAMAGE = {
    "no JSON": lambda text: text[:50],
    "a key missing": lambda text: text.replace('"lookups"', '"look"'),
    "another list": lambda text: text.replace('"rounding"', '"roundin"'),
    "another policy's": lambda text: text.replace('"fingerprint": "', '"fingerprint": "0'),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_plan_is_told(case: str, place: Path) -> None:
    file = place / "dir" / "report.json"
    file.write_text(DAMAGE[case](file.read_text()))
    result = run("inspect", "dir")
    assert result.code == 1
    assert "error: dir/" in result.err
    assert "convert the model again" in result.err


class Impatient(io.StringIO):
    """A screen whose reader presses Ctrl-C when work has begun."""

    def write(self, text: str) -> int:
        if "capturing" in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_an_interrupt_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Impatient()
    arguments = ["report", "preset:tiny-llama", "--out", str(tmp_path / "x.html")]
    monkeypatch.setattr(sys, "argv", ["qgraph", *arguments])
    with redirect_stderr(screen), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert "interrupted: nothing was left behind" in screen.getvalue()
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_an_interrupted_report_leaves_nothing(tmp_path: Path) -> None:
    code = "from qgraph.tools.main import main; main()"
    arguments = ["report", "preset:tiny-llama", "--out", str(tmp_path / "x.html")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "COLUMNS": "80"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "capturing" in line:
                break
        time.sleep(0.1)  # in the middle of it: a report takes seconds
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "interrupted: nothing was left behind" in rest
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir())
