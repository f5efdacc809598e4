"""Example inputs for a Hugging Face model: small, valid, and with labels so that there is a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qgraph.errors import ModelError


def example_inputs(model: Any, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Return keyword inputs for a training step of `model`.

    Shapes: token models [batch, length]; images [batch, channels, size, size] and audio features as
    the config says. Numbers are in the dtype of the model.
    Raises: ModelError if the model's kind of input is not known.
    """
    generator = torch.Generator().manual_seed(seed)
    config, name = model.config, type(model).__name__
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(getattr(text, "vocab_size", 0) or 0)

    def tokens() -> Tensor:
        low = min(5, vocabulary - 1)  # clear of padding and other special tokens
        return torch.randint(low, vocabulary, (batch, length), generator=generator)

    main = model.main_input_name
    inputs: dict[str, Tensor] = {}
    if main == "input_ids" and vocabulary:
        inputs["input_ids"] = tokens()
    elif main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(vision, "num_channels", 3)
        inputs["pixel_values"] = torch.randn(batch, channels, height, width, generator=generator)
    elif main == "input_features":
        frames = 2 * getattr(config, "max_source_positions", 1500)
        bins = getattr(config, "num_mel_bins", 80)
        inputs["input_features"] = torch.randn(batch, bins, frames, generator=generator)
    elif main == "input_values":
        inputs["input_values"] = torch.randn(batch, 16000, generator=generator)
    else:
        raise ModelError(
            f"{name} takes {main}, for which there are no example inputs",
            "call qgraph.convert(model, policy, example_inputs) from Python",
        )
    like = next(p for p in model.parameters() if p.is_floating_point())
    return {
        key: value.to(like.device, like.dtype if value.is_floating_point() else None)
        for key, value in (inputs | _labels(name, inputs, tokens, batch)).items()
    }


def _labels(name: str, inputs: dict[str, Tensor], tokens: Any, batch: int) -> dict[str, Tensor]:
    """Return the labels a model class computes its loss from; none for a class without a head."""
    classes = torch.zeros(batch, dtype=torch.long)
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining")):
        return {"labels": inputs["input_ids"]} if "input_ids" in inputs else {}
    if name.endswith("ForConditionalGeneration"):
        return {"labels": inputs.get("input_ids", tokens())}
    if name.endswith("ForTokenClassification"):
        return {"labels": torch.zeros_like(inputs["input_ids"])}
    if name.endswith("ForQuestionAnswering"):
        return {"start_positions": classes, "end_positions": classes}
    if name.endswith(
        ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
    ):
        return {"labels": classes}
    return {}
