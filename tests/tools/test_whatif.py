"""qgraph whatif: one run from the command line, and what it says to input it cannot take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from qgraph.policy import load_policy
from tests.tools.command import run

PNG = b"\x89PNG"


def test_one_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    (tmp_path / "text.txt").write_text("what a product is worth " * 20)
    policy, plot = tmp_path / "mine.yaml", tmp_path / "front.png"
    arguments = (
        "whatif", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--length", "32",
        "--formats", "nvfp4, mxfp8", "--bits", "7", "--write", str(policy), "--plot", str(plot),
    )  # fmt: skip
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert len(found["products"]) == 3 * 8
    assert found["measured"] == 1
    chosen = found["policy"]
    assert chosen["cost"] <= 7
    assert sum(chosen["counts"].values()) == 3 * 8
    assert chosen["gradient_error"] < min(chosen["random"])
    assert load_policy(str(policy)).quantizes
    assert plot.read_bytes()[:4] == PNG
    errors = [error for _, error in found["front"]]
    assert errors == sorted(errors, reverse=True)  # more bits never cost accuracy
    again = run(*arguments)
    assert again.code == 1
    assert "it already exists" in again.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "front.png", "mine.yaml", "model", "text.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--formats", "nvfp"), "did you mean 'nvfp4'?"),
        (("--formats", "nvfp4 hadamard"), "use one of: sr, rht"),
        (("--by", "hessian"), "use one of: gradient, loss, wgrad, fisher, hutchinson"),
        (("--keep", "ten"), "write --keep 10%"),
        (("--keep", "10%", "--bits", "5"), "a second budget beside --bits"),
        (("--bits", "40"), "high counts 16"),
        (("--write", "mine.yaml"), "add --keep 10%, or --bits 6"),
        (("--bits", "6", "--write", "mine.txt"), "does not end in .yaml"),
        (("--bits", "6", "--write", "./no/such/mine.yaml"), "no such folder"),
        (("--plot", "front.svg"), "does not end in .png"),
        (("--data", "./no/such.txt"), "cannot read the text"),
    ],
)
def test_bad_input_is_told_before_any_work(arguments: tuple[str, ...], message: str) -> None:
    result = run("whatif", "preset:tiny-llama", *arguments)
    assert result.code == 1
    assert message in result.err
    assert "\n  fix: " in result.err
    assert "capturing" not in result.err


def test_a_model_that_is_not_there_is_told() -> None:
    result = run("whatif", "./no/such", "--bits", "6")
    assert result.code == 1
    assert "no such directory" in result.err
