"""Finding and loading Hugging Face models, without the network, remote code or pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from qgraph.errors import ModelError

# Config-only models. tiny-llama reads bytes: about 0.9 million parameters.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny-llama": {
        "vocab_size": 256, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
        "bos_token_id": None, "eos_token_id": None,
    },
    "bench-llama": {
        "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512,
    },
    "wide-llama": {
        "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
        "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 512,
    },
}  # fmt: skip
# Known by their shapes only, for `qgraph cost`: their weights would not fit most machines.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    },
    "llama3-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
    "llama3-70b": {
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
    "llama3-405b": {
        "vocab_size": 128256, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
}  # fmt: skip


def load_model(name: str, seed: int = 0) -> Any:
    """Return a Hugging Face model in training mode, from a directory, the local hub cache, or a preset.

    A preset (`preset:tiny-llama`, or `preset:tiny-llama,layers=8,hidden=256`: heads stay as wide, the
    feed-forward in proportion) has random weights drawn from `seed`. Weights are read from safetensors
    only; code that comes with a model is never run.

    Raises: ModelError saying what is missing and what to give instead.
    """
    config = load_config(name)
    if name.split(",")[0].removeprefix("preset:") in SHAPES and name.startswith("preset:"):
        raise ModelError(
            f"{name}: has no weights, only shapes", f"use it with qgraph cost, or {_choices()}"
        )
    if name.startswith("preset:"):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).train()
    kind = model_class(name, config)
    try:
        model = kind.from_pretrained(
            _source(name),
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto",
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name}: {_first_line(error)}", _choices()) from error
    return model.train()


def load_config(name: str) -> Any:
    """Return the config of a model named as for `load_model`.

    Raises: ModelError saying what is missing and what to give instead.
    """
    if name.startswith("preset:"):
        return _preset(name.removeprefix("preset:"))
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"{name}: no config.json in this directory", "give a directory save_pretrained wrote"
        )
    if path.is_file():
        raise ModelError(f"{name}: is a file", "give the directory it is in")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"{name}: no such directory", _choices())
    try:
        return transformers.AutoConfig.from_pretrained(
            _source(name), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        missing = "neither a directory here nor in the local hub cache"
        reason = _first_line(error) if Path(name).is_dir() else missing
        raise ModelError(f"{name}: {reason}", _choices()) from error


def _source(name: str) -> str:
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def _preset(text: str) -> Any:
    """Return the config of `NAME` or of `NAME,layers=8,hidden=256`."""
    name, *changes = text.split(",")
    shapes = {**PRESETS, **SHAPES}
    if name not in shapes:
        raise ModelError(
            f"preset:{name}: no such preset",
            f"use one of: {', '.join('preset:' + p for p in PRESETS)}",
        )
    shape = dict(shapes[name])
    for change in changes:
        key, _, number = change.partition("=")
        if key not in ("layers", "hidden") or not number.isdecimal() or not int(number):
            raise ModelError(
                f"preset:{text}: '{change}' changes nothing of a preset",
                f"write preset:{name},layers=8 or preset:{name},layers=8,hidden=256",
            )
        if key == "layers":
            shape["num_hidden_layers"] = int(number)
            continue
        size, old = int(number), shape["hidden_size"]
        heads = {k: shape[k] * size / old for k in ("num_attention_heads", "num_key_value_heads")}
        if not all(count.is_integer() and count for count in heads.values()):
            step = old // min(shape[k] for k in heads)
            raise ModelError(
                f"preset:{text}: hidden={size} does not make whole heads",
                f"write a multiple of {step}",
            )
        shape |= {k: int(count) for k, count in heads.items()}
        shape["intermediate_size"] = shape["intermediate_size"] * size // old
        shape["hidden_size"] = size
    return transformers.LlamaConfig(**shape)


def model_class(name: str, config: Any) -> Any:
    """Return the class the config names; a causal language model if it names none."""
    if name.startswith("preset:"):
        return transformers.LlamaForCausalLM
    for architecture in config.architectures or []:
        found = getattr(transformers, architecture, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
        raise ModelError(
            f"{name}: transformers {transformers.__version__} has no class {architecture}",
            "models with code of their own are not loaded; convert them from Python with qgraph.convert",
        )
    return transformers.AutoModelForCausalLM


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def _choices() -> str:
    presets = " or ".join(f"preset:{name}" for name in PRESETS)
    return f"give a Hugging Face directory with safetensors, an id in the local hub cache, or {presets}"
