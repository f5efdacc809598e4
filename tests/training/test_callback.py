"""One argument to Trainer: the callback compiles, switches, watches, writes down, and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import qgraph
from qgraph.errors import ModelError, PolicyError
from qgraph.policy import load_policy_text
from qgraph.training.text import Windows
from tests.training.models import NVFP4, llama

ROWS = torch.randint(0, 64, (32 * 24,), generator=torch.Generator().manual_seed(0))
LATE = f"""{NVFP4}
schedule:
  - {{at: 75%, set: {{fprop: high}}}}
  - {{on: sharp, for: 1, set: {{wgrad: high}}}}
monitors:
  - {{watch: logit_sharpness, name: sharp, above: 0.0001, every: 2}}
"""


def trainer(model: Any, folder: Path, callback: hf.TrainerCallback, **options: Any) -> hf.Trainer:
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "seed": 3, "save_steps": 2,
    }  # fmt: skip
    return hf.Trainer(
        model=model,
        args=hf.TrainingArguments(**arguments | options),
        train_dataset=Windows(ROWS, 32),
        eval_dataset=Windows(ROWS[:128], 32),
        callbacks=[callback],
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, hf.Trainer]:
    """A run with everything on."""
    torch._dynamo.reset()
    folder = tmp_path_factory.mktemp("whole")
    policy = load_policy_text(LATE, file="p.yaml")
    callback = qgraph.QGraphCallback(policy, telemetry=2, table=True, codegen=False)
    made = trainer(
        llama(), folder, callback, torch_compile=True, gradient_checkpointing=True, bf16=True,
        gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=2, report_to="tensorboard",
    )  # fmt: skip
    made.train()
    return folder, made.model, made


def test_it_quantizes_whatever_the_trainer_does(whole: tuple[Path, Any, hf.Trainer]) -> None:
    folder, model, _ = whole
    report = qgraph.coverage(model)
    assert {entry.role for entry in report.quantized} == {"dgrad", "wgrad"}
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    events = [entry["qgraph/event"] for entry in state if "qgraph/event" in entry]
    assert [text for text in events if "schedule[0] (at 75%: set fprop high) is on" in text]
    assert [text for text in events if text.startswith("step 2: sharp: logit sharpness is 0.")]
    assert sum("eval_loss" in entry for entry in state) == 2
    (coverage,) = [entry for entry in state if "qgraph/products" in entry]
    assert coverage["qgraph/quantized"] == 21


def test_its_checkpoints_are_plain_ones(whole: tuple[Path, Any, hf.Trainer]) -> None:
    folder, model, _ = whole
    again = hf.LlamaForCausalLM.from_pretrained(folder / "checkpoint-4")
    assert list(again.state_dict()) == list(llama().state_dict())
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    assert type(model) is hf.LlamaForCausalLM


def test_telemetry_goes_to_a_file_and_to_what_report_to_names(
    whole: tuple[Path, Any, hf.Trainer],
) -> None:
    folder, _, _ = whole
    head, *lines = map(json.loads, (folder / "qgraph-telemetry.jsonl").read_text().splitlines())
    assert head["run"]["policy"] == "mine"
    rows = [line for line in lines if "module" in line]
    assert {row["step"] for row in rows} == {2, 4}
    # 7 layers: 6 operands each before the switches; after them fprop is high, wgrad again not.
    assert [sum(row["step"] == step for row in rows) for step in (2, 4)] == [42, 28]
    (runs,) = (folder / "runs").iterdir()  # the Trainer's own folder, not one more
    log = EventAccumulator(str(runs), size_guidance={"scalars": 0}).Reload()
    name = "model.layers.0.mlp.up_proj"
    (event, later) = log.Scalars(f"train/qgraph/sqnr_db/dgrad.grad_output/{name}")
    wanted = [
        row["sqnr_db"] for row in rows
        if (row["module"], row["product"], row["operand"]) == (name, "dgrad", "grad_output")
    ]  # fmt: skip
    assert (event.step, later.step) == (2, 4)
    assert [event.value, later.value] == pytest.approx(wanted)


def test_a_resumed_run_keeps_what_tripped(
    whole: tuple[Path, Any, hf.Trainer], tmp_path: Path
) -> None:
    folder, model, _ = whole
    torch._dynamo.reset()
    callback = qgraph.QGraphCallback(load_policy_text(LATE), codegen=False)
    made = trainer(
        llama(seed=9), tmp_path, callback, torch_compile=True, gradient_checkpointing=True, bf16=True,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    made.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    # The sharpness of step 2 switched wgrad for step 3 alone.
    assert callback.run.state()["schedule"]["tripped"]["2"] == 4
    events = [str(e["qgraph/event"]) for e in made.state.log_history if "qgraph/event" in e]
    assert [text for text in events if "after 3 of 4 steps" in text and "schedule[1]" in text]
    resumed: Any = made.model
    assert all(map(torch.equal, resumed.parameters(), model.parameters()))


def test_what_does_not_fit_is_told_before_the_first_step(tmp_path: Path) -> None:
    late = load_policy_text(f"{NVFP4}schedule: [{{at: 4, set: high}}]\n", file="p.yaml")
    with pytest.raises(PolicyError, match=r"p.yaml:14:17: .*the run has 4 steps"):
        trainer(llama(), tmp_path, qgraph.QGraphCallback(late)).train()
    spikes = load_policy_text(f"{NVFP4}monitors: [{{watch: loss_spike}}]\n", file="p.yaml")
    with pytest.raises(PolicyError, match="the model sees no labels and gives no loss"):
        trainer(
            llama(), tmp_path, qgraph.QGraphCallback(spikes), label_smoothing_factor=0.1
        ).train()
    flat = load_policy_text(f"{NVFP4}schedule: [{{on: plateau, set: high}}]\n", file="p.yaml")
    with pytest.raises(PolicyError, match=r"schedule\[0\].on: with label_smoothing_factor"):
        trainer(llama(), tmp_path, qgraph.QGraphCallback(flat), label_smoothing_factor=0.1).train()
    with pytest.raises(ModelError, match="the model is compiled under int8"):
        trainer(qgraph.compile(llama(), "int8"), tmp_path, qgraph.QGraphCallback("nvfp4"))
    with pytest.raises(ModelError, match="was not compiled by qgraph"):
        trainer(llama(), tmp_path, qgraph.QGraphCallback())
    made = trainer(llama(), tmp_path, hf.TrainerCallback(), torch_compile=True)
    made.add_callback(qgraph.QGraphCallback("nvfp4"))
    with pytest.raises(ModelError, match="compiled the model before qgraph could"):
        made.train()
