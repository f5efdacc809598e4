"""What travels with a converted model, and plans that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

import qgraph
from qgraph.errors import ModelError
from qgraph.models.load import load_model
from tests.models.directories import good, weights
from tests.tools.command import run

MODEL = "preset:tiny-llama,layers=1"
TRAVEL = {
    "tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "source.spm", "target.spm",
    "vocab.json", "merges.txt", "bpe.codes", "cl100k_base.tiktoken", "chat_template.jinja",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "generation_config.json", "modules.json", "1_Pooling/config.json", "README.md",
}  # fmt: skip
STAY = {
    "pytorch_model.bin", "model-00001-of-00002.safetensors", "pytorch_model.bin.index.json",
    "flax_model.msgpack", "tf_model.h5", "model.onnx", "model.gguf", "modeling_mine.py", "vocab.pkl",
    ".git/config", "checkpoint-5/optimizer.pt", "checkpoint-5/trainer_state.json",
    ".cache/huggingface/x.lock",
}  # fmt: skip


def test_all_that_is_neither_weights_nor_code_travels(tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "model" / "converted"
    torch.manual_seed(0)
    # A class whose name says nothing of labels, without which it does not run.
    MarianMTModel(
        MarianConfig(
            vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0,
            decoder_start_token_id=0, eos_token_id=1, forced_eos_token_id=1,
        )
    ).save_pretrained(source)  # fmt: skip
    for name in TRAVEL | STAY:
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        if not (source / name).exists():
            (source / name).write_text(f'{{"of": "{name}"}}')
    result = run("convert", str(source), "--policy", "mxfp8", "--out", str(out), "--length", "16")
    assert result.code == 0, result.err
    found = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    own = {"config.json", "model.safetensors"}
    assert found == TRAVEL | own | {f"graph_{n}.txt" for n in ("before", "after")} | {
        "policy.yaml", "report.json",
    }  # fmt: skip
    assert (out / "source.spm").read_text() == (source / "source.spm").read_text()
    # A weight that is lost later is no weight that is made up.
    lost = "model.encoder.layers.0.fc1.weight"
    weights(lambda held: held.pop(lost))(out)
    with pytest.raises(ModelError, match=f"lack {lost}"):
        qgraph.load(out)


def _products(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        found = json.loads(text)
        change(found["products"])
        return json.dumps(found)

    return changed


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "nested deeply": (lambda text: "[" * 200_000, "nested too deeply"),
    "nested deeply inside": (
        lambda text: text.replace('"inputs": {', f'"deep": {"[" * 50_000}{"]" * 50_000}, "inputs": {{', 1),
        "nested too deeply",
    ),
    "cut off": (lambda text: text[: len(text) // 2], "line"),
    "a list": (lambda text: "[1]", "not a mapping"),
    "a huge number": (lambda text: text.replace('"flops": ', '"flops": 1' + "0" * 5000, 1), "digits"),
    "an infinite number": (lambda text: text.replace('"graphs": 1', '"graphs": Infinity'), "infinity"),
    "a word for a number": (_products(lambda p: p[0].update(flops="many")), "products.0.flops"),
    "a shape of words": (_products(lambda p: p[1].update(shape=["a"] * 4)), "products.1.shape.0"),
    "an operand that is none": (_products(lambda p: p[1].update(operands=[3])), "products.1.operands.0"),
    "a product that is none": (_products(lambda p: p.append(3)), "products."),  # type: ignore[arg-type]
    "no products": (lambda text: text.replace('"products"', '"product"'), "products"),
}  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("work") / "model"
    assert run("convert", MODEL, "--out", str(out), "--length", "16").code == 0
    return out


@pytest.mark.parametrize("case", DAMAGE)
def test_a_plan_that_cannot_be_read_is_told(case: str, converted: Path) -> None:
    change, says = DAMAGE[case]
    file = converted / "report.json"
    text = file.read_text()
    try:
        file.write_text(change(text))
        assert file.read_text() != text
        page, plan = str(converted.parent / "page.html"), str(converted)
        for command in (("inspect", plan), ("report", plan, "--out", page), ("diff", plan, plan)):
            result = run(*command)
            assert result.code == 1, command
            assert result.err.count("error: ") == 1
            assert "report.json: cannot be read: " in result.err
            assert says in result.err
            assert "\n  fix: convert the model again" in result.err
    finally:
        file.write_text(text)


def test_a_plan_of_gigabytes_is_not_read(converted: Path) -> None:
    file = converted / "report.json"
    text = file.read_text()
    try:
        with file.open("r+b") as stream:
            stream.truncate(8 << 30)  # a hole: no room on disk
        result = run("inspect", str(converted))
        assert result.code == 1
        assert "8589934592 bytes, which is more than" in result.err
    finally:
        file.write_text(text)


def test_a_cached_model_keeps_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from qgraph.models.load import folder_of

    place = tmp_path / "hub" / "models--someone--tiny"
    good(place / "snapshots" / "0123abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert folder_of("someone/tiny") == place / "snapshots" / "0123abc"
    assert load_model("someone/tiny").config.vocab_size == 64
