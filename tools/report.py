"""qgraph report: a model's plan as one HTML file to look around in, without a network."""

from __future__ import annotations

import importlib.resources
import json
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qgraph.errors import ArtifactError
from qgraph.tools.inspect import Source
from qgraph.tools.show.curves import find_telemetry, read_losses, read_telemetry
from qgraph.tools.show.dot import draw_dot
from qgraph.tools.show.files import check_writable, write_whole
from qgraph.tools.show.look import Look, is_artifact, is_run, look_at
from qgraph.tools.show.model_explorer import explorer_json
from qgraph.tools.show.report_data import report_data
from qgraph.tools.show.screen import print_json, progress

if TYPE_CHECKING:
    from qgraph.tools.show.report_data import Measured

_WEB = importlib.resources.files("qgraph.tools") / "web"
_SCRIPTS = ("layout.js", "charts.js", "panel.js", "main.js")


def report(
    source: Source,
    out: Annotated[
        str, typer.Option(metavar="FILE.html", help="The file to write.")
    ] = "report.html",
    policy: Annotated[
        str | None,
        typer.Option(help="A policy file or a recipe's name; without it DIR's own, or nvfp4."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="A text file for the values; without it, random tokens.")
    ] = None,
    values: Annotated[
        bool, typer.Option(help="Run one step and measure what each operand holds.")
    ] = True,
    telemetry: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl", help="Telemetry of a run; SOURCE's own is found by itself."
        ),
    ] = None,
    model_explorer: Annotated[
        str | None, typer.Option(metavar="FILE.json", help="Also write Google's Model Explorer's.")
    ] = None,
    dot: Annotated[
        str | None, typer.Option(metavar="FILE.dot", help="Also write a Graphviz graph.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, where a model is captured.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence, likewise.")] = 128,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's data as JSON.")
    ] = False,
) -> None:
    """Write one HTML file: the model as a graph coloured by format, and all there is to know of a product.

    For example: qgraph report DIR --text corpus.txt --out nvfp4.html, or: qgraph report RUN, or:
    qgraph report preset:tiny-llama --policy mxfp8 --no-values --dot mxfp8.dot

    SOURCE may also be what `qgraph train --out` wrote: then the curves are in it. The file reads nothing
    from a network. Click a product for its formats, errors, histograms and code; double-click a module
    to open or fold it.

    JSON keys: about, sites, edges (pairs of sites), texts, colours, grids, coverage, policy, cost, curves.
    """
    for file, suffix in ((out, ".html"), (model_explorer, ".json"), (dot, ".dot")):
        if file is not None:
            check_writable(file, suffix)
    curves = read_losses(source) if is_run(source) else None
    place = _model_of(source, curves, policy) if curves is not None else source
    telemetry = telemetry or find_telemetry(place, source)
    watched = None if telemetry is None else read_telemetry(telemetry)
    if policy is None and not is_artifact(place):
        policy = "nvfp4"
    with progress(6) as step:
        look = look_at(place, policy, batch, length, step)
        if not look.after:  # a trained model keeps no graphs: capture it as it is
            look = look_at(place, f"{place}/policy.yaml", *_sizes(look, batch, length), step)
        found = measured(look, place, text, *_sizes(look, batch, length), step) if values else None
        step("writing")
        data = report_data(look, found, curves, watched)
        write_whole(out, make_page(data))
        if model_explorer is not None:
            write_whole(model_explorer, json.dumps(explorer_json(data)) + "\n")
        if dot is not None:
            write_whole(dot, draw_dot(data))
    if as_json:
        print_json(data)
    else:
        for name in filter(None, (out, model_explorer, dot)):
            sys.stdout.write(f"wrote {name}\n")


def make_page(data: dict[str, Any]) -> str:
    """Return the report as HTML that needs nothing else."""
    title = escape(f"{data['about']['source']}, {data['about']['policy']}: qgraph")
    # A script ends at the first "</", even within a text.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    page = (_WEB / "report.html").read_text(encoding="utf-8")
    parts = {
        "@TITLE@": title,
        "@STYLE@": (_WEB / "report.css").read_text(encoding="utf-8"),
        "@LIBRARY@": (_WEB / "cytoscape.min.js").read_text(encoding="utf-8"),
        "@SCRIPT@": "\n".join((_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "@DATA@": text,
    }
    for mark, part in parts.items():
        head, _, tail = page.partition(mark)
        page = head + part + tail
    return page


def _model_of(source: str, curves: dict[str, Any], policy: str | None) -> str:
    folder = Path(source).expanduser() / str(curves["policy"])
    if policy is None and not is_artifact(str(folder)):
        raise ArtifactError(
            f"{folder}: holds no plan (policy.yaml, report.json)",
            f"add --policy, the one it was trained under: {curves['policy']}",
        )
    return str(folder)


def _sizes(look: Look, batch: int, length: int) -> tuple[int, int]:
    """Return the batch and length that the plan was made for."""
    shape = look.inputs.get("input_ids", [])
    return (shape[0], shape[1]) if len(shape) == 2 else (batch, length)


def measured(
    look: Look, source: str, text: str | None, batch: int, length: int, step: Callable[[str], None]
) -> Measured:
    """Run one step of the model of `look` on `text`, or on random inputs, and return what operands held."""
    step("loading the weights")
    import transformers

    from qgraph.models import example_inputs, load_model
    from qgraph.search import measure_values
    from qgraph.training import Windows, read_text, tokenize

    transformers.utils.logging.disable_progress_bar()
    model = load_model(source)
    inputs = example_inputs(model, batch, length)
    if text is not None:
        vocabulary = int(model.config.get_text_config().vocab_size)
        rows = Windows(tokenize(read_text(text), source, vocabulary), length)
        ids = rows._rows[:batch]
        inputs |= {key: ids for key in ("input_ids", "labels") if inputs[key].shape == ids.shape}
    step("running one step, to measure values")
    return measure_values(model, look.policy, inputs)
