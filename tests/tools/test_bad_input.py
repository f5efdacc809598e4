"""Bad input: one clear message, a non-zero exit, and nothing written."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qgraph
from qgraph.doors.artifact import new_directory
from qgraph.errors import ArtifactError
from tests.tools.command import run

MODEL = "preset:tiny-llama,layers=2"
GOOD = """\
qgraph: 1
name: mine
formats:
  f: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
transforms:
  rht: {hadamard: 16, signs: te}
rules:
  - match: {op: linear}
    wgrad: {input: {format: f, transform: rht}, grad_output: {format: f, transform: rht}}
"""
# What to change in a good policy, and what the message must say.
POLICIES = {
    "not YAML": (("rules:", "rules: ]"), ":7:"),
    "an unknown key": (("rules:", "ruels:"), "did you mean 'rules'?"),
    "an unknown format": (("format: f,", "format: fp5,"), "unknown format 'fp5'"),
    "an unknown element": (("e2m1", "f2m1"), "did you mean 'e2m1'?"),
    "an unknown op": (("op: linear", "op: liner"), "did you mean 'linear'?"),
    "a one-sided rotation": (("{format: f, transform: rht}}", "f}"), "rotated on one side"),
    "an out-of-range block": (("op: linear", "op: linear, blocks: [9]"), "this model has 2 blocks"),
    "too little quantized": (
        ("rules:", "coverage: {min_flops: 90%}\nrules:"),
        "of product FLOPs are quantized, 90% are demanded; left: ",
    ),
    "sizes that do not fit": (
        (
            "block: [1, 16], scale: e4m3, tensor_scale: fp32}",
            "block: [1, 48], scale: fp32}\nragged: error",
        ),
        "32 summed elements are no multiple of 48, and 14 more",
    ),
    "nothing quantized": (("op: linear", "module: nowhere"), "products is quantized"),
}


@pytest.mark.parametrize("case", POLICIES)
def test_a_wrong_policy_is_told_with_its_place(case: str, tmp_path: Path) -> None:
    (old, new), message = POLICIES[case]
    assert old in GOOD
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace(old, new))
    out = tmp_path / "out"
    arguments = ("--policy", str(file), "--out", str(out), "--length", "16")
    result = run("convert", MODEL, *arguments)
    assert result.code == 1
    assert message in result.err
    assert f"error: {file}" in result.err
    assert "\n  fix: " in result.err
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


MODELS = {
    "missing": ("./no/such/model", "no such directory"),
    "not cached": ("nobody/nothing-7b", "nobody/nothing-7b"),
    "no such preset": ("preset:huge", "use one of: preset:tiny-llama"),
    "a file": ("FOLDER/config.json", "is a file"),
    "no config": ("FOLDER/empty", "no config.json in this directory"),
    "no weights": ("FOLDER", "safetensors"),
    "pickled weights": ("FOLDER/pickled", "safetensors"),
    "a class of its own": ("FOLDER/custom", "convert them from Python"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_wrong_model_is_told_and_nothing_written(case: str, tmp_path: Path) -> None:
    from qgraph.models.load import load_config

    folder = tmp_path / "models"
    for name in ("empty", "pickled", "custom"):
        (folder / name).mkdir(parents=True)
    config = load_config("preset:tiny-llama").to_dict() | {"architectures": ["LlamaForCausalLM"]}
    for place, architecture in (
        (folder, "LlamaForCausalLM"),
        (folder / "pickled", "LlamaForCausalLM"),
        (folder / "custom", "MyLlama"),
    ):
        (place / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    torch.save({"lm_head.weight": torch.zeros(1)}, folder / "pickled" / "pytorch_model.bin")
    model, message = MODELS[case]
    out = tmp_path / "out"
    result = run("convert", model.replace("FOLDER", str(folder)), "--out", str(out))
    assert result.code == 1
    assert message in result.err
    assert "\n  fix: " in result.err
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_an_existing_directory_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    result = run("convert", "preset:tiny-llama", "--out", str(tmp_path))
    assert result.code == 1
    assert "already exists" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_directory_that_cannot_be_written_is_told_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("convert", "preset:tiny-llama", "--out", str(tmp_path / "file" / "out"))
    assert result.code == 1
    assert "cannot write here: Not a directory" in result.err
    assert "loading preset" not in result.err


@pytest.mark.full
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def limit() -> (
        None
    ):  # the kernel refuses to let any file grow beyond 0.1 MB, as a full disk would
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code = "from qgraph.tools.main import main; main()"
    arguments = ["convert", MODEL, "--out", str(tmp_path / "out"), "--length", "16"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, preexec_fn=limit, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "writing failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_room_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def fill() -> None:
        with new_directory(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            Path("/dev/full").write_text("no more")  # "No space left on device"

    with pytest.raises(ArtifactError, match="writing failed: No space left"):
        fill()
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop() -> None:
        with new_directory(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert not list(tmp_path.iterdir())


def test_loading_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not a converted model \(no policy\.yaml\)"):
        qgraph.load(tmp_path)


def test_a_wrong_text_is_told(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    missing = run(
        "train",
        "preset:tiny-llama",
        "--text",
        str(tmp_path / "no"),
        "--out",
        out,
    )
    assert missing.code == 1
    assert "cannot read the text" in missing.err
    (tmp_path / "short").write_text("abc")
    short = run(
        "train",
        "preset:tiny-llama",
        "--text",
        str(tmp_path / "short"),
        "--out",
        out,
    )
    assert short.code == 1
    assert "not one window of 128" in short.err
    assert [path.name for path in tmp_path.iterdir()] == ["short"]
