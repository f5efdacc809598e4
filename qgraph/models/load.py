"""Finding and loading Hugging Face models, without the network, remote code or pickles."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils.hub import cached_file

from qgraph.errors import ModelError
from qgraph.models.bounds import MOST_PARTS, Bound, bounded, check_config, first_line
from qgraph.models.checkpoint import check_complete, weights_in
from qgraph.models.files import read_json

_WITH_WEIGHTS = "give the config.json that was saved with these weights"
# Elements that a model may have beyond twice those of its files: tables that are computed.
ROOM = 1 << 28

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
        with bounded(name, _memory()):
            transformers.LlamaForCausalLM(config)
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).train()
    kind = model_class(name, config)
    _check_quantized(name, config)
    _check_size(name, kind, config)
    try:
        model, info = kind.from_pretrained(
            _source(name),
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # it is told with names, below
        )
    except Exception as error:
        raise ModelError(
            f"{name}: its weights cannot be loaded: {first_line(error)}", _WITH_WEIGHTS
        ) from error
    check_complete(name, type(model).__name__, info)
    return model.train()


def _check_size(name: str, kind: Any, config: Any) -> None:
    """Check, on shapes alone, that the config describes no more than the files hold.

    What is tied is there once; converting a checkpoint's old layout to the model's changes names and
    may split a weight.
    """
    held = weights_in(folder_of(name))
    bound = Bound(
        tensors=1000 + 32 * len(held),
        elements=2 * sum(held.values()) + ROOM,
        whose="what its weights can be",
        fix=_WITH_WEIGHTS,
    )
    build = getattr(kind, "_from_config", None) or kind.from_config
    with bounded(name, bound):
        build(copy.deepcopy(config))


def _check_quantized(name: str, config: Any) -> None:
    """Check that the weights are numbers that can be trained, not another tool's codes."""
    for key in ("quantization_config", "compression_config"):
        if found := getattr(config, key, None):
            facts = found if isinstance(found, dict) else vars(found)
            raise ModelError(
                f"{name}: its weights are stored as {facts.get('quant_method', key)} quantized them",
                "give the model that was quantized, with weights in floating point; or dequantize it in "
                "Python and give qgraph.compile or qgraph.convert the model",
            )


def _memory() -> Bound:
    """Return the bound of a preset, whose weights are made here: float32 in this machine's memory."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Bound(
        elements=size // 4,
        whose="this machine's memory",
        fix="choose fewer layers or a smaller hidden",
    )


def load_config(name: str) -> Any:
    """Return the config of a model named as for `load_model`.

    Raises: ModelError saying what is missing and what to give instead.
    """
    if name.startswith("preset:"):
        return _preset(name.removeprefix("preset:"))
    folder = folder_of(name)
    try:
        described = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name}: config.json cannot be read: {error}",
            "save the model again, or download it again",
        ) from error
    check_config(name, described)
    try:
        return transformers.AutoConfig.from_pretrained(
            _source(name), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(f"{name}: {first_line(error)}", _config_fix(described)) from error


def _config_fix(described: Mapping[str, Any]) -> str:
    if "auto_map" in described:
        return (
            "models with code of their own are not loaded: give the model itself to qgraph.compile"
        )
    kind = described.get("model_type")
    if not kind:
        return "write model_type in config.json, as save_pretrained does"
    if kind not in transformers.CONFIG_MAPPING:
        return (
            f"install a transformers that knows {kind} (this is {transformers.__version__}), or give the "
            "model itself to qgraph.compile"
        )
    return "correct config.json, or save the model again with save_pretrained"


def folder_of(name: str) -> Path:
    """Return the directory of a model: itself, or where the local hub cache keeps it.

    Raises: ModelError saying what is missing and what to give instead.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name}: no config.json in this directory",
                "give a directory save_pretrained wrote",
            )
        return path
    if path.is_file():
        raise ModelError(f"{name}: is a file", "give the directory it is in")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"{name}: no such directory", _choices())
    try:
        return Path(str(cached_file(name, "config.json", local_files_only=True))).parent
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name}: neither a directory here nor in the local hub cache", _choices()
        ) from error


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
        if int(number) > MOST_PARTS * (1 if key == "layers" else 100):
            raise ModelError(
                f"preset:{text}: {change} is too large", f"write preset:{name},layers=8"
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
    named = config.architectures or []
    for architecture in [named] if isinstance(named, str) else named:
        found = getattr(transformers, str(architecture), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
        raise ModelError(
            f"{name}: transformers {transformers.__version__} has no class {architecture}",
            "models with code of their own are not loaded; convert them from Python with qgraph.convert",
        )
    return transformers.AutoModelForCausalLM


def _choices() -> str:
    presets = " or ".join(f"preset:{name}" for name in PRESETS)
    return f"give a Hugging Face directory with safetensors, an id in the local hub cache, or {presets}"
