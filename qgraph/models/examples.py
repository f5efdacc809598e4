"""Example inputs for a Hugging Face model: small, valid, and with labels so that there is a loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qgraph.compat import fake
from qgraph.errors import ModelError
from qgraph.models.tasks import tasks_of, text_config

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
# Where a config keeps what it says of images, and of the size of sound's features.
_VISION = ("vision_config", "backbone_config", "encoder", "encoder_config")
_FEATURES = (
    "input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins", "num_mel_channels",
)  # fmt: skip
SAMPLES = 19200  # of sound, a multiple of the strides that are usual
FRAMES = 256  # of sound, where the config does not say how many
MOST = 1 << 30  # elements of an input, where it takes memory
_OWN = "call qgraph.convert(model, policy, example_inputs) from Python"


def example_inputs(model: Any, batch: int, length: int, seed: int = 0) -> dict[str, Any]:
    """Return keyword inputs for a training step of `model`.

    Shapes: token models [batch, length]; images [batch, channels, size, size] and audio features as
    the config says. Numbers are in the dtype of the model.
    Raises: ModelError if the model's kind of input is not known.
    """
    made = _Examples(model=model, batch=batch, length=length, seed=seed).make()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {
        key: value.to(like.device, like.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for key, value in made.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Examples:
    model: Any
    batch: int
    length: int
    seed: int

    def make(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.seed)
        main = self._main()
        inputs = dict(self._inputs(main, generator))
        if main not in inputs:
            raise ModelError(
                f"{type(self.model).__name__} takes {main}, for which there are no example inputs",
                _OWN,
            )
        return inputs | dict(self._labels(inputs, generator))

    def _main(self) -> str:
        """Return what the model is about: as it says, if its forward takes it, else the first of those."""
        names = self.model.main_input_name
        name: str = names if isinstance(names, str) else names[0]
        own = [key for key in self.takes if key not in ("args", "kwargs")]  # none in a wrapper
        return name if name in own or not own else own[0]

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def tasks(self) -> frozenset[str]:
        return tasks_of(type(self.model))

    @property
    def takes(self) -> Mapping[str, Any]:
        """The inputs its forward knows by name."""
        return inspect.signature(self.model.forward).parameters

    def tokens(self, generator: torch.Generator, length: int = 0) -> Tensor:
        vocabulary = int(getattr(text_config(self.config), "vocab_size", 0) or 0)
        if vocabulary < 1:
            raise ModelError(
                f"{type(self.model).__name__} reads text, and its config says no vocab_size", _OWN
            )
        low = min(5, vocabulary - 1)  # clear of padding and other special tokens
        shape = self._shape(length or self.length)
        return torch.randint(low, vocabulary, shape, generator=generator)

    def _shape(self, *sizes: Any) -> tuple[int, ...]:
        """Return the shape of an input.

        Raises: ModelError if the config's sizes are none, or too large to be made.
        """
        shape = (self.batch, *sizes)
        real = not isinstance(next(self.model.parameters(), None), fake.FakeTensor)
        whole = all(isinstance(size, int) and size > 0 for size in shape)
        if not whole or (real and math.prod(shape) > MOST):
            raise ModelError(
                f"{type(self.model).__name__} would take an input of {'x'.join(map(str, shape))}",
                "give a smaller --batch or --length, or correct the sizes in config.json",
            )
        return shape

    def _inputs(self, main: str, generator: torch.Generator) -> Iterator[tuple[str, Any]]:
        second = self._beside_text()
        if main == "input_ids" or second or self._requires("input_ids"):
            ids = self.tokens(generator)
            several = "multiple_choice" in self.tasks
            yield "input_ids", ids.unsqueeze(1).expand(-1, 2, -1).contiguous() if several else ids
        name = second or main
        shape = self._images() if name.startswith("pixel_values") else self._sound(name)
        if shape is not None:
            yield name, torch.randn(self._shape(*shape), generator=generator)
        if second and "return_loss" in self.takes:
            yield "return_loss", True

    def _requires(self, name: str) -> bool:
        return name in self.takes and self.takes[name].default is inspect.Parameter.empty

    def _beside_text(self) -> str:
        """Return what a model that compares text with something else takes beside it, of others nothing."""
        compares = "return_loss" in self.takes or hasattr(self.config, "projection_dim")
        names = (name for name in ("pixel_values", "input_features", "input_values"))
        found = next((name for name in names if name in self.takes), "")
        return found if compares and "input_ids" in self.takes else ""

    def _images(self) -> tuple[int, ...]:
        vision = next(filter(None, (self._part(part) for part in _VISION)), self.config)
        size = (
            getattr(vision, "image_size", None) or getattr(self.config, "image_size", None) or 224
        )
        size = [size["height"], size["width"]] if isinstance(size, dict) else size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        image = (getattr(vision, "num_channels", 3), height, width)
        for frames in ("num_frames", "frames_per_clip"):
            count = getattr(vision, frames, None)
            if count:
                return (count, *image)
        return image

    def _part(self, name: str) -> Any:
        found = getattr(self.config, name, None)
        return found if hasattr(found, "num_channels") else None

    def _sound(self, name: str) -> tuple[int, ...] | None:
        config = getattr(self.config, "audio_config", None) or self.config
        config = getattr(config, "encoder_config", None) or config
        if name == "input_values":
            if hasattr(config, "codebook_size"):
                return (getattr(config, "audio_channels", 1), SAMPLES)
            bins = getattr(config, "num_mel_bins", None)
            return (SAMPLES,) if bins is None else (getattr(config, "max_length", 1024), bins)
        if name != "input_features":
            return None
        length = getattr(config, "max_source_positions", None)
        if length and not any(hasattr(config, key) for key in _FEATURES[:2]):
            return (getattr(config, "num_mel_bins", 80), 2 * int(length))  # time last
        sizes = (getattr(config, key, None) for key in _FEATURES)
        return (FRAMES, int(next(filter(None, sizes), 80)))

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
