"""Text to train on: any file, or the sources of Python's own standard library, present on every machine."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from qgraph.errors import ModelError, QGraphError

STDLIB_BYTES = 4_000_000


def read_text(path: str | None) -> str:
    """Return the text of the file `path`, or the first 4 MB of the standard library's sources.

    Raises: QGraphError if the file cannot be read or is empty.
    """
    if path is None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        parts: list[str] = []
        size = 0
        for file in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
            if "test" in file.parts[-2] or "site-packages" in file.parts:
                continue
            parts.append(file.read_text(encoding="utf-8", errors="ignore"))
            size += len(parts[-1])
            if size > STDLIB_BYTES:
                break
        return "".join(parts)
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise QGraphError(
            f"{path}: cannot read the text: {error.strerror}", "give --text a file"
        ) from error
    if not text.strip():
        raise QGraphError(f"{path}: is empty", "give --text a file with text in it")
    return text


def tokenize(text: str, source: str, vocabulary: int) -> Tensor:
    """Return token ids: by the tokenizer beside the model if there is one, else bytes.

    Shapes: -> [tokens].
    Dtypes: int64.
    Raises: ModelError if the tokenizer cannot be loaded, or has code of its own, or if there is none and
        the vocabulary is too small for bytes.
    """
    if Path(source).is_dir() and list(Path(source).glob("tokenizer*")):
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            problem = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{source}: its tokenizer cannot be loaded: {problem}",
                "put files beside the model that need no code of their own, such as tokenizer.json",
            ) from error
        return torch.tensor(
            tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64
        )
    if vocabulary < 256:
        raise ModelError(
            f"{source}: no tokenizer here, and a vocabulary of {vocabulary} cannot hold bytes",
            "put the tokenizer's files beside the model",
        )
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


class Windows(Dataset[dict[str, Tensor]]):
    """Token ids cut into windows of `length`, each its own label.

    Raises: QGraphError if there is not one whole window.
    """

    def __init__(self, ids: Tensor, length: int) -> None:
        count = len(ids) // length
        if count == 0:
            raise QGraphError(
                f"the text has {len(ids)} tokens, not one window of {length}", "give a longer text"
            )
        self._rows = ids[: count * length].view(count, length)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._rows[index], "labels": self._rows[index]}
