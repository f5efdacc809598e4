"""What a model class of transformers is for: its tasks, by the tables of its auto classes."""

from __future__ import annotations

import functools
from typing import Any

from transformers.models.auto import modeling_auto

_START, _END = "MODEL_FOR_", "_MAPPING_NAMES"
# Classes that are in no table: what their names end in.
_ENDINGS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "pretraining",
    "ForConditionalGeneration": "seq_to_seq_causal_lm",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForSequenceClassification": "sequence_classification",
    "ForImageClassification": "image_classification",
    "ForAudioClassification": "audio_classification",
}


@functools.cache
def _table() -> dict[str, frozenset[str]]:
    """Return the tasks of each class: `causal_lm`, `question_answering`, as the auto tables are called."""
    found: dict[str, set[str]] = {}
    for table, classes in vars(modeling_auto).items():
        if table.startswith(_START) and table.endswith(_END):
            for named in classes.values():
                for name in (named,) if isinstance(named, str) else named:
                    found.setdefault(name, set()).add(table[len(_START) : -len(_END)].lower())
    return {name: frozenset(tasks) for name, tasks in found.items()}


def tasks_of(kind: type) -> frozenset[str]:
    """Return the tasks of a model class, of the nearest of its bases that has any; of none, nothing."""
    for base in kind.__mro__:
        if found := _table().get(base.__name__):
            return found
    return frozenset(task for end, task in _ENDINGS.items() if kind.__name__.endswith(end))


def text_config(config: Any) -> Any:
    """Return the part of a config that is about text: the decoder's of several, itself of none."""
    if not hasattr(config, "get_text_config"):
        return config
    try:
        return config.get_text_config()
    except ValueError:
        return config.get_text_config(decoder=True)
