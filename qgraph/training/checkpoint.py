"""Checkpoints of HF Trainer that can be trusted: whole, as written, and of this run's policy."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState

from qgraph.doors import PolicyLike, as_policy, compiled_by_us
from qgraph.errors import CheckpointError, QGraphWarning
from qgraph.policy import Policy
from qgraph.training.callback import unwrap
from qgraph.training.manifest import Manifest, check_checkpoint, write_manifest


class CheckpointCallback(TrainerCallback):
    """Write a manifest into each checkpoint, and refuse to resume from a bad one.

    A run resumed from a checkpoint of another policy is refused unless `allow_other_policy`.
    """

    def __init__(self, *, allow_other_policy: bool = False) -> None:
        self._allow = allow_other_policy

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the checkpoint that was resumed from, before the first step."""
        policy = compiled_by_us(unwrap(kwargs["model"])).policy
        if args.save_total_limit == 1:  # Trainer deletes the old one before the new one is whole
            raise CheckpointError(
                "save_total_limit=1 leaves no whole checkpoint while one is being written",
                "save_total_limit=2, or more",
            )
        folder = _folder(args, state)
        if state.global_step and folder.is_dir():
            _check_policy(folder, check_checkpoint(folder), policy, self._allow)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the manifest, once every process has written its part."""
        policy = compiled_by_us(unwrap(kwargs["model"])).policy
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if args.should_save:
            write_manifest(
                _folder(args, state),
                step=state.global_step,
                policy=policy.name,
                fingerprint=policy.fingerprint(),
                processes=args.world_size,
            )


def last_checkpoint(
    folder: str | os.PathLike[str],
    policy: PolicyLike,
    *,
    allow_other_policy: bool = False,
    processes: int | None = None,
) -> str | None:
    """Return the newest good checkpoint in a Trainer's output folder, None if there is none at all.

    Give it to `Trainer.train(resume_from_checkpoint=...)`. A torn or corrupted checkpoint is named in
    a QGraphWarning, and the one before is taken. So is one of another number of `processes`, if that
    is given: it resumes, but not bit for bit.

    Raises: CheckpointError if there are checkpoints and none is good, or if the newest good one is
        of another policy.
    """
    chosen = as_policy(policy)
    bad: list[str] = []
    for _, path in sorted(_checkpoints(Path(folder)), reverse=True):
        try:
            found = check_checkpoint(path)
        except CheckpointError as error:
            bad.append(error.problem)
            continue
        if bad:
            _warn(f"{'; '.join(bad)}: refused; resuming from {path.name}")
        _check_policy(path, found, chosen, allow_other_policy)
        if processes not in (None, found.processes):
            _warn(
                f"{path}: written by {found.processes} processes, resumed by {processes}: data order "
                "and rounding draws are others from here on"
            )
        return str(path)
    if bad:
        raise CheckpointError(
            f"{'; '.join(bad)}: no checkpoint in {folder} is whole", "begin a run anew"
        )
    return None


def checkpoint_step(path: str | os.PathLike[str]) -> int:
    """Return the step of a good checkpoint."""
    return check_checkpoint(Path(path)).step


def load_finished(trainer: Trainer, path: str) -> None:
    """Give a Trainer the weights and the log of a run that ended at checkpoint `path`."""
    model: Any = trainer.model
    for file in sorted(Path(path).glob("*.safetensors")):
        model.load_state_dict(load_file(file), strict=False)  # of tied weights there is one
    trainer.state = TrainerState.load_from_json(str(Path(path) / "trainer_state.json"))


def _check_policy(path: Path, found: Manifest, policy: Policy, allowed: bool) -> None:
    if allowed or found.fingerprint == policy.fingerprint():
        return
    same = " (one of this name that says something else)" if found.policy == policy.name else ""
    raise CheckpointError(
        f"{path}: of policy {found.policy}{same}, this run's is {policy.name}",
        "resume under its own policy, or ask for it: allow_other_policy=True, --allow-other-policy",
    )


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.iterdir())
    return [(int(found[1]), path) for found, path in named if found]


def _warn(text: str) -> None:
    warnings.warn(text, QGraphWarning, stacklevel=3)
