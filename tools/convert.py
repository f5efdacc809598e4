"""qgraph convert: a model and a policy in, a trainable directory and a report out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from qgraph.policy import load_policy
from qgraph.tools.show.screen import print_json, progress, width
from qgraph.tools.show.tables import PLAIN, Table, below, check_style, coverage_table, print_table


def convert(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face directory, a cached hub id, or preset:tiny-llama.")
    ],
    policy: Annotated[str, typer.Option(help="A policy file or a recipe's name.")] = "nvfp4",
    out: Annotated[
        str | None, typer.Option(help="The directory to write; it must not exist.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the captured step.")] = 2,
    length: Annotated[
        int, typer.Option(min=1, help="Tokens per sequence of the captured step.")
    ] = 128,
    seed: Annotated[int, typer.Option(help="Seed of a preset's weights.")] = 0,
    table: Table = PLAIN,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json instead of the table.")
    ] = False,
) -> None:
    """Convert MODEL as POLICY says: print what every matrix product becomes, and write OUT.

    For example: qgraph convert preset:tiny-llama --policy nvfp4 --out model, then:
    qgraph inspect model, qgraph report model

    OUT holds the weights and config as save_pretrained writes them, policy.yaml, graph_before.txt,
    graph_after.txt and report.json. Without --out nothing is written. The JSON's keys are those of
    report.json: inputs, policy, fingerprint, lowering, graphs, totals, not_captured, elsewhere,
    unaudited, lookups, unused_rules, products.
    """
    check_style(table, json=as_json)
    chosen = load_policy(policy)  # before torch is loaded: a wrong policy is told at once
    with ExitStack() as stack, progress(3 if out is None else 4) as step:
        step("loading torch")
        import transformers

        from qgraph.doors import analyze, new_directory, write_artifact
        from qgraph.models import example_inputs, folder_of, load_model
        from qgraph.passes import report_json, total_lines

        transformers.utils.logging.disable_progress_bar()
        folder = stack.enter_context(new_directory(out)) if out is not None else None
        step(f"loading {model}")
        loaded = load_model(model, seed)
        step("capturing and rewriting the training step")
        found = analyze(loaded, chosen, example_inputs(loaded, batch, length))
        if folder is not None:
            step(f"writing {out}")
            preset = model.startswith("preset:")
            write_artifact(loaded, found, folder, source=None if preset else folder_of(model))
    if as_json:
        print_json({"inputs": found.inputs, **report_json(found.report)})
    else:
        print_table(coverage_table(found.report.entries, table))
        below(table, total_lines(found.report, width()))
        if out:
            below(table, [f"wrote {out}: load it with qgraph.load({out!r})"])
