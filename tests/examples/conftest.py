"""Examples are run as their users run them: as a script, with arguments."""

from __future__ import annotations

import runpy
import sys

import pytest


@pytest.fixture
def run(request, monkeypatch, capsys):
    """Run the module's EXAMPLE with arguments; return its exit code, standard output and error."""
    script = str(request.module.EXAMPLE)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run
