"""A model's structure without its weights: enough to capture its graph, for looking at plans."""

from __future__ import annotations

from typing import Any

from transformers.initialization import no_init_weights

from qgraph.models.load import load_config, model_class


def load_skeleton(name: str) -> Any:
    """Return the model of this name, in training mode, its weights neither read nor set.

    Memory that is never written to is never taken, and capturing a graph reads no weight: a model of
    billions of parameters is looked at on a laptop. Its plan is that of `load_model`'s.

    Raises: ModelError as `load_config`.
    """
    config = load_config(name)
    kind = model_class(name, config)
    dtype = {} if name.startswith("preset:") else {"dtype": config.dtype}
    with no_init_weights():
        model = kind._from_config(config, **{k: v for k, v in dtype.items() if v is not None})
    return model.train()
