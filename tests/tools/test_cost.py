"""qgraph cost: what it prints, and what it says to input it cannot take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from qgraph.tools.show.amounts import bytes_text
from tests.tools.command import run


def test_the_text_says_what_the_json_says(tmp_path: Path) -> None:
    # A config is all that is read: there are no weights beside it.
    transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    arguments = ("cost", str(tmp_path), "--length", "64", "--policy", "mxfp8", "--device", "h100")
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    text = run(*arguments).out
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    assert f"speed-up of a step {found['speedup']:.2f}" in text
    assert bytes_text(sum(found["memory"]["policy"].values())) in text
    # Nothing is hidden: every product is in a line, their FLOPs in full, each reason named.
    assert sum(line["count"] for line in found["lines"]) == 7 * 3 + 2 + 3
    assert sum(line["flops"] for line in found["lines"]) == pytest.approx(found["flops"])
    words = " ".join(text.split())
    for line in found["lines"]:
        assert line["reason"] in words
    assert "no native mxfp8 product with 1x32 scales on a GPU of capability 9.0" in words
    # What the H100's unit could multiply, and qgraph does not.
    assert {line["unit"] for line in found["lines"] if line["formats"] == "e4m3"} == {"fp8"}
    assert "as fp8, sums scaled by the kernel" in words
    assert f"of a step would be {found['unit']['speedup']:.2f}" in words
    assert found["unit"]["products_speedup"] >= found["products_speedup"] == 1
    assert "assumed: all 1 blocks captured" in text
    assert "NVIDIA H100 Tensor Core GPU Architecture whitepaper" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("preset:tiny-llama", "--device", "b20"), "did you mean 'b200'? devices: a100"),
        (("preset:tiny-llama", "--policy", "nvfp"), "did you mean 'nvfp4'?"),
        (("preset:tiny-llama", "--speeds", "fp4"), "'fp4' is not a kind and its speed"),
        (("./no/such",), "no such directory"),
        (("preset:tiny",), "no such preset"),
    ],
)
def test_bad_input_is_told(arguments: tuple[str, ...], message: str) -> None:
    result = run("cost", *arguments)
    assert result.code == 1
    assert message in result.err
    assert "\n  fix: " in result.err
    assert "Traceback" not in result.err
