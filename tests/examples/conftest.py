"""Examples are run as their users run them: as a script, with arguments."""

from __future__ import annotations

import runpy
import sys

import numpy as np
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


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Two classes that differ in brightness, under noise."""
    path = tmp_path_factory.mktemp("data") / "brightness.npz"
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 2
    images = (rng.integers(0, 100, (240, 8, 8, 3)) + 100 * labels[:, None, None, None]).astype("u1")
    np.savez(
        path, x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:]
    )
    return path
