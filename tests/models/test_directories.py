"""Model directories that something is wrong with: one message and its cure, before anything is made."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from qgraph.errors import ModelError
from qgraph.models.load import load_model
from qgraph.models.shapes import load_shapes
from tests.models.directories import FAULTS, INDEX, LAYER, WEIGHTS, config, good, index, weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    good(folder)
    return folder


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_once_with_its_cure(case: str, model: Path, tmp_path: Path) -> None:
    change, says, cure = FAULTS[case]
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    change(folder)
    tracemalloc.start()
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert says in caught.value.problem
    assert cure in caught.value.fix
    assert "\n" not in caught.value.problem + caught.value.fix
    assert most < 64 << 20


def test_what_is_whole_loads(model: Path, tmp_path: Path) -> None:
    expected = load_model(str(model)).state_dict()
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    index(lambda found: None)(folder)
    assert (folder / INDEX).is_file()
    found = load_model(str(folder)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert "lm_head.weight" not in json.loads((folder / INDEX).read_text())["weight_map"]  # tied


def test_what_a_class_declares_ignorable_may_be_missing_or_more(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    weights(lambda held: held.update(old=held.pop(LAYER)))(folder)
    with pytest.raises(ModelError, match=f"lack {LAYER}; .* does not have: old"):
        load_model(str(folder))
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"up_proj\.weight"])
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", ["old"])
    assert isinstance(load_model(str(folder)), PreTrainedModel)


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**15}])
def test_shapes_are_bounded_too(sizes: dict[str, int], model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copyfile(model / "config.json", folder / "config.json")
    config(**sizes)(folder)
    with pytest.raises(ModelError, match="more than"):
        load_shapes(str(folder))


@pytest.mark.parametrize("change", ["layers=1000000000", "hidden=128000000", "hidden=1280000"])
def test_presets_are_bounded_too(change: str) -> None:
    with pytest.raises(ModelError, match=r"is too large|this machine's memory") as caught:
        load_model(f"preset:tiny-llama,{change}")
    assert caught.value.fix


def test_a_model_without_an_architecture_is_a_language_model(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config(architectures=None)(folder)
    assert isinstance(load_model(str(folder)), LlamaForCausalLM)
    assert isinstance(load_model(str(folder)).config, LlamaConfig)
    assert (folder / WEIGHTS).is_file()
