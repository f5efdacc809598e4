"""qgraph inside HF Trainer: the coverage callback, checkpoints, resuming, mixed precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import qgraph
from qgraph.errors import ModelError
from qgraph.models.load import load_model
from qgraph.policy import load_policy
from qgraph.training.compare import Settings, gap_percent, plot_losses, train_each
from qgraph.training.text import Windows, read_text, tokenize

IDS = torch.randint(0, 256, (64 * 40,), generator=torch.Generator().manual_seed(0))


def small() -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def trainer(model: Any, folder: Path, steps: int = 4, **options: Any) -> hf.Trainer:
    arguments = hf.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=3, save_steps=2,
        use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1, seed=3, **options,
    )  # fmt: skip
    return hf.Trainer(
        model=model,
        args=arguments,
        train_dataset=Windows(IDS, 32),
        callbacks=[qgraph.CoverageCallback(width=80)],
    )


def test_a_run_prints_and_logs_its_coverage_and_saves_plain_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    model = qgraph.compile(small(), "nvfp4", codegen=False)
    trainer(model, tmp_path, gradient_accumulation_steps=2, bf16=True).train()
    printed = capsys.readouterr().out
    assert "policy nvfp4: " in printed
    assert "model.layers.0.self_attn.{q,k,v,o}_proj" in printed
    assert printed.count("products quantized") == 1
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    (logged,) = [entry for entry in state["log_history"] if "qgraph/products" in entry]
    assert logged["qgraph/quantized"] == 21  # seven linears of one block, three products each
    assert 0 < logged["qgraph/flops/e2m1"] < 1
    # A checkpoint is an ordinary model directory.
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    for one, two in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    torch._dynamo.reset()
    whole = qgraph.compile(small(), "nvfp4", codegen=False)
    trainer(whole, tmp_path / "whole").train()
    other = small()
    for parameter in other.parameters():  # so that only what is resumed from can give the same end
        torch.nn.init.zeros_(parameter)
    resumed = qgraph.compile(other, "nvfp4", codegen=False)
    trainer(resumed, tmp_path / "resumed").train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
    )
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_callback_refuses_a_model_qgraph_did_not_compile(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was not compiled by qgraph"):
        trainer(small(), tmp_path).train()


def test_generate_and_save_pretrained_work_after_compile(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = qgraph.compile(small(), "int8", codegen=False).eval()
    prompt = torch.randint(0, 256, (1, 8), generator=torch.Generator().manual_seed(1))
    made = model.generate(prompt, max_new_tokens=4, do_sample=False)
    assert made.shape == (1, 12)
    assert torch.equal(made[:, :8], prompt)
    assert len(qgraph.coverage(model).quantized) > 0
    model.save_pretrained(tmp_path)
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path)
    assert list(again.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_policies_are_compared_on_the_same_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    small().save_pretrained(tmp_path / "model")
    told: list[str] = []
    settings = Settings(steps=20, batch=4, length=32, rate=3e-3, seed=0, codegen=False)
    text = "the quick brown fox jumps over the lazy dog. " * 400
    ids = tokenize(text, str(tmp_path / "model"), 256)
    policies = [load_policy("nvfp4_naive"), load_policy("high"), load_policy("high")]
    runs = train_each(str(tmp_path / "model"), policies, ids, settings, told.append)
    quantized, high, again = runs
    assert high.losses == again.losses  # same seeds, same data: the same run
    assert quantized.losses != high.losses
    assert high.losses[-1][1] < 0.8 * high.losses[0][1]
    assert abs(gap_percent(quantized, high)) < 10
    assert gap_percent(high, again) == 0
    assert "compiling under high" in told
    plot_losses(runs[:2], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_text_is_the_standard_library_or_a_file(tmp_path: Path) -> None:
    text = read_text(None)
    assert len(text) > 3_000_000
    assert "def __init__(self" in text
    assert read_text(None) == text
    (tmp_path / "a.txt").write_text("héllo")
    assert tokenize(read_text(str(tmp_path / "a.txt")), "preset:tiny-llama", 256).tolist() == list(
        "héllo".encode()
    )
    with pytest.raises(ModelError, match="a vocabulary of 100 cannot hold bytes"):
        tokenize("x", "preset:tiny-llama", 100)
    rows = Windows(torch.arange(70), 32)
    assert len(rows) == 2
    assert rows[1]["labels"].tolist() == list(range(32, 64))


def test_a_text_is_its_tokens_and_none_that_a_tokenizer_adds(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token="<s>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = hf.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    assert made("a b")["input_ids"] == [0, 1, 2]
    made.save_pretrained(tmp_path)
    assert tokenize("a b a", str(tmp_path), 3).tolist() == [1, 2, 1]


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: ...\n"
    )
    config = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its tokenizer cannot be loaded: .* custom code"):
        tokenize("a", str(tmp_path), 256)
    assert not (tmp_path / "ran").exists()


def test_a_preset_is_about_a_million_parameters() -> None:
    count = sum(p.numel() for p in load_model("preset:tiny-llama").parameters())
    assert 0.8e6 < count < 1.2e6
