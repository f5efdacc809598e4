"""A converted model on disk: written whole or not at all, and never through pickle.

config.json, model.safetensors, ...   as save_pretrained writes them, under the model's own names
policy.yaml                           the resolved policy
graph_before.txt, graph_after.txt     the joint graph
report.json                           every product and what happened to it
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from qgraph.doors.converting import Conversion
from qgraph.doors.jit import compile, coverage
from qgraph.errors import ArtifactError
from qgraph.models import load_model
from qgraph.ops import BUFFER, history_of
from qgraph.passes import report_json
from qgraph.policy import Policy, dump_policy, load_policy

# What of a model's directory does not go with it: its weights, code, and what is written here anew.
_WEIGHTS = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".keras", ".msgpack", ".onnx", ".gguf", ".ggml",
    ".pkl", ".pickle", ".tflite", ".mlmodel", ".pb", ".ot", ".nemo",
}  # fmt: skip
_CODE = {
    ".py", ".pyc", ".pyi", ".ipynb", ".so", ".sh", ".js", ".c", ".cc", ".cpp", ".cu", ".dll", ".exe",
}  # fmt: skip
_OURS = {"policy.yaml", "report.json", "graph_before.txt", "graph_after.txt"}
_INDEX = ".index.json"  # of weights in several files


@contextmanager
def new_directory(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary sibling of `out` to write into; on success it is renamed to `out`.

    Entering fails at once where writing cannot succeed. On any error or interrupt nothing is left.

    Raises: ArtifactError if `out` exists, its parent cannot be written, or the disk is full.
    """
    if not str(out).strip():
        raise ArtifactError("--out is empty", "give the name of a directory to write")
    path = Path(out).expanduser().absolute()
    if path.exists() or path.is_symlink():
        raise ArtifactError(f"{out}: already exists", "choose another --out, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise ArtifactError(
            f"{out}: cannot write here: {reason}", "choose another --out"
        ) from error
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            raise ArtifactError(
                f"{out}: was made by someone else meanwhile", "choose another --out"
            )
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, ArtifactError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ArtifactError(
            f"{out}: writing failed: {reason}", "free some space or choose another --out"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_artifact(model: Any, found: Conversion, folder: Path, source: Path | None = None) -> None:
    """Write `model` and what its conversion found into `folder`; see the module docstring.

    `source`, the directory the model is from, gives the files of its tokenizer or processor: all that
    are neither weights nor code.
    """
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "policy.yaml").write_text(dump_policy(found.policy), encoding="utf-8")
    (folder / "graph_before.txt").write_text(found.graph_before, encoding="utf-8")
    (folder / "graph_after.txt").write_text(found.graph_after, encoding="utf-8")
    report = {"inputs": found.inputs, **report_json(found.report)}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if source is not None:
        for file in _companions(source):
            target = folder / file.relative_to(source)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def _companions(source: Path) -> Iterator[Path]:
    """Yield the files that go with a model, of folders without weights of their own, hidden ones left out."""
    for place, folders, names in os.walk(source):
        files = [Path(place) / name for name in names]
        if Path(place) != source and any(file.suffix.lower() in _WEIGHTS for file in files):
            folders.clear()  # another model, or a checkpoint
            continue
        folders[:] = [folder for folder in folders if not folder.startswith((".", "__"))]
        yield from filter(_goes_along, files)


def _goes_along(file: Path) -> bool:
    plain = not file.name.startswith(".") and file.name not in _OURS and file.is_file()
    kept = file.suffix.lower() not in _WEIGHTS | _CODE
    return plain and kept and not file.name.endswith(_INDEX)


def write_plan(model: nn.Module, policy: Policy, folder: Path) -> None:
    """Write the plan that a compiled `model` ran under beside its weights: policy.yaml and report.json."""
    (folder / "policy.yaml").write_text(dump_policy(policy), encoding="utf-8")
    report = {"inputs": {}, **report_json(coverage(model))}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def load(directory: str | os.PathLike[str]) -> nn.Module:
    """Return the model `qgraph convert` wrote, compiled under its policy and ready to train.

    Raises: ArtifactError if `directory` is not a converted model; PolicyError or ModelError if
        its policy or its model is damaged.
    """
    path = Path(directory).expanduser()
    if not (path / "policy.yaml").is_file():
        raise ArtifactError(
            f"{directory}: not a converted model (no policy.yaml)",
            "give a directory `qgraph convert --out` wrote",
        )
    policy = load_policy(path / "policy.yaml")
    model: nn.Module = compile(load_model(str(path)), policy)
    _restore_history(model, path)
    return model


def _restore_history(model: nn.Module, path: Path) -> None:
    """Give a model the amax histories it was saved with: it has their buffer only once it is compiled."""
    own = history_of(model)
    if own is None:
        return
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            found = {*stored.keys()} & {BUFFER}
            if found and stored.get_slice(BUFFER).get_shape() == [*own.shape]:
                own.copy_(stored.get_tensor(BUFFER))
