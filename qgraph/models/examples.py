"""Example inputs for a Hugging Face model: small, valid, and with labels so that there is a loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qgraph.errors import ModelError
from qgraph.models.tasks import tasks_of

# Tasks whose label is one number a row; a number a token; tokens; places in the text.
_OF_ROWS = {
    "sequence_classification", "image_classification", "audio_classification", "audio_xvector",
    "video_classification", "multiple_choice", "next_sentence_prediction",
}  # fmt: skip
_OF_TOKENS = {"token_classification"}
_TEXT = {
    "causal_lm", "masked_lm", "pretraining", "seq_to_seq_causal_lm", "speech_seq_2_seq",
    "image_text_to_text", "multimodal_lm",
}  # fmt: skip
SAMPLES = 16000  # of sound: a second


def example_inputs(model: Any, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Return keyword inputs for a training step of `model`.

    Shapes: token models [batch, length]; images [batch, channels, size, size] and audio features as
    the config says. Numbers are in the dtype of the model.
    Raises: ModelError if the model's kind of input is not known.
    """
    made = _Examples(model=model, batch=batch, length=length, seed=seed).make()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {
        key: value.to(like.device, like.dtype if value.is_floating_point() else None)
        for key, value in made.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Examples:
    model: Any
    batch: int
    length: int
    seed: int

    def make(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        main = self.model.main_input_name
        first = main if isinstance(main, str) else main[0]
        inputs = dict(self._inputs(first, generator))
        if first not in inputs:
            raise ModelError(
                f"{type(self.model).__name__} takes {first}, for which there are no example inputs",
                "call qgraph.convert(model, policy, example_inputs) from Python",
            )
        return inputs | dict(self._labels(inputs, generator))

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def tasks(self) -> frozenset[str]:
        return tasks_of(type(self.model))

    @property
    def takes(self) -> frozenset[str]:
        """The inputs its forward knows by name."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    def tokens(self, generator: torch.Generator, length: int = 0) -> Tensor:
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else None
        vocabulary = int(getattr(text or self.config, "vocab_size", 0) or 0)
        if vocabulary < 1:
            raise ModelError(
                f"{type(self.model).__name__} reads text, and its config says no vocab_size",
                "call qgraph.convert(model, policy, example_inputs) from Python",
            )
        low = min(5, vocabulary - 1)  # clear of padding and other special tokens
        shape = (self.batch, length or self.length)
        return torch.randint(low, vocabulary, shape, generator=generator)

    def _inputs(self, main: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        both = "zero_shot_image_classification" in self.tasks  # text beside images
        if main == "input_ids" or both:
            ids = self.tokens(generator)
            several = "multiple_choice" in self.tasks
            yield "input_ids", ids.unsqueeze(1).expand(-1, 2, -1).contiguous() if several else ids
        shape = self._images() if main == "pixel_values" or both else self._sound(main)
        if shape is not None:
            name = "pixel_values" if both else main
            yield name, torch.randn(self.batch, *shape, generator=generator)
        if both and "return_loss" in self.takes:
            yield "return_loss", torch.tensor(True)

    def _images(self) -> tuple[int, ...]:
        vision = next(
            (
                found
                for name in ("vision_config", "backbone_config", "encoder", "encoder_config")
                if (found := getattr(self.config, name, None)) is not None
                and hasattr(found, "num_channels")
            ),
            self.config,
        )
        size = (
            getattr(vision, "image_size", None) or getattr(self.config, "image_size", None) or 224
        )
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        image = (getattr(vision, "num_channels", 3), height, width)
        if "video_classification" in self.tasks:
            return (getattr(self.config, "num_frames", 16), *image)
        return image

    def _sound(self, main: str) -> tuple[int, ...] | None:
        config = getattr(self.config, "audio_config", self.config)
        if main == "input_values":
            bins = getattr(config, "num_mel_bins", None)
            return (SAMPLES,) if bins is None else (getattr(config, "max_length", 1024), bins)
        if main != "input_features":
            return None
        for name in ("input_feat_per_channel", "feature_projection_input_dim"):
            if hasattr(config, name):  # time first
                return (256, int(getattr(config, name)))
        return (
            getattr(config, "num_mel_bins", 80),
            2 * int(getattr(config, "max_source_positions", 1500)),
        )

    def _labels(
        self, inputs: dict[str, Tensor], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the labels the class computes its loss from, and a decoder's tokens where there are none."""
        rows, tasks = torch.zeros(self.batch, dtype=torch.long), self.tasks
        ids = inputs.get("input_ids")
        if "question_answering" in tasks and "start_positions" in self.takes:
            yield "start_positions", rows
            yield "end_positions", rows
        elif "labels" in self.takes and tasks & _OF_ROWS:
            yield "labels", rows
        elif "labels" in self.takes and tasks & _OF_TOKENS and ids is not None:
            yield "labels", torch.zeros_like(ids)
        elif "labels" in self.takes and "ctc" in tasks:
            yield "labels", self.tokens(generator, 4)
        elif "labels" in self.takes and tasks & _TEXT:
            yield "labels", self.tokens(generator) if ids is None else ids
            if "next_sentence_label" in self.takes:
                yield "next_sentence_label", rows
        elif "decoder_input_ids" in self.takes and getattr(
            self.config, "is_encoder_decoder", False
        ):
            yield "decoder_input_ids", self.tokens(generator) if ids is None else ids
