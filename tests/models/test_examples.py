"""Example inputs: what each kind of model class gets and runs on; every class gets some, or a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto import configuration_auto, modeling_auto

from qgraph.compat import fake
from qgraph.errors import ModelError
from qgraph.models.examples import example_inputs
from qgraph.models.shapes import Shapes, shapes_of
from tests.doors.models import make_llama

TEXT = {"input_ids": [2, 16]}
IMAGE = {"pixel_values": [2, 3, 224, 224]}
# Each: the class, what it gets, and whether it then has a loss.
CLASSES: dict[str, tuple[dict[str, Any], bool]] = {
    "LlamaForCausalLM": (TEXT | {"labels": [2, 16]}, True),
    "MarianMTModel": (TEXT | {"labels": [2, 16]}, True),
    "T5Model": (TEXT | {"decoder_input_ids": [2, 16]}, False),
    "BertForPreTraining": (TEXT | {"labels": [2, 16], "next_sentence_label": [2]}, True),
    "BertForNextSentencePrediction": (TEXT | {"labels": [2]}, True),
    "BertForMultipleChoice": ({"input_ids": [2, 2, 16], "labels": [2]}, True),
    "BertForTokenClassification": (TEXT | {"labels": [2, 16]}, True),
    "BertForQuestionAnswering": (TEXT | {"start_positions": [2], "end_positions": [2]}, True),
    "GPT2DoubleHeadsModel": (TEXT, False),
    "ViTForImageClassification": (IMAGE | {"labels": [2]}, True),
    "CLIPModel": (TEXT | IMAGE | {"return_loss": True}, True),
    "SiglipModel": (TEXT | IMAGE | {"return_loss": True}, True),
    "VideoMAEForVideoClassification": (
        {"pixel_values": [2, 16, 3, 224, 224], "labels": [2]}, True,
    ),
    "WhisperForConditionalGeneration": (
        {"input_features": [2, 80, 3000], "labels": [2, 16]}, True,
    ),
    "ASTForAudioClassification": ({"input_values": [2, 1024, 128], "labels": [2]}, True),
    "DacModel": ({"input_values": [2, 1, 19200]}, True),
}  # fmt: skip


def small(name: str) -> Shapes:
    """Return the shapes of a class with the config it has of itself, of at most two layers."""
    kind = getattr(transformers, name)
    config = kind.config_class()
    for part in (config, *(getattr(config, key) for key in config.sub_configs)):
        for key, value in list(vars(part).items()):
            if key.endswith("layers") and isinstance(value, int) and value > 2:
                setattr(part, key, 2)
            if key in ("pad_token_id", "decoder_start_token_id") and value is None:
                setattr(part, key, 0)
    return shapes_of(kind, config)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_runs_on_what_it_gets(name: str) -> None:
    expected, loss = CLASSES[name]
    shapes = small(name)
    inputs = shapes.inputs(2, 16)
    found = {k: list(v.shape) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    assert found == expected
    with torch.no_grad(), fake.mode_of(next(shapes.model.parameters())):
        result = shapes.model(**inputs)
    assert (getattr(result, "loss", None) is not None) == loss


MESSAGES = {
    "CanineModel": "reads text, and its config says no vocab_size",
    "TimesFmModel": "takes past_values, for which there are no example inputs",
    "Qwen2_5_VisionTransformerPretrainedModel": "takes hidden_states, for which",
    "BarkModel": "for which there are no example inputs",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_class_of_other_inputs_is_told(name: str) -> None:
    with pytest.raises(ModelError, match=MESSAGES[name]) as caught:
        small(name).inputs(2, 16)
    assert "qgraph.convert(model, policy, example_inputs)" in caught.value.fix


@pytest.mark.parametrize("size", [10**9, 0, "wide", 2.5])
def test_an_input_of_a_size_that_is_none_is_told(size: object) -> None:
    config = transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])
    model = transformers.ConvNextForImageClassification(config)
    vars(model.config)["image_size"] = size or -1
    with pytest.raises(ModelError, match="would take an input of 2x3x") as caught:
        example_inputs(model, 2, 16)
    assert "config.json" in caught.value.fix
    vars(model.config)["image_size"] = {"height": 32, "width": 64}
    assert example_inputs(model, 2, 16)["pixel_values"].shape == (2, 3, 32, 64)
    with pytest.raises(ModelError, match="would take an input of 1000000000000x16"):
        example_inputs(make_llama(num_hidden_layers=1), 10**12, 16)


def every_class() -> Iterator[tuple[str, str]]:
    """Yield each class of the auto classes' tables, and the kind of config it goes with."""
    found: dict[str, str] = {}
    for table, classes in vars(modeling_auto).items():
        if table.startswith("MODEL_") and table.endswith("_MAPPING_NAMES"):
            for kind, named in classes.items():
                for name in (named,) if isinstance(named, str) else named:
                    found.setdefault(name, kind)
    yield from sorted(found.items())


@pytest.mark.only_full
@pytest.mark.parametrize("part", range(16))
def test_every_class_gets_inputs_or_a_message(part: int) -> None:
    counts = {"inputs": 0, "a message": 0, "no model of its own config": 0}
    for name, kind in list(every_class())[part::16]:
        counts[_outcome(name, kind)] += 1
    print(counts)
    # Most of what cannot be built needs a library that is not there, or a config that says more.
    assert counts["inputs"] > 10 * counts["a message"]
    assert counts["no model of its own config"] < counts["inputs"] / 4


def _outcome(name: str, kind: str) -> str:
    found: Any = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        return "no model of its own config"
    try:
        config = (found.config_class or configuration_auto.CONFIG_MAPPING[kind])()
        shapes = shapes_of(found, config)
    except (ModelError, ValueError, AttributeError, TypeError):  # a config class's own complaint
        return "no model of its own config"
    try:
        return "inputs" if shapes.inputs(2, 16) else "a message"
    except ModelError as error:
        return "a message" if error.fix else "no cure"
