"""Model directories that something is wrong with: what to do to a good one, and what the message says."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

Change = Callable[[Path], None]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LAYER = "model.layers.0.mlp.up_proj.weight"


def good(folder: Path) -> None:
    """Write a model of one layer, two of its weights tied."""
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)


def config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def text(name: str, words: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(words)

    return change


def data(name: str, value: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(value)

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def changed(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, {"format": "pt"})

    return changed


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change what the file says of its tensors, and leave the tensors."""

    def changed(folder: Path) -> None:
        held = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", held[:8])
        said = json.loads(held[8 : 8 + size])
        change(said)
        new = json.dumps(said).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(new)) + new + held[8 + size :])

    return changed


def index(change: Callable[[dict[str, Any]], object]) -> Change:
    """Put the weights into a file that an index names."""

    def changed(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / "one.safetensors")
        found = {
            "metadata": {"total_size": 1},
            "weight_map": dict.fromkeys(names, "one.safetensors"),
        }
        change(found)
        (folder / INDEX).write_text(json.dumps(found))

    return changed


def both(*changes: Change) -> Change:
    def changed(folder: Path) -> None:
        for change in changes:
            change(folder)

    return changed


def shortened(folder: Path) -> None:
    held = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(held[:-100])


def quantized(method: str) -> Change:
    return config(quantization_config={"quant_method": method, "bits": 4})


# Each: the change, a word of the message, a word of its cure.
FAULTS: dict[str, tuple[Change, str, str]] = {
    # weights that are not there, or too many
    "a weight is missing": (weights(lambda w: w.pop(LAYER)), f"lack {LAYER}", "complete the files"),
    "a weight more": (
        weights(lambda w: w.update(extra=torch.zeros(2))), "does not have: extra", "architectures",
    ),
    "another layer more": (config(num_hidden_layers=2), "lack model.layers.1", "complete the files"),
    "another size": (
        config(intermediate_size=96), "up_proj.weight [64, 32] for [96, 32]", "give the config.json",
    ),
    # quantized by others
    **{
        f"quantized: {method}": (quantized(method), f"as {method} quantized them", "floating point")
        for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "aqlm", "hqq", "nonesuch")
    },
    # files that are not what they say
    "a header of another shape": (
        header(lambda h: h[LAYER].update(shape=[64, 33])), "cannot be read", "download the file again",
    ),
    "a header of a huge shape": (
        header(lambda h: h[LAYER].update(shape=[1 << 40, 1 << 30])), "cannot be read", "download",
    ),
    "offsets beyond the file": (
        header(lambda h: h[LAYER].update(data_offsets=[0, 1 << 50])), "cannot be read", "download",
    ),
    "offsets that overlap": (
        header(lambda h: h[LAYER].update(data_offsets=[0, 64 * 32 * 4])), "cannot be read", "download",
    ),
    "a header of no tensor": (header(lambda h: h.update(wrong=3)), "cannot be read", "download"),
    "a header longer than the file": (
        data(WEIGHTS, b"\xff" * 7 + b"\0{}"), "cannot be read", "download",
    ),
    "a file cut short": (shortened, "cannot be read", "download"),
    "an empty file": (text(WEIGHTS, ""), "cannot be read", "download"),
    # an index
    "an index leads out": (
        index(lambda i: i["weight_map"].update({LAYER: "../../one.safetensors"})),
        "no safetensors file beside it", "names of files alone",
    ),
    "an index leads to a place": (
        index(lambda i: i["weight_map"].update({LAYER: "/etc/passwd"})),
        "no safetensors file beside it", "names of files alone",
    ),
    "an index names a pickle": (
        index(lambda i: i["weight_map"].update({LAYER: "pytorch_model.bin"})),
        "no safetensors file beside it", "names of files alone",
    ),
    "an index names a file that is not there": (
        index(lambda i: i["weight_map"].update({LAYER: "two.safetensors"})), "is not there", "download",
    ),
    "an index names a weight that is not there": (
        index(lambda i: i["weight_map"].update(more="one.safetensors")), "does not hold more", "download",
    ),
    "an index without its map": (index(lambda i: i.pop("weight_map")), "no weight_map", "download"),
    "an index of something else": (
        index(lambda i: i.update(weight_map=[1, 2])), "no weight_map", "download",
    ),
    "an index nested deeply": (
        both(index(lambda i: None), text(INDEX, "[" * 100_000)), "nested too deeply", "download",
    ),
    # a config
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers: 1e+09", "correct num_hidden"),
    "a thousand layers": (config(num_hidden_layers=3000), "the limit of what its weights", "saved with"),
    "a billion wide": (config(hidden_size=10**9), "the limit of what its weights", "saved with these"),
    "a billion words": (config(vocab_size=10**9), "the limit of what its weights", "saved with these"),
    "a huge number": (config(vocab_size=10**30), "no model can be built", "saved with these weights"),
    "a size that is a word": (config(hidden_size="wide"), "hidden_size", "config.json"),
    "heads that do not divide": (config(num_attention_heads=0), "", "config.json"),
    "another's dtype": (config(dtype="float3"), "", "config.json"),
    "a config nested deeply": (text("config.json", "[" * 100_000), "nested too deeply", "again"),
    "a config of no mapping": (text("config.json", "[]"), "not a mapping", "save the model again"),
    "a config of no text": (
        data("config.json", b"\xff\xfe{}"), "utf-8", "again",
    ),
    "no kind of model": (text("config.json", "{}"), "", "write model_type"),
    "a kind nobody knows": (config(model_type="nonesuch"), "nonesuch", "install a transformers"),
    "code of its own": (
        config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "", "code of their own",
    ),
    "a class that is a number": (config(architectures=[3]), "no class 3", "convert them from Python"),
}  # fmt: skip
