"""C++ of ours, compiled by the machine's GCC, where torch's own operations are slow on a CPU.

Whoever has no compiler gets the same by torch's operations, more slowly. Nothing is kept: the
library is made again in every process that needs it, in some seconds, for the very processor
that it runs on, and its files are gone before it is used.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from ctypes import CDLL
from functools import lru_cache
from pathlib import Path

_COMPILE = ("-std=gnu++17", "-O3", "-march=native", "-fopenmp", "-fno-exceptions", "-fPIC", "-c")
# Without OpenMP's library: the one that torch has loaded is found, and its threads are used. A
# second one would have threads of its own, and the two would wait for each other's cores.
_LINK = ("-shared", "-nostdlib")

# The names of the files that this process has compiled and loaded, for the records of its runs.
LOADED: set[str] = set()


def load(source: Path) -> CDLL | None:
    """Compile C++ and load it into this process, the first time.

    Args:
        source: A file that includes nothing but headers beside it, of the standard library and of
            the compiler, and is linked with nothing but C's library and OpenMP's.

    Returns:
        The library; or None on other systems than Linux, without a compiler (``$CXX``, or else
        ``g++``) or where ``$FASTTRICKS_NATIVE`` is 0, and with a warning where it fails, as with
        another compiler than GCC.
    """
    library, problem = _build(source)
    if problem is not None:
        warnings.warn(
            f"{source.name} could not be compiled and loaded, and torch's operations do the same "
            f"more slowly; FASTTRICKS_NATIVE=0 in the environment does without from the start: "
            f"{problem}",
            RuntimeWarning,
            stacklevel=2,
        )
    return library


@lru_cache
def _build(source: Path) -> tuple[CDLL | None, str | None]:
    """The library if there is one, and what went wrong if something did."""
    if sys.platform != "linux" or os.environ.get("FASTTRICKS_NATIVE") == "0":
        return None, None
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
        if shutil.which(compiler[0]) is None:
            return None, None
        # What is loaded cannot be deleted everywhere.
        with tempfile.TemporaryDirectory(
            prefix="fasttricks-", ignore_cleanup_errors=True
        ) as folder:
            compiled, linked = Path(folder, "object.o"), Path(folder, "library.so")
            _run([*compiler, *_COMPILE, str(source), "-o", str(compiled)])
            _run([*compiler, *_LINK, str(compiled), "-o", str(linked)])
            library = CDLL(str(linked))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return None, _cause(error)
    LOADED.add(source.name)
    return library, None


def _run(command: list[str]) -> None:
    subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace", timeout=120
    )


def _cause(error: Exception) -> str:
    """The compiler's first error, or what else there is to say in a line."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    lines = (said.strip() or str(error)).splitlines() or [repr(error)]
    return next((line for line in lines if "error" in line.lower()), lines[0])
