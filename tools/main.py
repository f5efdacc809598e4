"""The command line: one command a file, one error message and no traceback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings

import typer

from qgraph.errors import QGraphError
from qgraph.tools.bench import bench
from qgraph.tools.check import check
from qgraph.tools.compile import compile
from qgraph.tools.convert import convert
from qgraph.tools.cost import cost
from qgraph.tools.diff import diff
from qgraph.tools.explain import explain
from qgraph.tools.formats import formats
from qgraph.tools.inspect import inspect
from qgraph.tools.predict import predict
from qgraph.tools.recipes import recipes
from qgraph.tools.report import report
from qgraph.tools.reproduce import reproduce
from qgraph.tools.train import train
from qgraph.tools.whatif import whatif

INTERRUPTED = 130
app = typer.Typer(
    help="Low-precision training by rewriting the training graph. For example: qgraph convert "
    "preset:tiny-llama --policy nvfp4 --out model, then qgraph report model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    convert, train, bench, compile, inspect, explain, diff, report, check, formats, recipes,
    reproduce, predict, cost, whatif,
):  # fmt: skip
    app.command()(command)


def main() -> None:
    """Run the command line; exit 1 with one message on an error a user can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half-written work is removed
    try:
        app()
    except QGraphError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except SystemExit as stop:  # typer makes an exit of an interrupt
        if stop.code == INTERRUPTED:
            sys.stderr.write("interrupted: nothing was left behind\n")
        raise
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was left behind\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
