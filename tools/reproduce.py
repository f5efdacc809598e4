"""qgraph reproduce: a paper's experiment at a CPU's scale, and whether its claim shows."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from qgraph.errors import QGraphError
from qgraph.tools.show.screen import print_json, progress, width


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(help="Experiments; --list names them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Run every experiment.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    out: Annotated[
        str,
        typer.Option(help="Where runs are kept, one folder an experiment; it may exist."),
    ] = "reproduce-out",
    page: Annotated[
        str | None, typer.Option(metavar="FILE.md", help="Write all results as one page.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run experiments of papers: minutes each, the same numbers each time.

    For example: qgraph reproduce nvfp4_ablation

    Each finished run is kept under OUT/NAME/runs: run the same command again to go on after an
    interruption. OUT/NAME also gets result.json and plot.png.

    JSON: a list with, of each experiment, name, title, source, claim, seeds, settings, results (arm ->
    seed -> metrics), findings (says, metric, differences, mean, noise, verdict), verdict, limits,
    reused (runs found from before). With --list: name, title, source, claim, runs.
    """
    if not (names or every or listed):
        raise QGraphError("no experiment is named", "name one; qgraph reproduce --list lists them")
    with progress(1) as step:
        step("loading torch")
        from qgraph.experiments import experiment_names, load_experiment, outcome_json, plot
        from qgraph.experiments import page as page_of
        from qgraph.experiments import reproduce as run
    if listed:
        _list([load_experiment(name) for name in experiment_names()], as_json)
        return
    chosen = experiment_names() if every else tuple(names or ())
    experiments = [load_experiment(name) for name in chosen]
    if page is not None and not Path(page).parent.is_dir():
        raise QGraphError(f"{page}: no such directory", "give --page a file in one that exists")
    outcomes = []
    with progress(sum(len(e.arms) * len(e.seeds) for e in experiments)) as step:
        for experiment in experiments:
            folder = Path(out) / experiment.name
            try:
                outcome = run(experiment, folder, _teller(experiment.name, step))
            except KeyboardInterrupt:
                sys.stderr.write(f"interrupted: what is done is kept in {folder}; run it again\n")
                raise SystemExit(130) from None
            _write(folder / "result.json", json.dumps(outcome_json(outcome), indent=1) + "\n")
            plot(outcome, folder / "plot.png")
            outcomes.append(outcome)
            if not as_json:
                _print(outcome, folder)
    if page is not None:
        _write(Path(page), page_of(outcomes))
    if as_json:
        print_json([outcome_json(outcome) for outcome in outcomes])
    elif page is not None:
        sys.stdout.write(f"wrote {page}\n")


def _teller(name: str, step: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: step(f"{name}: {text}")


def _list(experiments: list[Any], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "name": e.name,
                    "title": e.title,
                    "source": e.source,
                    "claim": e.claim,
                    "runs": len(e.arms) * len(e.seeds),
                }
                for e in experiments
            ]
        )
        return
    pad = max(len(e.name) for e in experiments) + 2
    for e in experiments:
        words = textwrap.wrap(f"{e.title} [{e.source}]", width() - pad, break_on_hyphens=False)
        sys.stdout.write(f"{e.name:<{pad}}" + f"\n{'':{pad}}".join(words) + "\n")


def _print(outcome: Any, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from qgraph.experiments import finding_rows, noise_text, table

    e = outcome.experiment
    console = Console(file=sys.stdout, width=width(), highlight=False)
    console.print(f"{e.title}\n{e.source}\n\nclaim: {e.claim}\n", markup=False)
    head, rows = table(outcome)
    shown = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        shown.add_column(name, justify="right" if 0 < i < len(head) - 1 else "left")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    if noise := noise_text(outcome):
        console.print(noise, markup=False)
    verdicts = Table(box=None, pad_edge=False)
    for i, name in enumerate(("expected", "mean difference", "noise", "shown")):
        verdicts.add_column(name, justify="right" if i in (1, 2) else "left")
    for row in finding_rows(outcome):
        verdicts.add_row(*row)
    console.print()
    console.print(verdicts)
    console.print(f"\nverdict: {outcome.verdict}", style="bold")
    if e.limits:
        console.print(e.limits, markup=False)
    again = f", {outcome.reused} runs from before" if outcome.reused else ""
    console.print(f"wrote {folder}: plot.png, result.json{again}", markup=False)


def _write(file: Path, text: str) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
