"""qgraph compile: what a policy's training step will do on a GPU, found out without one."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from qgraph.errors import ModelError
from qgraph.policy import load_policy
from qgraph.tools.show.screen import print_json, progress, width


def compile(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face directory or cached hub id (only its config is read), or a preset "
            "such as preset:llama3-8b."
        ),
    ],
    target: Annotated[str, typer.Option(help="a100, h100, b200, rtx5090 or mi355x.")],
    policy: Annotated[str, typer.Option(help="A policy file or a recipe's name.")] = "nvfp4",
    offline: Annotated[
        bool, typer.Option("--offline", help="Generate and compile; run nothing. Required.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of the step.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 2048,
    keep: Annotated[
        str | None,
        typer.Option(help="A directory for programs, kernels and machine code; must not exist."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, every kernel in it.")
    ] = False,
) -> None:
    """Compile MODEL's training step under POLICY for TARGET, without that GPU; report what it does.

    Inductor's Triton program for forward and backward is generated, every kernel is compiled to
    machine code, and its bytes, registers, spills and tensor-core instructions are counted. Times
    are rooflines at the GPU's published peaks, beside the same model in bf16. Example:

        qgraph compile preset:llama3-8b --policy nvfp4 --target b200 --offline

    JSON keys: model, policy, target (name, title, arch, bandwidth, peaks, source), tokens, dtype,
    parameters, assumptions; plain and quantized, each with step_s, kernels, moved_bytes,
    minimum_bytes, spilling_kernels, by_kind (seconds) and calls (half, kind, name, nodes, module,
    count, minimum_bytes, moved_bytes, flops, rate_kind, seconds, registers, spill_bytes,
    shared_bytes, instructions, note); added (kernels, bytes), speedup, products (how many quantized
    products run how), coverage.
    """
    chosen = load_policy(policy)
    if not offline:
        raise ModelError(
            "qgraph compile only compiles for a GPU that is not there, and runs nothing",
            "add --offline; qgraph bench times a policy on this machine",
        )
    from qgraph.ops import find_device

    chip = find_device(target)
    with ExitStack() as stack, progress(0) as step:
        step("loading torch")
        from qgraph.doors import new_directory
        from qgraph.predict import (
            check_triton,
            comparison,
            comparison_text,
            compile_step,
            write_sources,
        )

        check_triton()
        folder = stack.enter_context(new_directory(keep)) if keep is not None else None
        size: dict[str, Any] = {"batch": batch, "length": length, "compiled": {}, "say": step}
        plain = compile_step(model, load_policy("high"), chip, **size)
        quantized = compile_step(model, chosen, chip, **size)
        found = comparison(model, chip, plain, quantized, batch * length)
        if folder is not None:
            write_sources(folder, found, plain, quantized)
    if as_json:
        print_json(found)
        return
    sys.stdout.write(comparison_text(found, width()))
    if keep:
        sys.stdout.write(f"wrote {keep}\n")
