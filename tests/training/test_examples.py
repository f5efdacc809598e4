"""The examples run, quantize, and switch as their policy says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from qgraph.training import example_accelerate, example_loop
from tests.training.models import llama

SWITCH = "policy mxfp8-late, after 4 of 5 steps: schedule[0] (at 80%: set fprop high) is on"


@pytest.fixture
def source(tmp_path: Path) -> str:
    model = llama()
    model.resize_token_embeddings(256)
    model.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_plain_loop(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    losses = example_loop.train_in_a_loop(5, source, codegen=False)
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    said = capsys.readouterr().err
    assert SWITCH in said
    assert "14 of 30 products quantized now: 0 fprop, 7 dgrad, 7 wgrad" in said


def test_accelerate_with_accumulation_and_bf16(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    AcceleratorState._reset_state(reset_partial_state=True)  # a Trainer before it left its own
    losses = example_accelerate.train_with_accelerate(5, source, codegen=False)
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert SWITCH in capsys.readouterr().out
