"""Running the command line in this process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from qgraph.tools.main import main


@dataclass(frozen=True, kw_only=True)
class Result:
    code: int
    out: str
    err: str


def run(*arguments: str) -> Result:
    """Run `qgraph ARGUMENTS` as a user would, at 80 columns."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["qgraph", *arguments])
        patch.setenv("COLUMNS", "80")
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code=code, out=out.getvalue(), err=err.getvalue())
