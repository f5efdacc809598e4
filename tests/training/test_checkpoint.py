"""Checkpoints: torn or corrupted ones are named and passed over, those of another policy refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qgraph
from qgraph.errors import CheckpointError, QGraphWarning
from qgraph.policy import Policy, load_policy, load_policy_text
from qgraph.training.manifest import MANIFEST, check_checkpoint, write_manifest
from tests.training.test_trainer import small, trainer

# All that a resume must bring back: amax histories, random bits, redrawn signs.
TEXT = """
qgraph: 1
name: everything
formats:
  late: {element: e4m3, block: tensor, scale: fp32, range: delayed3}
  fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
transforms:
  rht: {hadamard: 16, signs: step}
rules:
  - match: {op: linear}
    fprop: {input: late, weight: late}
    dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: fp4}
    wgrad:
      input: {format: fp4, transform: rht}
      grad_output: {format: fp4, transform: rht, rounding: stochastic}
"""


def everything() -> Policy:
    return load_policy_text(TEXT)


def write(folder: Path, step: int, policy: Policy) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * 100)
    (path / "shards" / "optimizer.pt").write_bytes(b"moments" * 10)
    write_manifest(path, step=step, policy=policy.name, fingerprint=policy.fingerprint())
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "killed before the manifest": (lambda p: (p / MANIFEST).unlink(), "torn: it has no qgraph_man"),
    "a file cut short": (
        lambda p: (p / "model.safetensors").write_bytes(b"weights"),
        "model.safetensors: torn: it has 7 bytes, and had 700",
    ),
    "one bit turned": (
        lambda p: flip(p / "shards" / "optimizer.pt"),
        "shards/optimizer.pt: corrupted: its SHA-256",
    ),
    "a file gone": (
        lambda p: (p / "model.safetensors").unlink(),
        "model.safetensors: cannot be read: No such file",
    ),
    "half a manifest": (
        lambda p: (p / MANIFEST).write_text((p / MANIFEST).read_text()[:40]),
        f"{MANIFEST}: cannot be read",
    ),
    "another JSON file": (lambda p: (p / MANIFEST).write_text("[1]"), "corrupted: it is no manifest"),
    "a manifest of the future": (
        lambda p: (p / MANIFEST).write_text('{"qgraph_checkpoint": 2}'),
        "of version 2, not 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    case: str, tmp_path: Path
) -> None:
    damage, said = DAMAGE[case]
    policy = load_policy("nvfp4")
    good, bad = write(tmp_path, 90, policy), write(tmp_path, 100, policy)
    assert qgraph.last_checkpoint(tmp_path, policy) == str(bad)
    damage(bad)
    with pytest.raises(CheckpointError, match=re.escape(said)) as error:
        check_checkpoint(bad)
    assert str(bad) in error.value.problem
    with pytest.warns(QGraphWarning, match=re.escape(said)) as told:
        assert qgraph.last_checkpoint(tmp_path, policy) == str(good)
    assert "refused; resuming from checkpoint-90" in str(told[0].message)
    damage(good)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        qgraph.last_checkpoint(tmp_path, policy)


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert qgraph.last_checkpoint(tmp_path / "nowhere", "nvfp4") is None
    (tmp_path / "checkpoint-last").mkdir()
    assert qgraph.last_checkpoint(tmp_path, "nvfp4") is None


def test_a_checkpoint_of_another_policy_is_refused_unless_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, 5, load_policy("nvfp4"))
    with pytest.raises(CheckpointError, match="of policy nvfp4, this run's is int8"):
        qgraph.last_checkpoint(tmp_path, "int8")
    assert qgraph.last_checkpoint(tmp_path, "int8", allow_other_policy=True) == str(path)
    with pytest.warns(QGraphWarning, match="written by 1 processes, resumed by 4"):
        assert qgraph.last_checkpoint(tmp_path, "nvfp4", processes=4) == str(path)


def test_trainer_resumes_bit_for_bit_past_a_corrupted_checkpoint(tmp_path: Path) -> None:
    torch._dynamo.reset()
    whole = qgraph.compile(small(), everything(), codegen=False)
    run = trainer(whole, tmp_path, steps=6)
    run.add_callback(qgraph.CheckpointCallback())
    run.train()
    want = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert "qgraph_amax_history" in want
    flip(tmp_path / "checkpoint-6" / "optimizer.pt")

    # Trainer's own way to the last checkpoint: refused before the first step.
    resumed = qgraph.compile(small(), everything(), codegen=False)
    run = trainer(resumed, tmp_path, steps=6)
    run.add_callback(qgraph.CheckpointCallback())
    with pytest.raises(CheckpointError, match=r"checkpoint-6/optimizer\.pt: corrupted"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))

    with pytest.warns(QGraphWarning, match="resuming from checkpoint-4"):
        last = qgraph.last_checkpoint(tmp_path, everything())
    run = trainer(resumed, tmp_path, steps=6)
    run.add_callback(qgraph.CheckpointCallback())
    run.train(resume_from_checkpoint=last)
    found = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert [name for name in want if not torch.equal(want[name], found[name])] == []
    assert json.loads((tmp_path / "checkpoint-6" / MANIFEST).read_text())["step"] == 6
    check_checkpoint(tmp_path / "checkpoint-6")


def test_one_checkpoint_at_a_time_is_too_few(tmp_path: Path) -> None:
    model = qgraph.compile(small(), "int8", codegen=False)
    run = trainer(model, tmp_path, save_total_limit=1)
    run.add_callback(qgraph.CheckpointCallback())
    with pytest.raises(CheckpointError, match="leaves no whole checkpoint while one is being"):
        run.train()
