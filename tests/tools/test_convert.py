"""qgraph convert: what it prints and writes, and that loading it back trains the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qgraph
from qgraph.models.load import load_model
from qgraph.policy import load_policy
from tests.tools.command import Result, run

FILES = {
    "config.json", "generation_config.json", "graph_after.txt", "graph_before.txt",
    "model.safetensors", "policy.yaml", "report.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("work") / "deep" / "model"
    return out, run("convert", "preset:tiny-llama", "--out", str(out), "--length", "32")


def test_an_artifact_is_complete_and_loads_back(converted: tuple[Path, Result]) -> None:
    out, result = converted
    assert result.code == 0
    assert {file.name for file in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["model"]  # no temporary left
    # The model's own names and numbers.
    saved, made = load_file(out / "model.safetensors"), load_model("preset:tiny-llama")
    assert set(saved) == set(made.state_dict())
    assert all(torch.equal(saved[name], value) for name, value in made.state_dict().items())
    # Loaded, it is a model of the same class that trains under the policy.
    torch._dynamo.reset()
    loaded = qgraph.load(out)
    assert type(loaded) is type(made)
    assert qgraph.coverage(loaded).policy.fingerprint() == load_policy("nvfp4").fingerprint()
    loaded.compile(backend="eager")  # the graph is tested elsewhere; this is about the artifact
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    loss = loaded(input_ids=ids, labels=ids).loss
    loss.backward()
    assert torch.equal(loss, made(input_ids=ids, labels=ids).loss)


def test_the_table_accounts_for_every_product(converted: tuple[Path, Result]) -> None:
    out, result = converted
    report = json.loads((out / "report.json").read_text())
    assert len(report["products"]) == 95
    assert "63 of 95 products quantized" in result.out
    assert "model.layers.{0-2}.self_attn.{q,k,v,o}_proj" in result.out
    assert "kept: rule 2 (op linear or conv or experts, last_blocks 15%)" in result.out
    assert "not quantized: fused attention: a rule on qk or pv would take it apart" in result.out
    assert max(map(len, result.out.splitlines()[:-1])) <= 80
    counts = [
        int(word[1:])
        for line in result.out.splitlines()
        for word in line.split()
        if word[:1] == "x" and word[1:].isdigit()
    ]
    assert sum(counts) == 95
    assert report["totals"]["formats"]["e2m1"] == pytest.approx(
        sum(p["flops"] for p in report["products"] if p["status"] == "quantized")
        / sum(p["flops"] for p in report["products"])
    )


def test_the_resolved_policy_is_the_policy(converted: tuple[Path, Result]) -> None:
    out, _ = converted
    assert load_policy(out / "policy.yaml").fingerprint() == load_policy("nvfp4").fingerprint()


def test_the_graph_text_shows_the_rewrite(converted: tuple[Path, Result]) -> None:
    out, _ = converted
    before, after = ((out / f"graph_{name}.txt").read_text() for name in ("before", "after"))
    assert "qgraph." not in before
    for op in ("qgraph.seed(", "qgraph.hadamard(", "qgraph.fake_quant("):
        assert op in after


def test_json_is_the_report_and_nothing_else() -> None:
    result = run(
        "convert",
        "preset:tiny-llama",
        "--policy",
        "int8",
        "--json",
        "--length",
        "16",
    )
    report = json.loads(result.out)
    assert set(report) == {
        "inputs", "policy", "fingerprint", "lowering", "graphs", "totals", "not_captured", "lookups",
        "functions", "elsewhere", "unaudited", "unused_rules", "products", "saved", "saved_bytes",
    }  # fmt: skip
    assert report["inputs"] == {"input_ids": [2, 16], "labels": [2, 16]}


def test_check_reads_a_policy_without_torch() -> None:
    plain = run("check", "nvfp4")
    assert plain.code == 0
    assert "wgrad: input e2m1/1x16/e4m3/fp32 (rht)" in plain.out
    found = json.loads(run("check", "nvfp4", "--json").out)
    assert found["fingerprint"] == load_policy("nvfp4").fingerprint()
    assert found["stochastic"] is True


def test_a_model_in_the_hub_cache_is_found_by_its_id(tmp_path: Path) -> None:
    made = load_model("preset:tiny-llama")
    place = tmp_path / "hub" / "models--someone--tiny"
    made.save_pretrained(place / "snapshots" / "0123abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc")
    # The cache's place is read when the hub library is imported: a process of its own.
    code = "from qgraph.models.load import load_model; print(type(load_model('someone/tiny')).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")},
    )  # fmt: skip
    assert done.stdout.strip() == "LlamaForCausalLM", done.stderr
