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
from qgraph.tools.convert import convert
from qgraph.tools.cost import cost
from qgraph.tools.formats import formats
from qgraph.tools.predict import predict
from qgraph.tools.train import train
from qgraph.tools.whatif import whatif

app = typer.Typer(
    help="Low-precision training by rewriting the training graph.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (convert, train, bench, check, formats, predict, cost, whatif):
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
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was left behind\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
